"""The mistakes in the rules of sums, broadcasts and matrix products."""

import functools
import itertools
import math

import numpy as np

from jaxnn.verify.explain.reverse_mode.primitive_rules import broadcast_axes, dot_axes
from jaxnn.verify.explain.reverse_mode.sites import MISSING, OTHER, SIMPLE, SLIP, Way, along, equal_axes, others, say
from jaxnn.verify.explain.reverse_mode.window_primitives import contract

ENDS = ((0, "first"), (-1, "last"))
MOST_TURNED = 8


def of_broadcast(graph, node, k, xs, y):
    """broadcast_in_dim: dy is summed over the axes along which x was copied."""
    p, shape = node.params, xs[0].shape
    sizes = p["shape"]
    copied = broadcast_axes(p, shape)
    axes = tuple(axis for axis in copied if sizes[axis] > 1)
    if not axes:
        return

    def summed(dy):
        return dy.sum(copied).reshape(shape)

    def way(name, rank, apply, *words):
        return Way(name, rank, "reduction", apply, say(*words))

    for some in {axes, *((axis,) for axis in axes)}:
        n = math.prod(sizes[axis] for axis in some)
        yield way(f"mean of {some}", SIMPLE, lambda dy, n=n: summed(dy) / n, "sum_of", "averaged over", some, "sum it")
    for some in {axes, axes[1:], *((axis,) for axis in axes)} - {()}:
        for end, which in ENDS:
            at = functools.reduce(lambda d, axis, end=end: along(d, axis, end), some, np.ones(y.shape))
            rank = SIMPLE if len(some) == 1 else SLIP
            yield way(f"only {which} of {some}", rank, lambda dy, at=at: summed(dy * at), "only", which, some)
    if math.prod(shape) > 1:
        did = "summed over all axes instead of"
        yield way("sum of all", SIMPLE, lambda dy: np.full(shape, dy.sum()), "sum_of", did, axes, "keep the others")
        did = "averaged over all axes instead of summed over"
        yield way("mean of all", SLIP, lambda dy: np.full(shape, dy.mean()), "sum_of", did, axes, "sum it over these")
    for a in axes:
        for b in range(len(sizes)):
            if b not in copied and sizes[a] == sizes[b]:
                wrong = lambda dy, a=a, b=b: summed(np.swapaxes(dy, a, b))  # noqa: E731
                did = f"summed over axis {b} instead of"
                yield way(f"sum of {b}", SIMPLE, wrong, "sum_of", did, (a,), "sum over it")


def of_reduction(graph, node, k, xs, y):
    """reduce_sum: its dy goes to every summand."""
    axes, shape = node.params["axes"], xs[0].shape
    long = [axis for axis in axes if shape[axis] > 1]

    def spread(dy):
        return np.broadcast_to(np.expand_dims(dy, axes), shape)

    def way(name, apply, *words):
        return Way(name, SIMPLE, "broadcast", apply, say(*words))

    for end, which in ENDS:
        for axis in long:
            one = along(np.ones(shape), axis, end)
            yield way(f"only {which} of {axis}", lambda dy, at=one: spread(dy) * at, "only_summand", which, axis)
    if len(long) > 1:
        first = functools.reduce(lambda d, axis: along(d, axis, 0), long, np.ones(shape))
        yield way("only the very first", lambda dy: spread(dy) * first, "only_summand", "first", *long)
    for a in long:
        for b in range(len(shape)):
            if b not in axes and shape[b] == shape[a]:
                yield way(f"over {b}", lambda dy, a=a, b=b: np.swapaxes(spread(dy), a, b), "spread_over", b, a)


