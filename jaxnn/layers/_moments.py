"""Mean and variance that lose nothing at any mean/std and any size: what every normalisation rests on."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Moments(NamedTuple):
    """What turns x into x̂ = (x - mean) / sqrt(variance + eps); every field has x's rank, with size 1 at the axes.

    mean = (first + rest) / scaling,  1 / sqrt(variance + eps) = scaling · rstd
    """

    scaling: jax.Array  # 1, or a tiny power of two where a square would overflow
    first: jax.Array  # one entry of scaling · x
    rest: jax.Array  # the mean of scaling · x - first
    rstd: jax.Array  # 1 / sqrt(scaling² · (variance + eps))


def moments(
    x: jax.Array, axes: tuple[int, ...], eps: float, mask: jax.Array | None = None
) -> tuple[Moments, jax.Array]:
    """(Moments, variance) of x over the axes; the variance is the biased one, Σ (x - mean)² / n.

    A mask (n, 1), for a matrix x and axis 0, takes the rows where it is True: whatever stands in the others changes
    nothing. If it is True nowhere, the mean is the first row and the variance 0.

    Numerics: E[x²] - E[x]² is wrong by (mean/std)² roundings, Σ (x - mean)² / n by mean/std of them, since one float
    holds the mean no better. Two do: x - first is right to its last bit, and so is what is left of it after its mean.
    """

    def real(v):
        return v if mask is None else jnp.where(mask, v, 0)

    n = math.prod(x.shape[axis] for axis in axes) if mask is None else jnp.maximum(mask.sum(), 1).astype(x.dtype)
    scaling = scaling_of(real(x), axes)
    if mask is None:
        first = x[tuple(slice(0, 1 if axis in axes else None) for axis in range(x.ndim))] * scaling
    else:
        first = jax.lax.dynamic_index_in_dim(x, jnp.argmax(mask)) * scaling
    rest = real(x * scaling - first).sum(axes, keepdims=True) / n
    variance = jnp.square(real(x * scaling - first - rest)).sum(axes, keepdims=True) / n
    rstd = reciprocal_root(variance, scaling, eps)
    # Not variance / scaling / scaling: XLA divides by the product, which underflows.
    return Moments(scaling, first, rest, rstd), jnp.square(jnp.sqrt(variance) / scaling)


def centred(x: jax.Array, m: Moments) -> jax.Array:
    """scaling · (x - mean)."""
    return x * m.scaling - m.first - m.rest


def scaling_of(x: jax.Array, axes: tuple[int, ...], up: bool = False) -> jax.Array:
    """A power of two whose product with x has finite squares: 1, or 2^-80 (float32) where an |x| is above 2^48.

    With up it keeps the squares from vanishing too: 2^80 where all |x| are below 2^-48, but not all 0 (of constants
    XLA makes (0 · 2^80)² = 0² · (2^80)² = 0 · inf).
    """
    bits = jnp.finfo(x.dtype).maxexp
    bound, factor = 2.0 ** (bits * 3 // 8), 2.0 ** (bits * 5 // 8)
    largest = jnp.abs(x).max(axes, keepdims=True, initial=0)
    small = jnp.where((largest > 0) & (largest < 1 / bound), factor, 1) if up else 1
    return jnp.where(largest > bound, 1 / factor, small).astype(x.dtype)


def reciprocal_root(variance: jax.Array, scaling: jax.Array, eps: float) -> jax.Array:
    """1 / sqrt(variance + scaling² · eps).

    Where scaling² · eps underflows, it is nothing beside the variance, unless that is 0: hence the minimum.
    """
    return jnp.minimum(1 / jnp.sqrt(variance + scaling * scaling * eps), 1 / (scaling * math.sqrt(eps)))
