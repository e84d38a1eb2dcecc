"""What every primitive computes and its right reverse-mode rule, in NumPy and float64.

So a graph of fifty operations is differentiated in half a millisecond, with nothing compiled. A primitive without a
rule here takes jax's. rule_mistakes.py lists how these rules go wrong.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxnn.verify.explain.reverse_mode import window_primitives
from jaxnn.verify.explain.reverse_mode.window_primitives import contract, pad, unpad
from jaxnn.verify.judge.float64_jaxpr import dtype_of, evaluate_equation, is_key, wide, widen


@dataclasses.dataclass(eq=False)
class Node:
    """One operation: values[outs] = primitive(values[ins])."""

    name: str
    params: dict
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    place: Any
    eqn: Any = None  # for primitives without a rule here
    compiled: dict = dataclasses.field(default_factory=dict)  # jax's rules for them


def is_float(x: Any) -> bool:
    """Whether x is a float64 array."""
    return getattr(x, "dtype", None) == np.float64


def is_integer(x: Any) -> bool:
    """Whether x is an array of integers; keys of random numbers are not."""
    return isinstance(x, np.ndarray) and x.dtype.kind == "i"


def as_array(x: Any) -> Any:
    """x as a float64 (or integer, or Boolean) NumPy array; keys are left as they are."""
    return x if is_key(x.dtype) else widen(x, x.dtype)


# ---------------------------------------------------------------- forward


def forward(name: str, params: dict, xs: Sequence, eqn: Any) -> list:
    """The outputs of a primitive."""
    keys = any(is_key(x.dtype) for x in xs)  # random ones, which NumPy does not know
    if not keys and not _is_rare(params) and (name in SEVERAL or name in FORWARD):
        ys = SEVERAL[name](params, *xs) if name in SEVERAL else [np.asarray(FORWARD[name](params, *xs))]
        if is_float(ys[0]) or eqn is None:
            return ys
        return [y.astype(wide(dtype_of(var)), copy=False) for y, var in zip(ys, eqn.outvars, strict=True)]
    return [as_array(y) for y in evaluate_equation(eqn, xs, True)]


def _is_rare(p):
    """Whether this is a variant of a primitive that is left to jax."""
    return p.get("num_keys", 1) > 1 or p.get("batch_group_count", 1) > 1


def broadcast(p: dict, x: np.ndarray) -> np.ndarray:
    """broadcast_in_dim."""
    shape = [1] * len(p["shape"])
    for i, axis in enumerate(p["broadcast_dimensions"]):
        shape[axis] = x.shape[i]
    return np.broadcast_to(x.reshape(shape), p["shape"])


def broadcast_axes(p: dict, shape: Sequence[int]) -> tuple[int, ...]:
    """The axes of a broadcast's output that are copies."""
    kept = {axis for i, axis in enumerate(p["broadcast_dimensions"]) if shape[i] == p["shape"][axis]}
    return tuple(axis for axis in range(len(p["shape"])) if axis not in kept)


def _slices(p):
    strides = p["strides"] or [1] * len(p["start_indices"])
    return tuple(map(slice, p["start_indices"], p["limit_indices"], strides))


def _select(p, which, *cases):
    return np.where(which, cases[1], cases[0]) if len(cases) == 2 else np.choose(which, cases)


def dot_axes(p: dict, left_rank: int, right_rank: int) -> tuple[list[int], list[int], list[int]]:
    """Names for the axes of dot_general's operands and of its output: what is multiplied has one name."""
    (left_sum, right_sum), (left_batch, right_batch) = p["dimension_numbers"]
    left = list(range(left_rank))
    right = list(range(left_rank, left_rank + right_rank))
    for i, j in (*zip(left_sum, right_sum, strict=True), *zip(left_batch, right_batch, strict=True)):
        right[j] = left[i]
    out = list(left_batch)
    return left, right, out + [a for a in left if a not in right] + [a for a in right if a not in left]


def _dot(p, a, b):
    left, right, out = dot_axes(p, a.ndim, b.ndim)
    return contract(a, left, b, right, out)


