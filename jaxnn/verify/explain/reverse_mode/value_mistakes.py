"""What goes wrong with the gradient of a whole value: an output's dy, one of several uses, an extra factor."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from jaxnn.verify.explain.reverse_mode.broken_edges import Break, Change, without
from jaxnn.verify.explain.reverse_mode.flat_graph import Graph
from jaxnn.verify.explain.reverse_mode.mistake_words import Words
from jaxnn.verify.explain.reverse_mode.sites import MISSING, SIMPLE, SLIP

MOST_FACTORS = 16
MOST_USES = 12
BOUNDS = (0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0)  # at which gradients are clipped
_MOVES = {"broadcast_in_dim", "reshape", "squeeze", "transpose", "carry", "row", "slice", "expand_dims"}
_SAME = {"neg", "convert_element_type", "copy", "stop_gradient"}


def of_values(graph: Graph, dy: Sequence) -> Iterator[Break]:
    """An output's dy ignored; a value's gradient without some of its uses, or with a factor missing or added."""
    for i, v in enumerate(graph.outputs):
        dy_i = np.asarray(dy[i], np.float64)
        if v in graph.active and (dy_i.size > 1 or len(graph.outputs) > 1):
            name = f"output {i}" if len(graph.outputs) > 1 else "the output"
            text = f"the incoming gradient dy of {name} is ignored, as if it were 1 everywhere: multiply by dy"
            ones = Change(v, lambda g, d=dy_i: np.ones(d.shape) - d, ())
            yield Break(MISSING, "factor", (ones,), lambda t=text: t)
            text = f"the gradient that comes in through {name} is left out: add up those of all outputs"
            yield Break(MISSING, "path", (Change(v, lambda g, d=dy_i: -d, ()),), lambda t=text: t, None, True)
    for v in graph.uses:
        yield from _uses(graph, v)
    for v in sorted(graph.active & {*graph.inputs, *graph.producer}, reverse=True):
        yield from _wholes(graph, v)
        yield from _factors(graph, v)


def _uses(graph, v):
    edges = [(node, k) for node, k in graph.uses[v] if any(u in graph.active for u in node.outs)]
    if v not in graph.active or not 1 < len(edges) <= MOST_USES:
        return
    words = Words(graph, *edges[0])
    text = f"the whole gradient of {words.value(v)} is missing: all of its {len(edges)} uses"
    yield Break(MISSING + 0.5, "path", without(graph, edges), lambda t=text: t, edges[0][0], True)
    in_time = any(graph.turn[node].in_time for node, _ in edges) and v in graph.inputs
    if len(edges) > 2 and not in_time:
        for edge in edges:
            others = [e for e in edges if e != edge]
            yield Break(SIMPLE, "path", without(graph, others), _only_words(graph, v, edge, others), edge[0])


def _only_words(graph, v, edge, others):
    words = Words(graph, *edge)
    tied = "the tied weight " if v in graph.paths and graph.values[v].ndim > 1 else ""

    def says():
        missing = list(dict.fromkeys(Words(graph, *e).use() for e in others))
        return (
            f"only one use of {tied}{words.value(v)}, {words.use()}, reaches its gradient; missing: the path through "
            f"{', '.join(missing[:4])}. The gradient is the sum over all {len(others) + 1} uses"
        )

    return says


def _wholes(graph, v):
    """The gradient of a value ignored, only one example of it used, or averaged over an axis."""
    shape, node = graph.values[v].shape, graph.producer.get(v)
    if node is None or math.prod(shape) < 2 or node.name in _SAME or node.name in _MOVES:
        return
    name = Words(graph, node, 0).value(v)
    texts = {"ones": f"the gradient of {name} that comes from downstream is ignored, as if it were 1: multiply by it"}
    wrong: dict[str, Callable[[np.ndarray], np.ndarray]] = {"ones": np.ones_like}
    for axis, n in enumerate(shape):
        if n > 1:
            for index, which in ((0, "first"), (n - 1, "last")):
                one = np.zeros(n)
                one[index] = 1
                one = one.reshape([-1 if i == axis else 1 for i in range(len(shape))])
                key = f"{which} {axis}"
                wrong[key] = lambda g, one=one: g * one
                example = " (one example of the batch)" if axis == 0 else ""
                entry = f"only the {which} of the {n} entries along axis {axis}{example}"
                texts[key] = f"{entry} of the gradient of {name} is used"
            wrong[f"mean {axis}"] = lambda g, axis=axis: g.mean(axis, keepdims=True) + 0 * g
            texts[f"mean {axis}"] = f"the gradient of {name} is averaged over axis {axis}: keep every entry"
            wrong[f"sum {axis}"] = lambda g, axis=axis: g.sum(axis, keepdims=True) + 0 * g
            texts[f"sum {axis}"] = f"the gradient of {name} is summed over axis {axis}: keep every entry"
    for bound in BOUNDS:
        key = f"clipped {bound}"
        wrong[key] = lambda g, bound=bound: np.clip(g, -bound, bound)
        texts[key] = f"the gradient of {name} is clipped to [-{bound:g}, {bound:g}]: the derivative has no such bound"
    for key, f in wrong.items():
        change = Change(v, lambda g, f=f: f(g[v]) - g[v] if v in g else np.zeros(shape), (v,))
        kind = "factor" if key == "ones" else "clip" if key.startswith("clipped") else "reduction"
        yield Break(SLIP, kind, (change,), lambda key=key: texts[key], node)


def passed(graph: Graph, v: int) -> Iterator[Break]:
    """The gradient of a value of v's shape further downstream in its place: what lies between them is left out."""
    x = graph.values[v]
    if x.size < 2 or v not in graph.uses:
        return
    later = [u for u in graph.by_shape.get(x.shape, ()) if u != v and u in graph.active and graph.reaches(v, u)]
    for u in later[:MOST_FACTORS]:
        producer = graph.producer[u]
        if producer.name in _SAME or producer.name in _MOVES:
            continue
        words = Words(graph, producer, 0)

        def says(words=words, u=u):
            between = f"the derivative of what lies between them, in {words.line()}, is missing"
            return f"the gradient of {words.value(v)} is that of {words.value(u)}, passed on unchanged: {between}"

        change = Change(v, lambda g, u=u: (g[u] if u in g else 0 * x) - g.get(v, 0 * x), (u, v))
        yield Break(SLIP + 1, "path", (change,), says, producer)


def _factors(graph, v):
    shape, producer, uses = graph.values[v].shape, graph.producer.get(v), graph.uses.get(v, ())
    if producer is not None and len(uses) < 2:
        return
    fitting = [u for other, found in graph.by_shape.items() if _fits(other, shape) for u in found]
    fitting.sort(key=lambda u: abs(u - v))
    for u in fitting[:MOST_FACTORS]:
        w = graph.values[u]
        words = Words(graph, *uses[0])
        for factor, did in ((w, "multiplied"), (1 / w, "divided")):

            def says(words=words, did=did, u=u):
                return f"the whole gradient of {words.value(v)} is {did} by {words.factor(u)} once too often"

            change = Change(v, lambda g, f=factor: g[v] * (f - 1) if v in g else np.zeros(shape), (v,))
            yield Break(SLIP + 1, "factor", (change,), says, graph.producer.get(u) or uses[0][0])


def _fits(shape, whole):
    """Whether an array is a factor for one of the shape `whole`: rows, or broadcast along axes of length 1."""
    if len(shape) != len(whole) and not (len(shape) == 1 and len(whole) > 1):
        return False
    return all(n in (1, m) for n, m in zip(shape[::-1], whole[::-1], strict=False))
