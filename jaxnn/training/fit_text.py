"""Training a language model on a text, as a generator; and the model's loss on a text.

A text is its ids, (n,) integers. The model takes windows of them, (B, T), and gives logits (B, T, V) of the id that
follows each.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn._checks import whole
from jaxnn.layer import Ctx, Layer
from jaxnn.losses import get_loss
from jaxnn.optimizers import Optimizer
from jaxnn.training.loop import Step, require_finite, run_steps
from jaxnn.training.step import Batch, TrainState

LOSS = get_loss("softmax_cross_entropy_with_integer_labels")


class RoundRecord(NamedTuple):
    """What a round of steps reports."""

    step: int  # steps done
    loss: float  # mean over the steps, in nats per id
    gradient_norm: float  # mean over the steps, before clipping
    rate: float  # the learning rate of the last step
    train_state: TrainState  # after the steps; the next round does not overwrite it


@dataclasses.dataclass(frozen=True)
class Windows:
    """A batch of windows of a text, for `run_steps`: data the ids (n,); chosen where they start (batch,)."""

    length: int

    def __call__(self, data: jax.Array, chosen: jax.Array) -> Batch:
        ids = data[chosen[:, None] + jnp.arange(self.length + 1)[None]]
        return Batch(x=ids[:, :-1], y=ids[:, 1:])


def fit_text(
    model: Layer,
    ids: Any,
    train_state: TrainState,
    *,
    optimizer: Optimizer,
    steps: int,
    window: int,
    batch_size: int,
    every: int = 100,
) -> Iterator[RoundRecord]:
    """Train until `steps` steps are done, with a `RoundRecord` after each `every` of them; opt_state counts them.

        for record in fit_text(model, ids, start(key, model, optimizer, (1, window)), optimizer=…, …):
            print(record.step, record.loss)

    A step minimises the cross-entropy, in nats, of the next id in batch_size windows from random places in the ids; a
    round of steps is one compiled call. The same train_state and arguments give the same numbers, so starting from a
    record's train_state continues the same training.

    Raises ValueError before the first step for sizes below 1 and for a text that is no longer than a window, and
    `Diverged` when a loss, gradient or parameter is no longer finite.
    """
    for name, value in {"steps": steps, "window": window, "batch_size": batch_size, "every": every}.items():
        whole("fit_text", name, value, least=1)
    _require_windows("fit_text", ids, window)
    step, batch_of, text = Step(model, LOSS, optimizer), Windows(window), jnp.asarray(ids)
    while (done := int(train_state.opt_state.step)) < steps:
        key = jax.random.fold_in(train_state.key, done)
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        starts = rng.integers(0, len(ids) - window, (min(every, steps - done), batch_size)).astype(np.int32)
        after, records = run_steps(step, batch_of, jax.tree.map(jnp.copy, train_state), text, starts, key)
        require_finite(records, after, train_state, f"step {{}} of {steps}", first=done + 1)
        train_state = after
        yield RoundRecord(
            step=done + len(starts),
            loss=float(np.mean(np.asarray(records.loss, np.float64))),
            gradient_norm=float(np.mean(np.asarray(records.gradient_norm, np.float64))),
            rate=float(records.rate[-1]),
            train_state=train_state,
        )


def evaluate_text(
    model: Layer, params: Any, state: Any, ids: Any, *, window: int, batch_size: int, batches: int | None = None
) -> float:
    """The loss in nats per id, over adjacent windows; or over `batches` batches of them, spread over the text.

    Ids after the last whole window are left out. Raises ValueError for a text that is no longer than a window.
    """
    _require_windows("evaluate_text", ids, window)
    starts = np.arange(0, len(ids) - window, window)
    if batches is not None and batches * batch_size < len(starts):
        starts = starts[np.linspace(0, len(starts) - 1, batches * batch_size).astype(int)]
    text, total = jnp.asarray(ids), 0.0
    for i in range(0, len(starts), batch_size):
        chosen = np.resize(starts[i : i + batch_size], batch_size).astype(np.int32)
        weights = (np.arange(batch_size) < len(starts) - i).astype(np.float32)
        total += float(_loss(model, Windows(window), params, state, text, chosen, weights)) * float(weights.sum())
    return total / len(starts)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _loss(model, batch_of, params, state, text, starts, weights):
    x, y, _ = batch_of(text, starts)
    logits, _, _ = model.forward(params, state, x, Ctx())
    return LOSS.value(y, logits, weights)


def _require_windows(who: str, ids: Any, window: int) -> None:
    if np.ndim(ids) != 1 or len(ids) <= window:
        raise ValueError(f"{who}: ids have shape {np.shape(ids)}, expected (n,) with n > window = {window}; choose a "
                         f"smaller window or a longer text")  # fmt: skip
