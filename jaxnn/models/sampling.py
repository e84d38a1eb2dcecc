"""Writing with a language model: one id at a time, each drawn from what the model predicts comes next."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxnn._checks import array, float_array, non_negative, random_key, whole
from jaxnn.layer import Ctx, Layer


def sample(key: jax.Array, logits: jax.Array, *, temperature: float = 1.0, top_k: int | None = None) -> jax.Array:
    """An id drawn with the probabilities softmax(logits / temperature), among the top_k likeliest only.

    logits (..., V); ids (...) int32. A temperature below 1 prefers likely ids, 0 takes the likeliest (the first of
    equals); with top_k None or V any id may be drawn. Ids as likely as the last of the top_k may also be drawn.
    Raises ValueError for a negative temperature and unless 1 <= top_k.
    Numerics: the largest logit is subtracted before dividing, so that a small temperature does not overflow.

    >>> sample(jax.random.key(0), jnp.array([[0.0, 3.0, 1.0], [2.0, 0.0, 1.0]]), top_k=1)
    Array([1, 0], dtype=int32)
    """
    random_key("sample", key)
    non_negative("sample", "temperature", temperature)
    logits = float_array("sample", "logits", logits)
    if temperature == 0:
        return jnp.argmax(logits, -1).astype(jnp.int32)
    gaps = logits - logits.max(-1, keepdims=True)
    if top_k is not None:
        whole("sample", "top_k", top_k, least=1)
        last, _ = jax.lax.top_k(gaps, min(top_k, gaps.shape[-1]))
        gaps = jnp.where(gaps < last[..., -1:], -jnp.inf, gaps)
    return jax.random.categorical(key, gaps / temperature).astype(jnp.int32)


@functools.partial(jax.jit, static_argnums=(0, 5), static_argnames=("window", "temperature", "top_k"))
def generate(
    model: Layer,
    params: Any,
    state: Any,
    key: jax.Array,
    ids: jax.Array,
    n: int,
    *,
    window: int,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> jax.Array:
    """The n ids that the model writes after ids: (B, P) integers, P >= 1, in; (B, n) int32 out.

    Each is drawn with `sample` from the logits after the last `window` ids before it: use the length the model was
    trained on. The model must be causal, such as `gpt` and `lstm`; each id costs a forward pass over a window.
    Compiled; model, n and the keyword arguments are static.
    Raises ValueError for an empty prompt and for sizes below 1.
    """
    whole("generate", "n", n, least=1)
    whole("generate", "window", window, least=1)
    ids = array("generate", "ids", ids)
    if ids.ndim != 2 or ids.shape[1] == 0:
        raise ValueError(f"generate: ids have shape {ids.shape}, expected (B, P) with at least one id to continue from")
    n_given = ids.shape[1]
    text = jnp.zeros((ids.shape[0], max(n_given + n, window)), jnp.int32).at[:, :n_given].set(ids.astype(jnp.int32))

    def write(text, i):
        start = jnp.maximum(i - window, 0)
        seen = jax.lax.dynamic_slice_in_dim(text, start, window, axis=1)  # the contents from i on do not matter
        logits, _, _ = model.forward(params, state, seen, Ctx())
        last = jax.lax.dynamic_index_in_dim(logits, i - 1 - start, axis=1, keepdims=False)
        new = sample(jax.random.fold_in(key, i), last, temperature=temperature, top_k=top_k)
        return text.at[:, i].set(new), None

    text, _ = jax.lax.scan(write, text, jnp.arange(n_given, n_given + n))
    return text[:, n_given : n_given + n]
