"""Gradients that are right where they were tried and wrong elsewhere; and two mistakes at once."""

import jax
import jax.numpy as jnp
import numpy as np

from .case import LEFT_OUT, SIGN, Case, integers, numbers, positive

ELSEWHERE = r"moved|other point|another point|elsewhere|right at (the|your)|only at|other batch"

# ---------------------------------------------------------------- special parameters


def biased(params, x, y):
    return jnp.mean((jnp.tanh(x @ params["w"] + params["b"]) - y) ** 2)


def biased_grad(params, x, y):
    h = jnp.tanh(x @ params["w"])  # the bias is 0 at the start
    dz = 2 * (h - y) / y.size * (1 - h**2)
    return {"w": x.T @ dz, "b": dz.sum(0)}


def rectified(w, x):
    return jnp.sum(jax.nn.relu(x @ w) ** 2)


def rectified_grad(w, x):
    return 2 * x.T @ (x @ w)  # every x @ w is positive here


def scaled(params, x, c):
    xc = x - x.mean(1, keepdims=True)
    xhat = xc / jnp.sqrt((xc**2).mean(1, keepdims=True) + 1e-3)
    return jnp.sum(c * jnp.tanh(params["gamma"] * xhat + params["beta"]))


def scaled_grad(params, x, c):
    xc = x - x.mean(1, keepdims=True)
    xhat = xc / jnp.sqrt((xc**2).mean(1, keepdims=True) + 1e-3)
    dy = c * (1 - jnp.tanh(xhat) ** 2)  # gamma is 1, beta is 0
    return {"gamma": (dy * xhat).sum(0), "beta": dy.sum(0)}


def quadratic(a, x):
    return x @ a @ x


def quadratic_grad(a, x):
    return jnp.outer(x, x), 2 * a @ x  # a is symmetric here


def two_layers(params, x):
    return jnp.sum(jnp.sin(x @ params["w1"] @ params["w2"]))


def two_layers_grad(params, x):
    d = jnp.cos(x @ params["w1"] @ params["w2"])
    return {"w1": x.T @ d @ params["w2"], "w2": (x @ params["w1"]).T @ d}  # w2 is orthogonal and symmetric at the start


def heated(params, x):
    return jnp.mean(jax.nn.logsumexp(x @ params["w"] / params["t"], axis=1))


def heated_grad(params, x):
    z = x @ params["w"]
    p = jax.nn.softmax(z / params["t"]) / len(x)
    return {"w": x.T @ p, "t": -jnp.sum(p * z)}  # t is 1


def zero_net(params, x, y):
    return jnp.mean((jnp.tanh(x @ params["w1"]) @ params["w2"] - y) ** 2)


def zero_net_grad(params, x, y):
    h = jnp.tanh(x @ params["w1"])
    d = -2 * y / y.size  # the output is 0 at the start
    return {"w1": x.T @ (d @ params["w2"].T * (1 - h**2)), "w2": h.T @ d}


SPECIAL = [
    Case(
        "bias forgotten, tried with 0",
        "right_at_zero_bias",
        biased,
        biased_grad,
        ({"w": numbers(1, 4, 3), "b": np.zeros(3, np.float32)}, numbers(2, 5, 4), numbers(3, 5, 3)),
        (ELSEWHERE, r"\['b'\]|bias|zero"),
    ),
    Case(
        "relu forgotten, tried with positive numbers",
        "right_at_positive",
        rectified,
        rectified_grad,
        (positive(4, 3, 2, low=0.05, high=0.3), positive(5, 4, 3)),
        (ELSEWHERE + r"|negative|positive", r"relu|max|mask|positive"),
    ),
    Case(
        "scale forgotten, tried with 1",
        "right_at_one",
        scaled,
        scaled_grad,
        (
            {"gamma": np.ones(4, np.float32), "beta": np.zeros(4, np.float32)},
            numbers(6, 5, 4),
            numbers(7, 5, 4),
        ),
        (ELSEWHERE, "gamma|beta"),
    ),
    Case(
        "quadratic form of a symmetric matrix",
        "right_for_symmetric",
        quadratic,
        quadratic_grad,
        ((lambda a: a + a.T)(numbers(8, 3, 3)), numbers(9, 3)),
        (ELSEWHERE + "|symmetr", r"symmetr|transpos|args\[0\]|\buses?\b|path|contribution"),
        argnums=(0, 1),
    ),
    Case(
        "weight not transposed, tried with the identity",
        "right_for_identity",
        two_layers,
        two_layers_grad,
        ({"w1": numbers(10, 3, 4), "w2": np.eye(4, dtype=np.float32)}, numbers(11, 5, 3)),
        (ELSEWHERE + "|symmetr", r"transpos"),
    ),
    Case(
        "temperature forgotten, tried with 1",
        "right_at_one",
        heated,
        heated_grad,
        ({"w": numbers(12, 3, 4), "t": np.float32(1)}, numbers(13, 5, 3)),
        (ELSEWHERE, r"\['t'\]|divi"),
    ),
    Case(
        "output forgotten, tried with zero weights",
        "right_at_zero",
        zero_net,
        zero_net_grad,
        (
            {"w1": numbers(14, 3, 4), "w2": np.zeros((4, 2), np.float32)},
            numbers(15, 5, 3),
            numbers(16, 5, 2),
        ),
        (ELSEWHERE, r"\['w|output|ignor|zero|difference"),
    ),
]

