"""A rule: a function with a hand-written derivative, in the one form that the witnesses understand.

    forward(inputs, given) -> y                 inputs: a tree of all that is differentiated
    backward(inputs, given, dy) -> dinputs      given: a tuple of what is not (labels, weights, state, context)

Example inputs are NumPy arrays in float64 whose values bfloat16 can hold, so that the same point is evaluated in every
precision.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.activations import Activation
from jaxnn.layer import Ctx, Layer
from jaxnn.losses import Loss
from jaxnn.regularizers import Regularizer


class Example(NamedTuple):
    """A point at which a rule is evaluated."""

    inputs: Any  # a tree of float64 NumPy arrays
    given: tuple[Any, ...] = ()


class Rule(NamedTuple):
    """A function with a hand-written derivative, and where to test it."""

    name: str
    public: tuple[Any, ...]  # the public functions that this rule proves
    forward: Callable[..., Any]  # (inputs, given) -> y
    backward: Callable[..., Any]  # (inputs, given, dy) -> dinputs
    examples: tuple[Example, ...]  # where the derivative is compared
    hard: tuple[Example, ...] = ()  # where y and the derivative must be finite
    float32: float = 2e-6  # largest error allowed against float64, relative to the leaf
    bfloat16: float = 2e-2


def numbers(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    """Normal random numbers that bfloat16 can hold, as float64."""
    draw = np.random.default_rng([seed, *shape]).normal(scale=scale, size=shape)
    return representable(draw)


def representable(x) -> np.ndarray:
    """x rounded to bfloat16, as float64."""
    return np.asarray(x).astype(jnp.bfloat16).astype(np.float64)


def activation_rule(name: str, activation: Activation) -> Rule:
    """f(x), dx = dy ⊙ f'(x)."""
    extreme = np.array([0.0, 1.0, -1.0, 3.0, -3.0, 6.0, 20.0, -20.0, 88.0, -88.0, 1e4, -1e4, 3e38, -3e38])
    return Rule(
        name,
        (activation.value, activation.derivative),
        lambda x, given: activation.value(x),
        lambda x, given, dy: dy * activation.derivative(x),
        examples=tuple(map(Example, (numbers(1, 7, 5, scale=3), numbers(2, 2, 3, 5, scale=3), numbers(3, 1)))),
        hard=(Example(extreme),),
    )


def loss_rule(name: str, loss: Loss, examples: list[Example], hard: list[Example], **hyper) -> Rule:
    """L as a function of y_pred; given are (y_true, weights)."""

    def backward(y_pred, given, dy):
        y_true, weights = given
        return dy.astype(y_pred.dtype) * loss.derivative(y_true, y_pred, weights, **hyper)

    return Rule(
        name,
        (loss.value, loss.derivative),
        lambda y_pred, given: loss.value(given[0], y_pred, given[1], **hyper),
        backward,
        tuple(examples),
        tuple(hard),
    )


def regularizer_rule(name: str, regularizer: Regularizer, *strengths: float) -> Rule:
    """R(params), dparams = dy R'(params)."""
    params = {"w": numbers(1, 5, 3), "b": numbers(2, 3), "more": (numbers(3, 2, 3, 4),)}
    return Rule(
        name,
        (regularizer.value, regularizer.derivative),
        lambda params, given: regularizer.value(params, *strengths),
        lambda params, given, dy: jax.tree.map(
            lambda g: dy.astype(g.dtype) * g, regularizer.derivative(params, *strengths)
        ),
        examples=(Example(params),),
        hard=(Example(jax.tree.map(np.zeros_like, params)),),
    )


class LayerExample(NamedTuple):
    """A Layer, the public functions that it proves, and where to test it."""

    layer: Layer
    public: tuple[Any, ...]
    in_shapes: tuple[tuple[int, ...], ...]  # odd ones, of every rank that the layer takes
    ctx: Ctx = Ctx()


def layer_rule(name: str, example: LayerExample) -> Rule:
    """`layer_rule_at` random numbers of the example's shapes; hard are constants, and a batch of one."""
    first = example.in_shapes[0]
    one_example = (1, *first[1:])
    return layer_rule_at(
        name,
        example.layer,
        example.public,
        xs=[numbers(99, *shape) for shape in example.in_shapes],
        hard=[*(np.full(first, value) for value in (0.0, 1e4, -1e4)), numbers(98, *one_example)],
        ctx=example.ctx,
    )


def layer_rule_at(name: str, layer: Layer, public: tuple[Any, ...], xs: list[Any], hard: list[Any], ctx: Ctx) -> Rule:
    """y as a function of {"params", "x"} at the points xs, each an array or a tuple of arrays; given are (state, ctx).

    An x of integers has no gradient: it is given, as (state, ctx, x), and inputs["x"] is None like its dx.
    """

    def run(inputs, given):
        state, ctx, *ids = given
        return layer.forward(inputs["params"], state, ids[0] if ids else inputs["x"], ctx)

    def backward(inputs, given, dy):
        dparams, dx = layer.backward(inputs["params"], run(inputs, given)[2], dy)
        return {"params": dparams, "x": dx}

    def at(x):
        _, params, state = shapes_of(layer, jax.tree.map(np.shape, x))
        given = (jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5), state), ctx)
        if isinstance(x, np.ndarray) and np.issubdtype(x.dtype, np.integer):
            x, given = None, (*given, x)
        return Example({"params": random_params(params), "x": x}, given)

    return Rule(
        name,
        public,
        lambda inputs, given: run(inputs, given)[0],
        backward,
        examples=tuple(map(at, xs)),
        hard=tuple(map(at, hard)),
        float32=4e-6,
    )


def shapes_of(layer: Layer, in_shape: tuple[int, ...]):
    """(out_shape, params, state) of layer.init, params and state as shapes: nothing is drawn."""
    out = {}

    def init(key):
        out["shape"], params, state = layer.init(key, in_shape)
        return params, state

    params, state = jax.eval_shape(init, jax.random.key(0))
    return out["shape"], params, state


def random_params(shapes: Any) -> Any:
    """A tree of random numbers of these shapes: no parameter sits at a special value, as zero biases would."""
    leaves, tree = jax.tree.flatten(shapes)
    return tree.unflatten([numbers(i, *leaf.shape, scale=0.7) for i, leaf in enumerate(leaves)])
