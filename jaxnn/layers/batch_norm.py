"""Batch norm: each feature normalised over the batch in training, by running statistics in evaluation.

Shapes: B batch, ... any axes between (T, or H, W), C features or channels; a row is one (C,) of them, n the real rows.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn._checks import at_least_float32, cotangent, float_array, fraction, parameters, positive, sizes
from jaxnn._parallel import reshaped
from jaxnn.layer import Ctx, Layer
from jaxnn.layers._moments import Moments, centred, moments


class BatchStats(NamedTuple):
    """The state: averages over the batches so far, recent ones counting more. It has no gradient."""

    mean: jax.Array  # (C,) of the batches' means; 0 before the first
    var: jax.Array  # (C,) of their unbiased variances; 1 before the first
    weight: jax.Array  # () 1 - momentum^(batches so far): the total weight of those batches


class TrainCache(NamedTuple):
    """What the backward of training needs."""

    x: jax.Array  # (B, ..., C) the input
    moments: Moments  # of the real rows, each field (1, C)
    mask: Any  # (rows, 1) bool, True = real, or None


class EvalCache(NamedTuple):
    """What the backward of evaluation needs."""

    x: jax.Array  # (B, ..., C) the input
    mean: jax.Array  # (1, C) the running mean
    rstd: jax.Array  # (1, C) 1/sqrt(running variance + eps)


def batch_norm_forward(
    params: dict, state: BatchStats, x: jax.Array, ctx: Ctx, *, momentum: float = 0.9, eps: float = 1e-5
) -> tuple[jax.Array, BatchStats, TrainCache | EvalCache]:
    """Each feature normalised over all rows of the batch; in evaluation, by the averages from training.

    In training, over the n real rows, those with ctx.mask True (all, if it is None):

        μ = mean x,  v = mean (x - μ)²,  r = 1/sqrt(v + eps),  x̂ = (x - μ) r,  y = scale ⊙ x̂ + shift
        mean ← (1 - a) mean + a μ,  var ← (1 - a) var + a v n/(n - 1),  weight ← momentum · weight + 1 - momentum
        with a = (1 - momentum)/weight, of the new weight

        dscale = Σ dy ⊙ x̂,  dshift = Σ dy
        dx = scale r (dy - (dshift + x̂ dscale)/n) for a real row,  scale r dy for the others

    In evaluation mean and var are constants:

        r = 1/sqrt(var + eps),  x̂ = (x - mean) r,  y = scale ⊙ x̂ + shift
        dscale = Σ dy ⊙ x̂,  dshift = Σ dy,  dx = scale r dy

    The derivation of dx is the one at the top of norm.py, with means over the batch. A row that is not real is
    normalised like the others, but does not contribute to μ and v; its dy still reaches the real rows through them.

    momentum is the share that the average keeps in a step, as in Keras and Flax (PyTorch's is 1 - momentum). a is 1 in
    the first step and falls to 1 - momentum: the average with Adam's bias correction, right from the first batch on,
    not pulled towards the 0 and 1 it starts at. v is the biased variance, which normalises; the average is of the
    unbiased one. Fewer than two real rows say nothing about a variance and leave the state as it was; y is finite.
    An empty batch is treated as in evaluation.

    params {"scale": (C,), "shift": (C,)}; x and y (B, ..., C), dtypes as in norm.py; state `BatchStats`; ctx.mask bool,
    of x's shape up to some axis before the last: (B,), (B, T), ... Returns (y, state, TrainCache or EvalCache).
    Raises ValueError where x does not fit the parameters, state or mask, unless 0 <= momentum < 1 and eps > 0.
    Numerics: x̂ and dx as in norm.py. A row that is not real may be NaN: then its y is NaN, but nothing else changes if
    its dy is 0. A variance above 3e38 is stored as 3e38.
    Source: Ioffe, Szegedy 2015 (arXiv:1502.03167).
    """
    fraction("batch_norm", "momentum", momentum)
    positive("batch_norm", "eps", eps)
    x = _check(params, state, x)
    rows, scale, shift = _rows(x), _row(params["scale"], x), _row(params["shift"], x)
    if not ctx.train or x.size == 0:
        cache = EvalCache(x, _row(state.mean, x), 1 / jnp.sqrt(_row(state.var, x) + eps))
        x_hat = (rows - cache.mean) * cache.rstd
    else:
        mask = None if ctx.mask is None else _mask_of_rows(ctx.mask, x)
        m, v = moments(reshaped(x, *rows.shape), (0,), eps, mask)
        state = _averaged(state, momentum, (m.mean + m.rest) / m.scaling, v, _count(rows, mask))
        cache = TrainCache(x, m, mask)
        x_hat = centred(rows, m) * m.rstd
    y = scale * x_hat + shift
    return reshaped(y.astype(x.dtype), *x.shape), state, cache


def batch_norm_backward(
    params: dict, cache: TrainCache | EvalCache, dy: jax.Array
) -> tuple[dict[str, jax.Array], jax.Array]:
    """dscale = Σ dy ⊙ x̂,  dshift = Σ dy.

    Training: dx = scale r (dy - (dshift + x̂ dscale)/n), the bracket for real rows only; evaluation: dx = scale r dy.
    """
    x = cache.x
    dy = cotangent("batch_norm_backward", "dy", dy, "x", x.shape, at_least_float32(x.dtype))
    rows, dy, scale = _rows(x), _rows(dy), _row(params["scale"], x)
    dshift = dy.sum(0, keepdims=True)
    if isinstance(cache, EvalCache):
        dscale = cache.rstd * (dy * (rows - cache.mean)).sum(0, keepdims=True)
        dx = scale * cache.rstd * dy
    else:
        m, n = cache.moments, _count(rows, cache.mask)
        # The barrier keeps XLA from storing x - μ for both this sum and dx: on a CPU, that is a tenth of the time.
        terms = dy * centred(rows, jax.lax.optimization_barrier(m))
        if cache.mask is not None:
            terms = jnp.where(dy == 0, 0, terms)  # a row that is not real may be NaN
        dscale = m.rstd * terms.sum(0, keepdims=True)
        through_moments = dshift / n + centred(rows, m) * (m.rstd * dscale / n)
        if cache.mask is not None:
            through_moments = jnp.where(cache.mask, through_moments, 0)
        dx = m.scaling * (scale * m.rstd * (dy - through_moments))
    dparams = {"scale": dscale[0], "shift": dshift[0]}
    return {name: dparams[name].astype(p.dtype) for name, p in params.items()}, reshaped(dx.astype(x.dtype), *x.shape)


def batch_norm(*, momentum: float = 0.9, eps: float = 1e-5) -> Layer:
    """Each feature normalised over the batch; `batch_norm_forward` has the formulas for training and for evaluation.

    The scale starts at 1, the shift at 0. State: `BatchStats`.
    """
    fraction("batch_norm", "momentum", momentum)
    positive("batch_norm", "eps", eps)

    def init(key, in_shape, /):
        in_shape = sizes("batch_norm", in_shape, least_rank=1)
        zeros, ones = jnp.zeros(in_shape[-1]), jnp.ones(in_shape[-1])
        return in_shape, {"scale": ones, "shift": zeros}, BatchStats(zeros, ones, jnp.zeros(()))

    forward = functools.partial(batch_norm_forward, momentum=momentum, eps=eps)
    return Layer(init, forward, batch_norm_backward, "batch_norm")


def _averaged(state: BatchStats, momentum: float, mean: jax.Array, v: jax.Array, n: jax.Array) -> BatchStats:
    """The state after a batch of n real rows with this mean and biased variance (1, C)."""
    unbiased = jnp.minimum(v * (n / jnp.maximum(n - 1, 1)), jnp.finfo(v.dtype).max)
    weight = momentum * state.weight + (1 - momentum)
    a = jnp.where(n > 1, (1 - momentum) / weight, 0)

    def averaged(old, new):
        return (1 - a) * old + a * new[0].astype(old.dtype)

    return BatchStats(averaged(state.mean, mean), averaged(state.var, unbiased), jnp.where(n > 1, weight, state.weight))


def _rows(x: jax.Array) -> jax.Array:
    """x as a matrix (rows, C), in the dtype of the calculation."""
    return reshaped(x.astype(at_least_float32(x.dtype)), -1, x.shape[-1])


def _row(p: jax.Array, x: jax.Array) -> jax.Array:
    """(1, C), in the dtype of the calculation."""
    return p.astype(at_least_float32(x.dtype))[None]


def _count(rows: jax.Array, mask: jax.Array | None) -> jax.Array:
    """How many rows are real, as a number to divide by: 1 if there are none."""
    return jnp.maximum(len(rows) if mask is None else mask.sum(), 1).astype(rows.dtype)


def _mask_of_rows(mask: jax.Array, x: jax.Array) -> jax.Array:
    """The mask for each row of the matrix that x becomes: (rows, 1)."""
    mask = jnp.asarray(mask)
    rows = x.shape[: min(mask.ndim, x.ndim - 1)]
    if mask.dtype != bool or mask.ndim == 0 or mask.shape not in (rows, (1, *rows[1:]) if mask.ndim > 1 else rows):
        raise ValueError(
            f"batch_norm: ctx.mask is {mask.dtype}{list(mask.shape)}, but x has shape {x.shape}; expected bool, one "
            f"for each example {x.shape[:1]} or for each position {x.shape[:-1]}, or {(1, *x.shape[1:-1])} for all "
            f"examples alike"
        )
    mask = mask.reshape(mask.shape + (1,) * (x.ndim - 1 - mask.ndim))
    return reshaped(jnp.broadcast_to(mask, x.shape[:-1]), -1, 1)


def _check(params: dict, state: BatchStats, x: jax.Array) -> jax.Array:
    """x as an array; ValueError where it does not fit the parameters or the state."""
    x = float_array("batch_norm", "x", x)
    if not isinstance(state, BatchStats):
        raise ValueError(
            f"batch_norm: state is a {type(state).__name__}, expected the BatchStats of init or of the last forward"
        )
    parameters("batch_norm", params, ("scale", "shift"))
    if x.ndim < 2 or x.shape[-1] == 0:
        raise ValueError(f"batch_norm: x has shape {x.shape}, expected (batch, ..., features), at least one feature")
    fields = {**params, "state.mean": state.mean, "state.var": state.var}
    wrong = [f"{name} has shape {p.shape}" for name, p in fields.items() if p.shape != x.shape[-1:]]
    if wrong:
        raise ValueError(f"batch_norm: x has shape {x.shape}, but {', '.join(wrong)}; expected one number per feature")
    return x
