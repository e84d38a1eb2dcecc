"""Requirements beyond correct values in float64: purity, vmap and scan, a pair's promises, precision."""

import jax.numpy as jnp
import numpy as np

from jaxnn.verify.judge.compare import entry_errors, finite_max
from jaxnn.verify.judge.evaluate import Evaluator
from jaxnn.verify.judge.judge import Point
from jaxnn.verify.report.data import FLOAT64_TOLERANCE, OBSERVED, Finding

COMPILED = (
    "run step by step your gradient is right, but one way of compiling it gave a different result: a test for equality "
    "(x == x.max()) saw two roundings of the same value. argmax does not depend on that"
)


def is_finite(point: Point) -> bool:
    arrays = [m for m in point.gradients.manual if m is not None]
    return all(np.isfinite(a).all() for a in (*arrays, *point.truth, *point.gradients.y))


def purity(evaluator: Evaluator) -> list[Finding]:
    """The same arguments must give the same gradient: no hidden randomness, no counters."""
    changing = evaluator.impure()
    if changing == "forward":
        text = (
            "the forward returns different values when called twice with the same arguments: hidden randomness "
            "(np.random), a counter, the time. Its gradient cannot be verified. Take the randomness as an argument: "
            "a key, and jax.random.normal(key, ...), so that the forward and the gradient see the same draw"
        )
        return [Finding("impure_forward", text, (), OBSERVED)]
    if evaluator.overwrites:
        text = (
            "the manual gradient changes its arguments in place, so its caller continues with different "
            "parameters (a side effect); work on copies: w = w.copy()"
        )
        return [Finding("overwrites", text, (), OBSERVED)]
    if changing == "backward":
        text = (
            "the manual gradient returns different values when called twice with the same arguments: hidden "
            "randomness (np.random) or a global that changes. Draw with a key passed as an argument, "
            "the same one in the forward and in the backward"
        )
        return [Finding("impure", text, (), OBSERVED)]
    return []


def pair_findings(evaluator: Evaluator, given: Point, claimed) -> list[Finding]:
    """What a pair must also satisfy: the same y, and a backward that is linear in dy."""
    if evaluator.subject.scalar:
        return []
    found = []
    primal = evaluator.primal(evaluator.inputs, evaluator.given)
    if primal is not None:
        shapes = [a.shape for a in primal], [a.shape for a in given.gradients.y]
        same = shapes[0] == shapes[1] and all(
            (entry_errors(a, b, finite_max(b)) <= FLOAT64_TOLERANCE).all()
            for a, b in zip(primal, given.gradients.y, strict=True)
        )
        if not same:
            text = f"the pair's forward returns a different y from f (shapes {shapes[0]} and {shapes[1]}): "
            found.append(Finding("primal", text + "f_fwd(*args)[0] must be f(*args)", (), OBSERVED))
    zero = tuple(np.zeros_like(dy) for dy in evaluator.dy)
    manual = evaluator.float64(evaluator.inputs, evaluator.given, zero).manual
    nonzero = [
        path
        for path, leaf, claim in zip(evaluator.subject.input_paths, manual, claimed, strict=True)
        if claim and leaf is not None and not (leaf == 0).all()
    ]
    if nonzero:
        text = f"for a cotangent of zeros the gradient of {nonzero[0]} is not zero: the backward must be linear in dy"
        found.append(Finding("not_linear", text, tuple(nonzero), OBSERVED))
    return found


def transformed(evaluator: Evaluator, several: list[Point], claimed, notes: list[str]) -> list[Finding]:
    """The same gradient under vmap and scan."""
    if not evaluator.traceable or evaluator.jaxpr is None:
        notes.append("NumPy code: called with arrays, not under jit, vmap or scan")
        return []
    several = [point for point in several if is_finite(point)] or several[:1]
    tree_max = max((finite_max(leaf) for point in several for leaf in point.truth), default=0.0)
    if tree_max < 1e-10:
        return []  # a vanishing gradient is rounding, which vmap may do differently
    try:
        mapped, scanned = evaluator.batched([point.inputs for point in several], evaluator.given, several[0].dy)
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        notes.append(f"under vmap or scan the gradient raises {type(error).__name__}: {first[:160]}")
        return []
    for words, answers in (("vmap", mapped), ("scan", scanned)):
        for i, (point, answer) in enumerate(zip(several, answers, strict=True)):
            plain = point.gradients.manual
            if i and not evaluator.subject.scalar:
                plain = evaluator.float64(point.inputs, evaluator.given, several[0].dy).manual
            for path, a, b, claim in zip(evaluator.subject.input_paths, answer, plain, claimed, strict=True):
                # What is 0 up to rounding may round differently: 1e-7 of the largest gradient is allowed.
                if claim and b is not None and not (entry_errors(a, b, 1e6 * tree_max) <= FLOAT64_TOLERANCE).all():
                    text = f"{path}: the gradient changes under jax.{words}: "
                    text += "it depends on something besides its arguments, or on the shape it is called with"
                    if evaluator.careful and words == "scan":  # the only one that is always compiled
                        notes.append(COMPILED)
                        return []
                    return [Finding(words, text, (path,), OBSERVED)]
    return []


