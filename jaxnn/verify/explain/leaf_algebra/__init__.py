"""What is wrong with the leaves of a gradient: hypotheses tested by algebra on the numbers, in float64.

Each family of hypotheses is a file with `explain(view, lab)`, which yields Explanations: an equation between the manual
gradient and the truth that holds if the hypothesis is true. `Lab.accepts` tests it, at the point where the gradient is
wrong and at a moved one. A new hypothesis goes into the family it belongs to, a new family into FAMILIES.

    missing_values          missing, 0, NaN, infinite; clipped, sign lost
    shapes                  another shape
    factors                 c·truth; a factor per row, per entry
    rearranged              permuted axes or entries, another leaf's gradient
    terms                   a term missing or added: L2, -y, dy
    projections             the path through a mean or a norm
    activation_derivatives  of activations, softmax's
    some_entries            only some entries are wrong
    products                what manual computes: dy * x, x.T @ dy
    rounding                rounded, or finite differences
    changed_arguments       an argument ignored, replaced, inverted
    batch_weights           the weights of the batch's examples
    shared_rows             ids that occur more than once

Families that need experiments (both gradients at other points, `Lab`) come last and only where nothing else is exact.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.verify.explain.evidence import Evidence
from jaxnn.verify.explain.leaf_algebra import (
    activation_derivatives,
    batch_weights,
    changed_arguments,
    factors,
    missing_values,
    products,
    projections,
    rearranged,
    rounding,
    shapes,
    shared_rows,
    some_entries,
    terms,
    upstream,
)
from jaxnn.verify.explain.leaf_algebra.experiments import Lab
from jaxnn.verify.explain.leaf_algebra.wrong_leaf import Explanation, View, largest, number
from jaxnn.verify.report.data import CONSISTENT, EXACT, UNKNOWN, Finding

Family = Callable[[View, Lab], Iterator[Explanation]]

FAMILIES: tuple[Family, ...] = (
    missing_values.explain,
    shapes.explain,
    factors.constant,
    rearranged.explain,
    activation_derivatives.softmax,
    factors.per_axis,
    some_entries.explain,
    missing_values.functions,
    terms.explain,
    projections.explain,
    activation_derivatives.explain,
    factors.elementwise,
    products.explain,
    shared_rows.explain,
    changed_arguments.explain,
    batch_weights.explain,
    rounding.explain,
    changed_arguments.ignored,
    batch_weights.alone,
)


def diagnose_leaves(evidence: Evidence) -> list[Finding]:
    """What is wrong with the wrong leaves, best evidence first; leaves with the same cause share a finding.

    Every wrong leaf is in one finding. Its confidence is EXACT if a closed form with a known cause reproduces the leaf,
    CONSISTENT if something was fitted that matches no known number, or only hints at a cause, UNKNOWN if nothing fits.
    """
    evidence = evidence._replace(given=tuple(map(_as_numpy, evidence.given)))
    lab = Lab(evidence)
    views = [View(evidence, i) for i in upstream.nearest_the_loss(evidence) if evidence.wrong[i]]
    with np.errstate(all="ignore"):
        found = _shared({view.i: _best(view, lab) for view in views}, views, lab)
        enters = upstream.enters(evidence)
        groups: dict[Explanation | None, list[int]] = {}
        for i, pair in found.items():
            groups.setdefault(_key(pair[0]) if pair else None, []).append(i)
        findings = [_finding(told, leaves, evidence, enters) for told, leaves in groups.items() if told]
        if None in groups:
            findings.append(_unknown(groups[None], evidence, enters))
    return sorted(findings, key=lambda f: ((EXACT, CONSISTENT, UNKNOWN).index(f.confidence), -len(f.leaves)))


Found = tuple[Explanation, Family] | None


def _best(view: View, lab: Lab) -> Found:
    """The first explanation that is exact; failing that, the first that holds."""
    first = None
    for family in FAMILIES:
        for explanation in family(view, lab):
            simpler = first is not None and first[0].kind == "factor" and explanation.free
            if not simpler and lab.accepts(explanation, view):
                if explanation.exact:
                    return explanation, family
                first = first or (explanation, family)
    return first


def _shared(found: dict[int, Found], views: list[View], lab: Lab) -> dict[int, Found]:
    """One cause for many leaves is likelier than many causes: what explains one leaf exactly is tried on the others."""
    for one in [pair for pair in found.values() if pair and pair[0].exact]:
        key, family = _key(one[0]), one[1]
        has = [i for i, pair in found.items() if pair and _key(pair[0]) == key]
        more = [view for view in views if view.i not in has and _holds_too(key, family, view, lab)]
        if len(has) + len(more) > max((_sharing(found, view) for view in more), default=0):
            found |= {view.i: one for view in more}
    return found


def _sharing(found: dict[int, Found], view: View) -> int:
    """How many leaves have the explanation that this leaf has now."""
    now = found[view.i]
    return sum(pair is not None and _key(pair[0]) == _key(now[0]) for pair in found.values()) if now else 0


def _holds_too(key: Explanation, family: Family, view: View, lab: Lab) -> bool:
    return any(_key(other) == key and lab.accepts(other, view) for other in family(view, lab))


def _key(explanation: Explanation) -> Explanation:
    return explanation._replace(equation=None, free=0)


def _finding(found: Explanation, leaves: list[int], evidence: Evidence, enters: str) -> Finding:
    confidence = EXACT if found.exact else CONSISTENT
    text = f"{_names(leaves, evidence)}: {found.text}"
    if enters and not found.exact:
        text += f" {enters[0].upper()}{enters[1:]}."
    return Finding(found.kind, text, tuple(evidence.input_paths[i] for i in leaves), confidence)


def _names(leaves: list[int], evidence: Evidence) -> str:
    named = [f"{evidence.input_paths[i]} {evidence.inputs[i].shape}" for i in leaves]
    if len(leaves) == 1:
        return named[0]
    every = "all leaves" if len(leaves) == len(evidence.inputs) else f"{len(leaves)} leaves"
    return f"{every}, {', '.join(named[:4])}{', …' if len(named) > 4 else ''}"


def _unknown(leaves: list[int], evidence: Evidence, enters: str) -> Finding:
    """What can be said about leaves that no hypothesis explains."""
    told = [f"{_names([i], evidence)}: {_numbers(View(evidence, i))}" for i in leaves[:3]]
    if len(leaves) > 3:
        told.append(f"{len(leaves) - 3} more leaves are wrong, in no simple way")
    if enters:
        told.append(enters[0].upper() + enters[1:])
    return Finding("unknown", ". ".join(told) + ".", tuple(evidence.input_paths[i] for i in leaves), UNKNOWN)


def _numbers(view: View) -> str:
    m, t = view.manual, view.truth
    if not view.comparable:
        return "the truth is not finite"
    said = f"{int(view.wrong.sum())} of {view.wrong.size} entries are wrong"
    used = np.abs(t) > 1e-3 * largest(t)
    if not t.any():
        return f"{said}, the truth is 0"
    ratio = m[used] / t[used]
    cosine = float(np.vdot(m, t) / (np.linalg.norm(m) * np.linalg.norm(t)))
    spread = f" (middle half {number(np.quantile(ratio, 0.25))} to {number(np.quantile(ratio, 0.75))})"
    return f"{said}; the median of manual/truth is {number(float(np.median(ratio)))}{spread}, their cosine {cosine:.3f}"


def _as_numpy(x):
    is_key = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return x if is_key or not hasattr(x, "dtype") else np.asarray(x)
