"""Formulas that even libraries get wrong: how far the naive form, the library's and ours are from the truth."""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from figures.errors import OURS, curves_of, relative_error, steps
from jaxnn import plots
from jaxnn.activations import gelu_erf, silu_derivative, softmax_backward, softmax_forward
from jaxnn.layers.norm import layer_norm_backward, layer_norm_forward
from jaxnn.losses import (
    cosine_distance,
    log_cosh,
    softmax_cross_entropy_with_integer_labels,
    softmax_cross_entropy_with_integer_labels_derivative,
)

NAIVE, LIBRARY = "naive (its derivative: jax.grad)", "library (its derivative: jax.grad)"


def draw(quick: bool) -> tuple[Figure, str]:
    count = 60 if quick else 220
    parts = [
        *cross_entropy_panels(count),
        *layer_norm_panels(count),
        softmax_panel(count),
        silu_panel(count),
        gelu_panel(count),
        log_cosh_panel(count),
        cosine_panel(count),
    ]
    largest = max(part.errors[OURS].max() for part in parts)
    return plots.error_curves(parts), f"largest relative error of our forms {largest:.1e}"


# ------------------------------------------------------------ the panels: their truth is in float64, in stable forms


def logits(gap):
    return jnp.stack([gap, jnp.zeros_like(gap)])


def cross_entropy_panels(count):
    """For an answer that is right by a gap: ℓ = log(1 + e^-gap)."""
    x = steps(0, 85, count)
    label, tail = jnp.zeros(1, int), np.exp(-x.astype(np.float64))

    def naive(gap):
        return -jnp.log(jnp.exp(gap) / (jnp.exp(gap) + 1))

    def library(gap):
        return jax.nn.logsumexp(logits(gap)) - gap

    values = {
        OURS: lambda gap: softmax_cross_entropy_with_integer_labels(label, logits(gap)[None]),
        NAIVE: naive,
        LIBRARY: library,
    }
    slopes = {
        OURS: lambda gap: softmax_cross_entropy_with_integer_labels_derivative(label, logits(gap)[None])[0, 0],
        NAIVE: jax.grad(naive),
        LIBRARY: jax.grad(library),
    }
    title, axis = "Cross-entropy of a right answer", "how far its logit leads"
    note, dnote = "logsumexp(z) − z_y: 1 % off at 10, exactly 0 from 17", "p − 1: exactly 0 from 17"
    return [
        curves_of(title, note, axis, x, values, np.log1p(tail)),
        curves_of(f"{title}′", dnote, axis, x, slopes, -tail / (1 + tail)),
    ]


def layer_norm_panels(count):
    """For rows whose mean is `ratios` times their standard deviation: the largest error over the largest number."""
    ratios, rng = np.geomspace(1, 1e7, count), np.random.default_rng(0)
    rows = (rng.normal(size=(count, 64)) + ratios[:, None]).astype(np.float32)
    dy = rng.normal(size=(count, 64)).astype(np.float32)
    params = {"scale": jnp.ones(64), "shift": jnp.zeros(64)}

    def ours(x, dy):
        y, cache = layer_norm_forward(params, x)
        return y, layer_norm_backward(params, cache, dy)[1]

    def differentiated(f):
        def run(x, dy):
            y, pull = jax.vjp(f, x)
            return y, pull(dy)[0]

        return run

    def naive(x):
        mean = x.mean(-1, keepdims=True)
        return (x - mean) / jnp.sqrt((x * x).mean(-1, keepdims=True) - mean * mean + 1e-5)

    def library(x):
        return jax.nn.standardize(x, epsilon=1e-5)

    exact, slope = rows.astype(np.float64), dy.astype(np.float64)
    exact -= exact.mean(1, keepdims=True)
    r = 1 / np.sqrt((exact**2).mean(1, keepdims=True) + 1e-5)
    x_hat = exact * r
    truth = r * (slope - slope.mean(1, keepdims=True) - x_hat * (slope * x_hat).mean(1, keepdims=True))
    errors: list[dict[str, np.ndarray]] = [{}, {}]
    for name, run in ((OURS, ours), (NAIVE, differentiated(naive)), (LIBRARY, differentiated(library))):
        for i, (found, true) in enumerate(zip(jax.jit(run)(rows, dy), (x_hat, truth), strict=True)):
            errors[i][name] = np.abs(found - true).max(1) / np.abs(true).max(1)
    note, axis = "E[x²] − E[x]²: loses a digit for each extra digit of the mean", "mean / standard deviation"
    return [
        plots.ErrorCurves("Layer norm", note, axis, ratios, errors[0], "log"),
        plots.ErrorCurves("Layer norm′", "the same in dx; NaN where the variance comes out negative", axis, ratios,
                          errors[1], "log"),
    ]  # fmt: skip


