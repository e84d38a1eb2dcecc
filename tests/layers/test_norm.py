"""Layer, RMS, group, instance and weight norm: what the battery of test_rules.py does not say."""

import functools
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import Ctx, combinators, layers
from jaxnn.layers import (
    group_norm_forward,
    instance_norm_forward,
    layer_norm_forward,
    rms_norm_forward,
    weight_norm_backward,
    weight_norm_forward,
)
from jaxnn.verify.judge.rule import shapes_of

EPS = 1e-5
B, S, C, GROUPS = 13, 7, 36, 3
KEY = jax.random.key(0, impl="unsafe_rbg")
NORMS = {
    "layer_norm": layers.layer_norm(eps=EPS),
    "rms_norm": layers.rms_norm(eps=EPS),
    "group_norm": layers.group_norm(GROUPS, eps=EPS),
    "instance_norm": layers.instance_norm(eps=EPS),
}
# axes that are normalised together, of x as (B, S, groups, C / groups)
AXES = {"layer_norm": (2, 3), "rms_norm": (2, 3), "group_norm": (1, 3), "instance_norm": (1,)}
# mean and standard deviation of each example
MEAN_STD = [
    *((0, 1), (1, 1), (100, 1), (1e4, 1), (1e4, 0.1), (3e6, 1)),
    *((0, 1e-3), (5, 0), (0, 0), (1e30, 0), (1e19, 1e15), (1e38, 1e34), (0, 1e38)),
]


def random(seed, *shape) -> Any:
    return np.random.default_rng(seed).normal(size=shape).clip(-2, 2).astype(np.float32)


# They go different ways: on a CPU, the squares are tried first.
SIZES = {"squares fit float32": (0, 1e7), "none fits": (1e30, np.inf), "any": (0, np.inf)}


def example(smallest=0, largest=np.inf):
    """Examples of the means and deviations whose larger one is in this range."""
    fit = [pair for pair in MEAN_STD if smallest <= max(pair) <= largest]
    mean, std = np.resize(np.array(fit), (B, 2)).T.reshape(2, B, 1, 1)
    return (mean + std * random(1, B, S, C)).astype(np.float32), random(2, B, S, C)


def gradient(norm, params, x, dy):
    y, _, cache = norm.forward(params, (), x, Ctx())
    return y, *norm.backward(params, cache, dy)


@jax.jit
def all_norms(params, x, dy):
    return {name: gradient(norm, params[name], x, dy) for name, norm in NORMS.items()}


PARAMS = {name: {"scale": random(3, C), "shift": random(4, C)} for name in NORMS}
del PARAMS["rms_norm"]["shift"]


