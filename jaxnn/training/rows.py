"""Examples on the device: gathered row by row, bytes four at a time, shuffled and padded to whole batches."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn._checks import positive


class Rows(NamedTuple):
    """The examples of a dataset on the device."""

    words: jax.Array  # (n, k): flattened; uint8 rows whose length is divisible by 4 as uint32, all others unchanged
    empty: jax.Array  # an empty array with the rows' own shape and dtype: (0, ...)


def on_device(x) -> Rows:
    """Put examples (n, ...) on the device. Gathering bytes as 32-bit words is three times as fast as one by one."""
    x = np.ascontiguousarray(x)
    words = x.reshape(len(x), math.prod(x.shape[1:]))
    if x.dtype == np.uint8 and words.shape[1] % 4 == 0:
        words = words.view(np.uint32)
    return Rows(jnp.asarray(words), jnp.asarray(x[:0]))


def gather(rows: Rows, indices: jax.Array) -> jax.Array:
    """The examples at these indices, (len(indices), ...). The indices must be in range."""
    words = rows.words.at[indices].get(mode="promise_in_bounds")
    if words.dtype != rows.empty.dtype:
        words = jax.lax.bitcast_convert_type(words, rows.empty.dtype)
    return words.reshape(len(indices), *rows.empty.shape[1:])


def batches(n: int, batch_size: int, order: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Indices (steps, batch_size) int32 of n examples in the given order, and their weights float32.

    Every example occurs once with weight 1. The last batch is filled with examples from the front, with weight 0.

    >>> batches(5, 3)[0].tolist(), batches(5, 3)[1].tolist()
    ([[0, 1, 2], [3, 4, 0]], [[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    """
    order = np.arange(n) if order is None else order
    steps = -(-n // batch_size)
    indices = np.resize(order, (steps, batch_size)).astype(np.int32)
    weights = (np.arange(steps * batch_size) < n).astype(np.float32).reshape(steps, batch_size)
    return indices, weights


def shuffled(key: jax.Array, n: int) -> np.ndarray:
    """A permutation of n, drawn on the host: NumPy takes a thirtieth of the time of jax.random.permutation on a CPU."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key))).permutation(n)


def as_they_are(x: jax.Array) -> jax.Array:
    """The default preparation: none. ValueError for integers, since a network calculates with floats."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x has dtype {x.dtype}; pass prepare=scale_pixels(255) for images of bytes, or convert x to float32"
        )
    return x


def scale_pixels(white: float) -> Callable[[jax.Array], jax.Array]:
    """A preparation of images: grey levels 0 … white become float32 0 … 1.

    >>> scale_pixels(16)(jnp.array([0, 8, 16], jnp.uint8))
    Array([0. , 0.5, 1. ], dtype=float32)
    """
    positive("scale_pixels", "white", white)
    return lambda x: x.astype(jnp.float32) * (1 / white)
