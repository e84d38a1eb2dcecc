"""Attention: scale, masks, softmax's terms, heads, the three uses of one input."""

import jax
import jax.numpy as jnp
import numpy as np

from .case import INSTEAD, LEFT_OUT, SIGN, TWICE, numbers, subject, vjp_subject

SCALE = r"<1.732...>|<0.577...>|sqrt\(3|√3|scale"

# ---------------------------------------------------------------- scaled dot product


def attend(q, k, v):
    return jax.nn.softmax(q @ k.T / q.shape[-1] ** 0.5) @ v


def attend_fwd(q, k, v):
    return attend(q, k, v), (q, k, v)


def attend_bwd(saved, dy, slip=None):
    q, k, v = saved
    scale = 1 / q.shape[-1] ** 0.5
    p = jax.nn.softmax(q @ k.T * scale)
    dv = p.T @ dy
    if slip == "values by the scores":
        dv = (q @ k.T * scale).T @ dy
    dp = dy @ v.T
    ds = p * (dp - jnp.sum(dp * p, axis=-1, keepdims=True))
    if slip == "diagonal of softmax only":
        ds = dp * p * (1 - p)
    if slip == "softmax's sum forgotten":
        ds = dp * p
    if slip == "softmax along the queries":
        ds = p * (dp - jnp.sum(dp * p, axis=0, keepdims=True))
    if slip == "softmax left out":
        ds = dp
    if slip == "plus for minus":
        ds = p * (dp + jnp.sum(dp * p, axis=-1, keepdims=True))
    dq, dk = scale * ds @ k, scale * ds.T @ q
    if slip == "not scaled":
        dq, dk = ds @ k, ds.T @ q
    if slip == "queries not scaled":
        dq = ds @ k
    if slip == "divided by d":
        dq, dk = dq * scale, dk * scale
    if slip == "queries for keys":
        dq = scale * ds @ q
    if slip == "scores not transposed":
        dk = scale * ds @ q
    if slip == "keys and values exchanged":
        dk, dv = dv, dk
    return dq, dk, dv


ATTEND = vjp_subject(
    "attention",
    attend,
    attend_fwd,
    attend_bwd,
    (numbers(1, 5, 3), numbers(2, 5, 3), numbers(3, 5, 3)),
    {
        "not scaled": ("attention_scale_missing", SCALE, LEFT_OUT + "|times|divi"),
        "queries not scaled": ("attention_scale_missing_once", SCALE, r"args\[0\]"),
        "divided by d": ("attention_scale_twice", SCALE, TWICE + "|too small|too often|divi"),
        "diagonal of softmax only": ("softmax_diagonal", r"softmax", r"diagonal|\bsum|" + LEFT_OUT),
        "softmax's sum forgotten": (
            "softmax_row_sum_missing",
            r"softmax|logsumexp|normali",
            r"\bsum|statistic|constant|" + LEFT_OUT,
        ),
        "softmax along the queries": ("softmax_axis", r"axis|axes", r"softmax|\bsum"),
        "softmax left out": ("softmax_derivative_missing", r"softmax", LEFT_OUT + "|derivative|Jacobian"),
        "plus for minus": ("sign_of_one_term", SIGN, r"softmax|\bsum|term|path|contribution"),
        "values by the scores": (
            "preactivation_as_input",
            r"softmax|score|probabilit|\bexp|division|matrix product",
            r"before|operand|formed|" + INSTEAD,
        ),
        "queries for keys": ("wrong_operand", r"args\[[01]\]|`[qk]`|transposition", r"operand|formed|" + INSTEAD),
        "scores not transposed": ("transposed_inside", r"transpos"),
        "keys and values exchanged": ("leaves_swapped", r"swap|exchang|interchang|each other"),
    },
)

# ---------------------------------------------------------------- masks


def masked(params, x, lengths):
    """Causal self-attention of a padded batch; the mean over the real tokens."""
    t = x.shape[1]
    real = jnp.arange(t) < lengths[:, None]
    allowed = jnp.tril(jnp.ones((t, t), bool)) & real[:, None, :]
    p = jax.nn.softmax(jnp.where(allowed, x @ params["a"] @ x.transpose(0, 2, 1), -1e30))
    y = jnp.sum((p @ (x @ params["v"])) ** 2, axis=-1)
    return jnp.sum(y * real) / jnp.sum(real)


def masked_grad(params, x, lengths, slip=None):
    t = x.shape[1]
    real = jnp.arange(t) < lengths[:, None]
    allowed = jnp.tril(jnp.ones((t, t), bool)) & real[:, None, :]
    scores = x @ params["a"] @ x.transpose(0, 2, 1)
    p = jax.nn.softmax(jnp.where(allowed, scores, -1e30))
    y = p @ (x @ params["v"])
    dy = 2 * y * real[:, :, None] / real.sum()
    if slip == "padded tokens counted":
        dy = 2 * y / real.sum()
    if slip == "mean over all tokens":
        dy = 2 * y * real[:, :, None] / real.size
    if slip == "causal mask forgotten":
        p = jax.nn.softmax(jnp.where(real[:, None, :], scores, -1e30))
    if slip == "mask transposed":
        p = jax.nn.softmax(jnp.where(allowed.transpose(0, 2, 1), scores, -1e30))
    dp = dy @ (x @ params["v"]).transpose(0, 2, 1)
    ds = p * (dp - jnp.sum(dp * p, axis=-1, keepdims=True))
    return {"a": jnp.einsum("bti,bts,bsj->ij", x, ds, x), "v": jnp.einsum("bts,bsi,btj->ij", p, x, dy)}


