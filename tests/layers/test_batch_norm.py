"""Batch norm: statistics, masks, the running averages, and what the battery of test_rules.py does not say."""

import functools
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import Ctx, as_custom_vjp, combinators, get_loss, layers, sgd
from jaxnn.layers import BatchStats, EvalCache, TrainCache, batch_norm_forward
from jaxnn.training import Batch, start, train_step

EPS = 1e-5
B, T, C = 7, 2, 9
ROWS = B * T
MASK = np.arange(B) % 3 != 0
KEY = jax.random.key(0, impl="unsafe_rbg")
LAYER = layers.batch_norm(momentum=0.9, eps=EPS)
# mean and standard deviation of each feature
MEAN_STD = np.array([(0, 1), (100, 1), (1e4, 1), (1e4, 0.1), (3e6, 1), (5, 0), (1e19, 1e15), (0, 3e37), (0, 1e-3)]).T


def random(seed, *shape) -> Any:
    return np.random.default_rng(seed).normal(size=shape).clip(-2, 2).astype(np.float32)


def random_params(dtype: Any = np.float32):
    return {"scale": random(1, C).astype(dtype), "shift": random(2, C).astype(dtype)}


STATE = BatchStats(random(3, C), random(4, C) ** 2, weight=abs(random(5, 1)[0]) / 3)


@jax.jit
def run(params, state, x, dy, ctx):
    y, state, cache = LAYER.forward(params, state, x, ctx)
    return y, state, *LAYER.backward(params, cache, dy)


def truth(x, dy, scale):
    """x̂, r and dx over the rows (axis 0) in extended precision, at the same float32 numbers."""
    x, dy = np.asarray(x, np.longdouble), np.asarray(dy, np.longdouble)
    r = 1 / np.sqrt(x.var(0) + np.longdouble(EPS))
    x_hat = (x - x.mean(0)) * r
    return x_hat, r, scale * r * (dy - dy.mean(0) - x_hat * (dy * x_hat).mean(0))


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("largest", [1e7, np.inf], ids=["squares fit float32", "any"])  # they go different ways
def test_training_is_exact_at_any_mean_and_size_and_padding_has_no_part_in_it(largest, padded):
    mean, std = np.where(MEAN_STD.max(0) <= largest, MEAN_STD, [[1e4], [1]])
    x = (mean + std * random(5, B, T, C)).astype(np.float32)
    dy, params = random(6, B, T, C), random_params()
    params["shift"] *= 0  # it would hide the error of a small x̂
    real = MASK if padded else np.ones(B, bool)
    x[~real], dy[~real] = 1e37, 0  # what is in the padding does not matter
    y, _, dparams, dx = run(params, STATE, x, dy, Ctx(train=True, mask=real if padded else None))
    found_y, found_dx, x, true_dy = (np.asarray(a)[real].reshape(-1, C) for a in (y, dx, x, dy))
    x_hat, r, true_dx = truth(x, true_dy, params["scale"])
    largest_y, largest_dx = np.abs(params["scale"] * x_hat).max(0), np.abs(params["scale"] * r * true_dy).max(0)
    assert (np.abs(found_y - params["scale"] * x_hat) / np.maximum(largest_y, 1e-30)).max() < 5e-7
    smallest = np.finfo(np.float32).tiny  # what is below is flushed to 0
    assert ((np.abs(found_dx - true_dx) - smallest) / largest_dx).max() < 5e-7
    for name, terms in {"scale": x_hat * true_dy, "shift": true_dy}.items():
        error = np.abs(np.asarray(dparams[name]) - terms.sum(0)) / np.maximum(np.abs(terms).sum(0), 1e-30)
        assert error.max() < 5e-7
    assert not np.asarray(dx)[~real].any()


def test_a_mask_may_be_of_examples_or_of_positions():
    x, dy, params = random(7, B, T, C), random(8, B, T, C), random_params()
    by_example = run(params, STATE, x, dy, Ctx(train=True, mask=MASK))
    by_position = run(params, STATE, x, dy, Ctx(train=True, mask=np.repeat(MASK[:, None], T, 1)))
    jax.tree.map(np.testing.assert_array_equal, by_example, by_position)
    of_all = np.arange(T) % 2 == 0
    by_row = run(params, STATE, x, dy, Ctx(train=True, mask=of_all[None]))
    by_position = run(params, STATE, x, dy, Ctx(train=True, mask=np.tile(of_all, (B, 1))))
    jax.tree.map(np.testing.assert_array_equal, by_row, by_position)
    everywhere = run(params, STATE, x, dy, Ctx(train=True, mask=np.ones(B, bool)))
    without = run(params, STATE, x, dy, Ctx(train=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), everywhere, without)


