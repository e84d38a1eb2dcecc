"""What a network predicts for data, and how good that is."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxnn.layer import Ctx, Layer
from jaxnn.losses import Loss
from jaxnn.training.rows import Rows, as_they_are, batches, gather, on_device


def predict(
    model: Layer,
    params: Any,
    state: Any,
    x: Any,
    *,
    batch_size: int = 1024,
    prepare: Callable[[jax.Array], jax.Array] = as_they_are,
) -> jax.Array:
    """The model's outputs (n, ...) for examples x (n, ...), in evaluation mode, batch by batch in one compiled call.

    x is an array, or Rows already on the device. prepare turns a batch of x into what the model takes.
    """
    rows = x if isinstance(x, Rows) else on_device(x)
    n = len(rows.words)
    if n == 0:
        raise ValueError(f"predict: x has shape {rows.empty.shape}, expected at least one example")
    indices, _ = batches(n, min(batch_size, n))
    return _predict(model, prepare, params, state, rows, indices)[:n]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _predict(model, prepare, params, state, rows, indices):
    def body(_, batch):
        y, _, _ = model.forward(params, state, prepare(gather(rows, batch)), Ctx())
        return None, y

    _, y = jax.lax.scan(body, None, indices)
    return y.reshape(-1, *y.shape[2:])


def evaluate(
    model: Layer,
    params: Any,
    state: Any,
    data: tuple[Any, Any],
    loss: Loss,
    metrics: Mapping[str, Callable[[Any, Any], Any]] | None = None,
    *,
    batch_size: int = 1024,
    prepare: Callable[[jax.Array], jax.Array] = as_they_are,
) -> dict[str, float]:
    """The loss over data = (x, y), under "loss", and each metric under its name.

    A metric is a function (y_true, y_pred) -> number over all examples, such as `accuracy`.
    """
    x, y = data
    y_pred = predict(model, params, state, x, batch_size=batch_size, prepare=prepare)
    values = {"loss": _loss_value(loss, y, y_pred)}
    values |= {name: metric(np.asarray(y), np.asarray(y_pred)) for name, metric in (metrics or {}).items()}
    return {name: float(value) for name, value in values.items()}


@functools.partial(jax.jit, static_argnums=0)
def _loss_value(loss, y_true, y_pred):
    return loss.value(y_true, y_pred)
