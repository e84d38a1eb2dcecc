"""Activation functions and their derivatives, each pair stable over the whole float range.

Every function is elementwise: x has any shape, f(x) and f'(x) have x's shape and dtype. bfloat16 and float16 are
evaluated in float32 and rounded once. An integer x raises ValueError. NaN in gives NaN out, in the derivative too.

The gradient through an activation y = f(x) is dx = dy ⊙ f'(x).

At a kink the derivative is that of the flat or outer piece (relu'(0) = 0), and `jax.grad` of the function agrees:
hence `where` instead of `maximum`, whose gradient at a tie is 1/2.
"""

import functools
import math
from collections.abc import Callable
from typing import Concatenate, NamedTuple, ParamSpec

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnn._checks import at_least_float32, cotangent, float_array, positive, unknown_name

_P = ParamSpec("_P")


class Activation(NamedTuple):
    """An elementwise function and its derivative."""

    value: Callable[..., jax.Array]  # x -> f(x)
    derivative: Callable[..., jax.Array]  # x -> f'(x)


def _elementwise(f: Callable[Concatenate[jax.Array, _P], jax.Array]) -> Callable[Concatenate[ArrayLike, _P], jax.Array]:
    """Check that x is floating-point and evaluate f in at least float32."""

    @functools.wraps(f)
    def checked(x, *args: _P.args, **kwargs: _P.kwargs):
        x = float_array(f.__name__, "x", x)
        return f(x.astype(at_least_float32(x.dtype)), *args, **kwargs).astype(x.dtype)

    return checked


def _minus_abs(x):
    """-|x|, whose jax.grad at 0 is -1: so jax.grad of a smooth function built on it is right at 0 too."""
    return jnp.where(x >= 0, -x, x)


def _finite(x):
    """x with ±inf replaced by the largest floats, so that inf * 0 becomes the limit 0 instead of NaN."""
    largest = jnp.finfo(x.dtype).max
    return jnp.clip(x, -largest, largest)


def _times_exp(c, x):
    """c e^x for x <= 0, as (c h) h with h = e^(x/2): a normal float for |c| > 1 even where e^x = h² underflows."""
    h = jnp.exp(x / 2)
    return c * h * h


def _step(x, at=0.0):
    """1 where x > at, 0 where x <= at, NaN where x is NaN."""
    return jnp.where(x <= at, 0, jnp.where(x > at, 1, x))


# ---------------------------------------------------------------- identity


@_elementwise
def identity(x: jax.Array) -> jax.Array:
    """The identity, the activation of a linear layer.

    f(x) = x,  f'(x) = 1
    """
    return x


@_elementwise
def identity_derivative(x: jax.Array) -> jax.Array:
    """1, for every x."""
    return jnp.ones_like(x)


# ---------------------------------------------------------------- sigmoid family


@_elementwise
def sigmoid(x: jax.Array) -> jax.Array:
    """The logistic function, from (-inf, inf) onto (0, 1).

    σ(x)  = 1 / (1 + e^-x)
    σ'(x) = σ(x) σ(-x)

    Numerics: with e = exp(-|x|), σ(x) is 1/(1+e) for x >= 0 and e/(1+e) below: nothing overflows.

    >>> sigmoid(jnp.array([-1000.0, 0.0, 1000.0]))
    Array([0. , 0.5, 1. ], dtype=float32)
    """
    e = jnp.exp(_minus_abs(x))
    return jnp.where(x >= 0, 1, e) / (1 + e)


@_elementwise
def sigmoid_derivative(x: jax.Array) -> jax.Array:
    """σ'(x) = σ(x) σ(-x).

    Numerics: the textbook's σ(1 - σ) is 0.9 % off at x = 12 and exactly 0 from 16.6 on (float32), because 1 - σ
    cancels. σ(x) σ(-x) = e / (1+e)², e = exp(-|x|), is accurate to 4 roundings until e itself underflows (|x| > 87).

    >>> sigmoid_derivative(jnp.array([0.0, 20.0]))
    Array([2.500...e-01, 2.06115...e-09], dtype=float32)
    """
    e = jnp.exp(_minus_abs(x))
    return e / jnp.square(1 + e)


