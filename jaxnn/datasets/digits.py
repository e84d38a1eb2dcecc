"""The handwritten digits that come with the library."""

from importlib import resources

import numpy as np

from jaxnn.datasets.dataset import Dataset


def digits() -> Dataset:
    """1,797 handwritten digits, 8×8 pixels each, about 180 of every class.

    x: (1797, 8, 8) uint8, grey levels from 0 (paper) to 16 (ink); y: (1797,) int32, the digit.

    Source: Alpaydin, Kaynak 1998, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository
    (doi:10.24432/C50P49), CC BY 4.0; see DIGITS-LICENSE.md.

    >>> x, y, classes, _ = digits()
    >>> x.shape, y[:5], classes[-1]
    ((1797, 8, 8), array([0, 1, 2, 3, 4], dtype=int32), '9')
    """
    with resources.files("jaxnn.datasets").joinpath("digits.npz").open("rb") as file, np.load(file) as arrays:
        return Dataset(arrays["x"], arrays["y"].astype(np.int32), classes=tuple("0123456789"))
