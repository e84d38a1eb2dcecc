"""The user's forward as a flat graph: the jaxpr with everything inlined, all values, and reverse mode over it."""

import dataclasses
import functools
import linecache
import operator
import os
import re
import sysconfig
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnn.verify import jax_internals
from jaxnn.verify.explain.reverse_mode.primitive_rules import (
    BINARY,
    FORWARD,
    HELD,
    SEVERAL,
    Node,
    as_array,
    broadcast,
    forward,
    is_float,
    vjp,
)
from jaxnn.verify.jax_internals import CALLS, ClosedJaxpr, Literal, called
from jaxnn.verify.judge.float64_jaxpr import dtype_of, evaluate_equation, uses, wide, widen

MOST_NODES = 2000


class TooLarge(Exception):
    """The graph has more than MOST_NODES nodes."""


class Place(NamedTuple):
    """Where in the user's code an operation is."""

    source: str = ""  # "model.py:41"
    text: str = ""  # the line
    functions: tuple[str, ...] = ()  # the library functions that it is part of, outermost first: ("softmax",)
    stack: tuple = ()  # the user's call stack
    path: tuple = ()  # the path from there through library code


@dataclasses.dataclass(eq=False)
class Graph:
    """A function at one point, flat. Values are named by their number."""

    values: list[Any]
    nodes: list[Node]  # those that depend on the inputs, in the order of evaluation
    inputs: list[int]
    given: list[int]
    outputs: list[int]
    paths: dict[int, str]  # what the inputs and the given are called
    constants: dict[int, str]  # variables of the user's code that don't depend on the inputs
    active: set[int] = dataclasses.field(default_factory=set)  # floats that depend on the inputs
    producer: dict[int, Node] = dataclasses.field(default_factory=dict)
    uses: dict[int, list[tuple[Node, int]]] = dataclasses.field(default_factory=dict)  # where a value is an operand

    def __post_init__(self):
        self.active.update(v for v in self.inputs if is_float(self.values[v]))
        for node in self.nodes:
            for k, v in enumerate(node.ins):
                self.uses.setdefault(v, []).append((node, k))
            for v in node.outs:
                self.producer[v] = node
                if is_float(self.values[v]) and any(u in self.active for u in node.ins):
                    self.active.add(v)

    @functools.cached_property
    def upstream(self) -> dict[int, int]:
        """For each value that depends on an input, a set of bits: the values that it depends on, and itself."""
        found = {v: 1 << v for v in self.inputs}
        for node in self.nodes:
            mine = functools.reduce(operator.or_, (found.get(v, 0) for v in node.ins), 0)
            found.update((v, mine | 1 << v) for v in node.outs)
        return found

    def reaches(self, u: int, v: int) -> bool:
        """Whether value v depends on value u."""
        return bool(self.upstream.get(v, 0) >> u & 1)

    @functools.cached_property
    def by_shape(self) -> dict[tuple[int, ...], list[int]]:
        """The float arrays of each shape, constants like zeros left out."""
        found: dict[tuple[int, ...], list[int]] = {}
        for v, x in enumerate(self.values):
            if is_float(x) and 1 < x.size <= 1_000_000 and np.isfinite(x).all() and (x != x.flat[0]).any():
                found.setdefault(x.shape, []).append(v)
        return found

    # ------------------------------------------------------------ loops

    @functools.cached_property
    def turn(self) -> dict[Node, "Turn"]:
        """Each node's place in the loops of the user's code, whether of scan or of Python."""
        lines: dict[tuple, dict[tuple, list[Node]]] = {}
        for node in self.nodes:
            place = node.place
            of = node.ins[0] if node.name == "row" else node.params.get("of")
            what = (node.name, place.functions, place.path, of)
            lines.setdefault((place.stack, node.name == "stack"), {}).setdefault(what, []).append(node)
        fixed = {*self.inputs, *self.given}
        slots: dict[tuple, int] = {}
        members: dict[tuple, int] = {}
        found, shared = {}, set()
        for (stack, _), kinds in lines.items():
            length = _loop_length({len(nodes) for nodes in kinds.values()})
            for what, nodes in kinds.items():
                missing = len(nodes) % length != 0  # no such operation in the first turn
                each = len(nodes) // (length - missing) if length > 1 else len(nodes)
                for i, node in enumerate(nodes):
                    operands = tuple(v for v in node.ins if v in fixed)
                    slot = slots.setdefault((stack, what, i % each), len(slots))
                    if length > 1 and (slot, operands) in members and any(v in self.inputs for v in operands):
                        shared.add(stack[1:])  # one weight in several turns: a loop in time, not over layers
                    operation = members.setdefault((slot, operands), len(members))
                    found[node] = Turn(operation, slot, i // each + missing, length, False)
        return {
            node: turn._replace(in_time=turn.length > 1 and (node.place.stack[1:] in shared or node.name == "carry"))
            for node, turn in found.items()
        }

    @functools.cached_property
    def operations(self) -> list[list[Node]]:
        """The nodes that are one operation of the user's code in several turns of a loop, in order."""
        found: dict[int, list[Node]] = {}
        for node in self.nodes:
            found.setdefault(self.turn[node].operation, []).append(node)
        return list(found.values())

    def role(self, v: int, node: Node) -> str:
        """Value v as seen from a node: the same for those in this relation in the loop's other turns."""
        producer = self.producer.get(v)
        if producer is None:
            return f"{v}"
        there, here = self.turn[producer], self.turn[node]
        return f"{there.slot}.{producer.outs.index(v)}@{there.t - here.t}"

    def recurrent(self, node: Node, k: int) -> bool:
        """Whether a node's operand k comes from an earlier turn of a loop in time."""
        return self.turn[node].in_time and self.comes_back(node, k) and self.turn[self.producer[node.ins[k]]].in_time

    def comes_back(self, node: Node, k: int) -> bool:
        """Whether a node's operand k comes from an earlier turn of a loop."""
        producer = self.producer.get(node.ins[k])
        if producer is None:
            return False
        there, here = self.turn[producer], self.turn[node]
        return there.length > 1 and here.length > 1 and there.t < here.t

    @functools.cached_property
    def initial(self) -> dict[int, int]:
        """What enters the first turn of a loop in place of a slot's result from the turn before."""
        first = {self.turn[node].slot: node for node in reversed(self.nodes)}
        found = {}
        for node in self.nodes:
            start = first[self.turn[node].slot]
            for k, v in enumerate(node.ins):
                if self.turn[start].t == 0 and self.comes_back(node, k):
                    found[self.turn[self.producer[v]].slot] = start.ins[k]
        return found

    @functools.cached_property
    def assigned(self) -> dict[int, str]:
        """The variables that the user's lines assign: what a line computes for others has their names, in order."""
        lines: dict[tuple, list[int]] = {}
        where = {node: (node.place.stack, self.turn[node].t) for node in self.nodes}
        for node in self.nodes:
            for v in node.outs:
                used_elsewhere = any(where[user] != where[node] for user, _ in self.uses.get(v, ()))
                if v in self.outputs or used_elsewhere:
                    lines.setdefault(where[node], []).append(v)
        found = {}
        for values in lines.values():
            targets = _ASSIGNMENT.match(self.producer[values[0]].place.text)
            names = [name.strip() for name in targets[1].split(",")] if targets else []
            if len(names) == len(values):
                found.update(zip(values, names, strict=True))
            elif len(names) == 1:
                found[values[-1]] = names[0]
        return found


_ASSIGNMENT = re.compile(r"([A-Za-z_][\w\s,]*?)\s*=[^=]")


class Turn(NamedTuple):
    """Which operation of the user's code a node is, in which turn of a loop."""

    operation: int
    slot: int  # the operation whatever its weights: one line over several layers
    t: int
    length: int  # of the loop; 1 if there is none
    in_time: bool  # the turns share weights


def _loop_length(counts: set[int]) -> int:
    """The number of turns of a loop whose operations occur this often: some may be left out of the first turn."""
    for n in sorted(counts):
        if n > 1 and all(count % n == 0 for count in counts):
            return n
    for n in sorted(counts, reverse=True):
        if n > 2 and all(count % n == 0 or count % (n - 1) == 0 for count in counts):
            return n
    return 1


def flatten(closed: ClosedJaxpr, inputs: Sequence, given: Sequence, paths: Sequence[str]) -> Graph:
    """The graph of a jaxpr of (*inputs, *given), which are called `paths`; raises TooLarge. Under enable_x64."""
    build = _Builder()
    args = zip((*inputs, *given), closed.jaxpr.invars, strict=True)
    numbers = [build.add(widen(x, dtype_of(var))) for x, var in args]
    of_inputs = numbers[: len(inputs)]
    build.dependent.update(of_inputs)
    outputs = build.closed(closed, numbers)
    names = dict(zip(numbers, paths, strict=True))
    return Graph(build.values, build.nodes, of_inputs, numbers[len(inputs) :], outputs, names, build.constants())


class _Builder:
    def __init__(self):
        self.values: list[Any] = []
        self.nodes: list[Node] = []
        self.dependent: set[int] = set()
        self.compiled: dict[str, dict] = {}
        self.lines: dict[tuple, tuple[int, str]] = {}  # the last value of each line that depends on no input

    def add(self, x) -> int:
        self.values.append(x)
        return len(self.values) - 1

    def run(self, jaxpr, consts, args, caller=None) -> list[int]:
        """caller: the place of the call, if this is the jaxpr of library code."""
        env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

        def read(atom):
            return self.add(widen(atom.val, dtype_of(atom))) if isinstance(atom, Literal) else env[atom]

        for i, eqn in enumerate(jaxpr.eqns):
            place = caller._replace(path=(*caller.path, i)) if caller else _place(eqn)
            outs = self.equation(eqn, [read(atom) for atom in eqn.invars], place)
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def closed(self, closed, args, caller=None) -> list[int]:
        return self.run(closed.jaxpr, [self.add(as_array(x)) for x in closed.consts], args, caller)

    def node(self, name, params, ins, outs, place, eqn=None) -> list[int]:
        numbers = [self.add(y) for y in outs]
        if any(v in self.dependent for v in ins):
            self.dependent.update(numbers)
            alike = f"{name} {params} {[np.shape(self.values[v]) for v in ins]}" if eqn else ""
            compiled = self.compiled.setdefault(alike, {})
            self.nodes.append(Node(name, params, tuple(ins), tuple(numbers), place, eqn, compiled))
            if len(self.nodes) > MOST_NODES:
                raise TooLarge
        else:
            self.lines[place.stack] = (numbers[-1], place.text)
        return numbers

    def constants(self) -> dict[int, str]:
        """The names of the variables that the user's lines assign, where they depend on no input."""
        named = {v: _ASSIGNMENT.match(text) for v, text in self.lines.values()}
        return {v: match[1] for v, match in named.items() if match and "," not in match[1]}

    def equation(self, eqn, ins, place) -> list[int]:
        name, params = eqn.primitive.name, jax_internals.parameters(eqn)
        xs = [self.values[v] for v in ins]
        inside = called(eqn)
        depends = any(v in self.dependent for v in ins)
        if not depends and (name in jax_internals.LOOPS_AND_BRANCHES or (inside and not uses(inside) <= _KNOWN)):
            run = jax.jit(lambda *xs: evaluate_equation(eqn, xs, True))
            return self.node(name, {}, ins, [as_array(y) for y in run(*xs)], place)
        if inside:
            if not place.source or not _of_library(inside):
                return self.closed(inside, ins)
            functions = (*place.functions, jax_internals.traced_name(eqn))
            return self.closed(inside, ins, place._replace(functions=functions))
        if name == "scan":
            return self.scan(eqn, ins, place)
        if name == "while":
            loop = jax_internals.while_parts(eqn, ins)
            carry = loop.carry
            while self.values[self.closed(loop.proceed, [*loop.of_proceed, *carry])[0]]:
                carry = self.carried(self.closed(loop.body, [*loop.of_body, *carry]), carry, place)
            return carry
        if name == "cond":
            branches = jax_internals.branches(eqn)
            return self.closed(branches[int(np.clip(xs[0], 0, len(branches) - 1))], ins[1:])
        outs = forward(name, params, xs, eqn)
        if name in BINARY and depends:
            ins = [self.spread(v, outs[0].shape, place._replace(path=(*place.path, k))) for k, v in enumerate(ins)]
        return self.node(name, params, ins, outs, place, eqn)

    def spread(self, v, shape, place):
        """The operand v of an elementwise primitive, which takes (1, n) alongside (m, n), in the output's shape."""
        x = self.values[v]
        if x.shape == shape or v not in self.dependent:
            return v
        params = {"shape": shape, "broadcast_dimensions": tuple(range(x.ndim))}
        return self.node("broadcast_in_dim", params, [v], [broadcast(params, x)], place)[0]

    def carried(self, after, before, place):
        """The carry on its way to the next turn: a node of its own for what the turn has changed."""
        return [
            v if v == u else self.node("carry", {"of": i}, [v], [self.values[v]], place)[0]
            for i, (v, u) in enumerate(zip(after, before, strict=True))
        ]

    def scan(self, eqn, ins, place):
        consts, carry, xs, body, length, reverse, _ = jax_internals.scan_parts(eqn, ins)
        m = len(carry)
        rows: list[list[int]] = []
        order = range(length)[::-1] if reverse else range(length)
        for turn, t in enumerate(order):
            here = [self.node("row", {"t": t}, [v], [self.values[v][t]], place)[0] for v in xs]
            outs = self.closed(body, [*consts, *carry, *here])
            rows.append(outs[m:])
            carry = self.carried(outs[:m], carry, place) if turn < length - 1 else outs[:m]
        if reverse:
            rows.reverse()
        ys = []
        for i, var in enumerate(eqn.outvars[m:]):
            column = [row[i] for row in rows]
            empty = np.zeros(var.aval.shape, wide(dtype_of(var)))
            stacked = np.stack([self.values[v] for v in column]) if column else empty
            ys += self.node("stack", {"axis": 0}, column, [stacked], place)
        return [*carry, *ys]


_LIBRARIES = tuple({os.path.dirname(os.path.dirname(jax.__file__)), sysconfig.get_paths()["stdlib"]})
_HERE = os.path.dirname(os.path.dirname(__file__))  # jaxnn/verify
_NAME = re.compile(r"(?!_operator|_forward_operator|_defer)\w+")
_PUBLIC = re.compile(r"[/\\](numpy|nn|lax|scipy)[/\\]")  # functions with names of the field


def _place(eqn) -> Place:
    """The user's line that an equation comes from: the innermost frame outside of libraries."""
    functions, stack, found = [], [], None
    for frame in jax_internals.frames(eqn):
        file = frame.file_name
        if file.startswith(_HERE) and found:
            break  # further out there is only the verifier and its caller
        if file.startswith((_HERE, "<")):
            continue
        if not file.startswith(_LIBRARIES):
            found = found or frame
        elif not found and _PUBLIC.search(file) and _NAME.fullmatch(frame.function_name):
            functions.append(frame.function_name)
        if found:
            stack.append((file, frame.line_num))
    if found is None:
        return Place()
    text = linecache.getline(found.file_name, found.line_num).strip()
    return Place(f"{os.path.basename(found.file_name)}:{found.line_num}", text, tuple(functions[::-1]), tuple(stack))


# What is evaluated here without compiling anything.
_KNOWN = {*FORWARD, *SEVERAL, *CALLS}


def _of_library(closed: ClosedJaxpr) -> bool:
    """Whether library code was traced to this jaxpr: jax keeps it, with the source lines of whoever called it first."""
    return jax_internals.function_source(closed).startswith(_LIBRARIES)


# ---------------------------------------------------------------- reverse mode


def contribution(graph: Graph, node: Node, k: int, dy: Any) -> np.ndarray:
    """What the gradient dy of a node's output (a list, if it has several) adds to the gradient of its operand k."""
    xs = [graph.values[v] for v in node.ins]
    return vjp(node, k, dy, xs, graph.values[node.outs[0]])


def backpropagate(graph: Graph, dy: Sequence, breaks: dict[int, list[Callable]] | None = None) -> dict[int, np.ndarray]:
    """The gradients of all values, given those of the outputs.

    breaks[v](gradients) is added to the gradient of v when those of all values further downstream are known.
    """
    breaks = breaks or {}
    gradients: dict[int, np.ndarray] = {}

    def add(v, d):
        gradients[v] = gradients[v] + d if v in gradients else d

    def complete(v):
        for extra in breaks.get(v, ()):
            add(v, extra(gradients))

    for v, d in zip(graph.outputs, dy, strict=True):
        if v in graph.active:
            add(v, np.asarray(d, np.float64))
    for node in reversed(graph.nodes):
        for v in node.outs:
            complete(v)
        d = output_gradient(graph, node, gradients)
        if d is not None:
            for k, v in enumerate(node.ins):
                if v in graph.active:
                    add(v, contribution(graph, node, k, d))
    for v in graph.inputs:
        complete(v)
        if v not in gradients:
            gradients[v] = np.zeros(np.shape(graph.values[v]))
    return gradients


def output_gradient(graph: Graph, node: Node, gradients: dict[int, np.ndarray]) -> Any:
    """The gradient of a node's output, a list if it has several; None if nothing arrives there."""
    if not any(v in gradients for v in node.outs):
        return None
    if len(node.outs) == 1:
        return gradients[node.outs[0]]
    return [gradients.get(v, np.zeros(np.shape(graph.values[v]))) if v in graph.active else None for v in node.outs]


def replay(graph: Graph, moved: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """The values that change when some values are moved; what has no derivative is held where it was."""
    values = dict(moved)
    for node in graph.nodes:
        if any(v in values for v in node.ins) and node.name not in HELD and any(v in graph.active for v in node.outs):
            xs = [values.get(v, graph.values[v]) for v in node.ins]
            for v, y in zip(node.outs, forward(node.name, node.params, xs, node.eqn), strict=True):
                if v in graph.active:
                    values[v] = y
    return values


def pull_back(graph: Graph, node: Node, v: int, dy: np.ndarray) -> np.ndarray:
    """What the gradient dy of a node's output adds to that of v, through all operations between them."""
    gradients = {node.outs[0]: dy}
    for user in reversed(graph.nodes[: graph.nodes.index(node) + 1]):
        if any(u in gradients for u in user.outs):
            d = output_gradient(graph, user, gradients)
            for k, u in enumerate(user.ins):
                if u in graph.active and graph.reaches(v, u):
                    c = contribution(graph, user, k, d)
                    gradients[u] = gradients[u] + c if u in gradients else c
    return gradients.get(v, np.zeros(graph.values[v].shape))
