"""Why is it wrong? The three stages of the diagnosis at the failing point, and what they found, best first."""

from collections.abc import Callable

import jax
import numpy as np

from jaxnn.verify.explain.broken_backward import broken_backward
from jaxnn.verify.explain.changed_forward import other_function
from jaxnn.verify.explain.evidence import Evidence
from jaxnn.verify.explain.leaf_algebra import diagnose_leaves
from jaxnn.verify.judge.evaluate import Evaluator
from jaxnn.verify.judge.judge import Point
from jaxnn.verify.report.data import EXACT, UNKNOWN, Finding

DIAGNOSIS_SECONDS = 10.0  # the most that breaking the backward on purpose may take


def diagnosis(evaluator: Evaluator, point: Point, where: str, claimed, notes: list[str]) -> list[Finding]:
    """The findings of all stages about the failing point, best first."""
    if any(judged is not None and judged.circular for judged in point.leaves):
        return [] if not where else [_unknown(evaluator, point, where)]
    evidence = _evidence(evaluator, point, claimed)
    by_algebra = _attempt(lambda: diagnose_leaves(_with_constants(evaluator, evidence)), notes)
    proofs = []
    if evidence.jaxpr is not None:
        proofs = _attempt(lambda: broken_backward(evidence, DIAGNOSIS_SECONDS), notes)
    if not any(finding.confidence == EXACT for finding in (*by_algebra, *proofs)):
        proofs = _attempt(lambda: other_function(evidence, DIAGNOSIS_SECONDS), notes)
    by_algebra = [f for f in by_algebra if f.kind != "missing"]  # reported by structure.py
    wrong = {path for path, is_wrong in zip(evidence.input_paths, evidence.wrong, strict=True) if is_wrong}
    found = _ranked(by_algebra, proofs, wrong)
    if not found and all(m is None for m, is_wrong in zip(evidence.manual, evidence.wrong, strict=True) if is_wrong):
        return []  # missing leaves: reported with the structure
    found = found or [_unknown(evaluator, point, where)]
    if where:
        first = found[0]
        text = f"right at your point, but wrong {where}: {first.text}"
        found = [first._replace(text=text), *found[1:]]
    return found


def _attempt(diagnosis: Callable[[], list[Finding]], notes: list[str]) -> list[Finding]:
    """The verdict stands whether or not its cause is found: a diagnosis that fails is a note."""
    try:
        with jax.enable_x64(True):
            return diagnosis()
    except Exception as error:
        notes.append(f"the search for the cause failed: {type(error).__name__}: {error}")
        return []


def _ranked(by_algebra: list[Finding], proofs: list[Finding], wrong: set[str]) -> list[Finding]:
    """Causes that explain all wrong leaves exactly come first, the unknown last and only if nothing is exact."""
    found = [*by_algebra, *proofs]

    def rank(finding: Finding):
        exact = finding.confidence == EXACT
        return (finding.confidence == UNKNOWN, not exact, -len(wrong & set(finding.leaves)))

    found = sorted(found, key=rank)
    explained: set[str] = set()
    for finding in found:
        if finding.confidence == EXACT:
            explained |= set(finding.leaves)
    if wrong <= explained:
        found = [finding for finding in found if finding.confidence == EXACT]
    elif explained:
        found = [f for f in found if f.confidence == EXACT or not set(f.leaves) <= explained]
    # A finding about other leaves comes before a second one about the same.
    told: set[str] = set()
    first, again = [], []
    for finding in found:
        (again if finding.leaves and told.issuperset(finding.leaves) else first).append(finding)
        told |= set(finding.leaves)
    return [*first, *again][:4]


def _evidence(evaluator: Evaluator, point: Point, claimed) -> Evidence:
    subject = evaluator.subject

    def again(inputs, given, dy):
        try:
            gradients = evaluator.float64(tuple(inputs), tuple(given), tuple(dy))
        except Exception:  # the user's functions may refuse the shapes
            return None
        return None if gradients.autodiff is None else (gradients.manual, gradients.autodiff)

    return Evidence(
        inputs=point.inputs,
        given=point.given,
        dy=point.dy,
        y=point.gradients.y,
        manual=point.gradients.manual,
        truth=point.truth,
        wrong=tuple(bool(w and c) for w, c in zip(point.wrong, claimed, strict=True)),
        input_paths=subject.input_paths,
        given_paths=subject.given_paths,
        jaxpr=evaluator.jaxpr_at(point.inputs, point.given) if evaluator.jaxpr is not None else None,
        again=again,
    )


def _with_constants(evaluator: Evaluator, evidence: Evidence) -> Evidence:
    """Python numbers among the arguments join the given arrays: a factor may be one of them."""
    constants = evaluator.subject.constants
    n = len(evidence.given)
    values = tuple(np.float64(value) for _, value in constants)

    def again(inputs, given, dy):
        return evidence.again(inputs, given[:n], dy) if tuple(given[n:]) == values else None

    return evidence._replace(
        given=(*evidence.given, *values),
        given_paths=(*evidence.given_paths, *(path for path, _ in constants)),
        again=again,
    )


def _unknown(evaluator: Evaluator, point: Point, where: str) -> Finding:
    wrong = [
        (path, judged)
        for path, judged in zip(evaluator.subject.input_paths, point.leaves, strict=True)
        if judged is None or judged.wrong.any()
    ]
    parts = [
        f"{path}: " + ("another shape" if judged is None else f"{judged.wrong.sum()} of {judged.wrong.size} entries")
        for path, judged in wrong
    ]
    text = f"wrong {where or 'at the given point'}: " + "; ".join(parts[:5])
    return Finding("unknown", text, tuple(path for path, _ in wrong), UNKNOWN)
