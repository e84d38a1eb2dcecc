"""Gradients in the wrong form: trees, shapes, dtypes, NaN, results that change from call to call, circular rules."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from .case import Case, numbers, positive, subject

# ---------------------------------------------------------------- trees, shapes, dtypes


def affine(params, x, y):
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


def affine_grad(params, x, y, slip=None):
    dp = 2 * (x @ params["w"] + params["b"] - y) / y.size
    dw, db = x.T @ dp, dp.sum(0)
    match slip:
        case "leaf missing":
            return {"w": dw}
        case "leaf too many":
            return {"w": dw, "b": db, "x": dp @ params["w"].T}
        case "leaf None":
            return {"w": dw, "b": None}
        case "tuple for dict":
            return dw, db
        case "another name":
            return {"w": dw, "bias": db}
        case "in a tuple":
            return ({"w": dw, "b": db},)
        case "with the value":
            return affine(params, x, y), {"w": dw, "b": db}
        case "nothing returned":
            return None
        case "one vector":
            return jnp.concatenate([dw.ravel(), db])
        case "transposed shape":
            return {"w": dw.T, "b": db}
        case "axis kept":
            return {"w": dw, "b": dp.sum(0, keepdims=True)}
        case "not summed":
            return {"w": dw, "b": dp}
        case "a number for an array":
            return {"w": dw, "b": dp.sum()}
        case "float16":
            return {"w": dw.astype(jnp.float16), "b": db}
        case "integers":
            return {"w": dw, "b": jnp.round(db).astype(jnp.int32)}
        case "updated parameters":
            return {"w": params["w"] - 0.1 * dw, "b": params["b"] - 0.1 * db}
    return {"w": dw, "b": db}


B, W = r"\['b'\]|'b'", r"\['w'\]|'w'"
AFFINE = subject(
    "affine",
    affine,
    affine_grad,
    ({"w": numbers(1, 4, 3), "b": numbers(2, 3)}, numbers(3, 5, 4), numbers(4, 5, 3)),
    {
        "leaf missing": ("leaf_missing", B, r"missing|lack|not in|absent|has no"),
        "leaf too many": ("leaf_extra", r"\['x'\]|'x'", r"extra|too many|unexpected|not in|no such|besides"),
        "leaf None": ("leaf_none", B, r"None"),
        "tuple for dict": ("container", r"tuple", r"dict"),
        "another name": ("leaf_renamed", r"bias", B),
        "in a tuple": ("wrapped", r"tuple"),
        "with the value": ("wrapped", r"value", r"tuple|two|gradient alone|value_and_grad"),
        "nothing returned": ("nothing_returned", r"None"),
        "one vector": ("flattened", r"\(15,\)|\[15\]|array|flat", r"dict|tree|leaves"),
        "transposed shape": ("shape_transposed", W, r"\(3, 4\)", r"\(4, 3\)"),
        "axis kept": ("shape_axis_kept", B, r"\(1, 3\)", r"\(3,\)"),
        "not summed": ("shape_not_summed", B, r"\(5, 3\)", r"sum|batch|axis|broadcast"),
        "a number for an array": ("shape_summed_too_far", B, r"\(\)|scalar|number", r"\(3,\)"),
        "float16": ("dtype", W, r"float16", r"float32"),
        "integers": ("dtype_integer", B, r"int32"),
        "updated parameters": ("step_for_gradient", r"param", r"\bstep\b|update|learning|<0.1>|times params|new param"),
    },
)


def product(a, b):
    return jnp.sum(jnp.sin(a) * b**2)


def product_grad(a, b, slip=None):
    da, db = jnp.cos(a) * b**2, 2 * jnp.sin(a) * b
    if slip == "in another order":
        return db, da
    if slip == "the first only":
        return da
    return da, db


PRODUCT = subject(
    "two arguments",
    product,
    product_grad,
    (numbers(11, 4), numbers(12, 4)),
    {
        "in another order": ("arguments_swapped", r"swap|exchang|interchang|each other|order"),
        "the first only": ("argument_missing", r"tuple|missing|one gradient|for each|argnums"),
    },
    argnums=(0, 1),
)

# ---------------------------------------------------------------- NaN and infinities


def distance(x, y):
    return jnp.sum(jnp.sqrt(jnp.sum((x - y) ** 2, axis=1) + 1e-12))


def distance_grad(x, y, slip=None):
    d = x - y
    if slip == "0 / 0":
        return d / jnp.sqrt(jnp.sum(d**2, axis=1, keepdims=True))
    return d / jnp.sqrt(jnp.sum(d**2, axis=1, keepdims=True) + 1e-12)


X = numbers(21, 4, 2)
DISTANCE = subject(
    "distance",
    distance,
    distance_grad,
    (X, np.concatenate([X[:1], numbers(22, 3, 2)])),
    {"0 / 0": ("nan", r"nan", r"\[0|row 0|0/0|0 / 0|index|entr")},
)


def entropy(p, x):
    return -jnp.sum(x * jnp.log(jnp.maximum(p, 1e-6)))


def entropy_grad(p, x, slip=None):
    if slip == "1 / 0":
        return -x / p
    return -x / jnp.maximum(p, 1e-6) * (p > 1e-6)


DISTANCE += subject(
    "clamped logarithm",
    entropy,
    entropy_grad,
    (np.array([0.3, 0.0, 0.7], np.float32), positive(23, 3)),
    {"1 / 0": ("infinite", r"inf", r"\[1\b|<1>|index|entr")},
)

# ---------------------------------------------------------------- not the same twice

generator = np.random.default_rng(0)
counter = itertools.count()
momentum: list = [0.0]


def noisy_grad(w, x):
    return jnp.cos(w) * x + 0.01 * generator.normal(size=w.shape).astype("float32")


def counting_grad(w, x):
    return jnp.cos(w) * x / (1 + next(counter))


def remembering_grad(w, x):
    momentum[0] = 0.9 * momentum[0] + np.cos(np.asarray(w)) * np.asarray(x)
    return momentum[0]


def overwriting_grad(w, x):
    grad = np.asarray(x)
    grad *= np.cos(np.asarray(w))  # in place: the second call sees another x
    return grad


def wave(w, x):
    return jnp.sum(jnp.sin(w) * x)


def noisy_wave(w, x):
    return jnp.sum(jnp.sin(w) * x * generator.normal())


def wave_grad(w, x):
    return jnp.cos(w) * x


TWO_CALLS = r"twice|two calls|second call|random|again|determin|side effect|hidden|impure|something beside"
CHANGING = [
    Case(name, kind, forward, manual, (numbers(31, 4), numbers(32, 4)), (TWO_CALLS,))
    for name, kind, forward, manual in [
        ("hidden noise in the gradient", "hidden_randomness", wave, noisy_grad),
        ("a global counter", "state_between_calls", wave, counting_grad),
        ("momentum in a global", "state_between_calls", wave, remembering_grad),
        ("hidden noise in the loss", "hidden_randomness_in_the_loss", noisy_wave, wave_grad),
    ]
] + [
    Case(
        "an argument is changed in place",
        "argument_overwritten",
        wave,
        overwriting_grad,
        (numbers(31, 4), numbers(32, 4)),
        (r"in place|chang|overwr|read-?only|mutat|writ|twice|second|side effect",),
    )
]

# ---------------------------------------------------------------- a wrong rule that the forward has too


@jax.custom_vjp
def cube(x):
    return x**3


cube.defvjp(lambda x: (x**3, x), lambda x, dy: (2 * x**2 * dy,))  # 3 became 2


def circular(w, x):
    return jnp.sum(cube(x @ w))


def circular_grad(w, x):
    return x.T @ (2 * (x @ w) ** 2)


@jax.custom_vjp
def softsign(x):
    return x / (1 + jnp.abs(x))


softsign.defvjp(lambda x: (softsign(x), x), lambda x, dy: (dy / (1 + jnp.abs(x)),))  # the square is missing


def circular_vjp(w, x):
    return jnp.mean(softsign(x @ w))


def circular_vjp_grad(w, x):
    return jax.grad(circular_vjp)(w, x)


CIRCULAR = [
    Case(
        name,
        "circular_custom_vjp",
        forward,
        manual,
        (numbers(41, 3, 2), numbers(42, 5, 3)),
        (r"custom_vjp|custom rule|custom derivative",),
    )
    for name, forward, manual in [
        ("custom_vjp of a cube, wrong in both", circular, circular_grad),
        ("custom_vjp of softsign, wrong in both", circular_vjp, circular_vjp_grad),
    ]
]

CASES = [*AFFINE, *PRODUCT, *DISTANCE, *CHANGING, *CIRCULAR]
