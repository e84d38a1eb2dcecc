"""Loss functions and their derivatives with respect to the prediction.

    value(y_true, y_pred, weights=None)      -> L, a scalar
    derivative(y_true, y_pred, weights=None) -> ∂L/∂y_pred, with y_pred's shape and dtype

y_true and y_pred have the same shape, unless a docstring says otherwise: (n,) against (n, 1) is a ValueError, not a
broadcast. y_pred is floating-point; y_true may have any real dtype and is converted. An empty batch is a ValueError.

Reduction: the mean. With ℓ_i the loss of example i (or of entry i, where a loss has no class axis):

    L = Σ_i w_i ℓ_i / Σ_i w_i,      ∂L/∂ŷ_i = w_i ∂ℓ_i/∂ŷ_i / Σ_i w_i,      w_i = 1 by default

Labels and weights out of range are a ValueError where their values are known, that is, outside jit.

`weights` >= 0 has the leading axes of the ℓ_i, e.g. (batch,) or (batch, time), and is constant: no derivative is taken.
An example of weight 0 costs nothing and is ignored, even if NaN. If all weights are 0, L = 0.

Everything is calculated in at least float32, and L has that dtype; only the derivative has y_pred's dtype. Below, y is
y_true, ŷ or z is y_pred; a value and its derivative are next to each other.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxnn._checks import (
    array,
    at_least_float32,
    float_array,
    fraction,
    non_negative,
    positive,
    unit_interval,
    unknown_name,
)
from jaxnn._exact import exact_product, exact_sum, minus_log
from jaxnn.activations import log_sigmoid, sigmoid


class Loss(NamedTuple):
    """A loss and its derivative with respect to the prediction."""

    value: Callable[..., jax.Array]  # (y_true, y_pred, weights=None) -> L
    derivative: Callable[..., jax.Array]  # (y_true, y_pred, weights=None) -> ∂L/∂y_pred


# ---------------------------------------------------------------- shared by all losses


def _same(shape):
    return shape


def _value(target_shape=_same):
    """A decorator: check y_true against y_pred's shape, calculate in at least float32, return that dtype."""

    def decorate(f):
        @functools.wraps(f)
        def checked(y_true, y_pred, weights=None, **hyper):
            y_true, y_pred = _arrays(f.__name__, y_true, y_pred, target_shape)
            return f(y_true, y_pred.astype(at_least_float32(y_pred.dtype)), weights, **hyper)

        return checked

    return decorate


def _derivative(target_shape=_same):
    """The same for a derivative, which returns y_pred's dtype."""

    def decorate(f):
        calculate = _value(target_shape)(f)

        @functools.wraps(f)
        def checked(y_true, y_pred, weights=None, **hyper):
            return calculate(y_true, y_pred, weights, **hyper).astype(jnp.asarray(y_pred).dtype)

        return checked

    return decorate


def _arrays(who, y_true, y_pred, target_shape):
    y_pred = float_array(who, "y_pred", y_pred)
    y_true = array(who, "y_true", y_true)
    if jnp.iscomplexobj(y_true):
        raise ValueError(f"{who}: y_true has dtype {y_true.dtype}, expected real numbers")
    if y_pred.size == 0:
        raise ValueError(f"{who}: y_pred is empty (shape {y_pred.shape}); a mean needs at least one example")
    expected = target_shape(y_pred.shape)
    if y_true.shape != expected:
        raise ValueError(
            f"{who}: y_true has shape {y_true.shape}, but y_pred of shape {y_pred.shape} needs a y_true of shape "
            f"{expected}; reshape one of them (nothing is broadcast)"
        )
    if expected == y_pred.shape:
        y_true = y_true.astype(at_least_float32(y_pred.dtype))
    return y_true, y_pred


def _require_values(who, name, values, fit, expected, weights=None):
    """ValueError unless all values fit, where they are known; under jit they are not, and nothing is checked.

    Values of weight 0 are skipped; weights that do not fit have an error of their own.
    """
    if isinstance(values, Tracer) or isinstance(weights, Tracer):
        return
    values = np.asarray(values)  # under jit, jax.numpy would make even constants unknown
    if weights is not None and np.shape(weights) == values.shape[: np.ndim(weights)]:
        values = values[np.asarray(weights) != 0]
    if not fit(values).all():
        raise ValueError(f"{who}: {name} has values from {values.min()} to {values.max()}, expected {expected}")


