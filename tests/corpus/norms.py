"""Normalizations: the statistics' own paths, the scale, axes, eps, norms held constant."""

import jax.numpy as jnp

from .case import INSTEAD, LEFT_OUT, SIGN, numbers, positive, subject, vjp_subject

VARIANCE = r"variance|standard deviation|`var`|`std`|square root|mean of squares|√"
PATH = LEFT_OUT + "|constant|contribution|path|only (the )?one"
EPS = 0.1  # large, so that its place matters

# ---------------------------------------------------------------- batch norm


def batch_norm(x, gamma, beta):
    mean = x.mean(0)
    var = ((x - mean) ** 2).mean(0)
    return gamma * (x - mean) / jnp.sqrt(var + EPS) + beta


def batch_norm_fwd(x, gamma, beta):
    return batch_norm(x, gamma, beta), (x, gamma)


def batch_norm_bwd(saved, dy, slip=None):
    x, gamma = saved
    n = len(x)
    xc = x - x.mean(0)
    var = (xc**2).mean(0)
    std = jnp.sqrt(var + EPS)
    if slip == "eps outside the root":
        std = jnp.sqrt(var) + EPS
    if slip == "variance of n - 1":
        std = jnp.sqrt(var * n / (n - 1) + EPS)
    xhat = xc / std
    dgamma, dbeta = (dy * xhat).sum(0), dy.sum(0)
    if slip == "scale's gradient of x":
        dgamma = (dy * x).sum(0)
    if slip == "shift's gradient averaged":
        dbeta = dy.mean(0)
    g = dy * gamma
    if slip == "no gamma":
        g = dy
    if slip == "mean held constant":
        dx = (g - xhat * (g * xhat).mean(0)) / std
    elif slip == "variance held constant":
        dx = (g - g.mean(0)) / std
    elif slip == "statistics held constant":
        dx = g / std
    elif slip == "sums not divided by n":
        dx = (g - g.sum(0) - xhat * (g * xhat).sum(0)) / std
    elif slip == "not divided by std":
        dx = g - g.mean(0) - xhat * (g * xhat).mean(0)
    elif slip == "running statistics":
        dx = g / jnp.sqrt(1 + EPS)
    elif slip == "over the features":
        dx = (g - g.mean(1, keepdims=True) - xhat * (g * xhat).mean(1, keepdims=True)) / std
    else:
        dx = (g - g.mean(0) - xhat * (g * xhat).mean(0)) / std
    return dx, dgamma, dbeta


BATCH_NORM = vjp_subject(
    "batch norm",
    batch_norm,
    batch_norm_fwd,
    batch_norm_bwd,
    (numbers(1, 6, 4), positive(2, 4), numbers(3, 4)),
    {
        "mean held constant": ("bn_mean_term_dropped", r"the mean\b(?! of squares)|`mean`", PATH),
        "variance held constant": ("bn_variance_term_dropped", VARIANCE, PATH),
        "statistics held constant": (
            "bn_statistics_constant",
            r"mean.*\bvar|var\b.*mean|variance.*mean|statistics|only (the )?one",
            PATH,
        ),
        "no gamma": ("scale_missing", r"gamma|args\[1\]", LEFT_OUT + "|factor"),
        "scale's gradient of x": (
            "normalised_input_expected",
            r"args\[1\]|gamma",
            r"normali[sz]|x ?hat|deviation|args\[0\] \* dy|divided by|" + INSTEAD,
        ),
        "shift's gradient averaged": ("bias_averaged", r"args\[2\]|beta", r"<6>", r"sum|mean|averag"),
        "eps outside the root": (
            "eps_place",
            r"\beps|epsilon|<0.1>",
            r"root|sqrt|outside|inside|add|standard|constant",
        ),
        "variance of n - 1": (
            "unbiased_variance",
            r"variance|standard|\bvar\b",
            r"5/6|6/5|<1.2>|<0.833...>|n ?[-−] ?1|unbiased|one less",
        ),
        "sums not divided by n": ("mean_factor_inside", r"<6>|1/n", r"divi|1/n|mean", LEFT_OUT),
        "not divided by std": (
            "division_missing",
            r"standard deviation|\bstd\b|square root|sqrt|variance",
            LEFT_OUT + "|factor|divi",
        ),
        "running statistics": ("another_function", r"mean|variance|statistic|args\[1\] \* dy", LEFT_OUT + "|constant"),
        "over the features": ("statistics_over_wrong_axis", r"axis|axes", INSTEAD + "|over the (batch|features)"),
    },
)

# ---------------------------------------------------------------- layer norm


def layer_norm(x, gamma, beta):
    mean = x.mean(-1, keepdims=True)
    var = x.var(-1, keepdims=True)
    return gamma * (x - mean) / jnp.sqrt(var + 1e-5) + beta


def layer_norm_fwd(x, gamma, beta):
    return layer_norm(x, gamma, beta), (x, gamma)


