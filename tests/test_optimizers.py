"""Each optimizer against a loop written from its paper's equations, and what all of them promise."""

import functools
import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chosen import one_in

from jaxnn import optimizers, schedules
from jaxnn.optimizers import OPTIMIZERS, adam, adamw, clip_by_global_norm, clip_by_value, global_norm, sgd

every_optimizer = one_in(2, "name", list(OPTIMIZERS))

# ---------------------------------------------------------------- the papers' loops, for one leaf
# (p, [g_1, g_2, …], [α_1, α_2, …]) -> p_1, p_2, …


def paper_sgd(p, grads, rates):
    for g, a in zip(grads, rates, strict=True):
        p = p - a * g
        yield p


def paper_momentum(p, grads, rates, beta=0.9):
    v = np.zeros_like(p)
    for g, a in zip(grads, rates, strict=True):
        v = beta * v + (1 - beta) * g
        p = p - a * v
        yield p


def paper_heavy_ball(p, grads, rates, beta=0.9):
    v = np.zeros_like(p)
    for g, a in zip(grads, rates, strict=True):
        v = beta * v + g
        p = p - a * v
        yield p


def paper_nesterov(p, grads, rates, beta=0.9):
    v = np.zeros_like(p)
    for g, a in zip(grads, rates, strict=True):
        v = beta * v + g
        p = p - a * (g + beta * v)
        yield p


def paper_adagrad(p, grads, rates, epsilon=1e-10):
    for t, a in enumerate(rates, 1):
        p = p - a * grads[t - 1] / (np.sqrt(sum(g**2 for g in grads[:t])) + epsilon)
        yield p


def paper_rmsprop(p, grads, rates, beta=0.9, epsilon=1e-8):
    v = np.zeros_like(p)
    for g, a in zip(grads, rates, strict=True):
        v = beta * v + (1 - beta) * g**2
        p = p - a * g / (np.sqrt(v) + epsilon)
        yield p


