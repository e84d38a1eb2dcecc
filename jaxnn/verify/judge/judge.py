"""The three witnesses vote on every entry, at one point, in float64.

    manual = autodiff                       right, if finite differences confirm autodiff where they were measured
    manual ≠ autodiff = differences         wrong
    manual = differences ≠ autodiff         autodiff is wrong (a custom rule, a NaN behind a where), not the gradient
    manual = autodiff ≠ differences         circular: both come from the same wrong custom rule
    between the slopes on both sides        a kink, where any of them is a subgradient

Tolerances have no absolute constant: an entry may differ from autodiff by 1e-7 of its leaf's largest entry (and 1e-13
of the tree's), from differences by 1e-6 plus four times their own error estimate; and by what rounding makes
unobservable, 1e-15 |φ| / |x|.
"""

from typing import NamedTuple

import jax
import numpy as np

from jaxnn.verify.judge.compare import entry_errors, finite_max
from jaxnn.verify.judge.evaluate import Evaluator, Gradients
from jaxnn.verify.judge.witnesses import Slopes, affordable, leaf_directions
from jaxnn.verify.report.data import FLOAT64_TOLERANCE

DIFFERENCES_TOLERANCE = 1e-6
SMALL = 256  # entries of a leaf that are all measured by differences
SAMPLE = 32  # entries of a larger leaf
WORST = 16  # and the ones that disagree most


class Judged(NamedTuple):
    """The vote on one leaf at one point."""

    truth: np.ndarray  # autodiff, corrected where it was overruled
    error: np.ndarray  # of every entry against truth, relative (compare.py); inf where either is not finite
    wrong: np.ndarray  # bool: entries held against the gradient
    kinks: int  # entries that differ only by the convention at a kink
    unknown: int  # entries whose derivative no witness knows
    differences: float  # largest error of manual against differences, relative; NaN if none was measured
    confirmed: float  # largest error of autodiff against differences, relative; NaN if none was measured
    measured: int  # entries measured by differences
    overruled: str  # "" or why autodiff was not believed: "custom rule", "nan", "unexplained"
    circular: bool  # manual repeats autodiff's mistake
    slopes: Slopes | None
    entries: np.ndarray  # the entries that the slopes belong to
    scale: float  # what errors are relative to: the leaf's largest entry, and a little of the tree's


class Point(NamedTuple):
    """A point and its verdict, leaf by leaf."""

    inputs: tuple[np.ndarray, ...]
    given: tuple
    dy: tuple
    gradients: Gradients
    leaves: tuple[Judged | None, ...]  # None: the manual leaf is missing or of another shape
    stopped: bool  # differences contradict autodiff because of a stop_gradient, as intended

    @property
    def truth(self) -> tuple[np.ndarray, ...]:
        return tuple(
            judged.truth if judged is not None else t
            for judged, t in zip(self.leaves, self.gradients.autodiff or self.inputs, strict=True)
        )

    @property
    def wrong(self) -> tuple[bool, ...]:
        return tuple(judged is None or bool(judged.wrong.any()) for judged in self.leaves)


def judge(
    evaluator: Evaluator,
    inputs: tuple,
    given: tuple,
    dy: tuple,
    claimed: tuple[bool, ...],
    thorough: bool = False,
    typical: float = 0.0,
) -> Point:
    """Compare the manual gradient with its witnesses. claimed[i] is False for a leaf that claims no gradient.

    thorough=False: differences are measured only where manual and autodiff disagree. typical is the gradient's largest
    entry elsewhere: where the gradient vanishes here (a saturated sigmoid), 1e-13 of that is allowed.
    """
    gradients = evaluator.float64(inputs, given, dy)
    usable = [
        claim and manual is not None and manual.shape == x.shape
        for claim, manual, x in zip(claimed, gradients.manual, inputs, strict=True)
    ]
    noise = [1e-6 * typical + floor for floor in _noise(gradients, inputs, dy)]
    entries = _entries_to_measure(evaluator, gradients, inputs, given, usable, thorough, noise)
    slopes, directional = _measure(evaluator, inputs, given, dy, entries, usable, thorough)
    truth, overruled, stopped = _truth(
        evaluator, gradients, inputs, given, dy, entries, slopes, directional, usable, noise
    )
    tree_max = max((finite_max(t) for t in truth), default=0.0)
    leaves = []
    for i, ok in enumerate(usable):
        if not ok:
            leaves.append(None)
            continue
        auto = gradients.autodiff[i] if gradients.autodiff is not None else None
        leaves.append(
            _judge_leaf(gradients.manual[i], truth[i], auto, tree_max, noise[i], entries[i], slopes[i], overruled[i])
        )
    point = Point(inputs, given, dy, gradients, tuple(leaves), stopped)
    return _forgive_ill_conditioning(evaluator, point)


