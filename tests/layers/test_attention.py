"""Attention: what the battery of test_rules.py does not say."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import layers
from jaxnn.combinators import repeat, residual, serial
from jaxnn.layer import Ctx, as_custom_vjp
from jaxnn.layers import attention_backward, attention_forward, attention_step, multi_head_backward
from jaxnn.verify.judge.rule import numbers, shapes_of

KEY = jax.random.key(0, impl="unsafe_rbg")
MASK = np.array([[True, True, False, True, True], [False, True, True, True, False], [False] * 5])
Q, K, V = numbers(1, 3, 4, 5, 6), numbers(2, 3, 2, 5, 6), numbers(3, 3, 2, 5, 7)
DO = numbers(4, 3, 4, 5, 7)
X: Any = np.ones((2, 3, 8), np.float32)


def plain_attention(q, k, v, visible, kept: float | jax.Array = 1.0):
    """Head by head, as the formula stands; visible (B, T, S), kept (B, H, T, S): 0 or 1 / (1 - dropout)."""
    heads = []
    kept = jnp.broadcast_to(kept, (*q.shape[:3], k.shape[2]))
    for head in range(q.shape[1]):
        group = head // (q.shape[1] // k.shape[1])
        s = jnp.einsum("btd,bsd->bts", q[:, head], k[:, group]) / q.shape[-1] ** 0.5
        e = jnp.where(visible, jnp.exp(s), 0)
        total = e.sum(-1, keepdims=True)
        p = e / jnp.where(total == 0, 1, total)
        heads.append(jnp.einsum("bts,bse->bte", p * kept[:, head], v[:, group]))
    return jnp.stack(heads, 1)


@functools.cache
def core(causal, masked, dropout=0.0):
    """(o, (dq, dk, dv)) of the pair and of jax.vjp of the plain forward; and what dropout kept. float64."""
    mask = jnp.asarray(MASK) if masked else None
    visible = np.broadcast_to(np.tril(np.ones((5, 5), bool)) if causal else True, (3, 5, 5))
    visible = visible & MASK[:, None, :] if masked else visible

    @jax.jit
    def both(q, k, v, do):
        o, cache = attention_forward(q, k, v, causal=causal, mask=mask, dropout=dropout, key=KEY)
        keep = cache[-1]
        kept = 1.0 if keep is None else jnp.where(keep.reshape(3, 4, 5, 5), 1 / (1 - dropout), 0)
        theirs, vjp = jax.vjp(lambda q, k, v: plain_attention(q, k, v, visible, kept), q, k, v)
        return (o, attention_backward(cache, do, dropout=dropout)), (theirs, vjp(do)), keep

    with jax.enable_x64(True):
        return both(Q, K, V, DO)


@pytest.mark.parametrize(("causal", "masked", "dropout"), [(True, True, 0.4), (False, True, 0.0), (True, False, 0.0)])
def test_the_pair_against_a_plain_forward(causal, masked, dropout):
    ours, theirs, keep = core(causal, masked, dropout)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), ours, theirs)
    assert (keep is None) == (dropout == 0)


def test_a_query_that_sees_nothing_gives_zeros():
    for causal in (True, False):
        (o, (dq, dk, dv)), _, _ = core(causal, True, 0.4 if causal else 0.0)
        assert not np.asarray(o[2]).any()  # every key is masked
        assert all(not np.asarray(g[2]).any() for g in (dq, dk, dv))
        assert np.asarray(o[1, :, 1:]).any(axis=(0, 2)).all()
        if causal:
            assert not np.asarray(o[1, :, 0]).any()  # the one key it might see is masked
        assert not np.asarray(dk[1, :, [0, 4]]).any()  # nor does a masked key get a gradient
        assert not np.asarray(dv[1, :, [0, 4]]).any()


def test_dropout_of_the_weights_keeps_their_mean():
    _, _, keep = core(True, True, 0.4)
    assert abs(np.asarray(keep).mean() - 0.6) < 5 * np.sqrt(0.24 / keep.size)


@pytest.mark.quick
def test_as_jax_nn_dot_product_attention():
    q, k, v = (jnp.asarray(a, jnp.float32) for a in (Q, K, V[..., :6]))
    mask = jnp.asarray(MASK[:1])

    @jax.jit
    def both(q, k, v):
        time_first = [a.swapaxes(1, 2) for a in (q, k, v)]
        theirs = jax.nn.dot_product_attention(*time_first, mask=mask[:, None, None, :], is_causal=True)
        return attention_forward(q, k, v, causal=True, mask=mask)[0], theirs.swapaxes(1, 2)

    np.testing.assert_allclose(*both(q, k, v), rtol=2e-6, atol=2e-6)


def plain_layer(params, x, memory, n_heads, visible, rotary_base):
    """The whole layer written another way: each head by its own columns, the rotation by complex numbers."""
    d = params["wq"].shape[1] // n_heads

    def heads(name, x):
        y = x @ params[f"w{name}"] + (params[f"b{name}"][None, None] if f"b{name}" in params else 0)
        y = jnp.stack([y[..., i : i + d] for i in range(0, y.shape[-1], d)], 1)
        if rotary_base is None or name == "v":
            return y
        turn = np.exp(1j * np.arange(x.shape[1])[:, None] * rotary_base ** -(2 * np.arange(d // 2) / d))
        z = jax.lax.complex(y[..., : d // 2], y[..., d // 2 :]) * turn[None, None]
        return jnp.concatenate([z.real, z.imag], -1)

    o = plain_attention(heads("q", x), heads("k", memory), heads("v", memory), visible)
    y = sum(o[:, i] @ params["wo"][i * d : (i + 1) * d] for i in range(n_heads))
    return y + (params["bo"][None, None] if "bo" in params else 0)


def some_params(n, m, n_kv, bias):
    shapes = {"q": (n, n), "k": (m, n_kv), "v": (m, n_kv), "o": (n, n)}
    params = {f"w{name}": numbers(ord(name), *shape, scale=0.6) for name, shape in shapes.items()}
    biases = {f"b{name}": numbers(ord(name), shape[1]) for name, shape in shapes.items()}
    return params | biases if bias else params


@pytest.mark.parametrize("cross", [False, True], ids=["self, grouped, causal, rotary, bias", "cross, masked"])
def test_the_layer_against_a_plain_forward(cross):
    x, dy = numbers(5, 3, 5, 8), numbers(6, 3, 5, 8)
    if cross:
        model, params, ctx = layers.attention(2), some_params(8, 6, 8, bias=False), Ctx(mask=MASK[:, :4])
        x, visible = (x, numbers(7, 3, 4, 6)), MASK[:, None, :4]
    else:
        model = layers.attention(2, 1, causal=True, rotary_base=50.0, use_bias=True)
        params, ctx = some_params(8, 8, 4, bias=True), Ctx(mask=MASK)
        visible = MASK[:, None, :] & np.tril(np.ones((5, 5), bool))

    def plain(params, x):
        query, memory = x if cross else (jnp.where(MASK[..., None], x, 0),) * 2  # padding is read as 0
        return plain_layer(params, query, memory, 2, visible, None if cross else 50.0)

    @jax.jit
    def both(params, x, dy):
        y, _, cache = model.forward(params, (), x, ctx)
        their_y, vjp = jax.vjp(plain, params, x)
        f = as_custom_vjp(model)
        through_grad = jax.grad(lambda params, x: jnp.vdot(f(params, (), x, ctx)[0], dy), (0, 1))(params, x)
        return (y, model.backward(params, cache, dy)), (their_y, vjp(dy)), through_grad

    with jax.enable_x64(True):
        ours, theirs, through_grad = both(params, x, dy)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), ours, theirs)
    jax.tree.map(np.testing.assert_array_equal, ours[1], through_grad)
    out_shape, shapes, _ = shapes_of(model, jax.tree.map(np.shape, x))
    assert out_shape == dy.shape
    assert jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, params)


def test_the_future_changes_nothing_and_masked_tokens_change_nothing():
    model = layers.attention(2, causal=True, rotary_base=10_000.0)
    params, x = some_params(8, 8, 8, bias=False), numbers(8, 1, 5, 8)
    padded = Ctx(mask=np.array([[False, True, True, True, False]]))

    @jax.jit
    def run(x, dy):
        y, _, cache = model.forward(params, (), x, Ctx())
        y_padded, _, cache_padded = model.forward(params, (), x, padded)
        return y, y_padded, model.backward(params, cache, dy)[1], model.backward(params, cache_padded, dy)[1]

    other, early = x.copy(), np.where(np.arange(5) < 3, 1.0, 0.0)[None, :, None] * numbers(9, 1, 5, 8)
    other[:, 3:] += 10
    with jax.enable_x64(True):
        y, _, dx, _ = run(x, early)
        y_other, _, _, _ = run(other, early)
        np.testing.assert_array_equal(y[:, :3], y_other[:, :3])
        assert (np.abs(y - y_other)[:, 3:] > 0).all()
        assert not np.asarray(dx[:, 3:]).any()  # the past learns nothing from the future
        assert np.asarray(dx[:, :3]).any(axis=-1).all()

        real = np.asarray(padded.mask)[..., None]
        other = np.where(real, x, -x)
        _, y, _, dx = run(x, np.where(real, 1.0, 0.0) * numbers(10, 1, 5, 8))
        _, y_other, _, _ = run(other, early)
        np.testing.assert_array_equal(y[:, 1:4], y_other[:, 1:4])
        assert not np.asarray(dx)[:, [0, 4]].any()
        assert np.asarray(dx)[:, 1:4].any(axis=-1).all()


POISON = np.where(np.arange(7) % 2 == 0, np.nan, np.inf)


def test_what_stands_at_masked_keys_has_no_influence_and_gets_no_gradient():
    """Of the pair, not even where a query or a cotangent is NaN itself."""
    bad = [np.where(MASK[:, None, :, None], a, POISON[: a.shape[-1]]) for a in (K, V)]

    @jax.jit
    def run(q, k, v, do):
        o, cache = attention_forward(q, k, v, mask=MASK)
        return o, *attention_backward(cache, do)

    with jax.enable_x64(True):
        clean, found = run(Q, K, V, DO), run(Q, *bad, DO)
        poisoned = run(np.full_like(Q, np.nan), *bad, np.full_like(DO, np.inf))
    jax.tree.map(np.testing.assert_array_equal, found, clean)
    for dk in (*found[2:], *poisoned[2:]):
        assert not np.asarray(dk).swapaxes(1, 2)[~MASK].any()


@pytest.mark.parametrize("cross", [False, True])
def test_what_stands_at_padding_has_no_influence_on_the_layer(cross):
    model, ctx = layers.attention(2, 1, rotary_base=None if cross else 50.0, use_bias=True), Ctx(mask=MASK)
    params, x, dy = some_params(8, 8, 4, bias=True), numbers(5, 3, 5, 8), numbers(6, 3, 5, 8)
    bad = np.where(MASK[..., None], x, np.nan)

    @jax.jit
    def run(x):
        y, _, cache = model.forward(params, (), (dy, x) if cross else x, ctx)
        return y, *model.backward(params, cache, dy)

    with jax.enable_x64(True):
        clean, found = run(x), run(bad)
    jax.tree.map(np.testing.assert_array_equal, found, clean)
    assert not np.asarray(found[2][1] if cross else found[2])[~MASK].any()


def test_one_token_and_no_example():
    model = layers.attention(2, causal=True)
    params, one = some_params(4, 4, 4, bias=True), numbers(11, 2, 1, 4)
    with jax.enable_x64(True):
        forward = jax.jit(model.forward)
        y, _, _ = forward(params, (), one, Ctx())
        none, _, cache = forward(params, (), one[:0], Ctx())
        dparams, dx = jax.jit(model.backward)(params, cache, none)
    value = one @ params["wv"] + params["bv"]  # a token that sees itself alone
    np.testing.assert_allclose(y, value @ params["wo"] + params["bo"], rtol=1e-12)
    assert none.shape == dx.shape == (0, 1, 4)
    assert not any(np.asarray(g).any() for g in dparams.values())


def test_a_step_at_a_time_is_the_whole_sequence():
    model = layers.attention(2, 1, causal=True, rotary_base=100.0, use_bias=True)
    params, x = some_params(8, 8, 4, bias=True), numbers(12, 2, 5, 8)

    @jax.jit
    def both(params, x):
        def step(past, inputs):
            t, x_t = inputs
            y, past = attention_step(params, past, x_t[:, None], t, n_heads=2, rotary_base=100.0)
            return past, y[:, 0]

        past = (jnp.zeros((2, 1, 9, 4)), jnp.zeros((2, 1, 9, 4)))
        _, steps = jax.lax.scan(step, past, (jnp.arange(5), x.swapaxes(0, 1)))
        return model.forward(params, (), x, Ctx())[0], steps.swapaxes(0, 1)

    with jax.enable_x64(True):
        whole, steps = both(params, x)
    np.testing.assert_allclose(steps, whole, rtol=1e-12, atol=1e-13)


def test_a_stack_of_blocks_trains_with_its_own_dropout():
    """attention in residual, serial and repeat: under scan, with a key for each block."""
    block = residual(serial(layers.attention(2, causal=True, dropout=0.5), layers.dropout(0.0)))
    model = repeat(block, 2)
    params = ({name: np.stack([w, w]) for name, w in some_params(4, 4, 4, bias=False).items()}, {})
    x = np.broadcast_to(numbers(13, 1, 3, 4), (2, 3, 4)).astype(np.float32)

    @functools.partial(jax.jit, static_argnums=1)
    def run(x, train):
        y, _, caches = model.forward(jax.tree.map(jnp.float32, params), ((), ()), x, Ctx(train=train, key=KEY))
        return y, model.backward(jax.tree.map(jnp.float32, params), caches, y)[1], caches

    y, dx, caches = run(x, True)
    keep = np.asarray(caches[0][0][2][-1])
    assert keep.shape == (2, 2, 2, 1, 3, 3)
    assert (keep[0] != keep[1]).any()
    assert (y[0] != y[1]).any()  # the two examples are the same but for what is dropped
    assert np.isfinite(dx).all()
    evaluated, _, caches = run(x, False)
    assert caches[0][0][2][-1] is None
    np.testing.assert_array_equal(evaluated[0], evaluated[1])


def test_a_step_is_at_one_whole_position():
    params, past = some_params(8, 8, 8, bias=False), 2 * (np.zeros((2, 2, 5, 4), np.float32),)
    for t, message in ((1.5, "t is 1.5"), (True, "t is True"), (np.arange(2), r"t has shape \(2,\)")):
        with pytest.raises(ValueError, match=message):
            attention_step(params, past, X[:, :1], t, n_heads=2)  # type: ignore[reportArgumentType]


def test_training_without_a_key():
    params = jax.tree.map(np.float32, some_params(4, 4, 4, bias=False))
    for ctx, dropout in ((Ctx(train=True), 0.0), (Ctx(), 0.5)):
        jax.eval_shape(layers.attention(2, dropout=dropout).forward, params, (), X[..., :4], ctx)
    with pytest.raises(ValueError, match="attention: train=True needs random numbers"):
        layers.attention(2, dropout=0.5).forward(params, (), X[..., :4], Ctx(train=True))


def test_what_does_not_fit_is_named():
    q: Any = np.ones((2, 4, 5, 6), np.float32)
    k: Any = np.ones((2, 3, 5, 6), np.float32)
    with pytest.raises(ValueError, match=r"q \(2, 4, 5, 6\), .*: 3 key heads do not divide 4 query heads"):
        attention_forward(q, k, k)
    with pytest.raises(ValueError, match=r"as many keys as queries; .* the mask is float32"):
        attention_forward(q[:, :3, :2], k, k, causal=True, mask=np.ones((2, 5), np.float32))
    with pytest.raises(ValueError, match=r"the mask is bool\[3, 5\], expected bool\[2, 5\]"):
        attention_forward(k, k, k, mask=np.ones((3, 5), bool))
    with pytest.raises(ValueError, match="k and v must agree in all axes but the last; the dtypes are"):
        attention_forward(k, k, k[:, :1].astype(jnp.bfloat16))
    with pytest.raises(ValueError, match="q and k must agree in batch and features"):
        attention_forward(k, k[..., :5], k)
    with pytest.raises(ValueError, match="expected ranks of 4"):
        attention_forward(q[0], k, k)
    with pytest.raises(ValueError, match="needs a key"):
        attention_forward(k, k, k, dropout=0.5)
    _, cache = jax.eval_shape(attention_forward, k, k, k)
    with pytest.raises(ValueError, match="attention_backward: do has shape"):
        attention_backward(cache, k[..., :1])

    with pytest.raises(ValueError, match="n_kv_heads = 3 does not divide n_heads = 4"):
        layers.attention(4, 3)
    with pytest.raises(ValueError, match="dropout = 1"):
        layers.attention(4, dropout=1.0)
    model = layers.attention(4)
    for in_shape in ((2, 8), (2, 3, 6), ((2, 3, 8), (2, 8))):
        with pytest.raises(ValueError, match="with D divisible by n_heads = 4"):
            model.init(KEY, in_shape)  # pyright: ignore[reportArgumentType]
    params = jax.tree.map(np.float32, some_params(8, 8, 8, bias=True))
    with pytest.raises(ValueError, match=r"x has shape \(3, 8\), expected \(B, T, 8\); .* x is bfloat16"):
        model.forward(params, (), X[0].astype(jnp.bfloat16), Ctx())
    with pytest.raises(ValueError, match=r"params of shapes .* do not fit 4 heads"):
        model.forward(params | {"wv": params["wv"][:, :6]}, (), X, Ctx())
    with pytest.raises(ValueError, match=r"params has .*, expected \['wk', .*\] or \['bk', "):
        model.forward({name: p for name, p in params.items() if name != "bk"}, (), X, Ctx())
    _, _, cache = jax.eval_shape(model.forward, params, (), X, Ctx())
    with pytest.raises(ValueError, match=r"multi_head_backward: dy has shape \(2, 3, 1\)"):
        multi_head_backward(params, cache, X[..., :1])


@pytest.mark.peers
def test_attention_is_pytorch_s():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    params, x, dy = some_params(8, 8, 8, bias=True), numbers(14, 3, 5, 8), numbers(15, 3, 5, 8)
    mask = np.array([[True] * 5, [True, True, False, True, False], [True, False, False, True, True]])
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.tensor(np.concatenate([params["wq"], params["wk"], params["wv"]], 1).T))
        theirs.in_proj_bias.copy_(torch.tensor(np.concatenate([params["bq"], params["bk"], params["bv"]])))
        theirs.out_proj.weight.copy_(torch.tensor(params["wo"].T))
        theirs.out_proj.bias.copy_(torch.tensor(params["bo"]))
    their_x = torch.tensor(x, requires_grad=True)
    their_y, _ = theirs(
        *[their_x] * 3, key_padding_mask=torch.tensor(~mask), attn_mask=torch.triu(torch.ones(5, 5, dtype=bool), 1)
    )
    their_y.backward(torch.tensor(dy))
    grad = theirs.in_proj_weight.grad.numpy().T, theirs.in_proj_bias.grad.numpy()

    model = layers.attention(2, causal=True, use_bias=True)
    with jax.enable_x64(True):
        y, _, cache = model.forward(params, (), x, Ctx(mask=jnp.asarray(mask)))
        dparams, dx = model.backward(params, cache, jnp.asarray(dy))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12)
    close(y, their_y.detach().numpy())
    close(dx, their_x.grad.numpy())
    close(np.concatenate([dparams["wq"], dparams["wk"], dparams["wv"]], 1), grad[0])
    close(np.concatenate([dparams["bq"], dparams["bk"], dparams["bv"]]), grad[1])
    close(dparams["wo"], theirs.out_proj.weight.grad.numpy().T)
    close(dparams["bo"], theirs.out_proj.bias.grad.numpy())