def paper_adam(p, grads, rates, beta1=0.9, beta2=0.999, epsilon=1e-8):
    m = v = np.zeros_like(p)
    for t, (g, a) in enumerate(zip(grads, rates, strict=True), 1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        p = p - a * m_hat / (np.sqrt(v_hat) + epsilon)
        yield p


def paper_adamw(p, grads, rates, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.01):
    m = v = np.zeros_like(p)
    for t, (g, a) in enumerate(zip(grads, rates, strict=True), 1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        p = p - a * (m_hat / (np.sqrt(v_hat) + epsilon) + weight_decay * p * (p.ndim > 1))
        yield p


def paper_amsgrad(p, grads, rates, beta1=0.9, beta2=0.999, epsilon=1e-8):
    m = v = v_max = np.zeros_like(p)
    for g, a in zip(grads, rates, strict=True):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        v_max = np.maximum(v_max, v)
        p = p - a * m / (np.sqrt(v_max) + epsilon)
        yield p


def paper_nadam(p, grads, rates, beta1=0.9, beta2=0.999, epsilon=1e-8):
    m = v = np.zeros_like(p)
    for t, (g, a) in enumerate(zip(grads, rates, strict=True), 1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_bar = beta1 * m / (1 - beta1 ** (t + 1)) + (1 - beta1) * g / (1 - beta1**t)
        p = p - a * m_bar / (np.sqrt(v / (1 - beta2**t)) + epsilon)
        yield p


def paper_lion(p, grads, rates, beta1=0.9, beta2=0.99, weight_decay=0.0):
    m = np.zeros_like(p)
    for g, a in zip(grads, rates, strict=True):
        p = p - a * (np.sign(beta1 * m + (1 - beta1) * g) + weight_decay * p * (p.ndim > 1))
        m = beta2 * m + (1 - beta2) * g
        yield p


# No value is a default, so that each is seen to arrive; ε is large enough to be seen.
OTHER_CONSTANTS = {
    "sgd": {},
    "momentum": {"beta": 0.7},
    "heavy_ball": {"beta": 0.7},
    "nesterov": {"beta": 0.7},
    "adagrad": {"epsilon": 0.1},
    "rmsprop": {"beta": 0.7, "epsilon": 0.1},
    "adam": {"beta1": 0.7, "beta2": 0.95, "epsilon": 0.1},
    "adamw": {"beta1": 0.7, "beta2": 0.95, "epsilon": 0.1, "weight_decay": 0.3},
    "amsgrad": {"beta1": 0.7, "beta2": 0.95, "epsilon": 0.1},
    "nadam": {"beta1": 0.7, "beta2": 0.95, "epsilon": 0.1},
    "lion": {"beta1": 0.7, "beta2": 0.95, "weight_decay": 0.3},
}


def random_tree(seed, *leading):
    rng = np.random.default_rng(seed)
    return {"layers": ({"w": rng.normal(size=(*leading, 5, 3)), "b": rng.normal(size=(*leading, 3))},)}


def run(optimizer, params, grads):
    """All the params of a scan over the steps, and the last state."""

    def step(carry, g):
        params, state = optimizer.update(carry[0], g, carry[1])
        return (params, state), (params, optimizer.rate(carry[1]))

    (_, state), trajectory = jax.jit(lambda p, g: jax.lax.scan(step, (p, optimizer.init(p)), g))(params, grads)
    return trajectory, state


@every_optimizer
def test_fifty_steps_are_the_papers(name):
    """With the default constants and a rate that is a number; with others and a schedule."""
    params, grads = random_tree(0), random_tree(1, 50)
    paper = globals()[f"paper_{name}"]
    rates = [0.07 / (1 + 0.1 * t) for t in range(50)]
    cases = (
        (OPTIMIZERS[name](0.07), paper, [0.07] * 50),
        (
            getattr(optimizers, name)(lambda t: 0.07 / (1 + 0.1 * t.astype(float)), **OTHER_CONSTANTS[name]),
            functools.partial(paper, **OTHER_CONSTANTS[name]),
            rates,
        ),
    )
    for optimizer, paper_loop, rates in cases:
        with jax.enable_x64(True):
            (ours, used), state = run(optimizer, params, grads)
        np.testing.assert_allclose(used, rates, rtol=1e-15)
        assert state.step == 50
        for leaf in ("w", "b"):
            truth = list(paper_loop(params["layers"][0][leaf], list(grads["layers"][0][leaf]), rates))
            error = np.abs(np.asarray(ours["layers"][0][leaf]) - np.stack(truth)).max() / np.abs(truth).max()
            assert error < 1e-12, (leaf, error)


def test_the_exponential_average_takes_steps_a_tenth_as_long():
    params, grads = random_tree(0), random_tree(1, 20)
    with jax.enable_x64(True):
        (average, _), _ = run(optimizers.momentum(1.0), params, grads)
        (ball, _), _ = run(optimizers.heavy_ball(0.1), params, grads)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-11), average, ball)


# ---------------------------------------------------------------- dtypes, tracing, numerics


@every_optimizer
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_state_is_stable_and_donated(name, dtype):
    """float32 moments for bfloat16 params; no second trace; the donated buffers are all used (or JAX warns)."""
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), random_tree(0))
    grads = jax.tree.map(lambda x: jnp.asarray(x, dtype), random_tree(1))
    optimizer = OPTIMIZERS[name](schedules.cosine(0.1, 10))
    state = optimizer.init(params)
    before = jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), (params, state))
    assert state.step.dtype == jnp.int32
    for moment in state[1:]:
        assert jax.tree.map(lambda x: (x.shape, x.dtype), moment) == jax.tree.map(
            lambda x: (x.shape, jnp.dtype(jnp.float32)), params
        )
    traces = []
    tolerance = 4 * float(jnp.finfo(dtype).eps)
    close = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)

    @functools.partial(jax.jit, donate_argnums=(0, 2))
    def update(params, grads, state):
        traces.append(None)
        return optimizer.update(params, grads, state)

    eager, _ = optimizer.update(params, grads, state)
    for step in range(3):
        assert optimizer.rate(state) == schedules.cosine(0.1, 10)(step)
        params, state = update(params, grads, state)
        assert jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), (params, state)) == before
        if step == 0:
            jax.tree.map(lambda a, b: close(a.astype(float), b.astype(float)), params, eager)
    assert state.step == 3
    assert len(traces) == 1


