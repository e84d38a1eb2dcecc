"""A stack of layer norm, dense, activation and dropout that keeps little more than one array per layer.

Shapes: L layers, ... any leading axes (batch first), D features.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn._after import after
from jaxnn._checks import cotangent, float_array, fraction, parameters, positive, random_key, sizes, whole
from jaxnn._parallel import reshaped
from jaxnn.activations import Activation, get_activation, relu
from jaxnn.initializers import get_initializer
from jaxnn.layer import Layer
from jaxnn.layers import dense_backward, dense_forward, dropout_forward, layer_norm_backward, layer_norm_forward
from jaxnn.layers.dropout import drop


class Kept(NamedTuple):
    """What is kept of a layer: enough for its output and its slope."""

    a: jax.Array  # (..., D) z, the input of the activation; where that is relu, the layer's output instead
    bits: jax.Array | None  # (..., ⌈D/8⌉) uint8, one bit per entry: 1 = not dropped; (0,) for relu; None = no dropout


def dense_stack_forward(
    params: Any,
    x: jax.Array,
    *,
    activation: str | Activation = "gelu_tanh",
    dropout: float = 0.0,
    key: jax.Array | None = None,
    eps: float = 1e-5,
) -> tuple[jax.Array, tuple]:
    """L times layer norm, dense, activation and dropout.

    x_0 = x,   z_l = layer_norm(x_l) w_l + b_l,   x_(l+1) = drop(f(z_l)),   y = x_L            l = 0 … L-1
    dz_l = dx_(l+1) ⊙ drop(f'(z_l)),   dw_l = layer_norm(x_l)ᵀ dz_l,   db_l = Σ_batch dz_l
    dscale_l, dshift_l, dx_l: those of `jaxnn.layers.layer_norm_forward` at x_l, for dz_l w_lᵀ

    drop(v) = v / (1 - p) where kept, else 0, with p = dropout; layer l draws what is kept with fold_in(key, l). Without
    a key nothing is dropped.
    params: {"scale", "shift", "b": (L, D), "w": (L, D, D)} runs in a loop; a tuple of L dicts {"scale", "shift", "b":
    (D,), "w": (D, D)} is written out layer by layer. x and y (..., D), all of one dtype.

    Cached: x; for each layer z, and one bit for each entry that might be dropped. The backward recomputes the layers'
    inputs, x_(l+1) = drop(f(z_l)), and their norms, but no matrix product. With relu, x_(l+1) is cached instead: it is
    0 where z is negative and where dropped, and so is the slope. `jax.grad` keeps 5 to 10 arrays per layer.
    Raises ValueError where shapes or dtypes do not fit, and unless 0 <= dropout < 1 and eps > 0.
    Numerics: those of the four rules it is made of. When written out, each recomputation and each draw must wait for
    its turn, or XLA keeps all of them at once: each is made to depend on what comes before by adding 0
    (`jaxnn._after`).
    Source: Chen et al. 2016, Training deep nets with sublinear memory cost (arXiv:1604.06174).
    """
    f, x = get_activation(activation), _check(params, x, dropout, eps)

    def body(x, step):
        l, p = step
        norm, dense = _parts(p)
        z, _ = dense_forward(dense, layer_norm_forward(norm, x, eps=eps)[0])
        y, bits = f.value(z), None
        if key is not None and dropout > 0:
            y, (keep, _) = dropout_forward(jax.random.fold_in(key, after(x, jnp.uint32(l))), y, dropout)
            bits = jnp.packbits(keep, -1)
        if f.value is relu:
            return y, Kept(y, None if bits is None else jnp.zeros(0, jnp.uint8))
        return y, Kept(z, bits)

    if isinstance(params, dict):
        y, kept = jax.lax.scan(body, x, (jnp.arange(len(params["w"])), params))
        return y, (x, kept)
    y, kept = x, []
    for step in enumerate(params):
        y, one = body(y, step)
        kept.append(one)
    return y, (x, tuple(kept))


def dense_stack_backward(
    params: Any,
    cache,
    dy: jax.Array,
    *,
    activation: str | Activation = "gelu_tanh",
    dropout: float = 0.0,
    eps: float = 1e-5,
) -> tuple[Any, jax.Array]:
    """dz_l = dx_(l+1) ⊙ drop(f'(z_l)), dw_l = layer_norm(x_l)ᵀ dz_l, and so on, from l = L - 1 down to 0."""
    x, kept = cache
    dy = cotangent("dense_stack_backward", "dy", dy, "x", x.shape, x.dtype)
    f = get_activation(activation)

    def again(one):  # (x_(l+1), drop(f'(z_l)))
        if f.value is relu:
            slope = f.derivative(one.a)
            return one.a, slope if one.bits is None else slope / (1 - dropout)
        y, slope = f.value(one.a), f.derivative(one.a)
        if one.bits is None:
            return y, slope
        bits = reshaped(jnp.unpackbits(reshaped(one.bits, -1)), *x.shape[:-1], 8 * one.bits.shape[-1])
        keep = bits[..., : x.shape[-1]].astype(bool)
        return drop(keep, y, dropout), drop(keep, slope, dropout)

    def through(p, x, dz):  # (the gradient of p, dx_l)
        norm, dense = _parts(p)
        a, of_norm = layer_norm_forward(norm, x, eps=eps)
        ddense, da = dense_backward(dense, a, dz)
        dnorm, dx = layer_norm_backward(norm, of_norm, da)
        return {**dnorm, **ddense}, dx

    if isinstance(params, dict):
        n = len(params["w"])

        def kept_of(l):
            return jax.tree.map(lambda leaf: leaf[l], kept)

        def body(carry, step):
            dx, slope = carry
            l, p = step
            below, slope_below = again(kept_of(jnp.maximum(l - 1, 0)))
            dp, dx = through(p, jnp.where(l > 0, below, x), dx * slope)
            return (dx, slope_below), dp

        carry = dy, again(kept_of(n - 1))[1]
        (dx, _), dparams = jax.lax.scan(body, carry, (jnp.arange(n), params), reverse=True)
        return dparams, dx

    dparams, dx, slope = [], dy, again(kept[-1])[1]
    for l in reversed(range(len(params))):
        dz, below = dx * slope, x
        if l > 0:
            below, slope = again(jax.tree.map(lambda leaf, dz=dz: after(dz, leaf), kept[l - 1]))
        dp, dx = through(params[l], below, dz)
        dparams.append(dp)
    return tuple(reversed(dparams)), dx


def dense_stack(
    n_layers: int,
    *,
    activation: str | Activation = "gelu_tanh",
    dropout: float = 0.0,
    unroll: bool = False,
    initializer: str | Callable[..., jax.Array] = "lecun_normal",
    eps: float = 1e-5,
) -> Layer:
    """A stack of layer norm, dense, activation and dropout that needs little memory; see `dense_stack_forward`.

    The same function as repeat(serial(layer_norm(), dense(D), activation(…), dropout(p)), n_layers) from
    `jaxnn.combinators`, with a fifth of the memory. Dropout is active with Ctx(train=True, key=…). unroll: write the
    layers out instead of looping. The weights come from the initializer, scale is 1, shift and b are 0.
    Raises ValueError unless n_layers >= 1, 0 <= dropout < 1 and eps > 0, and when train is True with dropout > 0 and no
    key.
    """
    whole("dense_stack", "n_layers", n_layers, least=1)
    fraction("dense_stack", "dropout", dropout)
    positive("dense_stack", "eps", eps)
    f, draw = get_activation(activation), get_initializer(initializer)

    def init_layer(key, n):
        w = draw(key, (n, n))
        return {"scale": jnp.ones(n, w.dtype), "shift": jnp.zeros(n, w.dtype), "w": w, "b": jnp.zeros(n, w.dtype)}

    def init(key, in_shape, /):
        random_key("dense_stack", key)
        in_shape = sizes("dense_stack", in_shape, least_rank=1)
        keys = jax.random.split(key, n_layers)
        if unroll:
            return in_shape, tuple(init_layer(key, in_shape[-1]) for key in keys), ()
        return in_shape, jax.vmap(lambda key: init_layer(key, in_shape[-1]))(keys), ()

    def forward(params, state, x, ctx, /):
        if ctx.train and dropout > 0 and ctx.key is None:
            raise ValueError("dense_stack: train=True needs random numbers; pass Ctx(train=True, key=…)")
        y, cache = dense_stack_forward(
            params, x, activation=f, dropout=dropout, key=ctx.key if ctx.train else None, eps=eps
        )
        return y, state, cache

    backward = functools.partial(dense_stack_backward, activation=f, dropout=dropout, eps=eps)
    return Layer(init, forward, backward, "dense_stack")


def _parts(p: dict) -> tuple[dict, dict]:
    """A layer's parameters: the norm's and the matrix product's."""
    return {name: p[name] for name in ("scale", "shift")}, {name: p[name] for name in ("w", "b")}


def _check(params, x, dropout, eps):
    """x as an array; ValueError naming everything that does not fit."""
    fraction("dense_stack", "dropout", dropout)
    positive("dense_stack", "eps", eps)
    x = float_array("dense_stack", "x", x)
    stacked = isinstance(params, dict)
    if not stacked and (not isinstance(params, tuple | list) or not params):
        raise ValueError(f"dense_stack: params is {params}, expected a dict, or a tuple of dicts, one layer or more")
    layers = [params] if stacked else list(params)
    for i, p in enumerate(layers):
        parameters("dense_stack" if stacked else f"dense_stack, layer {i}", p, ("scale", "shift", "w", "b"))
    one = x.shape[-1:]
    wrong = []
    for i, p in enumerate(layers):
        many = p["w"].shape[:1] if stacked else ()
        for name, shape in {"scale": one, "shift": one, "w": one * 2, "b": one}.items():
            if p[name].shape != (*many, *shape) or many == (0,):
                expected = (*(("L",) if stacked else ()), *shape)
                wrong.append(f"{name}{'' if stacked else f' of layer {i}'} has shape {p[name].shape}, not {expected}")
    dtypes = {x.dtype, *(leaf.dtype for leaf in jax.tree.leaves(params))}
    if len(dtypes) > 1:
        wrong.append(f"x and params have the dtypes {', '.join(sorted(map(str, dtypes)))}: cast them to one")
    if x.ndim == 0 or wrong:
        raise ValueError(f"dense_stack: x has shape {x.shape}" + "".join(f"; {one}" for one in wrong))
    return x
