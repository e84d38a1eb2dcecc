"""How wrong each form of a formula is: curves of its relative error, and tables of its values."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxnn.plots.style import line_style, panels, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The vertical axis: errors from LEAST to MOST to scale, inf and NaN above them.
LEAST, MOST, NOT_FINITE = 1e-10, 1e2, 1e4
WRONG = "#FBD9C6"


class ErrorCurves(NamedTuple):
    """A panel of curves."""

    title: str
    note: str  # what there is to see, in one line
    x_label: str
    x: np.ndarray  # (n,)
    errors: Mapping[str, np.ndarray]  # name of the form -> its relative errors (n,), 0, inf and NaN included
    x_scale: str = "linear"  # or "log"


class ValueTable(NamedTuple):
    """A panel with a table, for a formula that fails at single inputs rather than over a range."""

    title: str
    note: str
    inputs: Sequence[str]
    outputs: Mapping[str, Sequence[tuple[str, bool]]]  # name of the form -> for each input: its value, is it right


def error_curves(parts: Sequence[ErrorCurves | ValueTable]) -> "Figure":
    """Panels, three to a row: relative errors of the forms of a formula, or a table of their values.

    Errors are on a logarithmic axis: 0 is drawn at its lower edge (1e-10), inf and NaN at its upper edge, and where no
    digit is right (an error of 1 or more) the panel is tinted. A form has the same colour in all panels, and the first
    is drawn on top. Wrong values in a table are tinted and marked ✗.
    ValueError for no panels, and where curves or rows have the wrong length.
    """
    if not parts:
        raise ValueError("error_curves: no panels, expected at least one ErrorCurves or ValueTable")
    for part in parts:
        _check(part)
    names = dict.fromkeys(name for part in parts if isinstance(part, ErrorCurves) for name in part.errors)
    styles = {
        name: line_style(i) | {"linewidth": 1.5 + 0.25 * i, "zorder": 3 - 0.1 * i} for i, name in enumerate(names)
    }
    figure, axes = panels(len(parts), 3, 4.6, 3.1)
    handles = {}
    for ax, part in zip(axes, parts, strict=True):
        ax.set_title(f"{part.title}\n", loc="left", fontsize=11, fontweight="bold")
        ax.text(0, 1.03, part.note, transform=ax.transAxes, fontsize=8, color="0.3")
        if isinstance(part, ErrorCurves):
            _draw_curves(ax, part, styles)
            handles |= {line.get_label(): line for line in ax.lines}
        else:
            _draw_table(ax, part, styles)
    if handles:
        figure.legend(
            [handles[name] for name in names],
            list(names),
            loc="outside upper center",
            ncols=len(names),
            frameon=False,
            handlelength=4,
        )
    return figure


def _check(part: ErrorCurves | ValueTable) -> None:
    who = f"error_curves: {part.title!r}"
    if isinstance(part, ErrorCurves):
        for name, errors in part.errors.items():
            if np.ndim(part.x) != 1 or np.shape(errors) != np.shape(part.x):
                raise ValueError(
                    f"{who}: the errors of {name!r} have shape {np.shape(errors)} and x {np.shape(part.x)}; "
                    f"expected (n,) for both"
                )
    else:
        for name, outputs in part.outputs.items():
            if len(outputs) != len(part.inputs):
                raise ValueError(
                    f"{who}: {name!r} has {len(outputs)} outputs for {len(part.inputs)} inputs; expected one each"
                )


def _draw_curves(ax: "Axes", part: ErrorCurves, styles: Mapping[str, dict]) -> None:
    plain(ax)
    for name, errors in part.errors.items():
        errors = np.asarray(errors, np.float64)
        heights = np.where(np.isfinite(errors), np.clip(errors, LEAST, MOST), NOT_FINITE)
        ax.plot(part.x, heights, label=name, **styles[name])
    ax.set_xscale(part.x_scale)
    ax.set_yscale("log")
    ax.set_xlim(part.x[0], part.x[-1])
    ax.set_ylim(LEAST / 4, NOT_FINITE * 4)
    ax.axhspan(1, NOT_FINITE * 4, color=WRONG, alpha=0.6, linewidth=0, zorder=0)
    ax.set_yticks([LEAST, 1e-8, 1e-6, 1e-4, 1e-2, 1, NOT_FINITE])
    ax.set_yticklabels(["0", "1e-8", "1e-6", "1e-4", "1 %", "100 %", "inf, NaN"])
    ax.minorticks_off()
    ax.tick_params(labelsize=8.5)
    ax.set_xlabel(part.x_label, fontsize=9.5)
    ax.set_ylabel("relative error", fontsize=9.5)


def _draw_table(ax: "Axes", part: ValueTable, styles: Mapping[str, dict]) -> None:
    from matplotlib.transforms import Bbox

    ax.set_axis_off()
    cells = [["", *part.inputs]]
    colours = [["white"] * len(cells[0])]
    for name, outputs in part.outputs.items():
        cells.append([name, *(text if right else f"{text} ✗" for text, right in outputs)])
        colours.append(["white", *("white" if right else WRONG for _, right in outputs)])
    widths = [0.34] + [0.66 / len(part.inputs)] * len(part.inputs)
    height = 0.19 * len(cells)
    place = Bbox.from_bounds(0, 1 - height, 1, height)
    table = ax.table(cells, cellColours=colours, colWidths=widths, cellLoc="center", bbox=place)
    table.auto_set_font_size(False)
    table.set_fontsize(8.5)
    for (row, column), cell in table.get_celld().items():
        cell.set_edgecolor("0.8")
        if column == 0 and row > 0:
            cell.set_text_props(ha="left", color=styles.get(cells[row][0], {}).get("color", "black"))
            cell.PAD = 0.04
