"""Multi-head attention: projections to queries, keys and values, attention in each head, a projection back.

Shapes: B batch, T positions of x, N positions of the memory, H query heads, K key heads, d features of a head,
D = H d features of x, M of the memory.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnn._checks import cotangent, float_array, fraction, integers, parameters, random_key, sizes, whole
from jaxnn._parallel import reshaped, sharding_like
from jaxnn.initializers import get_initializer
from jaxnn.layer import Layer
from jaxnn.layers.attention import attention_backward, attention_forward, unmasked, wrong_mask
from jaxnn.layers.rotary import rotary_backward, rotary_forward


def multi_head_forward(
    params: dict,
    x: ArrayLike | tuple[ArrayLike, ArrayLike],
    n_heads: int,
    *,
    causal: bool = False,
    rotary_base: float | None = None,
    mask: ArrayLike | None = None,
    dropout: float = 0.0,
    key: jax.Array | None = None,
) -> tuple[jax.Array, tuple]:
    """Attention between projections, n_heads heads side by side.

    q = x wq + bq,  k = m wk + bk,  v = m wv + bv,  each cut into heads;  q and k rotated if rotary_base is given
    o = attention(q, k, v),  its heads joined,  y = o wo + bo
    m is x itself in self attention; in cross attention x is the tuple (x, m), m the memory

    do = dy woᵀ,  dwo = oᵀ dy,  dbo = Σ dy;  dq, dk, dv from the heads of do, then dq and dk rotated back
    dwq = xᵀ dq,  dbq = Σ dq,  and likewise for k and v with m
    dx = dq wqᵀ,  dm = dk wkᵀ + dv wvᵀ;  in self attention their sum is dx

    Attention and the other arguments: see `attention_forward`; the rotation: `rotary_forward`. m is read as 0 where the
    mask is False, and gets no gradient there: the contents of padding do not matter.
    params {"wq": (D, H d), "wk": (M, K d), "wv": (M, K d), "wo": (H d, D)} and either all or none of the biases
    {"bq": (H d,), "bk": (K d,), "bv": (K d,), "bo": (D,)}; x and y (B, T, D), m (B, N, M), all of one dtype.
    Cached: x, the angles, the cache of the attention, and o.
    Without rotation bk adds the same to all scores of a query: it changes nothing, and dbk is 0 up to rounding.
    """
    mask = None if mask is None else jnp.asarray(mask)
    query, memory = _check(params, x, n_heads, mask)
    if mask is not None:
        memory = unmasked(mask, memory, axis=1)
        query = query if isinstance(x, tuple) else memory
    q, k, v = _project(params, query, memory, n_heads)
    turns = None
    if rotary_base is not None:
        q, q_turn = rotary_forward(q, base=rotary_base)
        k, k_turn = rotary_forward(k, base=rotary_base)
        turns = q_turn, k_turn
    o, cache = attention_forward(q, k, v, causal=causal, mask=mask, dropout=dropout, key=key)
    o = _join(o)
    x = (query, memory) if isinstance(x, tuple) else query
    return _affine(params, "o", o), (x, turns, cache, o)


def multi_head_backward(
    params: dict, cache, dy: jax.Array, *, dropout: float = 0.0
) -> tuple[dict[str, jax.Array], jax.Array | tuple[jax.Array, jax.Array]]:
    """Through wo, the heads' attention, the rotation, and wq, wk, wv; dx is a tuple where x was one.

    do = dy woᵀ,  dwo = oᵀ dy,  dx = dq wqᵀ,  dm = dk wkᵀ + dv wvᵀ,  dwq = xᵀ dq,  …; dropout as in the forward pass.
    """
    x, turns, cache, o = cache
    query, memory = x if isinstance(x, tuple) else (x, x)
    dy = cotangent("multi_head_backward", "dy", dy, "the layer's output", query.shape, query.dtype)
    to_o, do = _affine_backward(params, "o", o, dy)
    n_heads = cache[0].shape[1]
    dq, dk, dv = attention_backward(cache, _split(do, n_heads), dropout=dropout)
    if turns is not None:
        dq, dk = rotary_backward(turns[0], dq), rotary_backward(turns[1], dk)
    to_q, d_query = _affine_backward(params, "q", query, _join(dq))
    to_k, d_memory_k = _affine_backward(params, "k", memory, _join(dk))
    to_v, d_memory_v = _affine_backward(params, "v", memory, _join(dv))
    dx = d_memory_k + d_memory_v if isinstance(x, tuple) else d_query + (d_memory_k + d_memory_v)
    mask = cache[3]
    if mask is not None:
        dx = unmasked(mask, dx, axis=1)
    return to_q | to_k | to_v | to_o, (d_query, dx) if isinstance(x, tuple) else dx


def attention_step(
    params: dict, past, x: jax.Array, t: int | jax.Array, n_heads: int, *, rotary_base: float | None = None
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """One more token of causal self attention: what `multi_head_forward` gives at position t, for the cost of one.

    past: (k, v), each (B, K, T_max, d), zeros at first; x and y (B, 1, D); t: the position of x, 0 <= t < T_max.
    Returns (y, past), the past with this token's key and value in it. For generating text: it has no gradient.
    Raises ValueError unless t is one integer, and where x does not fit.
    """
    t = integers("attention_step", "t", t)
    if t.ndim:
        raise ValueError(f"attention_step: t has shape {t.shape}, expected one position for all examples")
    q, k, v = _project(params, *_check(params, x, n_heads), n_heads)
    if rotary_base is not None:
        q, k = (rotary_forward(a, offset=t, base=rotary_base)[0] for a in (q, k))
    k, v = (jax.lax.dynamic_update_slice_in_dim(old, new, t, axis=2) for old, new in zip(past, (k, v), strict=True))
    o, _ = attention_forward(q, k, v, mask=(jnp.arange(k.shape[2], dtype=jnp.int32) <= t)[None])
    return _affine(params, "o", _join(o)), (k, v)


def attention(
    n_heads: int,
    n_kv_heads: int | None = None,
    *,
    causal: bool = False,
    rotary_base: float | None = None,
    use_bias: bool = False,
    dropout: float = 0.0,
    initializer: str | Callable[..., jax.Array] = "lecun_normal",
) -> Layer:
    """Attention of a sequence to itself, or of a sequence to another one; see `multi_head_forward` for the formulas.

    x (B, T, D): self attention. x = (x (B, T, D), memory (B, N, M)): cross attention, and in_shape and dx are tuples
    too; y and out_shape (B, T, D). n_heads query heads share n_kv_heads key heads (default: as many). rotary_base: the
    base of rotary positions, usually 10_000.0; None for no rotation. dropout: its probability on the weights, in
    training. ctx.mask (B, N) or (1, N): True = a real token of the sequence attended to. The others are seen by no
    query and read as 0, even if NaN; the outputs at their own positions are meaningless. It is not a (T, T) mask of
    which query may see which key: use causal for that.
    The weights are drawn by the initializer, the biases are 0.
    Raises ValueError where n_kv_heads does not divide n_heads or n_heads does not divide D, and where D / n_heads is
    odd with rotary positions; where x, params or ctx.mask do not fit; and when train is True with dropout > 0 and no
    key.
    """
    n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
    whole("attention", "n_heads", n_heads, least=1)
    whole("attention", "n_kv_heads", n_kv_heads, least=1)
    if n_heads % n_kv_heads:
        raise ValueError(f"attention: n_kv_heads = {n_kv_heads} does not divide n_heads = {n_heads}")
    fraction("attention", "dropout", dropout)
    draw = get_initializer(initializer)

    def init(key, in_shape, /):
        random_key("attention", key)
        cross = isinstance(in_shape, tuple | list) and len(in_shape) == 2 and isinstance(in_shape[0], tuple | list)
        query, memory = (sizes("attention", shape) for shape in (in_shape if cross else (in_shape, in_shape)))
        if not len(query) == len(memory) == 3 or query[-1] % n_heads:
            raise ValueError(
                f"attention: in_shape is {in_shape}, expected (B, T, D), or ((B, T, D), (B, N, M)) for cross "
                f"attention, with D divisible by n_heads = {n_heads}"
            )
        n, n_kv = query[-1], query[-1] // n_heads * n_kv_heads
        shapes = {"q": (n, n), "k": (memory[-1], n_kv), "v": (memory[-1], n_kv), "o": (n, n)}
        keys = jax.random.split(key, 4)
        params = {f"w{name}": draw(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)}
        if use_bias:
            params |= {f"b{name}": jnp.zeros(shape[1], params["wq"].dtype) for name, shape in shapes.items()}
        return query, params, ()

    def forward(params, state, x, ctx, /):
        active = dropout if ctx.train else 0.0
        if active > 0 and ctx.key is None:
            raise ValueError("attention: train=True needs random numbers; pass Ctx(train=True, key=jax.random.key(…))")
        mask = ctx.token_mask("attention", x[0] if isinstance(x, tuple) else x)
        y, cache = multi_head_forward(
            params, x, n_heads, causal=causal, rotary_base=rotary_base, mask=mask, dropout=active, key=ctx.key
        )
        return y, state, cache

    def backward(params, cache, dy, /):
        return multi_head_backward(params, cache, dy, dropout=dropout)

    return Layer(init, forward, backward, "attention")


def _project(params, query, memory, n_heads):
    """q (B, H, T, d), k and v (B, K, N, d)."""
    d = params["wq"].shape[1] // n_heads
    xs = {"q": query, "k": memory, "v": memory}
    return tuple(_split(_affine(params, name, x), params[f"w{name}"].shape[1] // d) for name, x in xs.items())


def _split(x, n_heads):
    """(B, T, n d) -> (B, n, T, d)"""
    return reshaped(x, *x.shape[:2], n_heads, x.shape[2] // n_heads).swapaxes(1, 2)


def _join(x):
    """(B, n, T, d) -> (B, T, n d)"""
    x = x.swapaxes(1, 2)
    return reshaped(x, *x.shape[:2], x.shape[2] * x.shape[3])


def _affine(params, name, x):
    y = x @ params[f"w{name}"]
    return y + jnp.broadcast_to(params[f"b{name}"], y.shape) if f"b{name}" in params else y


def _affine_backward(params, name, x, dy):
    dw = jnp.tensordot(x, dy, ((0, 1), (0, 1)), out_sharding=sharding_like(params[f"w{name}"], x))
    dparams = {f"w{name}": dw}
    if f"b{name}" in params:
        dparams[f"b{name}"] = dy.sum((0, 1))
    return dparams, dy @ params[f"w{name}"].T


def _check(params, x, n_heads, mask=None):
    """The query and the memory as arrays; ValueError naming everything that does not fit."""
    weights = ("wq", "wk", "wv", "wo")
    parameters("attention", params, weights, optional=("bq", "bk", "bv", "bo"))
    whole("attention", "n_heads", n_heads, least=1)
    if isinstance(x, tuple) and len(x) != 2:
        raise ValueError(f"attention: x is a tuple of {len(x)}, expected (x, memory), or one array")
    query, memory = x if isinstance(x, tuple) else (x, x)
    query, memory = float_array("attention", "x", query), float_array("attention", "the memory", memory)
    shapes = {name: array.shape for name, array in params.items()}
    if any(params[name].ndim != 2 for name in weights):
        raise ValueError(f"attention: params have shapes {shapes}, expected rank 2 of {', '.join(weights)}")
    (n, n_q), (m, n_k), wrong = shapes["wq"], shapes["wk"], []
    if query.ndim != 3 or query.shape[-1] != n:
        wrong.append(f"x has shape {query.shape}, expected (B, T, {n})")
    if memory.ndim != 3 or memory.shape[-1] != m:
        wrong.append(f"the memory has shape {memory.shape}, expected (B, N, {m})")
    d = n_q // n_heads
    heads_fit = d > 0 and n_k > 0 and n_q % n_heads == n_k % d == 0
    biases_fit = all(shapes.get(f"b{name}", shapes[f"w{name}"][1:]) == shapes[f"w{name}"][1:] for name in "qkvo")
    if not (heads_fit and biases_fit and shapes["wv"] == shapes["wk"] and shapes["wo"] == (n_q, n)):
        wrong.append(f"params of shapes {shapes} do not fit {n_heads} heads")
    wrong += wrong_mask(mask, query.shape[0], memory.shape[1]) if memory.ndim == 3 else []
    if len({a.dtype for a in (query, memory, *params.values())}) > 1:
        dtypes = sorted({str(array.dtype) for array in params.values()})
        wrong.append(f"x is {query.dtype}, the memory {memory.dtype}, params {dtypes}: cast them to one dtype")
    if wrong:
        raise ValueError("attention: " + "; ".join(wrong))
    return query, memory
