"""Embeddings: one row of a table per id, and positions: one row per place in the sequence.

Shapes: ... any leading axes (batch first), V rows of the table, T positions, D features.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import ArrayLike

from jaxnn._checks import array, at_least_float32, cotangent, float_array, parameters, random_key, remember, whole
from jaxnn._parallel import sharding_like, sharding_of_rows
from jaxnn.initializers import get_initializer, normal
from jaxnn.layer import Layer, from_pair
from jaxnn.layers.rotary import cos_sin

_SMALL = functools.partial(normal, stddev=0.02)  # as in GPT-2, where the table is also the output layer's weight


def embedding_forward(params: dict, ids: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """The rows of a table: a dense layer whose input is one-hot, without the zeros.

    y_i = table[ids_i]
    dtable[v] = Σ over all i with ids_i = v of dy_i;  ids get no gradient

    params {"table": (V, D)}; ids (...) integers of any kind, y (..., D). Cached: ids.
    Raises ValueError for ids that are not integers, and outside jit, where values are known, for ids below 0 and for V
    or more; under jit their rows of y are NaN, whatever the table, and add nothing to dtable. Negative ids do not count
    from the end.
    Numerics: dtable is summed in at least float32 and rounded once.

    >>> y, _ = embedding_forward({"table": jnp.array([[1.0, 2.0], [3.0, 4.0]])}, jnp.array([1, 1, 0]))
    >>> y
    Array([[3., 4.], [3., 4.], [1., 2.]], dtype=float32)
    """
    table, ids = _check_table("embedding", params), array("embedding", "ids", ids)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"embedding: ids has dtype {ids.dtype} (shape {ids.shape}), expected integers")
    rows, valid = _rows(ids, table)
    if not isinstance(valid, Tracer) and not bool(valid.all()):
        raise ValueError(
            f"embedding: ids from {ids.min()} to {ids.max()}, but the table of shape {table.shape} has rows "
            f"0 to {table.shape[0] - 1}"
        )
    return table.at[rows].get(mode="fill", fill_value=jnp.nan, out_sharding=sharding_of_rows(ids)), ids


def embedding_backward(params: dict, ids: jax.Array, dy: jax.Array) -> tuple[dict[str, jax.Array], None]:
    """dtable[v] = Σ over all i with ids_i = v of dy_i;  dx is None, since ids are integers."""
    table = params["table"]
    dtype = at_least_float32(table.dtype)
    dy = cotangent("embedding_backward", "dy", dy, "the layer's output", (*ids.shape, table.shape[1]), dtype)
    rows, _ = _rows(ids, table)
    dtable = jnp.zeros(table.shape, dtype)
    dtable = dtable.at[rows].add(dy, mode="drop", out_sharding=sharding_like(table, dy))
    return {"table": dtable.astype(table.dtype)}, None


def _rows(ids, table):
    """ids, with V, which mode="fill" and "drop" skip, for those that have no row; and which have one."""
    if ids.dtype.itemsize < 4:
        ids = ids.astype(jnp.int32)  # bytes cannot count 300 rows
    valid = (ids >= 0) & (ids < table.shape[0])
    return jnp.where(valid, ids, table.shape[0]), valid


def embedding(n_rows: int, n_features: int, *, initializer: str | Callable[..., jax.Array] = _SMALL) -> Layer:
    """A table of n_rows (the size of the vocabulary) vectors of n_features; see `embedding_forward` for the formulas.

    x: integers of any shape; out_shape is (*in_shape, n_features). The table is drawn with standard deviation 0.02.
    Raises ValueError if n_rows or n_features < 1 or the initializer is unknown, and for ids without a row.
    """
    whole("embedding", "n_rows", n_rows, least=1)
    whole("embedding", "n_features", n_features, least=1)
    draw = get_initializer(initializer)

    def init(key, in_shape):
        random_key("embedding", key)
        return (*in_shape, n_features), {"table": draw(key, (n_rows, n_features))}

    return from_pair(embedding_forward, embedding_backward, init, name="embedding")


# ---------------------------------------------------------------- positions


def learned_positions_forward(params: dict, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One row of a table added to each position.

    y_t = x_t + table[t],  t = 0 … T - 1
    dtable[t] = Σ_batch dy_t for t < T, 0 for the rows after;  dx = dy

    params {"table": (T_max, D)}; x and y (..., T, D) with T <= T_max, of the table's dtype. Cached: x's shape and
    dtype.
    Raises ValueError if T > T_max.
    Numerics: dtable is summed in at least float32.
    """
    table, x = _check_table("learned_positions", params), float_array("learned_positions", "x", x)
    wrong = []
    if x.ndim < 2 or x.shape[-1] != table.shape[1]:
        wrong.append(f"x has shape {x.shape}, expected (..., T, {table.shape[1]}) for a table of shape {table.shape}")
    elif x.shape[-2] > table.shape[0]:
        wrong.append(
            f"x has {x.shape[-2]} positions (shape {x.shape}) but the table only has {table.shape[0]}; "
            f"make it longer or x shorter"
        )
    if x.dtype != table.dtype:
        wrong.append(f"x is {x.dtype}, the table {table.dtype}: cast them to one dtype")
    if wrong:
        raise ValueError("learned_positions: " + "; ".join(wrong))
    return x + jnp.broadcast_to(table[: x.shape[-2]], x.shape), remember(x)


