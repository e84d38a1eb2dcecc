"""The mistakes in the rules of operations that move entries around."""

import itertools
import math

import numpy as np

from jaxnn.verify.explain.reverse_mode import window_primitives
from jaxnn.verify.explain.reverse_mode.primitive_rules import cumsum, is_integer, order, positions, vjp
from jaxnn.verify.explain.reverse_mode.sites import MISSING, SIMPLE, SLIP, Way, say, shifted


def of_copy(graph, node, k, xs, y):
    """gather, dynamic_slice: entries are copied, some of them several times."""
    shape = xs[0].shape
    at = positions(node.name, node.params, xs)
    there = at >= 0
    ids = at[there]
    counts = np.bincount(ids, minlength=math.prod(shape)).reshape(shape)

    def add(dy):
        return window_primitives.add_back(at, dy, shape)

    def overwrite(dy, step=1):
        dx = np.zeros(shape)
        dx.reshape(-1)[ids[::step]] = dy[there][::step]
        return dx

    if counts.max(initial=0) > 1:
        yield Way("set", SIMPLE, "scatter", overwrite, say("overwritten", "last"))
        yield Way("set first", SLIP, "scatter", lambda dy: overwrite(dy, -1), say("overwritten", "first"))
        average = lambda dy: add(dy) / np.maximum(counts, 1)  # noqa: E731
        yield Way("averaged", SIMPLE, "scatter", average, say("averaged_duplicates"))
    for axis, step in itertools.product(range(len(shape)), (1, -1)):
        wrong = lambda dy, axis=axis, step=step: shifted(add(dy), axis, step)  # noqa: E731
        yield Way(f"shifted {axis} {step}", SLIP, "scatter", wrong, say("shifted_ids", axis))
    if node.name == "gather" and node.params["fill_value"] is None:
        yield from _of_other_indices(graph, node, xs)
    if y.shape == shape:
        yield Way("not moved", SLIP, "order", lambda dy: dy, say("not_moved"))
        yield Way("again", SIMPLE, "order", lambda dy: window_primitives.copy_from(dy, at, 0.0), say("applied_again"))


def _of_other_indices(graph, node, xs):
    """Another array of integers among the arguments in place of one column of the indices."""
    x, indices = xs
    for v in graph.given:
        ids = graph.values[v]
        if not is_integer(ids) or ids.size * indices.shape[-1] != indices.size:
            continue
        for column in range(indices.shape[-1]):
            other = indices.copy()
            other[..., column] = ids.reshape(indices.shape[:-1])
            if not np.array_equal(other, indices):
                at = positions("gather", node.params, (x, other))
                wrong = lambda dy, at=at: window_primitives.add_back(at, dy, x.shape)  # noqa: E731
                says = say("other_rows", column, graph.paths[v])
                yield Way(f"rows {v} {column}", SIMPLE, "scatter", wrong, says)


def of_scatter(graph, node, k, xs, y):
    """scatter: what is overwritten gets no gradient."""
    if k == 0:
        yield Way("not cleared", MISSING, "scatter", lambda dy: dy, say("not_cleared"))


def of_slice(graph, node, k, xs, y):
    """slice, row: dy goes where the slice was taken."""

    def right(dy):
        return vjp(node, 0, dy, xs, y)

    begin = node.params["start_indices"] if node.name == "slice" else [node.params["t"]]
    if node.name == "row":
        yield Way("reversed", SIMPLE, "time", lambda dy: np.flip(right(dy), 0), say("time_reversed"))
    for axis, start in enumerate(begin):
        for step in (1, -1):
            wrong = lambda dy, axis=axis, step=step: shifted(right(dy), axis, step)  # noqa: E731
            yield Way(f"shifted {axis} {step}", SLIP, "order", wrong, say("slice_shifted", axis))
        if start:
            wrong = lambda dy, axis=axis, start=start: np.roll(right(dy), -start, axis)  # noqa: E731
            yield Way(f"at the start of {axis}", SIMPLE, "order", wrong, say("slice_at_start", axis))


def of_pad(graph, node, k, xs, y):
    """pad: the padding is cut off again."""
    if k:
        return
    shape = xs[0].shape
    for axis, step in itertools.product(range(len(shape)), (1, -1)):
        wrong = lambda dy, axis=axis, step=step: vjp(node, 0, np.roll(dy, step, axis), xs, y)  # noqa: E731
        yield Way(f"shifted {axis} {step}", SLIP, "order", wrong, say("slice_shifted", axis))
    if all(n <= m for n, m in zip(shape, y.shape, strict=True)):
        at_start = tuple(map(slice, shape))
        yield Way("from the start", SIMPLE, "order", lambda dy: dy[at_start], say("padding_kept"))


