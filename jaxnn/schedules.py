"""Learning-rate schedules: pure functions from the step to the rate.

A schedule maps the step t, an int32 scalar or a Python int, to the rate as a float32 scalar (float64 in float64 mode).
Steps count from 0: the first update uses schedule(0), the last of `steps` updates schedule(steps - 1). An array of
steps gives the array of their rates. The constructors below return a schedule; any function of the same form is one,
for example `lambda t: 0.1 / (1 + t)`. Their counts of steps, and `rise`, are Python numbers; rates and factors may be
traced, and are not checked then.
"""

import itertools
import math
import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxnn._checks import Number, fraction, non_negative, number_for, positive, unit_interval, whole

Schedule = Callable[[jax.Array | int], jax.Array | float]


def constant(rate: Number) -> Schedule:
    """The same rate at every step.

    rate_t = rate

    Raises ValueError unless rate >= 0.
    """
    non_negative("constant", "rate", rate)
    return lambda step: jnp.full(jnp.shape(step), rate, float)


def piecewise(rate: Number, boundaries: Sequence[int], factors: Sequence[Number]) -> Schedule:
    """Step decay: the rate is multiplied by a factor at each boundary.

    rate_t = rate · Π factors_i over all i with boundaries_i <= t

    Raises ValueError unless there is one factor per boundary, the boundaries ascend from 1 or later and no factor is
    negative.

    >>> schedule = piecewise(1.0, [30, 60], [0.5, 0.1])
    >>> [round(float(schedule(t)), 6) for t in (0, 29, 30, 59, 60)]
    [1.0, 1.0, 0.5, 0.5, 0.05]
    """
    non_negative("piecewise", "rate", rate)
    if len(boundaries) != len(factors):
        raise ValueError(
            f"piecewise: {len(boundaries)} boundaries but {len(factors)} factors; give one factor per boundary"
        )
    for boundary in boundaries:
        whole("piecewise", "boundary", boundary, least=1)
    if list(boundaries) != sorted(boundaries):
        raise ValueError(f"piecewise: boundaries {list(boundaries)} do not ascend; sort them, with their factors")
    for factor in factors:
        non_negative("piecewise", "factor", factor)
    rate, factors = number_for(float, rate), [number_for(float, factor) for factor in factors]
    rates = list(itertools.accumulate(factors, operator.mul, initial=rate))[1:]

    def schedule(step):
        value = constant(rate)(step)
        for boundary, lower in zip(boundaries, rates, strict=True):
            value = jnp.where(step >= boundary, lower, value)
        return value

    return schedule


def exponential(rate: Number, decay: Number, every: int) -> Schedule:
    """Exponential decay: the rate falls by the factor `decay` per `every` steps, a little at each step.

    rate_t = rate · decay^(t / every)

    Raises ValueError unless rate >= 0, 0 < decay <= 1 and every >= 1.
    """
    non_negative("exponential", "rate", rate)
    positive("exponential", "decay", decay)
    unit_interval("exponential", "decay", decay)
    whole("exponential", "every", every, least=1)
    rate, decay = number_for(float, rate), number_for(float, decay)
    log_decay = jnp.log(decay) if isinstance(decay, Tracer) else math.log(decay)
    return lambda step: rate * jnp.exp(jnp.asarray(step, float) * (log_decay / every))


def cosine(rate: Number, steps: int, final: Number = 0.0) -> Schedule:
    """Half a cosine from `rate` at step 0 down to `final` at step `steps`, and `final` from then on.

    rate_t = final + (rate - final) (1 + cos(π t / steps)) / 2

    Raises ValueError unless rate and final >= 0 and steps >= 1.
    Numerics: (1 + cos(π u)) / 2 = sin²(π (1 - u) / 2), which keeps its digits near the end, where 1 + cos cancels.
    Both ends are exact.
    Source: Loshchilov, Hutter 2016, SGDR, without the restarts (arXiv:1608.03983).

    >>> schedule = cosine(0.1, steps=100)
    >>> [round(float(schedule(t)), 6) for t in (0, 50, 100, 1000)]
    [0.1, 0.05, 0.0, 0.0]
    """
    non_negative("cosine", "rate", rate)
    non_negative("cosine", "final", final)
    whole("cosine", "steps", steps, least=1)
    rate, final = number_for(float, rate), number_for(float, final)
    return lambda step: _half_cosine(rate, final, step, 0, steps)


