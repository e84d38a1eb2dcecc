"""Settings from flags, and errors for wrong input as one line."""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from jaxnn._checks import unknown_name
from jaxnn.runs.folder import read_settings
from jaxnn.runs.settings import Settings, flag_name

AnySettings = TypeVar("AnySettings", bound=Settings)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ValueErrors, printed as one line like all others."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see --help")


def parse(prog: str, description: str, defaults: Mapping[str, AnySettings], argv: Sequence[str]) -> AnySettings:
    """The settings from the flags; the others come from the run to resume, or from the model's defaults.

    defaults: the settings to start from, for each --model; without --model, the first.
    """
    first = Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--model", default=next(iter(defaults)))
    first.add_argument("--resume")
    known, _ = first.parse_known_args(argv)
    if known.model not in defaults:
        raise unknown_name("model", known.model, defaults)
    begin = defaults[known.model]
    if known.resume is not None:
        begin = read_settings(Path(known.resume), type(begin))
    parser = Parser(
        prog=prog,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for field in dataclasses.fields(begin):
        default, text = getattr(begin, field.name), field.metadata["help"]
        if default is not None:
            shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
            text += f" (default: {shown!r})" if shown == "\n" else f" (default: {shown})"
        parser.add_argument(
            flag_name(field), type=_reader(field), default=default, metavar=field.name.upper(),
            help=text.replace("%", "%%"),
        )  # fmt: skip
    return type(begin)(**vars(parser.parse_args(argv)))


def _reader(field: dataclasses.Field) -> Callable[[str], Any]:
    """What turns a flag's text into the field's value."""
    if field.metadata["type"] is not None:
        return field.metadata["type"]
    if isinstance(field.default, tuple):
        return _sizes
    return str if field.default is None else type(field.default)


def _sizes(text: str) -> tuple[int, ...]:
    """Sizes from "256,128"; "" is none."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of sizes such as 256,128") from None


def in_one_line(prog: str, command: Callable[[], int]) -> int:
    """The command's exit status; wrong input, a ValueError or an OSError, is one line on stderr and status 2."""
    try:
        return command()
    except (ValueError, OSError) as error:
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        print(f"{prog}: error: {' '.join(str(error).split())}{notes}", file=sys.stderr)
        return 2
