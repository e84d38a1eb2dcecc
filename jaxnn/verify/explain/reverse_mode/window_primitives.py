"""Convolution, pooling and gather in NumPy, forward and backward: loops over the offsets in a window."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np


def contract(a: np.ndarray, a_axes: Sequence, b: np.ndarray, b_axes: Sequence, out_axes: Sequence) -> np.ndarray:
    """Multiply and sum: the axes of a, of b and of the result have names; what the result lacks is summed."""
    shared = [x for x in a_axes if x in b_axes]
    batch = [x for x in shared if x in out_axes]
    summed = [x for x in shared if x not in out_axes]
    left = [x for x in a_axes if x not in shared]
    right = [x for x in b_axes if x not in shared]
    size = dict(zip((*a_axes, *b_axes), (*a.shape, *b.shape), strict=True))
    count = [math.prod(size[x] for x in axes) for axes in (batch, left, summed, right)]
    lhs = a.transpose([a_axes.index(x) for x in (*batch, *left, *summed)]).reshape(count[0], count[1], count[2])
    rhs = b.transpose([b_axes.index(x) for x in (*batch, *summed, *right)]).reshape(count[0], count[2], count[3])
    now = [*batch, *left, *right]
    return (lhs @ rhs).reshape([size[x] for x in now]).transpose([now.index(x) for x in out_axes])


# ---------------------------------------------------------------- padding


def padding(shape: Sequence[int], config: Sequence) -> tuple[tuple, tuple]:
    """Where x's entries go in pad(x), and which of them do: negative padding crops. config: (low, high, between)."""
    outside, inside = [], []
    for n, (low, high, between) in zip(shape, config, strict=True):
        step, total = between + 1, low + high + n + max(n - 1, 0) * between
        first = max(0, math.ceil(-low / step))
        end = max(first, min(n, (total - 1 - low) // step + 1))
        inside.append(slice(first, end))
        outside.append(slice(low + first * step, low + (end - 1) * step + 1 if end > first else 0, step))
    return tuple(outside), tuple(inside)


def pad(x: np.ndarray, config: Sequence, value: Any = 0.0) -> np.ndarray:
    """x with `value` before, after and between its entries."""
    shape = [low + high + n + max(n - 1, 0) * between for n, (low, high, between) in zip(x.shape, config, strict=True)]
    out = np.full(shape, value, np.result_type(x, value))
    outside, inside = padding(x.shape, config)
    out[outside] = x[inside]
    return out


def unpad(dy: np.ndarray, config: Sequence, shape: Sequence[int]) -> np.ndarray:
    """The gradient of pad in x."""
    outside, inside = padding(shape, config)
    dx = np.zeros(shape)
    dx[inside] = dy[outside]
    return dx


# ---------------------------------------------------------------- windows


def _windows(shape, config, lengths, strides, dilations) -> list[tuple[tuple, tuple]]:
    """Each offset inside a window over the last axes of pad(x), and the slices that take its entry of every window."""
    skip = len(shape) - len(lengths)
    padded = [lo + hi + n + max(n - 1, 0) * d for n, (lo, hi, d) in zip(shape[skip:], config[skip:], strict=True)]
    axes = list(zip(padded, lengths, strides, dilations, strict=True))
    counts = [max(0, (total - (n - 1) * dilation - 1) // stride + 1) for total, n, stride, dilation in axes]

    def taken(first, count, stride):
        return slice(first, first + (count - 1) * stride + 1 if count else first, stride)

    return [
        (offset, tuple(taken(i * d, m, s) for i, (_, _, s, d), m in zip(offset, axes, counts, strict=True)))
        for offset in itertools.product(*map(range, lengths))
    ]


class Convolution:
    """conv_general_dilated: y[t] = Σ_k x[t * stride + k * dilation] w[k], over all channels of a group."""

    def __init__(self, p: dict, x_shape: Sequence[int], w_shape: Sequence[int]):
        numbers = p["dimension_numbers"]
        self.x_axes, self.w_axes, self.y_axes = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
        self.groups = p["feature_group_count"]
        between = [d - 1 for d in p["lhs_dilation"]]
        self.config = [(0, 0, 0)] * 2 + [(*ends, d) for ends, d in zip(p["padding"], between, strict=True)]
        self.x_shape = [x_shape[a] for a in self.x_axes]
        self.w_shape = [w_shape[a] for a in self.w_axes]
        self.offsets = _windows(self.x_shape, self.config, self.w_shape[2:], p["window_strides"], p["rhs_dilation"])
        self.spatial = list(range(4, 2 + len(x_shape)))

    def _x(self, x):
        x = pad(x.transpose(self.x_axes), self.config)
        return x.reshape(x.shape[0], self.groups, -1, *x.shape[2:])

    def _w(self, w):
        w = w.transpose(self.w_axes)
        return w.reshape(self.groups, -1, *w.shape[1:])

    def _y(self, dy):
        dy = dy.transpose(self.y_axes)
        return dy.reshape(dy.shape[0], self.groups, -1, *dy.shape[2:])

    def forward(self, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        """y."""
        x, w = self._x(x), self._w(w)
        sums = [
            contract(x[..., *at], [0, 1, 2, *self.spatial], w[..., *k], [1, 3, 2], [0, 1, 3, *self.spatial])
            for k, at in self.offsets
        ]
        y = np.sum(sums, 0)
        return y.reshape(y.shape[0], -1, *y.shape[3:]).transpose(np.argsort(self.y_axes))

    def of_x(self, dy: np.ndarray, w: np.ndarray) -> np.ndarray:
        """dx[t * stride + k * dilation] += dy[t] w[k]."""
        dy, w = self._y(dy), self._w(w)
        _, _, *spatial = pad(np.zeros([0, 0, *self.x_shape[2:]]), self.config).shape
        dx = np.zeros([self.x_shape[0], self.groups, w.shape[2], *spatial])
        for k, at in self.offsets:
            dx[..., *at] += contract(dy, [0, 1, 3, *self.spatial], w[..., *k], [1, 3, 2], [0, 1, 2, *self.spatial])
        dx = dx.reshape(dx.shape[0], -1, *spatial)
        return unpad(dx, self.config, self.x_shape).transpose(np.argsort(self.x_axes))

    def of_w(self, dy: np.ndarray, x: np.ndarray) -> np.ndarray:
        """dw[k] = Σ_t dy[t] x[t * stride + k * dilation]."""
        dy, x = self._y(dy), self._x(x)
        dw = np.zeros([self.groups, self.w_shape[0] // self.groups, *self.w_shape[1:]])
        for k, at in self.offsets:
            dw[..., *k] = contract(dy, [0, 1, 3, *self.spatial], x[..., *at], [0, 1, 2, *self.spatial], [1, 3, 2])
        return dw.reshape(self.w_shape).transpose(np.argsort(self.w_axes))


class Pooling:
    """reduce_window: the maximum, minimum or sum over each window."""

    def __init__(self, p: dict, x_shape: Sequence[int]):
        between = [d - 1 for d in p["base_dilation"]]
        self.config = [(*ends, d) for ends, d in zip(p["padding"], between, strict=True)]
        self.x_shape = tuple(x_shape)
        lengths, strides, dilations = p["window_dimensions"], p["window_strides"], p["window_dilation"]
        self.offsets = [at for _, at in _windows(x_shape, self.config, lengths, strides, dilations)]

    def forward(self, x: np.ndarray, combine: Callable, start: float) -> np.ndarray:
        """combine(...) over each window; `start` is what the padding holds."""
        x = pad(x, self.config, start)
        y = x[self.offsets[0]]
        for at in self.offsets[1:]:
            y = combine(y, x[at])
        return y

    def of_sum(self, dy: np.ndarray) -> np.ndarray:
        """Every entry of a window gets its dy."""
        return self._spread(lambda i, x: dy, np.zeros(self.x_shape))

    def of_extreme(self, dy: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The first entry of a window that equals y gets its dy."""
        taken = np.zeros(y.shape, bool)

        def share(i, entry):
            nonlocal taken
            here = (entry == y) & ~taken
            taken = taken | here
            return dy * here

        return self._spread(share, x)

    def of_ties(self, dy: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Every entry of a window that equals y gets its dy."""
        return self._spread(lambda i, entry: dy * (entry == y), x)

    def of_corner(self, dy: np.ndarray) -> np.ndarray:
        """The first entry of a window gets its dy."""
        return self._spread(lambda i, x: dy * (i == 0), np.zeros(self.x_shape))

    def _spread(self, share, x):
        x = pad(x, self.config, math.nan)
        dx = np.zeros(x.shape)
        for i, at in enumerate(self.offsets):
            dx[at] += share(i, x[at])
        return unpad(dx, self.config, self.x_shape)


# ---------------------------------------------------------------- gather


def gather_positions(p: dict, shape: Sequence[int], indices: np.ndarray) -> np.ndarray:
    """For each entry of gather's output, the flat position in the operand that it is copied from, -1 for none."""
    numbers, sizes = p["dimension_numbers"], p["slice_sizes"]
    batch = indices.shape[:-1]
    start = np.zeros((*batch, len(shape)), np.int64)
    for i, axis in enumerate(numbers.start_index_map):
        start[..., axis] = indices[..., i]
    grid = np.indices(batch)
    for axis, i in zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True):
        start[..., axis] = grid[i]
    last = np.asarray(shape) - np.asarray(sizes)
    inside = np.all((start >= 0) & (start <= last), axis=-1, keepdims=True)
    start = np.clip(start, 0, last)
    dropped = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    window = [n for axis, n in enumerate(sizes) if axis not in dropped]
    strides = np.cumprod([1, *shape[:0:-1]])[::-1]
    offsets = np.indices(sizes).reshape(len(sizes), -1).T @ strides
    flat = (start @ strides)[..., None] + offsets
    if "FILL" in str(p["mode"]).upper():
        flat = np.where(inside, flat, -1)
    flat = flat.reshape(*batch, *window)
    rank = len(batch) + len(window)
    batch_axes = [axis for axis in range(rank) if axis not in numbers.offset_dims]
    return flat.transpose(np.argsort([*batch_axes, *numbers.offset_dims]))


def slice_positions(shape: Sequence[int], starts: Sequence[int], sizes: Sequence[int]) -> np.ndarray:
    """The same for dynamic_slice."""
    begin = [int(np.clip(i, 0, n - size)) for i, n, size in zip(starts, shape, sizes, strict=True)]
    numbered = np.arange(math.prod(shape)).reshape(shape)
    return numbered[tuple(slice(i, i + size) for i, size in zip(begin, sizes, strict=True))]


def copy_from(x: np.ndarray, positions: np.ndarray, fill: Any) -> np.ndarray:
    """x's entries at flat positions, `fill` where the position is -1."""
    if not x.size:
        return np.full(positions.shape, fill, x.dtype)
    return np.where(positions >= 0, x.reshape(-1)[np.maximum(positions, 0)], np.asarray(fill).astype(x.dtype))


def add_back(positions: np.ndarray, dy: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The gradient of copy_from: dy added up where it came from."""
    there = positions >= 0
    return np.bincount(positions[there], dy[there], math.prod(shape)).reshape(shape)


def scatter_positions(p: dict, shape: Sequence[int], indices: np.ndarray, updates: Sequence[int]) -> np.ndarray:
    """For each entry of scatter's updates (a shape) the flat position in the operand where it goes, -1 for nowhere."""
    numbers = p["dimension_numbers"]
    dropped = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    sizes = iter(updates[axis] for axis in numbers.update_window_dims)
    as_gather = _Numbers(
        numbers.update_window_dims,
        numbers.inserted_window_dims,
        numbers.scatter_dims_to_operand_dims,
        numbers.operand_batching_dims,
        numbers.scatter_indices_batching_dims,
    )
    lengths = [1 if axis in dropped else next(sizes) for axis in range(len(shape))]
    return gather_positions(p | {"dimension_numbers": as_gather, "slice_sizes": lengths}, shape, indices)


class _Numbers(NamedTuple):
    offset_dims: tuple[int, ...]
    collapsed_slice_dims: tuple[int, ...]
    start_index_map: tuple[int, ...]
    operand_batching_dims: tuple[int, ...]
    start_indices_batching_dims: tuple[int, ...]
