"""A report as figures: where a leaf is wrong, manual against truth, the differences against the step; or all errors."""

import math
from typing import TYPE_CHECKING

import numpy as np

from jaxnn.plots.style import COLOURS, new_figure, plain
from jaxnn.verify.report.data import FLOAT64_TOLERANCE, Leaf, Outcome, wrong_first
from jaxnn.verify.report.text import elide, summary, where

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAVES = 4  # wrong leaves that get a row of panels
DOTS = 40  # leaves whose errors get a line
CELLS = 96  # rows or columns of a heat map; a larger leaf is drawn by the largest error of each block
POINTS = 2000  # of the scatter
HUGE = 1e100  # nothing is drawn larger: beyond, matplotlib's own arithmetic overflows
NO_ERROR = 1e-17  # where an error of 0 is drawn on a log axis

BLUE, RED = COLOURS[:2]


def figure(report: Outcome) -> "Figure":
    """See Report.figure."""
    wrong = [leaf for leaf in wrong_first(report) if leaf.status == "WRONG"][:LEAVES]
    if not wrong:
        return errors_figure(report)
    drawn = new_figure(12.5, 3.4 * len(wrong))
    for leaf, part in zip(wrong, drawn.subfigures(len(wrong), squeeze=False)[:, 0], strict=True):
        part.suptitle(f"{elide(leaf.path, 80)}  {leaf.shape}", x=0.01, ha="left", fontsize=10, weight="bold")
        for ax, draw in zip(part.subplots(1, len(PANELS), gridspec_kw={"wspace": 0.08}), PANELS, strict=True):
            draw(ax, leaf)
    return drawn


def panel_figures(leaf: Leaf) -> list[tuple[str, "Figure"]]:
    """The panels of one leaf that have something to show, as separate figures, each with a caption."""
    drawn = [(caption, new_figure(4.4, 3.3), draw) for draw, caption in PANELS.items()]
    return [(caption, one) for caption, one, draw in drawn if draw(one.add_subplot(), leaf)]


def errors_figure(report: Outcome) -> "Figure":
    """The errors of every leaf as dots on a log axis, and the tolerance."""
    largest = {
        path: max(finite)
        for path, leaf in report.leaves.items()
        if (finite := [e for e in (leaf.autodiff, leaf.differences) if math.isfinite(e)])
    }
    worst = set(sorted(largest, key=largest.__getitem__, reverse=True)[:DOTS])
    shown = [leaf for path, leaf in report.leaves.items() if path in worst]
    drawn = new_figure(7.5, 1.5 + 0.24 * len(shown))
    ax = drawn.add_subplot()
    plain(ax)
    ax.set_xscale("log")
    ax.axvline(FLOAT64_TOLERANCE, color="#555555", linestyle="--", linewidth=1.2, label="tolerance")
    for label, colour, marker in (("autodiff", BLUE, "o"), ("differences", RED, "^")):
        x = np.array([getattr(leaf, label) for leaf in shown], float)
        ax.plot(np.maximum(x, NO_ERROR), np.arange(len(shown)), marker, color=colour, markersize=5,
                label=f"against {label}")  # fmt: skip
    ax.set_yticks(range(len(shown)), [elide(leaf.path, 44) for leaf in shown], fontsize=8)
    ax.set_ylim(len(shown) - 0.4, -0.6)
    ax.set_xlim(NO_ERROR / 2, max([1e-5, *(2 * largest[path] for path in worst)]))
    ax.set_xlabel("largest error of an entry, relative to the largest of its leaf; 0 is drawn at 1e-17", fontsize=9)
    ax.tick_params(axis="x", labelsize=9)
    title = elide(f"{'RIGHT' if report.ok else 'WRONG'}  {summary(report)}", 110)
    if len(shown) < len(largest):
        title += f"\nthe {len(shown)} leaves with the largest errors"
    drawn.suptitle(title, fontsize=9, x=0.01, ha="left")
    drawn.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return drawn


