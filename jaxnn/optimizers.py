"""Optimizers: from the gradient to the next parameters.

`adam(1e-3)` is an Optimizer, three pure functions of trees of arrays. The rate, the first argument of every
constructor, is a number or a schedule (`jaxnn.schedules`). Every number may be traced, so that one program serves many
of them, under jit and vmap; its value is not checked then.

In the formulas p is a parameter, g its gradient, α the rate and t the number of the update, counted from 1. They apply
entry by entry; every state starts at 0. A bfloat16 or float16 leaf is updated in float32, its moments stay float32, and
the result is rounded to the leaf's dtype, which loses an update smaller than half a unit in p's last place.

Numerics: from |g| = 2e19 on, g² overflows in float32, and an infinite v would freeze the entry for good. Before
squaring, g is clipped to ±√(largest float)/2, so that the sum of two squares is finite too; an infinite gradient then
acts as a large one. A NaN gradient gives NaN.

>>> params = {"w": jnp.array([1.0, 2.0])}
>>> optimizer = sgd(0.5)
>>> state = optimizer.init(params)
>>> params, state = optimizer.update(params, {"w": jnp.array([1.0, -1.0])}, state)
>>> params["w"], state.step
(Array([0.5, 2.5], dtype=float32), Array(1, dtype=int32))
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.tree_util import keystr, tree_flatten_with_path

from jaxnn._checks import (
    Number,
    at_least_float32,
    float_array,
    fraction,
    is_zero,
    non_negative,
    number_for,
    positive,
)
from jaxnn.schedules import Schedule, constant

Tree = Any  # any pytree of arrays


class Optimizer(NamedTuple):
    """Three pure functions; jit, scan and vmap them, donate params and state.

    The state's tree, shapes and dtypes never change. init and update raise ValueError for a parameter that is not
    floating-point; update, for gradients or a state that do not fit the parameters, naming every leaf that does not.
    """

    init: Callable[[Tree], Any]  # params -> state
    update: Callable[[Tree, Tree, Any], tuple[Tree, Any]]  # (params, grads, state) -> (NEW params, state)
    rate: Callable[[Any], jax.Array]  # state -> () the rate that the next update will use


# In states, "as params" means: the params' tree and shapes, float32 for bfloat16 and float16, else the leaf's dtype.


class StepState(NamedTuple):
    """State of sgd."""

    step: jax.Array  # () int32, updates done


class VelocityState(NamedTuple):
    """State of momentum, heavy_ball and nesterov."""

    step: jax.Array  # () int32, updates done
    v: Tree  # as params, the velocity


class SquaresState(NamedTuple):
    """State of adagrad and rmsprop."""

    step: jax.Array  # () int32, updates done
    v: Tree  # as params, sum or moving average of g²


class AdamState(NamedTuple):
    """State of adam, adamw and nadam."""

    step: jax.Array  # () int32, updates done
    m: Tree  # as params, moving average of g
    v: Tree  # as params, moving average of g²


class AmsgradState(NamedTuple):
    """State of amsgrad."""

    step: jax.Array  # () int32, updates done
    m: Tree  # as params, moving average of g
    v: Tree  # as params, moving average of g²
    v_max: Tree  # as params, the largest v so far


class LionState(NamedTuple):
    """State of lion."""

    step: jax.Array  # () int32, updates done
    m: Tree  # as params, moving average of g


# ---------------------------------------------------------------- gradient descent, with and without velocity


def sgd(rate: Number | Schedule) -> Optimizer:
    """Gradient descent.

    p ← p - α g

    Raises ValueError for a negative rate, here and below.
    """
    return _optimizer(rate, StepState, lambda p, g, a: (p - a * g,))


def momentum(rate: Number | Schedule, beta: Number = 0.9) -> Optimizer:
    """Momentum as a moving average (EMA) of the gradients.

    v ← β v + (1 - β) g
    p ← p - α v

    At equal rates its steps are exactly (1 - β) times those of `heavy_ball`: a tenth at β = 0.9. What other libraries
    call momentum is `heavy_ball`; torch's `dampening` does not scale the first gradient by (1 - β), this does.

    Raises ValueError unless 0 <= beta < 1, here and below.
    """
    fraction("momentum", "beta", beta)

    def equations(p, g, v, a):
        b = number_for(p.dtype, beta)
        v = b * v + (1 - b) * g
        return p - a * v, v

    return _optimizer(rate, VelocityState, equations)


def heavy_ball(rate: Number | Schedule, beta: Number = 0.9) -> Optimizer:
    """Momentum as a sum of the gradients: what torch and optax call momentum.

    v ← β v + g
    p ← p - α v

    At equal rates its steps are exactly 1/(1 - β) times those of `momentum`.
    Source: Polyak 1964, Some methods of speeding up the convergence of iteration methods.
    """
    fraction("heavy_ball", "beta", beta)

    def equations(p, g, v, a):
        v = number_for(p.dtype, beta) * v + g
        return p - a * v, v

    return _optimizer(rate, VelocityState, equations)


def nesterov(rate: Number | Schedule, beta: Number = 0.9) -> Optimizer:
    """Nesterov's momentum, in the form that evaluates the gradient at p.

    v ← β v + g
    p ← p - α (g + β v)

    g + β v is the velocity `heavy_ball` would have one update later if g came again. For a constant g both take steps
    that tend to 1/(1 - β) times those of `momentum`.
    Source: Nesterov 1983; Sutskever et al. 2013, in the variables of Bengio et al. 2012 (arXiv:1212.0901).
    """
    fraction("nesterov", "beta", beta)

    def equations(p, g, v, a):
        b = number_for(p.dtype, beta)
        v = b * v + g
        return p - a * (g + b * v), v

    return _optimizer(rate, VelocityState, equations)


# ---------------------------------------------------------------- a rate for each entry


def adagrad(rate: Number | Schedule, epsilon: Number = 1e-10) -> Optimizer:
    """Each entry's rate shrinks with the squares of all its gradients.

    v ← v + g²
    p ← p - α g / (√v + ε)

    Raises ValueError unless epsilon > 0, here and below.
    Numerics: v saturates at the largest float.
    Source: Duchi, Hazan, Singer 2011, Adaptive subgradient methods.
    """
    positive("adagrad", "epsilon", epsilon)

    def equations(p, g, v, a):
        g = _squarable(g)
        v = jnp.minimum(v + jnp.square(g), jnp.finfo(v.dtype).max)
        return p - a * g / (jnp.sqrt(v) + number_for(p.dtype, epsilon)), v

    return _optimizer(rate, SquaresState, equations)


def rmsprop(rate: Number | Schedule, beta: Number = 0.9, epsilon: Number = 1e-8) -> Optimizer:
    """The gradient divided by its root mean square, from a moving average.

    v ← β v + (1 - β) g²
    p ← p - α g / (√v + ε)

    Source: Tieleman, Hinton 2012, Coursera lecture 6.5.
    """
    fraction("rmsprop", "beta", beta)
    positive("rmsprop", "epsilon", epsilon)

    def equations(p, g, v, a):
        g, b = _squarable(g), number_for(p.dtype, beta)
        v = b * v + (1 - b) * jnp.square(g)
        return p - a * g / (jnp.sqrt(v) + number_for(p.dtype, epsilon)), v

    return _optimizer(rate, SquaresState, equations)


# ---------------------------------------------------------------- the Adam family


def adam(rate: Number | Schedule, beta1: Number = 0.9, beta2: Number = 0.999, epsilon: Number = 1e-8) -> Optimizer:
    """Adaptive moments: `momentum` over `rmsprop`, both corrected for their bias towards the initial 0.

    m ← β1 m + (1 - β1) g,        m̂ = m / c1,   c1 = 1 - β1^t
    v ← β2 v + (1 - β2) g²,       v̂ = v / c2,   c2 = 1 - β2^t
    p ← p - α m̂ / (√v̂ + ε)

    Numerics: the last line is p - a m / (√v + e) with the scalars a = α √c2 / c1 and e = ε √c2, which divides once per
    entry. 1 - β^t cancels (0.999 in float32: 2e-5 off at t = 2); c is -expm1(t log β).
    Source: Kingma, Ba 2014, with the remark before its section 2.1 (arXiv:1412.6980).
    """
    return _adam("adam", rate, beta1, beta2, epsilon, weight_decay=0.0, decays=is_weight)


def is_weight(p: jax.Array) -> bool:
    """Whether weight decay applies to p by default: rank 2 or more, so no bias, scale or shift.

    Where layers are stacked along a leading axis, their biases have rank 2: pass a `decays` of your own there.
    """
    return p.ndim >= 2


def adamw(
    rate: Number | Schedule,
    beta1: Number = 0.9,
    beta2: Number = 0.999,
    epsilon: Number = 1e-8,
    weight_decay: Number = 0.01,
    decays: Callable[[jax.Array], bool] = is_weight,
) -> Optimizer:
    """`adam` with decoupled weight decay.

    m, v, m̂, v̂ as in adam
    p ← p - α (m̂ / (√v̂ + ε) + λ p)        λ = weight_decay, 0 where decays(p) is false

    The default decays only leaves of rank 2 or more: weights, not biases. The decay is multiplied by the rate, as in
    torch and optax, so it follows the schedule. It bypasses m and v; `l2` under adam goes through them,
    and so shrinks the weights with large gradients least.

    Raises ValueError for a negative weight_decay, here and below.
    Source: Loshchilov, Hutter 2017 (arXiv:1711.05101).
    """
    return _adam("adamw", rate, beta1, beta2, epsilon, weight_decay, decays)


def _adam(who, rate, beta1, beta2, epsilon, weight_decay, decays):
    _check_adam(who, beta1, beta2, epsilon)
    non_negative(who, "weight_decay", weight_decay)

    def scalars(a, t):
        c1, c2 = _bias_correction(beta1, t), _bias_correction(beta2, t)
        return a * jnp.sqrt(c2) / c1, number_for(t.dtype, epsilon) * jnp.sqrt(c2), a * number_for(a.dtype, weight_decay)

    def equations(p, g, m, v, a, e, decay):
        g, b1, b2 = _squarable(g), number_for(p.dtype, beta1), number_for(p.dtype, beta2)
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * jnp.square(g)
        kept = p if is_zero(weight_decay) or not decays(p) else p - decay * p
        return kept - a * m / (jnp.sqrt(v) + e), m, v

    return _optimizer(rate, AdamState, equations, scalars)


def amsgrad(rate: Number | Schedule, beta1: Number = 0.9, beta2: Number = 0.999, epsilon: Number = 1e-8) -> Optimizer:
    """Adam whose denominators never shrink.

    m ← β1 m + (1 - β1) g
    v ← β2 v + (1 - β2) g²
    v_max ← max(v_max, v)
    p ← p - α m / (√v_max + ε)

    As in the paper, there is no bias correction; unlike there, ε is added. torch's `amsgrad=True` divides m by c1 and
    v_max by c2, as in `adam`.
    Source: Reddi, Kale, Kumar 2018, algorithm 2 (arXiv:1904.09237).
    """
    _check_adam("amsgrad", beta1, beta2, epsilon)

    def equations(p, g, m, v, v_max, a):
        g, b1, b2 = _squarable(g), number_for(p.dtype, beta1), number_for(p.dtype, beta2)
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * jnp.square(g)
        v_max = jnp.maximum(v_max, v)
        return p - a * m / (jnp.sqrt(v_max) + number_for(p.dtype, epsilon)), m, v, v_max

    return _optimizer(rate, AmsgradState, equations)


def nadam(rate: Number | Schedule, beta1: Number = 0.9, beta2: Number = 0.999, epsilon: Number = 1e-8) -> Optimizer:
    """Adam with Nesterov's look-ahead.

    m ← β1 m + (1 - β1) g
    v ← β2 v + (1 - β2) g²,       v̂ = v / (1 - β2^t)
    p ← p - α (β1 m / (1 - β1^(t+1)) + (1 - β1) g / (1 - β1^t)) / (√v̂ + ε)

    The paper's μ_t is the constant β1, without torch's `momentum_decay`.
    Numerics: as in `adam`, folded into b m + c g over √v + e.
    Source: Dozat 2016, Incorporating Nesterov momentum into Adam.
    """
    _check_adam("nadam", beta1, beta2, epsilon)

    def scalars(a, t):
        c1, next_c1, c2 = _bias_correction(beta1, t), _bias_correction(beta1, t + 1), _bias_correction(beta2, t)
        a, b1 = a * jnp.sqrt(c2), number_for(a.dtype, beta1)
        return a * b1 / next_c1, a * (1 - b1) / c1, number_for(t.dtype, epsilon) * jnp.sqrt(c2)

    def equations(p, g, m, v, b, c, e):
        g, b1, b2 = _squarable(g), number_for(p.dtype, beta1), number_for(p.dtype, beta2)
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * jnp.square(g)
        return p - (b * m + c * g) / (jnp.sqrt(v) + e), m, v

    return _optimizer(rate, AdamState, equations, scalars)


def _check_adam(who, beta1, beta2, epsilon):
    fraction(who, "beta1", beta1)
    fraction(who, "beta2", beta2)
    positive(who, "epsilon", epsilon)


def _bias_correction(beta, t):
    """1 - β^t."""
    if isinstance(beta, Tracer):
        return -jnp.expm1(t * jnp.log(number_for(t.dtype, beta)))
    return jnp.ones_like(t) if is_zero(beta) else -jnp.expm1(t * math.log(float(beta)))


def _squarable(g):
    largest = math.sqrt(float(jnp.finfo(g.dtype).max)) / 2
    return jnp.clip(g, -largest, largest)


# ---------------------------------------------------------------- by sign


def lion(
    rate: Number | Schedule,
    beta1: Number = 0.9,
    beta2: Number = 0.99,
    weight_decay: Number = 0.0,
    decays: Callable[[jax.Array], bool] = is_weight,
) -> Optimizer:
    """The sign of an average: every entry moves by the rate.

    c = β1 m + (1 - β1) g
    p ← p - α (sign(c) + λ p)        λ = weight_decay, 0 where decays(p) is false: see `adamw`
    m ← β2 m + (1 - β2) g

    The paper's rates are 3 to 10 times smaller than adam's.
    Source: Chen et al. 2023 (arXiv:2302.06675).
    """
    fraction("lion", "beta1", beta1)
    fraction("lion", "beta2", beta2)
    non_negative("lion", "weight_decay", weight_decay)

    def equations(p, g, m, a):
        b1, b2 = number_for(p.dtype, beta1), number_for(p.dtype, beta2)
        step = jnp.sign(b1 * m + (1 - b1) * g)
        if not is_zero(weight_decay) and decays(p):
            step = step + number_for(p.dtype, weight_decay) * p
        return p - a * step, b2 * m + (1 - b2) * g

    return _optimizer(rate, LionState, equations)


# ---------------------------------------------------------------- clipping


def global_norm(tree: Tree) -> jax.Array:
    """The Euclidean norm of all entries of all leaves together; 0 for an empty tree.

    ‖tree‖ = √(Σ x²)

    A scalar in the widest of the leaves' dtypes, at least float32. Raises ValueError for a leaf that is not
    floating-point.
    Numerics: s √(Σ (x/s)²) with s the largest |x|, so no square overflows or underflows. NaN gives NaN, inf gives inf.

    >>> global_norm({"w": jnp.array([3e30]), "b": jnp.array([4e30])})
    Array(5.e+30, dtype=float32)
    """
    named, _ = tree_flatten_with_path(tree)
    leaves = [float_array("global_norm", "tree" + keystr(path), leaf) for path, leaf in named]
    dtypes = [at_least_float32(leaf.dtype) for leaf in leaves]
    dtype = max(dtypes, key=lambda d: d.itemsize, default=jnp.result_type(float))
    leaves = [leaf.astype(dtype) for leaf in leaves]
    largest = jnp.zeros((), dtype)
    for leaf in leaves:
        largest = jnp.maximum(largest, jnp.max(jnp.abs(leaf), initial=0))
    scale = jnp.where((largest > 0) & (largest < jnp.inf), largest, 1)
    total = sum((jnp.square(leaf / scale).sum() for leaf in leaves), jnp.zeros((), dtype))
    return scale * jnp.sqrt(total)


def clip_by_global_norm(optimizer: Optimizer, max_norm: Number) -> Optimizer:
    """The optimizer, with all gradients scaled down together when their norm exceeds max_norm.

    g ← g min(1, max_norm / ‖grads‖)        with `global_norm`

    Raises ValueError unless max_norm > 0.
    Numerics: gradients of norm <= max_norm, 0 included, pass bit for bit. One NaN makes all of them NaN.
    Source: Pascanu, Mikolov, Bengio 2012 (arXiv:1211.5063).

    >>> optimizer = clip_by_global_norm(sgd(1.0), max_norm=1.0)
    """
    positive("clip_by_global_norm", "max_norm", max_norm)

    def clip(grads):
        norm = global_norm(grads)
        factor = jnp.minimum(1, number_for(norm.dtype, max_norm) / norm)
        return jax.tree.map(lambda g: _calculable(g) * factor.astype(_calculable(g).dtype), grads)

    return _clipped(optimizer, clip)


def clip_by_value(optimizer: Optimizer, limit: Number) -> Optimizer:
    """The optimizer, with its gradients clipped entry by entry.

    g ← min(max(g, -limit), limit)

    This changes the gradient's direction; `clip_by_global_norm` does not.

    Raises ValueError unless limit > 0.
    """
    positive("clip_by_value", "limit", limit)

    def clip(g):
        g = _calculable(g)
        most = number_for(g.dtype, limit)
        return jnp.clip(g, -most, most)

    return _clipped(optimizer, lambda grads: jax.tree.map(clip, grads))


def _clipped(optimizer, clip):
    def update(params, grads, state):
        _check_like(params, "grads", grads)
        return optimizer.update(params, clip(grads), state)

    return optimizer._replace(update=update)


# ---------------------------------------------------------------- shared by all


def _optimizer(rate, state_type: Any, equations, scalars=lambda a, t: (a,)) -> Optimizer:
    """An Optimizer from a paper's equations for one leaf, (p, g, *moments, *scalars) -> (p, *moments).

    The moments are state_type's fields after `step`. scalars(α, t), a tuple, is computed once for all leaves.
    """
    schedule = rate if callable(rate) else constant(rate)

    def rate_of(state):
        return jnp.asarray(schedule(state.step), float)

    def init(params):
        _check_params(params)

        def zeros():  # new arrays for each moment: a buffer can be donated only once
            return jax.tree.map(lambda p: jnp.zeros_like(_calculable(p)), params)

        return state_type(jnp.zeros((), jnp.int32), *(zeros() for _ in state_type._fields[1:]))

    def update(params, grads, state):
        _check_params(params)
        step, *moments = state
        _check_like(params, "grads", grads)
        for name, moment in zip(state_type._fields[1:], moments, strict=True):
            _check_like(params, f"state.{name}", moment)
        values = scalars(rate_of(state), (step + 1).astype(float))
        params, *moments = _leaf_by_leaf(equations, values, params, grads, *moments)
        return params, state_type(step + 1, *moments)

    return Optimizer(init, update, rate_of)


def _leaf_by_leaf(equations, scalars, params, grads, *moments):
    """equations over the leaves of several trees, each in its leaf's compute dtype; returns a list of trees."""
    leaves, tree = jax.tree.flatten(params)
    others = [tree.flatten_up_to(other) for other in (grads, *moments)]
    columns = [[] for _ in (params, *moments)]
    for p, *rest in zip(leaves, *others, strict=True):
        dtype = _calculable(p).dtype
        new, *rest = equations(*(jnp.asarray(x, dtype) for x in (p, *rest, *scalars)))
        for column, value in zip(columns, (new.astype(jnp.result_type(p)), *rest), strict=True):
            column.append(value)
    return [tree.unflatten(column) for column in columns]


