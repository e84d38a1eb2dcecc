"""Similarity losses: norms, active triplets, one array in two roles."""

import jax
import jax.numpy as jnp

from .case import INSTEAD, LEFT_OUT, SIGN, numbers, subject

# ---------------------------------------------------------------- similarities


def cosine(a, b):
    norms = jnp.linalg.norm(a, axis=1) * jnp.linalg.norm(b, axis=1)
    return jnp.mean(1 - jnp.sum(a * b, axis=1) / norms)


def cosine_grad(a, b, slip=None):
    na, nb = jnp.linalg.norm(a, axis=1, keepdims=True), jnp.linalg.norm(b, axis=1, keepdims=True)
    c = jnp.sum(a * b, axis=1, keepdims=True) / (na * nb)
    da = -(b / (na * nb) - c * a / na**2) / len(a)
    if slip == "norm held constant":
        da = -b / (na * nb) / len(a)
    if slip == "projection added":
        da = -(b / (na * nb) + c * a / na**2) / len(a)
    if slip == "projection without the norm":
        da = -(b / (na * nb) - c * a / na) / len(a)
    return da


def triplet(e, margin):
    a, p, n = jnp.split(e, 3)
    gap = jnp.sum((a - p) ** 2, axis=1) - jnp.sum((a - n) ** 2, axis=1) + margin
    return jnp.mean(jnp.maximum(gap, 0))


def triplet_grad(e, margin, slip=None):
    a, p, n = jnp.split(e, 3)
    gap = jnp.sum((a - p) ** 2, axis=1) - jnp.sum((a - n) ** 2, axis=1) + margin
    on = (gap > 0)[:, None] / len(a)
    if slip == "satisfied triplets too":
        on = 1 / len(a)
    da, dp, dn = 2 * (n - p) * on, 2 * (p - a) * on, 2 * (a - n) * on
    if slip == "anchor forgotten":
        da = jnp.zeros_like(da)
    if slip == "negative pulled":
        dn = -dn
    return jnp.concatenate([da, dp, dn])


def contrastive(z):
    s = z @ z.T / 0.5
    s = jnp.where(jnp.eye(len(z), dtype=bool), -jnp.inf, s)
    pairs = jnp.arange(len(z)) ^ 1
    return -jnp.mean(jax.nn.log_softmax(s)[jnp.arange(len(z)), pairs])


def contrastive_grad(z, slip=None):
    n = len(z)
    s = z @ z.T / 0.5
    s = jnp.where(jnp.eye(n, dtype=bool), -jnp.inf, s)
    ds = (jax.nn.softmax(s) - jax.nn.one_hot(jnp.arange(n) ^ 1, n, dtype=z.dtype)) / n / 0.5
    if slip == "rows only":
        return ds @ z
    if slip == "columns only":
        return ds.T @ z
    if slip == "taken for symmetric":
        return 2 * ds @ z
    return (ds + ds.T) @ z


SIMILARITIES = [
    *subject(
        "cosine",
        cosine,
        cosine_grad,
        (numbers(71, 4, 3), numbers(72, 4, 3)),
        {
            "norm held constant": ("norm_held_constant", "norm", LEFT_OUT + "|constant"),
            "projection added": ("sign_of_one_term", SIGN, r"norm|projection|division|path|contribution"),
            "projection without the norm": (
                "norm_forgotten",
                r"norm|square root|sqrt",
                r"divi|factor|derivative|square|power|" + INSTEAD,
            ),
        },
    ),
    *subject(
        "triplet",
        triplet,
        triplet_grad,
        (numbers(73, 9, 2), 0.5),
        {
            "satisfied triplets too": ("hinge_mask_missing", r"max|relu|mask|hinge", LEFT_OUT),
            "anchor forgotten": ("rows_zero", LEFT_OUT + "|zero|<0>", r"\brows?\b|split|slice|first|0 to 2|`a`"),
            "negative pulled": ("sign_of_some_rows", SIGN, r"\brows?\b|split|slice|difference|path|contribution|term"),
        },
    ),
    *subject(
        "contrastive",
        contrastive,
        contrastive_grad,
        (numbers(74, 4, 3),),
        {
            "rows only": ("one_use_of_two", r"\buses?\b|path|contribution|operand|transpos|both", LEFT_OUT),
            "columns only": ("one_use_of_two", r"\buses?\b|path|contribution|operand|transpos|both", LEFT_OUT),
            "taken for symmetric": ("assumed_symmetric", r"symmetr|transpos|\buses?\b|contribution"),
        },
    ),
]


CASES = [*SIMILARITIES]
