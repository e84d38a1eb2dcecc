"""Pooling: what a window sees, reduced to one number per channel.

Shapes: B batch, W or H and W the spatial axes ("*in", "*out"), C channels: x (B, *in, C), y (B, *out, C).
The window has one size per axis, (2,) for sequences and (2, 2) for images; stride and padding are as in `conv.py`,
except that the stride defaults to the window's size.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxnn._checks import at_least_float32, cotangent, float_array, remember, sizes
from jaxnn.layer import Layer, from_pair
from jaxnn.layers._windows import Padding, PerAxis, fold_taps, sum_taps, taps, windows_over

Stride = PerAxis | None  # None: the size of the window

# ---------------------------------------------------------------- the largest


def max_pool_forward(
    params: dict, x: ArrayLike, window: Sequence[int], *, stride: Stride = None, padding: Padding = "valid"
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The largest number that the window sees.

    y[b, o]  = max_k x̃[b, s·o + k - front]                                    x̃ = x, and -inf on padding
    dx[b, i] = Σ dy[b, o]  over the o whose largest is x[b, i]

    Ties: the first in the window, row by row, counts as the largest and gets all of the gradient.
    params {}; x (B, *in, C), y (B, *out, C). Cached: which tap of the window it was, in one byte (windows of up to 256
    taps), and x's shape and dtype; not x.
    Raises ValueError for integers, and where the window does not fit on x or sees nothing but padding.
    Numerics: a NaN in the window counts as its largest, and the first NaN gets the gradient. If all entries are -inf,
    the first tap gets it, and if that is padding, it is lost. Several dy for one x are added in at least float32. The
    program is written out tap by tap, so it grows with the window.

    >>> y, cache = max_pool_forward({}, jnp.array([1.0, 3.0, 2.0, 2.0]).reshape(1, 4, 1), (2,))
    >>> y.ravel()
    Array([3., 2.], dtype=float32)
    >>> max_pool_backward({}, cache, y, (2,))[1].ravel()
    Array([0., 3., 2., 0.], dtype=float32)
    """
    x = float_array("max_pool", "x", x)
    windows = _windows("max_pool", x.shape, window, stride, padding)
    number = jnp.uint8 if math.prod(window) <= 256 else jnp.int32

    def first(tap):
        return tap, jnp.zeros(tap.shape, number)

    def larger_of(found, k, tap):
        largest, which = found
        larger = ~((tap <= largest) | jnp.isnan(largest))  # true for the first NaN
        return jnp.where(larger, tap, largest), jnp.where(larger, jnp.asarray(k, number), which)

    largest, which = fold_taps(larger_of, x, windows, -jnp.inf, first)
    return largest, (which, remember(x))


def max_pool_backward(
    params: dict, cache, dy: jax.Array, window: Sequence[int], *, stride: Stride = None, padding: Padding = "valid"
) -> tuple[dict[str, jax.Array], jax.Array]:
    """dx[b, i] = Σ dy[b, o]  over the o whose largest is x[b, i]."""
    which, like = cache
    dy = cotangent("max_pool_backward", "dy", dy, "the layer's output", which.shape)
    windows = _windows("max_pool", like.shape[1:], window, stride, padding)

    def from_tap(k, which, dy):
        return jnp.where(which == k, dy, 0).astype(at_least_float32(like.dtype))

    return {}, sum_taps(from_tap, [which, dy], windows).astype(like.dtype)


def max_pool(window: Sequence[int], *, stride: Stride = None, padding: Padding = "valid") -> Layer:
    """The largest number of each window; see `max_pool_forward`. The stride is the window's size if not given."""
    return _layer("max_pool", max_pool_forward, max_pool_backward, window, stride, padding)


# ---------------------------------------------------------------- the mean


def avg_pool_forward(
    params: dict, x: ArrayLike, window: Sequence[int], *, stride: Stride = None, padding: Padding = "valid"
) -> tuple[jax.Array, jax.Array]:
    """The mean of what the window sees of x; padding is not counted.

    y[b, o]  = Σ_k x̃[b, s·o + k - front] / n[o]                               x̃ = x, and 0 on padding
    dx[b, i] = Σ dy[b, o] / n[o]  over the o whose window covers i

    n[o] = how many taps of the window are on x, all of them if there is no padding.
    params {}; x (B, *in, C), y (B, *out, C). Cached: x's shape and dtype.
    Raises ValueError for integers, and where the window does not fit on x or sees nothing but padding.
    Numerics: sums in at least float32, rounded once. The program is written out tap by tap, so it grows with the
    window: use `global_avg_pool` for the mean of everything.

    >>> y, _ = avg_pool_forward({}, jnp.array([1.0, 3.0, 5.0]).reshape(1, 3, 1), (2,), padding="same")
    >>> y.ravel()
    Array([2., 5.], dtype=float32)
    """
    x = float_array("avg_pool", "x", x)
    windows = _windows("avg_pool", x.shape, window, stride, padding)
    wide = at_least_float32(x.dtype)
    total = functools.reduce(jnp.add, (tap.astype(wide) for tap in taps(x, windows)))
    return (total / _counts(windows, wide)).astype(x.dtype), remember(x)


