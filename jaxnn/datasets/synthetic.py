"""Sets of points in the plane, drawn from a key: small enough to plot, and hard in one way each.

All take (key, n, noise) and return x (n, 2) float32 and y (n,) int32. Example i has class i mod the number of classes,
so the classes are balanced to within one. `noise` is the standard deviation of a normal error added to both
coordinates; at 0 the points lie on the curve. The same key gives the same points.

ValueError for fewer points than classes, for negative noise, and for a key that isn't one key.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn._checks import non_negative, random_key
from jaxnn.datasets.dataset import Dataset


def moons(key: jax.Array, n: int, noise: float = 0.1) -> Dataset:
    """Two half circles, each with its end in the other's hollow.

    upper: (cos t, sin t),  lower: (1 - cos t, 1/2 - sin t),  t uniform in [0, π]

    >>> moons(jax.random.key(0), 100).x.shape
    (100, 2)
    """
    u, y, error = _draw("moons", key, n, noise, classes=2)
    t = math.pi * u[:, 0]
    upper, lower = (np.cos(t), np.sin(t)), (1 - np.cos(t), 0.5 - np.sin(t))
    return _dataset(np.where(y == 0, upper, lower), error, y, ("upper", "lower"))


def circles(key: jax.Array, n: int, noise: float = 0.05) -> Dataset:
    """A circle inside a circle.

    r (cos t, sin t),  r = 1 (outer) or 1/2 (inner),  t uniform in [0, 2π]
    """
    u, y, error = _draw("circles", key, n, noise, classes=2)
    t, r = 2 * math.pi * u[:, 0], np.where(y == 0, 1, 0.5)
    return _dataset((r * np.cos(t), r * np.sin(t)), error, y, ("outer", "inner"))


def spirals(key: jax.Array, n: int, noise: float = 0.02) -> Dataset:
    """Two spiral arms of one and a half turns, one half a turn ahead of the other.

    r (cos(4π r + π c), sin(4π r + π c)),  c = 0 or 1 the class,  r uniform in [1/4, 1]

    Neighbouring arms are 1/4 apart.
    """
    u, y, error = _draw("spirals", key, n, noise, classes=2)
    r = 0.25 + 0.75 * u[:, 0]
    angle = 4 * math.pi * r + math.pi * y
    return _dataset((r * np.cos(angle), r * np.sin(angle)), error, y, ("first arm", "second arm"))


def xor(key: jax.Array, n: int, noise: float = 0.05) -> Dataset:
    """Four squares, the exclusive or of the signs: no straight line separates the two classes.

    (s a, s b) (same signs) or (s a, -s b) (different signs),  s = -1 or 1,  a and b uniform in [0.1, 1]
    """
    u, y, error = _draw("xor", key, n, noise, classes=2)
    a, b = 0.1 + 0.9 * u[:, 0], 0.1 + 0.9 * u[:, 1]
    s = np.where(u[:, 2] < 0.5, -1, 1)
    return _dataset((s * a, np.where(y == 0, s, -s) * b), error, y, ("same signs", "different signs"))


def blobs(key: jax.Array, n: int, noise: float = 0.25) -> Dataset:
    """Three normal clouds around the corners of a triangle.

    (cos(2π c/3), sin(2π c/3)),  c = 0, 1 or 2 the class; `noise` is the clouds' standard deviation
    """
    _, y, error = _draw("blobs", key, n, noise, classes=3)
    angle = 2 * math.pi * y / 3
    return _dataset((np.cos(angle), np.sin(angle)), error, y, ("0", "1", "2"))


def _draw(who: str, key: jax.Array, n: int, noise: float, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Uniform numbers (n, 3) from [0, 1), the classes (n,), and the errors of the coordinates (n, 2), as float64."""
    random_key(who, key)
    non_negative(who, "noise", noise)
    if n < classes:
        raise ValueError(f"{who}: n = {n}, expected at least {classes}, a point for each class")
    for_uniform, for_normal = jax.random.split(key)
    uniform = jax.random.uniform(for_uniform, (n, 3), jnp.float32)
    normal = jax.random.normal(for_normal, (n, 2), jnp.float32)
    y = np.arange(n, dtype=np.int32) % classes
    return np.asarray(uniform, np.float64), y, noise * np.asarray(normal, np.float64)


def _dataset(curve, error: np.ndarray, y: np.ndarray, classes: tuple[str, ...]) -> Dataset:
    x = np.asarray(curve).T + error
    return Dataset(x.astype(np.float32), y, classes, features=("x1", "x2"))
