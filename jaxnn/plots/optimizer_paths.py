"""The paths that optimizers take down a surface."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from jaxnn.plots.style import COLOURS, MARKERS, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def optimizer_paths(
    surface: Callable[[np.ndarray, np.ndarray], np.ndarray],
    paths: Mapping[str, Mapping[str, ArrayLike]],
    minimum: tuple[float, float],
    low: tuple[float, float],
    high: tuple[float, float],
) -> "Figure":
    """Paths over the contours of a surface, a panel per group of optimizers: the common start ●, the minimum ★.

    surface: (x1, x2) -> values of their shape, elementwise. paths: title of the panel -> name -> (steps + 1, 2). low
    and high: the corners of the region shown. A marker every tenth step shows the speed. The contours are evenly spaced
    in the logarithm of the height.
    ValueError without paths, and for a path that is not (steps + 1, 2).
    """
    for name, path in ((name, path) for group in paths.values() for name, path in group.items()):
        if np.ndim(path) != 2 or np.shape(path)[1] != 2:
            raise ValueError(
                f"optimizer_paths: the path of {name!r} has shape {np.shape(path)}, expected (steps + 1, 2)"
            )
    if not paths:
        raise ValueError("optimizer_paths: no paths, expected at least one group of them")
    first, second = np.linspace(low[0], high[0], 200), np.linspace(low[1], high[1], 200)
    height = np.asarray(surface(*np.meshgrid(first, second)), np.float64)
    height = height - surface(*map(np.asarray, minimum))
    levels = np.geomspace(max(height.max() * 1e-5, 1e-12), height.max(), 16)
    figure, axes = panels(len(paths), 3, 4.6, 4.0)
    for ax, (title, group) in zip(axes, paths.items(), strict=True):
        ax.contour(first, second, height, levels=levels, colors="0.8", linewidths=0.8)
        for i, (name, path) in enumerate(group.items()):
            style: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
            ax.plot(*np.asarray(path).T, linewidth=1.5, markersize=5, markevery=10, label=name, **style)
            ax.plot(*np.asarray(path)[:1].T, "o", color="black", markersize=7, zorder=4)
        ax.plot(*minimum, "*", color="black", markersize=13, zorder=4)
        ax.set_xlim(low[0], high[0])
        ax.set_ylim(low[1], high[1])
        ax.set_title(title, fontsize=11)
        ax.set_xlabel("x₁")
        ax.set_ylabel("x₂")
        ax.legend(loc="best", fontsize=8.5)
    return figure