def avg_pool_backward(
    params: dict,
    like: jax.Array,
    dy: jax.Array,
    window: Sequence[int],
    *,
    stride: Stride = None,
    padding: Padding = "valid",
) -> tuple[dict[str, jax.Array], jax.Array]:
    """dx[b, i] = Σ dy[b, o] / n[o]  over the o whose window covers i."""
    shape, wide = like.shape[1:], at_least_float32(like.dtype)
    windows = _windows("avg_pool", shape, window, stride, padding)
    out_shape = (shape[0], *(w.n_out for w in windows), shape[-1])
    share = cotangent("avg_pool_backward", "dy", dy, "the layer's output", out_shape, wide) / _counts(windows, wide)
    return {}, sum_taps(lambda k, share: share, [share], windows).astype(like.dtype)


def avg_pool(window: Sequence[int], *, stride: Stride = None, padding: Padding = "valid") -> Layer:
    """The mean of each window; see `avg_pool_forward`. The stride is the window's size if not given."""
    return _layer("avg_pool", avg_pool_forward, avg_pool_backward, window, stride, padding)


def global_avg_pool_forward(params: dict, x: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """The mean over all spatial axes.

    y = Σ_i x[:, i] / n,  dx[:, i] = dy / n                                   n = Π in

    params {}; x (B, *in, C) with at least one spatial axis, y (B, C). Cached: x's shape and dtype.
    Raises ValueError for integers, for a lower rank and for n = 0.
    Numerics: summed in at least float32, rounded once.
    """
    x = float_array("global_avg_pool", "x", x)
    if x.ndim < 3 or 0 in x.shape[1:-1]:
        raise ValueError(f"global_avg_pool: x has shape {x.shape}, expected (batch, at least one axis of 1+, channels)")
    space = tuple(range(1, x.ndim - 1))
    return (x.astype(at_least_float32(x.dtype)).sum(space) / math.prod(x.shape[1:-1])).astype(x.dtype), remember(x)


def global_avg_pool_backward(params: dict, like: jax.Array, dy: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
    """dx[:, i] = dy / n."""
    shape = like.shape[1:]
    dy = cotangent("global_avg_pool_backward", "dy", dy, "the layer's output", (shape[0], shape[-1]), like.dtype)
    share = jnp.expand_dims(dy / math.prod(shape[1:-1]), tuple(range(1, len(shape) - 1)))
    return {}, jnp.broadcast_to(share, shape)


def global_avg_pool() -> Layer:
    """The mean over all spatial axes; see `global_avg_pool_forward`."""

    def init(key, in_shape):
        in_shape = sizes("global_avg_pool", in_shape, least_rank=3)
        return (in_shape[0], in_shape[-1]), {}

    return from_pair(global_avg_pool_forward, global_avg_pool_backward, init, name="global_avg_pool")


# ---------------------------------------------------------------- shared by all


def _layer(who, forward, backward, window, stride, padding):
    arguments = {"window": window, "stride": stride, "padding": padding}

    def init(key, in_shape):
        windows = _windows(who, in_shape, window, stride, padding)
        return (in_shape[0], *(w.n_out for w in windows), in_shape[-1]), {}

    return from_pair(functools.partial(forward, **arguments), functools.partial(backward, **arguments), init, name=who)


def _windows(who, shape, window, stride, padding):
    """The windows over x; each sees at least one entry of it."""
    if not isinstance(window, Sequence) or len(shape) != len(window) + 2:
        raise ValueError(
            f"{who}: window = {window} and x has shape {shape}; expected one size for each axis between batch and "
            f"channels, such as (2,) for a sequence or (2, 2) for an image"
        )
    windows = windows_over(who, shape[1:-1], window, window if stride is None else stride, padding)
    for axis, w in enumerate(windows, start=1):
        blind = np.flatnonzero(_counts_along(w) == 0)
        if len(blind):
            raise ValueError(
                f"{who}: with padding {padding} a window of {window} sees nothing but padding, at place {blind[0]} of "
                f"{w.n_out} on axis {axis} of x {tuple(shape)}; use less padding"
            )
    return windows


def _counts(windows, dtype):
    """How many taps of each window are on the input, (1, *n_out, 1)."""
    counts = functools.reduce(np.multiply.outer, map(_counts_along, windows))
    return jnp.asarray(counts, dtype)[None, ..., None]


def _counts_along(w):
    """(n_out,) how many taps are on the input, 0 where the window lies entirely outside it."""
    place = w.stride * np.arange(w.n_out)[:, None] + w.dilation * np.arange(w.size) - w.front
    return ((place >= 0) & (place < w.n_in)).sum(1)
