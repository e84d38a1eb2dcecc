"""Exact where textbooks and libraries are not: values and derivatives in float32 against a truth of 50 digits.

An error is relative, to the truth or to the largest term that it is a difference of (at a zero of a derivative no
formula keeps more). What is smaller than the smallest normal float32 may be 0, what is larger than the largest inf.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from chosen import one_in

from jaxnn import layers
from jaxnn.activations import (
    ACTIVATIONS,
    log_softmax_backward,
    log_softmax_forward,
    softmax_backward,
    softmax_forward,
)
from jaxnn.layer import Ctx
from jaxnn.layers import BatchStats, attention_backward, attention_forward
from jaxnn.losses import LOSSES

CONTEXT: Any = mp.MPContext()
CONTEXT.dps = 50
TINY, HUGE = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
BOUND = 1e-6
NUMBERS = np.array(
    [
        0, TINY, 1e-30, 1e-8, 1e-3, 0.03, 0.3, 0.72, 0.8, 1, 1.2, 1.3, 2, 3.3, 5, 7.7, 9.1, 10, 12.6, 17.3, 25.1, 40,
        43.9, 44.5, 60, 80, 86.1, 87.5, 88.1, 89.3, 91.7, 95, 103, 110, 1e3, 1e10, 1e30, HUGE,
    ],
    np.float32,
)  # fmt: skip
NUMBERS = np.concatenate([-NUMBERS[::-1], NUMBERS])
SHARES = np.array([1e-6, 1e-3, 0.3, 0.5, 0.7, 0.999, 1 - 2**-20], np.float32)


def largest_error(found, truth, terms=None):
    """The largest error of float32 numbers beside mpmath's."""
    found = np.asarray(found, np.float64).ravel()
    errors = []
    for ours, true, size in zip(found, truth, truth if terms is None else terms, strict=True):
        if np.isnan(ours) or (np.isinf(ours) and abs(true) < HUGE):
            return np.inf
        if np.isfinite(ours):
            error, size = abs(CONTEXT.mpf(ours) - true), max(abs(true), abs(size))
            errors.append(0.0 if error <= TINY else float(error / size))
    return max(errors)


# ---------------------------------------------------------------- functions of one number


class Case(NamedTuple):
    """A function of one number and its derivative."""

    value: Callable[[jax.Array], jax.Array]
    derivative: Callable[[jax.Array], jax.Array]
    truth: Callable[[Any], Any]  # mpmath's
    true_derivative: Callable[[Any], Any]
    elsewhere: Callable[[jax.Array], jax.Array] | None = None  # the function as a textbook or a library has it
    terms: Callable[[Any], Any] = abs  # of the value; the size of what may cancel
    derivative_terms: Callable[[Any], Any] = lambda x: 0
    x: np.ndarray = NUMBERS
    bounds: tuple[float, float] = (BOUND, BOUND)


def sigma(x):
    return 1 / (1 + CONTEXT.exp(-x))


def softplus(x):
    return CONTEXT.log1p(CONTEXT.exp(x))


def normal(x):
    return CONTEXT.erfc(-x / CONTEXT.sqrt(2)) / 2


def density(x):
    return CONTEXT.exp(-x * x / 2) / CONTEXT.sqrt(2 * CONTEXT.pi)


def elu(x):
    return x if x > 0 else CONTEXT.expm1(x)


def mish_parts(x):
    e = CONTEXT.exp(x)
    n = e * (e + 2)
    return n / (n + 2), x * 4 * e * (1 + e) / (n + 2) ** 2


def gelu_u(x):
    return CONTEXT.sqrt(2 / CONTEXT.pi) * (x + CONTEXT.mpf("0.044715") * x**3)


def gelu_tanh_parts(x):
    slope = CONTEXT.sqrt(2 / CONTEXT.pi) * (1 + 3 * CONTEXT.mpf("0.044715") * x**2)
    return sigma(2 * gelu_u(x)), 2 * x * sigma(2 * gelu_u(x)) * sigma(-2 * gelu_u(x)) * slope


def textbook_sigmoid(x):
    return 1 / (1 + jnp.exp(-x))


LAMBDA, ALPHA = CONTEXT.mpf("1.0507009873554804934193349852946"), CONTEXT.mpf("1.6732632423543772848170429916717")
# gelu: rounding x/√2, its square, or u leaves as many roundings as the exponent is large, and Φ underflows before x Φ.
GELU = NUMBERS[(NUMBERS < -14) | (NUMBERS > -12.8)]


