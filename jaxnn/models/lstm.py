"""A recurrent language model: at each position of a text it predicts what comes next from a memory of what came before.

Shapes: B batch, T positions, V vocabulary, H units (width).
"""

import functools
import itertools

from jaxnn import layers
from jaxnn._checks import whole
from jaxnn.combinators import serial
from jaxnn.initializers import normal
from jaxnn.layer import Layer


def lstm(vocabulary: int, width: int, n_layers: int, *, dropout: float = 0.0) -> Layer:
    """Stacked LSTMs as a Layer: x = ids (B, T) integers, y = logits (B, T, V) of the id that follows each.

    x_0 = table[ids],  x_l = lstm_l(x_(l-1)) for l = 1 … n_layers,  y = x_L w + b;  backward: the chain rule of `serial`

    All layers have `width` units and start from zeros at t = 0. dropout: its probability on x_0 … x_L, in training.
    ctx.mask (B, T) or (1, T): True = a real token; see `jaxnn.layers.lstm`.
    Raises ValueError for sizes below 1, unless 0 <= dropout < 1, and for ids that have no row.
    Source: Graves 2013 (arXiv:1308.0850).
    """
    whole("lstm", "n_layers", n_layers, least=1)
    drop = layers.dropout(dropout)
    table = layers.embedding(vocabulary, width, initializer=functools.partial(normal, stddev=1.0))
    stack = itertools.chain.from_iterable((layers.lstm(width), drop) for _ in range(n_layers))
    return serial(table, drop, *stack, layers.dense(vocabulary), name="lstm")
