"""Blocks of an axis for a loop: all of one size, whatever the length of the axis."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def blocks_of(n: int, largest: int) -> tuple[int, int]:
    """(count, size) of the blocks that n entries make: as even as possible, of at most `largest` entries."""
    count = max(1, -(-n // largest))
    return count, -(-n // count)


def place(i, size: int, n: int) -> tuple[jax.Array, jax.Array]:
    """(start, stale) of block i: its first `stale` entries are its neighbour's. The last starts early, to be full."""
    i = jnp.asarray(i, jnp.int32)
    start = jnp.minimum(i * size, n - size)
    return start, i * size - start


def iota(size: int) -> jax.Array:
    """0 … size - 1 in int32."""
    return lax.iota(jnp.int32, size)


def block_at(a: jax.Array, start, size: int, axis: int = 0) -> jax.Array:
    """`size` entries from start on."""
    return lax.dynamic_slice_in_dim(a, start, size, axis)


def put_at(a: jax.Array, block: jax.Array, start, axis: int = 0) -> jax.Array:
    """a with the block in place of the entries from start on."""
    return lax.dynamic_update_slice_in_dim(a, block, start, axis)


def last_to_first(count: int, body: Callable[[Any, Any], Any], carry: Any) -> Any:
    """carry = body(i, carry) for i = count - 1, …, 0.

    In this order a block overwrites what the last one wrote in its place, so stale entries do no harm there.
    """
    return lax.fori_loop(0, count, lambda j, carry: body(count - 1 - j, carry), carry)
