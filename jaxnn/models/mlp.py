"""The multilayer perceptron, twice: backpropagation written out on one screen, and as a composition of layers.

Shapes: B batch, n_0 inputs, n_l neurons in layer l.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxnn._checks import cotangent, float_array, whole_each
from jaxnn._parallel import sharding_like
from jaxnn.activations import Activation, get_activation
from jaxnn.combinators import serial
from jaxnn.layer import Layer
from jaxnn.layers import activation as activation_layer
from jaxnn.layers import dense, dense_forward, flatten
from jaxnn.layers import dropout as dropout_layer


def mlp_forward(
    params: Sequence[dict], x: jax.Array, activations: Sequence[str | Activation]
) -> tuple[jax.Array, tuple]:
    """L dense layers, each with its own activation.

    a^0 = x;  z^l = a^(l-1) @ w^l + b^l,  a^l = f^l(z^l),  l = 1 … L;  y = a^L

    params: a sequence of {"w": (n_(l-1), n_l), "b": (n_l,)}; x (B, n_0), y (B, n_L); activations: one per layer.
    Cached: (a^(l-1), z^l) of each layer.

    >>> import jax.numpy as jnp
    >>> params = [{"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}, {"w": jnp.ones((3, 1)), "b": jnp.zeros(1)}]
    >>> y, cache = mlp_forward(params, jnp.array([[1.0, 2.0]]), ["relu", "identity"])
    >>> y
    Array([[9.]], dtype=float32)
    """
    if not isinstance(params, tuple | list) or not params:
        raise ValueError(f"mlp_forward: params is {params}, expected a list or tuple of one dict per layer")
    if len(activations) != len(params):
        raise ValueError(f"mlp_forward: {len(params)} layers but {len(activations)} activations; give one per layer")
    x = float_array("mlp_forward", "x", x)
    if x.ndim != 2:
        raise ValueError(f"mlp_forward: x has shape {x.shape}, expected (batch, features)")
    a, cache = x, []
    for p, f in zip(params, activations, strict=True):
        z, _ = dense_forward(p, a)
        cache.append((a, z))
        a = get_activation(f).value(z)
    return a, tuple(cache)


def mlp_backward(
    params: Sequence[dict], cache, dy: jax.Array, activations: Sequence[str | Activation]
) -> tuple[Sequence[dict[str, jax.Array]], jax.Array]:
    """Backpropagation: from ∂L/∂y to the gradients of every layer's weights and biases, and of x.

    δ^l = ∂L/∂z^l:    δ^L = dy ⊙ f^L'(z^L),   δ^(l-1) = (δ^l w^lᵀ) ⊙ f^(l-1)'(z^(l-1))
    ∂L/∂w^l = a^(l-1)ᵀ δ^l,   ∂L/∂b^l = Σ_batch δ^l,   ∂L/∂x = δ^1 w^1ᵀ

    dy (B, n_L) is the loss's derivative, including its 1/B. Returns (dparams, dx); dparams is a tree like params.
    """
    if not len(params) == len(cache) == len(activations):
        raise ValueError(
            f"mlp_backward: {len(params)} layers, a cache of {len(cache)} and {len(activations)} activations; "
            f"pass those of mlp_forward"
        )
    z = cache[-1][1]
    da, dparams = cotangent("mlp_backward", "dy", dy, "the output", z.shape, z.dtype), []
    for p, (a, z), f in zip(reversed(params), reversed(cache), reversed(activations), strict=True):
        delta = da * get_activation(f).derivative(z)
        dw = jnp.matmul(a.T, delta, out_sharding=sharding_like(p["w"], a))
        dparams.append({"w": dw, "b": delta.sum(0)})
        da = delta @ p["w"].T
    return type(params)(reversed(dparams)), da  # pyright: ignore[reportCallIssue] (a list or a tuple)


def mlp(
    hidden: Sequence[int],
    n_out: int,
    *,
    activation: str | Activation = "relu",
    initializer: str | Callable[..., jax.Array] = "he_normal",
    dropout: float = 0.0,
) -> Layer:
    """A multilayer perceptron as a Layer: for each hidden size dense, activation, dropout; then a dense output.

    The input is flattened, so images (B, 28, 28) and rows (B, 784) both work; the output is linear (logits, or the
    predicted values). dropout: its probability, 0 for no dropout layers.

    >>> out_shape, params, state = mlp((256, 128), 10).init(jax.random.key(0), (1, 28, 28))
    >>> out_shape
    (1, 10)
    """
    layers = [flatten()]
    for n in whole_each("mlp", "hidden", hidden, least=1):
        layers += [dense(n, initializer=initializer), activation_layer(activation)]
        if dropout != 0:
            layers.append(dropout_layer(dropout))
    return serial(*layers, dense(n_out, initializer=initializer), name="mlp")
