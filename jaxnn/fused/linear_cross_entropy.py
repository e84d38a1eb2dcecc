"""Cross-entropy of the scores of a large vocabulary; the scores of all tokens are never in memory at once.

Shapes: N tokens, D features, V rows of the table (one per word of a vocabulary).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from jaxnn._checks import array, at_least_float32, cotangent, float_array, parameters, unknown_name, whole
from jaxnn._parallel import by_device
from jaxnn.fused.blocks import block_at, blocks_of, iota, last_to_first, place, put_at

# For each `memory`: tokens and rows of the table per block, large enough for a CPU's cores to share a product.
BLOCKS = {"default": (256, 384), "least": (512, 384)}


class Gradients(NamedTuple):
    """The cache of memory="default": the gradient for dL = 1, known as soon as the loss is."""

    dtable: jax.Array  # (V, D)
    dx: jax.Array  # (N, D)


class Shares(NamedTuple):
    """The cache of memory="least": with it, ∂L/∂z comes from recomputed scores."""

    x: jax.Array  # (N, D)
    labels: jax.Array  # (N,)
    top: jax.Array  # (N,) m, the largest score
    share: jax.Array  # (N,) w / Σ_j e^(z_j - m): ∂L/∂z_j = share e^(z_j - m) for j ≠ y
    slope: jax.Array  # (N,) ∂L/∂z_y


def linear_cross_entropy(
    x: ArrayLike,
    table: ArrayLike,
    labels: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    memory: str = "default",
    blocks: tuple[int, int] | None = None,
) -> jax.Array:
    """Cross-entropy of the scores z = x tableᵀ; `jax.grad` differentiates it with `linear_cross_entropy_backward`.

    L = Σ_i w_i ℓ_i / Σ_i w_i,  ℓ_i = -log softmax(z_i)_(y_i),  y = labels, w = weights, 1 by default

    The formulas, shapes and errors are those of `linear_cross_entropy_forward`; labels and weights get no gradient.
    Labels out of range and negative weights are a ValueError where their values are known, outside jit.
    Forward-mode (jax.jvp) is a TypeError of JAX: the rule is a `jax.custom_vjp`.

    >>> x, table = jnp.eye(2), jnp.array([[20.0, 0.0], [0.0, 0.0]])
    >>> linear_cross_entropy(x[:1], table, jnp.array([0]))
    Array(2.06115...e-09, dtype=float32)
    """
    table = float_array("linear_cross_entropy", "table", table)
    params, x, labels, weights = _checked({"table": table}, x, labels, weights, memory, blocks)
    return _compiled(memory, None if blocks is None else tuple(blocks), params, x, labels, weights)


def linear_cross_entropy_forward(
    params: dict,
    x: ArrayLike,
    labels: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    memory: str = "default",
    blocks: tuple[int, int] | None = None,
) -> tuple[jax.Array, Gradients | Shares]:
    """A linear layer without bias and its softmax cross-entropy in one.

    z = x tableᵀ,  p = softmax(z),  ℓ = -log p_y,  L = Σ_i u_i ℓ_i,  u = w / Σ w
    dz_j = u p_j for j ≠ y,  dz_y = -u Σ_(j≠y) p_j  (that is u (p_y - 1))
    dx = dz table,  dtable = dzᵀ x

    params {"table": (V, D)}, as an embedding stores it; x (N, D) of the same dtype; labels (N,) integers in [0, V);
    weights (N,), constant, w >= 0; L a scalar, at least float32. An example of weight 0 costs nothing and is ignored,
    even if NaN. Under jit the loss and the gradient of an example whose label is out of range are NaN.

    memory="default": z of some tokens at a time is made, used for L, dx and dtable, and forgotten. Cached: the gradient
    for dL = 1. It costs as much as the plain rule.
    memory="least": z of some tokens and some rows of the table at a time is made, for L in the forward pass and again
    for dx and dtable in the backward pass: a third more work. Cached: x, labels and three numbers per token.
    `linear_cross_entropy` without jax.grad calculates L as "least" does, whatever memory is.
    blocks: how many tokens, and how many rows of the table, at a time; the default is the fastest on CPUs,
    other devices want larger ones.

    Raises ValueError for shapes or dtypes that do not fit, for N = 0, an unknown memory, and block sizes below 1.
    Numerics: with m the largest z and s = Σ_(j≠y) e^(z_j - m), ℓ = (m - z_y) + log1p(s + (e^(z_y - m) - 1)): exact down
    to the smallest float for a confident example, where the logarithm of 1 + s is 0 in float32 from a gap of 17 on; and
    dz_y comes from s, since p_y - 1 cancels. m and s are carried from one block of rows to the next: s ← s e^(m - m').
    bfloat16 and float16 are calculated in float32 and rounded at the end.
    Source: Milakov, Gimelshein 2018 for the running s (arXiv:1805.02867); Wijmans et al. 2024 (arXiv:2411.09009).
    """
    params, x, labels, weights = _checked(params, x, labels, weights, memory, blocks)
    run = _loss_and_gradients if memory == "default" else _loss_and_shares
    return run(params["table"], x, labels, weights, blocks or BLOCKS[memory])


def linear_cross_entropy_backward(
    params: dict, cache: Gradients | Shares, dloss: jax.Array, *, blocks: tuple[int, int] | None = None
) -> tuple[dict[str, jax.Array], jax.Array]:
    """({"table": dtable}, dx): dz_j = u p_j, dz_y = -u Σ_(j≠y) p_j;  dx = dz table,  dtable = dzᵀ x; dloss a scalar."""
    dtype = at_least_float32(params["table"].dtype)
    dloss = cotangent("linear_cross_entropy_backward", "dloss", dloss, "the loss", (), dtype)
    if isinstance(cache, Gradients):
        dtable, dx = ((dloss * g.astype(dtype)).astype(g.dtype) for g in cache)
    else:
        dtable, dx = _gradients_from_shares(params["table"], cache, dloss, blocks or BLOCKS["least"])
    return {"table": dtable}, dx


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _rule(memory, blocks, params, x, labels, weights):
    return _loss_and_shares(params["table"], x, labels, weights, blocks or BLOCKS["least"])[0]


def _rule_forward(memory, blocks, params, x, labels, weights):
    loss, cache = linear_cross_entropy_forward(params, x, labels, weights, memory=memory, blocks=blocks)
    return loss, (params, cache)


def _rule_backward(memory, blocks, saved, dloss):
    params, cache = saved
    return *linear_cross_entropy_backward(params, cache, dloss, blocks=blocks), None, None


_rule.defvjp(_rule_forward, _rule_backward)
_compiled = jax.jit(_rule, static_argnums=(0, 1))  # outside jit, each call would recompile the loops


# ---------------------------------------------------------------- L, and how it depends on z


def _loss_shares_slope(top, others, z_y, u):
    """u ℓ, and the factors of ∂L/∂z: share for e^(z_j - m), slope for j = y; others = Σ_(j≠y) e^(z_j - m)."""
    e_y = jnp.exp(z_y - top)
    loss = u * ((top - z_y) + jnp.log1p(others + (e_y - 1)))
    share = u / (others + e_y)
    return loss, share, -share * others


def _loss_and_gradients(table, x, labels, weights, blocks):
    """L and its gradient in one pass over the tokens."""
    u = _normalised(weights, labels, x.dtype, len(table))
    one_pass = functools.partial(_loss_and_gradients_of_some, blocks=blocks)
    dx, (loss, dtable) = by_device(one_pass, (x, labels, u), (table,))
    return loss, Gradients(dtable.astype(table.dtype), dx)


def _loss_and_gradients_of_some(x, labels, u, table, blocks):
    (n, d), v = x.shape, len(table)
    count, size = blocks_of(n, blocks[0])
    v_count, v_size = blocks_of(v, blocks[1])
    columns = iota(v)[None, :]

    def tokens(i, carry):
        loss, dx, dtable = carry
        start, stale = place(i, size, n)
        u_i, x_i, y_i = _tokens_at(start, stale, size, u, x, labels)
        z = _product(x_i, table, 1, 1)  # (size, V)
        z_y = jnp.take_along_axis(z, jnp.clip(y_i, 0, v - 1)[:, None], axis=1)[:, 0]
        top = z.max(1)
        hot = columns == y_i[:, None]
        e = jnp.where(hot, 0, jnp.exp(z - top[:, None]))
        loss_i, share, slope = _loss_shares_slope(top, e.sum(1), z_y, u_i)
        dz = jnp.where(hot, slope[:, None], e * share[:, None])

        def rows(k, dtable):  # a product added to all of dtable would first be stored, as large as dtable
            start, stale = place(k, v_size, v)
            dz_k = jnp.where(iota(v_size)[None, :] < stale, 0, block_at(dz, start, v_size, axis=1))
            return put_at(dtable, block_at(dtable, start, v_size) + _product(dz_k, x_i, 0, 0), start)

        dtable = last_to_first(v_count, rows, dtable)
        return loss + loss_i.sum(), put_at(dx, _product(dz, table, 1, 0).astype(x.dtype), start), dtable

    dtype = at_least_float32(x.dtype)
    loss, dx, dtable = last_to_first(count, tokens, (jnp.zeros((), dtype), jnp.zeros_like(x), jnp.zeros((v, d), dtype)))
    return dx, (loss, dtable)


def _loss_and_shares(table, x, labels, weights, blocks):
    """L and what its gradient needs, block by block of tokens and rows."""
    u = _normalised(weights, labels, x.dtype, len(table))
    shares, loss = by_device(functools.partial(_loss_and_shares_of_some, blocks=blocks), (x, labels, u), (table,))
    return loss, Shares(x, labels, *shares)


def _loss_and_shares_of_some(x, labels, u, table, blocks):
    n, v = len(x), len(table)
    count, size = blocks_of(n, blocks[0])
    v_count, v_size = blocks_of(v, blocks[1])
    dtype = at_least_float32(x.dtype)

    def tokens(i, carry):
        loss, *shares = carry
        start, stale = place(i, size, n)
        u_i, x_i, y_i = _tokens_at(start, stale, size, u, x, labels)

        def rows(k, carry):
            top, others, z_y = carry
            start, stale = place(k, v_size, v)
            z = _product(x_i, block_at(table, start, v_size), 1, 1)  # (size, v_size)
            at = y_i - start
            skip = (iota(v_size)[None, :] == at[:, None]) | (iota(v_size)[None, :] < stale)
            new_top = jnp.maximum(top, z.max(1))
            e = jnp.where(skip, 0, jnp.exp(z - new_top[:, None]))
            here = jnp.take_along_axis(z, jnp.clip(at, 0, v_size - 1)[:, None], axis=1)[:, 0]
            z_y = jnp.where((at >= 0) & (at < v_size), here, z_y)
            return new_top, others * jnp.exp(top - new_top) + e.sum(1), z_y

        zero = jnp.zeros(size, dtype)
        top, others, z_y = last_to_first(v_count, rows, (zero - jnp.inf, zero, zero))
        loss_i, share, slope = _loss_shares_slope(top, others, z_y, u_i)
        return loss + loss_i.sum(), *(put_at(a, b, start) for a, b in zip(shares, (top, share, slope), strict=True))

    loss, *shares = last_to_first(count, tokens, (jnp.zeros((), dtype), *(jnp.zeros(n, dtype) for _ in range(3))))
    return shares, loss


def _gradients_from_shares(table, cache, dloss, blocks):
    """(dtable, dx) from recomputed scores; each block of dtable is finished before the next is started."""
    x, labels, top, share, slope = cache
    again = functools.partial(_gradients_of_some, blocks=blocks)
    dx, dtable = by_device(again, (x, labels, top, dloss * share, dloss * slope), (table,))
    return dtable, dx


def _gradients_of_some(x, labels, top, share, slope, table, blocks):
    (n, d), v = x.shape, len(table)
    count, size = blocks_of(n, blocks[0])
    v_count, v_size = blocks_of(v, blocks[1])

    def rows(k, carry):
        dx, dtable = carry
        start_k, stale_k = place(k, v_size, v)
        table_k = block_at(table, start_k, v_size)

        def tokens(i, carry):
            dx, dtable_k = carry
            start, stale = place(i, size, n)
            share_i, x_i, y_i = _tokens_at(start, stale, size, share, x, labels)
            top_i, slope_i = block_at(top, start, size), block_at(slope, start, size)
            slope_i = jnp.where(share_i == 0, 0, slope_i)
            z = _product(x_i, table_k, 1, 1)
            dz = jnp.exp(jnp.minimum(z - top_i[:, None], 0)) * share_i[:, None]  # z may round to more than m this time
            dz = jnp.where(iota(v_size)[None, :] == (y_i - start_k)[:, None], slope_i[:, None], dz)
            dz = jnp.where(iota(v_size)[None, :] < stale_k, 0, dz)
            dx = put_at(dx, block_at(dx, start, size) + _product(dz, table_k, 1, 0), start)
            return dx, dtable_k + _product(dz, x_i, 0, 0)

        dx, dtable_k = last_to_first(count, tokens, (dx, jnp.zeros((v_size, d), dx.dtype)))
        return dx, put_at(dtable, dtable_k.astype(dtable.dtype), start_k)

    dx, dtable = last_to_first(v_count, rows, (jnp.zeros((n, d), top.dtype), jnp.zeros_like(table)))
    return dx.astype(x.dtype), dtable


def _tokens_at(start, stale, size, u, x, labels):
    """A block of u, x and labels. Stale examples get u = 0, and where u = 0 the example is ignored: x = 0."""
    u = jnp.where(iota(size) < stale, 0, block_at(u, start, size))
    return u, jnp.where(u[:, None] == 0, 0, block_at(x, start, size)), block_at(labels, start, size)


def _product(a, b, a_axis, b_axis):
    """The matrix product over an axis of each, in at least float32."""
    dtype = at_least_float32(a.dtype)
    return jax.lax.dot_general(a.astype(dtype), b.astype(dtype), (((a_axis,), (b_axis,)), ((), ())))


# ---------------------------------------------------------------- labels and weights


def _normalised(weights, labels, dtype, v):
    """u = w / Σ w (0 if all w are 0), NaN where the label of an example that counts is out of range."""
    dtype = at_least_float32(dtype)
    w = jnp.ones(labels.shape, dtype) if weights is None else weights.astype(dtype)
    total = w.sum()
    out = (labels < 0) | (labels >= v)
    return jnp.where(w == 0, 0, jnp.where(out, jnp.nan, w / jnp.where(total == 0, 1, total)))


def _checked(params, x, labels, weights, memory, blocks):
    """The arguments as arrays, labels in int32; ValueError naming everything that does not fit."""
    who = "linear_cross_entropy"
    if memory not in BLOCKS:
        raise unknown_name("memory", memory, BLOCKS)
    for size in blocks or ():
        whole(who, "a size in blocks", size, least=1)
    parameters(who, params, ("table",))
    table, x, labels = jnp.asarray(params["table"]), float_array(who, "x", x), array(who, "labels", labels)
    weights = None if weights is None else array(who, "weights", weights)
    wrong = []
    if x.ndim != 2 or table.ndim != 2 or x.shape[1:] != table.shape[1:]:
        wrong.append("expected x (N, D) and table (V, D); reshape x of more axes to (N, D), labels to (N,)")
    elif x.size == 0 or table.size == 0:
        wrong.append("a mean needs at least one example, one class and one feature")
    if x.dtype != table.dtype:
        wrong.append(f"x is {x.dtype}, table {table.dtype}: cast them to one dtype")
    if labels.shape != x.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        wrong.append(f"labels are {labels.dtype}{list(labels.shape)}, expected integers of shape {x.shape[:1]}")
    if weights is not None and (weights.shape != x.shape[:1] or jnp.iscomplexobj(weights)):
        wrong.append(f"weights are {weights.dtype}{list(weights.shape)}, expected real numbers of shape {x.shape[:1]}")
    if wrong:
        raise ValueError(f"{who}: x {x.shape}, table {table.shape}: " + "; ".join(wrong))
    _require_in_range(who, labels, weights, len(table))
    return {"table": table}, x, labels.astype(jnp.int32), weights


def _require_in_range(who, labels, weights, v):
    """ValueError for labels and weights out of range, where their values are known."""
    if isinstance(weights, Tracer):
        return
    if weights is not None and not (np.asarray(weights) >= 0).all():
        raise ValueError(f"{who}: weights are from {weights.min()} to {weights.max()}, expected 0 or greater")
    if not isinstance(labels, Tracer):
        values = np.asarray(labels)
        counted = values if weights is None else values[np.asarray(weights) != 0]
        if ((counted < 0) | (counted >= v)).any():
            raise ValueError(
                f"{who}: labels are from {counted.min()} to {counted.max()}, but a table of {v} rows has the classes 0 "
                f"to {v - 1}"
            )
