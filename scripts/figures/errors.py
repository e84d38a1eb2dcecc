"""The relative errors of several forms of a formula, as curves for `jaxnn.plots.error_curves`."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from jaxnn import plots

OURS = "ours"


def relative_error(value, truth: np.ndarray) -> np.ndarray:
    """|value - truth| / |truth| in float64. Below 1e-37, where float32 ends, nothing counts as an error."""
    value = np.asarray(value, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.abs(value - truth) / np.abs(truth)
    return np.where((value == truth) | ((np.abs(value) < 1e-37) & (np.abs(truth) < 1e-37)), 0, error)


def steps(low: float, high: float, count: int, spaced: Callable = np.linspace, samples: int = 50) -> np.ndarray:
    """The range from low to high in `count` steps of `samples` float32 samples each: (count, samples)."""
    return spaced(low, high, count * samples).astype(np.float32).reshape(count, samples)


def largest_errors(functions: dict[str, Callable], x: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """The largest relative error of each function within each step of x (count, samples)."""
    return {name: relative_error(jnp.vectorize(f)(x), truth).max(1) for name, f in functions.items()}


def curves_of(title, note, x_label, x, functions, truth, x_scale="linear") -> plots.ErrorCurves:
    return plots.ErrorCurves(title, note, x_label, x.mean(1), largest_errors(functions, x, truth), x_scale)
