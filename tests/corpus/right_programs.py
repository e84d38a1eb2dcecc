"""Right gradients of unusual code: NumPy, control flow, custom rules."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .case import Case, integers, numbers, positive, right

# ---------------------------------------------------------------- code that is not traced


def plain(w, x):
    return jnp.mean(jnp.tanh(x @ w) ** 2)


def numpy_grad(w, x):
    w, x = np.asarray(w), np.asarray(x)
    h = np.tanh(x @ w)
    dw = np.zeros_like(w)
    for i in range(len(x)):
        dw += np.outer(x[i], 2 * h[i] * (1 - h[i] ** 2)) / h.size
    return dw


def numpy_loss(w, x):
    return float(np.mean(np.tanh(np.asarray(x) @ np.asarray(w)) ** 2))


def branching_grad(w, x):
    h = jnp.tanh(x @ w)
    if float(jnp.abs(h).max()) == 0:  # works on values only
        return jnp.zeros_like(w)
    return x.T @ (2 * h * (1 - h**2)) / h.size


UNTRACED = [
    right("NumPy gradient", plain, numpy_grad, numbers(31, 4, 3), numbers(32, 5, 4)),
    right(
        "NumPy loss and gradient",
        numpy_loss,
        numpy_grad,
        *(np.random.default_rng(i).normal(size=s) for i, s in ((33, (4, 3)), (34, (5, 4)))),
    ),
    right("branch on a value", plain, branching_grad, numbers(35, 4, 3), numbers(36, 5, 4)),
]

# ---------------------------------------------------------------- control flow and custom rules


def iterated(w, x, n):
    return jnp.sum(lax.fori_loop(0, 3, lambda i, h: jnp.sin(w * h), x)) * n


def iterated_grad(w, x, n):
    hs = [x]
    for _ in range(3):
        hs.append(jnp.sin(w * hs[-1]))
    dh, dw = jnp.ones_like(x) * n, jnp.zeros_like(w)
    for h in reversed(hs[:-1]):
        dz = dh * jnp.cos(w * h)
        dw, dh = dw + dz * h, dz * w
    return dw


def remembered(w, x):
    def step(h, x):
        h = jnp.tanh(w * h + x)
        return h, h

    _, ys = lax.scan(step, jnp.zeros_like(w), x)
    return jnp.sum(ys**2)


def remembered_grad(w, x):
    hs = [jnp.zeros_like(w)]
    for t in range(len(x)):
        hs.append(jnp.tanh(w * hs[-1] + x[t]))
    dw = dh = jnp.zeros_like(w)
    for t in reversed(range(len(x))):
        dz = (dh + 2 * hs[t + 1]) * (1 - hs[t + 1] ** 2)
        dw, dh = dw + dz * hs[t], dz * w
    return dw


def switched(w, x):
    return lax.cond(jnp.sum(x) > 0, lambda w: jnp.sum(jnp.sin(w) * x), lambda w: jnp.sum(w**2), w)


def switched_grad(w, x):
    return jnp.cos(w) * x if jnp.sum(x) > 0 else 2 * w


def fixed_point(w, x):
    """h = tanh(w h + x), until nothing changes: jax.grad refuses, the implicit function theorem does not."""

    def unsettled(carry):
        i, h, before = carry
        return (i < 200) & (jnp.max(jnp.abs(h - before)) > 0)

    def step(carry):
        i, h, _ = carry
        return i + 1, jnp.tanh(w * h + x), h

    return jnp.sum(lax.while_loop(unsettled, step, (0, jnp.tanh(x), jnp.zeros_like(x)))[1])


def fixed_point_grad(w, x):
    h = jnp.tanh(x)
    for _ in range(100):
        h = jnp.tanh(w * h + x)
    d = 1 - h**2
    return d * h / (1 - d * w)


@jax.custom_vjp
def log1pexp(x):
    return jnp.logaddexp(x, 0)


log1pexp.defvjp(lambda x: (log1pexp(x), x), lambda x, dy: (dy * jax.nn.sigmoid(x),))


def checkpointed(params, x):
    f = jax.checkpoint(lambda h, w: jnp.tanh(h @ w))
    return jnp.sum(f(f(x, params[0]), params[1]))


def checkpointed_grad(params, x):
    h1 = jnp.tanh(x @ params[0])
    h2 = jnp.tanh(h1 @ params[1])
    d2 = 1 - h2**2
    d1 = d2 @ params[1].T * (1 - h1**2)
    return [x.T @ d1, h1.T @ d2]


FLOW = [
    right("fori_loop", iterated, iterated_grad, numbers(41, 3), numbers(42, 3), 2),
    right("scan", remembered, remembered_grad, numbers(43, 3), numbers(44, 4, 3)),
    right("cond", switched, switched_grad, numbers(45, 3), positive(46, 3)),
    right("while_loop to a fixed point", fixed_point, fixed_point_grad, numbers(47, 3, scale=0.4), numbers(48, 3)),
    right(
        "a right custom_vjp",
        lambda w, x: jnp.sum(log1pexp(w * x)),
        lambda w, x: x * jax.nn.sigmoid(w * x),
        numbers(49, 4),
        numbers(50, 4),
    ),
    right("checkpoint", checkpointed, checkpointed_grad, [numbers(51, 3, 4), numbers(52, 4, 2)], numbers(53, 5, 3)),
    right(
        "vmap and jit",
        lambda w, x: jax.jit(jax.vmap(lambda x: jnp.sin(x @ w)))(x).sum(),
        lambda w, x: x.T @ jnp.cos(x @ w),
        numbers(54, 3),
        numbers(55, 5, 3),
    ),
]

# ---------------------------------------------------------------- custom_vjp triples


def gathered(table, ids):
    return jnp.sin(table[ids])


def gathered_bwd(saved, dy):
    table, ids = saved
    return jnp.zeros_like(table).at[ids].add(dy * jnp.cos(table[ids])), None


def tree_of_results(params, x):
    h = x @ params["w"]
    return {"h": h, "norms": jnp.sum(h**2, axis=1), "rows": jnp.arange(len(x))}


def tree_of_results_bwd(saved, dy):
    params, x = saved
    h = x @ params["w"]
    dh = dy["h"] + 2 * h * dy["norms"][:, None]
    return {"w": x.T @ dh}, dh @ params["w"].T


def saved_words(x):
    return jnp.exp(-(x**2)), ("gauss", 2, x)


def saved_words_bwd(saved, dy):
    name, two, x = saved
    assert name == "gauss"
    return (-two * x * jnp.exp(-(x**2)) * dy,)


def triple(name, f, f_fwd, f_bwd, *args):
    return Case(name, "", f, (f_fwd, f_bwd), args, how="vjp")


TRIPLES = [
    triple(
        "None for the ids",
        gathered,
        lambda t, i: (gathered(t, i), (t, i)),
        gathered_bwd,
        numbers(81, 5, 2),
        integers(82, 5, 4),
    ),
    triple(
        "a tree of results",
        tree_of_results,
        lambda p, x: (tree_of_results(p, x), (p, x)),
        tree_of_results_bwd,
        {"w": numbers(83, 3, 2)},
        numbers(84, 4, 3),
    ),
    triple("words among the residuals", lambda x: jnp.exp(-(x**2)), saved_words, saved_words_bwd, numbers(85, 4)),
]


CASES = [*UNTRACED, *FLOW, *TRIPLES]
