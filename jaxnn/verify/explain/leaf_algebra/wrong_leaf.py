"""One wrong leaf, and when a hypothesis about it holds."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxnn.verify.explain.evidence import Evidence

AGREES = 1e-6  # both sides of an equation agree to this, relative to the largest entry
BETTER = 1e-5  # and this much better than they would if the manual gradient were right
WRONG = 1e-7  # an entry is wrong from this error on, relative to the leaf's largest entry
ZERO = 1e-9  # and counts as 0 up to this: the truth may come from finite differences


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """A leaf of the gradient at one point."""

    evidence: Evidence
    i: int

    @property
    def truth(self) -> np.ndarray:
        return self.evidence.truth[self.i]

    @functools.cached_property
    def manual(self) -> np.ndarray:
        manual = self.evidence.manual[self.i]
        return np.full(self.truth.shape, np.nan) if manual is None else manual

    @property
    def value(self) -> np.ndarray:
        """What is differentiated."""
        return self.evidence.inputs[self.i]

    @property
    def path(self) -> str:
        return self.evidence.input_paths[self.i]

    @functools.cached_property
    def comparable(self) -> bool:
        """Whether both sides are numbers of the same shape."""
        return self.same_shape and bool(np.isfinite(self.manual).all() and np.isfinite(self.truth).all())

    @property
    def same_shape(self) -> bool:
        return self.manual.shape == self.truth.shape

    @functools.cached_property
    def difference(self) -> np.ndarray:
        return self.manual - self.truth

    @functools.cached_property
    def scale(self) -> float:
        """The largest entry of either side."""
        return max(largest(self.manual), largest(self.truth))

    @functools.cached_property
    def wrong(self) -> np.ndarray:
        """Which entries are wrong."""
        return np.abs(self.difference) > WRONG * (largest(self.truth) or largest(self.manual))

    @functools.cached_property
    def matters(self) -> np.ndarray:
        """Entries at which either side is not 0: where both are, every hypothesis holds."""
        return np.maximum(np.abs(self.manual), np.abs(self.truth)) > ZERO * self.scale

    @functools.cached_property
    def if_right(self) -> "View":
        """The same leaf, if the manual gradient were right."""
        manual = list(self.evidence.manual)
        manual[self.i] = self.truth
        return View(self.evidence._replace(manual=tuple(manual)), self.i)


# First words of a sentence; the others are names of arguments.
_BEGIN = {"a", "all", "divided", "duplicates", "each", "gradient", "index", "it", "its", "low", "no", "only"}
_BEGIN |= {"remove", "reshape", "return", "the", "these", "they", "this", "transpose", "two", "what", "your"}

Sides = tuple[np.ndarray, np.ndarray] | None


class Explanation(NamedTuple):
    """A hypothesis about one leaf: two arrays that are equal if it is true."""

    kind: str
    what: str  # what is seen: "every entry is 32.0 times too large"
    why: str  # the cause: "32 is the batch size (axis 0 of args[0]): the mean's 1/n is missing"
    equation: Callable[[View], Sides] | None  # None: nothing to test, or not to be tested elsewhere
    exact: bool = True  # the cause is known, and nothing was fitted that matches no known number
    free: int = 0  # numbers that were fitted to this leaf

    @property
    def text(self) -> str:
        why = self.why[:1].upper() + self.why[1:] if self.why.split(" ")[0] in _BEGIN else self.why
        return f"{self.what}. {why}".rstrip(" .") + "."


def holds(equation: Callable[[View], Sides], view: View) -> bool | None:
    """Whether both sides agree, and would not if the gradient were right; None if this point can't tell."""
    sides = equation(view)
    if sides is None:
        return None
    left, right = sides
    if left.shape != right.shape or not left.size:
        return False
    error = largest(left - right)
    if not error <= AGREES * largest(right) + 1e-12 * largest(left):
        return False
    if not view.same_shape:
        return True
    sides = equation(view.if_right)
    effect = largest(sides[0] - sides[1]) if sides else 0.0
    if effect <= AGREES * largest(right):  # the right gradient has that property too: what counts is the mistake
        effect = largest(view.difference)
    return error <= BETTER * effect


def predicts(f: Callable[[View], np.ndarray | None]) -> Callable[[View], Sides]:
    """The equation manual = f(view)."""

    def equation(view):
        predicted = f(view)
        return None if predicted is None else (view.manual, predicted)

    return equation


def predicts_here(predicted: np.ndarray) -> Callable[[View], Sides]:
    """The same for a prediction that is known at the wrong point only, where y is known."""
    return lambda view: (view.manual, predicted) if view.evidence.y else None


def largest(x: np.ndarray) -> float:
    """The largest |entry|, 0 if there are none; NaN if one is NaN."""
    return float(np.abs(x).max(initial=0.0))


def factor(target: np.ndarray, base: np.ndarray) -> float | None:
    """c in target = c·base, None if there is no such number other than 0."""
    if base.shape != target.shape or not base.size:
        return None
    at = np.unravel_index(int(np.abs(base).argmax()), base.shape)
    if not base[at] or not np.isfinite(base[at]):
        return None
    if base.size > 1 and not largest(target - target[at] / base[at] * base) <= 1e-3 * largest(target):
        return None  # the largest entry decides: most hypotheses need no least squares
    c = float(np.vdot(base, target) / np.vdot(base, base))
    return c if c and largest(target - c * base) <= AGREES * largest(target) else None


def factors(target: np.ndarray, *bases: np.ndarray) -> np.ndarray | None:
    """The numbers c in target = Σ c_k·base_k; None if there are none, if one is 0 or if they are not determined."""
    scales = np.array([np.linalg.norm(base) for base in bases])
    if not scales.all() or not np.isfinite(scales).all():
        return None
    columns = np.stack([(base / s).ravel() for base, s in zip(bases, scales, strict=True)])
    gram = columns @ columns.T
    if not np.linalg.cond(gram) < 1e8:
        return None
    c = np.linalg.solve(gram, columns @ target.ravel())
    if not (np.abs(c) > AGREES * np.linalg.norm(target)).all():
        return None  # one of them is not needed
    return c / scales if largest(target.ravel() - c @ columns) <= AGREES * largest(target) else None


def axes_in_words(axes: tuple[int, ...]) -> str:
    return f"axis {axes[0]}" if len(axes) == 1 else f"axes {axes}"


def near(a: float, b: float) -> bool:
    return abs(a - b) <= AGREES * abs(b)


def times(c: float) -> str:
    """What manual = c·truth looks like.

    >>> times(32), times(0.125), times(-1), times(-2)
    ('32.0 times too large', '8.0 times too small', 'the negative of the truth', '-2.0 times the truth')
    """
    if near(c, -1):
        return "the negative of the truth"
    if c < 0:
        return f"{number(c)} times the truth"
    return f"{number(c)} times too large" if c > 1 else f"{number(1 / c)} times too small"


def number(c: float) -> str:
    """
    >>> number(32), number(-0.5), number(1 / 3), number(1e-8)
    ('32.0', '-0.5', '0.333333', '1e-08')
    """
    text = f"{c:.6g}"
    return text if any(mark in text for mark in ".en") else text + ".0"
