"""What is verified, in one form: a forward and a backward over flat leaves, whatever the user's arguments are.

    inputs    the float leaves that are differentiated
    given     the other array leaves: data, labels, masks, keys
    and what is not an array (None, strings, Python numbers that are not differentiated) stays where it is
"""

import functools
import inspect
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.layer import Ctx, Layer
from jaxnn.verify.judge.rule import Example, Rule


class CannotVerify(ValueError):
    """The call cannot be verified: the message says what was passed and what to change."""


class Slot(NamedTuple):
    """A leaf of the differentiated arguments, and where it is among the leaves of all arguments."""

    path: str  # as it is shown: "params['w']"
    at: int  # index among the leaves of all arguments
    shape: tuple[int, ...]
    dtype: Any
    is_input: bool  # False: integers, which have no gradient


class Subject(NamedTuple):
    """A function with a hand-written gradient, and the point at which the user wants it verified."""

    name: str
    forward: Callable[[tuple, tuple], tuple]  # (inputs, given) -> y's float leaves
    backward: Callable[[tuple, tuple, tuple], Any]  # (inputs, given, dy) -> the gradient, as the user returns it
    inputs: tuple[Any, ...]
    given: tuple[Any, ...]
    input_paths: tuple[str, ...]
    given_paths: tuple[str, ...]
    expected: Any  # the differentiated arguments: the tree that the gradient must have
    slots: tuple[Slot, ...]  # the leaves of `expected`
    scalar: bool  # the forward is a loss: its cotangent is 1
    constants: tuple[tuple[str, float], ...] = ()  # Python numbers among the arguments, by path
    primal: Callable[[tuple, tuple], tuple] | None = None  # y as a pair's forward returns it with its residuals


def from_loss(loss: Callable, manual_grad: Callable, args: tuple, argnums: int | tuple[int, ...]) -> Subject:
    """loss(*args) -> scalar and manual_grad(*args) -> its gradient in args[argnums]."""
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    for number in numbers:
        if not -len(args) <= number < len(args):
            raise CannotVerify(f"argnums is {argnums}, but there are {len(args)} argument(s); the first is number 0")
    numbers = tuple(number % len(args) for number in numbers)
    _require_arity(loss, args, "the loss")
    _require_arity(manual_grad, args, "the manual gradient")
    split = _split_arguments(args, numbers, _loss_names(len(args)))

    def forward(inputs, given):
        y = loss(*split.rebuild(inputs, given))
        if jnp.ndim(y) != 0 or not isinstance(y, jax.Array | np.ndarray | np.generic | float | int):
            raise CannotVerify(_not_scalar(y))
        return (y,)

    def backward(inputs, given, dy):
        return manual_grad(*split.rebuild(inputs, given))

    expected = args[numbers[0]] if isinstance(argnums, int) else tuple(args[number] for number in numbers)
    name = f"{_name(manual_grad)} against {_name(loss)}"
    return _subject(name, forward, backward, split, expected, scalar=True)


def from_vjp(f: Callable, f_fwd: Callable, f_bwd: Callable, args: tuple, pair: bool) -> Subject:
    """f(*args) -> y; f_fwd(*args) -> (y, residuals); f_bwd(residuals, dy) -> a tuple of gradients, one per argument.

    With pair=True f_bwd is a bare pair's, f_bwd(params, cache, dy) -> (dparams, dx, …), where params is args[0].
    """
    still: tuple[int, ...] = ()
    if isinstance(f, jax.custom_vjp):
        still = tuple(getattr(f, "nondiff_argnums", ()))
        f = f.__wrapped__  # its own rule would be its own witness
    _require_arity(f, args, "f")
    _require_arity(f_fwd, args, "the forward")
    dynamic = tuple(i for i in range(len(args)) if i not in still)
    names = tuple(f"args[{i}]" for i in range(len(args)))
    if pair:
        names = ("params", "x", *names[2:])[: len(args)]
    split = _split_arguments(args, dynamic, names)

    def forward(inputs, given):
        return _float_leaves(f(*split.rebuild(inputs, given)))

    def primal(inputs, given):
        return _float_leaves(f_fwd(*split.rebuild(inputs, given))[0])

    def backward(inputs, given, dy):
        arguments = split.rebuild(inputs, given)
        answer = f_fwd(*arguments)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise CannotVerify(f"the forward of a pair must return (y, residuals), it returned {describe(answer)}")
        y, residuals = answer
        floats = iter(dy)
        cotangent = jax.tree.map(
            lambda leaf: next(floats) if _is_float(leaf) else np.zeros(jnp.shape(leaf), jax.dtypes.float0), y
        )
        if pair:
            return f_bwd(arguments[0], residuals, cotangent)
        return f_bwd(*(arguments[i] for i in still), residuals, cotangent)

    expected = tuple(args[i] for i in dynamic)
    subject = _subject(f"{_name(f_bwd)} against {_name(f)}", forward, backward, split, expected, scalar=False)
    return subject._replace(primal=primal)