@_elementwise
def log_sigmoid(x: jax.Array) -> jax.Array:
    """The logarithm of the logistic function, the log-likelihood of a logit.

    f(x)  = log σ(x) = -log(1 + e^-x)
    f'(x) = σ(-x)

    Numerics: min(x, 0) - log1p(exp(-|x|)); log(σ(x)) itself would be -inf from x = -104 (float32) on.
    """
    return -softplus(-x)


@_elementwise
def log_sigmoid_derivative(x: jax.Array) -> jax.Array:
    """σ(-x)."""
    return sigmoid(-x)


@_elementwise
def softplus(x: jax.Array) -> jax.Array:
    """A smooth relu.

    f(x)  = log(1 + e^x)
    f'(x) = σ(x)

    Numerics: max(x, 0) + log1p(exp(-|x|)); e^x alone overflows at x = 89 (float32).
    """
    return jnp.where(x >= 0, x, 0) + jnp.log1p(jnp.exp(_minus_abs(x)))


@_elementwise
def softplus_derivative(x: jax.Array) -> jax.Array:
    """σ(x)."""
    return sigmoid(x)


@_elementwise
def silu(x: jax.Array) -> jax.Array:
    """The sigmoid-weighted linear unit, also called swish.

    f(x)  = x σ(x)
    f'(x) = σ(x) (1 + x σ(-x))

    Numerics: with h = exp(-|x|/2), f(x) is x/(1+h²) for x >= 0 and (x h) h/(1+h²) below: right even where
    σ(x) = h²/(1+h²) has underflowed. At ±inf it gives the limits 0 and inf, not 0 * inf = NaN.
    Source: Elfwing, Uchibe, Doya 2017 (arXiv:1702.03118); Ramachandran et al. 2017 (arXiv:1710.05941).
    """
    h = jnp.exp(_minus_abs(x) / 2)
    return jnp.where(x >= 0, x, _finite(x) * h * h) / (1 + h * h)


@_elementwise
def silu_derivative(x: jax.Array) -> jax.Array:
    """σ(x) (1 + x σ(-x)).

    Numerics: σ + x σ(1 - σ), the product rule written out, loses x σ(1 - σ) from x = 17 on; with σ(-x) it is kept. At
    the zero, x = -1.28, the error is one rounding of the terms that cancel.
    """
    h = jnp.exp(_minus_abs(x) / 2)
    slope = 1 + _finite(x) * (jnp.where(x >= 0, h * h, 1) / (1 + h * h))
    return jnp.where(x >= 0, slope, slope * h * h) / (1 + h * h)


@_elementwise
def mish(x: jax.Array) -> jax.Array:
    """A smooth, non-monotonic relu.

    f(x)  = x tanh(softplus(x)) = x e^x a,               a = (e^x + 2) / (n + 2), n = e^x (e^x + 2)
    f'(x) = e^x (a + x 4 (1 + e^x) / (n + 2)²)

    Numerics: nothing cancels in a; with h = e^(x/2), (x h) h is right where e^x underflows. From x = 20 on, f(x) = x
    and f'(x) = 1, in float64 too.
    Source: Misra 2019 (arXiv:1908.08681).
    """
    below, h, a, _ = _mish_parts(x)
    return jnp.where(x >= 20, x, below * a * h * h)


@_elementwise
def mish_derivative(x: jax.Array) -> jax.Array:
    """e^x (a + x 4 (1 + e^x) / (n + 2)²), a = (e^x + 2) / (n + 2), n = e^x (e^x + 2).

    Numerics: at the zero, x = -1.19, the error is one rounding of the terms that cancel.
    """
    below, h, a, b = _mish_parts(x)
    return jnp.where(x >= 20, 1, (a + below * b) * h * h)


def _mish_parts(x):
    """x up to 20, e^(x/2), a and 4 (1 + e^x) / (n + 2)²."""
    below = jnp.clip(x, jnp.finfo(x.dtype).min, 20)
    h = jnp.exp(below / 2)
    e = h * h
    n = e * (e + 2)
    return below, h, (e + 2) / (n + 2), 4 * (1 + e) / jnp.square(n + 2)


