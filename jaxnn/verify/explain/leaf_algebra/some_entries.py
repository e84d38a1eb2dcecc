"""Only some entries are wrong: which, what they have in common, and what is there."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from jaxnn.verify.explain.leaf_algebra.experiments import Lab, numeric
from jaxnn.verify.explain.leaf_algebra.factor_origin import named
from jaxnn.verify.explain.leaf_algebra.missing_values import indices
from jaxnn.verify.explain.leaf_algebra.named_arrays import OWN, broadcast, named_arrays
from jaxnn.verify.explain.leaf_algebra.terms import labels
from jaxnn.verify.explain.leaf_algebra.wrong_leaf import ZERO, Explanation, View, factor, largest, near, number


class Rule(NamedTuple):
    """A rule for which entries are wrong."""

    words: str  # "where args[1] is 0"
    entries: Callable[[View], np.ndarray | None]  # True where it expects wrong entries
    array: str = ""  # the argument that it is based on
    why: str = ""  # the cause, if the rule itself reveals it
    tries: float = 0  # how many choices of entries there must be for the rule not to be a coincidence


def explain(view: View, lab: Lab) -> Iterator[Explanation]:
    """A rule for the wrong entries, and how what is there relates to the truth."""
    if not view.comparable or not view.truth.ndim or view.wrong.all() or not view.wrong.any():
        return
    right = view.matters & ~view.wrong
    if not right.any():
        return
    n, k = int(view.matters.sum()), int(view.wrong.sum())
    moved = lab.moved_view(view.i)
    for rule in _rules(view):
        if not _fits(rule, view):
            continue
        chance = math.comb(n, k) if n < 1000 else 10**9
        if chance < rule.tries or (moved and _fits(rule, moved) is False):
            continue
        what, why, exact = _inside(view, rule, lab)
        why = rule.why or why
        what = f"{k} of {view.wrong.size} entries {'is' if k == 1 else 'are'} wrong, exactly those {rule.words}: {what}"
        yield Explanation("where", what, why, _equation(rule), exact=exact)
    if k <= max(min(8, view.wrong.size // 4), view.wrong.size // 100):
        what, why, _ = _inside(view, None, lab)
        what = f"only {k} of {view.wrong.size} entries {'is' if k == 1 else 'are'} wrong, {indices(view.wrong)}: {what}"
        yield Explanation("entries", what, why, None, exact=False)


def _fits(rule, view) -> bool | None:
    entries = rule.entries(view)
    if entries is None or entries.shape != view.wrong.shape:
        return None
    return np.array_equal(entries & view.matters, view.wrong)


def _equation(rule):
    def equation(v):
        entries = rule.entries(v)
        return None if entries is None else (1.0 * v.wrong, 1.0 * (entries & v.matters))

    return equation


def _inside(view, rule, lab) -> tuple[str, str, bool]:
    """(what is at the wrong entries, why, whether that is all there is to say)."""
    m, t = view.manual[view.wrong], view.truth[view.wrong]
    array = rule.array if rule else ""
    if largest(m) <= ZERO * view.scale:
        what = "yours is 0 there"
        why = f"an extra mask from {array}, or an inverted one" if array else "a contribution is missing"
        return what, why, True
    if largest(t) <= ZERO * view.scale:
        what = f"the truth is 0 there, yours goes up to {number(largest(m))}"
        if array == OWN:
            return what, "the derivative is 0 there: the step of a relu or clip is missing in the backward", True
        return what, f"the mask from {array} is not applied" if array else "a mask is not applied", bool(array)
    if (c := factor(m, t)) is not None and (m.size > 1 or rule):
        words, match = named(c, view, lab) if m.size > 1 or near(abs(c), 1) else ("", None)
        return f"there it is {number(c)} times the truth", words, match is not None
    if rule and m.size > 1:
        for path, get in named_arrays(view):
            x = get(view.evidence)
            x = None if x is None else broadcast(x, view.truth.shape)
            if x is not None and factor(m, x[view.wrong].astype(float)):
                return f"it is {path} itself there", "", True
    first = tuple(int(k) for k in np.argwhere(view.wrong)[0])
    off = f"at {list(first)} it is off by {number(view.difference[first])}, the truth is {number(view.truth[first])}"
    return off, "", False


# ---------------------------------------------------------------- rules


def _rules(view: View) -> Iterator[Rule]:
    """Rules that may say which entries are wrong, the most telling first."""
    shape = view.truth.shape
    yield from _by_ids(view)
    for path, get in named_arrays(view):
        x = get(view.evidence)
        for axis, whole in _spread(x, shape):
            yield from _by_values(view, path, get, axis, whole)
    if len(shape) > 1 and shape[-1] == shape[-2]:
        ones = np.ones(shape[-2:], bool)
        for words, pattern in (
            ("above the diagonal", np.triu(ones, 1)),
            ("below the diagonal", np.tril(ones, -1)),
            ("on the diagonal", np.eye(shape[-1], dtype=bool)),
            ("off the diagonal", ~np.eye(shape[-1], dtype=bool)),
        ):
            yield Rule(words, lambda v, pattern=pattern: np.broadcast_to(pattern, v.truth.shape))
    for path, one_hot in labels(view):
        if one_hot.shape == shape:
            yield Rule(f"at the labels {path}", lambda v, at=one_hot == 1: at, tries=1e3)
            yield Rule(f"at no label of {path}", lambda v, at=one_hot == 0: at, tries=1e3)
    yield from _by_index(view)
    if view.truth.any():
        yield Rule("where the truth is 0", lambda v: np.abs(v.truth) <= ZERO * v.scale)


def _spread(x, shape):
    """(axis, x in the leaf's shape), for every way that x broadcasts over it."""
    if x is None or not numeric(x) or x.size < 2:
        return
    if x.ndim == 1 and len(shape) > 1:
        for axis, n in enumerate(shape):
            if n == x.size:
                yield axis, _along(x, axis, shape)
    elif (whole := broadcast(x, shape)) is not None:
        yield None, whole


def _along(x, axis, shape):
    return np.broadcast_to(x.reshape([-1 if k == axis else 1 for k in range(len(shape))]), shape)


def _by_values(view, path, get, axis, whole) -> Iterator[Rule]:
    """Entries at which an array is 0, or not, or on one side of a threshold."""

    def rule(words, test):
        def entries(v):
            x = get(v.evidence)
            if x is None:
                return None
            spread = broadcast(x, v.truth.shape) if axis is None else _along(x, axis, v.truth.shape)
            return None if spread is None else test(spread)

        return Rule(f"where {path} {words}", entries, path, tries=1e5 if "than" in words else 1e3)

    yield rule("is 0" if whole.dtype != bool else "is False", lambda x: x == 0)
    yield rule("is not 0" if whole.dtype != bool else "is True", lambda x: x != 0)
    if whole.dtype.kind == "b":
        return
    bad, good = whole[view.wrong], whole[view.matters & ~view.wrong]
    for words, f in (("{}", lambda x: x), ("{} in absolute value", np.abs)):
        for low, high, sign, test in (
            (f(good).max(), f(bad).min(), "more", np.greater),
            (f(bad).max(), f(good).min(), "less", np.less),
        ):
            if low < high:
                c = _simplest(float(low), float(high))
                text = words.format(f"is {sign} than {number(c)}")
                yield rule(text, lambda x, f=f, c=c, test=test: test(f(x), c))
    if whole.dtype.kind in "iu" and (bad == bad[0]).all():
        yield rule(f"is {bad[0]}", lambda x, k=bad[0]: x == k)


def _simplest(low: float, high: float) -> float:
    """The number between two with the fewest digits."""
    if low <= 0 <= high:
        return 0.0
    for digits in range(1, 17):
        for x in (float(f"{low:.{digits}g}"), float(f"{high:.{digits}g}"), float(f"{(low + high) / 2:.{digits}g}")):
            if low <= x <= high:
                return x
    return (low + high) / 2


def _by_ids(view) -> Iterator[Rule]:
    """Rows whose index occurs in an integer argument: more than once, at all, never."""
    n = view.truth.shape[0]
    for k, x in enumerate(view.evidence.given):
        if not numeric(x) or x.dtype.kind not in "iu" or not x.size:
            continue
        path = view.evidence.given_paths[k]

        def counts(v, k=k):
            ids = v.evidence.given[k].ravel()
            ids = np.where(ids < 0, ids + n, ids)
            return np.bincount(ids[(ids >= 0) & (ids < n)], minlength=n)[:n]

        overwrites = "duplicates: the contributions must be added up, yours overwrite each other (set instead of add)"
        for words, test, why in (
            (f"whose id occurs more than once in {path}", lambda c: c > 1, overwrites),
            (f"whose id does not occur in {path}", lambda c: c == 0, ""),
            (f"whose id occurs in {path}", lambda c: c > 0, ""),
        ):

            def entries(v, counts=counts, test=test):
                return _along(test(counts(v)), 0, v.truth.shape)

            yield Rule(f"in rows {words}", entries, path, why)


def _by_index(view) -> Iterator[Rule]:
    """Whole rows, columns, ...: few of them, or all but a few."""
    for axis, n in enumerate(view.truth.shape):
        others = tuple(k for k in range(view.truth.ndim) if k != axis)
        if not others or n < 2:
            continue
        some, matters = view.wrong.any(others), view.matters.any(others)
        if not np.array_equal(_along(some, axis, view.truth.shape) & view.matters, view.wrong):
            continue
        name, of = (("row", "column")[axis], "") if view.truth.ndim == 2 else ("index", f" of axis {axis}")
        at = np.flatnonzero(some)
        left = np.flatnonzero(matters & ~some)
        if len(at) == 1:
            which = " (the first)" if at[0] == 0 else " (the last)" if at[0] == n - 1 else ""
            words = f"at {name} {at[0]}{of}{which}"
        elif len(left) == 1:
            words = f"at every {name}{of} but {left[0]}"
        else:
            words = f"at {name} {', '.join(map(str, at[:8]))}{', …' if len(at) > 8 else ''}{of}"
        yield Rule(words, lambda v, some=some, axis=axis: _along(some, axis, v.truth.shape))
