"""Other forwards: what a backward pass may mistake for the forward, and the gradient that this gives."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxnn.verify.explain.reverse_mode.flat_graph import Graph, backpropagate
from jaxnn.verify.explain.reverse_mode.mistake_words import Words
from jaxnn.verify.explain.reverse_mode.primitive_rules import DERIVATIVE, Node, forward, is_float
from jaxnn.verify.explain.reverse_mode.value_names import statistic

UNARY = ("tanh", "logistic", "sin", "cos", "exp", "log", "abs", "square", "sqrt")
_IDENTITIES = {"copy", "carry", "stop_gradient", "convert_element_type", "transpose", "reshape"}
# How a change of the forward is read.
FUNCTION = "it is the right gradient of another function: "
VALUES = "the rules of the backward pass are right, but it recomputes values differently: "
LINE = "the rules of the backward pass are right, but what this line computes is recomputed differently: "


@dataclasses.dataclass(frozen=True)
class Change:
    """Another forward: values and nodes in place of the user's, in words, and where."""

    text: str
    node: Node | None  # where it is
    values: dict[Any, np.ndarray] = dataclasses.field(default_factory=dict)  # by number, new ones by a pair
    nodes: dict[int, list[Node]] = dataclasses.field(default_factory=dict)  # by the index of the node they replace
    after: dict[int, Callable] = dataclasses.field(default_factory=dict)  # what is done to a value, by its number
    passes: int = -1  # the index of a select whose backward lets everything through


def other_functions(graph: Graph) -> Iterator[Change]:
    """The forward with another constant, another function, an epsilon elsewhere, another mask, another argument."""
    yield from _constants(graph)
    yield from _functions(graph)
    yield from _epsilons(graph)
    yield from _masks(graph)
    yield from _scaled(graph)


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
                    yield Change(text, node, {v: np.full(np.shape(x), other)})


def _functions(graph: Graph) -> Iterator[Change]:
    """tanh for the sigmoid, |x| for x^2, or a function left out."""
    shown = {"logistic": "sigmoid", "abs": "|x| (L1)", "square": "x^2 (L2)"}
    for i, node in enumerate(graph.nodes):
        inner = [v for v in node.ins if v in graph.active]
        shape = np.shape(graph.values[node.outs[0]])
        one = len(inner) == len(node.outs) == 1 and np.shape(graph.values[inner[0]]) == shape
        if one and node.name not in _IDENTITIES:
            text = f"{Words(graph, node, 0).operation()} in {_line(node)} is left out"
            yield Change(text, node, nodes={i: [_node("copy", inner, node.outs, node)]})
        squares = node.name == "integer_pow" and node.params.get("y") == 2
        if len(node.ins) != 1 or not (node.name in UNARY or squares):
            continue
        name = "square" if squares else node.name
        for other in UNARY:
            if other == name:
                continue
            for factor in (1.0, 2.0, 0.5) if {name, other} == {"abs", "square"} else (1.0,):
                values, nodes = {}, [_node(other, node.ins, node.outs, node)]
                if factor != 1:
                    a, c = (-1, i), (-2, i)
                    values = {c: np.asarray(factor)}
                    nodes = [_node(other, node.ins, (a,), node), _node("mul", (a, c), node.outs, node)]
                text = f"{shown.get(other, other)} is used in place of {shown.get(name, name)} in {_line(node)}"
                yield Change(text, node, values, {i: nodes})


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
        yield Change(text, node, {}, {i: nodes})