def _calculable(x):
    """x as an array of the dtype to compute in."""
    x = jnp.asarray(x)
    return x.astype(at_least_float32(x.dtype))


def _check_params(params):
    wrong = [
        f"params{keystr(path)} has dtype {jnp.result_type(leaf)}"
        for path, leaf in tree_flatten_with_path(params)[0]
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    ]
    if wrong:
        raise ValueError(
            f"optimizer: {'; '.join(wrong)}; parameters must be floating-point: "
            "keep what is not trained out of params, or convert it with .astype(jnp.float32)"
        )


def _check_like(params, name, tree):
    """ValueError naming every leaf where tree does not fit params: structure, shape, floating-point."""
    expected = {keystr(path): leaf for path, leaf in tree_flatten_with_path(params)[0]}
    given = {keystr(path): leaf for path, leaf in tree_flatten_with_path(tree)[0]}
    wrong = [f"{name}{path} is missing" for path in expected if path not in given]
    wrong += [f"{name}{path} has no counterpart in params" for path in given if path not in expected]
    for path in (path for path in expected if path in given):
        want, got = jnp.shape(expected[path]), jnp.shape(given[path])
        if want != got:
            wrong.append(f"{name}{path} has shape {got}, params{path} {want}")
        if not jnp.issubdtype(jnp.result_type(given[path]), jnp.floating):
            wrong.append(f"{name}{path} has dtype {jnp.result_type(given[path])}, expected a floating-point array")
    if not wrong and jax.tree.structure(tree) != jax.tree.structure(params):
        wrong.append(f"{name} is a {jax.tree.structure(tree)}, params a {jax.tree.structure(params)}")
    if wrong:
        raise ValueError(
            f"optimizer.update: {'; '.join(wrong)}; {name} must have the tree and the shapes of params: "
            + ("return one gradient per parameter" if name == "grads" else "make the state with init(params)")
        )


# ---------------------------------------------------------------- by name

# Each as `rate -> Optimizer`, the rest at their defaults.
OPTIMIZERS: dict[str, Callable[[Number | Schedule], Optimizer]] = {
    "sgd": sgd,
    "momentum": momentum,
    "heavy_ball": heavy_ball,
    "nesterov": nesterov,
    "adagrad": adagrad,
    "rmsprop": rmsprop,
    "adam": adam,
    "adamw": adamw,
    "amsgrad": amsgrad,
    "nadam": nadam,
    "lion": lion,
}
