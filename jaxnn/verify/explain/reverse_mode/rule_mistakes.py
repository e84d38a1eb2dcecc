"""Every way in which a reverse-mode rule goes wrong, node by node; the right rules are in primitive_rules.py."""

import functools
from collections.abc import Callable, Iterator

import numpy as np

from jaxnn.verify.explain.reverse_mode import elementwise_mistakes, indexing_mistakes, product_mistakes, window_mistakes
from jaxnn.verify.explain.reverse_mode.flat_graph import Graph, contribution
from jaxnn.verify.explain.reverse_mode.primitive_rules import DERIVATIVE, HELD, Node
from jaxnn.verify.explain.reverse_mode.sites import MISSING, OTHER, Site, Way, say


def sites(graph: Graph) -> Iterator[Site]:
    """Every operand of every node, those nearest the loss first."""
    for node in reversed(graph.nodes):
        for k, v in enumerate(node.ins):
            if v in graph.active and any(u in graph.active for u in node.outs):
                right = functools.partial(contribution, graph, node, k)
                yield Site(node, k, v, right, [*ways(graph, node, k), *_too_early(graph, node, k)])


def _too_early(graph, node, k):
    """The gradient of a value further downstream is used: what lies between is skipped, for this operand only."""
    if len(node.outs) > 1 or node.ins[k] not in graph.active:
        return
    shape = graph.values[node.outs[0]].shape
    ways_on: list[tuple[int, list[Node]]] = [(node.outs[0], [])]
    for v, between in ways_on:
        for user, _ in graph.uses.get(v, ()):
            w = user.outs[0]
            longer = [*between, user]
            same = len(user.outs) == 1 and w in graph.active and graph.values[w].shape == shape and shape
            if same and len(ways_on) < 8 and all(w != seen for seen, _ in ways_on) and user.name not in _MOVES:
                ways_on.append((w, longer))
    for w, between in ways_on[1:]:
        if any(user.name not in _UNCHANGED for user in between):
            wrong = functools.partial(contribution, graph, node, k)
            yield Way(f"gradient of {graph.role(w, node)}", OTHER, "derivative", wrong, say("too_early", w, between), w)


_MOVES = {"transpose", "reshape", "rev", "sort", "dot_general", "conv_general_dilated", "gather"}
_UNCHANGED = {"add", "sub", "add_any", "carry", "copy", "convert_element_type", "broadcast_in_dim", "squeeze"}


def ways(graph: Graph, node: Node, k: int) -> Iterator[Way]:
    """The ways to break the rule of a node for its operand k."""
    xs = [graph.values[v] for v in node.ins]
    y = graph.values[node.outs[0]]
    yield Way("missing", MISSING, "path", lambda dy: np.zeros(xs[k].shape), say("missing"))
    if node.name in DERIVATIVE:
        yield from elementwise_mistakes.of_function(graph, node, xs[0], y)
    elif node.name in HELD:
        yield Way("flows", MISSING, "stop_gradient", lambda dy: dy, say("flows"))
    elif node.name in BY_NAME:
        yield from BY_NAME[node.name](graph, node, k, xs, y)


BY_NAME: dict[str, Callable[..., Iterator[Way]]] = {
    "mul": elementwise_mistakes.of_product,
    "div": elementwise_mistakes.of_quotient,
    "pow": elementwise_mistakes.of_power,
    "max": elementwise_mistakes.of_maximum,
    "min": elementwise_mistakes.of_maximum,
    "select_n": elementwise_mistakes.of_select,
    "clamp": elementwise_mistakes.of_clamp,
    "broadcast_in_dim": product_mistakes.of_broadcast,
    "reduce_sum": product_mistakes.of_reduction,
    "reduce_max": product_mistakes.of_extreme,
    "reduce_min": product_mistakes.of_extreme,
    "dot_general": product_mistakes.of_dot,
    "conv_general_dilated": window_mistakes.of_conv,
    "reduce_window_sum": window_mistakes.of_pooling,
    "reduce_window_max": window_mistakes.of_pooling,
    "reduce_window_min": window_mistakes.of_pooling,
    "gather": indexing_mistakes.of_copy,
    "dynamic_slice": indexing_mistakes.of_copy,
    "scatter": indexing_mistakes.of_scatter,
    "slice": indexing_mistakes.of_slice,
    "row": indexing_mistakes.of_slice,
    "pad": indexing_mistakes.of_pad,
    "transpose": indexing_mistakes.of_transpose,
    "reshape": indexing_mistakes.of_reshape,
    "rev": indexing_mistakes.of_reverse,
    "cumsum": indexing_mistakes.of_cumsum,
    "sort": indexing_mistakes.of_sort,
    "split": indexing_mistakes.of_split,
    "concatenate": indexing_mistakes.of_parts,
    "stack": indexing_mistakes.of_parts,
}
