"""Layers in this library's own form, written by someone else."""

import jax
import jax.numpy as jnp

from jaxnn import Ctx, Layer, from_pair

from .case import LEFT_OUT, Case, numbers


def key():
    return jax.random.key(1, impl="unsafe_rbg")


def affine_init(rng, in_shape):
    w = jax.random.uniform(rng, (in_shape[-1], 3), minval=-1)
    return (*in_shape[:-1], 3), {"w": w, "b": jnp.full(3, 0.3)}


def affine(slip=None):
    def forward(params, x):
        y = jnp.tanh(x @ params["w"] + params["b"])
        return y, (x, y)

    def backward(params, cache, dy):
        x, y = cache
        dz = dy * (1 - y**2)
        if slip == "no tanh'":
            dz = dy
        dw, db, dx = x.T @ dz, dz.sum(0), dz @ params["w"].T
        if slip == "averaged in the layer":
            dw, db = dw / len(x), db / len(x)
        if slip == "input's gradient forgotten":
            dx = jnp.zeros_like(dx)
        if slip == "bias left out of the tree":
            return {"w": dw}, dx
        if slip == "dy ignored":
            db = (1 - y**2).sum(0)
        if slip == "results exchanged":
            return dx, {"w": dw, "b": db}
        return {"w": dw, "b": db}, dx

    return from_pair(forward, backward, affine_init)


def dropout(slip=None):
    """A Layer with a key and nothing to learn."""

    def forward(params, state, x, ctx):
        mask = jax.random.bernoulli(ctx.key, 0.75, x.shape) if ctx.train else jnp.ones(x.shape, bool)
        scale = jnp.asarray(4 / 3 if ctx.train else 1, x.dtype)
        return jnp.where(mask, x * scale, 0), state, (mask, scale)

    def backward(params, cache, dy):
        mask, scale = cache
        dx = jnp.where(mask, dy * scale, 0)
        return {}, dy * scale if slip == "mask forgotten" else jnp.where(mask, dy, 0) if slip == "not scaled" else dx

    return Layer(lambda rng, in_shape: (in_shape, {}, ()), forward, backward)


def pooled(slip=None):
    """The mean of the tokens that ctx.mask calls real."""

    def forward(params, state, x, ctx):
        mask = ctx.mask[:, :, None].astype(x.dtype)
        return (x * mask).sum(1) / mask.sum(1), state, mask

    def backward(params, mask, dy):
        dx = dy[:, None] * mask / mask.sum(1, keepdims=True)
        if slip == "padding gets a share":
            dx = dy[:, None] / mask.sum(1, keepdims=True) * jnp.ones_like(mask)
        if slip == "divided by the length":
            dx = dy[:, None] * mask / mask.shape[1]
        return {}, dx

    return Layer(lambda rng, in_shape: ((in_shape[0], in_shape[2]), {}, ()), forward, backward)


def layer_cases(name, make, args, slips):
    right = Case(name, "", make(), None, args, how="layer")
    wrong = [
        Case(f"{name}: {slip}", kind, make(slip), None, args, tuple(words), how="layer")
        for slip, (kind, *words) in slips.items()
    ]
    return [right, *wrong]


MASK = numbers(9, 3, 4) > -0.3
CASES = [
    *layer_cases(
        "affine layer",
        affine,
        (numbers(1, 5, 4), Ctx(), key()),
        {
            "no tanh'": ("activation_derivative_missing", r"tanh", r"derivative|" + LEFT_OUT),
            "averaged in the layer": (
                "batch_average_in_a_layer",
                r"<5>|<0.2>",
                r"batch|axis 0|examples|sum|mean",
            ),
            "input's gradient forgotten": ("leaf_zero", r"\bx\b|input", r"zero|<0>"),
            "bias left out of the tree": ("leaf_missing", r"\['b'\]|'b'", r"missing|lack|not in|absent|has no"),
            "dy ignored": ("cotangent_ignored", r"\['b'\]", r"\bdy\b|cotangent"),
            "results exchanged": ("container", r"dict|tree|tuple|\border|exchang|swap|\['b'\]"),
        },
    ),
    *layer_cases(
        "dropout layer",
        dropout,
        (numbers(2, 5, 4), Ctx(train=True, key=key()), key()),
        {
            "mask forgotten": ("dropout_mask_missing", r"mask|select|where", LEFT_OUT),
            "not scaled": ("dropout_scale_missing", r"<0.75>|<1.33...>|4/3"),
        },
    ),
    *layer_cases(
        "pooling layer",
        pooled,
        (numbers(3, 3, 4, 2), Ctx(mask=MASK), key()),
        {
            "padding gets a share": ("padding_mask_ignored", r"mask|\*|mul|padd", LEFT_OUT + "|only|where"),
            "divided by the length": ("mean_over_padding", r"mask|\bsum|<4>|count|ctx", r"divi|factor|times|length"),
        },
    ),
]
