"""One step of training, as pure functions: loss and gradient, then the optimizer.

No jax.grad: the gradient is the model's own backward of the loss's own derivative.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn._checks import random_key
from jaxnn.layer import Ctx, Layer
from jaxnn.losses import Loss
from jaxnn.optimizers import Optimizer, global_norm


class Batch(NamedTuple):
    """A batch of examples."""

    x: Any  # (batch, ...) what the model takes
    y: Any  # (batch, ...) what the loss takes as y_true
    # One per example in the loss (batch,): 0 is padding, which ctx.mask hides from the layers. Or one per token (batch,
    # time), in the loss only: what need not be predicted may still be read. None: all 1.
    weights: Any = None


class TrainState(NamedTuple):
    """Everything that training carries from step to step."""

    params: Any  # as the model's init returns them
    state: Any  # the model's state (running statistics), () if it has none
    opt_state: Any  # as the optimizer's init returns it
    key: jax.Array  # a typed key; with the epoch it determines every shuffle and every dropout mask to come
    epoch: jax.Array  # () int32, epochs done


class StepRecord(NamedTuple):
    """What one step reports."""

    loss: jax.Array  # () the batch's loss before the update, without the penalty
    gradient_norm: jax.Array  # () the norm of the whole gradient, penalty included, before any clipping
    rate: jax.Array  # () the learning rate used


def start(key: jax.Array, model: Layer, optimizer: Optimizer, in_shape: tuple[int, ...]) -> TrainState:
    """The state before the first step: parameters drawn with the key. in_shape includes the batch axis, of any size."""
    random_key("start", key)
    return _start(key, model, optimizer, tuple(in_shape))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _start(key, model, optimizer, in_shape):
    init_key, train_key = jax.random.split(key)
    _, params, state = model.init(init_key, in_shape)
    return TrainState(params, state, optimizer.init(params), train_key, jnp.zeros((), jnp.int32))


def loss_and_gradient(model: Layer, loss: Loss, params: Any, state: Any, batch: Batch, ctx: Ctx):
    """(L, new state, ∂L/∂params) of a batch.

    ŷ = model(x),  L = loss(y, ŷ),  ∂L/∂params = model.backward(∂L/∂ŷ)
    """
    with jax.named_scope("forward"):
        y_pred, state, cache = model.forward(params, state, batch.x, ctx)
    with jax.named_scope("loss"):
        value, dy = (f(batch.y, y_pred, batch.weights) for f in (loss.value, loss.derivative))
    with jax.named_scope("backward"):
        dparams, _ = model.backward(params, cache, dy)
    return value, state, dparams


def train_step(
    model: Layer,
    loss: Loss,
    optimizer: Optimizer,
    train_state: TrainState,
    batch: Batch,
    key: jax.Array,
    penalty: Callable[[Any], Any] | None = None,
) -> tuple[TrainState, StepRecord]:
    """One step: the gradient of the batch, plus that of the penalty, then the optimizer's update.

    key is for this step's random numbers (dropout). penalty(params) is the derivative of a penalty on the parameters,
    such as functools.partial(l2_derivative, lambda_=1e-4). Pure, for use under jit, scan and vmap.
    """
    mask = None if batch.weights is None or batch.weights.ndim > 1 else batch.weights.astype(bool)
    ctx = Ctx(train=True, key=key, mask=mask)
    value, state, grads = loss_and_gradient(model, loss, train_state.params, train_state.state, batch, ctx)
    if penalty is not None:
        grads = jax.tree.map(jnp.add, grads, penalty(train_state.params))
    record = StepRecord(value, global_norm(grads), optimizer.rate(train_state.opt_state))
    with jax.named_scope("optimizer"):
        params, opt_state = optimizer.update(train_state.params, grads, train_state.opt_state)
    return train_state._replace(params=params, state=state, opt_state=opt_state), record
