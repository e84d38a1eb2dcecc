"""Checks of what the caller passed, each with an error that says what to do.

They look at shapes, dtypes and known values, so they run while JAX traces and cost nothing afterwards. The value of a
traced number is not known then, and is not checked.
"""

import difflib
import math
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Number = float | jax.Array  # an array: a scalar, known or traced


def array(who: str, name: str, x) -> jax.Array:
    """x as an array; ValueError for None, strings, dicts and ragged lists."""
    try:
        return jnp.asarray(x)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{who}: {name} is {kind(x)}, expected an array of numbers") from error


def float_array(who: str, name: str, x) -> jax.Array:
    """x as a floating-point array; ValueError for integers, booleans and complex numbers."""
    x = array(who, name, x)
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
    """The error for a name that is not in a table; it suggests the nearest one that is."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    listed = f"known: {', '.join(known)}" if len(known) <= 30 else ""
    return ValueError(f"unknown {kind} {name!r}; {hint}{listed}")


def positive(who: str, name: str, value: Number) -> None:
    """ValueError unless value > 0, and finite."""
    _number(who, name, value, lambda v: 0 < v < math.inf, "a finite number greater than 0")


def non_negative(who: str, name: str, value: Number) -> None:
    """ValueError unless value >= 0, and finite."""
    _number(who, name, value, lambda v: 0 <= v < math.inf, "a finite number that is 0 or greater")


def fraction(who: str, name: str, value: Number) -> None:
    """ValueError unless 0 <= value < 1."""
    _number(who, name, value, lambda v: 0 <= v < 1, f"0 <= {name} < 1")


def unit_interval(who: str, name: str, value: Number) -> None:
    """ValueError unless 0 <= value <= 1."""
    _number(who, name, value, lambda v: 0 <= v <= 1, f"0 <= {name} <= 1")


def number_for(dtype, value: Number) -> Any:
    """A traced number in this dtype; a known one as a Python number, which JAX converts to any dtype."""
    return value.astype(dtype) if isinstance(value, Tracer) else float(value)


def is_zero(value: Number) -> bool:
    """Whether the number is known to be 0; False if it is traced."""
    return not isinstance(value, Tracer) and float(value) == 0


def _number(who, name, value, fits, expected):
    if np.shape(value) != ():
        raise ValueError(f"{who}: {name} has shape {np.shape(value)}, expected one number; use jax.vmap for several")
    if isinstance(value, Tracer):
        return
    try:
        fitting = fits(float(value))  # as a float: under jit, even comparing a known array is traced
    except (TypeError, ValueError):
        fitting = False
    if not fitting:
        raise ValueError(f"{who}: {name} = {value}, expected {expected}")


def whole(who: str, name: str, value: int, least: int) -> None:
    """ValueError unless value is a whole number, at least `least`."""
    try:
        fits = operator.index(value) >= least
    except TypeError:
        fits = False
    if not fits:
        raise ValueError(f"{who}: {name} = {value!r}, expected a whole number that is {least} or greater")


def whole_each(who: str, name: str, values, least: int) -> tuple[int, ...]:
    """values as a tuple; ValueError unless they are whole numbers, at least `least`."""
    if not isinstance(values, Iterable):
        raise ValueError(f"{who}: {name} = {values!r}, expected a tuple of whole numbers, ({values!r},) for one")
    values = tuple(values)
    for value in values:
        whole(who, name, value, least)
    return values


def sizes(who: str, in_shape, least_rank: int = 0) -> tuple[int, ...]:
    """in_shape as a tuple; ValueError unless its entries are whole numbers of 0 or more, and at least least_rank."""
    try:
        shape = tuple(map(operator.index, in_shape))
        fits = len(shape) >= least_rank and min(shape, default=0) >= 0
    except TypeError:
        shape, fits = (), False
    if not fits:
        axes = f" with at least {least_rank} axes" if least_rank else ""
        raise ValueError(f"{who}: in_shape is {in_shape}, expected the sizes of an array{axes}, batch first")
    return shape


def integers(who: str, name: str, value) -> jax.Array:
    """value as an int32 array; ValueError for anything but integers (nothing is rounded) that fit."""
    if not isinstance(value, Tracer):
        known = np.asarray(value)
        if np.issubdtype(known.dtype, np.integer) and (known != known.astype(np.int32)).any():
            raise ValueError(f"{who}: {name} = {value}, expected 32-bit integers")
    value = array(who, name, value)
    if not jnp.issubdtype(value.dtype, jnp.integer):
        shown = "an array" if value.ndim else str(value)
        raise ValueError(f"{who}: {name} is {shown} of dtype {value.dtype}, expected integers; nothing is rounded")
    return value.astype(jnp.int32)


def random_key(who: str, key) -> None:
    """ValueError unless key is one jax.random key, typed or, as from PRNGKey, raw."""
    array = isinstance(key, jax.Array)
    typed = array and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0
    if not (typed or (array and key.dtype == jnp.uint32 and key.ndim == 1)):
        got = f"{key.dtype} of shape {key.shape}" if array else repr(key)
        raise ValueError(f"{who} draws random numbers and needs a key, but got {got}; pass one: jax.random.key(0)")


def named(who: str, params, names: Iterable[str], optional: Iterable[str] = ()) -> None:
    """ValueError unless params is a dict with exactly these names, and either all or none of the optional ones."""
    names, optional = sorted(names), sorted(optional)
    expected = f"{names}" + (f" or {sorted(names + optional)}" if optional else "")
    if not isinstance(params, Mapping):
        raise ValueError(f"{who}: params is {kind(params)}, expected a dict with the keys {expected}")
    if set(params) not in (set(names), {*names, *optional}):
        raise ValueError(f"{who}: params has {sorted(map(str, params))}, expected {expected}")


def parameters(who: str, params, names: Iterable[str], optional: Iterable[str] = ()) -> None:
    """ValueError unless params is a dict of floating-point arrays with these names (see `named`)."""
    named(who, params, names, optional)
    for name, p in params.items():
        if not isinstance(p, (jax.Array, np.ndarray, np.generic)):
            raise ValueError(f"{who}: {name} is {kind(p)}, expected an array; make it one with jnp.asarray")
        float_array(who, name, p)


def cotangent(who: str, name: str, dy, like: str, shape: tuple[int, ...], dtype=None) -> jax.Array:
    """dy as an array; ValueError unless it is floating-point and has this shape, the shape of `like`.

    Every backward begins with this: a gradient is never broadcast, and dy may have another precision than y. dtype is
    the one the backward uses; None leaves dy as it is, for loops that convert it piece by piece.
    """
    dy = float_array(who, name, dy)
    same_shape(who, name, dy, like, shape)
    return dy if dtype is None else dy.astype(dtype)


def remember(x: jax.Array) -> jax.Array:
    """An empty array with x's dtype, and x's shape after a first axis of 0: what a cache holds in place of x."""
    return jnp.zeros((0, *x.shape), x.dtype)


def same_shape(who: str, name: str, array, like: str, shape: tuple[int, ...]) -> None:
    """ValueError unless the array has this shape, the shape of `like`: gradients are never broadcast."""
    if jnp.shape(array) != tuple(shape):
        raise ValueError(f"{who}: {name} has shape {jnp.shape(array)}, but {like} has {tuple(shape)}; make them equal")


def kind(value) -> str:
    """What a value is, for an error: "None" or "a list", for example."""
    return "None" if value is None else f"a {type(value).__name__}"
