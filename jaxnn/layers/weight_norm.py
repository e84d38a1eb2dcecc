"""Weight norm: the weights of a layer as lengths times directions, which are learned separately."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxnn._branches import require_layers
from jaxnn._checks import at_least_float32, cotangent, parameters
from jaxnn.layer import Layer, in_part
from jaxnn.layers._moments import scaling_of


def weight_norm_forward(params: dict) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    """Weights of a given length: those of each output have length g and the direction of v.

    v̂ = v/‖v‖,  w = g v̂,  the norm over all axes but the last, the outputs
    dg = Σ dw ⊙ v̂,  dv = g/‖v‖ (dw - v̂ dg)

    since ∂‖v‖/∂v_j = v̂_j and so ∂v̂_i/∂v_j = (δ_ij - v̂_i v̂_j)/‖v‖: only the part of dw orthogonal to v turns v.
    params {"g": (n_out,), "v": (..., n_out)}; w has v's shape and dtype. Cached: v̂, and 1/‖v‖ as two factors.
    Numerics: v is scaled by a power of two before it is squared, so that nothing overflows or vanishes. v = 0 has no
    direction; by convention w = 0, dg = 0 and dv = 0 there.
    Source: Salimans, Kingma 2016 (arXiv:1602.07868).

    >>> w, _ = weight_norm_forward({"g": jnp.array([10.0]), "v": jnp.array([[3e30], [4e30]])})
    >>> w.ravel().round()
    Array([6., 8.], dtype=float32)
    """
    parameters("weight_norm", params, ("g", "v"))
    g, v = params["g"], params["v"]
    if v.ndim == 0 or g.shape != v.shape[-1:]:
        raise ValueError(f"weight_norm: g has shape {g.shape}, v {v.shape}; expected one length per output")
    v = v.astype(at_least_float32(v.dtype))
    scaling, square = _length(v)
    inverse = jnp.where(square == 0, 0, 1 / jnp.sqrt(jnp.where(square == 0, 1, square)))
    direction = v * scaling * inverse
    return (_row(g, v) * direction).astype(params["v"].dtype), (direction, scaling, inverse)


def weight_norm_backward(params: dict, cache, dw: jax.Array) -> dict[str, jax.Array]:
    """dg = Σ dw ⊙ v̂,  dv = g/‖v‖ (dw - v̂ dg)."""
    direction, scaling, inverse = cache
    g, v = params["g"], params["v"]
    dw = cotangent("weight_norm_backward", "dw", dw, "v", v.shape, direction.dtype)
    dg = (dw * direction).sum(tuple(range(v.ndim - 1)), keepdims=True)
    dv = scaling * (_row(g, dw) * inverse * (dw - direction * dg))
    return {"g": dg.reshape(g.shape).astype(g.dtype), "v": dv.astype(v.dtype)}


def weight_norm(inner: Layer) -> Layer:
    """The inner layer with its weights "w" as lengths times directions; see `weight_norm_forward`.

    y = inner(w = g v/‖v‖, …);  dw and dx from the inner layer's backward, dg and dv from dw

    inner: a layer such as dense, whose params are a dict with a "w" whose last axis is the outputs; otherwise a
    ValueError. params: the same with "g" (n_out,) and "v" in place of "w". It starts as the inner layer does: v = w, g
    = ‖w‖. Cached: what the inner layer caches; backward recomputes w.
    """
    require_layers("weight_norm", (inner,))

    def init(key, in_shape, /):
        with in_part("weight_norm", (inner,)):
            out_shape, params, state = inner.init(key, in_shape)
        if not (isinstance(params, dict) and "w" in params and {"g", "v"}.isdisjoint(params)):
            found = sorted(params) if isinstance(params, dict) else f"a {type(params).__name__}"
            raise ValueError(
                f"weight_norm: the inner layer's params are {found}, expected a dict with 'w' and without 'g' and 'v'"
            )
        v = params["w"]
        scaling, square = _length(v.astype(at_least_float32(v.dtype)))
        g = (jnp.sqrt(square) / scaling).reshape(v.shape[-1:]).astype(v.dtype)
        return out_shape, {**_without(params, "w"), "g": g, "v": v}, state

    def forward(params, state, x, ctx, /):
        inner_params, _ = _with_w(params)
        with in_part("weight_norm", (inner,)):
            return inner.forward(inner_params, state, x, ctx)

    def backward(params, cache, dy, /):
        inner_params, weight_cache = _with_w(params)
        with in_part("weight_norm", (inner,)):
            dparams, dx = inner.backward(inner_params, cache, dy)
        return {**_without(dparams, "w"), **weight_norm_backward(params, weight_cache, dparams["w"])}, dx

    return Layer(init, forward, backward, "weight_norm", (inner,), weight_norm)


def _with_w(params: dict):
    """The inner layer's params, and the cache of their "w"."""
    own = {name: p for name, p in params.items() if name in ("g", "v")} if isinstance(params, Mapping) else params
    w, cache = weight_norm_forward(own)
    return {**_without(params, "g", "v"), "w": w}, cache


def _without(params: dict, *names: str) -> dict:
    return {name: p for name, p in params.items() if name not in names}


def _row(g: jax.Array, v: jax.Array) -> jax.Array:
    """g (n_out,) shaped to broadcast with v: (1, ..., 1, n_out)."""
    return g.astype(v.dtype).reshape((1,) * (v.ndim - 1) + g.shape)


def _length(v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A power of two per output, and the squared norm of its product with the output's v."""
    axes = tuple(range(v.ndim - 1))
    scaling = scaling_of(v, axes, up=True)
    return scaling, jnp.square(v * scaling).sum(axes, keepdims=True)
