"""Independent ways to the gradient that a hand-written backward claims to be: autodiff and finite differences.

Both differentiate the number φ(inputs) = <forward(inputs), dy>, in float64.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Steps h, relative to the size of what is moved: truncation shrinks as h², rounding grows as 1/h.
STEPS = np.array([1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7])
_EPS = float(np.finfo(np.float64).eps)
_WORK = 1e11  # floating-point operations that differences may spend at one point: some ten seconds on two cores


_CAREFUL = {"xla_backend_optimization_level": 0}


@functools.cache
def _fastest() -> dict[str, Any]:
    """Options that compile four times faster still on CPUs; not every version knows them all."""
    options = {**_CAREFUL, "xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except Exception:  # the type of the error differs between versions
        return _CAREFUL
    return options


def quickly_compiled(f: Callable, careful: bool = False) -> Callable:
    """jax.jit for what runs only a few times, where optimizing would cost more time than it saves.

    Compiled code computes a fused value twice where it is used twice, and may round it two ways: then
    `x == x.max()` misses the maximum. So nothing is called wrong before it has been run step by step.
    """
    return jax.jit(f, compiler_options=_CAREFUL if careful else _fastest())


def autodiff(forward: Callable[[Any], Any], inputs: Any, dy: Any) -> Any:
    """∂φ/∂inputs by jax.vjp."""
    _, vjp = jax.vjp(forward, inputs)
    return vjp(dy)[0]


class Slopes(NamedTuple):
    """Derivatives of φ measured by finite differences: an element of each array for every entry or direction."""

    slope: np.ndarray  # φ'
    error: np.ndarray  # an estimate of its error; inf where the differences gave no result
    below: np.ndarray  # the slope on the left and on the right, at a small step
    above: np.ndarray
    kink: np.ndarray  # True where those two differ by an amount that does not shrink with the step
    steps: np.ndarray  # (entries, steps): h
    central: np.ndarray  # (entries, steps): (φ(x + h) - φ(x - h)) / 2h


class Differences:
    """Finite differences of φ(leaves, rest) in the leaves. Compiles once for all points of the same shapes.

    D(h) = (φ(x + h) - φ(x - h)) / 2h for six steps h, each a tenth of the last; R = (100 D(h/10) - D(h)) / 99 cancels
    the h² term. Of the two neighbouring R that agree best, the second is taken; their gap, or the rounding of φ over h
    if that is larger, is the error estimate. Where φ exists on one side only, one-sided differences take over.
    """

    def __init__(self, phi: Callable[[tuple, Any], Any], traceable: bool = True, careful: bool = False):
        self._phi = phi
        self._traceable = traceable
        self._evaluate = quickly_compiled(self._many, careful)

    def _many(self, leaves, rest, directions, where, by, which, along):
        theta = jnp.concatenate([leaf.ravel() for leaf in leaves])

        def one(at):
            j, h, d, t = at
            moved = jnp.where(jnp.arange(theta.size) == j, theta + h, theta) + t * directions[d]
            return self._phi(_split(moved, leaves, jnp.reshape), rest)

        # One after the other: on CPUs XLA takes quadratic time for a batch of convolutions with a batch of kernels.
        return jax.lax.map(one, (where, by, which, along))

    def _many_plain(self, leaves, rest, directions, where, by, which, along):
        theta = np.concatenate([np.ravel(leaf) for leaf in leaves])
        values = []
        for j, h, d, t in zip(where, by, which, along, strict=True):
            moved = theta + t * directions[d]
            if j >= 0:
                moved[j] += h
            values.append(np.float64(self._phi(_split(moved, leaves, np.reshape), rest)))
        return np.array(values)

    def __call__(self, leaves: Sequence[np.ndarray], rest: Any, entries: Sequence[int], directions=()) -> Slopes:
        """Slopes along the entries (indices into the concatenated leaves), then along the directions (leaf tuples)."""
        sizes = np.concatenate([np.full(leaf.size, _size(leaf)) for leaf in leaves] or [np.zeros(0)])
        theta = np.concatenate([np.ravel(leaf) for leaf in leaves] or [np.zeros(0)])
        at = np.asarray(entries, int)
        scale = np.maximum(np.abs(theta[at]), sizes[at])
        steps = np.concatenate([scale[:, None] * STEPS, np.tile(STEPS, (len(directions), 1))])
        vectors = np.zeros((max(len(directions), 1), theta.size))
        for vector, direction in zip(vectors, directions, strict=False):
            vector[:] = np.concatenate([np.ravel(leaf) for leaf in direction])
        n, s = steps.shape
        where = np.concatenate([at, np.full(len(directions), -1)])
        which = np.concatenate([np.zeros(at.size, int), np.arange(len(directions))])
        both = np.concatenate([steps, -steps], axis=1)  # (n, 2s)
        along = np.where(where[:, None] < 0, both, 0.0)
        both = np.where(where[:, None] < 0, 0.0, both)
        columns = [np.repeat(where, 2 * s), both.ravel(), np.repeat(which, 2 * s), along.ravel()]
        columns = [np.append(column, last) for column, last in zip(columns, (-1, 0.0, 0, 0.0), strict=True)]
        if self._traceable:
            values = self._evaluate(tuple(leaves), rest, vectors, *columns)
        else:
            values = self._many_plain(leaves, rest, vectors, *columns)
        values = np.asarray(values, np.float64)
        return _slopes(values[:-1].reshape(n, 2, s), values[-1], steps)

    def cost(self, leaves: Sequence[Any], rest: Any) -> float:
        """Floating-point operations of one φ, as XLA counts them; 0 if it cannot say."""
        if not self._traceable:
            return 0.0
        try:
            analysis = jax.jit(self._phi).lower(tuple(leaves), rest).cost_analysis()
        except Exception:  # not every backend has a cost model
            return 0.0
        return float((analysis or {}).get("flops", 0.0))


def affordable(flops: float) -> int:
    """How many entries may be measured if one φ costs this many operations."""
    return int(np.clip(_WORK / max(flops, 1.0) / (2 * len(STEPS)), 12, 4096))


def _size(leaf: np.ndarray) -> float:
    """The size of a leaf's entries, 1 for zeros."""
    rms = float(np.sqrt(np.mean(np.square(leaf)))) if leaf.size else 0.0
    return rms if rms > 0 and np.isfinite(rms) else 1.0


