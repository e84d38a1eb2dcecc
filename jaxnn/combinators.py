"""Layers made of layers. Their backward is the chain rule, written once for all that is built from them.

Each combinator's params (and state, and cache) are those of its layers: a tuple for several, the inner layer's own for
one. Randomness: layer i of several gets the key ctx.fold(i), so that appending a layer changes nothing before it.
"""

import contextlib

import jax
import jax.numpy as jnp

from jaxnn._checks import whole
from jaxnn.layer import Layer


@contextlib.contextmanager
def _naming(combinator: str, i: int):
    """Add to an error which layer of the combinator it comes from."""
    try:
        yield
    except ValueError as error:
        error.add_note(f"in layer {i} (counted from 0) of {combinator}")
        raise


def serial(*layers: Layer) -> Layer:
    """One layer after the other.

    y  = f_L(… f_2(f_1(x)))
    dy → dparams_L, then d(f_L's input) → dparams_(L-1), …, and at last dx:  the chain rule from the last to the first

    params, state and cache are tuples, one entry a layer. No layers at all are the identity.
    """

    def init(key, in_shape, /):
        params, states = [], []
        for i, layer in enumerate(layers):
            with _naming("serial", i):
                in_shape, p, s = layer.init(jax.random.fold_in(key, i), in_shape)
            params.append(p)
            states.append(s)
        return in_shape, tuple(params), tuple(states)

    def forward(params, state, x, ctx, /):
        _require_entries("serial", layers, params, state)
        states, caches = [], []
        for i, (layer, p, s) in enumerate(zip(layers, params, state, strict=True)):
            with _naming("serial", i):
                x, s, cache = layer.forward(p, s, x, ctx.fold(i))
            states.append(s)
            caches.append(cache)
        return x, tuple(states), tuple(caches)

    def backward(params, caches, dy, /):
        dparams = []
        for layer, p, cache in zip(reversed(layers), reversed(params), reversed(caches), strict=True):
            dp, dy = layer.backward(p, cache, dy)
            dparams.append(dp)
        return tuple(reversed(dparams)), dy

    return Layer(init, forward, backward)


def residual(inner: Layer) -> Layer:
    """The input added to what the inner layer makes of it.

    y  = x + f(x)
    dx = dy + (f's dx for dy)

    The inner layer must keep the shape; anything else is a ValueError.
    Source: He et al. 2015 (arXiv:1512.03385).
    """

    def init(key, in_shape, /):
        out_shape, params, state = inner.init(key, in_shape)
        _same_shape("residual", in_shape, out_shape)
        return out_shape, params, state

    def forward(params, state, x, ctx, /):
        y, state, cache = inner.forward(params, state, x, ctx)
        _same_shape("residual", x.shape, y.shape)
        return x + y, state, cache

    def backward(params, cache, dy, /):
        dparams, dx = inner.backward(params, cache, dy)
        return dparams, dy + dx

    return Layer(init, forward, backward)


def concat(*layers: Layer) -> Layer:
    """All layers side by side on the same input, their outputs joined along the last axis.

    y  = [f_1(x), …, f_n(x)]
    dx = Σ_i (f_i's dx for dy_i),  dy_i the slice of dy that belongs to f_i

    params, state and cache are tuples, one entry a layer; the cache has the outputs' widths besides. Outputs that
    differ in any other axis, or no layers at all, are a ValueError.
    """
    if not layers:
        raise ValueError("concat: no layers given, expected at least one")

    def init(key, in_shape, /):
        shapes, params, states = [], [], []
        for i, layer in enumerate(layers):
            with _naming("concat", i):
                shape, p, s = layer.init(jax.random.fold_in(key, i), in_shape)
            shapes.append(shape)
            params.append(p)
            states.append(s)
        if len({shape[:-1] for shape in shapes}) > 1:
            raise ValueError(f"concat: the outputs have shapes {shapes}; they may differ in the last axis only")
        return (*shapes[0][:-1], sum(shape[-1] for shape in shapes)), tuple(params), tuple(states)

    def forward(params, state, x, ctx, /):
        _require_entries("concat", layers, params, state)
        ys, states, caches = [], [], []
        for i, (layer, p, s) in enumerate(zip(layers, params, state, strict=True)):
            with _naming("concat", i):
                y, s, cache = layer.forward(p, s, x, ctx.fold(i))
            ys.append(y)
            states.append(s)
            caches.append((cache, jnp.zeros((0, y.shape[-1]))))  # an empty array: its shape remembers the width
        return jnp.concatenate(ys, axis=-1), tuple(states), tuple(caches)

    def backward(params, caches, dy, /):
        dparams, dx, start = [], None, 0
        for layer, p, (cache, width) in zip(layers, params, caches, strict=True):
            stop = start + width.shape[-1]
            dp, dx_i = layer.backward(p, cache, dy[..., start:stop])
            dparams.append(dp)
            dx = dx_i if dx is None else dx + dx_i
            start = stop
        return tuple(dparams), dx

    return Layer(init, forward, backward)