def cumsum(p: dict, x: np.ndarray) -> np.ndarray:
    """cumsum, from the end if p["reverse"]."""
    axis = p["axis"]
    return np.flip(np.cumsum(np.flip(x, axis), axis), axis) if p["reverse"] else np.cumsum(x, axis)


def _sigmoid(x):
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def _iota(p):
    along = np.arange(p["shape"][p["dimension"]], dtype=wide(p["dtype"]))
    return broadcast({"shape": p["shape"], "broadcast_dimensions": (p["dimension"],)}, along)


def positions(name: str, p: dict, xs: Sequence) -> np.ndarray:
    """gather, dynamic_slice: for each entry of the output the flat position in xs[0]; scatter: for each update."""
    if name == "dynamic_slice":
        return window_primitives.slice_positions(xs[0].shape, xs[1:], p["slice_sizes"])
    if name == "gather":
        return window_primitives.gather_positions(p, xs[0].shape, xs[1])
    return window_primitives.scatter_positions(p, xs[0].shape, xs[1], xs[2].shape)


def _gather(p, x, indices):
    fill = p["fill_value"]
    if fill is None:
        fill = math.nan if is_float(x) else np.iinfo(x.dtype).min if x.dtype.kind == "i" else np.ones((), x.dtype)
    return window_primitives.copy_from(x, positions("gather", p, (x, indices)), fill)


def _scatter(p, x, indices, updates):
    at = positions("scatter", p, (x, indices, updates))
    y = x.copy()
    y.reshape(-1)[at[at >= 0]] = updates[at >= 0]
    return y


def _scatter_add(p, x, indices, updates):
    at = positions("scatter", p, (x, indices, updates))
    return x + window_primitives.add_back(at, updates, x.shape).astype(x.dtype)


def order(p: dict, keys: np.ndarray) -> np.ndarray:
    """The stable permutation that sorts."""
    return np.argsort(keys, p["dimension"], kind="stable")


def _top(p, x):
    axis = p["axis"]
    best = np.flip(np.argsort(np.flip(x, axis), axis, kind="stable"), axis)
    best = x.shape[axis] - 1 - best.take(range(p["k"]), axis)
    return [np.take_along_axis(x, best, axis), best.astype(np.int32)]


def _elementwise(f):
    return lambda p, *xs: f(*xs)


def _pool(p, x, combine, start):
    return window_primitives.Pooling(p, x.shape).forward(x, combine, start)


_NUMPY = """
abs:absolute neg:negative sign floor ceil exp exp2 expm1 log log1p sin cos tan sinh cosh tanh asin:arcsin acos:arccos
atan:arctan asinh:arcsinh acosh:arccosh atanh:arctanh sqrt cbrt square is_finite:isfinite add add_any:add sub:subtract
mul:multiply div:divide pow:power max:maximum min:minimum atan2:arctan2 eq:equal ne:not_equal lt:less le:less_equal
gt:greater ge:greater_equal and:bitwise_and or:bitwise_or xor:bitwise_xor not:invert
"""
_SAME = ("stop_gradient", "copy", "copy_p", "reduce_precision", "carry")

