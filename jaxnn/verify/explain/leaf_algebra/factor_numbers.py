"""The numbers that a factor may be made of: sizes of axes, scalars, constants of the forward, sums, norms."""

from typing import NamedTuple

import numpy as np

from jaxnn.verify.explain.evidence import Evidence
from jaxnn.verify.explain.leaf_algebra.experiments import Batch, is_one, numeric
from jaxnn.verify.explain.leaf_algebra.wrong_leaf import axes_in_words
from jaxnn.verify.jax_internals import Literal, Var, parameters
from jaxnn.verify.judge.float64_jaxpr import equations

MOST_CONSTANTS = 60


class Number(NamedTuple):
    value: float
    words: str  # "the batch size (axis 0 of args[0])"
    kind: str  # "batch", "mean", "count", "scalar", "times", "divide", "power", "norm": the last at one point only


def numbers(evidence: Evidence, batch: Batch | None) -> list[Number]:
    """All numbers, in an order that is the same at every point of the same function."""
    found = []
    if batch:
        found.append(Number(batch.size_of(evidence), f"the batch size (axis 0 of {batch.path})", "batch"))
    for where, arrays, paths in (
        ("given", evidence.given, evidence.given_paths),
        ("dy", [d for d in evidence.dy if d.ndim], ["the output"] * len(evidence.dy)),
        ("inputs", evidence.inputs, evidence.input_paths),
    ):
        for k, (x, path) in enumerate(zip(arrays, paths, strict=False)):
            if numeric(x):
                shared = batch is not None and x.ndim > 0 and batch.has(where, k)
                found += _of_array(x, path, shared, where)
    found += _of_forward(evidence.jaxpr)
    whole = float(np.sqrt(sum(np.vdot(t, t) for t in evidence.truth)))
    found.append(Number(whole, "the norm of the whole gradient", "norm"))
    for t, x, path in zip(evidence.truth, evidence.inputs, evidence.input_paths, strict=True):
        found.append(Number(float(np.linalg.norm(t)), f"the norm of the gradient of {path}", "norm"))
        found.append(Number(float(np.linalg.norm(x)), f"the norm of {path}", "norm"))
    if len(evidence.y) == 1 and is_one(evidence.dy[0]):
        found.append(Number(float(evidence.y[0]), "the value of the loss", "norm"))
    return found


def _of_array(x, path, shared, where) -> list[Number]:
    if x.size == 1:
        return [Number(float(x.reshape(())), path, "scalar")]
    sizes = [Number(n, f"the size of axis {k} of {path}", "count") for k, n in enumerate(x.shape) if k or not shared]
    if x.ndim > 1:
        sizes.append(Number(x.size, f"the number of elements of {path}", "count"))
    if x.ndim > 2:
        sizes.append(Number(int(np.prod(x.shape[:-1])), f"the size of all axes of {path} but the last", "count"))
    if x.ndim > 3:
        inner = axes_in_words(tuple(range(1, x.ndim - 1)))
        sizes.append(Number(int(np.prod(x.shape[1:-1])), f"the size of {inner} of {path} together", "count"))
    if where == "given" and x.dtype.kind in "bf" and (x >= 0).all():
        sizes.append(Number(float(x.sum()), f"the sum of {path}", "count"))
        sizes.append(Number(float((x != 0).sum()), f"the number of entries of {path} that are not 0", "count"))
    return sizes


def _of_forward(jaxpr) -> list[Number]:
    """The constants that the forward multiplies by, divides by, and raises to."""
    found = {}
    made_by = {var: eqn for eqn in _equations(jaxpr) for var in eqn.outvars}
    for eqn in _equations(jaxpr):
        if eqn.primitive.name in ("integer_pow", "square"):
            y = parameters(eqn).get("y", 2)
            found["power", y] = Number(float(y), f"the exponent of x{_raised(y)} in the forward", "power")
        for place, v in _constants(eqn) if eqn.primitive.name in ("mul", "div") else ():
            kind = "divide" if eqn.primitive.name == "div" and place == 1 else "times"
            if kind == "divide" and v == _summed_by(eqn.invars[0], made_by):
                found["mean", v] = Number(v, "the number of entries in a mean of the forward", "mean")
            elif abs(v) not in (0.0, 1.0):
                found[kind, v] = Number(v, "a constant of the forward", kind)
    return list(found.values())[:MOST_CONSTANTS]


def added_constants(jaxpr) -> list[float]:
    """The small constants that the forward adds: an eps."""
    return [v for eqn in _equations(jaxpr) if eqn.primitive.name == "add" for _, v in _constants(eqn) if 0 < v < 1]


def _equations(jaxpr):
    return equations(jaxpr) if jaxpr is not None else ()


def _constants(eqn) -> list[tuple[int, float]]:
    """(place among the operands, value) of every constant number in an equation."""
    literals = [(k, np.asarray(a.val)) for k, a in enumerate(eqn.invars) if isinstance(a, Literal)]
    return [(k, float(v)) for k, v in literals if v.size == 1 and v.dtype.kind == "f"]


def _summed_by(value, made_by) -> float:
    """How many entries each entry of a value is the sum of; NaN if it is not a sum."""
    eqn = made_by[value] if isinstance(value, Var) and value in made_by else None
    if eqn is None or eqn.primitive.name != "reduce_sum":
        return float("nan")
    return eqn.invars[0].aval.size / eqn.outvars[0].aval.size


def _raised(y: int) -> str:
    return {2: "²", 3: "³"}.get(y, f"^{y}")