def learned_positions_backward(params: dict, like: jax.Array, dy: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
    """dtable[t] = Σ_batch dy_t for t < T, 0 for the rows after;  dx = dy."""
    table = params["table"]
    dy = cotangent("learned_positions_backward", "dy", dy, "the layer's output", like.shape[1:], like.dtype)
    added = dy.sum(tuple(range(dy.ndim - 2)))
    return {"table": jnp.pad(added, ((0, table.shape[0] - dy.shape[-2]), (0, 0)))}, dy


def learned_positions(max_length: int, *, initializer: str | Callable[..., jax.Array] = _SMALL) -> Layer:
    """Learned positions, for sequences of up to max_length; see `learned_positions_forward`.

    The table is drawn with standard deviation 0.02. Raises ValueError if max_length < 1 or a sequence is longer.
    """
    whole("learned_positions", "max_length", max_length, least=1)
    draw = get_initializer(initializer)

    def init(key, in_shape):
        random_key("learned_positions", key)
        if len(in_shape) < 2:
            raise ValueError(f"learned_positions: in_shape is {tuple(in_shape)}, expected (..., T, D)")
        return in_shape, {"table": draw(key, (max_length, in_shape[-1]))}

    return from_pair(learned_positions_forward, learned_positions_backward, init, name="learned_positions")


def sinusoidal_positions() -> Layer:
    """Sine waves added to each position, from a period of 2π to one of 10000 · 2π: positions with nothing to learn.

    y_t = x_t + p_t,  p_(t,2i) = sin(t ω_i),  p_(t,2i+1) = cos(t ω_i),  ω_i = 10000^(-2i/D)
    dx = dy

    x and y (..., T, D). No parameters. Cached: x's shape and dtype. Raises ValueError unless D is even.
    Numerics: p is off by less than 5e-7 in float32 up to t = 1e6 (see `jaxnn.layers.cos_sin`); for bfloat16 and
    float16 it is calculated and added in float32 and y is rounded once.
    Source: Vaswani et al. 2017 (arXiv:1706.03762), section 3.5.
    """

    def forward(params, x):
        x = float_array("sinusoidal_positions", "x", x)
        if x.ndim < 2 or x.shape[-1] % 2:
            raise ValueError(
                f"sinusoidal_positions: x has shape {x.shape}, expected (..., T, D) with an even number D of features"
            )
        wide = x.astype(at_least_float32(x.dtype))
        cos, sin = cos_sin(jnp.arange(x.shape[-2], dtype=jnp.int32), x.shape[-1] // 2, dtype=wide.dtype)
        waves = jnp.stack([sin, cos], axis=-1).reshape(x.shape[-2:])
        return (wide + jnp.broadcast_to(waves, x.shape)).astype(x.dtype), remember(x)

    def backward(params, like, dy):
        return {}, cotangent("sinusoidal_positions", "dy", dy, "x", like.shape[1:], like.dtype)

    return from_pair(forward, backward, name="sinusoidal_positions")


def _check_table(who, params):
    parameters(who, params, ("table",))
    if params["table"].ndim != 2 or 0 in params["table"].shape:
        raise ValueError(f"{who}: table has shape {params['table'].shape}, expected rank 2, and at least one row")
    return jnp.asarray(params["table"])
