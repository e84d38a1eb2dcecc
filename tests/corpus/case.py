"""What a case of the corpus is: a function, a hand-written gradient, and what is wrong with it."""

import contextlib
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxnn

# Words that several cases share.
LEFT_OUT = (
    "missing|dropp|left out|leaves out|without|forg[eo]t|not appl|lost|not count|ignor|lack|stopp|omit|passe[sd]"
    "|is cut|not flow"
)
INSTEAD = r"instead|in place of|in the place|rather than|another|\bother\b|taken from"
TWICE = "twice|doubl|two times|<2>|once too often"
SIGN = "sign|minus|negat|negative|-<1>"


class Case(NamedTuple):
    """One gradient to verify, right or wrong."""

    name: str
    kind: str  # of mistake; "" if the gradient is right
    forward: Any  # loss; f; a Layer
    manual: Any  # manual_grad; (f_fwd, f_bwd); None for a Layer, which brings its backward
    args: tuple  # (params, *args); args of f; (x, ctx, key) of verify_layer
    words: tuple[str, ...] = ()  # regular expressions, <21> for numbers: a text with all of them names the cause
    how: str = "grad"  # "grad", "vjp" or "layer": which of the three verify functions
    argnums: int | tuple[int, ...] = 0
    x64: bool = False  # in a session of float64


def right(name: str, forward: Any, manual: Any, *args: Any, **options) -> Case:
    return Case(name, "", forward, manual, args, **options)


def subject(
    name: str, forward: Any, manual: Callable, args: tuple, slips: Mapping[str, tuple[str, ...]], **options
) -> list[Case]:
    """The right gradient, and one wrong case per slip: {slip: (kind, *words)}. `manual` takes slip=."""
    right = Case(name, "", forward, manual, args, **options)
    return [right] + [
        Case(f"{name}: {slip}", kind, forward, functools.partial(manual, slip=slip), args, tuple(words), **options)
        for slip, (kind, *words) in slips.items()
    ]


def vjp_subject(
    name: str, f: Callable, f_fwd: Callable, f_bwd: Callable, args: tuple, slips: Mapping[str, tuple[str, ...]]
) -> list[Case]:
    """The same for a custom_vjp triple: `f_bwd` takes slip=."""
    right = Case(name, "", f, (f_fwd, f_bwd), args, how="vjp")
    return [right] + [
        Case(f"{name}: {slip}", kind, f, (f_fwd, functools.partial(f_bwd, slip=slip)), args, tuple(words), how="vjp")
        for slip, (kind, *words) in slips.items()
    ]


@contextlib.contextmanager
def session(case: Case):
    """JAX as a user has it by default, and in float64 where the case says so."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        stack.enter_context(jax.numpy_rank_promotion("allow"))
        if case.x64:
            stack.enter_context(jax.enable_x64(True))
        yield


def check(case: Case) -> Any:
    """The verifier's report."""
    with session(case):
        if case.how == "grad":
            options = {} if case.argnums == 0 else {"argnums": case.argnums}
            return jaxnn.verify_grad(case.forward, case.manual, *case.args, **options)
        if case.how == "vjp":
            return jaxnn.verify_vjp(case.forward, *case.manual, *case.args)
        x, ctx, key = case.args
        return jaxnn.verify_layer(case.forward, x, ctx=ctx, key=key)


def first_findings(report: Any) -> str:
    """What a reader sees first: the text of the first two findings."""
    return "\n".join(f"{finding.text} {finding.source or ''}" for finding in report.findings[:2])


def names_the_cause(case: Case, text: str) -> bool:
    """Whether the text says everything a reader needs to repair the gradient."""
    return all(re.search(_pattern(word), text, re.IGNORECASE) for word in case.words)


def _pattern(word: str) -> str:
    """<21> is the number 21, or 21.0, not part of another number; <0.577...> is a number that begins like that."""

    def number(found):
        digits, more = found[1], found[2]
        return rf"(?<![\d.]){re.escape(digits)}" + ("" if more else r"(\.0+)?(?!\.?\d)")

    return re.sub(r"<([\d.]*\d)(\.\.\.)?>", number, word)


def numbers(seed: int, *shape: int, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    """Normal float32 numbers."""
    return (np.random.default_rng(seed).normal(size=shape) * scale + shift).astype(np.float32)


def positive(seed: int, *shape: int, low: float = 0.2, high: float = 2.0) -> np.ndarray:
    """Uniform float32 numbers."""
    return np.random.default_rng(seed).uniform(low, high, size=shape).astype(np.float32)


def integers(seed: int, n: int, *shape: int) -> np.ndarray:
    """int32 numbers in 0, ..., n - 1."""
    return np.random.default_rng(seed).integers(0, n, size=shape, dtype=np.int32)


def one_hot(labels: np.ndarray, n: int) -> np.ndarray:
    return np.eye(n, dtype=np.float32)[labels]
