"""Which classes are mistaken for which."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from jaxnn.plots.style import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ANNOTATED = 30  # classes; with more, the counts would be too small to read


def confusion(matrix: ArrayLike, classes: Sequence[str]) -> "Figure":
    """A confusion matrix: counts as text, shares of the true class as colour.

    matrix: (classes, classes) counts, row = true class, column = predicted class, as `confusion_matrix` returns it.
    Zeros are left blank; with more than 30 classes, all counts are. ValueError for a matrix that is not square or does
    not match the classes.

    >>> [text.get_text() for text in confusion([[5, 1], [0, 4]], ["cat", "dog"]).axes[0].texts]
    ['5', '1', '4']
    """
    matrix = np.asarray(matrix)
    n = len(classes)
    if n == 0 or matrix.shape != (n, n):
        raise ValueError(f"confusion: matrix has shape {matrix.shape}, expected ({n}, {n}) for {n} classes")
    total = matrix.sum(1, keepdims=True)
    share = matrix / np.maximum(total, 1)
    side = min(max(3.2, 1.4 + 0.42 * n), 10.0)
    cell = 72 * (side - 1.4) / n  # in points
    figure = new_figure(side + 1.0, side)
    ax = figure.add_subplot()
    image = ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    upright = max(map(len, classes)) <= 3
    label_size = min(10, 0.6 * cell)
    ax.set_xticks(range(n), labels=list(classes), rotation=0 if upright else 90, fontsize=label_size)
    ax.set_yticks(range(n), labels=list(classes), fontsize=label_size)
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    ax.set_title(f"{np.trace(matrix)} of {matrix.sum()} right")
    if n <= MOST_ANNOTATED:
        size = min(10, 1.3 * cell / len(str(matrix.max())))
        for i, j in np.argwhere(matrix):
            colour = "white" if share[i, j] > 0.5 else "black"
            ax.text(j, i, str(matrix[i, j]), ha="center", va="center", color=colour, fontsize=size)
    figure.colorbar(image, ax=ax, label="share of the true class", shrink=0.8)
    return figure
