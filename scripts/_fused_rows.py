"""The rows of `benchmark.py --fused`. A new rule: a function that builds its `Case`, and its lines in ROWS."""

import functools
import math

import jax
import jax.numpy as jnp
from _fused_benchmark import Case, Row
from _fused_layer_rows import ROWS as LAYERS

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


def flash_attention_case(b: int, h: int, t: int, d: int, key_heads: int, mask: bool = False) -> Case:
    """Causal; the mask hides a last part of each sequence, of another length in each."""

    def plain(q, k, v, real):
        k, v = (jnp.repeat(a, h // key_heads, axis=1) for a in (k, v))
        scores = jnp.einsum("bhtd,bhsd->bhts", q, k) / math.sqrt(d)
        seen = jnp.tril(jnp.ones((t, t), bool))[None, None]
        if mask:
            seen = seen & real[:, None, None, :]
        return jnp.einsum("bhts,bhsd->bhtd", jax.nn.softmax(jnp.where(seen, scores, -jnp.inf)), v)

    def ours(q, k, v, real):
        return flash_attention(q, k, v, causal=True, mask=real if mask else None)

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
        functools.partial(flash_attention_case, 2, 4, t, 64, key_heads, mask),
        timed=t < 4096,
    )
    for what, t, key_heads, mask in (
        ("causal", 2048, 4, False),
        ("causal", 16384, 4, False),
        ("causal, padding mask", 2048, 4, True),
        ("causal, 1 key head", 2048, 1, False),
    )
)

ROWS = (*LINEAR_CROSS_ENTROPY, *FLASH_ATTENTION, *LAYERS)