def _require_share(who, y_true, weights):
    def fit(y):
        return (y >= 0) & (y <= 1 + 1e-6)  # a probability that was normalised in float32 may round to 1.0000001

    _require_values(who, "y_true", y_true, fit, "labels or shares from 0 to 1", weights)


def _require_not_negative(who, y_true, what, weights):
    _require_values(who, "y_true", y_true, lambda y: y >= 0, what, weights)


def _full_weights(weights, shape, dtype):
    """weights and their sum, broadcast to the shape of the losses."""
    weights = array("the loss", "weights", weights)
    _require_values("the loss", "weights", weights, lambda w: w >= 0, "numbers that are 0 or greater")
    if weights.shape != shape[: weights.ndim]:
        raise ValueError(
            f"the loss: weights have shape {weights.shape}, the losses {shape}; weights must have their leading axes: "
            f"one weight per example, shape {shape[:1]}"
        )
    weights = weights.reshape(weights.shape + (1,) * (len(shape) - weights.ndim)).astype(dtype)
    weights = jnp.broadcast_to(weights, shape)
    total = weights.sum()
    return weights, jnp.where(total == 0, 1, total)


def _mean(losses, weights):
    """Σ w ℓ / Σ w over all losses."""
    if weights is None:
        return losses.mean()
    weights, total = _full_weights(weights, losses.shape, losses.dtype)
    return jnp.where(weights == 0, 0, weights * losses).sum() / total


def _mean_derivative(dlosses, weights, class_axes=0):
    """w ∂ℓ/∂ŷ / Σ w; class_axes: how many of the last axes belong to one example."""
    shape = dlosses.shape[: dlosses.ndim - class_axes]
    if weights is None:
        return dlosses / math.prod(shape)
    weights, total = _full_weights(weights, shape, dlosses.dtype)
    weights = jnp.broadcast_to(weights.reshape(shape + (1,) * class_axes), dlosses.shape)
    return jnp.where(weights == 0, 0, weights / total * dlosses)


# ---------------------------------------------------------------- regression


@_value()
def mse(y_true, y_pred, weights=None):
    """Mean squared error.

    ℓ = (ŷ - y)²,  ∂ℓ/∂ŷ = 2 (ŷ - y)

    The mean runs over all entries: (n, k) predictions are divided by n k.

    >>> mse(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0]))
    Array(2., dtype=float32)
    """
    return _mean(jnp.square(y_pred - y_true), weights)


@_derivative()
def mse_derivative(y_true, y_pred, weights=None):
    """2 (ŷ - y) / n, n the number of entries.

    >>> mse_derivative(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0]))
    Array([0., 2.], dtype=float32)
    """
    return _mean_derivative(2 * (y_pred - y_true), weights)


@_value()
def mae(y_true, y_pred, weights=None):
    """Mean absolute error.

    ℓ = |ŷ - y|,  ∂ℓ/∂ŷ = sign(ŷ - y), 0 at ŷ = y

    Numerics: |e| is e sign(e), since jax.grad of `abs` is 1 at 0.
    """
    e = y_pred - y_true
    return _mean(e * jnp.sign(e), weights)


@_derivative()
def mae_derivative(y_true, y_pred, weights=None):
    """sign(ŷ - y) / n, 0 where ŷ = y."""
    return _mean_derivative(jnp.sign(y_pred - y_true), weights)


@_value()
def huber(y_true, y_pred, weights=None, *, delta: float = 1.0):
    """Squared error near the truth, absolute error far from it.

    e = ŷ - y;  ℓ = e²/2 for |e| <= δ, δ (|e| - δ/2) beyond;  ∂ℓ/∂ŷ = e clipped to [-δ, δ]

    Raises ValueError unless δ > 0.
    Numerics: ℓ = c (|e| - c/2) with c = min(|e|, δ), one formula for both: e² is never formed where it could overflow.
    Source: Huber 1964.
    """
    positive("huber", "delta", delta)
    e = jnp.abs(y_pred - y_true)
    c = jnp.where(e <= delta, e, delta)
    return _mean(c * (e - c / 2), weights)


@_derivative()
def huber_derivative(y_true, y_pred, weights=None, *, delta: float = 1.0):
    """(ŷ - y) clipped to [-δ, δ], / n."""
    positive("huber_derivative", "delta", delta)
    return _mean_derivative(jnp.clip(y_pred - y_true, -delta, delta), weights)


