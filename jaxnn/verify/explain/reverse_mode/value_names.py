"""What the values and operations of a graph are called, in the words of the field and of the user's code."""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from jaxnn.verify.explain.reverse_mode.flat_graph import Graph
from jaxnn.verify.explain.reverse_mode.primitive_rules import Node, is_float

FORMULA = {
    "exp": ("exp", "exp(z)"),
    "exp2": ("2^z", "2^z log 2"),
    "expm1": ("expm1", "exp(z)"),
    "log": ("log", "1/z"),
    "log1p": ("log1p", "1/(1 + z)"),
    "sin": ("sin", "cos(z)"),
    "cos": ("cos", "-sin(z)"),
    "tanh": ("tanh", "1 - tanh(z)^2"),
    "logistic": ("the sigmoid", "s(z)(1 - s(z))"),
    "sqrt": ("the square root", "1/(2 sqrt(z))"),
    "rsqrt": ("1/sqrt", "-1/2 z^(-3/2)"),
    "square": ("the square", "2z"),
    "abs": ("the absolute value", "sign(z)"),
    "erf": ("erf", "2/sqrt(pi) exp(-z^2)"),
    "neg": ("the minus sign", "-1"),
    "pow": ("the power", "n z^(n-1)"),
}
OPERATION = {
    "dot_general": "matrix product",
    "conv_general_dilated": "convolution",
    "add": "sum",
    "add_any": "sum",
    "sub": "difference",
    "mul": "product",
    "div": "division",
    "reduce_sum": "sum",
    "reduce_max": "maximum",
    "reduce_min": "minimum",
    "broadcast_in_dim": "broadcast",
    "gather": "lookup",
    "dynamic_slice": "slice",
    "select_n": "where",
    "concatenate": "concatenation",
    "transpose": "transposition",
    "reduce_window_max": "max pooling",
    "reduce_window_sum": "sum over windows (pooling)",
    "cumsum": "cumulative sum",
    "rev": "reversal",
    "row": "slice in time",
    "stack": "stack of the parts (steps)",
    "scatter-add": "scatter-add",
    "scatter": "scatter",
}
# The result is called as the operand.
_SAME = {"broadcast_in_dim", "reshape", "squeeze", "convert_element_type", "carry", "copy", "expand_dims"}
# What changes a statistic's shape, scale or form, but leaves it the same statistic.
_THIN = _SAME | {"sqrt", "rsqrt", "neg", "stop_gradient", "integer_pow", "pow", "max", "select_n"}
# Library functions that compute a statistic.
_STATISTIC = {"mean": "mean", "var": "variance", "std": "standard deviation", "norm": "norm", "average": "mean"}


