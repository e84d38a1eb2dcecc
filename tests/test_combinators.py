"""Layers side by side, reshaped and transposed: what neither test_rules.py nor test_layers.py says."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import layers, models
from jaxnn.combinators import add, concat, multiply, parallel, remat, residual, serial
from jaxnn.layer import Ctx, from_pair

KEY = jax.random.key(0, impl="unsafe_rbg")
SIDE_BY_SIDE = pytest.mark.parametrize("combinator", [parallel, concat, add, multiply])


def times(factor):
    """x times a number: a layer whose gradients are seen at a glance."""
    return from_pair(lambda params, x: (x * factor, None), lambda params, cache, dy: ({}, dy * factor))


def init(model, in_shape):
    return model.init(KEY, in_shape)


def run(model, x, dy):
    """(y, dx) of a model without parameters."""
    _, params, state = init(model, jax.tree.map(np.shape, x))
    y, _, cache = model.forward(params, state, x, Ctx())
    return y, model.backward(params, cache, dy)[1]


def equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


U, V, D, E = (np.array(rows, np.float32) for rows in ([[1, 2]], [[3, -4]], [[5, 6]], [[7, 8]]))


def test_parallel_deals_out_a_tuple_and_shares_anything_else():
    model = parallel(times(2), times(10))
    equal(run(model, (U, V), (D, E)), ((2 * U, 10 * V), (2 * D, 10 * E)))
    equal(run(model, U, (D, E)), ((2 * U, 10 * U), 2 * D + 10 * E))
    nested = parallel(parallel(times(2), times(3)), times(10))
    equal(run(nested, ((U, V), D), ((D, E), U)), (((2 * U, 3 * V), 10 * D), ((2 * D, 3 * E), 10 * U)))


@pytest.mark.quick
def test_two_inputs_are_joined():
    both = 2 * U, 10 * V
    models = [combinator(times(2), times(10)) for combinator in (concat, add, multiply)]
    wide = np.concatenate([D, E], -1)
    equal(run(models[0], (U, V), wide), (np.concatenate(both, -1), (2 * D, 10 * E)))
    equal(run(models[1], (U, V), D), (both[0] + both[1], (2 * D, 10 * D)))
    equal(run(models[2], (U, V), D), (both[0] * both[1], (2 * D * both[1], 10 * D * both[0])))
    assert init(models[0], ((3, 2), (3, 4)))[0] == (3, 6)
    assert init(models[1], ((3, 2), (3, 2)))[0] == (3, 2)


def test_a_factor_of_zero_lets_the_other_factors_learn():
    y, dx = run(multiply(times(0), times(3), times(5)), U, D)
    equal((y, dx), (0 * U, 0 * D + 15 * U * U * 0 * D))
    _, dxs = run(multiply(times(1), times(1), times(1)), (0 * U, V, D), E)
    equal(dxs, (E * V * D, 0 * U, 0 * U))


def test_the_identity_added_is_residual():
    f = times(3)
    equal(run(add(serial(), f), U, D), run(residual(f), U, D))


def test_integers_beside_numbers():
    """Inputs of integers have no gradient: None stands in their place, and for x if all share them."""
    model = parallel(layers.embedding(5, 3), times(2))
    ids = np.array([1, 4])
    _, params, state = init(model, ((2,), (1, 2)))
    (y, doubled), _, cache = model.forward(params, state, (ids, U), Ctx())
    dparams, dx = model.backward(params, cache, (jnp.ones_like(y), D))
    equal((doubled, dx), (2 * U, (None, 2 * D)))
    np.testing.assert_array_equal(dparams[0]["table"].sum(1), [0, 3, 0, 0, 3])
    shared = add(layers.embedding(5, 3), layers.embedding(5, 3))
    _, params, state = init(shared, (2,))
    y, _, cache = shared.forward(params, state, ids, Ctx())
    assert shared.backward(params, cache, y)[1] is None


@SIDE_BY_SIDE
def test_what_does_not_fit_side_by_side(combinator):
    name = combinator.__name__
    with pytest.raises(ValueError, match=f"{name}: no layers given, expected at least one"):
        combinator()
    model = combinator(times(1), layers.flatten())
    with pytest.raises(ValueError, match=f"{name}: 2 layers, but x is a tuple of 3; pass one entry per layer"):
        model.forward(({}, {}), ((), ()), (U, V, D), Ctx())
    with pytest.raises(ValueError, match=f"{name}: 2 layers, but in_shape is a tuple of 3"):
        init(model, ((1, 2),) * 3)
    with pytest.raises(ValueError, match=f"{name}: 2 layers, but params has 1 entries"):
        model.forward(({},), ((),), U, Ctx())
    with pytest.raises(ValueError, match=rf"^{name}\[1\] flatten: x is a scalar"):
        model.forward(({}, {}), ((), ()), np.float32(1), Ctx())


@pytest.mark.parametrize("combinator", [concat, add, multiply])
def test_outputs_that_cannot_be_joined(combinator):
    model = combinator(times(1), layers.flatten())
    message = "they may differ in the last axis only" if combinator is concat else "they must be equal"
    with pytest.raises(ValueError, match=message):
        init(model, (2, 3, 4))
    with pytest.raises(ValueError, match=message):
        model.forward(({}, {}), ((), ()), np.ones((2, 3, 4), np.float32), Ctx())


@pytest.mark.quick
def test_multiply_does_not_broadcast_a_gradient():
    with pytest.raises(ValueError, match=r"multiply: dy has shape \(1, 1\), but the output has \(1, 2\)"):
        run(multiply(times(1), times(2)), U, D[:, :1])


# ---------------------------------------------------------------- the same numbers in another arrangement


def test_reshape():
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for shape, whole in (((12,), (2, 12)), ((-1, 2), (2, 6, 2)), ((4, 3, 1), (2, 4, 3, 1)), ((-1,), (2, 12))):
        model = layers.reshape(shape)
        y = x.reshape(whole)
        equal(run(model, x, y), (y, x))
        assert init(model, x.shape)[0] == whole
    equal(run(layers.reshape((2, -1)), x[:0], np.zeros((0, 2, 6), np.float32)), (np.zeros((0, 2, 6)), x[:0]))


def test_transpose():
    x = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    model = layers.transpose((3, 1, 2))
    equal(run(model, x, np.moveaxis(x, 3, 1)), (np.moveaxis(x, 3, 1), x))
    assert init(model, x.shape)[0] == (1, 4, 2, 3)


def test_arrangements_that_do_not_fit():
    x = np.ones((2, 3, 4), np.float32)

    def message(text):
        return pytest.raises(ValueError, match=re.escape(text))

    for shape in ((5, -1), (5, 2), (0, -1)):
        with message(f"reshape: an example of shape (3, 4) has 12 entries, which do not fit {shape}"):
            init(layers.reshape(shape), x.shape)
        with message("which do not fit"):
            layers.reshape(shape).forward({}, (), x, Ctx())
    with message("reshape: shape (-1, -1), expected sizes of 0 or greater, and at most one -1"):
        layers.reshape((-1, -1))
    with message("reshape: x is a scalar"):
        layers.reshape((2,)).forward({}, (), np.float32(1), Ctx())
    for axes in ((1,), (2, 0), (1, 1), (1, 2, 3)):
        with message(f"transpose: axes {axes} for an array of rank 3, expected [1, 2] in any order"):
            layers.transpose(axes).forward({}, (), x, Ctx())


@pytest.mark.parametrize("combinator", [serial, residual, parallel, concat, add, multiply, remat])
def test_what_is_no_layer_is_refused(combinator):
    with pytest.raises(ValueError, match=rf"{combinator.__name__}: argument 0 .* is a list, expected a Layer"):
        combinator([layers.flatten()])


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (models.mlp, (5, 3), r"mlp: hidden = 5, expected a tuple of whole numbers, \(5,\) for one"),
        (models.mlp, ((5, 0), 3), "mlp: hidden = 0, expected a whole number that is 1 or greater"),
        (models.cnn, (8, (3,), 2), "cnn: channels = 8, expected a tuple"),
        (layers.reshape, (6,), "reshape: shape = 6, expected a tuple"),
        (layers.reshape, ((2.5,),), r"reshape: shape = 2\.5, expected a whole number"),
        (layers.transpose, (1,), "transpose: axes = 1, expected a tuple"),
        (layers.dropout, (None,), "dropout: .* = None, expected"),
        (lambda eps: layers.layer_norm(eps=eps), ("a",), "layer_norm: eps = a, expected a finite number"),
    ],
)
def test_hyper_parameters_of_another_kind_are_refused(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(*arguments)
