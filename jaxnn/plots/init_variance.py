"""How the variance changes with depth, for each initializer."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from jaxnn.plots.style import COLOURS, label_line_ends, panels, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST, MOST = 1e-10, 1e10  # the axis; a variance beyond it has vanished or exploded


def init_variance(variances: Mapping[str, Mapping[str, ArrayLike]]) -> "Figure":
    """Variance against depth on a logarithmic axis: a panel per title, a line per initializer, its name at its end.

    variances: title -> initializer -> (L + 1,) variances after 0 … L layers, forward or backward. The axis ends at
    1e-10 and 1e10: a name with ↑ or ↓ marks a line that leaves it (inf and NaN count as ↑, 0 as ↓). Names that differ
    only in the distribution (he_normal, he_uniform) share a colour; uniform is dashed.
    ValueError without lines, and unless all have the same length, 2 or more.

    >>> init_variance({"relu": {"he_normal": np.array([1.0, 0.9]), "zeros": np.array([1.0, 0.0])}}).axes[0].get_title()
    'relu'
    """
    shapes = {np.shape(line) for lines in variances.values() for line in lines.values()}
    if len(shapes) != 1 or len(shape := min(shapes)) != 1 or shape[0] < 2:
        raise ValueError(
            f"init_variance: the lines have the shapes {sorted(shapes)}, expected one shape (L + 1,) with L >= 1"
        )
    families = list(dict.fromkeys(_family(name) for lines in variances.values() for name in lines))
    figure, axes = panels(len(variances), 2, 6.0, 3.6)
    for ax, (title, lines) in zip(axes, variances.items(), strict=True):
        plain(ax)
        ax.set_title(title, fontsize=11)
        ax.set_yscale("log")
        ax.set_ylim(LEAST, MOST)
        ax.set_xlim(0, shape[0] - 1)
        ax.set_xlabel("layers passed")
        ax.set_ylabel("variance")
        ends = []
        for name, line in lines.items():
            line = np.asarray(line, np.float64)
            colour = COLOURS[families.index(_family(name)) % len(COLOURS)]
            ax.plot(line, color=colour, linestyle="--" if name.endswith("uniform") else "-", linewidth=1.6, label=name)
            last = line[-1] if np.isfinite(line[-1]) else np.inf
            arrow = " ↑" if last > MOST else " ↓" if last < LEAST else ""
            ends.append((name + arrow, shape[0] - 1, float(np.clip(last, LEAST, MOST)), colour))
        label_line_ends(ax, ends, gap=0.052)
    return figure


def _family(name: str) -> str:
    """What scales the draw: "he" of "he_normal", nothing for "normal", "uniform" and "truncated_normal"."""
    return name.removesuffix("normal").removesuffix("uniform").removesuffix("truncated_").rstrip("_")
