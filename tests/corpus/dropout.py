"""Dropout: the rescaling, the mask, another draw."""

import jax
import jax.numpy as jnp

from .case import INSTEAD, LEFT_OUT, TWICE, Case, numbers, positive, subject

KEEP = 0.8
FACTOR = r"<0.8>|<1.25>|1/keep|1 ?/ ?\(1 ?[-−]"


def masked(params, x, mask):
    h = x @ params["w1"] * mask / KEEP
    return jnp.mean((h @ params["w2"]) ** 2)


def masked_grad(params, x, mask, slip=None):
    h = x @ params["w1"] * mask / KEEP
    p = h @ params["w2"]
    dp = 2 * p / p.size
    dh = dp @ params["w2"].T
    dz = dh * mask / KEEP
    if slip == "not rescaled":
        dz = dh * mask
    if slip == "no mask":
        dz = dh / KEEP
    if slip == "rescaled twice":
        dz = dh * mask / KEEP**2
    if slip == "multiplied by keep":
        dz = dh * mask * KEEP
    if slip == "dropout skipped":
        dz = dh
    if slip == "activations not dropped":
        return {"w1": x.T @ dz, "w2": (x @ params["w1"]).T @ dp}
    return {"w1": x.T @ dz, "w2": h.T @ dp}


MASK = (positive(1, 6, 5, low=0, high=1) < KEEP).astype("float32")
MASKED = subject(
    "dropout by a mask",
    masked,
    masked_grad,
    ({"w1": numbers(2, 4, 5), "w2": numbers(3, 5, 3)}, numbers(4, 6, 4), MASK),
    {
        "not rescaled": ("dropout_scale_missing", FACTOR, LEFT_OUT + "|times too|divi"),
        "no mask": ("dropout_mask_missing", r"the mask|args\[1\]", LEFT_OUT),
        "rescaled twice": ("dropout_scale_twice", FACTOR + "|<0.64>|<1.5625>", TWICE + "|too large"),
        "multiplied by keep": (
            "dropout_scale_inverted",
            FACTOR + "|<0.64>",
            r"multipl|divi|invers|too small|" + INSTEAD,
        ),
        "dropout skipped": ("two_factors_missing", r"the mask|args\[1\]", FACTOR),
        "activations not dropped": ("wrong_operand", r"w2", r"the mask|args\[1\]|before|<0.8>|" + INSTEAD),
    },
)


def drawn(w, x, key):
    keep = jax.random.bernoulli(key, 0.5, x.shape)
    return jnp.sum(jnp.tanh(jnp.where(keep, x / 0.5, 0) @ w))


def drawn_grad(w, x, key, slip=None):
    if slip == "drawn again":
        key = jax.random.fold_in(key, 1)
    keep = jax.random.bernoulli(key, 0.5, x.shape)
    h = jnp.where(keep, x / 0.5, 0)
    return h.T @ (1 - jnp.tanh(h @ w) ** 2)


def key():
    return jax.random.key(7, impl="unsafe_rbg")


DRAWN = subject(
    "dropout by a key",
    drawn,
    drawn_grad,
    (numbers(11, 4, 3), numbers(12, 5, 4), key()),
    {
        "drawn again": (
            "another_random_mask",
            r"mask|random|key|draw|bernoulli|condition",
            r"again|random|key|taken from|" + INSTEAD,
        )
    },
)


def evaluated(w, x, train):
    h = x * 2 if train else x
    return jnp.mean(jnp.sin(h @ w))


def evaluated_grad(w, x, train):
    h = x * 2
    return h.T @ jnp.cos(h @ w) / (h @ w).size


CASES = [
    *MASKED,
    *DRAWN,
    Case(
        "trained though evaluated",
        "mode_ignored",
        evaluated,
        evaluated_grad,
        (numbers(13, 4, 3), numbers(14, 5, 4), False),
        (r"args\[1\]|train|<2>|twice", r"args|operand|input|factor"),
    ),
]
