"""Every rule of the library, with example inputs.

A new activation, loss or regularizer is found through its table (ACTIVATIONS, LOSSES, REGULARIZERS); a new loss also
needs a line in `loss_points`, a new layer or combinator one in `layer_examples`, a new bare pair one in `_pairs`.
`tests/verify/test_registry.py` fails when a public rule is missing.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn import activations, combinators, fused, layers, models
from jaxnn.activations import ACTIVATIONS, Activation
from jaxnn.fused.flash_attention import flash_attention_backward, flash_attention_forward
from jaxnn.fused.linear_cross_entropy import linear_cross_entropy_backward, linear_cross_entropy_forward
from jaxnn.layer import Ctx, Layer
from jaxnn.layers import (
    activation,
    attention_backward,
    attention_forward,
    avg_pool_backward,
    avg_pool_forward,
    batch_norm_backward,
    batch_norm_forward,
    conv_backward,
    conv_forward,
    conv_transpose_backward,
    conv_transpose_forward,
    dense_backward,
    dense_forward,
    dropout_backward,
    dropout_forward,
    embedding_backward,
    embedding_forward,
    flatten_backward,
    flatten_forward,
    gated_mlp_backward,
    gated_mlp_forward,
    global_avg_pool_backward,
    global_avg_pool_forward,
    group_norm_backward,
    group_norm_forward,
    gru_cell_backward,
    gru_cell_forward,
    instance_norm_backward,
    instance_norm_forward,
    layer_norm_backward,
    layer_norm_forward,
    learned_positions_backward,
    learned_positions_forward,
    lstm_cell_backward,
    lstm_cell_forward,
    max_pool_backward,
    max_pool_forward,
    multi_head_backward,
    multi_head_forward,
    neuron_backward,
    neuron_forward,
    recurrent_backward,
    recurrent_forward,
    reshape_backward,
    reshape_forward,
    rms_norm_backward,
    rms_norm_forward,
    rnn_cell_backward,
    rnn_cell_forward,
    rotary_backward,
    rotary_forward,
    transpose_backward,
    transpose_forward,
    weight_norm_backward,
    weight_norm_forward,
)
from jaxnn.losses import LOSSES
from jaxnn.models import mlp_backward, mlp_forward, tied_backward, tied_forward
from jaxnn.regularizers import REGULARIZERS
from jaxnn.verify.judge.rule import (
    Example,
    LayerExample,
    Rule,
    activation_rule,
    layer_rule,
    layer_rule_at,
    loss_rule,
    numbers,
    regularizer_rule,
    representable,
)


def _key(seed: int) -> jax.Array:
    """A key of the generator that compiles fastest: the default one takes seconds for each new shape on a CPU."""
    return jax.random.key(seed, impl="unsafe_rbg")


def rules() -> tuple[Rule, ...]:
    """All rules of the library, in the order of the source text."""
    return (*_activations(), *_losses(), *_regularizers(), *rules_with_cotangent())


def rules_with_cotangent() -> tuple[Rule, ...]:
    """Those whose backward takes dy: the bare pairs and the layers. The others' derivatives are for dy = 1."""
    return (*_pairs(), *_layers())


# ---------------------------------------------------------------- activations


def _activations():
    for name, pair in ACTIVATIONS.items():
        yield activation_rule(name, pair)
    for name, hyper in {"leaky_relu": {"negative_slope": 0.2}, "elu": {"alpha": 1.7}, "celu": {"alpha": 1.7}}.items():
        value, derivative = ACTIVATIONS[name]
        pair = Activation(functools.partial(value, **hyper), functools.partial(derivative, **hyper))
        [(hyper_name, hyper_value)] = hyper.items()
        yield activation_rule(f"{name}, {hyper_name}={hyper_value}", pair)


# ---------------------------------------------------------------- losses


def _losses():
    for name, loss in LOSSES.items():
        yield loss_rule(name, loss, *loss_points(name))
    for name, hyper in {
        "huber": {"delta": 0.5},
        "focal": {"gamma": 3.0, "alpha": 0.6},
        "softmax_cross_entropy_with_integer_labels": {"label_smoothing": 0.125},
    }.items():
        shown = ", ".join(f"{k}={v}" for k, v in hyper.items())
        yield loss_rule(f"{name}, {shown}", LOSSES[name], *loss_points(name), **hyper)


