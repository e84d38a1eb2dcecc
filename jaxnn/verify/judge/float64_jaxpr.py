"""Float64 arithmetic in a function's own jaxpr, so that casts, masks and random bits stay what they were."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend import core


def in_float64(f: Callable, *example_args, strip: bool = False) -> Callable:
    """g(*args), which does what f does for arguments like the example's, but in float64 arithmetic.

    f is traced once, in the precision of the example; g evaluates that jaxpr with every float16, bfloat16 and float32
    replaced by float64. Random bits and the uniform numbers made from them stay as they were, so a key draws the same
    dropout mask; retraced under x64 it would draw another. g is called under `jax.enable_x64(True)`, can be traced,
    and takes arrays of any float precision in f's tree. strip=True leaves out the rules of custom_jvp and custom_vjp,
    so that jax.grad(g) does not depend on them.

    Numerics: constants like 0.1 become the shortest decimal that rounds to them in float32, as the user wrote them.
    """
    closed, shape = jax.make_jaxpr(f, return_shape=True)(*example_args)
    in_tree, out_tree = jax.tree.structure(example_args), jax.tree.structure(shape)

    def g(*args):
        leaves, tree = jax.tree.flatten(args)
        if tree != in_tree:
            raise ValueError(f"in_float64: the function was traced for {in_tree}, it is called with {tree}")
        outs = evaluate(closed.jaxpr, closed.consts, leaves, strip)
        return out_tree.unflatten(outs)

    return g


def evaluate(jaxpr: core.Jaxpr, consts: Sequence, args: Sequence, strip: bool = False) -> list:
    """The outputs of a jaxpr in float64 arithmetic, under enable_x64."""
    env: dict[core.Var, Any] = {}
    for var, x in zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True):
        env[var] = widen(x, dtype_of(var))
    for eqn in jaxpr.eqns:
        outs = evaluate_equation(eqn, [read(env, atom) for atom in eqn.invars], strip)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(env, atom) for atom in jaxpr.outvars]


def read(env: dict, atom: core.Var | core.Literal) -> Any:
    """The value of a variable or of a literal."""
    return widen(atom.val, dtype_of(atom)) if isinstance(atom, core.Literal) else env[atom]


def dtype_of(atom: Any) -> Any:
    """The dtype of a variable or of a literal of a jaxpr."""
    return atom.aval.dtype


def is_key(dtype: Any) -> bool:
    """Whether arrays of this dtype hold keys of random numbers."""
    return jnp.issubdtype(dtype, jax.dtypes.prng_key)


def wide(dtype: Any) -> Any:
    """float64 for every float, complex128 for every complex type; the type itself for the others."""
    if jnp.issubdtype(dtype, jnp.floating):
        return np.dtype(np.float64)
    return np.dtype(np.complex128) if jnp.issubdtype(dtype, jnp.complexfloating) else dtype


def widen(x: Any, dtype: Any) -> Any:
    """x, which has this dtype in a jaxpr, in `wide(dtype)`."""
    if is_key(dtype):
        return x  # a key
    if isinstance(x, Tracer):
        return x if x.dtype == wide(dtype) else jax.lax.convert_element_type(x, wide(dtype))
    x = np.asarray(x)
    if x.ndim == 0 and x.dtype == np.float32:
        return np.asarray(float(str(x)))  # 0.1, not 0.10000000149
    return x.astype(wide(dtype))


def equation(eqn: core.JaxprEqn, args: Sequence) -> list:
    """The outputs of one equation that is not a call or a loop, args and outputs in float64."""
    name = eqn.primitive.name
    if name == "reduce_precision":
        return list(args)
    combines = name.startswith(("scatter", "reduce"))  # with a jaxpr of two numbers
    if name in _OWN_PRECISION or (any(True for _ in sub_jaxprs(eqn)) and not combines):
        own = [_narrow(x, dtype_of(atom)) for x, atom in zip(args, eqn.invars, strict=True)]
        return [widen(y, dtype_of(var)) for y, var in zip(bind(eqn, own, eqn.params), eqn.outvars, strict=True)]
    return bind(eqn, args, {key: _wide_parameter(value) for key, value in eqn.params.items()})


# These look at a float's bits, or draw as many as it has.
_OWN_PRECISION = {"bitcast_convert_type", "nextafter", "random_gamma", "rng_uniform", "pure_callback", "io_callback"}


def _wide_parameter(value):
    if isinstance(value, (np.dtype, type)):
        return wide(value)
    if isinstance(value, core.Jaxpr):
        return _wide_parameter(core.ClosedJaxpr(value, ())).jaxpr
    if isinstance(value, core.ClosedJaxpr):
        avals = [jax.ShapeDtypeStruct(var.aval.shape, wide(var.aval.dtype)) for var in value.jaxpr.invars]
        return jax.make_jaxpr(lambda *xs: evaluate(value.jaxpr, value.consts, xs))(*avals)
    return value


def bind(eqn: core.JaxprEqn, args: Sequence, params: dict) -> list:
    """The outputs of an equation's primitive."""
    outs = eqn.primitive.bind(*args, **params)
    return list(outs) if eqn.primitive.multiple_results else [outs]


def _narrow(x, dtype):
    if is_key(dtype):
        return x
    return jax.lax.convert_element_type(x, dtype)


def inner(eqn: core.JaxprEqn) -> core.ClosedJaxpr | None:
    """The jaxpr that an equation merely calls: jit, remat, custom_jvp and custom_vjp without their rules."""
    if eqn.primitive.name in ("scan", "while", "cond"):
        return None
    called = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    if isinstance(called, core.Jaxpr):
        called = core.ClosedJaxpr(called, ())
    if called is None or len(called.jaxpr.invars) != len(eqn.invars):
        return None
    return called if len(called.jaxpr.outvars) == len(eqn.outvars) else None