# ---------------------------------------------------------------- tanh family


@_elementwise
def tanh(x: jax.Array) -> jax.Array:
    """The hyperbolic tangent, from (-inf, inf) onto (-1, 1).

    f(x)  = (e^x - e^-x) / (e^x + e^-x)
    f'(x) = 1 - tanh²(x) = sech²(x)

    Numerics: `jnp.tanh`; the formula in exponentials is NaN from |x| = 89 on and loses its digits near 0.
    """
    return jnp.tanh(x)


@_elementwise
def tanh_derivative(x: jax.Array) -> jax.Array:
    """sech²(x) = (2 e / (1 + e²))², e = exp(-|x|).

    Numerics: 1 - tanh² is 0.9 % off at x = 6 and exactly 0 from 8 on in float32 (so is jax.grad of jnp.tanh).
    This form keeps its relative error below 1e-6 until sech² itself underflows at |x| = 44.

    >>> tanh_derivative(jnp.array([0.0, 10.0]))
    Array([1.000...e+00, 8.2446...e-09], dtype=float32)
    """
    e = jnp.exp(_minus_abs(x))
    return jnp.square(2 * e / (1 + e * e))


@_elementwise
def softsign(x: jax.Array) -> jax.Array:
    """A sigmoid with polynomial tails.

    f(x)  = x / (1 + |x|)
    f'(x) = 1 / (1 + |x|)²
    """
    x = _finite(x)
    return x / (1 + jnp.abs(x))


@_elementwise
def softsign_derivative(x: jax.Array) -> jax.Array:
    """1 / (1 + |x|)²."""
    return jnp.square(1 / (1 + jnp.abs(x)))


@_elementwise
def hard_tanh(x: jax.Array) -> jax.Array:
    """tanh in three straight lines.

    f(x)  = -1 for x <= -1,  x between,  1 for x >= 1
    f'(x) = 1 for -1 < x < 1, else 0
    """
    return jnp.where(x <= -1, -1, jnp.where(x >= 1, 1, x))


@_elementwise
def hard_tanh_derivative(x: jax.Array) -> jax.Array:
    """1 for -1 < x < 1, else 0; 0 at both kinks."""
    return _step(x, -1) * _step(-x, -1)


# ---------------------------------------------------------------- relu family


@_elementwise
def relu(x: jax.Array) -> jax.Array:
    """The rectified linear unit.

    f(x)  = max(0, x)
    f'(x) = 1 for x > 0, 0 for x <= 0

    Numerics: `where`, since jax.grad of `maximum` is 1/2 at the kink; the comparison is x <= 0 so that NaN stays NaN.

    >>> relu(jnp.array([-2.0, 0.0, 3.0]))
    Array([0., 0., 3.], dtype=float32)
    """
    return jnp.where(x <= 0, 0, x)


@_elementwise
def relu_derivative(x: jax.Array) -> jax.Array:
    """1 for x > 0, 0 for x <= 0, NaN for NaN; in x's dtype.

    >>> relu_derivative(jnp.array([-2.0, 0.0, 3.0]))
    Array([0., 0., 1.], dtype=float32)
    """
    return _step(x)


@_elementwise
def leaky_relu(x: jax.Array, negative_slope: float = 0.01) -> jax.Array:
    """A relu that lets a little gradient through on the negative side.

    f(x)  = x for x > 0, s x for x <= 0,      s = negative_slope
    f'(x) = 1 for x > 0, s for x <= 0
    """
    return jnp.where(x <= 0, negative_slope * x, x)


@_elementwise
def leaky_relu_derivative(x: jax.Array, negative_slope: float = 0.01) -> jax.Array:
    """1 for x > 0, negative_slope for x <= 0."""
    return jnp.where(x <= 0, negative_slope, jnp.where(x > 0, 1, x))


@_elementwise
def relu6(x: jax.Array) -> jax.Array:
    """A relu capped at 6.

    f(x)  = min(max(0, x), 6)
    f'(x) = 1 for 0 < x < 6, else 0
    """
    return jnp.where(x <= 0, 0, jnp.where(x >= 6, 6, x))


