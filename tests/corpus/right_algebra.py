"""Right gradients of difficult functions: statistics, order, products, matrices."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .case import integers, numbers, right

# ---------------------------------------------------------------- statistics


def standardised(x, c):
    return jnp.sum(c * (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5))


def standardised_grad(x, c):
    std = jnp.sqrt(x.var(0) + 1e-5)
    xhat = (x - x.mean(0)) / std
    return (c - c.mean(0) - xhat * (c * xhat).mean(0)) / std


def deviations(x, c):
    return jnp.sum(c * jnp.std(x, axis=0, ddof=1))


def deviations_grad(x, c):
    return c * (x - x.mean(0)) / ((len(x) - 1) * jnp.std(x, axis=0, ddof=1))


def contrastive(a, b):
    s = a @ b.T
    return jnp.mean(jax.nn.logsumexp(s, axis=1) - jnp.diag(s))


def contrastive_grad(a, b):
    s = a @ b.T
    ds = (jax.nn.softmax(s) - jnp.eye(len(a), dtype=a.dtype)) / len(a)
    return ds @ b, ds.T @ a


STATISTICS = [
    right("a tiny variance", standardised, standardised_grad, numbers(21, 6, 3, scale=1e-3), numbers(22, 6, 3)),
    right(
        "a mean of 10,000", standardised, standardised_grad, numbers(23, 6, 3, scale=3, shift=1e4), numbers(24, 6, 3)
    ),
    right("variance of n - 1", deviations, deviations_grad, numbers(25, 5, 3), numbers(26, 3)),
    right("contrastive pairs", contrastive, contrastive_grad, numbers(27, 4, 3), numbers(28, 4, 3), argnums=(0, 1)),
    right(
        "cross-entropy as logsumexp",
        lambda z, y: jnp.mean(jax.nn.logsumexp(z, axis=1) - jnp.take_along_axis(z, y[:, None], 1)[:, 0]),
        lambda z, y: (
            jnp.exp(z - jax.nn.logsumexp(z, axis=1, keepdims=True) - jnp.log(len(y)))
            - (y[:, None] == jnp.arange(3)) / len(y)
        ),
        numbers(29, 5, 3, scale=4),
        integers(30, 3, 5),
    ),
]

# ---------------------------------------------------------------- order, products, Fourier


def ranked(x, c):
    return jnp.sum(c * jnp.sort(x))


def top(x):
    return jnp.sum(lax.top_k(x, 2)[0] ** 2)


def top_grad(x):
    return jnp.zeros_like(x).at[jnp.argsort(-x)[:2]].set(2 * jnp.sort(x)[::-1][:2])


def running(x, c):
    return jnp.sum(c * jnp.cumsum(x**2))


def others(x):
    """The product of all other elements, even where one or two are 0."""
    return jnp.stack([jnp.prod(jnp.delete(x, i)) for i in range(len(x))])


def running_product(x, c):
    return jnp.sum(c * jnp.cumprod(x))


def running_product_grad(x, c):
    n = len(x)
    return jnp.stack([sum(c[j] * jnp.prod(jnp.delete(x[: j + 1], i)) for j in range(i, n)) for i in range(n)])


def spectrum(x, c):
    return jnp.sum(c * jnp.abs(jnp.fft.rfft(x)) ** 2)


def spectrum_grad(x, c):
    n = len(x)
    k, t = np.arange(n // 2 + 1), np.arange(n)
    angle = (2 * np.pi * np.outer(k, t) / n).astype(x.dtype)
    a, b = jnp.cos(angle) @ x, jnp.sin(angle) @ x
    return 2 * (jnp.cos(angle).T @ (c * a) + jnp.sin(angle).T @ (c * b))


ORDER = [
    right("sort", ranked, lambda x, c: jnp.zeros_like(x).at[jnp.argsort(x)].set(c), numbers(61, 6), numbers(62, 6)),
    right("top k", top, top_grad, numbers(63, 6)),
    right("cumsum", running, lambda x, c: 2 * x * jnp.cumsum(c[::-1])[::-1], numbers(64, 5), numbers(65, 5)),
    right("a product with a zero", lambda x: jnp.prod(x), others, np.array([2, 0, -3, 0.5], np.float32)),
    right("a product with two zeros", lambda x: jnp.prod(x), others, np.array([2, 0, -3, 0], np.float32)),
    right(
        "cumprod with a zero",
        running_product,
        running_product_grad,
        np.array([2, 0, -3, 0.5], np.float32),
        numbers(66, 4),
    ),
    right("Fourier", spectrum, spectrum_grad, numbers(67, 6), numbers(68, 4)),
    right(
        "argmax inside",
        lambda w, x: jnp.sum(w[jnp.argmax(x @ w)] * x[0]),
        lambda w, x: jnp.zeros_like(w).at[jnp.argmax(x @ w)].set(x[0].sum()),
        numbers(69, 3),
        numbers(70, 3, 3),
    ),
]

# ---------------------------------------------------------------- matrices


def spd(seed, n):
    a = numbers(seed, n, n)
    return a @ a.T + 0.1 * np.eye(n, dtype=np.float32)


def gaussian(c, x):
    """The log-likelihood of a covariance."""
    return 0.5 * (x @ jnp.linalg.solve(c, x) + jnp.linalg.slogdet(c)[1])


def gaussian_grad(c, x):
    p = jnp.linalg.inv(c)
    return 0.5 * (p.T - jnp.outer(p.T @ x, p @ x))


def whitened(c, x):
    chol = jnp.linalg.cholesky((c + c.T) / 2)
    return jnp.sum(jnp.log(jnp.diag(chol))) + x @ x


def solved(params, c):
    return c @ jnp.linalg.solve(params["a"], params["b"])


def solved_grad(params, c):
    a, b = params["a"], params["b"]
    u = jnp.linalg.solve(a.T, c)
    return {"a": -jnp.outer(u, jnp.linalg.solve(a, b)), "b": u}


def eigen(a):
    return jnp.linalg.eigvalsh((a + a.T) / 2)[-1]


def eigen_grad(a):
    v = jnp.linalg.eigh((a + a.T) / 2)[1][:, -1]
    return jnp.outer(v, v)


MATRICES = [
    right("likelihood of a covariance", gaussian, gaussian_grad, spd(71, 3), numbers(72, 3)),
    right("cholesky", whitened, lambda c, x: 0.5 * jnp.linalg.inv((c + c.T) / 2), spd(73, 3), numbers(74, 3)),
    right(
        "inverse",
        lambda a: jnp.trace(jnp.linalg.inv(a)),
        lambda a: -(jnp.linalg.inv(a) @ jnp.linalg.inv(a)).T,
        spd(75, 3),
    ),
    right("solve", solved, solved_grad, {"a": spd(76, 3), "b": numbers(77, 3)}, numbers(78, 3)),
    right("largest eigenvalue", eigen, eigen_grad, spd(79, 3)),
]


CASES = [*STATISTICS, *ORDER, *MATRICES]
