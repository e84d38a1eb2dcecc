"""Activations as layers: elementwise ones by name, softmax and log_softmax over the last axis."""

from jaxnn import activations
from jaxnn._checks import cotangent, float_array
from jaxnn.activations import Activation, get_activation
from jaxnn.layer import Layer, from_pair


def activation(name: str | Activation) -> Layer:
    """An elementwise activation as a layer, by name or as an `Activation` of your own.

    y = f(x),  dx = dy ⊙ f'(x)

    x of any shape. The layer has the activation's name. Cached: x.
    Raises ValueError for an unknown name, naming the nearest known one.
    """
    f = get_activation(name)
    name = name if isinstance(name, str) else "activation"

    def forward(params, x):
        x = float_array(name, "x", x)
        return f.value(x), x

    def backward(params, x, dy):
        return {}, cotangent(name, "dy", dy, "x", x.shape, x.dtype) * f.derivative(x)

    return from_pair(forward, backward, name=name)


def softmax() -> Layer:
    """Probabilities over the last axis; see `jaxnn.activations.softmax_forward`."""
    return from_pair(
        lambda params, x: activations.softmax_forward(x),
        lambda params, p, dp: ({}, activations.softmax_backward(p, dp)),
        name="softmax",
    )


def log_softmax() -> Layer:
    """Log-probabilities over the last axis; see `jaxnn.activations.log_softmax_forward`."""
    return from_pair(
        lambda params, x: activations.log_softmax_forward(x),
        lambda params, y, dy: ({}, activations.log_softmax_backward(y, dy)),
        name="log_softmax",
    )
