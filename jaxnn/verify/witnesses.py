"""Independent ways to the gradient that a hand-written backward claims to be.

Both take forward(inputs) -> y and a cotangent dy of y, and differentiate φ(inputs) = <forward(inputs), dy>.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def quickly_compiled(f: Callable) -> Callable:
    """jax.jit for what runs once: in float64 the optimizations would only cost time to compile."""
    return jax.jit(f, compiler_options={"xla_backend_optimization_level": 0})


def autodiff(forward: Callable[[Any], Any], inputs: Any, dy: Any) -> Any:
    """∂φ/∂inputs by jax.vjp."""
    _, vjp = jax.vjp(forward, inputs)
    return vjp(dy)[0]


class Difference(NamedTuple):
    """A derivative along one direction, measured by finite differences."""

    slope: float  # φ'(0) along the direction
    error: float  # an estimate of its error: how far the two best steps disagree


STEPS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


def differences(forward: Callable[[Any], Any], inputs: Any, dy: Any, directions: list[Any]) -> list[Difference]:
    """The derivative of φ along each direction (a float64 tree like inputs), by central differences. Under enable_x64.

    φ'(0) ≈ (φ(x + h v) - φ(x - h v)) / 2h for each step h in STEPS; of two neighbouring steps that agree best the
    smaller is taken, and their gap is the error estimate. In float64 the gap is about 1e-10 of the slope.
    """

    def phi(t, direction):
        moved = jax.tree.map(lambda x, v: x + t * v, inputs, direction)
        products = jax.tree.map(lambda y, c: jnp.vdot(y, c), forward(moved), dy)
        return sum(jax.tree.leaves(products))

    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *directions)
    steps = np.asarray([*STEPS, *(-h for h in STEPS)])
    values = quickly_compiled(jax.vmap(lambda v: jax.vmap(lambda t: phi(t, v))(steps)))(stacked)
    up, down = np.split(np.asarray(values, np.float64), 2, axis=1)
    slopes = (up - down) / (2 * np.asarray(STEPS))
    with np.errstate(invalid="ignore"):
        gaps = np.abs(np.diff(slopes, axis=1))
    gaps = np.where(np.isnan(gaps), np.inf, gaps)  # a step that left the function's domain
    best = gaps.argmin(axis=1)
    return [Difference(float(s[i + 1]), float(g[i])) for s, g, i in zip(slopes, gaps, best, strict=True)]


def leaf_directions(seed: int, inputs: Any) -> list[Any]:
    """For each leaf of inputs a random direction that moves this leaf alone, of about the leaf's own size."""
    leaves, tree = jax.tree.flatten(inputs)
    rng = np.random.default_rng(seed)
    directions = []
    for i, leaf in enumerate(leaves):
        zeros = [np.zeros(other.shape) for other in leaves]
        size = float(np.sqrt(np.mean(np.square(np.asarray(leaf))))) or 1.0
        zeros[i] = rng.normal(size=leaf.shape) * size
        directions.append(tree.unflatten(zeros))
    return directions
