"""Layers made of layers. Their backward is the chain rule, written once for everything built from them.

Each combinator's params (and state, and cache) are those of its layers: a tuple for several, the inner layer's own for
one. Randomness: layer i of several gets the key ctx.fold(i), so appending a layer changes nothing before it.
"""

import functools
import itertools

import jax
import jax.numpy as jnp

from jaxnn._after import after
from jaxnn._branches import require_entries, require_layers, require_stacked, side_by_side, side_by_side_joined
from jaxnn._checks import array, cotangent, float_array, random_key, remember, sizes, whole
from jaxnn.layer import Layer, in_part


def serial(*layers: Layer, name: str = "serial") -> Layer:
    """One layer after the other.

    y  = f_L(… f_2(f_1(x)))
    dy → dparams_L, then d(f_L's input) → dparams_(L-1), …, and finally dx:  the chain rule from the last to the first

    params, state and cache are tuples, one entry per layer. serial() without layers is the identity. name: what errors,
    profiles and tables call a model, or a stage of one.
    """
    if not layers:
        return _identity(name)
    require_layers(name, layers)

    def init(key, in_shape, /):
        random_key(name, key)
        params, states = [], []
        for i, layer in enumerate(layers):
            with in_part(name, layers, i):
                in_shape, p, s = layer.init(jax.random.fold_in(key, i), in_shape)
            params.append(p)
            states.append(s)
        return in_shape, tuple(params), tuple(states)

    def forward(params, state, x, ctx, /):
        require_entries(name, layers, params, state)
        states, caches = [], []
        for i, (layer, p, s) in enumerate(zip(layers, params, state, strict=True)):
            with in_part(name, layers, i):
                x, s, cache = layer.forward(p, s, x, ctx.fold(i))
            states.append(s)
            caches.append(cache)
        return x, tuple(states), tuple(caches)

    def backward(params, caches, dy, /):
        dparams = []
        for i, (layer, p, cache) in reversed(list(enumerate(zip(layers, params, caches, strict=True)))):
            with in_part(name, layers, i):
                dp, dy = layer.backward(p, cache, dy)
            dparams.append(dp)
        return tuple(reversed(dparams)), dy

    return Layer(init, forward, backward, name, layers, functools.partial(serial, name=name))


def _identity(name: str) -> Layer:
    def forward(params, state, x, ctx, /):
        require_entries(name, (), params, state)
        check = functools.partial(float_array, name, "x")
        x = tuple(map(check, x)) if isinstance(x, tuple) else check(x)
        return x, (), jax.tree.map(remember, x)

    def backward(params, cache, dy, /):
        return (), jax.tree.map(
            lambda like, dy: cotangent(name, "dy", dy, "x", like.shape[1:], like.dtype), cache, dy
        )

    return Layer(lambda key, in_shape, /: (in_shape, (), ()), forward, backward, name)


def residual(inner: Layer) -> Layer:
    """The input plus the inner layer's output.

    y  = x + f(x)
    dx = dy + (f's dx for dy)

    The inner layer must keep the shape; anything else raises ValueError. A transformer's pre-norm block is
    residual(serial(norm, block)): the norm is inside, and the residual path stays free of it.
    Source: He et al. 2015 (arXiv:1512.03385); Xiong et al. 2020 for pre-norm (arXiv:2002.04745).
    """
    require_layers("residual", (inner,))

    def init(key, in_shape, /):
        in_shape = sizes("residual", in_shape)
        with in_part("residual", (inner,)):
            out_shape, params, state = inner.init(key, in_shape)
        _same_shape("residual", in_shape, out_shape)
        return out_shape, params, state

    def forward(params, state, x, ctx, /):
        x = float_array("residual", "x", x)
        with in_part("residual", (inner,)):
            y, state, cache = inner.forward(params, state, x, ctx)
        _same_shape("residual", x.shape, y.shape)
        return x + y, state, cache

    def backward(params, cache, dy, /):
        with in_part("residual", (inner,)):
            dparams, dx = inner.backward(params, cache, dy)
        return dparams, cotangent("residual", "dy", dy, "x", dx.shape, dx.dtype) + dx

    return Layer(init, forward, backward, "residual", (inner,), residual)


