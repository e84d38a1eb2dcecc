"""Residual blocks that can be run backwards: depth without the memory for it.

Shapes: B batch, ... any axes between, D features, an even number.
"""

import jax
import jax.numpy as jnp

from jaxnn._branches import require_layers, require_stacked
from jaxnn._checks import at_least_float32, cotangent, float_array, named, random_key, remember, sizes, whole
from jaxnn.layer import Layer, in_part


def reversible(f: Layer, g: Layer, n: int) -> Layer:
    """n pairs of residual blocks; the backward recovers the input of each from its output.

    [x1 x2] = x,  n times:          x1 ← x1 + f(x2),  then x2 ← x2 + g(x1);                            y = [x1 x2]
    [d1 d2] = dy,  n times, back:   x2 ← x2 - g(x1),  d1 ← d1 + (g's dx for d2),
                                    x1 ← x1 - f(x2),  d2 ← d2 + (f's dx for d1);                       dx = [d1 d2]

    f and g are layers that keep the shape (B, ..., D/2) of each half of x; x and y (B, ..., D). params and state are
    {"f", "g"}, with a new first axis of size n. Pair i has the context ctx.fold(i), its f fold(0) of that, its g
    fold(1). A residual stream that is one array wide starts as [x x], and its two halves are added at the end (Kitaev
    et al. 2020).
    Cached: y, its dtype, the state before, and ctx. That is the memory of one pair, whatever n, at the cost of one more
    forward pass, as with `jaxnn.combinators.remat`, which keeps one array per layer.
    Raises ValueError unless n >= 1, where D is odd, and where f or g changes the shape.

    Numerics: in floating point (x + f) - f is not quite x, and the blocks below amplify the difference: after 64 pairs
    a float32 gradient may be left with 3 digits. Hence x1 and x2 are integers here, multiples of 2^-20 (float64:
    2^-40), to which f and g are rounded: what was added is subtracted without error. That holds if f, compiled for the
    backward, rounds as it did in the forward; where it does not, the error is 2^-20.
    x1 and x2 may reach ±1023 (float64: ±4e6). If any entry is beyond that after a step, or f or g is not finite, all of
    y is NaN, and so is the gradient.
    Integers have no derivative: `jax.grad` of forward is an error; `jax.grad` of `jaxnn.as_custom_vjp(layer)` is the
    gradient above.
    Source: Gomez et al. 2017, The reversible residual network (arXiv:1707.04585); Maclaurin et al. 2015 for integers
    (arXiv:1502.03492).
    """
    require_layers("reversible", (f, g))
    whole("reversible", "n", n, least=1)

    def init(key, in_shape, /):
        random_key("reversible", key)
        half = _half(sizes("reversible", in_shape))
        for i, block in enumerate((f, g)):
            with in_part("reversible", (f, g), i):
                _keeps(half, block.init(key, half)[0])

        def pair(key):
            keys = jax.random.split(key)
            (_, pf, sf), (_, pg, sg) = f.init(keys[0], half), g.init(keys[1], half)
            return {"f": pf, "g": pg}, {"f": sf, "g": sg}

        params, state = jax.vmap(pair)(jax.random.split(key, n))
        return tuple(in_shape), params, state

    def added(i, params, state, x, ctx):
        """What f (i = 0) or g (i = 1) adds to the other half, its new state, its cache."""
        name, block = (("f", f), ("g", g))[i]
        with in_part("reversible", (f, g), i):
            y, s, cache = block.forward(params[name], state[name], x, ctx.fold(i))
            _keeps(x.shape, y.shape)
        return y.astype(x.dtype), s, cache

    def forward(params, state, x, ctx, /):
        x = float_array("reversible", "x", x)
        named("reversible", params, ("f", "g"))
        require_stacked("reversible", params, n)
        _half(x.shape)

        def pair(carry, step):
            x1, x2, fits = carry
            i, p, s = step
            fits &= _fit(x2, x.dtype)  # here, not where x2 is made: f needs its floats here as well
            y, sf, _ = added(0, p, s, _floating(x2, x.dtype), ctx.fold(i))
            x1 = x1 + _integers(y)
            fits &= _fit(x1, x.dtype)
            y, sg, _ = added(1, p, s, _floating(x1, x.dtype), ctx.fold(i))
            return (x1, x2 + _integers(y), fits), {"f": sf, "g": sg}

        x1, x2 = jnp.split(_integers(x), 2, -1)
        (x1, x2, fits), new_state = jax.lax.scan(pair, (x1, x2, _fit(x1, x.dtype)), (jnp.arange(n), params, state))
        fits &= _fit(x2, x.dtype)
        y = _floating(jnp.concatenate([x1, x2], -1), x.dtype)
        return jnp.where(fits, y, jnp.nan), new_state, (x1, x2, fits, state, ctx, remember(x))

    def backward(params, cache, dy, /):
        x1, x2, fits, state, ctx, like = cache
        dy = cotangent("reversible", "dy", dy, "y", like.shape[1:], like.dtype)

        def pair(carry, step):
            x1, x2, d1, d2 = carry
            i, p, s = step
            y, _, of_g = added(1, p, s, _floating(x1, dy.dtype), ctx.fold(i))
            x2 = x2 - _integers(y)
            with in_part("reversible", (f, g), 1):
                dg, dx = g.backward(p["g"], of_g, d2)
            d1 = d1 + dx
            y, _, of_f = added(0, p, s, _floating(x2, dy.dtype), ctx.fold(i))
            x1 = x1 - _integers(y)
            with in_part("reversible", (f, g), 0):
                df, dx = f.backward(p["f"], of_f, d1)
            d2 = d2 + dx
            return (x1, x2, d1, d2), {"f": df, "g": dg}

        carry = (x1, x2, *jnp.split(jnp.where(fits, dy, jnp.nan), 2, -1))
        (_, _, d1, d2), dparams = jax.lax.scan(pair, carry, (jnp.arange(n), params, state), reverse=True)
        return dparams, jnp.concatenate([d1, d2], -1)

    return Layer(init, forward, backward, "reversible", (f, g), lambda f, g: reversible(f, g, n))