@pytest.mark.parametrize("name", ["adagrad", "rmsprop", "adam", "adamw", "amsgrad", "nadam"])
@pytest.mark.parametrize("huge", [1e25, math.inf])
def test_a_huge_gradient_does_not_freeze_the_entry(name, huge):
    optimizer = OPTIMIZERS[name](0.1)
    params = {"w": jnp.zeros(2)}
    state = optimizer.init(params)
    for _ in range(6):  # adagrad's sum of squares would overflow at the fifth
        params, state = optimizer.update(params, {"w": jnp.array([huge, 1.0])}, state)
        assert np.isfinite(params["w"]).all()
        assert all(np.isfinite(m["w"]).all() for m in state[1:])
    assert params["w"][0] < -0.02  # g² = inf would have left it at 0
    assert jnp.abs(params["w"]).max() < 5  # and the clipped g must be the one in m too


def test_nan_gradient_shows():
    for name in OPTIMIZERS:
        params = {"w": jnp.zeros(2)}
        optimizer = OPTIMIZERS[name](0.1)
        params, _ = optimizer.update(params, {"w": jnp.array([jnp.nan, 1.0])}, optimizer.init(params))
        assert jnp.isnan(params["w"][0]), name
        assert not jnp.isnan(params["w"][1]), name


@pytest.mark.quick
@pytest.mark.parametrize("name", ["adam", "nadam"])
def test_bias_correction_in_float32(name):
    """The first steps of a constant gradient; 1 - 0.999**t in float32 would be off by 2e-5."""
    optimizer = OPTIMIZERS[name](1.0)
    grads = {"w": np.full((4, 1), 0.3)}
    in_float32, _ = run(optimizer, {"w": jnp.zeros(1)}, jax.tree.map(jnp.float32, grads))
    with jax.enable_x64(True):
        in_float64, _ = run(optimizer, {"w": jnp.zeros(1)}, grads)
    np.testing.assert_allclose(in_float32[0]["w"], in_float64[0]["w"], rtol=1e-6)


def test_small_steps_are_taken_in_float32():
    """A bfloat16 state would round v's 0.001 g² away beside v = g²."""
    params = {"w": jnp.zeros(1, jnp.bfloat16)}
    optimizer = adam(0.0)
    state = optimizer.init(params)._replace(v={"w": jnp.ones(1)})
    _, state = optimizer.update(params, {"w": jnp.ones(1, jnp.bfloat16) * 2}, state)
    np.testing.assert_allclose(state.v["w"], 1.003, rtol=1e-6)


@pytest.mark.quick
def test_zero_betas():
    """Without memory Adam is the sign of the gradient, and 1 - 0^t is 1."""
    params = {"w": jnp.zeros(3)}
    optimizer = adam(0.1, beta1=0.0, beta2=0.0)
    params, _ = optimizer.update(params, {"w": jnp.array([2.0, -3.0, 0.0])}, optimizer.init(params))
    np.testing.assert_allclose(params["w"], [-0.1, 0.1, 0.0], rtol=1e-6)


