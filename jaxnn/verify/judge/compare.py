"""How far a gradient is from the truth, leaf by leaf.

    error of an entry = |manual - truth| / scale,   scale = max |truth| in its leaf + 1e-6 · max |truth| in the tree

Each leaf is measured by its own size: a bias of 1e-3 does not hide among weights of 1e3. The second term allows noise
in a leaf whose true gradient is 0 (a bias in front of batch norm). No absolute constant anywhere: a loss scaled by
1e-8 is judged like the loss itself.
"""

from typing import Any, NamedTuple

import jax
import numpy as np


class LeafError(NamedTuple):
    """One leaf of a gradient against the truth."""

    path: str  # as in jax.tree_util.keystr
    shape: tuple[int, ...]
    error: float  # largest error of an entry, inf where either side is not finite
    worst: tuple[int, ...]  # index of that entry


def compare(manual: Any, truth: Any) -> list[LeafError]:
    """The error of every leaf of `manual`. ValueError if the trees, shapes or dtypes differ."""
    _require_same_structure(manual, truth)
    leaves = jax.tree_util.tree_leaves_with_path(truth)
    tree_max = max((finite_max(_float64(t)) for _, t in leaves), default=0.0)
    return [
        _leaf_error(jax.tree_util.keystr(path), _float64(m), _float64(t), tree_max)
        for (path, t), m in zip(leaves, jax.tree.leaves(manual), strict=True)
    ]


def largest_error(manual: Any, truth: Any) -> float:
    """The largest error over all leaves, 0 if there are none."""
    return max((leaf.error for leaf in compare(manual, truth)), default=0.0)


def _float64(x) -> np.ndarray:
    return np.asarray(x).astype(np.float64)


def finite_max(x: np.ndarray) -> float:
    """The largest finite |entry|: an infinite one would make every other error vanish."""
    return float(np.abs(x[np.isfinite(x)]).max(initial=0))


def entry_errors(manual: np.ndarray, truth: np.ndarray, tree_max: float, noise: float = 0.0) -> np.ndarray:
    """The error of every entry of a leaf; inf where either side is not finite. `noise` is added to the scale."""
    scale = finite_max(truth) + 1e-6 * tree_max + noise
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        errors = np.where(manual == truth, 0.0, np.abs(manual - truth) / scale)
    return np.where(np.isfinite(manual) & np.isfinite(truth), errors, np.inf)


def _leaf_error(path, manual, truth, tree_max) -> LeafError:
    if truth.size == 0:
        return LeafError(path, truth.shape, 0.0, ())
    errors = entry_errors(manual, truth, tree_max)
    worst = np.unravel_index(int(errors.argmax()), errors.shape)
    return LeafError(path, truth.shape, float(errors[worst]), tuple(map(int, worst)))


def _require_same_structure(manual, truth):
    if jax.tree.structure(manual) != jax.tree.structure(truth):
        raise ValueError(
            f"the gradient has the tree {jax.tree.structure(manual)}, "
            f"but its arguments have {jax.tree.structure(truth)}; return the same tree"
        )
    leaves = zip(jax.tree_util.tree_leaves_with_path(truth), jax.tree.leaves(manual), strict=True)
    wrong = [
        f"{jax.tree_util.keystr(path) or 'the gradient'} is {m.dtype}{list(m.shape)}, expected {t.dtype}{list(t.shape)}"
        for (path, t), m in leaves
        if (m.shape, m.dtype) != (t.shape, t.dtype)
    ]
    if wrong:
        raise ValueError("; ".join(wrong))