def loss_points(name: str) -> tuple[list[Example], list[Example]]:
    """Examples, and hard examples: y_pred with (y_true, weights)."""
    real, real_3d, row = numbers(11, 7, 5, scale=2), numbers(12, 2, 3, 5, scale=2), numbers(13, 1, 3, scale=2)
    ends = representable(np.array([[0.0, 1e4, -1e4], [1e4, 1e4, 1e4], [88.0, 0.0, -88.0]]))
    share = representable(np.random.default_rng(14).uniform(0.05, 0.95, size=(7, 5)))
    soft = representable(np.random.default_rng(15).dirichlet(np.ones(5), 7))
    soft[0] = [0, 1, 0, 0, 0]
    weights = np.array([1.0, 0.0, 2.5, 0.5, 1.0, 3.0, 0.25])

    def points(y_true, y_true_3d, y_true_row, y_true_ends, y_pred=real, ends=ends):
        examples = [
            Example(y_pred, (y_true, None)),
            Example(y_pred, (y_true, weights)),
            Example(real_3d, (y_true_3d, None)),
            Example(row, (y_true_row, None)),
        ]
        return examples, [Example(ends, (y_true_ends, None))]

    match name:
        case "mse" | "mae" | "huber" | "log_cosh" | "cosine_distance":
            return points(numbers(21, 7, 5), numbers(22, 2, 3, 5), numbers(23, 1, 3), np.zeros((3, 3)))
        case "poisson_nll":
            counts = np.abs(numbers(21, 7, 5)).round()
            mild = np.array([[0.0, 80.0, -1e4], [1.0, -1.0, 2.0], [0.0, 0.0, 0.0]])
            return points(counts, np.ones((2, 3, 5)), np.zeros((1, 3)), np.zeros((3, 3)), ends=mild)
        case "gaussian_nll":
            y_pred = numbers(24, 7, 6)
            examples = [Example(y_pred, (numbers(25, 7, 3), None)), Example(y_pred, (numbers(25, 7, 3), weights))]
            examples.append(Example(numbers(26, 2, 3, 4), (numbers(27, 2, 3, 2), None)))
            y_pred, y_true = np.array([[0.0, 1e4], [1.0, -80.0], [2.0, -1e4]]), np.array([[0], [1], [2]])
            return examples, [Example(y_pred, (y_true, None))]
        case "binary_cross_entropy":
            hard = np.array([[0.0, 1.0, 0.0], [1.0, 1e-30, 0.5], [2.0, -1.0, 0.5]])
            y_true = representable(np.random.default_rng(16).uniform(size=(7, 5)))
            examples = [Example(share, (y_true, None)), Example(share, (y_true, weights))]
            examples.append(Example(share[:2, None], (y_true[:2, None].round(), None)))
            return examples, [Example(hard, (y_true, None)) for y_true in (np.zeros((3, 3)), np.ones((3, 3)))]
        case "binary_cross_entropy_with_logits" | "focal":
            y_true = representable(np.random.default_rng(16).uniform(size=(7, 5)))
            return points(y_true, np.ones((2, 3, 5)), np.array([[0.0, 1.0, 1.0]]), np.ones((3, 3)))
        case "hinge" | "squared_hinge":
            signs = np.sign(numbers(28, 7, 5))
            examples, hard = points(signs, np.ones((2, 3, 5)), np.array([[1.0, -1.0, 1.0]]), -np.ones((3, 3)))
            return examples, [*hard, Example(np.array([1.0, -1.0]), (np.array([1.0, -1.0]), None))]  # at the kink
        case "softmax_cross_entropy" | "kl_divergence":
            uniform = np.full((2, 3, 5), 0.25)
            return points(soft, uniform, np.array([[0.5, 0.5, 0.0]]), np.eye(3))
        case "softmax_cross_entropy_with_integer_labels":
            labels = np.array([4, 0, 2, 1, 1, 3, 0])
            return points(labels, np.array([[0, 1, 4], [2, 2, 3]]), np.array([2]), np.array([0, 1, 2]))
    raise ValueError(f"the loss {name!r} has no examples in jaxnn/verify/certificate/registry.py; add a case for it")