def of_activations():
    log1p, exp = CONTEXT.log1p, CONTEXT.exp
    truths: dict[str, tuple] = {
        "sigmoid": (sigma, lambda x: sigma(x) * sigma(-x), jax.nn.sigmoid),
        "log_sigmoid": (lambda x: -log1p(exp(-x)), lambda x: sigma(-x), lambda x: jnp.log(textbook_sigmoid(x))),
        "softplus": (softplus, sigma, lambda x: jnp.log(1 + jnp.exp(x))),
        "silu": (lambda x: x * sigma(x), lambda x: sigma(x) * (1 + x * sigma(-x)), jax.nn.silu),
        "mish": (lambda x: x * mish_parts(x)[0], lambda x: sum(mish_parts(x)), jax.nn.mish),
        "tanh": (CONTEXT.tanh, lambda x: CONTEXT.sech(x) ** 2, jnp.tanh),
        "softsign": (lambda x: x / (1 + abs(x)), lambda x: 1 / (1 + abs(x)) ** 2, None),
        "elu": (elu, lambda x: exp(min(x, 0)), lambda x: jnp.where(x > 0, x, jnp.exp(x) - 1)),
        "celu": (elu, lambda x: exp(min(x, 0)), None),
        "selu": (
            lambda x: LAMBDA * (x if x > 0 else ALPHA * elu(x)),
            lambda x: LAMBDA * (1 if x > 0 else ALPHA * exp(x)),
            None,
        ),
        "gelu_erf": (
            lambda x: x * normal(x),
            lambda x: normal(x) + x * density(x),
            lambda x: x * (1 + jax.lax.erf(x * 0.5**0.5)) / 2,
        ),
        "gelu_tanh": (lambda x: x * gelu_tanh_parts(x)[0], lambda x: sum(gelu_tanh_parts(x)), jax.nn.gelu),
    }
    cases = {name: Case(*ACTIVATIONS[name], *truth) for name, truth in truths.items()}
    cases["silu"] = cases["silu"]._replace(derivative_terms=sigma)
    cases["mish"] = cases["mish"]._replace(derivative_terms=lambda x: mish_parts(x)[0])
    cases["gelu_erf"] = cases["gelu_erf"]._replace(derivative_terms=normal, x=GELU)
    tails = cases["gelu_tanh"]._replace(derivative_terms=lambda x: gelu_tanh_parts(x)[0], bounds=(1e-5, 1e-5))
    return cases | {"gelu_tanh": tails}


def loss_case(name, y_true, truth, true_derivative, elsewhere=None, **more):
    """A loss as a function of one prediction, for one fixed label."""
    loss = LOSSES[name]
    hyper = more.pop("hyper", {})

    def value(x):
        return jax.vmap(lambda x: loss.value(jnp.full(1, y_true, x.dtype), x[None], **hyper))(x)

    def derivative(x):
        return jax.vmap(lambda x: loss.derivative(jnp.full(1, y_true, x.dtype), x[None], **hyper)[0])(x)

    return Case(value, derivative, truth, true_derivative, elsewhere, **more)


def focal_part(z, gamma):
    return sigma(-z) ** gamma * softplus(-z)


def focal_slope(z, gamma):
    return -(sigma(-z) ** gamma) * (gamma * sigma(z) * softplus(-z) + sigma(-z))


