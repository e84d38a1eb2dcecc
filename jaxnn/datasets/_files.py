"""The first step of every file reader: find the file."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path


def existing_file(path: str | os.PathLike[str]) -> Path:
    """The path of a file that exists and is readable; FileNotFoundError or ValueError otherwise."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, expected a file")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; {_nearby(path)}")
    if not os.access(path, os.R_OK):
        raise ValueError(f"{path}: no permission to read it; change it with chmod u+r, or name another file")
    return path


def _nearby(path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no folder {path.parent} either (looked from {Path.cwd()})"
    near = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1)
    return f"did you mean {path.parent / near[0]}?" if near else f"looked in {path.parent.resolve()}"


def some(names: Sequence[str]) -> str:
    """The first ten names, in quotes."""
    more = [f"… and {len(names) - 10} more"] if len(names) > 10 else []
    return ", ".join([repr(name) for name in names[:10]] + more) or "nothing"