FORWARD: dict[str, Callable[..., Any]] = {
    **{pair.split(":")[0]: _elementwise(getattr(np, pair.split(":")[-1])) for pair in _NUMPY.split()},
    **dict.fromkeys(_SAME, lambda p, x: x),
    "rsqrt": lambda p, x: 1 / np.sqrt(x),
    "logistic": lambda p, x: _sigmoid(x),
    "integer_pow": lambda p, x: np.power(x, float(p["y"]) if is_float(x) else p["y"]),
    "convert_element_type": lambda p, x: x.astype(wide(p["new_dtype"])),
    "clamp": lambda p, low, x, high: np.clip(x, low, high),
    "erf": lambda p, x: np.vectorize(math.erf, [float])(x),
    "erfc": lambda p, x: np.vectorize(math.erfc, [float])(x),
    "select_n": _select,
    "iota": _iota,
    "broadcast_in_dim": broadcast,
    "reshape": lambda p, x: x.reshape(p["new_sizes"]),
    "squeeze": lambda p, x: np.squeeze(x, p["dimensions"]),
    "expand_dims": lambda p, x: np.expand_dims(x, p["dimensions"]),
    "transpose": lambda p, x: x.transpose(p["permutation"]),
    "rev": lambda p, x: np.flip(x, p["dimensions"]),
    "slice": lambda p, x: x[_slices(p)],
    "dynamic_slice": lambda p, x, *at: x.reshape(-1)[positions("dynamic_slice", p, (x, *at))],
    "gather": _gather,
    "scatter": _scatter,
    "scatter-add": _scatter_add,
    "concatenate": lambda p, *xs: np.concatenate(xs, p["dimension"]),
    "pad": lambda p, x, value: pad(x, p["padding_config"], value),
    "dot_general": _dot,
    "conv_general_dilated": lambda p, x, w: window_primitives.Convolution(p, x.shape, w.shape).forward(x, w),
    "reduce_sum": lambda p, x: x.sum(p["axes"]),
    "reduce_max": lambda p, x: x.max(p["axes"]),
    "reduce_min": lambda p, x: x.min(p["axes"]),
    "reduce_prod": lambda p, x: x.prod(p["axes"]),
    "reduce_and": lambda p, x: x.all(p["axes"]),
    "reduce_or": lambda p, x: x.any(p["axes"]),
    "argmax": lambda p, x: np.argmax(x, p["axes"][0]).astype(p["index_dtype"]),
    "argmin": lambda p, x: np.argmin(x, p["axes"][0]).astype(p["index_dtype"]),
    "cumsum": cumsum,
    "reduce_window_sum": lambda p, x: _pool(p, x, np.add, 0.0),
    "reduce_window_max": lambda p, x: _pool(p, x, np.maximum, -math.inf),
    "reduce_window_min": lambda p, x: _pool(p, x, np.minimum, math.inf),
    "row": lambda p, x: x[p["t"]],
    "stack": lambda p, *xs: np.stack(xs, p["axis"]),
}
SEVERAL: dict[str, Callable[..., list]] = {
    "split": lambda p, x: np.split(x, np.cumsum(p["sizes"])[:-1], p["axis"]),
    "sort": lambda p, *xs: [np.take_along_axis(x, order(p, xs[0]), p["dimension"]) for x in xs],
    "top_k": _top,
    "optimization_barrier": lambda p, *xs: list(xs),
}
# Their operands may share one shape, or one of them be a scalar or have axes of length 1.
BINARY = {"add", "add_any", "sub", "mul", "div", "pow", "max", "min", "atan2", "rem", "nextafter", "select_n", "clamp"}
# Their value is held where an input moves: no gradient passes.
HELD = {"stop_gradient", "sign", "floor", "ceil", "round"}


# ---------------------------------------------------------------- reverse


def vjp(node: Node, k: int, dy: Any, xs: Sequence, y: Any) -> np.ndarray:
    """dyᵀ ∂y/∂x[k], for operands xs and a first output y that need not be those of the graph.

    dy is a list if the operation has several outputs, with None for those without a gradient.
    """
    if node.name in HELD:
        return np.zeros(xs[k].shape)
    if node.name in DERIVATIVE:
        return dy * DERIVATIVE[node.name](node.params, xs[0], y)
    if node.name in VJP and not _is_rare(node.params):
        return VJP[node.name](k, dy, xs, y, node.params)
    return _vjp_of_jax(node, k, dy, xs)


def _vjp_of_jax(node, k, dy, xs):
    floats = [i for i, x in enumerate(xs) if is_float(x)]
    if "vjp" not in node.compiled:
        eqn = node.eqn

        def pull(xs, dys):
            def f(*moved):
                at = [moved[floats.index(i)] if i in floats else x for i, x in enumerate(xs)]
                return [y for y in evaluate_equation(eqn, at, True) if is_float(y)]

            return jax.vjp(f, *(xs[i] for i in floats))[1](dys)

        node.compiled["vjp"] = jax.jit(pull)
    dys = [d for d in (dy if isinstance(dy, list) else [dy]) if d is not None]
    return np.asarray(node.compiled["vjp"](list(xs), dys)[floats.index(k)])


