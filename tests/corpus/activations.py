"""Activations' derivatives, masks, and the two paths of a residual block."""

import jax
import jax.numpy as jnp

from .case import INSTEAD, LEFT_OUT, SIGN, TWICE, numbers, subject, vjp_subject

# ---------------------------------------------------------------- sigmoid at both layers


def sigmoid_net(params, x, y):
    a1 = jax.nn.sigmoid(x @ params["w1"] + params["b1"])
    a2 = jax.nn.sigmoid(a1 @ params["w2"] + params["b2"])
    return jnp.mean(jnp.sum((a2 - y) ** 2, axis=1))


def sigmoid_net_grad(params, x, y, slip=None):
    z1 = x @ params["w1"] + params["b1"]
    a1 = 1 / (1 + jnp.exp(-z1))
    z2 = a1 @ params["w2"] + params["b2"]
    a2 = 1 / (1 + jnp.exp(-z2))
    delta2 = 2 * (a2 - y) / x.shape[0] * a2 * (1 - a2)
    if slip == "delta of cross-entropy":
        delta2 = 2 * (a2 - y) / x.shape[0]
    delta1 = delta2 @ params["w2"].T * a1 * (1 - a1)
    if slip == "z (1 - z)":
        delta1 = delta2 @ params["w2"].T * z1 * (1 - z1)
    if slip == "sigmoid' of sigmoid":
        s = 1 / (1 + jnp.exp(-a1))
        delta1 = delta2 @ params["w2"].T * s * (1 - s)
    if slip == "1 + a":
        delta1 = delta2 @ params["w2"].T * a1 * (1 + a1)
    if slip == "derivative of the wrong layer":
        delta1 = delta2 @ (params["w2"] * (a1 * (1 - a1)).mean(0)[:, None]).T
    return {"w1": x.T @ delta1, "b1": delta1.sum(0), "w2": a1.T @ delta2, "b2": delta2.sum(0)}


SIGMOID = subject(
    "sigmoid net",
    sigmoid_net,
    sigmoid_net_grad,
    (
        {"w1": numbers(21, 3, 4), "b1": numbers(22, 4), "w2": numbers(23, 4, 2), "b2": numbers(24, 2)},
        numbers(25, 5, 3),
        numbers(26, 5, 2),
    ),
    {
        "delta of cross-entropy": (
            "activation_derivative_missing",
            r"sigmoid|logistic",
            r"derivative|sigmoid'|\(1 ?[-−]",
        ),
        "z (1 - z)": (
            "derivative_at_preactivation",
            r"sigmoid|logistic",
            r"pre-?activation|z ?\*? ?\(1|input|instead of|in place of",
        ),
        "sigmoid' of sigmoid": (
            "derivative_at_output",
            r"sigmoid|logistic",
            r"output|twice|pre-?activation|at the activation|already",
        ),
        "1 + a": ("derivative_formula", r"sigmoid|logistic", r"derivative|\(1 ?[-−]|sign"),
        "derivative of the wrong layer": ("derivative_averaged", r"averag|the mean|their sum is not"),
    },
)

# ---------------------------------------------------------------- one layer and an activation, as a custom_vjp


def phi(z):
    return jnp.exp(-(z**2) / 2) / jnp.sqrt(2 * jnp.pi)


def gelu_layer(x, w):
    return jax.nn.gelu(x @ w, approximate=False)


def gelu_fwd(x, w):
    return gelu_layer(x, w), (x, w, x @ w)


def gelu_bwd(saved, dy, slip=None):
    x, w, z = saved
    cdf = 0.5 * (1 + jax.scipy.special.erf(z / 2**0.5))
    dz = dy * (cdf + z * phi(z))
    if slip == "Phi only":
        dz = dy * cdf
    if slip == "derivative of the tanh form":
        t = jnp.tanh((2 / jnp.pi) ** 0.5 * (z + 0.044715 * z**3))
        dz = dy * (0.5 * (1 + t) + 0.5 * z * (1 - t**2) * (2 / jnp.pi) ** 0.5 * (1 + 3 * 0.044715 * z**2))
    if slip == "no sqrt 2":
        dz = dy * (0.5 * (1 + jax.scipy.special.erf(z)) + z * phi(z))
    if slip == "dy ignored":
        dz = cdf + z * phi(z)
    return dz @ w.T, x.T @ dz


