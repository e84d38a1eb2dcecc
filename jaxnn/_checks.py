"""Checks of what the caller passed, each with the error that says what to do.

All of them look only at shapes, dtypes and Python values, so they run while JAX traces and cost nothing afterwards.
"""

import difflib
import math
import operator
from collections.abc import Iterable

import jax
import jax.numpy as jnp


def float_array(who: str, name: str, x) -> jax.Array:
    """x as a floating-point array; integers, booleans and complex numbers are a ValueError."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"{who}: {name} has dtype {x.dtype} (shape {x.shape}), expected a floating-point array; "
            f"convert it with {name}.astype(jnp.float32)"
        )
    return x


def at_least_float32(dtype) -> jnp.dtype:
    """The dtype to calculate in: float32 for bfloat16 and float16, otherwise the dtype itself."""
    return jnp.dtype(jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype)


def unknown_name(kind: str, name: object, known: Iterable[str]) -> ValueError:
    """The error for a name that is not in a table; it names the nearest one that is."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    listed = f"known: {', '.join(known)}" if len(known) <= 30 else ""
    return ValueError(f"unknown {kind} {name!r}; {hint}{listed}")


def positive(who: str, name: str, value: float) -> None:
    """ValueError unless value > 0, and finite."""
    if not 0 < value < math.inf:
        raise ValueError(f"{who}: {name} = {value}, expected a finite number greater than 0")


def non_negative(who: str, name: str, value: float) -> None:
    """ValueError unless value >= 0, and finite."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{who}: {name} = {value}, expected a finite number that is 0 or greater")


def fraction(who: str, name: str, value: float) -> None:
    """ValueError unless 0 <= value < 1."""
    if not 0 <= value < 1:
        raise ValueError(f"{who}: {name} = {value}, expected 0 <= {name} < 1")


def whole(who: str, name: str, value: int, least: int) -> None:
    """ValueError unless value is a whole number, at least `least`."""
    try:
        fits = operator.index(value) >= least
    except TypeError:
        fits = False
    if not fits:
        raise ValueError(f"{who}: {name} = {value!r}, expected a whole number that is {least} or greater")


def random_key(who: str, key) -> None:
    """ValueError unless key is one key of jax.random, typed or, as PRNGKey makes it, raw."""
    array = isinstance(key, jax.Array)
    typed = array and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0
    if not (typed or (array and key.dtype == jnp.uint32 and key.ndim == 1)):
        got = f"{key.dtype} of shape {key.shape}" if array else repr(key)
        raise ValueError(f"{who} draws random numbers and needs a key, but got {got}; pass jax.random.key(0), say")


def same_shape(who: str, name: str, array, like: str, shape: tuple[int, ...]) -> None:
    """ValueError unless the array has this shape, which is that of `like`: gradients are never broadcast."""
    if jnp.shape(array) != tuple(shape):
        raise ValueError(f"{who}: {name} has shape {jnp.shape(array)}, but {like} has {tuple(shape)}; make them equal")
