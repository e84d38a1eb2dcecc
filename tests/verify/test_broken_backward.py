"""The backward pass broken on purpose: its reverse mode is jax's, a mistake is found, noise is not explained."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evidences import evidence, normal
from jax import lax

from jaxnn.verify.explain.broken_backward import broken_backward
from jaxnn.verify.explain.reverse_mode import flat_graph, primitive_rules
from jaxnn.verify.explain.reverse_mode.flat_graph import backpropagate, flatten
from jaxnn.verify.report.data import EXACT

# ---------------------------------------------------------------- reverse mode in NumPy

IDS = np.array([2, 0, 2, 4], np.int32)
NHWC = ("NHWC", "HWIO", "NHWC")
FUNCTIONS = {  # of one (5, 4) array of positive numbers
    "elementwise": lambda x: jnp.exp(-x) + jnp.log1p(x) * jnp.sin(x) / jnp.cos(0.1 * x) - jnp.tanh(x) ** 3,
    "roots": lambda x: jnp.sqrt(x) + lax.rsqrt(x) + jnp.cbrt(x) + x**1.7 + x**-2,
    "distributions": lambda x: jax.scipy.special.erf(x) + jax.scipy.special.erfc(x) + jax.nn.sigmoid(x) + lax.exp2(x),
    "angles": lambda x: jnp.arctan(x) + jnp.tan(0.3 * x) + jnp.sinh(x) + jnp.cosh(x) + jnp.expm1(x) + jnp.abs(x - 1),
    "kinks": lambda x: jnp.maximum(x, 1.1) + jnp.minimum(2 * x, 1.9) + jnp.clip(x, 0.7, 1.3) + jax.nn.relu(x - 1),
    "where": lambda x: jnp.where(x > 1, x**2, 3 * x),
    "sums": lambda x: x.sum(0) + x.mean() + x.max(0) + x.min(0) + jnp.prod(x, 0) + x.std(0),
    "cumulative sums": lambda x: jnp.cumsum(x, 0) * x + jnp.cumsum(x[::-1], 1),
    "moves": lambda x: jnp.flip(x.T, 0).reshape(2, 10)[:, 1:8:2] + jnp.concatenate([x, 2 * x])[3:5],
    "pad": lambda x: jnp.pad(x, ((1, 2), (0, 1)))[1:6] + lax.pad(x, 0.0, ((0, 1, 0), (1, 0, 0)))[:5],
    "dynamic slice": lambda x: lax.dynamic_slice(x, (1, 1), (3, 2)) ** 2,
    "gather": lambda x: x[IDS] * x[IDS, IDS % 4][:, None],
    "scatter": lambda x: jnp.zeros((5, 4)).at[IDS].add(x[:4]) * x + x.at[1].set(x[0] ** 2),
    "sort": lambda x: jnp.sort(x, 0) * jnp.arange(20.0).reshape(5, 4) + lax.top_k(x, 3)[0].sum(1, keepdims=True),
    "products": lambda x: (x.T @ x) @ jnp.einsum("ij,kj->ik", x.T, x.T),
    "softmax": lambda x: jax.nn.softmax(x) * x + jax.nn.log_softmax(x, 0) + jax.nn.logsumexp(x, 1)[:, None],
    "convolution": lambda x: lax.conv_general_dilated(
        x.reshape(1, 5, 4, 1), x[:3, :2].reshape(3, 2, 1, 1), (2, 1), ((1, 0), (1, 1)), dimension_numbers=NHWC
    ),
    "pooling": lambda x: (
        lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (2, 1), "VALID")
        + lax.reduce_window(x, 0.0, lax.add, (2, 2), (2, 1), "VALID")
    ),
    "scan": lambda x: lax.scan(lambda h, x: (jnp.tanh(h + x), h * x), x[0], x)[1],
    "loops": lambda x: lax.fori_loop(0, 3, lambda i, h: jnp.sin(h) * x, x) + lax.cond(True, jnp.cos, jnp.sin, x),
    "held": lambda x: lax.stop_gradient(x) * x + jnp.floor(x) * x + jnp.sign(x - 1) * x,
    "custom rules": lambda x: jax.nn.relu(x - 1) + jax.nn.silu(x) + jnp.linalg.norm(x, axis=0),
}


def both(f, x, dy):
    """The gradient of f(x) by NumPy's reverse mode, and by jax."""
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"), np.errstate(all="ignore"):
        dy = dy(jax.eval_shape(f, x).shape)
        y, dx = jax.jit(lambda x, dy: (f(x), jax.vjp(f, x)[1](dy)[0]))(x, dy)
        graph = flatten(jax.make_jaxpr(f)(x), (x,), (), ("x",))
        np.testing.assert_allclose(graph.values[graph.outputs[0]], y, rtol=1e-12, atol=1e-12)
        return backpropagate(graph, [dy])[graph.inputs[0]], np.asarray(dx)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_reverse_mode_is_that_of_jax(name):
    x = np.random.default_rng(3).uniform(0.3, 2.0, (5, 4))
    ours, theirs = both(FUNCTIONS[name], x, lambda shape: normal(4, *shape))
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.quick
def test_a_wrong_rule_is_noticed(monkeypatch):
    monkeypatch.setitem(primitive_rules.DERIVATIVE, "tanh", lambda p, x, y: 1 - y)
    ours, theirs = both(jnp.tanh, normal(1, 3), lambda shape: normal(2, *shape))
    assert np.abs(ours - theirs).max() > 0.01


# ---------------------------------------------------------------- mistakes

