"""The rules of `jaxnn/fused`: what the battery of test_rules.py does not say."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn.fused import (
    flash_attention,
    flash_attention_backward,
    flash_attention_forward,
    linear_cross_entropy,
    linear_cross_entropy_backward,
    linear_cross_entropy_forward,
)
from jaxnn.fused.blocks import blocks_of
from jaxnn.layers import attention_backward, attention_forward
from jaxnn.losses import softmax_cross_entropy_with_integer_labels

MEMORY = ("default", "least")
EVERY_MEMORY = pytest.mark.parametrize("memory", MEMORY)


def random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(found, expected, error):
    """Every leaf, relative to its largest entry."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        b = np.asarray(b, np.float64)
        assert np.abs(np.asarray(a, np.float64) - b).max() <= error * np.abs(b).max()


def fails(message, f, *args, **kwargs):
    with pytest.raises(ValueError, match=re.escape(message)):
        f(*args, **kwargs)


@pytest.mark.parametrize("n", [1, 63, 64, 65, 128, 129, 1000])
def test_blocks_are_full_and_each_begins_inside(n):
    count, size = blocks_of(n, 64)
    assert size <= min(n, 64)
    assert (count - 1) * size < n <= count * size
    assert blocks_of(0, 64) == (1, 0)


# ---------------------------------------------------------------- linear_cross_entropy


@functools.cache
def tokens():
    """x, table, labels and weights, of sizes that the default blocks do not divide; two tokens of weight 0 are none."""
    rng = np.random.default_rng(0)
    x, table = random(1, 259, 9), random(2, 401, 9)
    labels, weights = rng.integers(0, 401, 259), rng.integers(0, 3, 259).astype(np.float32)
    weights[[3, 258]], labels[3], x[258] = 0, 401, np.nan
    return x, table, labels, weights


@functools.cache
def plain_gradient():
    """((loss, (dx, dtable)) by jax.grad of the plain loss, in float64."""
    x, table, labels, weights = tokens()
    labels = np.where(weights == 0, 0, labels)
    x = np.where(weights[:, None] == 0, 0, x).astype(np.float64)

    def plain(x, table):
        return softmax_cross_entropy_with_integer_labels(labels, x @ table.T, weights.astype(np.float64))

    with jax.enable_x64(True):
        return jax.jit(jax.value_and_grad(plain, (0, 1)))(x, table.astype(np.float64))


@EVERY_MEMORY
def test_jax_grad_of_linear_cross_entropy_is_that_of_the_plain_loss(memory):
    x, table, labels, weights = map(jnp.asarray, tokens())
    both = jax.jit(jax.value_and_grad(functools.partial(linear_cross_entropy, memory=memory), (0, 1)))
    found = both(x, table, labels, weights)
    close(found, plain_gradient(), 2e-6)
    assert not np.asarray(found[1][0])[[3, 258]].any()
    close(linear_cross_entropy(x, table, labels, weights, memory=memory), plain_gradient()[0], 2e-6)


@EVERY_MEMORY
def test_a_cotangent_of_the_loss_scales_the_gradient(memory):
    x, table, labels, _ = tokens()
    x, table, labels = x[:3], table[:4], labels[:3] % 4

    @jax.jit
    def both(x, table, factor):
        f = functools.partial(linear_cross_entropy, labels=labels, memory=memory)
        return jax.grad(lambda x, table: factor * f(x, table), (0, 1))(x, table)

    three, one = both(x, table, 3.0), both(x, table, 1.0)
    close(three, jax.tree.map(lambda g: 3 * g, one), 1e-6)


@EVERY_MEMORY
def test_confident_examples_keep_their_digits(memory):
    """The other score is lower by a gap up to 80: log(1 + e^-gap) and p - 1 are 0 in float32 from a gap of 17 on."""
    gaps = np.array([0.0, 1.0, 10.0, 17.0, 40.0, 80.0])
    table = np.array([[1.0], [0.0]], np.float32)

    @jax.jit
    def each(gaps):
        def one(gap):
            f = functools.partial(linear_cross_entropy, table=table, labels=np.array([0]), memory=memory, blocks=(1, 1))
            return jax.value_and_grad(lambda gap: f(gap.reshape(1, 1)))(gap)

        return jax.vmap(one)(gaps)

    loss, slope = each(gaps.astype(np.float32))
    np.testing.assert_allclose(loss, np.log1p(np.exp(-gaps)), rtol=1e-6)
    np.testing.assert_allclose(slope, -np.exp(-gaps) / (1 + np.exp(-gaps)), rtol=1e-6)


