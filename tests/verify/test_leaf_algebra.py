"""The diagnosis of wrong leaves: every hypothesis finds its case and says so, and none fires on another's."""

import functools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn.verify.explain.evidence import Evidence
from jaxnn.verify.explain.leaf_algebra import diagnose_leaves
from jaxnn.verify.report.data import CONSISTENT, EXACT, UNKNOWN

Gradient = Callable[..., Sequence]  # (inputs, given, dy) -> the leaves


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


class Problem(NamedTuple):
    """A function's right gradient, in NumPy, and a point."""

    truth: Gradient
    inputs: dict[str, np.ndarray]
    given: dict[str, np.ndarray]
    dy: tuple[np.ndarray, ...] = (np.float64(1.0) * np.ones(()),)
    y: Callable | None = None  # of (inputs, given), where a hypothesis looks at it
    forward: Callable | None = None  # in JAX, where a hypothesis looks at the jaxpr


def evidence(problem: Problem, manual: Gradient) -> Evidence:
    """What the verifier hands to the diagnosis for a manual gradient."""

    def again(inputs, given, dy):
        try:
            return tuple(manual(inputs, given, dy)), tuple(problem.truth(inputs, given, dy))
        except (ValueError, IndexError):
            return None

    point = tuple(problem.inputs.values()), tuple(problem.given.values()), problem.dy
    found = again(*point)
    assert found is not None
    m, t = found
    wrong = [
        a is None or a.shape != b.shape or not np.abs(a - b).max() <= 1e-7 * (np.abs(b).max() or 1e-300)
        for a, b in zip(m, t, strict=True)
    ]
    y = (np.asarray(problem.y(*point[:2])),) if problem.y else (np.ones(d.shape) for d in problem.dy)
    jaxpr = None
    if problem.forward:
        with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
            jaxpr = jax.make_jaxpr(problem.forward)(*point[0], *point[1])
    paths = tuple(problem.inputs), tuple(problem.given)
    return Evidence(*point, tuple(y), tuple(m), tuple(t), tuple(wrong), *paths, jaxpr, again)


def change(problem: Problem, **changes) -> Gradient:
    """The right gradient with some leaves changed: leaf=lambda g: ... or lambda g, inputs, given, dy: ..."""

    def manual(inputs, given, dy):
        leaves = dict(zip(problem.inputs, problem.truth(inputs, given, dy), strict=True))
        for name, f in changes.items():
            leaves[name] = f(leaves[name]) if f.__code__.co_argcount == 1 else f(leaves[name], inputs, given, dy)
        return tuple(leaves.values())

    return manual


# ---------------------------------------------------------------- little problems


def regression(n=6, n_in=4, n_out=3, forward=None):
    """mean over the batch of ½‖xw + b - y‖²."""

    def truth(inputs, given, dy):
        (w, b), (x, y) = inputs, given
        r = (x @ w + b - y) / len(x)
        return x.T @ r, r.sum(0)

    inputs = {"w": normal(1, n_in, n_out), "b": normal(2, n_out)}
    return Problem(truth, inputs, {"args[0]": normal(3, n, n_in), "args[1]": normal(4, n, n_out)}, forward=forward)


def ridge(l2=0.3):
    """½ mean(weights·(xw + b - y)²) + l2/2 ‖w‖²."""

    def truth(inputs, given, dy):
        (w, b), (x, y, weights, l2) = inputs, given
        r = weights * (x @ w + b - y) / len(x)
        return x.T @ r + l2 * w, np.atleast_1d(r.sum())

    rng = np.random.default_rng(0)
    given = {"x": normal(3, 7, 4), "y": normal(4, 7), "weights": rng.uniform(0.2, 2, 7), "l2": np.asarray(l2)}
    return Problem(truth, {"w": normal(1, 4), "b": normal(2, 1)}, given)


def classifier(smoothing=0.0):
    """Softmax regression with integer labels, mean over the batch."""

    def truth(inputs, given, dy):
        (w, b), (x, labels) = inputs, given
        k = w.shape[1]
        delta = softmax(x @ w + b) - (1 - smoothing) * np.eye(k)[labels] - smoothing / k
        return x.T @ delta / len(x), delta.sum(0) / len(x)

    labels = np.array([0, 1, 1, 0, 1, 0, 0, 1])
    return Problem(truth, {"w": normal(1, 5, 4), "b": normal(2, 4)}, {"x": normal(3, 8, 5), "labels": labels})


