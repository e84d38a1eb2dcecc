"""Recurrent layers: a cell along a sequence, and backpropagation through time.

Shapes: B batch, T time, n_in features, H units.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnn._checks import cotangent, float_array, random_key, sizes, whole
from jaxnn._parallel import beside
from jaxnn.initializers import get_initializer, orthogonal
from jaxnn.layer import Layer
from jaxnn.layers._through_time import Chunks, Whole, back_chunks, back_whole, run_chunks, run_whole
from jaxnn.layers.cells import Cell, check_cell, get_cell, state_cotangent, widened


def recurrent_forward(
    cell: str | Cell,
    params: dict,
    x: ArrayLike,
    state: Any = None,
    *,
    mask: ArrayLike | None = None,
    chunk: int | None = None,
    truncate: int | None = None,
) -> tuple[jax.Array, Any, Whole | Chunks]:
    """A cell along a sequence; its backward is backpropagation through time.

    s_t = cell(s_(t-1), x_t), or s_(t-1) where mask_t is False,  for t = 0 … T-1;  h_t is the first array of s_t

    From t = T-1 down to 0, with dh_t of the loss and ds_T of the last state:
    ds_t += (dh_t, 0);  ds_(t-1) and dp_t are the cell's for ds_t, or ds_t and 0 where mask_t is False
    dw = Σ_t x_tᵀ dp_t,  du = Σ_t h_(t-1)ᵀ dp_t,  db = Σ_t Σ_batch dp_t,  dx_t = dp_t wᵀ

    cell: "rnn", "gru", "lstm" or a `jaxnn.layers.cells.Cell`; `rnn_cell_forward`, `gru_cell_forward` and
    `lstm_cell_forward` have the formulas of a step, and say what params and the state are. state: h or (h, c), each
    (B, H); None for zeros.
    x (B, T, n_in). mask: bool (B, T), or (1, T) for all examples alike; True = a real step. At padding the state is
    carried over and x is ignored, so the last h is that of the last real step.
    truncate: truncated backpropagation through time. The forward is the same; for the backward, the state before each
    of the steps truncate, 2 truncate, … is a constant, so a gradient goes back at most to the last such step.
    Returns (h, state, cache): h (B, T, H), and the last state, from which the next piece of a longer sequence starts.

    Cached: x, the pre-activations and the state of every step. With chunk: x and the state before every chunk of that
    many steps; the backward runs each chunk again before it goes back through it, which costs one more forward pass but
    needs the memory of chunk + T / chunk steps instead of T (least near √(T / 8): 8 for T = 512). A chunk longer than
    the sequence is the whole sequence.
    Raises ValueError for shapes or dtypes that do not fit, and for chunk or truncate below 1.
    Numerics: those of the cell; state and gradients are at least float32 from step to step.
    Source: Werbos 1990, Backpropagation through time; Williams, Peng 1990 for its truncation.

    >>> params = {"w": jnp.ones((1, 1)), "u": jnp.ones((1, 1)), "b": jnp.zeros(1)}
    >>> h, state, cache = recurrent_forward("rnn", params, jnp.array([[[0.5], [0.0]]]))
    >>> h[0, :, 0]
    Array([0.4621..., 0.4318...], dtype=float32)
    """
    cell = get_cell(cell)
    state = None if state is None else _as_tuple(state)
    x, state = check_cell("recurrent", cell, params, x, state, axes=("B", "T", "n_in"))
    real = _check_mask(mask, x)
    _check_steps("recurrent", chunk, truncate)
    times = jnp.arange(x.shape[1])
    cut = None if truncate is None else (times % truncate == 0) & (times > 0)
    wide = widened(x.dtype, state)
    if chunk is None or not len(times):  # no loop can be traced over a chunk of nothing
        h, last, cache = run_whole(cell, params, x, wide, real, cut)
    else:
        h, last, cache = run_chunks(cell, params, x, wide, real, cut, min(chunk, len(times)))
    return h.astype(x.dtype), _as_given(tuple(s.astype(x.dtype) for s in last)), cache


def recurrent_backward(
    cell: str | Cell, params: dict, cache, dh: ArrayLike | None, dstate: Any = None
) -> tuple[dict[str, jax.Array], jax.Array, Any]:
    """(dparams, dx, dstate), dstate for the first state: ds_t += (dh_t, 0), and so on as in `recurrent_forward`.

    dh (B, T, H) is ∂L/∂h, the argument dstate ∂L/∂(the last state), for h or (h, c) as the state is; None for zeros.
    """
    cell, dtype = get_cell(cell), cache.x.dtype
    n_batch, n_time = cache.x.shape[:2] if isinstance(cache, Chunks) else cache.x.shape[1::-1]
    one = (n_batch, params["u"].shape[0])
    if dh is not None:
        dh = cotangent("recurrent_backward", "dh", dh, "h", (n_batch, n_time, one[1]))
    if dstate is None:
        dstate = (beside(jnp.zeros(one, dtype), cache.x, axis=0 if isinstance(cache, Chunks) else 1),) * cell.n_states
    dstate = _as_tuple(dstate)
    dstate = state_cotangent("recurrent_backward", cell, dstate, one, dtype)
    back = back_whole if isinstance(cache, Whole) else back_chunks
    gradients = back(cell, params, cache, dh, dstate)
    dparams, dx, dstate = jax.tree.map(lambda g: g.astype(dtype), gradients)
    return dparams, dx, _as_given(dstate)


# ---------------------------------------------------------------- layers


def rnn(
    n_units: int,
    *,
    last: bool = False,
    chunk: int | None = None,
    truncate: int | None = None,
    initializer: str | Callable[..., jax.Array] = "lecun_normal",
) -> Layer:
    """A simple recurrent layer: `rnn_cell_forward` along a sequence; see `lstm` for everything else."""
    return _layer("rnn", n_units, last, chunk, truncate, initializer)


def gru(
    n_units: int,
    *,
    last: bool = False,
    chunk: int | None = None,
    truncate: int | None = None,
    initializer: str | Callable[..., jax.Array] = "lecun_normal",
) -> Layer:
    """A layer of gated recurrent units: `gru_cell_forward` along a sequence; see `lstm` for everything else."""
    return _layer("gru", n_units, last, chunk, truncate, initializer)


def lstm(
    n_units: int,
    *,
    last: bool = False,
    chunk: int | None = None,
    truncate: int | None = None,
    initializer: str | Callable[..., jax.Array] = "lecun_normal",
) -> Layer:
    """A layer of long short-term memory: `lstm_cell_forward` along a sequence; `recurrent_forward` has the formulas.

    x (B, T, n_in), y (B, T, n_units), the h of every step; with last=True y (B, n_units), the last h.
    ctx.mask (B, T), or (1, T) for all examples alike: True = a real step. At padding the state is carried over, so the
    last h is that of the last real step, and 0 where there is none. chunk and truncate: see `recurrent_forward`.
    The state starts at zero. To carry it from one piece of a long text to the next, call `recurrent_forward`.
    w comes from the initializer; each gate's H columns of u are an orthogonal matrix, which preserves lengths over many
    steps; b is 0, but 1 for the forget gate of an LSTM, so that it starts out remembering.
    Raises ValueError unless n_units, chunk and truncate are 1 or greater, for an unknown initializer, and where x,
    params or ctx.mask do not fit.
    Source: Saxe et al. 2013 for orthogonal u (arXiv:1312.6120); Gers et al. 2000 for the bias of the forget gate.
    """
    return _layer("lstm", n_units, last, chunk, truncate, initializer)


def _layer(name, n_units, last, chunk, truncate, initializer):
    whole(name, "n_units", n_units, least=1)
    _check_steps(name, chunk, truncate)
    cell, draw = get_cell(name), get_initializer(initializer)

    def init(key, in_shape, /):
        random_key(name, key)
        in_shape = sizes(name, in_shape)
        if len(in_shape) != 3:
            raise ValueError(f"{name}: in_shape is {tuple(in_shape)}, expected (B, T, n_in)")
        key_w, key_u = jax.random.split(key)
        w = draw(key_w, (in_shape[-1], cell.w_blocks * n_units))
        gates = jax.vmap(lambda key: orthogonal(key, (n_units, n_units), w.dtype))
        u = gates(jax.random.split(key_u, cell.u_blocks)).swapaxes(0, 1).reshape(n_units, cell.u_blocks * n_units)
        b = jnp.repeat(jnp.array(cell.biases, w.dtype), n_units)
        return (in_shape[0], n_units) if last else (*in_shape[:2], n_units), {"w": w, "u": u, "b": b}, ()

    def forward(params, state, x, ctx, /):
        mask = ctx.token_mask(name, x)
        h, final, cache = recurrent_forward(cell, params, x, mask=mask, chunk=chunk, truncate=truncate)
        return _as_tuple(final)[0] if last else h, state, cache

    def backward(params, cache, dy, /):
        dy = float_array(name, "dy", dy)
        if last:
            dh, dstate = None, (dy, jnp.zeros_like(dy))[: cell.n_states]
        else:
            dh, dstate = dy, None
        dparams, dx, _ = recurrent_backward(cell, params, cache, dh, dstate)
        return dparams, dx

    return Layer(init, forward, backward, name)


def _as_tuple(state):
    return state if isinstance(state, tuple) else (state,)


def _as_given(state):
    return state if len(state) > 1 else state[0]


def _check_steps(who, chunk, truncate):
    for name, steps in (("chunk", chunk), ("truncate", truncate)):
        if steps is not None:
            whole(who, name, steps, least=1)


def _check_mask(mask, x):
    """The mask as (T, B), or None."""
    if mask is None:
        return None
    mask, (n_batch, n_time) = jnp.asarray(mask), x.shape[:2]
    if mask.shape not in ((n_batch, n_time), (1, n_time)) or mask.dtype != bool:
        raise ValueError(
            f"recurrent: the mask is {mask.dtype}{list(mask.shape)}, but x of shape {x.shape} needs "
            f"bool[{n_batch}, {n_time}] or bool[1, {n_time}], True at the real steps"
        )
    return jnp.broadcast_to(mask, (n_batch, n_time)).T
