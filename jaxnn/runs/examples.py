"""A run on examples, from settings to figures: `jaxnn train`."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxnn import models, plots
from jaxnn.layer import Layer
from jaxnn.losses import get_loss
from jaxnn.optimizers import OPTIMIZERS, Optimizer
from jaxnn.regularizers import l2_derivative
from jaxnn.runs.data import Data, load
from jaxnn.runs.folder import open_folder, read_metrics, record_training, show_folder, where_it_stopped
from jaxnn.runs.settings import ExampleSettings
from jaxnn.schedules import SCHEDULES
from jaxnn.training import (
    EpochRecord,
    TrainState,
    accuracy,
    confusion_matrix,
    fit,
    predict,
    r_squared,
    root_mean_square_error,
    save_tree,
    start,
)

# The settings that a command starts from, for each model.
DEFAULTS = {
    "mlp": ExampleSettings(),
    "cnn": ExampleSettings(model="cnn", layers=(128,), dropout=0.4, rate=2e-3, batch=100),
}


def run(settings: ExampleSettings) -> int:
    """Train, print one line per epoch, write the run folder; 0, or 1 if training diverged."""
    data_key, train_key = jax.random.split(jax.random.key(settings.seed))
    data = load(settings.data, settings.label, settings.task, settings.loss, data_key)
    model, optimizer = make_model(settings, data), make_optimizer(settings, len(data.train[0]))
    train_state = where_it_stopped(settings, start(train_key, model, optimizer, (1, *data.train[0].shape[1:])))
    done = int(train_state.epoch)
    epochs = fit(
        model,
        data.train,
        train_state,
        loss=get_loss(data.loss),
        optimizer=optimizer,
        epochs=max(settings.epochs - done, 0),
        batch_size=settings.batch,
        validation=data.test,
        metrics=make_metrics(data),
        penalty=functools.partial(l2_derivative, lambda_=settings.l2) if settings.l2 else None,
        prepare=data.prepare,
    )
    out = open_folder(settings, Path(settings.data).stem or "run")
    train_state, status = record_training(
        out,
        train_state,
        epochs,
        lambda record: (record.to_dict(), line(record, settings.epochs)),
        initial=done,
        total=settings.epochs,
        unit="epoch",
    )
    params, state = train_state.params, train_state.state
    save_tree(out / "params.npz", {"params": params, "state": state, "standardizer": data.standardizer})
    write_report(out, data, model, train_state)
    show_folder(out)
    return status


def make_model(settings: ExampleSettings, data: Data) -> Layer:
    """The network of the settings; ValueError for a convolutional network on data that are not images."""
    names = ("activation", "initializer", "dropout")
    sizes, options = (settings.layers, data.n_out), {name: getattr(settings, name) for name in names}
    if settings.model == "mlp":
        return models.mlp(*sizes, **options)
    if not data.images:
        raise ValueError(
            f"{settings.data}: x has shape {data.train[0].shape}, expected images (N, height, width) or (…, 3); for "
            f"other data there is --model mlp"
        )
    return models.cnn(settings.channels, *sizes, **options)


def make_optimizer(settings: ExampleSettings, n: int) -> Optimizer:
    """The optimizer of the settings, its rate scheduled over all steps on n examples."""
    steps = settings.epochs * -(-n // settings.batch)
    return OPTIMIZERS[settings.optimizer](SCHEDULES[settings.schedule](settings.rate, steps))


def make_metrics(data: Data) -> dict[str, Callable[[Any, Any], float]]:
    """Accuracy for classes; for numbers, root mean square error in the labels' unit, and R²."""
    if data.classes:
        return {"accuracy": accuracy}
    return {
        "rmse": lambda y, y_pred: root_mean_square_error(in_unit(data, y), in_unit(data, y_pred)),
        "r2": lambda y, y_pred: r_squared(in_unit(data, y), in_unit(data, y_pred)),
    }


def in_unit(data: Data, output: np.ndarray) -> np.ndarray:
    """The network's output for numbers, in the unit of the labels."""
    mean = np.asarray(output)[..., : len(data.y_mean)]  # gaussian_nll: the log-variances follow the means
    return data.y_mean + data.y_std * mean


def line(record: EpochRecord, epochs: int) -> str:
    """One epoch as one line."""
    measured = "  ".join(f"test {name} {value:.4f}" for name, value in record.validation.items())
    return (
        f"epoch {record.epoch:{len(str(epochs))}}/{epochs}  loss {record.loss:.4f}  {measured}  "
        f"rate {record.rate:.1e}  {record.seconds:.2f} s  {record.examples_per_second:,.0f} examples/s"
    )


def write_report(out: Path, data: Data, model: Layer, train_state: TrainState) -> None:
    """Write figures of the run, with all its sessions, to its folder, and the result to stdout."""
    records = read_metrics(out)
    if records:
        plots.curves(records).savefig(out / "curves.png")
    else:
        print("no epoch was finished: the parameters are the initial ones")
    x, _ = data.test
    y_pred = np.asarray(predict(model, train_state.params, train_state.state, x, prepare=data.prepare))
    if data.classes:
        right = int(np.sum(y_pred.argmax(-1) == data.labels))
        print(f"test accuracy {100 * right / len(x):.2f} % ({right} of {len(x)})")
        matrix = confusion_matrix(data.labels, y_pred, len(data.classes))
        plots.confusion(matrix, data.classes).savefig(out / "confusion.png")
    else:
        truth, said = data.labels.reshape(len(x), -1), in_unit(data, y_pred)
        print(f"test rmse {root_mean_square_error(truth, said):.4g}, R² {r_squared(truth, said):.4f} on {len(x)}")
        plots.predictions(truth, said).savefig(out / "predictions.png")
    if data.images and data.classes:
        plots.mistakes(x, data.labels, y_pred, data.classes).savefig(out / "mistakes.png")
    if data.images:
        first = np.asarray(next(p["w"] for p in train_state.params if p))
        patch = x.shape[1:] if first.ndim == 2 else first.shape[:-1]  # what a neuron sees
        plots.weights(first.reshape(-1, first.shape[-1]), patch).savefig(out / "weights.png")
