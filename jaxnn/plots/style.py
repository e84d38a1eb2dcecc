"""What the figures share: colours and lines that colour-blind readers can tell apart, panels, labels at line ends."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette without its yellow, which is too light for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "^", "s", "D", "v", "P", "X")


def line_style(i: int) -> dict[str, str]:
    """Colour and line style of the i-th curve: each cycles, so every curve takes the next of both."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": LINES[i % len(LINES)]}


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches. It belongs to no window and to no pyplot state: whoever holds it owns it."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def panels(count: int, columns: int, width: float, height: float) -> tuple["Figure", list["Axes"]]:
    """A figure of `count` panels, each width by height inches, row by row."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = new_figure(columns * width, rows * height)
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(count)]


def plain(ax: "Axes") -> None:
    """No box around the panel, and a faint grid behind the lines."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.set_axisbelow(True)


def image_panel(ax: "Axes") -> None:
    """A panel for an image: no ticks, no box."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)


def label_line_ends(ax: "Axes", ends: Sequence[tuple[str, float, float, str]], gap: float) -> None:
    """Name each line to the right of the panel, at its end, without overlap.

    ends: (name, x, y, colour) in data coordinates, with the limits of ax already set; gap: the smallest distance
    between two names, as a share of the panel's height.
    """
    to_axes = ax.transData + ax.transAxes.inverted()
    heights = np.array([to_axes.transform((x, y))[1] for _, x, y, _ in ends])
    leader = {"arrowstyle": "-", "linewidth": 0.7, "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 1}
    for (name, x, y, colour), height in zip(ends, spread(heights, gap), strict=True):
        ax.annotate(
            name,
            xy=(x, y),
            xytext=(1.09, height),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color=colour,
            arrowprops=leader | {"color": colour},
            annotation_clip=False,
        )


def spread(heights: np.ndarray, gap: float) -> np.ndarray:
    """Heights moved as little as needed (least squares) to be gap apart, in their order, and within [0, 1].

    >>> spread(np.array([0.5, 0.9, 0.48]), 0.1)
    array([0.54, 0.9 , 0.44])
    """
    # Less i gaps, the i-th height must be no lower than the one below: neighbours out of order get their mean.
    order = np.argsort(heights, kind="stable")
    gaps = gap * np.arange(len(heights))
    blocks: list[list[float]] = []
    for height in heights[order] - gaps:
        blocks.append([height])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    moved = np.concatenate([np.full(len(block), np.mean(block)) for block in blocks])
    return (np.clip(moved, 0, 1 - gaps[-1]) + gaps)[np.argsort(order)]
