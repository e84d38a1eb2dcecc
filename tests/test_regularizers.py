"""Penalties against NumPy, their derivatives against jax.vjp and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn.regularizers import REGULARIZERS, elastic_net_derivative, l1_derivative, l2, l2_derivative

STRENGTHS = {"l1": (0.3,), "l2": (0.7,), "elastic_net": (0.3, 0.7)}
IN_NUMPY = {
    "l1": lambda w: 0.3 * np.abs(w).sum(),
    "l2": lambda w: 0.35 * np.linalg.norm(w.ravel()) ** 2,
    "elastic_net": lambda w: 0.3 * np.abs(w).sum() + 0.35 * (w**2).sum(),
}
every_regularizer = pytest.mark.parametrize("name", REGULARIZERS)


def random_params():
    rng = np.random.default_rng(0)
    dense = {"w": rng.normal(size=(5, 3)), "b": rng.normal(size=3)}
    return (dense, {"kernel": rng.normal(size=(2, 3, 3, 4)), "scale": rng.normal(size=4), "gain": rng.normal()})


@pytest.mark.quick
@every_regularizer
def test_value(name):
    dense, conv = params = random_params()
    truth = IN_NUMPY[name](dense["w"]) + IN_NUMPY[name](conv["kernel"])
    value = REGULARIZERS[name].value(jax.tree.map(jnp.float32, params), *STRENGTHS[name])
    assert value.dtype == jnp.float32
    assert value.shape == ()
    np.testing.assert_allclose(value, truth, rtol=1e-6)
    np.testing.assert_allclose(  # a plain list of arrays
        REGULARIZERS[name].value([jnp.float32(dense["w"])], *STRENGTHS[name]), IN_NUMPY[name](dense["w"]), rtol=1e-6
    )


@every_regularizer
def test_derivative(name):
    """Against jax.vjp and central differences, leaf by leaf; a wrong derivative is seen to fail."""
    value, derivative = REGULARIZERS[name]
    strengths, h = STRENGTHS[name], 1e-6
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, random_params())
        y, vjp = jax.vjp(lambda p: value(p, *strengths), params)
        (truth,) = vjp(jnp.ones_like(y))
        ours = derivative(params, *strengths)

        def slope(direction):
            ahead, behind = (
                value(jax.tree.map(lambda p, d, s=s: p + s * h * d, params, direction), *strengths) for s in (1, -1)
            )
            return (ahead - behind) / (2 * h)

        def close(a, b):
            return bool(jnp.abs(a - b).max() <= 1e-12)

        assert jax.tree.all(jax.tree.map(close, ours, truth))
        for wrong in (jax.tree.map(jnp.negative, ours), jax.tree.map(lambda g: 2 * g, ours)):
            assert not jax.tree.all(jax.tree.map(close, wrong, truth))

        rng = np.random.default_rng(1)
        leaves, tree = jax.tree.flatten(params)
        for i, g in enumerate(jax.tree.leaves(ours)):
            zeros = [jnp.zeros_like(leaf) for leaf in leaves]
            zeros[i] = d = jnp.asarray(rng.normal(size=g.shape))
            np.testing.assert_allclose(slope(tree.unflatten(zeros)), jnp.sum(g * d), rtol=1e-7, atol=1e-9)


@pytest.mark.quick
def test_derivatives_in_numbers():
    params = {"w": jnp.array([[2.0, 0.0, -3.0]]), "b": jnp.array([7.0])}
    np.testing.assert_allclose(l2_derivative(params, 0.5)["w"], [[1.0, 0.0, -1.5]])
    np.testing.assert_allclose(l1_derivative(params, 0.5)["w"], [[0.5, 0.0, -0.5]])
    np.testing.assert_allclose(elastic_net_derivative(params, 0.5, 0.1)["w"], [[0.7, 0.0, -0.8]], rtol=1e-6)


@every_regularizer
def test_biases_are_untouched(name):
    params = {"b": jnp.array([5.0, -5.0]), "scale": jnp.array(3.0)}
    assert REGULARIZERS[name].value(params, *STRENGTHS[name]) == 0.0
    assert jax.tree.all(jax.tree.map(lambda g: (g == 0).all(), REGULARIZERS[name].derivative(params, *STRENGTHS[name])))


@every_regularizer
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision(name, dtype):
    """The sum stays in float32: 2091 is neither a bfloat16 nor a float16."""
    value, derivative = REGULARIZERS[name]
    params = {"w": jnp.ones((51, 41), dtype), "b": jnp.ones(41, dtype), "head": jnp.ones((3, 2))}
    total = value(params, *STRENGTHS[name])
    assert total.dtype == jnp.float32
    np.testing.assert_allclose(total, IN_NUMPY[name](np.ones(2097)), rtol=1e-6)
    grads = derivative(params, *STRENGTHS[name])
    assert jax.tree.map(lambda g: (g.shape, g.dtype), grads) == jax.tree.map(lambda p: (p.shape, p.dtype), params)
    expected = float(derivative({"w": jnp.ones((1, 1))}, *STRENGTHS[name])["w"][0, 0])
    np.testing.assert_allclose(grads["w"].astype(jnp.float32), expected, rtol=float(jnp.finfo(dtype).eps))


@every_regularizer
def test_empty_tree(name):
    for empty in ({}, [], ((), {"none": None})):
        assert REGULARIZERS[name].value(empty, *STRENGTHS[name]) == 0.0
        assert REGULARIZERS[name].derivative(empty, *STRENGTHS[name]) == empty


def test_strength_may_be_traced():
    params = {"w": jnp.array([[1.0, 2.0]])}
    values = jax.jit(jax.vmap(lambda s: l2(params, s)))(jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(values, [0.0, 2.5])
    np.testing.assert_allclose(jax.jit(l2_derivative)(params, 0.5)["w"], [[0.5, 1.0]])
    known = jnp.float32(-1)  # not traced, under jit neither
    with pytest.raises(ValueError, match="l2_derivative: lambda_ = -1"):
        jax.jit(lambda params: l2_derivative(params, known))(params)


@every_regularizer
def test_errors(name):
    strengths = STRENGTHS[name]
    for f in REGULARIZERS[name]:
        with pytest.raises(ValueError, match=rf"{f.__name__}: params\['n'\]\[0\] has dtype int32"):
            f({"n": [jnp.arange(3)], "w": jnp.ones((2, 2))}, *strengths)
        with pytest.raises(ValueError, match=f"{f.__name__}: .* = -1.0"):
            f({}, *strengths[:-1], -1.0)