def _noise(gradients: Gradients, inputs: tuple, dy: tuple) -> list[float]:
    """Per leaf, what to add to the scale so that an error that changes φ by less than its rounding passes."""
    phi = sum(float(np.abs(np.nan_to_num(y * c)).sum()) for y, c in zip(gradients.y, dy, strict=True))
    sizes = (float(np.sqrt(np.mean(np.square(x)))) if x.size else 1.0 for x in inputs)
    return [1e-15 * phi / (size or 1.0) / FLOAT64_TOLERANCE for size in sizes]


def _entries_to_measure(evaluator, gradients, inputs, given, usable, thorough, noise) -> list[np.ndarray]:
    """Flat indices, per leaf: all of a small one; of a large one, a sample and the entries that disagree most."""
    n = sum(usable) or 1
    sizes = [x.size for x in inputs]
    if gradients.autodiff is None:
        return [np.arange(size) if ok else np.zeros(0, int) for size, ok in zip(sizes, usable, strict=True)]
    allowed = SMALL
    if thorough and sum(sizes) > SMALL:
        allowed = affordable(evaluator.phi.cost(inputs, (given, evaluator.dy))) // n
    tree_max = max((finite_max(t) for t in gradients.autodiff), default=0.0)
    chosen = []
    for i, (x, ok) in enumerate(zip(inputs, usable, strict=True)):
        if not ok or x.size == 0:
            chosen.append(np.zeros(0, int))
            continue
        auto = gradients.autodiff[i].ravel()
        error = entry_errors(gradients.manual[i].ravel(), auto, tree_max, noise[i])
        disagree = np.argsort(-error, kind="stable")[:WORST]
        disagree = disagree[error[disagree] > FLOAT64_TOLERANCE]
        some = np.zeros(0, int)
        if thorough and x.size <= min(SMALL, allowed):
            some = np.arange(x.size)
        elif thorough:
            rng = np.random.default_rng([i, x.size])
            some = rng.choice(x.size, max(2, min(SAMPLE, allowed - WORST, x.size)), replace=False)
        chosen.append(np.union1d(some, disagree).astype(int))
    return chosen


def _measure(evaluator, inputs, given, dy, entries, usable, thorough):
    """Slopes of the chosen entries of every leaf, and along one random direction per leaf."""
    starts = np.cumsum([0, *(x.size for x in inputs)])[:-1]
    flat = np.concatenate([chosen + start for chosen, start in zip(entries, starts, strict=True)])
    directions = leaf_directions(0, inputs) if thorough and len(inputs) <= 64 else []
    if not flat.size and not directions:
        return [None] * len(inputs), []
    with jax.enable_x64(True):
        found = evaluator.phi(inputs, (given, dy), flat, directions)
    ends = np.cumsum([0, *(chosen.size for chosen in entries)])
    per_leaf = [
        Slopes(*(array[a:b] for array in found)) if ok else None
        for a, b, ok in zip(ends[:-1], ends[1:], usable, strict=True)
    ]
    along = [
        (float(found.slope[i]), float(found.error[i]), direction[k])
        for k, (i, direction) in enumerate(zip(range(flat.size, found.slope.size), directions, strict=False))
    ]
    return per_leaf, along


