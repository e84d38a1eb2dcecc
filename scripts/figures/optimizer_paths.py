"""How each optimizer descends a narrow valley at an angle to the coordinates."""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from jaxnn import plots
from jaxnn.optimizers import OPTIMIZERS, Optimizer

CURVATURE = np.array([[5.75, -8.227], [-8.227, 15.25]])  # curvature 1 along (cos 30°, sin 30°) and 20 across
START, MINIMUM = (-4.2, -1.0), (0.0, 0.0)
RATES = {
    "sgd": 0.09,
    "momentum": 0.09,
    "heavy_ball": 0.02,
    "nesterov": 0.02,
    "adagrad": 1.0,
    "rmsprop": 0.1,
    "lion": 0.08,
    "adam": 0.3,
    "amsgrad": 0.15,
    "nadam": 0.3,
}
GROUPS = {
    "one rate for all coordinates": ("sgd", "momentum", "heavy_ball", "nesterov"),
    "a rate for each coordinate": ("adagrad", "rmsprop", "lion"),
    "Adam and its kin": ("adam", "amsgrad", "nadam"),
}


def valley(x1, x2):
    """xᵀ A x / 2, A = CURVATURE: 20 times as steep across as along, and at an angle to the coordinates."""
    a = CURVATURE
    return (a[0, 0] * x1**2 + 2 * a[0, 1] * x1 * x2 + a[1, 1] * x2**2) / 2


def descend(optimizer: Optimizer, count: int) -> np.ndarray:
    """The path of an optimizer from START: (count + 1, 2). The valley's gradient is A x."""
    curvature = jnp.asarray(CURVATURE, jnp.float32)

    def step(carry, _):
        x, state = optimizer.update(carry[0], curvature @ carry[0], carry[1])
        return (x, state), x

    x = jnp.array(START)
    _, path = jax.lax.scan(step, (x, optimizer.init(x)), length=count)
    return np.concatenate([[START], path])


def draw(quick: bool) -> tuple[Figure, str]:
    count = 20 if quick else 60
    paths = {
        title: {f"{name}, rate {RATES[name]:g}": descend(OPTIMIZERS[name](RATES[name]), count) for name in names}
        for title, names in GROUPS.items()
    }
    figure = plots.optimizer_paths(valley, paths, MINIMUM, (-4.8, -2.8), (1.8, 1.4))
    heights = {name: valley(*path[-1]) for group in paths.values() for name, path in group.items()}
    best = min(heights, key=heights.__getitem__)
    return figure, f"lowest after {count} steps: {heights[best]:.1e} ({best})"
