"""The verifier's own parts: each must be able to say no."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn.verify import Example, Rule, certify, compare
from jaxnn.verify.judge.rule import numbers
from jaxnn.verify.judge.witnesses import Differences, leaf_directions

W, X = numbers(1, 4, 3), numbers(2, 5, 4)


def forward(inputs, given):
    return jnp.tanh(inputs["x"] @ inputs["w"])


def backward(inputs, given, dy):
    dz = dy * (1 - forward(inputs, given) ** 2)
    return {"w": inputs["x"].T @ dz, "x": dz @ inputs["w"].T}


RIGHT = Rule("right", (), forward, backward, (Example({"w": W, "x": X}),), float32=1e-5)
WRONG = {
    "sign": lambda g: {"w": -g["w"], "x": g["x"]},
    "zero": lambda g: {"w": g["w"], "x": 0 * g["x"]},
    "one part in 10,000": lambda g: {"w": g["w"], "x": g["x"] * 1.0001},
    "one entry": lambda g: {"w": g["w"].at[1, 2].set(0), "x": g["x"]},
    "NaN": lambda g: {"w": g["w"] * jnp.nan, "x": g["x"]},
    "a leaf is missing": lambda g: {"w": g["w"]},
    "shape": lambda g: {"w": g["w"].T, "x": g["x"]},
    "dtype": lambda g: {"w": g["w"].astype(jnp.float16), "x": g["x"]},
}


@pytest.mark.quick
def test_a_right_rule_is_certified():
    certificate = certify(RIGHT)
    assert certificate.ok, certificate.failures
    assert certificate.autodiff < 1e-12
    assert certificate.differences < 1e-8


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_rule_is_not(what):
    certificate = certify(RIGHT._replace(backward=lambda *a: WRONG[what](backward(*a))))
    assert not certificate.ok


def test_a_custom_vjp_in_the_forward_does_not_fool_the_differences():
    @jax.custom_vjp
    def f(x):
        return jnp.sin(x)

    f.defvjp(lambda x: (f(x), x), lambda x, dy: (dy * 2 * jnp.cos(x),))  # twice too large, and backward agrees with it
    rule = Rule("circular", (), lambda x, _: f(x), lambda x, _, dy: dy * 2 * jnp.cos(x), (Example(X),))
    certificate = certify(rule)
    assert certificate.autodiff < 1e-12
    assert any(failure.startswith("differences") for failure in certificate.failures)


def test_differences_look_at_every_leaf_and_closely():
    @jax.custom_vjp
    def f(a, b):
        return jnp.sin(a) + jnp.sin(b)

    def bwd(saved, dy):
        a, b = saved
        return dy * jnp.cos(a), dy * jnp.cos(b) * 1.0001

    f.defvjp(lambda a, b: (f(a, b), (a, b)), bwd)
    inputs = {"a": numbers(1, 4), "b": numbers(2, 4)}
    rule = Rule(
        "circular",
        (),
        lambda x, _: f(x["a"], x["b"]),
        lambda x, _, dy: dict(zip("ab", bwd((x["a"], x["b"]), dy), strict=True)),
        (Example(inputs),),
    )
    assert [failure.split(":")[0] for failure in certify(rule).failures] == ["differences"]


def test_differences_that_leave_the_domain_are_no_excuse():
    @jax.custom_vjp
    def f(x):
        return jnp.log(x)

    f.defvjp(lambda x: (f(x), x), lambda x, dy: (2 * dy / x,))
    x = np.array([1e-4, 1.0, 2.0])
    rule = Rule("log", (), lambda x, _: f(x), lambda x, _, dy: 2 * dy / x, (Example(x),))
    assert any(failure.startswith("differences") for failure in certify(rule).failures)


def test_a_rule_that_is_wrong_in_bfloat16_only():
    def backward(x, _, dy):
        return dy * (3 if x.dtype == jnp.bfloat16 else 2) * x

    rule = Rule("square", (), lambda x, _: x * x, backward, (Example(X),))
    assert [failure.split(":")[0] for failure in certify(rule).failures] == ["bfloat16"]


def test_a_rule_that_is_wrong_in_low_precision_only():
    def cancelling(x, _, dy):
        return dy * (1 - jnp.tanh(x) ** 2)  # right in float64, 2 % off in float32 at 7

    rule = Rule("tanh", (), lambda x, _: jnp.tanh(x), cancelling, (Example(np.full((3,), 7.0)),))
    assert [failure.split(":")[0] for failure in certify(rule).failures][:1] == ["float32"]


def test_compare_measures_each_leaf_by_its_own_size():
    truth = {"big": np.full((2, 2), 1e6), "small": np.array([1e-3, 2e-3]), "zero": np.zeros(3)}
    manual = {"big": np.full((2, 2), 1e6), "small": np.array([1e-3, 2.1e-3]), "zero": np.full(3, 1e-12)}
    big, small, zero = compare(manual, truth)
    assert (big.error, small.path, small.worst) == (0.0, "['small']", (1,))
    np.testing.assert_allclose(small.error, 1e-4 / (2e-3 + 1), rtol=1e-6)
    assert zero.error < 1e-7  # noise beside gradients of 1e6
    assert compare({"a": np.ones(2)}, {"a": np.zeros(2)})[0].error == np.inf
    assert compare(np.array([np.nan]), np.array([1.0]))[0].error == np.inf
    assert compare(np.zeros((0, 3)), np.zeros((0, 3)))[0].error == 0
    infinite = {"a": np.array([np.inf, 1.0]), "b": np.ones(2)}
    a, b = compare({"a": np.array([np.inf, 5.0]), "b": np.full(2, 7.0)}, infinite)
    assert (a.error, a.worst) == (np.inf, (0,))
    assert b.error > 5


def test_compare_names_what_has_another_structure():
    with pytest.raises(ValueError, match="return the same tree"):
        compare({"w": np.ones(2)}, {"v": np.ones(2)})
    with pytest.raises(ValueError, match=r"\['w'\] is float64\[3\], expected float64\[2\]"):
        compare({"w": np.ones(3)}, {"w": np.ones(2)})


@pytest.mark.quick
def test_differences_know_their_error():
    with jax.enable_x64(True):
        leaves = (numbers(3, 4), numbers(4, 2, 2))
        directions = leaf_directions(0, leaves)
        assert [bool(d[1 - i].any()) for i, d in enumerate(directions)] == [False, False]

        def phi(leaves, dy):
            a, b = leaves
            return dy * jnp.sin(a).sum() * jnp.exp(b).sum()

        found = Differences(phi)(leaves, 1.7, (2, 5), directions)
        a, b = leaves
        da = 1.7 * np.cos(a) * np.exp(b).sum()
        db = 1.7 * np.sin(a).sum() * np.exp(b)
        truth = [da[2], db.ravel()[1], np.vdot(da, directions[0][0]), np.vdot(db, directions[1][1])]
        np.testing.assert_allclose(found.slope, truth, rtol=1e-8)
        assert (np.abs(found.slope - truth) <= 10 * found.error + 1e-12).all()
        assert not found.kink.any()


@pytest.mark.parametrize("traceable", [True, False])
def test_differences_know_kinks_and_the_ends_of_a_domain(traceable):
    jumpy = jnp if traceable else np

    def phi(leaves, rest):
        a, b, c = leaves[0]
        return jumpy.abs(a) * 3 + jumpy.maximum(b - 1, 0.0) + jumpy.sqrt(c) * c

    with jax.enable_x64(True), np.errstate(invalid="ignore"):
        found = Differences(phi, traceable)((np.array([0.0, 1.0, 0.0]),), (), (0, 1, 2))
    assert list(found.kink) == [True, True, False]
    np.testing.assert_allclose([*found.below[:2], *found.above[:2]], [-3, 0, 3, 1], atol=1e-6)
    assert abs(found.slope[2]) < 1e-2  # c^1.5 exists on the right only; its slope at 0 is 0
    assert np.isfinite(found.error[2])
