"""How a training went."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxnn.plots.style import COLOURS, panels, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


SERIES: dict[str, dict[str, Any]] = {
    "training": {"color": COLOURS[0], "linestyle": "-", "marker": "o"},
    "validation": {"color": COLOURS[1], "linestyle": "--", "marker": "^"},
}


def curves(records: Sequence[Mapping[str, Any]]) -> "Figure":
    """Losses, each validation metric, learning rate and gradient norm against the epoch or the step, one panel each.

    records: one mapping per epoch, from `EpochRecord.to_dict()` or a line of metrics.jsonl: "epoch" or "step", "loss",
    "validation" (a mapping, empty without validation data), "rate", "gradient_norm". An axis is logarithmic where its
    values are positive and span a factor of 10 or more. ValueError for no records, and where the names in
    "validation" change from one to the next.

    >>> record = {"epoch": 1, "loss": 0.5, "validation": {"loss": 0.6}, "rate": 1e-3, "gradient_norm": 2.0}
    >>> [ax.get_ylabel() for ax in curves([record, record | {"epoch": 2}]).axes]
    ['loss', 'learning rate', 'gradient norm']
    """
    if not records:
        raise ValueError("curves: no records, expected at least one, one per epoch")
    time = "epoch" if "epoch" in records[0] else "step"
    names = list(records[0]["validation"])
    for record in records:
        if set(record["validation"]) != set(names):
            raise ValueError(
                f"curves: the validation of {time} {record[time]} has {sorted(record['validation'])}, that of {time} "
                f"{records[0][time]} {sorted(names)}; draw one run at a time"
            )
    times = [record[time] for record in records]
    measured = {name: [record["validation"][name] for record in records] for name in names}
    losses = {"training": [record["loss"] for record in records]}
    if "loss" in measured:
        losses["validation"] = measured.pop("loss")
    lines = {"loss": losses} | {f"validation {name}": {"validation": values} for name, values in measured.items()}
    lines["learning rate"] = {"training": [record["rate"] for record in records]}
    lines["gradient norm"] = {"training": [record["gradient_norm"] for record in records]}
    figure, axes = panels(len(lines), 2 if len(lines) in (2, 4) else 3, 4.2, 2.9)
    for ax, (label, group) in zip(axes, lines.items(), strict=True):
        _draw(ax, times, label, group)
        ax.set_xlabel(time)
    return figure


def _draw(ax: "Axes", times: list[int], label: str, group: Mapping[str, list[float]]) -> None:
    from matplotlib.ticker import MaxNLocator

    plain(ax)
    for name, values in group.items():
        marker_size = 4 if len(times) <= 30 else 0
        ax.plot(times, values, linewidth=1.8, markersize=marker_size, label=name, **SERIES[name])
    every = np.concatenate([np.asarray(values, float) for values in group.values()])
    every = every[np.isfinite(every)]
    if len(every) and every.min() > 0 and every.max() >= 10 * every.min():
        ax.set_yscale("log")
    elif label == "learning rate" and len(every) and every.min() >= 0:
        ax.set_ylim(0, 1.15 * every.max() or 1)  # a constant rate is a flat line, not magnified rounding
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.set_ylabel(label)
    if len(group) > 1:
        ax.legend(frameon=False)
