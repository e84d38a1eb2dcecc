"""The settings of a training script: a frozen dataclass, and a command line made from it."""

import argparse
import dataclasses
import sys
from collections.abc import Callable
from typing import Any, NoReturn


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


def parse(description: str, defaults: Config, argv: list[str] | None = None) -> Config:
    """The command line as a Config."""
    parser = Parser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for field in dataclasses.fields(Config):
        default = getattr(defaults, field.name)
        kind: Callable[[str], Any] = sizes if field.name == "layers" else str if default is None else type(default)
        shown = ",".join(map(str, defaults.layers)) if field.name == "layers" else default
        parser.add_argument(f"--{field.name}", type=kind, default=shown, **field.metadata)
    return Config(**vars(parser.parse_args(argv)))


def exit_with_one_line(main: Callable[[], int | None]) -> None:
    """Run main; wrong input, which is a ValueError or an OSError, becomes one line on stderr and exit status 2."""
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        print(f"error: {' '.join(str(error).split())}{notes}", file=sys.stderr)
        sys.exit(2)
