"""Experiments: both gradients at other points, each run once however many hypotheses ask for it."""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxnn.verify.explain.evidence import Evidence
from jaxnn.verify.explain.leaf_algebra.wrong_leaf import Explanation, View, holds

CALLS = 24, 150  # of Evidence.again, at least and at most
KEPT = 3e7  # entries that may be kept of them, which limits the calls for a large network
MOST_EXAMPLES = 64
SAMPLE = 4096  # entries of a large leaf from which the weights of the examples are solved


class Batch(NamedTuple):
    """Which arrays have the batch, or whatever the data have in common, as axis 0."""

    size: int
    path: str  # of the first of them
    given: tuple[int, ...]
    dy: tuple[int, ...]
    inputs: tuple[int, ...]  # those that may have it; parameters may have an axis of the same size

    def has(self, where: str, k: int) -> bool:
        return where != "inputs" and k in getattr(self, where)

    def size_of(self, evidence: Evidence) -> int:
        """The size at another point."""
        return (evidence.given[self.given[0]] if self.given else evidence.dy[self.dy[0]]).shape[0]


class Lab:
    """Evidence, and what `evidence.again` says elsewhere."""

    def __init__(self, evidence: Evidence):
        self.evidence = evidence
        self._calls = int(np.clip(KEPT / max(1, sum(x.size for x in evidence.inputs)), *CALLS))
        self._done: dict[Hashable, Evidence | None] = {}

    def at(
        self,
        name: Hashable,
        inputs: Sequence[np.ndarray] | None = None,
        given: Sequence[Any] | None = None,
        dy: Sequence[np.ndarray] | None = None,
    ) -> Evidence | None:
        """The evidence at another point, None if it is unavailable. y is not known there: ()."""
        if name not in self._done:
            here = self.evidence
            point = tuple(here.inputs if inputs is None else inputs), tuple(here.given if given is None else given)
            point = (*point, tuple(here.dy if dy is None else dy))
            found = here.again(*point) if len(self._done) < self._calls else None
            self._done[name] = found and here._replace(
                inputs=point[0], given=point[1], dy=point[2], y=(), manual=found[0], truth=found[1]
            )
        return self._done[name]

    def accepts(self, explanation: Explanation, view: View) -> Explanation | None:
        """The explanation, if it holds here and, where that can be tried, at a moved point; None if it does not."""
        if explanation.equation is None:
            return explanation
        if not holds(explanation.equation, view):
            return None
        moved = self.moved_view(view.i)
        elsewhere = holds(explanation.equation, moved) if moved else None
        if elsewhere is False:
            return None
        if elsewhere is None and explanation.free and _informative(explanation, view) <= explanation.free:
            return None  # that many numbers fit any leaf of this size
        return explanation

    @functools.cached_property
    def moved(self) -> Evidence | None:
        """All inputs moved by a tenth of their size, and another cotangent unless y is a scalar."""
        rng = np.random.default_rng(0)

        def move(x, by=0.1):
            spread = np.sqrt(np.mean(x * x)) if x.size else 0.0
            return x * (1 + by * rng.uniform(-1, 1, x.shape)) + 0.1 * by * spread * rng.standard_normal(x.shape)

        here = self.evidence
        inputs = [move(x) if x.any() else x + 0.1 * rng.standard_normal(x.shape) for x in here.inputs]
        dy = [d if is_one(d) else move(d, 1.0) for d in here.dy]
        return self.at("moved", inputs=inputs, dy=dy)

    def moved_view(self, i: int) -> View | None:
        """The leaf at the moved point, None if the gradient is right there or unavailable."""
        view = View(self.moved, i) if self.moved else None
        return view if view and view.comparable and view.wrong.any() else None

    # ------------------------------------------------------------ the batch

    @functools.cached_property
    def batch(self) -> Batch | None:
        """The axis that the data have in common: axis 0 of y, or of most given arrays."""
        here = self.evidence
        leading = [x.shape[0] if numeric(x) and x.ndim else 0 for x in here.given]
        of_y = [d.shape[0] if d.ndim else 0 for d in here.dy]
        sizes = [n for n in (*of_y, *leading) if n > 1]
        if not sizes:
            return None
        n = max(sizes, key=sizes.count)
        given, dy = (tuple(k for k, m in enumerate(found) if m == n) for found in (leading, of_y))
        inputs = tuple(k for k, x in enumerate(here.inputs) if x.ndim and x.shape[0] == n)
        return Batch(n, here.given_paths[given[0]] if given else "the output", given, dy, inputs)

    def _batched_inputs(self) -> list[tuple[int, ...]]:
        """Which inputs may have the batch as axis 0, besides the given arrays that do."""
        if self.batch is None:
            return []
        inputs, given = self.batch.inputs, self.batch.given
        choices = dict.fromkeys([(), inputs, *((k,) for k in inputs)])
        return [choice for choice in choices if choice or given]

    def rows(self, name: str, inputs_too: tuple[int, ...], rows: Any) -> Evidence | None:
        """The evidence with these rows of every array that has the batch as axis 0."""
        here, batch = self.evidence, self.batch
        if batch is None:
            return None
        inputs = [x[rows] if k in inputs_too else x for k, x in enumerate(here.inputs)]
        given = [x[rows] if k in batch.given else x for k, x in enumerate(here.given)]
        dy = [d[rows] if k in batch.dy else d for k, d in enumerate(here.dy)]
        found = self.at((name, inputs_too), inputs, given, dy)
        fits = found and all(t.shape == x.shape for t, x in zip(found.truth, inputs, strict=True))
        return found if fits else None

    def _resized(self, name: str, rows: Any) -> Evidence | None:
        """The same, with the inputs that make the shapes fit."""
        return next((e for choice in self._batched_inputs() if (e := self.rows(name, choice, rows))), None)

    @functools.cached_property
    def doubled(self) -> Evidence | None:
        """The evidence with every example twice."""
        return self._resized("doubled", np.tile(np.arange(self.batch.size), 2)) if self.batch else None

    @functools.cached_property
    def first_alone(self) -> Evidence | None:
        """The evidence of the first example alone."""
        return self._resized("first alone", slice(0, 1))

    def examples(self, i: int) -> tuple[np.ndarray, np.ndarray] | None:
        """The gradients g_b of leaf i for each example of the batch, and t_b with truth = Σ t_b g_b.

        g_b is the truth for a batch of nothing but copies of example b, so that no shape changes. None if the truth is
        not of this form with equal t_b, and not with others that the leaf is large enough to determine.
        """
        if self.batch is None or self.batch.size > min(MOST_EXAMPLES, self._calls // 2):
            return None
        n = self.batch.size
        for choice in self._batched_inputs():
            copies = [self.rows(f"copies of {b}", choice, np.full(n, b)) for b in range(n)]
            g = [e.truth[i] for e in copies if e]
            if i not in choice and len(g) == n and np.isfinite(g).all():
                t = weights(self.evidence.truth[i], np.stack(g))
                if t is not None:
                    return np.stack(g), t
        return None

    # ------------------------------------------------------------ one array changed

    def with_given(self, k: int, name: str, f: Callable[[np.ndarray], np.ndarray]) -> Evidence | None:
        """The evidence with the k-th given array replaced by f of it."""
        x = self.evidence.given[k]
        given = list(self.evidence.given)
        given[k] = np.asarray(f(x), x.dtype)
        return None if np.array_equal(given[k], x) else self.at(("given", k, name), given=given)

    def nudged(self, k: int) -> Evidence | None:
        """The evidence with the k-th given array changed a little: booleans flipped, integers in another order."""
        return self.with_given(k, "nudged", nudge) if numeric(self.evidence.given[k]) else None

    def with_input(self, k: int, name: str, f: Callable[[np.ndarray], np.ndarray]) -> Evidence | None:
        """The evidence with the k-th input replaced by f of it."""
        inputs = list(self.evidence.inputs)
        inputs[k] = np.asarray(f(inputs[k]))
        same = np.array_equal(inputs[k], self.evidence.inputs[k])
        return None if same else self.at(("input", k, name), inputs=inputs)

    def with_dy(self, name: str, f: Callable[[np.ndarray], np.ndarray]) -> Evidence | None:
        """The evidence with another cotangent."""
        dy = [np.asarray(f(d)) for d in self.evidence.dy]
        same = all(map(np.array_equal, dy, self.evidence.dy))
        return None if same else self.at(("dy", name), dy=dy)


def weights(target: np.ndarray, g: np.ndarray) -> np.ndarray | None:
    """t with target = Σ t_b g_b: all equal, or determined by the equations; None if there are none."""
    n, scale = len(g), np.abs(target).max(initial=0)
    flat, wanted = g.reshape(n, -1).T, target.ravel()
    if np.abs(wanted - flat.sum(1) / n).max(initial=0) <= 1e-6 * scale:
        return np.full(n, 1 / n)
    some = np.unique(np.linspace(0, len(flat) - 1, SAMPLE).astype(int))
    t, _, rank, _ = np.linalg.lstsq(flat[some], wanted[some], rcond=1e-8)
    if some.size < n + 2 or rank < n:
        return None
    t[np.abs(t) < 1e-7 * np.abs(t).max()] = 0
    return t if np.abs(flat @ t - wanted).max() <= 1e-6 * scale else None


def nudge(x: np.ndarray) -> np.ndarray:
    """x changed a little."""
    if x.dtype == bool:
        flipped = x.copy()
        flipped.flat[: max(1, x.size // 3)] ^= True
        return flipped
    if x.dtype.kind in "iu":
        return np.roll(x, 1, 0) if x.ndim else x
    if np.isin(x, (0, 1)).all():
        return nudge(x.astype(bool)).astype(x.dtype)
    if (x >= 0).all():
        return x * (1 + 0.03 * np.random.default_rng(1).uniform(0.5, 1, x.shape))
    return x + 0.03 * np.random.default_rng(1).standard_normal(x.shape) * np.abs(x).max(initial=0)


def numeric(x: Any) -> bool:
    """Whether x is an array of numbers or booleans, not a key."""
    return isinstance(x, np.ndarray) and (x.dtype.kind in "fib" or x.dtype == np.uint8)


def is_one(d: np.ndarray) -> bool:
    """Whether this is the cotangent of a scalar loss."""
    return d.ndim == 0 and float(d) == 1.0


def _informative(explanation, view):
    sides = explanation.equation(view)
    return 0 if sides is None else int((np.abs(sides[1]) > 1e-9 * np.abs(sides[1]).max(initial=0)).sum())