def heat_map(ax: "Axes", leaf: Leaf) -> bool:
    """(manual - truth) / largest |truth| in colour, on a log scale with both signs."""
    from matplotlib import colormaps
    from matplotlib.colors import SymLogNorm
    from matplotlib.ticker import MaxNLocator

    _title(ax, "where it is wrong")
    compared = _sides(ax, leaf)
    if compared is None:
        return False
    if compared[1].size == 1:
        return _say(ax, where(leaf).replace(": ", ":\n").replace(", truth", "\ntruth"))
    manual, truth = (side.reshape(-1, side.shape[-1] if side.ndim else 1) for side in compared)
    if truth.shape[1] == 1:
        manual, truth = manual.T, truth.T
    with np.errstate(invalid="ignore", over="ignore"):
        errors = (manual - truth) / (leaf.largest if 0 < leaf.largest < math.inf else 1.0)
    cells = np.clip(reduce_blocks(errors, CELLS), -HUGE, HUGE)
    finite = np.abs(cells[np.isfinite(cells)]).max(initial=0)
    top = 10.0 ** max(-6, math.ceil(math.log10(finite))) if finite else 1e-6
    norm = SymLogNorm(FLOAT64_TOLERANCE, linscale=0.5, vmin=-top, vmax=top, base=10)
    rows, columns = errors.shape
    drawn = ax.imshow(
        np.ma.masked_invalid(cells),
        cmap=colormaps["RdBu_r"].with_extremes(bad="#777777"),
        norm=norm,
        extent=(-0.5, columns - 0.5, rows - 0.5, -0.5),
        aspect="auto",
        interpolation="nearest",
    )
    ax.set_box_aspect(float(np.clip(rows / columns, 0.15, 1)))
    for axis, n in ((ax.xaxis, columns), (ax.yaxis, rows)):
        axis.set_major_locator(MaxNLocator(min(n, 6), integer=True, min_n_ticks=1))
    if rows == 1:
        ax.set_yticks([])
    ax.set_xlabel(_axis_names(compared[1].shape), fontsize=8)
    ax.tick_params(labelsize=8)
    decades = np.arange(round(math.log10(FLOAT64_TOLERANCE)), round(math.log10(top)) + 1)
    ticks = 10.0 ** decades[:: -max(1, math.ceil(len(decades) / 3))]
    bar = ax.figure.colorbar(drawn, ax=ax, ticks=[*-ticks, 0, *ticks], shrink=0.9, pad=0.03)
    bar.ax.set_yticklabels([f"{t:+.0e}" if t else "0" for t in [*-ticks, 0, *ticks]], fontsize=7)
    bar.ax.minorticks_off()
    absolute = leaf.largest == 0
    bar.set_label("manual − truth" + (" (truth is 0)" if absolute else ", of largest |truth|"), fontsize=8)
    return True


