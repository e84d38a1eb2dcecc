"""Activations against independent formulas, and at the places where textbook forms break."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnn
from jaxnn.activations import ACTIVATIONS, Activation, get_activation

# The same functions as other people wrote them, for the values.
PEERS = {
    "identity": lambda x: x,
    "sigmoid": jax.nn.sigmoid,
    "log_sigmoid": jax.nn.log_sigmoid,
    "softplus": jax.nn.softplus,
    "silu": jax.nn.silu,
    "mish": jax.nn.mish,
    "tanh": jnp.tanh,
    "softsign": jax.nn.soft_sign,
    "hard_tanh": jax.nn.hard_tanh,
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "relu6": jax.nn.relu6,
    "elu": jax.nn.elu,
    "celu": jax.nn.celu,
    "selu": jax.nn.selu,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "hard_silu": jax.nn.hard_silu,
    "gelu_erf": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}
# Relative error in float32 of value and derivative, where the truth is at least 1e-34. The default is 4e-7.
FLOAT32_BOUNDS = {
    "tanh": (4e-7, 4e-6),  # e^-2x carries 2x roundings
    "silu": (4e-7, 2e-6),  # the derivative's zero at x = -1.28 amplifies
    "mish": (4e-7, 6e-6),
    "gelu_erf": (4e-7, 4e-6),  # the derivative's zero at x = -0.75 amplifies
    "gelu_tanh": (2e-5, 2e-5),
}
GRID = np.concatenate([np.linspace(-130, 130, 4001), [1e-30, -1e-30, 1e-7, -1e-7, 1e4, -1e4, 1e30, -1e30, 3e38, -3e38]])
GRID = GRID.astype(np.float32)
BOTH = pytest.mark.parametrize("name", ACTIVATIONS)


def in_float64(f, x):
    with jax.enable_x64(True):
        return np.asarray(f(jnp.asarray(np.asarray(x, np.float64))))


def relative_error(found, truth):
    found, keep = np.asarray(found, np.float64), np.abs(truth) >= 1e-34
    keep &= np.abs(truth) < 3e38
    return np.max(np.abs(found - truth)[keep] / np.abs(truth)[keep], initial=0)


@BOTH
def test_value_is_the_one_everybody_means(name):
    x = np.linspace(-8, 8, 101)
    np.testing.assert_allclose(in_float64(ACTIVATIONS[name].value, x), in_float64(PEERS[name], x), atol=1e-14)


@BOTH
def test_float32_is_right_over_the_whole_range(name):
    value, derivative = ACTIVATIONS[name]
    value_bound, derivative_bound = FLOAT32_BOUNDS.get(name, (4e-7, 4e-7))
    assert relative_error(value(GRID), in_float64(value, GRID)) <= value_bound
    assert relative_error(derivative(GRID), in_float64(derivative, GRID)) <= derivative_bound
    assert np.isfinite(value(GRID)).all()
    assert np.isfinite(derivative(GRID)).all()


@BOTH
def test_jax_grad_of_the_value_is_the_derivative_everywhere(name):
    """At 0, at the kinks and far out too: users who differentiate our functions get our derivative."""
    value, derivative = ACTIVATIONS[name]
    x = np.array([0.0, -0.0, 1.0, -1.0, 3.0, -3.0, 6.0, 0.5, -2.0, 1e4, -1e4, 3e38, -3e38])
    autodiff = in_float64(jax.vmap(jax.grad(value)), x)
    np.testing.assert_allclose(in_float64(derivative, x), autodiff, rtol=1e-12, atol=1e-15)


@BOTH
def test_nan_stays_nan_and_infinity_has_its_limit(name):
    value, derivative = ACTIVATIONS[name]
    x = jnp.array([np.nan, np.inf, -np.inf, 3e38, -3e38])
    f, df = np.asarray(value(x)), np.asarray(derivative(x))
    assert np.isnan(f[0])
    assert np.isnan(df[0]) or name == "identity"
    np.testing.assert_allclose(df[1:3], df[3:], atol=1e-30)
    for at_infinity, far in zip(f[1:3], f[3:], strict=True):
        assert at_infinity == far or (np.isinf(at_infinity) and abs(far) > 1e36)


@BOTH
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_is_rounded_once(name, dtype):
    x = jnp.asarray(np.linspace(-8, 8, 101), dtype)
    for f in ACTIVATIONS[name]:
        y = f(x)
        assert y.dtype == dtype
        exact = f(x.astype(jnp.float32))
        np.testing.assert_array_equal(np.asarray(y, np.float32), np.asarray(exact.astype(dtype), np.float32))


@BOTH
def test_any_shape_scalars_and_empty(name):
    for f in ACTIVATIONS[name]:
        assert f(0.5).shape == ()
        assert f(jnp.zeros((2, 0, 3))).shape == (2, 0, 3)


@BOTH
def test_integers_are_an_error(name):
    with pytest.raises(ValueError, match=r"x has dtype int32 .*expected a floating-point array"):
        ACTIVATIONS[name].derivative(jnp.arange(3))


@pytest.mark.quick
def test_textbook_derivatives_hold_where_they_are_right_and_ours_where_they_are_not():
    x = jnp.array([-2.0, 0.5, 3.0])
    s = jaxnn.sigmoid(x)
    np.testing.assert_allclose(jaxnn.sigmoid_derivative(x), s * (1 - s), rtol=1e-5)
    np.testing.assert_allclose(jaxnn.tanh_derivative(x), 1 - jnp.tanh(x) ** 2, rtol=1e-4)
    s = jaxnn.sigmoid(jnp.float32(20))
    assert float(s * (1 - s)) == 0  # the textbook's form
    np.testing.assert_allclose(jaxnn.sigmoid_derivative(jnp.float32(20)), 2.0611536e-09, rtol=1e-6)
    np.testing.assert_allclose(jaxnn.tanh_derivative(jnp.float32(10)), 8.2446145e-09, rtol=1e-6)


def test_gelu_erf_keeps_nothing_from_the_forward_to_the_backward():
    """jax.grad of jax.nn.gelu has temporaries of 2 arrays."""
    value, derivative = ACTIVATIONS["gelu_erf"]
    x = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    memory = jax.jit(lambda x, dy: (value(x), dy * derivative(x))).lower(x, x).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes == 0


@pytest.mark.quick
def test_kinks_take_the_flat_piece():
    flat = {"relu": [0.0], "relu6": [0.0, 6.0], "hard_tanh": [-1.0, 1.0], "hard_sigmoid": [-3.0, 3.0]}
    for name, kinks in flat.items():
        assert not ACTIVATIONS[name].derivative(jnp.array(kinks)).any(), name
    np.testing.assert_array_equal(ACTIVATIONS["hard_silu"].derivative(jnp.array([-3.0, 3.0])), [0, 1])
    np.testing.assert_allclose(ACTIVATIONS["leaky_relu"].derivative(jnp.array([0.0])), [0.01])


def test_hyper_parameters():
    x = jnp.array([-1.0, 2.0])
    np.testing.assert_allclose(jaxnn.leaky_relu(x, negative_slope=0.3), [-0.3, 2.0])
    np.testing.assert_allclose(jaxnn.elu(x, alpha=2.0), [2 * np.expm1(-1), 2.0], rtol=1e-6)
    np.testing.assert_allclose(jaxnn.celu(x, alpha=2.0), [2 * np.expm1(-0.5), 2.0], rtol=1e-6)
    with pytest.raises(ValueError, match="celu: alpha = 0"):
        jaxnn.celu(x, alpha=0)


def test_softmax_and_log_softmax():
    x = np.random.default_rng(0).normal(size=(3, 4, 5)) * 3
    for axis in (0, 1, -1):
        np.testing.assert_allclose(jaxnn.softmax(x, axis), jax.nn.softmax(jnp.asarray(x), axis), rtol=1e-5)
        expected = jax.nn.log_softmax(jnp.asarray(x), axis)  # which is a rounding of log Σ off near 0
        np.testing.assert_allclose(jaxnn.log_softmax(x, axis), expected, rtol=1e-5, atol=1e-6)


def test_softmax_of_masks_and_extremes():
    inf = np.inf
    x = jnp.array([[1e4, 0.0, -1e4], [-inf, 0.0, 0.0], [-inf, -inf, -inf], [3.0, 3.0, 3.0]])
    p, cache = jaxnn.softmax_forward(x)
    np.testing.assert_allclose(p, [[1, 0, 0], [0, 0.5, 0.5], [0, 0, 0], [1 / 3] * 3], rtol=1e-6)
    assert np.isfinite(jaxnn.softmax_backward(cache, jnp.ones_like(x))).all()
    y, cache = jaxnn.log_softmax_forward(x)
    np.testing.assert_allclose(y[0], [0, -1e4, -2e4])
    assert (np.asarray(y[2]) == -inf).all()
    dx = jaxnn.log_softmax_backward(cache, jnp.ones_like(x))
    np.testing.assert_allclose(dx[:2], [[-2, 1, 1], [1, -0.5, -0.5]], atol=1e-6)
    assert jaxnn.softmax(jnp.zeros((2, 0))).shape == (2, 0)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ValueError, match=r"unknown activation 'gelu_erv'; did you mean 'gelu_erf'\?"):
        get_activation("gelu_erv")
    own = Activation(lambda x: x * x, lambda x: 2 * x)
    assert get_activation(own) is own
