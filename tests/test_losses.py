"""Losses against independent formulas, and at the places where textbook forms break."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chosen import one_in

import jaxnn
from jaxnn.losses import LOSSES, get_loss
from jaxnn.verify.certificate.registry import loss_points

rng = np.random.default_rng(5)
REAL, PRED = rng.normal(size=(7, 5)), rng.normal(size=(7, 5))
SHARE, HALF = rng.uniform(0.05, 0.95, size=(7, 5)), rng.uniform(size=(7, 5)).round()
SOFT = rng.dirichlet(np.ones(5), 7)


def sigma(z):
    return 1 / (1 + np.exp(-z))


def log_p(z):
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


# name -> (y_true, y_pred, the textbook's loss of each example)
TEXTBOOK = {
    "mse": (REAL, PRED, lambda y, p: (y - p) ** 2),
    "mae": (REAL, PRED, lambda y, p: abs(y - p)),
    "huber": (REAL, PRED, lambda y, p: np.where(abs(y - p) <= 1, (y - p) ** 2 / 2, abs(y - p) - 0.5)),
    "log_cosh": (REAL, PRED, lambda y, p: np.log(np.cosh(y - p))),
    "poisson_nll": (HALF, PRED, lambda y, p: np.exp(p) - y * p),
    "gaussian_nll": (
        REAL[:, :2],
        PRED[:, :4],
        lambda y, p: 0.5 * (p[:, 2:] + (y - p[:, :2]) ** 2 / np.exp(p[:, 2:])),
    ),
    "binary_cross_entropy": (HALF, SHARE, lambda y, p: -y * np.log(p) - (1 - y) * np.log(1 - p)),
    "binary_cross_entropy_with_logits": (
        SHARE,
        PRED,
        lambda y, z: -y * np.log(sigma(z)) - (1 - y) * np.log(1 - sigma(z)),
    ),
    "focal": (
        HALF,
        PRED,
        lambda y, z: np.where(
            y == 1, -0.25 * (1 - sigma(z)) ** 2 * np.log(sigma(z)), -0.75 * sigma(z) ** 2 * np.log(1 - sigma(z))
        ),
    ),
    "hinge": (np.sign(REAL), PRED, lambda y, p: np.maximum(0, 1 - y * p)),
    "squared_hinge": (np.sign(REAL), PRED, lambda y, p: np.maximum(0, 1 - y * p) ** 2),
    "softmax_cross_entropy": (SOFT, PRED, lambda q, z: -(q * log_p(z)).sum(-1)),
    "softmax_cross_entropy_with_integer_labels": (
        np.arange(7) % 5,
        PRED,
        lambda y, z: -log_p(z)[np.arange(7), y],
    ),
    "kl_divergence": (SOFT, log_p(PRED), lambda p, lq: (p * (np.log(p) - lq)).sum(-1)),
    "cosine_distance": (
        REAL,
        PRED,
        lambda y, p: 1 - (y * p).sum(-1) / np.linalg.norm(y, axis=-1) / np.linalg.norm(p, axis=-1),
    ),
}
ALL = one_in(2, "name", list(LOSSES))  # the battery of test_rules.py takes all of them


def test_every_loss_is_here():
    assert TEXTBOOK.keys() == LOSSES.keys()


@ALL
def test_value_is_the_mean_of_the_textbook(name):
    y, p, per_example = TEXTBOOK[name]
    with jax.enable_x64(True):
        np.testing.assert_allclose(LOSSES[name].value(y, p), per_example(y, p).mean(), rtol=1e-12)


@ALL
def test_weights_are_a_weighted_mean_and_zero_means_absent(name):
    y, p, per_example = TEXTBOOK[name]
    weights = np.array([1.0, 0.0, 2.0, 0.5, 0.0, 1.0, 3.0])
    value, derivative = LOSSES[name]
    keep = weights > 0
    with jax.enable_x64(True):
        losses = per_example(y, p)
        expected = np.average(losses, axis=0, weights=weights).mean()
        np.testing.assert_allclose(value(y, p, weights), expected, rtol=1e-12)
        np.testing.assert_allclose(value(y, p, 10 * weights), expected, rtol=1e-12)
        np.testing.assert_allclose(value(y[keep], p[keep], weights[keep]), expected, rtol=1e-12)
        slope = derivative(y, p, weights)
        np.testing.assert_allclose(slope[keep], derivative(y[keep], p[keep], weights[keep]), rtol=1e-12)
        poisoned = np.where(keep[:, None], p, np.nan)
        np.testing.assert_allclose(value(y, poisoned, weights), expected, rtol=1e-12)
        np.testing.assert_array_equal(derivative(y, poisoned, weights), slope)
        assert not slope[~keep].any()
        assert float(value(y, p, np.zeros(7))) == 0
        assert not derivative(y, p, np.zeros(7)).any()


@ALL
def test_weights_of_the_wrong_shape(name):
    y, p, _ = TEXTBOOK[name]
    with pytest.raises(ValueError, match=r"weights have shape \(5,\)"):
        LOSSES[name].derivative(y, p, np.ones(5))


@pytest.mark.quick
@ALL
def test_shapes_that_differ_are_not_broadcast(name):
    y, p, _ = TEXTBOOK[name]
    with pytest.raises(ValueError, match=r"y_true has shape .* needs a y_true of shape"):
        LOSSES[name].value(y[:, None], p)
    with pytest.raises(ValueError, match="is empty"):
        LOSSES[name].value(y[:0], p[:0])
    with pytest.raises(ValueError, match="y_pred has dtype int32"):
        LOSSES[name].value(y, np.ones(p.shape, np.int32))


@ALL
def test_low_precision_predictions(name):
    y, p, per_example = TEXTBOOK[name]
    p = jnp.asarray(p, jnp.bfloat16)
    assert LOSSES[name].value(y, p).dtype == jnp.float32
    assert LOSSES[name].derivative(y, p).dtype == jnp.bfloat16
    np.testing.assert_allclose(LOSSES[name].value(y, p), per_example(y, np.asarray(p, np.float64)).mean(), rtol=1e-5)


@one_in(3, "name", list(LOSSES))
def test_jax_grad_is_the_derivative_at_hard_points(name):
    """Ties, zeros and extremes, where autodiff of a carelessly written value differs from the derivative."""
    _, hard = loss_points(name)
    value, derivative = LOSSES[name]
    for point in hard:
        y_true, weights = point.given
        with jax.enable_x64(True):
            y_pred = jnp.asarray(point.inputs)
            autodiff = jax.grad(value, argnums=1)(y_true, y_pred, weights)
            np.testing.assert_allclose(derivative(y_true, y_pred, weights), autodiff, rtol=1e-12, atol=1e-15)


def test_names_can_be_given():
    assert float(jaxnn.mse(y_pred=jnp.ones(2), y_true=jnp.zeros(2))) == 1


@pytest.mark.quick
def test_mse_of_outputs_with_several_columns_and_of_bytes():
    y, p = np.zeros((4, 3), np.uint8), jnp.full((4, 3), -1.0)
    assert float(jaxnn.mse(y, p)) == 1  # uint8 arithmetic would wrap
    np.testing.assert_allclose(jaxnn.mse_derivative(y, p), np.full((4, 3), -2 / 12), rtol=1e-6)


def test_binary_cross_entropy_never_loses_its_gradient():
    y, p = jnp.array([1.0, 0.0, 1.0, 0.0]), jnp.array([0.0, 1.0, 1.0, 0.0])
    slope = 4 * jaxnn.binary_cross_entropy_derivative(y, p)
    assert np.isfinite(jaxnn.binary_cross_entropy(y, p))
    np.testing.assert_allclose(slope, [-8388608, 8388608, -1, 1], rtol=1e-6)
    assert float(jaxnn.binary_cross_entropy(y[2:], p[2:])) < 1e-6


def test_logits_keep_their_gradient_in_the_tails():
    z = jnp.array([20.0, -20.0, 17.0])
    slope = 3 * jaxnn.binary_cross_entropy_with_logits_derivative(jnp.array([1.0, 0.0, 1.0]), z)
    np.testing.assert_allclose(slope, [-2.0611537e-09, 2.0611537e-09, -4.1399375e-08], rtol=1e-6)
    value = jaxnn.binary_cross_entropy_with_logits(jnp.array([0.0]), jnp.array([1e4]))
    np.testing.assert_allclose(value, 1e4)


@pytest.mark.parametrize("gap", [0.0, 1.0, 10.0, 17.0, 40.0, 80.0])
def test_cross_entropy_of_a_confident_example_is_exact(gap):
    z = jnp.array([[gap, 0.0, -1.0]])
    rest = np.exp(-gap) + np.exp(-gap - 1)  # of the other classes, relative to the largest
    for right, loss in ((0, np.log1p(rest)), (1, gap + np.log1p(rest))):
        value = jaxnn.softmax_cross_entropy_with_integer_labels(jnp.array([right]), z)
        np.testing.assert_allclose(value, loss, rtol=1e-6)
    slope = jaxnn.softmax_cross_entropy_with_integer_labels_derivative(jnp.array([0]), z)
    np.testing.assert_allclose(slope, np.array([[-rest, np.exp(-gap), np.exp(-gap - 1)]]) / (1 + rest), rtol=1e-6)


def test_cross_entropy_with_masked_classes():
    z = jnp.array([[0.0, -jnp.inf, 2.0]])
    soft = jnp.array([[0.5, 0.0, 0.5]])
    expected = -0.5 * (np.log(1 / (1 + np.e**2)) + np.log(np.e**2 / (1 + np.e**2)))
    np.testing.assert_allclose(jaxnn.softmax_cross_entropy(soft, z), expected, rtol=1e-6)
    slope = jaxnn.softmax_cross_entropy_derivative(soft, z)
    np.testing.assert_allclose(slope, [[1 / (1 + np.e**2) - 0.5, 0, np.e**2 / (1 + np.e**2) - 0.5]], rtol=1e-5)


def test_label_smoothing_is_cross_entropy_with_smoothed_labels():
    labels, z = jnp.array([1, 4]), jnp.asarray(PRED[:2], jnp.float32)
    q = jax.nn.one_hot(labels, 5) * 0.9 + 0.1 / 5
    smoothed = jaxnn.softmax_cross_entropy_with_integer_labels(labels, z, label_smoothing=0.1)
    np.testing.assert_allclose(smoothed, jaxnn.softmax_cross_entropy(q, z), rtol=1e-6)
    with pytest.raises(ValueError, match="label_smoothing = 1"):
        jaxnn.softmax_cross_entropy_with_integer_labels(labels, z, label_smoothing=1)


def test_labels_of_bytes_and_more_classes_than_a_byte_can_count():
    z = jnp.asarray(np.random.default_rng(0).normal(size=(2, 300)), jnp.float32)
    value, derivative = LOSSES["softmax_cross_entropy_with_integer_labels"]
    for f in (value, derivative):
        np.testing.assert_array_equal(f(np.array([3, 255], np.uint8), z), f(np.array([3, 255]), z))


def test_labels_out_of_range():
    labels, z = jnp.array([0, 3]), jnp.zeros((2, 3))
    value, derivative = LOSSES["softmax_cross_entropy_with_integer_labels"]
    with pytest.raises(ValueError, match=r"labels from 0 to 3, .* classes 0 to 2"):
        value(labels, z)
    assert np.isnan(jax.jit(value)(labels, z))
    assert np.isnan(jax.jit(derivative)(labels, z)[1]).all()
    np.testing.assert_allclose(value(labels, z, jnp.array([1.0, 0.0])), np.log(3), rtol=1e-6)
    with pytest.raises(ValueError, match="expected integer class labels"):
        value(jnp.zeros(2), z)
    with pytest.raises(ValueError, match="expected labels -1 and 1; for labels 0 and 1"):
        jaxnn.hinge(jnp.array([0.0, 1.0]), jnp.zeros(2))


@pytest.mark.parametrize(
    ("name", "y_true"),
    [
        ("binary_cross_entropy", 2.0),
        ("binary_cross_entropy_with_logits", -1.0),
        ("focal", 5.0),
        ("poisson_nll", -5.0),
        ("softmax_cross_entropy", -0.5),
        ("kl_divergence", -1.0),
    ],
)
def test_labels_out_of_range_where_their_values_are_known(name, y_true):
    for f in LOSSES[name]:
        with pytest.raises(ValueError, match=r"y_true has values from .* expected"):
            f(jnp.full((2, 3), y_true), jnp.full((2, 3), 0.5))
        assert np.isfinite(jax.jit(f)(jnp.full((2, 3), y_true), jnp.full((2, 3), 0.5))).all()


@pytest.mark.parametrize("name", ["binary_cross_entropy", "binary_cross_entropy_with_logits", "focal", "kl_divergence"])
def test_a_probability_may_round_to_a_little_more_than_one(name):
    y_true = np.array([[np.nextafter(np.float32(1), np.float32(2)), 0]], np.float32)
    for f in LOSSES[name]:
        assert np.isfinite(f(y_true, jnp.array([[0.9, 0.1]]))).all()


def test_weights_that_are_negative_or_nan():
    for weights in ([-1.0, 1.0], [np.nan, 1.0]):
        with pytest.raises(ValueError, match=r"weights has values from .* expected numbers that are 0 or greater"):
            jaxnn.mse(jnp.ones(2), jnp.zeros(2), jnp.array(weights))
    with pytest.raises(ValueError, match="expected real numbers"):
        jaxnn.mse(jnp.ones(2, jnp.complex64), jnp.ones(2))


@ALL
def test_what_has_weight_zero_is_ignored_even_if_it_is_nan(name):
    """Its prediction, and its label, which outside jit is checked."""
    y_true, y_pred = (jnp.asarray(a) for a in TEXTBOOK[name][:2])
    y_pred = y_pred.astype(jnp.float32)
    weights = np.array([1, 0, 2, 0, 1, 3, 1], np.float32)
    bad = [-7 if jnp.issubdtype(a.dtype, jnp.integer) else np.nan for a in (y_true, y_pred)]
    poisoned = [
        jnp.where((weights > 0).reshape(-1, *[1] * (a.ndim - 1)), a, jnp.asarray(b, a.dtype))
        for a, b in zip((y_true, y_pred), bad, strict=True)
    ]
    for f in LOSSES[name]:
        np.testing.assert_array_equal(f(*poisoned, weights), f(y_true, y_pred, weights))


def test_log_cosh_keeps_small_and_large_errors():
    e = jnp.array([1e-5, 1e-3, 0.999, 1.001, 50.0, 1e4])
    truth = np.array([5e-11, 4.9999992e-7, 0.43302, 0.43454, 50 - np.log(2), 1e4 - np.log(2)])
    found = [float(jaxnn.log_cosh(jnp.zeros(1), x[None])) for x in e]
    np.testing.assert_allclose(found, truth, rtol=1e-4)
    np.testing.assert_allclose(found[0], 5e-11, rtol=1e-6)


def test_cosine_of_zeros_extremes_and_parallels():
    y = jnp.array([[1.0, 1.0], [0.0, 0.0], [1e30, 0.0], [1.0, 1.0]])
    p = jnp.array([[0.0, 0.0], [1.0, 2.0], [1e-30, 0.0], [1.0, 1.0001]])
    each = [float(jaxnn.cosine_distance(a[None], b[None])) for a, b in zip(y, p, strict=True)]
    np.testing.assert_allclose(each, [1, 1, 0, 1.25e-9], rtol=1e-2)  # 1 - u·v would give 0 or 6e-8
    assert np.isfinite(jaxnn.cosine_distance_derivative(y, p)).all()


def test_gaussian_nll_at_the_mean_has_no_nan():
    y, p = jnp.array([[2.0]]), jnp.array([[2.0, -1e4]])
    np.testing.assert_allclose(jaxnn.gaussian_nll(y, p), -5e3)
    np.testing.assert_allclose(jaxnn.gaussian_nll_derivative(y, p), [[0, 0.5]])
    with pytest.raises(ValueError, match="last axis must hold k means"):
        jaxnn.gaussian_nll(y, jnp.zeros((1, 3)))


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ValueError, match=r"unknown loss 'hubber'; did you mean 'huber'\?"):
        get_loss("hubber")
    with pytest.raises(ValueError, match="delta = 0"):
        jaxnn.huber(jnp.ones(1), jnp.ones(1), delta=0)
    with pytest.raises(ValueError, match="gamma = -1"):
        jaxnn.focal(jnp.ones(1), jnp.ones(1), gamma=-1)
