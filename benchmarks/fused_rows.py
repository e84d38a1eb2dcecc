"""Rows of `benchmarks.fused`: the rules of `jaxnn.fused` on one matrix product or one attention.

A new rule is a function that builds its `Case`, and its lines in ROWS.
"""

import functools
import math

import jax
import jax.numpy as jnp

from benchmarks.fused_case import Case, Row
from jaxnn.fused import flash_attention, linear_cross_entropy


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


# ---------------------------------------------------------------- linear_cross_entropy


def linear_cross_entropy_case(n: int, d: int, v: int, memory: str) -> Case:
    def plain(x, table, labels):
        z = jnp.einsum("nd,vd->nv", x, table)
        z_y = jnp.take_along_axis(z, labels[:, None], axis=1)[:, 0]
        return (jax.nn.logsumexp(z, axis=1) - z_y).mean()  # a third less memory than log_softmax

    def arguments():
        labels = jax.random.randint(jax.random.key(2), (n,), 0, v)
        return normal(0, n, d), 3 / math.sqrt(d) * normal(1, v, d), labels

    ours = functools.partial(linear_cross_entropy, memory=memory)
    return Case(jax.value_and_grad(ours, (0, 1)), jax.value_and_grad(plain, (0, 1)), arguments)


# ---------------------------------------------------------------- flash_attention


def flash_attention_case(t: int, key_heads: int, causal: bool, mask: bool) -> Case:
    """The mask hides the end of each sequence except the first."""
    b, h, d = 2, 4, 64

    def plain(q, k, v, real):
        k, v = (jnp.repeat(a, h // key_heads, axis=1) for a in (k, v))
        scores = jnp.einsum("bhtd,bhsd->bhts", q, k) / math.sqrt(d)
        if causal:
            scores = jnp.where(jnp.tril(jnp.ones((t, t), bool))[None, None], scores, -jnp.inf)
        if mask:
            scores = jnp.where(real[:, None, None, :], scores, -jnp.inf)
        return jnp.einsum("bhts,bhsd->bhtd", jax.nn.softmax(scores), v)

    def ours(q, k, v, real):
        return flash_attention(q, k, v, causal=causal, mask=real if mask else None)

    def gradients(f):
        def both(q, k, v, real, do):
            o, backward = jax.vjp(lambda q, k, v: f(q, k, v, real), q, k, v)
            return o, backward(do)

        return both

    def arguments():
        real = jnp.arange(t)[None, :] < t - t // 3 * jnp.arange(b)[:, None] // b
        q, k, v = normal(0, b, h, t, d), normal(1, b, key_heads, t, d), normal(2, b, key_heads, t, d)
        return q, k, v, real, normal(3, b, h, t, d)

    return Case(gradients(ours), gradients(plain), arguments)


# ---------------------------------------------------------------- the table


LINEAR_CROSS_ENTROPY = tuple(
    Row(
        f"linear_cross_entropy, {memory}",
        f"N{n} D{d} V{v}",
        functools.partial(linear_cross_entropy_case, n, d, v, memory),
        timed=v < 100_000,
    )
    for n, d, v in ((4096, 512, 32768), (8192, 1024, 131072))
    for memory in ("default", "least")
)

FLASH_ATTENTION = tuple(
    Row(
        f"flash_attention, {what}",
        f"B2 H4 T{t} D64",
        functools.partial(flash_attention_case, t, key_heads, causal, mask),
        timed=t < 4096,
    )
    for what, t, key_heads, causal, mask in (
        ("causal", 2048, 4, True, False),
        ("causal", 16384, 4, True, False),
        ("causal, padding mask", 2048, 4, True, True),
        ("causal, 1 key head", 2048, 1, True, False),
        ("every key", 2048, 4, False, False),
    )
)

ROWS = (*LINEAR_CROSS_ENTROPY, *FLASH_ATTENTION)
