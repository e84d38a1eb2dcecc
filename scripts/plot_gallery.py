"""Draw the gallery: what the library's formulas, initializers, networks and optimizers do, as six PNG files.

python scripts/plot_gallery.py                        all of them, into the folder gallery
python scripts/plot_gallery.py --only activations     one of them
"""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from _config import Parser, exit_with_one_line
from _errors import OURS, curves_of, steps
from _stability import stability_panels

from jaxnn import datasets, plots
from jaxnn._checks import unknown_name
from jaxnn.activations import (
    ACTIVATIONS,
    relu,
    relu_derivative,
    sigmoid,
    sigmoid_derivative,
    softmax,
    tanh,
    tanh_derivative,
)
from jaxnn.initializers import INITIALIZERS
from jaxnn.layer import Layer
from jaxnn.losses import (
    binary_cross_entropy,
    binary_cross_entropy_derivative,
    binary_cross_entropy_with_logits,
    binary_cross_entropy_with_logits_derivative,
    get_loss,
    mse_derivative,
    mse_loss,
)
from jaxnn.models.mlp import mlp, mlp_backward, mlp_forward
from jaxnn.optimizers import OPTIMIZERS, Optimizer, adam
from jaxnn.training import fit, predict, start

# ---------------------------------------------------------------- formula errors: the textbook's forms

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
    """The text's ∂L/∂ŷ times ŷ' = ŷ (1 - ŷ)."""
    p = textbook_sigmoid(z)
    return (-y / p + (1 - y) / (1 - p)) * p * (1 - p)


# ---------------------------------------------------------------- formula errors: the numbers


