"""Everything that determines a run: frozen dataclasses, one field per command-line flag.

A field's metadata say what the flag needs: "help"; "type" where the default does not imply it; "check", which raises a
ValueError for a wrong value; or "table", which must contain the value.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection
from typing import Any

from jaxnn._checks import fraction, non_negative, positive, unknown_name, whole
from jaxnn.activations import ACTIVATIONS
from jaxnn.initializers import INITIALIZERS
from jaxnn.optimizers import OPTIMIZERS
from jaxnn.schedules import SCHEDULES

at_least_1 = functools.partial(whole, least=1)


def _seed(who: str, name: str, value: int) -> None:
    if not 0 <= value < 2**32:
        raise ValueError(f"{who}: {name} = {value}, expected a whole number from 0 to {2**32 - 1}")


def _filled(who: str, name: str, value: str) -> None:
    if not value:
        raise ValueError(f"{who}: {name} is empty")


def _sizes(who: str, name: str, values: tuple[int, ...]) -> None:
    for value in values:
        at_least_1(who, name, value)


def flag(
    default: Any,
    help: str,
    *,
    check: Callable[[str, str, Any], None] | None = None,
    table: Collection[str] | None = None,
    type: Callable[[str], Any] | None = None,
) -> Any:
    """A field of settings."""
    return dataclasses.field(default=default, metadata={"help": help, "check": check, "table": table, "type": type})


def flag_name(field: dataclasses.Field) -> str:
    """What a field is called on the command line.

    >>> [flag_name(field) for field in dataclasses.fields(Settings)]
    ['--data', '--seed', '--out', '--resume']
    """
    return "--" + field.name.replace("_", "-")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What every run has. ValueError for a field whose value is wrong whatever the data."""

    data: str = flag("", "what to train on", check=_filled)
    seed: int = flag(0, "of everything random: the weights, the order of the data, a split", check=_seed)
    out: str | None = flag(None, "the run folder (default: the next free runs/NAME-N)")
    resume: str | None = flag(None, "the folder of a run to resume; other flags change its settings")

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, check, table = getattr(self, field.name), field.metadata["check"], field.metadata["table"]
            if table is not None and value not in table:
                raise unknown_name(field.name, value, table)
            if check is not None and value is not None:
                check("the settings", flag_name(field), value)
        if self.resume is not None and self.out is not None:
            raise ValueError("--resume continues in the run's own folder; leave out --out")


@dataclasses.dataclass(frozen=True)
class ExampleSettings(Settings):
    """A run on examples: images, points, rows of a table."""

    data: str = flag(
        "digits",
        "digits; moons, circles, spirals, xor or blobs; a folder of IDX files; a .csv or .npz file",
        check=_filled,
    )
    label: str | None = flag(None, "CSV only: the column to predict (default: the last)")
    task: str = flag(
        "auto",
        "CSV and NPZ: classification or regression; auto looks at the labels",
        table=("auto", "classification", "regression"),
    )
    model: str = flag("mlp", "mlp or, for images, cnn", table=("mlp", "cnn"))
    channels: tuple[int, ...] = flag(
        (24, 48, 96), "cnn only: channels of the convolutions, each followed by pooling to half the size", check=_sizes
    )
    layers: tuple[int, ...] = flag(
        (256, 128), "sizes of the hidden dense layers, such as 256,128; empty for none", check=_sizes
    )
    activation: str = flag("relu", "of the hidden layers", table=ACTIVATIONS)
    initializer: str = flag("he_normal", "of the weights", table=INITIALIZERS)
    dropout: float = flag(0.0, "probability of dropping a hidden neuron", check=fraction)
    loss: str = flag("auto", "auto is softmax cross-entropy for classes, mse for numbers")
    optimizer: str = flag("adam", "by name", table=OPTIMIZERS)
    rate: float = flag(1e-3, "the learning rate", check=positive)
    schedule: str = flag("cosine", "of the learning rate over the steps", table=SCHEDULES)
    batch: int = flag(128, "examples in a batch", check=at_least_1)
    epochs: int = flag(10, "passes over the training data", check=at_least_1)
    l2: float = flag(0.0, "strength of the L2 penalty on the weights", check=non_negative)


@dataclasses.dataclass(frozen=True)
class TextSettings(Settings):
    """A run on a text."""

    data: str = flag("stdlib", "a file; a folder; or stdlib, the sources of Python's standard library", check=_filled)
    level: str = flag("byte", "what the model reads: byte or character", table=("byte", "character"))
    model: str = flag("gpt", "gpt or lstm", table=("gpt", "lstm"))
    width: int = flag(128, "features, or units of the LSTM", check=at_least_1)
    layers: int = flag(4, "blocks, or stacked LSTMs", check=at_least_1)
    heads: int = flag(4, "gpt only: attention heads", check=at_least_1)
    dropout: float = flag(0.0, "probability of dropping a feature", check=fraction)
    window: int = flag(128, "how many bytes or characters the model sees", check=at_least_1)
    batch: int = flag(16, "windows in a step", check=at_least_1)
    steps: int = flag(1500, "training steps", check=at_least_1)
    every: int = flag(100, "steps between reports", check=at_least_1)
    rate: float = flag(
        5e-3,
        "the highest learning rate; it rises for a twentieth of the steps, then falls as a cosine",
        check=positive,
    )
    weight_decay: float = flag(0.1, "of adamw", check=non_negative)
    prompt: str = flag("\n", "what the sample continues", check=_filled)
    length: int = flag(600, "bytes or characters of the sample", check=at_least_1)
    temperature: float = flag(
        0.8, "of the sample: below 1 prefers the likely, 0 takes the likeliest", check=non_negative
    )
    top_k: int | None = flag(None, "draw the sample only from this many of the likeliest", check=at_least_1, type=int)