def warmup_cosine(rate: Number, steps: int, warmup: int, final: Number = 0.0) -> Schedule:
    """A straight line up to `rate` at step `warmup`, then half a cosine down to `final` at step `steps`.

    rate_t = rate (t + 1) / (warmup + 1)                                                      for t < warmup
    rate_t = final + (rate - final) (1 + cos(π (t - warmup) / (steps - warmup))) / 2          for warmup <= t <= steps
    rate_t = final                                                                            for t > steps

    The line would be 0 at step -1, so the first update is not wasted on a rate of 0.

    Raises ValueError unless rate and final >= 0, steps >= 1 and 0 <= warmup < steps.
    Numerics: see `cosine`.
    Source: Goyal et al. 2017 (arXiv:1706.02677) for the warm-up, Loshchilov, Hutter 2016 for the cosine.
    """
    non_negative("warmup_cosine", "rate", rate)
    non_negative("warmup_cosine", "final", final)
    whole("warmup_cosine", "steps", steps, least=1)
    whole("warmup_cosine", "warmup", warmup, least=0)
    if warmup >= steps:
        raise ValueError(f"warmup_cosine: warmup = {warmup} leaves nothing of steps = {steps}; warm up for fewer steps")
    rate, final = number_for(float, rate), number_for(float, final)

    def schedule(step):
        rising = rate * (jnp.asarray(step, float) + 1) / (warmup + 1)
        return jnp.where(step < warmup, rising, _half_cosine(rate, final, step, warmup, steps))

    return schedule


def one_cycle(rate: Number, steps: int, rise: float = 0.3) -> Schedule:
    """Half a cosine up from rate/25 to `rate`, then half a cosine down to rate/10000.

    rate_t = (from rate/25 at step 0 to rate at step r)                           for t < r = floor(rise · steps)
    rate_t = (from rate at step r to rate/10000 at step `steps`)                  for r <= t <= steps
    rate_t = rate/10000                                                           for t > steps
    (from a at t0 to b at t1) = b + (a - b) (1 + cos(π (t - t0) / (t1 - t0))) / 2

    torch's OneCycleLR has the same shape, but ends at rate/250000 with both phases one step earlier; it also cycles the
    momentum, which this does not.

    Raises ValueError unless rate >= 0, steps >= 1 and 0 <= rise < 1.
    Numerics: see `cosine`.
    Source: Smith, Topin 2017 (arXiv:1708.07120).
    """
    non_negative("one_cycle", "rate", rate)
    whole("one_cycle", "steps", steps, least=1)
    if isinstance(rise, Tracer):
        raise ValueError("one_cycle: rise is traced, but sets how many steps rise; pass a Python number")
    fraction("one_cycle", "rise", rise)
    top, rate = int(rise * steps), number_for(float, rate)

    def schedule(step):
        rising = _half_cosine(rate / 25, rate, step, 0, max(top, 1))
        return jnp.where(step < top, rising, _half_cosine(rate, rate / 10000, step, top, steps))

    return schedule


def inverse_square_root(rate: Number, warmup: int) -> Schedule:
    """A straight line up to `rate` over `warmup` steps, then decay with the square root of the step.

    rate_t = rate · min((t + 1) / warmup, √(warmup / (t + 1)))

    The peak, `rate`, is the last step of the warm-up, t = warmup - 1. The paper's rate is its d_model^(-1/2) / √warmup.

    Raises ValueError unless rate >= 0 and warmup >= 1.
    Source: Vaswani et al. 2017, section 5.3 (arXiv:1706.03762), whose steps count from 1.
    """
    non_negative("inverse_square_root", "rate", rate)
    whole("inverse_square_root", "warmup", warmup, least=1)
    rate = number_for(float, rate)

    def schedule(step):
        t = (jnp.asarray(step, float) + 1) / warmup
        return rate * jnp.minimum(t, jax.lax.rsqrt(t))

    return schedule


def _half_cosine(start, end, step, first, last):
    """From start at step first to end at step last; constant before and after."""
    left = jnp.clip(last - jnp.asarray(step, jnp.int32), 0, last - first)  # an integer: exact near the end
    s = jnp.square(jnp.sin(left.astype(float) * (math.pi / 2 / (last - first))))
    return start * s + end * (1 - s)


# Each as `(rate, steps) -> schedule`, the rest at customary values.
SCHEDULES: dict[str, Callable[[float, int], Schedule]] = {
    "constant": lambda rate, steps: constant(rate),
    # A tenth at one half and at three quarters: He et al. 2015 (arXiv:1512.03385).
    "piecewise": lambda rate, steps: piecewise(rate, [-(-steps // 2), -(-3 * steps // 4)], [0.1, 0.1]),
    "exponential": lambda rate, steps: exponential(rate, 0.01, steps),  # a hundredth at the end
    "cosine": cosine,
    "warmup_cosine": lambda rate, steps: warmup_cosine(rate, steps, steps // 20),
    "one_cycle": one_cycle,
    "inverse_square_root": lambda rate, steps: inverse_square_root(rate, max(1, steps // 20)),
}
