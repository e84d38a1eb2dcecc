"""Flatten: one row of features for each example."""

import math

import jax

from jaxnn._checks import array, cotangent, remember, sizes
from jaxnn._parallel import reshaped
from jaxnn.layer import Layer, from_pair


def flatten_forward(params: dict, x) -> tuple[jax.Array, jax.Array]:
    """All axes but the first joined into one.

    y (B, n) = x (B, ...) reshaped, dx = dy reshaped back

    Cached: x's shape and dtype.
    """
    x = array("flatten", "x", x)
    if x.ndim == 0:
        raise ValueError("flatten: x is a scalar, expected an array with the batch as its first axis")
    return reshaped(x, x.shape[0], math.prod(x.shape[1:])), remember(x)


def flatten_backward(params: dict, like, dy) -> tuple[dict[str, jax.Array], jax.Array]:
    """dx (B, ...) = dy (B, n) reshaped."""
    shape = like.shape[1:]
    y_shape = (shape[0], math.prod(shape[1:]))
    dy = cotangent("flatten_backward", "dy", dy, "the layer's output", y_shape, like.dtype)
    return {}, reshaped(dy, *shape)


def flatten() -> Layer:
    """All axes but the first joined into one; see `flatten_forward`."""

    def init(key, in_shape):
        n_examples, *others = sizes("flatten", in_shape, least_rank=1)
        return (n_examples, math.prod(others)), {}

    return from_pair(flatten_forward, flatten_backward, init, name="flatten")
