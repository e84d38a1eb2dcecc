"""Dropout: train on random sub-networks, evaluate their mean."""

import jax
import jax.numpy as jnp

from jaxnn._checks import cotangent, float_array, fraction, random_key, remember
from jaxnn._parallel import bernoulli
from jaxnn.layer import Layer


def dropout_forward(key: jax.Array, x: jax.Array, probability: float) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Drop each entry with the given probability p and scale up the others, so that the mean is x.

    y_i  = x_i / (1 - p) where kept, else 0
    dx_i = dy_i / (1 - p) where kept, else 0

    x of any shape; 0 <= probability < 1, otherwise a ValueError. Cached: the bool array of what is kept, of x's
    shape, and x's dtype.
    Numerics: `where`, not a product with the mask: an infinite entry that is dropped is 0, not NaN.
    Source: Srivastava et al. 2014, in the inverted form: nothing remains to be done at evaluation.

    >>> y, cache = dropout_forward(jax.random.key(0), jnp.ones(4), probability=0.5)
    >>> y
    Array([0., 0., 2., 2.], dtype=float32)
    """
    fraction("dropout", "probability", probability)
    random_key("dropout", key)
    x = float_array("dropout", "x", x)
    keep = bernoulli(key, jnp.float32(1 - probability), x)  # float32: the same draw under enable_x64
    return drop(keep, x, probability), (keep, remember(x))


def dropout_backward(cache, dy: jax.Array, probability: float) -> jax.Array:
    """dx_i = dy_i / (1 - p) where kept, else 0."""
    keep, like = cache
    return drop(keep, cotangent("dropout_backward", "dy", dy, "x", keep.shape, like.dtype), probability)


def drop(keep: jax.Array, v: jax.Array, probability: float) -> jax.Array:
    """v_i / (1 - p) where kept, else 0."""
    return jnp.where(keep, v / (1 - probability), 0)


def dropout(probability: float) -> Layer:
    """Dropout as a layer: active with Ctx(train=True, key=…), the identity otherwise.

    The formulas are those of `dropout_forward`; in evaluation and at probability 0, y = x and dx = dy.
    Raises ValueError unless 0 <= probability < 1, and when train is True without a key.
    """
    fraction("dropout", "probability", probability)

    def init(key, in_shape, /):
        return in_shape, {}, ()

    def forward(params, state, x, ctx, /):
        x = float_array("dropout", "x", x)
        if not ctx.train or probability == 0:
            return x, state, (None, remember(x))
        if ctx.key is None:
            raise ValueError("dropout: train=True needs random numbers; pass Ctx(train=True, key=jax.random.key(…))")
        y, cache = dropout_forward(ctx.key, x, probability)
        return y, state, cache

    def backward(params, cache, dy, /):
        keep, like = cache
        if keep is None:
            return {}, cotangent("dropout", "dy", dy, "x", like.shape[1:], like.dtype)
        return {}, dropout_backward(cache, dy, probability)

    return Layer(init, forward, backward, "dropout")