@_elementwise
def relu6_derivative(x: jax.Array) -> jax.Array:
    """1 for 0 < x < 6, else 0; 0 at both kinks."""
    return _step(x) * _step(-x, -6)


@_elementwise
def elu(x: jax.Array, alpha: float = 1.0) -> jax.Array:
    """The exponential linear unit.

    f(x)  = x for x > 0, α (e^x - 1) for x <= 0
    f'(x) = 1 for x > 0, α e^x for x <= 0

    Numerics: expm1; the exponential only sees min(x, 0), or its overflow would reach jax.grad as 0 * inf = NaN.
    Source: Clevert, Unterthiner, Hochreiter 2015 (arXiv:1511.07289).
    """
    return jnp.where(x <= 0, alpha * jnp.expm1(jnp.where(x <= 0, x, 0)), x)


@_elementwise
def elu_derivative(x: jax.Array, alpha: float = 1.0) -> jax.Array:
    """1 for x > 0, α e^x for x <= 0."""
    return jnp.where(x <= 0, _times_exp(alpha, x), jnp.where(x > 0, 1, x))


@_elementwise
def celu(x: jax.Array, alpha: float = 1.0) -> jax.Array:
    """The continuously differentiable exponential linear unit.

    f(x)  = x for x > 0, α (e^(x/α) - 1) for x <= 0
    f'(x) = 1 for x > 0, e^(x/α) for x <= 0

    Raises ValueError unless α > 0.
    Source: Barron 2017 (arXiv:1704.07483).
    """
    positive("celu", "alpha", alpha)
    return jnp.where(x <= 0, alpha * jnp.expm1(jnp.where(x <= 0, x, 0) / alpha), x)


@_elementwise
def celu_derivative(x: jax.Array, alpha: float = 1.0) -> jax.Array:
    """1 for x > 0, e^(x/α) for x <= 0.

    Numerics: rounding x/α leaves an error of |x/α| roundings in the tail, unless α is a power of two.
    """
    positive("celu_derivative", "alpha", alpha)
    return jnp.where(x <= 0, jnp.exp(x / alpha), jnp.where(x > 0, 1, x))


SELU_SCALE = 1.0507009873554805  # λ and α of the paper: the fixed point of mean 0 and variance 1
SELU_ALPHA = 1.6732632423543772


@_elementwise
def selu(x: jax.Array) -> jax.Array:
    """The self-normalizing exponential linear unit.

    f(x)  = λ x for x > 0, λ α (e^x - 1) for x <= 0,     λ = 1.0507…, α = 1.6733…
    f'(x) = λ for x > 0, λ α e^x for x <= 0

    Source: Klambauer et al. 2017 (arXiv:1706.02515).
    """
    return SELU_SCALE * elu(x, SELU_ALPHA)


@_elementwise
def selu_derivative(x: jax.Array) -> jax.Array:
    """λ for x > 0, λ α e^x for x <= 0."""
    return jnp.where(x <= 0, _times_exp(SELU_SCALE * SELU_ALPHA, x), jnp.where(x > 0, SELU_SCALE, x))


@_elementwise
def hard_sigmoid(x: jax.Array) -> jax.Array:
    """The sigmoid in three straight lines.

    f(x)  = 0 for x <= -3,  (x + 3) / 6 between,  1 for x >= 3
    f'(x) = 1/6 for -3 < x < 3, else 0

    Source: Howard et al. 2019, MobileNetV3 (arXiv:1905.02244).
    """
    return jnp.where(x <= -3, 0, jnp.where(x >= 3, 1, (x + 3) / 6))


@_elementwise
def hard_sigmoid_derivative(x: jax.Array) -> jax.Array:
    """1/6 for -3 < x < 3, else 0; 0 at both kinks."""
    return _step(x, -3) * _step(-x, -3) / 6