@EVERY_MEMORY
def test_a_label_out_of_range(memory):
    x, table = jnp.ones((2, 3)), jnp.ones((4, 3))
    f = functools.partial(linear_cross_entropy, memory=memory)
    for label in (-1, 4):
        fails(f"labels are from {min(label, 1)} to {max(label, 1)}", f, x, table, jnp.array([1, label]))
    both = jax.jit(jax.value_and_grad(f))
    for label in (-1, 4):
        loss, dx = both(x, table, jnp.array([1, label]))
        assert np.isnan(loss)
        assert np.isfinite(dx[0]).all()
        assert np.isnan(dx[1]).all()
        loss, dx = both(x, table, jnp.array([1, label]), jnp.array([1, 0]))
        assert np.isfinite(loss)
        assert not np.asarray(dx[1]).any()


def test_what_linear_cross_entropy_refuses():
    x, table, labels = jnp.ones((2, 3)), jnp.ones((4, 3)), jnp.array([1, 3])
    f = linear_cross_entropy
    fails("did you mean 'least'", f, x, table, labels, memory="last")
    fails("expected x (N, D) and table (V, D)", f, x, table.T, labels)
    fails("expected x (N, D) and table (V, D)", f, x[None], table, labels)
    fails("at least one example", f, x[:0], table, labels[:0])
    fails("x is float32, table float16", f, x, table.astype(jnp.float16), labels)
    fails("labels are float32[2]", f, x, table, labels.astype(jnp.float32))
    fails("labels are int32[1]", f, x, table, labels[:1])
    fails("weights are float32[2, 1]", f, x, table, labels, jnp.ones((2, 1)))
    fails("weights are from -1.0 to 1.0", f, x, table, labels, jnp.array([1.0, -1.0]))
    fails("a size in blocks = 0", f, x, table, labels, blocks=(0, 1))
    fails("params has ['w']", linear_cross_entropy_forward, {"w": table}, x, labels)
    _, cache = linear_cross_entropy_forward({"table": table}, x, labels)
    fails("dloss has shape (2,)", linear_cross_entropy_backward, {"table": table}, cache, jnp.ones(2))


# ---------------------------------------------------------------- flash_attention


T = 150  # more than a block of queries and two of keys; nothing divides it
MASK = np.random.default_rng(7).integers(0, 4, (2, T)) > 0
MASK[1, :3] = False  # in causal attention, three queries see nothing


def attention_example(key_heads):
    shapes = (2, 4, T, 5), (2, key_heads, T, 5), (2, key_heads, T, 3), (2, 4, T, 3)
    return tuple(random(i, *shape) for i, shape in enumerate(shapes))


def gradient(q, k, v, do, dtype=jnp.float32, **options):
    """(o, gradients) by jax.vjp of flash_attention."""
    q, k, v, do = (jnp.asarray(a, dtype) for a in (q, k, v, do))

    @jax.jit
    def both(q, k, v, do):
        o, vjp = jax.vjp(lambda q, k, v: flash_attention(q, k, v, **options), q, k, v)
        return o, vjp(do)

    return both(q, k, v, do)


def plain(q, k, v, do, **options):
    @jax.jit
    def both(q, k, v, do):
        o, cache = attention_forward(q, k, v, **options)
        return o, attention_backward(cache, do)

    with jax.enable_x64(True):
        return both(*(jnp.asarray(a, jnp.float64) for a in (q, k, v, do)))


