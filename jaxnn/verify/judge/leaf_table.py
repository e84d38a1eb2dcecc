"""The verdict leaf by leaf, and what was checked, for the report."""

import numpy as np

from jaxnn.verify.judge.compare import finite_max
from jaxnn.verify.judge.evaluate import Evaluator
from jaxnn.verify.judge.judge import Judged, Point, curve_of
from jaxnn.verify.judge.subject import Subject
from jaxnn.verify.report.data import Curve, Leaf


def coverage(evaluator: Evaluator, given: Point, others) -> list[str]:
    total = sum(x.size for x in evaluator.inputs)
    measured = sum(judged.measured for judged in given.leaves if judged is not None)
    believed = [judged for judged in given.leaves if judged is not None and not judged.overruled]
    confirmed = [judged.confirmed for judged in believed if not np.isnan(judged.confirmed)]
    notes = []
    if given.gradients.autodiff is None:
        why = "holds a while loop, which jax.grad cannot reverse" if evaluator.jaxpr is not None else "is NumPy code"
        notes.append(f"the forward {why}: finite differences are the only witness")
    share = f"all {total}" if measured >= total else f"{measured} of {total}"
    agree = f"; jax.grad agrees to {max(confirmed):.1e}" if confirmed else ""
    notes.append(f"differences measured {share} entries and one random direction per leaf{agree}")
    kinks = sum(judged.kinks for judged in given.leaves if judged is not None)
    if kinks:
        entries = f"{kinks} entries sit" if kinks > 1 else "an entry sits"
        notes.append(f"{entries} on a kink, where your convention differs from jax.grad's: any subgradient is right")
    unknown = sum(judged.unknown for judged in given.leaves if judged is not None)
    if unknown:
        notes.append(f"{unknown} entries could not be checked: no witness knows the derivative there")
    if given.stopped:
        notes.append("the forward stops gradients (stop_gradient): differences see more than jax.grad, as intended")
    if evaluator.lifted:
        notes.append("float64 arithmetic in the functions' own trace: their random draws and casts stay as they are")
    words = list(dict.fromkeys(variant.words for variant, _ in others))
    if words:
        moved = sum("moved" in variant.words for variant, _ in others)
        rest = [w.removeprefix("with ") for w in words if "moved" not in w]
        points = [f"{moved} moved point{'s' * (moved > 1)}"] if moved else []
        notes.append("also checked at " + ", ".join(points + rest))
    return notes


def leaf_table(subject: Subject, evaluator: Evaluator, given: Point, raw, claimed) -> dict[str, Leaf]:
    table = {}
    for i, path in enumerate(subject.input_paths):
        judged, manual, truth = given.leaves[i], given.gradients.manual[i], given.truth[i]
        dtype = str(evaluator.own_dtypes[i])
        largest = finite_max(truth)
        if not claimed[i]:
            table[path] = Leaf(path, truth.shape, dtype, "not claimed", largest, np.nan, np.nan, 0, (), None, truth)
            continue
        if judged is None:
            n = truth.size
            table[path] = Leaf(path, truth.shape, dtype, "WRONG", largest, np.inf, np.nan, n, (), manual, truth)
            continue
        table[path] = _leaf(path, dtype, judged, manual, given, i, largest)
    for slot in subject.slots:
        if not slot.is_input:
            dtype = str(slot.dtype)
            table[slot.path] = Leaf(slot.path, slot.shape, dtype, "integer", 0.0, np.nan, np.nan, 0, (), None, None)
    return table


def _leaf(path: str, dtype: str, judged: Judged, manual, given: Point, i: int, largest: float) -> Leaf:
    status = "WRONG" if judged.wrong.any() else "kink" if judged.kinks else "ok"
    worst = ()
    if judged.error.size:
        candidates = np.where(judged.wrong, judged.error, -1.0) if judged.wrong.any() else judged.error
        worst = tuple(map(int, np.unravel_index(int(candidates.argmax()), candidates.shape)))
    auto = given.gradients.autodiff[i] if given.gradients.autodiff is not None else None
    error = np.nan if auto is None or judged.overruled else _largest(manual, auto, judged.scale)
    curve = None
    flat = int(np.ravel_multi_index(worst, judged.error.shape)) if judged.error.ndim and judged.error.size else 0
    found = curve_of(judged, flat)
    if found is not None:
        curve = Curve(worst, *found)
    n_wrong = int(judged.wrong.sum())
    shape = judged.truth.shape
    return Leaf(
        path, shape, dtype, status, largest, error, judged.differences, n_wrong, worst, manual, judged.truth, curve
    )


def _largest(manual, auto, scale: float) -> float:
    """The largest |manual - autodiff| relative to the leaf's scale; 0 for equal entries."""
    if not manual.size:
        return 0.0
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = np.where(manual == auto, 0.0, np.abs(manual - auto) / scale)
    return float(np.where(np.isnan(gap), np.inf, gap).max())
