"""The convolutional network: its stages, the padding of a batch, twenty steps beside jax.grad, and its command."""

import functools
import json
import math
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import get_loss, layers, models
from jaxnn.cli import main
from jaxnn.combinators import serial
from jaxnn.layer import Ctx
from jaxnn.layers import BatchStats
from jaxnn.optimizers import adam, sgd
from jaxnn.runs import examples
from jaxnn.training import Batch, train_step
from jaxnn.training.step import TrainState
from jaxnn.verify.judge.compare import largest_error
from jaxnn.verify.judge.rule import numbers, random_params, shapes_of

KEY = jax.random.key(0, impl="unsafe_rbg")
LOSS = get_loss("softmax_cross_entropy_with_integer_labels")
OPTIMIZER = adam(0.03)


def beginning(model, in_shape, dtype="float32"):
    """Random params, and the state as init has it, without the time that drawing it would take to compile."""
    _, shapes, state = shapes_of(model, in_shape)

    def begin(s):
        return type(s)(np.zeros(s.mean.shape, dtype), np.ones(s.var.shape, dtype), np.zeros((), dtype))

    state = jax.tree.map(begin, state, is_leaf=lambda s: isinstance(s, BatchStats))
    return jax.tree.map(lambda p: p.astype(dtype), random_params(shapes)), state


def test_a_stage_is_convolution_norm_pooling_activation():
    model, x = models.cnn((3,), (), 2), numbers(1, 2, 5, 4, 1).astype(np.float32)
    params, state = beginning(model, x.shape)
    y = jax.jit(model.forward)(params, state, x, Ctx())[0]
    w, norm, dense = params[0]["w"], params[1], params[4][1]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    z = np.stack([[np.tensordot(padded[:, i : i + 3, j : j + 3], w, 3) for j in range(4)] for i in range(4)])
    z = np.moveaxis(z, 2, 0) / np.sqrt(1 + 1e-5) * norm["scale"] + norm["shift"]  # running mean 0, variance 1
    pooled = z.reshape(2, 2, 2, 2, 2, 3).max((2, 4))  # the fifth row has no partner
    expected = np.maximum(pooled, 0).reshape(2, -1) @ dense["w"] + dense["b"]
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@functools.partial(jax.jit, static_argnums=0)
def twenty_steps(model, params, state, x, labels, key):
    """The losses, the last params and the last state: with the hand-written backward, and with jax.grad."""

    def by_hand(train_state, now):
        x, labels = now
        return train_step(model, LOSS, OPTIMIZER, train_state, Batch(x, labels), train_state.key)

    def by_autodiff(carry, now):
        params, state, opt_state = carry
        x, labels = now

        def loss(params):
            y, after, _ = model.forward(params, state, x, Ctx(train=True, key=key))
            return LOSS.value(labels, y), after

        (value, state), grads = jax.value_and_grad(loss, has_aux=True)(params)
        params, opt_state = OPTIMIZER.update(params, grads, opt_state)
        return (params, state, opt_state), value

    train_state = TrainState(params, state, OPTIMIZER.init(params), key, jnp.zeros((), jnp.int32))
    after, records = jax.lax.scan(by_hand, train_state, (x, labels))
    (params, state, _), losses = jax.lax.scan(by_autodiff, (params, state, train_state.opt_state), (x, labels))
    return (records.loss, after.params, after.state), (losses, params, state)


@pytest.mark.slow
def test_twenty_steps_are_those_of_jax_grad():
    model = models.cnn((3, 4), (5,), 3, dropout=0.1)
    labels = np.tile(np.arange(6, dtype=np.int32) % 3, (20, 1))
    x = numbers(2, 1, 6, 9, 8, 1) + 0.1 * numbers(3, 20, 6, 9, 8, 1)
    with jax.enable_x64(True):
        params, state = jax.tree.map(jnp.asarray, beginning(model, (1, 9, 8, 1), "float64"))
        found = twenty_steps(model, params, state, jnp.asarray(x), labels, KEY)
    ours, expected = jax.tree.map(np.asarray, found)
    np.testing.assert_allclose(ours[0], expected[0], rtol=1e-9)
    assert ours[0][-5:].mean() < 0.7 * ours[0][:5].mean()
    assert largest_error(ours[1:], expected[1:]) < 1e-9


# ---------------------------------------------------------------- padding


def after_one_step(model, params, state, batch):
    optimizer = sgd(0.1)
    train_state = TrainState(params, state, optimizer.init(params), KEY, jnp.zeros((), jnp.int32))
    after, record = train_step(model, LOSS, optimizer, train_state, batch, KEY)
    return after.params, after.state, record.loss