def of_losses():
    log, log1p, exp = CONTEXT.log, CONTEXT.log1p, CONTEXT.exp

    def log_cosh(x):
        return log1p(2 * CONTEXT.sinh(x / 2) ** 2) if abs(x) < 50 else abs(x) - log(2)

    return {
        "mse": loss_case("mse", 3.0, lambda x: (x - 3) ** 2, lambda x: 2 * (x - 3), lambda x: x**2 - 6 * x + 9),
        "mae": loss_case("mae", 0.5, lambda x: abs(x - 0.5), lambda x: CONTEXT.sign(x - 0.5)),
        "huber": loss_case(
            "huber",
            0.0,
            lambda x: x * x / 2 if abs(x) <= 1 else abs(x) - 0.5,
            lambda x: max(min(x, 1), -1),
            lambda x: jnp.where(jnp.abs(x) <= 1, x * x / 2, jnp.abs(x) - 0.5),
        ),
        "log_cosh": loss_case("log_cosh", 0.0, log_cosh, CONTEXT.tanh, lambda x: jnp.log(jnp.cosh(x))),
        "poisson_nll": loss_case(
            "poisson_nll",
            3.0,
            lambda x: exp(x) - 3 * x,
            lambda x: exp(x) - 3,
            terms=lambda x: 3 * x,
            derivative_terms=lambda x: 3,
            x=np.maximum(NUMBERS, np.float32(-1e30)),
        ),
        "hinge": loss_case("hinge", 1.0, lambda x: max(0, 1 - x), lambda x: -1 if x < 1 else 0),
        "squared_hinge": loss_case(
            "squared_hinge", -1.0, lambda x: max(0, 1 + x) ** 2, lambda x: 2 * max(0, 1 + x)
        ),
        "binary_cross_entropy, 1": loss_case(
            "binary_cross_entropy", 1.0, lambda p: -log(p), lambda p: -1 / p, x=SHARES
        ),
        "binary_cross_entropy, 0": loss_case(
            "binary_cross_entropy",
            0.0,
            lambda p: -log1p(-p),
            lambda p: 1 / (1 - p),
            lambda p: -jnp.log(1 - p),
            x=SHARES,
        ),
        "logits, 1": loss_case(
            "binary_cross_entropy_with_logits",
            1.0,
            lambda z: softplus(-z),
            lambda z: -sigma(-z),
            lambda z: -jnp.log(jnp.clip(jax.nn.sigmoid(z), 1e-7, 1 - 1e-7)),
        ),
        "logits, 0": loss_case(
            "binary_cross_entropy_with_logits", 0.0, softplus, sigma, lambda z: -jnp.log(1 - jax.nn.sigmoid(z))
        ),
        "logits, 1/4": loss_case(
            "binary_cross_entropy_with_logits",
            0.25,
            lambda z: softplus(z) - z / 4,
            lambda z: sigma(z) - CONTEXT.mpf(0.25),
            lambda z: jnp.log1p(jnp.exp(z)) - z / 4,
            derivative_terms=lambda z: CONTEXT.mpf(0.25),
        ),
        "focal, 1": loss_case(
            "focal",
            1.0,
            lambda z: focal_part(z, 2) / 4,
            lambda z: focal_slope(z, 2) / 4,
            lambda z: -0.25 * (1 - jax.nn.sigmoid(z)) ** 2 * jnp.log(jax.nn.sigmoid(z)),
        ),
        "focal, 0": loss_case(
            "focal", 0.0, lambda z: 3 * focal_part(-z, 2) / 4, lambda z: -3 * focal_slope(-z, 2) / 4
        ),
    }


def of_two_logits():
    """Softmax and all that is built on it, of the logits (x, 0)."""

    def logits(x):
        return jnp.stack([x, jnp.zeros_like(x)], -1)

    first = np.array([1, 0], np.float32)

    def pair(forward, backward):
        def derivative(x):
            _, cache = forward(logits(x))
            return backward(cache, jnp.broadcast_to(first[None], (len(x), 2)))[:, 0]

        return lambda x: forward(logits(x))[0][:, 0], derivative

    def loss(name, y_true):
        def one(f):
            return jax.vmap(lambda z: f(jnp.asarray(y_true)[None], z[None]))

        return lambda x: one(LOSSES[name].value)(logits(x)), lambda x: one(LOSSES[name].derivative)(logits(x))[:, 0, 0]

    def naive(x):
        return jnp.exp(x) / (jnp.exp(x) + 1)

    integer = "softmax_cross_entropy_with_integer_labels"
    return {
        "softmax": Case(
            *pair(softmax_forward, softmax_backward),
            sigma,
            lambda x: sigma(x) * sigma(-x),
            lambda x: jax.nn.softmax(logits(x))[..., 0],
        ),
        "log_softmax": Case(
            *pair(log_softmax_forward, log_softmax_backward),
            lambda x: -softplus(-x),
            lambda x: sigma(-x),
            lambda x: jax.nn.log_softmax(logits(x))[..., 0],
        ),
        "cross-entropy of the first": Case(
            *loss(integer, 0), lambda x: softplus(-x), lambda x: -sigma(-x), lambda x: -jnp.log(naive(x))
        ),
        "cross-entropy of the second": Case(
            *loss(integer, 1), softplus, sigma, lambda x: jax.nn.logsumexp(logits(x), -1)
        ),
        "cross-entropy, soft": Case(
            *loss("softmax_cross_entropy", np.array([0.75, 0.25], np.float32)),
            lambda x: softplus(-x) + x / 4,
            lambda x: CONTEXT.mpf(0.25) - sigma(-x),
            terms=lambda x: x / 4,
            derivative_terms=lambda x: CONTEXT.mpf(0.25),
        ),
    }


