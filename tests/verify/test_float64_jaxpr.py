"""Float64 arithmetic in a function's own jaxpr: the same draws, the user's constants, the rules of custom functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxnn.verify.judge.float64_jaxpr import has_low_precision, in_float64, uses

X = np.random.default_rng(0).uniform(0.2, 1.5, (3, 4)).astype(np.float32)


def lifted(f, *args, **options):
    g = in_float64(f, *args, **options)
    with jax.enable_x64(True):
        wide = [np.float64(x) if getattr(x, "dtype", None) == np.float32 else x for x in args]
        return g, wide, jax.jit(g)(*wide)


def loops(x):
    h, ys = lax.scan(lambda h, row: (jnp.tanh(h + row), h * row), x[0], x)
    h = lax.while_loop(lambda h: jnp.sum(h) < 20, lambda h: 1.5 * jnp.abs(h) + 0.1, h)
    h = lax.cond(h[0] > 0, jnp.sin, jnp.cos, h)
    return ys.sum(0) + h + jnp.linalg.solve(x[:, :3].T @ x[:, :3] + jnp.eye(3), x[:, 0])[0]


@pytest.mark.parametrize(
    "f",
    [
        loops,
        lambda x: jax.nn.logsumexp(x @ x.T, axis=1) + jnp.sort(x, 1)[:, 0] + 0.1 * x.var(1),
        lambda x: jax.checkpoint(lambda x: jnp.cumsum(x**3, 0))(x) + jnp.zeros((3, 4)).at[jnp.array([0, 0])].add(x[:2]),
        lambda x: jax.nn.silu(x) + jax.nn.relu(x - 1),
    ],
)
def test_it_is_the_function_traced_in_float64(f):
    _, (wide,), y = lifted(f, X)
    with jax.enable_x64(True):
        truth = np.asarray(jax.jit(f)(wide))
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, truth, rtol=1e-13)
    assert np.abs(np.float64(jax.jit(f)(X)) - truth).max() > 1e-9  # float32 would not have passed


def test_casts_to_low_precision_are_lifted_too():
    _, (wide,), y = lifted(lambda x: (x.astype(jnp.bfloat16) * 3).astype(jnp.float32) + 0.1, X)
    np.testing.assert_allclose(y, 3 * wide + 0.1, rtol=1e-15)


def test_random_draws_stay_what_they_were():
    key = jax.random.key(5, impl="unsafe_rbg")

    def drawn(x, key):
        return jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x, 0), jax.random.uniform(key, x.shape)

    _, _, (masked, uniform) = lifted(drawn, X, key)
    of_float32 = jax.jit(drawn)(X, key)
    np.testing.assert_array_equal(np.asarray(masked) != 0, np.asarray(of_float32[0]) != 0)
    np.testing.assert_array_equal(np.asarray(uniform), np.asarray(of_float32[1]))


def test_the_rules_of_custom_functions_are_kept_unless_they_are_stripped():
    @jax.custom_jvp
    def doubled(x):
        return 2 * x

    doubled.defjvp(lambda xs, dxs: (doubled(*xs), 5 * dxs[0]))  # wrong on purpose

    @jax.custom_vjp
    def tripled(x):
        return 3 * x

    tripled.defvjp(lambda x: (3 * x, None), lambda saved, dy: (7 * dy,))  # wrong too

    def f(x):
        return jnp.sum(doubled(x) + tripled(x))

    for strip, slope in ((False, 12.0), (True, 5.0)):
        g, (wide,), _ = lifted(f, X, strip=strip)
        with jax.enable_x64(True):
            np.testing.assert_allclose(jax.jit(jax.grad(g))(wide), np.full(X.shape, slope), rtol=1e-15)


def test_another_tree_is_an_error():
    g = in_float64(lambda p: p["w"], {"w": X})
    with pytest.raises(ValueError, match=r"in_float64: the function was traced for .*'w'.*, it is called with .*'b'"):
        g({"b": X})


def test_what_a_jaxpr_contains():
    with jax.enable_x64(True):
        wide = jax.make_jaxpr(loops)(np.float64(X))
        inside = jax.make_jaxpr(jax.jit(lambda x: (x.astype(jnp.float32) * 2).astype(x.dtype)))(np.float64(X))
    assert {"scan", "while", "cond", "tanh"} <= uses(wide)
    assert not has_low_precision(wide)
    assert has_low_precision(inside)
