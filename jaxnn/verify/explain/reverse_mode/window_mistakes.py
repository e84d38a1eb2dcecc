"""The mistakes in the rules of convolution and pooling."""

import math

import numpy as np

from jaxnn.verify.explain.reverse_mode.primitive_rules import forward
from jaxnn.verify.explain.reverse_mode.sites import MISSING, OTHER, SIMPLE, SLIP, Way, equal_axes, others, say, shifted
from jaxnn.verify.explain.reverse_mode.window_primitives import Convolution, Pooling


def of_conv(graph, node, k, xs, y):
    """conv_general_dilated: dx is the convolution of dy with the flipped kernel, dw that of x with dy."""
    p = node.params
    if p["batch_group_count"] > 1:
        return
    numbers = p["dimension_numbers"]
    own, other = (numbers.lhs_spec, numbers.rhs_spec) if k == 0 else (numbers.rhs_spec, numbers.lhs_spec)

    def right(dy, value=xs[1 - k], p=p):
        conv = Convolution(p, xs[0].shape, xs[1].shape)
        return conv.of_x(dy, value) if k == 0 else conv.of_w(dy, value)

    def with_other(name, rank, kind, value, *words):
        return Way(name, rank, kind, lambda dy: right(dy, value), say(*words))

    flipped = np.flip(xs[1 - k], other[2:])
    if k == 0:
        yield with_other("kernel flipped", SIMPLE, "flip", flipped, "kernel_flip")
        for a, b in equal_axes(xs[1].shape):
            channels = {a, b} == set(other[:2])
            turned, both = np.swapaxes(xs[1], a, b), np.swapaxes(flipped, a, b)
            yield with_other(f"kernel transposed {a}{b}", SIMPLE, "transposed", turned, "kernel_transposed", channels)
            yield with_other(f"kernel both {a}{b}", SLIP, "flip", both, "kernel_transposed", channels, True)
    else:
        yield Way("result flipped", SIMPLE, "flip", lambda dy: np.flip(right(dy), own[2:]), say("kernel_flip"))
        said = "the gradient of the kernel is taken with the input flipped"
        yield with_other("input flipped", SLIP, "flip", flipped, "conv", said)
    for a, b in equal_axes(xs[k].shape):
        wrong = lambda dy, a=a, b=b: np.swapaxes(right(dy), a, b)  # noqa: E731
        yield Way(f"result transposed {a}{b}", SIMPLE, "transposed", wrong, say("result_transposed"))
    for role, u in others(graph, node, node.ins[1 - k]):
        yield with_other(f"operand is {role}", OTHER, "operand", graph.values[u], "other_operand", 1 - k, u)
    for axis in own[2:]:
        for step in (1, -1):
            said = (
                f"the gradient of its {'input' if k == 0 else 'kernel'} is shifted by one along axis {axis}: the "
                f"padding is off by one in the backward pass"
            )
            wrong = lambda dy, axis=axis, step=step: shifted(right(dy), axis, step)  # noqa: E731
            yield Way(f"shifted {axis} {step}", SLIP, "flip", wrong, say("conv", said))
    yield from _padded_otherwise(p, own, right)
    for field, words in (("window_strides", "stride"), ("rhs_dilation", "dilation of the kernel")):
        yield from _without(node, xs, y, right, field, words)


def _padded_otherwise(p, own, right):
    """The padding of the forward on other sides."""
    sides = {
        "all at the end": tuple((0, low + high) for low, high in p["padding"]),
        "all at the start": tuple((low + high, 0) for low, high in p["padding"]),
        "with its two sides exchanged": tuple((high, low) for low, high in p["padding"]),
    }
    for words, padding in sides.items():
        if padding != tuple(p["padding"]):
            said = f"the padding {tuple(p['padding'])} of the convolution is put {words} in the backward pass"
            wrong = lambda dy, padding=padding: right(dy, p=p | {"padding": padding})  # noqa: E731
            yield Way(f"padding {words}", SIMPLE, "flip", wrong, say("conv", said))


def _without(node, xs, y, right, field, words):
    """The stride or the dilation forgotten: the first entries of dy are taken for neighbours, or dy is repeated."""
    p = node.params
    lost = p | {field: (1,) * len(p[field])}
    full = forward(node.name, lost, xs, None)[0].shape
    if lost[field] == tuple(p[field]) or any(n < m for n, m in zip(full, y.shape, strict=True)):
        return

    def apply(dy):
        wide = np.zeros(full)
        wide[tuple(map(slice, dy.shape))] = dy
        return right(wide, p=lost)

    def repeat(dy):
        for axis, step in zip(p["dimension_numbers"].out_spec[2:], p["window_strides"], strict=True):
            dy = dy.repeat(step, axis)
        kept = dy[tuple(map(slice, full))]
        wide = np.zeros(full)
        wide[tuple(map(slice, kept.shape))] = kept
        return right(wide, p=lost)

    if field == "window_strides":
        said = f"dy is repeated for the stride {tuple(p[field])} of the convolution: put zeros between its entries"
        yield Way("repeated", SIMPLE, "flip", repeat, say("conv", said))
    said = f"the {words} {tuple(p[field])} of the convolution is lost in the backward pass: step through x by it"
    yield Way(f"{field} lost", SIMPLE, "flip", apply, say("conv", said))


def of_pooling(graph, node, k, xs, y):
    """reduce_window: in max pooling the largest entry of a window gets its dy, in sum pooling every entry does."""
    pool = Pooling(node.params, xs[0].shape)
    count = math.prod(node.params["window_dimensions"])
    if node.name != "reduce_window_sum":
        average = ", divided by their number, as in average pooling"
        yield Way("mask missing", MISSING, "mask", pool.of_sum, say("max_to_all", ""))
        yield Way("mean", SIMPLE, "mask", lambda dy: pool.of_sum(dy) / count, say("max_to_all", average))
        yield Way("ties", SLIP, "mask", lambda dy: pool.of_ties(dy, xs[0], y), say("ties"))
    yield Way("to the first", SLIP, "mask", pool.of_corner, say("max_to", "first"))
