"""Normalisations that look at one example at a time: layer, RMS, group and instance norm.

Shapes: B batch, ... any axes between (T, or H, W), C features or channels.

All are x̂ = (x - μ) r with μ = mean x, v = mean (x - μ)², r = 1/sqrt(v + ε), the means over the n numbers normalised
together. Their gradient, with ĝ = ∂L/∂x̂ = scale ⊙ dy:

    x_i changes x̂_i itself         r ĝ_i
    all x̂ through the mean         ∂L/∂μ = -r Σ ĝ             ∂μ/∂x_i = 1/n
    and through the variance       ∂L/∂v = Σ ĝ (x - μ) · (-r³/2) = -r²/2 Σ ĝ x̂
                                                              ∂v/∂x_i = 2 (x_i - μ)/n = 2 x̂_i/(r n)
                                                              (through μ: -2 mean (x - μ) = 0)
    in total                       dx_i = r (ĝ_i - mean ĝ - x̂_i mean(ĝ x̂))

which is r ĝ without its components along 1 and (apart from ε) along x̂, two directions in which x̂ does not move.

Numerics, for all of them: in float32, at exactly the numbers given, x̂ is right to 1e-6 of the largest |x̂| normalised
with it and dx to 1e-6 of r max |ĝ|, whatever the mean, spread and magnitude of x up to 3e38 (how:
jaxnn/layers/_moments.py); anything below 1e-38 becomes 0. Equal numbers give x̂ = 0 and dx = (ĝ - mean ĝ)/sqrt(ε). x
may have another dtype than the parameters; y and dx have x's. For bfloat16 and float16 everything is calculated in
float32 and rounded once.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxnn._checks import at_least_float32, cotangent, float_array, parameters, positive, whole
from jaxnn._parallel import reshaped
from jaxnn.layer import Layer, from_pair
from jaxnn.layers._moments import at_good_scaling, centred, moments, reciprocal_root, scaling_of

# ---------------------------------------------------------------- layer norm


def layer_norm_forward(params: dict, x: jax.Array, *, eps: float = 1e-5) -> tuple[jax.Array, tuple]:
    """Each position normalised over its features.

    μ = mean_C x,  v = mean_C (x - μ)²,  r = 1/sqrt(v + eps),  x̂ = (x - μ) r,  y = scale ⊙ x̂ + shift
    dscale = Σ dy ⊙ x̂,  dshift = Σ dy,  ĝ = scale ⊙ dy,  dx = r (ĝ - mean_C ĝ - x̂ mean_C(ĝ x̂))

    params {"scale": (C,), "shift": (C,)}; x and y (..., C). Cached: x, and the moments of each position.
    Raises ValueError where x does not fit the parameters, and unless eps > 0.
    Numerics: as at the top of this file, for dx up to C = 16384.
    Source: Ba, Kiros, Hinton 2016 (arXiv:1607.06450).

    >>> y, _ = layer_norm_forward({"scale": jnp.ones(3), "shift": jnp.zeros(3)}, jnp.array([[1e6, 1e6 + 1, 1e6 + 2]]))
    >>> y
    Array([[-1.2247..., 0. , 1.2247...]], dtype=float32)
    """
    x = _check("layer_norm", params, x, ("scale", "shift"), eps)
    m, _ = moments(x, (x.ndim - 1,), eps)
    y = _row(params["scale"], x) * (centred(x, m) * m.rstd) + _row(params["shift"], x)
    return y.astype(x.dtype), (x, m)


def layer_norm_backward(params: dict, cache, dy: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
    """dscale = Σ dy ⊙ x̂,  dshift = Σ dy,  ĝ = scale ⊙ dy,  dx = r (ĝ - mean_C ĝ - x̂ mean_C(ĝ x̂))."""
    x, m = cache
    scale, dy = _row(params["scale"], x), _wide_dy("layer_norm_backward", dy, x)
    c = centred(x, m)
    x_hat = c * m.rstd
    # c times one number per row instead of x_hat times another: XLA for CPU stores one temporary less.
    along_x_hat = c * (m.rstd * _mean_over_c(scale, dy * x_hat))
    dx = m.scaling * (m.rstd * (scale * dy - _mean_over_c(scale, dy) - along_x_hat))
    batch = tuple(range(x.ndim - 1))
    return _as(params, {"scale": (dy * x_hat).sum(batch), "shift": dy.sum(batch)}), dx.astype(x.dtype)


def layer_norm(*, eps: float = 1e-5) -> Layer:
    """Each position normalised over its features; see `layer_norm_forward`. The scale starts at 1, the shift at 0."""
    return _layer("layer_norm", layer_norm_forward, layer_norm_backward, ("scale", "shift"), eps)


# ---------------------------------------------------------------- RMS norm


def rms_norm_forward(params: dict, x: jax.Array, *, eps: float = 1e-5) -> tuple[jax.Array, tuple]:
    """Each position divided by its root mean square: layer norm without subtracting the mean.

    r = 1/sqrt(mean_C x² + eps),  x̂ = x r,  y = scale ⊙ x̂
    dscale = Σ dy ⊙ x̂,  ĝ = scale ⊙ dy,  dx = r (ĝ - x̂ mean_C(ĝ x̂))

    As at the top of this file, without a mean: ∂L/∂v = Σ ĝ x (-r³/2) with v = mean x², ∂v/∂x_i = 2 x_i/n.
    params {"scale": (C,)}; x and y (..., C). Cached: x, and two numbers per position.
    Raises ValueError where x does not fit the parameters, and unless eps > 0.
    Numerics: as for layer norm; x̂ = 0 for x = 0.
    Source: Zhang, Sennrich 2019 (arXiv:1910.07467).

    >>> y, _ = rms_norm_forward({"scale": jnp.ones(2)}, jnp.array([[3e30, 4e30], [0.0, 0.0]]))
    >>> y
    Array([[0.8485..., 1.1313...], [0. , 0. ]], dtype=float32)
    """
    x = _check("rms_norm", params, x, ("scale",), eps)
    scaling, (mean_square,) = at_good_scaling(
        lambda scaling: (jnp.square(_wide(x) * scaling).mean(-1, keepdims=True),),
        lambda: scaling_of(_wide(x), (x.ndim - 1,)),
    )
    rstd = reciprocal_root(mean_square, scaling, eps)
    y = _row(params["scale"], x) * (_wide(x) * scaling * rstd)
    return y.astype(x.dtype), (x, scaling, rstd)


def rms_norm_backward(params: dict, cache, dy: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
    """dscale = Σ dy ⊙ x̂,  ĝ = scale ⊙ dy,  dx = r (ĝ - x̂ mean_C(ĝ x̂))."""
    x, scaling, rstd = cache
    scale, dy = _row(params["scale"], x), _wide_dy("rms_norm_backward", dy, x)
    scaled = _wide(x) * scaling
    x_hat = scaled * rstd
    dx = scaling * (rstd * (scale * dy - scaled * (rstd * _mean_over_c(scale, dy * x_hat))))
    return _as(params, {"scale": (dy * x_hat).sum(tuple(range(x.ndim - 1)))}), dx.astype(x.dtype)


def rms_norm(*, eps: float = 1e-5) -> Layer:
    """Each position divided by its root mean square; see `rms_norm_forward`. The scale starts at 1."""
    return _layer("rms_norm", rms_norm_forward, rms_norm_backward, ("scale",), eps)


# ---------------------------------------------------------------- group and instance norm


def group_norm_forward(params: dict, x: jax.Array, groups: int, *, eps: float = 1e-5) -> tuple[jax.Array, tuple]:
    """The channels of each example in groups, each group normalised over its channels and all positions.

    μ, v, r, x̂ as for layer norm, the means over a group: all positions (...) and C / groups neighbouring channels
    y = scale ⊙ x̂ + shift
    dscale = Σ dy ⊙ x̂,  dshift = Σ dy,  ĝ = scale ⊙ dy,  dx = r (ĝ - mean ĝ - x̂ mean(ĝ x̂)), means as above

    params {"scale": (C,), "shift": (C,)}; x and y (B, ..., C). Cached: x, and the moments of each group.
    Raises ValueError where x does not fit the parameters, unless eps > 0, and unless groups divides C.
    Numerics: as at the top of this file.
    Source: Wu, He 2018 (arXiv:1803.08494).
    """
    whole("group_norm", "groups", groups, least=1)
    x = _check("group_norm", params, x, ("scale", "shift"), eps)
    if x.ndim < 2 or x.shape[-1] % groups:
        raise ValueError(f"group_norm: x has shape {x.shape}, expected (batch, ..., a multiple of {groups} channels)")
    grouped = reshaped(x, *_grouped(x.shape, groups))  # (B, S, G, K)
    m, _ = moments(grouped, (1, 3), eps)
    x_hat = reshaped(centred(grouped, m) * m.rstd, *x.shape)
    y = _row(params["scale"], x) * x_hat + _row(params["shift"], x)
    return y.astype(x.dtype), (x, m)


def group_norm_backward(params: dict, cache, dy: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
    """dscale = Σ dy ⊙ x̂,  dshift = Σ dy,  ĝ = scale ⊙ dy,  dx = r (ĝ - mean ĝ - x̂ mean(ĝ x̂)), means over a group."""
    x, m = cache
    grouped = _grouped(x.shape, groups=m.rstd.shape[2])  # (B, S, G, K)
    dy = reshaped(_wide_dy("group_norm_backward", dy, x), *grouped)
    c = centred(reshaped(x, *grouped), m)
    scale = _row(params["scale"], x).reshape(1, 1, *grouped[2:])
    # Sums over the positions of each channel serve both the parameters and the means over a group.
    sum_dy, sum_dyx = dy.sum(1, keepdims=True), m.rstd * (dy * c).sum(1, keepdims=True)  # (B, 1, G, K)
    n = grouped[1] * grouped[3]
    mean_g, mean_gx = ((scale * s).sum(3, keepdims=True) / n for s in (sum_dy, sum_dyx))
    dx = m.scaling * (m.rstd * (scale * dy - mean_g - c * (m.rstd * mean_gx)))
    dparams = {"scale": sum_dyx.sum(0).reshape(-1), "shift": sum_dy.sum(0).reshape(-1)}
    return _as(params, dparams), reshaped(dx, *x.shape).astype(x.dtype)


def group_norm(groups: int, *, eps: float = 1e-5) -> Layer:
    """Groups of channels normalised in each example; see `group_norm_forward`. The scale starts at 1, the shift at 0.

    group_norm(1) is layer norm over positions and channels together.
    """
    whole("group_norm", "groups", groups, least=1)
    forward = functools.partial(group_norm_forward, groups=groups)
    return _layer("group_norm", forward, group_norm_backward, ("scale", "shift"), eps)


def _grouped(shape: tuple[int, ...], groups: int) -> tuple[int, int, int, int]:
    """(B, S, G, K): positions in one axis, channels as groups of K neighbours."""
    return shape[0], math.prod(shape[1:-1]), groups, shape[-1] // groups


def instance_norm_forward(params: dict, x: jax.Array, *, eps: float = 1e-5) -> tuple[jax.Array, tuple]:
    """Each channel of each example normalised over its positions: group norm with as many groups as channels.

    μ, v, r, x̂ as for layer norm, the means over all positions (...),  y = scale ⊙ x̂ + shift
    dscale = Σ dy ⊙ x̂,  dshift = Σ dy,  dx = scale r (dy - mean dy - x̂ mean(dy ⊙ x̂))

    params {"scale": (C,), "shift": (C,)}; x and y (B, ..., C). Cached: x, and the moments of each channel.
    Raises ValueError where x does not fit the parameters or has no axis of positions, and unless eps > 0.
    Numerics: as at the top of this file.
    Source: Ulyanov, Vedaldi, Lempitsky 2016 (arXiv:1607.08022).
    """
    x = _check("instance_norm", params, x, ("scale", "shift"), eps)
    if x.ndim < 3:
        raise ValueError(f"instance_norm: x has shape {x.shape}, expected (batch, positions ..., channels)")
    rows = reshaped(x, x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])  # (B, S, C)
    m, _ = moments(rows, (1,), eps)
    y = _row(params["scale"], rows) * (centred(rows, m) * m.rstd) + _row(params["shift"], rows)
    return reshaped(y, *x.shape).astype(x.dtype), (x, m)


def instance_norm_backward(params: dict, cache, dy: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
    """dscale = Σ dy ⊙ x̂,  dshift = Σ dy,  dx = scale r (dy - mean dy - x̂ mean(dy ⊙ x̂)), means over positions."""
    x, m = cache
    rows = (x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])  # (B, S, C)
    dy = reshaped(_wide_dy("instance_norm_backward", dy, x), *rows)
    c = centred(reshaped(x, *rows), m)
    sum_dy, sum_dyx = dy.sum(1, keepdims=True), m.rstd * (dy * c).sum(1, keepdims=True)  # (B, 1, C)
    n = dy.shape[1]
    dx = m.scaling * (_row(params["scale"], dy) * m.rstd * (dy - sum_dy / n - c * (m.rstd * sum_dyx / n)))
    dparams = {"scale": sum_dyx.sum((0, 1)), "shift": sum_dy.sum((0, 1))}
    return _as(params, dparams), reshaped(dx, *x.shape).astype(x.dtype)


def instance_norm(*, eps: float = 1e-5) -> Layer:
    """Channels normalised over their positions; see `instance_norm_forward`. The scale starts at 1, the shift at 0."""
    return _layer("instance_norm", instance_norm_forward, instance_norm_backward, ("scale", "shift"), eps)


# ---------------------------------------------------------------- shared by all


def _layer(who: str, forward: Callable, backward: Callable, names: tuple[str, ...], eps: float) -> Layer:
    """The pair as a Layer: scale 1 and shift 0, one of each per feature."""
    positive(who, "eps", eps)

    def init(key, in_shape):
        if not in_shape:
            raise ValueError(f"{who}: in_shape is (), expected a shape whose last axis is the features")
        start = {"scale": jnp.ones, "shift": jnp.zeros}
        return in_shape, {name: start[name](in_shape[-1]) for name in names}

    return from_pair(functools.partial(forward, eps=eps), backward, init, name=who)


def _check(who: str, params: dict, x, names: tuple[str, ...], eps: float) -> jax.Array:
    """x as an array; ValueError where it does not fit the parameters."""
    positive(who, "eps", eps)
    x = float_array(who, "x", x)
    parameters(who, params, names)
    wrong = [f"{name} has shape {params[name].shape}" for name in names if params[name].shape != x.shape[-1:]]
    if wrong or x.ndim == 0:
        raise ValueError(f"{who}: x has shape {x.shape}, but {', '.join(wrong)}; expected one number for each feature")
    if x.shape[-1] == 0:
        raise ValueError(f"{who}: x has shape {x.shape}, expected at least one feature")
    return x


def _wide(x: jax.Array) -> jax.Array:
    """x in the dtype of the calculation."""
    return x.astype(at_least_float32(x.dtype))


def _wide_dy(who: str, dy, x: jax.Array) -> jax.Array:
    """dy, checked, in the dtype of the calculation."""
    return cotangent(who, "dy", dy, "x", x.shape, at_least_float32(x.dtype))


def _row(p: jax.Array, x: jax.Array) -> jax.Array:
    """A parameter (C,) shaped to broadcast with x: (1, ..., 1, C), in the dtype of the calculation."""
    return p.astype(at_least_float32(x.dtype)).reshape((1,) * (x.ndim - 1) + p.shape)


def _mean_over_c(scale: jax.Array, v: jax.Array) -> jax.Array:
    """mean_C(scale ⊙ v), as the product v @ scale: on CPUs XLA makes that faster, and leaner, than a sum over rows."""
    return jnp.matmul(v, scale.reshape(-1), precision="highest")[..., None] / v.shape[-1]


def _as(params: dict, dparams: dict) -> dict:
    """The gradients in the parameters' own dtypes."""
    return {name: dparams[name].astype(p.dtype) for name, p in params.items()}
