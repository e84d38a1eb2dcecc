"""Labels as class ids or as regression targets: one rule for every kind of file."""

import numpy as np

from jaxnn._checks import unknown_name

TASKS = ("auto", "classification", "regression")
MOST_CLASSES = 20  # the most distinct integer-valued labels that "auto" treats as classes


def check_task(task: str) -> None:
    """ValueError unless task is one of TASKS."""
    if task not in TASKS:
        raise unknown_name("task", task, TASKS)


def encode_labels(where: object, y: np.ndarray, task: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class ids (N,) int32 and the names of the classes; or, for regression, y as float32 and no names.

    y: (N,) numbers or text, or (N, k) numbers, which are always a regression. "auto" treats text, and integer-valued
    numbers with at most 20 distinct values, as classes. The ids follow the sorted labels: text as text, numbers as
    numbers.

    ValueError, starting with `where`, for text in a regression, and for fewer than two classes.

    >>> encode_labels("pets.csv", np.array(["dog", "cat", "dog"]), "auto")
    (array([1, 0, 1], dtype=int32), ('cat', 'dog'))
    """
    text = y.dtype.kind == "U"
    if task == "auto":
        whole = not text and y.ndim == 1 and np.array_equal(y, np.rint(y))
        classes = text or (whole and len(np.unique(y)) <= MOST_CLASSES)
        task = "classification" if classes else "regression"
    if task == "regression":
        if text:
            raise ValueError(
                f"{where}: the labels are text, such as {str(y[0])!r}, but a regression needs numbers; "
                "pass task='classification' if they are names of classes"
            )
        return y.astype(np.float32), ()
    labels, ids = np.unique(y, return_inverse=True)
    if len(labels) < 2:
        raise ValueError(
            f"{where}: all {len(y)} labels are {_name(labels[0])!r}, but a classification needs at least two classes; "
            "are these the right labels?"
        )
    return ids.astype(np.int32), tuple(map(_name, labels))


def _name(label: np.generic) -> str:
    whole = label.dtype.kind != "U" and label == np.rint(label)
    return str(int(label)) if whole else str(label)
