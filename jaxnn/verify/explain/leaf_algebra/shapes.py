"""The leaf does not have the shape of what it is the gradient of."""

import itertools
import math
from collections.abc import Iterator

import numpy as np

from jaxnn.verify.explain.leaf_algebra.experiments import Lab
from jaxnn.verify.explain.leaf_algebra.factor_origin import scaled
from jaxnn.verify.explain.leaf_algebra.wrong_leaf import Explanation, View, axes_in_words, factor


def explain(view: View, lab: Lab) -> Iterator[Explanation]:
    """Transposed, summed over too few or too many axes, flattened, one row of it."""
    m, t = view.manual, view.truth
    if view.evidence.manual[view.i] is None or m.shape == t.shape or not np.isfinite(m).all():
        return
    shapes = f"its shape is {m.shape} instead of {t.shape}"
    found = False
    for words, why, left, right in _candidates(m, t):
        if left.shape == right.shape and (c := factor(left, right)) is not None:
            times = scaled(c, view, lab)
            yield Explanation("shape", f"{shapes}: {words}{times.words}", why, None, exact=times.exact)
            found = True
            break
    if not found:
        yield Explanation("shape", shapes, "it must have the shape of what is differentiated", None, exact=False)


def _candidates(m, t):
    """(what manual is, why, one side, other side): equal up to a factor if it is so."""
    if m.size == t.size:
        yield "the numbers are right", "reshape it", m.reshape(t.shape), t
        if m.ndim == t.ndim:
            for axes in itertools.permutations(range(t.ndim)):
                words = "it is transposed" if t.ndim == 2 else f"its axes are permuted, manual = truth.transpose{axes}"
                yield words, "transpose it", m, t.transpose(axes)
        yield "the numbers are those of the transposed leaf", "transpose before reshaping", m.reshape(t.T.shape), t.T
    if m.size > t.size:
        for axes in _axis_sets(m.ndim):
            summed = m.sum(axes)
            if summed.size == t.size:
                over = axes_in_words(axes)
                why = f"the leaf was broadcast in the forward, so its gradient is the sum over {over}"
                yield f"the sum over {over} is missing", why, summed.reshape(t.shape), t
                if t.ndim == 2:
                    yield f"the sum over {over} is missing, and it is transposed", why, summed.reshape(t.T.shape), t.T
                one = np.take(m, 0, axes[0]) if len(axes) == 1 else summed
                if one.size == t.size:
                    yield f"it is repeated along {over}", "remove that axis", one.reshape(t.shape), t
    if m.size < t.size:
        for axes in _axis_sets(t.ndim):
            over = axes_in_words(axes)
            if math.prod(n for k, n in enumerate(t.shape) if k not in axes) != m.size:
                continue
            why = f"a gradient is not summed over {over} of its own leaf"
            yield f"it is summed over {over} of the leaf", why, m, t.sum(axes).reshape(m.shape)
            for place, name in ((0, "first"), (-1, "last")):
                if len(axes) == 1:
                    row = np.take(t, place, axes[0]).reshape(m.shape)
                    yield f"it is only the {name} entry along {over}", "the others are missing", m, row


def _axis_sets(ndim):
    return [axes for r in range(1, ndim + 1) for axes in itertools.combinations(range(ndim), r)]