# ---------------------------------------------------------------- regularizers


def _regularizers():
    strengths = {"l1": (0.3,), "l2": (0.3,), "elastic_net": (0.3, 0.7)}
    for name, regularizer in REGULARIZERS.items():
        yield regularizer_rule(name, regularizer, *strengths[name])


# ---------------------------------------------------------------- bare pairs


def _pairs():
    """Pairs that take params, as (params, x) -> (y, cache) and (params, cache, dy) -> (dparams, dx); and softmax's."""
    x = (numbers(31, 7, 5), numbers(32, 2, 3, 5))
    for axis in (-1, 0):
        yield _axis_pair("softmax", axis, activations.softmax_forward, activations.softmax_backward, x)
        yield _axis_pair("log_softmax", axis, activations.log_softmax_forward, activations.log_softmax_backward, x)

    one = {"w": numbers(33, 5), "b": numbers(34)}
    several = {"w": numbers(35, 5, 3), "b": numbers(36, 3)}
    for params, label in ((one, "one"), (several, "several")):
        for f in ("sigmoid", "gelu_erf"):
            forward = functools.partial(neuron_forward, activation=f)
            backward = functools.partial(neuron_backward, activation=f)
            public = (neuron_forward, neuron_backward)
            yield _params_pair(f"neuron, {label}, {f}", public, forward, backward, params, x)
    yield _params_pair("dense, bare", (dense_forward, dense_backward), dense_forward, dense_backward, several, x)
    yield _params_pair("flatten, bare", (flatten_forward, flatten_backward), flatten_forward, flatten_backward, {}, x)

    sizes = (5, 7, 4, 3)
    network = [
        {"w": numbers(40 + i, m, n, scale=0.7), "b": numbers(50 + i, n)}
        for i, (m, n) in enumerate(itertools.pairwise(sizes))
    ]
    fs = ("tanh", "gelu_tanh", "sigmoid")
    forward = functools.partial(mlp_forward, activations=fs)
    backward = functools.partial(mlp_backward, activations=fs)
    yield _params_pair("mlp, written out", (mlp_forward, mlp_backward), forward, backward, network, x[:1])

    yield Rule(
        "rotary",
        (rotary_forward, rotary_backward),
        lambda x, given: rotary_forward(x, offset=given[0])[0],
        lambda x, given, dy: rotary_backward(rotary_forward(x, offset=given[0])[1], dy),
        examples=(Example(numbers(37, 2, 3, 5, 6), (99_000,)), Example(numbers(38, 3, 2), (-1,))),
        hard=(Example(np.full((2, 6), 1e4), (0,)),),
    )

    key = _key(3)
    yield Rule(
        "dropout, bare",
        (dropout_forward, dropout_backward),
        lambda x, given: dropout_forward(given[0], x, 0.3)[0],
        lambda x, given, dy: dropout_backward(dropout_forward(given[0], x, 0.3)[1], dy, 0.3),
        examples=tuple(Example(one, (key,)) for one in x),
    )
    yield from _cells()
    yield from _fused()


def _fused():
    """In blocks that divide nothing evenly; entries of the last block belong to its neighbour as well."""
    labels, weights = np.array([6, 0, 3, 3, 1]), np.array([1.0, 0.0, 2.5, 0.5, 1.0])
    for memory in ("default", "least"):
        yield _linear_cross_entropy(memory, labels, weights)

    mask = np.array([[True, False, True, True, True], [False] * 5])  # no query sees anything of the second example
    names = ("q", "k", "v")
    grouped = dict(zip(names, (numbers(76, 2, 4, 5, 3), numbers(77, 2, 2, 5, 3), numbers(78, 2, 2, 5, 2)), strict=True))
    cross = dict(zip(names, (numbers(79, 1, 2, 4, 3), numbers(80, 1, 2, 7, 3), numbers(81, 1, 2, 7, 3)), strict=True))
    yield _flash_attention(True, Example(grouped, (mask,)))
    yield _flash_attention(False, Example(cross, (mask[:1, [0, 1, 2, 3, 4, 0, 1]],)))


