"""Dense layers: the textbook neuron, and the layer of n of them.

Shapes: ... any leading axes (batch first), n_in features, n_out features.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxnn._checks import cotangent, float_array, parameters, random_key, whole
from jaxnn._parallel import sharding_like
from jaxnn.activations import Activation, get_activation
from jaxnn.initializers import get_initializer
from jaxnn.layer import Layer, from_pair


def neuron_forward(
    params: dict, x: jax.Array, *, activation: str | Activation = "sigmoid"
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """A neuron, or n_out of them side by side: a weighted sum, a bias, an activation.

    z = x @ w + b,  a = f(z)
    δ = da ⊙ f'(z),  dw = xᵀ δ,  db = Σ_batch δ,  dx = δ wᵀ

    params {"w", "b"}: w (n_in,) and b () for one neuron, w (n_in, n_out) and b (n_out,) for several.
    x (..., n_in); a (...) for one neuron, (..., n_out) for several. Cached: x and z.

    >>> beach = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}
    >>> a, cache = neuron_forward(beach, jnp.array([[1.0, 0.0], [0.0, 1.0]]))
    >>> a
    Array([0.81757..., 0.18242...], dtype=float32)
    """
    x = _check("neuron_forward", params, x, ranks=(1, 2))
    z = x @ params["w"]
    z = z + jnp.broadcast_to(params["b"], z.shape)
    return get_activation(activation).value(z), (x, z)


def neuron_backward(
    params: dict, cache, da: jax.Array, *, activation: str | Activation = "sigmoid"
) -> tuple[dict[str, jax.Array], jax.Array]:
    """δ = da ⊙ f'(z),  dw = xᵀ δ,  db = Σ_batch δ,  dx = δ wᵀ; da has a's shape."""
    x, z = cache
    da = cotangent("neuron_backward", "da", da, "the neuron's output", z.shape, z.dtype)
    delta = da * get_activation(activation).derivative(z)
    batch = tuple(range(x.ndim - 1))
    dw = jnp.tensordot(x, delta, (batch, batch), out_sharding=sharding_like(params["w"], x))
    dx = jnp.tensordot(delta, params["w"], (-1, 1) if params["w"].ndim == 2 else 0)
    return {"w": dw, "b": delta.sum(batch)}, dx


def dense_forward(params: dict, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """An affine map of the last axis.

    y = x @ w + b
    dw = xᵀ dy,  db = Σ_batch dy,  dx = dy wᵀ

    params {"w": (n_in, n_out), "b": (n_out,)}; x (..., n_in), y (..., n_out), all of one dtype. Cached: x.
    """
    x = _check("dense", params, x, ranks=(2,))
    y = x @ params["w"]
    return y + jnp.broadcast_to(params["b"], y.shape), x


def dense_backward(params: dict, x: jax.Array, dy: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
    """dw = xᵀ dy,  db = Σ_batch dy,  dx = dy wᵀ."""
    y_shape = (*x.shape[:-1], params["w"].shape[-1])
    dy = cotangent("dense_backward", "dy", dy, "the layer's output", y_shape, x.dtype)
    batch = tuple(range(x.ndim - 1))
    dw = jnp.tensordot(x, dy, (batch, batch), out_sharding=sharding_like(params["w"], x))
    return {"w": dw, "b": dy.sum(batch)}, dy @ params["w"].T


def dense(n_out: int, *, initializer: str | Callable[..., jax.Array] = "lecun_normal") -> Layer:
    """A layer of n_out linear neurons; see `dense_forward` for the formulas.

    The weights come from the initializer (lecun_normal keeps the variance of a linear layer), the biases are 0.
    Raises ValueError if n_out < 1 or the initializer is unknown, and where x does not fit the weights.
    """
    whole("dense", "n_out", n_out, least=1)
    draw = get_initializer(initializer)

    def init(key, in_shape):
        random_key("dense", key)
        if not in_shape:
            raise ValueError("dense: in_shape is (), expected a shape whose last axis is the features")
        w = draw(key, (in_shape[-1], n_out))
        return (*in_shape[:-1], n_out), {"w": w, "b": jnp.zeros(n_out, w.dtype)}

    return from_pair(dense_forward, dense_backward, init, name="dense")


def _check(who, params, x, ranks):
    """x as an array; ValueError naming everything that does not fit."""
    parameters(who, params, ("w", "b"))
    w, b, x = params["w"], params["b"], float_array(who, "x", x)
    wrong = []
    if w.ndim not in ranks:
        wrong.append(f"w has shape {w.shape}, expected rank {' or '.join(map(str, ranks))}")
    else:
        if x.ndim == 0 or x.shape[-1] != w.shape[0]:
            found = f"{x.shape[-1]} features" if x.ndim else "no feature axis"
            wrong.append(f"x has {found} (shape {x.shape}) but w expects {w.shape[0]} (shape {w.shape})")
        if b.shape != w.shape[1:]:
            wrong.append(f"b has shape {b.shape} but w of shape {w.shape} needs {w.shape[1:]}")
    if not x.dtype == w.dtype == b.dtype:
        wrong.append(f"x is {x.dtype}, w {w.dtype}, b {b.dtype}: cast them to one dtype")
    if wrong:
        raise ValueError(f"{who}: " + "; ".join(wrong))
    return x
