"""Right except for precision: rounded to a smaller type, or a finite difference instead of a derivative."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from jaxnn.verify.explain.leaf_algebra.experiments import Lab
from jaxnn.verify.explain.leaf_algebra.wrong_leaf import Explanation, View, largest

ROUNDINGS = (("integers", None, 0.5), ("bfloat16", jnp.bfloat16, 2**-8), ("float16", np.float16, 2**-10),
             ("float32", np.float32, 2**-23))  # fmt: skip
PROBES = 6  # entries at which the second derivative is measured


def explain(view: View, lab: Lab) -> Iterator[Explanation]:
    """Entries that a smaller type can represent exactly; errors that are half a step times the second derivative."""
    if not view.comparable or not view.truth.any():
        return
    yield from _rounded(view)
    error = np.abs(view.difference[view.matters]) / view.scale
    if error.max() < 0.02:
        yield from _one_sided(view, lab)
        yield from _noise(view, lab)


def _rounded(view) -> Iterator[Explanation]:
    for name, dtype, step in ROUNDINGS:
        rounded = _round(view.truth, dtype)
        if np.array_equal(_round(view.manual, dtype), view.manual) and not np.array_equal(rounded, view.truth):
            worst = largest(view.difference) / view.scale
            if np.array_equal(rounded, view.manual):
                what = f"every entry is the truth rounded to {name}" + (f" (relative step {step:.0e})" if dtype else "")

                def equation(v, dtype=dtype):
                    return v.manual, _round(v.truth, dtype)

                why = "an extra cast, or an integer array for the result" if dtype is None else "low precision"
                yield Explanation("precision", what, why, equation)
            elif worst < 50 * step and dtype is not None and view.truth.size > 2:
                what = f"every entry is a number that {name} can represent, and off by at most {worst:.0e}"
                yield Explanation("precision", what, f"it is computed in {name}", None, exact=False)
            return


def _round(x, dtype):
    return np.round(x) if dtype is None else x.astype(dtype).astype(np.float64)


def _one_sided(view, lab) -> Iterator[Explanation]:
    """(f(x + h) - f(x)) / h = f'(x) + h/2 f''(x): the errors are h/2 times the Hessian's diagonal."""
    at = np.flatnonzero(view.matters)[:PROBES]
    curvatures = []
    for k in at:

        def nudge(x, by, k=k):
            x = x.copy()
            x.flat[k] += by
            return x

        by = 1e-4 * (abs(view.value.flat[k]) or 1.0)
        up = lab.with_input(view.i, f"up {k}", lambda x, by=by, nudge=nudge: nudge(x, by))
        down = lab.with_input(view.i, f"down {k}", lambda x, by=by, nudge=nudge: nudge(x, -by))
        if up is None or down is None:
            return
        curvatures.append((up.truth[view.i].flat[k] - down.truth[view.i].flat[k]) / (2 * by))
    curvature, error = np.array(curvatures), view.difference.flat[at]
    if not np.isfinite(curvature).all() or not curvature.any() or at.size < 2:
        return
    h = 2 * float(curvature @ error / (curvature @ curvature))
    if h and largest(error - h / 2 * curvature) < 0.03 * largest(error):
        side = "forward" if h > 0 else "backward"
        what = f"the errors are h/2 times the second derivative, h = {float(f'{abs(h):.2g}'):g}"
        why = f"it is a {side} difference with the step {float(f'{abs(h):.2g}'):g}, not a derivative"
        yield Explanation("finite_difference", what, why, None, exact=False)


def _noise(view, lab) -> Iterator[Explanation]:
    """Errors that another point does not repeat: those of a formula change little from one point to the next."""
    rng = np.random.default_rng(2)
    close = lab.with_input(view.i, "close", lambda x: x * (1 + 1e-3 * rng.uniform(-1, 1, x.shape)))
    there = View(close, view.i) if close else None
    if there is None or not there.comparable or view.truth.size < 12:
        return
    a, b = view.difference.ravel(), there.difference.ravel()
    alike = abs(np.vdot(a, b)) / (np.linalg.norm(a) * np.linalg.norm(b))
    if np.count_nonzero(a) > 0.8 * a.size and alike < 0.7:
        of_largest = f"{largest(a) / view.scale:.0e} of the largest entry"
        what = f"the errors are small ({of_largest}) and differ from point to point"
        why = "they look like rounding: low precision, or a numerical difference"
        yield Explanation("noise", what, why, None, exact=False)
