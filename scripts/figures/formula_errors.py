"""How far textbook forms, jax.grad of them and this library's forms are from the truth in float32."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from figures.errors import OURS, curves_of, steps
from jaxnn import plots
from jaxnn.activations import (
    relu,
    relu_derivative,
    sigmoid,
    sigmoid_derivative,
    tanh,
    tanh_derivative,
)
from jaxnn.losses import (
    binary_cross_entropy,
    binary_cross_entropy_derivative,
    binary_cross_entropy_with_logits,
    binary_cross_entropy_with_logits_derivative,
    mse,
    mse_derivative,
)

# ---------------------------------------------------------------- the textbook's forms

TEXTBOOK, GRAD_OF_OURS, GRAD_OF_TEXTBOOK = "textbook", "jax.grad of ours", "jax.grad of textbook"
FROM_PROBABILITIES = "ours, from probabilities"


def textbook_sigmoid(x):
    return 1 / (1 + jnp.exp(-x))


def textbook_sigmoid_derivative(x):
    s = textbook_sigmoid(x)
    return s * (1 - s)


def textbook_relu(x):
    return jnp.maximum(0, x)


def textbook_relu_derivative(x):
    return jnp.where(x > 0, 1, 0)


def textbook_tanh(x):
    return (jnp.exp(x) - jnp.exp(-x)) / (jnp.exp(x) + jnp.exp(-x))


def textbook_tanh_derivative(x):
    return 1 - textbook_tanh(x) ** 2


def textbook_mse(y, y_pred):
    return jnp.mean((y - y_pred) ** 2)


def textbook_mse_derivative(y, y_pred):
    return -2 * (y - y_pred) / len(y)


def textbook_cross_entropy(z, y=1.0, eps=1e-15):
    p = jnp.clip(textbook_sigmoid(z), eps, 1 - eps)
    return -(y * jnp.log(p) + (1 - y) * jnp.log(1 - p))


def textbook_cross_entropy_derivative(z, y=1.0):
    """The textbook's ∂L/∂ŷ times ŷ' = ŷ (1 - ŷ)."""
    p = textbook_sigmoid(z)
    return (-y / p + (1 - y) / (1 - p)) * p * (1 - p)


# ---------------------------------------------------------------- the numbers


def forms(textbook, textbook_derivative, ours, ours_derivative) -> tuple[dict[str, Callable], dict[str, Callable]]:
    """The forms of a formula in one number, and the forms of its derivative, including those by jax.grad."""
    values = {OURS: ours, TEXTBOOK: textbook}
    derivatives = {
        OURS: ours_derivative,
        TEXTBOOK: textbook_derivative,
        GRAD_OF_OURS: jax.grad(ours),
        GRAD_OF_TEXTBOOK: jax.grad(textbook),
    }
    return values, derivatives


def stable_sigmoid(x: np.ndarray) -> np.ndarray:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def sigmoid_panels(count: int) -> list[plots.ErrorCurves]:
    x = steps(-110, 85, count)
    exact = x.astype(np.float64)
    values, derivatives = forms(textbook_sigmoid, textbook_sigmoid_derivative, sigmoid, sigmoid_derivative)
    slope = stable_sigmoid(exact) * stable_sigmoid(-exact)
    note = "1 / (1 + e⁻ˣ): e⁻ˣ overflows, yet the value survives"
    dnote = "s (1 − s): 1 % off at 12, nothing right from 17; jax.grad: 0 and NaN"
    return [
        curves_of("Sigmoid", note, "x", x, values, stable_sigmoid(exact)),
        curves_of("Sigmoid′", dnote, "x", x, derivatives, slope),
    ]


def tanh_panels(count: int) -> list[plots.ErrorCurves]:
    x = steps(1e-4, 200, count, np.geomspace)
    exact = x.astype(np.float64)
    values, derivatives = forms(textbook_tanh, textbook_tanh_derivative, tanh, tanh_derivative)
    e = np.exp(-2 * exact)
    note = "(eˣ − e⁻ˣ) / (eˣ + e⁻ˣ): loses digits near 0, NaN from 89"
    dnote = "1 − tanh²: nothing right from 9 to 44 (float32's end); NaN from 89"
    return [
        curves_of("Tanh", note, "x", x, values, np.tanh(exact), "log"),
        curves_of("Tanh′", dnote, "x", x, derivatives, 4 * e / (1 + e) ** 2, "log"),
    ]


def cross_entropy_panels(count: int) -> list[plots.ErrorCurves]:
    """For one example with y = 1, against its logit z."""
    z = steps(-110, 85, count)
    exact = z.astype(np.float64)
    y = jnp.ones(())
    values, derivatives = forms(
        textbook_cross_entropy,
        textbook_cross_entropy_derivative,
        functools.partial(binary_cross_entropy_with_logits, y),
        functools.partial(binary_cross_entropy_with_logits_derivative, y),
    )
    values[FROM_PROBABILITIES] = lambda z: binary_cross_entropy(y, sigmoid(z))
    derivatives[FROM_PROBABILITIES] = lambda z: (
        binary_cross_entropy_derivative(y, sigmoid(z)) * sigmoid_derivative(z)
    )
    note = "ε = 1e-15 is lost in float32: NaN from 17; no growth below −35"
    dnote = "−y/ŷ + (1 − y)/(1 − ŷ): 0/0 from 17, NaN below −89"
    return [
        curves_of("Cross-entropy, y = 1", note, "logit z", z, values, np.logaddexp(0, -exact)),
        curves_of("Cross-entropy′, y = 1", dnote, "logit z", z, derivatives, -stable_sigmoid(-exact)),
    ]


def relu_table() -> plots.ValueTable:
    x, truth = jnp.array([-1, 0, 1, jnp.nan]), np.array([0, 0, 1, np.nan])
    _, derivatives = forms(textbook_relu, textbook_relu_derivative, relu, relu_derivative)
    outputs = {}
    for name, f in derivatives.items():
        values = np.asarray(jnp.vectorize(f)(x), np.float64)
        right = (values == truth) | (np.isnan(values) & np.isnan(truth))
        outputs[name] = [(f"{v:g}".replace("nan", "NaN"), bool(ok)) for v, ok in zip(values, right, strict=True)]
    inputs = ["x = −1", "x = 0", "x = 1", "x = NaN"]
    return plots.ValueTable("ReLU′", "0 at the kink, by convention; a NaN must not disappear", inputs, outputs)


def mse_tables() -> list[plots.ValueTable]:
    """The squared error, whose arithmetic is harmless: shapes and dtypes are what goes wrong."""
    y, pairs = jnp.arange(4.0), jnp.arange(8.0).reshape(4, 2)
    grey, other_grey = jnp.array([10, 200], jnp.uint8), jnp.array([30, 180], jnp.uint8)
    value_cases = {
        "(4,)": (y, y + 0.5, 0.25),
        "(4,), (4, 1)": (y, y[:, None], 0.0),
        "uint8": (grey, other_grey, 400.0),
        "empty": (y[:0], y[:0], None),
    }
    derivative_cases = {
        "(4,)": (y, y + 0.5, 0.25),
        "(4, 2)": (pairs, pairs + 0.5, 0.125),
        "(4,), (4, 1)": (y, y[:, None], 0.0),
    }
    values, derivatives = {OURS: mse, TEXTBOOK: textbook_mse}, {
        OURS: mse_derivative,
        TEXTBOOK: textbook_mse_derivative,
        GRAD_OF_OURS: jax.grad(mse, argnums=1),
        GRAD_OF_TEXTBOOK: jax.grad(textbook_mse, argnums=1),
    }
    return [
        squared_error_table("Mean squared error", "(n,) − (n, 1) is (n, n), bytes wrap, 0/0; ours refuses: ValueError",
                            value_cases, values),
        squared_error_table("Mean squared error′", "−2 (y − ŷ) / len(y): k times too large for k outputs",
                            derivative_cases, derivatives),
    ]  # fmt: skip


def squared_error_table(title, note, cases, functions) -> plots.ValueTable:
    outputs = {name: [squared_error_cell(f, *case) for case in cases.values()] for name, f in functions.items()}
    return plots.ValueTable(title, note, list(cases), outputs)


def squared_error_cell(f, y, y_pred, truth: float | None) -> tuple[str, bool]:
    """The result, in short, and whether it is right; refusing is right unless the input was."""
    try:
        out = np.asarray(f(y, y_pred))
    except ValueError:
        return "refused", True
    if out.shape not in ((), y_pred.shape):
        return str(out.shape), False
    return f"{out.ravel()[0]:.3g}".replace("nan", "NaN"), truth is not None and np.allclose(out, truth)


# ---------------------------------------------------------------- the figure


def draw(quick: bool) -> tuple[Figure, str]:
    count = 60 if quick else 220
    sigmoids, tanhs, cross_entropies = sigmoid_panels(count), tanh_panels(count), cross_entropy_panels(count)
    parts = [*sigmoids, relu_table(), *tanhs, *mse_tables(), *cross_entropies]
    largest = max(part.errors[OURS].max() for part in (*sigmoids, *tanhs, *cross_entropies))
    return plots.error_curves(parts), f"largest relative error of our forms {largest:.1e}"
