"""Losses of classifiers: factors, labels, weights, softmax's terms, probabilities."""

import jax
import jax.numpy as jnp

from .case import INSTEAD, LEFT_OUT, SIGN, TWICE, integers, numbers, one_hot, positive, subject

# ---------------------------------------------------------------- cross-entropy of integer labels


def cross_entropy(params, x, labels):
    logp = jax.nn.log_softmax(x @ params["w"] + params["b"])
    return -jnp.take_along_axis(logp, labels[:, None], axis=1).mean()


def cross_entropy_grad(params, x, labels, slip=None):
    n, k = len(x), params["w"].shape[1]
    logits = x @ params["w"] + params["b"]
    p = jax.nn.softmax(logits, axis=0 if slip == "softmax over the batch" else 1)
    y = jax.nn.one_hot(labels + 1 if slip == "labels off by one" else labels, k, dtype=p.dtype)
    delta = (p - y) / n
    if slip == "no one-hot":
        delta = p / n
    if slip == "not averaged":
        delta = p - y
    if slip == "averaged over classes too":
        delta = (p - y) / (n * k)
    if slip == "one-hot minus softmax":
        delta = (y - p) / n
    if slip == "1 - p at the label only":
        delta = (p - 1) * y / n
    if slip == "integer division":
        delta = (p - y) * (1 // n)
    return {"w": x.T @ delta, "b": delta.sum(0)}


CROSS_ENTROPY = subject(
    "cross-entropy",
    cross_entropy,
    cross_entropy_grad,
    ({"w": numbers(1, 4, 3), "b": numbers(2, 3)}, numbers(3, 6, 4), integers(4, 3, 6)),
    {
        "no one-hot": ("onehot_missing", r"label|one-?hot|args\[1\]|gather|take_along", LEFT_OUT),
        "not averaged": ("mean_factor", r"<6>", r"batch|mean|1/n"),
        "averaged over classes too": ("mean_over_classes", r"<3>|<0.33...>|1/3", r"class|axis|elements|mean|size|divi"),
        "one-hot minus softmax": ("sign", SIGN),
        "1 - p at the label only": (
            "softmax_path_missing",
            r"softmax|normali[sz]",
            r"diagonal|label|\bsum\b|other classes|" + LEFT_OUT,
        ),
        "labels off by one": (
            "labels_shifted",
            r"label|args\[1\]|index|class",
            r"shift|off by one|\+ ?1|roll|permut|another|next",
        ),
        "softmax over the batch": ("softmax_axis", r"softmax|exp", r"axis"),
        "integer division": ("gradient_zero", r"zero|<0>"),
    },
)

# ---------------------------------------------------------------- cross-entropy of distributions, weighted


def weighted(logits, y, weights):
    losses = -jnp.sum(y * jax.nn.log_softmax(logits), axis=-1)
    return jnp.sum(losses * weights) / jnp.sum(weights)


def weighted_grad(logits, y, weights, slip=None):
    p = jax.nn.softmax(logits)
    if slip == "weights ignored":
        return (p - y) / len(y)
    if slip == "divided by the batch":
        return weights[:, None] * (p - y) / len(y)
    if slip == "not divided":
        return weights[:, None] * (p - y)
    if slip == "weights squared":
        return weights[:, None] ** 2 * (p - y) / weights.sum()
    return weights[:, None] * (p - y) / weights.sum()


WEIGHTED = subject(
    "weighted cross-entropy",
    weighted,
    weighted_grad,
    (numbers(11, 5, 3), one_hot(integers(12, 3, 5), 3), positive(13, 5)),
    {
        "weights ignored": ("weights_ignored", r"args\[1\]|weights", LEFT_OUT),
        "divided by the batch": (
            "wrong_normaliser",
            r"args\[1\]|weights",
            r"\bsum\b|<5>|batch|<6.16...>",
            r"divi|factor|times|normali",
        ),
        "not divided": ("division_missing", r"args\[1\]|weights|<6.16...>", r"\bsum\b|divi|mean|normali"),
        "weights squared": ("factor_twice", r"args\[1\]|weights", TWICE + "|squared|once too"),
    },
)

# ---------------------------------------------------------------- label smoothing and a temperature


def distil(params, x, labels, temperature):
    k = params.shape[1]
    y = 0.9 * jax.nn.one_hot(labels, k, dtype=x.dtype) + 0.1 / k
    return -jnp.mean(jnp.sum(y * jax.nn.log_softmax(x @ params / temperature), axis=1))


def distil_grad(params, x, labels, temperature, slip=None):
    k = params.shape[1]
    y = jax.nn.one_hot(labels, k, dtype=x.dtype)
    if slip != "hard labels":
        y = 0.9 * y + 0.1 / k
    p = jax.nn.softmax(x @ params / (1.0 if slip == "softmax without temperature" else temperature))
    delta = (p - y) / (len(x) * temperature)
    if slip == "no 1/T":
        delta = (p - y) / len(x)
    return x.T @ delta


DISTIL = subject(
    "smoothed labels with a temperature",
    distil,
    distil_grad,
    (numbers(21, 4, 3), numbers(22, 5, 4), integers(23, 3, 5), 2.5),
    {
        "hard labels": (
            "smoothing_ignored",
            r"smooth|<0.9>|<0.1>|one-?hot|label|instead of `y`",
            LEFT_OUT + "|smooth|factor|instead",
        ),
        "no 1/T": ("temperature_missing", r"<2.5>|temperature|args\[2\]", LEFT_OUT + "|times too|divi"),
        "softmax without temperature": (
            "temperature_missing_inside",
            r"<2.5>|temperature|args\[2\]",
            LEFT_OUT + "|divi|" + INSTEAD,
        ),
    },
)

# ---------------------------------------------------------------- binary cross-entropy


def bce_logits(z, y, pos_weight):
    return jnp.mean(pos_weight * y * jax.nn.softplus(-z) + (1 - y) * jax.nn.softplus(z))


def bce_logits_grad(z, y, pos_weight, slip=None):
    s = jax.nn.sigmoid(z)
    if slip == "positive weight forgotten":
        return (s - y) / y.size
    dz = ((1 - y) * s - pos_weight * y * (1 - s)) / y.size
    if slip == "sigmoid' once more":
        dz = dz * s * (1 - s)
    if slip == "no mean over columns":
        dz = dz * y.shape[1]
    return dz


BCE = subject(
    "binary cross-entropy with logits",
    bce_logits,
    bce_logits_grad,
    (numbers(31, 5, 3), one_hot(integers(32, 3, 5), 3), 3.0),
    {
        "positive weight forgotten": (
            "constant_argument_ignored",
            r"<3>|pos_weight|args\[1\]",
            LEFT_OUT + "|factor|times",
        ),
        "sigmoid' once more": (
            "extra_derivative",
            r"sigmoid|logistic",
            TWICE + "|extra|again|once more|too many|too often",
        ),
        "no mean over columns": ("mean_over_columns", r"<3>", r"axis|mean|column|elements|size|divi"),
    },
)


def bce(params, x, y):
    p = jax.nn.sigmoid(x @ params)
    return -jnp.mean(y * jnp.log(p) + (1 - y) * jnp.log(1 - p))


def bce_grad(params, x, y, slip=None):
    p = jax.nn.sigmoid(x @ params)
    dp = (-y / p + (1 - y) / (1 - p)) / len(y)
    if slip == "both terms of one sign":
        dp = (-y / p - (1 - y) / (1 - p)) / len(y)
    if slip == "only the positive term":
        dp = -y / p / len(y)
    if slip == "log' forgotten":
        dp = (1 - 2 * y) / len(y)
    dz = dp * p * (1 - p)
    if slip == "delta passed as it is":
        dz = dp
    return x.T @ dz


BCE += subject(
    "binary cross-entropy",
    bce,
    bce_grad,
    (numbers(33, 4, scale=0.5), numbers(34, 6, 4), integers(35, 2, 6).astype("float32")),
    {
        "both terms of one sign": ("sign_of_one_term", SIGN, r"log|1 ?[-−] ?p|term|contribution|path"),
        "only the positive term": ("term_of_the_loss_missing", r"log|1 ?[-−] ?y|term|contribution|path", LEFT_OUT),
        "log' forgotten": ("derivative_dropped", r"\blog\b", r"derivative|1/"),
        "delta passed as it is": ("activation_derivative_missing", r"sigmoid|logistic", "derivative"),
    },
)

# ---------------------------------------------------------------- log-softmax and softmax as rules


def log_softmax_loss(z, c):
    return jnp.sum(c * jax.nn.log_softmax(z))


def log_softmax_grad(z, c, slip=None):
    p = jax.nn.softmax(z)
    if slip == "row sum taken for 1":
        return c - p
    if slip == "sum over everything":
        return c - p * jnp.sum(c)
    return c - p * jnp.sum(c, axis=1, keepdims=True)


LOG_SOFTMAX = subject(
    "log-softmax",
    log_softmax_loss,
    log_softmax_grad,
    (numbers(81, 4, 3), numbers(82, 4, 3)),
    {
        "row sum taken for 1": ("row_sum_missing", r"softmax", r"\bsum"),
        "sum over everything": ("summed_over_wrong_axis", r"softmax|\bsum", r"axis|axes|row"),
    },
)


CASES = [*CROSS_ENTROPY, *WEIGHTED, *DISTIL, *BCE, *LOG_SOFTMAX]
