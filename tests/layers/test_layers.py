"""Layers and combinators: what the battery of test_rules.py does not say."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnn
from jaxnn import combinators, layers, models
from jaxnn.layer import Ctx, Layer, from_pair

KEY = jax.random.key(0)
EVALUATE = Ctx()
TRAIN = Ctx(train=True, key=jax.random.key(1))


def run(layer, x, ctx=EVALUATE, key=KEY):
    _, params, state = layer.init(key, x.shape)
    y, _, cache = layer.forward(params, state, x, ctx)
    return params, y, cache


def test_dense_names_all_that_does_not_fit():
    params = {"w": jnp.zeros((7, 3)), "b": jnp.zeros(4)}
    expected = "dense: x has 5 features (shape (6, 5)) but w expects 7 (shape (7, 3)); b has shape (4,) but w"
    with pytest.raises(ValueError, match=re.escape(expected)):
        layers.dense(3).forward(params, (), jnp.zeros((6, 5)), Ctx())
    with pytest.raises(ValueError, match=r"x is bfloat16, w float32"):
        layers.dense(3).forward({"w": jnp.zeros((5, 3)), "b": jnp.zeros(3)}, (), jnp.zeros((6, 5), jnp.bfloat16), Ctx())
    with pytest.raises(ValueError, match="x has dtype int32"):
        run(layers.dense(3), jnp.zeros((6, 5), jnp.int32))
    with pytest.raises(ValueError, match="n_out = 0"):
        layers.dense(0)


def test_one_neuron_and_several_agree():
    params = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}
    x = jnp.array([[1.0, 2.0], [3.0, 4.0], [0.0, 1.0]])  # the text's np.dot(w, x) has no batch
    a, cache = jaxnn.layers.neuron_forward(params, x, activation="tanh")
    np.testing.assert_allclose(a, np.tanh([-2.5, -4.5, -1.5]), rtol=1e-6)
    several = {"w": params["w"][:, None], "b": params["b"][None]}
    a2, cache2 = jaxnn.layers.neuron_forward(several, x, activation="tanh")
    np.testing.assert_allclose(a2[:, 0], a)
    one, dx = jaxnn.layers.neuron_backward(params, cache, jnp.ones(3), activation="tanh")
    more, dx2 = jaxnn.layers.neuron_backward(several, cache2, jnp.ones((3, 1)), activation="tanh")
    np.testing.assert_allclose(one["w"], more["w"][:, 0], rtol=1e-6)
    np.testing.assert_allclose(one["b"], more["b"][0], rtol=1e-6)
    np.testing.assert_allclose(dx, dx2, rtol=1e-6)


def test_an_error_says_which_layer_it_comes_from():
    model = combinators.serial(layers.dense(4), layers.dense(3))
    _, params, state = model.init(KEY, (1, 5))
    with pytest.raises(ValueError, match=r"^serial\[1\] dense: x has 4 features"):
        model.forward((params[0], {"w": jnp.zeros((9, 3)), "b": jnp.zeros(3)}), state, jnp.zeros((2, 5)), Ctx())


def test_dropout_keeps_the_mean_and_drops_what_it_should():
    x = jnp.ones((200, 300))
    y, (keep, like) = jaxnn.layers.dropout_forward(KEY, x, 0.3)
    assert abs(float(keep.mean()) - 0.7) < 5 * np.sqrt(0.21 / x.size)
    np.testing.assert_allclose(y, np.where(keep, 1 / 0.7, 0), rtol=1e-6)
    np.testing.assert_array_equal(jaxnn.layers.dropout_backward((keep, like), x, 0.3), y)
    infinite, _ = jaxnn.layers.dropout_forward(KEY, jnp.full(100, jnp.inf), 0.5)
    assert not np.isnan(infinite).any()


def test_dropout_draws_the_same_mask_in_every_precision():
    _, (keep, _) = jaxnn.layers.dropout_forward(KEY, jnp.ones(1000), 0.3)
    with jax.enable_x64(True):
        _, (keep64, _) = jaxnn.layers.dropout_forward(KEY, jnp.ones(1000, jnp.float64), 0.3)
    np.testing.assert_array_equal(keep, keep64)


def test_dropout_in_evaluation_and_without_a_key():
    x = jnp.ones((3, 4))
    _, y, cache = run(layers.dropout(0.5), x)
    assert y is x
    assert all(leaf.size == 0 for leaf in jax.tree.leaves(cache))
    with pytest.raises(ValueError, match="train=True needs random numbers"):
        run(layers.dropout(0.5), x, Ctx(train=True))
    for probability in (-0.1, 1.0, 1.5):
        with pytest.raises(ValueError, match=f"dropout: probability = {probability}"):
            layers.dropout(probability)


@pytest.mark.parametrize("name", ["attention", "cross attention", "rnn", "gru", "lstm", "batch_norm"])
def test_a_mask_is_of_examples_or_of_tokens(name):
    """By its shape. A (T, T) mask of pairs is none, where its shape says so."""
    model = layers.attention(2) if "attention" in name else layers.batch_norm() if "_" in name else None
    model = getattr(layers, name)(3) if model is None else model

    def run(n_examples, n_tokens, mask):
        x = jnp.ones((n_examples, n_tokens, 4))
        x = (x[:, :2], x) if "cross" in name else x
        _, params, state = model.init(KEY, jax.tree.map(jnp.shape, x, is_leaf=lambda a: isinstance(a, jax.Array)))
        return jax.eval_shape(lambda: model.forward(params, state, x, Ctx(train=True, key=KEY, mask=mask))[0])

    for shape in ((2,), (2, 5)):
        run(2, 5, np.ones(shape, bool))
    run(5, 5, np.tril(np.ones((5, 5), bool)))  # read as tokens: the shape can't say otherwise
    wrong = [np.ones(shape, bool) for shape in ((5, 5), (5,), (3,), (2, 4), (5, 2), (2, 5, 5), ())]
    for mask in (*wrong, np.ones((2, 5), np.float32), np.ones(2, int)):
        with pytest.raises(ValueError, match=r"mask is \w+\[.*\], (but|expected)"):
            run(2, 5, mask)


def test_appending_a_layer_changes_no_earlier_randomness():
    x = jnp.ones((4, 6))
    short = combinators.serial(layers.dense(5), layers.dropout(0.5))
    long = combinators.serial(layers.dense(5), layers.dropout(0.5), layers.activation("relu"))
    (p_short, y_short, _), (p_long, y_long, _) = run(short, x, TRAIN), run(long, x, TRAIN)
    np.testing.assert_array_equal(p_short[0]["w"], p_long[0]["w"])
    np.testing.assert_array_equal(jaxnn.relu(y_short), y_long)


def counter():
    """A layer with state: it counts how often forward was run."""

    def forward(params, state, x, ctx):
        return x, state + 1, None

    return Layer(lambda key, in_shape: (in_shape, {}, jnp.float32(0)), forward, lambda params, cache, dy: ({}, dy))


@pytest.mark.quick
@pytest.mark.parametrize(
    "model",
    [
        combinators.serial(counter(), counter()),
        combinators.concat(counter(), counter()),
        combinators.residual(counter()),
        combinators.remat(counter()),
        combinators.repeat(counter(), 3),
    ],
    ids=["serial", "concat", "residual", "remat", "repeat"],
)
def test_state_is_handed_on(model):
    x = jnp.ones((2, 3))
    _, params, state = model.init(KEY, x.shape)
    for times in (1, 2):
        _, state, _ = model.forward(params, state, x, EVALUATE)
        assert all((leaf == times).all() for leaf in jax.tree.leaves(state))


def test_children_have_their_own_weights_and_masks():
    x = jnp.ones((20, 30))
    for combinator in (combinators.serial, combinators.concat):
        params, _, _ = run(combinator(layers.dense(30), layers.dense(30)), x)
        assert (params[0]["w"] != params[1]["w"]).any()
    _, _, ((first, _), (second, _)) = run(combinators.serial(layers.dropout(0.5), layers.dropout(0.5)), x, TRAIN)
    assert (first != second).any()
    _, y, _ = run(combinators.concat(layers.dropout(0.5), layers.dropout(0.5)), x, TRAIN)
    assert (y[:, :30] != y[:, 30:]).any()


def test_the_rate_of_an_mlp_is_its_dropout():
    x = jnp.ones((5, 4))
    for dropout, same in ((0.0, True), (0.5, False)):
        model = models.mlp((50,), 3, dropout=dropout)
        (_, trained, _), (_, evaluated, _) = run(model, x, TRAIN), run(model, x)
        assert bool((trained == evaluated).all()) == same


def test_gradients_of_another_shape_are_not_broadcast():
    x, column = jnp.ones((4, 5)), jnp.ones((4, 1))
    one, several = {"w": jnp.ones(5), "b": jnp.ones(())}, {"w": jnp.ones((5, 3)), "b": jnp.ones(3)}
    _, cache = jaxnn.layers.neuron_forward(one, x)
    with pytest.raises(ValueError, match=r"neuron_backward: da has shape \(4, 1\), but .* has \(4,\)"):
        jaxnn.layers.neuron_backward(one, cache, column)
    with pytest.raises(ValueError, match=r"dense_backward: dy has shape \(4, 1\), but .* has \(4, 3\)"):
        layers.dense(3).backward(several, x, column)
    with pytest.raises(ValueError, match="relu: dy has shape"):
        layers.activation("relu").backward({}, x, column)
    _, cache = jaxnn.models.mlp_forward([several], x, ["relu"])
    with pytest.raises(ValueError, match="mlp_backward: dy has shape"):
        jaxnn.models.mlp_backward([several], cache, column, ["relu"])
    with pytest.raises(ValueError, match="1 layers, a cache of 1 and 2 activations"):
        jaxnn.models.mlp_backward([several], cache, jnp.ones((4, 3)), ["relu", "relu"])
    with pytest.raises(ValueError, match=r"x has shape \(2, 4, 5\), expected \(batch, features\)"):
        jaxnn.models.mlp_forward([several], jnp.ones((2, 4, 5)), ["relu"])


def test_other_wrong_arguments():
    with pytest.raises(ValueError, match="dense draws random numbers and needs a key, but got None"):
        layers.dense(3).init(None, (1, 2))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="dropout draws random numbers and needs a key"):
        jaxnn.layers.dropout_forward(None, jnp.ones(3), 0.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"n_out = 2\.5, expected a whole number"):
        layers.dense(2.5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"dense: params has \['w'\], expected \['b', 'w'\]"):
        layers.dense(3).forward({"w": jnp.ones((2, 3))}, (), jnp.ones((1, 2)), EVALUATE)
    with pytest.raises(ValueError, match="serial: 2 layers, but params has 1 entries"):
        combinators.serial(layers.flatten(), layers.flatten()).forward(({},), ((), ()), jnp.ones((1, 2)), EVALUATE)
    with pytest.raises(ValueError, match="dropout: x has dtype int32"):
        run(layers.dropout(0.5), jnp.ones(3, jnp.int32))


def test_repeated_layers_have_their_own_weights_and_masks():
    block = combinators.serial(layers.dense(6), layers.dropout(0.5))
    params, y, _ = run(combinators.repeat(block, 3), jnp.ones((2, 6)), TRAIN)
    assert params[0]["w"].shape == (3, 6, 6)
    assert (params[0]["w"][0] != params[0]["w"][1]).any()
    x = jnp.ones((2, 6))
    for i in range(3):
        layer_i = jax.tree.map(lambda leaf, i=i: leaf[i], params)
        x, _, _ = block.forward(layer_i, ((), ()), x, TRAIN.fold(i))
    np.testing.assert_allclose(x, y, rtol=1e-6)


def test_train_is_static_and_a_mode_compiles_once():
    traces = []
    model = layers.dropout(0.5)

    @jax.jit
    def f(x, ctx):
        traces.append(ctx.train)
        return model.forward({}, (), x, ctx)[0]

    for ctx in (Ctx(), TRAIN, Ctx(), Ctx(train=True, key=jax.random.key(9))):
        f(jnp.ones(3), ctx)
    assert traces == [False, True]


def test_layers_that_must_keep_the_shape():
    for combinator in (combinators.residual(layers.dense(3)), combinators.repeat(layers.dense(3), 2)):
        with pytest.raises(ValueError, match=r"turns shape \(2, 5\) into \(2, 3\); it must keep it"):
            combinator.init(KEY, (2, 5))
    with pytest.raises(ValueError, match="n = 0"):
        combinators.repeat(layers.dense(3), 0)
    with pytest.raises(ValueError, match="no layers given"):
        combinators.concat()
    with pytest.raises(ValueError, match="may differ in the last axis only"):
        combinators.concat(layers.flatten(), layers.dense(3)).init(KEY, (2, 4, 5))


@pytest.mark.slow
def test_remat_is_the_same_network_in_less_memory():
    """In a scan, and unrolled too, where XLA for CPU would otherwise recompute too early to save anything."""
    block = combinators.serial(*[layers.dense(64), layers.activation("gelu_tanh")] * 3)

    def gradient(model):
        def f(params, state, x):
            y, _, cache = model.forward(params, state, x, Ctx())
            return model.backward(params, cache, y)

        _, params, state = model.init(KEY, (512, 64))
        compiled = jax.jit(f).lower(params, state, jnp.ones((512, 64))).compile()
        memory = compiled.memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes, compiled(params, state, jnp.ones((512, 64)))

    unrolled = combinators.serial(*[block] * 6), combinators.serial(*[combinators.remat(block)] * 6)
    scanned = combinators.repeat(block, 6), combinators.repeat(combinators.remat(block), 6)
    for plain, lean in (unrolled, scanned):
        (much, expected), (little, found) = gradient(plain), gradient(lean)
        assert little < 0.6 * much
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), expected, found)


def test_mlp_written_out_is_the_mlp_of_layers():
    model = models.mlp((7, 4), 3, activation="tanh")
    x, dy = jax.random.normal(KEY, (6, 5)), jax.random.normal(jax.random.key(2), (6, 3))
    params, y, cache = run(model, x)
    dparams, dx = model.backward(params, cache, dy)
    dense_only = [p for p in params if p]
    activations = ["tanh", "tanh", "identity"]
    y2, cache2 = jaxnn.models.mlp_forward(dense_only, x, activations)
    dparams2, dx2 = jaxnn.models.mlp_backward(dense_only, cache2, dy, activations)
    np.testing.assert_allclose(y, y2, rtol=1e-6)
    np.testing.assert_allclose(dx, dx2, rtol=1e-5, atol=1e-6)
    for a, b in zip([g for g in dparams if g], dparams2, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), a, b)
    with pytest.raises(ValueError, match="3 layers but 2 activations"):
        jaxnn.models.mlp_forward(dense_only, x, activations[1:])


@pytest.mark.quick
def test_a_bare_pair_becomes_a_layer():
    scale = from_pair(
        lambda params, x: (x * params["s"], x),
        lambda params, x, dy: ({"s": jnp.vdot(x, dy)}, dy * params["s"]),
        lambda key, in_shape: (in_shape, {"s": jnp.float32(2)}),
    )
    params, y, _ = run(combinators.serial(scale, scale), jnp.ones((2, 3)))
    np.testing.assert_array_equal(y, np.full((2, 3), 4.0))
    assert jax.tree.structure(params) == jax.tree.structure(({"s": 0}, {"s": 0}))


@pytest.mark.peers
def test_dense_is_pytorch_s():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rng = np.random.default_rng(0)
    w, b, x, dy = (rng.normal(size=shape) for shape in ((5, 3), (3,), (2, 4, 5), (2, 4, 3)))
    theirs = torch.nn.Linear(5, 3, dtype=torch.float64)
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(w.T))
        theirs.bias.copy_(torch.tensor(b))
    their_x = torch.tensor(x, requires_grad=True)
    their_y = theirs(their_x)
    their_y.backward(torch.tensor(dy))
    with jax.enable_x64(True):
        params, x, dy = jax.tree.map(jnp.asarray, ({"w": w, "b": b}, x, dy))
        y, _, cache = layers.dense(3).forward(params, (), x, Ctx())
        dparams, dx = layers.dense(3).backward(params, cache, dy)
    expected = their_y, their_x.grad, theirs.weight.grad.T, theirs.bias.grad
    for ours, peer in zip((y, dx, dparams["w"], dparams["b"]), expected, strict=True):
        np.testing.assert_allclose(ours, peer.detach().numpy(), rtol=1e-12, atol=1e-14)
