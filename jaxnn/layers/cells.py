"""Recurrent cells: what one step in time does to the state, forward and backward.

Shapes: B batch, n_in features, H units. The columns of w, u, b and p come in blocks of H, one per gate.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnn._checks import at_least_float32, cotangent, float_array, parameters, unknown_name
from jaxnn._parallel import beside, sharding_like
from jaxnn.activations import sigmoid, sigmoid_derivative, tanh, tanh_derivative


class Cell(NamedTuple):
    """A recurrent cell: what `recurrent_forward` and `recurrent_backward` need from it, without the matrix products.

    p_t = x_t w + h_(t-1) u + b,   s_t = step(p_t, s_(t-1)),   h_t the first array of s_t
    ds_(t-1), dp_t = back(k_t, s_(t-1), ds_t),   then dh_(t-1) += dp_t uᵀ

    w reaches the first columns of p, u the last ones.
    """

    w_blocks: int  # w is (n_in, w_blocks · H)
    u_blocks: int  # u is (H, u_blocks · H)
    biases: tuple[float, ...]  # one per block of p: the initial biases
    n_states: int  # arrays (B, H) that make up the state
    step: Callable[[jax.Array, tuple], tuple[tuple, jax.Array]]  # (p, s) -> (s, k); k of p's shape: what back needs
    back: Callable[[jax.Array, tuple, tuple], tuple[tuple, jax.Array]]  # (k, s, ds) -> (ds, dp); s the previous one


# ---------------------------------------------------------------- simple


def rnn_cell_forward(params: dict, x: ArrayLike, h: ArrayLike) -> tuple[jax.Array, jax.Array, tuple]:
    """The simple recurrent cell.

    h' = tanh(p),  p = x w + h u + b
    dp = dh' ⊙ tanh'(p)
    dw = xᵀ dp,  du = hᵀ dp,  db = Σ_batch dp,  dx = dp wᵀ,  dh = dp uᵀ

    params {"w": (n_in, H), "u": (H, H), "b": (H,)}; x (B, n_in), h and h' (B, H), all of one dtype.
    Returns (h', h', cache): the output, and the state for the next step, the same for this cell. Cached: x, h, p.
    Numerics: those of `lstm_cell_forward`.
    Source: Elman 1990, Finding structure in time.
    """
    (new,), cache = _cell_forward("rnn_cell", RNN, params, x, (h,))
    return new, new, cache


def rnn_cell_backward(
    params: dict, cache, dy: ArrayLike, dstate: ArrayLike | None = None
) -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
    """(dparams, dx, dh): dp = dh' ⊙ tanh'(p),  dx = dp wᵀ,  dh = dp uᵀ.

    dy is ∂L/∂h' through the output, dstate through the state, None for zeros: dh' is their sum.
    """
    dparams, dx, (dh,) = _cell_backward("rnn_cell", RNN, params, cache, dy, None if dstate is None else (dstate,))
    return dparams, dx, dh


def _rnn_step(p, state):
    return (tanh(p),), p


def _rnn_back(p, state, dstate):
    (dh,) = dstate
    return (jnp.zeros_like(dh),), dh * tanh_derivative(p)


RNN = Cell(1, 1, (0.0,), 1, _rnn_step, _rnn_back)


# ---------------------------------------------------------------- GRU


def gru_cell_forward(params: dict, x: ArrayLike, h: ArrayLike) -> tuple[jax.Array, jax.Array, tuple]:
    """The gated recurrent unit: z is the share of the old state that is kept, r how much of it the new one may see.

    p_n = x w_n + b_n,   p_r = x w_r + h u_r + b_r,   p_z = x w_z + h u_z + b_z,   p_m = h u_m + b_m
    r = σ(p_r),  z = σ(p_z),  q = p_n + r ⊙ p_m,  n = tanh(q),  h' = (1 - z) ⊙ n + z ⊙ h

    dp_n = dh' ⊙ (1 - z) ⊙ tanh'(q),   dp_r = dp_n ⊙ p_m ⊙ σ'(p_r),   dp_z = dh' ⊙ (h - n) ⊙ σ'(p_z),   dp_m = dp_n ⊙ r
    dw = xᵀ [dp_n dp_r dp_z],  du = hᵀ [dp_r dp_z dp_m],  db = Σ_batch dp
    dx = [dp_n dp_r dp_z] wᵀ,  dh = dh' ⊙ z + [dp_r dp_z dp_m] uᵀ

    params {"w": (n_in, 3H) = [w_n w_r w_z], "u": (H, 3H) = [u_r u_z u_m], "b": (4H,) = [b_n b_r b_z b_m]}; x (B, n_in),
    h and h' (B, H), all of one dtype. Returns (h', h', cache): the output, and the state. Cached: x, h, q and the rest
    of p.
    The reset gate r comes after the product with u_m, as in PyTorch and cuDNN, so that one product serves all gates.
    Numerics: those of `lstm_cell_forward`; 1 - z in the backward is σ(-p_z), which does not cancel.
    Source: Cho et al. 2014 (arXiv:1406.1078).
    """
    (new,), cache = _cell_forward("gru_cell", GRU, params, x, (h,))
    return new, new, cache


def gru_cell_backward(
    params: dict, cache, dy: ArrayLike, dstate: ArrayLike | None = None
) -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
    """(dparams, dx, dh): dp as in `gru_cell_forward`,  dh = dh' ⊙ z + [dp_r dp_z dp_m] uᵀ,  dh' = dy + dstate.

    dy is ∂L/∂h' through the output, dstate through the state, None for zeros.
    """
    dparams, dx, (dh,) = _cell_backward("gru_cell", GRU, params, cache, dy, None if dstate is None else (dstate,))
    return dparams, dx, dh


def _gru_step(p, state):
    (h,) = state
    pn, prz, pm = _blocks(p, 1, 2, 1)
    r, z = _blocks(sigmoid(prz), 1, 1)
    q = pn + r * pm
    return ((1 - z) * tanh(q) + z * h,), jnp.concatenate([q, prz, pm], -1)


def _gru_back(k, state, dstate):
    (h,), (dh,) = state, dstate
    q, prz, pm = _blocks(k, 1, 2, 1)
    rz, one_minus_rz = sigmoid(prz), sigmoid(-prz)
    r, z = _blocks(rz, 1, 1)
    _, one_minus_z = _blocks(one_minus_rz, 1, 1)
    slope_r, slope_z = _blocks(rz * one_minus_rz, 1, 1)
    dpn = dh * one_minus_z * tanh_derivative(q)
    return (dh * z,), jnp.concatenate([dpn, dpn * pm * slope_r, dh * (h - tanh(q)) * slope_z, dpn * r], -1)


GRU = Cell(3, 3, (0.0, 0.0, 0.0, 0.0), 1, _gru_step, _gru_back)


# ---------------------------------------------------------------- LSTM


def lstm_cell_forward(
    params: dict, x: ArrayLike, state: tuple[ArrayLike, ArrayLike]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array], tuple]:
    """The long short-term memory: c is what it remembers, h what it shows of c.

    [p_i p_f p_o p_g] = x w + h u + b
    i = σ(p_i),  f = σ(p_f),  o = σ(p_o),  g = tanh(p_g),   c' = f ⊙ c + i ⊙ g,   h' = o ⊙ tanh(c')

    γ = dc' + dh' ⊙ o ⊙ tanh'(c'), all that arrives at c',   dc = γ ⊙ f
    dp_i = γ ⊙ g ⊙ σ'(p_i),  dp_f = γ ⊙ c ⊙ σ'(p_f),  dp_o = dh' ⊙ tanh(c') ⊙ σ'(p_o),  dp_g = γ ⊙ i ⊙ tanh'(p_g)
    dw = xᵀ dp,  du = hᵀ dp,  db = Σ_batch dp,  dx = dp wᵀ,  dh = dp uᵀ

    params {"w": (n_in, 4H), "u": (H, 4H), "b": (4H,)}, columns in the order i f o g; x (B, n_in), state (h, c), each
    (B, H), all of one dtype. Returns (h', (h', c'), cache): the output, and the state. Cached: x, (h, c) and p.
    The three σ gates are adjacent, so that one σ over 3H columns serves them all: on a CPU that takes half the time of
    three.
    Numerics: σ' and tanh' are taken of p, not of the gates, where 1 - σ and 1 - tanh² cancel (see
    `jaxnn.activations`). Everything but the matrix products is calculated in at least float32.
    Source: Hochreiter, Schmidhuber 1997; Gers et al. 2000 for the forget gate.
    """
    (h, c), cache = _cell_forward("lstm_cell", LSTM, params, x, state)
    return h, (h, c), cache


def lstm_cell_backward(
    params: dict, cache, dy: ArrayLike, dstate: tuple[ArrayLike, ArrayLike] | None = None
) -> tuple[dict[str, jax.Array], jax.Array, tuple[jax.Array, jax.Array]]:
    """(dparams, dx, (dh, dc)): dp as in `lstm_cell_forward`,  dh = dp uᵀ,  dc = γ ⊙ f.

    dy is ∂L/∂h' through the output, dstate = ∂L/∂(h', c') through the state, None for zeros: dh' is the sum of the two.
    """
    return _cell_backward("lstm_cell", LSTM, params, cache, dy, dstate)


def _lstm_step(p, state):
    _, c = state
    pifo, pg = _blocks(p, 3, 1)
    i, f, o = _blocks(sigmoid(pifo), 1, 1, 1)
    c = f * c + i * tanh(pg)
    return (o * tanh(c), c), p


def _lstm_back(p, state, dstate):
    (_, c), (dh, dc) = state, dstate
    pifo, pg = _blocks(p, 3, 1)
    i, f, o = _blocks(sigmoid(pifo), 1, 1, 1)
    slope_i, slope_f, slope_o = _blocks(sigmoid_derivative(pifo), 1, 1, 1)
    g = tanh(pg)
    new = f * c + i * g
    dc = dc + dh * o * tanh_derivative(new)
    dp = [dc * g * slope_i, dc * c * slope_f, dh * tanh(new) * slope_o, dc * i * tanh_derivative(pg)]
    return (jnp.zeros_like(dh), dc * f), jnp.concatenate(dp, -1)


LSTM = Cell(4, 4, (0.0, 1.0, 0.0, 0.0), 2, _lstm_step, _lstm_back)

CELLS: dict[str, Cell] = {"rnn": RNN, "gru": GRU, "lstm": LSTM}


def get_cell(cell: str | Cell) -> Cell:
    """The Cell of that name, or the Cell itself; a ValueError names the nearest known one."""
    if isinstance(cell, Cell):
        return cell
    if cell not in CELLS:
        raise unknown_name("cell", cell, CELLS)
    return CELLS[cell]


# ---------------------------------------------------------------- what all cells share


def _cell_forward(who, cell, params, x, state) -> tuple[tuple, tuple]:
    x, state = check_cell(who, cell, params, x, state, axes=("B", "n_in"))
    wide = widened(x.dtype, state)
    new, k = cell.step(preactivations(params, product(x, params["w"]), wide[0]), wide)
    return tuple(s.astype(x.dtype) for s in new), (x, state, k)


def _cell_backward(who, cell, params, cache, dy, dstate) -> tuple[dict[str, jax.Array], jax.Array, Any]:
    x, state, k = cache
    shape, wide = state[0].shape, at_least_float32(x.dtype)
    dstate = (jnp.zeros(shape, wide),) * cell.n_states if dstate is None else dstate
    dh, *others = state_cotangent(f"{who}_backward", cell, dstate, shape, x.dtype)
    dh = dh + cotangent(f"{who}_backward", "dy", dy, "the output", shape, wide)
    dstate, dp = cell.back(k, widened(x.dtype, state), (dh, *others))
    dh = dstate[0] + product(u_columns(params, dp), params["u"].T)
    dx = product(w_columns(params, dp), params["w"].T)
    dparams = parameter_gradients(params, x, state[0], dp)
    return jax.tree.map(lambda g: g.astype(x.dtype), (dparams, dx, (dh, *dstate[1:])))


def preactivations(params: dict, a: jax.Array, h: jax.Array) -> jax.Array:
    """p = x w + h u + b, from a = x w."""
    m, n = product(h, params["u"]), params["b"].shape[0]
    left, right = n - m.shape[-1], n - a.shape[-1]  # columns of p that u does not reach, and that w does not
    if left or right:
        both = a.shape[-1] - left
        a = jnp.concatenate([a[..., :left], a[..., left:] + m[..., :both], m[..., both:]], -1)
    else:
        a = a + m
    return a + jnp.broadcast_to(params["b"].astype(a.dtype), a.shape)


def w_columns(params: dict, dp: jax.Array) -> jax.Array:
    """The columns of dp that w reaches."""
    return dp[..., : params["w"].shape[1]]


def u_columns(params: dict, dp: jax.Array) -> jax.Array:
    """The columns of dp that u reaches."""
    return dp[..., params["b"].shape[0] - params["u"].shape[1] :]


def parameter_gradients(params: dict, x: jax.Array, h: jax.Array, dp: jax.Array) -> dict:
    """dw = Σ xᵀ dp,  du = Σ hᵀ dp,  db = Σ dp over all axes but the last; h is the previous one."""
    return {
        "w": summed_product(x, w_columns(params, dp), x.dtype, params["w"]),
        "u": summed_product(h, u_columns(params, dp), x.dtype, params["u"]),
        "b": dp.sum(tuple(range(dp.ndim - 1))),
    }


def summed_product(a: jax.Array, b: jax.Array, dtype, like: jax.Array) -> jax.Array:
    """The gradient of `like`: Σ aᵀ b over all axes but the last, factors in this dtype, the sum in at least float32."""
    axes = tuple(range(a.ndim - 1))
    wide, sharding = at_least_float32(dtype), sharding_like(like, a)
    a, b = a.astype(dtype), b.astype(dtype)
    return jnp.tensordot(a, b, (axes, axes), preferred_element_type=wide, out_sharding=sharding)


def product(a: jax.Array, w: jax.Array) -> jax.Array:
    """a @ w, both factors in w's dtype, summed in at least float32."""
    return jnp.matmul(a.astype(w.dtype), w, preferred_element_type=at_least_float32(w.dtype))


def widened(dtype, arrays: tuple) -> tuple:
    """The arrays in at least float32."""
    return tuple(jnp.asarray(a).astype(at_least_float32(dtype)) for a in arrays)


def state_cotangent(who: str, cell: Cell, dstate, shape: tuple[int, ...], dtype) -> tuple:
    """∂L/∂state in at least float32; ValueError where it does not fit the state, arrays of this shape."""
    if not isinstance(dstate, tuple | list) or len(dstate) != cell.n_states:
        found = f"has {len(dstate)} arrays" if isinstance(dstate, tuple | list) else "is not a tuple"
        raise ValueError(f"{who}: dstate {found}, expected {cell.n_states}, as the state has")
    return tuple(cotangent(who, "dstate", ds, "the state", shape, at_least_float32(dtype)) for ds in dstate)


def check_cell(
    who: str, cell: Cell, params: dict, x, state: tuple | None, axes: tuple[str, ...]
) -> tuple[jax.Array, tuple]:
    """x and the state (zeros for None) as arrays; ValueError naming everything that does not fit."""
    parameters(who, params, ("w", "u", "b"))
    x, wrong = float_array(who, "x", x), []
    n_in, units = (*params["w"].shape, 0)[0], (*params["u"].shape, 0)[0]
    if x.ndim != len(axes):
        wrong.append(f"x has shape {x.shape}, expected ({', '.join(axes)})")
    elif x.shape[-1] != n_in:
        wrong.append(f"x has {x.shape[-1]} features (shape {x.shape}) but w expects {n_in} (shape {params['w'].shape})")
    shapes = {
        "w": (n_in, cell.w_blocks * units),
        "u": (units, cell.u_blocks * units),
        "b": (len(cell.biases) * units,),
    }
    wrong += [
        f"{name} has shape {params[name].shape}, expected {shape} for {units} units"
        for name, shape in shapes.items()
        if params[name].shape != shape
    ]
    one = (*x.shape[:1], units)
    if state is None:
        state = (beside(jnp.zeros(one, x.dtype), x),) * cell.n_states
    state = tuple(float_array(who, "the state", s) for s in state)
    if [s.shape for s in state] != [one] * cell.n_states:
        wrong.append(f"the state has shapes {[s.shape for s in state]}, expected {[one] * cell.n_states}")
    dtypes = {a.dtype for a in (x, *params.values(), *state)}
    if len(dtypes) > 1:
        wrong.append(f"x, params and state have the dtypes {', '.join(sorted(map(str, dtypes)))}: cast them to one")
    if wrong:
        raise ValueError(f"{who}: " + "; ".join(wrong))
    return x, state


def _blocks(p, *widths):
    """p cut into pieces, widths[i] blocks in the i-th."""
    size = p.shape[-1] // sum(widths)
    ends = [size * sum(widths[:i]) for i in range(1, len(widths))]
    return jnp.split(p, ends, -1)
