"""The settings of a training script: a frozen dataclass, and a command line made from it."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that determines a run, one field a flag."""

    data: str = dataclasses.field(
        default="digits",
        metadata={"help": "digits; moons, circles, spirals, xor or blobs; a folder of IDX files; a .csv or .npz file"},
    )
    label: str | None = dataclasses.field(
        default=None, metadata={"help": "CSV only: the column to predict (default: the last)"}
    )
    task: str = dataclasses.field(
        default="auto",
        metadata={
            "help": "CSV and NPZ: what to predict; auto looks at the labels",
            "choices": ("auto", "classification", "regression"),
        },
    )
    layers: tuple[int, ...] = dataclasses.field(
        default=(256, 128), metadata={"help": "sizes of the hidden layers, such as 256,128; empty for none"}
    )
    activation: str = dataclasses.field(default="relu", metadata={"help": "of the hidden layers"})
    initializer: str = dataclasses.field(default="he_normal", metadata={"help": "of the weights"})
    loss: str = dataclasses.field(
        default="auto", metadata={"help": "auto: softmax cross-entropy for classes, mse for numbers"}
    )
    optimizer: str = dataclasses.field(default="adam", metadata={"help": "by name"})
    rate: float = dataclasses.field(default=1e-3, metadata={"help": "the learning rate"})
    schedule: str = dataclasses.field(default="cosine", metadata={"help": "of the learning rate over the steps"})
    batch: int = dataclasses.field(default=128, metadata={"help": "examples in a batch"})
    epochs: int = dataclasses.field(default=10, metadata={"help": "passes over the training data"})
    l2: float = dataclasses.field(default=0.0, metadata={"help": "strength of the L2 penalty on the weights"})
    dropout: float = dataclasses.field(default=0.0, metadata={"help": "probability of dropping a hidden neuron"})
    seed: int = dataclasses.field(default=0, metadata={"help": "of the split, the weights and all else that is random"})
    out: str | None = dataclasses.field(
        default=None, metadata={"help": "the run folder (default: the next free runs/NAME-N)"}
    )
    resume: str | None = dataclasses.field(
        default=None, metadata={"help": "the folder of a run to go on with; other flags change its settings"}
    )


AnyConfig = TypeVar("AnyConfig", bound=Config)


def sizes(text: str) -> tuple[int, ...]:
    """Hidden sizes from "256,128"; "" is none."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of sizes such as 256,128") from None


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ValueErrors, one line like all others of these scripts."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see --help")


def parse(description: str, defaults: AnyConfig, argv: list[str] | None = None) -> AnyConfig:
    """The command line as a Config: of the kind of the defaults, which are replaced by the settings of a run to go on
    with.
    """
    first = Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--resume")
    known, _ = first.parse_known_args(argv)
    if known.resume is not None:
        defaults = settings_of(Path(known.resume), type(defaults))
    parser = Parser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    for field in dataclasses.fields(defaults):
        default = getattr(defaults, field.name)
        several = isinstance(default, tuple)
        kind: Callable[[str], Any] = sizes if several else str if default is None else type(default)
        shown = ",".join(map(str, default)) if several else default
        parser.add_argument(f"--{field.name}", type=kind, default=shown, **field.metadata)
    return type(defaults)(**vars(parser.parse_args(argv)))


AnySettings = TypeVar("AnySettings")


def settings_of(folder: Path, kind: type[AnySettings]) -> AnySettings:
    """The settings of a run, from its folder."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"--resume {folder}: there is no {path}; expected the folder of a run of this script")
    try:
        fields = json.loads(path.read_text())
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not the settings of a run of this script ({error})") from error


def exit_with_one_line(main: Callable[[], int | None]) -> None:
    """Run main; wrong input, which is a ValueError or an OSError, becomes one line on stderr and exit status 2."""
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        print(f"error: {' '.join(str(error).split())}{notes}", file=sys.stderr)
        sys.exit(2)
