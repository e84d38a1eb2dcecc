"""Regression and its relatives: branches of a loss, regularizers, distributions."""

import jax
import jax.numpy as jnp

from .case import INSTEAD, LEFT_OUT, SIGN, TWICE, numbers, positive, subject

# ---------------------------------------------------------------- huber


def huber(params, x, y, delta):
    r = x @ params["w"] + params["b"] - y
    a = jnp.abs(r)
    return jnp.mean(jnp.where(a <= delta, 0.5 * r**2, delta * (a - 0.5 * delta)))


def huber_grad(params, x, y, delta, slip=None):
    r = x @ params["w"] + params["b"] - y
    if slip == "not clipped":
        d = r
    elif slip == "no delta in the linear part":
        d = jnp.where(jnp.abs(r) <= delta, r, jnp.sign(r))
    elif slip == "no sign in the linear part":
        d = jnp.where(jnp.abs(r) <= delta, r, delta)
    elif slip == "zero in the linear part":
        d = jnp.where(jnp.abs(r) <= delta, r, 0)
    else:
        d = jnp.clip(r, -delta, delta)
    d = d / len(y)
    return {"w": x.T @ d, "b": d.sum()}


HUBER = subject(
    "huber",
    huber,
    huber_grad,
    ({"w": numbers(41, 3), "b": numbers(42)}, numbers(43, 8, 3), numbers(44, 8), 0.7),
    {
        "not clipped": (
            "clip_missing",
            r"where|mask|huber|clip|branch",
            r"condition|clip|branch|everywhere|" + LEFT_OUT,
        ),
        "no delta in the linear part": ("factor_of_a_branch", r"<0.7>|delta|args\[2\]", LEFT_OUT + "|factor"),
        "no sign in the linear part": ("sign_of_abs_missing", r"absolute value|\babs\b", r"derivative|sign"),
        "zero in the linear part": ("branch_dropped", r"where|branch|clip|linear|contribution", LEFT_OUT + "|zero"),
    },
)

# ---------------------------------------------------------------- regularizers


def ridge(params, x, y, lam):
    r = x @ params["w"] + params["b"] - y
    return jnp.mean(r**2) + lam / 2 * jnp.sum(params["w"] ** 2)


def ridge_grad(params, x, y, lam, slip=None):
    d = 2 * (x @ params["w"] + params["b"] - y) / len(y)
    dw, db = x.T @ d, d.sum(keepdims=True)
    if slip == "penalty doubled":
        return {"w": dw + 2 * lam * params["w"], "b": db}
    if slip == "penalty missing":
        return {"w": dw, "b": db}
    if slip == "penalty on the bias too":
        return {"w": dw + lam * params["w"], "b": db + lam * params["b"]}
    if slip == "penalty averaged":
        return {"w": dw + lam * params["w"] / len(y), "b": db}
    if slip == "penalty subtracted":
        return {"w": dw - lam * params["w"], "b": db}
    if slip == "penalty of L1":
        return {"w": dw + lam * jnp.sign(params["w"]), "b": db}
    return {"w": dw + lam * params["w"], "b": db}


L2 = r"L2|penalt|weight decay|regulari[sz]|times params\['w'\]"
RIDGE = subject(
    "ridge",
    ridge,
    ridge_grad,
    ({"w": numbers(51, 4), "b": numbers(52, 1)}, numbers(53, 6, 4), numbers(54, 6), 0.3),
    {
        "penalty missing": ("l2_missing", L2, LEFT_OUT),
        "penalty doubled": ("l2_doubled", L2, TWICE + "|too many"),
        "penalty on the bias too": (
            "l2_on_bias",
            r"L2|penalt|weight decay|regulari[sz]|times params\['b'\]",
            r"\['b'\]",
            r"not|bias|too many",
        ),
        "penalty averaged": ("l2_averaged", L2 + "|squares?", r"<6>|<0.25>|<0.05>"),
        "penalty subtracted": ("l2_sign", L2 + "|squares?", SIGN),
        "penalty of L1": ("l2_as_l1", L2 + "|squares?|L1", r"sign\(|sign of|L1|\babs"),
    },
)


