"""Rows of `benchmarks.fused`: stacks of layers, recurrent layers, and single layers whose backward is faster.

Each case is the value and all gradients: by a Layer's forward and backward, and by jax.vjp of the forward as one would
write it.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.fused_case import Case, Row
from jaxnn import Ctx, Layer, combinators, initializers, layers
from jaxnn.fused import dense_stack, reversible

EPS = 1e-5


def layer_case(layer: Layer, plain: Callable[[Any, jax.Array], jax.Array], shape: tuple[int, ...], key=None) -> Case:
    """The layer, in training, beside plain(params, x), on random numbers."""
    ctx = Ctx(train=True, key=key)
    out = {}

    def init(key):
        out["shape"], params, state = layer.init(key, shape)
        return params, state

    _, state = jax.eval_shape(init, jax.random.key(0))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)

    def ours(params, x, dy):
        y, _, cache = layer.forward(params, zeros, x, ctx)
        return y, layer.backward(params, cache, dy)

    def theirs(params, x, dy):
        y, backward = jax.vjp(plain, params, x)
        return y, backward(dy)

    def arguments():
        params, _ = init(jax.random.key(0))
        keys = jax.random.split(jax.random.key(1), 2)
        return params, jax.random.normal(keys[0], shape), jax.random.normal(keys[1], out["shape"])

    return Case(ours, theirs, arguments)


# ---------------------------------------------------------------- stacks

# With relu the gradients differ by percents: where z is 0 up to rounding, the two take different sides of the kink.
STACK = 16, 1024, 512  # layers, batch, features
PLAIN = {
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}


def plain_norm(scale, shift, x, axes):
    centre = x - x.mean(axes, keepdims=True)
    return centre * lax.rsqrt(jnp.square(centre).mean(axes, keepdims=True) + EPS) * scale + shift


def stack_case(activation: str, unroll: bool, dropout: float = 0.1) -> Case:
    n, batch, width = STACK
    key = jax.random.key(7)

    def layer_of(l, p, x):
        y = PLAIN[activation](plain_norm(p["scale"], p["shift"], x, -1) @ p["w"] + p["b"])
        keep = jax.random.bernoulli(jax.random.fold_in(key, l), 1 - dropout, y.shape)
        return jnp.where(keep, y / (1 - dropout), 0)

    def plain(params, x):
        if unroll:
            for l, p in enumerate(params):
                x = layer_of(l, p, x)
            return x
        return lax.scan(lambda x, step: (layer_of(*step, x), None), x, (jnp.arange(n), params))[0]

    stack = dense_stack(n, activation=activation, dropout=dropout, unroll=unroll, initializer="he_normal")
    return layer_case(stack, plain, (batch, width), key)


def reversible_case(n: int, batch: int = 1024, width: int = 256) -> Case:
    def block(p, x):
        return jax.nn.gelu(x @ p[0]["w"] + p[0]["b"], approximate=True) @ p[2]["w"] + p[2]["b"]

    def plain(params, x):
        def pair(carry, p):
            x1, x2 = carry
            x1 = x1 + block(p["f"], x2)
            return (x1, x2 + block(p["g"], x1)), None

        halves, _ = lax.scan(pair, tuple(jnp.split(x, 2, -1)), params)
        return jnp.concatenate(halves, -1)

    small = functools.partial(initializers.normal, stddev=0.5 * width**-0.5)  # the stream grows to 300, not to 10^9
    last = layers.dense(width, initializer=small)
    perceptron = combinators.serial(layers.dense(width), layers.activation("gelu_tanh"), last)
    return layer_case(reversible(perceptron, perceptron, n), plain, (batch, 2 * width))


STACKS = (
    *(
        Row(
            f"dense_stack, {activation}, {'written out' if unroll else 'in a loop'}",
            "16 layers of 512, batch 1024",
            functools.partial(stack_case, activation, unroll),
            unit=("arrays a layer", 4 * math.prod(STACK)),
        )
        for unroll in (False, True)
        for activation in PLAIN
    ),
    *(
        Row(f"reversible, {n} pairs", "2 x 256, batch 1024", functools.partial(reversible_case, n), timed=n < 100)
        for n in (16, 64, 128)
    ),
)

# ---------------------------------------------------------------- recurrent layers

RECURRENT = 4, 512, 128  # batch, time, units


def recurrent_case(name: str, chunk: int | None) -> Case:
    batch, time, units = RECURRENT

    def lstm(p, state, x):
        h, c = state
        i, f, o, g = jnp.split(x @ p["w"] + h @ p["u"] + p["b"], 4, 1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c

    def gru(p, state, x):
        (h,) = state
        b_n, b_r, b_z, b_m = jnp.split(p["b"], 4)
        (a_n, a_r, a_z), (m_r, m_z, m) = jnp.split(x @ p["w"], 3, 1), jnp.split(h @ p["u"], 3, 1)
        r, z = jax.nn.sigmoid(a_r + m_r + b_r), jax.nn.sigmoid(a_z + m_z + b_z)
        return ((1 - z) * jnp.tanh(a_n + b_n + r * (m + b_m)) + z * h,)

    step, n_states = {"lstm": (lstm, 2), "gru": (gru, 1)}[name]

    def plain(params, x):
        def body(state, x):
            state = step(params, state, x)
            return state, state[0]

        _, h = lax.scan(body, (jnp.zeros((batch, units)),) * n_states, x.swapaxes(0, 1))
        return h.swapaxes(0, 1)

    return layer_case(getattr(layers, name)(units, chunk=chunk), plain, (batch, time, units))


THROUGH_TIME = tuple(
    Row(
        f"{name}, " + (f"in chunks of {chunk}" if chunk else "in one piece"),
        "T512 B4 H128",
        functools.partial(recurrent_case, name, chunk),
        unit=("(T, B, H) arrays", 4 * math.prod(RECURRENT)),
    )
    for name in ("lstm", "gru")
    for chunk in (8, None)
)

# ---------------------------------------------------------------- single layers


def depthwise_case(batch: int, side: int, channels: int) -> Case:
    def plain(params, x):
        layout = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(
            x, params["w"], (1, 1), "SAME", dimension_numbers=layout, feature_group_count=channels
        )
        return y + params["b"]

    return layer_case(layers.conv(channels, (3, 3), groups=channels), plain, (batch, side, side, channels))


def max_pool_case(window: int, batch: int, side: int, channels: int) -> Case:
    def plain(params, x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, window, window, 1), (1, 2, 2, 1), "VALID")

    return layer_case(layers.max_pool((window, window), stride=2), plain, (batch, side, side, channels))


def norm_case(norm: Callable[[], Layer], axes: int | tuple[int, ...], shape: tuple[int, ...]) -> Case:
    return layer_case(norm(), lambda params, x: plain_norm(params["scale"], params["shift"], x, axes), shape)


def gelu_case() -> Case:
    return layer_case(layers.activation("gelu_erf"), lambda _, x: jax.nn.gelu(x, approximate=False), (4096, 1024))


SINGLE = (
    Row("depthwise conv, 3x3", "16 x 28 x 28 x 64", functools.partial(depthwise_case, 16, 28, 64)),
    Row("max_pool, 2x2", "64 x 28 x 28 x 32", functools.partial(max_pool_case, 2, 64, 28, 32)),
    Row("max_pool, 3x3, stride 2", "64 x 29 x 29 x 32", functools.partial(max_pool_case, 3, 64, 29, 32)),
    Row("layer_norm", "4096 x 512", functools.partial(norm_case, layers.layer_norm, -1, (4096, 512))),
    Row(
        "batch_norm",
        "64 x 28 x 28 x 32",
        functools.partial(norm_case, layers.batch_norm, (0, 1, 2), (64, 28, 28, 32)),
        unit=("numbers a channel", 4 * 32),
    ),
    Row("gelu_erf", "4096 x 1024", gelu_case),
)

ROWS = (*STACKS, *THROUGH_TIME, *SINGLE)
