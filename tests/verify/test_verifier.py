"""verify_grad, verify_vjp, verify_layer: whom they believe, what they hold against a gradient, what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnn
from jaxnn.verify.judge.rule import numbers


@pytest.fixture(autouse=True)
def _as_users_have_it():
    """The verifier sees code of users, who do not set JAX's strict promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


X, Y, W = numbers(1, 5, 3).astype("f"), numbers(2, 5).astype("f"), numbers(3, 3).astype("f")


def loss(w, x, y):
    return jnp.mean((x @ w - y) ** 2)


def grad(w, x, y):
    return 2 / len(y) * x.T @ (x @ w - y)


def kinds(report, wrong=True):
    return [finding.kind for finding in report.findings if finding.wrong == wrong]


def test_a_right_gradient():
    report = jaxnn.verify_grad(loss, grad, W, X, Y)
    assert report.ok
    leaf = report.leaves["params"]
    assert (leaf.status, leaf.n_wrong, leaf.shape, leaf.dtype) == ("ok", 0, (3,), "float32")
    assert leaf.autodiff < 1e-13
    assert 0 < leaf.differences < 1e-7
    assert leaf.truth is not None
    np.testing.assert_allclose(leaf.truth, grad(W.astype(float), X.astype(float), Y.astype(float)), rtol=1e-12)
    np.testing.assert_allclose(report.value, np.mean((X @ W - Y) ** 2), rtol=1e-6)
    assert any("3 moved points, a batch of 3" in note and "a batch of one" in note for note in report.notes)
    assert any("differences measured all 3 entries" in note for note in report.notes)


def test_a_wrong_gradient_in_numbers():
    report = jaxnn.verify_grad(loss, lambda w, x, y: grad(w, x, y).at[1].multiply(1.001), W, X, Y)
    leaf = report.leaves["params"]
    assert not report.ok
    assert (leaf.status, leaf.n_wrong, leaf.worst) == ("WRONG", 1, (1,))
    assert leaf.manual is not None
    assert leaf.truth is not None
    assert leaf.curve is not None
    np.testing.assert_allclose(leaf.manual[1], 1.001 * leaf.truth[1])
    assert leaf.curve.index == (1,)
    assert np.abs(leaf.curve.slopes - leaf.truth[1]).min() < 1e-8


def test_numpy_code_on_either_side():
    def numpy_loss(w, x, y):
        return float(np.mean((np.asarray(x) @ np.asarray(w) - y) ** 2))

    def numpy_grad(w, x, y):
        g = np.zeros_like(w)
        for xi, yi in zip(x, y, strict=True):
            g += 2 * (xi @ w - yi) * xi
        return g / len(y)

    for f in (loss, numpy_loss):
        assert jaxnn.verify_grad(f, numpy_grad, W, X, Y).ok
        assert not jaxnn.verify_grad(f, lambda *a: numpy_grad(*a) * 1.0001, W, X, Y).ok


def test_several_arguments_and_a_tuple_of_gradients():
    def both(w, x, y):
        r = 2 / y.size * (x @ w - y)
        return x.T @ r, r[:, None] * w

    report = jaxnn.verify_grad(loss, both, W, X, Y, argnums=(0, 1))
    assert report.ok
    assert list(report.leaves) == ["params", "args[0]"]
    assert not jaxnn.verify_grad(loss, lambda *a: both(*a)[::-1], W, X, Y, argnums=(0, 1)).ok


@jax.custom_vjp
def wrong_sin(x):
    return jnp.sin(x)


wrong_sin.defvjp(lambda x: (jnp.sin(x), x), lambda x, dy: (2 * dy * jnp.cos(x),))


def test_a_wrong_rule_in_the_forward_is_not_held_against_a_right_gradient():
    report = jaxnn.verify_grad(lambda w: wrong_sin(w).sum(), jnp.cos, W)
    assert report.ok
    assert kinds(report, wrong=False) == ["autodiff_rule"]
    assert np.isnan(report.leaves["params"].autodiff)


def test_a_gradient_that_repeats_the_wrong_rule_is_wrong():
    report = jaxnn.verify_grad(lambda w: wrong_sin(w).sum(), lambda w: 2 * jnp.cos(w), W)
    assert kinds(report) == ["circular"]


