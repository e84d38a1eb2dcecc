"""Loss functions and their derivatives with respect to the prediction.

    value(y_true, y_pred, weights=None)      -> L, a scalar
    derivative(y_true, y_pred, weights=None) -> ∂L/∂y_pred, shape and dtype of y_pred

The shapes of y_true and y_pred are equal, unless a docstring says otherwise: (n,) against (n, 1) is a ValueError, not a
broadcast. y_pred is floating-point; y_true may be of any real dtype and is converted. An empty batch is a ValueError.

Reduction: the mean. With ℓ_i the loss of example i (of entry i, where a loss has no class axis):

    L = Σ_i w_i ℓ_i / Σ_i w_i,      ∂L/∂ŷ_i = w_i ∂ℓ_i/∂ŷ_i / Σ_i w_i,      w_i = 1 by default

Labels and weights out of range are a ValueError where their values are known, outside jit.

`weights` >= 0 has the leading axes of the ℓ_i, e.g. (batch,) or (batch, time), and is constant: no derivative is taken.
An example of weight 0 costs nothing and is not looked at, be it NaN. Weights of 0 alone give L = 0.

Everything is calculated in at least float32, and L has that dtype; y_pred's dtype comes back only in the derivative.
Below, y is y_true, ŷ or z is y_pred; a value and its derivative stand next to each other.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxnn._checks import at_least_float32, float_array, fraction, non_negative, positive, unknown_name
from jaxnn.activations import log_sigmoid, sigmoid


class Loss(NamedTuple):
    """A loss and its derivative with respect to the prediction."""

    value: Callable[..., jax.Array]  # (y_true, y_pred, weights=None) -> L
    derivative: Callable[..., jax.Array]  # (y_true, y_pred, weights=None) -> ∂L/∂y_pred


# ---------------------------------------------------------------- what all losses share


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
    y_true = jnp.asarray(y_true)
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


def _require_values(who, name, values, fit, expected):
    """ValueError unless all values fit, where they are known: under jit they are not, and nothing is checked."""
    if isinstance(values, Tracer):
        return
    values = np.asarray(values)  # under jit, jax.numpy would make even constants unknown
    if not fit(values).all():
        raise ValueError(f"{who}: {name} has values from {values.min()} to {values.max()}, expected {expected}")


def _require_share(who, y_true):
    def fit(y):
        return (y >= 0) & (y <= 1 + 1e-6)  # a probability that was normalised in float32 may round to 1.0000001

    _require_values(who, "y_true", y_true, fit, "labels or shares from 0 to 1")


def _require_not_negative(who, y_true, what):
    _require_values(who, "y_true", y_true, lambda y: y >= 0, what)


def _full_weights(weights, shape, dtype):
    """weights and their sum, broadcast to the shape of the losses."""
    weights = jnp.asarray(weights)
    _require_values("the loss", "weights", weights, lambda w: w >= 0, "numbers that are 0 or greater")
    if weights.shape != shape[: weights.ndim]:
        raise ValueError(
            f"weights have shape {weights.shape}, the losses {shape}; weights must have their leading axes: "
            f"one weight an example, shape {shape[:1]}"
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
    """w ∂ℓ/∂ŷ / Σ w; class_axes says how many of the last axes belong to one example."""
    shape = dlosses.shape[: dlosses.ndim - class_axes]
    if weights is None:
        return dlosses / math.prod(shape)
    weights, total = _full_weights(weights, shape, dlosses.dtype)
    weights = jnp.broadcast_to(weights.reshape(shape + (1,) * class_axes), dlosses.shape)
    return jnp.where(weights == 0, 0, weights / total * dlosses)


# ---------------------------------------------------------------- regression


@_value()
def mse_loss(y_true, y_pred, weights=None):
    """Mean squared error.

    ℓ = (ŷ - y)²,  ∂ℓ/∂ŷ = 2 (ŷ - y)

    The mean runs over all entries: (n, k) predictions are divided by n k.

    >>> mse_loss(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0]))
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
def mae_loss(y_true, y_pred, weights=None):
    """Mean absolute error.

    ℓ = |ŷ - y|,  ∂ℓ/∂ŷ = sign(ŷ - y), 0 at ŷ = y

    Numerics: |e| as e sign(e), since jax.grad of `abs` at 0 is 1.
    """
    e = y_pred - y_true
    return _mean(e * jnp.sign(e), weights)


