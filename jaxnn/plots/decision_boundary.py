"""What a classifier of points in the plane has learnt, at several stages."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxnn.plots.style import COLOURS, MARKERS, image_panel, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GRID = 120  # points per side at which the probabilities are evaluated


class PlaneClassifier(NamedTuple):
    """A row of the figure: a set of points and its classifiers, one per column."""

    name: str
    x: np.ndarray  # (n, 2)
    y: np.ndarray  # (n,) class ids
    predictors: Mapping[str, Callable[[np.ndarray], np.ndarray]]  # title -> points (m, 2) to probabilities (m, classes)


def decision_boundary(rows: Sequence[PlaneClassifier]) -> "Figure":
    """A row for each set of points, a column for each of its predictors, usually one classifier at several epochs.

    The background mixes the classes' colours by their probabilities, the black line is the decision boundary, and each
    point has the colour and marker of its class. The number is the share of the points on the right side of it.
    ValueError for no rows and for shapes that do not match.
    """
    if not rows:
        raise ValueError("decision_boundary: no rows, expected at least one PlaneClassifier")
    columns = max(len(row.predictors) for row in rows)
    figure = new_figure(2.3 * columns, 2.3 * len(rows))
    for i, row in enumerate(rows):
        x, y = np.asarray(row.x, np.float32), np.asarray(row.y)
        if x.ndim != 2 or x.shape[1] != 2 or y.shape != x.shape[:1]:
            raise ValueError(
                f"decision_boundary: {row.name!r} has x of shape {x.shape} and y of shape {y.shape}, expected (n, 2) "
                f"and (n,)"
            )
        for j, (title, predictor) in enumerate(row.predictors.items()):
            ax = figure.add_subplot(len(rows), columns, i * columns + j + 1)
            image_panel(ax)
            _draw(ax, x, y, predictor)
            if i == 0:
                ax.set_title(title, fontsize=11)
            if j == 0:
                ax.set_ylabel(row.name, fontsize=11)
    return figure


def _draw(ax: "Axes", x: np.ndarray, y: np.ndarray, predictor: Callable[[np.ndarray], np.ndarray]) -> None:
    low, high = x.min(0), x.max(0)
    low, high = low - 0.12 * (high - low), high + 0.12 * (high - low)
    first, second = (np.linspace(low[i], high[i], GRID, dtype=np.float32) for i in (0, 1))
    grid = np.stack(np.meshgrid(first, second), axis=-1)
    p = np.asarray(predictor(grid.reshape(-1, 2)), np.float64)
    classes = p.shape[-1]
    if p.shape != (GRID * GRID, classes) or y.max() >= classes or classes > len(COLOURS):
        raise ValueError(
            f"decision_boundary: a predictor gave shape {p.shape} for {GRID * GRID} points of {y.max() + 1} classes, "
            f"expected (points, classes), at most {len(COLOURS)} classes"
        )
    p = p.reshape(GRID, GRID, classes)
    colours = np.array([[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in COLOURS[:classes]])
    pale = 1 - 0.5 * (1 - colours)
    ax.imshow(p @ pale, extent=(low[0], high[0], low[1], high[1]), origin="lower", aspect="auto")
    for c in range(classes):
        lead = p[..., c] - np.delete(p, c, axis=-1).max(-1)
        if lead.min() < 0 < lead.max():
            ax.contour(first, second, lead, levels=[0], colors="black", linewidths=1.2)
        chosen = x[y == c]
        ax.scatter(*chosen.T, s=11, color=colours[c], marker=MARKERS[c], edgecolors="white", linewidths=0.2)
    right = np.mean(np.asarray(predictor(x)).argmax(-1) == y)
    ax.text(
        0.97, 0.03, f"{100 * right:.0f} %", transform=ax.transAxes, ha="right", va="bottom", fontsize=9,
        bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "alpha": 0.8, "linewidth": 0},
    )  # fmt: skip