def from_layer(layer: Layer, params: Any, state: Any, x: Any, ctx: Ctx) -> Subject:
    """layer.forward(params, state, x, ctx) -> (y, state, cache) and its backward, in params and x."""
    split = _split_arguments((params, x, state, ctx), (0, 1), ("params", "x", "state", "ctx"))

    def forward(inputs, given):
        params, x, state, ctx = split.rebuild(inputs, given)
        return _float_leaves(layer.forward(params, state, x, ctx)[0])

    def backward(inputs, given, dy):
        params, x, state, ctx = split.rebuild(inputs, given)
        y, _, cache = layer.forward(params, state, x, ctx)
        return layer.backward(params, cache, jax.tree.unflatten(jax.tree.structure(y), dy))

    return _subject("the layer's backward against its forward", forward, backward, split, (params, x), scalar=False)


def from_rule(rule: Rule, example: Example) -> Subject:
    """A rule of the registry at one of its examples."""
    split = _split_arguments((example.inputs, example.given), (0,), ("inputs", "given"))

    def forward(inputs, given):
        return _float_leaves(rule.forward(*split.rebuild(inputs, given)))

    def backward(inputs, given, dy):
        arguments = split.rebuild(inputs, given)
        y = jax.eval_shape(rule.forward, *arguments)
        return rule.backward(*arguments, jax.tree.unflatten(jax.tree.structure(y), dy))

    return _subject(rule.name, forward, backward, split, example.inputs, scalar=False)


def called(f: Callable, what: str, subject_of: str, *args) -> Any:
    """f(*args); what it raises becomes a CannotVerify with the user's traceback and what it was called with."""
    try:
        return f(*args)
    except CannotVerify:
        raise
    except Exception as error:
        raise CannotVerify(
            f"{what} raised {type(error).__name__}: {_first_lines(error)}\n{_user_frames(error)}"
            f"It was called with {subject_of}."
        ) from error


def describe_arguments(subject: Subject) -> str:
    """The arguments as paths with dtypes and shapes."""
    leaves = [*zip(subject.input_paths, subject.inputs, strict=True)]
    leaves += [*zip(subject.given_paths, subject.given, strict=True)]
    shown = [f"{path} {describe(leaf)}" for path, leaf in leaves[:12]]
    return ", ".join(shown) + (f" and {len(leaves) - 12} more arrays" if len(leaves) > 12 else "")


# ---------------------------------------------------------------- arguments as leaves


class _Split(NamedTuple):
    leaves: tuple[Any, ...]  # all leaves of all arguments
    rebuild: Callable[[tuple, tuple], tuple]
    inputs: tuple[int, ...]  # which leaves are inputs, which are given
    given: tuple[int, ...]
    slots: tuple[Slot, ...]
    paths: tuple[str, ...]


def _split_arguments(args: tuple, differentiated: tuple[int, ...], names: tuple[str, ...]) -> _Split:
    with_paths, tree = jax.tree_util.tree_flatten_with_path(args)
    leaves = tuple(leaf for _, leaf in with_paths)
    paths = tuple(names[path[0].idx] + jax.tree_util.keystr(path[1:]) for path, _ in with_paths)
    slots, inputs, given = [], [], []
    for i, (path, leaf) in enumerate(with_paths):
        is_differentiated = path[0].idx in differentiated
        if is_differentiated:
            if not isinstance(leaf, _ARRAYS) and not isinstance(leaf, int | float):
                raise CannotVerify(
                    f"{paths[i]} is a {type(leaf).__name__}, which has no gradient; "
                    "differentiate only the others (argnums=...), or take it out of the parameters"
                )
            if not _is_key(leaf) and np.issubdtype(_dtype(leaf), np.complexfloating):
                raise CannotVerify(f"{paths[i]} is complex; split it into its real and imaginary parts")
            slots.append(Slot(paths[i], i, jnp.shape(leaf), _dtype(leaf), _is_float(leaf)))
        if is_differentiated and _is_float(leaf):
            inputs.append(i)
        elif isinstance(leaf, _ARRAYS):
            given.append(i)

    def rebuild(input_leaves, given_leaves):
        every = list(leaves)
        for i, leaf in zip((*inputs, *given), (*input_leaves, *given_leaves), strict=True):
            every[i] = leaf
        return tree.unflatten(every)

    return _Split(leaves, rebuild, tuple(inputs), tuple(given), tuple(slots), paths)


