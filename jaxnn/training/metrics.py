"""How good predictions are, in the units people ask for. NumPy in, a number out; nothing is differentiated.

y_true and y_pred as a loss takes them: class ids (n,) or one-hot rows (n, classes) against scores (n, classes), or
numbers against numbers of the same shape. Other shapes are a ValueError: nothing is broadcast.
"""

import math

import numpy as np

from jaxnn._checks import same_shape


def classes_of(y) -> np.ndarray:
    """Class ids from class ids (n,) or from scores or one-hot rows (n, classes): the largest, the first of equals."""
    y = np.asarray(y)
    if y.ndim not in (1, 2) or (y.ndim == 2 and y.shape[1] < 2):
        raise ValueError(f"classes have shape {y.shape}, expected ids (n,) or scores (n, classes), classes >= 2")
    return y if y.ndim == 1 else y.argmax(-1)


def _class_pairs(y_true, y_pred) -> tuple[np.ndarray, np.ndarray]:
    y_true, y_pred = classes_of(y_true), classes_of(y_pred)
    same_shape("the metric", "y_pred", y_pred, "y_true", y_true.shape)
    return y_true, y_pred


def _number_pairs(y_true, y_pred) -> tuple[np.ndarray, np.ndarray]:
    y_true, y_pred = np.asarray(y_true, np.float64), np.asarray(y_pred, np.float64)
    same_shape("the metric", "y_pred", y_pred, "y_true", y_true.shape)
    return y_true, y_pred


def accuracy(y_true, y_pred) -> float:
    """The share of examples whose largest score is the true class.

    >>> accuracy([0, 1], [[2.0, 1.0], [3.0, 0.0]])
    0.5
    """
    true, said = _class_pairs(y_true, y_pred)
    return float(np.mean(true == said))


def confusion_matrix(y_true, y_pred, classes: int) -> np.ndarray:
    """Counts (classes, classes): row = true class, column = predicted class.

    >>> confusion_matrix([0, 1, 1], [0, 0, 1], 2).tolist()
    [[1, 0], [1, 1]]
    """
    pairs = _class_pairs(y_true, y_pred)
    if any(((ids < 0) | (ids >= classes)).any() for ids in pairs):
        raise ValueError(f"confusion_matrix: there are class ids outside 0 to {classes - 1}")
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, pairs, 1)
    return counts


def root_mean_square_error(y_true, y_pred) -> float:
    """√ mean (y - ŷ)², in the units of y."""
    y_true, y_pred = _number_pairs(y_true, y_pred)
    return float(np.sqrt(np.mean(np.square(y_true - y_pred))))


def r_squared(y_true, y_pred) -> float:
    """1 - Σ (y - ŷ)² / Σ (y - mean y)²: 1 is perfect, 0 as good as the mean. NaN if all y are equal.

    The sums run over all entries, the mean over the examples.
    """
    y_true, y_pred = _number_pairs(y_true, y_pred)
    total = np.square(y_true - y_true.mean(0)).sum()
    return float(1 - np.square(y_true - y_pred).sum() / total) if total > 0 else float("nan")


def bits_per_byte(nats: float, n_ids: int, n_bytes: int) -> float:
    """nats / ln 2 · n_ids / n_bytes: a loss in nats per id of a text, as bits per byte.

    Comparable between models, whatever their ids are: bytes, characters or words.

    >>> bits_per_byte(math.log(256), 10, 10)
    8.0
    """
    return nats / math.log(2) * n_ids / n_bytes