def _linear_cross_entropy(memory, labels, weights) -> Rule:
    forward = functools.partial(linear_cross_entropy_forward, memory=memory, blocks=(2, 3))

    def backward(inputs, given, dy):
        _, cache = forward({"table": inputs["table"]}, inputs["x"], *given)
        dparams, dx = linear_cross_entropy_backward({"table": inputs["table"]}, cache, dy, blocks=(2, 3))
        return {**dparams, "x": dx}

    inputs = {"table": numbers(74, 7, 3), "x": numbers(75, 5, 3)}
    huge = {"table": np.full((7, 3), 1e4), "x": np.full((5, 3), -1e4)}
    one = {"table": np.ones((1, 3)), "x": np.zeros((1, 3))}
    return Rule(
        f"linear_cross_entropy, {memory}",
        (linear_cross_entropy_forward, linear_cross_entropy_backward),
        lambda inputs, given: forward({"table": inputs["table"]}, inputs["x"], *given)[0],
        backward,
        examples=(Example(inputs, (labels, weights)), Example(inputs, (labels, None))),
        hard=(Example(huge, (labels, None)), Example(one, (labels[1:2], None))),
    )


def _flash_attention(causal: bool, example: Example) -> Rule:
    """Causal attention ends its loops at the diagonal, which autodiff cannot reverse: there the plain rule is y."""
    fused = functools.partial(flash_attention_forward, causal=causal, blocks=(4, 2))
    forward = functools.partial(attention_forward, causal=True) if causal else fused
    huge = jax.tree.map(lambda a: np.full_like(a, 1e4), example.inputs)
    return Rule(
        f"flash_attention, {'causal' if causal else 'cross'}",
        (flash_attention_forward, flash_attention_backward),
        lambda inputs, given: forward(**inputs, mask=given[0])[0],
        lambda inputs, given, do: dict(
            zip("qkv", flash_attention_backward(fused(**inputs, mask=given[0])[1], do, blocks=(4, 2)), strict=True)
        ),
        examples=(example,),
        hard=(Example(huge, example.given),),
        float32=4e-6,
    )


def _cells():
    """A step of each recurrent cell; and a sequence, with the state passed in and out, and padding."""
    h, c = numbers(64, 4, 2), numbers(65, 4, 2)
    for name, widths, state, forward, backward in (
        ("rnn", (2, 2, 2), h, rnn_cell_forward, rnn_cell_backward),
        ("gru", (6, 6, 8), h, gru_cell_forward, gru_cell_backward),
        ("lstm", (8, 8, 8), (h, c), lstm_cell_forward, lstm_cell_backward),
    ):
        yield _state_rule(f"{name}_cell", forward, backward, widths, state, numbers(69, 4, 3))

    def along(params, x, state):
        real = np.arange(5) < np.array([[3], [5], [1], [0]])
        return recurrent_forward("lstm", params, x, state, mask=real)

    through_time = functools.partial(recurrent_backward, "lstm")
    rule = _state_rule("recurrent", along, through_time, (8, 8, 8), (h, c), numbers(70, 4, 5, 3))
    yield rule._replace(public=(recurrent_forward, recurrent_backward))


def _state_rule(name, forward, backward, widths, state, x) -> Rule:
    """(y, the state after) as a function of {"params", "x", "state"}."""
    n_w, n_u, n_b = widths
    params = {"w": numbers(66, x.shape[-1], n_w), "u": numbers(67, 2, n_u), "b": numbers(68, n_b)}

    def back(inputs, given, dy):
        _, _, cache = forward(*(inputs[name] for name in ("params", "x", "state")))
        dparams, dx, dstate = backward(inputs["params"], cache, *dy)
        return {"params": dparams, "x": dx, "state": dstate}

    inputs = {"params": params, "x": x, "state": state}
    huge = {"params": params, "state": jax.tree.map(lambda s: 1e4 * s, state), "x": np.full_like(x, -1e4)}
    return Rule(
        name,
        (forward, backward),
        lambda inputs, given: forward(*(inputs[name] for name in ("params", "x", "state")))[:2],
        back,
        examples=(Example(inputs),),
        hard=(Example(huge),),
        float32=4e-6,
    )