CASES = of_activations() | of_losses() | of_two_logits()


@functools.cache
def true_numbers(name):
    """(values, their terms, derivatives, their terms) at the points of the case."""
    case = CASES[name]
    x = [CONTEXT.mpf(float(x)) for x in case.x]
    return tuple([f(x) for x in x] for f in (case.truth, case.terms, case.true_derivative, case.derivative_terms))


def errors_of(name, value, derivative):
    """(of the value, of the derivative)."""
    truth, terms, slope, slope_terms = true_numbers(name)
    if CASES[name].terms is abs:
        terms = truth
    found, found_slope = jax.jit(lambda x: (value(x), derivative(x)))(CASES[name].x)
    return largest_error(found, truth, terms), largest_error(found_slope, slope, slope_terms)


@one_in(2, "name", list(CASES))
def test_exact_over_the_whole_range(name):
    case = CASES[name]
    errors = errors_of(name, case.value, case.derivative)
    assert errors[0] <= case.bounds[0]
    assert errors[1] <= case.bounds[1]


LIBRARIES = [name for name, case in CASES.items() if case.elsewhere is not None]


@pytest.mark.parametrize("name", [name for name in LIBRARIES if name not in ("huber", "mse")])
def test_the_form_of_textbooks_and_libraries_would_fail(name):
    """Else the test above could not."""
    f: Any = CASES[name].elsewhere
    errors = errors_of(name, f, jax.vmap(jax.grad(lambda x: f(x[None])[0])))
    bounds = CASES[name].bounds
    assert errors[0] > 10 * bounds[0] or errors[1] > 10 * bounds[1]


# ---------------------------------------------------------------- near the zeros of a derivative


def around(*numbers):
    """The float32 next to each number, their neighbours, and what is some way off."""
    off = [0, 1e-6, -1e-5, 1e-3, -0.04, 0.3, -0.9, 1.1, -3]
    nearest = np.array([float(x) for x in numbers], np.float32)
    neighbours = [np.nextafter(nearest, np.float32(side)) for side in (-np.inf, np.inf)]
    return np.concatenate([*neighbours, *(nearest + np.float32(o) for o in off)])


def at_optima(name, y_true, optimum):
    """Labels, predictions around the one that fits each best, and the derivative in float32."""
    y_pred = around(*(optimum(CONTEXT.mpf(float(y))) for y in y_true))
    y_true = np.resize(y_true, y_pred.shape)
    one = jax.vmap(lambda y, x: LOSSES[name].derivative(y[None], x[None])[0])
    found = jax.jit(one)(y_true, y_pred)
    return [CONTEXT.mpf(float(y)) for y in y_true], [CONTEXT.mpf(float(x)) for x in y_pred], found


SMALL = 2e-8  # beside y; what is smaller has an absolute error of 2e-14
COUNTS = np.array([1e-30, 1e-3, 0.3, *range(1, 21), 100, 641, 6508, 1e6, 3e17, 1e37], np.float32)


def test_poisson_nll_near_the_count():
    """e^ŷ - y, even where ŷ is the float32 next to log y."""
    y_true, y_pred, found = at_optima("poisson_nll", COUNTS, CONTEXT.log)
    truth = [CONTEXT.exp(x) - y for x, y in zip(y_pred, y_true, strict=True)]
    assert largest_error(found, truth, [y * SMALL for y in y_true]) <= BOUND


def test_poisson_nll_of_rates_near_the_count():
    """Of the size of y |1 - ŷ|; the terms of e^ŷ - y ŷ are larger."""
    y_true, y_pred, _ = at_optima("poisson_nll", COUNTS[3:-1], CONTEXT.log)
    pairs = [(y, x) for y, x in zip(y_true, y_pred, strict=True) if abs(x - CONTEXT.log(y)) < 0.5]
    one = jax.vmap(lambda y, x: LOSSES["poisson_nll"].value(y[None], x[None]))
    found = jax.jit(one)(*(np.array([float(v) for v in column], np.float32) for column in zip(*pairs, strict=True)))
    terms = [max(y * abs(1 - x), abs(CONTEXT.exp(x) - y)) for y, x in pairs]
    assert largest_error(found, [CONTEXT.exp(x) - y * x for y, x in pairs], terms) <= BOUND