@_elementwise
def hard_silu(x: jax.Array) -> jax.Array:
    """silu with the hard sigmoid, also called hard swish.

    f(x)  = 0 for x <= -3,  x (x + 3) / 6 between,  x for x >= 3
    f'(x) = 0 for x <= -3,  (2x + 3) / 6 between,  1 for x >= 3

    Source: Howard et al. 2019, MobileNetV3 (arXiv:1905.02244).
    """
    inner = jnp.clip(x, -3, 3)  # the square must not overflow in the branch not taken
    return jnp.where(x <= -3, 0, jnp.where(x >= 3, x, inner * (inner + 3) / 6))


@_elementwise
def hard_silu_derivative(x: jax.Array) -> jax.Array:
    """0 for x <= -3, (2x + 3) / 6 between, 1 for x >= 3."""
    return jnp.where(x <= -3, 0, jnp.where(x >= 3, 1, (2 * x + 3) / 6))


# ---------------------------------------------------------------- gelu, both forms


@_elementwise
def gelu_erf(x: jax.Array) -> jax.Array:
    """The Gaussian error linear unit, exact form.

    f(x)  = x Φ(x),              Φ(x) = erfc(-x/√2) / 2, the normal distribution function
    f'(x) = Φ(x) + x φ(x),       φ(x) = e^(-x²/2) / √(2π), its density

    Numerics: in float32 Φ(-|x|) is e^(-x²/2) R(|x|) with a polynomial for R, and what x²/2 loses to rounding is added
    back: f has a relative error below 4e-7, and so has f' except near its zero at -0.75, until e^(-x²/2) underflows
    (x < -13). It takes half the time of erfc, which is already 2e-5 off at -12, since √2 is rounded. In float64 it is
    erfc, with a relative error of x² roundings.
    Source: Hendrycks, Gimpel 2016 (arXiv:1606.08415); Shepherd, Laframboise 1981 for the form of R.
    """
    if x.dtype == jnp.float64:
        return jnp.where(x == jnp.inf, x, _finite(x) * _normal_cdf(x))
    a = jnp.minimum(-_minus_abs(x), 20)
    e, r = _normal_tail(a, 0.5 * (a * a), 1 / (a + 2))
    return jnp.where(x >= 0, x, 0) - a * e * r


@_elementwise
def gelu_erf_derivative(x: jax.Array) -> jax.Array:
    """Φ(x) + x φ(x)."""
    if x.dtype == jnp.float64:
        inner = jnp.clip(x, -40, 40)  # φ is 0 outside; x² must not overflow against it
        return _normal_cdf(x) + inner * jnp.exp(-0.5 * jnp.square(inner)) / math.sqrt(2 * math.pi)
    a = jnp.minimum(-_minus_abs(x), 20)
    # The same numbers as above, deliberately in other expressions: XLA would compute equal ones only once, and keep one
    # more array from the forward to the backward.
    e, r = _normal_tail(a, (0.5 * a) * a, 0.5 / (0.5 * a + 1))
    below = e * (r - a / math.sqrt(2 * math.pi))
    return jnp.where(x >= 0, 1 - below, below)


def _normal_cdf(x):
    return 0.5 * jax.lax.erfc(-x * math.sqrt(0.5))


def _normal_tail(a, s, q):
    """(e, r) with e = e^(-a²/2) and e r = Φ(-a), in float32, from s = a²/2 and q = 1/(a + 2); 0 <= a <= 20."""
    t = 1 - 4 * q
    p = functools.reduce(lambda p, c: p * t + c, _TAIL)
    h = jnp.round(32 * a) / 32  # h² is exact
    lost = (0.5 * (h * h) - s) + 0.5 * ((a - h) * (a + h))  # a²/2 - s
    return jnp.exp(-s) * (1 - lost), 2 * q * p


# (a + 2)/2 · Φ(-a) e^(a²/2) as a polynomial in t = (a - 2)/(a + 2), highest power first: a least-maximum fit of the
# relative error, 3e-9, over 0 <= a <= 14.6.
_TAIL = (
    *(-3.3088994857877196e-05, -7.456886191770096e-05, 6.737328408856769e-05, 0.000418299406795386),
    *(0.0004109588280170051, -0.0009758227959086596, -0.0033669192238225676, -0.00023485983946268385),
    *(0.018359644251860062, 0.01439868422645219, -0.16570223499012815, 0.33620400245906934),
)