def _axis_pair(name: str, axis: int, forward: Callable, backward: Callable, xs) -> Rule:
    hard = (np.array([[1e4, 0.0, -1e4], [5.0, 5.0, 5.0]]), np.zeros((1, 1)))
    return Rule(
        f"{name}, axis {axis}",
        (getattr(activations, name), forward, backward),
        lambda x, given: forward(x, axis)[0],
        lambda x, given, dy: backward(forward(x, axis)[1], dy, axis),
        tuple(map(Example, xs)),
        tuple(map(Example, hard)),
    )


def _params_pair(name, public, forward, backward, params, xs) -> Rule:
    def whole_backward(inputs, given, dy):
        _, cache = forward(inputs["params"], inputs["x"])
        dparams, dx = backward(inputs["params"], cache, dy)
        return {"params": dparams, "x": dx}

    return Rule(
        name,
        public,
        lambda inputs, given: forward(inputs["params"], inputs["x"])[0],
        whole_backward,
        tuple(Example({"params": params, "x": x}) for x in xs),
        (Example({"params": params, "x": np.zeros_like(xs[0])}),),
        float32=4e-6,
    )


# ---------------------------------------------------------------- layers, combinators, models


def layer_examples() -> dict[str, LayerExample]:
    """Every Layer constructor, in training and in evaluation where they differ."""
    evaluation = Ctx()
    train = Ctx(train=True, key=_key(7))
    some_real = Ctx(mask=np.array([[False, True, False, True]]))
    ranks = ((6, 5), (1, 2, 3, 5))
    dense, act = layers.dense, activation

    def example(layer, *public, shapes=ranks, ctx=evaluation):
        return LayerExample(layer, public, shapes, ctx)

    block = combinators.serial(dense(5), act("tanh"), layers.dropout(0.25))
    network = models.mlp((7, 4), 3, activation="silu", dropout=0.25)
    return {
        "dense": example(dense(3), dense),
        "activation": example(act("tanh"), act),
        "softmax": example(layers.softmax(), layers.softmax),
        "log_softmax": example(layers.log_softmax(), layers.log_softmax),
        "dropout, train": example(layers.dropout(0.4), layers.dropout, ctx=train),
        "dropout, eval": example(layers.dropout(0.4), layers.dropout),
        "flatten": example(layers.flatten(), layers.flatten),
        "layer_norm": example(layers.layer_norm(), layers.layer_norm, layer_norm_forward, layer_norm_backward),
        "rms_norm": example(layers.rms_norm(), layers.rms_norm, rms_norm_forward, rms_norm_backward),
        "group_norm": example(
            layers.group_norm(2),
            *(layers.group_norm, group_norm_forward, group_norm_backward),
            shapes=((3, 4, 6), (1, 2, 3, 4)),
        ),
        "instance_norm": example(
            layers.instance_norm(),
            *(layers.instance_norm, instance_norm_forward, instance_norm_backward),
            shapes=((3, 4, 5), (1, 2, 3, 5)),
        ),
        "weight_norm": example(
            layers.weight_norm(dense(3)), layers.weight_norm, weight_norm_forward, weight_norm_backward
        ),
        "batch_norm, train": example(
            layers.batch_norm(), layers.batch_norm, batch_norm_forward, batch_norm_backward, ctx=train
        ),
        "batch_norm, train, masked": example(
            _masking_every_third(layers.batch_norm()), layers.batch_norm, shapes=((7, 5), (4, 2, 3, 5)), ctx=train
        ),
        "batch_norm, eval": example(layers.batch_norm(), layers.batch_norm),
        "gated_mlp": example(
            layers.gated_mlp(7, activation="gelu_tanh"), layers.gated_mlp, gated_mlp_forward, gated_mlp_backward
        ),
        "learned_positions": example(
            layers.learned_positions(6),
            *(layers.learned_positions, learned_positions_forward, learned_positions_backward),
            shapes=((2, 5, 6), (1, 2, 3, 6)),
        ),
        "sinusoidal_positions": example(
            layers.sinusoidal_positions(), layers.sinusoidal_positions, shapes=((2, 5, 6), (1, 2, 3, 6))
        ),
        "attention": example(
            layers.attention(2, 1, causal=True, rotary_base=100.0, use_bias=True),
            *(layers.attention, multi_head_forward, multi_head_backward, attention_forward, attention_backward),
            shapes=((2, 5, 8),),
            ctx=Ctx(mask=np.array([[False, True, True, False, True]])),  # the first query sees nothing
        ),
        "conv": example(
            layers.conv(3, (3, 2), stride=(2, 1), padding=((2, 0), (1, 3)), dilation=(1, 2)),
            *(layers.conv, conv_forward, conv_backward),
            shapes=((2, 7, 5, 2),),
        ),
        "conv, 1-D, groups": example(
            layers.conv(4, (3,), stride=2, groups=2, use_bias=False), layers.conv, shapes=((2, 6, 6),)
        ),
        "conv, depthwise": example(
            layers.conv(4, (3, 2), stride=2, dilation=(1, 3), groups=4), layers.conv, shapes=((2, 5, 6, 4),)
        ),
        "conv_transpose": example(
            layers.conv_transpose(4, (3, 2), stride=(2, 3), padding=((0, 1), (1, 0)), dilation=(2, 1), groups=2),
            *(layers.conv_transpose, conv_transpose_forward, conv_transpose_backward),
            shapes=((2, 4, 3, 6),),
        ),
        "max_pool": example(
            layers.max_pool((3, 2), stride=2, padding="same"),
            *(layers.max_pool, max_pool_forward, max_pool_backward),
            shapes=((2, 6, 5, 3),),
        ),
        "avg_pool": example(
            layers.avg_pool((3, 2), stride=(2, 1), padding=((1, 2), (0, 1))),
            *(layers.avg_pool, avg_pool_forward, avg_pool_backward),
            shapes=((2, 6, 5, 3),),
        ),
        "global_avg_pool": example(
            layers.global_avg_pool(),
            *(layers.global_avg_pool, global_avg_pool_forward, global_avg_pool_backward),
            shapes=((2, 5, 3), (1, 2, 3, 4)),
        ),
        "rnn": example(layers.rnn(4, last=True), layers.rnn, shapes=((2, 4, 3), (2, 1, 3))),
        "gru, in chunks": example(layers.gru(3, chunk=2), layers.gru, shapes=((2, 4, 3),), ctx=some_real),
        "lstm": example(layers.lstm(3), layers.lstm, shapes=((2, 4, 3),)),
        "reshape": example(
            layers.reshape((3, -1)), layers.reshape, reshape_forward, reshape_backward, shapes=((2, 3, 4), (2, 6))
        ),
        "transpose": example(
            layers.transpose((2, 3, 1)),
            *(layers.transpose, transpose_forward, transpose_backward),
            shapes=((2, 3, 4, 5),),
        ),
        "serial": example(combinators.serial(dense(4), act("tanh"), dense(3)), combinators.serial),
        "serial of nothing": example(combinators.serial(), combinators.serial),
        "residual": example(combinators.residual(block), combinators.residual, ctx=train),
        "concat": example(combinators.concat(dense(2), block, act("sigmoid")), combinators.concat, ctx=train),
        "add": example(combinators.add(dense(5), act("sigmoid"), block), combinators.add, ctx=train),
        "multiply": example(
            combinators.multiply(combinators.serial(dense(3), act("sigmoid")), dense(3), dense(3)), combinators.multiply
        ),
        "repeat": example(combinators.repeat(block, 3), combinators.repeat, ctx=train),
        "remat": example(combinators.remat(block), combinators.remat, ctx=train),
        "repeat of remat of residual": example(
            combinators.repeat(combinators.remat(combinators.residual(block)), 2), combinators.repeat, ctx=train
        ),
        "dense_stack, train": example(
            fused.dense_stack(2, activation="silu", dropout=0.25),
            *(fused.dense_stack, fused.dense_stack_forward, fused.dense_stack_backward),
            ctx=train,
        ),
        "dense_stack, relu, written out, train": example(
            fused.dense_stack(2, activation="relu", dropout=0.25, unroll=True),
            fused.dense_stack,
            shapes=((6, 5),),
            ctx=train,
        ),
        "dense_stack, relu, eval": example(
            fused.dense_stack(1, activation="relu", dropout=0.25), fused.dense_stack, shapes=((6, 5),)
        ),
        "cnn, train": example(
            models.cnn((3,), (4,), 2, activation="silu", dropout=0.25), models.cnn, shapes=((3, 5, 4, 2),), ctx=train
        ),
        "mlp, train": example(network, models.mlp, shapes=((6, 5), (3, 2, 4)), ctx=train),
        "mlp, eval": example(network, models.mlp, shapes=((6, 5), (1, 5))),
    }


