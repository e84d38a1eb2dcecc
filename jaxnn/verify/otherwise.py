"""The third stage of the diagnosis: the gradient may be right, but of another function.

The forward is changed at one place (a constant, a function, the place of an epsilon, the labels), and its gradient
is compared with the user's. One that agrees in every leaf proves what the user's backward takes for the forward.
"""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.verify.evidence import Evidence
from jaxnn.verify.report import EXACT, Finding
from jaxnn.verify.reverse.flat import Graph, TooLarge, backpropagate, flatten
from jaxnn.verify.reverse.rules import Node, forward, is_float

UNARY = ("tanh", "logistic", "sin", "cos", "exp", "log", "abs", "square", "sqrt")
MOST_NODES = 400


class Change(NamedTuple):
    """Another forward: values and nodes in place of the user's, in words, and where."""

    text: str
    source: str
    values: dict[Any, np.ndarray]  # by number, new ones by a pair
    nodes: dict[int, list[Node]]  # by the index of the node that they replace


def other_function(evidence: Evidence, seconds: float) -> list[Finding]:
    """What the forward would have to be for the manual gradient to be right, if one change of it is enough."""
    deadline = time.process_time() + seconds
    comparable = [m is not None and m.shape == t.shape for m, t in zip(evidence.manual, evidence.truth, strict=True)]
    if evidence.jaxpr is None or not all(comparable):
        return []
    wrong = tuple(path for path, is_wrong in zip(evidence.input_paths, evidence.wrong, strict=True) if is_wrong)
    for text, given in _other_labels(evidence):
        found = evidence.again(evidence.inputs, given, evidence.dy)
        if found is not None and _agrees(evidence, found[1]):
            return [Finding("another_function", text, wrong, EXACT)]
    with jax.enable_x64(True), np.errstate(all="ignore"):
        try:
            paths = (*evidence.input_paths, *evidence.given_paths)
            graph = flatten(evidence.jaxpr, evidence.inputs, evidence.given, paths)
        except TooLarge:
            return []
        if len(graph.nodes) > MOST_NODES:
            return []
        for change in (*_constants(graph), *_functions(graph), *_epsilons(graph)):
            if time.process_time() > deadline:
                return []
            gradients = _gradients(graph, change, evidence.dy)
            if gradients is not None and _agrees(evidence, gradients):
                text = f"it is the right gradient of another function: {change.text}"
                return [Finding("another_function", text, wrong, EXACT, change.source or None)]
    return []


def _agrees(evidence: Evidence, gradients) -> bool:
    tree = max((float(np.abs(m).max(initial=0)) for m in evidence.manual if m is not None), default=0.0)
    for manual, gradient in zip(evidence.manual, gradients, strict=True):
        if manual is None:
            return False
        scale = float(np.abs(manual).max(initial=0)) + 1e-6 * tree
        if not (np.abs(gradient - manual) <= 1e-6 * scale).all():
            return False
    return True


def _other_labels(evidence: Evidence) -> Iterator[tuple[str, tuple]]:
    """Integers that are off by one, or in another order; masks that are turned round."""
    for i, (path, x) in enumerate(zip(evidence.given_paths, evidence.given, strict=True)):
        if not isinstance(x, np.ndarray | jax.Array) or jnp.issubdtype(x.dtype, jax.dtypes.extended):
            continue
        x = np.asarray(x)
        others = []
        if np.issubdtype(x.dtype, np.integer) and x.ndim and x.size:
            n = int(x.max()) + 1
            others = [("off by one, too large by 1", (x + 1) % n), ("off by one, too small by 1", (x - 1) % n)]
            others += [("in reverse order", x[::-1]), ("shifted by one place", np.roll(x, 1, 0)), ("all 0", 0 * x)]
        elif x.dtype == bool:
            others = [("turned round: True for False", ~x), ("all True: the mask is ignored", x | True)]
            others += [("transposed", x.T)] if x.ndim == 2 and x.shape[0] == x.shape[1] else []
        for words, other in others:
            if not np.array_equal(other, x):
                text = f"it is the right gradient for another {path}: {words}"
                yield text, (*evidence.given[:i], other.astype(x.dtype), *evidence.given[i + 1 :])


