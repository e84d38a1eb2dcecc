"""Initializers: the first parameters, drawn from a key.

An initializer is a function (key, shape, dtype=None) -> array of that shape; dtype None is JAX's default, float32
(float64 in float64 mode). The same key draws the same numbers. bfloat16 and float16 are drawn in float32 and rounded.

The formulas give the STANDARD DEVIATION of the draw. Texts that write N(0, √(2/n_in)) read as though it were the
variance: taken that way it is far too large, and twenty relu layers of width 256 blow the activations up to 3e10.
A uniform draw from (-a, a) has standard deviation a/√3. n_in and n_out are the `fans` of the shape.

ValueError for a dtype that is not floating-point.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp

from jaxnn._checks import at_least_float32, positive, unknown_name


class Initializer(Protocol):
    """(key, shape, dtype=None) -> array of that shape and dtype."""

    def __call__(self, key: jax.Array, shape: Sequence[int], dtype=None) -> jax.Array: ...


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """(n_in, n_out): how many inputs each output sums over, and how many outputs each input reaches.

    (n,)                        -> (n, 1)                               one neuron
    (n_in, n_out)               -> (n_in, n_out)                        dense
    (*window, c_in, c_out)      -> (Π window · c_in, Π window · c_out)  convolution

    Raises ValueError for rank 0 and for a dimension of 0.

    >>> fans((784, 128)), fans((3, 3, 16, 32))
    ((784, 128), (144, 288))
    """
    shape = tuple(shape)
    if not shape:
        raise ValueError("fans: a scalar (shape ()) has no fans; draw it with zeros, ones, constant, normal or uniform")
    if min(shape) < 1:
        raise ValueError(f"fans: shape {shape} has a dimension below 1, so there is nothing to draw; check the sizes")
    if len(shape) == 1:
        return shape[0], 1
    window = math.prod(shape[:-2])
    return window * shape[-2], window * shape[-1]


# ---------------------------------------------------------------- independent of the fans


def zeros(key: jax.Array, shape: Sequence[int], dtype=None) -> jax.Array:
    """0 everywhere, as is usual for biases. The key is not used."""
    return constant(key, shape, dtype, value=0.0)


def ones(key: jax.Array, shape: Sequence[int], dtype=None) -> jax.Array:
    """1 everywhere, as is usual for scales. The key is not used."""
    return constant(key, shape, dtype, value=1.0)


def constant(key: jax.Array, shape: Sequence[int], dtype=None, *, value: float) -> jax.Array:
    """`value` everywhere. The key is not used.

    As an initializer: functools.partial(constant, value=0.1).
    """
    return jnp.full(shape, value, _float_dtype("constant", dtype))


def normal(key: jax.Array, shape: Sequence[int], dtype=None, stddev: float = 0.01) -> jax.Array:
    """Normal with mean 0.

    std = stddev

    Raises ValueError unless stddev > 0.
    """
    positive("normal", "stddev", stddev)
    return _draw("normal", dtype, lambda wide: stddev * jax.random.normal(key, shape, wide))


def uniform(
    key: jax.Array, shape: Sequence[int], dtype=None, low: float = -0.01, high: float = 0.01
) -> jax.Array:
    """Uniform in [low, high).

    mean = (low + high)/2,  std = (high - low)/√12

    Raises ValueError unless low < high.
    """
    if not low < high:
        raise ValueError(f"uniform: low = {low} and high = {high}, expected low < high")
    return _draw("uniform", dtype, lambda wide: jax.random.uniform(key, shape, wide, low, high))


def truncated_normal(key: jax.Array, shape: Sequence[int], dtype=None, stddev: float = 0.01) -> jax.Array:
    """A normal draw without its tails: cut at 2 of its standard deviations, then widened to have std = stddev.

    std = stddev,  |w| <= 2 stddev / 0.8796…

    Cutting multiplies the standard deviation by √(1 - 4 φ(2) / (2 Φ(2) - 1)) = 0.8796…, where φ and Φ are the normal
    density and distribution function.

    Raises ValueError unless stddev > 0.
    """
    positive("truncated_normal", "stddev", stddev)
    left = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2)))
    return _draw(
        "truncated_normal", dtype, lambda wide: stddev / left * jax.random.truncated_normal(key, -2, 2, shape, wide)
    )


# ---------------------------------------------------------------- scaled to the fans


def xavier_normal(key: jax.Array, shape: Sequence[int], dtype=None) -> jax.Array:
    """For tanh and similar: preserves a linear layer's variance forward and backward, as far as both are possible.

    std = √(2 / (n_in + n_out))

    Source: Glorot, Bengio 2010, Understanding the difficulty of training deep feedforward neural networks.
    """
    n_in, n_out = fans(shape)
    return normal(key, shape, dtype, math.sqrt(2 / (n_in + n_out)))


def xavier_uniform(key: jax.Array, shape: Sequence[int], dtype=None) -> jax.Array:
    """`xavier_normal`, uniform: in (-a, a).

    a = √(6 / (n_in + n_out)),  std = √(2 / (n_in + n_out))
    """
    n_in, n_out = fans(shape)
    return _symmetric(key, shape, dtype, math.sqrt(6 / (n_in + n_out)))


def he_normal(key: jax.Array, shape: Sequence[int], dtype=None) -> jax.Array:
    """For relu, which halves the mean square of its input: preserves the variance in the forward pass.

    std = √(2 / n_in)

    Source: He, Zhang, Ren, Sun 2015, Delving deep into rectifiers (arXiv:1502.01852).
    """
    return normal(key, shape, dtype, math.sqrt(2 / fans(shape)[0]))


def he_uniform(key: jax.Array, shape: Sequence[int], dtype=None) -> jax.Array:
    """`he_normal`, uniform: in (-a, a).

    a = √(6 / n_in),  std = √(2 / n_in)
    """
    return _symmetric(key, shape, dtype, math.sqrt(6 / fans(shape)[0]))


def lecun_normal(key: jax.Array, shape: Sequence[int], dtype=None) -> jax.Array:
    """For linear layers and selu: preserves the variance in the forward pass.

    std = √(1 / n_in)

    Source: LeCun, Bottou, Orr, Müller 1998, Efficient BackProp; Klambauer et al. 2017 for selu (arXiv:1706.02515).
    """
    return normal(key, shape, dtype, math.sqrt(1 / fans(shape)[0]))


def lecun_uniform(key: jax.Array, shape: Sequence[int], dtype=None) -> jax.Array:
    """`lecun_normal`, uniform: in (-a, a).

    a = √(3 / n_in),  std = √(1 / n_in)
    """
    return _symmetric(key, shape, dtype, math.sqrt(3 / fans(shape)[0]))


def orthogonal(key: jax.Array, shape: Sequence[int], dtype=None, gain: float = 1.0) -> jax.Array:
    """An orthogonal matrix times gain, uniform over all of them (Haar): preserves lengths, not just on average.

    W = gain Q with A = Q R, A normal, diag R > 0
    WᵀW = gain² I if there are at least as many rows as columns, W Wᵀ = gain² I otherwise

    A kernel (*window, c_in, c_out) is the matrix (Π window · c_in, c_out). √2 is He's gain for relu.

    Raises ValueError for rank 0, for a dimension that is 0, and unless gain > 0.
    Numerics: without fixing the sign of R's diagonal, Q would depend on how the QR algorithm chose it.
    Source: Saxe, McClelland, Ganguli 2013 (arXiv:1312.6120); Mezzadri 2006 for the sign (arXiv:math-ph/0609050).
    """
    positive("orthogonal", "gain", gain)
    fans(shape)
    rows, columns = math.prod(shape[:-1]), shape[-1]

    def sample(wide):
        a = jax.random.normal(key, (max(rows, columns), min(rows, columns)), wide)
        q, r = jnp.linalg.qr(a)
        q = q * jnp.where(jnp.diagonal(r) < 0, -1, 1)[None, :].astype(wide)
        return gain * (q if rows >= columns else q.T).reshape(shape)

    return _draw("orthogonal", dtype, sample)


def _symmetric(key, shape, dtype, limit):
    return uniform(key, shape, dtype, -limit, limit)


def _draw(who, dtype, sample):
    """sample(dtype) in at least float32, rounded to dtype."""
    dtype = _float_dtype(who, dtype)
    return sample(at_least_float32(dtype)).astype(dtype)


def _float_dtype(who, dtype):
    dtype = jnp.result_type(float if dtype is None else dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{who}: dtype = {dtype}, expected a floating-point dtype such as jnp.float32")
    return dtype


# ---------------------------------------------------------------- by name

# All but `constant`, which needs a value: pass functools.partial(constant, value=…) instead of a name.
INITIALIZERS: dict[str, Initializer] = {
    "zeros": zeros,
    "ones": ones,
    "normal": normal,
    "uniform": uniform,
    "truncated_normal": truncated_normal,
    "xavier_normal": xavier_normal,
    "xavier_uniform": xavier_uniform,
    "he_normal": he_normal,
    "he_uniform": he_uniform,
    "lecun_normal": lecun_normal,
    "lecun_uniform": lecun_uniform,
    "orthogonal": orthogonal,
}


def get_initializer(initializer: str | Initializer) -> Initializer:
    """The initializer of that name, or the function itself; a ValueError names the nearest known one.

    `constant` has no name here, since it needs a value: pass functools.partial(constant, value=0.1).
    """
    if callable(initializer):
        return initializer
    if initializer not in INITIALIZERS:
        raise unknown_name("initializer", initializer, INITIALIZERS)
    return INITIALIZERS[initializer]