def forms(textbook, textbook_derivative, ours, ours_derivative) -> tuple[dict[str, Callable], dict[str, Callable]]:
    """The forms of a formula of one number, and the forms of its derivative, those by jax.grad among them."""
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
    """The squared error, whose arithmetic is harmless: what goes wrong are shapes and dtypes."""
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
    values, derivatives = {OURS: mse_loss, TEXTBOOK: textbook_mse}, {
        OURS: mse_derivative,
        TEXTBOOK: textbook_mse_derivative,
        GRAD_OF_OURS: jax.grad(mse_loss, argnums=1),
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
    """What comes out, in short, and whether it is right; refusing is right unless the input was."""
    try:
        out = np.asarray(f(y, y_pred))
    except ValueError:
        return "refused", True
    if out.shape not in ((), y_pred.shape):
        return str(out.shape), False
    return f"{out.ravel()[0]:.3g}".replace("nan", "NaN"), truth is not None and np.allclose(out, truth)


def formula_errors(quick: bool):
    count = 60 if quick else 220
    sigmoids, tanhs, cross_entropies = sigmoid_panels(count), tanh_panels(count), cross_entropy_panels(count)
    parts = [*sigmoids, relu_table(), *tanhs, *mse_tables(), *cross_entropies]
    largest = max(part.errors[OURS].max() for part in (*sigmoids, *tanhs, *cross_entropies))
    return plots.error_curves(parts), f"largest relative error of our forms {largest:.1e}"


def stability(quick: bool):
    parts = stability_panels(60 if quick else 220)
    largest = max(part.errors[OURS].max() for part in parts)
    return plots.error_curves(parts), f"largest relative error of our forms {largest:.1e}"


# ---------------------------------------------------------------- activations


def activations(quick: bool):
    return plots.activations(), f"{len(ACTIVATIONS)} activations"


# ---------------------------------------------------------------- variance against depth


def layer_variances(key: jax.Array, weights: jax.Array, activation: str, batch: int):
    """(forward, backward): the variance of a^0 … a^L, and of ∂L/∂a^L … ∂L/∂a^0, for x and ∂L/∂a^L of variance 1.

    weights (L, n, n); the biases are 0.
    """
    depth, n, _ = weights.shape
    x_key, dy_key = jax.random.split(key)
    params = [{"w": w, "b": jnp.zeros(n)} for w in weights]
    y, cache = mlp_forward(params, jax.random.normal(x_key, (batch, n)), [activation] * depth)
    forward = [a.var() for a, _ in cache] + [y.var()]
    da = jax.random.normal(dy_key, y.shape)
    backward = [da.var()]
    for l in reversed(range(depth)):
        _, da = mlp_backward(params[l : l + 1], cache[l : l + 1], da, [activation])
        backward.append(da.var())
    return np.array(forward), np.array(backward)


def init_variance(quick: bool):
    depth, n = (10, 64) if quick else (30, 256)
    keys, data_key = jax.random.split(jax.random.key(0), depth), jax.random.key(1)
    lines = {}
    for name in ("xavier_normal", "he_normal") if quick else INITIALIZERS:
        weights = jax.lax.map(functools.partial(INITIALIZERS[name], shape=(n, n)), keys)
        for activation in ("relu", "tanh"):
            forward, backward = layer_variances(data_key, weights, activation, batch=n)
            lines.setdefault(f"{activation}: activations, forward", {})[name] = forward
            lines.setdefault(f"{activation}: gradients, backward", {})[name] = backward
    ratio = {name: line[-1] / line[1] for name, line in lines["relu: activations, forward"].items() if line[-1] > 0}
    best = min(ratio, key=lambda name: abs(np.log(ratio[name])))
    finding = f"relu keeps its variance best from {best}: ratio {ratio[best]:.2f} over {depth} layers"
    return plots.init_variance(lines), finding


# ---------------------------------------------------------------- decision boundaries

POINTS = {
    "moons": datasets.moons,
    "circles": datasets.circles,
    "spirals": datasets.spirals,
    "xor": datasets.xor,
    "blobs": datasets.blobs,
}


@functools.cache
def plane_model(classes: int) -> tuple[Layer, Optimizer]:
    """The same for all sets with so many classes: what is compiled for one serves all."""
    return mlp((64, 64), classes, "relu", "he_normal"), adam(0.01)


def train_on_plane(name: str, n: int, epochs: tuple[int, ...]) -> tuple[plots.PlaneClassifier, float]:
    """A small network after so many epochs on the set of that name, and its accuracy in the end."""
    data_key, train_key = jax.random.split(jax.random.key(0))
    x, y, classes, _ = POINTS[name](data_key, n)
    model, optimizer = plane_model(len(classes))
    train_state = start(train_key, model, optimizer, x.shape)
    loss = get_loss("softmax_cross_entropy_with_integer_labels")
    run = fit(model, (x, y), train_state, loss=loss, optimizer=optimizer, epochs=epochs[-1], batch_size=32)
    predictors = {}
    for record in run:
        if record.epoch in epochs:
            predictors[f"epoch {record.epoch}"] = functools.partial(probabilities, model, record.train_state.params)
    final = list(predictors.values())[-1]
    return plots.PlaneClassifier(name, x, y, predictors), float(np.mean(final(x).argmax(1) == y))


def probabilities(model, params, points: np.ndarray) -> np.ndarray:
    return np.asarray(softmax(predict(model, params, [()] * len(params), points)))


def decision_boundary(quick: bool):
    epochs = (1, 5) if quick else (1, 5, 20, 100)
    names = ("moons", "xor") if quick else POINTS
    rows, accuracies = zip(*[train_on_plane(name, 400, epochs) for name in names], strict=True)
    figure = plots.decision_boundary(rows)
    return figure, f"accuracy in the end, the worst of {len(rows)} sets: {100 * min(accuracies):.1f} %"


# ---------------------------------------------------------------- optimizer paths

CURVATURE = np.array([[5.75, -8.227], [-8.227, 15.25]])  # of curvature 1 along (cos 30°, sin 30°) and 20 across
START, MINIMUM = (-4.2, -1.0), (0.0, 0.0)
RATES = {
    "sgd": 0.09,
    "momentum": 0.09,
    "heavy_ball": 0.02,
    "nesterov": 0.02,
    "adagrad": 1.0,
    "rmsprop": 0.1,
    "lion": 0.08,
    "adam": 0.3,
    "amsgrad": 0.15,
    "nadam": 0.3,
}
GROUPS = {
    "one rate for all coordinates": ("sgd", "momentum", "heavy_ball", "nesterov"),
    "a rate for each coordinate": ("adagrad", "rmsprop", "lion"),
    "Adam and its kin": ("adam", "amsgrad", "nadam"),
}


def valley(x1, x2):
    """xᵀ A x / 2, A = CURVATURE: 20 times as steep across as along, and at an angle to the coordinates."""
    a = CURVATURE
    return (a[0, 0] * x1**2 + 2 * a[0, 1] * x1 * x2 + a[1, 1] * x2**2) / 2


def descend(optimizer: Optimizer, count: int) -> np.ndarray:
    """The path of an optimizer from START: (count + 1, 2). The valley's gradient is A x."""
    curvature = jnp.asarray(CURVATURE, jnp.float32)

    def step(carry, _):
        x, state = optimizer.update(carry[0], curvature @ carry[0], carry[1])
        return (x, state), x

    x = jnp.array(START)
    _, path = jax.lax.scan(step, (x, optimizer.init(x)), length=count)
    return np.concatenate([[START], path])


def optimizer_paths(quick: bool):
    count = 20 if quick else 60
    paths = {
        title: {f"{name}, rate {RATES[name]:g}": descend(OPTIMIZERS[name](RATES[name]), count) for name in names}
        for title, names in GROUPS.items()
    }
    figure = plots.optimizer_paths(valley, paths, MINIMUM, (-4.8, -2.8), (1.8, 1.4))
    heights = {name: valley(*path[-1]) for group in paths.values() for name, path in group.items()}
    best = min(heights, key=heights.__getitem__)
    return figure, f"lowest after {count} steps: {heights[best]:.1e} ({best})"


# ---------------------------------------------------------------- the gallery

GALLERY = {
    "activations": activations,
    "formula_errors": formula_errors,
    "stability": stability,
    "init_variance": init_variance,
    "decision_boundary": decision_boundary,
    "optimizer_paths": optimizer_paths,
}


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gallery"), help="the folder to write to (default: gallery)")
    parser.add_argument("--only", action="append", metavar="NAME", help=f"one of {', '.join(GALLERY)}; repeatable")
    parser.add_argument("--quick", action="store_true", help="small settings, to see that everything works")
    arguments = parser.parse_args(argv)
    names = arguments.only or list(GALLERY)
    for name in names:
        if name not in GALLERY:
            raise unknown_name("figure", name, GALLERY)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in names:
        figure, finding = GALLERY[name](arguments.quick)
        path = arguments.out / f"{name}.png"
        figure.savefig(path)
        print(f"{path}: {finding}", flush=True)
    return 0


if __name__ == "__main__":
    exit_with_one_line(main)