@_value()
def log_cosh(y_true, y_pred, weights=None):
    """The logarithm of the hyperbolic cosine of the error: a smooth mae.

    e = ŷ - y;  ℓ = log cosh e,  ∂ℓ/∂ŷ = tanh e

    Numerics: log1p(2 sinh²(e/2)) for |e| < 1, where log(cosh e) would lose e²/2 beside 1;
    |e| + log1p(exp(-2|e|)) - log 2 beyond, where cosh would overflow.
    """
    e = y_pred - y_true
    near = jnp.clip(e, -1, 1)
    far = jnp.where(jnp.abs(e) < 1, 1, jnp.abs(e))
    losses = jnp.where(
        jnp.abs(e) < 1,
        jnp.log1p(2 * jnp.square(jnp.sinh(near / 2))),
        far + jnp.log1p(jnp.exp(-2 * far)) - math.log(2),
    )
    return _mean(losses, weights)


@_derivative()
def log_cosh_derivative(y_true, y_pred, weights=None):
    """tanh(ŷ - y) / n."""
    return _mean_derivative(jnp.tanh(y_pred - y_true), weights)


@_value()
def poisson_nll(y_true, y_pred, weights=None):
    """Negative log-likelihood of counts y under a Poisson distribution of rate e^ŷ.

    ℓ = e^ŷ - y ŷ,  ∂ℓ/∂ŷ = e^ŷ - y

    ŷ is the logarithm of the rate; the constant log y! is omitted. y >= 0.
    Numerics: where the rate is near y, e^ŷ - y is all rounding error. With d = ŷ - log y it is y expm1(d), and
    ℓ = y expm1(d) + y (1 - ŷ); log y is not rounded for d. Elsewhere the error of ℓ is one rounding of e^ŷ. From ŷ = 89
    on (float32) e^ŷ is infinite, as is the loss itself; there y ŷ, which may also be infinite, is omitted.
    """
    _require_not_negative("poisson_nll", y_true, "counts that are 0 or greater", weights)
    rate, (near, excess) = jnp.exp(y_pred), _excess(y_true, y_pred)
    far = rate - y_true * jnp.where(rate == jnp.inf, 0, y_pred)
    return _mean(jnp.where(near, excess + y_true * (1 - y_pred), far), weights)


@_derivative()
def poisson_nll_derivative(y_true, y_pred, weights=None):
    """(e^ŷ - y) / n, as y expm1(ŷ - log y) / n where the two are near each other."""
    _require_not_negative("poisson_nll_derivative", y_true, "counts that are 0 or greater", weights)
    near, excess = _excess(y_true, y_pred)
    return _mean_derivative(jnp.where(near, excess, jnp.exp(y_pred) - y_true), weights)


def _excess(y_true, y_pred):
    """Where |ŷ - log y| < 1, and e^ŷ - y = y expm1(ŷ - log y) there."""
    y = jnp.where(y_true > 0, y_true, 1)
    d = minus_log(y_pred, y, jnp.ones_like(y))
    near = (y_true > 0) & (jnp.abs(d) < 1)
    return near, y * jnp.expm1(jnp.where(near, d, 0))


