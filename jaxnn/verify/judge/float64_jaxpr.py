"""Float64 arithmetic in a function's own jaxpr, so that casts, masks and random bits stay what they were."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.verify import jax_internals
from jaxnn.verify.jax_internals import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Tracer, Var, bind, called, sub_jaxprs


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


def evaluate(jaxpr: Jaxpr, consts: Sequence, args: Sequence, strip: bool = False) -> list:
    """The outputs of a jaxpr in float64 arithmetic, under enable_x64."""
    env: dict[Var, Any] = {}
    for var, x in zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True):
        env[var] = widen(x, dtype_of(var))
    for eqn in jaxpr.eqns:
        outs = evaluate_equation(eqn, [read(env, atom) for atom in eqn.invars], strip)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(env, atom) for atom in jaxpr.outvars]


def read(env: dict, atom: Var | Literal) -> Any:
    """The value of a variable or of a literal."""
    return widen(atom.val, dtype_of(atom)) if isinstance(atom, Literal) else env[atom]


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


def equation(eqn: JaxprEqn, args: Sequence) -> list:
    """The outputs of one equation that is not a call or a loop, args and outputs in float64."""
    name = eqn.primitive.name
    if name == "reduce_precision":
        return list(args)
    combines = name.startswith(("scatter", "reduce"))  # with a jaxpr of two numbers
    if name in _OWN_PRECISION or (any(True for _ in sub_jaxprs(eqn)) and not combines):
        own = [_narrow(x, dtype_of(atom)) for x, atom in zip(args, eqn.invars, strict=True)]
        return [widen(y, dtype_of(var)) for y, var in zip(bind(eqn, own, eqn.params), eqn.outvars, strict=True)]
    return bind(eqn, args, {key: _wide_parameter(value) for key, value in eqn.params.items()})


# These look at a float's bits, draw as many as it has, or are opaque to us.
_OWN_PRECISION = {"bitcast_convert_type", "nextafter", "random_gamma", "rng_uniform", "pure_callback", "io_callback"}
_OWN_PRECISION |= jax_internals.OPAQUE


def _wide_parameter(value):
    if isinstance(value, (np.dtype, type)):
        return wide(value)
    if isinstance(value, (ClosedJaxpr, Jaxpr)):
        closed = jax_internals.close(value)
        avals = [jax.ShapeDtypeStruct(var.aval.shape, wide(var.aval.dtype)) for var in closed.jaxpr.invars]
        widened = jax.make_jaxpr(lambda *xs: evaluate(closed.jaxpr, closed.consts, xs))(*avals)
        return widened if isinstance(value, ClosedJaxpr) else widened.jaxpr
    return value


def _narrow(x, dtype):
    if is_key(dtype):
        return x
    return jax.lax.convert_element_type(x, dtype)


def evaluate_equation(eqn: JaxprEqn, args: Sequence, strip: bool = False) -> list:
    """The outputs of any equation in float64 arithmetic."""
    name = eqn.primitive.name

    def function(closed, *known):
        return lambda *xs: evaluate(closed.jaxpr, closed.consts, (*known, *xs), strip)

    inside = called(eqn)
    if inside is not None and name in ("custom_jvp_call", "custom_vjp_call") and not strip:
        return _with_rule(eqn, inside, args)
    if inside is not None and name in jax_internals.CALLS:
        return function(inside)(*args)
    if name == "scan":
        scan = jax_internals.scan_parts(eqn, args)
        body = function(scan.body, *scan.consts)

        def step(carry, x):
            outs = body(*carry, *x)
            return outs[: len(carry)], outs[len(carry) :]

        carry, ys = jax.lax.scan(step, scan.carry, scan.xs, scan.length, scan.reverse, scan.unroll)
        return [*carry, *ys]
    if name == "while":
        loop = jax_internals.while_parts(eqn, args)
        proceed, body = function(loop.proceed, *loop.of_proceed), function(loop.body, *loop.of_body)
        return jax.lax.while_loop(lambda carry: proceed(*carry)[0], lambda carry: body(*carry), loop.carry)
    if name == "cond":
        return jax.lax.switch(args[0], [function(branch) for branch in jax_internals.branches(eqn)], *args[1:])
    if name in jax_internals.LINEAR_SOLVES:
        system = jax_internals.linear_solve_parts(eqn, args)

        def applied(part):  # matvec(x), solve(matvec, b)
            return lambda *args: function(part.jaxpr, *part.consts)(*args[-1])

        back = system.transpose_solve and applied(system.transpose_solve)
        return jax.lax.custom_linear_solve(applied(system.matvec), system.b, applied(system.solve), back)
    return equation(eqn, args)


def _with_rule(eqn, inside, args):
    """A call of a custom_jvp or custom_vjp function: its rule, traced in its own precision, in float64 too."""
    f = jax_internals.function_of(eqn)
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
        return evaluate(inside.jaxpr, inside.consts, xs)

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


def equations(jaxpr: Jaxpr | ClosedJaxpr) -> Iterator[JaxprEqn]:
    """All equations of a jaxpr and of the jaxprs inside it."""
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield eqn
        for sub in sub_jaxprs(eqn):
            yield from equations(sub)


def uses(jaxpr: Jaxpr | ClosedJaxpr) -> set[str]:
    """The names of all primitives in a jaxpr, those inside jit, scan, cond, ... too."""
    return {eqn.primitive.name for eqn in equations(jaxpr)}


def has_low_precision(jaxpr: Jaxpr | ClosedJaxpr) -> bool:
    """Whether anything in a jaxpr, traced under enable_x64, is computed in less than float64."""
    dtypes = (dtype_of(var) for eqn in equations(jaxpr) for var in eqn.outvars if hasattr(var.aval, "dtype"))
    return any(jnp.issubdtype(dtype, jnp.inexact) and wide(dtype) != dtype for dtype in dtypes)
