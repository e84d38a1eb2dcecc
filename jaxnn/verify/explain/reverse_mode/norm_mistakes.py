"""Normalizations as one step, and the mistakes in their backward passes: batch norm, layer norm, RMS norm, x / |x|.

xhat = (x - mean) / sd,  dx = (dxhat - mean(dxhat) - xhat mean(dxhat xhat)) / sd, where sd may contain an epsilon.
"""

import math
from collections.abc import Iterator

import numpy as np

from jaxnn.verify.explain.reverse_mode.flat_graph import Graph, pull_back
from jaxnn.verify.explain.reverse_mode.mistake_words import Words
from jaxnn.verify.explain.reverse_mode.primitive_rules import Node
from jaxnn.verify.explain.reverse_mode.sites import MISSING, SIMPLE, SLIP, Site, Way
from jaxnn.verify.explain.reverse_mode.value_names import statistic


def normalizations(graph: Graph) -> Iterator[Site]:
    """The sites from a normalization's output to its input."""
    for node in reversed(graph.nodes):
        if node.name in ("div", "mul"):
            yield from _site(graph, node)


def _factors(graph: Graph, v: int, power: int = 1) -> Iterator[tuple[int, int]]:
    """The values that v is a product of, each with its power 1 or -1: gamma (x - mean) / sd in any order."""
    node = graph.producer.get(v)
    if node is not None and node.name in ("mul", "div") and statistic(graph, v)[1] is None:
        yield from _factors(graph, node.ins[0], power)
        yield from _factors(graph, node.ins[1], -power if node.name == "div" else power)
    else:
        yield (v, power)


def _site(graph: Graph, node: Node) -> Iterator[Site]:
    factors = list(_factors(graph, node.outs[0]))
    shape = graph.values[node.outs[0]].shape
    for scale, power in factors:
        name, total = statistic(graph, scale)
        if total is None or name not in ("standard deviation", "mean of squares", "sum of squares (the norm)"):
            continue
        for centred, one in factors:
            x = centred
            if name == "standard deviation":
                minus = graph.producer.get(centred)
                if minus is None or minus.name != "sub" or statistic(graph, minus.ins[1])[0] != "mean":
                    continue
                x = minus.ins[0]
            fits = graph.values[x].shape == shape and all(axis < len(shape) for axis in total.params["axes"])
            if one != 1 or centred == scale or not fits:
                continue
            rest = [(v, n) for v, n in factors if v not in (centred, scale)]
            if any(graph.reaches(x, v) for v, _ in rest):
                continue
            gamma = math.prod((graph.values[v] ** float(n) for v, n in rest), start=np.ones(()))
            yield from _checked(graph, node, (centred, x), graph.values[scale] ** float(power), gamma, total, name)


def _checked(graph, node, where, factor, gamma, total, name):
    """The site, if dx actually is what the law says."""
    centred, x = where
    axes, shape = total.params["axes"], graph.values[x].shape
    law = _Law(graph.values[centred] * factor, factor, gamma, axes, name == "standard deviation")
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=shape) for _ in range(2))
    law.weigh(first * gamma, pull_back(graph, node, x, first))
    truth = pull_back(graph, node, x, second)
    if np.abs(law.right(second) - truth).max() <= 1e-7 * np.abs(truth).max():
        ways = law.ways(Words(graph, node, 0), graph.values[centred], graph.values[x])
        yield Site(node, -4, x, law.right, list(ways))