@pytest.mark.parametrize("build", [adamw, optimizers.lion])
def test_weight_decay_is_for_weights(build):
    params = jax.tree.map(jnp.float32, random_tree(0))
    nothing = jax.tree.map(jnp.zeros_like, params)

    def after(**kwargs):
        optimizer = build(0.1, weight_decay=0.5, **kwargs)
        return optimizer.update(params, nothing, optimizer.init(params))[0]["layers"][0]

    before = params["layers"][0]
    np.testing.assert_allclose(after()["w"], 0.95 * before["w"], rtol=1e-6)
    np.testing.assert_array_equal(after()["b"], before["b"])
    np.testing.assert_allclose(after(decays=lambda p: p.ndim == 1)["b"], 0.95 * before["b"], rtol=1e-6)
    np.testing.assert_array_equal(after(decays=lambda p: p.ndim == 1)["w"], before["w"])


def traced_numbers(constructor):
    """The numbers that a constructor takes, each with a value that is not its default."""
    names = [name for name in inspect.signature(constructor).parameters if name != "decays"]
    values = {"beta": 0.5, "beta1": 0.7, "beta2": 0.75, "epsilon": 1e-3, "weight_decay": 0.25, "rate": 0.125}
    return {name: values[name] for name in names}


@one_in(4, "name", list(OPTIMIZERS))
def test_every_number_may_be_traced(name):
    """Under jit and vmap, clipped too, for leaves of any dtype: as with the numbers of Python."""
    constructor: Any = OPTIMIZERS[name]
    numbers = traced_numbers(constructor)
    dtypes = {"f": jnp.float32, "b": jnp.bfloat16, "d": jnp.float64}
    params = {key: np.linspace(-1, 1, 6).reshape(2, 3) for key in dtypes}

    def two_steps(numbers, limits, params):
        optimizer = clip_by_global_norm(clip_by_value(constructor(**numbers), limits[0]), limits[1])
        params = {key: p.astype(dtypes[key]) for key, p in params.items()}
        state = optimizer.init(params)
        for _ in range(2):
            params, state = optimizer.update(params, jax.tree.map(lambda p: 1 - 3 * p, params), state)
        return params, state

    def once(numbers, limits):
        return jax.jit(lambda params: two_steps(numbers, limits, params))(params)

    with jax.enable_x64(True):
        expected = once(numbers, (0.5, 1.5))
        for dtype in (np.float64, np.float32):
            traced = jax.tree.map(dtype, (numbers, (0.5, 1.5)))
            found = jax.jit(two_steps)(*traced, params)
            several = jax.tree.map(lambda a: jnp.stack([a, a]), traced)
            mapped = jax.jit(jax.vmap(two_steps, in_axes=(0, 0, None)))(*several, params)
            assert jax.tree.map(jnp.result_type, found) == jax.tree.map(jnp.result_type, expected)
            for a, b, c in zip(*(jax.tree.leaves(tree) for tree in (found, expected, mapped)), strict=True):
                tolerance = {2: 1e-2, 4: 1e-5, 8: 1e-5 if dtype is np.float32 else 1e-12}[b.dtype.itemsize]
                np.testing.assert_allclose(a.astype(float), b.astype(float), rtol=tolerance, atol=tolerance)
                np.testing.assert_allclose(c[1].astype(float), a.astype(float), rtol=tolerance, atol=tolerance)


def test_known_arrays_are_checked_under_jit_too():
    """Where jax.numpy would make what is known unknown."""
    values: Any = np.float32(-1), jnp.float32(-1)
    for value in values:
        with pytest.raises(ValueError, match="rate = -1"):
            jax.jit(lambda x, value=value: x * adam(value).rate(adam(0.1).init({})))(1.0)
    with pytest.raises(ValueError, match=r"constant: rate has shape \(2,\), expected one number"):
        adam(jnp.ones(2))


def test_rate_may_be_mapped_over():
    """One compiled sweep over rates, each a traced number."""

    def step(rate):
        optimizer = adam(lambda t: rate)
        params = {"w": jnp.ones(2)}
        return optimizer.update(params, {"w": jnp.array([1.0, -1.0])}, optimizer.init(params))[0]["w"]

    rates = jnp.array([0.1, 0.2])
    np.testing.assert_allclose(jax.vmap(step)(rates), [[0.9, 1.1], [0.8, 1.2]], rtol=1e-6)