def test_logits_near_those_of_a_soft_label():
    shares = np.array([1e-20, 1e-6, 1e-3, 0.1, 0.25, 0.46004513, 0.7, 0.9, 0.999, 1 - 2**-20], np.float32)
    name = "binary_cross_entropy_with_logits"
    y_true, z, found = at_optima(name, shares, lambda y: CONTEXT.log(y) - CONTEXT.log1p(-y))
    truth = [sigma(x) - y for x, y in zip(z, y_true, strict=True)]
    assert largest_error(found, truth, [y * SMALL for y in y_true]) <= BOUND


def test_log_variances_near_the_square_of_the_error():
    rng = np.random.default_rng(6)
    y_true = rng.normal(size=24).astype(np.float32)
    mean = (y_true + np.exp(rng.uniform(-9, 8, size=24))).astype(np.float32)
    error = [CONTEXT.mpf(float(m)) - CONTEXT.mpf(float(y)) for m, y in zip(mean, y_true, strict=True)]
    s = around(*(2 * CONTEXT.log(abs(e)) for e in error))
    y_true, mean, error = np.resize(y_true, s.shape), np.resize(mean, s.shape), error * (len(s) // 24)
    one = jax.vmap(lambda y, m, s: LOSSES["gaussian_nll"].derivative(y[None, None], jnp.stack([m, s])[None])[0])
    truth = [(1 - e**2 * CONTEXT.exp(-CONTEXT.mpf(float(v)))) / 2 for e, v in zip(error, s, strict=True)]
    assert largest_error(jax.jit(one)(y_true, mean, s)[:, 1], truth, [SMALL] * len(s)) <= BOUND


@pytest.mark.parametrize("angle", [1, 1e-2, 1e-4, 1e-6])
def test_vectors_that_are_nearly_parallel(angle):
    rng = np.random.default_rng(7)
    x = rng.normal(size=(8, 5)).astype(np.float32)
    y = (x * rng.uniform(0.5, 3, size=(8, 1)) + angle * rng.normal(size=(8, 5))).astype(np.float32)
    loss = LOSSES["cosine_distance"]
    both = jax.vmap(lambda y, x: (loss.value(y[None], x[None]), loss.derivative(y[None], x[None])[0]))
    for u, v, found, slope in zip(x, y, *jax.jit(both)(y, x), strict=True):
        u, v = ([CONTEXT.mpf(float(a)) for a in row] for row in (u, v))
        uu, vv, uv = (sum(a * b for a, b in zip(*pair, strict=True)) for pair in ((u, u), (v, v), (u, v)))
        cosine = uv / CONTEXT.sqrt(uu * vv)
        truth = [-(b - uv / uu * a) / CONTEXT.sqrt(uu * vv) for a, b in zip(u, v, strict=True)]
        assert largest_error(found, [1 - cosine]) <= BOUND
        assert largest_error(slope, truth, [max(map(abs, truth))] * 5) <= BOUND


def test_soft_labels_of_distant_classes():
    """Of logits whose distances are no float32; the error is beside the larger of p and q."""
    rng = np.random.default_rng(8)
    z = (30 * rng.normal(size=(40, 7))).astype(np.float32)
    q = rng.dirichlet(np.ones(7), 40).astype(np.float32) * (rng.uniform(size=(40, 7)) < 0.5).astype(np.float32)
    loss = LOSSES["softmax_cross_entropy"]
    each = jax.jit(jax.vmap(lambda q, z: loss.derivative(q[None], z[None])[0]))(q, z)
    for found, row, labels in zip(each, z, q, strict=True):
        p, labels = true_softmax(row), [CONTEXT.mpf(float(v)) for v in labels]
        total = sum(labels)
        truth = [a * total - b for a, b in zip(p, labels, strict=True)]
        assert largest_error(found, truth, [max(a * total, b) for a, b in zip(p, labels, strict=True)]) <= BOUND


# ---------------------------------------------------------------- no NaN

FAR = np.array([-HUGE, -1e20, -1e4, -89, -17, -1, -1e-30, -0.0, 0, TINY, 1e-8, 1, 17, 89, 1e4, 1e20, HUGE], np.float32)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_of_finite_numbers_are_finite(name):
    y, slope = jax.jit(lambda x: [f(x) for f in ACTIVATIONS[name]])(FAR)
    assert np.isfinite(slope).all()
    assert np.isfinite(y[:-1]).all()
    assert np.isfinite(y[-1]) or name == "selu"  # 1.05 times the largest float


def targets(name):
    """Labels, and the predictions that they go with: every pair of numbers, or every number."""
    first, second = np.meshgrid(FAR, FAR)
    pairs, alone = np.stack([first, second], -1), FAR.reshape(1, -1, 1)
    match name:
        case "softmax_cross_entropy_with_integer_labels":
            return [np.zeros(pairs.shape[:2], int), np.ones(pairs.shape[:2], int)], pairs
        case "softmax_cross_entropy" | "kl_divergence":
            return [np.broadcast_to(np.array(q, np.float32), pairs.shape) for q in ([1, 0], [0.25, 0.75])], pairs
        case "gaussian_nll":
            return [np.full((17, 17, 1), y, np.float32) for y in (0, 1, -HUGE)], pairs
        case "cosine_distance":
            vectors = ([0, 0], [1, TINY], [HUGE, -HUGE])
            return [np.broadcast_to(np.array(y, np.float32), pairs.shape) for y in vectors], pairs
        case "hinge" | "squared_hinge":
            return [np.full_like(alone, y) for y in (-1, 1)], alone
        case "binary_cross_entropy" | "binary_cross_entropy_with_logits" | "focal":
            return [np.full_like(alone, y) for y in (0, 0.25, 1)], alone
        case "poisson_nll":
            return [np.full_like(alone, y) for y in (0, 3, HUGE)], alone
    return [np.full_like(alone, y) for y in (0, 1, -HUGE)], alone


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_finite_numbers_are_numbers(name):
    loss, (labels, y_pred) = LOSSES[name], targets(name)

    def of_each(y_true, y_pred):
        return loss.value(y_true[None], y_pred[None]), loss.derivative(y_true[None], y_pred[None])

    both = jax.jit(jax.vmap(jax.vmap(of_each)))
    for y_true in labels:
        for found in both(y_true, y_pred):
            assert not np.isnan(found).any()


# ---------------------------------------------------------------- rows


def true_norm(x, dy, eps, centre):
    """x̂ and dx of a row, and what their errors are measured by: the largest |x̂|, and r max |dy|."""
    x, dy = ([CONTEXT.mpf(float(v)) for v in row] for row in (x, dy))
    n = len(x)
    mean = sum(x) / n if centre else CONTEXT.mpf(0)
    r = 1 / CONTEXT.sqrt(sum((v - mean) ** 2 for v in x) / n + eps)
    x_hat = [(v - mean) * r for v in x]
    along, level = sum(a * b for a, b in zip(dy, x_hat, strict=True)) / n, sum(dy) / n if centre else 0
    dx = [r * (g - level - h * along) for g, h in zip(dy, x_hat, strict=True)]
    return x_hat, [max(map(abs, x_hat))] * n, dx, [r * max(map(abs, dy))] * n


ROWS = np.array(
    [
        [1.0, 2, 4, -3, 0.5, 2.5],
        [1e4, 10001, 9999, 10002, 9998.5, 1e4],
        [1e7, 1e7 + 1, 1e7 - 1, 1e7, 1e7 + 3, 1e7 + 2],
        [2.5] * 6,
        [0] * 6,
        [1e-20, 0, -1e-20, 2e-20, 0, 1e-20],
        [3e38, -3e38, 1e38, 2e38, 3e38, 0],
        [0, 0, 1e19, 0, 0, 0],
    ],
    np.float32,
)
SLOPES = np.array([0.3, -1.2, 2.0, 0.7, -0.4, 1.1], np.float32)


def textbook_norm(x):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt((x * x).mean(-1, keepdims=True) - mean**2 + 1e-5)


def of_norms():
    """(rows, dy) -> (x̂, dx), each as an array of rows."""

    def of(layer, params, state=(), arrange=lambda x: x, back=lambda y: y):
        def run(x, dy):
            y, _, cache = layer.forward(params, state, arrange(x), Ctx(train=True))
            return back(y), back(layer.backward(params, cache, arrange(dy))[1])

        return run

    def params(n):
        return {"scale": np.ones(n, np.float32), "shift": np.zeros(n, np.float32)}

    n, width = ROWS.shape
    stats = BatchStats(jnp.zeros(n), jnp.ones(n), jnp.zeros(()))
    return {
        "layer_norm": of(layers.layer_norm(), params(width)),
        "rms_norm": of(layers.rms_norm(), {"scale": np.ones(width, np.float32)}),
        "instance_norm": of(layers.instance_norm(), params(1), (), lambda x: x[..., None], lambda y: y[..., 0]),
        "group_norm": of(
            layers.group_norm(2),
            params(4),
            (),
            lambda x: jnp.tile(x.reshape(-1, 3, 2), (1, 1, 2)),  # a row for each of the two groups
            lambda y: y[..., 2:].reshape(-1, 6),
        ),
        "batch_norm": of(layers.batch_norm(), params(n), stats, lambda x: x.T, lambda y: y.T),
    }  # fmt: skip


def errors_of_norm(run, rms=False, x=ROWS):
    truths = [true_norm(row, SLOPES, CONTEXT.mpf(float(np.float32(1e-5))), not rms) for row in x]
    found = jax.jit(run)(x, np.broadcast_to(SLOPES, x.shape))
    value = [largest_error(y, truth[0], truth[1]) for y, truth in zip(found[0], truths, strict=True)]
    slope = [largest_error(dx, truth[2], truth[3]) for dx, truth in zip(found[1], truths, strict=True)]
    return max(value), max(slope)


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "instance_norm", "group_norm", "batch_norm"])
def test_norms_are_exact_at_any_mean_spread_and_size(name):
    assert max(errors_of_norm(of_norms()[name], rms=name == "rms_norm")) <= BOUND


