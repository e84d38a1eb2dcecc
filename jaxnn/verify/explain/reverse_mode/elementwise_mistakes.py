"""The mistakes in the rules of elementwise operations."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxnn.verify.explain.reverse_mode.mistake_words import Words
from jaxnn.verify.explain.reverse_mode.primitive_rules import DERIVATIVE, forward
from jaxnn.verify.explain.reverse_mode.sites import MISSING, OTHER, SIMPLE, SLIP, Way, others, say

# Derivatives used in the wrong place, as functions of z and a = f(z).
KNOWN: dict[str, Callable[..., np.ndarray]] = {
    "of tanh, 1 - a^2,": lambda z, a: 1 - a * a,
    "of tanh, 1 - tanh(z)^2,": lambda z, a: 1 - np.tanh(z) ** 2,
    "of the sigmoid, a(1 - a),": lambda z, a: a * (1 - a),
    "of the sigmoid, s(z)(1 - s(z)),": lambda z, a: _sigmoid(z) * _sigmoid(-z),
    "of softplus, sigmoid(z),": lambda z, a: _sigmoid(z),
    "of relu, 1 where z > 0,": lambda z, a: 1.0 * (z > 0),
    "of silu": lambda z, a: _sigmoid(z) * (1 + z * _sigmoid(-z)),
    "of gelu (tanh form)": lambda z, a: _gelu_tanh(z),
    "of gelu (erf form)": lambda z, a: _normal_cdf(z) + z * np.exp(-z * z / 2) / math.sqrt(2 * math.pi),
    "of gelu without z times the density, the normal distribution Phi(z),": lambda z, a: _normal_cdf(z),
    "of elu": lambda z, a: np.where(z > 0, 1, np.exp(np.minimum(z, 0))),
    "of leaky relu with slope 0.01": lambda z, a: np.where(z > 0, 1, 0.01),
    "of leaky relu with slope 0.1": lambda z, a: np.where(z > 0, 1, 0.1),
    "of leaky relu with slope 0.2": lambda z, a: np.where(z > 0, 1, 0.2),
    "of quick gelu": lambda z, a: _sigmoid(1.702 * z) * (1 + 1.702 * z * _sigmoid(-1.702 * z)),
    "(written as a instead of 1 - a^2 or a(1 - a))": lambda z, a: a,
    "(written as 1 - a)": lambda z, a: 1 - a,
    "(written as 1 - z^2)": lambda z, a: 1 - z * z,
    "(written as z(1 - z))": lambda z, a: z * (1 - z),
    "(written as (1 - a)^2)": lambda z, a: (1 - a) ** 2,
    "(written as 1 + a^2)": lambda z, a: 1 + a * a,
    "(written as a(1 + a))": lambda z, a: a * (1 + a),
}


def _sigmoid(z):
    return np.exp(-np.logaddexp(0, -z))


def _normal_cdf(z):
    return 0.5 * forward("erfc", {}, [-z / math.sqrt(2)], None)[0]


def _gelu_tanh(z):
    c = math.sqrt(2 / math.pi)
    t = np.tanh(c * (z + 0.044715 * z**3))
    return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * c * (1 + 3 * 0.044715 * z * z)


# Powers of x or y that a derivative is mistaken for.
_SLIPS: dict[str, dict[str, Callable[..., Any]]] = {
    "exp": {"z": lambda p, x, y: x, "z exp(z)": lambda p, x, y: x * y, "1/exp(z)": lambda p, x, y: 1 / y},
    "log": {"z": lambda p, x, y: x, "1/log(z)": lambda p, x, y: 1 / y, "1/z^2": lambda p, x, y: x**-2.0},
    "log1p": {"1/z": lambda p, x, y: 1 / x},
    "sqrt": {
        "1/(2z)": lambda p, x, y: 0.5 / x,
        "sqrt(z)/2": lambda p, x, y: 0.5 * y,
        "1/sqrt(z)": lambda p, x, y: 1 / y,
        "2 sqrt(z)": lambda p, x, y: 2 * y,
    },
    "rsqrt": {
        "z^(-3/2)": lambda p, x, y: y**3,
        "-z^(-3/2)": lambda p, x, y: -(y**3),
        "z^(-3/2)/2": lambda p, x, y: 0.5 * y**3,
        "-z^(-1/2)/2": lambda p, x, y: -0.5 * y,
        "-1/(2z)": lambda p, x, y: -0.5 * y**2,
        "-z^(-2)/2": lambda p, x, y: -0.5 * y**4,
        "z^(-1/2)": lambda p, x, y: y,
    },
    "square": {
        "z (the factor 2 is missing)": lambda p, x, y: x,
        "z^2": lambda p, x, y: y,
        "2 z^2": lambda p, x, y: 2 * y,
        "2": lambda p, x, y: 2,
    },
    "integer_pow": {
        "{n1} (the factor {n} is missing)": lambda p, x, y: x ** float(p["y"] - 1),
        "{n} z^{n} (the exponent is one too high)": lambda p, x, y: p["y"] * y,
        "z^{n} (the function itself)": lambda p, x, y: y,
        "{n} (z is missing)": lambda p, x, y: np.full_like(x, p["y"]),
        "{n} z^{m} (the exponent is one too low)": lambda p, x, y: p["y"] * x ** float(p["y"] - 2),
    },
    "sin": {"sin(z)": lambda p, x, y: y, "-cos(z)": lambda p, x, y: -np.cos(x)},
    "cos": {"cos(z)": lambda p, x, y: y, "sin(z)": lambda p, x, y: np.sin(x)},
    "erf": {"exp(-z^2)": lambda p, x, y: np.exp(-x * x), "2/sqrt(pi)": lambda p, x, y: 2 / math.sqrt(math.pi)},
    "abs": {"1 where z > 0, else 0,": lambda p, x, y: 1.0 * (x > 0), "z": lambda p, x, y: x},
}


def of_function(graph, node, x, y):
    """f(x): dy f'(x)."""
    p, name = node.params, node.name
    right = DERIVATIVE[name](p, x, y)

    def way(way_name, rank, derivative, *words):
        return Way(way_name, rank, "derivative", lambda dy: dy * derivative, say(*words))

    def at(z):
        return DERIVATIVE[name](p, z, forward(name, p, [z], node.eqn)[0])

    if np.all(right == 1):
        return
    yield way("derivative missing", MISSING, 1.0, "derivative_missing")
    if name == "neg":
        return
    for words, f in _SLIPS.get(name, {}).items():
        yield way(f"slip {words}", SIMPLE, f(p, x, y), "derivative_slip", _power(words, p.get("y")))
    if name in ("tanh", "logistic"):
        yield from known_derivatives(x, y, right)
    yield way("at output", SIMPLE, at(y), "at_output")
    without = _without_constant(graph, node.ins[0])
    if without is not None:
        yield way("constant lost", SIMPLE, at(without[0]), "constant_lost", without[1])
    yield way("derivative twice", SLIP, right * right, "derivative_twice")
    for role, u in others(graph, node, node.ins[0], skip=node.outs[0]):
        z = graph.values[u]
        yield way(f"derivative at {role}", OTHER, at(z), "derivative_at", u)
        if name in ("tanh", "logistic"):
            from_output = DERIVATIVE[name](p, x, z)
            yield way(f"derivative of output {role}", OTHER, from_output, "derivative_of_output", u)