@_derivative()
def mae_derivative(y_true, y_pred, weights=None):
    """sign(ŷ - y) / n, 0 where ŷ = y."""
    return _mean_derivative(jnp.sign(y_pred - y_true), weights)


@_value()
def huber_loss(y_true, y_pred, weights=None, *, delta: float = 1.0):
    """Squared error near the truth, absolute error far from it.

    e = ŷ - y;  ℓ = e²/2 for |e| <= δ, δ (|e| - δ/2) beyond;  ∂ℓ/∂ŷ = e clipped to [-δ, δ]

    Raises ValueError unless δ > 0.
    Numerics: with c = min(|e|, δ), ℓ = c (|e| - c/2) in one piece: e² is never formed where it could overflow.
    Source: Huber 1964.
    """
    positive("huber_loss", "delta", delta)
    e = jnp.abs(y_pred - y_true)
    c = jnp.where(e <= delta, e, delta)
    return _mean(c * (e - c / 2), weights)


@_derivative()
def huber_derivative(y_true, y_pred, weights=None, *, delta: float = 1.0):
    """(ŷ - y) clipped to [-δ, δ], / n."""
    positive("huber_derivative", "delta", delta)
    return _mean_derivative(jnp.clip(y_pred - y_true, -delta, delta), weights)


@_value()
def log_cosh_loss(y_true, y_pred, weights=None):
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
def poisson_nll_loss(y_true, y_pred, weights=None):
    """Negative log-likelihood of counts y under a Poisson distribution of rate e^ŷ.

    ℓ = e^ŷ - y ŷ,  ∂ℓ/∂ŷ = e^ŷ - y

    ŷ is the logarithm of the rate; the constant log y! is left out. y >= 0.
    Numerics: e^ŷ is infinite from ŷ = 89 on (float32), as the loss itself is; there y ŷ is left out, which may be too.
    """
    _require_not_negative("poisson_nll_loss", y_true, "counts that are 0 or greater")
    rate = jnp.exp(y_pred)
    return _mean(rate - y_true * jnp.where(rate == jnp.inf, 0, y_pred), weights)


@_derivative()
def poisson_nll_derivative(y_true, y_pred, weights=None):
    """(e^ŷ - y) / n."""
    _require_not_negative("poisson_nll_derivative", y_true, "counts that are 0 or greater")
    return _mean_derivative(jnp.exp(y_pred) - y_true, weights)