# ---------------------------------------------------------------- side by side


def parallel(*layers: Layer) -> Layer:
    """Layers side by side, a tuple of their outputs.

    y  = (f_1(x_1), …, f_n(x_n))
    dx = (f_1's dx for dy_1, …, f_n's dx for dy_n),  or their sum where all layers share one x

    x is a tuple with one entry per layer, or else one x for all: x_i = x. dx and in_shape are like x; y, dy and
    out_shape are tuples; params and state are tuples, one entry per layer. `concat`, `add` and `multiply` take x in
    the same way and join the outputs into one. Raises ValueError for a tuple of another length and without layers.
    """
    return side_by_side("parallel", layers, parallel)


def concat(*layers: Layer) -> Layer:
    """Layers side by side, their outputs joined along the last axis.

    y  = [f_1(x_1), …, f_n(x_n)]
    dx as in `parallel`,  dy_i the slice of dy that belongs to f_i

    x: a tuple with one entry per layer, or one x for all, see `parallel`. Cached, with the layers' caches: the outputs'
    shapes. Raises ValueError for outputs that differ in any other axis and without layers.
    """

    def joined_shape(shapes):
        if len({shape[:-1] for shape in shapes}) > 1:
            raise ValueError(f"concat: the outputs have shapes {shapes}; they may differ in the last axis only")
        return (*shapes[0][:-1], sum(shape[-1] for shape in shapes))

    def join(ys):
        return jnp.concatenate(ys, -1), [remember(y) for y in ys]

    def split(likes, dy):
        ends = list(itertools.accumulate(like.shape[-1] for like in likes))
        dy = cotangent("concat", "dy", dy, "the output", (*likes[0].shape[1:-1], ends[-1]))
        return jnp.split(dy, ends[:-1], -1)

    return side_by_side_joined("concat", layers, concat, joined_shape, join, split)


def add(*layers: Layer) -> Layer:
    """The sum of layers side by side: add(serial(), f) is residual(f).

    y  = Σ_i f_i(x_i)
    dx as in `parallel`,  dy_i = dy

    x: a tuple with one entry per layer, or one x for all, see `parallel`. Raises ValueError for outputs of different
    shapes and without layers.
    """
    return side_by_side_joined(
        "add",
        layers,
        add,
        functools.partial(_one_shape, "add"),
        join=lambda ys: (functools.reduce(jnp.add, ys), None),
        split=lambda _, dy: (dy,) * len(layers),
    )


def multiply(*layers: Layer) -> Layer:
    """The elementwise product of layers side by side: a layer that ends in a sigmoid gates the others.

    y  = f_1(x_1) ⊙ … ⊙ f_n(x_n)
    dx as in `parallel`,  dy_i = dy ⊙ Π_(j ≠ i) f_j(x_j)

    x: a tuple with one entry per layer, or one x for all, see `parallel`. Cached, with the layers' caches: their
    outputs. Raises ValueError for outputs of different shapes and without layers.
    Numerics: dy_i is not dy ⊙ y / f_i(x_i), which is 0/0 where an output is 0.
    """

    def split(ys, dy):
        dy = cotangent("multiply", "dy", dy, "the output", ys[0].shape, ys[0].dtype)
        return [functools.reduce(jnp.multiply, (*ys[:i], *ys[i + 1 :]), dy) for i in range(len(ys))]

    return side_by_side_joined(
        "multiply",
        layers,
        multiply,
        functools.partial(_one_shape, "multiply"),
        join=lambda ys: (functools.reduce(jnp.multiply, ys), ys),
        split=split,
    )


