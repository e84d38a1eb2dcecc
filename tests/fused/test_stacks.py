"""The stack that keeps little and the blocks that keep nothing: what the battery of test_rules.py does not say."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import as_custom_vjp, combinators, layers
from jaxnn.fused import dense_stack, dense_stack_backward, dense_stack_forward, reversible
from jaxnn.layer import Ctx, Layer, from_pair

KEY = jax.random.key(0, impl="unsafe_rbg")


def gradient_of(layer):
    """(params, state, x, dy, ctx) -> (y, the new state, (dparams, dx))."""

    def both(params, state, x, dy, ctx):
        y, state, cache = layer.forward(params, state, x, ctx)
        return y, state, layer.backward(params, cache, dy)

    return both


def temporaries(layer, shape, ctx):
    params, state = jax.eval_shape(lambda key: layer.init(key, shape)[1:], KEY)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    memory = jax.jit(gradient_of(layer)).lower(params, state, x, x, ctx).compile().memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes


def fails(message, f, *args, **kwargs):
    with pytest.raises(ValueError, match=re.escape(message)):
        f(*args, **kwargs)


# ---------------------------------------------------------------- dense_stack


def stack_params(n, width):
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=(n, width)) for name in ("scale", "shift", "b")}
    return {**params, "w": rng.normal(size=(n, width, width))}


def in_a_tuple(params):
    return tuple({name: leaf[l] for name, leaf in params.items()} for l in range(len(params["w"])))


def textbook(params, x, f, dropout):
    """Layer after layer, as one writes it."""
    for l, p in enumerate(params):
        scale, shift, b = (p[name][None] for name in ("scale", "shift", "b"))
        centre = x - x.mean(-1, keepdims=True)
        x_hat = centre / jnp.sqrt(jnp.square(centre).mean(-1, keepdims=True) + 1e-5)
        y = f((scale * x_hat + shift) @ p["w"] + b)
        keep = jax.random.bernoulli(jax.random.fold_in(KEY, l), jnp.float32(1 - dropout), y.shape)
        x = jnp.where(keep, y / (1 - dropout), 0)
    return x


@pytest.mark.parametrize(("activation", "plain"), [("silu", jax.nn.silu), ("relu", jax.nn.relu)])
def test_a_stack_is_the_textbook_s(activation, plain):
    """The one in a loop, the other written out."""
    params, x, dy = stack_params(2, 9), *np.random.default_rng(1).normal(size=(2, 4, 9))
    dropout = 0.25

    @jax.jit
    def run(params, x, dy):
        y, vjp = jax.vjp(functools.partial(textbook, f=plain, dropout=dropout), in_a_tuple(params), x)
        p = params if activation == "silu" else in_a_tuple(params)
        z, cache = dense_stack_forward(p, x, activation=activation, dropout=dropout, key=KEY)
        return (y, *vjp(dy)), (z, *dense_stack_backward(p, cache, dy, activation=activation, dropout=dropout))

    with jax.enable_x64(True):
        expected, (y, dparams, dx) = run(params, x, dy)
    assert 0 < (np.asarray(y) == 0).sum() < y.size
    dparams = dparams if isinstance(dparams, tuple) else in_a_tuple(dparams)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), (y, dparams, dx), expected)


def test_without_dropout_a_stack_is_that_of_the_combinators():
    width, n = 5, 2
    stack = dense_stack(n, activation="gelu_erf", dropout=0.5)
    block = (layers.layer_norm(), layers.dense(width), layers.activation("gelu_erf"), layers.dropout(0.5))
    theirs = combinators.repeat(combinators.serial(*block), n)
    params, x = jax.tree.map(np.float32, stack_params(n, width)), np.ones((3, width), np.float32).cumsum(1)
    norm, dense = ({k: params[k] for k in names} for names in (("scale", "shift"), ("w", "b")))

    @jax.jit
    def run(params, x):
        y, _, cache = stack.forward(params, (), x, Ctx())
        expected, _, _ = theirs.forward((norm, dense, {}, {}), ((),) * 4, x, Ctx(key=KEY))
        return y, expected, stack.backward(params, cache, y)[1]

    y, expected, dx = run(params, x)
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)
    assert np.abs(dx).max() > 0


@pytest.mark.parametrize(
    ("activation", "unroll", "n", "batch", "width", "most"),
    [
        ("gelu_tanh", False, 16, 1024, 512, 1.5),
        ("relu", False, 16, 1024, 512, 1.5),
        ("silu", True, 6, 256, 128, 2.1),
    ],
)
def test_a_stack_needs_little_memory(activation, unroll, n, batch, width, most):
    """Temporaries in arrays of batch times width a layer: jax.grad of the plain stack takes 5 to 10."""
    layer = dense_stack(n, activation=activation, dropout=0.1, unroll=unroll)
    key = jax.random.key(0) if unroll else KEY  # JAX's own generator, which needs arrays of its own
    arrays = temporaries(layer, (batch, width), Ctx(train=True, key=key)) / (4 * n * batch * width)
    assert arrays <= most


def test_first_weights_of_a_stack():
    layer = dense_stack(3)
    params = jax.jit(lambda key: layer.init(key, (2, 40))[1])(KEY)
    assert layer.init(KEY, (2, 40))[::2] == ((2, 40), ())
    np.testing.assert_array_equal(params["scale"], np.ones((3, 40)))
    for name in ("shift", "b"):
        np.testing.assert_array_equal(params[name], np.zeros((3, 40)))
    assert params["w"].shape == (3, 40, 40)
    np.testing.assert_allclose(params["w"].std((1, 2)), 40**-0.5, rtol=0.1)
    assert np.abs(params["w"][0] - params["w"][1]).max() > 0.1


def test_what_a_stack_refuses():
    params, x = jax.tree.map(np.float32, stack_params(2, 5)), np.ones((3, 5), np.float32)
    forward = dense_stack_forward
    fails("dense_stack: x has shape (3, 4); scale has shape (2, 5), not ('L', 4)", forward, params, x[:, :4])
    one, two = in_a_tuple(params)
    fails("w of layer 1 has shape (5, 4), not (5, 5)", forward, (one, {**two, "w": two["w"][:, :4]}), x)
    fails("params has ['b', 'scale', 'w'], expected", forward, {k: params[k] for k in ("b", "scale", "w")}, x)
    fails("one layer or more", forward, (), x)
    fails("dtypes float32, float64: cast them to one", forward, {**params, "b": np.zeros((2, 5))}, x)
    fails("dropout = 1", forward, params, x, dropout=1)
    fails("eps = 0", forward, params, x, eps=0)
    fails("dense_stack: n_layers = 0", dense_stack, 0)
    fails("dense_stack: dropout = -0.1", dense_stack, 2, dropout=-0.1)
    fails("did you mean 'relu'", dense_stack, 2, activation="relo")
    fails("needs random numbers", dense_stack(2, dropout=0.1).forward, params, (), x, Ctx(train=True))
    cache = jax.eval_shape(forward, params, x)[1]
    fails("dy has shape (3, 4)", dense_stack_backward, params, cache, x[:, :4])


# ---------------------------------------------------------------- reversible


def perceptron(width):
    return combinators.serial(layers.dense(width), layers.activation("gelu_tanh"), layers.dense(width))


def reversible_numbers(n, batch, width):
    """params, x, dy of `n` pairs of perceptrons."""
    rng = np.random.default_rng(0)

    def block():
        return tuple(
            {"w": rng.normal(size=(n, width, width)) * size * width**-0.5, "b": rng.normal(size=(n, width)) * 0.1}
            if size
            else {}
            for size in (1, 0, 0.5)
        )

    return {"f": block(), "g": block()}, *rng.normal(size=(2, batch, 2 * width))


def residuals(params, x):
    """The same pairs of blocks in floating point, for autodiff."""

    def block(p, x):
        h = jax.nn.gelu(x @ p[0]["w"] + p[0]["b"][None], approximate=True)
        return h @ p[2]["w"] + p[2]["b"][None]

    def pair(carry, p):
        x1, x2 = carry
        x1 = x1 + block(p["f"], x2)
        return (x1, x2 + block(p["g"], x1)), None

    return jnp.concatenate(jax.lax.scan(pair, tuple(jnp.split(x, 2, -1)), params)[0], -1)


def through_residuals(params, x, dy):
    y, vjp = jax.vjp(residuals, params, x)
    return y, *vjp(dy)


def noting(inner):
    """The layer, which hands out as new state what it saw in the forward, as a gradient what it saw in the backward."""

    def init(key, in_shape, /):
        shape, params, state = inner.init(key, in_shape)
        return shape, (params, jnp.zeros(in_shape)), (state, jnp.zeros(in_shape))

    def forward(params, state, x, ctx, /):
        y, _, cache = inner.forward(params[0], state[0], x, ctx)
        return y, (state[0], x), (cache, x)

    def backward(params, cache, dy, /):
        dparams, dx = inner.backward(params[0], cache[0], dy)
        return (dparams, cache[1]), dx

    return Layer(init, forward, backward)


def test_64_pairs_are_reversed_to_the_last_bit_and_the_gradient_is_right():
    n, batch, width = 64, 4, 12
    params, x, dy = reversible_numbers(n, batch, width)
    with jax.enable_x64(True):
        expected = jax.tree.map(np.asarray, jax.jit(through_residuals)(params, x, dy))
    layer = reversible(noting(perceptron(width)), noting(perceptron(width)), n)
    params, x, dy = jax.tree.map(np.float32, (params, x, dy))
    seen = np.zeros((n, batch, width), np.float32)
    params = {name: (p, seen) for name, p in params.items()}
    state = dict.fromkeys(params, (((),) * 3, seen))
    y, state, (dparams, dx) = jax.jit(gradient_of(layer))(params, state, x, dy, Ctx())
    for name in ("f", "g"):
        forward, backward = state[name][1], dparams[name][1]
        assert np.abs(forward[-1] - forward[0]).max() > 1
        np.testing.assert_array_equal(backward, forward)
    found = y, {name: dp for name, (dp, _) in dparams.items()}, dx
    errors = jax.tree.map(lambda a, b: np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b), found, expected)
    assert max(jax.tree.leaves(errors)) < 1e-5


def test_the_memory_of_reversible_blocks_does_not_grow_with_depth():
    few, many = (temporaries(reversible(perceptron(32), perceptron(32), n), (64, 64), Ctx()) for n in (4, 40))
    assert many - few < 1000  # an array of one half has 8192 bytes


def test_a_stream_that_leaves_the_integers_is_nan_and_not_a_wrong_number():
    double = layers.activation("identity")
    state = {"f": (), "g": ()}
    run = jax.jit(gradient_of(reversible(double, double, 3)))  # x1, x2 = 1, 0: 1, 1; 2, 3; 5, 8

    def at(size):
        x = np.array([[0.0, 0.0], [size, 0.0]], np.float32)
        y, _, (_, dx) = run({"f": {}, "g": {}}, state, x, np.ones_like(x), Ctx())
        return y, dx

    y, dx = at(127)
    np.testing.assert_array_equal(y, [[0, 0], [5 * 127, 8 * 127]])
    np.testing.assert_array_equal(dx, [[13, 21]] * 2)
    for size in (128, 2050, -2050, 1e30, np.nan, np.inf):  # 128: in the last step alone
        assert all(np.isnan(a).all() for a in at(size))
    scale = from_pair(lambda c, x: (c * x, x), lambda c, x, dy: (jnp.vdot(x, dy), c * dy))
    run = jax.jit(gradient_of(reversible(scale, scale, 2)))
    zeros, x = np.zeros(2, np.float32), np.ones((1, 2), np.float32)
    # 4096: around the end of the integers, back to 1; the last: out of the range and back.
    for factors in ((4096, 0), (-4096, 0), (1e30, 0), (np.nan, 0), (-np.inf, 0), (1500, -1500)):
        for name in ("f", "g"):
            params = {"f": zeros, "g": zeros, name: np.array(factors, np.float32)}
            assert np.isnan(run(params, state, x, x, Ctx())[0]).all()
    back = {"f": np.array([-1000, 0], np.float32), "g": zeros}
    assert np.isnan(run(back, state, np.array([[1500, 1]], np.float32), x, Ctx())[0]).all()  # out of it before
    assert not np.isnan(run(back, state, np.array([[900, 1]], np.float32), x, Ctx())[0]).any()


def test_the_backward_draws_the_same_random_numbers_again():
    """Of dropout, which is linear, so <dy, y> = <dx, x>."""
    layer = reversible(layers.dropout(0.5), layers.dropout(0.25), 3)
    x, dy = np.random.default_rng(0).normal(size=(2, 20, 6)).astype(np.float32)
    state, params = {"f": (), "g": ()}, {"f": {}, "g": {}}
    y, _, (_, dx) = jax.jit(gradient_of(layer))(params, state, x, dy, Ctx(train=True, key=KEY))
    np.testing.assert_allclose(np.vdot(dx, x), np.vdot(dy, y), rtol=1e-5)
    assert np.unique(dx / dy).size > 20


def test_autodiff_of_integers_is_an_error_and_of_the_layer_is_not():
    layer = reversible(layers.activation("tanh"), layers.activation("tanh"), 2)
    state, params = {"f": (), "g": ()}, {"f": {}, "g": {}}
    x = np.arange(4, dtype=np.float32).reshape(1, 4)
    fails(
        "differentiate jaxnn.as_custom_vjp(layer)",
        jax.grad(lambda x: layer.forward(params, state, x, Ctx())[0].sum()),
        x,
    )
    dx = jax.jit(jax.grad(lambda x: as_custom_vjp(layer)(params, state, x, Ctx())[0].sum()))(x)
    assert np.abs(dx).min() > 0.1


def test_what_reversible_refuses():
    tanh = layers.activation("tanh")
    fails("reversible: n = 0", reversible, tanh, tanh, 0)
    layer = reversible(tanh, layers.dense(3), 2)
    fails("reversible: x has shape (2, 5), expected a last axis of even size", layer.init, KEY, (2, 5))
    fails("reversible[1] dense: it turns shape (2, 2) into (2, 3); it must keep it", layer.init, KEY, (2, 4))
    fails("x has dtype int32", layer.forward, {}, {}, np.ones((2, 4), np.int32), Ctx())
