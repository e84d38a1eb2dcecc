"""Functions made of several operations: an activation like gelu, softmax, log_softmax; and the mistakes in them.

A hand-written derivative goes from the function's output to its input in one step; so do these sites.
"""

from collections.abc import Iterator

import numpy as np

from jaxnn.verify.explain.reverse_mode.elementwise_mistakes import known_derivatives
from jaxnn.verify.explain.reverse_mode.flat_graph import Graph
from jaxnn.verify.explain.reverse_mode.mistake_words import Words
from jaxnn.verify.explain.reverse_mode.primitive_rules import BINARY, DERIVATIVE, HELD, Node, forward, is_float, vjp
from jaxnn.verify.explain.reverse_mode.sites import MISSING, OTHER, SIMPLE, SLIP, Site, Way, others
from jaxnn.verify.explain.reverse_mode.value_names import meaning

_COMPARE = {"eq", "ne", "lt", "le", "gt", "ge", "is_finite", "and", "or", "not", "xor"}
_ELEMENTWISE = {*DERIVATIVE, *BINARY, *HELD, *_COMPARE}


def blocks(graph: Graph) -> Iterator[Site]:
    """The sites of composite functions."""
    yield from _activations(graph)
    for node in reversed(graph.nodes):
        yield from _softmax(graph, node)


# ---------------------------------------------------------------- activations


def _activations(graph):
    """Elementwise functions of one value in which it is used more than once."""
    dependent = {*graph.inputs, *graph.producer}
    chain: dict[int, list[int]] = {}  # a value, and those that it is an elementwise function of, nearest first
    merged: dict[int, int] = {}  # a -> z
    for node in graph.nodes:
        v = node.outs[0]
        if node.name not in _ELEMENTWISE or len(node.outs) > 1:
            continue
        before = [chain.get(u, [u]) for u in node.ins if u in dependent]
        common = [u for u in before[0] if all(u in other for other in before[1:])]
        if common:
            chain[v] = [v, *common]
            if len(set(map(tuple, before))) > 1 and is_float(graph.values[v]):
                merged[v] = common[0]
    largest = {z: a for a, z in merged.items()}  # the last one built on z contains the others
    for z, a in sorted(largest.items(), reverse=True):
        if a in graph.active and z in graph.active and graph.values[a].shape == graph.values[z].shape:
            site = _activation(graph, a, z)
            if site:
                yield site


def _region(graph, a, z):
    """The nodes between z and a."""
    needed, found = {a}, []
    for node in reversed(graph.nodes):
        if node.outs[0] in needed:
            found.append(node)
            needed.update(v for v in node.ins if v != z and graph.reaches(z, v))
    return found[::-1]