MASKED = subject(
    "masked attention",
    masked,
    masked_grad,
    ({"a": numbers(11, 3, 3, scale=0.5), "v": numbers(12, 3, 2)}, numbers(13, 2, 4, 3), np.array([4, 2], np.int32)),
    {
        "padded tokens counted": ("padding_mask_ignored", r"mask|args\[1\]|length|product|padd", LEFT_OUT),
        "mean over all tokens": ("mean_over_padding", r"<0.75>|<1.33...>|6/8|3/4|4/3|<8>"),
        "causal mask forgotten": (
            "causal_mask_missing",
            r"mask|condition|causal",
            LEFT_OUT + "|all True|taken from|" + INSTEAD,
        ),
        "mask transposed": ("mask_transposed", r"mask|condition|causal", r"transpos|taken from|" + INSTEAD),
    },
)

# ---------------------------------------------------------------- heads


def heads(params, x):
    b, t, _ = x.shape
    q, k, v = jnp.split((x @ params["qkv"]).reshape(b, t, 2, -1), 3, axis=-1)
    p = jax.nn.softmax(jnp.einsum("bthc,bshc->bhts", q, k))
    y = jnp.einsum("bhts,bshc->bthc", p, v)
    return jnp.sum(jnp.sin(y.reshape(b, t, -1) @ params["out"]))


def heads_grad(params, x, slip=None):
    b, t, _ = x.shape
    q, k, v = jnp.split((x @ params["qkv"]).reshape(b, t, 2, -1), 3, axis=-1)
    p = jax.nn.softmax(jnp.einsum("bthc,bshc->bhts", q, k))
    y = jnp.einsum("bhts,bshc->bthc", p, v).reshape(b, t, -1)
    dz = jnp.cos(y @ params["out"])
    if slip == "heads not brought back":
        y = jnp.einsum("bhts,bshc->bhtc", p, v).reshape(b, t, -1)
    dy = (dz @ params["out"].T).reshape(b, t, 2, -1)
    dv = jnp.einsum("bhts,bthc->bshc", p, dy)
    dp = jnp.einsum("bthc,bshc->bhts", dy, v)
    ds = p * (dp - jnp.sum(dp * p, axis=-1, keepdims=True))
    dq, dk = jnp.einsum("bhts,bshc->bthc", ds, k), jnp.einsum("bhts,bthc->bshc", ds, q)
    if slip == "keys forgotten":
        dk = jnp.zeros_like(dk)
    if slip == "in another order":
        dq, dk, dv = dk, dq, dv
    parts = jnp.concatenate([dq, dk, dv], axis=-1)
    if slip == "split before the heads":
        parts = jnp.stack([dq, dk, dv], axis=2)
    dqkv = parts.reshape(b, t, -1)
    return {"qkv": jnp.einsum("bti,bto->io", x, dqkv), "out": jnp.einsum("bti,bto->io", y, dz)}


HEADS = subject(
    "heads",
    heads,
    heads_grad,
    ({"qkv": numbers(21, 3, 12), "out": numbers(22, 4, 3)}, numbers(23, 2, 3, 3)),
    {
        "heads not brought back": ("heads_not_transposed", r"transpos|reshape|permut|\border|axes"),
        "keys forgotten": ("columns_zero", LEFT_OUT + "|zero|<0>", r"column|split|slice|axis 1|contribution|path"),
        "in another order": (
            "columns_permuted",
            r"permut|\border|exchang|swap|shuffl|" + INSTEAD,
            r"split|column|slice|axis|entries|part",
        ),
        "split before the heads": ("reshape_order", r"permut|\border|reshape|transpos|shuffl"),
    },
)

# ---------------------------------------------------------------- one input in three roles


def self_attention(x, c):
    return jnp.sum(c * (jax.nn.softmax(x @ x.T) @ x))


def self_attention_grad(x, c, slip=None):
    p = jax.nn.softmax(x @ x.T)
    dp = c @ x.T
    ds = p * (dp - jnp.sum(dp * p, axis=-1, keepdims=True))
    if slip == "as value only":
        return p.T @ c
    if slip == "not as key":
        return p.T @ c + ds @ x
    if slip == "not as value":
        return ds @ x + ds.T @ x
    return p.T @ c + ds @ x + ds.T @ x


ROLE = r"\buses?\b|path|contribution"
SELF = subject(
    "self-attention",
    self_attention,
    self_attention_grad,
    (numbers(31, 4, 3, scale=0.7), numbers(32, 4, 3)),
    {
        "as value only": ("one_use_of_three", ROLE, LEFT_OUT),
        "not as key": ("two_uses_of_three", ROLE, LEFT_OUT),
        "not as value": ("two_uses_of_three", ROLE, LEFT_OUT),
    },
)

CASES = ATTEND + MASKED + HEADS + SELF
