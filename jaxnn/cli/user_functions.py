"""What a command line names as module:name or path/to/file.py:name, and what to change if it does not exist."""

import difflib
import functools
import importlib
import importlib.machinery
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

IMPORTED = "LOSS, GRAD and INPUTS must be in a module that can be imported on its own"


class CannotRun(Exception):
    """What to change so that the command can run, in one paragraph; with the user's own traceback, if there is one."""


def arguments(spec: str) -> tuple:
    """The tuple that `spec` names, or that the function it names returns."""
    found = _attribute(spec)
    if callable(found):
        found = _users(found, f"calling {spec}()", "--inputs takes a tuple, or a function without arguments")
    if not isinstance(found, tuple):
        raise CannotRun(
            f"--inputs {spec} gave {_described(found)}, expected a tuple of the arguments that loss and grad take: "
            "(params, x, y), say; one argument alone is (params,)"
        )
    if not found:
        raise CannotRun(f"--inputs {spec} gave an empty tuple, expected the arguments of loss and grad: (params, x, y)")
    return found


def function(spec: str) -> Callable:
    """The function that `spec` names."""
    found = _attribute(spec)
    if not callable(found):
        raise CannotRun(f"{spec} is {_described(found)}, expected a function")
    return found


def _described(x: Any) -> str:
    kind = type(x).__name__
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}" if x is not None else "None"


def _attribute(spec: str) -> Any:
    """What module:name or path/to/file.py:name names; name may be dotted."""
    place, colon, name = spec.rpartition(":")
    if not (colon and place and name):
        raise CannotRun(f"{spec!r} names no function; write module:name or file.py:name, such as homework:loss")
    found = _module(place)
    for part in name.split("."):
        if not hasattr(found, part):
            public = [known for known in dir(found) if not known.startswith("_")]
            near = difflib.get_close_matches(part, public, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(public[:20]) or 'nothing public'}"
            raise CannotRun(f"{spec}: {place} has no {part!r}; {hint}")
        found = getattr(found, part)
    return found


def _module(place: str) -> ModuleType:
    if place.endswith(".py"):
        path = Path(place).absolute()
        if not path.is_file():
            raise CannotRun(f"there is no file {place}{_near(path.name, path.parent.glob('*.py'))}")
        return _from_file(path)
    top = place.partition(".")[0]
    try:
        missing = importlib.util.find_spec(top) is None
    except (ImportError, ValueError):
        missing = True
    if missing:
        near = _near(top, (Path(p.stem) for p in Path.cwd().glob("*.py")))
        raise CannotRun(f"there is no module {top!r} in {Path.cwd()} or among the installed packages{near}. "
                        "Go to the folder of your file, or name the file: path/to/file.py:loss")  # fmt: skip
    return _users(lambda: importlib.import_module(place), f"importing {place}", IMPORTED)


@functools.cache
def _from_file(path: Path) -> ModuleType:
    """The file as a module, loaded once so that LOSS and GRAD share it; it can import its neighbours."""
    sys.path.insert(0, str(path.parent))
    name = f"_verified_{path.stem}"  # not its bare name: a random.py must not replace Python's
    loader = importlib.machinery.SourceFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look it up
    _users(lambda: loader.exec_module(module), f"importing {path.name}", IMPORTED)
    return module


def _near(name: str, paths: Iterable[Path]) -> str:
    near = difflib.get_close_matches(name, [path.name for path in paths], n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _users(call: Callable[[], Any], doing: str, expected: str) -> Any:
    """The result of the user's code. If it raises: their traceback, without our frames, and what was being done."""
    try:
        return call()
    except (Exception, SystemExit) as error:
        ours = (__file__, importlib.__file__)
        frames = [f for f in traceback.extract_tb(error.__traceback__)
                  if f.filename not in ours and not f.filename.startswith("<frozen importlib")]  # fmt: skip
        shown = "".join(traceback.format_list(frames) + traceback.format_exception_only(error))
        raise CannotRun(f"{doing} failed; {expected}. It raised:\n{shown.rstrip()}") from None
