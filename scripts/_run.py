"""One training run, from a Config to a run folder: shared by train_digits.py, train_mnist_cnn.py and train.py."""

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from _config import AnyConfig, Config
from _data import Data, load
from tqdm import tqdm

from jaxnn import models, plots
from jaxnn._checks import non_negative, positive, unknown_name
from jaxnn.layer import Layer
from jaxnn.losses import get_loss
from jaxnn.optimizers import OPTIMIZERS, Optimizer
from jaxnn.regularizers import l2_derivative
from jaxnn.schedules import SCHEDULES
from jaxnn.training import (
    Diverged,
    EpochRecord,
    TrainState,
    accuracy,
    confusion_matrix,
    fit,
    load_tree,
    predict,
    r_squared,
    root_mean_square_error,
    save_tree,
    start,
)


def make_mlp(config: Config, data: Data) -> Layer:
    return models.mlp(config.layers, data.n_out, config.activation, config.initializer, config.dropout)


def run(config: AnyConfig, make_model: Callable[[AnyConfig, Data], Layer] = make_mlp) -> int:
    """Train, print a line an epoch, write the run folder; 0, or 1 if training diverged."""
    if config.resume is not None and config.out is not None:
        raise ValueError("--resume goes on in the run's own folder; leave --out out")
    if not 0 <= config.seed < 2**32:
        raise ValueError(f"--seed {config.seed}: expected a whole number from 0 to {2**32 - 1}")
    data_key, train_key = jax.random.split(jax.random.key(config.seed))
    data = load(config.data, config.label, config.task, config.loss, data_key)
    model = make_model(config, data)
    optimizer = make_optimizer(config, len(data.train[0]))
    train_state = start(train_key, model, optimizer, (1, *data.train[0].shape[1:]))
    if config.resume is not None:
        train_state = load_tree(Path(config.resume) / "train_state.npz", train_state)
    done = int(train_state.epoch)
    epochs = fit(
        model,
        data.train,
        train_state,
        loss=get_loss(data.loss),
        optimizer=optimizer,
        epochs=max(config.epochs - done, 0),
        batch_size=config.batch,
        validation=data.test,
        metrics=make_metrics(data),
        penalty=make_penalty(config),
        prepare=data.prepare,
    )
    out = make_run_folder(config) if config.resume is None else Path(config.resume)
    settings = dataclasses.asdict(config) | {"out": None, "resume": None}
    (out / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    status = 0
    with (out / "metrics.jsonl").open("a") as log:
        try:
            for record in tqdm(epochs, initial=done, total=config.epochs, unit="epoch", disable=None):
                train_state = record.train_state
                save_tree(out / "train_state.npz", train_state)
                tqdm.write(line(record, config.epochs))
                print(json.dumps(finite(record.to_dict()), allow_nan=False), file=log, flush=True)
        except KeyboardInterrupt:
            tqdm.write("stopped; the run folder holds the last whole epoch")
        except Diverged as error:
            tqdm.write(f"diverged: {error}")
            train_state, status = error.train_state, 1
    write_report(out, data, model, train_state)
    return status


def make_optimizer(config: Config, n: int) -> Optimizer:
    """The optimizer of the config, its rate a schedule over all steps of n examples."""
    if config.optimizer not in OPTIMIZERS:
        raise unknown_name("optimizer", config.optimizer, OPTIMIZERS)
    if config.schedule not in SCHEDULES:
        raise unknown_name("schedule", config.schedule, SCHEDULES)
    for name in ("rate", "batch", "epochs"):
        positive("the command line", f"--{name}", getattr(config, name))
    steps = config.epochs * -(-n // config.batch)
    return OPTIMIZERS[config.optimizer](SCHEDULES[config.schedule](config.rate, steps))


def make_penalty(config: Config) -> Callable[[Any], Any] | None:
    non_negative("the command line", "--l2", config.l2)
    return functools.partial(l2_derivative, lambda_=config.l2) if config.l2 else None


def make_metrics(data: Data) -> dict[str, Callable[[Any, Any], float]]:
    """Accuracy for classes; root mean square error in the labels' unit, and R², for numbers."""
    if data.classes:
        return {"accuracy": accuracy}
    return {
        "rmse": lambda y, y_pred: root_mean_square_error(in_unit(data, y), in_unit(data, y_pred)),
        "r2": lambda y, y_pred: r_squared(in_unit(data, y), in_unit(data, y_pred)),
    }


def in_unit(data: Data, output: np.ndarray) -> np.ndarray:
    """What the network puts out for numbers, in the unit of the labels."""
    mean = np.asarray(output)[..., : len(data.y_mean)]  # gaussian_nll: the log-variances stand behind the means
    return data.y_mean + data.y_std * mean


def finite(value: Any) -> Any:
    """The same with null for numbers that JSON does not have (R² of labels that are all equal, say)."""
    if isinstance(value, dict):
        return {name: finite(entry) for name, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def line(record: EpochRecord, epochs: int) -> str:
    """One epoch in one line."""
    measured = "  ".join(f"test {name} {value:.4f}" for name, value in record.validation.items())
    return (
        f"epoch {record.epoch:{len(str(epochs))}}/{epochs}  loss {record.loss:.4f}  {measured}  "
        f"rate {record.rate:.1e}  {record.seconds:.2f} s  {record.examples_per_second:,.0f} examples/s"
    )


def make_run_folder(config: Config) -> Path:
    """A new folder: --out, or the next free runs/NAME-N. An existing run is never written over."""
    if config.out is not None:
        out = Path(config.out)
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ValueError(f"--out {out} exists and is not an empty folder; choose another, or --resume it")
    else:
        name = Path(config.data).stem or "run"
        out = next(p for i in itertools.count(1) if not (p := Path("runs") / f"{name}-{i}").exists())
    out.mkdir(parents=True, exist_ok=True)
    return out


def write_report(out: Path, data: Data, model: Layer, train_state: TrainState) -> None:
    """Parameters and figures, of all sessions of the run, into its folder; the result on stdout."""
    records = [json.loads(row) for row in (out / "metrics.jsonl").read_text().splitlines()]
    if not records:
        print("no epoch was finished: the parameters are the initial ones")
    save_tree(
        out / "params.npz",
        {"params": train_state.params, "state": train_state.state, "standardizer": data.standardizer},
    )
    if records:
        plots.curves(records).savefig(out / "curves.png")
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
        patch = x.shape[1:] if first.ndim == 2 else first.shape[:-1]  # what a neuron looks at
        plots.weights(first.reshape(-1, first.shape[-1]), patch).savefig(out / "weights.png")
    print(f"run folder {out}: {', '.join(sorted(p.name for p in out.iterdir()))}")
