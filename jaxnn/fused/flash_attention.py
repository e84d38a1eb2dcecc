"""Softmax attention block by block: the scores of all queries and keys are never in memory at once.

Shapes, as in `jaxnn/layers/attention.py`: B batch, T queries, N keys, H query heads, K key heads (K divides H),
d features of a query and of a key, e of a value. The G = H/K query heads that share a key head are rows of one matrix.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxnn._checks import at_least_float32, cotangent, float_array, whole
from jaxnn._parallel import by_device
from jaxnn.fused.blocks import blocks_of, iota, last_to_first, place
from jaxnn.layers import attention_forward

# Queries and keys per block of scores: small enough for a CPU's caches, large enough for its cores to share a product.
BLOCKS = 512, 256


class Cache(NamedTuple):
    """What the backward pass reads: nothing of size T times N."""

    q: jax.Array  # (B, H, T, d)
    k: jax.Array  # (B, K, N, d)
    v: jax.Array  # (B, K, N, e)
    mask: jax.Array | None  # (B, N) or (1, N)
    o: jax.Array  # (B, H, T, e)
    top: jax.Array  # (B, H, T) m, the largest score of a query
    share: jax.Array  # (B, H, T) 1 / l, 1 where no key may be seen


class CausalCache(Cache):
    """The same, for causal attention."""


def flash_attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    causal: bool = False,
    mask: ArrayLike | None = None,
    blocks: tuple[int, int] = BLOCKS,
) -> jax.Array:
    """Softmax attention in memory linear in T; `jax.grad` differentiates it with `flash_attention_backward`.

    o = softmax(q kᵀ / √d) v

    The formulas, shapes and errors are those of `flash_attention_forward`; the mask gets no gradient.
    Forward-mode (jax.jvp) is a TypeError of JAX: the rule is a `jax.custom_vjp`. Second derivatives of causal attention
    need jax.hessian: reverse over reverse mode is a ValueError, since the loops end at the diagonal.

    >>> q = k = jnp.zeros((1, 1, 2, 4))
    >>> flash_attention(q, k, jnp.array([[[[1.0], [3.0]]]]), causal=True)
    Array([[[[1.], [2.]]]], dtype=float32)
    """
    return _compiled(causal, tuple(blocks), *_checked(q, k, v, causal, mask, blocks))


def flash_attention_forward(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    causal: bool = False,
    mask: ArrayLike | None = None,
    blocks: tuple[int, int] = BLOCKS,
) -> tuple[jax.Array, Cache]:
    """`attention_forward` without dropout, one block of queries and one block of keys at a time.

    S = q kᵀ / √d,  -inf where the query may not see the key;  P = softmax(S) over the keys,  o = P v
    dv = Pᵀ do,  dP = do vᵀ,  dS = P ⊙ (dP - rowsum(do ⊙ o)),  dq = dS k / √d,  dk = dSᵀ q / √d

    Forward, from one block of keys to the next, with m the largest S of a query so far and l = Σ_j e^(S_j - m):
    m' = max(m, S),  o ← o e^(m - m') + e^(S - m') v,  l ← l e^(m - m') + rowsum(e^(S - m'));  finally o / l.
    Backward, S of each block is recomputed and P = e^(S - m) / l. Softmax's rowsum(dP ⊙ P) needs no whole row of P:
    Σ_j P_j (do · v_j) = do · Σ_j P_j v_j = do · o. Blocks above the diagonal of causal attention are skipped.

    q (B, H, T, d), k (B, K, N, d), v (B, K, N, e), o (B, H, T, e), of one dtype. causal: query t sees the keys s <= t,
    and T = N. mask: bool (B, N), or (1, N) for all examples alike; True is a key that may be seen. blocks: how many
    queries and keys at a time. Cached: q, k, v, mask, o, m and 1 / l; apart from these, the results and rowsum(do ⊙ o),
    memory does not grow with T.
    Raises the ValueErrors of `attention_forward`, and one for block sizes below 1.
    Numerics: those of `attention_forward`: a query that may see no key has o = 0 and sends back no gradient; masked
    keys and values have no influence, even if NaN, and gradients of exactly 0; a NaN that only `causal` hides still
    spreads. bfloat16 and float16 are calculated in float32, in which dq is also summed, and rounded at the end.
    The default blocks are the fastest on CPUs; other devices want larger ones.
    Source: Dao et al. 2022 (arXiv:2205.14135); Rabe, Staats 2021 (arXiv:2112.05682).
    """
    q, k, v, mask = _checked(q, k, v, causal, mask, blocks)
    results = _by_device(functools.partial(_forward, causal=causal, blocks=blocks), (q, k, v), mask)
    return results[0], (CausalCache if causal else Cache)(q, k, v, mask, *results)


def _forward(q, k, v, mask, causal, blocks):
    """o, top and share of the cache."""
    (n_examples, _, t, d), n_heads, n, e = q.shape, k.shape[1], k.shape[2], v.shape[3]
    g, t_count, t_size, n_count, n_size = _sizes(q, k, blocks)
    dtype, scale = at_least_float32(q.dtype), 1 / math.sqrt(d)
    results = (jnp.zeros((*q.shape[:3], e), v.dtype), *(jnp.zeros(q.shape[:3], dtype) for _ in range(2)))

    def one_head(i, results):
        head = _head(i, n_heads)

        def some_queries(i, results):
            start, _ = place(i, t_size, t)
            q_i = _rows(q, head, start, t_size).astype(dtype) * scale  # (G t_size, d)
            sees = _last_seen(start, t_size, g, n, causal)

            def some_keys(j, carry):
                o, top, total = carry
                start_j, position = _positions(j, n_size, n, mask, head)
                v_j = _unmasked(_rows(v, head, start_j, n_size), position, n, mask).astype(dtype)
                s = _scores(q_i, _rows(k, head, start_j, n_size).astype(dtype), sees, position)
                new_top = jnp.maximum(top, s.max(1))
                p = jnp.exp(s - new_top[:, None])  # (G t_size, n_size)
                shrink = jnp.exp(top - new_top)
                return o * shrink[:, None] + _product(p, v_j, 1, 0), new_top, total * shrink + p.sum(1)

            rows = g * t_size
            nothing = (jnp.zeros((rows, e), dtype), jnp.full(rows, jnp.finfo(dtype).min), jnp.zeros(rows, dtype))
            end = jnp.minimum((start + t_size - 1) // n_size + 1, n_count) if causal else n_count
            o, top, total = lax.fori_loop(0, end, some_keys, nothing)
            share = 1 / jnp.where(total == 0, 1, total)
            found = ((o * share[:, None]).astype(v.dtype), top, share)
            return tuple(_put_rows(a, part, head, start, t_size) for a, part in zip(results, found, strict=True))

        return lax.fori_loop(0, t_count, some_queries, results)

    if results[0].size and n:
        results = lax.fori_loop(0, n_examples * n_heads, one_head, results)
    return results


def flash_attention_backward(
    cache: Cache, do: jax.Array, *, blocks: tuple[int, int] = BLOCKS
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(dq, dk, dv): dS = P ⊙ (do vᵀ - rowsum(do ⊙ o)),  dq = dS k / √d,  dk = dSᵀ q / √d,  dv = Pᵀ do.

    do has o's shape. Each block of P comes from S, m and l; e^(S - m) is multiplied by do / l, so that no block is
    divided by l.
    """
    q, k, v, mask, o, top, share = cache
    do = cotangent("flash_attention_backward", "do", do, "the output", o.shape)
    run = functools.partial(_backward, causal=isinstance(cache, CausalCache), blocks=blocks)
    return _by_device(run, (q, k, v, o, top, share, do), mask)


def _backward(q, k, v, o, top, share, do, mask, causal, blocks):
    """dq, dk, dv."""
    (n_examples, _, t, d), n_heads, n = q.shape, k.shape[1], k.shape[2]
    g, t_count, t_size, n_count, n_size = _sizes(q, k, blocks)
    dtype, scale = at_least_float32(q.dtype), 1 / math.sqrt(d)
    mean = (do.astype(dtype) * o.astype(dtype)).sum(-1)  # (B, H, T)
    gradients = (jnp.zeros(q.shape, dtype), jnp.zeros_like(k), jnp.zeros_like(v))

    def one_head(i, gradients):
        head = _head(i, n_heads)

        def some_keys(j, gradients):
            dq, dk, dv = gradients
            start_j, position = _positions(j, n_size, n, mask, head)
            k_j, v_j = (  # (n_size, d) and (n_size, e)
                _unmasked(_rows(a, head, start_j, n_size), position, n, mask).astype(dtype) for a in (k, v)
            )

            def some_queries(i, carry):
                dq, dk_j, dv_j = carry
                start, stale = place(i, t_size, t)
                own = jnp.tile(iota(t_size) >= stale, g)
                share_i = jnp.where(own, _rows(share, head, start, t_size), 0)
                do_i = _rows(do, head, start, t_size).astype(dtype) * share_i[:, None]
                mean_i = _rows(mean, head, start, t_size) * share_i
                q_i = _rows(q, head, start, t_size).astype(dtype) * scale  # as forward, to round alike
                s = _scores(q_i, k_j, _last_seen(start, t_size, g, n, causal), position)
                p = jnp.exp(jnp.minimum(s - _rows(top, head, start, t_size)[:, None], 0))  # l P
                ds = p * (_product(do_i, v_j, 1, 1) - mean_i[:, None])
                dq_i = _rows(dq, head, start, t_size) + _product(ds, scale * k_j, 1, 0)
                dq = _put_rows(dq, dq_i, head, start, t_size)
                return dq, dk_j + _product(ds, q_i, 0, 0), dv_j + _product(p, do_i, 0, 0)

            first = j * n_size // t_size if causal else 0
            zeros = (jnp.zeros_like(k_j), jnp.zeros_like(v_j))
            dq, dk_j, dv_j = lax.fori_loop(first, t_count, some_queries, (dq, *zeros))
            dk_j, dv_j = (_unmasked(a, position, n, mask) for a in (dk_j, dv_j))
            dk = _put_rows(dk, dk_j.astype(k.dtype), head, start_j, n_size)
            return dq, dk, _put_rows(dv, dv_j.astype(v.dtype), head, start_j, n_size)

        return last_to_first(n_count, some_keys, gradients)

    if o.size and n:
        gradients = lax.fori_loop(0, n_examples * n_heads, one_head, gradients)
    dq, dk, dv = gradients
    return dq.astype(q.dtype), dk, dv


def _by_device(f, arrays, mask):
    """f(*arrays, mask), on each device for its own examples; a mask of one row is for all of them."""
    examples, whole = (arrays, (mask,)) if mask is None or len(mask) == 1 else ((*arrays, mask), ())
    return by_device(lambda *arguments: (f(*arguments), ()), examples, whole)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _rule(causal, blocks, q, k, v, mask):
    return flash_attention_forward(q, k, v, causal=causal, mask=mask, blocks=blocks)[0]


def _rule_forward(causal, blocks, q, k, v, mask):
    return flash_attention_forward(q, k, v, causal=causal, mask=mask, blocks=blocks)


def _rule_backward(causal, blocks, cache, do):
    return *flash_attention_backward(cache, do, blocks=blocks), None


_rule.defvjp(_rule_forward, _rule_backward)
_compiled = jax.jit(_rule, static_argnums=(0, 1))  # outside jit, each call would recompile the loops


# ---------------------------------------------------------------- a block of scores


def _scores(q_i, k_j, sees, position):
    """q kᵀ of two blocks, -inf where a key's position is beyond the last that the query sees."""
    return jnp.where(position[None, :] <= sees[:, None], _product(q_i, k_j, 1, 1), -jnp.inf)


def _last_seen(start, t_size, g, n, causal):
    """(G t_size,) the last position that each query may see."""
    return jnp.tile(start + iota(t_size), g) if causal else jnp.full(g * t_size, n - 1, jnp.int32)


def _positions(j, n_size, n, mask, head):
    """Where block j of the keys starts, and their positions: n, which no query sees, if masked or stale."""
    start, stale = place(j, n_size, n)
    visible = iota(n_size) >= stale
    if mask is not None:
        example = head.example if len(mask) > 1 else np.int32(0)
        visible &= lax.dynamic_slice(mask, (example, start), (1, n_size))[0]
    return start, jnp.where(visible, start + iota(n_size), n)


def _unmasked(block, position, n, mask):
    """A block of keys or values with 0 for those that no query sees, since 0 · NaN is not 0."""
    return block if mask is None else jnp.where((position < n)[:, None], block, 0)


def _product(a, b, a_axis, b_axis):
    """The matrix product over an axis of each."""
    return lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())))


