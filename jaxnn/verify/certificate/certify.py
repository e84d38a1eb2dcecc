"""A rule against its witnesses: is the hand-written derivative right, and how accurate in low precision?"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.verify.judge.compare import largest_error
from jaxnn.verify.judge.evaluate import Evaluator, cotangent
from jaxnn.verify.judge.judge import DIFFERENCES_TOLERANCE, Point, judge
from jaxnn.verify.judge.rule import Example, Rule
from jaxnn.verify.judge.subject import from_rule
from jaxnn.verify.report.data import FLOAT64_TOLERANCE


class Certificate(NamedTuple):
    """The errors of a rule, each the largest over its examples, relative to the leaf (see compare.py)."""

    name: str
    autodiff: float  # backward against jax.vjp of forward, float64
    differences: float  # backward against finite differences along one direction per leaf, float64
    float32: float  # y and backward in float32 against float64, at the first example
    bfloat16: float  # the same in bfloat16
    failures: tuple[str, ...]  # what is wrong, in words; empty if the rule is proven

    @property
    def ok(self) -> bool:
        return not self.failures


def certify(rule: Rule, seed: int = 0) -> Certificate:
    """Compare rule.backward with every witness at every example, with random cotangents."""
    errors = {"autodiff": 0.0, "differences": 0.0, "float32": 0.0, "bfloat16": 0.0}
    failures = []
    for i, example in enumerate(rule.examples):
        try:
            found = _errors_at(rule, example, [seed, i], ("float32", "bfloat16") if i == 0 else ())
        except ValueError as error:
            failures.append(f"example {i}: {error}")
            continue
        errors = {witness: max(error, found.get(witness, 0.0)) for witness, error in errors.items()}
    bounds = {
        "autodiff": FLOAT64_TOLERANCE,
        "differences": DIFFERENCES_TOLERANCE,
        "float32": rule.float32,
        "bfloat16": rule.bfloat16,
    }
    failures += [
        f"{witness}: error {errors[witness]:.1e}, allowed {bound:.1e}"
        for witness, bound in bounds.items()
        if not errors[witness] <= bound
    ]
    return Certificate(rule.name, **errors, failures=tuple(failures))


def _errors_at(rule: Rule, example: Example, seed: list[int], precisions: tuple[str, ...]) -> dict[str, float]:
    point = _judge(rule, example, seed, careful=False)
    if any(point.wrong):
        point = _judge(rule, example, seed, careful=True)
    judged = [leaf for leaf in point.leaves if leaf is not None]
    if len(judged) < len(point.leaves):
        raise ValueError("the backward does not return the tree and the shapes of its inputs")
    found = {
        "autodiff": largest_error(list(point.gradients.manual), list(point.gradients.autodiff or ())),
        "differences": max((leaf.differences for leaf in judged if not np.isnan(leaf.differences)), default=0.0),
    }
    for dtype in precisions:
        found[dtype] = _low_precision_error(rule, example, dtype, point)
    return found


def _judge(rule: Rule, example: Example, seed: list[int], careful: bool) -> Point:
    evaluator = Evaluator(from_rule(rule, example), careful)
    dy = cotangent(seed, evaluator.y)
    return judge(evaluator, evaluator.inputs, evaluator.given, dy, (True,) * len(evaluator.inputs), thorough=True)


def _low_precision_error(rule: Rule, example: Example, dtype: str, point: Point) -> float:
    """The largest error of y and of the gradient in a low precision, XLA's optimizations on, against float64."""
    inputs, given = example
    low = jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)), inputs)

    @jax.jit
    def manual(inputs, given, dy):
        return rule.forward(inputs, given), rule.backward(inputs, given, dy)

    y_shapes = jax.eval_shape(rule.forward, low, given)
    leaves = (leaf.astype(y.dtype) for leaf, y in zip(point.dy, jax.tree.leaves(y_shapes), strict=True))
    y, gradient = manual(low, given, jax.tree.unflatten(jax.tree.structure(y_shapes), leaves))
    for g, x in zip(jax.tree.leaves(gradient), jax.tree.leaves(low), strict=True):
        if g.dtype != x.dtype:
            raise ValueError(f"the gradient of a {x.dtype} input is {g.dtype}")
    y_error = largest_error(_as_float64(jax.tree.leaves(y)), list(point.gradients.y))
    return max(y_error, largest_error(_as_float64(jax.tree.leaves(gradient)), list(point.gradients.manual)))


def _as_float64(leaves) -> list[np.ndarray]:
    return [np.asarray(leaf).astype(np.float64) for leaf in leaves]
