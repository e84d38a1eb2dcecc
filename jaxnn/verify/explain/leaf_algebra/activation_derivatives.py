"""Derivatives of activations, seen in leaves that feed straight into one; softmax."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.activations import ACTIVATIONS
from jaxnn.verify.explain.leaf_algebra.experiments import Lab
from jaxnn.verify.explain.leaf_algebra.wrong_leaf import ZERO, Explanation, View, factor, largest, near, number

CHUNK = 512  # entries for which the table is compiled; also the sample on which pairs are tried


def explain(view: View, lab: Lab) -> Iterator[Explanation]:
    """manual·f'(x) = truth·(what is used instead of f'(x)), for every activation f."""
    if not view.comparable or view.truth.size < 4 or not _is_function_of(view):
        return
    some = np.unique(np.linspace(0, view.truth.size - 1, CHUNK).astype(int))
    m, t, x = (a.ravel()[some] for a in (view.manual, view.truth, view.value))
    table, of_values = _table(x), None
    for name, (value, slope) in table.items():
        if name == "identity" or not slope.any():
            continue
        for words, why, instead in _instead(name, x, value, slope, table):
            if instead is None:  # f'(f(x)) needs f' at other points, for all activations at once
                of_values = of_values or {n: _table(v)[n][1] for n, (v, _) in table.items()}
                instead = of_values[name]
            if max(largest(t[slope == 0]), largest(m[instead == 0])) > ZERO * view.scale:
                continue  # not this activation: it would stop these
            if (c := factor(m * slope, t * instead)) is None or not (near(c, 1) or near(c, -1) or near(c, 2)):
                continue

            def equation(v, name=name, words=words, c=c):
                full = _table(v.value.ravel())
                value, slope = full[name]
                found = {w: i for w, _, i in _instead(name, v.value.ravel(), value, slope, full)}[words]
                instead = _table(value)[name][1] if found is None else found
                return v.manual.ravel() * slope, c * v.truth.ravel() * instead

            also = "" if near(c, 1) else f", times {number(c)}"
            what = f"every entry has {words} in place of {name}'(x), x = its own value{also}"
            yield Explanation("activation", what, why.format(f=name), equation)


def _instead(name, x, value, slope, table):
    """(what is used in place of f'(x), what that means, its values), None for f'(f(x))."""
    yield "1", "the derivative of {f} is missing", np.ones_like(x)
    yield f"{name}'({name}(x))", "the derivative of {f} is taken at the activation instead of the pre-activation", None
    yield f"{name}(x)", "the activation {f} itself multiplies instead of its derivative", value
    formulas = {"tanh": ("1 - x²", 1 - x * x), "sigmoid": ("x(1 - x)", x * (1 - x))}
    if name in formulas:
        words, form = formulas[name]
        why = "this formula of {f}' holds for the activation a = {f}(x): it is given the pre-activation x"
        yield words, why, form
    yield f"1 - {name}(x)", "this is not the derivative of {f}", 1 - value
    yield f"1 + {name}(x)²", "a sign is wrong in the derivative of {f}", 1 + value * value
    yield f"{name}(x)²", "this is not the derivative of {f}", value * value
    yield f"{name}'(x)²", "the derivative of {f} is applied twice", slope * slope
    for other, (_, s) in table.items():
        if other not in (name, "identity"):
            yield f"{other}'(x)", f"this is the derivative of {other}, the forward has {{f}}", s
            if other in ("sigmoid", "tanh"):
                a = value
                words, form = ("a(1 - a)", a * (1 - a)) if other == "sigmoid" else ("1 - a²", 1 - a * a)
                yield f"{words}, a = {name}(x),", f"this is the derivative of {other}, the forward has {{f}}", form


def _is_function_of(view) -> bool:
    """Whether manual/truth looks like a function of the leaf's own value: near values have near ratios."""
    used = np.flatnonzero(np.abs(view.truth.ravel()) > 1e-9 * view.scale)[:CHUNK]
    if used.size < 4:
        return False
    x, ratio = view.value.ravel()[used], view.manual.ravel()[used] / view.truth.ravel()[used]
    in_order = ratio[np.argsort(x)]
    if np.isclose(in_order[1:], in_order[:-1], rtol=1e-6).all():
        return bool((view.manual.ravel() != 0)[np.abs(view.truth.ravel()) == 0].any())  # a step function's flat side
    return np.abs(np.diff(in_order)).sum() < 0.6 * np.abs(np.diff(np.random.default_rng(0).permutation(ratio))).sum()


def _table(x: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Value and derivative of every activation at x (n,), in float64."""
    n = x.size
    padded = np.zeros(-(-n // CHUNK) * CHUNK)
    padded[:n] = x
    with jax.enable_x64(True):
        rows = np.concatenate([np.asarray(_compiled()(chunk)) for chunk in padded.reshape(-1, CHUNK)], axis=-1)
    return {name: (rows[0, k, :n], rows[1, k, :n]) for k, name in enumerate(ACTIVATIONS)}


@functools.cache
def _compiled():
    def both(x):
        values = [a.value(x) for a in ACTIVATIONS.values()]
        return jnp.stack([jnp.stack(values), jnp.stack([a.derivative(x) for a in ACTIVATIONS.values()])])

    return jax.jit(both)


# ---------------------------------------------------------------- softmax


def softmax(view: View, lab: Lab) -> Iterator[Explanation]:
    """What may be used instead of p (dy - Σ p dy), p = softmax(x), or of log_softmax's dy - p Σ dy."""
    e = view.evidence
    if not view.comparable or view.truth.ndim < 1 or len(e.dy) != 1 or e.dy[0].shape != view.truth.shape:
        return
    for axis in range(view.truth.ndim):
        p, dy = _softmax(view.value, axis), e.dy[0]
        for name, truth in (("softmax", p * (dy - _sum(p * dy, axis))), ("log_softmax", dy - p * _sum(dy, axis))):
            if factor(view.truth, truth) is None:
                continue
            for words, why, f in _instead_of_softmax(name):
                if (c := factor(view.manual, f(p, dy, axis))) is None or not near(abs(c), 1):
                    continue

                def predicted(v, f=f, axis=axis, c=c):
                    return v.manual, c * f(_softmax(v.value, axis), v.evidence.dy[0], axis)

                sign = "" if c > 0 else "-"
                yield Explanation("softmax", f"with p = softmax(x), yours is {sign}{words}", why, predicted)


def _instead_of_softmax(name):
    off = "the off-diagonal of the Jacobian is missing: only the diagonal"
    if name == "softmax":
        yield "p (1 - p) dy", f"{off} p (1 - p) is used, softmax's is diag(p) - p pᵀ", lambda p, dy, a: p * (1 - p) * dy
        yield "p dy", "the term -p Σ p dy (the path through the normalizing sum) is missing", lambda p, dy, a: p * dy
        yield "dy", "softmax's Jacobian is missing", lambda p, dy, a: dy
        yield "dy - Σ p dy", "softmax's factor p before the bracket is missing", lambda p, dy, a: dy - _sum(p * dy, a)
        weighted = "the sum is Σ p dy, weighted by p"
        yield "p (dy - Σ dy)", weighted, lambda p, dy, a: p * (dy - _sum(dy, a))
        yield "p (dy - mean(dy))", weighted, lambda p, dy, a: p * (dy - dy.mean(a, keepdims=True))
        flipped = "the sign of the term -p Σ p dy is flipped"
        yield "p (dy + Σ p dy)", flipped, lambda p, dy, a: p * (dy + _sum(p * dy, a))
        yield "dy - p Σ dy", "this is log_softmax's backward", lambda p, dy, a: dy - p * _sum(dy, a)
    else:
        yield "dy", "the term -p Σ dy (the path through the normalizing sum) is missing", lambda p, dy, a: dy
        yield "dy - Σ dy", "the factor p of log_softmax's -p Σ dy is missing", lambda p, dy, a: dy - _sum(dy, a)
        yield "dy - p dy", f"{off} 1 - p is used", lambda p, dy, a: dy * (1 - p)
        yield "dy + p Σ dy", "the sign of the term -p Σ dy is flipped", lambda p, dy, a: dy + p * _sum(dy, a)
        yield "dy - p", "Σ dy is missing in log_softmax's dy - p Σ dy", lambda p, dy, a: dy - p
        words = "p (dy - Σ p dy)"
        yield words, "this is softmax's backward", lambda p, dy, a: p * (dy - _sum(p * dy, a))


def _softmax(x, axis):
    exps = np.exp(x - x.max(axis, keepdims=True))
    return exps / exps.sum(axis, keepdims=True)


def _sum(x, axis):
    return x.sum(axis, keepdims=True)