def logits(smoothing=0.0):
    """The cross-entropy's gradient in the logits themselves."""

    def truth(inputs, given, dy):
        (z,), (labels,) = inputs, given
        k = z.shape[1]
        return ((softmax(z) - (1 - smoothing) * np.eye(k)[labels] - smoothing / k) / len(z),)

    return Problem(truth, {"z": normal(1, 6, 4)}, {"labels": np.array([0, 2, 1, 1, 3, 0])})


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def tanh_net():
    """Two layers, tanh between them, ½ mean of squares; w1 b1 w2 b2."""

    def forward(w1, b1, w2, b2, x, y):
        return 0.5 * jnp.mean(jnp.sum((jnp.tanh(x @ w1 + b1) @ w2 + b2 - y) ** 2, 1))

    inputs = {"w1": normal(1, 4, 5), "b1": normal(2, 5), "w2": normal(3, 5, 5), "b2": normal(4, 5)}
    given = {"args[0]": normal(5, 7, 4), "args[1]": normal(6, 7, 5)}
    return Problem(functools.partial(net_gradient, lambda h: 1 - h * h), inputs, given, forward=forward)


def net_gradient(slope, inputs, given, dy):
    (w1, b1, w2, b2), (x, y) = inputs, given
    h = np.tanh(x @ w1 + b1)
    r = (h @ w2 + b2 - y) / len(x)
    dz = (r @ w2.T) * slope(h)
    return x.T @ dz, dz.sum(0), h.T @ r, r.sum(0)


def embedding(ids=((0, 2, 2), (5, 1, 2), (5, 6, 3))):
    """The looked-up rows, as a vjp."""

    def truth(inputs, given, dy):
        (table,), (ids,) = inputs, given
        rows = np.zeros(table.shape)
        np.add.at(rows, ids, dy[0])
        return (rows,)

    ids = np.array(ids)
    return Problem(truth, {"table": normal(1, 8, 4)}, {"ids": ids}, (normal(2, *ids.shape, 4),))


def elementwise(slope, x=None):
    """y = f(x) as a vjp."""
    x = normal(1, 5, 6) if x is None else x
    return Problem(lambda inputs, given, dy: (dy[0] * slope(inputs[0]),), {"x": x}, {}, (normal(2, *x.shape),))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax_vjp():
    def truth(inputs, given, dy):
        p = softmax(inputs[0])
        return (p * (dy[0] - (p * dy[0]).sum(-1, keepdims=True)),)

    return Problem(truth, {"x": normal(1, 5, 6)}, {}, (normal(2, 5, 6),), y=lambda inputs, given: softmax(inputs[0]))


def layer_norm():
    """(x - mean) / std over the last axis, times gamma, as a vjp of x and gamma."""

    def truth(inputs, given, dy):
        (x, gamma) = inputs
        std = x.std(-1, keepdims=True)
        h = (x - x.mean(-1, keepdims=True)) / std
        g = dy[0] * gamma
        dx = g - g.mean(-1, keepdims=True) - h * (g * h).mean(-1, keepdims=True)
        return dx / std, (dy[0] * h).sum(0)

    return Problem(truth, {"x": normal(1, 5, 6), "gamma": 1 + 0.3 * normal(2, 6)}, {}, (normal(3, 5, 6),))


def masked_mean():
    """The mean of ½(x·w)² over the tokens that a mask leaves, (2, 5) of them, as a loss of w."""

    def truth(inputs, given, dy):
        (w,), (x, mask) = inputs, given
        return (np.einsum("btd,bt->d", x, (x @ w) * mask) / mask.sum(),)

    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]], bool)
    return Problem(truth, {"w": normal(1, 6)}, {"x": normal(2, 3, 5, 6), "mask": mask})


def overwritten(inputs, given, dy):
    """The embedding's gradient with = for +=."""
    rows = np.zeros(inputs[0].shape)
    rows[given[0].ravel()] = dy[0].reshape(given[0].size, -1)
    return (rows,)


def forward_difference(inputs, given, step=1e-3):
    """(f(b1 + h) - f(b1)) / h of the net."""

    def loss(w1, b1, w2, b2):
        return 0.5 * np.mean(np.sum((np.tanh(given[0] @ w1 + b1) @ w2 + b2 - given[1]) ** 2, 1))

    w1, b1, w2, b2 = inputs
    return np.array([(loss(w1, b1 + step * e, w2, b2) - loss(*inputs)) / step for e in np.eye(b1.size)])


# ---------------------------------------------------------------- one finding


