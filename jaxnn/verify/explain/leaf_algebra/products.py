"""What the manual gradient computes, where that is one array, a sum of it, or a product of two."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from jaxnn.verify.explain.leaf_algebra.experiments import Lab
from jaxnn.verify.explain.leaf_algebra.factor_origin import scaled
from jaxnn.verify.explain.leaf_algebra.named_arrays import OWN, named_arrays
from jaxnn.verify.explain.leaf_algebra.wrong_leaf import Explanation, View, factor, near, predicts

LARGEST = 10**6  # elements of a product


class Formula(NamedTuple):
    words: str
    get: Callable[[View], np.ndarray | None]


def explain(view: View, lab: Lab) -> Iterator[Explanation]:
    """manual = c·formula; and the truth's own formula, if it has one."""
    if not view.comparable:
        return
    formulas = list(_formulas(view))
    for formula in formulas:
        found = formula.get(view)
        if found is None or (c := factor(view.manual, found)) is None:
            continue
        times = scaled(c, view, lab)
        right = next((f.words for f in formulas if _is(f, view)), None)
        why = f"it should be {right}" if right else "this leaves out part of the forward"

        def predicted(v, formula=formula, c=c):
            found = formula.get(v)
            return None if found is None else c * found

        what, exact = f"it is {formula.words}{times.words}", right is not None and times.exact
        yield Explanation("formula", what, why, predicts(predicted), exact=exact, free=times.free)


def _is(formula, view):
    found = formula.get(view)
    c = None if found is None else factor(view.truth, found)
    return c is not None and near(c, 1)


def _formulas(view: View) -> Iterator[Formula]:
    shape = view.truth.shape
    arrays = [(view.path if path == OWN else path, get, get(view.evidence)) for path, get in named_arrays(view)]
    arrays = [(path, get, x) for path, get, x in arrays if x is not None and x.size > 1][:8]
    for path, get, x in arrays:
        for words, f in _sums(x.shape, shape):
            yield Formula(words.format(x=path), _of_one(get, f))
        if x.shape == shape:
            for axis in range(x.ndim):
                if x.shape[axis] > 1:
                    yield Formula(f"cumsum({path}, {axis})", _of_one(get, lambda x, a=axis: x.cumsum(a)))
                    backwards = _of_one(get, lambda x, a=axis: np.flip(np.flip(x, a).cumsum(a), a))
                    yield Formula(f"the cumulative sum of {path} from the end of axis {axis}", backwards)
        if x.shape == shape[::-1] and x.ndim > 1:
            yield Formula(f"{path}.T", _of_one(get, np.transpose))
    for k, (a, get_a, x) in enumerate(arrays):
        for b, get_b, y in arrays[k:]:
            yield from _products(a, get_a, x, b, get_b, y, shape)


def _products(a, get_a, x, b, get_b, y, shape) -> Iterator[Formula]:
    try:
        both = np.broadcast_shapes(x.shape, y.shape)
    except ValueError:
        both = None
    if both and np.prod(both) <= LARGEST:
        for words, f in _sums(both, shape):
            yield Formula(words.format(x=f"{a} * {b}"), _of_two(get_a, get_b, lambda x, y, f=f: f(x * y)))
    if x.ndim < 2 or y.ndim < 2 or x.size * y.shape[-1] > 100 * LARGEST:
        return
    for words, f in (
        (f"{a} @ {b}", lambda x, y: _flat(x) @ _flat(y)),
        (f"{a}.T @ {b}", lambda x, y: _flat(x).T @ _flat(y)),
        (f"{a} @ {b}.T", lambda x, y: _flat(x) @ _flat(y).T),
        (f"{a}.T @ {b}.T", lambda x, y: _flat(x).T @ _flat(y).T),
    ):
        yield Formula(words, _of_two(get_a, get_b, lambda x, y, f=f: _fits(f, x, y, shape)))
        if a != b and "@" in words:
            swapped = words.replace(a, "\0").replace(b, a).replace("\0", b)
            yield Formula(swapped, _of_two(get_b, get_a, lambda x, y, f=f: _fits(f, x, y, shape)))


def _fits(f, x, y, shape):
    try:
        product = f(x, y)
    except ValueError:
        return None
    return product.reshape(shape) if product.size == np.prod(shape) and product.shape[-1:] == shape[-1:] else None


def _flat(x):
    return x.reshape(-1, x.shape[-1])


def _sums(source, target) -> Iterator[tuple[str, Callable[[np.ndarray], np.ndarray]]]:
    """Ways from one shape to another: as it is, or summed over axes that the target lacks."""
    if source == target:
        yield "{x}", lambda x: x
    for axis in range(len(source)):
        if len(source) > 1 and source[:axis] + source[axis + 1 :] == target:
            yield f"the sum of {{x}} over axis {axis}", lambda x, a=axis: x.sum(a)
    if len(source) > len(target) + 1 and source[len(source) - len(target) :] == target:
        leading = tuple(range(len(source) - len(target)))
        yield f"the sum of {{x}} over axes {leading}", lambda x, axes=leading: x.sum(axes)


def _of_one(get, f):
    def value(v):
        x = get(v.evidence)
        return None if x is None else f(x.astype(float))

    return value


def _of_two(get_a, get_b, f):
    def value(v):
        x, y = get_a(v.evidence), get_b(v.evidence)
        return None if x is None or y is None else f(x.astype(float), y.astype(float))

    return value
