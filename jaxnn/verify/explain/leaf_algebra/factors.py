"""The truth times something: one factor, one per row or column, or one per entry that an argument explains."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from jaxnn.verify.explain.evidence import Evidence
from jaxnn.verify.explain.leaf_algebra.experiments import Lab, numeric
from jaxnn.verify.explain.leaf_algebra.factor_numbers import added_constants, numbers
from jaxnn.verify.explain.leaf_algebra.factor_origin import named, scaled
from jaxnn.verify.explain.leaf_algebra.named_arrays import FUNCTIONS, OWN, broadcast, named_arrays
from jaxnn.verify.explain.leaf_algebra.wrong_leaf import (
    Explanation,
    View,
    axes_in_words,
    factor,
    largest,
    near,
    number,
    predicts,
    predicts_here,
    times,
)

SAMPLE = 2048  # entries on which a function is tried before the whole leaf
EPS = (1e-5, 1e-6, 1e-8, 1e-3)  # under the root of a standard deviation


_RATES = [float(f"{k}e-{n}") for k in (1, 2, 3, 5) for n in range(1, 6)]  # common learning rates


def constant(view: View, lab: Lab) -> Iterator[Explanation]:
    """manual = c·truth."""
    if not view.comparable or (c := factor(view.manual, view.truth)) is None:
        return
    what = f"every entry is {times(c)}" if view.truth.ndim else f"it is {times(c)}"
    words, match = named(c, view, lab)
    if any(near(-c, rate) for rate in _RATES) and (match is None or match.cost > 2):
        words, match = f"{number(c)} looks like minus a learning rate: the update instead of the gradient", None
    if match:

        def predicted(v):
            value = match.at(numbers(v.evidence, lab.batch))
            return None if value is None else value * v.truth

        yield Explanation("factor", what, words, predicts(predicted))
    moved = lab.moved_view(view.i)
    there = factor(moved.manual, moved.truth) if moved else c
    if there is not None and not near(there, c) and view.truth.size > 1:
        why = f"it depends on the point ({number(there)} with the inputs moved), so it is not a forgotten constant"
        yield Explanation("factor", what, why, None, exact=False)
    words = words or "it matches no axis size and no scalar argument"
    yield Explanation("factor", what, words, predicts(lambda v: c * v.truth), exact=False, free=1)


def per_axis(view: View, lab: Lab) -> Iterator[Explanation]:
    """manual = truth times an array that has only some of its axes."""
    if not view.comparable or view.truth.ndim < 2:
        return
    shape = view.truth.shape
    for r in range(1, view.truth.ndim):
        for kept in itertools.combinations(range(view.truth.ndim), r):
            others = tuple(k for k in range(view.truth.ndim) if k not in kept)
            n = int(np.prod([shape[k] for k in kept]))
            ratio, used = _ratio(view, others)
            if n < 2 or view.truth.size < 2 * n or used.sum() < 2 or np.ptp(ratio[used]) < 1e-9 * largest(ratio):
                continue
            if not largest(view.manual - ratio * view.truth) <= 1e-6 * largest(view.manual):
                continue
            some = ", ".join(f"{x:.4g}" for x in ratio[used][:4])
            place = ("row", "column")[kept[0]] if len(shape) == 2 else f"index along {axes_in_words(kept)}"
            what = f"each {place} has its own factor, {some}{', …' if used.sum() > 4 else ''}"
            yield from _named_vectors(view, lab, kept, others, ratio, used, what)
            equation = predicts_here(ratio * view.truth)
            yield Explanation("factor_per_axis", what, "", equation, exact=False, free=int(used.sum()))


def _ratio(view, others):
    """manual/truth along the other axes, and where it is defined; both with axes of size 1."""
    below = (view.truth**2).sum(others, keepdims=True)
    above = (view.manual * view.truth).sum(others, keepdims=True)
    return np.where(below > 0, above / np.where(below > 0, below, 1), 1.0), below > 0


def _named_vectors(view, lab, kept, others, ratio, used, what) -> Iterator[Explanation]:
    for words, missing, f in _vectors(view, kept, others):
        for inverse in (False, True):
            vector = 1 / f(view.evidence) if inverse else f(view.evidence)
            if not np.isfinite(vector[used]).all() or (c := factor(ratio[used], vector[used])) is None:
                continue
            more = scaled(c, view, lab)

            def predicted(v, f=f, c=c, inverse=inverse):
                return v.truth * c / f(v.evidence) if inverse else v.truth * c * f(v.evidence)

            why = (f"the factor {words} is missing" if inverse else missing) + more.words
            yield Explanation("factor_per_axis", what, why, predicts(predicted), exact=more.exact, free=more.free)


def _vectors(view, kept, others) -> Iterator[tuple[str, str, Callable[[Evidence], np.ndarray]]]:
    """(words, what it means as a factor, array) over the kept axes: arguments, counts of ids, spreads of the data."""
    e, shape = view.evidence, view.truth.shape
    inner = tuple(shape[k] for k in kept)
    full = tuple(n if k in kept else 1 for k, n in enumerate(shape))

    def laid(f):
        return lambda e: np.asarray(f(e), float).reshape(full)

    for k, x in enumerate(e.given):
        path = e.given_paths[k]
        if not numeric(x):
            continue
        if x.shape == inner or (x.size == np.prod(inner) and x.ndim > len(inner)):
            for words, f in FUNCTIONS[:8]:
                name = words.format(x=path)
                yield name, f"{name} multiplies once too often", laid(lambda e, k=k, f=f: f(e.given[k].astype(float)))
        if x.dtype.kind == "i" and len(inner) == 1 and x.size and x.min() >= 0 and x.max() < inner[0]:
            words = f"the number of times that each id occurs in {path}"
            counts = laid(lambda e, k=k: np.bincount(e.given[k].ravel(), minlength=inner[0]).clip(1))
            yield words, f"{words} multiplies", counts
        if x.dtype.kind == "f" and x.ndim > 1 and x.shape[-1:] == inner:
            for name, f in _spreads(e):
                words = f"the {name} of each column of {path}"
                why = f"the division by {words} is missing"
                yield words, why, laid(lambda e, k=k, f=f: f(e.given[k].reshape(-1, inner[0]), (0,)))
    for k, x in enumerate(e.inputs):
        path = e.input_paths[k]
        if x.shape == inner:
            yield path, f"{path} multiplies once too often", laid(lambda e, k=k: e.inputs[k])
    for name, f in _spreads(view.evidence):
        words = f"the {name} of {OWN} over {axes_in_words(others)}"
        yield words, f"the division by {words} is missing", laid(lambda e, i=view.i, f=f: f(e.inputs[i], others))


def _spreads(evidence) -> Iterator[tuple[str, Callable]]:
    """What data are normalised by, with every eps that the forward may have under the root."""
    yield "norm", lambda x, axes: np.sqrt((x * x).sum(axes))
    yield "sum", lambda x, axes: x.sum(axes)
    yield "root mean square", lambda x, axes: np.sqrt((x * x).mean(axes))
    yield "standard deviation", lambda x, axes: x.std(axes)
    yield "variance", lambda x, axes: x.var(axes)
    for eps in dict.fromkeys([*EPS, *added_constants(evidence.jaxpr)]):
        yield f"standard deviation √(variance + {eps:g})", lambda x, axes, eps=eps: np.sqrt(x.var(axes) + eps)
        yield f"variance + {eps:g}", lambda x, axes, eps=eps: x.var(axes) + eps
        yield f"root mean square √(mean square + {eps:g})", lambda x, axes, eps=eps: np.sqrt((x * x).mean(axes) + eps)


def elementwise(view: View, lab: Lab) -> Iterator[Explanation]:
    """manual = truth times, or divided by, a function of an array of the leaf's shape."""
    if not view.comparable or view.truth.size < 3:
        return
    shape = view.truth.shape
    some = np.unique(np.linspace(0, view.truth.size - 1, SAMPLE).astype(int))
    m, t = view.manual.ravel()[some], view.truth.ravel()[some]
    for path, get in named_arrays(view):
        x = get(view.evidence)
        whole = None if x is None else broadcast(x, shape)
        if whole is None:
            continue
        entries = whole.ravel()[some].astype(np.float64)
        for words, f in FUNCTIONS:
            h = f(entries)
            if not np.isfinite(h).all() or (h == h[0]).all():
                continue
            for missing, left, base in ((True, m * h, t), (False, m, t * h)):
                if (c := factor(left, base)) is None:
                    continue

                def equation(v, get=get, f=f, c=c, missing=missing):
                    x = get(v.evidence)
                    whole = None if x is None else broadcast(x, v.truth.shape)
                    if whole is None:
                        return None
                    h = f(whole.astype(np.float64))
                    return (v.manual * h, c * v.truth) if missing else (v.manual, c * v.truth * h)

                thing, more = words.format(x=path), scaled(c, view, lab)
                what = f"every entry is the truth {'divided by' if missing else 'times'} {thing}{more.words}"
                why = f"the factor {thing} is missing" if missing else f"{thing} multiplies once too often"
                yield Explanation("factor_per_entry", what, why, equation, exact=more.exact, free=more.free)