def scatter(ax: "Axes", leaf: Leaf) -> bool:
    """Every entry as a point, manual against truth: on the diagonal they agree."""
    _title(ax, "manual against truth")
    compared = _sides(ax, leaf)
    if compared is None:
        return False
    manual, truth = (side.ravel() for side in compared)
    known = (np.abs(manual) < HUGE) & (np.abs(truth) < HUGE)
    lost = int(np.sum(~known))
    manual, truth = manual[known], truth[known]
    order = np.argsort(-np.abs(manual - truth), kind="stable")
    is_wrong = np.zeros(len(order), bool)
    is_wrong[order[: max(0, leaf.n_wrong - lost)]] = True
    plain(ax)
    if len(order):
        ax.axline((truth[0], truth[0]), slope=1, color="#555555", linestyle="--", linewidth=1, label="equal")
    for chosen, colour, marker, label in ((~is_wrong, BLUE, "o", "right"), (is_wrong, RED, "x", "wrong")):
        points = np.flatnonzero(chosen)
        if len(points):
            few = points[:: -(-len(points) // POINTS)]
            ax.plot(truth[few], manual[few], marker, color=colour, markersize=4, alpha=0.7, linestyle="none",
                    label=f"{label}, {len(points):,}")  # fmt: skip
    ax.margins(0.08)
    ax.set_xlabel("truth", fontsize=8)
    ax.set_ylabel("manual", fontsize=8)
    ax.tick_params(labelsize=8)
    ax.xaxis.get_offset_text().set_fontsize(7)
    ax.yaxis.get_offset_text().set_fontsize(7)
    ax.locator_params(nbins=5)
    if lost:
        _title(ax, f"manual against truth; not drawn: {lost:,} NaN or huge")
    if len(order):
        ax.legend(fontsize=7, framealpha=0.8)
    return True


def v_curve(ax: "Axes", leaf: Leaf) -> bool:
    """Central differences of one entry: they fall towards the side that is right, until rounding lifts them again."""
    curve = leaf.curve
    _title(ax, "central differences")
    compared = _sides(ax, leaf)
    if compared is None:
        return False
    if curve is None or not np.isfinite(curve.slopes).any():
        return _say(ax, "no differences were measured\nat a single entry")
    _title(ax, f"central differences at {list(curve.index)}" if curve.index else "central differences")
    plain(ax)
    ax.set_xscale("log")
    ax.set_yscale("log")
    floor = 1e-17 * (leaf.largest if 0 < leaf.largest < math.inf else 1.0)
    for label, array, colour, marker in zip(("manual", "truth"), compared, (RED, BLUE), "xo", strict=True):
        gaps = np.abs(curve.slopes - array[curve.index])
        known = np.isfinite(gaps)
        ax.plot(curve.steps[known], np.clip(gaps[known], floor, HUGE), marker + "-", color=colour, markersize=4,
                linewidth=1.4, label=f"from {label}")  # fmt: skip
    ax.set_xlabel("step h", fontsize=8)
    ax.set_ylabel("|slope − entry|", fontsize=8)
    ax.tick_params(labelsize=8, which="both")
    ax.tick_params(axis="x", which="minor", bottom=False)
    ax.legend(fontsize=7, framealpha=0.8)
    return True


PANELS = {
    heat_map: "Where it is wrong: red is above the truth, blue below, white is right, grey is not finite.",
    scatter: "Every entry, manual against truth: on the dashed line they agree.",
    v_curve: "Central differences of the worst entry approach the side that is right as the step shrinks, "
    "until rounding takes over.",
}


def reduce_blocks(x: np.ndarray, cells: int) -> np.ndarray:
    """x (rows, columns) at most cells × cells, each the entry of largest |x| in its block; NaN if one isn't finite.

    >>> reduce_blocks(np.array([[1.0, -3.0, 0.5, 0.25]]), 2)
    array([[-3. ,  0.5]])
    """
    most, least, lost = np.where(np.isfinite(x), x, 0.0), np.where(np.isfinite(x), x, 0.0), ~np.isfinite(x)
    for axis in (0, 1):
        n = x.shape[axis]
        starts = np.linspace(0, n, min(n, cells), endpoint=False).astype(int)
        most = np.maximum.reduceat(most, starts, axis)
        least = np.minimum.reduceat(least, starts, axis)
        lost = np.logical_or.reduceat(lost, starts, axis)
    return np.where(lost, np.nan, np.where(most >= -least, most, least))


def _sides(ax: "Axes", leaf: Leaf) -> tuple[np.ndarray, np.ndarray] | None:
    """manual and truth, if they can be drawn against each other; else the panel says why not."""
    if leaf.manual is None or leaf.truth is None:
        _say(ax, "missing" if leaf.manual is None else "not expected")
    elif leaf.manual.shape != leaf.truth.shape:
        _say(ax, f"manual has the shape {leaf.manual.shape},\ntruth {leaf.truth.shape}")
    elif not leaf.truth.size:
        _say(ax, "no entries")
    else:
        return leaf.manual, leaf.truth
    return None


def _say(ax: "Axes", text: str) -> bool:
    """A panel that has nothing to show says why."""
    ax.set_axis_off()
    ax.text(0.5, 0.5, text, ha="center", va="center", transform=ax.transAxes, fontsize=9)
    return False


def _title(ax: "Axes", text: str) -> None:
    ax.set_title(text, loc="left", fontsize=9)


def _axis_names(shape: tuple[int, ...]) -> str:
    """Which axes of the leaf run down and across."""
    if len(shape) < 2:
        return "index"
    down = "axis 0" if len(shape) == 2 else f"axes 0 to {len(shape) - 2}, flattened"
    return f"axis {len(shape) - 1}; down: {down}"
