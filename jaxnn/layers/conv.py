"""Convolution and transposed convolution, of sequences and of images.

Shapes: B batch, W or H and W the spatial axes ("*in", "*out"), C channels; kw or kh and kw the size of the kernel
("*size"). A sequence is (B, W, C), an image (B, H, W, C); the kernel's rank says which. As everywhere in the field,
"convolution" is a correlation: the kernel is not flipped.

    stride s     the window moves by s
    dilation d   the window's taps are d apart
    padding      "same": ⌈in / s⌉ places, half the zeros in front, the odd one behind; "valid": none; or
                 ((front, behind), …), one pair per axis: ((2, 0),) makes a convolution of size 3 causal
    groups       channels in that many blocks, block j of the output sees only block j of the input; as many groups as
                 channels in and out: depthwise

Each is one number for all axes or a tuple with one per axis, except groups, which is one number.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnn._checks import cotangent, float_array, parameters, random_key, whole
from jaxnn.initializers import get_initializer
from jaxnn.layer import Layer, from_pair
from jaxnn.layers._correlation import correlate, exchange_channels, kernel_gradient, spread
from jaxnn.layers._windows import Padding, PerAxis, per_axis, windows_onto, windows_over

# ---------------------------------------------------------------- convolution


def conv_forward(
    params: dict,
    x: ArrayLike,
    *,
    stride: PerAxis = 1,
    padding: Padding = "same",
    dilation: PerAxis = 1,
    groups: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """A window of weights that slides over x.

    y[b, o]  = Σ_k x̃[b, s·o + d·k - front] w[k] + bias              x̃ = x, and 0 on padding; w[k] a (C_in, C_out) matrix
    dx[b, i] = Σ_o Σ_k dy[b, o] w[k]ᵀ  over s·o + d·k - front = i
    dw[k]    = Σ_b Σ_o x̃[b, s·o + d·k - front]ᵀ dy[b, o],  dbias = Σ_b Σ_o dy[b, o]

    <dy, y> = Σ_b,o,k x̃[b, s·o + d·k - front] w[k] dy[b, o] is linear in x and in w; the gradients are its derivatives.
    Both are convolutions: dx is that of dy, spread s apart, with the flipped kernel; dw that of x with dy as the
    kernel.

    params {"w": (*size, C_in/groups, C_out), "b": (C_out,)}, or without "b"; x (B, *in, C_in), y (B, *out, C_out), all
    of one dtype; out = (in + front + behind - d (size - 1) - 1) // s + 1. Cached: x.
    Raises ValueError where shapes or dtypes do not fit, or the window does not fit on the input.
    Numerics: sums in at least float32, bfloat16 rounded once. Nothing is skipped: a NaN or inf reaches every output
    whose window covers it. An empty batch gives gradients of 0. dx of a plain convolution takes as long as with
    `jax.grad`, dw on a CPU half as long and inside a `lax.scan` a twentieth; with groups, depthwise included, it is far
    faster (about 15x on a CPU). A depthwise convolution, and dw of windows of up to 25 taps, is written out tap by tap:
    the program grows with the window.
    Source: Dumoulin, Visin 2016, A guide to convolution arithmetic (arXiv:1603.07285).

    >>> edge = {"w": jnp.array([-1.0, 0.0, 1.0]).reshape(3, 1, 1)}
    >>> y, _ = conv_forward(edge, jnp.array([0.0, 0.0, 1.0, 3.0, 3.0]).reshape(1, 5, 1), padding="valid")
    >>> y.ravel()
    Array([1., 3., 2.], dtype=float32)
    """
    x = _check("conv", params, x, groups)
    w = params["w"]
    windows = windows_over("conv", x.shape[1:-1], w.shape[:-2], stride, padding, dilation)
    return _add_bias(correlate(x, w, windows, groups), params).astype(x.dtype), x


def conv_backward(
    params: dict,
    x: jax.Array,
    dy: jax.Array,
    *,
    stride: PerAxis = 1,
    padding: Padding = "same",
    dilation: PerAxis = 1,
    groups: int = 1,
) -> tuple[dict[str, jax.Array], jax.Array]:
    """dx[b, i] = Σ_o,k dy[b, o] w[k]ᵀ over s·o + d·k - front = i,  dw[k] = Σ_b,o x̃[b, s·o + d·k - front]ᵀ dy[b, o]."""
    w = params["w"]
    windows = windows_over("conv", x.shape[1:-1], w.shape[:-2], stride, padding, dilation)
    out_shape = (x.shape[0], *(window.n_out for window in windows), w.shape[-1])
    dy = cotangent("conv_backward", "dy", dy, "the layer's output", out_shape, x.dtype)
    dx = spread(dy, w, windows, groups).astype(x.dtype)
    return _dparams(params, kernel_gradient(x, dy, windows, groups), dy), dx


def conv(
    n_out: int,
    kernel_size: Sequence[int],
    *,
    stride: PerAxis = 1,
    padding: Padding = "same",
    dilation: PerAxis = 1,
    groups: int = 1,
    use_bias: bool = True,
    initializer: str | Callable[..., jax.Array] = "lecun_normal",
) -> Layer:
    """A convolution with n_out channels; see `conv_forward` for the formulas.

    kernel_size (3,) is for sequences, (3, 3) for images. The weights come from the initializer, whose fan-in is that of
    a group, Π size · C_in / groups ("he_normal" suits relu); the biases are 0. n_out = groups = C_in: depthwise.
    Raises ValueError for sizes below 1, groups that do not divide the channels, a window larger than the padded input,
    an unknown padding or initializer; and where x does not fit the weights.

    >>> out_shape, params, _ = conv(8, (3, 3), stride=2).init(jax.random.key(0), (1, 28, 28, 3))
    >>> out_shape, params["w"].shape
    ((1, 14, 14, 8), (3, 3, 3, 8))
    """
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}

    def out(sizes):
        return [window.n_out for window in windows_over("conv", sizes, kernel_size, stride, padding, dilation)]

    init = _init("conv", n_out, kernel_size, groups, use_bias, initializer, out)
    forward = functools.partial(conv_forward, **geometry)
    return from_pair(forward, functools.partial(conv_backward, **geometry), init, name="conv")


# ---------------------------------------------------------------- transposed convolution


def conv_transpose_forward(
    params: dict,
    x: ArrayLike,
    *,
    stride: PerAxis = 1,
    padding: Padding = "same",
    dilation: PerAxis = 1,
    groups: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """A convolution run backwards: each entry of x adds the kernel, times itself, to a larger y.

    y[b, i]  = Σ_o Σ_k x[b, o] w[k] + bias  over s·o + d·k - front = i        w[k] a (C_in, C_out) matrix
    dx[b, o] = Σ_k dỹ[b, s·o + d·k - front] w[k]ᵀ                             dỹ = dy, and 0 on padding
    dw[k]    = Σ_b Σ_o x[b, o]ᵀ dỹ[b, s·o + d·k - front],  dbias = Σ_b Σ_i dy[b, i]

    It is the dx of a `conv_forward` from C_out channels to C_in, for dy = x; so its own dx is that convolution of dy,
    and its dw the same sum as there with x and dy exchanged.

    params {"w": (*size, C_in/groups, C_out), "b": (C_out,)}, or without "b"; x (B, *in, C_in), y (B, *out, C_out), all
    of one dtype. Padding crops y: out = s (in - 1) + d (size - 1) + 1 - front - behind; "valid" crops nothing, "same"
    gives out = s·in. Cached: x.
    Raises ValueError where shapes or dtypes do not fit, or the padding leaves nothing.
    Numerics: as `conv_forward`.
    Source: Zeiler, Krishnan, Taylor, Fergus 2010, Deconvolutional networks; Dumoulin, Visin 2016 (arXiv:1603.07285).

    >>> ramp = {"w": jnp.array([1.0, 2.0, 3.0]).reshape(3, 1, 1)}
    >>> y, _ = conv_transpose_forward(ramp, jnp.array([1.0, 10.0]).reshape(1, 2, 1), stride=2, padding="valid")
    >>> y.ravel()
    Array([ 1.,  2., 13., 20., 30.], dtype=float32)
    """
    x = _check("conv_transpose", params, x, groups)
    w = params["w"]
    windows = windows_onto("conv_transpose", x.shape[1:-1], w.shape[:-2], stride, padding, dilation)
    return _add_bias(spread(x, exchange_channels(w, groups), windows, groups), params).astype(x.dtype), x


def conv_transpose_backward(
    params: dict,
    x: jax.Array,
    dy: jax.Array,
    *,
    stride: PerAxis = 1,
    padding: Padding = "same",
    dilation: PerAxis = 1,
    groups: int = 1,
) -> tuple[dict[str, jax.Array], jax.Array]:
    """dx[b, o] = Σ_k dỹ[b, s·o + d·k - front] w[k]ᵀ,  dw[k] = Σ_b,o x[b, o]ᵀ dỹ[b, s·o + d·k - front]."""
    w = params["w"]
    windows = windows_onto("conv_transpose", x.shape[1:-1], w.shape[:-2], stride, padding, dilation)
    out_shape = (x.shape[0], *(window.n_in for window in windows), w.shape[-1])
    dy = cotangent("conv_transpose_backward", "dy", dy, "the layer's output", out_shape, x.dtype)
    dx = correlate(dy, exchange_channels(w, groups), windows, groups).astype(x.dtype)
    dw = exchange_channels(kernel_gradient(dy, x, windows, groups), groups)
    return _dparams(params, dw, dy), dx


def conv_transpose(
    n_out: int,
    kernel_size: Sequence[int],
    *,
    stride: PerAxis = 1,
    padding: Padding = "same",
    dilation: PerAxis = 1,
    groups: int = 1,
    use_bias: bool = True,
    initializer: str | Callable[..., jax.Array] = "lecun_normal",
) -> Layer:
    """A transposed convolution with n_out channels; see `conv_transpose_forward` for the formulas, `conv` for the rest.

    >>> conv_transpose(3, (4, 4), stride=2).init(jax.random.key(0), (1, 14, 14, 8))[0]
    (1, 28, 28, 3)
    """
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}

    def out(sizes):
        return [window.n_in for window in windows_onto("conv_transpose", sizes, kernel_size, stride, padding, dilation)]

    init = _init("conv_transpose", n_out, kernel_size, groups, use_bias, initializer, out)
    forward = functools.partial(conv_transpose_forward, **geometry)
    return from_pair(forward, functools.partial(conv_transpose_backward, **geometry), init, name="conv_transpose")


# ---------------------------------------------------------------- shared by both


def _init(who, n_out, kernel_size, groups, use_bias, initializer, out):
    """init(key, in_shape) of a layer that turns spatial axes into out(axes)."""
    whole(who, "n_out", n_out, least=1)
    whole(who, "groups", groups, least=1)
    if not isinstance(kernel_size, Sequence) or not 1 <= len(kernel_size) <= 2:
        raise ValueError(f"{who}: kernel_size = {kernel_size}, expected (3,) for sequences or (3, 3) for images")
    kernel_size = per_axis(who, "kernel_size", kernel_size, len(kernel_size))
    if n_out % groups:
        raise ValueError(f"{who}: {groups} groups do not divide n_out = {n_out}; choose groups that divide it")
    draw = get_initializer(initializer)

    def init(key, in_shape):
        random_key(who, key)
        if len(in_shape) != len(kernel_size) + 2:
            raise ValueError(
                f"{who}: in_shape is {in_shape}, but a kernel of size {kernel_size} needs rank {len(kernel_size) + 2}: "
                f"batch, {len(kernel_size)} spatial axes, channels"
            )
        if in_shape[-1] % groups:
            raise ValueError(f"{who}: {groups} groups do not divide the {in_shape[-1]} channels of in_shape {in_shape}")
        w = draw(key, (*kernel_size, in_shape[-1] // groups, n_out))
        params = {"w": w, "b": jnp.zeros(n_out, w.dtype)} if use_bias else {"w": w}
        return (in_shape[0], *out(in_shape[1:-1]), n_out), params

    return init


def _check(who, params, x, groups):
    """x as an array; ValueError naming everything that does not fit."""
    parameters(who, params, ("w",), optional=("b",))
    whole(who, "groups", groups, least=1)
    w, b, x = params["w"], params.get("b"), float_array(who, "x", x)
    wrong = []
    if w.ndim not in (3, 4):
        wrong.append(f"w has shape {w.shape}, expected rank 3 for sequences or 4 for images")
    elif x.ndim != w.ndim:
        wrong.append(f"x has shape {x.shape}, but w of shape {w.shape} needs rank {w.ndim}: batch, space, channels")
    elif x.shape[-1] != w.shape[-2] * groups:
        wrong.append(
            f"x has {x.shape[-1]} channels (shape {x.shape}), but w of shape {w.shape} with groups = {groups} expects "
            f"{w.shape[-2]} · {groups} = {w.shape[-2] * groups}"
        )
    if w.ndim and w.shape[-1] % groups:
        wrong.append(f"{groups} groups do not divide the {w.shape[-1]} output channels of w (shape {w.shape})")
    if b is not None and b.shape != w.shape[-1:]:
        wrong.append(f"b has shape {b.shape}, but w of shape {w.shape} needs {w.shape[-1:]}")
    if not (x.dtype == w.dtype and (b is None or x.dtype == b.dtype)):
        found = f"x is {x.dtype}, w {w.dtype}" + ("" if b is None else f", b {b.dtype}")
        wrong.append(f"{found}: cast them to one dtype")
    if wrong:
        raise ValueError(f"{who}: " + "; ".join(wrong))
    return x


def _add_bias(y, params):
    """y + bias, in y's dtype."""
    return y + jnp.broadcast_to(params["b"], y.shape).astype(y.dtype) if "b" in params else y


def _dparams(params, dw, dy):
    dparams = {"w": dw.astype(params["w"].dtype)}
    return {**dparams, "b": dy.sum(tuple(range(dy.ndim - 1)))} if "b" in params else dparams