def evaluate(graph: Graph, nodes: list[Node], a: int, z: int, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """a and ∂a/∂z of an elementwise function, at another z."""
    values = {z: x}
    for node in nodes:
        xs = [values.get(v, graph.values[v]) for v in node.ins]
        values[node.outs[0]] = forward(node.name, node.params, xs, node.eqn)[0]
    slope = {a: np.ones(x.shape)}
    for node in reversed(nodes):
        dy = slope.get(node.outs[0])
        if dy is None or not is_float(values[node.outs[0]]):
            continue
        xs = [values.get(v, graph.values[v]) for v in node.ins]
        for k, v in enumerate(node.ins):
            if v in values and is_float(values[v]):
                slope[v] = slope.get(v, 0) + vjp(node, k, dy, xs, values[node.outs[0]])
    return values[a], slope.get(z, np.zeros(x.shape))


def _activation(graph, a, z):
    nodes = _region(graph, a, z)
    x = graph.values[z]
    y, right = evaluate(graph, nodes, a, z, x)
    if not np.isfinite(right).all():
        return None
    node = nodes[-1]
    words = Words(graph, node, 0)
    shared = [f for f in node.place.functions if all(f in other.place.functions for other in nodes)]
    name = shared[0].strip("_") if shared else f"the function of {words.value(z)}"
    line = words.line()

    def way(way_name, rank, slope, text):
        return Way(way_name, rank, "derivative", lambda dy: dy * slope, lambda w: f"{text}{w.where}")

    at_output = evaluate(graph, nodes, a, z, y)[1]
    passes = f"in the backward of {line}"
    output = f"the derivative of {name} is taken at its output instead of the pre-activation {words.value(z)}"
    ways = [
        way("derivative missing", MISSING, 1.0, f"the derivative of {name} is missing {passes}: multiply by it"),
        way("at output", SIMPLE, at_output, f"{output} {passes}"),
        way("value", SIMPLE, y, f"{name} itself is used in place of its derivative {passes}"),
    ]
    for known in known_derivatives(x, y, right):
        text = f"the {known.name} is used where that of {name} belongs, in {line}"
        ways.append(known._replace(says=lambda w, text=text: f"{text}{w.where}"))
    for role, u in others(graph, node, z, skip=a):
        slope = evaluate(graph, nodes, a, z, graph.values[u])[1]
        text = f"the derivative of {name} in {line} is taken at {words.value(u)} instead of {words.value(z)}"
        ways.append(way(f"derivative at {role}", OTHER, slope, text))
    return Site(node, -1, z, lambda dy: dy * right, ways)


# ---------------------------------------------------------------- softmax


def _through(graph, v, name):
    """The operation of that name that computes v, behind changes of shape."""
    node = graph.producer.get(v)
    while node is not None and node.name in ("broadcast_in_dim", "reshape", "expand_dims"):
        node = graph.producer.get(node.ins[0])
    return node if node is not None and node.name == name else None


def _softmax(graph, node):
    """exp(s) / sum(exp(s)), s - log(sum(exp(s))) and log(sum(exp(s))): from the output to the scores s."""
    log = node if node.name == "log" else _through(graph, node.ins[1], "log") if node.name == "sub" else None
    total = _through(graph, node.ins[1] if node.name == "div" else log.ins[0] if log else -1, "reduce_sum")
    power = graph.producer.get(total.ins[0]) if total else None
    if total is None or power is None or power.name != "exp":
        return
    s, axes = power.ins[0], total.params["axes"]
    if node is log:
        yield _logsumexp_site(graph, node, power, axes)
    elif log and s == node.ins[0]:
        yield _log_softmax_site(graph, node, _unshifted(graph, s), axes)
    elif node.name == "div" and node.ins[0] == power.outs[0]:
        yield _softmax_site(graph, node, _unshifted(graph, s), axes, graph.values[node.outs[0]])


def _unshifted(graph, s):
    """The scores z behind s = z - max(z): the softmax does not depend on the shift."""
    shift = graph.producer.get(s)
    shifted = shift is not None and shift.name == "sub" and meaning(graph, shift.ins[1]) == "maximum"
    return shift.ins[0] if shift is not None and shifted else s


def _softmax_site(graph, node, s, axes, p):
    line = Words(graph, node, 0).line()

    def rows(x):
        return x.sum(axes, keepdims=True)

    def way(name, rank, apply, text):
        law = "dz = p * (dp - sum(p * dp)), summed over the softmax's axis"
        return Way(name, rank, "softmax", apply, lambda w: f"softmax: {text} in {line}{w.where}; it should be {law}")

    diagonal = "only the diagonal p(1 - p) of its Jacobian is used, the off-diagonal terms -p_i p_j are missing"
    coupling = "the term -p * sum(p * dp), which couples its row, is missing"
    ways = [
        way("derivative missing", MISSING, lambda dy: dy, "its derivative is missing"),
        way("row term", MISSING, lambda dy: p * dy, coupling),
        way("diagonal", SIMPLE, lambda dy: p * (1 - p) * dy, diagonal),
        way("no p", SLIP, lambda dy: dy - rows(p * dy), "the factor p in front of (dp - sum(p * dp)) is missing"),
        way("sum without p", SLIP, lambda dy: p * (dy - rows(dy)), "dp is summed without the factor p"),
        way("plus", SLIP, lambda dy: p * (dy + rows(p * dy)), "the sign of the row term is wrong"),
        way("mean", SLIP, lambda dy: p * (dy - (p * dy).mean(axes, keepdims=True)), "p * dp is averaged, not summed"),
        way("1 - p", SLIP, lambda dy: (1 - p) * dy, "its derivative is taken as 1 - p"),
    ]
    for other in _other_axes(p, axes):
        wrong = lambda dy, other=other: p * (dy - (p * dy).sum(other, keepdims=True))  # noqa: E731
        text = f"p * dp is summed over axis {_list(other)} instead of {_list(axes)}"
        ways.append(way(f"axis {other}", SIMPLE, wrong, text))
    return Site(node, -2, s, lambda dy: p * (dy - rows(p * dy)), ways)


def _log_softmax_site(graph, node, s, axes):
    line = Words(graph, node, 0).line()
    p = np.exp(graph.values[node.outs[0]])

    def rows(x):
        return x.sum(axes, keepdims=True)

    def way(name, rank, apply, text):
        law = "dz = dy - p * sum(dy), summed over the softmax's axis"
        says = lambda w: f"log_softmax: {text} in {line}{w.where}; it should be {law}"  # noqa: E731
        return Way(name, rank, "softmax", apply, says)

    ways = [
        way("row term", MISSING, lambda dy: dy, "the term -p * sum(dy) (the softmax p in p - y) is missing"),
        way("only p", MISSING, lambda dy: -p * rows(dy), "the term dy itself (the -y in p - y) is missing"),
        way("diagonal", SIMPLE, lambda dy: (1 - p) * dy, "only the diagonal 1 - p of its Jacobian is used"),
        way("plus", SLIP, lambda dy: dy + p * rows(dy), "the sign of the row term is wrong"),
        way("softmax", SLIP, lambda dy: p * (dy - rows(p * dy)), "the derivative of softmax is used in its place"),
        way("one", SIMPLE, lambda dy: dy - p, "sum(dy) is taken to be 1 (dy - p): multiply the softmax p by sum(dy)"),
    ]
    for name, (other, text) in _in_place_of_softmax(graph, node, s, p, axes).items():
        ways.append(way(name, SLIP, lambda dy, other=other: dy - other * rows(dy), text))
    for other in _other_axes(p, axes):
        wrong = lambda dy, other=other: dy - p * dy.sum(other, keepdims=True)  # noqa: E731
        text = f"dy is summed over axis {_list(other)} instead of {_list(axes)}"
        ways.append(way(f"sum {other}", SIMPLE, wrong, text))
    return Site(node, -2, s, lambda dy: dy - p * rows(dy), ways)


def _in_place_of_softmax(graph, node, s, p, axes):
    """What is used where the softmax p belongs."""
    z = graph.values[s]
    shifted = z - z.max(axes, keepdims=True)
    stands = "used in place of the softmax p"
    found = {
        "no p": (np.ones(p.shape), "the factor p (the softmax) of the row term is missing"),
        "scores": (z, f"the scores z are {stands} (z - y instead of p - y)"),
        "exp": (np.exp(z), f"exp(z) is {stands}: it is not normalised"),
        "shifted exp": (np.exp(shifted), f"exp(z) is {stands}: it is not normalised"),
        "logarithm": (np.log(p), f"log p is {stands} (log p - y instead of p - y)"),
        "sigmoid": (1 / (1 + np.exp(-z)), f"the sigmoid is {stands}"),
        "derivative": (p * (1 - p), f"the derivative p(1 - p) is {stands} itself"),
        "square": (p * p, f"p^2 is {stands}"),
        "hard": (1.0 * (p == p.max(axes, keepdims=True)), f"the argmax is {stands}"),
    }
    for other in _other_axes(p, axes):
        e = np.exp(z - z.max())
        text = f"the softmax p is taken over axis {_list(other)} instead of {_list(axes)}"
        found[f"axis {other}"] = (e / e.sum(other, keepdims=True), text)
    for role, u in others(graph, node, s):
        e = np.exp(graph.values[u] - graph.values[u].max(axes, keepdims=True))
        text = f"the softmax p is taken of {Words(graph, node, 0).value(u)} instead of the scores"
        found[f"softmax of {role}"] = (e / e.sum(axes, keepdims=True), text)
    return found


def _other_axes(p, axes):
    """Axes over which a row may be summed by mistake: another one, one more, all."""
    long = [axis for axis in range(p.ndim) if p.shape[axis] > 1 and axis not in axes]
    found = [*((axis,) for axis in long), *((*axes, axis) for axis in long), tuple(range(p.ndim))]
    return list(dict.fromkeys(tuple(sorted(some)) for some in found if set(some) != set(axes)))


def _list(axes):
    return " and ".join(map(str, axes))


def _logsumexp_site(graph, node, power, axes):
    line = Words(graph, node, 0).line()
    s, e = power.ins[0], graph.values[power.outs[0]]
    p = e / e.sum(axes, keepdims=True)

    def spread(dy):
        return np.broadcast_to(dy.reshape([1 if i in axes else n for i, n in enumerate(p.shape)]), p.shape)

    def says(text):
        return lambda w: f"{text} in {line}{w.where}; the gradient of logsumexp is the softmax p = exp(z) / sum(exp(z))"

    instead = _in_place_of_softmax(graph, node, _unshifted(graph, s), p, axes)
    ways = [
        Way(name, SLIP, "softmax", lambda dy, other=other: spread(dy) * other, says(text))
        for name, (other, text) in instead.items()
    ]
    for sign in (1.0, -1.0):
        text = f"its incoming gradient, a sum over the row, is taken to be {sign:g}: multiply the softmax p by it"
        ways.append(Way(f"one {sign}", SIMPLE, "softmax", lambda dy, sign=sign: sign * p, says(text)))
    text = "the softmax p (the path through logsumexp) is missing"
    ways.append(Way("none", MISSING, "softmax", lambda dy: np.zeros(p.shape), says(text)))
    return Site(node, -3, s, lambda dy: p * spread(dy), ways)