def _mean_half(shape):
    """The shape of y_true where y_pred holds means and log-variances side by side."""
    if not shape or shape[-1] % 2:
        raise ValueError(
            f"gaussian_nll: y_pred has shape {shape}; its last axis must hold k means and then k log-variances"
        )
    return (*shape[:-1], shape[-1] // 2)


@_value(_mean_half)
def gaussian_nll(y_true, y_pred, weights=None):
    """Negative log-likelihood under a normal distribution whose mean and variance are both predicted.

    y_pred = [μ, s], s = log σ²;  ℓ = (s + (y - μ)² e^-s) / 2
    ∂ℓ/∂μ = (μ - y) e^-s,  ∂ℓ/∂s = (1 - (y - μ)² e^-s) / 2

    y_true (..., k), y_pred (..., 2k): k means, then k log-variances. The mean runs over all entries of y_true; the
    constant log(2π)/2 is omitted.
    Numerics: (y - μ)² e^-s is the square of (μ - y) e^(-s/2), which is 0 at y = μ for any s (not 0 * inf). |μ - y| is
    taken as 3e38 (float32) where it overflows. ∂ℓ/∂s is -expm1(-2h)/2 with h = s/2 - log |μ - y| where h is near 0:
    neither the logarithm nor μ - y is rounded.
    """
    e, _, s, root = _gaussian_parts(y_true, y_pred)
    return _mean((s + jnp.square(e * root)) / 2, weights)


@_derivative(_mean_half)
def gaussian_nll_derivative(y_true, y_pred, weights=None):
    """[(μ - y) e^-s, (1 - (y - μ)² e^-s) / 2] / n, n the number of entries of y_true."""
    e, lost, s, root = _gaussian_parts(y_true, y_pred)
    dmean = _mean_derivative(e * root * root, weights)
    size = jnp.where(e == 0, 1, jnp.abs(e))
    h = minus_log(s / 2, size, jnp.ones_like(s)) - lost / jnp.where(e == 0, 1, e)
    near = (e != 0) & (jnp.abs(h) < 0.5)
    excess = jnp.where(near, -jnp.expm1(jnp.where(near, -2 * h, 0)), 1 - jnp.square(e * root))
    dlog_variance = _mean_derivative(excess / 2, weights)
    return jnp.concatenate([dmean, dlog_variance], axis=-1)


def _gaussian_parts(y_true, y_pred):
    """μ - y, what is lost in rounding it, s, and e^(-s/2), taken as 1 where μ = y."""
    mean, s = jnp.split(y_pred, 2, axis=-1)
    largest = jnp.finfo(mean.dtype).max
    e, lost = exact_sum(mean, -y_true.astype(mean.dtype))
    e = jnp.clip(e, -largest, largest)
    return e, lost, s, jnp.exp(jnp.where(e == 0, 0, -s / 2))


# ---------------------------------------------------------------- two classes


@_value()
def binary_cross_entropy(y_true, y_pred, weights=None):
    """Cross-entropy for two classes, from probabilities.

    ℓ = -y log ŷ - (1 - y) log(1 - ŷ),  ∂ℓ/∂ŷ = (ŷ - y) / (ŷ (1 - ŷ)),      ŷ in [ε, 1 - ε]

    y in [0, 1]. Outside [ε, 1 - ε] the loss continues as its tangent, so value and derivative stay finite and the worst
    mistakes keep the largest gradient, 1/ε, where clipping alone would give them 0.
    Numerics: ε is the resolution of the dtype of the calculation (float32: 1.2e-7); the customary 1e-15 disappears:
    float32(1 - 1e-15) == 1. Prefer `binary_cross_entropy_with_logits`, which needs no ε.
    """
    _require_share("binary_cross_entropy", y_true, weights)
    p = _clipped(y_pred)
    losses = -y_true * jnp.log(p) - (1 - y_true) * jnp.log1p(-p)
    return _mean(losses + _bce_slope(y_true, p) * (y_pred - p), weights)


@_derivative()
def binary_cross_entropy_derivative(y_true, y_pred, weights=None):
    """(p - y) / (p (1 - p)) / n, p = ŷ clipped to [ε, 1 - ε]."""
    _require_share("binary_cross_entropy_derivative", y_true, weights)
    return _mean_derivative(_bce_slope(y_true, _clipped(y_pred)), weights)


def _clipped(y_pred):
    eps = jnp.finfo(y_pred.dtype).eps
    return jnp.clip(y_pred, eps, 1 - eps)


def _bce_slope(y_true, p):
    return (p - y_true) / (p * (1 - p))


@_value()
def binary_cross_entropy_with_logits(y_true, y_pred, weights=None):
    """Cross-entropy for two classes, from logits.

    ℓ = -y log σ(z) - (1 - y) log σ(-z),  ∂ℓ/∂z = (1 - y) σ(z) - y σ(-z)

    y in [0, 1].
    Numerics: both terms are non-negative and nothing cancels. max(z, 0) - z y + log1p(e^-|z|) has the same value, but
    its jax.grad at z = 0 is 0 or -1 instead of ±1/2.
    """
    _require_share("binary_cross_entropy_with_logits", y_true, weights)
    return _mean(-y_true * log_sigmoid(y_pred) - (1 - y_true) * log_sigmoid(-y_pred), weights)


@_derivative()
def binary_cross_entropy_with_logits_derivative(y_true, y_pred, weights=None):
    """((1 - y) σ(z) - y σ(-z)) / n.

    Numerics: the textbook's σ(z) - y is 0 for y = 1 from z = 17 on (float32). Where z is near c, the logit of a y
    between 0 and 1, the two terms cancel; it is -σ(z) (1 - y) expm1(c - z) there, and no logarithm of c is rounded.
    """
    _require_share("binary_cross_entropy_with_logits_derivative", y_true, weights)
    soft = (y_true > 0) & (y_true < 1)
    y = jnp.where(soft, y_true, 0.5)
    other, lost = exact_sum(-y, jnp.ones_like(y))  # 1 - y
    d = minus_log(y_pred, y, other) + lost / other  # z - c
    near = soft & (jnp.abs(d) < 1)
    slope = jnp.where(
        near,
        -sigmoid(y_pred) * other * jnp.expm1(jnp.where(near, -d, 0)),
        (1 - y_true) * sigmoid(y_pred) - y_true * sigmoid(-y_pred),
    )
    return _mean_derivative(slope, weights)


@_value()
def focal(y_true, y_pred, weights=None, *, gamma: float = 2.0, alpha: float = 0.25):
    """Cross-entropy for two classes, from logits, that gives less weight to easy examples.

    ℓ = y α g(z) + (1 - y) (1 - α) g(-z),        g(z) = σ(-z)^γ (-log σ(z))
    ∂ℓ/∂z = y α g'(z) - (1 - y) (1 - α) g'(-z),  g'(z) = -σ(-z)^γ (γ σ(z) (-log σ(z)) + σ(-z))

    y in [0, 1]; γ = 0 and α = 1/2 give half of `binary_cross_entropy_with_logits`.
    Raises ValueError unless γ >= 0 and 0 <= α <= 1.
    Numerics: σ(-z)^γ = e^(-γ max(z, 0)) / (1 + e^-|z|)^γ, so no power of 0 is differentiated, and in a large exponent
    only γ z is rounded, which is exact if γ is a power of two.
    Source: Lin et al. 2017 (arXiv:1708.02002).
    """
    _check_focal("focal", gamma, alpha)
    _require_share("focal", y_true, weights)

    def g(z):
        return -_power_of_sigmoid(z, gamma) * log_sigmoid(z)

    return _mean(y_true * alpha * g(y_pred) + (1 - y_true) * (1 - alpha) * g(-y_pred), weights)


@_derivative()
def focal_derivative(y_true, y_pred, weights=None, *, gamma: float = 2.0, alpha: float = 0.25):
    """(y α g'(z) - (1 - y) (1 - α) g'(-z)) / n, g'(z) = -σ(-z)^γ (γ σ(z) (-log σ(z)) + σ(-z))."""
    _check_focal("focal_derivative", gamma, alpha)
    _require_share("focal_derivative", y_true, weights)

    def dg(z):
        return -_power_of_sigmoid(z, gamma) * (sigmoid(-z) - gamma * sigmoid(z) * log_sigmoid(z))

    return _mean_derivative(y_true * alpha * dg(y_pred) - (1 - y_true) * (1 - alpha) * dg(-y_pred), weights)


def _power_of_sigmoid(z, gamma):
    """σ(-z)^γ = e^(-γ max(z, 0)) / (1 + e^-|z|)^γ."""
    above, below = jnp.where(z >= 0, z, 0), jnp.where(z >= 0, -z, z)
    return jnp.exp(-gamma * above) * jnp.power(1 / (1 + jnp.exp(below)), gamma)


def _check_focal(who, gamma, alpha):
    non_negative(who, "gamma", gamma)
    unit_interval(who, "alpha", alpha)


@_value()
def hinge(y_true, y_pred, weights=None):
    """The loss of the support vector machine.

    ℓ = max(0, 1 - y ŷ),  ∂ℓ/∂ŷ = -y for y ŷ < 1, else 0

    y is -1 or 1: for labels 0 and 1, y = 2 label - 1.
    """
    _check_signs("hinge", y_true, weights)
    margin = 1 - y_true * y_pred
    return _mean(jnp.where(margin <= 0, 0, margin), weights)


@_derivative()
def hinge_derivative(y_true, y_pred, weights=None):
    """-y / n where y ŷ < 1, else 0; 0 at the kink."""
    _check_signs("hinge_derivative", y_true, weights)
    return _mean_derivative(jnp.where(y_true * y_pred >= 1, 0, -y_true), weights)


@_value()
def squared_hinge(y_true, y_pred, weights=None):
    """The square of the hinge, which has no kink.

    ℓ = max(0, 1 - y ŷ)²,  ∂ℓ/∂ŷ = -2 y max(0, 1 - y ŷ)

    y is -1 or 1, as in `hinge`.
    """
    _check_signs("squared_hinge", y_true, weights)
    margin = 1 - y_true * y_pred
    return _mean(jnp.square(jnp.where(margin <= 0, 0, margin)), weights)


@_derivative()
def squared_hinge_derivative(y_true, y_pred, weights=None):
    """-2 y max(0, 1 - y ŷ) / n."""
    _check_signs("squared_hinge_derivative", y_true, weights)
    margin = 1 - y_true * y_pred
    return _mean_derivative(-2 * y_true * jnp.where(margin <= 0, 0, margin), weights)


def _check_signs(who, y_true, weights):
    expected = "labels -1 and 1; for labels 0 and 1 pass 2 * y_true - 1"
    _require_values(who, "y_true", y_true, lambda y: np.abs(y) == 1, expected, weights)


# ---------------------------------------------------------------- many classes


@_value()
def softmax_cross_entropy(y_true, y_pred, weights=None):
    """Cross-entropy with a distribution over classes, from logits.

    ℓ = -Σ_j q_j log p_j,  ∂ℓ/∂z_j = p_j Σ_k q_k - q_j,      p = softmax(z), q = y_true

    y_true and y_pred (..., classes); q >= 0, usually Σ q = 1, and then ∂ℓ/∂z = p - q.
    Numerics: with m the largest logit and r = Σ exp(z_k - m) over all others, -log p_j = (m - z_j) + log1p(r): two
    non-negative terms, right down to the smallest float, where logsumexp(z) - z_j rounds to 0 from a gap of 17 on
    (float32). Likewise the derivative is p_j (Σ_{k≠j} q_k) - q_j (Σ_{k≠j} p_k), and 1 - p_m is r / (1 + r), because
    p_j - q_j cancels. What m - z_k loses in rounding, up to 5e-6 where p_k is as small as a float32 can be, is put back
    into exp(z_k - m).
    """
    _require_not_negative("softmax_cross_entropy", y_true, "shares that are 0 or greater", weights)
    return _mean(_cross_entropy(y_true, y_pred), weights)


@_derivative()
def softmax_cross_entropy_derivative(y_true, y_pred, weights=None):
    """(p_j Σ_k q_k - q_j) / n, p = softmax(z), q = y_true."""
    _require_not_negative("softmax_cross_entropy_derivative", y_true, "shares that are 0 or greater", weights)
    return _mean_derivative(_cross_entropy_slope(y_true, y_pred), weights, class_axes=1)


def _without_classes(shape):
    if not shape:
        raise ValueError("softmax_cross_entropy: y_pred is a scalar, expected logits of shape (..., classes)")
    return shape[:-1]


@_value(_without_classes)
def softmax_cross_entropy_with_integer_labels(y_true, y_pred, weights=None, *, label_smoothing: float = 0.0):
    """Cross-entropy with one class per example, from logits.

    ℓ = -Σ_j q_j log p_j,  ∂ℓ/∂z_j = p_j - q_j,      p = softmax(z), q_j = (1 - α) [j = y] + α / classes

    y_true (...) integers in [0, classes); y_pred (..., classes); α = label_smoothing in [0, 1).
    Raises ValueError for labels that are not integers, or out of range where their values are known (outside jit);
    under jit the loss and the gradient of such an example are NaN. An example of weight 0 may have any label.
    Numerics: as in `softmax_cross_entropy`.

    >>> softmax_cross_entropy_with_integer_labels(jnp.array([0]), jnp.array([[20.0, 0.0]]))
    Array(2.06115...e-09, dtype=float32)
    """
    q = _smoothed_one_hot("softmax_cross_entropy_with_integer_labels", y_true, y_pred, weights, label_smoothing)
    return _mean(_cross_entropy(q, y_pred), weights)


@_derivative(_without_classes)
def softmax_cross_entropy_with_integer_labels_derivative(
    y_true, y_pred, weights=None, *, label_smoothing: float = 0.0
):
    """(p_j - q_j) / n, p = softmax(z), q_j = (1 - α) [j = y] + α / classes."""
    who = "softmax_cross_entropy_with_integer_labels_derivative"
    q = _smoothed_one_hot(who, y_true, y_pred, weights, label_smoothing)
    return _mean_derivative(_cross_entropy_slope(q, y_pred), weights, class_axes=1)


def _smoothed_one_hot(who, labels, logits, weights, label_smoothing):
    """q, with NaN in the rows whose label is out of range."""
    fraction(who, "label_smoothing", label_smoothing)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"{who}: y_true has dtype {labels.dtype}, expected integer class labels")
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)  # bytes cannot count 300 classes
    classes = logits.shape[-1]
    valid = (labels >= 0) & (labels < classes)
    counted = valid if weights is None else valid | _no_weight(weights, labels.shape)
    if not isinstance(counted, Tracer) and not bool(counted.all()):
        raise ValueError(
            f"{who}: y_true has labels from {labels.min()} to {labels.max()}, but y_pred of shape {logits.shape} has "
            f"the classes 0 to {classes - 1}"
        )
    hot = _at_index(labels, logits.shape)
    q = jnp.where(hot, 1 - label_smoothing, 0) + label_smoothing / classes
    return jnp.where(valid[..., None], q, jnp.nan).astype(logits.dtype)