def test_trees_without_leaves():
    for name in OPTIMIZERS:
        optimizer = clip_by_global_norm(OPTIMIZERS[name](0.1), 1.0)
        params, state = optimizer.update(((), {}), ((), {}), optimizer.init(((), {})))
        assert params == ((), {})
        assert state.step == 1


# ---------------------------------------------------------------- clipping


def test_global_norm():
    tree = {"w": jnp.array([[3.0, 0.0]]), "b": [jnp.array([-4.0]), jnp.zeros((0, 2))]}
    assert global_norm(tree) == 5.0
    assert global_norm(jax.tree.map(jnp.zeros_like, tree)) == 0.0
    assert global_norm({}) == 0.0
    for scale in (1e30, 1e-30):
        np.testing.assert_allclose(global_norm(jax.tree.map(lambda x, s=scale: s * x, tree)), 5 * scale, rtol=1e-6)
    assert global_norm([jnp.array([1.0, jnp.inf])]) == jnp.inf
    assert jnp.isnan(global_norm([jnp.array([1.0, jnp.nan]), jnp.array([2.0])]))
    assert jnp.isnan(global_norm([jnp.array([jnp.inf, jnp.nan]), jnp.array([2.0])]))
    half = [jnp.full(1000, 1.0, jnp.bfloat16), jnp.full(3, 1.0, jnp.float32)]
    assert global_norm(half).dtype == jnp.float32
    np.testing.assert_allclose(global_norm(half), math.sqrt(1003), rtol=1e-6)
    with jax.enable_x64(True):
        np.testing.assert_allclose(global_norm([np.array([3e200]), np.array([4.0], np.float32)]), 3e200, rtol=1e-15)
    with pytest.raises(ValueError, match=r"tree\['n'\] has dtype int32"):
        global_norm({"n": jnp.arange(3)})


def gradient_seen(wrapper, grads):
    """What the inner optimizer is given: one step of sgd from 0 at rate 1."""
    optimizer = wrapper(sgd(1.0))
    params = jax.tree.map(jnp.zeros_like, grads)
    new, state = jax.jit(optimizer.update)(params, grads, optimizer.init(params))
    assert state.step == 1
    assert optimizer.rate(state) == 1.0
    return jax.tree.map(jnp.negative, new)


