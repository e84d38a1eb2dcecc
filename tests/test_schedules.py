"""Schedules against their formulas in plain Python, step by step."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import schedules


def half_cosine(start, end, t, first, last):
    u = min(max((t - first) / (last - first), 0), 1)
    return end + (start - end) * (1 + math.cos(math.pi * u)) / 2


# name: (schedule, its formula in plain Python)
CASES = {
    "constant": (schedules.constant(0.3), lambda t: 0.3),
    "piecewise": (
        schedules.piecewise(0.3, [7, 20, 41], [0.5, 0.2, 3.0]),
        lambda t: 0.3 * (0.5 if t >= 7 else 1) * (0.2 if t >= 20 else 1) * (3.0 if t >= 41 else 1),
    ),
    "exponential": (schedules.exponential(0.3, 0.7, 11), lambda t: 0.3 * 0.7 ** (t / 11)),
    "cosine": (schedules.cosine(0.3, 60, 0.02), lambda t: half_cosine(0.3, 0.02, t, 0, 60)),
    "warmup_cosine": (
        schedules.warmup_cosine(0.3, 60, 9, 0.02),
        lambda t: 0.3 * (t + 1) / 10 if t < 9 else half_cosine(0.3, 0.02, t, 9, 60),
    ),
    "one_cycle": (
        schedules.one_cycle(0.3, 61),
        lambda t: half_cosine(0.3 / 25, 0.3, t, 0, 18) if t < 18 else half_cosine(0.3, 0.3e-4, t, 18, 61),
    ),
    "inverse_square_root": (
        schedules.inverse_square_root(0.3, 13),
        lambda t: 0.3 * 13**0.5 * min((t + 1) ** -0.5, (t + 1) * 13**-1.5),
    ),
}
every_schedule = pytest.mark.parametrize("name", CASES)


@every_schedule
def test_formula_traced_and_with_python_ints(name):
    schedule, formula = CASES[name]
    truth = np.array([formula(t) for t in range(130)])
    steps = jnp.arange(130)
    assert steps.dtype == jnp.int32
    traced = jax.jit(jax.vmap(schedule))(steps)
    assert traced.dtype == jnp.float32
    np.testing.assert_allclose(traced, truth, rtol=2e-6)
    np.testing.assert_allclose(schedule(steps), truth, rtol=2e-6)  # an array of steps at once
    for t in (0, 8, 17, 40, 129):
        rate = schedule(t)
        assert rate.shape == ()
        np.testing.assert_allclose(rate, truth[t], rtol=2e-6)


@every_schedule
def test_float64(name):
    schedule, formula = CASES[name]
    with jax.enable_x64(True):
        rates = schedule(jnp.arange(130, dtype=jnp.int32))
        assert rates.dtype == jnp.float64
        np.testing.assert_allclose(rates, [formula(t) for t in range(130)], rtol=1e-13)


TRACED = {
    "constant": (lambda rate, _: schedules.constant(rate), 0.0),
    "piecewise": (lambda rate, factor: schedules.piecewise(rate, [2, 5], [factor, 0.5]), 0.25),
    "exponential": (lambda rate, decay: schedules.exponential(rate, decay, 7), 0.25),
    "cosine": (lambda rate, final: schedules.cosine(rate, 9, final), 0.25),
    "warmup_cosine": (lambda rate, final: schedules.warmup_cosine(rate, 9, 3, final), 0.25),
    "one_cycle": (lambda rate, _: schedules.one_cycle(rate, 9), 0.0),
    "inverse_square_root": (lambda rate, _: schedules.inverse_square_root(rate, 3), 0.0),
}


@pytest.mark.parametrize("name", TRACED)
def test_rates_and_factors_may_be_traced(name):
    build, other = TRACED[name]
    steps = jnp.arange(12, dtype=jnp.int32)

    @jax.jit
    def traced(rate, other):
        return build(rate, other)(steps)

    for x64 in (False, True):
        with jax.enable_x64(x64):
            expected = build(0.5, other)(steps)
            for dtype in (np.float32, np.float64):
                found = traced(dtype(0.5), dtype(other))
                assert found.dtype == expected.dtype
                np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_share_of_the_steps_cannot_be_traced():
    with pytest.raises(ValueError, match="one_cycle: rise is traced"):
        jax.jit(lambda rise: schedules.one_cycle(0.1, 10, rise)(0))(0.3)


@pytest.mark.quick
def test_named_points_are_exact():
    rate, final = np.float32(0.3), np.float32(0.02)
    points = {
        "piecewise": {0: rate, 6: rate, 7: np.float32(0.15), 19: np.float32(0.15), 20: np.float32(0.03)},
        "exponential": {0: rate},
        "cosine": {0: rate, 60: final, 61: final, 10**9: final},
        "warmup_cosine": {9: rate, 60: final, 10**9: final},
        "one_cycle": {18: rate, 61: np.float32(0.3e-4), 10**9: np.float32(0.3e-4)},
        "inverse_square_root": {12: rate},
    }
    for name, values in points.items():
        for t, value in values.items():
            assert CASES[name][0](t) == value, (name, t)


def test_rises_and_falls_where_promised():
    def differences(name):
        return np.diff(np.asarray(CASES[name][0](jnp.arange(130)), dtype=np.float64))

    assert (differences("exponential") < 0).all()
    for name, top, end in (("cosine", 0, 60), ("warmup_cosine", 9, 60), ("one_cycle", 18, 61)):
        assert (differences(name)[:top] > 0).all(), name
        assert (differences(name)[top:end] < 0).all(), name
        assert (differences(name)[end:] == 0).all(), name
        assert np.abs(differences(name)).max() < 0.04, name  # no jump, neither at the top nor at the end
    assert (differences("inverse_square_root")[:12] > 0).all()
    assert (differences("inverse_square_root")[12:] < 0).all()


def test_the_end_of_a_long_cosine_keeps_its_digits():
    """(1 + cos(π u)) / 2 in float32 is 0 there."""
    left, steps = 10, 1_000_000
    rate = schedules.cosine(1.0, steps)(steps - left)
    np.testing.assert_allclose(rate, math.sin(math.pi * left / (2 * steps)) ** 2, rtol=1e-6)


@pytest.mark.parametrize("name", schedules.SCHEDULES)
@pytest.mark.parametrize("steps", [1, 19, 1000])
def test_by_name(name, steps):
    schedule = schedules.SCHEDULES[name](0.25, steps)
    rates = np.asarray(schedule(jnp.arange(1000)))[:steps]
    assert (rates > 0).all()
    assert rates.max() <= 0.25
    if name != "one_cycle" or steps > 1:
        assert rates.max() >= 0.2
    if name == "piecewise" and steps == 1000:
        np.testing.assert_allclose(rates[[0, 499, 500, 749, 750]], [0.25, 0.25, 0.025, 0.025, 0.0025], rtol=1e-6)
    if name == "exponential":
        np.testing.assert_allclose(schedule(steps), 0.0025, rtol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: schedules.constant(-1.0), "constant: rate = -1.0"),
        (lambda: schedules.constant(math.nan), "constant: rate = nan"),
        (lambda: schedules.piecewise(1.0, [3, 4], [0.1]), "2 boundaries but 1 factors"),
        (lambda: schedules.piecewise(1.0, [4, 3], [0.1, 0.1]), "do not ascend"),
        (lambda: schedules.piecewise(1.0, [0], [0.1]), "boundary = 0"),
        (lambda: schedules.piecewise(1.0, [2], [-0.1]), "factor = -0.1"),
        (lambda: schedules.exponential(1.0, 0.0, 5), "decay = 0.0"),
        (lambda: schedules.exponential(1.0, 1.1, 5), "decay = 1.1"),
        (lambda: schedules.exponential(1.0, 0.9, 0), "every = 0"),
        (lambda: schedules.cosine(1.0, 0), "cosine: steps = 0"),
        (lambda: schedules.cosine(1.0, 10.0), "steps = 10.0"),  # type: ignore[reportArgumentType]
        (lambda: schedules.cosine(1.0, 10, -0.5), "final = -0.5"),
        (lambda: schedules.warmup_cosine(1.0, 10, 10), "warmup = 10 leaves nothing of steps = 10"),
        (lambda: schedules.warmup_cosine(1.0, 10, -1), "warmup = -1"),
        (lambda: schedules.one_cycle(1.0, 10, rise=1.0), "rise = 1.0"),
        (lambda: schedules.inverse_square_root(1.0, 0), "warmup = 0"),
    ],
)
def test_wrong_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()