def test_the_textbook_s_norm_would_fail():
    def run(x, dy):
        y, pull = jax.vjp(textbook_norm, x)
        return y, pull(dy)[0]

    fails = [max(errors_of_norm(run, x=row[None])) > BOUND for row in ROWS]
    # Where a row is constant, whether mean(x²) and mean² round to the same number is up to the version of XLA.
    assert [k for k, row in enumerate(ROWS) if fails[k] and np.ptp(row.astype(float)) > 0] == [1, 2, 6]


def true_softmax(z):
    """Probabilities of a row; -inf is a mask, and a row of masks has none."""
    exps = [CONTEXT.exp(CONTEXT.mpf(float(v))) if v > -np.inf else CONTEXT.mpf(0) for v in z]
    total = sum(exps)
    return [e / total if total else e for e in exps]


LOGITS = np.array(
    [
        [0, 0, 0, 0],
        [3, -20, -25.5, -60],
        [-20, 30, 29.5, -np.inf],
        [1e30, 1e30, -1e30, 0],
        [HUGE, -HUGE, 0, HUGE],
        [-np.inf, -np.inf, 5, -np.inf],
        [-np.inf] * 4,
        [17.3, 0, 0.1, -0.2],
    ],
    np.float32,
)
LABELS = np.array([3, 0, 1, 1, 0, 2, 0, 0])


