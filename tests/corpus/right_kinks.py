"""Right gradients where autodiff or differences stumble: kinks, NaN traps, edges of domains."""

import jax
import jax.numpy as jnp
import numpy as np

from .case import numbers, positive, right

# ---------------------------------------------------------------- kinks that are hit exactly


def relu_sum(w, x):
    return jnp.sum(jax.nn.relu(w) * x)


def relu_sum_grad(at_zero):
    return lambda w, x: jnp.where(w > 0, 1.0, jnp.where(w < 0, 0.0, at_zero)) * x


def manhattan(w, x):
    return jnp.sum(jnp.abs(w - x))


def largest(w, c):
    return jnp.sum(c * jnp.max(w, axis=1))


def ties(share):
    def grad(w, c):
        top = w == w.max(1, keepdims=True)
        if share == "first":
            top = jax.nn.one_hot(w.argmax(1), w.shape[1], dtype=bool)
        if share == "split":
            return c[:, None] * top / top.sum(1, keepdims=True)
        return c[:, None] * top

    return grad


def hinge(w, x, y):
    return jnp.mean(jnp.maximum(0, 1 - y * (x @ w)))


def hinge_grad(w, x, y):
    on = 1 - y * (x @ w) >= 0
    return -x.T @ (on * y) / len(y)


def clipped(w, x):
    return jnp.sum(jnp.clip(w, -1, 1) * x)


def clipped_grad(inside):
    return lambda w, x: jnp.where(inside(w), x, 0)


def zero_net(params, x, y):
    h = jax.nn.relu(x @ params["w1"] + params["b1"])
    return jnp.mean((h @ params["w2"] + params["b2"] - y) ** 2)


def zero_net_grad(params, x, y):
    z = x @ params["w1"] + params["b1"]
    h = jnp.maximum(z, 0)
    d = 2 * (h @ params["w2"] + params["b2"] - y) / y.size
    dz = d @ params["w2"].T * (z > 0)
    return {"w1": x.T @ dz, "b1": dz.sum(0), "w2": h.T @ d, "b2": d.sum(0)}


def zeros_net(w2):
    zeros = np.zeros
    return {"w1": zeros((3, 4), "float32"), "b1": zeros(4, "float32"), "w2": w2, "b2": zeros(2, "float32")}


AT_ZERO = np.array([-1.0, 0.0, 2.0, 0.0], np.float32)
TIED = np.array([[1, 3, 3], [2, 2, 2], [5, 1, 0]], np.float32)
KINKS = [
    *[right(f"relu at 0, {a}", relu_sum, relu_sum_grad(a), AT_ZERO, numbers(1, 4)) for a in (0.0, 0.5, 1.0)],
    right("abs at 0", manhattan, lambda w, x: jnp.sign(w - x), AT_ZERO, np.array([1, 0, 2, 3], np.float32)),
    right(
        "abs at 0, -1",
        manhattan,
        lambda w, x: jnp.where(w > x, 1.0, -1.0).astype(w.dtype),
        AT_ZERO,
        np.array([1, 0, 2, 3], np.float32),
    ),
    *[right(f"ties of max, {s}", largest, ties(s), TIED, numbers(2, 3)) for s in ("first", "split", "all")],
    right(
        "hinge at the margin",
        hinge,
        hinge_grad,
        np.array([1, 0.5], np.float32),
        np.array([[1, 0], [0, 1], [2, 2]], np.float32),
        np.array([1, -1, -1], np.float32),
    ),
    right(
        "clip at the bound, inside",
        clipped,
        clipped_grad(lambda w: abs(w) <= 1),
        np.array([-1, 0.5, 1, 2], np.float32),
        numbers(3, 4),
    ),
    right(
        "clip at the bound, outside",
        clipped,
        clipped_grad(lambda w: abs(w) < 1),
        np.array([-1, 0.5, 1, 2], np.float32),
        numbers(3, 4),
    ),
    right(
        "a net of zeros",
        zero_net,
        zero_net_grad,
        zeros_net(np.zeros((4, 2), np.float32)),
        numbers(4, 5, 3),
        numbers(5, 5, 2),
    ),
    right(
        "a first layer of zeros",
        zero_net,
        zero_net_grad,
        zeros_net(numbers(6, 4, 2)),
        numbers(4, 5, 3),
        numbers(5, 5, 2),
    ),
]

