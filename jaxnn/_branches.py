"""What combinators of several layers share: layers side by side."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxnn._checks import kind, random_key
from jaxnn.layer import Layer, in_part


def require_layers(who, layers) -> None:
    for i, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise ValueError(f"{who}: argument {i} (counted from 0) is {kind(layer)}, expected a Layer; unpack a list")


def require_entries(who, layers, params, state) -> None:
    for name, tree in (("params", params), ("state", state)):
        if not isinstance(tree, tuple | list):
            raise ValueError(f"{who}: {name} is {kind(tree)}, expected a tuple with an entry for each layer")
    if not len(layers) == len(params) == len(state):
        raise ValueError(
            f"{who}: {len(layers)} layers, but params has {len(params)} entries and state {len(state)}; pass what init "
            f"or the last forward gave"
        )


def require_stacked(who, params, n) -> None:
    for leaf in jax.tree.leaves(params):
        shape = jnp.shape(leaf)
        if shape[:1] != (n,):
            raise ValueError(f"{who}: params has an array of shape {shape}, expected a first axis of size {n}")


class Dealt(NamedTuple):
    """The cache of layers that each had their own x."""

    caches: tuple


class Shared(NamedTuple):
    """The cache of layers that all shared one x."""

    caches: tuple


def side_by_side(who: str, layers: tuple[Layer, ...], with_parts: Callable[..., Layer]) -> Layer:
    if not layers:
        raise ValueError(f"{who}: no layers given, expected at least one")
    require_layers(who, layers)

    def deal(name, x, dealt):
        if dealt and len(x) != len(layers):
            raise ValueError(
                f"{who}: {len(layers)} layers, but {name} is a tuple of {len(x)}; pass one entry per layer, or one "
                f"{name} for all"
            )
        return x if dealt else (x,) * len(layers)

    def init(key, in_shape, /):
        random_key(who, key)
        in_shapes = deal("in_shape", in_shape, isinstance(in_shape, tuple) and isinstance((*in_shape, 0)[0], tuple))
        shapes, params, states = [], [], []
        for i, (layer, in_shape) in enumerate(zip(layers, in_shapes, strict=True)):
            with in_part(who, layers, i):
                shape, p, s = layer.init(jax.random.fold_in(key, i), in_shape)
            shapes.append(shape)
            params.append(p)
            states.append(s)
        return tuple(shapes), tuple(params), tuple(states)

    def forward(params, state, x, ctx, /):
        require_entries(who, layers, params, state)
        xs = deal("x", x, isinstance(x, tuple))
        ys, states, caches = [], [], []
        for i, (layer, p, s, x_i) in enumerate(zip(layers, params, state, xs, strict=True)):
            with in_part(who, layers, i):
                y, s, cache = layer.forward(p, s, x_i, ctx.fold(i))
            ys.append(y)
            states.append(s)
            caches.append(cache)
        return tuple(ys), tuple(states), (Dealt if isinstance(x, tuple) else Shared)(tuple(caches))

    def backward(params, cache, dys, /):
        if not isinstance(dys, tuple | list) or len(dys) != len(layers):
            found = f"has {len(dys)} entries" if isinstance(dys, tuple | list) else f"is {kind(dys)}"
            raise ValueError(f"{who}: dy {found}, expected a tuple with an entry for each of {len(layers)} layers")
        dparams, dxs = [], []
        for i, (layer, p, c, dy) in enumerate(zip(layers, params, cache.caches, dys, strict=True)):
            with in_part(who, layers, i):
                dp, dx = layer.backward(p, c, dy)
            dparams.append(dp)
            dxs.append(dx)
        if isinstance(cache, Dealt):
            return tuple(dparams), tuple(dxs)
        return tuple(dparams), functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), dxs)

    return Layer(init, forward, backward, who, layers, with_parts)


def side_by_side_joined(who, layers, with_parts, joined_shape, join, split) -> Layer:
    """parallel, then y, cache = join(ys); the backward is dys = split(cache, dy), then parallel's."""
    branches = side_by_side(who, layers, with_parts)

    def init(key, in_shape, /):
        shapes, params, state = branches.init(key, in_shape)
        return joined_shape(shapes), params, state

    def forward(params, state, x, ctx, /):
        ys, state, cache = branches.forward(params, state, x, ctx)
        joined_shape([y.shape for y in ys])
        y, of_join = join(ys)
        return y, state, (cache, of_join)

    def backward(params, cache, dy, /):
        cache, of_join = cache
        return branches.backward(params, cache, split(of_join, dy))

    return Layer(init, forward, backward, who, layers, with_parts)
