"""The right gradient of another function: each change of the forward is found and named, and noise is not."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evidences import evidence, normal

from jaxnn.verify.explain.broken_backward import broken_backward
from jaxnn.verify.explain.changed_forward import other_function
from jaxnn.verify.report.data import EXACT

W, X, Y = normal(1, 3, 4), normal(2, 6, 3), normal(3, 6, 4)
LABELS = np.array([0, 3, 1, 2, 3, 0], np.int32)
MASK = np.tril(np.ones((4, 4), bool))
EPS = 0.1


def squared(w, x, y):
    return jnp.mean((jnp.tanh(x @ w) - y) ** 2)


def smoothed(w, x, y):
    return jnp.sum(jnp.sqrt((x @ w - y) ** 2 + EPS))


def classified(w, x, labels):
    return -jnp.mean(jax.nn.log_softmax(x @ w)[jnp.arange(6), labels])


def attended(w, x, mask):
    q = x[:4] @ w
    p = jax.nn.softmax(jnp.where(mask, q @ q.T, -1e30))
    return jnp.sum(jnp.sin(p @ q))


def normalized(w, x, y):
    z = x @ w
    xhat = (z - z.mean(0)) / jnp.sqrt(z.var(0) + EPS)
    return jnp.sum(y * xhat)


def normalized_by_hand(unbiased=False, outside=False):
    """The backward pass of `normalized`, which recomputes the standard deviation."""

    def manual(w, x, y):
        z = x @ w
        centred, n = z - z.mean(0), len(z)
        var = z.var(0) * (n / (n - 1) if unbiased else 1)
        sd = np.sqrt(var) + EPS if outside else np.sqrt(var + EPS)
        xhat = centred / sd
        return x.T @ ((y - y.mean(0) - xhat * (y * xhat).mean(0)) / sd)

    return manual


def of(f):
    """The right gradient of another function."""
    return lambda w, x, given: jax.grad(f)(w, x, given)


def gelu_by_hand(w, x, y):
    """The derivative of gelu with Phi(z) recomputed as (1 + erf(z)) / 2, without the square root of 2."""
    z = x @ w
    cdf = 0.5 * (1 + np.asarray(jax.scipy.special.erf(z)))
    return x.T @ (y * (cdf + z * np.exp(-z * z / 2) / np.sqrt(2 * np.pi)))


def gelu(w, x, y):
    z = x @ w
    return jnp.sum(y * z * 0.5 * (1 + jax.scipy.special.erf(z / jnp.sqrt(2.0))))


CASES = {
    "another function": (squared, of(lambda w, x, y: jnp.mean((jax.nn.sigmoid(x @ w) - y) ** 2)), Y, "sigmoid"),
    "left out": (squared, of(lambda w, x, y: jnp.mean((x @ w - y) ** 2)), Y, "tanh .* is left out"),
    "constant": (smoothed, of(lambda w, x, y: jnp.sum(jnp.sqrt((x @ w - y) ** 2))), Y, "0.1 .* is left out"),
    "epsilon outside": (
        smoothed,
        of(lambda w, x, y: jnp.sum(jnp.sqrt((x @ w - y) ** 2) + EPS)),
        Y,
        "outside the square root|left out",
    ),
    "labels + 1": (classified, of(lambda w, x, t: classified(w, x, (t + 1) % 4)), LABELS, "labels: off by one"),
    "labels turned": (classified, of(lambda w, x, t: classified(w, x, t[::-1])), LABELS, "labels: in reverse order"),
    "mask missing": (attended, of(lambda w, x, m: attended(w, x, m | True)), MASK, "labels: all True"),
    "mask transposed": (attended, of(lambda w, x, m: attended(w, x, m.T)), MASK, "labels: transposed"),
    "variance of n - 1": (normalized, normalized_by_hand(unbiased=True), Y, "variance .* divided by 5 instead of 6"),
    "epsilon in the backward": (normalized, normalized_by_hand(outside=True), Y, "epsilon 0.1 .* outside"),
    "argument of erf": (gelu, gelu_by_hand, Y, "erf is taken without the constant 1.41421"),
}


def found(f, manual, given):
    case = evidence(f, lambda *args: (manual(*args),), {"w": W}, {"x": X, "labels": given})
    return other_function(case, 20.0)


@pytest.mark.parametrize("name", CASES)
def test_it_is_found(name):
    f, manual, given, words = CASES[name]
    (finding,) = found(f, manual, given)
    assert finding.confidence == EXACT
    assert finding.leaves == ("w",)
    assert re.search(words, finding.text), finding.text


@pytest.mark.parametrize("f", [squared, smoothed, classified, attended, normalized])
def test_noise_is_not_explained(f):
    given = {classified: LABELS, attended: MASK}.get(f, Y)
    noise = normal(9, *W.shape)
    assert found(f, lambda *args: jax.grad(f)(*args) + 1e-3 * noise, given) == []
    assert found(f, lambda *args: noise, given) == []


def test_infinity_agrees_with_nothing():
    assert found(squared, lambda *args: np.full(W.shape, np.inf), Y) == []


def test_a_mask_that_the_forward_computes():
    """Its cases may be constants; and an array of keys among the arguments is not an array of numbers."""

    def sloped(w, x, ids, keys):
        z = (x @ w)[ids]
        noise = jax.random.normal(keys[0], z.shape)
        return jnp.sum(jnp.where(z > 0, 1.0, 0.1) * z * noise)

    def inverted(w, x, ids, keys):
        z = (x @ w)[ids]
        return x.T @ jnp.zeros((6, 4)).at[ids].add(jnp.where(z > 0, 0.1, 1.0) * jax.random.normal(keys[0], z.shape))

    given = {"x": X, "ids": LABELS, "keys": jax.random.split(jax.random.key(3, impl="unsafe_rbg"))}
    case = evidence(sloped, lambda *args: (inverted(*args),), {"w": W}, given)
    assert ["inverted" in finding.text for finding in other_function(case, 20.0)] == [True]
    noise = evidence(sloped, lambda *args: (inverted(*args) + 1e-3 * normal(9, 3, 4),), {"w": W}, given)
    assert other_function(noise, 20.0) == broken_backward(noise, 20.0) == []


def test_another_key():
    def dropped(w, x, key):
        return jnp.sum(jnp.sin((x * jax.random.bernoulli(key, 0.5, x.shape)) @ w))

    def manual(w, x, key):
        return jax.grad(dropped)(w, x, jax.random.fold_in(key, 1))

    (finding,) = found(dropped, manual, jax.random.key(3, impl="unsafe_rbg"))
    assert "another random key" in finding.text
    assert "fold_in(key, 1)" in finding.text