def test_the_rule_of_a_custom_vjp_is_verified_against_its_function():
    assert not jaxnn.verify_custom_vjp(wrong_sin, W).ok
    assert jaxnn.verify_vjp(jax.nn.relu, lambda x: (jax.nn.relu(x), x), lambda x, dy: (dy * (x > 0),), W).ok


def test_autodiff_that_is_nan_is_overruled():
    def norm(w):
        return jnp.where(w[0] > 0, jnp.sqrt(jnp.where(w[0] > 0, w[0], 1.0)), 0.0) + jnp.where(
            w[1] > 5, jnp.log(w[1] - 5), 0.0
        )

    def right(w):
        return jnp.array([0.5 / jnp.sqrt(w[0]), 0.0])

    w = np.array([2.0, 5.0], "f")
    w[1] = 3.0  # log of a negative number, discarded by where: NaN in jax.grad
    report = jaxnn.verify_grad(lambda w: norm(w) + 0 * w.sum(), right, w)
    assert report.ok, str(report)


def test_stop_gradient_is_meant():
    def target(w, x):
        return jnp.sum((x @ w - jax.lax.stop_gradient(x @ w * 0.9)) ** 2)

    def right(w, x):
        return 2 * x.T @ (x @ w - 0.9 * (x @ w))

    report = jaxnn.verify_grad(target, right, W, X)
    assert report.ok
    assert any("stop_gradient" in note for note in report.notes)
    assert not jaxnn.verify_grad(target, lambda w, x: 0.1 * right(w, x), W, X).ok


@pytest.mark.parametrize(("at_zero", "ok"), [(0.0, True), (0.5, True), (1.0, True), (1.5, False), (-0.1, False)])
def test_any_subgradient_at_a_kink_and_nothing_else(at_zero, ok):
    w = np.array([0.0, 1.0, -2.0], "f")
    report = jaxnn.verify_grad(lambda w: jax.nn.relu(w).sum(), lambda w: jnp.where(w == 0, at_zero, 1.0 * (w > 0)), w)
    assert report.ok == ok
    if ok and at_zero:
        assert report.leaves["params"].status == "kink"


@pytest.mark.parametrize(
    ("f", "g", "w", "words"),
    [
        (lambda w, x: jnp.sum(x @ jnp.abs(w)), lambda w, x: x.sum(0), np.abs(W), "moved"),
        (lambda w, x: jnp.mean(x @ w), lambda w, x: x.sum(0) / 5, W, "batch of"),
        (lambda w, x: jnp.sum((x @ (w + w.T)) ** 2), None, np.eye(3, dtype="f"), "moved"),
    ],
    ids=["positive", "hard-coded batch size", "symmetric"],
)
def test_right_at_the_given_point_only(f, g, w, words):
    def symmetric(w, x):
        return 8 * w @ x.T @ x  # right for a multiple of the identity

    report = jaxnn.verify_grad(f, g or symmetric, w, X)
    assert report.leaves["params"].status == "ok"
    assert not report.ok
    assert "right at your point, but wrong" in report.findings[0].text
    assert words in report.findings[0].text


def test_the_same_random_draws_in_float64():
    key = jax.random.key(0, impl="unsafe_rbg")

    def dropped(w, x, key):
        return jnp.sum(jnp.where(jax.random.bernoulli(key, 0.7, x.shape), x / 0.7, 0.0) @ w)

    def right(w, x, key):
        return jnp.where(jax.random.bernoulli(key, 0.7, x.shape), x / 0.7, 0.0).sum(0)

    assert jaxnn.verify_grad(dropped, right, W, X, key).ok
    assert not jaxnn.verify_grad(dropped, lambda w, x, key: right(w, x, jax.random.fold_in(key, 1)), W, X, key).ok


def test_hidden_randomness_is_noticed():
    generator = np.random.default_rng(0)
    assert "impure" in kinds(jaxnn.verify_grad(loss, lambda *a: grad(*a) * (1 + 1e-3 * generator.normal()), W, X, Y))
    assert kinds(jaxnn.verify_grad(lambda *a: loss(*a) * generator.normal(), grad, W, X, Y)) == ["impure_forward"]


