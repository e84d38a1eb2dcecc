"""What train_text.py calculates: windows of a text, steps on them, bits per byte, and the trigram model beside it."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn import get_loss
from jaxnn.layer import Ctx, Layer
from jaxnn.optimizers import Optimizer
from jaxnn.training import Batch, TrainState, train_step
from jaxnn.training.step import StepRecord

LOSS = get_loss("softmax_cross_entropy_with_integer_labels")


class Ids(NamedTuple):
    """A text as a model takes it."""

    ids: np.ndarray  # (n,)
    n_bytes: int  # of the same text

    def bits_per_byte(self, nats: float) -> float:
        """From a loss, in nats for each id, to bits for each byte: comparable whatever an id stands for."""
        return nats / math.log(2) * len(self.ids) / self.n_bytes


# ---------------------------------------------------------------- training


class Round(NamedTuple):
    """What some steps report."""

    step: int  # steps done
    loss: float  # mean over the steps, in nats for each id
    gradient_norm: float  # mean over the steps, before clipping
    rate: float  # the learning rate of the last step
    train_state: TrainState  # after the steps; the next round does not overwrite it


def rounds(
    model: Layer, optimizer: Optimizer, train_state: TrainState, ids: np.ndarray, *,
    window: int, batch: int, steps: int,
    every: int,
) -> Iterator[Round]:  # fmt: skip
    """Train until `steps` steps are done, with a Round after every so many; the optimizer's state counts them.

    A step takes `batch` windows from random places of the ids. The same train_state gives the same numbers, so that
    going on from a round's train_state is going on. A round that leaves a number that is not finite is not the last one
    to be yielded: FloatingPointError.
    """
    step, text = _step(model, optimizer), jnp.asarray(ids)
    while (done := int(train_state.opt_state.step)) < steps:
        key = jax.random.fold_in(train_state.key, done)
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        starts = rng.integers(0, len(ids) - window, (min(every, steps - done), batch)).astype(np.int32)
        train_state, records = run_steps(step, window, jax.tree.map(jnp.copy, train_state), text, starts, key)
        finite = [np.isfinite(leaf).all() for leaf in jax.tree.leaves((records, train_state.params))]
        if not all(finite):
            raise FloatingPointError(f"a number became infinite or NaN between step {done} and {done + len(starts)}; "
                                     f"try a smaller --rate")  # fmt: skip
        yield Round(
            step=done + len(starts),
            loss=float(np.mean(np.asarray(records.loss, np.float64))),
            gradient_norm=float(np.mean(np.asarray(records.gradient_norm, np.float64))),
            rate=float(records.rate[-1]),
            train_state=train_state,
        )


@functools.lru_cache(maxsize=16)
def _step(model, optimizer):
    """The same function for the same arguments, so that going on does not compile again."""
    return functools.partial(train_step, model, LOSS, optimizer)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def run_steps(
    step: Callable[[TrainState, Batch, jax.Array], tuple[TrainState, StepRecord]],
    window: int,
    train_state: TrainState,
    text: jax.Array,
    starts: jax.Array,
    key: jax.Array,
) -> tuple[TrainState, StepRecord]:
    """A step for each row of starts (steps, batch), in one compiled call: where in the text the windows begin."""

    def body(train_state, now):
        i, starts = now
        x, y = next_ids(text, starts, window)
        return step(train_state, Batch(x, y), jax.random.fold_in(key, i))

    return jax.lax.scan(body, train_state, (jnp.arange(len(starts)), starts))


def next_ids(text: jax.Array, starts: jax.Array, window: int) -> tuple[jax.Array, jax.Array]:
    """(ids, the id that comes next after each), both (len(starts), window)."""
    windows = text[starts[:, None] + jnp.arange(window + 1)[None]]
    return windows[:, :-1], windows[:, 1:]


# ---------------------------------------------------------------- measuring


def mean_loss(model: Layer, params: Any, state: Any, ids: np.ndarray, window: int, batch: int, n: int | None) -> float:
    """The loss in nats for each id, in windows side by side; with n, in n batches of them spread over the text."""
    starts = np.arange(0, len(ids) - window, window)
    if n is not None and n * batch < len(starts):
        starts = starts[np.linspace(0, len(starts) - 1, n * batch).astype(int)]
    total = 0.0
    for i in range(0, len(starts), batch):
        chosen = np.resize(starts[i : i + batch], batch).astype(np.int32)
        weights = (np.arange(batch) < len(starts) - i).astype(np.float32)
        total += float(_loss(model, window, params, state, jnp.asarray(ids), chosen, weights)) * float(weights.sum())
    return total / len(starts)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _loss(model, window, params, state, text, starts, weights):
    x, y = next_ids(text, starts, window)
    logits, _, _ = model.forward(params, state, x, Ctx())
    return LOSS.value(y, logits, weights)


def trigram_bits(train: bytes, held_out: bytes, k: float = 30.0) -> float:
    """Bits per byte of a byte trigram model, fitted on `train`, on all of held_out but its first two bytes.

    p_0 = 1/256,  p_n(c | the n - 1 bytes before) = (count(them, c) + k p_(n-1)) / (count(them) + k),  n = 1, 2, 3

    Each distribution is mixed with the next shorter one, the less of it the more often its context was seen. The
    default k is about the best one for the sources of the standard library.
    """
    fitted, measured = (np.frombuffer(text, np.uint8).astype(np.int64) for text in (train, held_out))
    p: np.ndarray = np.full(len(measured) - 2, 1 / 256)
    for n in (1, 2, 3):
        counts: np.ndarray = np.bincount(_grams(fitted, n), minlength=256**n)
        of_context: np.ndarray = counts.reshape(-1, 256).sum(1)
        grams = np.asarray(_grams(measured, n))[-len(p) :]
        p = (counts[grams] + k * p) / (of_context[grams // 256] + k)
    return float(-np.log2(p).mean())


def _grams(x, n):
    """Each n neighbours as one number."""
    return sum(x[i : len(x) - n + 1 + i] * 256 ** (n - 1 - i) for i in range(n))
