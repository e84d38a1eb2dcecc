"""The arrays of an evidence by name, broadcast over a leaf, and functions of them."""

from collections.abc import Callable, Iterator

import numpy as np

from jaxnn.verify.explain.evidence import Evidence
from jaxnn.verify.explain.leaf_algebra.experiments import numeric
from jaxnn.verify.explain.leaf_algebra.wrong_leaf import View

Get = Callable[[Evidence], np.ndarray | None]


OWN = "its own value"  # the leaf's: so that leaves with the same mistake share a text


def named_arrays(view: View) -> Iterator[tuple[str, Get]]:
    """The leaf's own value, the given arrays, the other inputs, dy, and y, which is known at one point only."""
    e, i = view.evidence, view.i
    yield OWN, lambda e: e.inputs[i]
    for k, x in enumerate(e.given):
        if numeric(x):
            yield e.given_paths[k], lambda e, k=k: e.given[k]
    for k, path in enumerate(e.input_paths):
        if k != i:
            yield path, lambda e, k=k: e.inputs[k]
    for k, d in enumerate(e.dy):
        if d.ndim:
            yield "dy" if len(e.dy) == 1 else f"dy[{k}]", lambda e, k=k: e.dy[k]
    for k, y in enumerate(e.y):
        if np.ndim(y):
            yield "y" if len(e.y) == 1 else f"y[{k}]", lambda e, k=k: e.y[k] if e.y else None


def broadcast(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """x in this shape, its axes being the first or the last ones; None if it does not fit, or is a scalar."""
    if x.size < 2 or x.ndim > len(shape):
        return None
    if x.shape == shape[: x.ndim]:
        x = x.reshape(x.shape + (1,) * (len(shape) - x.ndim))
    try:
        return np.broadcast_to(x, shape)
    except ValueError:
        return None


FUNCTIONS: list[tuple[str, Callable[[np.ndarray], np.ndarray]]] = [
    ("{x}", lambda x: x),
    ("{x}²", np.square),
    ("{x}³", lambda x: x**3),
    ("|{x}|", np.abs),
    ("sign({x})", np.sign),
    ("√{x}", np.sqrt),
    ("(1 - {x})", lambda x: 1 - x),
    ("{x}(1 - {x})", lambda x: x * (1 - x)),
    ("(1 - {x}²)", lambda x: 1 - x * x),
    ("exp({x})", np.exp),
    ("log({x})", np.log),
    ("sin({x})", np.sin),
    ("cos({x})", np.cos),
]