def test_what_vmap_shows():
    batched = jax.custom_batching.custom_vmap(grad)

    @batched.def_vmap
    def twice(axis_size, in_batched, w, x, y):
        return 2 * jax.vmap(grad, (0, None, None))(w, x, y), True

    assert kinds(jaxnn.verify_grad(loss, batched, W, X, Y)) == ["vmap"]


def test_precision_and_overflow_are_findings_of_their_own():
    def spread(w):
        return jnp.sum((w - jnp.mean(w)) ** 2)

    def cancelling(w):
        return 2 * (w * 1e4 - jnp.mean(w) * 1e4) / 1e4 + 0 * w

    assert kinds(jaxnn.verify_grad(spread, lambda w: 2 * ((w + 1e4) - jnp.mean(w + 1e4)), W / 3)) == ["precision"]
    assert jaxnn.verify_grad(spread, cancelling, W).ok
    # The truth, 1e-52, is 0 in float32: that is no loss of precision.
    assert jaxnn.verify_grad(
        lambda w: jnp.sum(jnp.tanh(w)), lambda w: 4 / (jnp.exp(w) + jnp.exp(-w)) ** 2, 60 + W
    ).ok
    big = jaxnn.verify_grad(
        lambda w: jnp.sum(jax.nn.softplus(w)), lambda w: jnp.exp(w) / (1 + jnp.exp(w)), np.array([100.0, 1.0], "f")
    )
    assert kinds(big) == ["overflow"]
    assert "float32" in big.findings[0].text


def test_a_pair_must_return_the_value_and_be_linear():
    def f(x):
        return jnp.sin(x)

    right = (lambda x: (jnp.sin(x), x), lambda x, dy: (dy * jnp.cos(x),))
    assert jaxnn.verify_vjp(f, *right, X).ok
    assert "primal" in kinds(jaxnn.verify_vjp(f, lambda x: (jnp.sin(x) + 1e-3, x), right[1], X))
    assert not jaxnn.verify_vjp(f, right[0], lambda x, dy: (dy * jnp.cos(x) + 1e-3,), X).ok
    assert not jaxnn.verify_vjp(f, right[0], lambda x, dy: (jnp.cos(x),), X).ok
    undeclared = jaxnn.verify_vjp(
        lambda x, y: x * y, lambda x, y: (x * y, (x, y)), lambda r, dy: (dy * r[1], None), X, X + 1
    )
    assert undeclared.ok
    assert any("args[1]" in note and "no gradient is claimed" in note for note in undeclared.notes)


def test_bare_pairs_and_layers():
    params = {"w": numbers(5, 3, 4).astype("f"), "b": numbers(6, 4).astype("f")}
    from jaxnn.layers import dense_backward, dense_forward

    def without_sum(params, cache, dy):
        dparams, dx = dense_backward(params, cache, dy)
        return {**dparams, "b": dy[0]}, dx

    assert jaxnn.verify_pair(dense_forward, dense_backward, params, X).ok
    wrong = jaxnn.verify_pair(dense_forward, without_sum, params, X)
    assert [path for path, leaf in wrong.leaves.items() if leaf.status == "WRONG"] == ["params['b']"]
    layer = jaxnn.layers.dense(4)
    assert jaxnn.verify_layer(layer, X).ok
    broken = layer._replace(backward=lambda p, c, dy: (layer.backward(p, c, dy)[0], 2 * layer.backward(p, c, dy)[1]))
    assert [path for path, leaf in jaxnn.verify_layer(broken, X).leaves.items() if leaf.status == "WRONG"] == ["x"]
    promising = layer._replace(init=lambda key, shape: ((*shape[:-1], 7), *layer.init(key, shape)[1:]))
    assert kinds(jaxnn.verify_layer(promising, X)) == ["out_shape"]


TREE = {"a": [W, X], "n": np.int32(3), "none": None}


def tree_loss(p):
    return jnp.sum(p["a"][1] @ p["a"][0]) * p["n"]