@_elementwise
def gelu_tanh(x: jax.Array) -> jax.Array:
    """The Gaussian error linear unit, tanh approximation.

    f(x)  = x (1 + tanh u) / 2 = x σ(2u),      u(x) = √(2/π) (x + 0.044715 x³)
    f'(x) = σ(2u) + 2 x σ'(2u) u'(x),          u'(x) = √(2/π) (1 + 3 · 0.044715 x²)

    Numerics: σ(2u) keeps the left tail that 1 + tanh u rounds to 0; beyond |x| = 30 it is constant in float64 too,
    so u is evaluated at x clipped to ±30, and x³ cannot overflow. Rounding u leaves a relative error of |2u| roundings
    in that tail, in f' too (float32: 1e-5 at x = -10). At the zero of f', x = -0.75, its error is one rounding of the
    terms that cancel.
    Source: Hendrycks, Gimpel 2016 (arXiv:1606.08415).
    """
    h = jnp.exp(_minus_abs(_gelu_u(jnp.clip(x, -30, 30))))
    return jnp.where(x >= 0, x, _finite(x) * h * h) / (1 + h * h)


@_elementwise
def gelu_tanh_derivative(x: jax.Array) -> jax.Array:
    """σ(2u) + 2 x σ'(2u) u'(x), u = √(2/π) (x + 0.044715 x³)."""
    x = jnp.clip(x, -30, 30)
    u, du = _gelu_u(x), math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * jnp.square(x))
    q = jnp.square(jnp.exp(_minus_abs(u)))  # e^(-|2u|)
    s = 1 / (1 + q)
    return s * (jnp.where(x >= 0, 1, q) + 2 * x * du * (q * s))


def _gelu_u(x):
    return math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)


# ---------------------------------------------------------------- over an axis: softmax, log_softmax


def softmax(x: ArrayLike, axis: int = -1) -> jax.Array:
    """Probabilities from logits; `softmax_forward` without the cache.

    >>> softmax(jnp.array([1000.0, 1000.0, -jnp.inf]))
    Array([0.5, 0.5, 0. ], dtype=float32)
    """
    return softmax_forward(x, axis)[0]


def softmax_forward(x: ArrayLike, axis: int = -1) -> tuple[jax.Array, jax.Array]:
    """Probabilities from logits along an axis, and the cache: the same probabilities.

    p_i = e^(x_i) / Σ_j e^(x_j)
    dx_i = p_i (dp_i - Σ_j p_j dp_j)

    x and p: any shape, the sum runs along `axis`. Cached: p.
    Numerics: x - max(x) before exp, so nothing overflows. An entry of -inf (a mask) has probability 0 and gradient 0; a
    row of all -inf gives zeros, not NaN. An entry of +inf gives NaN, since the limit is not unique. A p_i of e^-g has g
    roundings, those of x - max(x).
    Shifting all dp by one number leaves dx unchanged: they are shifted by the dp of the p_i above 1/2, if there is one,
    where 1 - p_i would cancel.
    """
    x = float_array("softmax", "x", x)
    exps, _ = _shifted_exp(x.astype(at_least_float32(x.dtype)), axis)
    total = exps.sum(axis, keepdims=True)
    p = (exps / jnp.where(total == 0, 1, total)).astype(x.dtype)
    return p, p


def softmax_backward(cache: jax.Array, dp: jax.Array, axis: int = -1) -> jax.Array:
    """dx_i = p_i (dp_i - Σ_j p_j dp_j); cache is p, dp has its shape."""
    dtype = at_least_float32(cache.dtype)
    p, dp = cache.astype(dtype), cotangent("softmax_backward", "dp", dp, "p", cache.shape, dtype)
    dp = dp - jnp.where(p > 0.5, dp, 0).sum(axis, keepdims=True)
    return (p * (dp - (p * dp).sum(axis, keepdims=True))).astype(cache.dtype)