@dataclasses.dataclass(frozen=True)
class Names:
    """The names of what is around a node (or, if `where` says so, around several like it) and its operand k."""

    graph: Graph
    node: Node
    k: int
    where: str = ""  # " at every step"

    # ------------------------------------------------------------ names

    def line(self, node: Node | None = None) -> str:
        """The user's line, quoted."""
        text = (node or self.node).place.text
        return f"`{text if len(text) <= 90 else text[:87] + '...'}`" if text else "the forward"

    def value(self, v: int) -> str:
        """A value's name: its path in the arguments, the variable it is assigned to, or what computes it."""
        graph = self.graph
        if v in graph.paths:
            return graph.paths[v]
        node = graph.producer.get(v)
        if node is None:
            x = graph.values[v]
            named = graph.constants.get(v)
            return f"{float(x):.6g}" if np.size(x) == 1 else f"`{named}`" if named else "a constant"
        if v in graph.assigned:
            return f"`{graph.assigned[v]}`"
        if node.name in _SAME:
            return self.value(node.ins[0])
        if node.name == "row":
            return f"{self.value(node.ins[0])}[t]"
        here = node.place.source == self.node.place.source
        return f"the result of {self.operation(node)}" + ("" if here else f" in {self.line(node)}")

    @property
    def here(self) -> str:
        """The operation and its line."""
        return f"{self.operation()} in {self.line()}"

    def operation(self, node: Node | None = None) -> str:
        """What an operation is called."""
        node = node or self.node
        if node.name == "max" and self.constant(node) is not None:
            return "relu" if self.constant(node) == 0 else "the maximum"
        if node.name == "integer_pow":
            return "the square" if node.params["y"] == 2 else f"the power {node.params['y']}"
        if node.name in FORMULA:
            return FORMULA[node.name][0]
        return f"the {OPERATION.get(node.name, node.name)}"

    def constant(self, node: Node) -> float | None:
        """The number that is the operand next to the gradient's."""
        for v in node.ins:
            x = self.graph.values[v]
            if v not in self.graph.active and np.size(x) and np.all(x == np.ravel(x)[0]):
                return float(np.ravel(x)[0])
        return None

    def formula(self) -> str:
        """The derivative of the node's function."""
        node = self.node
        if node.name == "integer_pow":
            n = node.params["y"]
            return "2z" if n == 2 else f"{n} z^{n - 1}" if n > 0 else f"{n} z^({n - 1})"
        return FORMULA.get(node.name, ("", "f'(z)"))[1]

    def statistic(self, v: int) -> tuple[str, Node | None]:
        """What a statistic is called, and the operation that sums it up."""
        return statistic(self.graph, v)

    def origin(self, v: int) -> int:
        """Where the gradient of v goes if there is only one way, else v."""
        graph = self.graph
        while v not in graph.paths and len(graph.uses.get(v, ())) == 1 and v in graph.producer:
            active = [u for u in graph.producer[v].ins if u in graph.active]
            if len(active) != 1:
                return v
            v = active[0]
        return v

    def passes(self) -> str:
        """Where in the backward pass."""
        return f"in the backward of {self.line()}{self.where}"

    # ------------------------------------------------------------ paths

    def path(self) -> str:
        """The gradient's path through the node to its operand k."""
        graph, node, k = self.graph, self.node, self.k
        v = self.origin(node.ins[k])
        name, producer = self.statistic(node.ins[k])
        if name and producer is not None and not (name == "sum" and node.name in ("add", "sub")):
            return f"the path through the {name} in {self.line(producer)}"
        if node.name == "carry":
            return f"the path back in time through the carry (the hidden state) of {self.line()}"
        if graph.recurrent(node, k) and not graph.values[v].ndim:
            return f"the sum over the earlier iterations of the loop in {self.line()} (only the last is left)"
        if graph.recurrent(node, k):
            return (
                f"the path back in time: the hidden state {self.value(v)} of the step before, through "
                f"{self.operation()} in {self.line()},"
            )
        number = len(graph.uses.get(v, ()))
        direct = node.name in ("add", "sub") and graph.values[v].ndim and node.ins[k] == v and number > 1
        if direct and graph.reaches(v, node.ins[1 - k]):
            return f"the skip (residual) connection of {self.value(v)} in {self.line()}"
        term = self.term(node.ins[k]) if node.name in ("add", "sub") else ""
        if term:
            return f"the term {term} in {self.line()}"
        if v in graph.paths and number > 1:
            tied = "the tied weight " if graph.values[v].ndim > 1 else ""
            return f"the path to {tied}{graph.paths[v]} through {self.line()} (one of its {number} uses)"
        if v in graph.paths:
            return f"the gradient of {graph.paths[v]} (through {self.operation()} in {self.line()})"
        return f"the contribution of {self.operation()} in {self.line()} to {self.value(v)}"

    def term(self, v: int) -> str:
        """A summand, by the function that it contains."""
        graph = self.graph
        for _ in range(8):
            node = graph.producer.get(v)
            active = [u for u in node.ins if u in graph.active] if node else []
            if v in graph.assigned or v in graph.paths or node is None or not active:
                break
            if node.name in FORMULA or node.name in ("integer_pow", "dot_general", "reduce_sum", "max"):
                inside = self.value(active[0])
                named = inside.startswith("`") or active[0] in graph.paths
                return f"with {self.operation(node)}" + (f" of {inside}" if named else "")
            v = active[0]
        return self.value(v) if v in graph.assigned else ""

    def branch(self) -> str:
        """The skip connection that the node's branch runs parallel to, if there is one."""
        graph, node = self.graph, self.node
        for user in graph.nodes:
            if user.name == "add" and graph.values[user.outs[0]].ndim and graph.reaches(node.outs[0], user.outs[0]):
                for k, v in enumerate(user.ins):
                    on_skip = graph.reaches(node.outs[0], v) or not graph.reaches(v, node.ins[self.k])
                    if not on_skip and graph.reaches(node.outs[0], user.ins[1 - k]) and len(graph.uses.get(v, ())) > 1:
                        return f" (it is on the branch parallel to the skip connection in {self.line(user)})"
        return ""

    def use(self) -> str:
        """One of several uses of a value: the statistic that it enters, or the line."""
        node = self.node
        named = [_STATISTIC[f.strip("_")] for f in node.place.functions if f.strip("_") in _STATISTIC]
        name = named[-1] if named else _of_sum(self.graph, node, 1.0) if node.name == "reduce_sum" else ""
        return f"the {name} in {self.line()}" if name else f"{self.operation()} in {self.line()}"

    def constant_factor(self, factor: float) -> str:
        """A wrong constant: the gradient is multiplied by `factor` too much."""
        node = self.node
        c = self.constant(node)
        if node.name not in ("mul", "div") or c is None or (node.name == "div" and self.k == 1):
            return ""
        wrong = c / factor if node.name == "div" else c * factor
        did = "divided" if node.name == "div" else "multiplied"
        return (
            f"the gradient is {did} by {wrong:.6g}{size_name(self.graph, wrong)} instead of "
            f"{c:.6g}{size_name(self.graph, c)} {self.passes()}"
        )