def _subject(name, forward, backward, split: _Split, expected, scalar) -> Subject:
    inputs = tuple(_as_array(split.leaves[i]) for i in split.inputs)
    given = tuple(split.leaves[i] for i in split.given)
    used = {*split.inputs, *split.given}
    constants = tuple(
        (split.paths[i], float(leaf))
        for i, leaf in enumerate(split.leaves)
        if i not in used and isinstance(leaf, int | float) and not isinstance(leaf, bool)
    )
    if not inputs:
        found = ", ".join(f"{slot.path} {slot.dtype}" for slot in split.slots[:6]) or "no arrays at all"
        raise CannotVerify(
            f"there is nothing to differentiate: the differentiated arguments hold {found}. "
            "Pass float parameters (jnp.asarray(w, jnp.float32)), or another argnums"
        )
    return Subject(
        name,
        forward,
        backward,
        inputs,
        given,
        tuple(split.paths[i] for i in split.inputs),
        tuple(split.paths[i] for i in split.given),
        expected,
        split.slots,
        scalar,
        constants,
    )


_ARRAYS = (jax.Array, np.ndarray, np.generic)


def _as_array(leaf):
    return leaf if isinstance(leaf, jax.Array | np.ndarray) else np.asarray(leaf, _dtype(leaf))


def _dtype(leaf):
    if isinstance(leaf, float) and not isinstance(leaf, np.generic):
        return jnp.dtype(jnp.result_type(float))
    return jnp.dtype(leaf.dtype) if hasattr(leaf, "dtype") and not _is_key(leaf) else np.result_type(type(leaf))


def _float_leaves(y) -> tuple:
    return tuple(leaf for leaf in jax.tree.leaves(y) if _is_float(leaf))


def _is_key(leaf) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _is_float(leaf) -> bool:
    if isinstance(leaf, float):
        return True
    return hasattr(leaf, "dtype") and not _is_key(leaf) and bool(jnp.issubdtype(leaf.dtype, jnp.floating))


# ---------------------------------------------------------------- words


def _loss_names(n: int) -> tuple[str, ...]:
    return ("params", *(f"args[{i}]" for i in range(n - 1)))


def _name(f: Callable) -> str:
    while isinstance(f, functools.partial):
        f = f.func
    return getattr(f, "__name__", type(f).__name__)


def describe(x: Any) -> str:
    """A value in a few words: its container, or its dtype and shape."""
    if x is None:
        return "None"
    if isinstance(x, tuple | list | dict):
        return f"a {type(x).__name__} of {len(x)}"
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return f"{x.dtype}{list(x.shape)}"
    return f"a {type(x).__name__}"


def _not_scalar(y) -> str:
    return (
        f"the loss must return one number, it returned {describe(y)}. Reduce it (jnp.mean(...)), or verify a function "
        "of many outputs with verify_vjp(f, f_fwd, f_bwd, *args), which takes a random cotangent"
    )


def _require_arity(f: Callable, args: tuple, what: str) -> None:
    if not callable(f):
        raise CannotVerify(f"{what} must be a function, it is {describe(f)}; the order is (forward, gradient, *args)")
    try:
        signature = inspect.signature(f)
    except (TypeError, ValueError):
        return  # builtins do not always have one
    try:
        signature.bind(*args)
    except TypeError as error:
        raise CannotVerify(
            f"{what}, {_name(f)}{signature}, cannot be called with the {len(args)} argument(s) given: {error}. "
            "Both functions take the same arguments; bind others with functools.partial"
        ) from None


def _first_lines(error: Exception) -> str:
    return "\n".join(str(error).strip().splitlines()[:4])


def _user_frames(error: Exception) -> str:
    """The user's part of the traceback: the frames below this package's and jax's."""
    frames = traceback.extract_tb(error.__traceback__)
    inner = [f for f in frames if "/jaxnn/verify/" not in f.filename and "/jax/_src/" not in f.filename]
    inner = [f for f in inner if "/site-packages/jax/" not in f.filename]
    return "".join(traceback.format_list(inner[-6:]))