def log_softmax(x: ArrayLike, axis: int = -1) -> jax.Array:
    """Log-probabilities from logits; `log_softmax_forward` without the cache."""
    return log_softmax_forward(x, axis)[0]


def log_softmax_forward(x: ArrayLike, axis: int = -1) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities from logits along an axis, and the cache: the same log-probabilities.

    y_i = x_i - log Σ_j e^(x_j)
    dx_i = dy_i - e^(y_i) Σ_j dy_j = (1 - e^(y_i)) dy_i - e^(y_i) Σ_(j≠i) dy_j

    x and y: any shape, the sum runs along `axis`. Cached: y.
    Numerics: log(softmax(x)) would be -inf wherever the probability underflows. (x - max) - log1p(r) is not, with r the
    sum of exp(x - max) over all but one largest entry; it also keeps the y of a p close to 1, which log Σ exp(x - max)
    rounds to 0, and so does expm1 for 1 - e^y. For a small p, e^y is off by |y| roundings. An entry of -inf stays -inf.
    """
    x = float_array("log_softmax", "x", x)
    exps, shifted = _shifted_exp(x.astype(at_least_float32(x.dtype)), axis)
    at_max = shifted == 0
    more = jnp.maximum(at_max.sum(axis, keepdims=True), 1) - 1  # how many tie with the one left out
    r = jnp.where(at_max, exps - 1, exps).sum(axis, keepdims=True) + more.astype(exps.dtype)
    y = (shifted - jnp.log1p(r)).astype(x.dtype)
    return y, y


def log_softmax_backward(cache: jax.Array, dy: jax.Array, axis: int = -1) -> jax.Array:
    """dx_i = (1 - e^(y_i)) dy_i - e^(y_i) Σ_(j≠i) dy_j; cache is y, dy has its shape."""
    dtype = at_least_float32(cache.dtype)
    y, dy = cache.astype(dtype), cotangent("log_softmax_backward", "dy", dy, "y", cache.shape, dtype)
    return (-jnp.expm1(y) * dy - jnp.exp(y) * (dy.sum(axis, keepdims=True) - dy)).astype(cache.dtype)


def _shifted_exp(x, axis):
    """exp(x - max) and x - max; a maximum of -inf is taken as 0, so that -inf - -inf never occurs."""
    largest = x.max(axis, keepdims=True, initial=-jnp.inf)
    shifted = x - jax.lax.stop_gradient(jnp.where(largest == -jnp.inf, 0, largest))
    return jnp.exp(shifted), shifted


# ---------------------------------------------------------------- by name

ACTIVATIONS: dict[str, Activation] = {
    "identity": Activation(identity, identity_derivative),
    "sigmoid": Activation(sigmoid, sigmoid_derivative),
    "log_sigmoid": Activation(log_sigmoid, log_sigmoid_derivative),
    "softplus": Activation(softplus, softplus_derivative),
    "silu": Activation(silu, silu_derivative),
    "mish": Activation(mish, mish_derivative),
    "tanh": Activation(tanh, tanh_derivative),
    "softsign": Activation(softsign, softsign_derivative),
    "hard_tanh": Activation(hard_tanh, hard_tanh_derivative),
    "relu": Activation(relu, relu_derivative),
    "leaky_relu": Activation(leaky_relu, leaky_relu_derivative),
    "relu6": Activation(relu6, relu6_derivative),
    "elu": Activation(elu, elu_derivative),
    "celu": Activation(celu, celu_derivative),
    "selu": Activation(selu, selu_derivative),
    "hard_sigmoid": Activation(hard_sigmoid, hard_sigmoid_derivative),
    "hard_silu": Activation(hard_silu, hard_silu_derivative),
    "gelu_erf": Activation(gelu_erf, gelu_erf_derivative),
    "gelu_tanh": Activation(gelu_tanh, gelu_tanh_derivative),
}


def get_activation(activation: str | Activation) -> Activation:
    """The Activation of that name, or the Activation itself; a ValueError names the nearest known one."""
    if isinstance(activation, Activation):
        return activation
    if activation not in ACTIVATIONS:
        raise unknown_name("activation", activation, ACTIVATIONS)
    return ACTIVATIONS[activation]
