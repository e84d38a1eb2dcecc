"""How far a regression is off."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from jaxnn.plots.style import COLOURS, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_OUTPUTS = 8


def predictions(y_true: ArrayLike, y_pred: ArrayLike) -> "Figure":
    """Predicted against true values, with the diagonal where they would be equal; and a histogram of the residuals.

    y_true and y_pred: (n,), or (n, k) with a row of panels for each of the first 8 outputs. ValueError for shapes that
    differ, no examples, and values that are not finite.

    >>> [ax.get_xlabel() for ax in predictions([1.0, 2.0, 4.0], [1.5, 2.0, 3.0]).axes]
    ['true', 'predicted − true']
    """
    y_true, y_pred = np.asarray(y_true, np.float64), np.asarray(y_pred, np.float64)
    if y_true.shape != y_pred.shape or y_true.ndim not in (1, 2) or y_true.size == 0:
        raise ValueError(
            f"predictions: y_true has shape {y_true.shape} and y_pred {y_pred.shape}, expected the same shape, (n,) or "
            f"(n, k), with at least one example"
        )
    if not (np.isfinite(y_true).all() and np.isfinite(y_pred).all()):
        raise ValueError("predictions: y_true or y_pred has values that are inf or NaN; leave those examples out")
    y_true, y_pred = y_true.reshape(len(y_true), -1), y_pred.reshape(len(y_true), -1)
    outputs = y_true.shape[1]
    rows = min(outputs, MOST_OUTPUTS)
    figure = new_figure(8.4, 3.4 * rows)
    for i in range(rows):
        truth, said = y_true[:, i], y_pred[:, i]
        of = f" (output {i + 1} of {outputs})" if outputs > 1 else ""
        ax = figure.add_subplot(rows, 2, 2 * i + 1)
        plain(ax)
        ends = [min(truth.min(), said.min()), max(truth.max(), said.max())]
        ax.plot(ends, ends, color="0.3", linewidth=1, linestyle="--", label="predicted = true")
        ax.plot(truth, said, "o", color=COLOURS[0], alpha=0.5, markersize=4, markeredgewidth=0)
        ax.set_xlabel(f"true{of}")
        ax.set_ylabel("predicted")
        ax.legend(frameon=False)
        ax = figure.add_subplot(rows, 2, 2 * i + 2)
        plain(ax)
        residuals = said - truth
        ax.hist(residuals, bins=min(40, 1 + len(residuals) // 5), color=COLOURS[0], alpha=0.7)
        ax.axvline(0, color="0.3", linewidth=1, linestyle="--")
        ax.set_xlabel(f"predicted − true{of}")
        ax.set_ylabel("examples")
        ax.set_title(f"mean {residuals.mean():.3g}, root mean square {np.sqrt(np.mean(residuals**2)):.3g}", fontsize=10)
    return figure