def evaluate_equation(eqn: core.JaxprEqn, args: Sequence, strip: bool = False) -> list:
    """The outputs of any equation in float64 arithmetic."""
    name, params = eqn.primitive.name, eqn.params

    def function(closed):
        return lambda *xs: evaluate(closed.jaxpr, closed.consts, xs, strip)

    called = inner(eqn)
    if called is not None and name in ("custom_jvp_call", "custom_vjp_call") and not strip:
        return _with_rule(eqn, called, args)
    if called is not None and name in _CALLS:
        return function(called)(*args)
    if name == "scan":
        consts, carry, xs = _split(args, params["num_consts"], params["num_carry"])
        body = function(params["jaxpr"])

        def step(carry, x):
            outs = body(*consts, *carry, *x)
            return outs[: len(carry)], outs[len(carry) :]

        carry, ys = jax.lax.scan(step, carry, xs, params["length"], params["reverse"], params["unroll"])
        return [*carry, *ys]
    if name == "while":
        of_cond, of_body, carry = _split(args, params["cond_nconsts"], params["body_nconsts"])
        proceed, body = function(params["cond_jaxpr"]), function(params["body_jaxpr"])
        return jax.lax.while_loop(lambda c: proceed(*of_cond, *c)[0], lambda c: body(*of_body, *c), carry)
    if name == "cond":
        return jax.lax.switch(args[0], [function(branch) for branch in params["branches"]], *args[1:])
    if name in ("custom_linear_solve", "linear_solve"):
        *consts, b = _split(args, *params["const_lengths"])
        matvec, _, solve, transpose_solve = (
            closed and functools.partial(lambda f, known, xs: f(*known, *xs), function(closed), known)
            for closed, known in zip(params["jaxprs"], consts, strict=True)
        )
        back = transpose_solve and (lambda _, ys: transpose_solve(ys))
        return jax.lax.custom_linear_solve(matvec, b, lambda _, ys: solve(ys), back)
    return equation(eqn, args)


_CALLS = {"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint", "custom_jvp_call"}
_CALLS |= {"custom_vjp_call"}


def _split(args, *lengths):
    parts, start = [], 0
    for length in lengths:
        parts.append(list(args[start : start + length]))
        start += length
    return *parts, list(args[start:])


def _with_rule(eqn, called, args):
    """A call of a custom_jvp or custom_vjp function: its rule, traced in its own precision, in float64 too."""
    alone = called.jaxpr.replace(eqns=[eqn.replace(invars=called.jaxpr.invars)], outvars=eqn.outvars)
    f = core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))
    ins, outs = ([jax.ShapeDtypeStruct(a.aval.shape, a.aval.dtype) for a in xs] for xs in (eqn.invars, eqn.outvars))
    moves, moved = ([i for i, a in enumerate(avals) if jnp.issubdtype(a.dtype, jnp.inexact)] for avals in (ins, outs))
    own_x64 = any(a.dtype in (np.float64, np.complex128) for a in (*ins, *outs))

    def part(xs):  # f of its float inputs, with its float outputs
        def floats(*some):
            ys = f(*(some[moves.index(i)] if i in moves else x for i, x in enumerate(xs)))
            return [ys[i] for i in moved]

        return floats, [xs[i] for i in moves]

    def traced(derivative, *more):
        with jax.enable_x64(own_x64):
            closed = jax.make_jaxpr(derivative)(ins, more)
        return lambda *flat: evaluate(closed.jaxpr, closed.consts, flat)

    def value(*xs):
        return evaluate(called.jaxpr, called.consts, xs)

    if eqn.primitive.name == "custom_jvp_call":

        def jvp(xs, dxs):
            floats, some = part(xs)
            return jax.jvp(floats, some, list(dxs))[1]

        def rule(xs, dxs):
            run = traced(jvp, *(ins[i] for i in moves))
            dys = [np.zeros(y.shape, jax.dtypes.float0) for y in outs]
            for i, dy in zip(moved, run(*xs, *(dxs[i] for i in moves)), strict=True):
                dys[i] = dy
            return value(*xs), dys

        with_jvp = jax.custom_jvp(value)
        with_jvp.defjvp(rule)
        return with_jvp(*args)

    def vjp(xs, dys):
        floats, some = part(xs)
        return jax.vjp(floats, *some)[1](list(dys))

    def backward(xs, dys):
        run = traced(vjp, *(outs[i] for i in moved))
        dxs = run(*xs, *(dys[i] for i in moved))
        return tuple(dxs[moves.index(i)] if i in moves else None for i in range(len(xs)))

    with_vjp = jax.custom_vjp(value)
    with_vjp.defvjp(lambda *xs: (value(*xs), xs), backward)
    return with_vjp(*args)


# ---------------------------------------------------------------- what a jaxpr contains


def sub_jaxprs(eqn: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    """The jaxprs among an equation's parameters."""
    for value in eqn.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def equations(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> Iterator[core.JaxprEqn]:
    """All equations of a jaxpr and of the jaxprs inside it."""
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield eqn
        for sub in sub_jaxprs(eqn):
            yield from equations(sub)


def uses(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> set[str]:
    """The names of all primitives in a jaxpr, those inside jit, scan, cond, ... too."""
    return {eqn.primitive.name for eqn in equations(jaxpr)}


def has_low_precision(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> bool:
    """Whether anything in a jaxpr, traced under enable_x64, is computed in less than float64."""
    dtypes = (dtype_of(var) for eqn in equations(jaxpr) for var in eqn.outvars if hasattr(var.aval, "dtype"))
    return any(jnp.issubdtype(dtype, jnp.inexact) and wide(dtype) != dtype for dtype in dtypes)