def _constants(graph: Graph) -> Iterator[Change]:
    """Numbers of the forward that are left out, doubled, halved, squared, inverted, negated, or one more or less."""
    seen = set()
    for node in graph.nodes:
        for v in node.ins:
            x = graph.values[v]
            if v in graph.active or v in seen or not is_float(x) or np.size(x) == 0 or (x != x.flat[0]).any():
                continue
            seen.add(v)
            c = float(x.flat[0])
            if not np.isfinite(c):
                continue
            others = {"left out": 0.0 if node.name in ("add", "sub", "max", "min") else 1.0, "negated": -c}
            others |= {"doubled": 2 * c, "halved": c / 2, "squared": c * c, "without its square root": c * c}
            others |= {"inverted": 1 / c if c else 1.0, "as its square root": abs(c) ** 0.5}
            if 2 <= abs(c) < 1e6 and c == round(c):
                others |= {f"{c - 1:g} (n - 1, one less)": c - 1, f"{c + 1:g} (one more)": c + 1}
            for words, other in others.items():
                if other != c and np.isfinite(other):
                    text = f"the constant {c:.6g} in {_line(node)} is {words}"
                    yield Change(text, node.place.source, {v: np.full(np.shape(x), other)}, {})


def _functions(graph: Graph) -> Iterator[Change]:
    """tanh for the sigmoid, |x| for x²."""
    for i, node in enumerate(graph.nodes):
        squares = node.name == "integer_pow" and node.params.get("y") == 2
        if len(node.ins) != 1 or not (node.name in UNARY or squares):
            continue
        name = "square" if squares else node.name
        for other in UNARY:
            if other == name:
                continue
            for factor in (1.0, 2.0, 0.5) if {name, other} == {"abs", "square"} else (1.0,):
                new = _node(other, node.ins, node.outs, node)
                values, nodes = {}, [new]
                if factor != 1:
                    a, c = (-1, i), (-2, i)
                    values = {c: np.asarray(factor)}
                    nodes = [_node(other, node.ins, (a,), node), _node("mul", (a, c), node.outs, node)]
                shown = {"logistic": "sigmoid", "abs": "|x| (L1)", "square": "x² (L2)"}
                text = f"{shown.get(other, other)} stands in place of {shown.get(name, name)} in {_line(node)}"
                yield Change(text, node.place.source, values, {i: nodes})


def _epsilons(graph: Graph) -> Iterator[Change]:
    """√v + ε for √(v + ε)."""
    for i, node in enumerate(graph.nodes):
        if node.name not in ("sqrt", "rsqrt"):
            continue
        add = graph.producer.get(node.ins[0])
        if add is None or add.name != "add":
            continue
        constant = [v for v in add.ins if v not in graph.active]
        inner = [v for v in add.ins if v in graph.active]
        if len(constant) != 1 or len(inner) != 1:
            continue
        root, total = (-1, i), (-2, i)
        nodes = [_node("sqrt", (inner[0],), (root,), node)]
        if node.name == "sqrt":
            nodes.append(_node("add", (root, constant[0]), node.outs, node))
        else:
            nodes.append(_node("add", (root, constant[0]), (total,), node))
            nodes.append(_node("integer_pow", (total,), node.outs, node, y=-1))
        c = float(np.ravel(graph.values[constant[0]])[0])
        text = f"the epsilon {c:.6g} is added to the standard deviation, outside the square root, in {_line(node)}"
        yield Change(text, node.place.source, {}, {i: nodes})


def _node(name: str, ins, outs, like: Node, **params) -> Node:
    if name == "square":
        name, params = "integer_pow", {"y": 2}
    return Node(name, params, tuple(ins), tuple(outs), like.place)


def _line(node: Node) -> str:
    return f"`{node.place.text}`" if node.place.text else "the forward"


def _gradients(graph: Graph, change: Change, dy) -> list[np.ndarray] | None:
    """The right gradient of the changed function; None where it does not exist."""
    values, numbers = list(graph.values), {}

    def number(v):  # new values get the next free number
        if not isinstance(v, tuple):
            return v
        if v not in numbers:
            numbers[v] = len(values)
            values.append(np.zeros(()))
        return numbers[v]

    nodes = []
    for i, node in enumerate(graph.nodes):
        for new in change.nodes.get(i, [node]):
            ins, outs = tuple(map(number, new.ins)), tuple(map(number, new.outs))
            nodes.append(dataclasses.replace(new, ins=ins, outs=outs, compiled={}))
    for v, x in change.values.items():
        values[number(v)] = x
    try:
        for node in nodes:
            xs = [values[v] for v in node.ins]
            for v, y in zip(node.outs, forward(node.name, node.params, xs, node.eqn), strict=True):
                values[v] = y
        other = Graph(values, nodes, graph.inputs, graph.given, graph.outputs, graph.paths, graph.constants)
        gradients = backpropagate(other, dy)
    except (ValueError, TypeError, KeyError, IndexError):  # the changed function does not exist for these shapes
        return None
    found = [gradients[v] for v in graph.inputs]
    return found if all(np.isfinite(g).all() for g in found) else None
