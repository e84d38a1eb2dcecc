"""Parameters split between the plain test command and `pytest -m slow`."""

from collections.abc import Container, Sequence
from typing import Any

import pytest


def one_in(n: int, name: str, values: Sequence[Any], *, first=0, of: Container[Any] | None = None, ids: Any = None):
    """parametrize(name, values), where all but each n-th value are slow; with `of`, only values in it can be slow."""

    def marks(i: int, value: Any) -> list[pytest.MarkDecorator]:
        return [pytest.mark.slow] if (i - first) % n and (of is None or value in of) else []

    each = [pytest.param(value, id=ids and ids(value), marks=marks(i, value)) for i, value in enumerate(values)]
    return pytest.mark.parametrize(name, each)
