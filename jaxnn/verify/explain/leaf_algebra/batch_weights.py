"""How the batch's examples are combined: each one's own gradient is measured, then the weight it has."""

from collections.abc import Iterator

import numpy as np

from jaxnn.verify.explain.leaf_algebra.experiments import Lab, weights
from jaxnn.verify.explain.leaf_algebra.factor_origin import scaled
from jaxnn.verify.explain.leaf_algebra.wrong_leaf import Explanation, View, factor, largest


def explain(view: View, lab: Lab) -> Iterator[Explanation]:
    """manual = Σ_b u_b g_b, where g_b is the right gradient of example b, and the truth is Σ_b t_b g_b."""
    found = lab.examples(view.i) if view.comparable else None
    if found is None:
        return
    g, t = found
    yield from _summed_over_the_wrong_axis(view, lab, g)
    if (u := weights(view.manual, g)) is not None:
        yield from _weighted(view, lab, u, t)
    elif np.ptp(t) == 0:
        yield from _one_or_all_but_one(view, g)


def alone(view: View, lab: Lab) -> Iterator[Explanation]:
    """Right for one entry along the data's axis, wrong for several."""
    if not view.comparable or lab.batch is None or lab.first_alone is None:
        return
    first = View(lab.first_alone, view.i)
    if first.comparable and first.truth.any() and not first.wrong.any():
        n, path = lab.batch.size, lab.batch.path
        what = f"it is right if axis 0 of {path} has one entry, and wrong with {n}"
        if lab.examples(view.i):
            why = "each example's gradient is right, their sum is not"
        else:
            why = "what couples them (steps in time, or statistics of the batch) is wrong in the backward"
        yield Explanation("batch", what, why, None, exact=False)


def _summed_over_the_wrong_axis(view, lab, g) -> Iterator[Explanation]:
    if view.truth.shape == g.shape[:1] and g.shape[0] > 2 and (c := factor(view.manual, g.sum(1))) is not None:
        what = f"entry b is the sum over all entries of example b's gradient{scaled(c, view, lab).words}"
        why = "the sum runs over the wrong axis: over the features instead of the batch"
        yield Explanation("wrong_axis", what, why, None)


def _one_or_all_but_one(view, g) -> Iterator[Explanation]:
    """The leaf is too small to solve for the weights: the likeliest are tried."""
    if view.truth.size < 2:
        return
    total, n = g.sum(0), len(g)
    for b in range(n):
        if largest(view.manual - g[b] / n) <= 1e-6 * view.scale:
            yield _only(b, n)
        if largest(view.manual - (total - g[b]) / n) <= 1e-6 * view.scale:
            yield Explanation("examples", f"example {b} of {n} is left out", _REACH, None)


_REACH = "the sum over the batch does not reach all examples"


def _only(b, n) -> Explanation:
    name = " (the first)" if b == 0 else " (the last)" if b == n - 1 else ""
    why = "the sum over the batch is missing: the others are lost or overwritten"
    return Explanation("examples", f"only example {b}{name} of {n} counts", why, None)


def _weighted(view, lab, u, t) -> Iterator[Explanation]:
    """What the weights u of the examples are, against the t that they should be."""
    n = len(u)
    used, due = u != 0, t != 0
    ratio = u[used & due] / t[used & due]
    same = ratio.size > 0 and np.ptp(ratio) <= 1e-6 * largest(ratio)
    more = scaled(float(ratio[0]), view, lab).words if same else ""
    if used.sum() == 1:
        yield _only(int(np.flatnonzero(used)[0]), n)
    elif same and (due & ~used).any() and not (used & ~due).any():
        left_out = np.flatnonzero(due & ~used)
        names = ", ".join(map(str, left_out[:8])) + (", …" if left_out.size > 8 else "")
        some = "examples" if left_out.size > 1 else "example"
        what = f"{some} {names} of {n} {'are' if left_out.size > 1 else 'is'} left out{more}"
        yield Explanation("examples", what, _REACH, None)
    elif not same and (used & due).any():
        counts = ", ".join(f"{r:.4g}" for r in ratio[:6]) + (", …" if n > 6 else "")
        what = f"the examples count {counts} times what they should"
        yield Explanation("examples", what, "", None, exact=False)