def other_masks(x: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """What is mistaken for a mask, in words."""
    yield "inverted: True for False", ~x
    yield "all True: the mask is missing (ignored)", x | True
    yield "all False", x & False
    if x.ndim >= 2 and x.shape[-1] == x.shape[-2]:
        yield "transposed", x.swapaxes(-1, -2)


def _masks(graph: Graph) -> Iterator[Change]:
    """A mask left out, inverted, transposed, or another one of the forward's in its place."""
    seen = set()
    bools = [v for v, x in enumerate(graph.values) if _is_bool(x) and np.size(x) > 1]
    for i, node in enumerate(graph.nodes):
        for v in node.ins:
            x = graph.values[v]
            if v in graph.active or v in seen or np.size(x) < 2 or not (_is_bool(x) or _is_mask(x)):
                continue
            seen.add(v)
            others = list(other_masks(x.astype(bool)))
            for u in bools:
                mask = graph.values[u]
                if mask.ndim == x.ndim and all(n in (1, m) for n, m in zip(mask.shape, x.shape, strict=True)):
                    name = f" ({graph.constants[u]})" if u in graph.constants else ""
                    others.append((f"another one{name} than in the forward", np.broadcast_to(mask, x.shape)))
            for words, other in others:
                if not np.array_equal(other, x):
                    name = f" {graph.constants[v]}" if v in graph.constants else ""
                    text = f"the mask (condition){name} in {_line(node)} is {words}"
                    other = other.astype(x.dtype)
                    change = Change(text, node, {v: other}, after={v: lambda _, other=other: other})
                    yield change
                    if node.name == "select_n" and any(u in graph.active for u in node.ins[1:]):
                        yield dataclasses.replace(change, passes=i)


def _is_bool(x) -> bool:
    return isinstance(x, np.ndarray) and x.dtype == np.dtype(bool)


def _is_mask(x) -> bool:
    return is_float(x) and bool(np.isin(x, (0.0, 1.0)).all()) and bool((x != x.flat[0]).any())


def _scaled(graph: Graph) -> Iterator[Change]:
    """An argument multiplied by a number that the forward does not multiply it by."""
    for v in graph.given:
        x = graph.values[v]
        if is_float(x) and np.size(x) > 1:
            for factor, words in ((2.0, "twice itself"), (0.5, "half of itself"), (-1.0, "negated"), (0.0, "0")):
                text = f"{graph.paths[v]} as an operand is {words} (a factor of {factor:g})"
                yield Change(text, None, {v: x * factor})


def other_values(graph: Graph) -> Iterator[Change]:
    """Values that a backward pass recomputes: a variance of n - 1, an epsilon elsewhere, a constant left out."""
    for node in graph.nodes:
        y = node.outs[0]
        if node.name == "reduce_sum":
            n = np.size(graph.values[node.ins[0]]) // max(1, np.size(graph.values[y]))
            name = statistic(graph, y)[0] or "sum"
            for factor, words in (
                (n / max(n - 1, 1), f"divided by {n - 1} instead of {n} (n - 1: the unbiased estimate)"),
                (max(n - 1, 1) / n, f"divided by {n} instead of {n - 1}"),
                (float(n), f"not divided by {n}: the sum is used as the mean"),
                (1 / n, f"divided by {n} once too often"),
            ):
                if n > 1:
                    text = f"the {name} in {_line(node)} is {words}"
                    yield Change(text, node, after={y: lambda x, f=factor: x * f})
        constant = [v for v in node.ins if v not in graph.active]
        inner = [v for v in node.ins if v in graph.active]
        if len(constant) != 1 or len(inner) != 1 or np.size(graph.values[constant[0]]) != 1:
            continue
        c = float(np.ravel(graph.values[constant[0]])[0])
        users = graph.uses.get(y, ())
        if node.name == "add" and c > 0 and any(user.name in ("sqrt", "rsqrt") for user, _ in users):
            text = f"the epsilon {c:.6g} is added to the standard deviation, outside the square root, in {_line(node)}"
            yield Change(text, node, after={y: lambda x, c=c: (np.sqrt(np.maximum(x - c, 0)) + c) ** 2})
        for user, _ in users:
            if len(user.ins) == 1 and user.name in DERIVATIVE and user.name not in ("neg", "convert_element_type"):
                j = graph.nodes.index(user)
                new = dataclasses.replace(user, ins=(inner[0],), compiled={})
                text = f"{user.name} is taken without the constant {c:.6g} of its argument in {_line(user)}"
                yield Change(text, user, nodes={j: [new]})


def _node(name: str, ins, outs, like: Node, **params) -> Node:
    if name == "square":
        name, params = "integer_pow", {"y": 2}
    return Node(name, params, tuple(ins), tuple(outs), like.place)


def _open(graph: Graph, select: Node, values: list) -> Node:
    """A select that takes, everywhere, the case that depends on the inputs."""
    which = next(k for k, v in enumerate(select.ins[1:]) if v in graph.active)
    values.append(np.full(np.shape(values[select.ins[0]]), which, np.asarray(values[select.ins[0]]).dtype))
    return dataclasses.replace(select, ins=(len(values) - 1, *select.ins[1:]))


def _line(node: Node) -> str:
    return f"`{node.place.text}`" if node.place.text else "the forward"


def gradients(graph: Graph, change: Change, dy, reading: str) -> list[np.ndarray] | None:
    """The changed function's right gradient, or that of the forward's own rules at its values; None if neither exists.

    With LINE, only what is in the change's own line has other values.
    """
    if (change.passes >= 0 and reading == FUNCTION) or (change.node is None and reading == LINE):
        return None
    values, numbers = list(graph.values), {}

    def number(v):  # new values get the next free number
        if not isinstance(v, tuple):
            return v
        if v not in numbers:
            numbers[v] = len(values)
            values.append(np.zeros(()))
        return numbers[v]

    changed = []
    for i, node in enumerate(graph.nodes):
        for new in change.nodes.get(i, [node]):
            ins, outs = tuple(map(number, new.ins)), tuple(map(number, new.outs))
            changed.append(dataclasses.replace(new, ins=ins, outs=outs, compiled={}))
    for v, x in change.values.items():
        values[number(v)] = x
    try:
        for node in changed:
            if reading == LINE and change.node is not None and node.place.stack != change.node.place.stack:
                continue
            xs = [values[v] for v in node.ins]
            for v, y in zip(node.outs, forward(node.name, node.params, xs, node.eqn), strict=True):
                values[v] = change.after[v](y) if v in change.after else y
        if reading != FUNCTION:
            changed = [dataclasses.replace(node, compiled={}) for node in graph.nodes]
            if change.passes >= 0:
                changed[change.passes] = _open(graph, changed[change.passes], values)
        other = Graph(values, changed, graph.inputs, graph.given, graph.outputs, graph.paths, graph.constants)
        found = backpropagate(other, dy)
    except (ValueError, TypeError, KeyError, IndexError):  # the changed function does not exist for these shapes
        return None
    wanted = [found[v] for v in graph.inputs]
    return wanted if all(np.isfinite(g).all() for g in wanted) else None