def truth(name, scale, x, dy):
    """x̂, r and ∂L/∂x in extended precision, at the same float32 numbers."""
    x, dy, scale = (np.asarray(a, np.longdouble).reshape(-1, S, GROUPS, C // GROUPS) for a in (x, dy, scale + 0 * x))
    over = functools.partial(np.mean, axis=AXES[name], keepdims=True)
    centred = x if name == "rms_norm" else x - over(x)
    r = 1 / np.sqrt(over(centred**2) + np.longdouble(EPS))
    x_hat, g = centred * r, scale * dy
    dx = r * (g - (0 if name == "rms_norm" else over(g)) - x_hat * over(g * x_hat))
    largest = [np.abs(a).max(AXES[name], keepdims=True) for a in (x_hat, g)]
    return x_hat, r, dx, *largest


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("sizes", SIZES)
def test_exact_at_any_mean_and_size(name, sizes):
    x, dy = example(*SIZES[sizes])
    scale = PARAMS[name]["scale"]
    params = jax.tree.map_with_path(lambda path, p: p * (path[-1].key == "scale"), PARAMS)
    y, dparams, dx = all_norms(params, x, dy)[name]  # with shift 0: it would hide the error of a small x̂
    x_hat, r, true_dx, largest_x_hat, largest_g = truth(name, scale, x, dy)
    true_y = (x_hat.reshape(x.shape) * scale).reshape(x_hat.shape)
    largest = np.abs(scale).max() * np.maximum(largest_x_hat, 1e-30)
    assert (np.abs(np.asarray(y).reshape(x_hat.shape) - true_y) / largest).max() < 5e-7
    smallest = np.finfo(np.float32).tiny  # what is below is flushed to 0
    assert ((np.abs(np.asarray(dx).reshape(x_hat.shape) - true_dx) - smallest) / (r * largest_g)).max() < 5e-7
    for name, terms in {"scale": x_hat.reshape(x.shape) * dy, "shift": dy}.items():
        if name in dparams:
            error = np.abs(np.asarray(dparams[name]) - terms.sum((0, 1))) / np.abs(terms).sum((0, 1))
            assert error.max() < 5e-7


def test_the_textbook_formula_would_fail_that_test():
    x, _ = example()
    x_hat, _, _, largest, _ = truth("layer_norm", np.float32(1), x, x)
    i = MEAN_STD.index((1e4, 1))
    variance = np.square(x[i]).mean(-1, keepdims=True) - np.square(x[i].mean(-1, keepdims=True))
    with np.errstate(invalid="ignore"):
        y = (x[i] - x[i].mean(-1, keepdims=True)) / np.sqrt(variance + np.float32(EPS))
    error = np.abs(y - x_hat[i].reshape(S, C)) / largest[i, :, 0]
    assert not error.max() < 1e-2


def test_low_precision_is_float32_rounded_once():
    x, dy = (100 * random(7, B, S, C) + 1e3).astype(jnp.bfloat16), random(8, B, S, C).astype(jnp.bfloat16)
    found = all_norms(PARAMS, x, dy)
    expected = all_norms(PARAMS, x.astype(np.float32), dy.astype(np.float32))
    for name, (y, dparams, dx) in found.items():
        wide_y, wide_dparams, wide_dx = expected[name]
        assert y.dtype == dx.dtype == jnp.bfloat16
        np.testing.assert_array_equal(y, wide_y.astype(jnp.bfloat16))
        np.testing.assert_array_equal(dx, wide_dx.astype(jnp.bfloat16))
        jax.tree.map(np.testing.assert_array_equal, dparams, wide_dparams)


def test_a_batch_may_be_empty():
    empty = np.zeros((0, S, C), np.float32)
    for y, dparams, dx in all_norms(PARAMS, empty, empty).values():
        assert y.shape == dx.shape == empty.shape
        assert not any(leaf.any() for leaf in jax.tree.leaves(dparams))


def test_groups_are_of_neighbours_and_one_group_of_rows_is_layer_norm():
    x = random(9, 2, 3, 4)
    plain = {"scale": np.ones(4, np.float32), "shift": np.zeros(4, np.float32)}
    flat = {name: np.resize(p, 12) for name, p in plain.items()}

    @jax.jit
    def three(x):
        two, _ = group_norm_forward(plain, x, groups=2)
        one, _ = group_norm_forward(flat, x.reshape(2, 12), groups=1)
        return two, one, layer_norm_forward(flat, x.reshape(2, 12))[0]

    pairs, whole, layer = three(x)
    for channels in (slice(0, 2), slice(2, 4)):
        np.testing.assert_allclose(pairs[..., channels].mean((1, 2)), 0, atol=1e-6)
        np.testing.assert_allclose(pairs[..., channels].std((1, 2)), 1, rtol=1e-4)
    np.testing.assert_allclose(whole, layer, atol=1e-6)


def mean_std_norm(params, x, axes, grouped=None):
    """What one writes for jax.grad."""
    z = x if grouped is None else x.reshape(grouped)
    centre = z - z.mean(axes, keepdims=True)
    x_hat = (centre * jax.lax.rsqrt(jnp.square(centre).mean(axes, keepdims=True) + EPS)).reshape(x.shape)
    scale, shift = (p.reshape((1,) * (x.ndim - 1) + p.shape) for p in (params["scale"], params["shift"]))
    return x_hat * scale + shift


def temporaries(f, *shapes):
    params, x, dy = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), shapes, is_leaf=is_shape)
    memory = jax.jit(f).lower(params, x, dy).compile().memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes


def is_shape(x):
    return isinstance(x, tuple) and all(isinstance(n, int) for n in x)


def autodiff(forward):
    def both(params, x, dy):
        y, vjp = jax.vjp(forward, params, x)
        return y, vjp(dy)

    return both


@pytest.mark.parametrize(
    ("norm", "plain", "shape"),
    [
        (layers.layer_norm(), functools.partial(mean_std_norm, axes=-1), (4096, 512)),
        (
            layers.group_norm(4),
            functools.partial(mean_std_norm, axes=(1, 3), grouped=(64, 784, 4, 8)),
            (64, 28, 28, 32),
        ),
    ],
    ids=["layer_norm", "group_norm"],
)
def test_less_memory_than_jax_grad(norm, plain, shape):
    params = {"scale": shape[-1:], "shift": shape[-1:]}
    ours = temporaries(functools.partial(gradient, norm), params, shape, shape)
    theirs = temporaries(autodiff(plain), params, shape, shape)
    assert ours <= theirs / 2


# ---------------------------------------------------------------- weight norm


@pytest.mark.quick
def test_weights_have_their_length_and_direction_at_any_size():
    v = random(11, 5, 6) * np.array([1, 1e-30, 1e30, 1e34, 1e-3, 0], np.float32)
    g, dw = random(12, 6), random(13, 5, 6)
    params = {"g": g, "v": v}

    @jax.jit
    def both(params, dw):
        w, cache = weight_norm_forward(params)
        return w, weight_norm_backward(params, cache, dw)

    w, dparams = jax.tree.map(np.asarray, both(params, dw))
    long_v, some = v.astype(np.longdouble), slice(0, 5)
    length = np.sqrt((long_v**2).sum(0))[some]
    direction = long_v[:, some] / length
    np.testing.assert_allclose(w[:, some], g[some] * direction, rtol=1e-6)
    dg = (dw[:, some] * direction).sum(0)
    np.testing.assert_allclose(dparams["g"][some], dg, rtol=2e-6)
    dv = g[some] * (dw[:, some] - direction * dg)  # still to be divided by the length
    np.testing.assert_allclose(dparams["v"][:, some] * length, dv, atol=2e-6)
    for zero in (w[:, 5], dparams["g"][5], dparams["v"][:, 5]):
        assert not zero.any()


