"""Right gradients with unusual numbers: scales, precisions, randomness, derivatives that are 0."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .case import numbers, right

KEY = jax.random.key(3, impl="unsafe_rbg")


# ---------------------------------------------------------------- scales


def logistic(w, x, y):
    z = x @ w
    return jnp.mean(jax.nn.softplus(z) - y * z)


def logistic_grad(w, x, y):
    return x.T @ (jax.nn.sigmoid(x @ w) - y) / len(y)


def tanh_sum(w, x):
    return jnp.sum(jnp.tanh(x @ w))


def tanh_sum_grad(w, x):
    t = jnp.tanh(x @ w)
    return x.T @ (1 - t * t)


def scaled(factor):
    return lambda w, x: factor * tanh_sum(w, x), lambda w, x: factor * tanh_sum_grad(w, x)


def unequal(params, x):
    return jnp.sum(1e-6 * jnp.sin(params["small"] * x) + 1e6 * jnp.cos(params["large"] * x))


def unequal_grad(params, x):
    return {"small": 1e-6 * x * jnp.cos(params["small"] * x), "large": -1e6 * x * jnp.sin(params["large"] * x)}


def many(w, x):
    return jnp.sum((x * w) ** 2) / 2


SATURATED = np.array([[40.0, -35.0], [-50.0, 44.0]], np.float32)
SCALES = [
    right(
        "saturated sigmoid", logistic, logistic_grad, np.ones(2, np.float32), SATURATED, np.array([1, 0], np.float32)
    ),
    right("saturated tanh", tanh_sum, tanh_sum_grad, np.eye(2, dtype=np.float32), SATURATED),
    right("half saturated tanh", tanh_sum, tanh_sum_grad, np.eye(2, dtype=np.float32), SATURATED / 10),
    right("gradient of 1e-8", *scaled(1e-8), numbers(41, 4, 3), numbers(42, 5, 4)),
    right("gradient of 1e6", *scaled(1e6), numbers(41, 4, 3), numbers(42, 5, 4)),
    right(
        "leaves of 1e-6 and 1e6",
        unequal,
        unequal_grad,
        {"small": numbers(43, 3), "large": numbers(44, 3)},
        numbers(45, 3),
    ),
    right("sum over 20,000 rows", many, lambda w, x: w * jnp.sum(x**2, axis=0), numbers(46, 3), numbers(47, 20_000, 3)),
    right("parameters of 1e-7", tanh_sum, tanh_sum_grad, numbers(48, 4, 3, scale=1e-7), numbers(42, 5, 4)),
]

# ---------------------------------------------------------------- precisions


def half_loss(params, x):
    return jnp.sum(jax.nn.gelu(x @ params["w"] + params["b"]).astype(jnp.float32) ** 2)


def half_grad(params, x):
    z = x @ params["w"] + params["b"]
    a, vjp = jnp.tanh, lambda t: 1 - t * t
    inner = (2 / jnp.pi) ** 0.5 * (z + 0.044715 * z**3)
    t = a(inner)
    dgelu = 0.5 * (1 + t) + 0.5 * z * vjp(t) * (2 / jnp.pi) ** 0.5 * (1 + 3 * 0.044715 * z**2)
    dz = (2 * (0.5 * z * (1 + t)).astype(jnp.float32)).astype(z.dtype) * dgelu
    return {"w": x.T @ dz, "b": dz.sum(0)}


def upcast(w, x):
    z = (x @ w).astype(jnp.float32)
    return jnp.mean(jax.nn.logsumexp(z, axis=1))


def upcast_grad(w, x):
    p = jax.nn.softmax((x @ w).astype(jnp.float32)) / len(x)
    return (x.astype(jnp.float32).T @ p).astype(w.dtype)


def half(dtype):
    return {"w": numbers(51, 4, 3).astype(dtype), "b": numbers(52, 3).astype(dtype)}, numbers(53, 5, 4).astype(dtype)


PRECISIONS = [
    right("bfloat16 parameters", half_loss, half_grad, *half(jnp.bfloat16)),
    right("float16 parameters", half_loss, half_grad, *half(np.float16)),
    right("float32 written into the code", upcast, upcast_grad, numbers(54, 4, 3), numbers(55, 5, 4)),
    right(
        "float32 inside of bfloat16",
        upcast,
        upcast_grad,
        *(a.astype(jnp.bfloat16) for a in (numbers(54, 4, 3), numbers(55, 5, 4))),
    ),
    right(
        "float64 session",
        tanh_sum,
        tanh_sum_grad,
        np.random.default_rng(56).normal(size=(4, 3)),
        np.random.default_rng(57).normal(size=(5, 4)),
        x64=True,
    ),
    right(
        "float32 parameters in a float64 session",
        tanh_sum,
        tanh_sum_grad,
        numbers(58, 4, 3),
        numbers(59, 5, 4),
        x64=True,
    ),
]

# ---------------------------------------------------------------- randomness by a key


def dropped(w, x, key):
    keep = jax.random.bernoulli(key, 0.8, x.shape)
    return jnp.mean(jnp.tanh(jnp.where(keep, x / 0.8, 0) @ w))


def dropped_grad(w, x, key):
    h = jnp.where(jax.random.bernoulli(key, 0.8, x.shape), x / 0.8, 0)
    return h.T @ (1 - jnp.tanh(h @ w) ** 2) / (len(x) * w.shape[1])


def sampled(params, x, key):
    """Reparametrised: z = mean + std · noise."""
    z = params["mean"] + jnp.exp(params["logstd"]) * jax.random.normal(key, x.shape, x.dtype)
    return jnp.sum((z - x) ** 2)


def sampled_grad(params, x, key):
    noise = jnp.exp(params["logstd"]) * jax.random.normal(key, x.shape, x.dtype)
    d = 2 * (params["mean"] + noise - x)
    return {"mean": d.sum(0), "logstd": (d * noise).sum(0)}


def shuffled(w, x, seed):
    order = jax.random.permutation(jax.random.fold_in(KEY, seed), len(x))
    return jnp.sum(jnp.arange(len(x)) * jnp.sin(x[order] @ w))


def shuffled_grad(w, x, seed):
    x = x[jax.random.permutation(jax.random.fold_in(KEY, seed), len(x))]
    return x.T @ (jnp.arange(len(x)) * jnp.cos(x @ w))


RANDOM = [
    right("dropout by a key", dropped, dropped_grad, numbers(61, 4, 3), numbers(62, 6, 4), KEY),
    right("dropout by a threefry key", dropped, dropped_grad, numbers(61, 4, 3), numbers(62, 6, 4), jax.random.key(5)),
    right(
        "reparametrised noise",
        sampled,
        sampled_grad,
        {"mean": numbers(63, 3), "logstd": numbers(64, 3)},
        numbers(65, 5, 3),
        KEY,
    ),
    right("a permutation from a seed", shuffled, shuffled_grad, numbers(66, 3), numbers(67, 5, 3), 11),
]

# ---------------------------------------------------------------- what should not move and does not


def before_norm(params, x, c):
    z = x @ params["w"] + params["b"]
    zc = z - z.mean(0)
    return jnp.sum(c * zc / jnp.sqrt((zc**2).mean(0) + 1e-5))


def before_norm_grad(params, x, c):
    z = x @ params["w"] + params["b"]
    zc = z - z.mean(0)
    std = jnp.sqrt((zc**2).mean(0) + 1e-5)
    xhat = zc / std
    dz = (c - c.mean(0) - xhat * (c * xhat).mean(0)) / std
    return {"w": x.T @ dz, "b": dz.sum(0)}  # b's is 0 up to rounding


def unused(params, x):
    return jnp.sum(jnp.sin(params["w"] @ x))


def unused_grad(params, x):
    return {"w": jnp.outer(jnp.cos(params["w"] @ x), x), "spare": jnp.zeros_like(params["spare"])}


def key_bias(params, x, c):
    k = x @ params["k"] + params["b"]
    return jnp.sum(c * jax.nn.softmax(x @ k.T))


def key_bias_grad(params, x, c):
    p = jax.nn.softmax(x @ (x @ params["k"] + params["b"]).T)
    ds = p * (c - jnp.sum(c * p, axis=1, keepdims=True))
    dk = ds.T @ x
    return {"k": x.T @ dk, "b": dk.sum(0)}  # a bias of the keys shifts all scores of a query equally


def bootstrapped(params, x, r):
    target = r + 0.9 * lax.stop_gradient(jnp.max(x @ params["target"], axis=1))
    return jnp.mean((jnp.sum(x * params["w"], axis=1) - target) ** 2)


def bootstrapped_grad(params, x, r):
    d = 2 * (jnp.sum(x * params["w"], axis=1) - r - 0.9 * jnp.max(x @ params["target"], axis=1)) / len(x)
    return {"w": x.T @ d, "target": jnp.zeros_like(params["target"])}


def straight_through(w, x):
    q = w + lax.stop_gradient(jnp.round(w) - w)
    return jnp.sum((x @ q) ** 2)


def straight_through_grad(w, x):
    return 2 * x.T @ (x @ jnp.round(w))


def self_distilled(w, x):
    z = x @ w
    teacher = lax.stop_gradient(jax.nn.softmax(z / 2))
    return -jnp.mean(jnp.sum(teacher * jax.nn.log_softmax(z), axis=1))


def self_distilled_grad(w, x):
    z = x @ w
    return x.T @ (jax.nn.softmax(z) - jax.nn.softmax(z / 2)) / len(x)


def rounded(w, x):
    return jnp.sum(jnp.floor(3 * w) * x)


STILL = [
    right(
        "bias before batch norm",
        before_norm,
        before_norm_grad,
        {"w": numbers(71, 4, 3), "b": numbers(72, 3)},
        numbers(73, 6, 4),
        numbers(74, 6, 3),
    ),
    right("unused parameter", unused, unused_grad, {"w": numbers(75, 3, 2), "spare": numbers(76, 4)}, numbers(77, 2)),
    right(
        "bias of the keys",
        key_bias,
        key_bias_grad,
        {"k": numbers(78, 3, 3), "b": numbers(79, 3)},
        numbers(80, 4, 3),
        numbers(81, 4, 4),
    ),
    right(
        "target network",
        bootstrapped,
        bootstrapped_grad,
        {"w": numbers(82, 3), "target": numbers(83, 3, 2)},
        numbers(84, 5, 3),
        numbers(85, 5),
    ),
    right("straight through", straight_through, straight_through_grad, numbers(86, 3, 2, scale=2), numbers(87, 4, 3)),
    right("its own teacher", self_distilled, self_distilled_grad, numbers(88, 3, 4), numbers(89, 5, 3)),
    right("a staircase", rounded, lambda w, x: jnp.zeros_like(w), numbers(90, 5), numbers(91, 5)),
    right("a constant", lambda w, x: jnp.sum(x), lambda w, x: jnp.zeros_like(w), numbers(92, 3), numbers(93, 4)),
]


CASES = [*SCALES, *PRECISIONS, *RANDOM, *STILL]
