"""One sum, three maps. Convolution, its two gradients and transposed convolution are all partial derivatives of

    φ(x, w, g) = Σ_b Σ_o Σ_k  x̃[b, s·o + d·k - l, :] · w[k] · g[b, o, :]          x̃ = x, and 0 on padding

which is linear in each of its three arguments:

    correlate        ∂φ/∂g [b, o] = Σ_k x̃[b, s·o + d·k - l] w[k]                  a convolution
    spread           ∂φ/∂x [b, i] = Σ_(s·o + d·k - l = i) g[b, o] w[k]ᵀ           the gradient of its input
    kernel_gradient  ∂φ/∂w [k]    = Σ_b Σ_o x̃[b, s·o + d·k - l]ᵀ g[b, o]          the gradient of its kernel

Shapes: x (B, *n_in, C), w (*size, C/groups, C'), g (B, *n_out, C'); o, k, i, s, d, l as in `_windows.py`. With groups,
C and C' are cut into that many blocks, and block j of x meets only block j of g.

Numerics: products and sums in at least float32, which is also the dtype of the result. With a depthwise kernel (as many
groups as C and C') all three are written out as sums of shifted products over the taps: XLA for CPU takes ten times
longer for convolutions with that many groups. ∂φ/∂w is a convolution with groups of channels, for which x is
transposed; `jax.grad` asks for groups in the batch instead, for which XLA for CPU also takes more than ten times
longer. On a CPU, without groups and for windows of up to 25 taps, it is a sum of matrix products instead: as a
convolution, XLA takes twice as long, and twenty times as long inside a loop, such as an epoch that is one `lax.scan`.
"""

import functools
import math
import operator

import jax
import jax.numpy as jnp
from jax import lax

from jaxnn._checks import at_least_float32
from jaxnn._parallel import by_device
from jaxnn.layers._windows import Window, sum_taps, taps

Windows = tuple[Window, ...]


def correlate(x: jax.Array, w: jax.Array, windows: Windows, groups: int) -> jax.Array:
    """∂φ/∂g [b, o] = Σ_k x̃[b, s·o + d·k - l] w[k], (B, *n_out, C')."""
    if _is_depthwise(w, groups):
        terms = (_wide(tap) * w_k for tap, w_k in zip(taps(x, windows), _rows(w), strict=True))
        return functools.reduce(operator.add, terms)
    return lax.conv_general_dilated(
        x,
        w,
        window_strides=[a.stride for a in windows],
        padding=[(a.front, a.behind) for a in windows],
        rhs_dilation=[a.dilation for a in windows],
        dimension_numbers=_layouts("N.C", ".IO", "N.C", windows),
        feature_group_count=groups,
        preferred_element_type=at_least_float32(x.dtype),
    )


def spread(g: jax.Array, w: jax.Array, windows: Windows, groups: int) -> jax.Array:
    """∂φ/∂x [b, i] = Σ_(s·o + d·k - l = i) g[b, o] w[k]ᵀ, (B, *n_in, C).

    Also a convolution: g with s - 1 zeros between its entries and d (size - 1) - l in front, the kernel flipped and its
    channels exchanged.
    """
    if _is_depthwise(w, groups):
        rows = _rows(w)
        return sum_taps(lambda k, g_k: _wide(g_k) * rows[k], [g], windows)
    front = [a.dilation * (a.size - 1) - a.front for a in windows]
    behind = [a.n_in + a.front - 1 - a.stride * (a.n_out - 1) for a in windows]
    return lax.conv_general_dilated(
        g,
        jnp.flip(exchange_channels(w, groups), range(len(windows))),
        window_strides=[1] * len(windows),
        padding=list(zip(front, behind, strict=True)),
        lhs_dilation=[a.stride for a in windows],
        rhs_dilation=[a.dilation for a in windows],
        dimension_numbers=_layouts("N.C", ".IO", "N.C", windows),
        feature_group_count=groups,
        preferred_element_type=at_least_float32(g.dtype),
    )


