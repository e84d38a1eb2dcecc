"""What a row of `benchmarks.fused` is."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Case(NamedTuple):
    """Two functions of the same arguments with the same results: a value and its gradients, or a gradient alone."""

    ours: Callable[..., Any]  # by the hand-written backward
    plain: Callable[..., Any]  # by jax.grad of the forward as one would write it
    arguments: Callable[[], tuple]  # makes the arguments, arrays: anything closed over would be a constant for XLA


class Row(NamedTuple):
    """A line of the table."""

    name: str
    size: str
    build: Callable[[], Case]  # made from module-level functions: it goes to another process
    timed: bool = True  # False: it is only compiled, and its arguments are never made
    unit: tuple[str, int] = ("MiB", 2**20)  # the temporaries are shown in these: a name and its bytes