# ---------------------------------------------------------------- where autodiff gives NaN


def length(w, c):
    return jnp.sum(c * jnp.linalg.norm(w, axis=1))


def length_grad(w, c):
    n = jnp.linalg.norm(w, axis=1, keepdims=True)
    return c[:, None] * jnp.where(n == 0, 0.0, w / jnp.where(n == 0, 1.0, n))


def pairwise(x, c):
    d = x[:, None] - x[None]
    return jnp.sum(c * jnp.sqrt(jnp.sum(d**2, axis=-1)))


def pairwise_grad(x, c):
    d = x[:, None] - x[None]
    r = jnp.sqrt(jnp.sum(d**2, axis=-1))
    g = (c / jnp.where(r == 0, 1, r))[:, :, None] * d
    return g.sum(1) - g.sum(0)


def entropy(p):
    return -jnp.sum(jnp.where(p > 0, p * jnp.log(p), 0))


def entropy_grad(p):
    return jnp.where(p > 0, -jnp.log(jnp.where(p > 0, p, 1)) - 1, 0)


def sinc(x, c):
    return jnp.sum(c * jnp.where(x == 0, 1, jnp.sin(x) / x))


def sinc_grad(x, c):
    s = jnp.where(x == 0, 1, x)
    return c * jnp.where(x == 0, 0, jnp.cos(s) / s - jnp.sin(s) / s**2)


def log_or_line(x, c):
    return jnp.sum(c * jnp.where(x > 1, jnp.log(x), x - 1))


def log_or_line_grad(x, c):
    return c * jnp.where(x > 1, 1 / jnp.where(x > 1, x, 1), 1)


TRAPS = [
    right("norm at 0", length, length_grad, np.array([[3, 4], [0, 0], [1, -1]], np.float32), numbers(11, 3)),
    right("distances to oneself", pairwise, pairwise_grad, numbers(12, 4, 2), numbers(13, 4, 4)),
    right("entropy at 0", entropy, entropy_grad, np.array([0.5, 0, 0.2, 0.3], np.float32)),
    right("sinc at 0", sinc, sinc_grad, np.array([0, 0.5, -2], np.float32), numbers(14, 3)),
    right(
        "logarithm of a negative, not taken",
        log_or_line,
        log_or_line_grad,
        np.array([-2, 0, 0.5, 3], np.float32),
        numbers(15, 4),
    ),
]

# ---------------------------------------------------------------- edges of a domain


def simplex(p, y):
    return -jnp.sum(y * jnp.log(p))


def rare(n):
    p = np.array([1e-4, 0.3, 2e-5, 0.6], np.float32)
    return p / p.sum()


EDGES = [
    right("probabilities near 0", simplex, lambda p, y: -y / p, rare(4), np.array([0.2, 0.3, 0.4, 0.1], np.float32)),
    right(
        "a root of 1e-6",
        lambda x: jnp.sum(jnp.sqrt(x)),
        lambda x: 0.5 / jnp.sqrt(x),
        np.array([1e-6, 1e-3, 2], np.float32),
    ),
    right(
        "arcsine near 1",
        lambda x: jnp.sum(jnp.arcsin(x)),
        lambda x: 1 / jnp.sqrt(1 - x**2),
        np.array([0.999, -0.9, 0.1], np.float32),
    ),
    right(
        "a quotient near 0",
        lambda x, c: jnp.sum(c / x),
        lambda x, c: -c / x**2,
        np.array([1e-3, -1e-3, 1], np.float32),
        numbers(16, 3),
    ),
    right(
        "powers",
        lambda x, y: jnp.sum(x**y),
        lambda x, y: (y * x ** (y - 1), x**y * jnp.log(x)),
        positive(17, 4, low=0.01),
        numbers(18, 4),
        argnums=(0, 1),
    ),
]


CASES = [*KINKS, *TRAPS, *EDGES]