@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30])
def test_clip_by_global_norm(scale):
    grads = {"w": jnp.array([[3.0, 0.0]]) * scale, "b": jnp.array([-4.0]) * scale}
    clipped = gradient_seen(lambda o: clip_by_global_norm(o, 2.0 * scale), grads)
    np.testing.assert_allclose(clipped["w"], [[1.2 * scale, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(clipped["b"], [-1.6 * scale], rtol=1e-6)
    for above in (5.0 * scale, 7.0 * scale):
        jax.tree.map(
            np.testing.assert_array_equal, gradient_seen(lambda o, n=above: clip_by_global_norm(o, n), grads), grads
        )


def test_clip_by_global_norm_at_the_edges():
    def seen(x):
        return gradient_seen(lambda o: clip_by_global_norm(o, 1.0), {"w": jnp.array(x)})["w"]

    np.testing.assert_array_equal(seen([0.0, 0.0]), [0.0, 0.0])
    np.testing.assert_allclose(seen([1e30, 0.0]), [1.0, 0.0], rtol=1e-6)
    assert jnp.isnan(seen([jnp.nan, 1.0])).all()
    assert jnp.isnan(seen([jnp.inf, 1.0])).any()


def test_clip_by_value():
    grads = {"w": jnp.array([-3.0, -0.5, 0.0, 2.0, jnp.inf, jnp.nan])}
    clipped = gradient_seen(lambda o: clip_by_value(o, 1.5), grads)["w"]
    np.testing.assert_array_equal(clipped, [-1.5, -0.5, 0.0, 1.5, 1.5, jnp.nan])


# ---------------------------------------------------------------- errors


def test_every_mismatch_is_named_at_once():
    params = {"layers": ({"w": jnp.ones((5, 3)), "b": jnp.ones(3)},), "scale": jnp.ones(2)}
    grads = {"layers": ({"w": jnp.ones((3, 5)), "b": jnp.arange(3)},), "shift": jnp.ones(2)}
    for optimizer in (adam(0.1), clip_by_value(adam(0.1), 1.0)):
        with pytest.raises(ValueError, match=r"optimizer\.update: ") as error:
            optimizer.update(params, grads, optimizer.init(params))
        for part in (
            "grads['layers'][0]['w'] has shape (3, 5), params['layers'][0]['w'] (5, 3)",
            "grads['layers'][0]['b'] has dtype int32",
            "grads['scale'] is missing",
            "grads['shift'] has no counterpart in params",
        ):
            assert part in str(error.value)


def test_other_wrong_trees():
    w = jnp.ones(2)
    optimizer = adam(0.1)
    with pytest.raises(ValueError, match=r"grads is a .*\[\*, \*\].*, params a .*\(\*, \*\)"):
        optimizer.update((w, w), [w, w], optimizer.init((w, w)))
    with pytest.raises(ValueError, match=r"state\.m\['w'\] has shape \(1,\), params\['w'\] \(2,\)"):
        optimizer.update({"w": w}, {"w": w}, optimizer.init({"w": jnp.ones(1)}))
    mixed = {"w": w, "n": jnp.arange(3), "flag": True}
    with pytest.raises(ValueError, match=r"params\['flag'\] has dtype bool; params\['n'\] has dtype int32"):
        optimizer.init(mixed)
    with pytest.raises(ValueError, match=r"params\['n'\] has dtype int32"):
        optimizer.update(mixed, mixed, optimizer.init({"w": w}))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        *((functools.partial(OPTIMIZERS[name], -0.1), "rate = -0.1") for name in OPTIMIZERS),
        (lambda: optimizers.momentum(0.1, beta=1.0), "momentum: beta = 1.0"),
        (lambda: optimizers.heavy_ball(0.1, beta=-0.1), "heavy_ball: beta = -0.1"),
        (lambda: optimizers.nesterov(0.1, beta=1.0), "nesterov: beta = 1.0"),
        (lambda: optimizers.adagrad(0.1, epsilon=0.0), "adagrad: epsilon = 0.0"),
        (lambda: optimizers.rmsprop(0.1, beta=1.0), "rmsprop: beta = 1.0"),
        (lambda: optimizers.rmsprop(0.1, epsilon=0.0), "rmsprop: epsilon = 0.0"),
        (lambda: adam(0.1, beta1=1.0), "adam: beta1 = 1.0"),
        (lambda: adamw(0.1, beta2=1.0), "adamw: beta2 = 1.0"),
        (lambda: adamw(0.1, weight_decay=-1.0), "adamw: weight_decay = -1.0"),
        (lambda: optimizers.amsgrad(0.1, epsilon=0.0), "amsgrad: epsilon = 0.0"),
        (lambda: optimizers.nadam(0.1, beta1=1.5), "nadam: beta1 = 1.5"),
        (lambda: optimizers.lion(0.1, beta2=1.0), "lion: beta2 = 1.0"),
        (lambda: optimizers.lion(0.1, weight_decay=-1.0), "lion: weight_decay = -1.0"),
        (lambda: clip_by_global_norm(sgd(0.1), 0.0), "max_norm = 0.0"),
        (lambda: clip_by_value(sgd(0.1), -1.0), "limit = -1.0"),
    ],
)
def test_wrong_constants(build, message):
    with pytest.raises(ValueError, match=message):
        build()