class Case(NamedTuple):
    problem: Problem
    kind: str
    words: str  # a regular expression
    manual: Gradient
    confidence: str = EXACT
    leaves: tuple[str, ...] | None = None  # all by default


def leaves(problem: Problem, kind: str, words: str, confidence: str = EXACT, **changes) -> Case:
    """Some leaves are changed."""
    return Case(problem, kind, words, change(problem, **changes), confidence, tuple(changes))


def all_leaves(problem: Problem, kind: str, words: str, f: Callable, confidence: str = EXACT) -> Case:
    """Every leaf is changed in the same way."""
    return Case(problem, kind, words, change(problem, **dict.fromkeys(problem.inputs, f)), confidence)


REGRESSION, RIDGE, NET, LOGITS, EMBEDDING = regression(), ridge(), tanh_net(), logits(), embedding()
SOFTMAX, NORM, MASKED, CLASSIFIER = softmax_vjp(), layer_norm(), masked_mean(), classifier()
TANH = elementwise(lambda x: 1 - np.tanh(x) ** 2)
INPUTS = {"x": normal(1, 4, 3), "gamma": normal(2, 3)}
SCALE = Problem(lambda p, a, dy: (dy[0] * p[1], (dy[0] * p[0]).sum(0)), INPUTS, {}, (normal(3, 4, 3),))
INPUTS = {"x": normal(1, 4, 3), "w": normal(2, 3, 3)}
MATMUL = Problem(lambda p, a, dy: (dy[0] @ p[1].T, p[0].T @ dy[0]), INPUTS, {}, (normal(3, 4, 3),))
COLUMNS = TANH._replace(given={"scale": np.arange(2.0, 8.0)}, truth=lambda p, a, dy: (dy[0] * a[0],))
DIVIDED = TANH._replace(given={"t": normal(9, 5, 6)}, truth=lambda p, a, dy: (p[0] / a[0],))
MASK = TANH._replace(given={"mask": normal(5, 5, 6) > 0}, truth=lambda p, a, dy: (dy[0] * a[0] * p[0],))
CAUSAL = Problem(lambda p, a, dy: (np.tril(dy[0] * np.exp(p[0])),), {"scores": normal(1, 6, 6)}, {}, (normal(2, 6, 6),))
RESIDUAL = TANH._replace(truth=lambda p, a, dy: (dy[0] * (2 - np.tanh(p[0]) ** 2),))
RELU = elementwise(lambda x: x > 0)


def scaled(c):
    return lambda g: c * g


def unit_norm(inputs, given, dy):
    found = NET.truth(inputs, given, dy)
    return [g / np.sqrt(sum((g * g).sum() for g in found)) for g in found]


def of_net(f) -> Gradient:
    """A gradient made of the net's parameters and their right gradients."""
    return lambda inputs, given, dy: f(*inputs, *NET.truth(inputs, given, dy))


def residual(inputs, given):
    """The prediction minus the target of the regression."""
    return given[0] @ inputs[0] + inputs[1] - given[1]


