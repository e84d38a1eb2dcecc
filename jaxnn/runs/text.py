"""A run on a text, from settings to a sample: `jaxnn train-text`."""

import math
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxnn import datasets, models, plots
from jaxnn.layer import Layer
from jaxnn.optimizers import Optimizer, adamw, clip_by_global_norm, is_weight
from jaxnn.runs.folder import open_folder, read_metrics, record_training, show_folder, where_it_stopped
from jaxnn.runs.settings import TextSettings
from jaxnn.schedules import warmup_cosine
from jaxnn.training import RoundRecord, TrainState, bits_per_byte, evaluate_text, fit_text, save_tree, start

# The settings that a command starts from, for each model.
DEFAULTS = {"gpt": TextSettings(), "lstm": TextSettings(model="lstm", width=256, layers=1)}


class Data(NamedTuple):
    """A text, and both of its parts as ids."""

    text: datasets.Text
    vocabulary: datasets.Vocabulary
    train: np.ndarray  # (n,) ids
    held_out: np.ndarray  # (m,) ids

    def train_bits(self, nats: float) -> float:
        """Bits per byte of the training part, from nats per id."""
        return bits_per_byte(nats, len(self.train), len(self.text.train))

    def held_out_bits(self, nats: float) -> float:
        """Bits per byte of the held-out part, from nats per id."""
        return bits_per_byte(nats, len(self.held_out), len(self.text.held_out))


def run(settings: TextSettings) -> int:
    """Train, print one line per round of steps, write the run folder; 0, or 1 if training diverged."""
    data = load(settings)
    n_symbols = len(data.vocabulary.symbols)
    model, optimizer = make_model(settings, n_symbols), make_optimizer(settings)
    prompt = data.vocabulary.encode(settings.prompt.encode())
    beginning = start(jax.random.key(settings.seed), model, optimizer, (1, settings.window))
    train_state = where_it_stopped(settings, beginning)
    out = open_folder(settings, "text")
    write_vocabulary(out, settings, data.vocabulary)

    n_params = sum(leaf.size for leaf in jax.tree.leaves(train_state.params))
    trigram = datasets.trigram_bits(data.text)
    train, held_out = map(len, data.text)
    print(f"{train:,} bytes to learn from, {held_out:,} held out, {n_params:,} parameters")
    print(f"a byte trigram model: {trigram:.3f} bits per byte on the held-out text", flush=True)
    began = time.perf_counter()

    def measure(train_state: TrainState, batches: int | None) -> float:
        nats = evaluate_text(
            model, train_state.params, train_state.state, data.held_out,
            window=settings.window, batch_size=settings.batch, batches=batches,
        )  # fmt: skip
        return data.held_out_bits(nats)

    def describe(record: RoundRecord) -> tuple[dict, str]:
        row = {
            "step": record.step,
            "bits_per_byte": data.train_bits(record.loss),
            "held_out_bits_per_byte": measure(record.train_state, 8),
            "rate": record.rate,
            "gradient_norm": record.gradient_norm,
            "seconds": round(time.perf_counter() - began, 1),
        }
        return row, line(row, settings.steps)

    rounds = fit_text(
        model, data.train, train_state, optimizer=optimizer, steps=settings.steps, window=settings.window,
        batch_size=settings.batch, every=settings.every,
    )  # fmt: skip
    done = int(train_state.opt_state.step) // settings.every
    total = math.ceil(settings.steps / settings.every)
    train_state, status = record_training(out, train_state, rounds, describe, initial=done, total=total, unit="round")

    save_tree(out / "params.npz", {"params": train_state.params, "state": train_state.state})
    draw_curves(out, trigram)
    print(f"held-out text: {settings.model} {measure(train_state, None):.3f} bits per byte, trigram {trigram:.3f}")
    sample = write(settings, model, train_state, prompt, data.vocabulary)
    (out / "sample.txt").write_text(sample, encoding="utf-8", newline="")
    print(f"a sample at temperature {settings.temperature:g}:\n{sample}")
    show_folder(out)
    return status


