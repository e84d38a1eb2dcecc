"""Mean and variance that lose nothing at any mean/std and any magnitude: the basis of every normalisation."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn._checks import at_least_float32
from jaxnn._exact import exact_sum
from jaxnn._parallel import beside, is_sharded, row


class Moments(NamedTuple):
    """What turns x into x̂ = (x - mean) / sqrt(variance + eps); every field has x's rank, with size 1 at the axes.

    The mean is (mean + rest) / scaling,  1 / sqrt(variance + eps) = scaling · rstd.
    """

    scaling: jax.Array  # 1, or a tiny power of two where a square would overflow
    mean: jax.Array  # of scaling · x, rounded
    rest: jax.Array  # what was lost in rounding it
    rstd: jax.Array  # 1 / sqrt(scaling² · (variance + eps))


def moments(
    x: jax.Array, axes: tuple[int, ...], eps: float, mask: jax.Array | None = None
) -> tuple[Moments, jax.Array]:
    """(Moments, variance) of x over the axes, in at least float32; the variance is the biased one, Σ (x - mean)² / n.

    A mask (n, 1), for a matrix x and axis 0, selects the rows where it is True: the contents of the others change
    nothing. If it is True nowhere, the mean is the first row and the variance 0.

    Numerics: E[x²] - E[x]² is wrong by (mean/std)² roundings, Σ (x - mean)² / n by mean/std of them, since one float
    cannot hold the mean any better. Two can: the differences from one of the entries are right to their last bits, and
    so is their mean; its sum with that entry is split into a float and what is lost in rounding to it. The mean square
    of x - float is then the variance plus the square of what was lost, which is the smaller of the two as long as x
    itself can tell its entries apart.
    """
    dtype = at_least_float32(x.dtype)

    def real(v):
        return v if mask is None else jnp.where(mask, v, 0)

    n = math.prod(x.shape[axis] for axis in axes) if mask is None else jnp.maximum(mask.sum(), 1).astype(dtype)
    if mask is not None:
        entry = row(x, jnp.argmax(mask))
    elif 0 in axes and is_sharded(x):
        entry = row(x, 0)[:, *(slice(0, 1 if axis in axes else None) for axis in range(1, x.ndim))]
    else:
        entry = x[tuple(slice(0, 1 if axis in axes else None) for axis in range(x.ndim))]

    def at(scaling):
        wide, first = x.astype(dtype) * scaling, entry.astype(dtype) * scaling
        mean, rest = exact_sum(first, real(wide - first).sum(axes, keepdims=True) / n)
        square = jnp.square(real(wide - mean)).sum(axes, keepdims=True) / n
        return mean, rest, jnp.maximum(square - jnp.square(rest), 0)

    scaling, (mean, rest, variance) = at_good_scaling(at, lambda: scaling_of(real(x.astype(dtype)), axes))
    rstd = reciprocal_root(variance, scaling, eps)
    # Not variance / scaling / scaling: XLA divides by the product, which underflows.
    return Moments(scaling, mean, rest, rstd), jnp.square(jnp.sqrt(variance) / scaling)


def centred(x: jax.Array, m: Moments) -> jax.Array:
    """scaling · (x - mean)."""
    return x.astype(m.mean.dtype) * m.scaling - m.mean - m.rest


def at_good_scaling(
    statistics: Callable[[jax.Array], tuple], scaling: Callable[[], jax.Array]
) -> tuple[jax.Array, Any]:
    """(scaling(), statistics(scaling())), or (1, statistics(1)) where the last statistic, a mean square, is small.

    On a CPU this skips the search for the largest |x|, a tenth of a norm's time, where squares do not overflow.
    Elsewhere the branch would cost more than the search: a GPU would have to wait for the CPU to take it.
    """

    def by_size():
        found = scaling()
        return found, statistics(found)

    def by_trial():
        like = jax.eval_shape(scaling)
        one = jnp.ones(like.shape, like.dtype)
        found = statistics(one)
        small = (found[-1] <= _bound(one.dtype) ** 2).all()
        return jax.lax.cond(small, lambda: (beside(one, found[-1]), found), by_size)

    return jax.lax.platform_dependent(cpu=by_trial, default=by_size)


def scaling_of(x: jax.Array, axes: tuple[int, ...], up: bool = False) -> jax.Array:
    """A power of two whose product with x has finite squares: 1, or 2^-80 (float32) where any |x| is above 2^48.

    With up it also keeps the squares from vanishing: 2^80 where all |x| are below 2^-48, but not all 0 (for constants,
    XLA turns (0 · 2^80)² into 0² · (2^80)² = 0 · inf).
    """
    bound, factor = _bound(x.dtype), 2.0 ** (jnp.finfo(x.dtype).maxexp * 5 // 8)
    largest = jnp.abs(x).max(axes, keepdims=True, initial=0)
    small = jnp.where((largest > 0) & (largest < 1 / bound), factor, 1) if up else 1
    return jnp.where(largest > bound, 1 / factor, small).astype(x.dtype)


def _bound(dtype) -> float:
    """2^48 (float32): the squares of numbers below it, and sums of those, do not overflow."""
    return 2.0 ** (jnp.finfo(dtype).maxexp * 3 // 8)


def reciprocal_root(variance: jax.Array, scaling: jax.Array, eps: float) -> jax.Array:
    """1 / sqrt(variance + scaling² · eps).

    Where scaling² · eps underflows, it is negligible beside the variance unless that is 0: hence the minimum.
    """
    return jnp.minimum(1 / jnp.sqrt(variance + scaling * scaling * eps), 1 / (scaling * math.sqrt(eps)))
