"""Assertions about gradients: silent if right, and the report if wrong."""

from pathlib import Path

import jax
import numpy as np
import pytest

import jaxnn
from jaxnn.testing import assert_custom_vjp, assert_grad, assert_layer, assert_pair, assert_vjp
from jaxnn.verify.report.report import WrongGradient

X = np.array([0.3, -1.2, 2.0], np.float32)


def loss(w, x):
    return (w * x * x).sum()


def right(w, x):
    return x * x


def twice(w, x):
    return 2 * x * x


def messages_of(call) -> str:
    """The message of the WrongGradient that `call` raises, whose visible traceback must end in the test."""
    with pytest.raises(WrongGradient) as raised:
        call()
    shown = raised.traceback.filter(raised)
    assert Path(shown[-1].path) == Path(__file__)
    return str(raised.value)


@pytest.mark.quick
def test_assert_grad():
    assert_grad(loss, right, X + 1, X)
    message = messages_of(lambda: assert_grad(loss, twice, X + 1, X))
    assert message.startswith("WRONG  twice against loss: 1 of 1 leaf")
    assert "manual 8, truth 4" in message


def test_assert_grad_passes_options_on():
    assert_grad(loss, lambda w, x: 2 * w * x, X + 1, X, argnums=1)


def test_assert_vjp():
    def f(x):
        return x * x

    assert_vjp(f, lambda x: (x * x, x), lambda x, dy: (2 * x * dy,), X)
    assert "truth" in messages_of(lambda: assert_vjp(f, lambda x: (x * x, x), lambda x, dy: (x * dy,), X))


def test_assert_custom_vjp():
    square = jax.custom_vjp(lambda x: x * x)
    square.defvjp(lambda x: (x * x, x), lambda x, dy: (2 * x * dy,))
    assert_custom_vjp(square, X)
    square.defvjp(lambda x: (x * x, x), lambda x, dy: (x * dy,))
    assert "truth" in messages_of(lambda: assert_custom_vjp(square, X))


def test_assert_pair():
    def forward(w, x):
        return w * x, x

    assert_pair(forward, lambda w, x, dy: (x * dy, w * dy), X, X + 1)
    assert "truth" in messages_of(lambda: assert_pair(forward, lambda w, x, dy: (x * dy, x * dy), X, X + 1))


def test_assert_layer():
    dense = jaxnn.layers.dense(2)
    x = np.ones((3, 2), np.float32)
    assert_layer(dense, x)
    flipped = dense._replace(backward=lambda p, c, dy: dense.backward(p, c, -dy))
    assert "WRONG" in messages_of(lambda: assert_layer(flipped, x))
    with pytest.raises(ValueError, match="needs random numbers"):
        assert_layer(jaxnn.layers.dropout(0.5), x, ctx=jaxnn.Ctx(train=True))