# ---------------------------------------------------------------- special batches


def regression(params, x, y):
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


def hard_coded_grad(params, x, y):
    d = 2 * (x @ params["w"] + params["b"] - y) / 8
    return {"w": x.T @ d, "b": d.sum()}


def one_example_grad(params, x, y):
    d = 2 * (x @ params["w"] + params["b"] - y)
    return {"w": x[0] * d[0], "b": d[0]}


def not_averaged_grad(params, x, y):
    d = 2 * (x @ params["w"] + params["b"] - y)
    return {"w": x.T @ d, "b": d.sum()}


LINE = {"w": numbers(21, 3), "b": numbers(22)}
BATCHES = [
    Case(
        "batch size written as a number",
        "batch_size_hard_coded",
        regression,
        hard_coded_grad,
        (LINE, numbers(23, 8, 3), numbers(24, 8)),
        (r"batch|examples|axis 0|size", r"<8>|batch of|hard-?coded|other"),
    ),
    Case(
        "first example only, tried with one",
        "right_for_one_example",
        regression,
        one_example_grad,
        (LINE, numbers(25, 1, 3), numbers(26, 1)),
        (r"batch|example|axis 0|size",),
    ),
    Case(
        "not averaged, tried with one",
        "right_for_one_example",
        regression,
        not_averaged_grad,
        (LINE, numbers(27, 1, 3), numbers(28, 1)),
        (r"batch|example|axis 0|size",),
    ),
]

# ---------------------------------------------------------------- two mistakes at once


def classifier(params, x, labels):
    h = jnp.tanh(x @ params["w1"] + params["b1"])
    logp = jax.nn.log_softmax(h @ params["w2"])
    return -jnp.mean(logp[jnp.arange(len(labels)), labels])


def classifier_grad(params, x, labels, slip=None):
    h = jnp.tanh(x @ params["w1"] + params["b1"])
    d = jax.nn.softmax(h @ params["w2"]) - jax.nn.one_hot(labels, params["w2"].shape[1], dtype=x.dtype)
    d = d / len(labels)
    dh = d @ params["w2"].T
    dz = dh * (1 - h**2)
    match slip:
        case "factor and bias":
            dz = len(labels) * dz
            return {"w1": x.T @ dz, "b1": dz.mean(0), "w2": len(labels) * h.T @ d}
        case "factor and tanh'":
            return {"w1": len(labels) * x.T @ dh, "b1": len(labels) * dh.sum(0), "w2": len(labels) * h.T @ d}
        case "sign and transposed":
            return {"w1": -x.T @ dz, "b1": -dz.sum(0), "w2": -(d.T @ h)}
        case "zero and missing":
            return {"w1": jnp.zeros_like(params["w1"]), "w2": h.T @ d}
    return {"w1": x.T @ dz, "b1": dz.sum(0), "w2": h.T @ d}


def case(slip, kind, *words):
    def manual(params, x, labels):
        return classifier_grad(params, x, labels, slip)

    params = {"w1": numbers(31, 4, 3), "b1": numbers(32, 3), "w2": numbers(33, 3, 3)}
    return Case(f"classifier: {slip}", kind, classifier, manual, (params, numbers(34, 6, 4), integers(35, 3, 6)), words)


TWO = [
    case("factor and bias", "two_mistakes_factor", r"<6>", r"batch|mean|1/n|axis 0"),
    case("factor and tanh'", "two_mistakes_factor_activation", r"<6>", r"tanh", r"derivative|" + LEFT_OUT),
    case("sign and transposed", "two_mistakes_sign_transposed", SIGN, r"transpos"),
    case("zero and missing", "two_mistakes_structure", r"missing|lack|absent|has no|not in", r"b1"),
]

CASES = [*SPECIAL, *BATCHES, *TWO]