def _one_shape(who, shapes):
    if len(set(shapes)) > 1:
        raise ValueError(f"{who}: the outputs have shapes {shapes}; they must be equal")
    return shapes[0]


# ---------------------------------------------------------------- one layer, repeated or recomputed


def repeat(inner: Layer, n: int) -> Layer:
    """The same layer n times, with its own parameters each time: one compiled body, run n times.

    x_0 = x,  x_(i+1) = f(params_i, x_i),  y = x_n;  backward: the chain rule, from i = n - 1 down to 0

    params, state and the layers' caches are the inner layer's with a new first axis of size n; also cached: x's shape
    and dtype. The inner layer must keep shape and dtype. The time to trace and compile does not depend on n.
    Raises ValueError unless n >= 1, and if the inner layer changes the shape.
    """
    whole("repeat", "n", n, least=1)
    require_layers("repeat", (inner,))

    def init(key, in_shape, /):
        random_key("repeat", key)
        in_shape = sizes("repeat", in_shape)
        with in_part("repeat", (inner,)):
            out_shape, _, _ = inner.init(key, in_shape)
        _same_shape("repeat", in_shape, out_shape)
        params, state = jax.vmap(lambda key: inner.init(key, in_shape)[1:])(jax.random.split(key, n))
        return out_shape, params, state

    def forward(params, state, x, ctx, /):
        x = float_array("repeat", "x", x)
        require_stacked("repeat", params, n)

        def body(x, step):
            i, p, s = step
            with in_part("repeat", (inner,)):
                y, s, cache = inner.forward(p, s, x, ctx.fold(i))
            _same_shape("repeat", x.shape, y.shape)
            return y, (s, cache)

        y, (state, caches) = jax.lax.scan(body, x, (jnp.arange(n), params, state))
        return y, state, (caches, remember(x))

    def backward(params, cache, dy, /):
        caches, like = cache
        dy = cotangent("repeat", "dy", dy, "x", like.shape[1:], like.dtype)

        def body(dy, step):
            p, cache = step
            with in_part("repeat", (inner,)):
                dp, dx = inner.backward(p, cache, dy)
            return dx, dp

        dx, dparams = jax.lax.scan(body, dy, (params, caches), reverse=True)
        return dparams, dx

    return Layer(init, forward, backward, "repeat", (inner,), lambda inner: repeat(inner, n))


def remat(inner: Layer) -> Layer:
    """The same layer with less memory: only its input is kept, and backward recomputes the cache.

    y = f(x);  dx = (f's dx for dy, from the cache of a second forward pass over x)

    Cached: state, x and ctx. Costs one more forward pass.
    Numerics: the recomputation must wait for dy, or no memory is saved, so x is made to depend on dy by adding
    min(|dy_0|, 0) = 0 to it. The result is the same bit for bit, except for the sign of a -0 in x.
    """
    require_layers("remat", (inner,))

    def init(key, in_shape, /):
        with in_part("remat", (inner,)):
            return inner.init(key, in_shape)

    def forward(params, state, x, ctx, /):
        x = x if isinstance(x, tuple) else array("remat", "x", x)
        with in_part("remat", (inner,)):
            y, new_state, _ = inner.forward(params, state, x, ctx)
        return y, new_state, (state, x, ctx)

    def backward(params, saved, dy, /):
        state, x, ctx = saved
        dy = dy if isinstance(dy, tuple) else float_array("remat", "dy", dy)
        x = jax.tree.map(lambda leaf: after(dy, leaf), x)
        with in_part("remat", (inner,)):
            _, _, cache = inner.forward(params, state, x, ctx)
            return inner.backward(params, cache, dy)

    return Layer(init, forward, backward, "remat", (inner,), remat)


def _same_shape(who, in_shape, out_shape):
    if tuple(in_shape) != tuple(out_shape):
        raise ValueError(
            f"{who}: the inner layer turns shape {tuple(in_shape)} into {tuple(out_shape)}; it must keep it"
        )
