"""Every activation with its derivative."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from jaxnn.activations import ACTIVATIONS, get_activation
from jaxnn.plots.style import COLOURS, panels, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SATURATED = 0.05  # a gradient scaled by |f'| below this is as good as gone after a few layers


def activations(names: Sequence[str] | None = None) -> "Figure":
    """f and f' of each activation over -8 <= x <= 8, one panel each; saturated zones, |f'(x)| < 0.05, are shaded.

    A zone extends to the edge of the panel: where f' merely crosses 0, as at a minimum, nothing is saturated.

    names: keys of ACTIVATIONS, all of them by default. ValueError for an unknown name and for no names.

    >>> [ax.get_title() for ax in activations(["relu", "tanh"]).axes]
    ['relu', 'tanh']
    """
    names = list(ACTIVATIONS if names is None else names)
    if not names:
        raise ValueError("activations: names is empty, expected at least one name, or None for all")
    pairs = [get_activation(name) for name in names]
    x = np.linspace(-8, 8, 1601, dtype=np.float32)
    figure, axes = panels(len(names), 5, 2.4, 2.0)
    for ax, name, (value, derivative) in zip(axes, names, pairs, strict=True):
        f, df = np.asarray(value(jnp.asarray(x))), np.asarray(derivative(jnp.asarray(x)))
        plain(ax)
        ax.axhline(0, color="0.6", linewidth=0.6)
        ax.axvline(0, color="0.6", linewidth=0.6)
        ax.fill_between(
            x,
            0,
            1,
            where=_saturated(df).tolist(),
            transform=ax.get_xaxis_transform(),
            color="0.87",
            linewidth=0,
            label=f"saturated: |f′(x)| < {SATURATED}",
        )
        ax.plot(x, f, color=COLOURS[0], linewidth=1.8, label="f(x)")
        ax.plot(x, df, color=COLOURS[1], linewidth=1.6, linestyle="--", label="f′(x)")
        ax.set_xlim(-8, 8)
        ax.set_xticks([-8, -4, 0, 4, 8])
        ax.tick_params(labelsize=8)
        ax.set_title(name, fontsize=11)
        ax.set_xlabel("x", fontsize=9, labelpad=0)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure


def _saturated(df: np.ndarray) -> np.ndarray:
    """Where |f'| is small from here to the left end, or from here to the right end."""
    small = np.abs(df) < SATURATED
    return np.logical_and.accumulate(small) | np.logical_and.accumulate(small[::-1])[::-1]
