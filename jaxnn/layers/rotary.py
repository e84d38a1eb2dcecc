"""Rotary positions: pairs of features are rotated by an angle that grows with the position.

Shapes: ... any leading axes, B batch, T positions, d features of a head (even).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxnn._checks import at_least_float32, cotangent, float_array, integers, remember


def cos_sin(positions: jax.Array, n: int, *, base: float = 10_000.0, dtype=jnp.float32) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of n angles for each position: the fastest turns by 1 radian per step, each following one slower.

    θ_ti = t ω_i,  ω_i = base^(-i/n),  i = 0 … n - 1

    positions (..., T) integers, which may be 0 or negative; both results (..., T, n) of dtype.
    Raises ValueError for positions that are not integers, and unless base >= 1.
    Numerics: t ω rounded to float32 is off by 6e-8 t, which is 6e-3 at t = 1e5. Here ω/2π, in turns per step, is split
    after 32 binary digits. t times the first part is a product of integers that wraps at 2³², that is, at whole turns,
    so nothing is lost; t times the rest is small. In float32 the results are off by less than 5e-7 up to
    |t| = 1e6 and by less than 8e-7 at any t; in float64 by 1e-16 t, the rounding of ω.

    >>> cos, sin = cos_sin(jnp.array([0, 100_000]), 1)
    >>> float(cos[1, 0]), math.cos(100_000)
    (-0.99936..., -0.99936...)
    """
    if not 1 <= base < math.inf:
        raise ValueError(f"cos_sin: base = {base}, expected a finite number that is 1 or greater")
    high, low = np.divmod(base ** -(np.arange(n) / n) / (2 * math.pi) * 2.0**32, 1)
    steps = integers("cos_sin", "positions", positions)[..., None]
    high, low = (part.reshape((1,) * (steps.ndim - 1) + (n,)) for part in (high, low))
    wrapped = jax.lax.bitcast_convert_type(steps, jnp.uint32) * high.astype(np.uint32)
    turns = jax.lax.bitcast_convert_type(wrapped, jnp.int32).astype(dtype)  # from -1/2 to 1/2 turn, in units of 2⁻³²
    turns = turns + steps.astype(dtype) * jnp.asarray(low, dtype)
    angle = turns * (2 * math.pi / 2**32)
    return jnp.cos(angle), jnp.sin(angle)


def rotary_forward(
    x: ArrayLike, *, offset: ArrayLike = 0, base: float = 10_000.0
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    """Rotate the features of each position, so that the product of a query and a key depends only on their distance.

    With x = [a, b] the two halves of the features, c_ti = cos θ_ti, s_ti = sin θ_ti and θ as in `cos_sin`, t counting
    from offset (a pair is feature i with feature i + d/2, not two neighbours: the order of GPT-NeoX and of LLaMA's
    published weights for transformers):

    y  = [a ⊙ c - b ⊙ s,  a ⊙ s + b ⊙ c]
    dx = [da ⊙ c + db ⊙ s,  db ⊙ c - da ⊙ s],  dy = [da, db]:  the rotation by -θ

    x and y (..., T, d); offset is the position of x's first row: an integer, or integers (B,), one for each example of
    an x (B, ..., T, d); known or traced. Cached: c and s, (T, d/2) or (B, T, d/2), and x's shape and dtype.
    Raises ValueError unless d is even and offset is integers of one of these shapes.
    Numerics: in at least float32, rounded once; for the angles see `cos_sin`.
    Source: Su et al. 2021 (arXiv:2104.09864).

    >>> y, _ = rotary_forward(jnp.ones((2, 2)))
    >>> y
    Array([[ 1.        , 1.        ],
           [-0.3011...,  1.3817...]], dtype=float32)
    """
    x = float_array("rotary", "x", x)
    if x.ndim < 2 or x.shape[-1] % 2:
        raise ValueError(f"rotary: x has shape {x.shape}, expected (..., T, d) with an even number d of features")
    offset = integers("rotary", "offset", offset)
    if offset.shape not in ((), x.shape[: x.ndim - 2][:1]):
        raise ValueError(
            f"rotary: offset has shape {offset.shape}, but x of shape {x.shape} takes one integer, or one for each "
            f"example of an x (B, ..., T, d)"
        )
    positions = offset[..., None] + jnp.arange(x.shape[-2], dtype=jnp.int32).reshape((1,) * offset.ndim + (-1,))
    cos, sin = cos_sin(positions, x.shape[-1] // 2, base=base, dtype=at_least_float32(x.dtype))
    return _turn(x, cos, sin), (cos, sin, remember(x))


def rotary_backward(cache, dy: jax.Array) -> jax.Array:
    """dx = [da ⊙ c + db ⊙ s,  db ⊙ c - da ⊙ s]: the rotation by -θ; dy = [da, db] has x's shape."""
    cos, sin, like = cache
    dy = cotangent("rotary_backward", "dy", dy, "x", like.shape[1:], cos.dtype)
    return _turn(dy, cos, -sin).astype(like.dtype)


def _turn(x, cos, sin):
    between = tuple(range(cos.ndim - 2, x.ndim - 2))
    cos, sin = (jnp.expand_dims(f, between) for f in (cos, sin))
    a, b = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)
