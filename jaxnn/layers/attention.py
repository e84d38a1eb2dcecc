"""Softmax attention: each query gets the mean of the values, weighted by how well their keys match it.

The Layer, with projections around this, is in `multi_head.py`.

Shapes: B batch, T queries, N keys, H query heads, K key heads (K divides H; K = H is plain multi-head attention),
d features of a query and of a key, e of a value.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnn._checks import at_least_float32, cotangent, float_array, fraction
from jaxnn._parallel import reshaped
from jaxnn.activations import softmax_forward
from jaxnn.layers.dropout import drop, dropout_forward


def attention_forward(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    causal: bool = False,
    mask: ArrayLike | None = None,
    dropout: float = 0.0,
    key: jax.Array | None = None,
) -> tuple[jax.Array, tuple]:
    """Softmax attention. Each key head serves H/K consecutive query heads.

    S = q kᵀ / √d,  -inf where the query may not see the key
    P = softmax(S) over the keys,  A = P with dropout of probability p (A = P without),  o = A v

    dv = Aᵀ do,  dA = do vᵀ,  dP = dA / (1 - p) where kept, 0 where dropped
    dS = P ⊙ (dP - rowsum(dP ⊙ P))
    dq = dS k / √d,  dk = dSᵀ q / √d;  dk and dv are summed over the query heads of their key head

    A row of dS: P_j = e^(S_j) / Σ_m e^(S_m) has ∂P_j/∂S_i = P_j (1[i=j] - P_i), so
    dS_i = Σ_j dP_j P_j (1[i=j] - P_i) = P_i (dP_i - Σ_j dP_j P_j). Where P_i = 0, behind a mask, dS_i = 0: the mask
    needs no formula of its own.

    q (B, H, T, d), k (B, K, N, d), v (B, K, N, e), o (B, H, T, e), of one dtype. causal: query t sees the keys s <= t,
    and T = N. mask: bool (B, N), or (1, N) for all examples alike; True is a key that may be seen. dropout: p, which
    needs key. Cached: q, k and v (0 where masked), the mask, P and what dropout keeps (None without): memory grows with
    T N.
    Raises ValueError for shapes or dtypes that do not fit, and for dropout > 0 without a key.
    Numerics: bfloat16 and float16 are calculated in float32, in which P is also kept, and rounded at the end. The
    largest S is subtracted before exp. A query that may see no key has o = 0 and sends back no gradient. Masked keys
    and values have no influence, even if NaN, and gradients of exactly 0; a NaN that causal attention hides from
    earlier queries does reach them, as 0 · NaN. S itself must not overflow: |q| |k| < 3e38 in float32. The error of
    dS_i is one rounding of P_i max |dP|.
    Source: Vaswani et al. 2017 (arXiv:1706.03762); Ainslie et al. 2023 for K < H (arXiv:2305.13245).

    >>> q = k = jnp.zeros((1, 1, 2, 4))
    >>> o, _ = attention_forward(q, k, jnp.array([[[[1.0], [3.0]]]]), causal=True)
    >>> o
    Array([[[[1.], [2.]]]], dtype=float32)
    """
    q, k, v = (float_array("attention", name, a) for name, a in (("q", q), ("k", k), ("v", v)))
    mask = None if mask is None else jnp.asarray(mask)
    _check_core(q, k, v, causal, mask)
    fraction("attention", "dropout", dropout)
    if mask is not None:
        k, v = unmasked(mask, k, axis=2), unmasked(mask, v, axis=2)  # P is 0 there, but 0 · NaN is not
    scores = _product("bkgtd,bksd->bkgts", _grouped(q, k), k) / math.sqrt(q.shape[-1])
    if causal:
        scores = jnp.where(jnp.tril(jnp.ones((1, 1, 1, *scores.shape[-2:]), bool)), scores, -jnp.inf)
    if mask is not None:
        scores = jnp.where(mask[:, None, None, None, :], scores, -jnp.inf)
    p, _ = softmax_forward(scores)
    weights, keep = p, None
    if dropout > 0:
        weights, (keep, _) = dropout_forward(key, p, dropout)  # pyright: ignore[reportArgumentType] (it checks the key)
    o = _product("bkgts,bkse->bkgte", weights, v).astype(v.dtype)
    return reshaped(o, *q.shape[:-1], v.shape[-1]), (q, k, v, mask, p, keep)


def attention_backward(cache, do: jax.Array, *, dropout: float = 0.0) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(dq, dk, dv): dS = P ⊙ (dP - rowsum(dP ⊙ P)),  dq = dS k / √d,  dk = dSᵀ q / √d,  dv = Aᵀ do.

    do has o's shape; dropout as in the forward pass.
    """
    q, k, v, mask, p, keep = cache
    do = cotangent("attention_backward", "do", do, "the output", (*q.shape[:-1], v.shape[-1]), p.dtype)
    queries, do = _grouped(q, k), _grouped(do, v)
    weights = p if keep is None else drop(keep, p, dropout)
    dv = _product("bkgts,bkgte->bkse", weights, do)
    dp = _product("bkgte,bkse->bkgts", do, v)
    if keep is not None:
        dp = drop(keep, dp, dropout)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True))
    dq = _product("bkgts,bksd->bkgtd", ds, k) / math.sqrt(q.shape[-1])
    dk = _product("bkgts,bkgtd->bksd", ds, queries) / math.sqrt(q.shape[-1])
    if mask is not None:
        dk, dv = unmasked(mask, dk, axis=2), unmasked(mask, dv, axis=2)
    return reshaped(dq.astype(q.dtype), *q.shape), dk.astype(k.dtype), dv.astype(v.dtype)


