"""The data of a run of examples: read, split, and turned into what the network and the loss take."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnn import datasets
from jaxnn._checks import unknown_name
from jaxnn.training import scale_pixels
from jaxnn.training.rows import as_they_are

SYNTHETIC = {
    "moons": datasets.moons,
    "circles": datasets.circles,
    "spirals": datasets.spirals,
    "xor": datasets.xor,
    "blobs": datasets.blobs,
}
# What a network's linear output can be trained with; the other losses expect probabilities or log-probabilities.
CLASS_LOSSES = (
    "softmax_cross_entropy_with_integer_labels",
    "softmax_cross_entropy",
    "binary_cross_entropy_with_logits",
    "focal",
    "hinge",
    "squared_hinge",
    "mse",
    "mae",
    "huber",
    "log_cosh",
    "cosine_distance",
)
NUMBER_LOSSES = ("mse", "mae", "huber", "log_cosh", "gaussian_nll", "poisson_nll")


class Data(NamedTuple):
    """Training and test data, ready for `fit`."""

    train: tuple[Any, Any]  # x, y as the loss takes it
    test: tuple[Any, Any]  # also the validation data of each epoch: it is never used for model selection
    loss: str  # its name, with "auto" resolved
    labels: Any  # the test data's class ids, or its numbers in their own units
    classes: tuple[str, ...]  # empty for regression
    n_out: int  # how many numbers the network outputs
    prepare: Callable[[jax.Array], jax.Array]  # a batch of x into what the network takes
    images: bool  # whether x can be drawn
    y_mean: np.ndarray  # numbers to predict are standardised: y = y_mean + y_std * output
    y_std: np.ndarray
    standardizer: Any  # of the features, None for bytes


def load(name: str, label: str | None, task: str, loss: str, key: jax.Array) -> Data:
    """Read `name`, hold out a fifth for testing (unless the files include a test set) and standardise."""
    train, test = _read(name, label, task, key)
    if train.x.ndim == 3:  # grey images
        train, test = (part._replace(x=part.x[..., None]) for part in (train, test))
    standardizer, prepare = None, scale_pixels(16 if name == "digits" else 255)
    if train.x.dtype != np.uint8:
        standardizer = datasets.fit_standardizer(train.x)
        train = train._replace(x=datasets.standardize(standardizer, train.x))
        test = test._replace(x=datasets.standardize(standardizer, test.x))
        prepare = as_they_are
    if loss == "auto":
        loss = CLASS_LOSSES[0] if train.classes else NUMBER_LOSSES[0]
    if train.classes:
        if loss not in CLASS_LOSSES:
            raise unknown_name("loss for classification", loss, CLASS_LOSSES)
        n = len(train.classes)
        y_train, y_test = (class_targets(loss, part.y, n) for part in (train, test))
        y_mean, y_std, n_out = np.zeros(n), np.ones(n), n
    else:
        if loss not in NUMBER_LOSSES:
            raise unknown_name("loss for regression", loss, NUMBER_LOSSES)
        train, test = (part._replace(y=part.y.reshape(len(part.y), -1)) for part in (train, test))
        y_mean, y_std = number_scale(loss, train.y)
        y_train, y_test = (((part.y - y_mean) / y_std).astype(np.float32) for part in (train, test))
        n_out = train.y.shape[1] * (2 if loss == "gaussian_nll" else 1)
    return Data(
        train=(train.x, y_train),
        test=(test.x, y_test),
        loss=loss,
        labels=test.y,
        classes=train.classes,
        n_out=n_out,
        prepare=prepare,
        images=train.x.ndim == 4 and train.x.shape[3] in (1, 3),
        y_mean=y_mean,
        y_std=y_std,
        standardizer=standardizer,
    )


def class_targets(loss: str, y: np.ndarray, classes: int) -> np.ndarray:
    """Class ids as this loss takes them: unchanged, as one-hot rows, or as rows of -1 and 1."""
    if loss == "softmax_cross_entropy_with_integer_labels":
        return y
    one_hot = np.eye(classes, dtype=np.float32)[y]
    return 2 * one_hot - 1 if loss.endswith("hinge") else one_hot


def number_scale(loss: str, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the numbers to predict; Poisson counts stay counts."""
    if loss == "poisson_nll":
        if (y < 0).any():
            raise ValueError(f"poisson_nll predicts counts, but the labels go down to {y.min()}; choose another --loss")
        return np.zeros(y.shape[1]), np.ones(y.shape[1])
    std = y.std(0)
    return y.mean(0), np.where(std > 0, std, 1)


def _read(name: str, label: str | None, task: str, key: jax.Array):
    draw_key, split_key = jax.random.split(key)
    path = Path(name)
    if label is not None and path.suffix != ".csv":
        raise ValueError(f"--label names a column of a .csv file, but --data is {name!r}; leave --label out")
    if task != "auto" and path.suffix not in (".csv", ".npz"):
        raise ValueError(f"--task is for .csv and .npz files, but --data is {name!r}; leave --task out")
    if name == "digits":  # even where there is a folder of that name; that is ./digits
        whole = datasets.digits()
    elif name in SYNTHETIC:
        whole = SYNTHETIC[name](draw_key, 1000)
    elif path.is_dir():
        return datasets.idx_folder(path)
    elif path.suffix == ".csv":
        whole = datasets.csv_file(path, label, task)
    elif path.suffix == ".npz":
        whole = datasets.npz_file(path, task)
    elif path.exists():
        raise ValueError(f"{name}: neither a .csv file, a .npz file nor a folder of IDX files")
    else:
        near = unknown_name("data set", name, ("digits", *SYNTHETIC))
        raise FileNotFoundError(f"{near}; and there is no file or folder of that name")
    return datasets.split(split_key, whole)