def _truth(evaluator, gradients, inputs, given, dy, entries, slopes, directional, usable, noise):
    """Whom to believe, leaf by leaf: (truth, why autodiff was overruled, stop_gradient explains it)."""
    n = len(inputs)
    if gradients.autodiff is None:  # NumPy code: differences are the only witness
        truth = [
            s.slope.reshape(x.shape) if s is not None else np.zeros(np.shape(x))
            for s, x in zip(slopes, inputs, strict=True)
        ]
        return truth, [""] * n, False
    truth, overruled = list(gradients.autodiff), [""] * n
    contradicted = [
        usable[i] and _contradicts(auto, i, entries[i], slopes[i], directional, noise[i])
        for i, auto in enumerate(gradients.autodiff)
    ]
    if not any(contradicted):
        return truth, overruled, False
    rules = {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"} & evaluator.primitives
    stripped = evaluator.stripped(inputs, given, dy) if rules else None
    stopped = False
    for i in range(n):
        if not contradicted[i]:
            continue
        auto = gradients.autodiff[i]
        if stripped is not None and not _contradicts(stripped[i], i, entries[i], slopes[i], directional, noise[i]):
            truth[i], overruled[i] = stripped[i], "custom rule"
        elif "stop_gradient" in evaluator.primitives and np.isfinite(auto).all():
            stopped = True
        else:
            flat, s = auto.ravel().copy(), slopes[i]
            trusted = _reliable(s, auto, noise[i]) & ~s.kink
            flat[entries[i][trusted]] = s.slope[trusted]
            truth[i] = flat.reshape(auto.shape)
            overruled[i] = "unexplained" if np.isfinite(auto).all() else "nan"
    if stripped is not None and any(why == "custom rule" for why in overruled):
        # The rule is wrong for every leaf upstream of it, even where only a sample was measured.
        for i in range(n):
            if usable[i] and not overruled[i] and np.isfinite(stripped[i]).all():
                truth[i] = stripped[i]
    return truth, overruled, stopped


def _reliable(s: Slopes, truth: np.ndarray, noise: float) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.isfinite(s.error) & (s.error <= 1e-3 * np.maximum(np.abs(s.slope), finite_max(truth)) + noise)


def _contradicts(auto, i, entries, s: Slopes | None, directional, noise: float) -> bool:
    """Whether differences, where they are sure, disagree with autodiff."""
    if s is None:
        return False
    at = auto.ravel()[entries]
    scale = max(finite_max(auto), 0.0)
    sure = _reliable(s, auto, noise) & ~s.kink
    with np.errstate(invalid="ignore"):
        agree = np.abs(s.slope - at) <= DIFFERENCES_TOLERANCE * scale + 4 * s.error
    if (sure & ~agree).any():
        return True
    if i < len(directional) and np.isfinite(auto).all() and auto.size > entries.size:
        slope, error, v = directional[i]
        size = float(np.linalg.norm(auto) * np.linalg.norm(v))
        # Along a direction a kink may lie within every step: only a clear contradiction counts.
        return np.isfinite(error) and abs(float(np.vdot(auto, v)) - slope) > 1e-3 * size + 100 * error
    return False


def _judge_leaf(manual, truth, auto, tree_max, noise, entries, s: Slopes | None, overruled) -> Judged:
    by_differences = auto is None
    error = entry_errors(manual, truth, tree_max, noise)
    scale = finite_max(truth) + 1e-6 * tree_max + noise
    wrong = error > FLOAT64_TOLERANCE
    flat_manual, flat_wrong = manual.ravel(), wrong.ravel()
    kinks = unknown = 0
    differences = confirmed = np.nan
    if s is not None and entries.size:
        with np.errstate(invalid="ignore", divide="ignore"):
            m, t = flat_manual[entries], truth.ravel()[entries]
            off = np.abs(m - s.slope)
            low, high = np.minimum(s.below, s.above), np.maximum(s.below, s.above)
            slack = 1e-5 * np.maximum(scale, np.abs(high - low)) + 4 * np.where(np.isfinite(s.error), s.error, 0)
            at_kink = s.kink & (m >= low - slack) & (m <= high + slack)
            sure = _reliable(s, truth, noise)
            if by_differences or overruled in ("nan", "unexplained"):
                # The truth of these entries is the difference itself, with its own error.
                tolerated = sure & (off <= DIFFERENCES_TOLERANCE * scale + 4 * s.error)
                flat_wrong[entries[tolerated]] = False
                nobody = ~sure & ~at_kink & np.isfinite(m) & (~np.isfinite(t) | by_differences)
                flat_wrong[entries[nobody]] = False
                unknown = int(nobody.sum())
            accepted = at_kink & flat_wrong[entries]
            kinks = int(accepted.sum())
            flat_wrong[entries[accepted]] = False
            smooth = sure & ~s.kink & np.isfinite(off)
            if smooth.any() and scale > 0:
                differences = float((off[smooth] / scale).max())
                if auto is not None:
                    gaps = np.abs(auto.ravel()[entries] - s.slope)[smooth] / scale
                    confirmed = float(np.where(np.isfinite(gaps), gaps, np.inf).max())
        measured_wrong = flat_wrong[entries].any()
        if kinks and not measured_wrong and flat_wrong.any():
            kinks += int(flat_wrong.sum())  # every measured disagreement is a kink: so are the leaf's others
            flat_wrong[:] = False
    if overruled == "nan":
        rest = ~np.isfinite(truth.ravel()) & np.isfinite(flat_manual)
        unknown += int((rest & flat_wrong).sum())
        flat_wrong[rest] = False
    circular = bool(
        overruled
        and flat_wrong.any()
        and auto is not None
        and np.isfinite(auto).all()
        and (entry_errors(manual, auto, tree_max, noise) <= FLOAT64_TOLERANCE).all()
    )
    wrong = flat_wrong.reshape(wrong.shape)
    return Judged(
        truth=truth,
        error=error,
        wrong=wrong,
        kinks=kinks,
        unknown=unknown,
        differences=differences,
        confirmed=confirmed,
        measured=int(entries.size),
        overruled=overruled,
        circular=circular,
        slopes=s,
        entries=entries,
        scale=scale,
    )


def _forgive_ill_conditioning(evaluator: Evaluator, point: Point) -> Point:
    """Small errors of a function that magnifies rounding are not held against the gradient.

    The truth is taken again at inputs that differ in their last digits (1e-14 relative): if it changes there by a
    hundredth of the error, it is not known any better than the error.
    """
    autodiff, small = point.gradients.autodiff, []
    for i, judged in enumerate(point.leaves):
        if judged is not None and judged.wrong.any() and (judged.error[judged.wrong] < 1e-4).all():
            small.append((i, judged))
    if not small or autodiff is None:
        return point
    rng = np.random.default_rng(0)
    moved = tuple(x * (1 + 1e-14 * rng.normal(size=x.shape)) for x in point.inputs)
    again = evaluator.float64(moved, point.given, point.dy)
    leaves = list(point.leaves)
    for i, judged in small:
        manual, manual_again = point.gradients.manual[i], again.manual[i]
        if again.autodiff is None or manual is None or manual_again is None:
            continue
        change = max(np.abs(again.autodiff[i] - autodiff[i]).max(), np.abs(manual_again - manual).max())
        if (np.abs(manual - judged.truth)[judged.wrong] <= 100 * change).all():
            leaves[i] = judged._replace(wrong=np.zeros_like(judged.wrong))
    return point._replace(leaves=tuple(leaves))


def curve_of(judged: Judged, flat: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(steps, central differences) of a measured entry: the V-curve."""
    at = np.flatnonzero(judged.entries == flat)
    if judged.slopes is None or not at.size:
        return None
    return judged.slopes.steps[at[0]], judged.slopes.central[at[0]]
