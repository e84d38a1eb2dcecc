"""What is read from jaxprs that JAX does not promise to keep: their classes, and which parameter holds what.

All of jaxnn.verify goes through here, so a new JAX only changes this file. Where an equation's shapes say the same as
its parameters, the shapes are read: they are the same in every version.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jax.core import Tracer as Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxpr_as_fun
from jax.extend.core import Literal as Literal
from jax.extend.core import Var as Var

# Primitives that merely call a jaxpr, under all names they have had.
CALLS = {"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"}
CALLS |= {"custom_jvp_call", "custom_vjp_call"}
LOOPS_AND_BRANCHES = {"scan", "while", "cond"}
LINEAR_SOLVES = {"custom_linear_solve", "linear_solve"}
OPAQUE = {"call_hi_primitive"}  # made of Python functions for the dtypes of their trace: custom_root


def close(jaxpr: Jaxpr | ClosedJaxpr) -> ClosedJaxpr:
    """A jaxpr with its constants; an open one has none. In JAX 0.12 the two classes are one."""
    return jaxpr if isinstance(jaxpr, ClosedJaxpr) else ClosedJaxpr(jaxpr, ())


def sub_jaxprs(eqn: JaxprEqn) -> Iterator[Jaxpr]:
    """The jaxprs among an equation's parameters."""
    for value in eqn.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, (ClosedJaxpr, Jaxpr)):
                yield close(item).jaxpr


# ---------------------------------------------------------------- calls, loops, branches


def called(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """The jaxpr that an equation merely calls: jit, remat, custom_jvp and custom_vjp without their rules."""
    if eqn.primitive.name in LOOPS_AND_BRANCHES:
        return None
    jaxpr = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    if jaxpr is None or len(close(jaxpr).jaxpr.invars) != len(eqn.invars):
        return None
    return close(jaxpr) if len(close(jaxpr).jaxpr.outvars) == len(eqn.outvars) else None


class Scan(NamedTuple):
    """carry, ys = scan(body(*consts, *carry, *x) -> (*carry, *y), carry, xs)"""

    consts: list
    carry: list
    xs: list
    body: ClosedJaxpr
    length: int
    reverse: bool
    unroll: int


def scan_parts(eqn: JaxprEqn, args: Sequence) -> Scan:
    """A scan of these operands: operands that the body sees without their first axis are xs, such results ys."""
    p, body = eqn.params, close(eqn.params["jaxpr"])
    n_xs = sum(_rank(whole) > _rank(part) for whole, part in zip(eqn.invars, body.jaxpr.invars, strict=True))
    n_carry = sum(_rank(whole) == _rank(part) for whole, part in zip(eqn.outvars, body.jaxpr.outvars, strict=True))
    consts, carry, xs = _split(args, len(args) - n_carry - n_xs, n_carry)
    return Scan(consts, carry, xs, body, p["length"], p["reverse"], p["unroll"])


class While(NamedTuple):
    """while proceed(*of_proceed, *carry): carry = body(*of_body, *carry)"""

    of_proceed: list
    of_body: list
    carry: list
    proceed: ClosedJaxpr
    body: ClosedJaxpr


def while_parts(eqn: JaxprEqn, args: Sequence) -> While:
    """A while loop of these operands."""
    p = eqn.params
    of_proceed, of_body, carry = _split(args, p["cond_nconsts"], p["body_nconsts"])
    return While(of_proceed, of_body, carry, close(p["cond_jaxpr"]), close(p["body_jaxpr"]))


def branches(eqn: JaxprEqn) -> list[ClosedJaxpr]:
    """The branches of a cond, whose first operand chooses the branch that the others are passed to."""
    return [close(branch) for branch in eqn.params["branches"]]


class WithConstants(NamedTuple):
    """A jaxpr of (*consts, *arguments)."""

    jaxpr: ClosedJaxpr
    consts: list


class LinearSolve(NamedTuple):
    """x with matvec(x) = b."""

    matvec: WithConstants
    solve: WithConstants
    transpose_solve: WithConstants | None
    b: list


def linear_solve_parts(eqn: JaxprEqn, args: Sequence) -> LinearSolve:
    """A custom_linear_solve of these operands."""
    *consts, b = _split(args, *eqn.params["const_lengths"])
    matvec, _, solve, transpose_solve = (
        jaxpr and WithConstants(close(jaxpr), known) for jaxpr, known in zip(eqn.params["jaxprs"], consts, strict=True)
    )
    return LinearSolve(matvec, solve, transpose_solve, b)


def _rank(atom: Any) -> int:
    return len(atom.aval.shape)


def _split(args: Sequence, *lengths: int) -> list[list]:
    parts, start = [], 0
    for length in lengths:
        parts.append(list(args[start : start + length]))
        start += length
    return [*parts, list(args[start:])]


# ---------------------------------------------------------------- single equations


def parameters(eqn: JaxprEqn) -> dict[str, Any]:
    """An operation's parameters, including those that older versions lack."""
    if eqn.primitive.name == "top_k":  # along the last axis, before the axis could be chosen
        return {"axis": _rank(eqn.invars[0]) - 1} | eqn.params
    return eqn.params


def bind(eqn: JaxprEqn, args: Sequence, params: dict) -> list:
    """The outputs of an equation's primitive."""
    outs = eqn.primitive.bind(*args, **params)
    return list(outs) if eqn.primitive.multiple_results else [outs]


def function_of(eqn: JaxprEqn):
    """f(*operands) -> outputs, which is this one equation, with its custom rule if it has one."""
    jaxpr = close(eqn.params["call_jaxpr"]).jaxpr
    alone = jaxpr.replace(eqns=[eqn.replace(invars=jaxpr.invars)], outvars=eqn.outvars)
    return jaxpr_as_fun(close(alone))


# ---------------------------------------------------------------- where it comes from


def frames(eqn: JaxprEqn) -> Sequence[Any]:
    """The calls that made an equation, innermost first: each has file_name, line_num, function_name."""
    traceback = eqn.source_info.traceback
    return traceback.frames if traceback else ()


def traced_name(eqn: JaxprEqn) -> str:
    """The name of the function that a call's jaxpr was traced from."""
    jaxpr = called(eqn)
    return eqn.params.get("name") or (jaxpr.jaxpr.debug_info.func_name if jaxpr else "")


def function_source(closed: ClosedJaxpr) -> str:
    """The file of the function that a jaxpr was traced from; "" if JAX does not know it."""
    where = closed.jaxpr.debug_info.func_src_info or ""
    return where.partition(" at ")[2]
