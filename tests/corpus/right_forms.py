"""Right gradients in unusual forms: leaves, trees, arguments."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .case import integers, numbers, one_hot, right

KEY = jax.random.key(3, impl="unsafe_rbg")


# ---------------------------------------------------------------- leaves that are not float arrays


def stepped(params, x):
    return jnp.sum(jnp.sin(params["w"] * x)) * (1 + params["step"])


def stepped_grad(none):
    def grad(params, x):
        return {"w": jnp.cos(params["w"] * x) * x * (1 + params["step"]), "step": none(params["step"])}

    return grad


def optional(params, x):
    y = x @ params["w"]
    return jnp.sum(jnp.tanh(y if params["b"] is None else y + params["b"]))


def optional_grad(params, x):
    return {"w": x.T @ (1 - jnp.tanh(x @ params["w"]) ** 2), "b": None}


def concatenated(params, x):
    return jnp.sum(jnp.concatenate([params["w"], params["more"]]) ** 2 @ x)


def concatenated_grad(params, x):
    return {"w": 2 * params["w"] * x, "more": 2 * params["more"] * x}


def line(params, x):
    return jnp.mean((params["slope"] * x + params["shift"]) ** 2)


def line_grad(params, x):
    r = 2 * (params["slope"] * x + params["shift"]) / x.size
    return {"slope": jnp.vdot(r, x), "shift": r.sum()}


def python_line_grad(params, x):
    return {k: float(v) for k, v in line_grad(params, x).items()}


def parabola(a):
    return 3 * a**2 - a


def parabola_grad(a):
    return 6 * a - 1


STEP = {"w": numbers(1, 3), "step": np.int32(4)}
LEAVES = [
    right("integer leaf, zeros", stepped, stepped_grad(lambda s: jnp.zeros_like(s)), STEP, numbers(2, 3)),
    right("integer leaf, None", stepped, stepped_grad(lambda s: None), STEP, numbers(2, 3)),
    right(
        "integer leaf, float0",
        stepped,
        stepped_grad(lambda s: np.zeros(np.shape(s), jax.dtypes.float0)),
        STEP,
        numbers(2, 3),
    ),
    right("None leaf", optional, optional_grad, {"w": numbers(3, 4, 3), "b": None}, numbers(4, 5, 4)),
    right(
        "empty array",
        concatenated,
        concatenated_grad,
        {"w": numbers(5, 2, 3), "more": np.zeros((0, 3), np.float32)},
        numbers(6, 3),
    )._replace(
        forward=lambda params, x: jnp.sum(jnp.concatenate([params["w"], params["more"]]) ** 2 @ x),
    ),
    right("Python floats", line, line_grad, {"slope": 0.7, "shift": -1.0}, numbers(7, 6)),
    right("Python floats in and out", line, python_line_grad, {"slope": 0.7, "shift": -1.0}, numbers(7, 6)),
    right("a Python float", parabola, parabola_grad, 1.5),
    right(
        "weakly typed scalars",
        line,
        line_grad,
        {"slope": jnp.asarray(2.0), "shift": jnp.asarray(-1.0)},
        numbers(7, 6),
    ),
    right(
        "arrays of no axis",
        line,
        line_grad,
        {"slope": np.float32(2), "shift": np.array(0.5, np.float32)},
        numbers(8, 6),
    ),
]

# ---------------------------------------------------------------- trees


class Pair(NamedTuple):
    w: object
    b: object


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Dense:
    w: object
    b: object


def tree_loss(params, x):
    leaves = jax.tree.leaves(params)
    return sum((i + 1) * jnp.sum(jnp.sin(leaf * x)) for i, leaf in enumerate(leaves))


def tree_grad(params, x):
    leaves, tree = jax.tree.flatten(params)
    return tree.unflatten([(i + 1) * jnp.cos(leaf * x) * x for i, leaf in enumerate(leaves)])


W1, W2, W3 = numbers(11, 2), numbers(12, 2), numbers(13, 2)
TREES = [
    right(f"tree: {name}", tree_loss, tree_grad, params, numbers(14, 2))
    for name, params in {
        "integer keys": {0: W1, 10: W2, 2: W3},
        "named tuple": Pair(W1, [W2, W3]),
        "dataclass": Dense(W1, (W2, {"deep": W3})),
        "one array in two places": {"a": W1, "b": W1},
    }.items()
]

# ---------------------------------------------------------------- arguments


def reduced(params, x, activation, n_groups, how, scale, nothing):
    assert nothing is None
    y = activation(x @ params).reshape(len(x), n_groups, -1).sum(-1)
    return scale * (jnp.mean(y) if how == "mean" else jnp.sum(y))


def reduced_grad(params, x, activation, n_groups, how, scale, nothing):
    dy = scale * (1 - activation(x @ params) ** 2)
    return x.T @ dy / (len(x) * n_groups if how == "mean" else 1)


def picked(logits, labels):
    """Labels read from a table as floats."""
    logp = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(logp, labels.astype(jnp.int32)[:, None], axis=1))


def picked_grad(logits, labels):
    p = jax.nn.softmax(logits)
    return (p - jax.nn.one_hot(labels.astype(jnp.int32), p.shape[1], dtype=p.dtype)) / len(p)


def soft(logits, y):
    return -jnp.sum(y * jax.nn.log_softmax(logits)) / len(y)


def soft_grad(logits, y):
    return (jax.nn.softmax(logits) - y) / len(y)  # true only where the rows of y add up to 1


def time_major(w, x):
    """x is (time, batch, features)."""
    return jnp.mean(jnp.sum(jnp.tanh(x @ w), axis=0))


def time_major_grad(w, x):
    dz = (1 - jnp.tanh(x @ w) ** 2) / (x.shape[1] * w.shape[1])
    return jnp.einsum("tbi,tbo->io", x, dz)


def two(a, b):
    return jnp.sum(a * jnp.exp(b))


def covariance(x, c):
    return x @ c @ x / 2


def covariance_grad(x, c):
    return (c + c.T) @ x / 2


ARGUMENTS = [
    right(
        "strings, functions and None as arguments",
        reduced,
        reduced_grad,
        numbers(21, 3, 4),
        numbers(22, 5, 3),
        jnp.tanh,
        2,
        "mean",
        0.3,
        None,
    ),
    right("labels as floats", picked, picked_grad, numbers(23, 5, 3), integers(24, 3, 5).astype(np.float32)),
    right("one-hot labels", soft, soft_grad, numbers(25, 5, 3), one_hot(integers(26, 3, 5), 3)),
    right("time first", time_major, time_major_grad, numbers(27, 3, 2), numbers(28, 4, 5, 3)),
    right(
        "two argnums", two, lambda a, b: (jnp.exp(b), a * jnp.exp(b)), numbers(29, 3), numbers(30, 3), argnums=(0, 1)
    ),
    right("argnums 1", two, lambda a, b: a * jnp.exp(b), numbers(29, 3), numbers(30, 3), argnums=1),
    right(
        "data of float64",
        time_major,
        time_major_grad,
        numbers(31, 3, 2),
        np.random.default_rng(32).normal(size=(2, 5, 3)),
    ),
    right(
        "images of bytes",
        lambda w, x: jnp.mean(jnp.sin(x.astype(w.dtype) / 255 @ w)),
        lambda w, x: (x.astype(w.dtype) / 255).T @ jnp.cos(x.astype(w.dtype) / 255 @ w) / (len(x) * w.shape[1]),
        numbers(33, 4, 3),
        integers(34, 256, 5, 4).astype(np.uint8),
    ),
    right(
        "a covariance as data", covariance, covariance_grad, numbers(35, 3), np.cov(numbers(36, 3, 9)).astype("float32")
    ),
]


CASES = [*LEAVES, *TREES, *ARGUMENTS]