def _no_weight(weights, shape):
    return _full_weights(weights, shape, jnp.float32)[0] == 0


def _at_index(index, shape):
    """True at position index along the last axis of shape."""
    return jax.lax.broadcasted_iota(index.dtype, shape, len(shape) - 1) == index[..., None]


def _cross_entropy(q, z):
    """-Σ_j q_j log p_j = Σ_j q_j (m - z_j) + (Σ_j q_j) log1p(r)."""
    _, gaps, _, r = _softmax_parts(z)
    return jnp.where(q == 0, 0, q * gaps).sum(-1) + q.sum(-1) * jnp.log1p(r)


def _cross_entropy_slope(q, z):
    """p_j Σ_{k≠j} q_k - q_j Σ_{k≠j} p_k."""
    is_max, _, exps, r = _softmax_parts(z)
    p = exps / (1 + r[..., None])
    others = jnp.where(is_max, (r / (1 + r))[..., None], 1 - p)
    return p * (q.sum(-1, keepdims=True) - q) - q * others


def _softmax_parts(z):
    """Where the (first) largest logit m is, the gaps m - z_j >= 0, exp(-gap), and r, its sum over all others."""
    is_max = _at_index(jnp.argmax(z, -1), z.shape)
    m = jnp.where(is_max, z, 0).sum(-1, keepdims=True)
    gaps, lost = exact_sum(jnp.broadcast_to(m, z.shape), -z)
    lost = jnp.where(gaps < 1000, lost, 0)  # an infinite gap loses nothing
    gaps = jnp.where(m == -jnp.inf, 0, gaps)
    exps = jnp.exp(-gaps) * (1 - lost)
    return is_max, gaps, exps, jnp.where(is_max, 0, exps).sum(-1)