VALUES = {
    "missing": leaves(REGRESSION, "missing", r"w \(4, 3\): .*None", w=lambda g: None),
    "zero": leaves(REGRESSION, "zero", "every entry is 0", b=scaled(0)),
    "clipped": leaves(REGRESSION, "clipped", "beyond ±0.2 .*clipping", w=lambda g: np.clip(g, -0.2, 0.2)),
    "sign only": leaves(REGRESSION, "function_of_truth", r"sign\(truth\)", w=lambda g: np.sign(g)),
    "absolute": leaves(REGRESSION, "function_of_truth", "extra absolute value", w=lambda g: np.abs(g)),
}
FACTORS = {
    "batch": all_leaves(
        REGRESSION, "factor",
        r"all leaves, w \(4, 3\), b \(3,\): every entry is 6.0 times too large\. "
        r"6 is the batch size \(axis 0 of args\[0\]\): the mean's 1/n is missing",
        lambda g, p, a, dy: len(a[0]) * g,
    ),
    "averaged": leaves(REGRESSION, "factor", r"6.0 times too small\. 1/6.*batch.*once too often", b=scaled(1 / 6)),
    "sign": all_leaves(NET, "factor", "negative of the truth.*sign.*descent", scaled(-1.0)),
    "outputs": all_leaves(REGRESSION, "factor", r"3 is the size of axis 1 of args\[1\]", scaled(3.0)),
    "elements": all_leaves(REGRESSION, "factor", r"18 is the number of elements of args\[1\]", scaled(1 / 18)),
    "half": leaves(REGRESSION, "factor", "factor 1/2 is missing", w=scaled(2.0)),
    "Bessel": leaves(REGRESSION, "factor", r"n/\(n - 1\).*batch size", w=scaled(6 / 5)),
    "batch and sign": all_leaves(
        REGRESSION, "factor", "-6.0 times the truth.*batch size.*sign is flipped", lambda g, p, a, dy: -len(a[0]) * g
    ),
    "no known number": all_leaves(NET, "factor", "1.2345 times.*matches no", scaled(1.2345), CONSISTENT),
    "learning rate": all_leaves(NET, "factor", "learning rate", scaled(-0.01), CONSISTENT),
    "norm 1": Case(NET, "factor", "norm of the whole gradient.*clipped or normalised", unit_norm),
    "mask's mean": all_leaves(MASKED, "factor", "divided by 15 instead of 10", lambda g, p, a, dy: g * a[1].mean()),
    "rows": leaves(
        NORM, "factor_per_axis", "each row.*standard deviation", x=lambda g, p, a, dy: g * p[0].std(-1, keepdims=True)
    ),
    "columns": Case(COLUMNS, "factor_per_axis", "each column.*factor scale is missing", lambda p, a, dy: (dy[0],)),
    "entries": Case(DIVIDED, "factor_per_entry", "the truth times t", lambda p, a, dy: (p[0],)),
    "scatter's mean": all_leaves(
        EMBEDDING, "factor_per_axis", "number of times that each id occurs",
        lambda g, p, a, dy: g / np.bincount(a[0].ravel(), minlength=8).clip(1)[:, None],
    ),
}  # fmt: skip
PLACES = {
    "transposed": leaves(NET, "order", "it is transposed", w2=lambda g: g.T),
    "transposed, scaled": leaves(NET, "order", r"it is transposed.*times 7.0 \(7 is the batch", w2=lambda g: 7 * g.T),
    "flipped": leaves(NET, "order", r"flipped along axes \(0, 1\)", w2=lambda g: g[::-1, ::-1]),
    "rolled": leaves(NET, "order", "rows are rolled by 1", w1=lambda g: np.roll(g, 1, 0)),
    "exchanged": leaves(NET, "order", "columns are swapped: 1 and 3", w1=lambda g: g[:, [0, 3, 2, 1, 4]]),
    "reshaped": leaves(NET, "order", "reshaped where it should be transposed", w1=lambda g: g.T.reshape(g.shape)),
    "shifted": leaves(NET, "shifted", "shifted by 1", w1=lambda g: np.concatenate([0 * g[:1], g[:-1]])),
    "swapped": Case(
        NET, "swapped", "b1 and b2 are swapped",
        of_net(lambda w1, b1, w2, b2, *g: (g[0], g[3], g[2], g[1])), EXACT, ("b1", "b2"),
    ),
    "another's": Case(
        NET, "other_leaf", "gradient of b2", of_net(lambda w1, b1, w2, b2, *g: (g[0], g[3], *g[2:])), EXACT, ("b1",)
    ),
    "summed away": leaves(NET, "reduced", "summed over axis 0", w2=lambda g: np.broadcast_to(g.sum(0), g.shape)),
}  # fmt: skip
SHAPES = {
    "transposed": leaves(REGRESSION, "shape", r"\(3, 4\) instead of \(4, 3\): it is transposed", w=lambda g: g.T),
    "kept axis": leaves(REGRESSION, "shape", "numbers are right", b=lambda g: g[None]),
    "not summed": leaves(REGRESSION, "shape", "sum over axis 0 is missing", b=lambda g, p, a, dy: residual(p, a) / 6),
    "neither": leaves(
        REGRESSION, "shape", r"sum over axis 0 is missing, times 6.0 \(6 is the batch",
        b=lambda g, p, a, dy: residual(p, a),
    ),
    "summed too much": leaves(REGRESSION, "shape", "summed over axis 0 of the leaf", b=lambda g: g.sum()),
    "no relation": leaves(REGRESSION, "shape", r"\(2, 2\) instead", CONSISTENT, b=lambda g: np.ones((2, 2))),
}
TERMS = {
    "no L2": leaves(RIDGE, "term", "0.3 is l2.*L2, weight decay. is missing", w=lambda g, p, a, dy: g - a[3] * p[0]),
    "L2 twice": leaves(RIDGE, "term", "weight decay. counts 2.0 times", w=lambda g, p, a, dy: g + a[3] * p[0]),
    "L2 subtracted": leaves(RIDGE, "term", "decay. has the wrong sign", w=lambda g, p, a, dy: g - 2 * a[3] * p[0]),
    "L2 of a bias": leaves(RIDGE, "term", "b .1,.*does not regularize", b=lambda g, p, a, dy: g + a[3] * p[1]),
    "L1": leaves(RIDGE, "term", "L1", w=lambda g, p, a, dy: g + 0.1 * np.sign(p[0])),
    "constant": leaves(RIDGE, "term", "The constant times -0.125 is missing", w=lambda g: g + 0.125),
    "updated": Case(
        NET, "term", "updated parameters",
        lambda p, a, dy: [w - 0.1 * g for w, g in zip(p, NET.truth(p, a, dy), strict=True)],
    ),
    "factor but L2": leaves(
        RIDGE, "term", "7.0 .7 is the batch size.*All but the term in the leaf itself",
        w=lambda g, p, a, dy: 7 * g - 6 * a[3] * p[0],
    ),
    "no labels": leaves(
        CLASSIFIER, "term", "-y of p - y", b=lambda g, p, a, dy: softmax(a[0] @ p[0] + p[1]).mean(0)
    ),
    "p for p - y": Case(LOGITS, "term", "-y of p - y", lambda p, a, dy: (softmax(p[0]) / 6,)),
    "hard labels": Case(logits(0.1), "label_smoothing", "smoothing of the labels is left out", LOGITS.truth),
    "skip": Case(RESIDUAL, "term", "dy itself.*is missing", TANH.truth),
    "mean too many": leaves(NET, "projection", "mean over axis 0 is subtracted", w2=lambda g: g - g.mean(0)),
    "no mean": leaves(
        NORM, "projection", "mean over axis 1 is not subtracted.*path through the mean", CONSISTENT,
        x=lambda g, p, a, dy: g + (dy[0] * p[1]).mean(-1, keepdims=True) / p[0].std(-1, keepdims=True),
    ),
    "no variance": leaves(
        NORM, "projection", "path through the variance", CONSISTENT,
        x=lambda g, p, a, dy: g + (p[0] - p[0].mean(-1, keepdims=True)) * (dy[0] * p[0]).mean(-1, keepdims=True),
    ),
}  # fmt: skip
ACTIVATIONS = {
    "no tanh'": Case(TANH, "activation", "derivative of tanh is missing", lambda p, a, dy: (dy[0],)),
    "tanh' of tanh": Case(
        TANH, "activation", "taken at the activation instead", lambda p, a, dy: TANH.truth((np.tanh(p[0]),), a, dy)
    ),
    "1 - x²": Case(TANH, "activation", "given the pre-activation", lambda p, a, dy: (dy[0] * (1 - p[0] ** 2),)),
    "sigmoid' for tanh'": Case(
        TANH, "activation", "derivative of sigmoid, the forward has tanh",
        lambda p, a, dy: (dy[0] * sigmoid(p[0]) * sigmoid(-p[0]),),
    ),
    "tanh for tanh'": Case(TANH, "activation", "tanh itself multiplies", lambda p, a, dy: (dy[0] * np.tanh(p[0]),)),
    "softmax's diagonal": Case(
        SOFTMAX, "softmax", "only the diagonal", lambda p, a, dy: (softmax(p[0]) * (1 - softmax(p[0])) * dy[0],)
    ),
    "softmax's sum": Case(
        SOFTMAX, "softmax", "path through the normalizing sum", lambda p, a, dy: (softmax(p[0]) * dy[0],)
    ),
}  # fmt: skip
WHERE = {
    "relu": Case(RELU, "where", "value is less than 0.0.*derivative is 0 there", lambda p, a, dy: (dy[0],)),
    "mask": Case(MASK, "where", "mask is False.*mask from mask is not applied", lambda p, a, dy: (dy[0] * p[0],)),
    "causal": Case(
        CAUSAL, "where", "above the diagonal.*mask", lambda p, a, dy: (dy[0] * np.exp(p[0]),), CONSISTENT
    ),
    "row": leaves(NET, "where", r"at row 3 \(the last\): yours is 0", w1=lambda g: g * (np.arange(4) != 3)[:, None]),
    "labels only": Case(
        LOGITS, "where", "at no label of labels: yours is 0",
        lambda p, a, dy: [LOGITS.truth(p, a, dy)[0] * np.eye(4)[a[0]]],
    ),
    "one entry": leaves(
        NET, "entries", r"only 1 of 25 entries is wrong, \[2, 4\]", CONSISTENT,
        w2=lambda g: g + 0.1 * np.outer(np.arange(5) == 2, np.arange(5) == 4),
    ),
    "overwritten": Case(EMBEDDING, "scatter", "last occurrence.*duplicates.*overwrite", overwritten),
}  # fmt: skip
EXPERIMENTS = {
    "weights ignored": Case(
        RIDGE, "argument", "weights all 1.*ignores weights",
        lambda p, a, dy: RIDGE.truth(p, (*a[:2], np.ones(len(a[0])), a[3]), dy),
    ),
    "targets ignored": Case(
        NET, "argument", r"args\[1\] all 0.*ignores args\[1\]", lambda p, a, dy: NET.truth(p, (a[0], 0 * a[1]), dy)
    ),
    "mask ignored": Case(
        MASKED, "argument", "mask all True.*mask mask is ignored",
        lambda p, a, dy: (np.einsum("btd,bt->d", a[0], a[0] @ p[0]) / a[1].sum(),),
    ),
    "labels off by one": Case(
        CLASSIFIER, "argument", "labels is off by one", lambda p, a, dy: CLASSIFIER.truth(p, (a[0], a[1] + 1), dy)
    ),
    "dy squared": Case(SOFTMAX, "argument", "not linear", lambda p, a, dy: SOFTMAX.truth(p, a, (dy[0] ** 2,))),
    "not multiplied": Case(
        SCALE, "formula", r"it is the sum of dy over axis 0\. It should be the sum of .* over axis 0",
        lambda p, a, dy: (dy[0] * p[1], dy[0].sum(0)), EXACT, ("gamma",),
    ),
    "not transposed": Case(
        MATMUL, "formula", r"it is dy @ w\. It should be dy @ w\.T",
        lambda p, a, dy: (dy[0] @ p[1], p[0].T @ dy[0]), EXACT, ("x",),
    ),
    "first example": leaves(
        REGRESSION, "examples", r"only example 0 \(the first\) of 6 counts",
        w=lambda g, p, a, dy: REGRESSION.truth(p, (a[0][:1], a[1][:1]), dy)[0] / len(a[0]),
    ),
    "first row": leaves(
        REGRESSION, "examples", r"only example 0 \(the first\) of 6 counts", b=lambda g, p, a, dy: residual(p, a)[0] / 6
    ),
    "last left out": Case(
        NET, "examples", "example 6 of 7 is left out",
        lambda p, a, dy: [g * 6 / 7 for g in NET.truth(p, (a[0][:-1], a[1][:-1]), dy)],
    ),
    "wrong axis": leaves(
        regression(n=3), "wrong_axis", "over the features instead of the batch",
        b=lambda g, p, a, dy: residual(p, a).sum(1)[: g.size] / 3,
    ),
}  # fmt: skip
PRECISION = {
    "bfloat16": leaves(NET, "precision", "rounded to bfloat16", w1=lambda g: g.astype(jnp.bfloat16).astype(float)),
    "float16": leaves(NET, "precision", "rounded to float16", w1=lambda g: g.astype(np.float16).astype(float)),
    "integers": leaves(NET, "precision", "rounded to integers", w2=lambda g: np.round(g)),
    "difference": leaves(
        NET, "finite_difference", "forward difference with the step 0.001", CONSISTENT,
        b1=lambda g, p, a, dy: forward_difference(p, a),
    ),
}  # fmt: skip
CASES = {
    f"{family}: {name}": case
    for family, cases in (
        ("values", VALUES), ("factors", FACTORS), ("places", PLACES), ("shapes", SHAPES), ("terms", TERMS),
        ("activations", ACTIVATIONS), ("where", WHERE), ("experiments", EXPERIMENTS), ("precision", PRECISION),
    )
    for name, case in cases.items()
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_mistake_is_named(name):
    case = CASES[name]
    found = diagnose_leaves(evidence(case.problem, case.manual))
    assert [f.kind for f in found] == [case.kind], "\n".join(f.text for f in found)
    assert re.search(case.words, found[0].text), found[0].text
    assert found[0].confidence == case.confidence, found[0].text
    assert set(found[0].leaves) == set(case.leaves or case.problem.inputs), found[0].text


PROBLEMS = (REGRESSION, RIDGE, NET, LOGITS, EMBEDDING, SOFTMAX, NORM, MASKED, CLASSIFIER, TANH, SCALE, MATMUL)


@pytest.mark.parametrize("k", range(len(PROBLEMS)))
def test_noise_has_no_cause(k):
    problem = PROBLEMS[k]

    def noise(inputs, given, dy):
        point = np.concatenate([np.ravel(x).astype(float) for x in (*inputs, *given, *dy)])
        rng = np.random.default_rng(int(1e6 * abs(np.cos(np.arange(point.size)) @ point)) + k)
        return tuple(rng.standard_normal(g.shape) for g in problem.truth(inputs, given, dy))

    found = diagnose_leaves(evidence(problem, noise))
    assert {f.confidence for f in found} == {UNKNOWN}, "\n".join(f.text for f in found)
    assert {leaf for f in found for leaf in f.leaves} == set(problem.inputs)


# ---------------------------------------------------------------- deciding between causes


def first(problem: Problem, manual: Gradient):
    return diagnose_leaves(evidence(problem, manual))[0]


def test_twice_the_batch_tells_the_batch_from_an_axis_of_its_size_and_from_a_2():
    square = regression(n=3)  # 3 examples, 3 outputs
    batch = first(square, change(square, w=lambda g, p, a, dy: len(a[0]) * g))
    assert "3 is the batch size (axis 0 of args[0])" in batch.text
    assert "axis 1" not in batch.text
    outputs = first(square, change(square, w=lambda g, p, a, dy: a[1].shape[1] * g))
    assert "3 is the size of axis 1 of args[1]" in outputs.text
    assert "batch" not in outputs.text
    pair = regression(n=2)
    assert "2 is the batch size" in first(pair, change(pair, w=lambda g, p, a, dy: len(a[0]) * g)).text
    two = first(pair, change(pair, w=lambda g: 2 * g))
    assert "a factor 1/2 is missing" in two.text.lower()
    assert "batch" not in two.text


def test_the_batch_is_the_axis_that_most_data_share():
    given = {**REGRESSION.given, "class_weights": np.ones(3)}
    problem = REGRESSION._replace(truth=lambda p, a, dy: REGRESSION.truth(p, a[:2], dy), given=given)
    assert "6 is the batch size" in first(problem, change(problem, w=lambda g, p, a, dy: len(a[0]) * g)).text


def test_a_moved_parameter_is_not_where_a_constant_comes_from():
    def truth(inputs, given, dy):
        return given[0].T @ (given[0] @ inputs[0]) * inputs[1], np.zeros(1)

    problem = Problem(truth, {"w": normal(1, 4), "gain": np.array([5.0])}, {"x": normal(2, 5, 4)})
    found = first(problem, change(problem, w=scaled(5.0)))
    assert found.confidence == EXACT
    assert "batch size" in found.text
    assert "gain" not in found.text


@pytest.mark.parametrize("error", [1e-3, 5e-7])
def test_almost_is_not_exact(error):
    def manual(inputs, given, dy):
        w, b = REGRESSION.truth(inputs, given, dy)
        bump = np.sign(np.sin(1e3 * np.arange(w.size).reshape(w.shape))) + 0.3 * np.sin(inputs[0])
        return (6 if error > 1e-6 else 1) * w + error * np.abs(w).max() * bump / np.abs(bump).max(), b

    found = first(REGRESSION, manual)
    assert found.leaves == ("w",)
    assert found.kind in ("unknown", "noise", "entries"), found.text


def test_a_scalar_argument_is_missing_from_the_side_that_does_not_change_with_it():
    def truth(inputs, given, dy):
        return (given[0].T @ (given[0] @ inputs[0]) / given[1],)

    problem = Problem(truth, {"w": normal(1, 4)}, {"x": normal(2, 5, 4), "temperature": np.asarray(2.5)})
    missing = first(problem, lambda p, a, dy: (a[0].T @ (a[0] @ p[0]),))
    assert "2.5 is temperature: the division by it is missing." in missing.text
    without = problem._replace(truth=lambda p, a, dy: (a[0].T @ (a[0] @ p[0]),))
    extra = first(without, lambda p, a, dy: (a[0].T @ (a[0] @ p[0]) * a[1],))
    assert "2.5 is temperature: it multiplies once too often." in extra.text


def test_constants_and_means_of_the_forward_are_known_by_its_jaxpr():
    problem = regression(forward=lambda w, b, x, y: jnp.mean((x @ w + b) ** 2) * 0.7 / 0.9)
    for c, words in (
        (1 / 0.7, "0.7 is a constant of the forward: the factor 0.7 is missing"),
        (0.9, "0.9 is a constant of the forward: the division by 0.9 is missing"),
        (18.0, "18 is the number of entries in a mean of the forward: the mean's 1/n is missing"),
        (0.5, "2 is the exponent of x² in the forward: the derivative's factor 2 is missing"),
    ):
        found = first(problem, change(problem, w=scaled(c)))
        assert words in found.text
        assert found.confidence == EXACT


def test_one_cause_for_all_leaves_is_preferred_to_one_for_each():
    case = EXPERIMENTS["targets ignored"]  # b2 alone is explained by a term too
    found = diagnose_leaves(evidence(case.problem, case.manual))
    assert [f.leaves for f in found] == [("b2", "w2", "b1", "w1")]
    two = diagnose_leaves(evidence(NET, change(NET, w1=scaled(-1.0), w2=lambda g: g.T, b2=scaled(-1.0))))
    assert [(f.kind, f.leaves) for f in two] == [("factor", ("b2", "w1")), ("order", ("w2",))]


def test_where_the_mistake_enters():
    slope = first(NET, functools.partial(net_gradient, lambda h: 1 - h**4))
    assert slope.confidence == UNKNOWN
    assert slope.leaves == ("b1", "w1")
    assert "The leaves nearer the loss are right (w2, b2): the mistake enters between w2 and b1." in slope.text
    own = first(NET, change(NET, w2=lambda g: g + np.sin(1e3 * g)))
    assert own.leaves == ("w2",)
    assert "Leaves further from the loss are right (w1, b1): the mistake is this leaf's own." in own.text


def test_where_a_nan_comes_from():
    problem = elementwise(lambda p: 1 + np.log(np.where(p > 0, p, 1)), np.array([0.0, 0.2, 0.0, 0.5]))
    found = first(problem, lambda p, a, dy: (np.where(p[0] == 0, np.nan, problem.truth(p, a, dy)[0]),))
    assert found.kind == "not_finite"
    assert "2 of 4 entries are NaN: [0], [2]; the truth is finite there" in found.text
    assert "Its own value is 0 at exactly these entries: 0/0, log(0)" in found.text


def test_the_largest_entry_is_not_explained_by_being_the_largest():
    found = first(NET, change(NET, b1=lambda g, p, a, dy: g + (p[1] > np.sort(p[1])[-2]) * np.exp(g)))
    assert found.kind == "entries"
    assert "only 1 of 5 entries is wrong" in found.text


def test_right_alone_and_wrong_together_says_what_couples():
    def truth(inputs, given, dy):  # x_t = u x_{t-1} + data_t, the sum of x_t³ over the steps
        (u,), (data,) = inputs, given
        x, dx, total = np.ones(3), np.zeros(3), np.zeros(3)
        for d in data:
            dx, x = x + u * dx, u * x + d
            total = total + 3 * x * x * dx
        return (total,)

    def one_step_back(inputs, given, dy):
        (u,), (data,) = inputs, given
        x, total = np.ones(3), np.zeros(3)
        for d in data:
            before, x = x, u * x + d
            total = total + 3 * x * x * before
        return (total,)

    found = first(Problem(truth, {"u": normal(1, 3)}, {"data": normal(2, 6, 3)}), one_step_back)
    assert found.kind == "batch"
    assert "right if axis 0 of data has one entry, and wrong with 6" in found.text
    assert "steps in time" in found.text


def test_it_needs_no_experiments_and_takes_arrays_of_jax_and_keys():
    case = FACTORS["batch"]
    found = evidence(case.problem, case.manual)._replace(again=lambda inputs, given, dy: None)
    with jax.enable_x64(True):
        given = (*map(jnp.asarray, found.given), jax.random.key(0, impl="unsafe_rbg"))
    found = found._replace(given=given, given_paths=(*found.given_paths, "key"))
    assert "6 is the batch size (axis 0 of args[0])" in diagnose_leaves(found)[0].text


def test_a_single_number_is_not_explained_by_whatever_fits_it():
    problem = Problem(lambda p, a, dy: (np.cos(p[0]) * a[0].sum(),), {"b": np.asarray(0.7)}, {"x": normal(1, 5)})
    assert first(problem, lambda p, a, dy: (np.exp(p[0]) * a[0].max(),)).confidence == UNKNOWN
    assert first(problem, change(problem, b=lambda g, p, a, dy: g + a[0].max())).confidence == UNKNOWN
    text = "b (): it is 5.0 times too large. 5 is the batch size (axis 0 of x): the mean's 1/n is missing"
    assert first(problem, change(problem, b=scaled(5.0))).text.startswith(text)
