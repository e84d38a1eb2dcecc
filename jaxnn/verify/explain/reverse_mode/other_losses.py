"""What is used where the gradient of a value belongs: a constant, or the gradient of another loss."""

from collections.abc import Iterator

import numpy as np

from jaxnn.verify.explain.reverse_mode.flat_graph import Graph
from jaxnn.verify.explain.reverse_mode.primitive_rules import is_float, is_integer

MOST_TARGETS = 6


def other_gradients(graph: Graph, v: int) -> Iterator[tuple[str, np.ndarray]]:
    """Gradients for value v, in words, each up to a factor: 1 everywhere, and those of the common losses."""
    u = graph.values[v]
    yield "", np.ones(u.shape)
    for name, t in _targets(graph, v):
        for words, gradient in _losses(u, t):
            if np.isfinite(gradient).all() and gradient.any():
                yield f"{words}, with t = {name}", gradient


def _targets(graph: Graph, v: int) -> Iterator[tuple[str, np.ndarray]]:
    """What u = values[v] may be compared with: constants of its shape, labels as one-hot rows."""
    shape = graph.values[v].shape
    count = 0
    for w, x in enumerate(graph.values):
        if w in graph.active or count == MOST_TARGETS:
            continue
        name = graph.paths.get(w) or graph.constants.get(w)
        if name and is_float(x) and x.shape == shape and (x != x.flat[0]).any():
            count += 1
            yield name, x
        elif w in graph.paths and len(shape) > 1 and is_integer(x) and x.shape == shape[:-1]:
            for step, words in ((0, ""), (1, " + 1 (off by one)"), (-1, " - 1 (off by one)")):
                yield f"one_hot({name}{words})", 1.0 * ((x + step)[..., None] == np.arange(shape[-1]))


def _losses(u: np.ndarray, t: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The derivatives of losses in the prediction u, for the target t."""
    e = np.exp(u - u.max(-1, keepdims=True))
    q = e / e.sum(-1, keepdims=True)
    s = 1 / (1 + np.exp(-u))
    d = u - t
    yield "u - t, that of the squared error", d
    yield "sign(u - t), that of the absolute error", np.sign(d)
    yield "tanh(u - t), that of log-cosh", np.tanh(d)
    yield "u - t clipped at 1, that of the Huber loss", np.clip(d, -1, 1)
    yield "softmax(u) - t, that of the cross-entropy of logits", q - t
    yield "sigmoid(u) - t, that of the binary cross-entropy of logits", s - t
    yield "-t / u, that of the cross-entropy of probabilities", -t / u
    yield "(u - t) / (u(1 - u)), that of the binary cross-entropy of probabilities", d / (u * (1 - u))
    yield "-t / softmax(u), the gradient in the probabilities: the derivative of softmax is missing", -t / q
    yield "-t where t u < 1, that of the hinge loss", -t * (t * u < 1)
    yield "-t sigmoid(-t u), that of the logistic loss", -t / (1 + np.exp(t * u))
    if (t > 0).all():
        r = np.log(q) - np.log(t)
        centred = r - (q * r).sum(-1, keepdims=True)
        words = "q (r - sum(q r)) with q = softmax(u), r = log(q / t)"
        yield f"{words}, that of the divergence KL(q, t) with its arguments exchanged (reversed)", q * centred
        yield "log(q / t) with q = softmax(u)", r