@_value()
def kl_divergence(y_true, y_pred, weights=None):
    """Kullback-Leibler divergence of predicted log-probabilities from a distribution.

    ℓ = Σ_j p_j (log p_j - ŷ_j),  ∂ℓ/∂ŷ_j = -p_j,      p = y_true

    y_true (..., classes) probabilities; y_pred (..., classes) LOG-probabilities, e.g. from log_softmax.
    Numerics: 0 log 0 = 0, even against ŷ = -inf. For close distributions the terms of the classes cancel: the absolute
    error is one rounding of the largest term.
    """
    _require_share("kl_divergence", y_true, weights)
    some = y_true > 0
    terms = y_true * (jnp.log(jnp.where(some, y_true, 1)) - jnp.where(some, y_pred, 0))
    return _mean(terms.sum(-1), weights)


@_derivative()
def kl_divergence_derivative(y_true, y_pred, weights=None):
    """-p_j / n."""
    _require_share("kl_divergence_derivative", y_true, weights)
    return _mean_derivative(jnp.where(y_true > 0, -y_true, 0), weights, class_axes=1)


@_value()
def cosine_distance(y_true, y_pred, weights=None):
    """One minus the cosine of the angle between two vectors.

    ℓ = 1 - u·v,  ∂ℓ/∂ŷ = -(v - (u·v) u) / ‖ŷ‖,      u = ŷ/‖ŷ‖, v = y/‖y‖

    y_true and y_pred (..., features). A vector of zeros has no direction: ℓ = 1 and the derivative is 0.
    Numerics: for parallel vectors both cancel, since u and v are rounded. With r = y - α ŷ, the part of y orthogonal to
    ŷ, and α = y·ŷ/‖ŷ‖²:  ∂ℓ/∂ŷ = -r/(‖y‖ ‖ŷ‖), and ℓ = ‖r‖²/‖y‖² / (1 + u·v) where u·v > 0. r is made in two steps:
    from products α ŷ_i that are not rounded, and then from that r again, since α is rounded. Vectors are scaled by
    powers of two, so that entries of 1e-38 or 3e38 neither vanish nor overflow.
    """
    _, cosine, sine_squared, _, some = _across(y_true, y_pred)
    ahead = cosine > 0
    losses = jnp.where(ahead, sine_squared / (1 + jnp.where(ahead, cosine, 0)), 1 - cosine)
    return _mean(jnp.where(some, losses, 1), weights)


