"""A wrong backward pass as changes of the right one."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from jaxnn.verify.explain.reverse_mode.flat_graph import Graph, contribution, output_gradient
from jaxnn.verify.explain.reverse_mode.primitive_rules import Node

Gradients = dict[int, np.ndarray]
Edge = tuple[Node, int]  # a node and the number of one of its operands


class Change(NamedTuple):
    """A change of one value's gradient, made from the gradients of the values that it reads."""

    target: int
    delta: Callable[[Gradients], np.ndarray]
    reads: tuple[int, ...]


class Break(NamedTuple):
    """A backward pass with something wrong, and how to say it."""

    rank: float  # the simplest explanation has the lowest
    kind: str
    changes: tuple[Change, ...]
    says: Callable[[], str]
    node: Node | None = None
    scales: bool = False  # a multiple of the changes is a mistake too: a wrong factor
    tag: int = 0  # only breaks of one tag make a pair
    scope: str = ""  # "the gradient of b (through ...)": right everywhere else


def times(b: Break, factor: float) -> Break:
    """A multiple of a break."""
    return b._replace(changes=tuple(c._replace(delta=lambda g, d=c.delta: factor * d(g)) for c in b.changes))


def given(graph: Graph, edge: Edge, gradients: Gradients) -> np.ndarray:
    """The right contribution of a node to its operand k."""
    node, k = edge
    dy = output_gradient(graph, node, gradients)
    return np.zeros(graph.values[node.ins[k]].shape) if dy is None else contribution(graph, node, k, dy)


def without(graph: Graph, edges: Iterable[Edge]) -> tuple[Change, ...]:
    """The contributions to some operands left out."""
    return tuple(Change(e[0].ins[e[1]], lambda g, e=e: -given(graph, e, g), e[0].outs) for e in edges)
