"""How good predictions are, in the units people ask for. NumPy in, a number out; nothing is differentiated.

y_true and y_pred as a loss takes them: class ids (n,) or one-hot rows (n, classes) against scores (n, classes), or
numbers against numbers of the same shape.
"""

import numpy as np


def classes_of(y) -> np.ndarray:
    """Class ids from class ids (n,) or from scores or one-hot rows (n, classes): the largest, the first of equals."""
    y = np.asarray(y)
    return y if y.ndim == 1 else y.argmax(-1)


def accuracy(y_true, y_pred) -> float:
    """The share of examples whose largest score is the true class.

    >>> accuracy([0, 1], [[2.0, 1.0], [3.0, 0.0]])
    0.5
    """
    return float(np.mean(classes_of(y_true) == classes_of(y_pred)))


def confusion_matrix(y_true, y_pred, classes: int) -> np.ndarray:
    """Counts (classes, classes): row = true class, column = predicted class.

    >>> confusion_matrix([0, 1, 1], [0, 0, 1], 2).tolist()
    [[1, 0], [1, 1]]
    """
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (classes_of(y_true), classes_of(y_pred)), 1)
    return counts


def root_mean_square_error(y_true, y_pred) -> float:
    """√ mean (y - ŷ)², in the units of y."""
    return float(np.sqrt(np.mean(np.square(np.asarray(y_true, np.float64) - np.asarray(y_pred, np.float64)))))


def r_squared(y_true, y_pred) -> float:
    """1 - Σ (y - ŷ)² / Σ (y - mean y)²: 1 is perfect, 0 as good as the mean. NaN if all y are equal.

    The sums run over all entries, the mean over the examples.
    """
    y_true, y_pred = np.asarray(y_true, np.float64), np.asarray(y_pred, np.float64)
    total = np.square(y_true - y_true.mean(0)).sum()
    return float(1 - np.square(y_true - y_pred).sum() / total) if total > 0 else float("nan")
