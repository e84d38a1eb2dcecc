"""verify_grad and its relatives: is a hand-written gradient right, and if not, where, and what is probably wrong?

    judge/subject.py      the user's functions and arguments in one form
    judge/structure.py    tree, leaves, dtypes
    judge/evaluate.py     forward, manual gradient and autodiff in float64 and in the user's precision
    judge/judge.py        the vote of the witnesses on every entry, at one point
    judge/points.py       moved parameters, other batches
    judge/checks.py       purity, vmap and scan, a pair's promises, precision
    explain/causes.py     the probable cause, once something is wrong
    judge/leaf_table.py   the verdict leaf by leaf, for the report
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.layer import Ctx, Layer
from jaxnn.verify.explain.causes import diagnosis
from jaxnn.verify.judge import points
from jaxnn.verify.judge.checks import COMPILED, about_autodiff, is_finite, pair_findings, precision, purity, transformed
from jaxnn.verify.judge.evaluate import Evaluator, Gradients
from jaxnn.verify.judge.judge import Point, judge
from jaxnn.verify.judge.leaf_table import coverage, leaf_table
from jaxnn.verify.judge.structure import dtype_findings, match
from jaxnn.verify.judge.subject import CannotVerify, Subject, describe, from_layer, from_loss, from_vjp
from jaxnn.verify.report.data import OBSERVED, Finding
from jaxnn.verify.report.report import Report


def verify_grad(
    loss: Callable, manual_grad: Callable, params: Any, *args: Any, argnums: int | tuple[int, ...] = 0
) -> Report:
    """Verify a hand-written gradient of a scalar loss.

        loss(params, *args) -> L,   manual_grad(params, *args) -> ∂L/∂params  (of the arguments argnums, as in jax.grad)

    The gradient is compared in float64 with jax.grad and with finite differences of the loss, at the given point, at
    moved parameters and for other batches, and once in the arguments' own precision. Either function may be NumPy code.
    CannotVerify (a ValueError) if the call makes no sense: a loss that is not scalar, no floats, functions that raise.

    >>> import jax.numpy as jnp
    >>> def loss(w, x, y):
    ...     return jnp.mean((x @ w - y) ** 2)
    >>> def grad(w, x, y):
    ...     return x.T @ (x @ w - y)  # 2/n is missing
    >>> x, y = jnp.array([[1.0, 2.0], [0.5, -1.0], [2.0, 0.0], [0.3, 1.0]]), jnp.array([1.0, 0.0, 2.0, 1.5])
    >>> report = verify_grad(loss, grad, jnp.array([0.3, -0.2]), x, y)
    >>> report.ok
    False
    >>> print(report.findings[0].text)
    params...2...
    """
    return _verify(from_loss(loss, manual_grad, (params, *args), argnums))


def verify_vjp(f: Callable, f_fwd: Callable, f_bwd: Callable, *args: Any) -> Report:
    """Verify the three functions of a custom_vjp, of any outputs, with random cotangents.

        f(*args) -> y,   f_fwd(*args) -> (y, residuals),   f_bwd(residuals, dy) -> a tuple, ∂L/∂arg for each argument

    On top of what verify_grad checks: f_fwd's y must be f's, and the backward must be linear in dy. None for an
    argument claims no gradient for it. CannotVerify (a ValueError) if one of the three is not a function.

    >>> import jax.numpy as jnp
    >>> report = verify_vjp(
    ...     jnp.sin, lambda x: (jnp.sin(x), x), lambda x, dy: (dy * jnp.cos(x),), jnp.array([0.3, 2.0])
    ... )
    >>> report.ok
    True
    """
    _require_functions("verify_vjp", "(f, f_fwd, f_bwd, *args)", f=f, f_fwd=f_fwd, f_bwd=f_bwd)
    return _verify(from_vjp(f, f_fwd, f_bwd, args, pair=False))


def verify_custom_vjp(f: Callable, *args: Any) -> Report:
    """Verify the rule of a function made by `jax.custom_vjp`, as verify_vjp does.

    CannotVerify (a ValueError) if f is another function, or has no rule yet.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> double = jax.custom_vjp(lambda x: 2 * x)
    >>> double.defvjp(lambda x: (2 * x, None), lambda _, dy: (2 * dy,))
    >>> verify_custom_vjp(double, jnp.array([0.3, 2.0])).ok
    True
    """
    if not isinstance(f, jax.custom_vjp):
        raise CannotVerify(
            f"verify_custom_vjp takes a function made by jax.custom_vjp and its arguments; got {describe(f)}. For "
            "three functions use verify_vjp(f, f_fwd, f_bwd, *args), for two verify_pair(forward, backward, *args)"
        )
    if f.fwd is None or f.bwd is None:
        raise CannotVerify("this custom_vjp function has no rule yet: call f.defvjp(f_fwd, f_bwd)")
    return _verify(from_vjp(f, f.fwd, f.bwd, args, pair=False))


def verify_pair(forward: Callable, backward: Callable, *args: Any) -> Report:
    """Verify a bare pair with random cotangents.

        forward(params, x) -> (y, cache),   backward(params, cache, dy) -> (dparams, dx)

    On top of what verify_vjp checks: the gradients must have the tree, shapes and dtypes of what they are for.
    CannotVerify (a ValueError) if one of the two is not a function.

    >>> import jax.numpy as jnp
    >>> from jaxnn.layers import dense_backward, dense_forward
    >>> params = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0], [0.2, -1.0]]), "b": jnp.array([0.1, 0.3])}
    >>> verify_pair(dense_forward, dense_backward, params, jnp.array([[1.0, 2.0, -0.5]])).ok
    True
    """
    _require_functions("verify_pair", "(forward, backward, *args)", forward=forward, backward=backward)
    return _verify(from_vjp(lambda *a: forward(*a)[0], forward, backward, args, pair=True))


def _require_functions(who: str, form: str, **functions: Any) -> None:
    wrong = [f"{name} is {describe(f)}" for name, f in functions.items() if not callable(f)]
    if wrong:
        raise CannotVerify(
            f"{who} takes {form}: {', '.join(wrong)}, expected a function. A custom_vjp is verified by "
            "verify_vjp(f, f_fwd, f_bwd, *args) or verify_custom_vjp(f, *args), a pair by "
            "verify_pair(forward, backward, *args)"
        )


def verify_layer(layer: Layer, x: Any, ctx: Ctx | None = None, key: jax.Array | None = None) -> Report:
    """Verify a Layer: the gradients of its parameters and its input, and the contract in jaxnn/layer.py.

    Its parameters are drawn by layer.init(key, x.shape); the moved points take them away from special values (biases
    of 0). x may be integers (which have no gradient) or a tuple of arrays. ctx is passed to forward.

    >>> import jaxnn
    >>> report = verify_layer(jaxnn.layers.dense(3), np.ones((4, 5), np.float32))
    >>> report.ok
    True
    """
    ctx = Ctx() if ctx is None else ctx
    key = jax.random.key(0) if key is None else key
    shapes: Any = tuple(map(jnp.shape, x)) if isinstance(x, tuple) else jnp.shape(x)
    try:
        out_shape, params, state = layer.init(key, shapes)
        y, new_state, _ = jax.eval_shape(layer.forward, params, state, x, ctx)
    except Exception as error:
        raise CannotVerify(
            f"the layer cannot be run on x of shape {shapes}: {type(error).__name__}: {error}"
        ) from error
    findings = []
    promised, came = _shapes(out_shape), [leaf.shape for leaf in jax.tree.leaves(y)]
    if promised != came:
        text = f"init promises an output of shape {promised}, forward returns {came}"
        findings.append(Finding("out_shape", text, (), OBSERVED))
    if jax.tree.structure(new_state) != jax.tree.structure(state):
        text = f"forward returns a state with the tree {jax.tree.structure(new_state)}, init one with "
        findings.append(Finding("state", text + f"{jax.tree.structure(state)}", (), OBSERVED))
    return _verify(from_layer(layer, params, state, x, ctx), tuple(findings))


def _shapes(shape) -> list[tuple[int, ...]]:
    """One shape or a tuple of them, as a list."""
    many = any(isinstance(part, tuple | list) for part in shape)
    return [tuple(part) for part in shape] if many else [tuple(shape)]


# ---------------------------------------------------------------- the steps of a verification


def _verify(subject: Subject, findings: tuple[Finding, ...] = ()) -> Report:
    try:
        started = time.perf_counter()
        report = _verified(subject, findings, careful=False)
        if report is None:  # something is wrong, or only looked wrong when compiled
            report = _verified(subject, findings, careful=True)
            assert report is not None
            if report.ok and not report.findings and COMPILED not in report.notes:
                report = dataclasses.replace(report, notes=(*report.notes, COMPILED))
        return dataclasses.replace(report, seconds=time.perf_counter() - started)
    except jax.errors.UnexpectedTracerError as error:
        raise CannotVerify(
            "one of the functions uses a value that another call has left behind (a global, an attribute, a cache "
            "filled as a side effect). Pure functions return everything and take everything as arguments: compute it "
            "again inside, or return it from the forward"
        ) from error


def _verified(subject: Subject, findings: tuple[Finding, ...], careful: bool) -> Report | None:
    """The report; None if numbers are wrong and the gradient was not run step by step."""
    evaluator = Evaluator(subject, careful)
    own, raw, structure = _own_precision(evaluator)
    found = [*findings, *structure.findings, *purity(evaluator)]
    if any(finding.kind == "impure_forward" for finding in found):
        return Report(subject.name, {}, tuple(found), (), 0.0)
    claimed = tuple(not undeclared for undeclared in structure.undeclared)
    notes = [f"{path}: the backward returns None, no gradient is claimed" for path in _unclaimed(subject, claimed)]

    moved = list(points.moved(evaluator, claimed))
    elsewhere = [_largest_entry(evaluator.float64(*variant[1:])) for variant in moved]
    typical = min((size for size in elsewhere if np.isfinite(size)), default=0.0)
    given = judge(evaluator, evaluator.inputs, evaluator.given, evaluator.dy, claimed, True, typical)
    typical = _largest_entry(given.gradients)
    where, failing = "", given if _is_wrong(given, claimed) else None
    if (failing is not None or any(judged is not None and judged.overruled for judged in given.leaves)) and not careful:
        return None
    others: list[tuple[points.Variant, Point]] = []
    for variant in moved:
        if failing is not None and (others or not is_finite(given)):
            break
        point = judge(evaluator, *variant[1:], claimed, typical=typical)
        if _usable(point):
            others.append((variant, point))
            if failing is None and _is_wrong(point, claimed):
                where, failing = variant.words, point
    told = len(found)
    if failing is None:
        found += pair_findings(evaluator, given, claimed)
        found += transformed(evaluator, [given, *(point for _, point in others)], claimed, notes)
        for variant in (*points.batches(evaluator), *points.longer(evaluator)):
            point = _at_batch(evaluator, variant, claimed, typical, notes)
            if point is None or not _usable(point):
                continue
            others.append((variant, point))
            if _is_wrong(point, claimed):
                where, failing = variant.words, point
                break
    elif failing is given and others and _more_telling(others[0][1], given, claimed):
        failing = others[0][1]
    if failing is None:
        found += precision(evaluator, given, others, own, claimed)
    if (failing is not None or len(found) > told) and not careful:
        return None
    dtypes = dtype_findings(subject, raw, evaluator.traceable)
    cut_off = {path for path, leaf in zip(subject.input_paths, raw, strict=True) if _is_integer(leaf)}
    if failing is not None:
        causes = diagnosis(evaluator, failing, where, claimed, notes)
        found += [finding for finding in causes if not cut_off.issuperset(finding.leaves)] if cut_off else causes
    found += dtypes
    found += about_autodiff(evaluator, given, claimed)
    notes += coverage(evaluator, given, others)
    leaves = leaf_table(subject, evaluator, given, raw, claimed)
    order = sorted(found, key=lambda finding: not finding.wrong)
    value = float(given.gradients.y[0]) if subject.scalar else None
    return Report(subject.name, leaves, tuple(order), tuple(notes), 0.0, value)


def _is_integer(leaf) -> bool:
    return leaf is not None and jnp.issubdtype(jnp.result_type(leaf), jnp.integer)


def _own_precision(evaluator: Evaluator):
    own, raw = evaluator.own(evaluator.dy)
    gradient: list[Any] = []
    subject = evaluator.subject

    def whole(inputs, given, dy):
        gradient.append(match(subject, subject.backward(inputs, given, dy)))
        return ()

    if evaluator.traceable:
        own_dy = tuple(leaf.astype(y.dtype) for leaf, y in zip(evaluator.dy, evaluator.y, strict=True))
        jax.eval_shape(whole, subject.inputs, subject.given, own_dy)
        return own, raw, gradient[0]
    return own, raw, evaluator.plain_structure()


def _largest_entry(gradients: Gradients) -> float:
    """Of autodiff's gradient; of the manual one where the forward is NumPy code; NaN if it is not finite."""
    leaves = gradients.autodiff or tuple(m for m in gradients.manual if m is not None)
    return max((float(np.abs(leaf).max(initial=0)) for leaf in leaves), default=0.0)


def _unclaimed(subject: Subject, claimed) -> list[str]:
    return [path for path, claim in zip(subject.input_paths, claimed, strict=True) if not claim]


def _is_wrong(point: Point, claimed) -> bool:
    return any(w and c for w, c in zip(point.wrong, claimed, strict=True))


def _usable(point: Point) -> bool:
    """A moved point outside the function's domain says nothing."""
    return all(np.isfinite(a).all() for a in (*point.gradients.y, *(point.gradients.autodiff or ())))


def _more_telling(moved: Point, given: Point, claimed) -> bool:
    """More leaves are wrong at the moved point: the given one hides some (zero biases, saturation)."""
    return sum(np.logical_and(moved.wrong, claimed)) > sum(np.logical_and(given.wrong, claimed))


def _at_batch(evaluator, variant: points.Variant, claimed, typical: float, notes: list[str]) -> Point | None:
    try:
        return judge(evaluator, *variant[1:], claimed, typical=typical)
    except Exception as error:  # the manual gradient may be made for one batch size
        first = str(error).strip().splitlines() or [""]
        notes.append(f"not checked {variant.words}: the gradient raises {type(error).__name__}: {first[0][:160]}")
        return None