def _split(theta, leaves, reshape) -> tuple:
    starts = np.cumsum([0, *(int(np.prod(leaf.shape)) for leaf in leaves)])
    return tuple(
        reshape(theta[a:b], leaf.shape) for a, b, leaf in zip(starts[:-1], starts[1:], leaves, strict=True)
    )


def _slopes(values: np.ndarray, at: np.float64, h: np.ndarray) -> Slopes:
    up, down = values[:, 0], values[:, 1]
    with np.errstate(all="ignore"):
        above, below = (up - at) / h, (at - down) / h
        central = (up - down) / (2 * h)
        rounding = _EPS * np.fmax(np.abs(at), np.fmax(np.abs(up), np.abs(down))) / h
        slope, error = _best((100 * central[:, 1:] - central[:, :-1]) / 99, rounding)
        for side in (above, below):
            one_sided, one_sided_error = _best((10 * side[:, 1:] - side[:, :-1]) / 9, rounding)
            only = ~np.isfinite(error) & np.isfinite(one_sided_error)
            slope, error = np.where(only, one_sided, slope), np.where(only, one_sided_error, error)
        gap = np.abs(above - below)
        near, far = gap[:, 4], gap[:, 3]
        kink = (np.abs(near - far) < 0.3 * near) & (near > 50 * rounding[:, 4])
        kink &= near > 1e-6 * np.maximum(np.abs(above[:, 4]), np.abs(below[:, 4]))
    return Slopes(slope, error, below[:, 4], above[:, 4], kink, h, central)


def _best(estimates: np.ndarray, rounding: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the estimates for shrinking h, the one that its neighbour agrees with best, and its error."""
    gaps = np.maximum(np.abs(np.diff(estimates, axis=1)), rounding[:, 2:])
    gaps = np.where(np.isfinite(gaps), gaps, np.inf)  # a step that left the function's domain
    best = gaps.argmin(axis=1)
    rows = np.arange(len(gaps))
    return estimates[rows, best + 1], gaps[rows, best]


def leaf_directions(seed: int, inputs: Any) -> list[Any]:
    """For each leaf of inputs, a random direction that moves this leaf alone by about its own size."""
    leaves, tree = jax.tree.flatten(inputs)
    rng = np.random.default_rng(seed)
    directions = []
    for i, leaf in enumerate(leaves):
        zeros = [np.zeros(np.shape(other)) for other in leaves]
        zeros[i] = rng.normal(size=np.shape(leaf)) * _size(np.asarray(leaf))
        directions.append(tree.unflatten(zeros))
    return directions