def of_transpose(graph, node, k, xs, y):
    """transpose: the inverse permutation."""
    permutation, shape = node.params["permutation"], xs[0].shape
    yield Way("reshaped", SIMPLE, "order", lambda dy: dy.reshape(shape), say("reshaped_instead"))
    if tuple(y.shape[i] for i in permutation) == shape and tuple(permutation) != tuple(np.argsort(permutation)):
        yield Way("again", SIMPLE, "order", lambda dy: dy.transpose(permutation), say("applied_again"))


def of_reshape(graph, node, k, xs, y):
    """reshape: back, with the axes in the forward's order."""
    shape = xs[0].shape

    def way(name, apply):
        return Way(name, SLIP, "order", apply, say("order_of_reshape"))

    if len(shape) < 2 and y.ndim < 2:
        return
    yield way("column by column", lambda dy: dy.reshape(shape, order="F"))
    for i, j in itertools.combinations([axis for axis, n in enumerate(y.shape) if n > 1], 2):
        yield way(f"axes {i}{j} of dy", lambda dy, i=i, j=j: dy.swapaxes(i, j).reshape(shape))
    for i, j in itertools.combinations([axis for axis, n in enumerate(shape) if n > 1], 2):
        turned = list(shape)
        turned[i], turned[j] = turned[j], turned[i]
        yield way(f"axes {i}{j}", lambda dy, i=i, j=j, turned=turned: dy.reshape(turned).swapaxes(i, j))
    if len(shape) > 2:  # channels first taken for channels last, and the other way round
        first, last = (shape[0], shape[-1], *shape[1:-1]), (shape[0], *shape[2:], shape[1])
        yield way("channels first", lambda dy: np.moveaxis(dy.reshape(first), 1, -1))
        yield way("channels last", lambda dy: np.moveaxis(dy.reshape(last), -1, 1))


def of_reverse(graph, node, k, xs, y):
    """rev: reversed again."""
    yield Way("not reversed", MISSING, "order", lambda dy: dy, say("not_reversed"))


def of_cumsum(graph, node, k, xs, y):
    """cumsum: the cumsum from the other end."""
    p = node.params
    turned = p | {"reverse": not p["reverse"]}
    yield Way("not reversed", SIMPLE, "order", lambda dy: cumsum(p, dy), say("cumsum_unreversed"))
    yield Way("lost", MISSING, "order", lambda dy: dy, say("cumsum_lost"))
    yield Way("exclusive", SLIP, "order", lambda dy: cumsum(turned, dy) - dy, say("cumsum_exclusive"))


def of_sort(graph, node, k, xs, y):
    """sort: the inverse permutation."""
    if node.params["num_keys"] > 1:
        return
    axis, at = node.params["dimension"], order(node.params, xs[0])

    def mine(dy):
        return dy[k] if len(node.outs) > 1 else dy

    yield Way("again", SIMPLE, "order", lambda dy: np.take_along_axis(mine(dy), at, axis), say("applied_again"))
    yield Way("not moved", SIMPLE, "order", mine, say("not_moved"))


def of_parts(graph, node, k, xs, y):
    """concatenate, stack: each part gets its own."""
    for other, x in enumerate(xs):
        near = len(xs) <= 4 or abs(other - k) == 1 or other + k == len(xs) - 1
        if other != k and near and x.shape == xs[k].shape:
            wrong = lambda dy, other=other: vjp(node, other, dy, xs, y)  # noqa: E731
            yield Way(f"part {other - k}", SLIP, "order", wrong, say("part_of_another", other))


def of_split(graph, node, k, xs, y):
    """split: the parts in the forward's order."""
    shapes = [graph.values[v].shape for v in node.outs]
    for i, j in itertools.combinations(range(len(shapes)), 2):
        if shapes[i] == shapes[j]:

            def wrong(dy, i=i, j=j):
                parts = [np.zeros(shape) if d is None else d for d, shape in zip(dy, shapes, strict=True)]
                parts[i], parts[j] = parts[j], parts[i]
                return vjp(node, 0, parts, xs, y)

            yield Way(f"parts {i}{j}", SIMPLE, "order", wrong, say("parts_swapped", i, j))
