"""Right formulas with wrong numbers: low precision inside, cancellation, overflow, rounded constants."""

import jax
import jax.numpy as jnp
import numpy as np

from .case import Case, integers, numbers, subject

LOW = r"precision|rounding|rounded|cancel|digits|overflow|accura"


def net(params, x, y):
    return jnp.mean((jnp.tanh(x @ params["w1"]) @ params["w2"] - y) ** 2)


def net_grad(params, x, y, slip=None):
    low = {"bfloat16 inside": jnp.bfloat16, "float16 inside": jnp.float16}.get(slip or "", x.dtype)
    w1, w2 = params["w1"].astype(low), params["w2"].astype(low)
    h = jnp.tanh(x.astype(low) @ w1)
    d = 2 * (h @ w2 - y.astype(low)) / y.size
    grads = {"w1": x.astype(low).T @ (d @ w2.T * (1 - h**2)), "w2": h.T @ d}
    return jax.tree.map(lambda g: g.astype(x.dtype), grads)


NET = subject(
    "net",
    net,
    net_grad,
    ({"w1": numbers(1, 4, 5), "w2": numbers(2, 5, 3)}, numbers(3, 6, 4), numbers(4, 6, 3)),
    {
        "bfloat16 inside": ("low_precision", r"bfloat16|bf16|2\^?-8|8 bits|low precision|precision"),
        "float16 inside": ("low_precision", r"float16|2\^?-11|11 bits|low precision|precision"),
    },
)


def standardised(x, c):
    return jnp.sum(c * (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5))


def standardised_grad(x, c, slip=None):
    mean = x.mean(0)
    var = ((x - mean) ** 2).mean(0)
    if slip == "E[x²] - E[x]²":
        var = (x**2).mean(0) - mean**2
    std = jnp.sqrt(var + 1e-5)
    xhat = (x - mean) / std
    return (c - c.mean(0) - xhat * (c * xhat).mean(0)) / std


STANDARDISED = subject(
    "standardised",
    standardised,
    standardised_grad,
    (numbers(11, 7, 3, shift=300), numbers(12, 7, 3)),
    {"E[x²] - E[x]²": ("cancellation", LOW)},
)


def classified(logits, labels):
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels])


def classified_grad(logits, labels, slip=None):
    p = jax.nn.softmax(logits)
    if slip == "exponentials not shifted":
        p = jnp.exp(logits) / jnp.sum(jnp.exp(logits), axis=1, keepdims=True)
    return (p - jax.nn.one_hot(labels, logits.shape[1], dtype=p.dtype)) / len(labels)


CLASSIFIED = subject(
    "large logits",
    classified,
    classified_grad,
    (numbers(21, 5, 3, scale=2, shift=95), integers(22, 3, 5)),
    {"exponentials not shifted": ("overflow", r"overflow|nan|inf", r"float32|precision|overflow|exp|range")},
)


def total_grad(params, x, slip=None):
    if slip == "exp / (1 + exp)":
        e = jnp.exp(x * params)
        return jnp.sum(x * e / (1 + e))
    return jnp.sum(x * jax.nn.sigmoid(x * params))


def softplus_total(params, x):
    return jnp.sum(jax.nn.softplus(x * params))


SOFTPLUS = subject(
    "softplus",
    softplus_total,
    total_grad,
    (np.float32(1.5), np.array([-3.0, 0.5, 70.0], np.float32)),
    {"exp / (1 + exp)": ("overflow", r"overflow|nan|inf", r"float32|precision|overflow|exp|range")},
)


def ring(radius, c):
    return jnp.sum(c * jnp.pi * radius**2)


def ring_grad(radius, c):
    return 2 * 3.14 * radius * c


def bumps(w, x):
    """Almost the true gradient: a difference of values, as used to check one."""
    return jnp.sum(jnp.sin(w * x) / x)


def bumps_grad(w, x):
    h = 1e-3
    steps = h * jnp.eye(len(w), dtype=w.dtype)
    return (jax.vmap(lambda s: bumps(w + s, x))(steps) - bumps(w, x)) / h


CASES = [
    *NET,
    *STANDARDISED,
    *CLASSIFIED,
    *SOFTPLUS,
    Case(
        "pi is 3.14",
        "rounded_constant",
        ring,
        ring_grad,
        (numbers(31, 4), numbers(32, 4)),
        (r"<0.9994...>|<0.9995...>|<1.0005...>|<3.14>|constant factor",),
    ),
    Case(
        "a one-sided difference",
        "difference_for_derivative",
        bumps,
        bumps_grad,
        (numbers(41, 4), np.array([0.7, 1.3, 2.1, 3.0], np.float32)),
        (r"(finite|forward) difference|numerical|approximat|low precision|one-sided|truncation",),
    ),
]
