"""Right numbers in the wrong place: axes or entries in another order, another leaf's gradient, an axis summed away."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxnn.verify.explain.leaf_algebra.experiments import Lab
from jaxnn.verify.explain.leaf_algebra.factor_origin import scaled
from jaxnn.verify.explain.leaf_algebra.wrong_leaf import (
    AGREES,
    BETTER,
    Explanation,
    View,
    axes_in_words,
    factor,
    largest,
    predicts,
)

Move = Callable[[np.ndarray], np.ndarray]


def explain(view: View, lab: Lab) -> Iterator[Explanation]:
    """Rearrangements of the leaf's own truth, then other leaves' truths."""
    if not view.comparable or not view.truth.ndim:
        return
    if _same_numbers(view.manual, view.truth):
        yield from _tried(view, lab, _rearrangements(view.truth.shape), "order")
        yield from _one_axis(view)
        what = "the numbers are those of the truth, in another order"
        yield Explanation("order", what, "", None, exact=False)
    yield from _tried(view, lab, _reductions(view.truth.shape), "reduced")
    yield from _shifted(view)
    yield from _other_leaves(view, lab)


def _tried(view, lab, moves, kind) -> Iterator[Explanation]:
    """An explanation for every move under which manual = c·move(truth)."""
    for what, why, move in moves:
        moved = move(view.truth)
        if moved.shape == view.manual.shape and (c := factor(view.manual, moved)) is not None:
            times = scaled(c, view, lab)
            equation = predicts(lambda v, move=move, c=c: c * move(v.truth))
            yield Explanation(kind, what + times.words, why, equation, exact=times.exact, free=times.free)


def _same_numbers(m, t) -> bool:
    """Whether the entries are the same, in any order and up to a factor."""
    if len(np.unique(t)) < 3:
        return False
    c = np.linalg.norm(m) / np.linalg.norm(t)
    if not c:
        return False
    apart = largest(m - c * t)  # if they don't even differ, their order is right
    m, t = np.sort(m.ravel()), np.sort(c * t.ravel())
    return min(largest(m - t), largest(m + t[::-1])) <= min(AGREES * largest(m), BETTER * apart)


# ---------------------------------------------------------------- within the leaf


def _rearrangements(shape) -> Iterator[tuple[str, str, Move]]:
    axes = range(len(shape))
    if len(shape) == 2:
        yield "it is transposed: manual = truth.T", "transpose it, or swap the operands of the product", np.transpose
    if len(shape) > 2:
        for order in list(itertools.permutations(axes))[1:]:
            what = f"its axes are permuted: manual = truth.transpose{order}"
            yield what, "an axis is swapped with another", lambda t, order=order: t.transpose(order)
    for r in range(1, len(shape) + 1):
        for chosen in itertools.combinations(axes, r):
            what = f"it is flipped along {axes_in_words(chosen)}"
            why = "the order of that axis is reversed" if r == 1 else "it is rotated by 180°, like an unflipped kernel"
            yield what, why, lambda t, chosen=chosen: np.flip(t, chosen)
    for order in list(itertools.permutations(axes))[1:]:
        back = tuple(np.argsort(order))
        permuted = tuple(shape[k] for k in order)
        what = "it is reshaped where it should be transposed"
        why = f"manual = truth.transpose{order}.reshape{shape}"
        yield what, why, lambda t, o=order: t.transpose(o).reshape(t.shape)
        why = f"manual = truth.reshape{permuted}.transpose{back}"
        yield what, why, lambda t, p=permuted, b=back: t.reshape(p).transpose(b)
    if len(shape) == 2:
        what = "it is transposed and flipped"
        yield what, "", lambda t: np.flip(t.T)


def _one_axis(view) -> Iterator[Explanation]:
    """manual is truth with its rows, columns, ... in another order."""
    m, t = view.manual, view.truth
    for axis, n in enumerate(t.shape):
        rows, wanted = (np.moveaxis(x, axis, 0).reshape(n, -1) for x in (m, t))
        near = np.abs(rows[:, None, :64] - wanted[None, :, :64]).max(-1) if n <= 2048 else None
        if near is None:
            continue
        order = near.argmin(1)
        if len(set(order.tolist())) < n or largest(np.take(t, order, axis) - m) > 1e-6 * largest(m):
            continue
        words, why = _order_in_words(order)
        name = {0: "rows", 1: "columns"}[axis] if t.ndim == 2 else f"entries along axis {axis}"
        yield Explanation(
            "order", f"its {name} are {words}", why, predicts(lambda v, o=order, axis=axis: np.take(v.truth, o, axis))
        )


def _order_in_words(order):
    n = order.size
    shift = int(-order[0] % n)
    if np.array_equal(order, np.roll(np.arange(n), shift)):
        by = shift if shift <= n // 2 else shift - n
        return f"rolled by {by}", f"index i holds what belongs to index i {'-' if by > 0 else '+'} {abs(by)}"
    for a in range(2, n // 2 + 1):
        if n % a == 0 and np.array_equal(order, np.arange(n).reshape(a, -1).T.ravel()):
            return f"interleaved in {a} groups", f"reshaped to ({n // a}, {a}) instead of ({a}, {n // a}): heads mixed"
    moved = [(i, int(k)) for i, k in enumerate(order) if i != k]
    if len(moved) == 2:
        return f"swapped: {moved[0][0]} and {moved[1][0]}", "two of them are interchanged"
    shown = ", ".join(f"{i} holds {k}" for i, k in moved[:4])
    return f"in another order: {shown}{', …' if len(moved) > 4 else ''}", "they are permuted"


def _reductions(shape) -> Iterator[tuple[str, str, Move]]:
    """An axis of the leaf itself summed away or accumulated, or one entry along it repeated."""
    for r in range(1, len(shape) + 1):
        for axes in itertools.combinations(range(len(shape)), r):
            if all(shape[k] > 1 for k in axes):
                what = f"it is the same along {axes_in_words(axes)}: the truth's sum over it, repeated"
                why = f"it is summed over {axes_in_words(axes)}, an axis of the leaf itself"

                def total(t, axes=axes):
                    return np.broadcast_to(t.sum(axes, keepdims=True), t.shape)

                yield what, why, total
    for axis, n in enumerate(shape):
        if n < 2:
            continue
        for place, name in ((0, "first"), (n - 1, "last")):
            what = f"the {name} entry along axis {axis} is repeated"

            def repeated(t, axis=axis, place=place):
                return np.broadcast_to(np.take(t, [place], axis), t.shape)

            yield what, "the others are lost", repeated
        yield f"it is accumulated along axis {axis}", "an extra cumulative sum", lambda t, a=axis: t.cumsum(a)
        what = f"it is accumulated backwards along axis {axis}"
        yield what, "an extra cumulative sum", lambda t, a=axis: np.flip(np.flip(t, a).cumsum(a), a)


def _shifted(view) -> Iterator[Explanation]:
    """Moved by one or two along an axis; what is pushed out is lost."""
    t = view.truth
    for axis, n in enumerate(t.shape):
        for by in (1, -1, 2, -2):
            if n < 2 * abs(by) + 1:
                continue

            def equation(v, axis=axis, by=by, n=n):
                inside = [slice(None)] * v.truth.ndim
                source = list(inside)
                inside[axis] = slice(by, None) if by > 0 else slice(None, by)
                source[axis] = slice(None, -by) if by > 0 else slice(-by, None)
                return v.manual[tuple(inside)], v.truth[tuple(source)]

            left, right = equation(view)
            if largest(left - right) <= 1e-6 * largest(right) and np.count_nonzero(right) > 2:
                what = f"it is shifted by {by} along axis {axis}"
                yield Explanation("shifted", what, f"index i holds what belongs to index i {-by:+d}", equation)


# ---------------------------------------------------------------- from elsewhere


def _other_leaves(view, lab) -> Iterator[Explanation]:
    e, i = view.evidence, view.i
    for k, path in enumerate(e.input_paths):
        if k == i or e.truth[k].size != view.truth.size or not np.isfinite(e.truth[k]).all():
            continue
        for words, move in _moves(e.truth[k].shape, view.truth.shape):
            other = move(e.truth[k])
            if other.shape != view.truth.shape or (c := factor(view.manual, other)) is None:
                continue
            times = scaled(c, view, lab)
            kind, what, why = "other_leaf", f"it is the gradient of {path}", "the wrong leaf is returned here"
            back = e.manual[k]
            if back is not None and back.size == view.truth.size and factor(back, view.truth.reshape(back.shape)):
                kind, what, why = "swapped", " and ".join(sorted((view.path, path))), "return each in its own place"
                what = f"the gradients of {what} are swapped"

            def predicted(v, k=k, move=move, c=c):
                return c * move(v.evidence.truth[k])

            what += words + times.words
            yield Explanation(kind, what, why, predicts(predicted), exact=times.exact, free=times.free)


def _moves(source, target) -> Iterator[tuple[str, Any]]:
    if source == target:
        yield "", lambda t: t
    if source[::-1] == target and len(source) > 1:
        yield ", transposed", lambda t: t.T
    if source != target:
        yield ", reshaped", lambda t: t.reshape(target)