# f'(x) of the elementwise functions, from x and y = f(x)
DERIVATIVE: dict[str, Callable[..., Any]] = {
    "neg": lambda p, x, y: np.full_like(x, -1),
    "exp": lambda p, x, y: y,
    "exp2": lambda p, x, y: y * math.log(2),
    "expm1": lambda p, x, y: y + 1,
    "log": lambda p, x, y: 1 / x,
    "log1p": lambda p, x, y: 1 / (1 + x),
    "sin": lambda p, x, y: np.cos(x),
    "cos": lambda p, x, y: -np.sin(x),
    "tan": lambda p, x, y: 1 + y * y,
    "sinh": lambda p, x, y: np.cosh(x),
    "cosh": lambda p, x, y: np.sinh(x),
    "tanh": lambda p, x, y: 1 - y * y,
    "atan": lambda p, x, y: 1 / (1 + x * x),
    "logistic": lambda p, x, y: y * (1 - y),
    "sqrt": lambda p, x, y: 0.5 / y,
    "rsqrt": lambda p, x, y: -0.5 * y / x,
    "cbrt": lambda p, x, y: y / (3 * x),
    "square": lambda p, x, y: 2 * x,
    "integer_pow": lambda p, x, y: p["y"] * x ** float(p["y"] - 1),
    "abs": lambda p, x, y: np.sign(x),
    "erf": lambda p, x, y: 2 / math.sqrt(math.pi) * np.exp(-x * x),
    "erfc": lambda p, x, y: -2 / math.sqrt(math.pi) * np.exp(-x * x),
    **dict.fromkeys((*_SAME[1:], "convert_element_type"), lambda p, x, y: np.ones_like(x)),
}


def _share(x, other):
    """The share of the gradient that the chosen one of two operands gets: 1, or 1/2 at a tie."""
    return (x > other) + 0.5 * (x == other)


def _of_power(k, dy, xs, y, p):
    x, n = xs
    return dy * n * np.power(x, n - 1.0) if k == 0 else dy * y * np.log(np.where(x > 0, x, 1))


def _of_clamp(k, dy, xs, y, p):
    low, x, high = xs
    return dy * ((low < x) & (x < high) if k == 1 else x < low if k == 0 else x > high)


def _of_broadcast(k, dy, xs, y, p):
    return dy.sum(broadcast_axes(p, xs[0].shape)).reshape(xs[0].shape)


def _of_extreme(k, dy, xs, y, p):
    chosen = xs[0] == np.expand_dims(y, p["axes"])
    return np.expand_dims(dy, p["axes"]) * chosen / chosen.sum(p["axes"], keepdims=True)


def _into_zeros(dy, shape, at):
    dx = np.zeros(shape)
    dx[at] = dy
    return dx


def _of_pad(k, dy, xs, y, p):
    dx = unpad(dy, p["padding_config"], xs[0].shape)
    return dx if k == 0 else np.asarray(dy.sum() - dx.sum())


def _of_concatenate(k, dy, xs, y, p):
    ends = np.cumsum([x.shape[p["dimension"]] for x in xs])[:-1]
    return np.split(dy, ends, p["dimension"])[k]


def _of_dot(k, dy, xs, y, p):
    left, right, out = dot_axes(p, xs[0].ndim, xs[1].ndim)
    return contract(dy, out, xs[1], right, left) if k == 0 else contract(dy, out, xs[0], left, right)


def _of_conv(k, dy, xs, y, p):
    conv = window_primitives.Convolution(p, xs[0].shape, xs[1].shape)
    return conv.of_x(dy, xs[1]) if k == 0 else conv.of_w(dy, xs[0])


