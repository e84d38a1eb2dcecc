"""Train a language model on a text and let it write: `python scripts/train_text.py`.

Every gradient is calculated by the library's own backward passes. The default text is the source code of Python's
standard library, of which the last tenth is held out. Prints how many bits the model needs for a byte of that, beside
what a trigram model needs, and writes a run folder: settings, metrics, parameters, curves, a sample.

python scripts/train_text.py --data FILE-OR-FOLDER            any text
python scripts/train_text.py --model lstm                     a recurrent network for comparison
python scripts/train_text.py --resume runs/text-1             go on with a run that was stopped
python scripts/train_text.py --resume runs/text-1 --temperature 0.5        ... or let a finished one write again
"""

import argparse
import dataclasses
import itertools
import json
import time
from pathlib import Path

import jax
import numpy as np
from _config import Parser, exit_with_one_line, settings_of
from _text import Ids, mean_loss, rounds, trigram_bits

from jaxnn import datasets, models, plots
from jaxnn._checks import non_negative, unknown_name, whole
from jaxnn.layer import Layer
from jaxnn.optimizers import Optimizer, adamw, clip_by_global_norm, is_weight
from jaxnn.schedules import warmup_cosine
from jaxnn.training import TrainState, load_tree, save_tree, start


def _flag(default, help: str, **more):
    return dataclasses.field(default=default, metadata={"help": help} | more)


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that determines a run, one field a flag."""

    data: str = _flag("stdlib", "a file; a folder; or stdlib, the sources of Python's standard library")
    level: str = _flag("byte", "what the model reads", choices=("byte", "character"))
    model: str = _flag("gpt", "gpt or lstm")
    width: int = _flag(128, "features, or units of the LSTM")
    layers: int = _flag(4, "blocks, or LSTMs one on the other")
    heads: int = _flag(4, "of the attention; gpt only")
    dropout: float = _flag(0.0, "probability of dropping a feature")
    window: int = _flag(128, "how many bytes or characters the model sees")
    batch: int = _flag(16, "windows in a step")
    steps: int = _flag(1500, "of training")
    every: int = _flag(100, "steps from one report to the next")
    rate: float = _flag(5e-3, "the highest learning rate; rises for a twentieth of the steps, then falls as a cosine")
    weight_decay: float = _flag(0.1, "of adamw")
    seed: int = _flag(0, "of the weights and all else that is random")
    prompt: str = _flag("\n", "what the sample goes on from")
    length: int = _flag(600, "bytes or characters of the sample")
    temperature: float = _flag(0.8, "of the sample: below 1 prefers the likely, 0 takes the likeliest")
    top_k: int | None = _flag(None, "draw the sample from the so many likeliest only", type=int)
    out: str | None = _flag(None, "the run folder (default: the next free runs/text-N)", type=str)
    resume: str | None = _flag(None, "the folder of a run to go on with; other flags change its settings", type=str)


DEFAULTS = {"gpt": Config(), "lstm": Config(model="lstm", width=256, layers=1, rate=5e-3)}


def parse(argv: list[str] | None) -> Config:
    """The command line as a Config: its defaults are those of the model, or the settings of the run that goes on."""
    first = Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--model", default="gpt")
    first.add_argument("--resume")
    known, _ = first.parse_known_args(argv)
    if known.model not in DEFAULTS:
        raise unknown_name("model", known.model, DEFAULTS)
    defaults = DEFAULTS[known.model] if known.resume is None else settings_of(Path(known.resume), Config)
    parser = Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    for field in dataclasses.fields(Config):
        default = getattr(defaults, field.name)
        options = {"type": type(default), "default": default} | field.metadata
        if default is not None:
            options["help"] += f" (default: {default!r})"
        parser.add_argument(f"--{field.name.replace('_', '-')}", **options)
    return Config(**vars(parser.parse_args(argv)))


def main(argv: list[str] | None = None) -> int:
    return run(parse(argv))


def run(config: Config) -> int:
    """Train, print a line every so many steps, write the run folder; 0, or 1 if training diverged."""
    check(config)
    text, vocabulary, train, held_out = read(config)
    model, optimizer = make_model(config, len(vocabulary.symbols)), make_optimizer(config)
    prompt = vocabulary.encode(config.prompt.encode())
    out = make_run_folder(config) if config.resume is None else Path(config.resume)
    train_state = start(jax.random.key(config.seed), model, optimizer, (1, config.window))
    if config.resume is not None:
        train_state = load_tree(out / "train_state.npz", train_state)
    write_settings(out, config, vocabulary)

    n_params = sum(leaf.size for leaf in jax.tree.leaves(train_state.params))
    trigram = trigram_bits(text.train, text.held_out)
    print(f"{len(text.train):,} bytes to learn from, {len(text.held_out):,} held out, {n_params:,} parameters")
    print(f"a byte trigram model: {trigram:.3f} bits per byte on the held-out text", flush=True)

    def measure(train_state: TrainState, n: int | None) -> float:
        params, state = train_state.params, train_state.state
        loss = mean_loss(model, params, state, held_out.ids, config.window, config.batch, n)
        return held_out.bits_per_byte(loss)

    status, began = 0, time.perf_counter()
    try:
        for now in rounds(
            model, optimizer, train_state, train.ids, window=config.window, batch=config.batch, steps=config.steps,
            every=config.every,
        ):  # fmt: skip
            train_state = now.train_state
            record = {
                "step": now.step,
                "bits_per_byte": train.bits_per_byte(now.loss),
                "held_out_bits_per_byte": measure(train_state, 8),
                "rate": now.rate,
                "gradient_norm": now.gradient_norm,
                "seconds": round(time.perf_counter() - began, 1),
            }
            save_tree(out / "train_state.npz", train_state)
            with (out / "metrics.jsonl").open("a") as log:
                print(json.dumps(record), file=log)
            print(line(record, config.steps), flush=True)
    except KeyboardInterrupt:
        print("stopped; the run folder holds the last whole round of steps")
    except FloatingPointError as error:
        print(f"diverged: {error}")
        status = 1

    save_tree(out / "params.npz", {"params": train_state.params, "state": train_state.state})
    draw_curves(out, trigram)
    print(f"held-out text: {config.model} {measure(train_state, None):.3f} bits per byte, trigram {trigram:.3f}")
    sample = write(config, model, train_state, prompt, vocabulary)
    (out / "sample.txt").write_text(sample, encoding="utf-8", newline="")
    print(f"a sample at temperature {config.temperature:g}:\n{sample}")
    print(f"run folder {out}: {', '.join(sorted(p.name for p in out.iterdir()))}")
    return status


def check(config: Config) -> None:
    """ValueError for settings that are wrong whatever the text."""
    if not 0 <= config.seed < 2**32:
        raise ValueError(f"--seed {config.seed}: expected a whole number from 0 to {2**32 - 1}")
    for name in ("width", "layers", "heads", "window", "batch", "steps", "every", "length"):
        whole("the command line", f"--{name}", getattr(config, name), least=1)
    if config.top_k is not None:
        whole("the command line", "--top-k", config.top_k, least=1)
    non_negative("the command line", "--temperature", config.temperature)
    if not config.prompt:
        raise ValueError("--prompt is empty; expected at least one character to go on from")
    if config.resume is not None and config.out is not None:
        raise ValueError("--resume goes on in the run's own folder; leave --out out")


def read(config: Config) -> tuple[datasets.Text, datasets.Vocabulary, Ids, Ids]:
    """The text, its vocabulary, and both parts as ids; ValueError where one is shorter than a window."""
    text = datasets.standard_library() if config.data == "stdlib" else datasets.text_files(config.data)
    by_byte = config.level == "byte"
    vocabulary = datasets.byte_vocabulary() if by_byte else datasets.character_vocabulary(text.train)
    train, held_out = (Ids(vocabulary.encode(part), len(part)) for part in text)
    for name, part in (("training", train), ("held-out", held_out)):
        if len(part.ids) <= config.window:
            raise ValueError(
                f"{config.data}: the {name} part has a length of {len(part.ids)}, expected more than --window "
                f"{config.window}; choose a smaller window or a longer text"
            )
    return text, vocabulary, train, held_out


def make_model(config: Config, vocabulary: int) -> Layer:
    if config.model == "gpt":
        return models.gpt(vocabulary, config.width, config.layers, config.heads, rate=config.dropout)
    return models.lstm(vocabulary, config.width, config.layers, rate=config.dropout)


def make_optimizer(config: Config) -> Optimizer:
    """AdamW on gradients of norm <= 1, its rate a warm-up and a cosine over all steps."""
    schedule = warmup_cosine(config.rate, config.steps, config.steps // 20)
    decays = is_weight if config.model == "lstm" else lambda p: p.ndim > 2  # see models.gpt
    return clip_by_global_norm(adamw(schedule, beta2=0.99, weight_decay=config.weight_decay, decays=decays), 1.0)


def make_run_folder(config: Config) -> Path:
    """A new folder: --out, or the next free runs/text-N. An existing run is never written over."""
    if config.out is not None:
        out = Path(config.out)
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ValueError(f"--out {out} exists and is not an empty folder; choose another, or --resume it")
    else:
        out = next(p for i in itertools.count(1) if not (p := Path("runs") / f"text-{i}").exists())
    out.mkdir(parents=True, exist_ok=True)
    return out


def write_settings(out: Path, config: Config, vocabulary: datasets.Vocabulary) -> None:
    """The settings, and the vocabulary, which must not change when a run goes on: an id would mean something else."""
    symbols = b"".join(vocabulary.symbols) if config.level == "character" else b""
    path = out / "vocabulary.txt"
    if symbols and path.exists() and path.read_bytes() != symbols:
        raise ValueError(f"{config.data} has other characters than {path}: go on with the text of that run")
    if symbols:
        path.write_bytes(symbols)
    settings = dataclasses.asdict(config) | {"out": None, "resume": None}
    (out / "config.json").write_text(json.dumps(settings, indent=2) + "\n")


def line(record: dict, steps: int) -> str:
    """One round in one line."""
    return (
        f"step {record['step']:{len(str(steps))}}/{steps}  bits per byte {record['bits_per_byte']:.3f}  "
        f"held out {record['held_out_bits_per_byte']:.3f}  rate {record['rate']:.1e}  {record['seconds']:.1f} s"
    )


def draw_curves(out: Path, trigram: float) -> None:
    """The run's metrics, of all its sessions, as curves.png."""
    if not (out / "metrics.jsonl").exists():
        return
    records = [json.loads(row) for row in (out / "metrics.jsonl").read_text().splitlines()]
    figure = plots.curves(
        [
            {
                "epoch": record["step"],
                "loss": record["bits_per_byte"],
                "validation": {"loss": record["held_out_bits_per_byte"]},
                "rate": record["rate"],
                "gradient_norm": record["gradient_norm"],
            }
            for record in records
        ]
    )
    for ax in figure.axes:
        ax.set_xlabel("step")
    bits = figure.axes[0]
    bits.axhline(trigram, color="0.5", linestyle=":", label="byte trigram")
    bits.set_ylabel("bits per byte")
    bits.legend(frameon=False)
    figure.savefig(out / "curves.png")


def write(
    config: Config, model: Layer, train_state: TrainState, prompt: np.ndarray, vocabulary: datasets.Vocabulary
) -> str:
    """The prompt and how the model goes on from it."""
    ids = models.generate(
        model, train_state.params, train_state.state, jax.random.fold_in(train_state.key, 2**31 - 1), prompt[None],
        config.length, window=config.window, temperature=config.temperature, top_k=config.top_k,
    )  # fmt: skip
    return vocabulary.decode([*prompt, *np.asarray(ids[0])])


if __name__ == "__main__":
    exit_with_one_line(main)