def _power(words, n):
    """The words for a slip in the derivative of a power, with its exponent n."""
    return words.format(n=n, m=n - 2, n1="z" if n == 2 else f"z^{n - 1}") if n is not None else words


def _without_constant(graph, v):
    """The value of v = u + c without its constant c (an epsilon), and c."""
    node = graph.producer.get(v)
    if node is None or node.name not in ("add", "max"):
        return None
    c = Words(graph, node, 0).constant(node)
    if not c:
        return None
    inner = next(u for u in node.ins if u in graph.active)
    return np.broadcast_to(graph.values[inner], graph.values[v].shape), c


def known_derivatives(z: np.ndarray, a: np.ndarray, right: np.ndarray) -> Iterator[Way]:
    """Another function's derivative in place of that of a = f(z)."""
    seen = [right]
    for words, f in KNOWN.items():
        d = f(z, a)
        if np.isfinite(d).all() and all(np.abs(d - other).max() > 1e-9 for other in seen):
            seen.append(d)
            yield Way(f"derivative {words}", SLIP, "derivative", lambda dy, d=d: dy * d, say("other_derivative", words))


def of_product(graph, node, k, xs, y):
    """a b: each factor gets dy times the other one."""
    a, b = xs[k], xs[1 - k]
    yield Way("factor missing", MISSING, "factor", lambda dy: dy, say("factor_missing", 1 - k))
    yield Way("factor twice", SLIP, "factor", lambda dy: dy * b * b, say("factor_twice", 1 - k))
    yield Way("divided", SLIP, "factor", lambda dy: dy / b, say("upside_down", 1 - k))
    yield Way("own factor", SLIP, "operand", lambda dy: dy * a, say("own_factor", k))
    for role, u in others(graph, node, node.ins[1 - k], skip=node.ins[k]):
        wrong = lambda dy, other=graph.values[u]: dy * other  # noqa: E731
        yield Way(f"factor is {role}", OTHER, "operand", wrong, say("other_operand", 1 - k, u))


