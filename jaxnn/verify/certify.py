"""A rule against its witnesses: is the hand-written derivative right, and how right in low precision?"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.verify.compare import FLOAT64_TOLERANCE, largest_error
from jaxnn.verify.rule import Example, Rule, representable
from jaxnn.verify.witnesses import autodiff, differences, leaf_directions, quickly_compiled

DIFFERENCES_TOLERANCE = 1e-6


class Certificate(NamedTuple):
    """The errors of a rule, each the largest over its examples, relative to the leaf (see compare.py)."""

    name: str
    autodiff: float  # backward against jax.vjp of forward, float64
    differences: float  # backward against finite differences along one direction a leaf, float64
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
    inputs, given = example

    def manual(inputs, given, dy):
        return rule.forward(inputs, given), rule.backward(inputs, given, dy)

    with jax.enable_x64(True):
        dy = cotangent(rule, inputs, given, seed)
        y, gradient = quickly_compiled(manual)(inputs, given, dy)

        def forward(inputs):
            return rule.forward(inputs, given)

        truth = quickly_compiled(lambda inputs, dy: autodiff(forward, inputs, dy))(inputs, dy)
        found = {
            "autodiff": largest_error(gradient, truth),
            "differences": _differences_error(forward, inputs, dy, gradient),
        }
    optimized = jax.jit(manual)
    for dtype in precisions:
        low = jax.tree.map(lambda x, dtype=dtype: x.astype(jnp.dtype(dtype)), inputs)
        low_y, low_gradient = optimized(low, given, cotangent(rule, low, given, seed))
        _require_dtypes(low_gradient, low)
        found[dtype] = max(largest_error(_as_float64(low_y), y), largest_error(_as_float64(low_gradient), gradient))
    return found


def cotangent(rule: Rule, inputs: Any, given: Any, seed: list[int]) -> Any:
    """Random numbers in the shape and dtype of y: with ones, a wrong softmax or batch norm would pass."""
    rng = np.random.default_rng(seed)
    y = jax.eval_shape(rule.forward, inputs, given)
    return jax.tree.map(lambda y: representable(rng.normal(size=y.shape)).astype(y.dtype), y)


def _differences_error(forward, inputs: Any, dy: Any, gradient: Any) -> float:
    """The largest |<gradient, v> - slope| over the leaves, relative to the leaf: |gradient| |v|."""
    directions = leaf_directions(0, inputs)
    measured = differences(forward, inputs, dy, directions)
    gradients = [np.asarray(g) for g in jax.tree.leaves(gradient)]
    tree_norm = max(np.linalg.norm(g) for g in gradients)
    largest = 0.0
    for i, (g, direction, (slope, _)) in enumerate(zip(gradients, directions, measured, strict=True)):
        v = jax.tree.leaves(direction)[i]
        scale = (np.linalg.norm(g) + 1e-6 * tree_norm) * np.linalg.norm(v)
        gap = abs(float(np.vdot(g, v)) - slope)
        error = float(gap / scale) if scale > 0 else gap
        largest = max(largest, error if np.isfinite(error) else np.inf)
    return largest


def _as_float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf).astype(np.float64), tree)


def _require_dtypes(gradient, inputs):
    for g, x in zip(jax.tree.leaves(gradient), jax.tree.leaves(inputs), strict=True):
        if g.dtype != x.dtype:
            raise ValueError(f"the gradient of a {x.dtype} input is {g.dtype}")
