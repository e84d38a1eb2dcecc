"""What a diagnosis may look at: one point at which the gradient is wrong, in float64, with flat leaves."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Evidence(NamedTuple):
    """A point of the verification. Leaves are in the tree's order; every float array is float64."""

    inputs: tuple[np.ndarray, ...]  # the leaves that are differentiated
    given: tuple[Any, ...]  # the other array leaves: data, labels, masks, keys
    dy: tuple[np.ndarray, ...]  # the cotangent of y's leaves; (1.0,) for a scalar loss
    y: tuple[np.ndarray, ...]
    manual: tuple[np.ndarray | None, ...]  # None: the leaf is missing; its shape may differ from the input's
    truth: tuple[np.ndarray, ...]
    wrong: tuple[bool, ...]
    input_paths: tuple[str, ...]  # "params['dense_1']['w']"
    given_paths: tuple[str, ...]  # "args[0]"
    jaxpr: Any  # ClosedJaxpr of (*inputs, *given) -> y with the user's source lines; None for NumPy code
    again: Callable[..., tuple[tuple, tuple] | None]
    # again(inputs, given, dy) -> (manual leaves, truth leaves) at another point of any shapes; None if it cannot be run