def of_quotient(graph, node, k, xs, y):
    """a / b: dy / b, and -dy a / b^2."""
    a, b = xs
    without = _without_constant(graph, node.ins[1])
    if without is not None:
        c = without[0]
        wrong = (lambda dy: -dy * a / c**2) if k else (lambda dy: dy / c)
        yield Way("constant lost", SIMPLE, "derivative", wrong, say("constant_lost", without[1]))
    if k == 0:
        yield Way("factor missing", MISSING, "factor", lambda dy: dy, say("division_missing"))
        yield Way("factor twice", SLIP, "factor", lambda dy: dy / b / b, say("division_twice"))
        yield Way("multiplied", SLIP, "factor", lambda dy: dy * b, say("upside_down", 1))
    else:
        for words, slip in {
            "has b where b^2 belongs": -a / b,
            "lacks the factor a": -1 / b**2,
            "lacks the division by b^2": -a,
            "has b^3 where b^2 belongs": -a / b**3,
            "is written as 1/b": 1 / b,
            "is written as -1/b": -1 / b,
        }.items():
            yield Way(words, SLIP, "derivative", lambda dy, slip=slip: dy * slip, say("quotient", words))
    for role, u in others(graph, node, node.ins[1 - k], skip=node.ins[k]):
        other = graph.values[u]
        slip = -other / b**2 if k else 1 / other
        wrong = lambda dy, slip=slip: dy * slip  # noqa: E731
        yield Way(f"operand is {role}", OTHER, "operand", wrong, say("other_operand", 1 - k, u))


def of_power(graph, node, k, xs, y):
    """x^n: dy n x^(n-1)."""
    x, n = xs
    if k == 0:
        yield Way("derivative missing", MISSING, "derivative", lambda dy: dy, say("derivative_missing"))
        for words, slip in {
            "z^(n-1) (the factor n is missing)": np.power(x, n - 1),
            "n z^n (the exponent is one too high)": n * y,
        }.items():
            yield Way(words, SIMPLE, "derivative", lambda dy, slip=slip: dy * slip, say("derivative_slip", words))


def of_maximum(graph, node, k, xs, y):
    """max, min: the chosen operand gets dy."""
    mine = (xs[k] > xs[1 - k]) if node.name == "max" else (xs[k] < xs[1 - k])
    relu = node.ins[1 - k] not in graph.active
    yield Way("mask missing", MISSING, "mask", lambda dy: dy, say("mask_missing"))
    yield Way("mask inverted", SIMPLE, "mask", lambda dy: dy * ~mine, say("mask_inverted"))
    if relu:
        yield Way("value", SLIP, "derivative", lambda dy: dy * y, say("derivative_slip", "relu itself"))
        yield from known_derivatives(xs[k], y, 1.0 * mine)
        for role, u in others(graph, node, node.ins[k], skip=node.outs[0]):
            other = graph.values[u] > xs[1 - k]
            yield Way(f"mask of {role}", OTHER, "mask", lambda dy, other=other: dy * other, say("mask_of", u))
        yield Way("mask of dy", OTHER, "mask", lambda dy: dy * (dy > 0), say("mask_of_gradient"))
        yield Way("mask of both", OTHER, "mask", lambda dy: dy * mine * (dy > 0), say("mask_of_gradient"))


def of_select(graph, node, k, xs, y):
    """where: the chosen case gets dy."""
    if k == 0:
        return
    mine = np.broadcast_to(xs[0] == k - 1, y.shape)
    yield Way("mask missing", MISSING, "mask", lambda dy: dy, say("mask_missing"))
    yield Way("mask inverted", SIMPLE, "mask", lambda dy: dy * ~mine, say("mask_inverted"))
    for role, u in others(graph, node, node.outs[0]):
        other = graph.values[u] > 0
        yield Way(f"mask of {role}", OTHER, "mask", lambda dy, other=other: dy * other, say("mask_of", u))


def of_clamp(graph, node, k, xs, y):
    """clip: dy where nothing is clipped."""
    if k == 1:
        inside = (xs[0] < xs[1]) & (xs[1] < xs[2])
        yield Way("mask missing", MISSING, "mask", lambda dy: dy, say("clip_missing"))
        yield Way("mask inverted", SIMPLE, "mask", lambda dy: dy * ~inside, say("mask_inverted"))