# ---------------------------------------------------------------- rows of the whole arrays


class _Head(NamedTuple):
    """A key head of an example."""

    example: jax.Array
    number: jax.Array  # which of the example's key heads
    n_heads: int  # key heads per example


def _head(i, n_heads):
    i = jnp.asarray(i, jnp.int32)
    return _Head(i // n_heads, i % n_heads, n_heads)


def _rows(a, head, start, size):
    """Positions start … start + size of the heads of a (B, heads, T, …) that belong to a key head, stacked.

    They are cut from the whole array: a copy of the head would have size T.
    """
    group = a.shape[1] // head.n_heads
    block = lax.dynamic_slice(a, _corner(a, head, start), (1, group, size, *a.shape[3:]))
    return block.reshape(group * size, *a.shape[3:])


def _put_rows(a, block, head, start, size):
    """a with the block in place of such rows."""
    block = block.reshape(1, a.shape[1] // head.n_heads, size, *a.shape[3:])
    return lax.dynamic_update_slice(a, block, _corner(a, head, start))


def _corner(a, head, start):
    return head.example, head.number * (a.shape[1] // head.n_heads), start, *[np.int32(0)] * (a.ndim - 3)


def _sizes(q, k, blocks):
    """G, and the count and size of the blocks of queries and of keys."""
    g = q.shape[1] // k.shape[1]
    return g, *blocks_of(q.shape[2], max(1, blocks[0] // g)), *blocks_of(k.shape[2], blocks[1])


def _checked(q, k, v, causal, mask, blocks):
    """The arguments as arrays; the plain rule raises all errors except those about blocks."""
    for size in blocks:
        whole("flash_attention", "a size in blocks", size, least=1)
    q, k, v = (float_array("flash_attention", name, a) for name, a in (("q", q), ("k", k), ("v", v)))
    mask = None if mask is None else jnp.asarray(mask)
    jax.eval_shape(functools.partial(attention_forward, causal=causal), q, k, v, mask=mask)
    return q, k, v, mask
