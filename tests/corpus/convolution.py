"""Convolutions and pooling: kernels, channels, strides, padding, windows."""

import jax
import jax.numpy as jnp
from jax import lax

from .case import INSTEAD, LEFT_OUT, Case, integers, numbers, subject, vjp_subject

NHWC = ("NHWC", "HWIO", "NHWC")

# ---------------------------------------------------------------- convolution, no padding


def conv(x, w, b):
    return lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=NHWC) + b


def conv_fwd(x, w, b):
    return conv(x, w, b), (x, w)


def conv_bwd(saved, dy, slip=None):
    x, w = saved
    kh, kw, _, _ = w.shape
    h, v = dy.shape[1:3]
    dw = jnp.zeros_like(w)
    for i in range(kh):
        for j in range(kw):
            dw = dw.at[i, j].set(jnp.einsum("bhwi,bhwo->io", x[:, i : i + h, j : j + v], dy))
    flipped = w if slip == "kernel not flipped" else w[::-1, ::-1]
    turned = flipped if slip == "channels not exchanged" else flipped.transpose(0, 1, 3, 2)
    pad = ((kh - 1, kh - 1), (kw - 1, kw - 1))
    dx = lax.conv_general_dilated(dy, turned, (1, 1), pad, dimension_numbers=NHWC)
    if slip == "shifted by a row":
        dx = jnp.roll(dx, 1, axis=1)
    if slip == "kernel's gradient flipped":
        dw = dw[::-1, ::-1]
    if slip == "kernel's rows only":
        dw = dw.at[:, 1:].set(0)
    db = dy.sum((0, 1, 2))
    if slip == "bias averaged over the image":
        db = dy.mean((1, 2)).sum(0)
    if slip == "bias of one pixel":
        db = dy[:, 0, 0].sum(0)
    return dx, dw, db


FLIP = r"flip|revers|rotat|mirror"
CONV = vjp_subject(
    "convolution",
    conv,
    conv_fwd,
    conv_bwd,
    (numbers(1, 2, 5, 4, 3), numbers(2, 2, 2, 3, 3), numbers(3, 3)),
    {
        "kernel not flipped": ("kernel_not_flipped", r"kernel|filter|args\[1\]", FLIP),
        "channels not exchanged": ("kernel_channels_not_exchanged", r"channel", r"transpos|swap|exchang"),
        "shifted by a row": ("shifted", r"shift|roll|offset|off by one", r"axis|row|<1>"),
        "kernel's gradient flipped": ("gradient_flipped", r"args\[1\]|kernel", FLIP),
        "kernel's rows only": ("part_of_leaf_zero", r"zero|<0>", r"index|axis|column|slice|where|\[:, 1|exactly"),
        "bias averaged over the image": (
            "bias_averaged",
            r"<12>|<0.0833...>|1/12",
            r"\bsum|mean|averag|axes|axis|elements",
        ),
        "bias of one pixel": ("bias_not_summed", r"args\[2\]", r"\bonly\b|first|sum over|not summed"),
    },
)

# ---------------------------------------------------------------- stride 2, SAME


def strided(w, x):
    return lax.conv_general_dilated(x, w, (2, 2), ((1, 1), (1, 1)), dimension_numbers=NHWC)


def strided_fwd(w, x):
    return strided(w, x), (w, x)


def strided_bwd(saved, dy, slip=None):
    w, x = saved
    n, h, v, _ = x.shape
    up = jnp.zeros((n, h, v, dy.shape[-1]), dy.dtype).at[:, ::2, ::2].set(dy)
    if slip == "repeated for the stride":
        up = dy.repeat(2, axis=1).repeat(2, axis=2)[:, :h, :v]
    dx = lax.conv_general_dilated(
        up, w[::-1, ::-1].transpose(0, 1, 3, 2), (1, 1), ((1, 1), (1, 1)), dimension_numbers=NHWC
    )
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    if slip == "padded at the end":
        padded = jnp.pad(x, ((0, 0), (0, 2), (0, 2), (0, 0)))
    dw = jnp.stack(
        [
            jnp.stack([jnp.einsum("bhwi,bhwo->io", padded[:, i : i + h, j : j + v], up) for j in range(3)])
            for i in range(3)
        ]
    )
    return dw, dx


STRIDED = vjp_subject(
    "strided convolution",
    strided,
    strided_fwd,
    strided_bwd,
    (numbers(11, 3, 3, 2, 3), numbers(12, 2, 5, 3, 2)),
    {
        "repeated for the stride": ("stride_repeated", r"\bstride|dilation|repeat|nearest"),
        "padded at the end": ("padding_shifted", r"\bpadd?ing\b|padded|shift"),
    },
)

# ---------------------------------------------------------------- depthwise


