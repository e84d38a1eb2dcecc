"""Gated multilayer perceptrons: one half of the hidden layer decides how much of the other passes.

Shapes: ... any leading axes (batch first), D features, F hidden neurons.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxnn._checks import cotangent, float_array, parameters, random_key, whole
from jaxnn._parallel import sharding_like
from jaxnn.activations import Activation, get_activation
from jaxnn.initializers import get_initializer
from jaxnn.layer import Layer, from_pair


def gated_mlp_forward(
    params: dict, x: jax.Array, *, activation: str | Activation = "silu"
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    """A multilayer perceptron whose hidden layer is a product; without biases.

    g = x wg,  u = x wu,  h = f(g) ⊙ u,  y = h wd
    dh = dy wdᵀ,  du = dh ⊙ f(g),  dg = dh ⊙ u ⊙ f'(g)
    dwd = hᵀ dy,  dwu = xᵀ du,  dwg = xᵀ dg,  dx = dg wgᵀ + du wuᵀ

    params {"wg": (D, F), "wu": (D, F), "wd": (F, D)}; x and y (..., D), all of one dtype. f is silu in SwiGLU, gelu_erf
    or gelu_tanh in GEGLU. Cached: x, g and u; h is recomputed.
    Source: Shazeer 2020 (arXiv:2002.05202).
    """
    x = _check(params, x)
    g, u = x @ params["wg"], x @ params["wu"]
    return (get_activation(activation).value(g) * u) @ params["wd"], (x, g, u)


def gated_mlp_backward(
    params: dict, cache, dy: jax.Array, *, activation: str | Activation = "silu"
) -> tuple[dict[str, jax.Array], jax.Array]:
    """dh = dy wdᵀ,  du = dh ⊙ f(g),  dg = dh ⊙ u ⊙ f'(g);  each dw = inputᵀ doutput,  dx = dg wgᵀ + du wuᵀ."""
    x, g, u = cache
    dy = cotangent("gated_mlp_backward", "dy", dy, "x", x.shape, x.dtype)
    f = get_activation(activation)
    fg = f.value(g)
    dh = dy @ params["wd"].T
    du, dg = dh * fg, dh * u * f.derivative(g)
    batch = tuple(range(x.ndim - 1))
    dparams = {
        "wg": jnp.tensordot(x, dg, (batch, batch), out_sharding=sharding_like(params["wg"], x)),
        "wu": jnp.tensordot(x, du, (batch, batch), out_sharding=sharding_like(params["wu"], x)),
        "wd": jnp.tensordot(fg * u, dy, (batch, batch), out_sharding=sharding_like(params["wd"], x)),
    }
    return dparams, dg @ params["wg"].T + du @ params["wu"].T


def gated_mlp(
    n_hidden: int,
    *,
    activation: str | Activation = "silu",
    initializer: str | Callable[..., jax.Array] = "lecun_normal",
) -> Layer:
    """A gated multilayer perceptron, SwiGLU by default; see `gated_mlp_forward` for the formulas.

    activation "gelu_tanh" or "gelu_erf" makes it GEGLU, "sigmoid" the plain GLU. With n_hidden = 8/3 D it has as many
    weights as a plain perceptron with 4 D hidden neurons.
    Raises ValueError if n_hidden < 1 or a name is unknown, and where x does not fit the weights.
    """
    whole("gated_mlp", "n_hidden", n_hidden, least=1)
    f, draw = get_activation(activation), get_initializer(initializer)

    def init(key, in_shape):
        random_key("gated_mlp", key)
        if not in_shape:
            raise ValueError("gated_mlp: in_shape is (), expected a shape whose last axis is the features")
        g, u, d = jax.random.split(key, 3)
        n = in_shape[-1]
        return in_shape, {"wg": draw(g, (n, n_hidden)), "wu": draw(u, (n, n_hidden)), "wd": draw(d, (n_hidden, n))}

    return from_pair(
        lambda params, x: gated_mlp_forward(params, x, activation=f),
        lambda params, cache, dy: gated_mlp_backward(params, cache, dy, activation=f),
        init,
        name="gated_mlp",
    )


def _check(params, x):
    """x as an array; ValueError naming everything that does not fit."""
    parameters("gated_mlp", params, ("wg", "wu", "wd"))
    x, shapes = float_array("gated_mlp", "x", x), {name: w.shape for name, w in params.items()}
    wrong = []
    if len(shapes["wg"]) != 2 or shapes["wu"] != shapes["wg"] or shapes["wd"] != shapes["wg"][::-1]:
        wrong.append(f"the weights have shapes {shapes}, expected wg and wu (D, F), wd (F, D)")
    elif x.ndim == 0 or x.shape[-1] != shapes["wg"][0]:
        wrong.append(f"x has shape {x.shape}, but wg of shape {shapes['wg']} expects {shapes['wg'][0]} features")
    if len({x.dtype, *(w.dtype for w in params.values())}) > 1:
        wrong.append(f"x is {x.dtype}, the weights {[str(w.dtype) for w in params.values()]}: cast them to one dtype")
    if wrong:
        raise ValueError("gated_mlp: " + "; ".join(wrong))
    return x
