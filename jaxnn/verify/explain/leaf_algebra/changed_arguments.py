"""The right gradient of a different question: an argument or the cotangent ignored, replaced, inverted or shifted."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from jaxnn.verify.explain.evidence import Evidence
from jaxnn.verify.explain.leaf_algebra.experiments import Lab, is_one, nudge, numeric
from jaxnn.verify.explain.leaf_algebra.factor_origin import scaled
from jaxnn.verify.explain.leaf_algebra.wrong_leaf import ZERO, Explanation, View, factor, largest, predicts_here


class Change(NamedTuple):
    """What an argument is replaced by."""

    name: str
    f: Callable[[np.ndarray], np.ndarray]
    why: str  # with {x}, the argument's path


def explain(view: View, lab: Lab) -> Iterator[Explanation]:
    """manual = truth with another argument; then, arguments that manual does not depend on though truth does."""
    if not view.comparable:
        return
    for what, why, elsewhere in _replaced(lab, view.i):
        there = View(elsewhere, view.i) if elsewhere else None
        if there is None or there.truth.shape != view.manual.shape or not np.isfinite(there.truth).all():
            continue
        if (c := factor(view.manual, there.truth)) is None:
            continue
        times = scaled(c, view, lab)
        exact = times.exact or view.truth.size > 3
        what = f"it is the right gradient for {what}{times.words}"
        yield Explanation("argument", what, why, predicts_here(c * there.truth), exact, times.free)


def ignored(view: View, lab: Lab) -> Iterator[Explanation]:
    """Arguments that the truth depends on, but the manual gradient does not."""
    if not view.comparable or largest(view.manual) <= ZERO * view.scale:
        return
    found = [path for path, elsewhere in _changed(lab) if elsewhere and _ignores(view, View(elsewhere, view.i))]
    if found:
        names = " and ".join(found[:2])
        what = f"it does not change when {names} {'change' if len(found) > 1 else 'changes'}, but the truth does"
        yield Explanation("ignored", what, f"your gradient ignores {names}", None, exact=False)


def _ignores(view, there):
    if not there.comparable:
        return False
    same = largest(there.manual - view.manual) <= ZERO * view.scale
    return same and largest(there.truth - view.truth) > 1e-6 * view.scale


# ---------------------------------------------------------------- what is changed, and how


def _replaced(lab: Lab, leaf: int) -> Iterator[tuple[str, str, Evidence | None]]:
    here = lab.evidence
    if not all(is_one(d) for d in here.dy):
        for change in _COTANGENT:
            yield f"dy = {change.name.format(x='dy')}", change.why, lab.with_dy(change.name, change.f)
    for where, arrays, paths, try_with in (
        ("given", here.given, here.given_paths, lab.with_given),
        ("inputs", here.inputs, here.input_paths, lab.with_input),
    ):
        for k, (x, path) in enumerate(zip(arrays, paths, strict=True)):
            if not numeric(x) or not x.size or (where == "inputs" and k == leaf):
                continue
            for change in _changes(x, where == "given"):
                yield f"{path} {change.name}", change.why.format(x=path), try_with(k, change.name, change.f)


_COTANGENT = (
    Change("1", np.ones_like, "the cotangent dy is ignored: taken as ones"),
    Change("|{x}|", np.abs, "the backward takes the absolute value of dy: it is not linear in it"),
    Change("{x}²", np.square, "dy is multiplied twice: the backward is not linear in it"),
    Change("the mean of {x}", lambda d: np.full_like(d, d.mean()), "dy is averaged"),
    Change("the sum of {x}", lambda d: np.full_like(d, d.sum()), "dy is summed"),
    Change("{x} reversed", lambda d: d[::-1] if d.ndim else d, "dy is read in the wrong order along axis 0"),
)

_IGNORED = "your gradient ignores {x}"


def _changes(x, given) -> Iterator[Change]:
    if x.dtype == bool:
        yield Change("all True", np.ones_like, "the mask {x} is ignored")
        yield Change("all False", np.zeros_like, "the mask {x} is taken as False everywhere")
        yield Change("inverted", np.logical_not, "the mask {x} is inverted")
    elif x.dtype.kind in "iu":
        yield Change("+ 1", lambda x: x + 1, "{x} is off by one")
        yield Change("- 1", lambda x: x - 1, "{x} is off by one")
        yield Change("all 0", np.zeros_like, _IGNORED)
    else:
        yield Change("all 1" if x.ndim else "= 1", np.ones_like, _IGNORED)
        yield Change("all 0" if x.ndim else "= 0", np.zeros_like, _IGNORED + ", or the term that it is in")
        yield Change("negated", np.negative, "the sign of {x} is flipped")
        yield Change("squared", np.square, "{x} is applied twice, or squared")
        inverted = "{x} multiplies where it should divide, or the reverse"
        yield Change("inverted, 1/x", lambda x: 1 / np.where(x == 0, 1, x), inverted)
        if given and np.isin(x, (0, 1)).all():
            yield Change("inverted, 1 - x", lambda x: 1 - x, "the mask {x} is inverted")
        if x.ndim and x.shape[0] > 1:
            mean = "{x} is averaged over its axis 0"
            yield Change("replaced by its mean over axis 0", lambda x: np.broadcast_to(x.mean(0), x.shape), mean)
    if x.ndim and x.shape[0] > 1 and given:
        for axis in range(min(x.ndim, 2)):
            words = "{x} is shifted by one along axis " + str(axis)
            yield Change(f"shifted by one along axis {axis}", lambda x, a=axis: np.roll(x, 1, a), words)
            yield Change(f"shifted by one back along axis {axis}", lambda x, a=axis: np.roll(x, -1, a), words)
        yield Change("reversed", lambda x: x[::-1], "{x} is read in the reverse order along axis 0")
    if x.ndim == 2 and x.shape[0] == x.shape[1]:
        yield Change("transposed", np.transpose, "{x} is transposed")


def _changed(lab: Lab) -> Iterator[tuple[str, Evidence | None]]:
    """Every argument changed a little, or integers in another order."""
    here = lab.evidence
    if not all(is_one(d) for d in here.dy):
        yield "dy", lab.with_dy("nudged", nudge)
    for k, (x, path) in enumerate(zip(here.given, here.given_paths, strict=True)):
        if numeric(x) and x.size:
            yield path, lab.nudged(k)
    for k, (x, path) in enumerate(zip(here.inputs, here.input_paths, strict=True)):
        if x.size:
            yield path, lab.with_input(k, "nudged", nudge)