def test_rows_of_logits_with_masks_equal_entries_and_extremes():
    """p and log p of the label; and the derivatives of both and of the cross-entropy, by every logit."""
    dy = jnp.asarray(np.eye(4, dtype=np.float32)[LABELS])
    loss = LOSSES["softmax_cross_entropy_with_integer_labels"]

    @jax.jit
    def run(z):
        p, cache = softmax_forward(z)
        log_p, log_cache = log_softmax_forward(z)
        each = jax.vmap(lambda z, label: loss.derivative(label[None], z[None])[0])
        dp, dlog_p = softmax_backward(cache, dy), log_softmax_backward(log_cache, dy)
        return p, dp, log_p, dlog_p, each(z, LABELS)

    p, dp, log_p, dlog_p, dloss = (np.asarray(found) for found in run(LOGITS))
    for i, label in enumerate(LABELS):
        true = true_softmax(LOGITS[i])
        others = [sum(true[:j]) + sum(true[j + 1 :]) for j in range(4)]  # 1 - p_j
        assert largest_error(p[i], true) <= BOUND
        slope = [true[label] * others[label] if j == label else -true[label] * true[j] for j in range(4)]
        assert largest_error(dp[i], slope) <= BOUND
        if not any(true):
            assert (log_p[i] == -np.inf).all()
            continue
        exact = [others[j] if j == label else -true[j] for j in range(4)]
        assert largest_error(dlog_p[i], exact) <= 4e-6  # e^y has |y| roundings
        assert largest_error(dloss[i], [-others[j] if j == label else true[j] for j in range(4)]) <= BOUND
        truth = CONTEXT.log1p(-others[label]) if others[label] < 0.5 else CONTEXT.log(true[label])
        assert largest_error(log_p[i, label : label + 1], [truth]) <= BOUND