def repeat(inner: Layer, n: int) -> Layer:
    """The same layer n times, each time with parameters of its own: one compiled body, run n times.

    x_0 = x,  x_(i+1) = f(params_i, x_i),  y = x_n;  backward the chain rule, from i = n - 1 down to 0

    params, state and cache are the inner layer's with a new first axis of size n. The inner layer must keep shape and
    dtype. Time of tracing and compiling does not depend on n.
    Raises ValueError unless n >= 1, and if the inner layer changes the shape.
    """
    whole("repeat", "n", n, least=1)

    def init(key, in_shape, /):
        out_shape, _, _ = inner.init(key, in_shape)
        _same_shape("repeat", in_shape, out_shape)
        params, state = jax.vmap(lambda key: inner.init(key, in_shape)[1:])(jax.random.split(key, n))
        return out_shape, params, state

    def forward(params, state, x, ctx, /):
        def body(x, step):
            i, p, s = step
            y, s, cache = inner.forward(p, s, x, ctx.fold(i))
            _same_shape("repeat", x.shape, y.shape)
            return y, (s, cache)

        y, (state, caches) = jax.lax.scan(body, x, (jnp.arange(n), params, state))
        return y, state, caches

    def backward(params, caches, dy, /):
        def body(dy, step):
            p, cache = step
            dp, dx = inner.backward(p, cache, dy)
            return dx, dp

        dx, dparams = jax.lax.scan(body, dy, (params, caches), reverse=True)
        return dparams, dx

    return Layer(init, forward, backward)


def remat(inner: Layer) -> Layer:
    """The same layer with less memory: keep its input, and calculate the cache again when backward needs it.

    y = f(x);  dx = (f's dx for dy, from a cache that forward makes anew from x)

    Cached: state, x and ctx. Costs one more forward pass.
    Numerics: the recomputation must not start before dy is there, or nothing is saved; XLA for CPU drops
    `optimization_barrier`, so x is made to depend on dy by adding min(|dy_0|, 0) = 0 to it. The result is the same bit
    for bit, for an x of -0 too unless its sign matters.
    """

    def forward(params, state, x, ctx, /):
        y, new_state, _ = inner.forward(params, state, x, ctx)
        return y, new_state, (state, x, ctx)

    def backward(params, saved, dy, /):
        state, x, ctx = saved
        x = jax.tree.map(lambda leaf: _after(dy, leaf), x)
        _, _, cache = inner.forward(params, state, x, ctx)
        return inner.backward(params, cache, dy)

    return Layer(inner.init, forward, backward)


def _after(dy, leaf):
    """leaf, not before dy is known."""
    first = jax.tree.leaves(dy)[0]
    if first.size == 0:
        return leaf
    zero = jnp.minimum(jnp.abs(first.reshape(-1)[0]), 0)
    return leaf + zero.astype(leaf.dtype)


def _require_entries(who, layers, params, state):
    if not len(layers) == len(params) == len(state):
        raise ValueError(
            f"{who}: {len(layers)} layers, but params has {len(params)} entries and state {len(state)}; pass what init "
            f"or the last forward gave"
        )


def _same_shape(who, in_shape, out_shape):
    if tuple(in_shape) != tuple(out_shape):
        raise ValueError(
            f"{who}: the inner layer turns shape {tuple(in_shape)} into {tuple(out_shape)}; it must keep it"
        )