def _of_copy(name):
    return lambda k, dy, xs, y, p: window_primitives.add_back(positions(name, p, xs), dy, xs[0].shape)


def _of_scatter(overwrites):
    def rule(k, dy, xs, y, p):
        at = positions("scatter", p, xs)
        if k == 2:
            return window_primitives.copy_from(dy, at, 0.0)
        dx = dy.copy()
        if overwrites:
            dx.reshape(-1)[at[at >= 0]] = 0
        return dx

    return rule


def _of_sort(k, dy, xs, y, p):
    dx = np.zeros(xs[k].shape)
    np.put_along_axis(dx, order(p, xs[0]), dy[k] if isinstance(dy, list) else dy, p["dimension"])
    return dx


def _of_top(k, dy, xs, y, p):
    dx = np.zeros(xs[0].shape)
    np.put_along_axis(dx, _top(p, xs[0])[1], dy[0], p["axis"])
    return dx


VJP: dict[str, Callable[..., Any]] = {
    "add": lambda k, dy, xs, y, p: dy,
    "add_any": lambda k, dy, xs, y, p: dy,
    "sub": lambda k, dy, xs, y, p: -dy if k else dy,
    "mul": lambda k, dy, xs, y, p: dy * xs[1 - k],
    "div": lambda k, dy, xs, y, p: -dy * xs[0] / xs[1] ** 2 if k else dy / xs[1],
    "pow": _of_power,
    "max": lambda k, dy, xs, y, p: dy * _share(xs[k], xs[1 - k]),
    "min": lambda k, dy, xs, y, p: dy * _share(-xs[k], -xs[1 - k]),
    "select_n": lambda k, dy, xs, y, p: dy * (xs[0] == k - 1),
    "clamp": _of_clamp,
    "broadcast_in_dim": _of_broadcast,
    "reshape": lambda k, dy, xs, y, p: dy.reshape(xs[0].shape),
    "squeeze": lambda k, dy, xs, y, p: dy.reshape(xs[0].shape),
    "expand_dims": lambda k, dy, xs, y, p: dy.reshape(xs[0].shape),
    "transpose": lambda k, dy, xs, y, p: dy.transpose(np.argsort(p["permutation"])),
    "rev": lambda k, dy, xs, y, p: np.flip(dy, p["dimensions"]),
    "slice": lambda k, dy, xs, y, p: _into_zeros(dy, xs[0].shape, _slices(p)),
    "row": lambda k, dy, xs, y, p: _into_zeros(dy, xs[0].shape, p["t"]),
    "stack": lambda k, dy, xs, y, p: dy.take(k, p["axis"]),
    "dynamic_slice": _of_copy("dynamic_slice"),
    "gather": _of_copy("gather"),
    "scatter": _of_scatter(True),
    "scatter-add": _of_scatter(False),
    "concatenate": _of_concatenate,
    "split": lambda k, dy, xs, y, p: np.concatenate(dy, p["axis"]),
    "optimization_barrier": lambda k, dy, xs, y, p: dy[k] if isinstance(dy, list) else dy,
    "sort": _of_sort,
    "top_k": _of_top,
    "pad": _of_pad,
    "dot_general": _of_dot,
    "conv_general_dilated": _of_conv,
    "reduce_sum": lambda k, dy, xs, y, p: np.broadcast_to(np.expand_dims(dy, p["axes"]), xs[0].shape),
    "reduce_max": _of_extreme,
    "reduce_min": _of_extreme,
    "reduce_window_sum": lambda k, dy, xs, y, p: window_primitives.Pooling(p, xs[0].shape).of_sum(dy),
    "reduce_window_max": lambda k, dy, xs, y, p: window_primitives.Pooling(p, xs[0].shape).of_extreme(dy, xs[0], y),
    "reduce_window_min": lambda k, dy, xs, y, p: window_primitives.Pooling(p, xs[0].shape).of_extreme(dy, xs[0], y),
    "cumsum": lambda k, dy, xs, y, p: cumsum(p | {"reverse": not p["reverse"]}, dy),
}