def test_weight_norm_starts_as_the_inner_layer_does():
    x = random(14, 4, 5)
    for initializer in ("lecun_normal", "zeros", lambda key, shape: 1e-30 * jax.random.normal(key, shape)):
        inner = layers.dense(3, initializer=initializer)
        norm = layers.weight_norm(inner)

        @jax.jit
        def start(norm=norm, inner=inner):
            _, params, state = norm.init(KEY, x.shape)
            _, inner_params, _ = inner.init(KEY, x.shape)
            return params, norm.forward(params, state, x, Ctx())[0], inner.forward(inner_params, (), x, Ctx())[0]

        params, y, expected = start()
        assert set(params) == {"b", "g", "v"}
        np.testing.assert_allclose(params["g"], np.linalg.norm(np.float64(params["v"]), axis=0), rtol=1e-6)
        np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-7)


# ---------------------------------------------------------------- errors


def test_what_does_not_fit_is_an_error():
    x, params = random(15, 2, 5), {"scale": np.ones(4), "shift": np.ones(5)}
    with pytest.raises(ValueError, match=r"layer_norm: x has shape \(2, 5\), but scale has shape \(4,\)"):
        layer_norm_forward(params, x)
    with pytest.raises(ValueError, match=r"rms_norm: params has \['scale', 'shift'\], expected \['scale'\]"):
        rms_norm_forward(params, x)
    params["scale"] = np.ones(5)
    with pytest.raises(ValueError, match=r"group_norm: x has shape \(2, 5\), expected .* a multiple of 2 channels"):
        layers.group_norm(2).forward(params, (), x, Ctx())
    with pytest.raises(ValueError, match=r"instance_norm: x has shape \(2, 5\), expected \(batch, positions"):
        instance_norm_forward(params, x)
    with pytest.raises(ValueError, match="group_norm: groups = 0"):
        layers.group_norm(0)
    for norm in (layers.layer_norm, layers.rms_norm, layers.instance_norm, functools.partial(layers.group_norm, 2)):
        with pytest.raises(ValueError, match="eps = 0"):
            norm(eps=0)
    with pytest.raises(ValueError, match="layer_norm: in_shape is"):
        layers.layer_norm().init(KEY, ())
    with pytest.raises(ValueError, match="layer_norm: x has dtype int32"):
        layer_norm_forward(params, x.astype(np.int32))
    for name, norm in NORMS.items():
        with pytest.raises(ValueError, match=f"{name}_backward: dy has shape"):
            jax.eval_shape(functools.partial(gradient, norm), PARAMS[name], np.ones((2, 3, C)), np.ones((2, 3, 1)))
    with pytest.raises(ValueError, match="weight_norm: the inner layer's params are a tuple, expected a dict with 'w'"):
        shapes_of(layers.weight_norm(combinators.serial(layers.dense(3))), (1, 5))
    with pytest.raises(ValueError, match=r"weight_norm: g has shape \(3,\), v \(5, 4\)"):
        weight_norm_forward({"g": np.ones(3), "v": np.ones((5, 4))})


# ---------------------------------------------------------------- peers


@pytest.mark.peers
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_the_same_numbers_as_torch():
    import torch  # pyright: ignore[reportMissingImports]

    x, dy, scale, shift = (random(i, *shape).astype(np.float64) for i, shape in enumerate([(4, 3, 6)] * 2 + [(6,)] * 2))
    channels_first = lambda a: a.transpose(1, 2)  # noqa: E731
    peers = {
        "layer_norm": torch.nn.LayerNorm(6, EPS, dtype=torch.float64),
        "rms_norm": torch.nn.RMSNorm(6, EPS, dtype=torch.float64),
        "group_norm": torch.nn.GroupNorm(GROUPS, 6, EPS, dtype=torch.float64),
        "instance_norm": torch.nn.InstanceNorm1d(6, EPS, affine=True, dtype=torch.float64),
    }
    for name, peer in peers.items():
        params = {"scale": scale} if name == "rms_norm" else {"scale": scale, "shift": shift}
        with jax.enable_x64(True):
            y, dparams, dx = gradient(NORMS[name], *jax.tree.map(jnp.asarray, (params, x, dy)))
        there, back = (channels_first,) * 2 if name in ("group_norm", "instance_norm") else (lambda a: a,) * 2
        with torch.no_grad():
            for p, value in zip(peer.parameters(), params.values(), strict=True):
                p.copy_(torch.from_numpy(value))
        their_x = torch.from_numpy(x).requires_grad_()
        their_y = back(peer(there(their_x)))
        their_y.backward(torch.from_numpy(dy))
        found = (y, dx, *dparams.values())
        expected = (their_y, their_x.grad, *(p.grad for p in peer.parameters()))
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-10, atol=1e-12, err_msg=name)