def depthwise(params, x):
    y = lax.conv_general_dilated(
        x, params["w"], (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=x.shape[-1]
    )
    return jnp.sum(jnp.sin(y))


def depthwise_grad(params, x, slip=None):
    w = params["w"]
    t = x.shape[1] - len(w) + 1
    y = sum(x[:, i : i + t] * w[i, 0] for i in range(len(w)))
    dy = jnp.cos(y)
    if slip == "channels mixed":
        dy = dy.sum(-1, keepdims=True) * jnp.ones_like(dy)
    if slip == "taps reversed":
        x = x[:, ::-1]
    return {"w": jnp.stack([(x[:, i : i + t] * dy).sum((0, 1)) for i in range(len(w))])[:, None]}


DEPTHWISE = subject(
    "depthwise convolution",
    depthwise,
    depthwise_grad,
    ({"w": numbers(21, 3, 1, 4)}, numbers(22, 2, 6, 4)),
    {
        "channels mixed": ("channels_mixed", r"channel|\bgroups?\b|axis 2"),
        "taps reversed": ("input_reversed", r"revers|flip"),
    },
)

# ---------------------------------------------------------------- pooling


def max_pool(x):
    n, h, v, c = x.shape
    return x.reshape(n, h // 2, 2, v // 2, 2, c).max((2, 4))


def max_pool_fwd(x):
    return max_pool(x), x


def max_pool_bwd(x, dy, slip=None):
    up = dy.repeat(2, axis=1).repeat(2, axis=2)
    top = max_pool(x).repeat(2, axis=1).repeat(2, axis=2)
    if slip == "to the whole window":
        return (up,)
    if slip == "spread evenly":
        return (up / 4,)
    if slip == "to all but the largest":
        return (jnp.where(x == top, 0, up),)
    if slip == "to the first of the window":
        return (jnp.zeros_like(x).at[:, ::2, ::2].set(dy),)
    return (jnp.where(x == top, up, 0),)


def average_pool(x):
    return lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4


def average_pool_fwd(x):
    return average_pool(x), ()


def average_pool_bwd(_, dy, slip=None):
    up = dy.repeat(2, axis=1).repeat(2, axis=2)
    if slip == "not divided by the window":
        return (up,)
    if slip == "divided twice":
        return (up / 16,)
    return (up / 4,)


POOLS = [
    *vjp_subject(
        "max pooling",
        max_pool,
        max_pool_fwd,
        max_pool_bwd,
        (numbers(31, 2, 4, 6, 3),),
        {
            "to the whole window": ("max_mask_missing", r"arg ?max|mask|largest|maximum", LEFT_OUT + "|every|whole"),
            "spread evenly": (
                "max_as_mean",
                r"even|averag|mean|divided|1/4|<0.25>|shared|split",
                r"max|largest|window",
            ),
            "to all but the largest": (
                "mask_inverted",
                r"mask|largest|max",
                r"invert|except|all but|must not|opposite|exactly",
            ),
            "to the first of the window": (
                "max_index_wrong",
                r"first|index|position|element|" + INSTEAD,
                r"largest|maximum|window|mask",
            ),
        },
    ),
    *vjp_subject(
        "average pooling",
        average_pool,
        average_pool_fwd,
        average_pool_bwd,
        (numbers(32, 2, 4, 6, 3),),
        {
            "not divided by the window": ("window_factor", r"<4>", r"too large|divi|missing"),
            "divided twice": ("window_factor_twice", r"<0.25>|1/4|<4>", r"too small|twice|too often"),
        },
    ),
]


def overlapping(x, w):
    """The largest entry of each window of three, weighted."""
    windows = jnp.stack([x[:-2], x[1:-1], x[2:]])
    return jnp.sum(w * windows.max(0))


def overlapping_grad(x, w):
    windows = jnp.stack([x[:-2], x[1:-1], x[2:]])
    at = windows.argmax(0) + jnp.arange(len(w))
    return jnp.zeros_like(x).at[at].set(w)  # an element that is the largest of two windows: the last one wins


# ---------------------------------------------------------------- from the image to the classifier


def flattened(params, x, labels):
    h = jnp.mean(x, axis=(1, 2)) @ params["head"] + x.reshape(len(x), -1) @ params["flat"]
    return -jnp.mean(jax.nn.log_softmax(h)[jnp.arange(len(x)), labels])


def flattened_grad(params, x, labels, slip=None):
    n = len(x)
    logits = jnp.mean(x, axis=(1, 2)) @ params["head"] + x.reshape(n, -1) @ params["flat"]
    d = (jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[1], dtype=x.dtype)) / n
    if slip == "channels first":
        return {"head": x.mean((1, 2)).T @ d, "flat": x.transpose(0, 3, 1, 2).reshape(n, -1).T @ d}
    if slip == "image summed, not averaged":
        return {"head": x.sum((1, 2)).T @ d, "flat": x.reshape(n, -1).T @ d}
    return {"head": x.mean((1, 2)).T @ d, "flat": x.reshape(n, -1).T @ d}


FLATTENED = subject(
    "flattened image",
    flattened,
    flattened_grad,
    ({"head": numbers(41, 2, 3), "flat": numbers(42, 24, 3)}, numbers(43, 5, 4, 3, 2), integers(44, 3, 5)),
    {
        "channels first": ("reshape_order", r"reshape|order|permut|transpos|flatten"),
        "image summed, not averaged": ("mean_factor_inside", r"<12>", r"mean|1/n|divi|averag"),
    },
)

CASES = [
    *CONV,
    *STRIDED,
    *DEPTHWISE,
    *POOLS,
    Case(
        "overlapping pooling: set instead of add",
        "set_instead_of_add",
        overlapping,
        overlapping_grad,
        (numbers(33, 9), numbers(34, 7)),
        (r"overwrit|accumul|instead of (add|sum)|add (them )?(all )?up|\+=|only|several|lost|contribution|\buses?\b",),
    ),
    *FLATTENED,
]
