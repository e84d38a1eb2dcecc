"""Where the gradient of a node's output goes, and what one way to get that wrong is."""

import math
import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxnn.verify.explain.reverse_mode.flat_graph import Graph
from jaxnn.verify.explain.reverse_mode.mistake_words import Words
from jaxnn.verify.explain.reverse_mode.primitive_rules import Node

MISSING, SIMPLE, SLIP, OTHER = 0.0, 1.0, 2.0, 3.0
MOST_OTHERS = 32  # values tried in place of the right one


class Way(NamedTuple):
    """One way to get the contribution of a node to its operand k wrong."""

    name: str  # the same mistake has the same name at every node
    rank: float  # simple mistakes first
    kind: str
    apply: Callable[[Any], np.ndarray]  # dy -> the wrong contribution
    says: Callable[[Words], str]
    of: int = -1  # the value whose gradient is taken in place of that of the node's output


class Site(NamedTuple):
    """Where the gradient of a node's output contributes to that of a value, and the ways to get that wrong."""

    node: Node
    k: int  # the operand; negative where the path from the output to the target is several nodes long
    target: int
    right: Callable[[Any], np.ndarray]
    ways: list[Way]


def others(graph: Graph, node: Node, v: int, skip: int = -1) -> Iterator[tuple[str, int]]:
    """Other values of v's shape, the nearest first, with a name for their role: the same in every turn of a loop."""
    shape = graph.values[v].shape
    if math.prod(shape) < 2:
        return
    turn = graph.turn[node]

    def near(u):
        producer = graph.producer.get(u)
        there = graph.turn[producer] if producer else turn
        return turn.length == 1 or there.length == 1 or abs(there.t - turn.t) <= 1

    found = [u for u in graph.by_shape.get(shape, ()) if u not in (v, skip) and near(u)]
    found.sort(key=lambda u: abs(u - node.outs[0]))
    seen = {graph.values[v].tobytes()}
    for u in found[:MOST_OTHERS]:
        content = graph.values[u].tobytes()
        if turn.length > 1 or content not in seen:
            seen.add(content)
            yield graph.role(u, node), u
    if turn.length > 1 and turn.t == 0:
        for slot, u in graph.initial.items():
            if graph.values[u].shape == shape:
                yield f"{slot}.0@-1", u


def say(text: str, *args: Any) -> Callable[[Words], str]:
    """The text of Words with that name."""
    return operator.methodcaller(text, *args)


def equal_axes(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Pairs of axes of equal length."""
    return [(i, j) for i in range(len(shape)) for j in range(i + 1, len(shape)) if shape[i] == shape[j] > 1]


def along(x: np.ndarray, axis: int, index: int) -> np.ndarray:
    """x with only the entries at one index of an axis left."""
    kept = np.zeros(x.shape)
    at = [slice(None)] * x.ndim
    at[axis] = slice(index, index + 1 or None)
    kept[tuple(at)] = x[tuple(at)]
    return kept


def shifted(x: np.ndarray, axis: int, step: int) -> np.ndarray:
    """x moved by one along an axis, with 0 where nothing moves in."""
    moved = np.roll(x, step, axis)
    at = [slice(None)] * x.ndim
    at[axis] = slice(0, 1) if step > 0 else slice(-1, None)
    moved[tuple(at)] = 0
    return moved