W, B, X, Y = normal(1, 3, 4), normal(2, 4), normal(3, 5, 3), normal(4, 5, 4)


def network(w, b, x, y):
    h = jnp.tanh(x @ w + b)
    return jnp.mean((h - y) ** 2)


def gradient(mistake):
    def manual(w, b, x, y):
        h = np.tanh(x @ w + b)
        dh = 2 * (h - y) / h.size
        if mistake == "sum":
            dh = dh * h.size
        dz = dh * (1 - h**2)
        if mistake in ("derivative", "derivative and batch"):
            dz = dh
        if mistake == "at the output":
            dz = dh * (1 - np.tanh(h) ** 2)
        if mistake == "square":
            dz = dh * (1 - h) ** 2
        dw, db = x.T @ dz, dz.sum(0)
        if mistake in ("batch", "derivative and batch"):
            db = dz.mean(0)
        if mistake == "first example":
            db = dz[0]
        if mistake == "through h":
            db = dh.sum(0)
        return dw, db

    return manual


def found(mistake, f=network, seconds=20.0):
    case = evidence(f, gradient(mistake), {"w": W, "b": B}, {"x": X, "y": Y})
    return broken_backward(case, seconds)


@pytest.mark.parametrize(
    ("mistake", "words", "leaves"),
    [
        ("sum", "20", ("w", "b")),
        ("derivative", "the derivative of tanh .* is missing", ("w", "b")),
        ("at the output", "output", ("w", "b")),
        ("square", r"\(1 - a\)\^2", ("w", "b")),
        ("batch", "averaged over axis 0", ("b",)),
        ("first example", "only the first of the 5 entries", ("b",)),
        ("through h", "gradient of b .*the derivative of tanh", ("b",)),
        ("derivative and batch", "the derivative of tanh", ("w",)),
    ],
)
def test_a_mistake_is_found_at_its_line(mistake, words, leaves):
    first = found(mistake)[0]
    assert first.confidence == EXACT
    assert set(leaves) <= set(first.leaves)
    assert re.search(words, first.text), first.text
    assert first.source is None or first.source.startswith("test_broken_backward.py:")


def test_what_is_right_has_no_cause():
    assert found(None) == []


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_noise_is_not_explained(seed, scale):
    """A search over thousands of trials must not find a cause where there is none."""
    right = gradient(None)

    def manual(w, b, x, y):
        dw, db = right(w, b, x, y)
        return dw + scale * normal(seed, *dw.shape), db

    case = evidence(network, manual, {"w": W, "b": B}, {"x": X, "y": Y})
    assert broken_backward(case, 20.0) == []


def test_without_time_nothing_is_said():
    assert found("derivative", seconds=0.0) == []


def test_a_function_that_is_too_large_is_left_alone(monkeypatch):
    monkeypatch.setattr(flat_graph, "MOST_NODES", 5)
    assert found("derivative") == []


# ---------------------------------------------------------------- what stands instead, and time

LOGITS, LABELS, TARGET = normal(5, 6, 3), np.array([0, 2, 1, 2, 0, 1], np.int32), np.abs(normal(6, 6, 3)) + 0.1


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def cross_entropy(z, labels):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(z), labels[:, None], 1))


def divergence(z, t):
    return jnp.sum(t * (jnp.log(t) - jax.nn.log_softmax(z)))


@pytest.mark.parametrize(
    ("f", "manual", "given", "words"),
    [
        (cross_entropy, lambda z, t: softmax(z) - np.eye(3)[t] / 6, {"labels": LABELS}, "softmax"),
        (cross_entropy, lambda z, t: (softmax(z) - np.eye(4)[t + 1][:, :3]) / 6, {"labels": LABELS}, "off by one"),
        (divergence, lambda z, t: -t / softmax(z), {"t": TARGET}, "derivative of softmax is missing"),
        (divergence, lambda z, t: z - t, {"t": TARGET}, "squared error"),
        (divergence, lambda z, t: 0.3 * np.ones_like(z), {"t": TARGET}, "ignored"),
    ],
)
def test_another_loss(f, manual, given, words):
    case = evidence(f, lambda *args: (manual(*args),), {"z": LOGITS}, given)
    texts = [finding.text for finding in broken_backward(case, 20.0)]
    assert texts
    assert words in texts[0]


def test_time_that_is_cut_after_some_steps():
    u, x = 0.6 * normal(7, 3, 3), normal(8, 6, 3)

    def rnn(u, x):
        h, total = jnp.zeros(3), 0.0
        for t in range(len(x)):
            h = jnp.tanh(x[t] + h @ u)
            total = total + jnp.sum(h**2)
        return total

    def manual(steps):
        def gradient(u, x):
            hs = [np.zeros(3)]
            for row in x:
                hs.append(np.tanh(row + hs[-1] @ u))
            du = np.zeros((3, 3))
            for t in range(len(x)):  # the loss of step t, sent back over at most `steps` steps
                dh = 2 * hs[t + 1]
                for back in range(min(steps, t) + 1):
                    dz = dh * (1 - hs[t + 1 - back] ** 2)
                    du += np.outer(hs[t - back], dz)
                    dh = dz @ u.T
            return (du,)

        return gradient

    for steps, words in ((1, "one step only"), (2, "2 steps only")):
        texts = [f.text for f in broken_backward(evidence(rnn, manual(steps), {"u": u}, {"x": x}), 20.0)]
        assert texts
        assert words in texts[0]
    assert broken_backward(evidence(rnn, manual(9), {"u": u}, {"x": x}), 20.0) == []