def test_the_library_s_softmax_would_fail():
    with np.errstate(invalid="ignore"):
        p, pull = jax.vjp(jax.nn.softmax, LOGITS)
    assert np.isnan(p[6]).all()
    confident = np.asarray(pull(np.eye(4, dtype=np.float32)[LABELS])[0])[1]
    true = true_softmax(LOGITS[1])
    assert largest_error(confident[:1], [true[0] * sum(true[1:])]) > 0.5


def test_attention_with_masks_equal_scores_and_extremes():
    """Against the definition in 50 digits; a query that may see nothing gives zeros and gets none."""
    q = np.array([[[[1, 2], [0, 0], [1e4, -1e4], [3, -0.5]]], [[[1, 1]] * 4]], np.float32)
    k = np.array([[[[1, 0.5], [1, 0.5], [-2, 7], [1e4, 1e4]]], [[[HUGE, 0]] * 4]], np.float32)
    v = np.array([[[[1.5], [-2], [3], [0.25]]], [[[HUGE]] * 4]], np.float32)
    mask = np.array([[True, True, True, False], [False] * 4])
    do = np.array([[[[1.0], [-0.5], [2], [0.7]]], [[[1]] * 4]], np.float32)

    @jax.jit
    def run(q, k, v):
        o, cache = attention_forward(q, k, v, mask=mask)
        return o, *attention_backward(cache, jnp.asarray(do))

    o, dq, dk, dv = (np.asarray(found) for found in run(q, k, v))
    assert not o[1].any()
    for gradient in (dq, dk, dv):
        assert not gradient[1].any()
    root = CONTEXT.sqrt(2)
    queries, keys, values = (
        [[CONTEXT.mpf(float(x)) for x in row] for row in rows] for rows in (q[0, 0], k[0, 0, :3], v[0, 0, :3])
    )
    true_dv = [0, 0, 0, 0]
    for t, query in enumerate(queries):
        scores = [sum(a * b for a, b in zip(query, key, strict=True)) / root for key in keys]
        exps = [CONTEXT.exp(score - max(scores)) for score in scores]
        p = [e / sum(exps) for e in exps]
        out = sum(w * value[0] for w, value in zip(p, values, strict=True))
        assert largest_error(o[0, 0, t], [out]) <= BOUND
        g = CONTEXT.mpf(float(do[0, 0, t, 0]))
        for i in range(2):
            terms = [w * g * (value[0] - out) * key[i] / root for w, value, key in zip(p, values, keys, strict=True)]
            size = max(w * abs(g * 3 * key[i]) for w, key in zip(p, keys, strict=True)) / root  # 3 is the largest |v|
            assert largest_error(dq[0, 0, t, i : i + 1], [sum(terms)], [size]) <= BOUND
        true_dv = [total + w * g for total, w in zip(true_dv, [*p, 0], strict=True)]
    assert largest_error(dv[0, 0], true_dv) <= BOUND


# ---------------------------------------------------------------- other libraries


@pytest.mark.peers
def test_optax_would_fail():
    optax = pytest.importorskip("optax", reason="optax is not installed")
    x = NUMBERS[np.abs(NUMBERS) < 1e4]
    case = CASES["log_cosh"]
    assert largest_error(optax.log_cosh(x), [case.truth(CONTEXT.mpf(float(v))) for v in x]) > 0.9
    z = jnp.array([[17.3, 0.0]])

    def loss(z):
        return optax.softmax_cross_entropy_with_integer_labels(z, jnp.zeros(1, int)).sum()

    assert float(loss(z)) == 0
    assert not jax.grad(loss)(z)[0, 0]