@pytest.mark.parametrize(("causal", "key_heads"), [(True, 2), (False, 1)])
def test_jax_grad_of_flash_attention_is_the_plain_rule(causal, key_heads):
    example, options = attention_example(key_heads), {"causal": causal, "mask": MASK}
    found = gradient(*example, **options)
    close(found, plain(*example, **options), 3e-6)
    if causal:
        o, (dq, _, _) = found
        assert not np.asarray(o[1, :, :3]).any()
        assert not np.asarray(dq[1, :, :3]).any()
        assert np.asarray(o).any(axis=-1).sum() == o[..., 0].size - 12  # 3 queries of 4 heads


@pytest.mark.parametrize("causal", [True, False])
def test_what_stands_at_masked_keys_has_no_influence(causal):
    q, k, v, do = (jnp.asarray(a) for a in attention_example(2))
    seen = jnp.asarray(MASK)[:, None, :, None]

    @jax.jit
    def run(k, v):
        o, vjp = jax.vjp(functools.partial(flash_attention, causal=causal, mask=MASK, blocks=(16, 8)), q, k, v)
        return o, *vjp(do)

    found = run(jnp.where(seen, k, jnp.nan), jnp.where(seen, v, jnp.inf))
    jax.tree.map(np.testing.assert_array_equal, found, run(k, v))
    for dk in found[2:]:
        assert not np.asarray(jnp.where(seen, 0, dk)).any()


def test_bfloat16_is_rounded_once():
    """Scores, sums and dq are float32: the error is the rounding of q, k, v, do and of the results."""
    example = [np.asarray(a.astype(jnp.bfloat16), np.float32) for a in attention_example(4)]
    found = gradient(*example, dtype=jnp.bfloat16, causal=True)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.bfloat16)}
    close(found, plain(*example, causal=True), 6e-3)


def test_vmap_and_a_batch_are_the_same():
    q, k, v, do = attention_example(2)
    q, k, v, do = (a[:, :, :9] for a in (q, k, v, do))

    @jax.jit
    def both(q, k, v, do):
        f = functools.partial(flash_attention, causal=True, blocks=(4, 4))

        def one(q, k, v, do):
            o, vjp = jax.vjp(f, q, k, v)
            return o, vjp(do)

        mapped = jax.vmap(one)(*(a[:, None] for a in (q, k, v, do)))
        return one(q, k, v, do), jax.tree.map(lambda a: a[:, 0], mapped)

    whole, mapped = both(q, k, v, do)
    close(mapped, whole, 1e-6)


def test_nothing_to_attend_to_is_nothing():
    q = jnp.ones((2, 2, 3, 4))
    for no in (jnp.ones((2, 2, 0, 4)), jnp.ones((0, 2, 3, 4))):
        o, cache = flash_attention_forward(q[: len(no)], no, no)
        assert o.shape == q[: len(no)].shape
        assert not np.asarray(o).any()
        gradients = flash_attention_backward(cache, o)
        assert [g.shape for g in gradients] == [o.shape, no.shape, no.shape]
    assert flash_attention(q[:, :, :0], q, q).shape == (2, 2, 0, 4)


def test_scores_that_round_otherwise_the_second_time():
    """Of 1e9 and more, and in other blocks: a score may be greater than what was the largest one, by hundreds."""
    q, k, v, do = (jnp.asarray(a) for a in attention_example(4))
    _, cache = jax.jit(functools.partial(flash_attention_forward, blocks=(1, 1)))(3e4 * q, 3e4 * k, v)
    for g in jax.jit(flash_attention_backward)(cache, do):
        assert np.isfinite(g).all()


def test_what_flash_attention_refuses():
    q, k = jnp.ones((1, 4, 3, 2)), jnp.ones((1, 3, 3, 2))
    fails("3 key heads do not divide 4 query heads", flash_attention, q, k, k)
    fails("the mask is float32[1, 3]", flash_attention, q, q, q, mask=jnp.ones((1, 3)))
    fails("a size in blocks = 0", flash_attention, q, q, q, blocks=(8, 0))
    o, cache = flash_attention_forward(q, q, q)
    fails("do has shape (1, 4, 3)", flash_attention_backward, cache, o[..., 0])
    with pytest.raises(TypeError, match="can't apply forward-mode"):
        jax.jvp(lambda q: flash_attention(q, q, q), (q,), (q,))