def kernel_gradient(x: jax.Array, g: jax.Array, windows: Windows, groups: int) -> jax.Array:
    """∂φ/∂w [k] = Σ_b Σ_o x̃[b, s·o + d·k - l]ᵀ g[b, o], (*size, C/groups, C').

    One matrix product per tap; or a convolution with the roles exchanged: g is the kernel, with s - 1 gaps between its
    entries, it moves over x in steps of d, and the sum runs over the batch as it does over the channels elsewhere.
    """
    return by_device(lambda x, g: ((), _kernel_gradient(x, g, windows, groups)), (x, g))[1]


def _kernel_gradient(x, g, windows, groups):
    if _is_depthwise_pair(x, g, groups):
        products = tuple(_wide(tap) * _wide(g) for tap in taps(x, windows))
        zeros = (jnp.zeros((), products[0].dtype),) * len(products)
        # One reduction for all taps reads x and g once; over one axis first, it leaves enough sums to parallelize.
        sums = lax.reduce(products, zeros, lambda a, b: tuple(map(operator.add, a, b)), (len(windows),))
        sums = [one.sum(tuple(range(one.ndim - 1))) for one in sums]
        return jnp.stack(sums).reshape(*(a.size for a in windows), 1, x.shape[-1])
    if groups == 1 and math.prod(a.size for a in windows) <= 25:
        return lax.platform_dependent(x, g, cpu=_tap_by_tap(windows), default=_as_convolution(windows, groups))
    return _as_convolution(windows, groups)(x, g)


def _tap_by_tap(windows):
    """∂φ/∂w with one matrix product per tap, or one for all where x has so few channels that the copies are small."""

    def calculate(x, g):
        seen, dtype = taps(x, windows), at_least_float32(x.dtype)
        if x.shape[-1] < 8:
            dw = _product(jnp.stack(seen), g, 1, dtype)  # (Π size, C, C')
        else:
            dw = jnp.stack([_product(tap, g, 0, dtype) for tap in seen])
        return dw.reshape(*(a.size for a in windows), x.shape[-1], g.shape[-1])

    return calculate


def _product(x, g, first, dtype):
    """Σ over the batch and all places: axes first, first + 1, … of x with 0, 1, … of g, all but the last."""
    axes = tuple(range(g.ndim - 1))
    contracted = (tuple(first + axis for axis in axes), axes)
    return lax.dot_general(x, g, (contracted, ((), ())), preferred_element_type=dtype)


def _as_convolution(windows, groups):
    """∂φ/∂w as a convolution: g is the kernel, spread s apart, and moves over x in steps of d."""

    def calculate(x, g):
        behind = [a.dilation * (a.size - 1) + a.stride * (a.n_out - 1) + 1 - a.n_in - a.front for a in windows]
        x = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
        x = jnp.moveaxis(x, (-1, 0), (0, -1))  # (C/groups, ., G, B)
        return lax.conv_general_dilated(
            x.reshape(*x.shape[:-2], groups * x.shape[-1]),
            g,
            window_strides=[a.dilation for a in windows],
            padding=[(a.front, one) for a, one in zip(windows, behind, strict=True)],
            rhs_dilation=[a.stride for a in windows],
            dimension_numbers=_layouts("N.C", "I.O", ".NC", windows),
            feature_group_count=groups,
            preferred_element_type=at_least_float32(x.dtype),
        )

    return calculate


def exchange_channels(w: jax.Array, groups: int) -> jax.Array:
    """w (*size, C/groups, C') -> (*size, C'/groups, C): each group's matrix transposed."""
    *size, a, b = w.shape
    w = jnp.swapaxes(w.reshape(*size, a, groups, b // groups), -3, -1)  # (*size, C'/groups, groups, C/groups)
    return w.reshape(*size, b // groups, groups * a)


def _is_depthwise(w, groups):
    return groups > 1 and w.shape[-2] == 1 and w.shape[-1] == groups


def _is_depthwise_pair(x, g, groups):
    return groups > 1 and x.shape[-1] == g.shape[-1] == groups


def _rows(w):
    """A row of channels for each tap, with x's rank."""
    return list(_wide(w).reshape(-1, *[1] * (w.ndim - 1), w.shape[-1]))


def _wide(x):
    return x.astype(at_least_float32(x.dtype))


def _layouts(lhs, rhs, out, windows):
    """The layouts, with the axes of the windows in place of the dot."""
    axes = "HW"[: len(windows)]
    return lhs.replace(".", axes), rhs.replace(".", axes), out.replace(".", axes)
