"""A term missing or added: of a regularizer, of the targets or labels, of another path."""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from jaxnn.verify.explain.leaf_algebra.experiments import Lab, numeric
from jaxnn.verify.explain.leaf_algebra.factor_origin import origins, scaled
from jaxnn.verify.explain.leaf_algebra.named_arrays import OWN
from jaxnn.verify.explain.leaf_algebra.wrong_leaf import Explanation, View, factor, factors, near, number, predicts


class Term(NamedTuple):
    """Something of the leaf's shape that a gradient may contain."""

    words: str  # the formula: "its own value"
    name: str  # "the term in the leaf itself (L2, weight decay)"
    get: Callable[[View], np.ndarray | None]
    sign: int = 0  # that it has in a gradient: +1 a penalty, -1 a target, 0 either
    unasked: str = ""  # what it means if only the manual gradient has it


def explain(view: View, lab: Lab) -> Iterator[Explanation]:
    """manual = truth + a·term; then manual = c·truth + a·term."""
    moved = lab.moved_view(view.i) if view.comparable else None
    if not view.comparable or (view.truth.size == 1 and moved is None):
        return
    terms = [(term, base) for term in _terms(view) if (base := term.get(view)) is not None and base.any()]
    if view.truth.size == 1 and moved:  # a second point tells only about what is another number there
        terms = [(term, base) for term, base in terms if (there := term.get(moved)) is None or (there != base).any()]
    for term, base in terms:
        if (a := factor(view.difference, base)) is None:
            continue

        def added(v, term=term, a=a):
            base = term.get(v)
            return None if base is None else v.truth + a * base

        what = f"manual - truth is {number(a)} times {term.words}{_coefficient(a, view, lab)}"
        yield Explanation("term", what, _cause(term, a, base, view, lab), predicts(added), free=1)
    for term, base in terms[:8]:
        c = factors(view.manual, view.truth, base) if view.truth.size > 3 else None
        if c is not None and not near(float(c[0]), 1):
            yield _with_factor(view, lab, term, float(c[0]), float(c[1]))
    yield from _smoothing(view)


def _coefficient(a, view, lab) -> str:
    """Where the coefficient comes from, if it is one number of the function's."""
    found = origins(abs(a), view, lab)
    known = found and found[0].form and found[0].cost < 1.3 and "exponent" not in found[0].form
    return f" ({found[0].form})" if known else ""


def _cause(term, a, base, view, lab) -> str:
    """Which side has the term: a scalar argument that it is proportional to tells; failing that, its sign."""
    for k, x in enumerate(view.evidence.given):
        if not numeric(x) or x.dtype.kind != "f" or x.size > 1:
            continue
        nudged = lab.nudged(k)
        there = View(nudged, view.i) if nudged else None
        if there is None or not there.comparable:
            continue
        changes = there.manual - view.manual, there.truth - view.truth
        of_manual, of_truth = (factor(change, base) or 0.0 if change.any() else 0.0 for change in changes)
        if of_truth and of_manual and not near(of_manual, of_truth):
            much = of_manual / of_truth
            counts = f"{term.name} counts {number(much)} times{_coefficient(much, view, lab)}"
            return f"{term.name} has the wrong sign" if near(much, -1) else counts
        if of_truth and not of_manual:
            return f"{term.name} is missing"
        if of_manual and not of_truth:
            return term.unasked or f"{term.name} is added, but the forward has none"
    if term.words == "dy" and near(a, -2):
        return f"{term.name} has the wrong sign"
    if term.sign * a < 0:
        return f"{term.name} is missing"
    counts = f"{term.name} counts twice"
    if term.sign:
        return f"{counts}, or: {term.unasked}" if term.unasked else counts
    return f"{term.name} times {number(-a)} is missing, or times {number(a)} is added"


def _with_factor(view, lab, term, c, a) -> Explanation:
    def both(v):
        base = term.get(v)
        return None if base is None else c * v.truth + a * base

    if term.words == OWN and near(a, 1) and c < 0:
        what = f"it is {OWN} minus {number(-c)} times the truth"
        return Explanation("term", what, "these are the updated parameters, not the gradient", predicts(both), free=1)
    more, why = scaled(c, view, lab), f"all but {term.name} has a wrong factor"
    what = f"manual is the truth{more.words}, plus {number(a)} times {term.words}"
    return Explanation("term", what, why, predicts(both), exact=more.exact, free=2)