def test_what_stands_in_rows_that_are_not_real_has_no_influence():
    rng = np.random.default_rng(3)
    x, dy = rng.normal(size=(2, 5, 4, 3)).astype(np.float32)
    mask = np.array([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]], bool)
    layer, dy = layers.batch_norm(), np.where(mask[..., None], dy, 0)
    _, params, state = layer.init(jax.random.key(0), x.shape)

    @jax.jit
    def run(x):
        y, new, cache = layer.forward(params, state, x, Ctx(train=True, mask=mask))
        return jnp.where(mask[..., None], y, 0), new, layer.backward(params, cache, dy)

    for bad in (np.nan, np.inf):
        found = run(np.where(mask[..., None], x, bad))
        jax.tree.map(np.testing.assert_array_equal, found, run(x))


def test_running_statistics_are_the_bias_corrected_average_of_the_batches():
    batches = (random(9, 5, ROWS, C) * np.repeat([1, 0.01, 10], 3) + np.repeat([3, -1, 0.5], 3)).astype(np.float32)
    params = random_params()

    @jax.jit
    def steps(batches):
        def step(state, x):
            _, state, _ = LAYER.forward(params, state, x, Ctx(train=True))
            return state, state

        return jax.lax.scan(step, LAYER.init(KEY, (1, C))[2], batches)[1]

    states = steps(batches)
    means, variances = batches.mean(1, np.float64), batches.var(1, np.float64, ddof=1)
    for t in range(1, 6):
        shares = 0.1 * 0.9 ** np.arange(t - 1, -1, -1)
        weight = 1 - 0.9**t
        assert abs(shares.sum() - weight) < 1e-12
        np.testing.assert_allclose(states.mean[t - 1], shares @ means[:t] / weight, rtol=1e-5)
        np.testing.assert_allclose(states.var[t - 1], shares @ variances[:t] / weight, rtol=1e-5)
        np.testing.assert_allclose(states.weight[t - 1], weight, rtol=1e-5)


def test_evaluation_after_one_step_is_as_training_saw_it():
    """No mis-scaling in the first steps: only n/(n - 1) in the variance is between the two."""
    x, dy, params = 100 * random(10, ROWS, C) + 1000, random(11, ROWS, C), random_params()
    trained, state, *_ = run(params, LAYER.init(KEY, (1, C))[2], x, dy, Ctx(train=True))
    evaluated, after, *_ = run(params, state, x, dy, Ctx())
    trained, evaluated, shift = np.asarray(trained), np.asarray(evaluated), params["shift"]
    np.testing.assert_allclose((evaluated - shift) * np.sqrt(ROWS / (ROWS - 1)), trained - shift, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, state, after)


