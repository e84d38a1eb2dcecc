"""What goes wrong in loops: a path back in time that is cut, steps that are not added up."""

from collections.abc import Iterator

import numpy as np

from jaxnn.verify.explain.reverse_mode.broken_edges import Break, Change, Edge, given, without
from jaxnn.verify.explain.reverse_mode.flat_graph import Graph, pull_back
from jaxnn.verify.explain.reverse_mode.mistake_words import Words
from jaxnn.verify.explain.reverse_mode.sites import MISSING, SIMPLE

MOST_TURNS = 32
MOST_STEPS = 4  # of truncated backpropagation through time


def in_loops(graph: Graph) -> Iterator[Break]:
    """What goes wrong with time: a path back in time that is cut, steps that are not added up."""
    back: dict[int, list[Edge]] = {}
    shared: dict[tuple[int, int], list[Edge]] = {}
    for node in graph.nodes:
        for k, v in enumerate(node.ins):
            if v in graph.active and graph.recurrent(node, k):
                back.setdefault(graph.turn[graph.producer[v]].operation, []).append((node, k))
            if v in graph.inputs and graph.turn[node].in_time:
                shared.setdefault((v, graph.turn[node].operation), []).append((node, k))
    arrays = [edges for edges in back.values() if np.ndim(graph.values[_operand(edges[0])])]  # no sums of losses
    yield from _truncated(graph, [edge for edges in arrays for edge in edges])
    if len(arrays) > 1:
        for edges in arrays:
            yield from _truncated(graph, edges)
    for edges in back.values():
        node, k = edges[-1]
        yield from _cut(graph, edges, f"the hidden state (the carry) {Words(graph, node, k).value(node.ins[k])}")
    if len(back) > 1:
        yield from _cut(graph, [e for edges in back.values() for e in edges], "all hidden states (the carries)")
    weights = [edges for edges in shared.values() if len(edges) > 1]
    for edges in weights:
        yield from _accumulated(graph, edges)
    if len(weights) > 1:
        yield from _accumulated(graph, [e for edges in weights for e in edges])
    for node in graph.nodes:
        if node.name in ("stack", "concatenate") and len(node.ins) > 2:
            yield from _one_step(graph, [(node, k) for k, v in enumerate(node.ins) if v in graph.active])
    for nodes in graph.operations:
        if len(nodes) > 2 and graph.turn[nodes[0]].in_time:
            for k in range(len(nodes[0].ins)):
                yield from _one_step(graph, [(node, k) for node in nodes if node.ins[k] in graph.active])


def _cut(graph, edges, of):
    node = edges[-1][0]
    text = (
        f"backpropagation through time is cut: the gradient does not flow back through {of} from one step to the step "
        f"before it; add the gradient that comes from step t + 1 to that of step t"
    )
    yield Break(MISSING + 0.25, "time", without(graph, edges), lambda: text, node, True)
    last = max(graph.turn[n].t for n, _ in edges)
    before = [edge for edge in edges if graph.turn[edge[0]].t < last]
    if before:
        short = f"the gradient flows back through {of} by one step only: backpropagation through time is truncated"
        yield Break(SIMPLE, "time", without(graph, before), lambda: short, node)


def _truncated(graph, edges):
    """Backpropagation through a few steps only: what has come back that far is not passed on."""
    states: dict[int, list[int]] = {}  # the states after each turn
    for v in dict.fromkeys(map(_operand, edges)):
        states.setdefault(graph.turn[graph.producer[v]].t, []).append(v)
    turns = sorted(states)
    if not 2 <= len(turns) <= MOST_TURNS:
        return
    node = edges[-1][0]
    for steps in range(1, min(len(turns) - 1, MOST_STEPS) + 1):
        arrived: dict[int, list] = {}  # at a state: the gradients that came back over 1, 2, ... steps

        def part(g, t, v, steps=steps, arrived=arrived):
            zero = np.zeros(np.shape(graph.values[v]))
            ages, change = [zero] * steps, zero
            fresh = sum((given(graph, edge, g) for edge in edges if _operand(edge) == v), zero)
            for u in states.get(t + 1, ()):
                for age, d in enumerate(arrived.get(u, ()), 1):
                    older = pull_back(graph, graph.producer[u], v, d)
                    fresh = fresh - older
                    if age < steps:
                        ages[age] = ages[age] + older
                    else:
                        change = change - older
            ages[0] = fresh
            arrived[v] = ages
            return change

        changes = tuple(
            Change(v, lambda g, t=t, v=v, part=part: part(g, t, v), tuple(states.get(t + 1, ())))
            for t in turns
            for v in states[t]
        )
        word = "one step" if steps == 1 else f"{steps} steps"
        text = (
            f"the gradient flows back in time by {word} only, through the hidden state of "
            f"{Words(graph, node, 0).line()}: backpropagation through time is truncated; pass on everything that "
            f"comes from step t + 1"
        )
        yield Break(SIMPLE, "time", changes, lambda text=text: text, node)


def _operand(edge):
    return edge[0].ins[edge[1]]


def _accumulated(graph, edges):
    names = sorted({graph.paths[node.ins[k]] for node, k in edges})
    which = names[0] if len(names) == 1 else "the weights"
    rank = SIMPLE + (-0.1 if len(names) == 1 else 0.1)
    turns = [graph.turn[node].t for node, _ in edges]
    in_time = any(graph.recurrent(node, k) for node in graph.nodes for k in range(len(node.ins)))
    step = "time step" if in_time else "iteration of the loop"
    for t, word in ((max(turns), "last"), (min(turns), "first")):
        text = (
            f"only the {word} {step} reaches the gradient of {which}: add up the gradients of all of them (+= instead "
            f"of =)"
        )
        others = [edge for edge in edges if graph.turn[edge[0]].t != t]
        yield Break(rank, "time", without(graph, others), lambda text=text: text, edges[-1][0])
        short = f"the {word} {step} is missing in the gradient of {which}: the loop is one step too short"
        one = [edge for edge in edges if graph.turn[edge[0]].t == t]
        yield Break(rank, "time", without(graph, one), lambda text=short: text, edges[-1][0])


def _one_step(graph, edges) -> Iterator[Break]:
    """What every step should get reaches only the last or the first."""
    if len(edges) < 3 or len({node.ins[k] for node, k in edges}) < len(edges):
        return
    for kept, word in ((-1, "last"), (0, "first")):
        node = edges[kept][0]
        words = Words(graph, *edges[kept])
        text = (
            f"only the {word} time step gets its gradient through {words.operation()} in {words.line()}: add what "
            f"comes in from the output of every step t to what comes back from step t + 1"
        )
        others = [edge for edge in edges if edge != edges[kept]]
        yield Break(SIMPLE + 0.2, "time", without(graph, others), lambda text=text: text, node)
