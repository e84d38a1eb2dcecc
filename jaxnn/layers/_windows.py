"""A window that slides over the axes between batch and channels: where it goes, and what each of its taps sees.

B batch, C channels; i an entry of the input, o a place of the window, k one of its taps; s stride, d dilation, l the
padding in front. All but B and C have one component per axis. Tap k of the window at o sees entry

    i = s·o + d·k - l                 outside the input: padding
"""

import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnn._checks import unknown_name, whole
from jaxnn._parallel import reshaped

PerAxis = int | Sequence[int]  # one number for all axes, or one per axis
Padding = str | Sequence[tuple[int, int]]  # "same", "valid", or (in front, behind) per axis


class Window(NamedTuple):
    """A window along one axis."""

    size: int  # number of taps
    stride: int
    dilation: int
    front: int  # entries of padding in front
    behind: int  # and behind
    n_in: int  # entries of the input
    n_out: int  # places of the window


def windows_over(
    who: str, n_in: Sequence[int], size: Sequence[int], stride: PerAxis, padding: Padding, dilation: PerAxis = 1
) -> tuple[Window, ...]:
    """The windows over an input of these sizes; ValueError where none fits.

    n_out = (n_in + front + behind - d (size - 1) - 1) // s + 1
    "same": n_out = ⌈n_in / s⌉, half the padding in front, the odd entry behind.  "valid": no padding.
    """
    found, wrong = [], []
    for axis, (n, k, s, d, pair) in enumerate(_axes(who, n_in, size, stride, padding, dilation), start=1):
        reach = d * (k - 1) + 1
        front, behind = _split(max((-(-n // s) - 1) * s + reach - n, 0)) if pair is None else pair
        n_out = (n + front + behind - reach) // s + 1
        if n_out < 1 or n < 1:
            wrong.append(f"a window spans {reach} entries, but axis {axis} has {n} and padding {front, behind}")
        found.append(Window(k, s, d, front, behind, n, n_out))
    if wrong:
        raise ValueError(f"{who}: {'; '.join(wrong)}; use a smaller window or dilation, a larger input or more padding")
    return tuple(found)


def windows_onto(
    who: str, n_out: Sequence[int], size: Sequence[int], stride: PerAxis, padding: Padding, dilation: PerAxis
) -> tuple[Window, ...]:
    """The other way round: the windows that have n_out places on the smallest input; ValueError if that is empty.

    n_in = s (n_out - 1) + d (size - 1) + 1 - front - behind;  "same": n_in = s n_out
    """
    found, wrong = [], []
    for axis, (n, k, s, d, pair) in enumerate(_axes(who, n_out, size, stride, padding, dilation), start=1):
        reach = d * (k - 1) + 1
        front, behind = _split(max(reach - s, 0)) if pair is None else pair
        n_in = s * n if pair is None else s * (n - 1) + reach - front - behind
        if n_in < 1 or n < 1:
            wrong.append(f"padding {front, behind} leaves {n_in} entries on axis {axis}, which has {n}")
        found.append(Window(k, s, d, front, behind, n_in, n))
    if wrong:
        raise ValueError(f"{who}: {'; '.join(wrong)}; use less padding or a larger input")
    return tuple(found)


def per_axis(who: str, name: str, value: PerAxis, n_axes: int) -> tuple[int, ...]:
    """One whole number per axis, each at least 1, otherwise a ValueError."""
    values = tuple(value) if isinstance(value, Iterable) else (value,) * n_axes
    if len(values) != n_axes:
        raise ValueError(f"{who}: {name} = {value} has {len(values)} entries, expected {n_axes}, one per axis")
    for one in values:
        whole(who, name, one, least=1)
    return values


def _axes(who, sizes, size, stride, padding, dilation):
    """(entries, size, stride, dilation, padding) of each axis; the padding is None for "same"."""
    n_axes = len(size)
    size = per_axis(who, "window", size, n_axes)
    if padding == "same":
        pairs = [None] * n_axes
    elif padding == "valid":
        pairs = [(0, 0)] * n_axes
    elif isinstance(padding, str):
        raise unknown_name("padding", padding, ("same", "valid"))
    else:
        pairs = _pairs(who, padding, n_axes)
    stride, dilation = per_axis(who, "stride", stride, n_axes), per_axis(who, "dilation", dilation, n_axes)
    return zip(sizes, size, stride, dilation, pairs, strict=True)


def _pairs(who, padding, n_axes):
    try:
        pairs = [(front, behind) for front, behind in padding]
    except (TypeError, ValueError):
        pairs = []
    if len(pairs) != n_axes:
        raise ValueError(
            f"{who}: padding = {padding}, expected 'same', 'valid' or {n_axes} pairs (in front, behind), one per axis"
        )
    for entries in itertools.chain(*pairs):
        whole(who, "padding", entries, least=0)
    return pairs


def _split(total):
    return total // 2, total - total // 2


def taps(x: jax.Array, windows: tuple[Window, ...], fill: float = 0.0) -> list[jax.Array]:
    """What each tap of the window sees, in row-major order: tap_k[b, o, c] = x[b, s·o + d·k - l, c].

    x (B, *n_in, C), each tap (B, *n_out, C); padding is filled with `fill`.
    """
    x = _pad(x, fill, [(w.front, w.behind) for w in windows])
    return [_slice(x, start, *_places(windows)) for start in _starts(windows)]


def fold_taps(f: Callable[..., Any], x: jax.Array, windows: tuple[Window, ...], fill: float, first: Callable) -> Any:
    """One tap after the other: carry = first(tap_0), then carry = f(carry, k, tap_k) for k = 1, 2, …

    Numerics: from 26 taps on, a loop. XLA would fuse a long chain into each of its consumers and compile it every time
    (100 taps: half a minute).
    """
    x = _pad(x, fill, [(w.front, w.behind) for w in windows])
    starts, (lengths, strides) = _starts(windows), _places(windows)
    carry = first(_slice(x, starts[0], lengths, strides))
    if len(starts) <= 25:
        for k, start in enumerate(starts[1:], start=1):
            carry = f(carry, k, _slice(x, start, lengths, strides))
        return carry

    def step(carry, tap):
        k, start = tap
        seen = lax.dynamic_slice(x, [0, *start, 0], [x.shape[0], *lengths, x.shape[-1]])
        return f(carry, k, _slice(seen, [0] * len(lengths), lengths, strides)), None

    return lax.scan(step, carry, (np.arange(1, len(starts)), np.array(starts[1:])))[0]


def _starts(windows):
    """The position of each tap when the window is at its first place, in padded entries."""
    return list(itertools.product(*(range(0, w.dilation * w.size, w.dilation) for w in windows)))


def _places(windows):
    """(entries from the first place of a tap to its last, entries from one place to the next)."""
    return [w.stride * (w.n_out - 1) + 1 for w in windows], [w.stride for w in windows]


def sum_taps(f: Callable[..., jax.Array], arrays: Sequence[jax.Array], windows: tuple[Window, ...]) -> jax.Array:
    """The transpose of `taps`: for each entry of the input, the sum over all taps that see it.

    sum[b, i, c] = Σ over the (o, k) with s·o + d·k - l = i of f(k, *(array[b, o, c] for each of the arrays))

    arrays (B, *n_out, C); the sum (B, *n_in, C). k is the tap's number in `taps`; f is elementwise, and 0 where all its
    arrays are.

    Numerics: the entries are grouped by their remainder r = (i + l) mod s. The taps with d·k mod s = r see them, each
    at o = (i + l) // s - d·k // s: a shift of the whole array. So everything is slices, products and sums, which XLA
    fuses into one loop; sums into strided places (`x.at[::s].add`, or padding in between) take several times longer.
    """
    rows = [-(-(w.front + w.n_in) // w.stride) for w in windows]  # entries of one remainder
    most = [w.dilation * (w.size - 1) // w.stride for w in windows]  # the largest shift
    around = [(m, n - w.n_out) for w, n, m in zip(windows, rows, most, strict=True)]
    arrays = [_pad(array, 0, around) for array in arrays]

    def of_remainder(remainder) -> Any:
        terms = []
        for k, offsets in enumerate(_starts(windows)):
            if all(offset % w.stride == r for offset, w, r in zip(offsets, windows, remainder, strict=True)):
                starts = [m - offset // w.stride for m, offset, w in zip(most, offsets, windows, strict=True)]
                terms.append(f(k, *(_slice(array, starts, rows, [1] * len(rows)) for array in arrays)))
        return functools.reduce(operator.add, terms) if terms else None

    parts = [of_remainder(r) for r in itertools.product(*(range(w.stride) for w in windows))]
    parts = [jnp.zeros_like(parts[0]) if part is None else part for part in parts]
    for axis, s in reversed(list(enumerate((w.stride for w in windows), start=1))):
        parts = [_interleave(parts[j : j + s], axis) for j in range(0, len(parts), s)]
    return _slice(parts[0], [w.front for w in windows], [w.n_in for w in windows], [1] * len(windows))


def _interleave(parts, axis):
    """[[a, b, …], [α, β, …]] -> [a, α, b, β, …]."""
    shape = list(parts[0].shape)
    shape[axis] *= len(parts)
    return reshaped(jnp.stack(parts, axis + 1), *shape) if len(parts) > 1 else parts[0]


def _pad(x, fill, around):
    return lax.pad(x, jnp.asarray(fill, x.dtype), [(0, 0, 0), *((a, b, 0) for a, b in around), (0, 0, 0)])


def _slice(x, starts, lengths, strides):
    ends = [start + length for start, length in zip(starts, lengths, strict=True)]
    return lax.slice(x, [0, *starts, 0], [x.shape[0], *ends, x.shape[-1]], [1, *strides, 1])