def _mean_half(shape):
    """The shape of y_true where y_pred holds means and log-variances side by side."""
    if not shape or shape[-1] % 2:
        raise ValueError(
            f"gaussian_nll: y_pred has shape {shape}; its last axis must hold k means and then k log-variances"
        )
    return (*shape[:-1], shape[-1] // 2)


@_value(_mean_half)
def gaussian_nll_loss(y_true, y_pred, weights=None):
    """Negative log-likelihood under a normal distribution whose mean and variance are both predicted.

    y_pred = [μ, s], s = log σ²;  ℓ = (s + (y - μ)² e^-s) / 2
    ∂ℓ/∂μ = (μ - y) e^-s,  ∂ℓ/∂s = (1 - (y - μ)² e^-s) / 2

    y_true (..., k), y_pred (..., 2k): k means, then k log-variances. The mean runs over all entries of y_true; the
    constant log(2π)/2 is left out.
    Numerics: (y - μ)² e^-s is the square of (μ - y) e^(-s/2), which is 0 at y = μ whatever s (not 0 * inf). |μ - y| is
    taken as 3e38 (float32) where it overflows.
    """
    e, s, root = _gaussian_parts(y_true, y_pred)
    return _mean((s + jnp.square(e * root)) / 2, weights)


@_derivative(_mean_half)
def gaussian_nll_derivative(y_true, y_pred, weights=None):
    """[(μ - y) e^-s, (1 - (y - μ)² e^-s) / 2] / n, n the number of entries of y_true."""
    e, _, root = _gaussian_parts(y_true, y_pred)
    dmean = _mean_derivative(e * root * root, weights)
    dlog_variance = _mean_derivative((1 - jnp.square(e * root)) / 2, weights)
    return jnp.concatenate([dmean, dlog_variance], axis=-1)


def _gaussian_parts(y_true, y_pred):
    """μ - y, s, and e^(-s/2), taken as 1 where μ = y."""
    mean, s = jnp.split(y_pred, 2, axis=-1)
    largest = jnp.finfo(mean.dtype).max
    e = jnp.clip(mean - y_true.astype(mean.dtype), -largest, largest)
    return e, s, jnp.exp(jnp.where(e == 0, 0, -s / 2))


# ---------------------------------------------------------------- two classes


@_value()
def binary_cross_entropy(y_true, y_pred, weights=None):
    """Cross-entropy of two classes, from probabilities.

    ℓ = -y log ŷ - (1 - y) log(1 - ŷ),  ∂ℓ/∂ŷ = (ŷ - y) / (ŷ (1 - ŷ)),      ŷ in [ε, 1 - ε]

    y in [0, 1]. Outside [ε, 1 - ε] the loss goes on as its tangent there, so value and derivative stay finite and the
    worst mistakes keep the largest gradient, 1/ε, where clipping alone would give them 0.
    Numerics: ε is the resolution of the dtype calculated in (float32: 1.2e-7); the customary 1e-15 disappears in
    float32(1 - 1e-15) == 1. Prefer `binary_cross_entropy_with_logits`, which needs no ε.
    """
    _require_share("binary_cross_entropy", y_true)
    p = _clipped(y_pred)
    losses = -y_true * jnp.log(p) - (1 - y_true) * jnp.log1p(-p)
    return _mean(losses + _bce_slope(y_true, p) * (y_pred - p), weights)


@_derivative()
def binary_cross_entropy_derivative(y_true, y_pred, weights=None):
    """(p - y) / (p (1 - p)) / n, p = ŷ clipped to [ε, 1 - ε]."""
    _require_share("binary_cross_entropy_derivative", y_true)
    return _mean_derivative(_bce_slope(y_true, _clipped(y_pred)), weights)


def _clipped(y_pred):
    eps = jnp.finfo(y_pred.dtype).eps
    return jnp.clip(y_pred, eps, 1 - eps)


def _bce_slope(y_true, p):
    return (p - y_true) / (p * (1 - p))


@_value()
def binary_cross_entropy_with_logits(y_true, y_pred, weights=None):
    """Cross-entropy of two classes, from logits.

    ℓ = -y log σ(z) - (1 - y) log σ(-z),  ∂ℓ/∂z = (1 - y) σ(z) - y σ(-z)

    y in [0, 1].
    Numerics: both terms are non-negative and nothing cancels. max(z, 0) - z y + log1p(e^-|z|) has the same value, but
    its jax.grad at z = 0 is 0 or -1 instead of ±1/2.
    """
    _require_share("binary_cross_entropy_with_logits", y_true)
    return _mean(-y_true * log_sigmoid(y_pred) - (1 - y_true) * log_sigmoid(-y_pred), weights)


@_derivative()
def binary_cross_entropy_with_logits_derivative(y_true, y_pred, weights=None):
    """((1 - y) σ(z) - y σ(-z)) / n.

    Numerics: the textbook's σ(z) - y is 0 for y = 1 from z = 17 on (float32).
    """
    _require_share("binary_cross_entropy_with_logits_derivative", y_true)
    return _mean_derivative((1 - y_true) * sigmoid(y_pred) - y_true * sigmoid(-y_pred), weights)


@_value()
def focal_loss(y_true, y_pred, weights=None, *, gamma: float = 2.0, alpha: float = 0.25):
    """Cross-entropy of two classes, from logits, that turns away from what is already easy.

    ℓ = y α g(z) + (1 - y) (1 - α) g(-z),        g(z) = σ(-z)^γ (-log σ(z))
    ∂ℓ/∂z = y α g'(z) - (1 - y) (1 - α) g'(-z),  g'(z) = -σ(-z)^γ (γ σ(z) (-log σ(z)) + σ(-z))

    y in [0, 1]; γ = 0 and α = 1/2 give half of `binary_cross_entropy_with_logits`.
    Raises ValueError unless γ >= 0 and 0 <= α <= 1.
    Numerics: σ(-z)^γ = e^(-γ max(z, 0)) / (1 + e^-|z|)^γ, so no power of 0 is differentiated, and of a large exponent
    nothing is rounded but γ z, which is exact for a γ that is a power of two.
    Source: Lin et al. 2017 (arXiv:1708.02002).
    """
    _check_focal("focal_loss", gamma, alpha)
    _require_share("focal_loss", y_true)

    def g(z):
        return -_power_of_sigmoid(z, gamma) * log_sigmoid(z)

    return _mean(y_true * alpha * g(y_pred) + (1 - y_true) * (1 - alpha) * g(-y_pred), weights)


@_derivative()
def focal_derivative(y_true, y_pred, weights=None, *, gamma: float = 2.0, alpha: float = 0.25):
    """(y α g'(z) - (1 - y) (1 - α) g'(-z)) / n, g'(z) = -σ(-z)^γ (γ σ(z) (-log σ(z)) + σ(-z))."""
    _check_focal("focal_derivative", gamma, alpha)
    _require_share("focal_derivative", y_true)

    def dg(z):
        return -_power_of_sigmoid(z, gamma) * (sigmoid(-z) - gamma * sigmoid(z) * log_sigmoid(z))

    return _mean_derivative(y_true * alpha * dg(y_pred) - (1 - y_true) * (1 - alpha) * dg(-y_pred), weights)


def _power_of_sigmoid(z, gamma):
    """σ(-z)^γ = e^(-γ max(z, 0)) / (1 + e^-|z|)^γ."""
    above, below = jnp.where(z >= 0, z, 0), jnp.where(z >= 0, -z, z)
    return jnp.exp(-gamma * above) * jnp.power(1 / (1 + jnp.exp(below)), gamma)


def _check_focal(who, gamma, alpha):
    non_negative(who, "gamma", gamma)
    if not 0 <= alpha <= 1:
        raise ValueError(f"{who}: alpha = {alpha}, expected 0 <= alpha <= 1")


@_value()
def hinge_loss(y_true, y_pred, weights=None):
    """The loss of the support vector machine.

    ℓ = max(0, 1 - y ŷ),  ∂ℓ/∂ŷ = -y for y ŷ < 1, else 0

    y is -1 or 1: labels 0 and 1 are y = 2 label - 1.
    """
    _check_signs("hinge_loss", y_true)
    margin = 1 - y_true * y_pred
    return _mean(jnp.where(margin <= 0, 0, margin), weights)


@_derivative()
def hinge_derivative(y_true, y_pred, weights=None):
    """-y / n where y ŷ < 1, else 0; 0 at the kink."""
    _check_signs("hinge_derivative", y_true)
    return _mean_derivative(jnp.where(y_true * y_pred >= 1, 0, -y_true), weights)


@_value()
def squared_hinge_loss(y_true, y_pred, weights=None):
    """The square of the hinge, which has no kink.

    ℓ = max(0, 1 - y ŷ)²,  ∂ℓ/∂ŷ = -2 y max(0, 1 - y ŷ)

    y is -1 or 1, as in `hinge_loss`.
    """
    _check_signs("squared_hinge_loss", y_true)
    margin = 1 - y_true * y_pred
    return _mean(jnp.square(jnp.where(margin <= 0, 0, margin)), weights)


@_derivative()
def squared_hinge_derivative(y_true, y_pred, weights=None):
    """-2 y max(0, 1 - y ŷ) / n."""
    _check_signs("squared_hinge_derivative", y_true)
    margin = 1 - y_true * y_pred
    return _mean_derivative(-2 * y_true * jnp.where(margin <= 0, 0, margin), weights)


def _check_signs(who, y_true):
    expected = "labels -1 and 1; for labels 0 and 1 pass 2 * y_true - 1"
    _require_values(who, "y_true", y_true, lambda y: np.abs(y) == 1, expected)


# ---------------------------------------------------------------- many classes


@_value()
def softmax_cross_entropy(y_true, y_pred, weights=None):
    """Cross-entropy of a distribution over classes, from logits.

    ℓ = -Σ_j q_j log p_j,  ∂ℓ/∂z_j = p_j Σ_k q_k - q_j,      p = softmax(z), q = y_true

    y_true and y_pred (..., classes); q >= 0, usually Σ q = 1, then ∂ℓ/∂z = p - q.
    Numerics: with m the largest logit and r = Σ exp(z_k - m) over all others, -log p_j = (m - z_j) + log1p(r): two
    non-negative terms, right down to the smallest float where logsumexp(z) - z_j rounds to 0 (a gap of 17 in float32).
    Likewise the derivative is p_j (Σ_{k≠j} q_k) - q_j (Σ_{k≠j} p_k) and 1 - p_m is r / (1 + r): p_j - q_j cancels.
    """
    _require_not_negative("softmax_cross_entropy", y_true, "shares that are 0 or greater")
    return _mean(_cross_entropy(y_true, y_pred), weights)


@_derivative()
def softmax_cross_entropy_derivative(y_true, y_pred, weights=None):
    """(p_j Σ_k q_k - q_j) / n, p = softmax(z), q = y_true."""
    _require_not_negative("softmax_cross_entropy_derivative", y_true, "shares that are 0 or greater")
    return _mean_derivative(_cross_entropy_slope(y_true, y_pred), weights, class_axes=1)


def _without_classes(shape):
    if not shape:
        raise ValueError("softmax_cross_entropy: y_pred is a scalar, expected logits of shape (..., classes)")
    return shape[:-1]


@_value(_without_classes)
def softmax_cross_entropy_with_integer_labels(y_true, y_pred, weights=None, *, label_smoothing: float = 0.0):
    """Cross-entropy of one class an example, from logits.

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
    _, gaps, r = _softmax_parts(z)
    return jnp.where(q == 0, 0, q * gaps).sum(-1) + q.sum(-1) * jnp.log1p(r)


def _cross_entropy_slope(q, z):
    """p_j Σ_{k≠j} q_k - q_j Σ_{k≠j} p_k."""
    is_max, gaps, r = _softmax_parts(z)
    p = jnp.exp(-gaps) / (1 + r[..., None])
    others = jnp.where(is_max, (r / (1 + r))[..., None], 1 - p)
    return p * (q.sum(-1, keepdims=True) - q) - q * others


def _softmax_parts(z):
    """Where the (first) largest logit m is, the gaps m - z_j >= 0, and r = Σ exp(-gap) over all others."""
    is_max = _at_index(jnp.argmax(z, -1), z.shape)
    m = jnp.where(is_max, z, 0).sum(-1, keepdims=True)
    gaps = jnp.where(m == -jnp.inf, 0, m - z)
    return is_max, gaps, jnp.where(is_max, 0, jnp.exp(-gaps)).sum(-1)


@_value()
def kl_divergence(y_true, y_pred, weights=None):
    """Kullback-Leibler divergence of predicted log-probabilities from a distribution.

    ℓ = Σ_j p_j (log p_j - ŷ_j),  ∂ℓ/∂ŷ_j = -p_j,      p = y_true

    y_true (..., classes) probabilities; y_pred (..., classes) LOG-probabilities, e.g. from log_softmax.
    Numerics: 0 log 0 = 0, also against ŷ = -inf. Close distributions cancel between classes: the absolute error is one
    rounding of the largest term.
    """
    _require_share("kl_divergence", y_true)
    some = y_true > 0
    terms = y_true * (jnp.log(jnp.where(some, y_true, 1)) - jnp.where(some, y_pred, 0))
    return _mean(terms.sum(-1), weights)


@_derivative()
def kl_divergence_derivative(y_true, y_pred, weights=None):
    """-p_j / n."""
    _require_share("kl_divergence_derivative", y_true)
    return _mean_derivative(jnp.where(y_true > 0, -y_true, 0), weights, class_axes=1)


@_value()
def cosine_loss(y_true, y_pred, weights=None):
    """One minus the cosine of the angle between two vectors.

    ℓ = 1 - u·v,  ∂ℓ/∂ŷ = -(v - (u·v) u) / ‖ŷ‖,      u = ŷ/‖ŷ‖, v = y/‖y‖

    y_true and y_pred (..., features). A vector of zeros has no direction: ℓ = 1 and the derivative is 0.
    Numerics: ℓ = ‖u - v‖²/2 and ∂ℓ/∂ŷ = (u - v - ℓ u)/‖ŷ‖, which keep their digits for parallel vectors, where 1 - u·v
    cancels; norms are scaled by the largest entry, so that entries of 1e-38 or 3e38 neither vanish nor overflow.
    """
    u, v, _, some = _directions(y_true, y_pred)
    return _mean(jnp.where(some, jnp.square(u - v).sum(-1) / 2, 1), weights)


@_derivative()
def cosine_derivative(y_true, y_pred, weights=None):
    """(u - v - ℓ u) / ‖ŷ‖ / n, ℓ = ‖u - v‖²/2; 0 if either vector is 0."""
    u, v, norm, some = _directions(y_true, y_pred)
    loss = jnp.square(u - v).sum(-1, keepdims=True) / 2
    slope = jnp.where(some[..., None], (u - v - loss * u) / norm, 0)
    return _mean_derivative(slope, weights, class_axes=1)


def _directions(y_true, y_pred):
    """u, v, ‖ŷ‖ (1 for a vector of zeros), and whether both vectors are other than 0."""
    u, norm, some_u = _direction(y_pred)
    v, _, some_v = _direction(y_true)
    return u, v, norm, some_u & some_v


def _direction(x):
    largest = jnp.abs(x).max(-1, keepdims=True)
    some = largest > 0
    # Twice by the root: XLA divides a row by multiplying with 1 / largest, which underflows for the largest floats.
    root = 1 / jnp.sqrt(jnp.where(some, largest, 1))
    scaled = x * root * root
    norm = jnp.sqrt(jnp.where(some, jnp.square(scaled).sum(-1, keepdims=True), 1))
    return scaled / norm, norm * jnp.where(some, largest, 1), some[..., 0]


# ---------------------------------------------------------------- by name

LOSSES: dict[str, Loss] = {
    "mse": Loss(mse_loss, mse_derivative),
    "mae": Loss(mae_loss, mae_derivative),
    "huber": Loss(huber_loss, huber_derivative),
    "log_cosh": Loss(log_cosh_loss, log_cosh_derivative),
    "poisson_nll": Loss(poisson_nll_loss, poisson_nll_derivative),
    "gaussian_nll": Loss(gaussian_nll_loss, gaussian_nll_derivative),
    "binary_cross_entropy": Loss(binary_cross_entropy, binary_cross_entropy_derivative),
    "binary_cross_entropy_with_logits": Loss(
        binary_cross_entropy_with_logits, binary_cross_entropy_with_logits_derivative
    ),
    "focal": Loss(focal_loss, focal_derivative),
    "hinge": Loss(hinge_loss, hinge_derivative),
    "squared_hinge": Loss(squared_hinge_loss, squared_hinge_derivative),
    "softmax_cross_entropy": Loss(softmax_cross_entropy, softmax_cross_entropy_derivative),
    "softmax_cross_entropy_with_integer_labels": Loss(
        softmax_cross_entropy_with_integer_labels, softmax_cross_entropy_with_integer_labels_derivative
    ),
    "kl_divergence": Loss(kl_divergence, kl_divergence_derivative),
    "cosine": Loss(cosine_loss, cosine_derivative),
}


def get_loss(loss: str | Loss) -> Loss:
    """The Loss of that name, or the Loss itself; a ValueError names the nearest known one."""
    if isinstance(loss, Loss):
        return loss
    if loss not in LOSSES:
        raise unknown_name("loss", loss, LOSSES)
    return LOSSES[loss]
