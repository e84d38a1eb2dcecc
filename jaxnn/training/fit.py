"""Training over epochs, as a generator: logging, plotting and stopping are the caller's plain Python."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn._checks import whole
from jaxnn.layer import Ctx, Layer
from jaxnn.losses import Loss, get_loss
from jaxnn.optimizers import Optimizer
from jaxnn.training.loop import Step, require_finite, run_steps
from jaxnn.training.predict import evaluate
from jaxnn.training.rows import Rows, as_they_are, batches, gather, on_device, shuffled
from jaxnn.training.step import Batch, TrainState


class EpochRecord(NamedTuple):
    """What one epoch reports."""

    epoch: int  # counted from 1
    loss: float  # mean over the training examples, each at its own step, without the penalty
    validation: dict[str, float]  # "loss" and the metrics, empty without validation data
    rate: float  # the learning rate of the last step
    gradient_norm: float  # mean over the steps
    seconds: float  # of training, without compilation and validation
    examples_per_second: float
    train_state: TrainState  # after the epoch; the next epoch does not overwrite it

    def to_dict(self) -> dict[str, Any]:
        """Everything but the train_state, for JSON."""
        return {name: value for name, value in self._asdict().items() if name != "train_state"}


@dataclasses.dataclass(frozen=True)
class Examples:
    """A batch of examples, for `run_steps`: data (rows, y); chosen (indices, weights), both (batch,)."""

    prepare: Callable[[jax.Array], jax.Array]

    def __call__(self, data: tuple[Rows, jax.Array], chosen: tuple[jax.Array, jax.Array]) -> Batch:
        (rows, y), (indices, weights) = data, chosen
        return Batch(self.prepare(gather(rows, indices)), y[indices], weights)


def fit(
    model: Layer,
    train: tuple[Any, Any],
    train_state: TrainState,
    *,
    loss: str | Loss,
    optimizer: Optimizer,
    epochs: int,
    batch_size: int,
    validation: tuple[Any, Any] | None = None,
    metrics: Mapping[str, Callable[[Any, Any], Any]] | None = None,
    penalty: Callable[[Any], Any] | None = None,
    prepare: Callable[[jax.Array], jax.Array] = as_they_are,
) -> Iterator[EpochRecord]:
    """Train for a number of epochs, yielding an `EpochRecord` after each.

        for record in fit(model, (x, y), start(key, model, optimizer, x.shape), loss=…, …):
            print(record.epoch, record.loss)

    train and validation are (x, y) with n examples each; prepare turns a batch of x into what the model takes (bytes
    into floats, for example). An epoch shuffles, then runs all its steps in one compiled call (a `lax.scan` over
    batches, data on the device, buffers donated). The last batch is filled with examples of weight 0. penalty as in
    `train_step`.

    The same train_state, data and arguments give the same numbers, bit for bit on one backend: all randomness comes
    from train_state.key and the epoch's number, so starting from a record's train_state continues the same training.

    Raises ValueError before the first step if x and y do not fit each other, the model or the loss (labels out of
    range, for example) or contain a number that is not finite, and `Diverged` when a loss, gradient or parameter of the
    training is no longer finite. The validation loss is only reported.
    """
    loss = get_loss(loss)
    whole("fit", "epochs", epochs, least=0)
    whole("fit", "batch_size", batch_size, least=1)
    x, y = train
    n = _require_examples("train", x, y)
    if validation is not None:
        _require_examples("validation", *validation)
    for part in (train, validation):
        if part is not None:
            _require_loss_takes(model, loss, train_state, part, prepare)

    rows, y = on_device(x), jnp.asarray(y)
    if validation is not None:
        validation = on_device(validation[0]), jnp.asarray(validation[1])
    batch_size = min(batch_size, n)
    step, batch_of = Step(model, loss, optimizer, penalty), Examples(prepare)
    compiled = None
    for _ in range(epochs):
        key = jax.random.fold_in(train_state.key, train_state.epoch)
        shuffle_key, step_key = jax.random.split(key)
        indices, weights = batches(n, batch_size, shuffled(shuffle_key, n))
        arguments = (jax.tree.map(jnp.copy, train_state), (rows, y), (indices, weights), step_key)
        if compiled is None:
            compiled = run_steps.lower(step, batch_of, *arguments).compile()
        began = time.perf_counter()
        after, steps = jax.block_until_ready(compiled(*arguments))
        seconds = time.perf_counter() - began
        epoch = int(after.epoch) + 1
        require_finite(steps, after, train_state, f"epoch {epoch}, step {{}} of {len(indices)}")
        train_state = after._replace(epoch=after.epoch + 1)
        measured = {}
        if validation is not None:
            params, state = train_state.params, train_state.state
            measured = evaluate(model, params, state, validation, loss, metrics, prepare=prepare)
        yield EpochRecord(
            epoch=epoch,
            loss=float(np.average(np.asarray(steps.loss, np.float64), weights=weights.sum(1))),
            validation=measured,
            rate=float(steps.rate[-1]),
            gradient_norm=float(np.mean(np.asarray(steps.gradient_norm, np.float64))),
            seconds=seconds,
            examples_per_second=n / seconds,
            train_state=train_state,
        )


def _require_examples(name: str, x: Any, y: Any) -> int:
    """The number of examples; ValueError if there are none or x and y disagree."""
    n = len(x)
    if n == 0 or n != len(y):
        raise ValueError(f"fit: {name} has x of shape {np.shape(x)} and y of shape {np.shape(y)}; they need the same "
                         f"number of examples, at least one")  # fmt: skip
    for part, values in (("x", np.asarray(x)), ("y", np.asarray(y))):
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            where = tuple(map(int, np.argwhere(~np.isfinite(values))[0]))
            raise ValueError(f"fit: {name} has {part}{list(where)} = {values[where]}; drop or fix such examples")
    return n


def _require_loss_takes(model, loss, train_state, data, prepare) -> None:
    """Show the loss all y_true once, outside jit, where it can check the values of the labels."""
    x, y = data
    batch = jax.eval_shape(prepare, jax.ShapeDtypeStruct(np.shape(x), jnp.asarray(x[:1]).dtype))
    out, _, _ = jax.eval_shape(model.forward, train_state.params, train_state.state, batch, Ctx())
    loss.value(jnp.asarray(y), jnp.zeros(out.shape, out.dtype))
