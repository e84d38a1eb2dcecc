"""Flatten: one row of features for each example."""

import math

from jaxnn.layer import Layer, layer


def flatten_forward(params: dict, x):
    """All axes but the first joined into one.

    y (B, n) = x (B, ...) reshaped, dx = dy reshaped back

    Cached: an empty slice of x, whose shape is all that backward needs.
    """
    if x.ndim == 0:
        raise ValueError("flatten: x is a scalar, expected an array with the batch as its first axis")
    return x.reshape(x.shape[0], math.prod(x.shape[1:])), x[:0]


def flatten_backward(params: dict, empty, dy):
    """dx (B, ...) = dy (B, n) reshaped."""
    return {}, dy.reshape(dy.shape[0], *empty.shape[1:])


def flatten() -> Layer:
    """All axes but the first joined into one; see `flatten_forward`."""
    return layer(
        flatten_forward, flatten_backward, lambda key, in_shape: ((in_shape[0], math.prod(in_shape[1:])), {})
    )
