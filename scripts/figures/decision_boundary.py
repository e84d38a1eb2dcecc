"""What a small network predicts at every point of the plane as it learns."""

import functools

import jax
import numpy as np
from matplotlib.figure import Figure

from jaxnn import datasets, plots
from jaxnn.activations import softmax
from jaxnn.layer import Layer
from jaxnn.losses import get_loss
from jaxnn.models.mlp import mlp
from jaxnn.optimizers import Optimizer, adam
from jaxnn.training import fit, predict, start

POINTS = {
    "moons": datasets.moons,
    "circles": datasets.circles,
    "spirals": datasets.spirals,
    "xor": datasets.xor,
    "blobs": datasets.blobs,
}


@functools.cache
def plane_model(classes: int) -> tuple[Layer, Optimizer]:
    """The same model for all sets with this many classes: what is compiled for one serves all."""
    return mlp((64, 64), classes), adam(0.01)


def train_on_plane(name: str, n: int, epochs: tuple[int, ...]) -> tuple[plots.PlaneClassifier, float]:
    """A small network after each of these numbers of epochs on the named set, and its final accuracy."""
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


def draw(quick: bool) -> tuple[Figure, str]:
    epochs = (1, 5) if quick else (1, 5, 20, 100)
    names = ("moons", "xor") if quick else POINTS
    rows, accuracies = zip(*[train_on_plane(name, 400, epochs) for name in names], strict=True)
    figure = plots.decision_boundary(rows)
    return figure, f"final accuracy, the worst of {len(rows)} sets: {100 * min(accuracies):.1f} %"