def test_the_backward_of_evaluation():
    """mean and var are constants there: dx = scale dy / sqrt(var + eps), and no example touches another."""
    x, dy, params = random(12, ROWS, C), random(13, ROWS, C), random_params()
    y, _, dparams, dx = run(params, STATE, x, dy, Ctx(mask=np.arange(ROWS) > 2))  # which only training reads
    r = 1 / np.sqrt(STATE.var.astype(np.float64) + EPS)
    x_hat = (x - STATE.mean.astype(np.float64)) * r
    np.testing.assert_allclose(y, params["scale"] * x_hat + params["shift"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dx, params["scale"] * r * dy, rtol=1e-6)
    np.testing.assert_allclose(dparams["scale"], (dy * x_hat).sum(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dparams["shift"], dy.sum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("real", [0, 1])
def test_too_few_rows_for_a_variance_are_finite_and_leave_the_state(real):
    x, dy, params = random(14, 5, C), random(15, 5, C), random_params()
    y, state, dparams, dx = run(params, STATE, x, dy, Ctx(train=True, mask=np.arange(5) < real))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((y, dparams, dx)))
    jax.tree.map(np.testing.assert_array_equal, state, STATE)
    if real:
        np.testing.assert_allclose(y[0], params["shift"], rtol=1e-6)


def test_a_variance_that_float32_cannot_hold_is_stored_as_the_largest():
    x = np.float32(3e38) * np.sign(random(16, ROWS, C))
    x[:2] = [[3e38], [-3e38]]
    y, state, _, dx = run(random_params(), jax.tree.map(np.zeros_like, STATE), x, x / x, Ctx(train=True))
    assert np.isfinite(y).all()
    assert np.isfinite(dx).all()
    np.testing.assert_array_equal(state.var, np.finfo(np.float32).max)
    np.testing.assert_allclose(state.mean, x.mean(0, np.float64), rtol=1e-5, atol=1e33)


def test_low_precision_is_float32_rounded_once_and_the_state_keeps_its_dtype():
    params = random_params()
    x, dy = (random(i, ROWS, C).astype(jnp.bfloat16) for i in (17, 18))
    y, state, dparams, dx = run(params, STATE, x, dy, Ctx(train=True))
    wide = run(params, STATE, x.astype(np.float32), dy.astype(np.float32), Ctx(train=True))
    assert y.dtype == dx.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, wide[0].astype(jnp.bfloat16))
    np.testing.assert_array_equal(dx, wide[3].astype(jnp.bfloat16))
    jax.tree.map(np.testing.assert_array_equal, (state, dparams), wide[1:3])
    with jax.enable_x64(True):
        x, dy = x.astype(np.float64), dy.astype(np.float64)
        _, state, _, dx = jax.eval_shape(run, params, STATE, x, dy, Ctx(train=True))
    assert dx.dtype == np.float64
    assert all(leaf.dtype == np.float32 for leaf in state)


def test_the_state_gets_no_gradient_and_the_mode_is_in_the_cache():
    x, params = random(19, ROWS, C), random_params()
    f = as_custom_vjp(LAYER)
    for train, cache_type in ((True, TrainCache), (False, EvalCache)):
        ctx = Ctx(train=train)
        _, _, cache = jax.eval_shape(LAYER.forward, params, STATE, x, ctx)
        assert type(cache) is cache_type
        dstate = jax.jit(jax.grad(lambda state, ctx=ctx: jnp.sum(f(params, state, x, ctx)[0] ** 2)))(STATE)
        assert not any(np.any(leaf) for leaf in dstate)
    _, _, cache = jax.eval_shape(LAYER.forward, params, STATE, x[:0], Ctx(train=True))
    assert type(cache) is EvalCache


def test_less_memory_than_jax_grad():
    def ours(params, x, dy):
        y, _, cache = LAYER.forward(params, LAYER.init(KEY, x.shape)[2], x, Ctx(train=True))
        return y, LAYER.backward(params, cache, dy)

    def plain(params, x):
        scale, shift = (p.reshape(1, 1, 1, -1) for p in (params["scale"], params["shift"]))
        r = jax.lax.rsqrt(x.var((0, 1, 2), keepdims=True) + EPS)
        return (x - x.mean((0, 1, 2), keepdims=True)) * r * scale + shift

    def theirs(params, x, dy):
        y, vjp = jax.vjp(plain, params, x)
        return y, vjp(dy)

    x, p = jax.ShapeDtypeStruct((64, 28, 28, 32), jnp.float32), jax.ShapeDtypeStruct((32,), jnp.float32)
    memory = [jax.jit(f).lower({"scale": p, "shift": p}, x, x).compile().memory_analysis() for f in (ours, theirs)]
    least, much = [m.temp_size_in_bytes for m in memory if m is not None]
    assert least <= much / 10
    assert least <= x.size * 4 / 20


def test_a_network_with_it_learns_and_its_state_goes_along():
    x, y = random(20, 30, 4) * 50 + 200, random(21, 30, 1)
    model = combinators.serial(layers.dense(6), LAYER, layers.activation("tanh"), layers.dense(1))
    loss, optimizer = get_loss("mse"), sgd(0.1)

    @jax.jit
    def train():
        def step(train_state, _):
            train_state, record = train_step(model, loss, optimizer, train_state, Batch(x, y), KEY)
            return train_state, record.loss

        train_state, losses = jax.lax.scan(step, start(KEY, model, optimizer, x.shape), None, 60)
        y_pred, _, _ = model.forward(train_state.params, train_state.state, x, Ctx())
        return losses, loss.value(y, y_pred), train_state.state[1].weight

    losses, evaluated, weight = train()
    assert losses[-1] < 0.7 * losses[0]
    assert abs(evaluated - losses[-1]) < 0.1 * losses[0]
    np.testing.assert_allclose(weight, 1 - 0.9**60, rtol=1e-5)


def test_what_does_not_fit_is_an_error():
    x, params = random(24, 4, 3, C), random_params()
    for mask in (np.ones(3, bool), np.ones(4), np.ones((4, 3, C), bool), np.ones((), bool)):
        with pytest.raises(ValueError, match=r"batch_norm: ctx.mask is .* but x has shape \(4, 3, 9\); expected bool"):
            batch_norm_forward(params, STATE, x, Ctx(train=True, mask=mask))
    with pytest.raises(ValueError, match=r"batch_norm: x has shape \(9,\), expected \(batch, ..., features\)"):
        batch_norm_forward(params, STATE, x[0, 0], Ctx())
    with pytest.raises(ValueError, match=r"but scale has shape \(9,\), shift has shape \(9,\), state.mean has shape"):
        batch_norm_forward(params, STATE, x[..., :2], Ctx())
    with pytest.raises(ValueError, match=r"batch_norm: state is a tuple, expected the BatchStats"):
        LAYER.forward(params, (), x, Ctx())
    with pytest.raises(ValueError, match=r"batch_norm: params has \['scale'\]"):
        batch_norm_forward({"scale": params["scale"]}, STATE, x, Ctx())
    with pytest.raises(ValueError, match="batch_norm: x has dtype int32"):
        batch_norm_forward(params, STATE, x.astype(np.int32), Ctx())
    with pytest.raises(ValueError, match="batch_norm: in_shape is"):
        LAYER.init(KEY, ())
    with pytest.raises(ValueError, match="batch_norm: momentum = 1"):
        layers.batch_norm(momentum=1)
    with pytest.raises(ValueError, match="batch_norm: eps = 0"):
        layers.batch_norm(eps=0)
    with pytest.raises(ValueError, match="batch_norm_backward: dy has shape"):
        jax.eval_shape(run, params, STATE, x, x[..., :1], Ctx())


@pytest.mark.peers
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_the_same_numbers_as_torch():
    """Outputs, gradients and, after several steps, running statistics, in float64.

    torch's averages start at 0 and 1 and are never corrected: after t steps they are (1 - 0.9^t) times ours, plus 0.9^t
    of the start.
    """
    import torch  # pyright: ignore[reportMissingImports]

    peer = torch.nn.BatchNorm1d(C, EPS, momentum=0.1, dtype=torch.float64)
    params = random_params(np.float64)
    batches = random(22, 5, ROWS, C).astype(np.float64) + 3
    dy = random(23, ROWS, C).astype(np.float64)
    with torch.no_grad():
        peer.weight.copy_(torch.from_numpy(params["scale"]))
        peer.bias.copy_(torch.from_numpy(params["shift"]))
    with jax.enable_x64(True):
        state = jax.tree.map(functools.partial(jnp.asarray, dtype=jnp.float64), LAYER.init(KEY, (1, C))[2])
        for i, x in enumerate([*batches, batches[0]]):
            train = i < 5
            peer.train(train).zero_grad()
            if not train:
                state = BatchStats(peer.running_mean.numpy(), peer.running_var.numpy(), state.weight)
            y, state, dparams, dx = run(params, state, x, dy, Ctx(train=train))
            their_x = torch.from_numpy(x).requires_grad_()
            their_y = peer(their_x)
            their_y.backward(torch.from_numpy(dy))
            found = [y, dx, dparams["scale"], dparams["shift"]]
            expected = [their_y.detach(), their_x.grad, peer.weight.grad, peer.bias.grad]
            if train:
                weight = 1 - 0.9 ** (i + 1)
                found += [weight * state.mean, weight * state.var + 1 - weight]
                expected += [peer.running_mean, peer.running_var]
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_allclose(a, b.numpy(), rtol=1e-10, atol=1e-12)
