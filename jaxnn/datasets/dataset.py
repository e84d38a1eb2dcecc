"""A set of examples, how it is split in two, and how it is standardised.

Shape letters: N examples, ... the shape of one example.
"""

from typing import NamedTuple

import jax
import numpy as np

from jaxnn._checks import random_key


class Dataset(NamedTuple):
    """Examples and their labels, as NumPy arrays. The i-th example is x[i], y[i]."""

    x: np.ndarray  # (N, ...) float32, or uint8 images
    y: np.ndarray  # (N,) int32 class ids; for regression (N,) or (N, k) float32
    classes: tuple[str, ...] = ()  # the name of each class, in the order of the ids; empty for regression
    features: tuple[str, ...] = ()  # the name of each column of x; empty for images and columns without names


# ---------------------------------------------------------------- split


def split(key: jax.Array, dataset: Dataset, fraction: float = 0.2) -> tuple[Dataset, Dataset]:
    """(rest, part), drawn at random: `part` is the fraction of the examples that is held out.

    part has m = round(fraction N) examples, rest the other N - m, both in the dataset's order. The same key gives the
    same split.

    A classification is stratified: class c, with n_c examples, contributes m_c of them to part,

        m_c = ⌊fraction n_c⌋, plus 1 for the classes with the largest remainders, so that Σ m_c = m.

    A class of two or more examples keeps at least one on each side, 1 <= m_c <= n_c - 1, and a class of one stays in
    rest; with many such small classes, m is the nearest number this allows.

    ValueError unless 0 < fraction < 1, and when either side would be empty.

    >>> from jaxnn.datasets import digits
    >>> train, test = split(jax.random.key(0), digits(), 0.2)
    >>> len(train.y), len(test.y)
    (1438, 359)
    """
    random_key("split", key)
    n = len(dataset.y)
    if not 0 < fraction < 1:
        raise ValueError(f"split: fraction = {fraction}, expected 0 < fraction < 1, such as 0.2 for a fifth")
    m = round(fraction * n)
    if m in (0, n):
        raise ValueError(
            f"split: fraction = {fraction} of {n} examples is {m}, which leaves one side empty; "
            + ("a split needs at least 2 examples" if n < 2 else f"choose one between 1/{n} and {n - 1}/{n}")
        )
    # NumPy's generator, seeded by the key: nothing is compiled, and the same examples are drawn on every backend.
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    if dataset.classes:
        counts = np.bincount(dataset.y, minlength=len(dataset.classes))
        if counts.max() == 1:
            raise ValueError(f"split: each of the {n} examples is the only one of its class, so none can be held out")
        members = [np.flatnonzero(dataset.y == c) for c in range(len(counts))]
        shares = _shares(counts, fraction, m)
        held_out = np.concatenate([rng.permutation(i)[:share] for i, share in zip(members, shares, strict=True)])
    else:
        held_out = rng.permutation(n)[:m]
    in_part = np.zeros(n, bool)
    in_part[held_out] = True
    return _take(dataset, ~in_part), _take(dataset, in_part)


def _shares(counts: np.ndarray, fraction: float, total: int) -> np.ndarray:
    """How many of each class are held out, by largest remainders within each class's bounds."""
    quotas = fraction * counts
    low, high = np.minimum(counts // 2, 1), np.maximum(counts - 1, 0)
    total = np.clip(total, low.sum(), high.sum())
    shares = np.clip(quotas.astype(int), low, high)
    while shares.sum() < total:
        shares[np.argmax(np.where(shares < high, quotas - shares, -np.inf))] += 1
    while shares.sum() > total:
        shares[np.argmin(np.where(shares > low, quotas - shares, np.inf))] -= 1
    return shares


def _take(dataset: Dataset, which: np.ndarray) -> Dataset:
    return dataset._replace(x=dataset.x[which], y=dataset.y[which])


# ---------------------------------------------------------------- standardisation


class Standardizer(NamedTuple):
    """The mean and standard deviation of each feature, from the training part alone."""

    mean: np.ndarray  # (...) float32
    std: np.ndarray  # (...) float32, 1 for a constant feature


def fit_standardizer(x: np.ndarray) -> Standardizer:
    """The mean and standard deviation of each feature of x (N, ...), of any numeric dtype.

    mean = 1/N Σ_i x_i,  std = sqrt(1/N Σ_i (x_i - mean)²)

    Fit it to the training part and apply it to every part: fitted to all the data, it would leak the test examples
    into training. A constant feature gets std 1, so it becomes 0 and not 0/0 = NaN.

    ValueError when x has no examples.
    Numerics: computed in float64, rounded to float32 once. Constant means that the largest value equals the smallest:
    the computed std of numbers that are all 0.1 is not exactly 0.

    >>> fit_standardizer(np.array([[1.0, 7.0], [3.0, 7.0]]))
    Standardizer(mean=array([2., 7.], dtype=float32), std=array([1., 1.], dtype=float32))
    """
    x = np.asarray(x)
    if x.ndim < 1 or len(x) == 0:
        raise ValueError(f"fit_standardizer: x has no examples (shape {x.shape}), expected (N, ...) with N >= 1")
    mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)
    std = x.std(axis=0, dtype=np.float64).astype(np.float32)
    constant = (x.max(axis=0) == x.min(axis=0)) | (std == 0)  # std is 0 too where it underflows float32
    return Standardizer(mean, np.where(constant, np.float32(1), std))


def standardize(standardizer: Standardizer, x: np.ndarray) -> np.ndarray:
    """(x - mean) / std for each feature, as float32; mean 0 and variance 1 on the part it was fitted to.

    x: (N, ...), of any numeric dtype, with the features that the standardizer was fitted to, else ValueError. A pixel
    that is constant in training has std 1, so an unseen grey level there keeps its scale.

    >>> train, test = np.array([[1.0], [3.0]]), np.array([[5.0]])
    >>> standardize(fit_standardizer(train), test)
    array([[3.]], dtype=float32)
    """
    x = np.asarray(x)
    if x.shape[1:] != standardizer.mean.shape:
        raise ValueError(
            f"standardize: x has examples of shape {x.shape[1:]} (x is {x.shape}), but the standardizer was fitted to "
            f"examples of shape {standardizer.mean.shape}; give it data with the same features"
        )
    return (x.astype(np.float32) - standardizer.mean) / standardizer.std