def _half(shape):
    """The shape of each half."""
    if not shape or shape[-1] % 2:
        raise ValueError(f"reversible: x has shape {tuple(shape)}, expected a last axis of even size, to be halved")
    return (*shape[:-1], shape[-1] // 2)


def _keeps(in_shape, out_shape):
    if tuple(in_shape) != tuple(out_shape):
        raise ValueError(f"it turns shape {tuple(in_shape)} into {tuple(out_shape)}; it must keep it")


# ---------------------------------------------------------------- numbers as integers


def _form(dtype):
    """The integer type that represents numbers of this dtype, and how many of its bits are the fraction."""
    return (jnp.int64, 40) if jnp.finfo(dtype).bits == 64 else (jnp.int32, 20)


@jax.custom_jvp
def _integers(x):
    """x as the nearest multiple of 2^-bits; the largest one for anything beyond, and for NaN."""
    integer, bits = _form(x.dtype)
    largest = float(jnp.iinfo(integer).max >> bits)
    x = x.astype(at_least_float32(x.dtype))
    x = jnp.where(x <= largest, jnp.maximum(x, -largest), largest)
    return jnp.round(x * 2.0**bits).astype(integer)


@_integers.defjvp
def _no_derivative(primals, tangents):
    raise ValueError(
        "reversible: its forward goes through integers, which have no derivative; "
        "differentiate jaxnn.as_custom_vjp(layer), or call layer.backward"
    )


def _floating(integers, dtype):
    _, bits = _form(dtype)
    return (integers.astype(at_least_float32(dtype)) * 2.0**-bits).astype(dtype)


def _fit(integers, dtype):
    """Whether all of the stream is in the lower half of the range.

    Anything that leaves that half in one step cannot wrap around back into it: a step is at most the whole range.
    """
    integer, bits = _form(dtype)
    largest = jnp.abs(_floating(integers, at_least_float32(dtype))).max(initial=0)
    return largest <= float(jnp.iinfo(integer).max >> bits + 1)
