"""Regularizers: penalties on the weights, and their derivatives.

params is any tree of floating-point arrays. Only its weights are penalised, the leaves W of rank 2 or more; biases,
scales and shifts are not. So where layers are stacked along a leading axis, their biases, of rank 2, count as weights;
the weights of a single neuron, of rank 1, do not. λ >= 0 is a number or a scalar array.

A value is a scalar in the widest of the leaves' dtypes, at least float32, and 0 for a tree without weights. A
derivative has the params' tree, shapes and dtypes, zeros where nothing is penalised; add it to the loss's gradient.
bfloat16 and float16 are evaluated in float32 and rounded once.

ValueError for a leaf that is not floating-point and for a negative λ, unless that is traced.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import keystr, tree_flatten_with_path, tree_map_with_path

from jaxnn._checks import at_least_float32, float_array, non_negative

Tree = Any  # any pytree of arrays


class Regularizer(NamedTuple):
    """A penalty and its derivative; both take the params, then one or more strengths."""

    value: Callable[..., jax.Array]  # (params, *strengths) -> ()
    derivative: Callable[..., Tree]  # (params, *strengths) -> as params


def l2(params: Tree, lambda_: float | jax.Array) -> jax.Array:
    """Half the sum of the squares of all weights.

    R     = λ/2 Σ_W ‖W‖_F² = λ/2 Σ w²
    ∂R/∂W = λ W

    ‖W‖_F is the Frobenius norm, over all entries; ‖W‖₂ of a matrix would be its largest singular value. Under plain
    gradient descent this is weight decay; under Adam it is not, since the gradient's scale cancels: see `adamw`.

    >>> params = {"w": jnp.array([[1.0, -2.0]]), "b": jnp.array([5.0, 5.0])}
    >>> l2(params, 0.1)
    Array(0.25, dtype=float32)
    """
    return _sum("l2", params, lambda w: jnp.square(w) / 2, lambda_=lambda_)


def l2_derivative(params: Tree, lambda_: float | jax.Array) -> Tree:
    """λ W for weights, 0 for biases."""
    return _map("l2_derivative", params, lambda w, l2: l2 * w, lambda_=lambda_)


def l1(params: Tree, lambda_: float | jax.Array) -> jax.Array:
    """The sum of the absolute values of all weights; it drives many of them to 0.

    R     = λ Σ |w|
    ∂R/∂w = λ sign(w), 0 at w = 0
    """
    return _sum("l1", params, jnp.abs, lambda_=lambda_)


def l1_derivative(params: Tree, lambda_: float | jax.Array) -> Tree:
    """λ sign(w) for weights, 0 at w = 0; 0 for biases."""
    return _map("l1_derivative", params, lambda w, l1: l1 * jnp.sign(w), lambda_=lambda_)


def elastic_net(params: Tree, l1: float | jax.Array, l2: float | jax.Array) -> jax.Array:
    """Both penalties, each with its own strength.

    R     = λ1 Σ |w| + λ2/2 Σ w²
    ∂R/∂w = λ1 sign(w) + λ2 w

    Source: Zou, Hastie 2005, Regularization and variable selection via the elastic net, there without the 1/2.
    """
    who = "elastic_net"
    return _sum(who, params, jnp.abs, l1=l1) + _sum(who, params, lambda w: jnp.square(w) / 2, l2=l2)


def elastic_net_derivative(params: Tree, l1: float | jax.Array, l2: float | jax.Array) -> Tree:
    """λ1 sign(w) + λ2 w for weights, 0 for biases."""
    return _map("elastic_net_derivative", params, lambda w, l1, l2: l1 * jnp.sign(w) + l2 * w, l1=l1, l2=l2)


def _sum(who, params, term, **strength):
    """The strength times the sum of term(w) over all entries of all weights."""
    _check_strengths(who, strength)
    (factor,) = strength.values()
    leaves = [_float_leaf(who, path, leaf) for path, leaf in tree_flatten_with_path(params)[0]]
    dtypes = [at_least_float32(leaf.dtype) for leaf in leaves]
    total = jnp.zeros((), max(dtypes, key=lambda dtype: dtype.itemsize, default=jnp.result_type(float)))
    for w in leaves:
        if w.ndim >= 2:
            total = total + term(w.astype(total.dtype)).sum()
    return jnp.asarray(factor, total.dtype) * total


def _map(who, params, term, **strengths):
    """term(w, *strengths) for each weight, 0 for the other leaves."""
    _check_strengths(who, strengths)

    def leaf_derivative(path, leaf):
        w = _float_leaf(who, path, leaf)
        if w.ndim < 2:
            return jnp.zeros_like(w)
        dtype = at_least_float32(w.dtype)
        factors = (jnp.asarray(strength, dtype) for strength in strengths.values())
        return term(w.astype(dtype), *factors).astype(w.dtype)

    return tree_map_with_path(leaf_derivative, params)


def _float_leaf(who, path, leaf):
    return float_array(who, "params" + keystr(path), leaf)


def _check_strengths(who, strengths):
    for name, strength in strengths.items():
        non_negative(who, name, strength)


REGULARIZERS: dict[str, Regularizer] = {
    "l1": Regularizer(l1, l1_derivative),
    "l2": Regularizer(l2, l2_derivative),
    "elastic_net": Regularizer(elastic_net, elastic_net_derivative),
}
