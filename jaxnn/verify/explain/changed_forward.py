"""The third stage of the diagnosis: the gradient may be right, but of another function, or use another one's values.

The forward is changed at one place (a constant, a function, the place of an epsilon, the labels, a mask). Then either
the changed function's gradient is compared with the user's, or the right rules are run on the changed values, as in a
backward pass that recomputes an activation, a mask or a variance differently. A change that agrees in every leaf proves
which forward the user's backward assumes.
"""

import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.verify.explain.evidence import Evidence
from jaxnn.verify.explain.reverse_mode import other_forwards
from jaxnn.verify.explain.reverse_mode.flat_graph import TooLarge, flatten
from jaxnn.verify.report.data import EXACT, Finding

MOST_NODES = 400


def other_function(evidence: Evidence, seconds: float) -> list[Finding]:
    """What the forward would have to be for the manual gradient to be right, if one change of it is enough."""
    deadline = time.process_time() + seconds
    comparable = [m is not None and m.shape == t.shape for m, t in zip(evidence.manual, evidence.truth, strict=True)]
    if evidence.jaxpr is None or not all(comparable):
        return []
    wrong = tuple(path for path, is_wrong in zip(evidence.input_paths, evidence.wrong, strict=True) if is_wrong)
    text = _other_given(evidence)
    if text:
        return [Finding("another_function", text, wrong, EXACT)]
    with jax.enable_x64(True), np.errstate(all="ignore"):
        try:
            paths = (*evidence.input_paths, *evidence.given_paths)
            graph = flatten(evidence.jaxpr, evidence.inputs, evidence.given, paths)
        except TooLarge:
            return []
        if len(graph.nodes) > MOST_NODES:
            return []
        functions = list(other_forwards.other_functions(graph))
        values = [*functions, *other_forwards.other_values(graph)]
        readings = {other_forwards.FUNCTION: functions, other_forwards.VALUES: values, other_forwards.LINE: values}
        for reading, changes in readings.items():
            for change in changes:
                if time.process_time() > deadline:
                    return []
                gradients = other_forwards.gradients(graph, change, evidence.dy, reading)
                if gradients is not None and _agrees(evidence.manual, gradients):
                    source = change.node.place.source if change.node else ""
                    return [Finding("another_function", reading + change.text, wrong, EXACT, source or None)]
    return []


def _agrees(manual, gradients) -> bool:
    tree = max((float(np.abs(m).max(initial=0)) for m in manual), default=0.0)
    if not np.isfinite(tree):
        return False
    for mine, gradient in zip(manual, gradients, strict=True):
        scale = float(np.abs(mine).max(initial=0)) + 1e-6 * tree
        if not (np.abs(gradient - mine) <= 1e-6 * scale).all():
            return False
    return True


# ---------------------------------------------------------------- arguments that are not differentiated


def _other_given(evidence: Evidence) -> str:
    """Labels off by one or in another order, masks inverted, another random key: what fits, in words."""
    for i, (path, x) in enumerate(zip(evidence.given_paths, evidence.given, strict=True)):

        def at(other, i=i):
            given = (*evidence.given[:i], other, *evidence.given[i + 1 :])
            return evidence.again(evidence.inputs, given, evidence.dy)

        if isinstance(x, np.ndarray | jax.Array):
            for words, other in _others(x):
                found = at(other)
                if found is not None and _agrees(evidence.manual, found[1]):
                    return f"it is the right gradient for another {path}: {words}"
            if np.size(x) and x.ndim and jnp.issubdtype(x.dtype, jnp.integer):
                # One more than the last class is not a class: the labels are moved to where it is.
                x = np.asarray(x)
                for step, words in ((1, "large"), (-1, "small")):
                    inside = np.clip(x, x.min() - min(step, 0), x.max() - max(step, 0)).astype(x.dtype)
                    here, there = at(inside), at((inside + step).astype(x.dtype))
                    if here is not None and there is not None and x.min() < x.max() and _agrees(here[0], there[1]):
                        return f"it is the right gradient for another {path}: off by one, too {words} by 1"
    return ""


def _others(x) -> Iterator[tuple[str, Any]]:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) and x.shape == ():
        first, second = jax.random.split(x)
        drawn = "the mask or the noise is drawn again, from another random key than in the forward"
        yield f"{drawn}: the first of split(key)", first
        yield f"{drawn}: the second of split(key)", second
        for i in range(3):
            yield f"{drawn}: fold_in(key, {i})", jax.random.fold_in(x, i)
        return
    if jnp.issubdtype(x.dtype, jax.dtypes.extended):
        return
    x = np.asarray(x)
    others = []
    if np.issubdtype(x.dtype, np.integer) and x.ndim and x.size:
        n = int(x.max()) + 1
        others = [("off by one, too large by 1", (x + 1) % n), ("off by one, too small by 1", (x - 1) % n)]
        others += [("in reverse order", x[::-1]), ("shifted by one place", np.roll(x, 1, 0)), ("all 0", 0 * x)]
    elif x.dtype == bool:
        others = list(other_forwards.other_masks(x))
    for words, other in others:
        if not np.array_equal(other, x):
            yield words, other.astype(x.dtype)
