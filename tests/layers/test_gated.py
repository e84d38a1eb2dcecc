"""Gated multilayer perceptrons: what the battery of test_rules.py does not say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import layers
from jaxnn.layer import Ctx
from jaxnn.verify.judge.rule import numbers

SHAPES = {"wg": (2, 3), "wu": (2, 3), "wd": (3, 2)}


@pytest.mark.parametrize(
    ("activation", "f"),
    [("silu", jax.nn.silu), ("gelu_erf", lambda x: jax.nn.gelu(x, approximate=False)), ("sigmoid", jax.nn.sigmoid)],
)
def test_swiglu_geglu_and_glu_against_a_plain_forward(activation, f):
    model = layers.gated_mlp(7, activation=activation)
    params = {"wg": numbers(1, 5, 7), "wu": numbers(2, 5, 7), "wd": numbers(3, 7, 5)}
    x, dy = numbers(4, 2, 3, 5), numbers(5, 2, 3, 5)

    def plain(params, x):
        return (f(x @ params["wg"]) * (x @ params["wu"])) @ params["wd"]

    @jax.jit
    def both(params, x, dy):
        y, _, cache = model.forward(params, (), x, Ctx())
        their_y, vjp = jax.vjp(plain, params, x)
        return (y, model.backward(params, cache, dy)), (their_y, vjp(dy))

    with jax.enable_x64(True):
        ours, theirs = both(params, x, dy)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), ours, theirs)


def test_swiglu_is_the_default():
    x, params = np.ones((1, 2), np.float32), {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}
    y, _, _ = jax.jit(layers.gated_mlp(3).forward)(params, (), x, Ctx())
    np.testing.assert_allclose(y, np.full((1, 2), 3 * 2 * 2 / (1 + np.exp(-2))), rtol=1e-6)


def test_weights_are_drawn_apart():
    _, params, _ = layers.gated_mlp(3).init(jax.random.key(0, impl="unsafe_rbg"), (1, 2))
    assert jax.tree.map(np.shape, params) == SHAPES
    assert len({float(w[0, 0]) for w in jax.tree.map(np.asarray, params).values()}) == 3


def test_what_does_not_fit_is_named():
    model = layers.gated_mlp(3)
    params = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}
    with pytest.raises(ValueError, match=r"x has shape \(1, 4\), but wg of shape \(2, 3\) expects 2 features"):
        model.forward(params, (), np.ones((1, 4), np.float32), Ctx())
    with pytest.raises(ValueError, match=r"expected wg and wu \(D, F\), wd \(F, D\); x is bfloat16"):
        model.forward(params | {"wd": params["wu"]}, (), np.ones((1, 2), jnp.bfloat16), Ctx())
    with pytest.raises(ValueError, match=r"params has \['w'\]"):
        model.forward({"w": params["wg"]}, (), params["wd"], Ctx())
    with pytest.raises(ValueError, match=r"gated_mlp_backward: dy has shape \(1, 1\)"):
        model.backward(params, (np.ones((1, 2)), None, None), np.ones((1, 1)))
    with pytest.raises(ValueError, match="n_hidden = 0"):
        layers.gated_mlp(0)
    with pytest.raises(ValueError, match="did you mean 'silu'"):
        layers.gated_mlp(3, activation="sillu")
