"""The loops of `recurrent_forward` and `recurrent_backward`: a sequence in one piece, or in chunks for less memory.

Only what depends on the previous step stays in a loop: x w is one product for all steps, and so are dw, du and dx.
State and gradients are kept in at least float32 between steps.

Shapes: B batch, T time, n_in features, H units.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxnn._after import after
from jaxnn._parallel import beside
from jaxnn.layers.cells import (
    parameter_gradients,
    preactivations,
    product,
    summed_product,
    u_columns,
    w_columns,
)


class Whole(NamedTuple):
    """The cache of a sequence in one piece, time first."""

    x: jax.Array  # (T, B, n_in), 0 at padding
    k: jax.Array  # (T, B, columns of b): what cell.back needs
    before: tuple[jax.Array, ...]  # the state before each step, each array (T, B, H)
    real: jax.Array | None  # (T, B) bool: False = padding; None = no mask
    cut: jax.Array | None  # (T,) bool: True = no gradient to the state before this step; None = none is cut


class Chunks(NamedTuple):
    """The cache of a sequence in chunks."""

    x: jax.Array  # (B, T, n_in)
    before: tuple[jax.Array, ...]  # the state before each chunk of full length, each array (T // chunk, B, H)
    rest: tuple[jax.Array, ...]  # the state before the T % chunk remaining steps, each array (B, H)
    real: jax.Array | None  # (T, B) bool
    cut: jax.Array | None  # (T,) bool
    chunk: jax.Array  # (chunk, 0): an empty array whose shape remembers the length


# ---------------------------------------------------------------- in one piece


def run_whole(cell, params, x, state, real, cut) -> tuple[jax.Array, tuple, Whole]:
    """(h (B, T, H), the last state, cache)."""
    h, last, (x, k, before) = _run(cell, params, x, state, real)
    return h, last, Whole(x, k, before, real, cut)


def back_whole(cell, params, cache, dh, dstate) -> tuple[dict, jax.Array, tuple]:
    """(dparams, dx (B, T, n_in), dstate)."""
    x, k, before, real, cut = cache
    dp, dstate = _back(cell, params, k, before, real, cut, dh, dstate)
    dparams = parameter_gradients(params, x, before[0], dp)
    return dparams, product(w_columns(params, dp), params["w"].T).swapaxes(0, 1), dstate


def _run(cell, params, x, state, real):
    """h (B, T, H), the last state, and the x, k and before of `Whole`."""
    x = x.swapaxes(0, 1)  # (T, B, n_in)
    if real is not None:
        x = jnp.where(real[:, :, None], x, 0)
    a = product(x, params["w"])

    def step(state, now):
        a, real = now
        new, k = cell.step(preactivations(params, a, state[0]), state)
        return _where(real, new, state), (k, state)

    last, (k, before) = jax.lax.scan(step, state, (a, real))
    h = jnp.concatenate([before[0], last[0][None]])[1:]
    return h.swapaxes(0, 1), last, (x, k, before)


def _back(cell, params, k, before, real, cut, dh, dstate):
    """dp (T, B, columns of b), and ds before the first step."""
    dh = None if dh is None else dh.swapaxes(0, 1).astype(k.dtype)
    u_transposed = params["u"].T  # not in the loop, where a CPU takes three times as long to multiply by it

    def step(dstate, now):
        k, state, dh, real, cut = now
        if dh is not None:
            dstate = (dstate[0] + dh, *dstate[1:])
        (dh_before, *others), dp = cell.back(k, state, dstate)
        dh_before = dh_before + product(u_columns(params, dp), u_transposed)
        before = _where(real, (dh_before, *others), dstate)
        (dp,) = _where(real, (dp,), (jnp.zeros_like(dp),))
        if cut is not None:
            before = tuple(jnp.where(cut, 0, ds) for ds in before)
        return before, dp

    dstate, dp = jax.lax.scan(step, dstate, (k, before, dh, real, cut), reverse=True)
    return dp, dstate


def _where(real, new, old):
    """The new arrays where the step is real, the old ones at padding."""
    return new if real is None else tuple(jnp.where(real[:, None], n, o) for n, o in zip(new, old, strict=True))


# ---------------------------------------------------------------- in chunks


def run_chunks(cell, params, x, state, real, cut, chunk) -> tuple[jax.Array, tuple, Chunks]:
    """(h (B, T, H), the last state, cache)."""
    n, rest = divmod(x.shape[1], chunk)

    def run(carry, start, length):
        state, h = carry
        h_piece, last, _ = _run(cell, params, _piece(x, start, length, 1), state, _piece(real, start, length, 0))
        return (last, jax.lax.dynamic_update_slice_in_dim(h, h_piece, start, 1)), state

    carry = state, beside(jnp.zeros((*x.shape[:2], params["u"].shape[0]), state[0].dtype), x)
    carry, before = jax.lax.scan(lambda carry, start: run(carry, start, chunk), carry, jnp.arange(n) * chunk)
    before_rest = carry[0]
    if rest:
        carry, _ = run(carry, n * chunk, rest)
    last, h = carry
    return h, last, Chunks(x, before, before_rest, real, cut, jnp.zeros((chunk, 0)))


def back_chunks(cell, params, cache, dh, dstate) -> tuple[dict, jax.Array, tuple]:
    """(dparams, dx (B, T, n_in), dstate): each chunk is run again, then backpropagated through."""
    x, before, before_rest, real, cut, chunk = cache
    chunk = chunk.shape[0]
    n, rest = divmod(x.shape[1], chunk)

    def back(carry, start, length, state):
        dstate, dparams, dx = carry
        real_piece = _piece(real, start, length, 0)
        _, _, (x_piece, k, before) = _run(cell, params, _piece(x, start, length, 1), state, real_piece)
        cut_piece, dh_piece = _piece(cut, start, length, 0), _piece(dh, start, length, 1)
        dp, dstate = _back(cell, params, k, before, real_piece, cut_piece, dh_piece, dstate)
        du = dparams["u"] + summed_product(before[0], u_columns(params, dp), x.dtype, params["u"])
        x_piece = after(du, x_piece)  # so that the two products are not in memory at once
        dw = dparams["w"] + summed_product(x_piece, w_columns(params, dp), x.dtype, params["w"])
        dparams = {"w": dw, "u": du, "b": dparams["b"] + dp.sum((0, 1))}
        dx_piece = product(w_columns(params, dp), params["w"].T).swapaxes(0, 1).astype(dx.dtype)
        return dstate, dparams, jax.lax.dynamic_update_slice_in_dim(dx, dx_piece, start, 1)

    carry = dstate, jax.tree.map(lambda p: jnp.zeros(p.shape, dstate[0].dtype), params), jnp.zeros_like(x)
    if rest:
        carry = back(carry, n * chunk, rest, before_rest)

    def over(carry, now):
        start, state = now
        return back(carry, start, chunk, state), None

    (dstate, dparams, dx), _ = jax.lax.scan(over, carry, (jnp.arange(n) * chunk, before), reverse=True)
    return dparams, dx, dstate


def _piece(a, start, length, axis):
    return None if a is None else jax.lax.dynamic_slice_in_dim(a, start, length, axis)
