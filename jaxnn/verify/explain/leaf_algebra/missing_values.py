"""No numbers, or cut ones: a leaf that is missing, 0, NaN or infinite, and entries clipped or without their sign."""

from collections.abc import Iterator

import numpy as np

from jaxnn.verify.explain.leaf_algebra.experiments import Lab, numeric
from jaxnn.verify.explain.leaf_algebra.named_arrays import OWN
from jaxnn.verify.explain.leaf_algebra.wrong_leaf import ZERO, Explanation, View, factor, largest, number, predicts

FEW = 8


def explain(view: View, lab: Lab) -> Iterator[Explanation]:
    """Leaves without usable values."""
    if view.evidence.manual[view.i] is None:
        yield Explanation("missing", "the gradient is missing: it is None", "", None)
    elif not np.isfinite(view.manual).all():
        yield _not_finite(view)
    elif view.same_shape and largest(view.manual) <= ZERO * largest(view.truth):
        what = f"every entry is 0, the truth goes up to {number(largest(view.truth))}"
        yield Explanation("zero", what, "no gradient reaches it", predicts(lambda v: np.zeros(v.truth.shape)))
    elif view.same_shape and largest(view.truth) <= ZERO * largest(view.manual):
        what = f"the truth is 0 in every entry, yours goes up to {number(largest(view.manual))}"
        yield Explanation("not_zero", what, "the output does not depend on it", None)


def functions(view: View, lab: Lab) -> Iterator[Explanation]:
    """Elementwise functions of the truth: clipped, without sign, squared."""
    if not view.comparable:
        return
    m, t = view.manual, view.truth
    bound = largest(m)
    if (np.abs(m) >= bound * (1 - 1e-9)).sum() > 1 and largest(t) > bound and not np.array_equal(m, np.sign(t)):

        def clipped(v):
            return np.clip(v.truth, -bound, bound)

        what = f"every entry beyond ±{number(bound)} is clipped there"
        yield Explanation("clipped", what, "gradient clipping belongs in the optimizer's step", predicts(clipped))
    for name, f, why in (
        ("sign(truth)", np.sign, "only its sign is left"),
        ("|truth|", np.abs, "its sign is lost: an extra absolute value"),
        ("-|truth|", lambda t: -np.abs(t), "its sign is lost: an extra absolute value"),
        ("truth²", np.square, "it is squared"),
        ("max(truth, 0)", lambda t: np.maximum(t, 0), "its negative entries are cut off"),
        ("min(truth, 0)", lambda t: np.minimum(t, 0), "its positive entries are cut off"),
    ):
        if not np.array_equal(f(t), t):
            yield Explanation("function_of_truth", f"every entry is {name}", why, predicts(lambda v, f=f: f(v.truth)))
    norm = np.linalg.norm(t)
    if t.size > 1 and factor(m, t / norm) is not None and abs(np.linalg.norm(m) - 1) < 1e-6:
        yield Explanation(
            "normalised", "manual is the truth divided by its norm, the direction alone", "an extra normalisation",
            predicts(lambda v: v.truth / np.linalg.norm(v.truth)),
        )  # fmt: skip


# ---------------------------------------------------------------- NaN and infinity


def _not_finite(view: View) -> Explanation:
    bad = ~np.isfinite(view.manual)
    nan = np.isnan(view.manual)
    name = "NaN" if nan.sum() == bad.sum() else "infinite" if not nan.any() else "NaN or infinite"
    n = int(bad.sum())
    what = f"{n} of {bad.size} entries {'is' if n == 1 else 'are'} {name}"
    if bad.ndim and n < bad.size:
        what += f": {indices(bad)}"
    if view.same_shape and n and np.isfinite(view.truth).all():
        there = view.truth[bad]
        value = number(float(there[0])) if (there == there[0]).all() else f"up to {number(largest(there))}"
        what += f"; the truth is finite there ({value})"
    return Explanation("not_finite", what, _suspect(view, bad), None, exact=False)


def _suspect(view, bad) -> str:
    """What the arrays hold at exactly the entries that are not finite."""
    everywhere = bad.all()
    arrays = [(OWN, view.value)]
    arrays += [(p, x) for p, x in zip(view.evidence.given_paths, view.evidence.given, strict=True) if numeric(x)]
    arrays += list(zip(view.evidence.input_paths, view.evidence.inputs, strict=True))
    tests = (
        ("0", lambda x: x == 0, "0/0, log(0), 0·log(0) or a root's slope at 0"),
        ("1", lambda x: x == 1, "1 - x is 0 there: 0/0, log(0) or 1/(1 - x)"),
        ("infinite", np.isinf, "inf - inf or 0·inf"),
        ("beyond ±700", lambda x: np.abs(x) > 700, "exp overflows there"),
        ("beyond ±80", lambda x: np.abs(x) > 80, "exp overflows there in float32"),
    )
    for path, x in arrays:
        for words, test, why in tests:
            found = test(np.asarray(x, np.float64))
            if not everywhere and found.shape == bad.shape and np.array_equal(found, bad):
                return f"{path} is {words} at exactly these entries: {why}"
            if not everywhere and found.ndim == 1 and bad.ndim > 1 and found.size == bad.shape[0]:
                rows = np.broadcast_to(found.reshape(-1, *[1] * (bad.ndim - 1)), bad.shape)
                if np.array_equal(rows, bad):
                    return f"{path} is {words} in exactly these rows: {why}"
    for path, x in arrays:
        for words, test, why in tests:
            if words != "1" and (found := test(np.asarray(x, np.float64))).any() and not found.all():
                n = int(found.sum())
                return f"{path} is {words} at {indices(found)} ({n} of {found.size} entries): {why}"
    return ""


def indices(mask: np.ndarray) -> str:
    """The first few indices at which the mask is True.

    >>> indices(np.array([[True, False], [False, True]]))
    '[0, 0], [1, 1]'
    """
    at = [str([int(k) for k in index]) for index in np.argwhere(mask)[:FEW]]
    return ", ".join(at) + (", …" if mask.sum() > FEW else "")