def unmasked(mask, a, axis):
    """a (B, …) with 0 where the mask (B, N) or (1, N) is False; N is the size of the axis."""
    return jnp.where(jnp.expand_dims(mask, [i for i in range(1, a.ndim) if i != axis]), a, 0)


def _grouped(q, k):
    """(B, H, T, d) as (B, K, H/K, T, d): the query heads beside the key head that serves them."""
    return reshaped(q, q.shape[0], k.shape[1], q.shape[1] // k.shape[1], *q.shape[2:])


def _product(subscripts, a, b):
    dtype = at_least_float32(a.dtype)
    return jnp.einsum(subscripts, a.astype(dtype), b.astype(dtype))


def _check_core(q, k, v, causal, mask):
    """ValueError naming everything that does not fit."""
    wrong = []
    if not q.ndim == k.ndim == v.ndim == 4:
        wrong.append("expected ranks of 4: (B, H, T, d), (B, K, N, d), (B, K, N, e)")
    else:
        if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
            wrong.append("q and k must agree in batch and features")
        if 0 in (q.shape[1], q.shape[3], v.shape[3]):
            wrong.append("expected at least one head and one feature")
        if k.shape[:3] != v.shape[:3]:
            wrong.append("k and v must agree in all axes but the last")
        if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
            wrong.append(f"{k.shape[1]} key heads do not divide {q.shape[1]} query heads")
        if causal and q.shape[2] != k.shape[2]:
            wrong.append("causal attention needs as many keys as queries; use a mask for a query among past keys")
        wrong += wrong_mask(mask, q.shape[0], k.shape[2])
    if not q.dtype == k.dtype == v.dtype:
        wrong.append(f"the dtypes are {q.dtype}, {k.dtype}, {v.dtype}: cast them to one")
    if wrong:
        raise ValueError(f"attention: q {q.shape}, k {k.shape}, v {v.shape}: " + "; ".join(wrong))


def wrong_mask(mask, n_examples, n_keys) -> list[str]:
    """What is wrong with a mask of keys; [] if nothing is."""
    if mask is None or (mask.shape in ((n_examples, n_keys), (1, n_keys)) and mask.dtype == bool):
        return []
    expected = f"bool[{n_examples}, {n_keys}], True where a key may be seen"
    return [f"the mask is {mask.dtype}{list(mask.shape)}, expected {expected}"]