def softmax_panel(count):
    x = steps(0, 85, count)
    tail = np.exp(-x.astype(np.float64))

    def naive(gap):
        return jnp.exp(gap) / (jnp.exp(gap) + 1)

    slopes = {
        OURS: lambda gap: softmax_backward(softmax_forward(logits(gap))[1], jnp.array([1.0, 0.0]))[0],
        NAIVE: jax.grad(naive),
        LIBRARY: jax.grad(lambda gap: jax.nn.softmax(logits(gap))[0]),
    }
    note = "p (1 − p) of the leading class: nothing right from 17"
    return curves_of("Softmax′", note, "how far its logit leads", x, slopes, tail / (1 + tail) ** 2)


def silu_panel(count):
    x = steps(-95, 20, count)
    exact = x.astype(np.float64)
    s, t = 1 / (1 + np.exp(-exact)), 1 / (1 + np.exp(exact))
    slopes = {OURS: silu_derivative, NAIVE: jax.grad(lambda x: x / (1 + jnp.exp(-x))), LIBRARY: jax.grad(jax.nn.silu)}
    note = "e⁻ˣ overflows at −89, eˣ underflows at −87; spike: SiLU′ = 0"
    return curves_of("SiLU′", note, "x", x, slopes, s * (1 + exact * t))


def gelu_panel(count):
    x = steps(-12.8, 5, count)
    with jax.enable_x64(True):
        exact = jnp.asarray(x.astype(np.float64))
        truth = np.asarray(exact * jax.lax.erfc(-exact * 0.5**0.5) / 2)
    values = {
        OURS: gelu_erf,
        NAIVE: lambda x: x * (1 + jax.lax.erf(x * 0.5**0.5)) / 2,
        LIBRARY: lambda x: jax.nn.gelu(x, approximate=False),
    }
    note = "1 + erf: nothing right below −5.5; erfc: x² roundings"
    return curves_of("GELU", note, "x", x, values, truth)


def log_cosh_panel(count):
    x = steps(1e-5, 1e3, count, np.geomspace)
    exact = x.astype(np.float64)
    far = np.maximum(exact, 1)
    truth = np.where(
        exact < 1, np.log1p(2 * np.sinh(np.minimum(exact, 1) / 2) ** 2), far + np.log1p(np.exp(-2 * far)) - np.log(2)
    )
    zero = jnp.zeros(1)
    values = {
        OURS: lambda x: log_cosh(zero, x[None]),
        NAIVE: lambda x: jnp.log(jnp.cosh(x)),
        LIBRARY: lambda x: jnp.logaddexp(x, -x) - jnp.log(2.0),
    }
    note = "e²/2 is lost beside 1, or beside log 2; cosh overflows"
    return curves_of("Log cosh", note, "error e", x, values, truth, "log")


def cosine_panel(count):
    """1 - cos of the angle between two vectors, against the angle."""
    x = steps(1e-6, 3, count, np.geomspace, samples=10)
    pairs = np.stack([np.cos(x), np.sin(x)], -1).astype(np.float32)
    angle = np.arctan2(*np.moveaxis(pairs.astype(np.float64), -1, 0)[::-1])
    truth, along = 2 * np.sin(angle / 2) ** 2, jnp.array([1.0, 0.0])

    def library(v):
        return 1 - jnp.vdot(v / jnp.linalg.norm(v), along)

    forms = {
        OURS: lambda v: cosine_distance(along, v),
        NAIVE: lambda v: 1 - jnp.vdot(v, along) / jnp.sqrt((v * v).sum()),
        LIBRARY: library,
    }
    errors = {
        name: relative_error(jax.jit(jax.vmap(jax.vmap(f)))(pairs), truth).max(1) for name, f in forms.items()
    }
    note = "1 − u·v cancels; ‖u − v‖²/2 does not"
    return plots.ErrorCurves("Cosine loss", note, "angle", x.mean(1), errors, "log")
