"""Initializers: moments within their sampling error, orthogonality, what deep networks do with them."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import initializers
from jaxnn.activations import relu
from jaxnn.initializers import INITIALIZERS, fans, get_initializer

KEY = jax.random.key(0)
DENSE, CONV = (211, 97), (3, 5, 17, 23)  # fans 211, 97 and 255, 345

# name: (std for fans (n_in, n_out), largest entry over std, kurtosis E w⁴ / std⁴)
ROOT_3 = math.sqrt(3)
TRUNCATED = 0.8796256610342398
SCALED = {
    "normal": (lambda n_in, n_out: 0.01, math.inf, 3.0),
    "uniform": (lambda n_in, n_out: 0.01 / ROOT_3, ROOT_3, 1.8),
    "truncated_normal": (lambda n_in, n_out: 0.01, 2 / TRUNCATED, 2.37),
    "xavier_normal": (lambda n_in, n_out: (2 / (n_in + n_out)) ** 0.5, math.inf, 3.0),
    "xavier_uniform": (lambda n_in, n_out: (2 / (n_in + n_out)) ** 0.5, ROOT_3, 1.8),
    "he_normal": (lambda n_in, n_out: (2 / n_in) ** 0.5, math.inf, 3.0),
    "he_uniform": (lambda n_in, n_out: (2 / n_in) ** 0.5, ROOT_3, 1.8),
    "lecun_normal": (lambda n_in, n_out: n_in**-0.5, math.inf, 3.0),
    "lecun_uniform": (lambda n_in, n_out: n_in**-0.5, ROOT_3, 1.8),
}


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize(("shape", "fan"), [(DENSE, (211, 97)), (CONV, (255, 345)), ((20011,), (20011, 1))])
def test_mean_std_and_bounds(name, shape, fan):
    """Each within 4 of its standard errors: std/√n, and std √((kurtosis - 1) / 4n)."""
    std_of, largest, kurtosis = SCALED[name]
    std = std_of(*fan)
    w = np.asarray(INITIALIZERS[name](KEY, shape), np.float64)
    assert w.shape == shape
    assert abs(w.mean()) < 4 * std / math.sqrt(w.size)
    assert abs(w.std() - std) < 4 * std * math.sqrt((kurtosis - 1) / (4 * w.size))
    tail = math.sqrt(2 * math.log(w.size)) if largest == math.inf else largest
    assert 0.9 * tail < np.abs(w).max() / std < min(largest * (1 + 1e-6), 1.5 * tail)


@pytest.mark.quick
@pytest.mark.parametrize("name", [name for name in SCALED if name.startswith(("xavier", "he", "lecun"))])
def test_scale_to_the_last_digit(name):
    """The sampling error above hides a factor of 1.01; the plain draw from the same key does not."""
    std = SCALED[name][0](255, 345)
    if name.endswith("normal"):
        plain = initializers.normal(KEY, CONV, stddev=std)
    else:
        plain = initializers.uniform(KEY, CONV, low=-ROOT_3 * std, high=ROOT_3 * std)
    np.testing.assert_allclose(INITIALIZERS[name](KEY, CONV), plain, rtol=1e-5, atol=1e-6 * std)


def test_arguments_of_the_plain_ones():
    n = 20_011
    w = np.asarray(initializers.normal(KEY, (n,), stddev=3.0))
    assert abs(w.std() - 3) < 4 * 3 / math.sqrt(2 * n)
    w = np.asarray(initializers.uniform(KEY, (n,), low=2.0, high=5.0))
    assert w.min() >= 2
    assert w.max() < 5
    assert abs(w.mean() - 3.5) < 4 * 3 / math.sqrt(12 * n)
    w = np.asarray(initializers.truncated_normal(KEY, (n,), stddev=3.0))
    assert abs(w.std() - 3) < 4 * 3 / math.sqrt(2 * n)
    np.testing.assert_array_equal(initializers.zeros(KEY, ()), 0.0)
    np.testing.assert_array_equal(initializers.ones(KEY, (2, 0)), np.ones((2, 0)))
    np.testing.assert_array_equal(initializers.constant(KEY, (2, 3), value=0.5), np.full((2, 3), 0.5))


@pytest.mark.parametrize("shape", [(7, 7), (11, 5), (5, 11), (3, 2, 4, 5), (2, 4, 13), (6,)])
def test_orthogonal(shape):
    with jax.enable_x64(True):
        w = np.asarray(initializers.orthogonal(KEY, shape, gain=1.5))
    assert w.shape == shape
    assert w.dtype == np.float64
    w = w.reshape(-1, shape[-1]) / 1.5
    product = w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T
    np.testing.assert_allclose(product, np.eye(min(w.shape)), atol=1e-14)


def test_orthogonal_is_uniform():
    """Over the group of 3×3 matrices every entry has mean 0 and mean square 1/3; without the signs, the mean is not."""
    draw = jax.jit(jax.vmap(lambda key: initializers.orthogonal(key, (3, 3))))
    w = np.asarray(draw(jax.random.split(KEY, 2000)), np.float64)
    assert np.abs(w.mean(0)).max() < 4 * math.sqrt(1 / 3 / 2000)
    np.testing.assert_allclose((w**2).mean(0), 1 / 3, atol=4 * math.sqrt((1 / 5 - 1 / 9) / 2000))
    traces = np.trace(w, axis1=1, axis2=2)  # under the uniform measure mean 0 and mean square 1
    assert abs((traces**2).mean() - 1) < 4 * math.sqrt((3 - 1) / 2000)
    assert 0.4 < (np.linalg.det(w) > 0).mean() < 0.6


def mean_square_after(initializer, depth=20, width=128):
    """The mean square of z = x W in the last of some relu layers, over that in the first; of 8 networks."""

    def relu_layer(x, key):
        z = x @ initializer(key, (width, width))
        return relu(z), jnp.square(z).mean()

    def network(key):
        x_key, *keys = jax.random.split(key, depth + 1)
        _, squares = jax.lax.scan(relu_layer, jax.random.normal(x_key, (8, width)), jnp.stack(keys))
        return squares[-1] / squares[0]

    return np.asarray(jax.jit(lambda keys: jax.lax.map(network, keys))(jax.random.split(KEY, 8)))


def test_he_keeps_the_variance_of_relu_layers():
    """Between networks the logarithm spreads by about √(5 · 20/128) = 0.9, their median by 0.4."""
    assert 1 / 3 < np.median(mean_square_after(initializers.he_normal)) < 3
    assert np.median(mean_square_after(initializers.lecun_normal)) < 1e-4  # halved by each relu

    def read_as_variance(key, shape):
        return initializers.normal(key, shape, stddev=math.sqrt(math.sqrt(2 / shape[0])))

    assert np.sqrt(np.median(mean_square_after(read_as_variance))) > 1e8  # the truth: √8^19 = 4e8


@pytest.mark.parametrize("name", INITIALIZERS)
def test_dtypes_and_keys(name):
    """One key, one draw; bfloat16 and float16 are the float32 draw, rounded."""
    initializer = INITIALIZERS[name]
    w = initializer(KEY, (6, 4))
    assert w.dtype == jnp.float32
    np.testing.assert_array_equal(w, initializer(KEY, (6, 4)))
    for dtype in (jnp.bfloat16, jnp.float16):
        low = initializer(KEY, (6, 4), dtype)
        assert low.dtype == dtype
        np.testing.assert_array_equal(low, w.astype(dtype))
    if name not in ("zeros", "ones"):
        assert (w != initializer(jax.random.key(1), (6, 4))).any()
    with jax.enable_x64(True):
        assert initializer(KEY, (6, 4)).dtype == jnp.float64
        assert initializer(KEY, (6, 4), jnp.float32).dtype == jnp.float32
    with pytest.raises(ValueError, match="dtype = int32, expected a floating-point"):
        initializer(KEY, (6, 4), jnp.int32)


@pytest.mark.quick
def test_fans():
    assert fans((7,)) == (7, 1)
    assert fans((7, 5)) == (7, 5)
    assert fans((3, 4, 5)) == (12, 15)
    assert fans([3, 5, 2, 7]) == (30, 105)
    with pytest.raises(ValueError, match="draw it with zeros"):
        fans(())
    with pytest.raises(ValueError, match=r"shape \(3, 0\) has a dimension below 1"):
        fans((3, 0))


@pytest.mark.parametrize("name", [n for n in INITIALIZERS if n.startswith(("xavier", "he", "lecun", "orthogonal"))])
def test_shapes_without_fans(name):
    for shape in ((), (0, 3)):
        with pytest.raises(ValueError, match="fans: "):
            INITIALIZERS[name](KEY, shape)


def test_get_initializer():
    assert get_initializer("he_normal") is initializers.he_normal
    tenth = functools.partial(initializers.constant, value=0.1)
    assert get_initializer(tenth) is tenth
    with pytest.raises(ValueError, match="unknown initializer 'he_norml'; did you mean 'he_normal'"):
        get_initializer("he_norml")
    with pytest.raises(ValueError, match="unknown initializer"):
        get_initializer("constant")


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (functools.partial(initializers.normal, stddev=0.0), "normal: stddev = 0.0"),
        (functools.partial(initializers.truncated_normal, stddev=-1.0), "truncated_normal: stddev = -1.0"),
        (functools.partial(initializers.uniform, low=1.0, high=1.0), "low = 1.0 and high = 1.0"),
        (functools.partial(initializers.orthogonal, gain=0.0), "gain = 0.0"),
    ],
)
def test_wrong_arguments(draw, message):
    with pytest.raises(ValueError, match=message):
        draw(KEY, (3, 4))