def lasso(w, x, y, lam):
    return 0.5 * jnp.mean((x @ w - y) ** 2) + lam * jnp.sum(jnp.abs(w))


def lasso_grad(w, x, y, lam, slip=None):
    dw = x.T @ (x @ w - y) / len(y)
    if slip == "lambda without sign":
        return dw + lam
    if slip == "penalty of L2":
        return dw + lam * w
    return dw + lam * jnp.sign(w)


RIDGE += subject(
    "lasso",
    lasso,
    lasso_grad,
    (numbers(55, 5), numbers(56, 6, 5), numbers(57, 6), 0.2),
    {
        "lambda without sign": ("l1_sign_missing", r"absolute value|\babs\b|L1", r"derivative|sign"),
        "penalty of L2": ("l1_as_l2", r"absolute value|\babs\b|L1|sign", r"L2|times params|square|itself|" + INSTEAD),
    },
)

# ---------------------------------------------------------------- distributions


def vae(params, x, noise):
    z = params["mean"] + jnp.exp(0.5 * params["logvar"]) * noise
    kl = -0.5 * jnp.sum(1 + params["logvar"] - params["mean"] ** 2 - jnp.exp(params["logvar"]))
    return 0.5 * jnp.sum((z - x) ** 2) + kl


def vae_grad(params, x, noise, slip=None):
    mean, logvar = params["mean"], params["logvar"]
    std = jnp.exp(0.5 * logvar)
    dz = mean + std * noise - x
    dmean, dlogvar = dz + mean, 0.5 * dz * noise * std + 0.5 * (jnp.exp(logvar) - 1)
    if slip == "no -1":
        dlogvar = 0.5 * dz * noise * std + 0.5 * jnp.exp(logvar)
    if slip == "noise ignored":
        dlogvar = 0.5 * (jnp.exp(logvar) - 1)
    if slip == "half of the exponent forgotten":
        dlogvar = dz * noise * std + 0.5 * (jnp.exp(logvar) - 1)
    if slip == "kl left out of the mean":
        dmean = dz
    return {"mean": dmean, "logvar": dlogvar}


DISTRIBUTIONS = subject(
    "variational autoencoder",
    vae,
    vae_grad,
    ({"mean": numbers(61, 3, 2), "logvar": numbers(62, 3, 2, scale=0.5)}, numbers(63, 3, 2), numbers(64, 3, 2)),
    {
        "no -1": ("constant_missing", r"logvar", r"constant|contribution|term|<0.5>", LEFT_OUT + "|too many"),
        "noise ignored": ("path_stopped", r"logvar", r"noise|args\[1\]|exp|product", LEFT_OUT),
        "half of the exponent forgotten": ("constant_factor_missing", r"<0.5>|<2>|1/2", r"factor|times|mul"),
        "kl left out of the mean": (
            "term_missing",
            r"\['mean'\]",
            r"square|term|path|contribution|times params",
            LEFT_OUT,
        ),
    },
)


def kl(logits, p):
    return jnp.sum(p * (jnp.log(p) - jax.nn.log_softmax(logits))) / len(p)


def kl_grad(logits, p, slip=None):
    q = jax.nn.softmax(logits)
    if slip == "reversed":
        r = jnp.log(q) - jnp.log(p)
        return q * (r - jnp.sum(q * r, axis=1, keepdims=True)) / len(p)
    if slip == "p / q":
        return -p / q / len(p)
    return (q - p) / len(p)


DISTRIBUTIONS += subject(
    "Kullback-Leibler",
    kl,
    kl_grad,
    (numbers(65, 4, 3), (lambda a: a / a.sum(1, keepdims=True))(positive(66, 4, 3))),
    {
        "reversed": ("another_function", r"revers|direction|exchang|swap"),
        "p / q": ("softmax_derivative_missing", r"softmax|\bexp|logsumexp", r"derivative|Jacobian|" + LEFT_OUT),
    },
)


CASES = [*HUBER, *RIDGE, *DISTRIBUTIONS]
