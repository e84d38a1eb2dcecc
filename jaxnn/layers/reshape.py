"""The same numbers in a different arrangement; the batch stays the first axis."""

import math
from collections.abc import Sequence

import jax

from jaxnn._checks import array, cotangent, remember, whole_each
from jaxnn._parallel import reshaped
from jaxnn.layer import Layer, from_pair


def reshape_forward(params: dict, x, shape: Sequence[int]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """All axes but the batch, reshaped.

    y (B, *shape) = x (B, ...) reshaped,  dx = dy reshaped back

    One entry of shape may be -1: it is inferred from the others. Raises ValueError for sizes that do not fit.
    Cached: the shapes of x and y, and x's dtype.
    """
    x = array("reshape", "x", x)
    y = reshaped(x, *_reshaped(x.shape, shape))
    return y, (remember(x), remember(y))


def reshape_backward(params: dict, cache, dy) -> tuple[dict[str, jax.Array], jax.Array]:
    """dx (B, ...) = dy (B, *shape) reshaped back."""
    like_x, like_y = cache
    dy = cotangent("reshape_backward", "dy", dy, "the layer's output", like_y.shape[1:], like_y.dtype)
    return {}, reshaped(dy, *like_x.shape[1:])


def reshape(shape: Sequence[int]) -> Layer:
    """Every example reshaped; shape is without the batch axis: reshape((8, -1)); see `reshape_forward`."""
    shape = whole_each("reshape", "shape", shape, least=-1)
    if shape.count(-1) > 1:
        raise ValueError(f"reshape: shape {shape}, expected sizes of 0 or greater, and at most one -1")
    return from_pair(
        lambda params, x: reshape_forward(params, x, shape),
        reshape_backward,
        lambda key, in_shape: (_reshaped(in_shape, shape), {}),
        name="reshape",
    )


def _reshaped(in_shape, shape):
    """The whole new shape, batch axis first; worked out by hand, since an empty batch leaves a -1 undetermined."""
    if not in_shape:
        raise ValueError("reshape: x is a scalar, expected an array with the batch as its first axis")
    size, known = math.prod(in_shape[1:]), math.prod(n for n in shape if n != -1)
    if -1 in shape and known and size % known == 0:
        shape = tuple(size // known if n == -1 else n for n in shape)
    if math.prod(shape) != size or -1 in shape:
        raise ValueError(
            f"reshape: an example of shape {tuple(in_shape[1:])} has {size} entries, which do not fit {shape}"
        )
    return (in_shape[0], *shape)


def transpose_forward(params: dict, x, axes: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    """All axes but the batch, reordered.

    y = x with its axes in the order (0, *axes),  dx = dy with them put back

    axes: 1 … n-1 in any order, for x of rank n; anything else is a ValueError. Cached: y's shape and dtype.
    """
    x = array("transpose", "x", x)
    y = x.transpose(_order(x.ndim, axes))
    return y, remember(y)


def transpose_backward(params: dict, like, dy, axes: Sequence[int]) -> tuple[dict[str, jax.Array], jax.Array]:
    """dx = dy with its axes put back: axis axes[i] of dx is axis i + 1 of dy."""
    dy = cotangent("transpose_backward", "dy", dy, "the layer's output", like.shape[1:], like.dtype)
    order = _order(dy.ndim, axes)
    return {}, dy.transpose([order.index(i) for i in range(dy.ndim)])


def transpose(axes: Sequence[int]) -> Layer:
    """Every example with its axes reordered: transpose((2, 1)) turns (B, T, D) into (B, D, T).

    axes counts the batch as axis 0, which stays where it is; see `transpose_forward`.
    """
    axes = whole_each("transpose", "axes", axes, least=0)
    return from_pair(
        lambda params, x: transpose_forward(params, x, axes),
        lambda params, cache, dy: transpose_backward(params, cache, dy, axes),
        lambda key, in_shape: (tuple(in_shape[i] for i in _order(len(in_shape), axes)), {}),
        name="transpose",
    )


def _order(rank, axes):
    if sorted(axes) != list(range(1, rank)):
        raise ValueError(
            f"transpose: axes {tuple(axes)} for an array of rank {rank}, expected {list(range(1, rank))} in any order: "
            f"all axes but the batch"
        )
    return (0, *axes)
