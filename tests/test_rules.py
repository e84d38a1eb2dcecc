"""The contract battery: every rule of the registry, every promise of jaxnn/layer.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn.layer import as_custom_vjp
from jaxnn.verify import certify, compare, rules
from jaxnn.verify.certificate.registry import layer_examples
from jaxnn.verify.judge.compare import largest_error
from jaxnn.verify.judge.rule import numbers, random_params, representable, shapes_of
from jaxnn.verify.report.data import FLOAT64_TOLERANCE

RULES = {rule.name: rule for rule in rules()}
LAYERS = layer_examples()
EVERY_RULE = pytest.mark.parametrize("name", RULES)
EVERY_LAYER = pytest.mark.parametrize("name", LAYERS)


def a_third(names, start):
    """Compiling layers takes seconds each: the plain test command does a third of them, `-m slow` the others."""
    slow = [[pytest.mark.slow] if name in LAYERS and (i - start) % 3 else [] for i, name in enumerate(names)]
    return pytest.mark.parametrize("name", [pytest.param(n, marks=m) for n, m in zip(names, slow, strict=True)])


STEP_BY_STEP = a_third(RULES, 0)


def cotangent(rule, inputs, given, seed):
    rng = np.random.default_rng(seed)
    y = jax.eval_shape(rule.forward, inputs, given)
    return jax.tree.map(lambda y: representable(rng.normal(size=y.shape)).astype(y.dtype), y)


@functools.cache
def gradient_of(name):
    """(inputs, y, gradient, the same without jit, traces of the jitted function), all in float64."""
    rule = RULES[name]
    inputs, given = rule.examples[0]
    traces = []

    def both(inputs, given, dy):
        traces.append(1)
        return rule.forward(inputs, given), rule.backward(inputs, given, dy)

    with jax.enable_x64(True):
        inputs = jax.tree.map(jnp.asarray, inputs)
        dy = cotangent(rule, inputs, given, [1])
        jitted = jax.jit(both)
        compiled = jitted(inputs, given, dy)
        jitted(inputs, given, dy)
        n = len(traces)
        return inputs, compiled, both(inputs, given, dy), n


@EVERY_RULE
def test_right_against_autodiff_differences_and_in_low_precision(name):
    certificate = certify(RULES[name])
    assert certificate.ok, certificate.failures


@STEP_BY_STEP
def test_jit_equals_eager_and_traces_once(name):
    _, compiled, eager, traces = gradient_of(name)
    assert traces == 1
    assert jax.tree.structure(compiled) == jax.tree.structure(eager)
    assert largest_error(eager, compiled) < 1e-12


@STEP_BY_STEP
def test_a_broken_gradient_is_noticed(name):
    """Zero, negate, double, flip any leaf, and the comparison must say so: it can fail."""
    _, (_, gradient), _, _ = gradient_of(name)
    leaves, tree = jax.tree.flatten(gradient)
    for i, leaf in enumerate(leaves):
        leaf = np.asarray(leaf)
        if not leaf.any():
            continue  # regularizers leave biases alone
        breaks = [np.zeros_like(leaf), -leaf, leaf * 1.001]
        breaks += [flipped for flipped in (leaf[::-1] if leaf.ndim else leaf,) if (flipped != leaf).any()]
        for broken in breaks:
            errors = compare(tree.unflatten([*leaves[:i], broken, *leaves[i + 1 :]]), gradient)
            assert errors[i].error > 1e3 * FLOAT64_TOLERANCE
            assert all(other.error == 0 for other in errors[:i] + errors[i + 1 :])


@a_third(RULES, 1)
def test_hard_inputs_stay_finite(name):
    rule = RULES[name]
    both = jax.jit(lambda inputs, given, dy: (rule.forward(inputs, given), rule.backward(inputs, given, dy)))
    for inputs, given in rule.hard:
        inputs = jax.tree.map(lambda x: x.astype(np.float32), inputs)
        dy = cotangent(rule, inputs, given, [2])
        for leaf in jax.tree.leaves(both(inputs, given, dy)):
            assert np.isfinite(leaf).all()


@EVERY_LAYER
def test_layer_keeps_its_promises_about_shapes(name):
    layer, _, in_shapes, ctx = LAYERS[name]
    for in_shape in (*in_shapes, (0, *in_shapes[0][1:])):
        out_shape, params, state = shapes_of(layer, in_shape)
        x = jax.ShapeDtypeStruct(in_shape, jnp.float32)
        y, new_state, cache = jax.eval_shape(layer.forward, params, state, x, ctx)
        assert y.shape == tuple(out_shape)
        assert jax.tree.structure(new_state) == jax.tree.structure(state)
        dparams, dx = jax.eval_shape(layer.backward, params, cache, y)
        assert jax.tree.map(lambda g: (g.shape, g.dtype), dparams) == jax.tree.map(lambda p: (p.shape, p.dtype), params)
        assert (dx.shape, dx.dtype) == (x.shape, x.dtype)


@a_third(LAYERS, 2)
def test_jax_grad_of_as_custom_vjp_is_our_backward(name):
    layer, _, in_shapes, ctx = LAYERS[name]
    _, params, state = shapes_of(layer, in_shapes[0])
    out_shape = shapes_of(layer, in_shapes[0])[0]
    params, x, dy = random_params(params), numbers(1, *in_shapes[0]), numbers(2, *out_shape)
    state = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5), state)
    # A factor that autodiff of forward would not know tells whose backward is run.
    marked = layer._replace(backward=lambda p, c, dy: jax.tree.map(lambda g: 3 * g, layer.backward(p, c, dy)))
    with jax.enable_x64(True):
        params, x, dy = jax.tree.map(jnp.asarray, (params, x, dy))

        @jax.jit
        def both(params, x):
            f = as_custom_vjp(marked)
            through_grad = jax.grad(lambda params, x: jnp.vdot(f(params, state, x, ctx)[0], dy), (0, 1))(params, x)
            _, _, cache = layer.forward(params, state, x, ctx)
            return through_grad, layer.backward(params, cache, 3 * dy)

        through_grad, ours = both(params, x)
    assert largest_error(through_grad, ours) < 1e-12


@a_third([name for name, example in LAYERS.items() if not example.ctx.train], 0)
def test_gradients_of_single_examples_add_up_to_the_batch_s(name):
    layer, _, in_shapes, ctx = LAYERS[name]
    out_shape, params, state = shapes_of(layer, in_shapes[0])
    params, x, dy = random_params(params), numbers(1, *in_shapes[0]), numbers(2, *out_shape)
    state = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5), state)

    def gradient(params, x, dy):
        _, _, cache = layer.forward(params, state, x, ctx)
        return layer.backward(params, cache, dy)

    with jax.enable_x64(True):
        params, x, dy = jax.tree.map(jnp.asarray, (params, x, dy))
        dparams, dx = jax.jit(gradient)(params, x, dy)
        each, dx_each = jax.jit(jax.vmap(gradient, (None, 0, 0)))(params, x[:, None], dy[:, None])
        added = jax.tree.map(lambda g: g.sum(0), each)
        dx_each = dx_each[:, 0]
    assert largest_error(added, dparams) < 1e-12
    assert largest_error(dx_each, dx) < 1e-12
