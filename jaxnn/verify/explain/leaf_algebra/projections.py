"""A component of the gradient that a mean, a norm or a normalisation removes: not removed, or removed needlessly.

The gradient through x - mean(x) has mean 0; through x/‖x‖ it is orthogonal to x; through a normalisation by mean and
variance it is orthogonal to 1 and to x. An error that lies along exactly these directions, slice by slice, is the path
through the mean, the norm or the variance.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from jaxnn.verify.explain.leaf_algebra.experiments import Lab
from jaxnn.verify.explain.leaf_algebra.named_arrays import OWN
from jaxnn.verify.explain.leaf_algebra.wrong_leaf import Explanation, View, largest


def explain(view: View, lab: Lab) -> Iterator[Explanation]:
    """manual - truth is a multiple of 1, of the leaf's value, or of both, along some axes."""
    if not view.comparable or view.truth.size < 4:
        return
    ndim = view.truth.ndim
    for r in range(1, ndim + 1):
        for axes in itertools.combinations(range(ndim), r):
            length = int(np.prod([view.truth.shape[k] for k in axes]))
            slices = view.truth.size // length
            over = f"axis {axes[0]}" if r == 1 else f"axes {axes}"
            for n, words, project, path in (
                (1, f"its mean over {over}", _mean, "the mean"),
                (1, f"its component along {OWN} over {over}", _along_value, "the norm"),
                (1, f"its component along {OWN} - mean over {over}", _along_centred, "the variance"),
                (2, f"its mean and component along {OWN} - mean over {over}", _both, "the mean and variance"),
            ):
                if (length - n) * slices < 3 or length <= n or slices == 1 == n:
                    continue  # any error fits; one number for the whole leaf is a term
                d = view.difference
                if largest(d - project(d, view.value, axes)) <= 1e-5 * largest(d):
                    yield _told(view, words, project, path, axes)


def _told(view, words, project, path, axes) -> Explanation:
    def equation(v):
        return v.difference, project(v.difference, v.value, axes)

    def subtracted(v):
        return v.manual, v.truth - project(v.truth, v.value, axes)

    of_manual, of_truth = (largest(project(side, view.value, axes)) for side in (view.manual, view.truth))
    if of_manual <= 1e-6 * of_truth:
        why = f"a path through {path} that the forward does not have"
        return Explanation("projection", f"{words} is subtracted", why, subtracted)
    if of_truth <= 1e-2 * of_manual:
        why = f"the path through {path} is missing, or has the wrong sign"
        return Explanation("projection", f"{words} is not subtracted", why, equation, exact=False)
    why = f"the path through {path} is missing, or has the wrong coefficient"
    return Explanation("projection", f"only {words} is wrong", why, equation, exact=False)


def _mean(g, x, axes):
    return np.broadcast_to(g.mean(axes, keepdims=True), g.shape)


def _along_value(g, x, axes):
    below = (x * x).sum(axes, keepdims=True)
    return x * ((g * x).sum(axes, keepdims=True) / np.where(below == 0, 1, below))


def _along_centred(g, x, axes):
    return _along_value(g, x - x.mean(axes, keepdims=True), axes)


def _both(g, x, axes):
    return _mean(g, x, axes) + _along_centred(g, x, axes)
