"""A run's folder: config.json, metrics.jsonl, train_state.npz, params.npz, and what the run adds, such as figures.

An existing run is never overwritten: a run gets a new folder, or is resumed in its own.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from jaxnn.runs.settings import Settings
from jaxnn.training import Diverged, TrainState, load_tree, save_tree

AnySettings = TypeVar("AnySettings", bound=Settings)
METRICS = "metrics.jsonl"


def read_settings(folder: Path, kind: type[AnySettings]) -> AnySettings:
    """The settings of a run, from its folder."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: there is no {path}; expected the folder of a run of this command")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
        return kind(**values)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not the settings of a run of this command ({error})") from error


def open_folder(settings: Settings, name: str) -> Path:
    """The folder of the run to resume; or a new one, with its settings: --out, or the next free runs/NAME-N."""
    if settings.resume is not None:
        out = Path(settings.resume)
    elif settings.out is not None:
        out = Path(settings.out)
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ValueError(f"--out {out} exists and is not an empty folder; choose another, or --resume it")
    else:
        out = next(p for i in itertools.count(1) if not (p := Path("runs") / f"{name}-{i}").exists())
    out.mkdir(parents=True, exist_ok=True)
    fields = dataclasses.asdict(settings) | {"out": None, "resume": None}
    (out / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    return out


def where_it_stopped(settings: Settings, beginning: TrainState) -> TrainState:
    """The train_state of the run to resume; `beginning` if the run is new."""
    if settings.resume is None:
        return beginning
    return load_tree(Path(settings.resume) / "train_state.npz", beginning)


def record_training(
    out: Path,
    train_state: TrainState,
    records: Iterable[Any],
    describe: Callable[[Any], tuple[dict[str, Any], str]],
    **progress: Any,
) -> tuple[TrainState, int]:
    """Train: describe(record) goes to metrics.jsonl and stdout, record.train_state to the folder.

    Returns the last good train_state, and 0; or 1 if training diverged. `progress` is for the bar.
    """
    status = 0
    with (out / METRICS).open("a", encoding="utf-8") as log:
        try:
            for now in tqdm(records, disable=None, **progress):
                row, line = describe(now)
                train_state = now.train_state
                save_tree(out / "train_state.npz", train_state)
                tqdm.write(line)
                print(json.dumps(_finite(row), allow_nan=False), file=log, flush=True)
        except KeyboardInterrupt:
            tqdm.write("stopped; the run folder holds everything that was reported")
        except Diverged as error:
            tqdm.write(f"diverged: {error}")
            train_state, status = error.train_state, 1
    return train_state, status


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """What the run recorded, in all its sessions."""
    return [json.loads(row) for row in (out / METRICS).read_text(encoding="utf-8").splitlines()]


def show_folder(out: Path) -> None:
    """Say what is in the folder."""
    print(f"run folder {out}: {', '.join(sorted(p.name for p in out.iterdir()))}")


def _finite(value: Any) -> Any:
    """The same with null for numbers that JSON lacks (R² of labels that are all equal, for example)."""
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