def load(settings: TextSettings) -> Data:
    """The text, its vocabulary, and both parts as ids; ValueError if either is shorter than a window.

    A resumed run must have the vocabulary it had, or its ids would mean something else: ValueError.
    """
    text = datasets.standard_library() if settings.data == "stdlib" else datasets.text_files(settings.data)
    by_byte = settings.level == "byte"
    vocabulary = datasets.byte_vocabulary() if by_byte else datasets.character_vocabulary(text.train)
    data = Data(text, vocabulary, *map(vocabulary.encode, text))
    for name, ids in (("training", data.train), ("held-out", data.held_out)):
        if len(ids) <= settings.window:
            raise ValueError(
                f"{settings.data}: the {name} part has a length of {len(ids)}, expected more than --window "
                f"{settings.window}; choose a smaller window or a longer text"
            )
    if settings.resume is not None:
        path = Path(settings.resume) / "vocabulary.txt"
        if path.exists() and path.read_bytes() != b"".join(vocabulary.symbols):
            raise ValueError(f"{settings.data} has other characters than {path}: resume with the text of that run")
    return data


def write_vocabulary(out: Path, settings: TextSettings, vocabulary: datasets.Vocabulary) -> None:
    """Write the characters that the ids stand for; bytes stand for themselves."""
    if settings.level == "character":
        (out / "vocabulary.txt").write_bytes(b"".join(vocabulary.symbols))


def make_model(settings: TextSettings, vocabulary: int) -> Layer:
    if settings.model == "gpt":
        return models.gpt(vocabulary, settings.width, settings.layers, settings.heads, dropout=settings.dropout)
    return models.lstm(vocabulary, settings.width, settings.layers, dropout=settings.dropout)


def make_optimizer(settings: TextSettings) -> Optimizer:
    """AdamW on gradients clipped to norm 1, its rate a warm-up and a cosine over all steps."""
    schedule = warmup_cosine(settings.rate, settings.steps, settings.steps // 20)
    decays = is_weight if settings.model == "lstm" else lambda p: p.ndim > 2  # see models.gpt
    return clip_by_global_norm(adamw(schedule, beta2=0.99, weight_decay=settings.weight_decay, decays=decays), 1.0)


def line(row: dict, steps: int) -> str:
    """One round as one line."""
    return (
        f"step {row['step']:{len(str(steps))}}/{steps}  bits per byte {row['bits_per_byte']:.3f}  "
        f"held out {row['held_out_bits_per_byte']:.3f}  rate {row['rate']:.1e}  {row['seconds']:.1f} s"
    )


def draw_curves(out: Path, trigram: float) -> None:
    """Draw the run's metrics, from all its sessions, as curves.png."""
    rows = read_metrics(out)
    if not rows:
        return
    figure = plots.curves(
        [
            {
                "step": row["step"],
                "loss": row["bits_per_byte"],
                "validation": {"loss": row["held_out_bits_per_byte"]},
                "rate": row["rate"],
                "gradient_norm": row["gradient_norm"],
            }
            for row in rows
        ]
    )
    bits = figure.axes[0]
    bits.axhline(trigram, color="0.5", linestyle=":", label="byte trigram")
    bits.set_ylabel("bits per byte")
    bits.legend(frameon=False)
    figure.savefig(out / "curves.png")


def write(
    settings: TextSettings, model: Layer, train_state: TrainState, prompt: np.ndarray, vocabulary: datasets.Vocabulary
) -> str:
    """The prompt and the model's continuation."""
    ids = models.generate(
        model, train_state.params, train_state.state, jax.random.fold_in(train_state.key, 2**31 - 1), prompt[None],
        settings.length, window=settings.window, temperature=settings.temperature, top_k=settings.top_k,
    )  # fmt: skip
    return vocabulary.decode([*prompt, *np.asarray(ids[0])])