def precision(evaluator: Evaluator, given: Point, others, own, claimed) -> list[Finding]:
    """In the user's precision the gradient may be off by up to 50 times jax.grad's own rounding error."""
    if evaluator.x64_session or (not evaluator.traceable and evaluator.jaxpr is None):
        return []
    typical = max(
        (finite_max(t) for point in (given, *(p for _, p in others)) for t in point.truth), default=0.0
    )
    found = []
    for i, path in enumerate(evaluator.subject.input_paths):
        judged, manual = given.leaves[i], own.manual[i]
        right = given.gradients.manual[i]
        if judged is None or not claimed[i] or manual is None or right is None or not manual.size:
            continue
        # `right` has been judged right in float64, with the user's conventions at kinks
        auto = own.autodiff[i] if own.autodiff is not None else right
        dtype = evaluator.own_dtypes[i]
        eps, tiny = float(jnp.finfo(dtype).eps), float(jnp.finfo(dtype).tiny)
        if not np.isfinite(manual[np.isfinite(right)]).all():
            if np.isfinite(auto[np.isfinite(right)]).all():
                found.append(_overflow(path, manual, right, dtype))
            continue
        known = np.isfinite(right) & np.isfinite(auto)
        if not known.any():
            continue
        scale = finite_max(right)
        auto_error = float(np.abs(auto - given.truth[i])[known & np.isfinite(given.truth[i])].max(initial=0))
        error = np.abs(manual - right)
        allowed = 50 * auto_error + min(200 * eps, 0.25) * scale + 20 * eps * typical + tiny
        if float(error[known].max()) > allowed:
            worst = np.unravel_index(int(np.where(known, error, 0).argmax()), error.shape)
            found.append(_loss_of_precision(path, worst, manual, right, auto_error, error, dtype))
    return found


def _overflow(path: str, manual: np.ndarray, right: np.ndarray, dtype) -> Finding:
    bad = np.argwhere(~np.isfinite(manual) & np.isfinite(right))
    at = tuple(map(int, bad[0]))
    text = (
        f"{path}: right in float64, but in {dtype} {len(bad)} of {manual.size} entries are NaN or infinite, the first "
        f"at {list(at)}, where the truth is {right[at]:.4g}: something overflows (an exp, a square, a division by 0). "
        "Subtract the maximum before exp, or divide before you multiply"
    )
    return Finding("overflow", text, (path,), OBSERVED)


def _loss_of_precision(path, worst, manual, right, auto_error, error, dtype) -> Finding:
    scale = finite_max(right)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = error / np.abs(right)
    middle = float(np.median(relative[np.isfinite(relative) & (relative > 0)])) if (relative > 0).any() else 0.0
    if 2.0**-11 < middle < 2.0**-7:
        why = "the size of bfloat16's rounding (2^-9): a value is rounded to bfloat16 on the way"
    elif 2.0**-14 < middle <= 2.0**-11:
        why = "the size of float16's rounding (2^-12): a value is rounded to float16 on the way"
    else:
        why = "cancellation: nearly equal numbers are subtracted (E[x²] - E[x]², 1 - p), or a sum is accumulated badly"
    at = tuple(map(int, worst))
    text = (
        f"{path}: the formula is right in float64, but loses precision in {dtype}: at {list(at)} manual "
        f"{manual[at]:.6g}, truth {right[at]:.6g}, an error of {error[at] / scale if scale else np.inf:.1e} of the "
        f"leaf's largest entry, where jax.grad is off by {auto_error / scale if scale else 0:.1e}. This is {why}"
    )
    return Finding("precision", text, (path,), OBSERVED)


def about_autodiff(evaluator: Evaluator, given: Point, claimed) -> list[Finding]:
    """What is wrong with jax.grad of the forward, which is not held against the gradient."""
    found = []
    for why, kind, text in (
        (
            "custom rule",
            "autodiff_rule",
            "jax.grad of the forward is wrong: it uses the rule of a custom_vjp or custom_jvp function that finite "
            "differences contradict; without that rule autodiff agrees with them. Your gradient was compared with them",
        ),
        (
            "nan",
            "autodiff_nan",
            "jax.grad of the forward is NaN or infinite here, though the function has a slope (finite differences): "
            "typical of jnp.where(ok, f(x), 0) around an f that is not finite where ok is False. Give f a harmless "
            "argument there: f(jnp.where(ok, x, 1)). Your gradient was compared with the differences",
        ),
        ("unexplained", "autodiff_wrong", "jax.grad of the forward disagrees with finite differences of it"),
    ):
        leaves = [
            (path, judged)
            for path, judged in zip(evaluator.subject.input_paths, given.leaves, strict=True)
            if judged is not None and judged.overruled == why
        ]
        if not leaves:
            continue
        paths = tuple(path for path, _ in leaves)
        circular = [path for path, judged in leaves if judged.circular]
        if circular:
            text = (
                f"{circular[0]}: your gradient agrees with jax.grad, but finite differences of the forward contradict "
                "both: they share a mistake. " + ("" if why == "unexplained" else text)
            )
            found.append(Finding("circular", text, tuple(circular), OBSERVED))
        else:
            names = ", ".join(evaluator.custom_rules())
            text += f" (custom rules: {names})" if names else ""
            found.append(Finding(kind, text, paths, OBSERVED, wrong=False))
    return found
