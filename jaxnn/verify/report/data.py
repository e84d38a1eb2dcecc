"""What a verification found, as plain data."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

# In float64, right gradients agree with autodiff to 1e-9 and wrong formulas differ by more than 2e-4.
FLOAT64_TOLERANCE = 1e-7

EXACT = "reproduces your gradient exactly"
CONSISTENT = "consistent with your gradient"
UNKNOWN = "cause unknown"
OBSERVED = "observed"  # no hypothesis: what the gradient returned, or did


class Finding(NamedTuple):
    """One thing that is wrong or worth knowing, in words a student understands, with the numbers."""

    kind: str  # a stable identifier: "factor", "transposed", "kink", ...
    text: str
    leaves: tuple[str, ...] = ()  # the leaves that it explains
    confidence: str = CONSISTENT  # EXACT, CONSISTENT, UNKNOWN or OBSERVED
    source: str | None = None  # the line of the user's forward that it is about: "model.py:41"
    wrong: bool = True  # False: reported, but not held against the gradient


class Curve(NamedTuple):
    """Central differences of one entry against the step: the V-curve."""

    index: tuple[int, ...]  # pyright: ignore[reportIncompatibleMethodOverride] (tuple has a method of that name)
    steps: np.ndarray
    slopes: np.ndarray


class Leaf(NamedTuple):
    """The verdict on one leaf of the gradient, at the point given by the user."""

    path: str  # "params['dense_1']['w']"
    shape: tuple[int, ...]
    dtype: str
    status: str  # "ok", "WRONG", "kink" (right up to the convention at kinks), "integer" (has no gradient)
    largest: float  # largest |entry| of the truth
    autodiff: float  # largest error of an entry against jax.grad, relative to the leaf; NaN if jax.grad has no say
    differences: float  # the same against finite differences, over the entries that were measured; NaN if none
    n_wrong: int  # entries out of tolerance
    worst: tuple[int, ...]  # index of the largest error
    manual: np.ndarray | None  # the whole leaf in float64; None if it is missing
    truth: np.ndarray | None
    curve: Curve | None = None

    @property
    def at_worst(self) -> tuple[float | None, float | None]:
        """The manual and the true entry at `worst`; None for a side that has no such entry."""

        def entry(array: np.ndarray | None) -> float | None:
            fits = array is not None and array.shape == self.shape and len(self.worst) == array.ndim and array.size
            return float(array[self.worst]) if array is not None and fits else None

        return entry(self.manual), entry(self.truth)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a verification."""

    name: str  # "manual_grad against loss"
    leaves: Mapping[str, Leaf]  # by path
    findings: tuple[Finding, ...]  # worst first
    notes: tuple[str, ...]  # what was checked, what was sampled, what could not be checked
    seconds: float
    value: Any = None  # the forward's value, if it is a scalar

    @property
    def ok(self) -> bool:
        """True if nothing is held against the gradient."""
        return not any(finding.wrong for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The report as data for JSON, without the gradients themselves.

        Errors that were not measured (NaN in Leaf.autodiff or Leaf.differences) are None. Any other number that is not
        finite is the text "nan", "inf" or "-inf", which `float` reads back.
        """
        return {
            "ok": self.ok,
            "name": self.name,
            "value": None if self.value is None else _number(self.value),
            "seconds": self.seconds,
            "leaves": {path: _leaf_dict(leaf) for path, leaf in self.leaves.items()},
            "findings": [finding._asdict() | {"leaves": list(finding.leaves)} for finding in self.findings],
            "notes": list(self.notes),
        }


def wrong_first(outcome: Outcome) -> list[Leaf]:
    """The leaves, the wrong ones first, in the order of the findings that explain them; then those at kinks."""
    explained = {path: -i for i, finding in enumerate(reversed(outcome.findings)) for path in finding.leaves}
    rank = {"WRONG": 0, "kink": 1}

    def place(leaf: Leaf) -> tuple[int, int]:
        return rank.get(leaf.status, 2), explained.get(leaf.path, 1) if leaf.status == "WRONG" else 0

    return sorted(outcome.leaves.values(), key=place)


def _number(x: Any) -> float | str:
    """x as a value for JSON."""
    try:
        x = float(x)
    except (TypeError, ValueError):
        return str(x)
    return x if math.isfinite(x) else str(x)


def _leaf_dict(leaf: Leaf) -> dict[str, Any]:
    manual, truth = (None if entry is None else _number(entry) for entry in leaf.at_worst)
    curve = leaf.curve and {
        "index": list(leaf.curve.index),
        "steps": [_number(h) for h in leaf.curve.steps],
        "slopes": [_number(slope) for slope in leaf.curve.slopes],
    }
    return {
        "shape": list(leaf.shape),
        "dtype": leaf.dtype,
        "status": leaf.status,
        "largest": _number(leaf.largest),
        "autodiff": None if math.isnan(leaf.autodiff) else _number(leaf.autodiff),
        "differences": None if math.isnan(leaf.differences) else _number(leaf.differences),
        "n_wrong": leaf.n_wrong,
        "worst": {"index": list(leaf.worst), "manual": manual, "truth": truth},
        "curve": curve,
    }