def of_extreme(graph, node, k, xs, y):
    """reduce_max: only the largest entry gets dy."""
    axes, x = node.params["axes"], xs[0]
    count = math.prod(x.shape[axis] for axis in axes)
    if count < 2:
        return

    def spread(dy):
        return np.broadcast_to(np.expand_dims(dy, axes), x.shape)

    yield Way("mask missing", MISSING, "mask", spread, say("max_to_all", ""))
    yield Way("mean", SIMPLE, "mask", lambda dy: spread(dy) / count, say("max_to_all", ", divided by their number"))
    for end, which in ENDS:
        one = functools.reduce(lambda d, axis, end=end: along(d, axis, end), axes, np.ones(x.shape))
        yield Way(f"to the {which}", SLIP, "mask", lambda dy, at=one: spread(dy) * at, say("max_to", which))
    chosen = x == np.expand_dims(y, axes)
    yield Way("mask inverted", SLIP, "mask", lambda dy: spread(dy) * ~chosen, say("mask_inverted"))
    rest = tuple(axis for axis in range(x.ndim) if axis not in axes)
    if rest:
        extreme = x.max if node.name == "reduce_max" else x.min
        other = x == extreme(rest, keepdims=True)
        yield Way("other axis", SLIP, "mask", lambda dy: spread(dy) * other, say("max_axis"))


def of_dot(graph, node, k, xs, y):
    """dot_general: dy times the other operand, summed over the axes that this operand does not have."""
    left, right, out = dot_axes(node.params, xs[0].ndim, xs[1].ndim)
    mine, axes, other, j = (left, right, xs[1], 1) if k == 0 else (right, left, xs[0], 0)

    def pull(dy, other=other):
        return contract(dy, out, other, axes, mine)

    def with_other(name, rank, kind, value, *words):
        return Way(name, rank, kind, lambda dy: pull(dy, value), say(*words))

    for a, b in equal_axes(other.shape):
        swapped = np.swapaxes(other, a, b)
        if not np.array_equal(swapped, other):
            yield with_other(f"transposed {a}{b}", SIMPLE, "transposed", swapped, "operand_transposed", j)
    for a, b in equal_axes(y.shape):
        wrong = lambda dy, a=a, b=b: pull(np.swapaxes(dy, a, b))  # noqa: E731
        yield Way(f"dy transposed {a}{b}", SLIP, "transposed", wrong, say("gradient_transposed"))
    for a, b in equal_axes(xs[k].shape):
        wrong = lambda dy, a=a, b=b: np.swapaxes(pull(dy), a, b)  # noqa: E731
        yield Way(f"result transposed {a}{b}", SIMPLE, "transposed", wrong, say("result_transposed"))
    if y.shape == xs[k].shape:
        yield Way("product missing", SIMPLE, "factor", lambda dy: dy, say("product_missing", j))
    for axis, name in enumerate(axes):
        if name not in mine and other.shape[axis] > 1:
            for end, which in ENDS:
                part = along(other, axis, end)
                yield with_other(f"only {which} of {axis}", SLIP, "reduction", part, "product_of_one", which, axis, j)
    for role, u in others(graph, node, node.ins[j]):
        yield with_other(f"operand is {role}", OTHER, "operand", graph.values[u], "other_operand", j, u)
    yield from _in_another_layout(graph, node, with_other, j)


def _in_another_layout(graph, node, with_other, j):
    """The other operand's axes in another order before a reshape, and other values that fit when transposed."""
    v = node.ins[j]
    shape, producer = graph.values[v].shape, graph.producer.get(v)
    if producer is not None and producer.name == "reshape":
        z = graph.values[producer.ins[0]]
        long = [axis for axis, n in enumerate(z.shape) if n > 1]
        for a, b in itertools.combinations(long, 2):
            value = z.swapaxes(a, b).reshape(shape)
            yield with_other(f"axes {a}{b}", SLIP, "order", value, "operand_order", j, a, b)
    if len(shape) >= 2 and shape[-1] != shape[-2]:
        turned = (*shape[:-2], shape[-1], shape[-2])
        fitting = [u for u in graph.by_shape.get(turned, ()) if u not in (graph.producer[v].ins if producer else ())]
        for u in sorted(fitting, key=lambda u: abs(u - node.outs[0]))[:MOST_TURNED]:
            value = graph.values[u].swapaxes(-1, -2)
            yield with_other(f"operand is turned {graph.role(u, node)}", OTHER, "operand", value, "other_operand", j, u)
