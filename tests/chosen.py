"""Parameters split between the plain test command and `pytest -m slow`."""

from collections.abc import Container, Sequence
from typing import Any

import pytest


def one_in(n: int, name: str, values: Sequence[Any], *, first=0, of: Container[Any] | None = None, ids: Any = None):
    """parametrize(name, values), where all but each n-th value are slow; with `of`, only values in it can be slow."""
    return pytest.mark.parametrize(
        name,
        [
            pytest.param(v, id=ids and ids(v), marks=[pytest.mark.slow] if (i - first) % n and (of is None or v in of) else [])
            for i, v in enumerate(values)
        ],
    )
