"""How the variance of activations and gradients grows or fades with depth, for each initializer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from jaxnn import plots
from jaxnn.initializers import INITIALIZERS
from jaxnn.models.mlp import mlp_backward, mlp_forward


def layer_variances(key: jax.Array, weights: jax.Array, activation: str, batch: int):
    """(forward, backward): the variance of a^0 … a^L, and of ∂L/∂a^L … ∂L/∂a^0, for x and ∂L/∂a^L of variance 1.

    weights (L, n, n); the biases are 0.
    """
    depth, n, _ = weights.shape
    x_key, dy_key = jax.random.split(key)
    params = [{"w": w, "b": jnp.zeros(n)} for w in weights]
    y, cache = mlp_forward(params, jax.random.normal(x_key, (batch, n)), [activation] * depth)
    forward = [a.var() for a, _ in cache] + [y.var()]
    da = jax.random.normal(dy_key, y.shape)
    backward = [da.var()]
    for l in reversed(range(depth)):
        _, da = mlp_backward(params[l : l + 1], cache[l : l + 1], da, [activation])
        backward.append(da.var())
    return np.array(forward), np.array(backward)


def draw(quick: bool) -> tuple[Figure, str]:
    depth, n = (10, 64) if quick else (30, 256)
    keys, data_key = jax.random.split(jax.random.key(0), depth), jax.random.key(1)
    lines = {}
    for name in ("xavier_normal", "he_normal") if quick else INITIALIZERS:
        weights = jax.lax.map(functools.partial(INITIALIZERS[name], shape=(n, n)), keys)
        for activation in ("relu", "tanh"):
            forward, backward = layer_variances(data_key, weights, activation, batch=n)
            lines.setdefault(f"{activation}: activations, forward", {})[name] = forward
            lines.setdefault(f"{activation}: gradients, backward", {})[name] = backward
    ratio = {name: line[-1] / line[1] for name, line in lines["relu: activations, forward"].items() if line[-1] > 0}
    best = min(ratio, key=lambda name: abs(np.log(ratio[name])))
    finding = f"relu keeps its variance best from {best}: ratio {ratio[best]:.2f} over {depth} layers"
    return plots.init_variance(lines), finding
