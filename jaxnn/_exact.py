"""Sums that lose nothing to rounding, and differences of logarithms that lose nothing to cancellation."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def exact_sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(s, e): s is a + b rounded, and s + e = a + b exactly (Knuth, The art of computer programming 2, 4.2.2).

    A constant has to be b, since XLA simplifies (constant + b) - constant to b.
    """
    s = a + b
    of_b = s - a
    return s, (a - (s - of_b)) + (b - of_b)


def exact_product(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(p, e): p is a b rounded, and p + e = a b exactly, where nothing overflows or vanishes (Dekker 1971)."""
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    p = a * b
    return p, ((a_high * b_high - p) + a_high * b_low + a_low * b_high) + a_low * b_low


def _halves(a):
    """a as a sum of two numbers with half of its digits each."""
    bits, unsigned = (12, jnp.uint32) if a.dtype == jnp.float32 else (27, jnp.uint64)
    pattern = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(a), unsigned)
    high = jax.lax.bitcast_convert_type(pattern >> bits << bits, a.dtype)
    return high, a - high


@jax.custom_jvp
def minus_log(x: jax.Array, y: jax.Array, z: jax.Array) -> jax.Array:
    """x - log(y / z) for y, z > 0, all three of one shape and dtype; z may be 1.

    y = 2^k m, m = c (1 + u) with c the nearest multiple of 1/512, 3/4 <= m < 3/2, and |u| < 1/700:
    log y = k log 2 + log c + u - u²/2 + u³/3 - …,  and likewise for z

    Numerics: log y as one float is off by half a unit in its last place, which can be all of a small difference. Here
    no logarithm is rounded: every term is one float or more, and the sums keep what rounding takes from them. In
    float32 the error is less than 1e-7 of the result plus 2e-14. In float64 it is the plain formula.
    """
    if x.dtype != jnp.float32:
        return x - (jnp.log(y) - jnp.log(z))
    y_terms, y_rest = _log_terms(y)
    z_terms, z_rest = _log_terms(z)
    rest = z_rest - y_rest
    for term in (*(-t for t in y_terms), *z_terms):
        x, lost = exact_sum(x, term)
        rest = rest + lost
    return x + rest


@minus_log.defjvp
def _minus_log_jvp(primals, tangents):
    (x, y, z), (dx, dy, dz) = primals, tangents
    return minus_log(x, y, z), dx - dy / y + dz / z


# log 2 = A + B + C; k A and k B are exact in float32 for every exponent k, since A has 10 binary digits and B has 12.
_A = 0.693359375
_B = -3560 / 2**24
_C = math.log(2) - _A - _B

_GRID = 512
_LOGS = np.log(np.arange(3 * _GRID // 4, 3 * _GRID // 2 + 1) / _GRID)
_HIGH = _LOGS.astype(np.float32)
_LOW = (_LOGS - _HIGH).astype(np.float32)


def _log_terms(y):
    """log y in float32: terms that sum to it, and the rest, which is small."""
    m, k = jnp.frexp(y)
    below = m < 0.75
    m, k = jnp.where(below, 2 * m, m), jnp.where(below, k - 1, k).astype(y.dtype)
    nearest = jnp.round(_GRID * m)
    c, index = nearest / _GRID, nearest.astype(jnp.int32) - 3 * _GRID // 4
    high, middle, low = _quotient(m - c, c)  # of u
    u = high + middle
    rest = k * _C + jnp.asarray(_LOW)[index] + (1 - u) * low - high * middle - middle * middle / 2
    rest = rest + u * u * u * (1 / 3 - u * (1 / 4 - u / 5))
    return (k * _A, k * _B, jnp.asarray(_HIGH)[index], high, middle, -high * high / 2), rest


def _quotient(a, c):
    """a / c as a sum of three: the first two have 10 digits, like c, so that their products with it are exact."""
    high = jnp.round(a / c * 2**19) / 2**19
    a = a - high * c
    middle = jnp.round(a / c * 2**29) / 2**29
    return high, middle, (a - middle * c) / c