def meaning(graph: Graph, v: int) -> str:
    """What a statistic is called: "mean", "variance", "sum of squares (norm)", ..., or nothing."""
    return statistic(graph, v)[0]


def statistic(graph: Graph, v: int) -> tuple[str, Node | None]:
    """What a statistic is called, and the operation that sums it up."""
    rooted, scale = False, 1.0
    for _ in range(12):
        node = graph.producer.get(v)
        if node is None:
            return "", None
        if node.name == "reduce_sum":
            name = _of_sum(graph, node, scale)
            return "standard deviation" if name == "variance" and rooted else name, node
        if node.name in ("reduce_max", "reduce_min"):
            return "maximum" if node.name == "reduce_max" else "minimum", node
        dependent = [u for u in node.ins if u in graph.active]
        rooted |= node.name in ("sqrt", "rsqrt")
        if node.name in ("mul", "div", "add", "sub", "max") and len(dependent) == 1:
            others = [graph.values[u] for u in node.ins if u != dependent[0]]
            if any(np.size(x) != 1 for x in others):
                return "", None
            if others and node.name in ("mul", "div") and (node.name == "mul" or dependent[0] == node.ins[0]):
                c = float(np.ravel(others[0])[0])
                scale *= c if node.name == "mul" else 1 / c
        elif node.name not in _THIN or len(dependent) != 1:
            return "", None
        v = dependent[0]
    return "", None


def _of_sum(graph, node, scale):
    source = graph.producer.get(node.ins[0])
    reduced = math.prod(graph.values[node.ins[0]].shape[axis] for axis in node.params["axes"])
    averaged = scale in (1 / reduced, 1 / max(1, reduced - 1)) or abs(scale * reduced - 1) < 1e-6
    if source is None or reduced < 2:
        return "mean" if averaged else "sum" if reduced > 1 else ""
    if source.name == "exp":
        return "sum of exp (the softmax's denominator)"
    square = source.name == "square" or (source.name == "integer_pow" and source.params["y"] == 2)
    if square or (source.name == "mul" and source.ins[0] == source.ins[1]):
        centred = graph.producer.get(source.ins[0])
        if centred is not None and centred.name == "sub" and meaning(graph, centred.ins[1]) == "mean":
            return "variance"
        return "mean of squares" if averaged else "sum of squares (the norm)"
    return "mean" if averaged else "sum"


def _numbers(graph: Graph) -> Iterator[tuple[float, str]]:
    """The numbers that a factor is likely to be: lengths of axes, numbers of elements, constants of the forward."""
    for v in (*graph.given, *graph.inputs):
        shape, path = np.shape(graph.values[v]), graph.paths[v]
        for axis, n in enumerate(shape):
            batch = ", the batch size?" if v in graph.given and axis == 0 else ""
            length = f"the length of axis {axis} of {path}{batch}"
            yield n, length
            yield math.sqrt(n), f"the square root of {n}, {length}"
        if len(shape) > 1:
            yield math.prod(shape), f"the number of elements of {path}"
    for v in (*graph.given, *graph.inputs):
        for axis, n in enumerate(np.shape(graph.values[v])):
            yield n - 1, f"{n} - 1 with {n} the length of axis {axis} of {graph.paths[v]}"
            yield n / max(1, n - 1), f"n/(n - 1) with n = {n}, the length of axis {axis} of {graph.paths[v]}"
    for v, x in enumerate(graph.values):
        if v not in graph.active and is_float(x) and x.size == 1:
            c = abs(float(np.ravel(x)[0]))
            yield c, f"{c:.6g}, a constant of the forward"
            yield c * c, f"the square of {c:.6g}, a constant of the forward"


def number_name(graph: Graph, number: float) -> str:
    """What a number could be: "the length of axis 0 of args[0]"; nothing if it is not a known number."""
    known = (what for n, what in _numbers(graph) if n not in (0, 1) and abs(number - n) <= 1e-6 * n)
    return next(known, "")


def size_name(graph: Graph, number: float) -> str:
    """The same in brackets, for numbers that count something."""
    name = number_name(graph, number)
    return f" ({name})" if name and "constant" not in name else ""


def factor_words(graph: Graph, factor: float) -> str:
    """How a wrong factor is described: "32 times too large (32 is the length of axis 0 of x)"; "" if it is unknown."""
    small = "only half of what it should be (a factor 2 is missing)"
    for number, text in ((-1, "of the wrong sign: negate it"), (2, "twice as large as it should be"), (0.5, small)):
        if abs(factor - number) <= 1e-6:
            return text
    for times, how in ((factor, "large"), (1 / factor if factor else 0, "small")):
        name = number_name(graph, times)
        if name:
            return f"{times:.6g} times too {how} ({times:.6g} is {name})"
    return ""
