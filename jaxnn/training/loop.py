"""The training loop: steps in one compiled call, whatever the data.

`fit` uses it for an epoch of examples, `fit_text` for a round of windows of a text.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.layer import Layer
from jaxnn.losses import Loss
from jaxnn.optimizers import Optimizer
from jaxnn.training.step import Batch, StepRecord, TrainState, train_step


@dataclasses.dataclass(frozen=True)
class Step:
    """`train_step` of a model; equal for equal fields, so that training again with them does not recompile."""

    model: Layer
    loss: Loss
    optimizer: Optimizer
    penalty: Callable[[Any], Any] | None = None

    def __call__(self, train_state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, StepRecord]:
        return train_step(self.model, self.loss, self.optimizer, train_state, batch, key, self.penalty)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def run_steps(
    step: Callable[[TrainState, Batch, jax.Array], tuple[TrainState, StepRecord]],
    batch_of: Callable[[Any, Any], Batch],
    train_state: TrainState,
    data: Any,
    chosen: Any,
    key: jax.Array,
) -> tuple[TrainState, StepRecord]:
    """All steps in one compiled call: the train_state after them, and a StepRecord of (steps,) arrays.

    chosen holds arrays (steps, ...): their rows say which part of the data each step uses, and
    batch_of(data, row) makes the batch from it. step(train_state, batch, key) is one step; step i gets fold_in(key, i).
    Compiled once for each pair of step and batch_of, so pass equal ones. The buffers of train_state are given up
    (donated).
    """

    def body(train_state, now):
        i, row = now
        return step(train_state, batch_of(data, row), jax.random.fold_in(key, i))

    n_steps = len(jax.tree.leaves(chosen)[0])
    return jax.lax.scan(body, train_state, (jnp.arange(n_steps), chosen))


class Diverged(FloatingPointError):
    """Training met a loss, a gradient or a parameter that is not finite."""

    def __init__(self, what: str, where: str, train_state: TrainState):
        super().__init__(
            f"{what} at {where}; the last good parameters are kept. Try a smaller rate, a warm-up, "
            f"clip_by_global_norm, or check the data for extreme values"
        )
        self.train_state = train_state  # the last good one: from before the call of `run_steps` that went wrong


def require_finite(records: StepRecord, after: TrainState, before: TrainState, where: str, first: int = 1) -> None:
    """Raise Diverged if a number of the steps, or a parameter after them, is not finite.

    where.format(i) says where in the training step i is, counting from `first`.
    """
    losses, norms = np.asarray(records.loss), np.asarray(records.gradient_norm)
    bad = ~(np.isfinite(losses) & np.isfinite(norms))
    if bad.any():
        i = int(bad.argmax())
        lost = not np.isfinite(losses[i])
        what = f"the loss became {losses[i]}" if lost else "the gradient became infinite or NaN"
        raise Diverged(what, where.format(first + i), before)
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(after.params)):
        raise Diverged("a parameter became infinite or NaN", where.format(first + len(losses) - 1), before)
