"""A layer is three pure functions; this file is the contract that every layer keeps.

    pair    forward(params, x)             -> (y, cache)             backward(params, cache, dy) -> (dparams, dx)
    Layer   forward(params, state, x, ctx) -> (y, state, cache)      backward(params, cache, dy) -> (dparams, dx)

`from_pair` lifts a pair to a Layer; `as_custom_vjp` turns a Layer into a function that `jax.grad` differentiates with
the layer's own backward.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, overload

import jax

from jaxnn._checks import sizes


@functools.partial(jax.tree_util.register_dataclass, data_fields=["key", "mask"], meta_fields=["train"])
@dataclasses.dataclass(frozen=True)
class Ctx:
    """What a forward pass may read apart from params, state and x; none of it gets a gradient.

    A pytree in which `train` is static: jit compiles one program for training and another for evaluation.

    The mask says what is real, and its shape says of what: (B,) examples, (B, T) tokens, or (1, T) tokens of all
    examples alike. A layer that reads it raises ValueError for any other mask. It never says which token may see which:
    a (T, T) mask of pairs is refused too, except where T = B, since it then has the shape of a token mask and is read
    as one. To keep tokens from seeing later ones, use `attention(…, causal=True)`.
    """

    train: bool = False  # True: dropout drops, batch norm uses the batch's statistics
    key: Any = None  # a key from jax.random.key; layers that draw random numbers need it when train is True
    mask: Any = None  # bool, True = real: (B,) whole examples, or (B, T) or (1, T) tokens

    def fold(self, i) -> "Ctx":
        """The context of child i: the same, with a key of its own that does not depend on the other children."""
        return self if self.key is None else dataclasses.replace(self, key=jax.random.fold_in(self.key, i))

    def token_mask(self, who: str, x: Any) -> Any:
        """The mask if it is one of tokens. Layers along a sequence need none of examples, which do not mix there.

        ValueError in the name of `who` for a mask of rank 1 that does not fit x's examples.
        """
        if self.mask is None:
            return None
        mask = jax.numpy.asarray(self.mask)
        if mask.ndim != 1:
            return mask
        if mask.shape != jax.numpy.shape(x)[:1] or mask.dtype != bool:
            raise ValueError(
                f"{who}: ctx.mask is {mask.dtype}{list(mask.shape)}, but x has shape {jax.numpy.shape(x)}; "
                f"expected bool, (B,) for examples, or (B, T) or (1, T) for tokens"
            )
        return None


class Init(Protocol):
    """init(key, in_shape) -> (out_shape, params, state).

    in_shape and out_shape are whole shapes, including the batch axis, whose size does not matter: (1, 784) is as good
    as (128, 784). params is a dict of arrays (in a combinator, a tuple of its layers' params), {} if there are none.
    state is what forward updates (running statistics), () if there is none.
    """

    def __call__(self, key: jax.Array, in_shape: tuple[int, ...], /) -> tuple[tuple[int, ...], Any, Any]: ...


class Forward(Protocol):
    """forward(params, state, x, ctx) -> (y, state, cache).

    x has the batch first. cache is a pytree of arrays: what backward needs except params, which it is given.
    Params of another form, and shapes or dtypes that do not fit, are a ValueError at trace time.
    """

    def __call__(self, params: Any, state: Any, x: Any, ctx: Ctx, /) -> tuple[Any, Any, Any]: ...


class Backward(Protocol):
    """backward(params, cache, dy) -> (dparams, dx).

    dy is ∂L/∂y, with y's shape; any other shape is a ValueError, since a gradient is never broadcast. dparams is
    ∂L/∂params: the same tree, shapes and dtypes as params; dx is ∂L/∂x with x's shape and dtype, None if x is integers.
    Gradients are returned, never accumulated.

    dy may have any floating-point dtype: float32 for a bfloat16 y, for example, if the loss is calculated in float32. A
    rule that calculates in float32 anyway (norms, softmax, attention, recurrent cells, pools, embeddings) uses all of
    dy's precision and rounds its gradients once. The others, matrix products above all, first round dy to y's dtype, as
    `jax.grad` does at the cast between y and the loss: products of mixed dtypes would be as slow as the wider one.
    """

    def __call__(self, params: Any, cache: Any, dy: Any, /) -> tuple[Any, Any]: ...


class Layer(NamedTuple):
    """Three pure functions; see Init, Forward and Backward for what each promises. The other fields are for inspection.

    Layer(init, forward, backward) is a layer; its name is what errors, profiles and `print` call it. A combinator also
    says what it is made of: parts, and with_parts(*parts), which makes the same combinator from other layers.
    Two layers are equal only if they share their functions: two calls of a constructor make two different layers.

    >>> from jaxnn import layers, residual, serial
    >>> print(serial(layers.dense(3), residual(serial(layers.layer_norm(), layers.dense(3)))))
    serial
      [0] dense
      [1] residual
        serial
          [0] layer_norm
          [1] dense
    """

    init: Init
    forward: Forward
    backward: Backward
    name: str = "layer"
    parts: tuple["Layer", ...] = ()
    with_parts: Callable[..., "Layer"] | None = None

    def __str__(self) -> str:
        return "\n".join("  " * len(path) + label for path, label in tree(self))

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(map(repr, self.parts))})"


@contextlib.contextmanager
def in_part(who: str, layers: tuple[Layer, ...], i: int = 0) -> Iterator[None]:
    """Run layer i of a combinator under its name: `serial[3] conv: …` in errors, serial/3_conv in profiles and HLO.

    A single layer has no number. In profiles a layer made of layers adds its own name when it runs them.
    """
    layer, number = layers[i], [str(i)] if len(layers) > 1 else []
    here = "_".join(number if layer.parts else [*number, layer.name])
    try:
        with jax.named_scope(f"{who}/{here}" if here else who):
            yield
    except ValueError as error:
        if error.args and isinstance(error.args[0], str):
            text = error.args[0]
            text = text if text.startswith(layer.name) else f"{layer.name}: {text}"
            error.args = (f"{who}{''.join(f'[{n}]' for n in number)} {text}", *error.args[1:])
        raise


def tree(layer: Layer, path: tuple[int, ...] = (), number: str = "") -> Iterator[tuple[tuple[int, ...], str]]:
    """Each layer within the layer, itself first: its path of part numbers, and its label in a table."""
    yield path, number + layer.name
    for i, part in enumerate(layer.parts):
        yield from tree(part, (*path, i), f"[{i}] " if len(layer.parts) > 1 else "")


def _no_params(key, in_shape):
    return in_shape, {}


def from_pair(
    forward: Callable[[Any, Any], tuple[Any, Any]],
    backward: Callable[[Any, Any, Any], tuple[Any, Any]],
    init: Callable[[jax.Array, tuple[int, ...]], tuple[tuple[int, ...], Any]] = _no_params,
    *,
    name: str = "layer",
) -> Layer:
    """Lift a bare pair to a Layer: no state, no context.

    forward(params, x) -> (y, cache);  backward(params, cache, dy) -> (dparams, dx)
    init(key, in_shape) -> (out_shape, params); by default the layer keeps the shape and has no parameters.

    >>> import jax.numpy as jnp
    >>> square = from_pair(lambda params, x: (x * x, x), lambda params, x, dy: ({}, 2 * x * dy))
    >>> _, dx = square.backward({}, jnp.array([3.0]), jnp.array([1.0]))
    >>> dx
    Array([6.], dtype=float32)
    """

    def layer_init(key, in_shape, /):
        out_shape, params = init(key, sizes(name, in_shape))
        return out_shape, params, ()

    def layer_forward(params, state, x, ctx, /):
        y, cache = forward(params, x)
        return y, state, cache

    return Layer(layer_init, layer_forward, backward, name)


@overload
def as_custom_vjp(forward: Layer) -> Callable[[Any, Any, Any, Ctx], tuple[Any, Any]]: ...
@overload
def as_custom_vjp(
    forward: Callable[[Any, Any], tuple[Any, Any]], backward: Callable[[Any, Any, Any], tuple[Any, Any]]
) -> Callable[[Any, Any], Any]: ...


def as_custom_vjp(forward: Any, backward: Any = None) -> Any:
    """A Layer as f(params, state, x, ctx) -> (y, state), or a bare pair as f(params, x) -> y, for `jax.grad`.

    ∂L/∂params and ∂L/∂x are those of the hand-written backward; state and ctx get no gradient, and a gradient for the
    new state is ignored.

    f works under jit, vmap and scan, and so does its gradient, to which `jax.jvp` can be applied. It cannot be applied
    to f itself (TypeError): a backward says nothing about forward mode.

    >>> import jax.numpy as jnp
    >>> from jaxnn.layers import activation
    >>> f = as_custom_vjp(activation("relu"))
    >>> jax.grad(lambda x: f({}, (), x, Ctx())[0].sum())(jnp.array([-1.0, 2.0]))
    Array([0., 1.], dtype=float32)
    >>> from jaxnn.layers import dense_backward, dense_forward
    >>> f = as_custom_vjp(dense_forward, dense_backward)
    >>> f({"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}, jnp.ones((1, 2)))
    Array([[2., 2., 2.]], dtype=float32)
    """
    if backward is not None:
        of_layer = as_custom_vjp(from_pair(forward, backward))
        return lambda params, x: of_layer(params, (), x, Ctx())[0]
    of_layer = forward

    @jax.custom_vjp
    def f(params, state, x, ctx):
        y, state, _ = of_layer.forward(params, state, x, ctx)
        return y, state

    def f_forward(params, state, x, ctx):
        y, state, cache = of_layer.forward(params, state, x, ctx)
        return (y, state), (params, cache)

    def f_backward(saved, cotangents):
        params, cache = saved
        dy, _ = cotangents
        dparams, dx = of_layer.backward(params, cache, dy)
        return dparams, None, dx, None

    f.defvjp(f_forward, f_backward)

    @functools.wraps(of_layer.forward)
    def differentiable(params, state, x, ctx):
        try:
            return f(params, state, x, ctx)
        except TypeError as error:
            if "forward-mode" not in str(error):
                raise
            raise TypeError(
                "as_custom_vjp: forward-mode differentiation (jax.jvp, jax.jacfwd) of a rule that only has a backward; "
                "use jax.vjp, jax.grad or jax.jacrev, or give jax.jvp the function without as_custom_vjp"
            ) from error

    return differentiable