def _smoothing(view) -> Iterator[Explanation]:
    """manual - truth = a·labels + b with a = -classes·b: the labels' smoothing is left out."""
    for path, one_hot in labels(view):
        if one_hot.shape != view.truth.shape or view.truth.ndim < 2:
            continue
        c = factors(view.difference, one_hot, np.ones(view.truth.shape))
        if c is None or not near(float(-c[0] / c[1]), view.truth.shape[-1]):
            continue
        a, b = map(float, c)
        what = f"manual - truth is {number(a)} times one_hot({path}), plus {number(b)}"

        def equation(v, one_hot=one_hot, a=a, b=b):
            return v.manual, v.truth + a * one_hot + b

        yield Explanation("label_smoothing", what, "the smoothing of the labels is left out", equation, free=2)


# ---------------------------------------------------------------- terms


def _terms(view: View) -> Iterator[Term]:
    e, i, shape = view.evidence, view.i, view.truth.shape
    unasked = "L2 (weight decay) on a leaf that the loss does not regularize"
    yield Term(OWN, "the term in the leaf itself (L2, weight decay)", lambda v: v.value, 1, unasked)
    yield Term("1", "the constant", lambda v: np.ones(v.truth.shape))
    if np.ptp(np.sign(view.value)):
        unasked = "L1 on a leaf that the loss does not regularize"
        yield Term(f"sign({OWN})", "the term in its sign (L1)", lambda v: np.sign(v.value), 1, unasked)
    for words, f in (("³", lambda x: x**3), ("²", np.square)):
        yield Term(f"{OWN}{words}", f"a term in {OWN}{words}", lambda v, f=f: f(v.value), 1)
    for k, name in enumerate(e.input_paths):
        if k != i and e.truth[k].shape == shape:
            yield Term(f"the gradient of {name}", f"the gradient of {name}", lambda v, k=k: v.evidence.truth[k])
        if k != i and e.inputs[k].shape == shape:
            yield Term(name, f"a term in {name}", lambda v, k=k: v.evidence.inputs[k])
    for k, d in enumerate(e.dy):
        if d.ndim and d.shape == shape:
            straight = "dy itself (a path straight through, a skip connection)"
            yield Term("dy" if len(e.dy) == 1 else f"dy[{k}]", straight, lambda v, k=k: v.evidence.dy[k], 1)
    if not shape:
        return
    for k, (x, name) in enumerate(zip(e.given, e.given_paths, strict=True)):
        if numeric(x) and x.ndim and _summed_to(x, shape) is not None:
            words = name if x.shape == shape else f"the sum of {name} over the batch"
            yield Term(words, f"the term in {name}", lambda v, k=k: _summed_to(v.evidence.given[k], shape), -1)
    for name, one_hot in labels(view):
        if (base := _summed_to(one_hot, shape)) is not None:
            words = f"the one-hot labels {name}" if one_hot.shape == shape else f"how often each label occurs in {name}"
            yield Term(words, f"-y of p - y, y the labels {name},", lambda v, base=base: base, -1)
    yield from _products(view)


def _products(view: View) -> Iterator[Term]:
    """aᵀ b of two given arrays, summed over the batch: the targets' part of a linear layer's gradient."""
    shape, e = view.truth.shape, view.evidence
    arrays = [(path, x.astype(float)) for path, x in zip(e.given_paths, e.given, strict=True) if numeric(x) and x.ndim]
    arrays += [(f"one_hot({path})", one_hot) for path, one_hot in labels(view)]
    for (a, x), (b, y) in itertools.permutations(arrays, 2):
        if x.ndim > 1 and y.shape[: x.ndim - 1] == x.shape[:-1]:
            product = x.reshape(-1, x.shape[-1]).T @ y.reshape(x[..., 0].size, -1)
            if product.shape == shape or (*product.shape, 1) == (*shape, 1, 1):
                product = product.reshape(shape)
                yield Term(f"{a}.T @ {b}", f"-y of p - y, y = {b},", lambda v, product=product: product, -1)


def labels(view: View) -> Iterator[tuple[str, np.ndarray]]:
    """The one-hot form of every integer argument whose values can be classes of the leaf's last axis."""
    classes = view.truth.shape[-1] if view.truth.ndim else 0
    for k, x in enumerate(view.evidence.given):
        if numeric(x) and x.dtype.kind in "iu" and x.size and x.min() >= 0 and x.max() < classes:
            yield view.evidence.given_paths[k], np.eye(classes)[x]


def _summed_to(x, shape):
    """x summed over leading axes until it has this shape, None if it has not."""
    if x.ndim < len(shape) or x.shape[x.ndim - len(shape) :] != shape:
        return None
    return x.astype(float).sum(tuple(range(x.ndim - len(shape))))