class _Law:
    """dx as a function of dy, for y = gamma xhat."""

    def __init__(self, xhat, factor, gamma, axes, centres):
        self.xhat, self.factor, self.gamma, self.axes, self.centres = xhat, factor, gamma, tuple(axes), centres
        self.n = math.prod(xhat.shape[axis] for axis in axes)
        self.weight: np.ndarray | float = 0.0  # of the last term: 1/n, up to the epsilon
        self.count = 1  # n, n - 1, or 1 for a norm, the nearest to 1 / weight

    def weigh(self, d: np.ndarray, truth: np.ndarray):
        """Find the weight of the last term from one example."""
        mean = d.mean(self.axes, keepdims=True) if self.centres else 0.0
        last = self.xhat * (d * self.xhat).sum(self.axes, keepdims=True)
        left = d - mean - truth / self.factor
        self.weight = (left * last).sum(self.axes, keepdims=True) / (last * last).sum(self.axes, keepdims=True)
        inverse = float(np.median(1 / self.weight))
        self.count = min((self.n, max(self.n - 1, 1), 1), key=lambda count: abs(count - inverse))

    def right(self, d: np.ndarray) -> np.ndarray:
        """dx."""
        return self.dx(d * self.gamma)

    def dx(self, d, mean=1.0, square=1.0, scale=1.0, axes=None, before=None, inside=None):
        """dx with multiples of its terms, with other axes, or with something else in place of xhat."""
        axes = self.axes if axes is None else axes
        more = math.prod(self.xhat.shape[axis] for axis in axes) / self.n
        before = self.xhat if before is None else before
        inside = self.xhat if inside is None else inside
        mean_term = mean * d.mean(axes, keepdims=True) if self.centres else 0.0
        square_term = square * self.weight * before * (d * inside).sum(axes, keepdims=True) / more
        return scale * self.factor * (d - mean_term - square_term)

    def without_gamma(self, d):
        """dx with means of dy, not of gamma dy."""
        return self.dx(d) + self.factor * (d * self.gamma - d)

    def ways(self, words: Words, centred: np.ndarray, x: np.ndarray) -> Iterator[Way]:
        """The ways to get dx wrong; `centred` is x - mean."""
        line, n, count = words.line(), self.n, self.count
        term = f"xhat * {'mean' if count > 1 else 'sum'}(dxhat * xhat)"
        if self.centres:
            what, sd, law = "variance", "the standard deviation", f"(dxhat - mean(dxhat) - {term}) / sd"
        else:
            what, sd, law = "norm", "the norm", f"(dxhat - {term}) / norm"

        def way(name, rank, text, **wrong):
            says = lambda w: f"normalization {line}: {text}{w.where}; it should be dx = {law}"  # noqa: E731
            return Way(name, rank, "normalization", lambda d: self.dx(d * self.gamma, **wrong), says)

        if self.centres:
            text = "the mean and the variance are treated as constants: the paths through both statistics are missing"
            yield way("constants", MISSING, text, mean=0.0, square=0.0)
            yield way("no mean", MISSING, "the path through the mean, -mean(dxhat), is missing", mean=0.0)
            yield way("plus mean", SLIP, "the sign of the mean's term is wrong", mean=-1.0)
            yield way("sum", SIMPLE, f"dxhat is summed where its mean belongs (1/{n} is missing)", mean=float(n))
            text = f"dxhat and dxhat * xhat are summed where their means belong (1/{n} is missing)"
            yield way("sums", SIMPLE, text, mean=float(n), square=float(n))
        yield way("no square", MISSING, f"the path through the {what}, -{term}, is missing", square=0.0)
        yield way("plus square", SLIP, f"the sign of the {what}'s term is wrong", square=-1.0)
        yield way("twice", SLIP, f"the {what}'s term is twice as large as it should be", square=2.0)
        yield way("half", SLIP, f"the {what}'s term is only half of what it should be (the factor 2)", square=0.5)
        if count > 1:
            text = f"dxhat * xhat is summed where its mean belongs (1/{count} is missing)"
            yield way("sum of products", SIMPLE, text, square=float(count))
            for other in {n - 1, n, n + 1} - {count, 0}:
                text = f"the {what}'s term is divided by {other} instead of {count} (n - 1 or n in the {what})"
                yield way(f"count {other - n}", SLIP, text, square=count / other)
        else:
            text = f"dxhat * xhat is averaged (divided by {n}) where its sum belongs"
            yield way("mean of products", SIMPLE, text, square=1 / n)
        yield way("no xhat", SIMPLE, "the factor xhat in front of the last term is missing", before=1.0)
        yield way("no xhat inside", SIMPLE, "dxhat is summed without its factor xhat in the last term", inside=1.0)
        for name, other in {"x - mean": centred, "x": x}.items() if self.centres else (("x", x),):
            text = f"{name} is used in place of xhat (a division by {sd} is missing)"
            yield way(f"{name} before", SLIP, f"{text} in front of the last term", before=other)
            yield way(f"{name} inside", SLIP, f"{text} inside the sum of the last term", inside=other)
            yield way(f"{name} both", SLIP, f"{text} in the last term", before=other, inside=other)
        f = self.factor
        if np.any(self.gamma != 1):
            text = "the means are taken of dy, without its factor gamma (dxhat = gamma dy)"
            yield Way("no gamma inside", SIMPLE, "normalization", self.without_gamma, way("", 0.0, text).says)
        yield way("no scale", SIMPLE, f"the division by {sd} is missing", scale=1 / f)
        var = (centred**2).mean(self.axes, keepdims=True)
        eps = 1 / f**2 - var
        if self.centres and np.all(eps > 1e-12 * var):
            n1 = var * n / max(n - 1, 1)
            for text, sd_then in {
                "without its epsilon": np.sqrt(var),
                "with its epsilon outside the root": np.sqrt(var) + eps,
                "of n - 1": np.sqrt(n1 + eps),
            }.items():
                more = 1 / (sd_then * f)
                text = f"the gradient is divided by the standard deviation {text}"
                yield way(text, SIMPLE, text, scale=more)
                text = f"{text}, in xhat too"
                yield way(text, SIMPLE, text, scale=more, before=self.xhat * more, inside=self.xhat * more)
        yield way("scale twice", SIMPLE, f"the gradient is divided by {sd} twice (by its square)", scale=f)
        yield way("multiplied", SIMPLE, f"the gradient is multiplied by {sd} instead of divided", scale=1 / f**2)
        long = [axis for axis, length in enumerate(self.xhat.shape) if length > 1]
        some = {*((axis,) for axis in long), tuple(long), *(tuple(a for a in long if a != axis) for axis in long)}
        for axes in some - {(), tuple(axis for axis in self.axes if axis in long)}:
            text = f"the gradient's means are taken over axis {_list(axes)} instead of {_list(self.axes)}"
            yield way(f"axes {axes}", SIMPLE, text, axes=axes)


def _list(axes):
    return " and ".join(map(str, axes))