def tree_grad(p):
    w, x = p["a"]
    return {"a": [p["n"] * x.sum(0), jnp.broadcast_to(p["n"] * w, x.shape)], "n": None, "none": None}


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (lambda g: g, None, ""),
        (lambda g: {**g, "n": np.zeros((), jax.dtypes.float0)}, None, ""),
        (lambda g: {**g, "a": tuple(g["a"])}, "container", "list"),
        (lambda g: {**g, "a": g["a"][:1]}, "missing_leaf", r"params['a'][1]"),
        (lambda g: {**g, "b": g["a"][0]}, "extra_leaf", "'b'"),
        (lambda g: {**g, "n": np.int32(2)}, "integer", "params['n']"),
        (lambda g: (jnp.zeros(()), g), "value_and_grad", "value"),
        (lambda g: (g,), "container", "tuple of one"),
        (lambda g: {**g, "a": [g["a"][0].astype(jnp.float16), g["a"][1]]}, "dtype", "float16"),
    ],
)
def test_the_tree_of_the_gradient(change, kind, words):
    report = jaxnn.verify_grad(tree_loss, lambda p: change(tree_grad(p)), TREE)
    assert report.ok == (kind is None), str(report)
    if kind:
        finding = next(f for f in report.findings if f.kind == kind)
        assert words in finding.text


def raising(w, x, y):
    return jnp.reshape(w, (2, 2))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: jaxnn.verify_grad(lambda w, x, y: x @ w, grad, W, X, Y), "one number.*verify_vjp"),
        (lambda: jaxnn.verify_grad(loss, grad, np.arange(3), X, Y), "nothing to differentiate.*params int"),
        (lambda: jaxnn.verify_grad(loss, grad, W, X), "cannot be called with the 2"),
        (lambda: jaxnn.verify_grad(loss, raising, W, X, Y), r"(?s)gradient raised TypeError.*raising.*float32\[3\]"),
        (lambda: jaxnn.verify_grad(raising, grad, W, X, Y), "(?s)the forward raised"),
        (lambda: jaxnn.verify_grad(loss, grad, W, X, Y, argnums=3), "argnums is 3"),
        (lambda: jaxnn.verify_grad(loss, grad, W.astype(complex), X, Y), "complex"),
        (lambda: jaxnn.verify_grad(*([W, grad, W, X, Y])), "must be a function"),
        (lambda: jaxnn.verify_vjp(*([loss, W, X, Y])), r"verify_vjp takes.*f_fwd is float32\[3\].*verify_custom_vjp"),
        (lambda: jaxnn.verify_pair(*([loss, W, X])), r"verify_pair takes.*backward is float32\[3\], expected"),
        (lambda: jaxnn.verify_custom_vjp(loss, W), "made by jax.custom_vjp.*verify_vjp.*verify_pair"),
        (lambda: jaxnn.verify_custom_vjp(jax.custom_vjp(loss), W, X, Y), "has no rule yet"),
        (lambda: jaxnn.verify_layer(jaxnn.layers.dense(3), np.float32(1)), "cannot be run on x of shape"),
    ],
)
def test_calls_that_make_no_sense_are_refused_with_what_to_do(call, words):
    with pytest.raises(jaxnn.CannotVerify, match=words):
        call()


def test_a_value_left_behind_by_another_call_is_refused():
    left = []

    def remembering(w, x, y):
        left.append(x @ w - y)
        return jnp.mean(left[-1] ** 2)

    with pytest.raises(jaxnn.CannotVerify, match="another call has left behind"):
        jaxnn.verify_grad(remembering, lambda w, x, y: 2 / len(y) * x.T @ left[0], W, X, Y)


def test_a_sample_of_a_large_leaf_is_said():
    w = numbers(7, 40, 30).astype("f")
    report = jaxnn.verify_grad(lambda w, x: jnp.sum(jnp.sin(w) @ x), lambda w, x: jnp.cos(w) * x, w, w[0])
    assert report.ok
    assert any("differences measured 32 of 1200 entries" in note for note in report.notes)
    one = jaxnn.verify_grad(
        lambda w, x: jnp.sum(jnp.sin(w) @ x), lambda w, x: (jnp.cos(w) * x).at[31, 17].add(1e-4), w, w[0]
    )
    assert (one.leaves["params"].n_wrong, one.leaves["params"].worst) == (1, (31, 17))