GELU = vjp_subject(
    "gelu layer",
    gelu_layer,
    gelu_fwd,
    gelu_bwd,
    (numbers(31, 5, 3), numbers(32, 3, 4)),
    {
        "Phi only": ("product_rule_term", r"gelu|erf|product", LEFT_OUT + "|term"),
        "derivative of the tanh form": ("another_variants_derivative", r"tanh|approximat", r"gelu|erf"),
        "no sqrt 2": ("constant_left_out", r"gelu|erf|\bcdf|Φ", r"sqrt|√|<1.41...>|<0.707...>|argument|scal|constant"),
        "dy ignored": ("cotangent_ignored", r"\bdy\b|cotangent|incoming", LEFT_OUT + "|as if|taken as|ones"),
    },
)


def leaky_layer(params, x):
    z = x @ params["w"] + params["b"]
    return jnp.where(z > 0, z, 0.1 * z)


def leaky_fwd(params, x):
    return leaky_layer(params, x), (params, x)


def leaky_bwd(saved, dy, slip=None):
    params, x = saved
    z = x @ params["w"] + params["b"]
    dz = jnp.where(z > 0, 1.0, 0.1) * dy
    if slip == "slope forgotten":
        dz = jnp.where(z > 0, dy, 0.0)
    if slip == "mask forgotten":
        dz = dy
    if slip == "mask of the input's mean":
        dz = jnp.where(z > z.mean(), 1.0, 0.1) * dy
    return {"w": x.T @ dz, "b": dz.sum(0)}, dz @ params["w"].T


LEAKY = vjp_subject(
    "leaky relu layer",
    leaky_layer,
    leaky_fwd,
    leaky_bwd,
    ({"w": numbers(41, 3, 4), "b": numbers(42, 4)}, numbers(43, 5, 3)),
    {
        "slope forgotten": ("branch_dropped", r"where|<0.1>|slope|branch|negative", LEFT_OUT),
        "mask forgotten": ("mask_not_applied", r"where|mask|<0.1>", LEFT_OUT + "|everywhere"),
        "mask of the input's mean": (
            "mask_shifted",
            r"mask|condition|threshold|predicate",
            INSTEAD + "|taken from|compar",
        ),
    },
)

# ---------------------------------------------------------------- a residual block


def block(params, x):
    return x + jnp.tanh(x @ params["w1"]) @ params["w2"]


def block_fwd(params, x):
    return block(params, x), (params, x)


def block_bwd(saved, dy, slip=None):
    params, x = saved
    h = jnp.tanh(x @ params["w1"])
    dh = dy @ params["w2"].T * (1 - h**2)
    dx = dy + dh @ params["w1"].T
    if slip == "skip forgotten":
        dx = dh @ params["w1"].T
    if slip == "branch forgotten":
        dx = dy
    if slip == "skip counted twice":
        dx = 2 * dy + dh @ params["w1"].T
    if slip == "skip subtracted":
        dx = dh @ params["w1"].T - dy
    return {"w1": x.T @ dh, "w2": h.T @ dy}, dx


BLOCK = vjp_subject(
    "residual block",
    block,
    block_fwd,
    block_bwd,
    ({"w1": numbers(51, 4, 3), "w2": numbers(52, 3, 4)}, numbers(53, 5, 4)),
    {
        "skip forgotten": ("skip_lost", r"skip|residual|straight|identity|\buses?\b", LEFT_OUT),
        "branch forgotten": ("one_path_only", r"\buses?\b|path|contribution|branch|\['w[12]'\]", LEFT_OUT),
        "skip counted twice": ("counted_twice", r"skip|residual|straight|path|\bdy\b", TWICE),
        "skip subtracted": ("sign_of_one_term", r"skip|residual|straight|path|\bdy\b", SIGN),
    },
)


CASES = [*SIGMOID, *GELU, *LEAKY, *BLOCK]