def layer_norm_bwd(saved, dy, slip=None):
    x, gamma = saved
    xc = x - x.mean(-1, keepdims=True)
    std = jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    xhat = xc / std
    batch = tuple(range(x.ndim - 1))
    dgamma, dbeta = (dy * xhat).sum(batch), dy.sum(batch)
    g = gamma * dy
    c1, c2 = g.mean(-1, keepdims=True), (g * xhat).mean(-1, keepdims=True)
    if slip == "means over the batch":
        c1, c2 = g.mean(0), (g * xhat).mean(0)
    if slip == "means of dy":
        c1, c2 = dy.mean(-1, keepdims=True), (dy * xhat).mean(-1, keepdims=True)
    if slip == "variance term dropped":
        c2 = 0
    if slip == "variance term added":
        c2 = -c2
    dx = (g - c1 - xhat * c2) / std
    if slip == "variance for std":
        dx = (g - c1 - xhat * c2) / std**2
    return dx, dgamma, dbeta


LAYER_NORM = vjp_subject(
    "layer norm",
    layer_norm,
    layer_norm_fwd,
    layer_norm_bwd,
    (numbers(11, 2, 3, 5), positive(12, 5), numbers(13, 5)),
    {
        "means over the batch": ("statistics_over_wrong_axis", r"axis|axes", INSTEAD + "|over the (batch|features)"),
        "means of dy": ("scale_missing_in_a_term", r"gamma|args\[1\]", LEFT_OUT + "|factor|scale|" + INSTEAD),
        "variance term dropped": ("ln_variance_term_dropped", VARIANCE + "|projection|component|division", PATH),
        "variance term added": ("sign_of_one_term", SIGN, VARIANCE + "|projection|component|division"),
        "variance for std": ("sqrt_forgotten", VARIANCE, LEFT_OUT + "|factor|divi|twice"),
    },
)

# ---------------------------------------------------------------- rms norm, weight norm, unit vectors


def rms_norm(params, x, c):
    r = jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True))
    return jnp.sum(c * params * x / r)


def rms_norm_grad(params, x, c, slip=None):
    r = jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True))
    g = c * params
    s = jnp.sum(g * x, axis=-1, keepdims=True)
    dx = g / r - x * s / (x.shape[-1] * r**3)
    if slip == "no 1/n in the second term":
        dx = g / r - x * s / r**3
    if slip == "rms held constant":
        dx = g / r
    if slip == "square instead of cube":
        dx = g / r - x * s / (x.shape[-1] * r**2)
    return jnp.sum(c * x / r, axis=0), dx


RMS_NORM = subject(
    "rms norm",
    rms_norm,
    rms_norm_grad,
    (positive(21, 4), numbers(22, 5, 4), numbers(23, 5, 4)),
    {
        "rms held constant": (
            "norm_held_constant",
            r"\brms|mean of squares|norm\b|square root|projection|component",
            PATH,
        ),
        "no 1/n in the second term": ("mean_factor_inside", r"<4>", r"divi|mean|1/n|size|length"),
        "square instead of cube": (
            "wrong_power",
            r"quotient|power|\^2|\*\* ?2|cube|divi",
            r"derivative|belongs|factor|power|once|" + INSTEAD,
        ),
    },
    argnums=(0, 1),
)


def weight_norm(params, x, y):
    w = params["g"] * params["v"] / jnp.linalg.norm(params["v"], axis=0)
    return jnp.mean((x @ w - y) ** 2)


def weight_norm_grad(params, x, y, slip=None):
    g, v = params["g"], params["v"]
    norm = jnp.linalg.norm(v, axis=0)
    dw = x.T @ (2 * (x @ (g * v / norm) - y) / y.size)
    dg = (dw * v).sum(0) / norm
    if slip == "g not normalised":
        dg = (dw * v).sum(0)
    dv = g / norm * (dw - v * dg / norm)
    if slip == "norm held constant":
        dv = g / norm * dw
    if slip == "v's gradient is w's":
        dv = dw
    return {"g": dg, "v": dv}


WEIGHT_NORM = subject(
    "weight norm",
    weight_norm,
    weight_norm_grad,
    ({"g": positive(31, 3), "v": numbers(32, 4, 3)}, numbers(33, 5, 4), numbers(34, 5, 3)),
    {
        "norm held constant": ("norm_held_constant", r"\bnorm\b|sum of squares|projection|component", PATH),
        "v's gradient is w's": (
            "reparametrisation_ignored",
            r"\['v'\]",
            r"\['g'\]|\bnorm\b|sum of squares|projection|component",
            LEFT_OUT + "|divi|factor",
        ),
        "g not normalised": ("division_missing", r"\bnorm\b|sum of squares|square root", r"divi"),
    },
)

CASES = BATCH_NORM + LAYER_NORM + RMS_NORM + WEIGHT_NORM
