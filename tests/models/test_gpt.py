"""Language models: the GPT with its tied table, the LSTM, and writing with them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import get_loss, layers, models
from jaxnn.combinators import serial
from jaxnn.layer import Ctx, Layer
from jaxnn.models import tied_backward, tied_forward
from jaxnn.optimizers import adamw, clip_by_global_norm
from jaxnn.schedules import warmup_cosine
from jaxnn.training import Batch, train_step
from jaxnn.training.step import TrainState
from jaxnn.verify.judge.compare import largest_error
from jaxnn.verify.judge.rule import numbers, random_params, shapes_of

KEY = jax.random.key(0, impl="unsafe_rbg")
LOSS = get_loss("softmax_cross_entropy_with_integer_labels")
GPT = models.gpt(vocabulary=11, width=8, n_layers=2, n_heads=2)
LSTM = models.lstm(vocabulary=11, width=6, n_layers=2)


# ---------------------------------------------------------------- the table


@pytest.mark.quick
def test_the_two_uses_of_the_table_add_up():
    body = serial(layers.dense(4), layers.activation("tanh"))
    ids = np.array([[3, 1, 3, 0, 5], [3, 6, 6, 1, 3]], np.uint8)  # 3 again and again, 2 and 4 never
    table, dy = numbers(1, 7, 4), numbers(2, 2, 5, 7)
    with jax.enable_x64(True):
        _, shapes, state = body.init(KEY, (2, 5, 4))
        params = jax.tree.map(jnp.asarray, {"table": table, "body": random_params(shapes)})

        def untied(at_input, at_output, body_params):
            h, _, _ = body.forward(body_params, state, 2 * at_input[ids], Ctx())  # 2 = √4
            return h @ at_output.T

        @jax.jit
        def both(params, dy):
            y, _, cache = tied_forward(params, state, ids, Ctx(), body)
            ours, dids = tied_backward(params, cache, dy, body)
            assert dids is None
            expected, pull = jax.vjp(untied, params["table"], params["table"], params["body"])
            return y, ours, expected, pull(dy)

        y, ours, expected, (at_input, at_output, dbody) = jax.tree.map(np.asarray, both(params, dy))
    assert largest_error(y, expected) < 1e-12
    assert largest_error(ours, {"table": at_input + at_output, "body": dbody}) < 1e-12
    assert not at_input[[2, 4]].any()
    for part in (at_input, at_output):  # so that leaving out either one would be seen
        assert np.linalg.norm(part) > 0.1 * np.linalg.norm(ours["table"])


# ---------------------------------------------------------------- the models


def logits_of(model, ids):
    _, shapes, state = shapes_of(model, np.shape(ids))
    params = jax.tree.map(lambda p: p.astype(np.float32), random_params(shapes))
    return np.asarray(jax.jit(model.forward)(params, state, ids, Ctx())[0])


@pytest.mark.parametrize("model", [GPT, models.gpt(11, 9, 1, 3, max_length=6), LSTM], ids=["rotary", "learned", "lstm"])
def test_what_comes_later_changes_nothing_before_it_and_the_order_counts(model):
    ids = np.array([[1, 2, 3, 4, 5, 6], [1, 2, 3, 9, 9, 9], [2, 1, 3, 4, 5, 6]])
    y = logits_of(model, ids)
    assert y.shape == (3, 6, 11)
    np.testing.assert_allclose(y[0, :3], y[1, :3], rtol=1e-5, atol=1e-5)
    assert np.abs(y[0, 3:] - y[1, 3:]).max(-1).min() > 1e-3
    assert np.abs(y[0, 2:] - y[2, 2:]).max(-1).min() > 1e-3


def test_the_first_rows_have_length_1():
    table = jax.jit(lambda: models.gpt(64, 96, 1, 1).init(KEY, (2, 20))[1]["table"])()
    np.testing.assert_allclose(np.linalg.norm(table, axis=1).mean(), 1, atol=0.05)


@functools.partial(jax.jit, static_argnums=(0, 1))
def twenty_steps(model, optimizer, params, state, ids, key):
    """The losses, the gradient norms and the last params: with the hand-written backward, and with jax.grad."""

    def by_hand(train_state, now):
        return train_step(model, LOSS, optimizer, train_state, Batch(now[:, :-1], now[:, 1:]), train_state.key)

    def by_autodiff(carry, now):
        params, opt_state = carry

        def loss(params):
            y, _, _ = model.forward(params, state, now[:, :-1], Ctx(train=True, key=key))
            return LOSS.value(now[:, 1:], y)

        value, grads = jax.value_and_grad(loss)(params)
        return optimizer.update(params, grads, opt_state), value

    train_state = TrainState(params, state, optimizer.init(params), key, jnp.zeros((), jnp.int32))
    after, records = jax.lax.scan(by_hand, train_state, ids)
    (expected, _), losses = jax.lax.scan(by_autodiff, (params, train_state.opt_state), ids)
    return (records.loss, after.params), (losses, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", [models.gpt(11, 8, 2, 2, dropout=0.1), models.lstm(11, 6, 2, dropout=0.1)], ids=["gpt", "lstm"]
)
def test_twenty_steps_are_those_of_jax_grad(model):
    optimizer = clip_by_global_norm(adamw(warmup_cosine(0.03, 20, 3), weight_decay=0.1), 1.0)
    ids = np.tile(np.random.default_rng(0).integers(0, 11, (3, 6)).astype(np.uint8), (20, 1, 1))
    with jax.enable_x64(True):
        _, shapes, state = shapes_of(model, (3, 5))
        params = jax.tree.map(lambda p: 0.5 * jnp.asarray(p), random_params(shapes))
        found = twenty_steps(model, optimizer, params, state, ids, KEY)
    (losses, params), (expected, expected_params) = jax.tree.map(np.asarray, found)
    np.testing.assert_allclose(losses, expected, rtol=1e-9)
    assert losses[-5:].mean() < 0.9 * losses[:5].mean()
    assert largest_error(params, expected_params) < 1e-9


def test_a_model_that_cannot_be():
    for heads in (3, 10):  # 10 heads would have one feature each
        with pytest.raises(ValueError, match=rf"n_heads = {heads} must divide width = 10, into an even number"):
            models.gpt(11, 10, 1, heads)
    with pytest.raises(ValueError, match=r"n_heads = 3 must divide width = 10$"):
        models.gpt(11, 10, 1, 3, max_length=4)
    with pytest.raises(ValueError, match="vocabulary = 0"):
        models.gpt(0, 10, 1, 1)
    with pytest.raises(ValueError, match="n_layers = 0"):
        models.lstm(11, 10, 0)
    _, params, state = shapes_of(GPT, (2, 5))
    with pytest.raises(ValueError, match=r"ids have shape \(5,\), expected \(B, T\)"):
        jax.eval_shape(GPT.forward, params, state, np.zeros(5, int), Ctx())


# ---------------------------------------------------------------- writing


def test_sampling_follows_the_probabilities():
    logits = np.tile(np.array([1.0, 3.0, 2.0, -np.inf, 2.5], np.float32), (20_000, 1))

    def shares(**options):
        ids = jax.jit(functools.partial(models.sample, **options))(KEY, logits)
        return np.bincount(np.asarray(ids), minlength=5) / len(logits)

    for temperature, top_k in ((1.0, None), (0.5, None), (2.0, 3)):
        p = np.exp(np.array([1.0, 3.0, 2.0, -np.inf, 2.5]) / temperature)
        if top_k:
            p[0] = 0
        p /= p.sum()
        np.testing.assert_allclose(shares(temperature=temperature, top_k=top_k), p, atol=4 * 0.5 / 20_000**0.5)
    assert shares(temperature=0.0)[1] == shares(temperature=1e-30)[1] == 1
    with pytest.raises(ValueError, match="temperature = -1"):
        models.sample(KEY, jnp.asarray(logits), temperature=-1)
    with pytest.raises(ValueError, match="top_k = 0"):
        models.sample(KEY, jnp.asarray(logits), top_k=0)


def test_writing_goes_on_from_the_last_window():
    def forward(params, state, ids, ctx):
        """What comes next is the sum of all ids so far, modulo 7."""
        return 9 * jax.nn.one_hot(jnp.cumsum(ids, -1) % 7, 7), state, None

    adder = Layer(lambda key, shape: (shape, {}, ()), forward, lambda params, cache, dy: ({}, None))
    for prompt, n, window in (([[1, 2], [3, 3]], 6, 4), ([[1, 2, 3, 4, 5]], 3, 2), ([[5]], 2, 9)):
        expected = [list(row) for row in prompt]
        for row in expected:
            for _ in range(n):
                row.append(sum(row[-window:]) % 7)
        ids = models.generate(adder, {}, (), KEY, jnp.asarray(prompt, jnp.uint8), n, window=window, temperature=0.0)
        assert ids.tolist() == [row[-n:] for row in expected]
    with pytest.raises(ValueError, match=r"ids have shape \(1, 0\)"):
        models.generate(adder, {}, (), KEY, jnp.zeros((1, 0), int), 3, window=2)
