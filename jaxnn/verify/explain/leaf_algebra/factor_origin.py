"""Where a factor comes from: the numbers that give it, told apart by experiments.

A factor c (manual = c·truth) is matched against simple forms of the numbers of this function. Where several fit,
experiments decide: other inputs, another scalar, twice the batch; whichever form still gives the factor is its origin.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from jaxnn.verify.explain.evidence import Evidence
from jaxnn.verify.explain.leaf_algebra.experiments import Lab
from jaxnn.verify.explain.leaf_algebra.factor_numbers import Number, numbers
from jaxnn.verify.explain.leaf_algebra.wrong_leaf import ZERO, View, factor, largest, near, number


class Match(NamedTuple):
    """A form of one or two numbers that gives the factor."""

    cost: float  # the simpler, the cheaper
    value: Callable[[list[Number]], float]
    form: str  # "32 is the batch size (axis 0 of args[0])"
    missing: str  # the cause: "the mean's 1/n is missing"
    extra: str = ""  # the cause instead, if the number enters the manual gradient and not the truth
    numbers: tuple[int, ...] = ()  # places in the pool

    @property
    def words(self) -> str:
        cause = f"{self.missing}, or {self.extra}" if self.extra and self.missing else self.missing or self.extra
        return f"{self.form}: {cause}" if self.form and cause else self.form or cause

    def at(self, pool: list[Number]) -> float | None:
        """The factor that this form gives at another point; None if its numbers are not known there."""
        return self.value(pool) if all(k < len(pool) for k in self.numbers) else None


def origins(c: float, view: View, lab: Lab) -> list[Match]:
    """The simplest forms that give the factor here and in every experiment; [] if there are none."""
    pool = numbers(view.evidence, lab.batch)
    found = sorted(_matches(c, pool), key=lambda match: match.cost)
    if found:
        found = _that_follow(found, view, lab.moved, lab)
    for k, path in enumerate(view.evidence.given_paths):
        if any(path in pool[number].words and pool[number].kind != "batch" for m in found for number in m.numbers):
            nudged = lab.nudged(k)  # another scalar, another mask; data of another value
            found = _that_follow(found, view, nudged, lab)
            found = [_told_apart(m, view, nudged) if _is_about(m, path, pool) else m for m in found]
    best = [match for match in found if match.cost < found[0].cost + 0.5] if found else []
    kinds = {tuple(pool[k].kind for k in match.numbers) for match in best}
    if len(kinds) > 1 and any("batch" in kind for kind in kinds):
        found = _that_follow(found, view, lab.doubled, lab)
    if found and found[0].cost >= 3:
        return found[:1]  # of products and quotients there are always several
    return _same_form_once([match for match in found if match.cost == found[0].cost])


def named(c: float, view: View, lab: Lab) -> tuple[str, Match | None]:
    """The words for a factor, at most two origins, and the form itself if there is only one."""
    found = origins(c, view, lab)
    words = " Or: ".join(f"{match.words}." for match in found[:2]).removesuffix(".")
    return words, found[0] if len(found) == 1 else None


class Scaled(NamedTuple):
    """How a factor is described that comes with another mistake."""

    words: str  # ", times 6.0 (6 is the batch size (axis 0 of args[0]))"
    exact: bool  # whether its origin is known
    free: int  # 1 if it was fitted


def scaled(c: float, view: View, lab: Lab) -> Scaled:
    """The words for a factor that comes with another mistake; none for 1."""
    if near(c, 1):
        return Scaled("", True, 0)
    found = origins(c, view, lab)
    forms = " or ".join(match.form or match.missing for match in found[:2])
    return Scaled(f", times {number(c)}" + (f" ({forms})" if forms else ""), len(found) == 1, 1)


# ---------------------------------------------------------------- experiments


def _that_follow(found: list[Match], view: View, elsewhere: Evidence | None, lab: Lab) -> list[Match]:
    """The matches that still give the factor at another point; all of them if that point tells nothing."""
    there = View(elsewhere, view.i) if elsewhere else None
    if there is None or not there.comparable or (c := factor(there.manual, there.truth)) is None:
        return found
    pool = numbers(there.evidence, lab.batch)
    values = [match.at(pool) for match in found]
    return [match for match, v in zip(found, values, strict=True) if v is None or near(v, c)]


def _is_about(match: Match, path: str, pool: list[Number]) -> bool:
    return len(match.numbers) == 1 and pool[match.numbers[0]].words == path


def _told_apart(match: Match, view: View, nudged: Evidence | None) -> Match:
    """What the scalar is missing from: a gradient that does not change with it does not have it."""
    there = View(nudged, view.i) if nudged else None
    if there is None or not match.extra or not there.comparable:
        return match
    if largest(there.manual - view.manual) <= ZERO * view.scale:
        return match._replace(extra="")
    return match._replace(missing="") if largest(there.truth - view.truth) <= ZERO * view.scale else match


def _same_form_once(found: list[Match]) -> list[Match]:
    """Of matches with the same number in the same form, one; sizes of different arrays are often the same size."""
    kept: dict[str, Match] = {}
    for match in found:
        value = match.form.split(" is ")[0]
        if value in kept and match.numbers and kept[value].numbers:
            also = match.form.split(" is ")[-1]
            if " and " not in kept[value].form.split(" is ")[-1]:
                kept[value] = kept[value]._replace(form=f"{kept[value].form} and {also}")
        else:
            kept[value if match.numbers else match.missing] = match
    return list(kept.values())


# ---------------------------------------------------------------- forms

_SIGN = "the sign is flipped: this is the direction of descent, -gradient"
_SIMPLE = (
    (0.0, -1.0, _SIGN),
    (1.0, 2.0, "a factor 1/2 is missing, or one contribution counts twice"),
    (1.01, 0.5, "a factor 2, as in (x²)' = 2x, is missing"),
)
_MULTIPLES = ((0, 1, ""), (1, -1, "-"), (1, 2, "2·"), (1, 0.5, "½·"), (1.2, -2, "-2·"))


def _matches(c: float, pool: list[Number]) -> Iterator[Match]:
    for cost, v, why in _SIMPLE:
        if near(c, v):
            yield Match(cost, lambda pool, v=v: v, "", why)
    for k, n in enumerate(pool):
        if n.value in (0.0, 1.0, -1.0) or not math.isfinite(n.value):
            continue
        whole_gradient = n.kind == "norm" and "gradient" in n.words
        for cost, f, form, missing, *extra in () if whole_gradient else _forms(n):
            v = f(n.value)
            if not isinstance(v, float | int) or not math.isfinite(v) or near(abs(v), 1):
                continue
            for more, s, also in _MULTIPLES if cost < 1.5 else _MULTIPLES[:2]:
                if near(c, s * v):
                    whole = form if s == 1 else f"{number(c)} = {also}({form})"
                    cause = missing if s > 0 else f"{missing}, and {_SIGN}"
                    value = functools.partial(lambda pool, k, f, s: s * f(pool[k].value), k=k, f=f, s=s)
                    yield Match(cost + more, value, whole, cause, extra[0] if extra else "", (k,))
        if whole_gradient and c > 0 and near(c * n.value, float(f"{c * n.value:.2g}")):
            norm = float(f"{c * n.value:.2g}")
            form = f"{n.words} is {n.value:.6g}, that of yours is {norm:g}"
            value = functools.partial(lambda pool, k, norm: norm / pool[k].value, k=k, norm=norm)
            yield Match(2, value, form, "yours is clipped or normalised", "", (k,))
        if n.kind in ("times", "divide") and 0 < abs(c - 1) < 0.01:
            for e in (1, -1):
                rounded = float(f"{n.value * c**e:.4g}")
                if near(n.value * c**e, rounded) and rounded != n.value:
                    form, cause = f"{n.value:.8g} is {n.words}", f"yours uses {rounded:g} for it"
                    yield Match(2, lambda pool, k=k, e=e, r=rounded: (r / pool[k].value) ** e, form, cause, "", (k,))
    useful = [k for k, n in enumerate(pool) if n.kind != "norm" and n.value not in (0, 1, -1)]
    for a in useful:
        for b in useful:
            yield from _pairs(c, pool, a, b)


def _forms(n: Number) -> list[tuple]:
    """(cost, the factor as a function of the number, form, cause[, cause if only the manual side has the number])."""
    v, is_ = f"{n.value:.6g}", f"{n.value:.6g} is {n.words}"
    if n.kind in ("batch", "mean", "count"):
        first = {"batch": 1, "mean": 1.005, "count": 1.02}[n.kind]
        forms = [
            (first, lambda v: v, is_, "the mean's 1/n is missing (a sum instead of a mean)"),
            (first, lambda v: 1 / v, f"1/{v}, and {is_}", "divided by n once too often (a mean instead of a sum)"),
            (2, lambda v: v**0.5, f"√{v}, and {is_}", "the scaling by 1/√n is missing"),
            (2, lambda v: v**-0.5, f"1/√{v}, and {is_}", "scaled by 1/√n once too often"),
            (2.5, lambda v: v * v, f"n², n = {is_}", "a division by n² is missing"),
            (2.5, lambda v: 1 / (v * v), f"1/n², n = {is_}", "divided by n² once too often"),
        ]
        of_variance = [
            (2, lambda v: v / (v - 1), f"n/(n - 1), n = {is_}", "divided by n - 1 where the forward divides by n"),
            (2, lambda v: (v - 1) / v, f"(n - 1)/n, n = {is_}", "divided by n where the forward divides by n - 1"),
            (2.5, lambda v: v - 1, f"n - 1, n = {is_}", "the division by n - 1 is missing"),
            (2.5, lambda v: 1 / (v - 1), f"1/(n - 1), n = {is_}", "divided by n - 1 once too often"),
        ]
        return forms + of_variance if n.kind != "count" else forms
    if n.kind == "scalar":
        return [
            (1, lambda v: v, is_, "the division by it is missing", "it multiplies once too often"),
            (1, lambda v: 1 / v, f"1/{v}, and {is_}", f"the factor {v} is missing", "it divides once too often"),
            (2, lambda v: 1 - v, f"1 - p, p = {is_}", "the scaling by 1/(1 - p) is missing", "1 - p multiplies"),
            (2, lambda v: 1 / (1 - v), f"1/(1 - p), p = {is_}", "the factor 1 - p is missing", "1/(1 - p) multiplies"),
            (2, lambda v: v * v, f"s², s = {is_}", "the division by its square is missing", "its square multiplies"),
            (2, lambda v: v**-2.0, f"1/s², s = {is_}", "its square is missing", "its square divides"),
            (2, lambda v: abs(v) ** 0.5, f"√{v}, and {is_}", "the division by its root is missing", "it multiplies"),
            (2, lambda v: abs(v) ** -0.5, f"1/√{v}, and {is_}", "the factor √s is missing", "its root divides"),
        ]
    if n.kind == "times":
        return [
            (1.1, lambda v: 1 / v, f"1/{v}, and {is_}", f"the factor {v} is missing"),
            (1.2, lambda v: v, is_, "it multiplies once too often"),
            (2, lambda v: v**-2.0, f"1/s², s = {is_}", "its square is missing"),
        ]
    if n.kind == "divide":
        return [
            (1.01, lambda v: v, is_, f"the division by {v} is missing"),
            (1.01, lambda v: 1 / v, f"1/{v}, and {is_}", f"divided by {v} once too often"),
            (2, lambda v: abs(v) ** 0.5, f"√{v}, and {is_}", "a square root of it is missing"),
        ]
    if n.kind == "power":
        return [(1, lambda v: 1 / v, f"1/{v}, and {is_}", f"the derivative's factor {v} is missing")]
    return [
        (2, lambda v: v, is_, "the division by it is missing"),
        (2, lambda v: 1 / v, f"1/{v}, and {is_}", "divided by it once too often"),
        (2, lambda v: v * v, f"s², s = {is_}", "the division by its square is missing"),
    ]


def _pairs(c: float, pool: list[Number], a: int, b: int) -> Iterator[Match]:
    """Products and quotients of two numbers."""
    x, y = pool[a], pool[b]
    for s in (1, -1):
        flipped = "" if s > 0 else f", and {_SIGN}"
        form = f"{x.value:.6g} is {x.words}, {y.value:.6g} is {y.words}"
        if a < b and near(c, s * x.value * y.value):
            value, cause = lambda pool, s=s: s * pool[a].value * pool[b].value, "the divisions by both are missing"
            yield Match(3.5, value, f"{x.value:.6g}·{y.value:.6g}, {form}", cause + flipped, "", (a, b))
        if a < b and near(c, s / (x.value * y.value)):
            value, cause = lambda pool, s=s: s / (pool[a].value * pool[b].value), "divided by both once too often"
            yield Match(3.5, value, f"1/({x.value:.6g}·{y.value:.6g}), {form}", cause + flipped, "", (a, b))
        if a != b and x.value != y.value and near(c, s * x.value / y.value):
            value = lambda pool, s=s: s * pool[a].value / pool[b].value  # noqa: E731
            cause = f"divided by {y.value:.6g} instead of {x.value:.6g}"
            yield Match(3.2, value, f"{x.value:.6g}/{y.value:.6g}, {form}", cause + flipped, "", (a, b))
