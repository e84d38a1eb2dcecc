"""The contract battery: every rule of the registry, every promise of jaxnn/layer.py."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chosen import one_in

from jaxnn.layer import as_custom_vjp
from jaxnn.verify import certify, compare, rules
from jaxnn.verify.certificate.registry import layer_examples, rules_with_cotangent
from jaxnn.verify.judge.compare import largest_error
from jaxnn.verify.judge.rule import numbers, random_params, representable, shapes_of
from jaxnn.verify.report.data import FLOAT64_TOLERANCE

RULES = {rule.name: rule for rule in rules()}
LAYERS = layer_examples()


def params_of(name):
    inputs = RULES[name].examples[0].inputs
    return inputs.get("params") if isinstance(inputs, dict) else None


WITH_DY = [rule.name for rule in rules_with_cotangent()]
WITH_PARAMS = [name for name in WITH_DY if jax.tree.leaves(params_of(name))]
EVERY_LAYER = pytest.mark.parametrize("name", LAYERS)


def some(names, n, first):
    """Every n-th layer and all other rules: compiling layers takes seconds each. `-m slow` takes the other layers."""
    return one_in(n, "name", list(names), first=first, of=LAYERS)


STEP_BY_STEP = one_in(4, "name", list(RULES))


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


@some(RULES, 4, 1)
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


@some(RULES, 4, 2)
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


@some(LAYERS, 4, 3)
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


@some([name for name, example in LAYERS.items() if not example.ctx.train], 4, 0)
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


# ---------------------------------------------------------------- what is refused, and what is converted


def other_shapes(shape):
    """Shapes that broadcasting, or sums over all axes but the last, might take for this one."""
    yield (1, *shape)
    yield (*shape, 1)
    yield from [shape[1:]] if shape else []
    for i, n in enumerate(shape):
        for other in {1, n + 1} - {n}:
            yield (*shape[:i], other, *shape[i + 1 :])


@pytest.mark.parametrize("name", WITH_DY)
def test_a_cotangent_of_another_shape_is_refused(name):
    rule = RULES[name]
    inputs, given = rule.examples[0]
    leaves, tree = jax.tree.flatten(jax.eval_shape(rule.forward, inputs, given))
    for i, leaf in enumerate(leaves):
        for shape in other_shapes(leaf.shape):
            wrong = [*leaves[:i], jax.ShapeDtypeStruct(shape, leaf.dtype), *leaves[i + 1 :]]
            with pytest.raises(ValueError, match=r"has shape .*, but .* has .*; make them equal"):
                jax.eval_shape(rule.backward, inputs, given, tree.unflatten(wrong))


@pytest.mark.parametrize(("dtype", "of_dy"), [("bfloat16", "float32"), ("float32", "bfloat16")])
@pytest.mark.parametrize("name", WITH_DY)
def test_gradients_have_the_dtypes_of_their_inputs_whatever_dy_has(name, dtype, of_dy):
    rule = RULES[name]
    inputs, given = rule.examples[0]
    inputs = jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)), inputs)
    y = jax.eval_shape(rule.forward, inputs, given)
    dy = jax.tree.map(lambda y: jax.ShapeDtypeStruct(y.shape, jnp.dtype(of_dy)), y)
    gradient = jax.eval_shape(rule.backward, inputs, given, dy)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype(dtype)}


@some([name for name in WITH_DY if name != "gpt"], 6, 1)  # the parts of a gpt are all there
def test_precision_of_dy_costs_no_precision_of_the_gradient(name):
    """A dy that bfloat16 can hold, in bfloat16 and in float32: the gradient is the same."""
    rule = RULES[name]
    inputs, given = rule.examples[0]
    narrow, wide = (jax.tree.map(lambda x, d=d: x.astype(d), inputs) for d in (jnp.bfloat16, np.float32))
    dy = cotangent(rule, wide, given, [3])
    narrow_dy = jax.tree.map(lambda dy: dy.astype(jnp.bfloat16), dy)

    @jax.jit
    def gradients(inputs, given, dys):
        return [rule.backward(inputs, given, dy) for dy in dys]

    for inputs, bound in ((wide, 1e-6), (narrow, 1e-2)):
        of_narrow, of_wide = gradients(inputs, given, (narrow_dy, dy))
        of_narrow, of_wide = (jax.tree.map(lambda g: np.asarray(g, np.float64), g) for g in (of_narrow, of_wide))
        assert largest_error(of_narrow, of_wide) <= bound


def with_one_node_spoiled(tree):
    """The tree with one of its dicts, or of its tuples of dicts, replaced by something of another form."""
    if isinstance(tree, dict) and not tree:
        return  # a layer without parameters does not look at them
    if isinstance(tree, dict):
        *others, last = sorted(tree)
        yield from (None, list(tree.values()), {name: tree[name] for name in others}, {**tree, "extra": tree[last]})
        children = tree.items()
    elif isinstance(tree, tuple | list):
        yield from (None, {}, ())
        children = enumerate(tree)
    else:
        yield [math.nan]
        return
    for key, child in children:
        for spoiled in with_one_node_spoiled(child):
            copy = dict(tree) if isinstance(tree, dict) else list(tree)
            copy[key] = spoiled
            yield copy if isinstance(tree, dict) else type(tree)(copy)


@pytest.mark.parametrize("name", WITH_PARAMS)
def test_params_of_another_form_are_refused_in_words(name):
    rule = RULES[name]
    inputs, given = rule.examples[0]
    y = jax.eval_shape(rule.forward, inputs, given)
    for params in with_one_node_spoiled(inputs["params"]):
        with pytest.raises(ValueError, match=r"params (is|has) |is a list, expected an array"):
            jax.eval_shape(rule.backward, {**inputs, "params": params}, given, y)
