"""A decoder-only transformer (GPT): at each position of a text it predicts what comes next from what came before.

Shapes: B batch, T positions, V vocabulary, D features (width), H heads.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnn._checks import array, cotangent, fraction, named, random_key, same_shape, sizes, whole
from jaxnn._parallel import sharding_like
from jaxnn.combinators import repeat, residual, serial
from jaxnn.initializers import normal
from jaxnn.layer import Ctx, Layer, in_part
from jaxnn.layers import (
    attention,
    embedding_backward,
    embedding_forward,
    gated_mlp,
    learned_positions,
    rms_norm,
)
from jaxnn.layers import dropout as dropout_layer


def tied_forward(params: dict, state: Any, ids: ArrayLike, ctx: Ctx, body: Layer) -> tuple[jax.Array, Any, tuple]:
    """A body between a table and the same table again: the embedding is also the output projection.

    x = √D table[ids],  h = body(x),  y = h tableᵀ

    The table is used twice, so its gradient is the sum of two. As the output's weights, from ∂y_btv/∂table_v = h_bt:
        dtable_v = Σ_bt dy_btv h_bt,  which is dyᵀ h
    as the input's rows, from ∂x_bt/∂table_v = √D where ids_bt = v:
        dtable_v = √D Σ_bt [ids_bt = v] dx_bt
    and in between dh = dy table,  from which the body's backward makes dx and its dparams.

    params {"table": (V, D), "body": the body's}, state and ctx those of the body; ids (B, T) integers, x and h
    (B, T, D), y (B, T, V). Returns (y, state, cache). Cached: ids, the body's cache, and h.
    Rows of length 1 make the scores start near 1; √D makes the entries of x near 1 as well.
    Raises ValueError where ids are not (B, T) or have no row (see `embedding_forward`), or the body changes the shape.
    Source: Vaswani et al. 2017 (arXiv:1706.03762), section 3.4; Press, Wolf 2016 (arXiv:1608.05859).
    """
    named("tied_forward", params, ("table", "body"))
    ids = array("tied_forward", "ids", ids)
    if ids.ndim != 2:
        raise ValueError(f"tied_forward: ids have shape {ids.shape}, expected (B, T)")
    rows, ids = embedding_forward({"table": params["table"]}, ids)
    x = math.sqrt(rows.shape[-1]) * rows
    with in_part("gpt", (body,)):
        h, state, cache = body.forward(params["body"], state, x, ctx)
    same_shape("tied_forward", "the body's output", h, "its input", x.shape)
    return h @ params["table"].T, state, (ids, cache, h)


def tied_backward(params: dict, cache, dy: jax.Array, body: Layer) -> tuple[dict, None]:
    """(dparams, None): dtable = dyᵀ h + √D Σ_bt [ids_bt = v] dx_bt,  dh = dy table,  dx the body's; ids have none."""
    ids, cache, h = cache
    table = params["table"]
    dy = cotangent("tied_backward", "dy", dy, "the scores", (*h.shape[:2], table.shape[0]), h.dtype)
    at_output = jnp.tensordot(dy, h, ((0, 1), (0, 1)), out_sharding=sharding_like(table, h))
    with in_part("gpt", (body,)):
        dbody, dx = body.backward(params["body"], cache, dy @ table)
    at_input, _ = embedding_backward({"table": table}, ids, math.sqrt(table.shape[1]) * dx)
    return {"table": at_output + at_input["table"], "body": dbody}, None


def gpt(
    vocabulary: int,
    width: int,
    n_layers: int,
    n_heads: int,
    *,
    max_length: int | None = None,
    dropout: float = 0.0,
) -> Layer:
    """A GPT as a Layer: x = ids (B, T) integers, y = logits (B, T, V) of the id that follows each.

    x_0 = √D table[ids],  n_layers times  x ← x + attention(rms_norm(x)),  x ← x + gated_mlp(rms_norm(x)),
    y = rms_norm(x) tableᵀ

    The table at both ends: `tied_forward`. Attention: causal, n_heads heads, rotary positions; with max_length, learned
    positions for T up to that instead. The gated MLP (SwiGLU) has 8/3 width hidden neurons, rounded up to a multiple of
    8. There are no biases. dropout: its probability, in training, on x_0, on the attention weights and on what each
    block adds. ctx.mask (B, T) or (1, T): True = a real token; the others are not attended to.
    The blocks are one `repeat`: their params have a leading axis n_layers, and compiling takes as long as for one
    block. To an optimizer their scales (n_layers, D) look like weights: `adamw(…, decays=lambda p: p.ndim > 2)` decays
    only the blocks' matrices.
    The rows of the table are drawn with a length near 1: entries of x_0, and scores of all ids but the last, near 1.
    Raises ValueError where n_heads does not divide width, or into an odd number with rotary positions, for sizes below
    1, unless 0 <= dropout < 1, and for ids that are not (B, T), are too long or have no row.
    Source: Radford et al. 2019 (GPT-2); RMS norm, rotation and SwiGLU as in Touvron et al. 2023 (arXiv:2302.13971).

    >>> model = gpt(vocabulary=256, width=64, n_layers=2, n_heads=4)
    >>> params = jax.eval_shape(lambda key: model.init(key, (1, 32))[1], jax.random.key(0))
    >>> params["table"].shape
    (256, 64)
    """
    for name, value in (("vocabulary", vocabulary), ("width", width), ("n_heads", n_heads)):
        whole("gpt", name, value, least=1)
    fraction("gpt", "dropout", dropout)
    if width % n_heads or (max_length is None and width // n_heads % 2):
        raise ValueError(
            f"gpt: n_heads = {n_heads} must divide width = {width}"
            + (", into an even number for rotary positions" if max_length is None else "")
        )
    n_hidden = 8 * -(-width // 3)
    base = 10_000.0 if max_length is None else None
    drop = dropout_layer(dropout)
    attend = serial(rms_norm(), attention(n_heads, causal=True, rotary_base=base, dropout=dropout), drop)
    think = serial(rms_norm(), gated_mlp(n_hidden), drop)
    positions = () if max_length is None else (learned_positions(max_length),)
    blocks = repeat(serial(residual(attend), residual(think)), n_layers)
    return _tied(vocabulary, width, serial(*positions, drop, blocks, rms_norm(), name="body"))


def _tied(vocabulary: int, width: int, body: Layer) -> Layer:
    def init(key, in_shape, /):
        random_key("gpt", key)
        in_shape = sizes("gpt", in_shape)
        table_key, body_key = jax.random.split(key)
        table = normal(table_key, (vocabulary, width), stddev=1 / math.sqrt(width))
        with in_part("gpt", (body,)):
            _, params, state = body.init(body_key, (*in_shape, width))
        return (*in_shape, vocabulary), {"table": table, "body": params}, state

    def forward(params, state, ids, ctx, /):
        return tied_forward(params, state, ids, ctx, body)

    def backward(params, cache, dy, /):
        return tied_backward(params, cache, dy, body)

    return Layer(init, forward, backward, "gpt", (body,), functools.partial(_tied, vocabulary, width))
