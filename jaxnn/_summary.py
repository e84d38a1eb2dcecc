"""A model as a table: what it is made of, the shapes in between, and how many numbers each layer has."""

import math
from typing import Any

import jax

from jaxnn.layer import Layer, tree


def summary(model: Layer, in_shape: tuple[int, ...]) -> str:
    """A table of the layers in a model: name, output shape, parameters, and the size of the state if there is one.

    in_shape as for model.init, batch axis included. A layer made of layers counts those within it, `repeat` n times
    each; the rows within it show one of them. Nothing is calculated: init is only traced.
    Raises ValueError where in_shape does not fit.

    >>> from jaxnn import models
    >>> print(summary(models.mlp((16,), 3), (1, 28, 28)))
    layer          output    parameters
    mlp            (1, 3)        12,611
      [0] flatten  (1, 784)           0
      [1] dense    (1, 16)       12,560
      [2] relu     (1, 16)            0
      [3] dense    (1, 3)            51
    """
    found = {}
    watched = _watched(model, (), found)
    jax.eval_shape(lambda key: watched.init(key, in_shape)[1:], jax.random.key(0))
    rows: list[tuple[str, ...]] = [("layer", "output", "parameters", "state")]
    for path, label in tree(model):
        out_shape, n_params, n_state = found.get(path, ("", None, None))
        numbers = ("" if n is None else f"{n:,}" for n in (n_params, n_state))
        rows.append(("  " * len(path) + label, str(out_shape), *numbers))
    columns = list(zip(*rows, strict=True))[: 4 if found[()][2] else 3]
    widths = [max(map(len, column)) for column in columns]
    form = "  ".join(f"{{:{'<' if i < 2 else '>'}{width}}}" for i, width in enumerate(widths))
    return "\n".join(form.format(*row) for row in zip(*columns, strict=True))


def _watched(layer: Layer, path: tuple[int, ...], found: dict[tuple[int, ...], Any]) -> Layer:
    """The layer with an init that records under its path what it makes, as do the layers within it."""
    inner = layer
    if layer.with_parts is not None:
        inner = layer.with_parts(*(_watched(part, (*path, i), found) for i, part in enumerate(layer.parts)))

    def init(key, in_shape, /):
        out_shape, params, state = inner.init(key, in_shape)
        found[path] = out_shape, _count(params), _count(state)
        return out_shape, params, state

    return inner._replace(init=init)


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
