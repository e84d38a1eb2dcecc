"""The packaged digits, the split, the standardisation and the synthetic sets."""

import math
import re

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxnn.datasets import (
    Dataset,
    blobs,
    circles,
    digits,
    fit_standardizer,
    moons,
    spirals,
    split,
    standardize,
    xor,
)

KEY = jax.random.key(0)
SYNTHETIC = [moons, circles, spirals, xor, blobs]

# ---------------------------------------------------------------- digits


@pytest.mark.quick
def test_digits_are_the_known_ones():
    x, y, classes, features = digits()
    assert x.shape == (1797, 8, 8)
    assert (x.dtype, y.dtype) == (np.uint8, np.int32)
    assert (x.min(), x.max()) == (0, 16)
    assert np.bincount(y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert classes == tuple("0123456789")
    assert features == ()
    # The first image, a zero.
    assert x[0, :3].tolist() == [[0, 0, 5, 13, 9, 1, 0, 0], [0, 0, 13, 15, 10, 15, 5, 0], [0, 3, 15, 2, 0, 11, 8, 0]]
    assert int(x.sum(dtype=int)) == 561718


# ---------------------------------------------------------------- split


def numbered(labels: list[int]) -> Dataset:
    """A classification whose examples are told apart by x."""
    y = np.array(labels, np.int32)
    return Dataset(np.arange(len(y)), y, classes=tuple("abcde"))


labels = st.lists(st.integers(0, 4), min_size=4, max_size=60).filter(lambda y: max(np.bincount(y)) > 1)
fractions = st.floats(0.15, 0.85)


@given(labels, fractions, st.integers(0, 2**32 - 1))
def test_split_is_disjoint_covering_and_stratified(y, fraction, seed):
    data = numbered(y)
    rest, part = split(jax.random.key(seed), data, fraction)
    n, m = len(y), round(fraction * len(y))

    assert sorted([*rest.x, *part.x]) == list(range(n))
    for side in (rest, part):
        assert np.array_equal(side.y, data.y[side.x])
        assert np.array_equal(side.x, np.sort(side.x))
        assert side.classes == data.classes

    counts, held_out = np.bincount(y, minlength=5), np.bincount(part.y, minlength=5)
    assert (held_out[counts >= 2] >= 1).all()
    assert (held_out[counts >= 2] <= counts[counts >= 2] - 1).all()
    assert (held_out[counts == 1] == 0).all()
    # m is exact, unless so many classes are at a bound that it cannot be reached.
    assert len(part.y) == np.clip(m, (counts >= 2).sum(), np.maximum(counts - 1, 0).sum())
    # Where no class is at a bound, each gets its share, rounded down or up.
    if (fraction * counts[counts > 0] >= 1).all() and ((1 - fraction) * counts[counts > 0] >= 1).all():
        assert (np.abs(held_out - fraction * counts) < 1).all()

    again = split(jax.random.key(seed), data, fraction)
    assert np.array_equal(again[1].x, part.x)


def test_split_rounds_by_largest_remainders():
    # Quotas 2.4, 2.7, 0.9 of a total of 6: the floors give 4, the two largest remainders (0.9 and 0.7) one more each.
    _, part = split(KEY, numbered([0] * 8 + [1] * 9 + [2] * 3), 0.3)
    assert np.bincount(part.y).tolist() == [2, 3, 1]
    # 0.29 * 100 is 28.999…, the share is 29 all the same.
    _, part = split(KEY, numbered([0] * 100 + [1] * 100), 0.29)
    assert np.bincount(part.y).tolist() == [29, 29]


def test_split_takes_from_the_largest_shares_what_small_classes_need():
    # Quotas 0.2, 0.2, 3, 3 of a total of 6: the small classes are raised to 1, the large ones pay for it alike.
    _, part = split(KEY, numbered([0] * 2 + [1] * 2 + [2] * 30 + [3] * 30), 0.1)
    assert np.bincount(part.y).tolist() == [1, 1, 2, 2]


def test_split_of_digits_holds_out_a_fifth_of_each_class():
    data = digits()
    rest, part = split(KEY, data)
    assert (len(rest.y), len(part.y)) == (1438, 359)
    assert (np.abs(np.bincount(part.y) - 0.2 * np.bincount(data.y)) < 1).all()


def test_split_of_a_regression_is_plain_random():
    y = np.linspace(0, 1, 50, dtype=np.float32)
    rest, part = split(KEY, Dataset(np.arange(50), y), 0.3)
    assert (len(rest.y), len(part.y)) == (35, 15)
    assert sorted([*rest.x, *part.x]) == list(range(50))
    assert np.array_equal(part.y, y[part.x])


@pytest.mark.parametrize("classes", [("a", "b"), ()], ids=["classification", "regression"])
def test_split_takes_every_example_about_equally_often_and_depends_on_the_key(classes):
    data = Dataset(np.arange(10), np.arange(10, dtype=np.int32) % 2, classes)
    parts = [tuple(split(jax.random.key(seed), data, 0.4)[1].x) for seed in range(400)]
    assert len(set(parts)) > 50
    # Binomial(400, 0.4): 160 ± 10; five standard deviations.
    times = np.bincount(np.ravel(parts), minlength=10)
    assert (np.abs(times - 160) < 50).all()


@pytest.mark.parametrize("fraction", [0, 1, -0.2, 1.5, math.nan])
def test_split_fraction_out_of_range(fraction):
    with pytest.raises(ValueError, match=f"^split: fraction = {fraction}, expected 0 < fraction < 1"):
        split(KEY, digits(), fraction)


@pytest.mark.parametrize(
    ("y", "fraction", "message"),
    [
        ([0] * 5 + [1] * 5, 0.01, "fraction = 0.01 of 10 examples is 0, .* between 1/10 and 9/10"),
        ([0] * 5 + [1] * 5, 0.99, "fraction = 0.99 of 10 examples is 10, .* between 1/10 and 9/10"),
        ([0], 0.5, "needs at least 2 examples"),
        ([0, 1, 2], 0.3, "each of the 3 examples is the only one of its class"),
    ],
)
def test_split_that_would_leave_a_side_empty(y, fraction, message):
    with pytest.raises(ValueError, match=f"^split: .*{message}"):
        split(KEY, numbered(y), fraction)


def call_split(key):
    split(key, digits())


@pytest.mark.parametrize("key", [0, None, np.zeros(2, np.uint32), jax.random.key])
@pytest.mark.parametrize(("who", "call"), [("split", call_split), ("moons", lambda key: moons(key, 10))])
def test_what_is_not_a_key(who, call, key):
    with pytest.raises(ValueError, match=rf"^{who} draws random numbers and needs a key, but got .*; pass one: jax"):
        call(key)


def test_several_keys_are_not_one():
    with pytest.raises(ValueError, match=r"^moons .* needs a key, but got key<fry> of shape \(2,\)"):
        moons(jax.random.split(KEY), 10)
    with pytest.raises(ValueError, match=r"^moons .* needs a key, but got uint32 of shape \(2, 2\)"):
        moons(jax.random.key_data(jax.random.split(KEY)), 10)


def test_a_raw_key_is_a_key():
    raw = jax.random.key_data(KEY)
    np.testing.assert_array_equal(moons(raw, 10).x, moons(KEY, 10).x)
    np.testing.assert_array_equal(split(raw, digits())[1].y, split(KEY, digits())[1].y)


# ---------------------------------------------------------------- standardisation


def test_standardized_features_have_mean_0_and_variance_1():
    x = np.random.default_rng(0).normal([1e4, -3, 0], [10, 0.01, 1e6], (1000, 3)).astype(np.float32)
    standardizer = fit_standardizer(x)
    assert standardizer.mean.dtype == standardizer.std.dtype == np.float32
    np.testing.assert_allclose(standardizer.mean, x.astype(np.float64).mean(0), rtol=1e-6)
    np.testing.assert_allclose(standardizer.std, x.astype(np.float64).std(0), rtol=1e-6)
    z = standardize(standardizer, x)
    assert z.dtype == np.float32
    np.testing.assert_allclose(z.mean(0, dtype=np.float64), 0, atol=1e-4)
    np.testing.assert_allclose(z.std(0, dtype=np.float64), 1, rtol=1e-5)


def test_constant_features_become_0():
    # 0.1 is rounded, and so are its sums: the std of a column of it is not exactly 0. That of the last is 5e-46.
    x = np.stack([np.full(1001, 0.1), np.full(1001, 1e30), np.arange(1001) % 2 * 1e-45], axis=1)
    assert 0 < x.std(0)[0] < 1e-12
    standardizer = fit_standardizer(x)
    assert standardizer.std.tolist() == [1, 1, 1]
    np.testing.assert_allclose(standardize(standardizer, x), 0, atol=1e-7)


def test_standardized_digits_are_finite():
    x = digits().x
    z = standardize(fit_standardizer(x), x)
    assert z.shape == x.shape
    assert np.isfinite(z).all()
    assert (z[:, 0, 0] == 0).all()  # a corner that no digit touches


def test_standardization_knows_nothing_of_the_held_out_part():
    data = digits()
    brighter = data._replace(x=data.x.copy())
    _, part = split(KEY, data._replace(x=np.arange(len(data.y))))
    brighter.x[part.x] += 100
    rest, brighter_rest = split(KEY, data)[0], split(KEY, brighter)[0]
    ours, theirs = fit_standardizer(rest.x), fit_standardizer(brighter_rest.x)
    assert np.array_equal(ours.mean, theirs.mean)
    assert np.array_equal(ours.std, theirs.std)
    assert not np.array_equal(ours.mean, fit_standardizer(brighter.x).mean)


def test_standardization_of_what_does_not_fit():
    with pytest.raises(ValueError, match=r"^fit_standardizer: x has no examples \(shape \(0, 3\)\)"):
        fit_standardizer(np.zeros((0, 3)))
    standardizer = fit_standardizer(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"^standardize: .*\(x is \(5, 4\)\).* fitted to examples of shape \(3,\)"):
        standardize(standardizer, np.ones((5, 4)))


# ---------------------------------------------------------------- synthetic sets


@pytest.mark.parametrize("make", SYNTHETIC)
def test_synthetic_sets_are_balanced_and_follow_the_key(make):
    data = make(KEY, 31)
    assert data.x.shape == (31, 2)
    assert (data.x.dtype, data.y.dtype) == (np.float32, np.int32)
    assert len(data.features) == 2
    counts = np.bincount(data.y, minlength=len(data.classes))
    assert len(counts) == len(data.classes)
    assert counts.max() - counts.min() <= 1
    assert np.array_equal(make(KEY, 31).x, data.x)
    assert not np.isin(make(jax.random.key(1), 31).x, data.x).any()


@pytest.mark.parametrize("make", SYNTHETIC)
def test_synthetic_noise_is_a_normal_error_of_that_size(make):
    error = make(KEY, 3000, noise=0.5).x - make(KEY, 3000, noise=0.0).x
    # The standard error of a standard deviation of 3000 is 0.5 / sqrt(6000) = 0.0065, of a mean 0.009.
    np.testing.assert_allclose(error.std(axis=0), 0.5, atol=0.03)
    np.testing.assert_allclose(error.mean(axis=0), 0, atol=0.04)
    assert abs(np.corrcoef(error.T)[0, 1]) < 0.1


def without_noise(make):
    """The points of each class, as rows of x1 and x2."""
    x, y, classes, _ = make(KEY, 600, noise=0)
    return [x[y == c].astype(np.float64).T for c in range(len(classes))]


def test_moons_lie_on_two_half_circles():
    (x1, x2), (u1, u2) = without_noise(moons)
    np.testing.assert_allclose(np.hypot(x1, x2), 1, atol=1e-6)
    np.testing.assert_allclose(np.hypot(u1 - 1, u2 - 0.5), 1, atol=1e-6)
    assert x2.min() >= 0
    assert u2.max() <= 0.5
    for x in (x1, u1 - 1):  # the whole half circle is used
        assert x.min() < -0.99
        assert x.max() > 0.99


def test_circles_have_radius_1_and_a_half():
    outer, inner = without_noise(circles)
    np.testing.assert_allclose(np.hypot(*outer), 1, atol=1e-6)
    np.testing.assert_allclose(np.hypot(*inner), 0.5, atol=1e-6)
    for x1, x2 in (outer, inner):  # in all four quadrants
        assert len(set(zip(x1 > 0, x2 > 0, strict=True))) == 4


def test_spirals_turn_by_4_pi_for_each_unit_of_radius():
    for c, (x1, x2) in enumerate(without_noise(spirals)):
        r = np.hypot(x1, x2)
        assert r.min() >= 0.25 - 1e-6
        assert r.max() <= 1 + 1e-6
        assert np.ptp(r) > 0.7
        turned = np.arctan2(x2, x1) - 4 * np.pi * r - np.pi * c
        np.testing.assert_allclose(np.cos(turned), 1, atol=1e-6)


def test_xor_is_the_sign_of_the_product():
    same, different = without_noise(xor)
    assert (same[0] * same[1] > 0).all()
    assert (different[0] * different[1] < 0).all()
    for x1, x2 in (same, different):
        assert len(set(x1 > 0)) == 2
        for x in (x1, x2):
            assert 0.1 - 1e-6 <= np.abs(x).min() < 0.15
            assert 0.95 < np.abs(x).max() <= 1


def test_blobs_are_around_the_corners_of_a_triangle():
    centres = np.array([x.mean(1) for x in without_noise(blobs)])
    sqrt3 = math.sqrt(3)
    np.testing.assert_allclose(centres, [[1, 0], [-0.5, sqrt3 / 2], [-0.5, -sqrt3 / 2]], atol=1e-6)


@pytest.mark.parametrize("make", SYNTHETIC)
def test_synthetic_sets_refuse(make):
    least = len(make(KEY, 31).classes)
    with pytest.raises(ValueError, match=f"^{make.__name__}: n = {least - 1}, expected at least {least}"):
        make(KEY, least - 1)
    with pytest.raises(ValueError, match=re.escape(f"{make.__name__}: noise = -0.1, expected a finite number")):
        make(KEY, 10, noise=-0.1)