@_derivative()
def cosine_distance_derivative(y_true, y_pred, weights=None):
    """-r / (‖y‖ ‖ŷ‖) / n, r the part of y orthogonal to ŷ; 0 if either vector is 0."""
    r, _, _, (half, rest), some = _across(y_true, y_pred)
    return _mean_derivative(jnp.where(some[..., None], -r * half * rest, 0), weights, class_axes=1)


def _across(y_true, y_pred):
    """r/‖y‖/‖ŷ‖ for the scaled ŷ, u·v, ‖r‖²/‖y‖², ŷ's scaling, and whether neither vector is 0."""
    x, scaling, some_x = _scaled(y_pred)
    y, _, some_y = _scaled(y_true)
    xx, yy = (jnp.square(v).sum(-1, keepdims=True) for v in (x, y))
    alpha = (x * y).sum(-1, keepdims=True) / xx
    product, lost = exact_product(jnp.broadcast_to(alpha, x.shape), x)
    r = (y - product) - lost
    r = r - (r * x).sum(-1, keepdims=True) / xx * x
    cosine, sine_squared = alpha * jnp.sqrt(xx / yy), jnp.square(r).sum(-1, keepdims=True) / yy
    return r / jnp.sqrt(xx * yy), cosine[..., 0], sine_squared[..., 0], scaling, some_x & some_y