def _masking_every_third(layer: Layer) -> Layer:
    """The layer with every third example as padding, whatever the batch size."""

    def forward(params, state, x, ctx, /):
        return layer.forward(params, state, x, dataclasses.replace(ctx, mask=np.arange(len(x)) % 3 != 1))

    return layer._replace(forward=forward)


def _layers():
    for name, example in layer_examples().items():
        yield layer_rule(name, example)
    ids = [np.array([[3, 1, 3, 0], [3, 0, 0, 1]]), np.array([2], np.uint8)]  # 3 and 0 repeatedly, 4 never
    public = (layers.embedding, embedding_forward, embedding_backward)
    yield layer_rule_at("embedding", layers.embedding(5, 3), public, ids, hard=ids, ctx=Ctx())
    gpt = models.gpt(5, 4, 1, 2, max_length=6)
    yield _reversible()
    yield layer_rule_at("gpt", gpt, (models.gpt, tied_forward, tied_backward), ids[:1], hard=ids[:1], ctx=Ctx())
    yield layer_rule_at("lstm model", models.lstm(5, 3, 1), (models.lstm,), ids[:1], hard=ids[:1], ctx=Ctx())
    yield layer_rule_at(
        "parallel",
        combinators.parallel(layers.dense(3), combinators.serial(layers.dense(2), activation("tanh"))),
        (combinators.parallel,),
        xs=[(numbers(71, 4, 2), numbers(72, 4, 3, 2)), numbers(73, 4, 5)],
        hard=[(np.full((4, 2), 1e4), np.full((1, 3), -1e4))],
        ctx=Ctx(),
    )
    yield layer_rule_at(
        "attention, cross, train",
        layers.attention(2, 1, dropout=0.4),
        (layers.attention,),
        xs=[(numbers(60, 2, 5, 6), numbers(61, 2, 3, 7))],
        hard=[(np.full((2, 5, 6), 1e4), np.full((2, 3, 7), -1e4)), (numbers(62, 1, 1, 6), numbers(63, 1, 3, 7))],
        ctx=Ctx(train=True, key=_key(7), mask=np.array([[True, False, True]])),
    )


def _reversible() -> Rule:
    """Proven through the forward in floating point: what is rounded to integers has no derivative."""
    n, block = 2, combinators.serial(layers.dense(3), activation("tanh"))

    def floating(inputs, given):
        state, ctx = given
        x1, x2 = jnp.split(inputs["x"], 2, -1)
        for i in range(n):
            p = jax.tree.map(lambda leaf, i=i: leaf[i], inputs["params"])
            x1 = x1 + block.forward(p["f"], state["f"], x2, ctx)[0]
            x2 = x2 + block.forward(p["g"], state["g"], x1, ctx)[0]
        return jnp.concatenate([x1, x2], -1)

    rule = layer_rule_at(
        "reversible",
        fused.reversible(block, block, n),
        (fused.reversible,),
        xs=[numbers(99, 4, 6), numbers(98, 1, 2, 3, 6)],
        hard=[np.full((4, 6), value) for value in (0.0, 1e3, -1e3)],
        ctx=Ctx(),
    )
    return rule._replace(forward=floating, float32=2e-5)  # the integers are multiples of 2^-20