def test_padding_has_no_part_in_batch_norm():
    model = serial(layers.batch_norm(), layers.dense(3))
    x, labels = numbers(4, 5, 4).astype(np.float32), np.array([0, 1, 2, 1, 0])
    batches = [Batch(x[:3], labels[:3]), Batch(x, labels, np.array([1, 1, 1, 0, 0], np.float32))]
    batches.append(Batch(x[:3], labels[:3], np.array([0.5, 2, 1], np.float32)))
    params, state = beginning(model, x.shape)
    run = jax.jit(lambda batches: [after_one_step(model, params, state, batch) for batch in batches])
    bare, padded, weighted = run(batches)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), padded, bare)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), weighted[1], bare[1])


def test_examples_of_weight_0_are_masked_and_tokens_are_not():
    inner, masks = layers.dense(3), []

    def forward(params, state, x, ctx):
        masks.append(ctx.mask)
        return inner.forward(params, state, x, ctx)

    model, x = inner._replace(forward=forward), numbers(5, 2, 4, 6).astype(np.float32)
    params, state = beginning(model, x.shape)
    for weights in (None, np.array([0.5, 0]), np.ones((2, 4))):
        batch = Batch(x, np.ones((2, 4), int), weights)
        jax.eval_shape(functools.partial(after_one_step, model, params, state), batch)
    assert masks[0] is masks[2] is None
    assert (masks[1].shape, masks[1].dtype) == ((2,), bool)


@pytest.mark.parametrize("layer", [layers.attention(2), layers.rnn(3)], ids=["attention", "rnn"])
def test_a_mask_of_examples_changes_nothing_along_a_sequence(layer):
    x = numbers(6, 2, 3, 4).astype(np.float32)
    params, _ = beginning(layer, x.shape)
    run = jax.jit(lambda ctxs: [layer.forward(params, (), x, ctx)[0] for ctx in ctxs])
    masked, bare, by_token = run([Ctx(mask=np.array([True, False])), Ctx(), Ctx(mask=np.array([[True, True, False]]))])
    np.testing.assert_array_equal(masked, bare)
    assert np.abs(by_token - bare).max() > 1e-3


# ---------------------------------------------------------------- the command


@pytest.mark.slow
def test_a_run_goes_on(tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 255, (40, 5, 4)).astype(np.uint8)
    np.savez(tmp_path / "images.npz", x=images, y=np.where(images[:, 0, 0] > 100, "light", "dark"))
    out = tmp_path / "run"

    def run(flags, status=0):
        assert main(["train", *flags.split()]) == status
        printed = capsys.readouterr()
        return printed.err if status else printed.out

    data = f"--data {tmp_path / 'images.npz'} --model cnn --channels 2 --layers= --batch 16"
    run(f"{data} --epochs 1 --out {out}")
    printed = run(f"--resume {out} --epochs 2")
    assert "epoch 2/2" in printed
    assert "epoch 1/2" not in printed
    rows = [json.loads(row) for row in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    cosines = [2e-3 * (1 + math.cos(math.pi * t)) / 2 for t in (1 / 2, 3 / 4)]  # the second step of 2, the fourth of 4
    np.testing.assert_allclose([row["rate"] for row in rows], cosines, rtol=1e-5)
    assert {p.name for p in out.iterdir()} == {
        "config.json", "confusion.png", "curves.png", "metrics.jsonl", "mistakes.png", "params.npz", "train_state.npz",
        "weights.png",
    }  # fmt: skip
    for flags, message in {
        "--data moons --model cnn": r"moons: x has shape \(800, 2\), expected images",
        f"--resume {out} --out x": "--resume continues in the run's own folder",
        f"--resume {tmp_path}": r"there is no .*config\.json",
        f"--resume {out} --channels 3": "train_state.npz: .* has shape .*, expected",
    }.items():
        assert re.search(message, run(flags, status=2))


def test_the_defaults_make_a_model_of_mnist():
    settings, images = examples.DEFAULTS["cnn"], SimpleNamespace(images=True, n_out=10)
    model = examples.make_model(settings, images)  # pyright: ignore[reportArgumentType]
    out_shape, shapes, _ = shapes_of(model, (1, 28, 28, 1))
    assert tuple(out_shape) == (1, 10)
    n_params = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    stages = 24 * 9 + 2 * 24 + 48 * 24 * 9 + 2 * 48 + 96 * 48 * 9 + 2 * 96
    assert n_params == stages + 96 * 3 * 3 * 128 + 128 + 128 * 10 + 10