def _scaled(x):
    """x times the power of two that brings its largest entry into [1/2, 1); that power as two factors; and where x ≠ 0.

    A vector of zeros is replaced by ones.
    """
    largest = jnp.abs(x).max(-1, keepdims=True)
    some = largest > 0
    _, k = jnp.frexp(jax.lax.stop_gradient(jnp.where(some, largest, 1)))
    half = jnp.ldexp(jnp.ones_like(largest), -(k // 2))
    rest = jnp.ldexp(jnp.ones_like(largest), k // 2 - k)
    return jnp.where(some, x * half * rest, 1), (half, rest), some[..., 0]


# ---------------------------------------------------------------- by name

LOSSES: dict[str, Loss] = {
    "mse": Loss(mse, mse_derivative),
    "mae": Loss(mae, mae_derivative),
    "huber": Loss(huber, huber_derivative),
    "log_cosh": Loss(log_cosh, log_cosh_derivative),
    "poisson_nll": Loss(poisson_nll, poisson_nll_derivative),
    "gaussian_nll": Loss(gaussian_nll, gaussian_nll_derivative),
    "binary_cross_entropy": Loss(binary_cross_entropy, binary_cross_entropy_derivative),
    "binary_cross_entropy_with_logits": Loss(
        binary_cross_entropy_with_logits, binary_cross_entropy_with_logits_derivative
    ),
    "focal": Loss(focal, focal_derivative),
    "hinge": Loss(hinge, hinge_derivative),
    "squared_hinge": Loss(squared_hinge, squared_hinge_derivative),
    "softmax_cross_entropy": Loss(softmax_cross_entropy, softmax_cross_entropy_derivative),
    "softmax_cross_entropy_with_integer_labels": Loss(
        softmax_cross_entropy_with_integer_labels, softmax_cross_entropy_with_integer_labels_derivative
    ),
    "kl_divergence": Loss(kl_divergence, kl_divergence_derivative),
    "cosine_distance": Loss(cosine_distance, cosine_distance_derivative),
}


def get_loss(loss: str | Loss) -> Loss:
    """The Loss of that name, or the Loss itself; a ValueError names the nearest known one."""
    if isinstance(loss, Loss):
        return loss
    if loss not in LOSSES:
        raise unknown_name("loss", loss, LOSSES)
    return LOSSES[loss]
