"""Convolution beyond the battery: more geometries, a loop as the witness, what cannot be, and PyTorch."""

import functools
import re
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxnn import layers
from jaxnn.layer import Ctx
from jaxnn.layers import conv_backward, conv_forward, conv_transpose_backward, conv_transpose_forward
from jaxnn.verify.judge.compare import largest_error

KEY = jax.random.key(0, impl="unsafe_rbg")

# (spatial sizes, channels in and out, size of the kernel), and how it moves
CASES = [
    (((7,), 2, 3, (4,)), {"stride": 1, "padding": "same", "dilation": 1, "groups": 1}),
    (((9,), 4, 6, (2,)), {"stride": 3, "padding": "valid", "dilation": 2, "groups": 2}),  # reaches not all rows
    (((6,), 4, 4, (3,)), {"stride": 1, "padding": ((6, 0),), "dilation": 2, "groups": 4}),  # a window of padding
    (((7, 6), 2, 3, (1, 2)), {"stride": (3, 4), "padding": "same", "dilation": 1, "groups": 1}),  # skips entries
    (((5, 6), 3, 6, (3, 2)), {"stride": (2, 1), "padding": ((3, 0), (0, 4)), "dilation": (1, 3), "groups": 3}),
    (((6, 5), 3, 3, (3, 2)), {"stride": (3, 2), "padding": "same", "dilation": (2, 1), "groups": 3}),
    (((4, 7), 3, 3, (2, 3)), {"stride": (3, 5), "padding": ((2, 0), (0, 1)), "dilation": 1, "groups": 3}),
    (((5, 6), 9, 8, (3, 2)), {"stride": (1, 2), "padding": ((2, 1), (0, 1)), "dilation": (1, 2), "groups": 1}),
    (((31,), 2, 3, (26,)), {"stride": 2, "padding": ((3, 5),), "dilation": 1, "groups": 1}),  # more taps than fit
]


def numbers(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def lax_conv(w, x, stride, padding, dilation, groups):
    n = x.ndim - 2
    return lax.conv_general_dilated(
        x,
        w,
        (stride,) * n if isinstance(stride, int) else stride,
        padding.upper() if isinstance(padding, str) else padding,
        rhs_dilation=(dilation,) * n if isinstance(dilation, int) else dilation,
        dimension_numbers=[("NWC", "WIO", "NWC"), ("NHWC", "HWIO", "NHWC")][n - 1],
        feature_group_count=groups,
    )


def conv_by_lax(params, x, y_shape, options):
    return lax_conv(params["w"], x, **options) + params["b"].reshape(*[1] * (x.ndim - 1), -1)


def conv_transpose_by_lax(params, x, y_shape, options):
    """The vjp of the convolution that goes from y to x."""
    transposed = [jnp.swapaxes(block, -1, -2) for block in jnp.split(params["w"], options["groups"], -1)]
    w = jnp.concatenate(transposed, -1)
    (y,) = jax.vjp(lambda y: lax_conv(w, y, **options), jnp.zeros(y_shape))[1](x)
    return y + params["b"].reshape(*[1] * (x.ndim - 1), -1)


@pytest.mark.parametrize(
    ("constructor", "truth"),
    [(layers.conv, conv_by_lax), (layers.conv_transpose, conv_transpose_by_lax)],
    ids=["conv", "conv_transpose"],
)
def test_against_autodiff_of_lax(constructor, truth):
    models, points = [], []
    for i, ((sizes, c_in, c_out, kernel), options) in enumerate(CASES):
        models.append((constructor(c_out, kernel, **options), options))
        y_shape, params, _ = models[-1][0].init(KEY, (2, *sizes, c_in))
        params = {name: numbers([i, j], *leaf.shape) for j, (name, leaf) in enumerate(sorted(params.items()))}
        points.append((params, numbers([i, 2], 2, *sizes, c_in), numbers([i, 3], *y_shape)))

    @jax.jit
    def ours_and_truth(points):
        results = []
        for (layer, options), (params, x, dy) in zip(models, points, strict=True):
            y, _, cache = layer.forward(params, (), x, Ctx())
            expected, vjp = jax.vjp(lambda *inputs, s=dy.shape, o=options: truth(*inputs, s, o), params, x)
            results.append(((y, layer.backward(params, cache, dy)), (expected, vjp(dy))))
        return results

    with jax.enable_x64(True):
        for case, (ours, expected) in zip(CASES, ours_and_truth(points), strict=True):
            assert largest_error(ours, expected) < 1e-12, case


@pytest.mark.quick
def test_the_formulas_as_loops():
    """y, dx and dw entry by entry; the transposed convolution takes dy for its input and x for its dy."""
    (b, h, w, c_in), k, s, d, front, c_out = (2, 6, 5, 2), (3, 2), (2, 3), (1, 2), (2, 1), 3
    options = {"stride": s, "padding": ((2, 1), (1, 0)), "dilation": d}
    x, kernel, bias = numbers(1, b, h, w, c_in), numbers(2, *k, c_in, c_out), numbers(3, c_out)
    dy = numbers(4, b, 4, 2, c_out)
    y, dx, dw = np.zeros_like(dy), np.zeros_like(x), np.zeros_like(kernel)
    for n, *o in product(range(b), range(4), range(2)):
        for t in product(range(k[0]), range(k[1])):
            i = [s[a] * o[a] + d[a] * t[a] - front[a] for a in (0, 1)]
            if 0 <= i[0] < h and 0 <= i[1] < w:
                y[n, *o] += x[n, *i] @ kernel[t]
                dx[n, *i] += kernel[t] @ dy[n, *o]
                dw[t] += np.outer(x[n, *i], dy[n, *o])

    @jax.jit
    def ours(x, kernel, bias, dy):
        params, transposed = {"w": kernel, "b": bias}, {"w": jnp.swapaxes(kernel, -1, -2)}
        y, cache = conv_forward(params, x, **options)
        y_transposed, cache_transposed = conv_transpose_forward(transposed, dy, **options)
        return (
            y,
            conv_backward(params, cache, dy, **options),
            y_transposed,
            conv_transpose_backward(transposed, cache_transposed, x, **options),
        )

    with jax.enable_x64(True):
        found = ours(x, kernel, bias, dy)
    expected = (
        y + bias,
        ({"w": dw, "b": dy.sum((0, 1, 2))}, dx),
        dx,
        ({"w": np.swapaxes(dw, -1, -2)}, y),
    )
    assert largest_error(found, expected) < 1e-13


def test_weights_are_drawn_for_the_fan_in_of_a_group():
    drawn = []

    def draw(key, shape, dtype=None):
        drawn.append(shape)
        return jnp.zeros(shape)

    for constructor in (layers.conv, layers.conv_transpose):
        _, params, _ = constructor(6, (3, 5), groups=2, use_bias=False, initializer=draw).init(KEY, (1, 9, 9, 4))
        assert set(params) == {"w"}
    assert drawn == [(3, 5, 2, 6), (3, 5, 2, 6)]


def forward_and_backward(params, x, dy, groups):
    y, cache = conv_forward(params, x, padding="valid", groups=groups)
    return y, *conv_backward(params, cache, dy, padding="valid", groups=groups)


def test_low_precision_is_summed_in_float32_and_rounded_once():
    """257 is 256 in bfloat16, so 256 + 1 + 1 is 256 there, if it is rounded after each sum."""
    half = jnp.bfloat16

    @jax.jit
    def run():
        plain = {"w": jnp.ones((1, 257, 2), half), "b": jnp.ones(2, half)}
        y, _, _ = forward_and_backward(plain, jnp.ones((1, 1, 257), half), jnp.ones((1, 1, 2), half), 1)
        depthwise = {"w": jnp.ones((3, 1, 2), half), "b": jnp.ones(2, half)}
        _, dparams, _ = forward_and_backward(depthwise, jnp.ones((1, 302, 2), half), jnp.ones((1, 300, 2), half), 2)
        return y, dparams

    y, dparams = run()
    assert (y == 258).all()
    assert (dparams["w"] == 300).all()
    assert (dparams["b"] == 300).all()


def test_an_empty_batch_has_gradients_of_zero():
    @jax.jit
    def run():
        x, dy = jnp.ones((0, 3, 4)), jnp.ones((0, 1, 4))
        shapes = {1: (3, 4, 4), 2: (3, 2, 4), 4: (3, 1, 4)}
        return [forward_and_backward({"w": jnp.ones(shape)}, x, dy, g)[1] for g, shape in shapes.items()]

    for dparams in run():
        assert (dparams["w"] == 0).all()


def test_a_depthwise_convolution_is_written_out_for_xla_is_slow_at_it():
    for groups, written_out in ((4, True), (2, False)):
        params = {"w": jnp.ones((3, 4 // groups, 4))}
        f = functools.partial(forward_and_backward, groups=groups)
        program = jax.jit(f).lower(params, jnp.ones((1, 3, 4)), jnp.ones((1, 1, 4))).as_text()
        assert ("stablehlo.convolution" not in program) == written_out


def test_nothing_that_is_not_finite_is_skipped():
    """0 · NaN is NaN where the window has a place, also for the depthwise form."""
    x = np.zeros((1, 6, 2), np.float32)
    x[0, 2, 0] = np.nan
    for groups, channels in ((1, [True, True]), (2, [True, False])):
        y, _ = conv_forward({"w": jnp.zeros((3, 2 // groups, 2))}, x, groups=groups)
        np.testing.assert_array_equal(np.isnan(y[0]), np.outer([False, True, True, True, False, False], channels))


def fails(message, f, *args, **kwargs):
    with pytest.raises(ValueError, match=re.escape(message)):
        f(*args, **kwargs)


def test_what_does_not_fit_is_named():
    image, w, b = jnp.zeros((2, 6, 5, 4)), jnp.zeros((3, 3, 2, 6)), jnp.zeros(6)
    channels = "x has 4 channels (shape (2, 6, 5, 4)), but w of shape (3, 3, 2, 6) with groups = 1 expects 2 · 1 = 2"
    for who, forward in (("conv", conv_forward), ("conv_transpose", conv_transpose_forward)):
        fails(f"{who}: {channels}; b has shape (5,)", forward, {"w": w, "b": b[:5]}, image)
        fails("4 groups do not divide the 6 output channels", forward, {"w": w}, jnp.zeros((2, 6, 5, 8)), groups=4)
        fails("needs rank 4", forward, {"w": w, "b": b}, jnp.zeros((6, 5, 4)), groups=2)
        fails("expected rank 3 for sequences or 4 for images", forward, {"w": w[0, 0]}, image)
        fails("x has dtype int32", forward, {"w": w}, image.astype(int))
        fails("x is bfloat16, w float32, b float32", forward, {"w": w, "b": b}, image.astype(jnp.bfloat16), groups=2)
        fails("params has ['w', 'z']", forward, {"w": w, "z": b}, image)
        fails("unknown padding 'sane'; did you mean 'same'?", forward, {"w": w}, image, padding="sane", groups=2)
        for padding in (1, ((1, 1),), ((1, 1, 1), (2, 2, 2))):
            fails("2 pairs (in front, behind)", forward, {"w": w}, image, padding=padding, groups=2)
        fails("padding = -1", forward, {"w": w}, image, padding=((0, 0), (-1, 0)), groups=2)
        fails("stride = (1, 1, 1) has 3 entries", forward, {"w": w}, image, stride=(1, 1, 1), groups=2)
        fails("dilation = 0", forward, {"w": w}, image, dilation=0, groups=2)
    seven = "a window spans 7 entries, but axis"
    expected = f"conv: {seven} 1 has 6 and padding (0, 0); {seven} 2 has 5 and padding (0, 0); use"
    fails(expected, conv_forward, {"w": w}, image, padding="valid", dilation=3, groups=2)
    many = ((7, 7), (0, 0))
    expected = "conv_transpose: padding (7, 7) leaves -6 entries on axis 1, which has 6"
    fails(expected, conv_transpose_forward, {"w": w}, image, padding=many, groups=2)
    fails("conv_backward: dy has shape (2, 6, 5, 1)", conv_backward, {"w": w}, image, image[..., :1], groups=2)
    dy = jnp.zeros((2, 12, 10, 1))
    fails("conv_transpose_backward: dy has", conv_transpose_backward, {"w": w}, image, dy, stride=2, groups=2)


def test_layers_that_cannot_be():
    for who, constructor in (("conv", layers.conv), ("conv_transpose", layers.conv_transpose)):
        fails(f"{who}: n_out = 0", constructor, 0, (3,))
        fails("kernel_size = 3, expected (3,) for sequences", constructor, 4, 3)
        fails("kernel_size = 0", constructor, 4, (3, 0))
        fails("groups = 0", constructor, 4, (3,), groups=0)
        fails("3 groups do not divide n_out = 4", constructor, 4, (3,), groups=3)
        fails("2 groups do not divide the 3 channels", constructor(4, (3,), groups=2).init, KEY, (1, 5, 3))
        fails("a kernel of size (3,) needs rank 3", constructor(4, (3,)).init, KEY, (1, 5, 5, 3))
        fails("needs a key, but got None", constructor(4, (3,)).init, None, (1, 5, 3))


@pytest.mark.peers
def test_pytorch_says_the_same():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x = numbers(1, 2, 7, 6, 4)
    options = {"stride": (2, 3), "padding": ((2, 2), (1, 1)), "dilation": (2, 1), "groups": 2}
    theirs = {"stride": (2, 3), "padding": (2, 1), "dilation": (2, 1), "groups": 2, "dtype": torch.float64}

    def image(x):  # NHWC -> NCHW, and back with the inverse
        return torch.tensor(np.moveaxis(x, -1, 1))

    def kernel(w):  # (h, w, C_in/groups, C_out) -> (C_out, C_in/groups, h, w)
        return np.transpose(w, (3, 2, 0, 1))

    def transposed_kernel(w):  # (h, w, C_in/groups, C_out) -> (C_in, C_out/groups, h, w)
        return np.concatenate([np.transpose(block, (2, 3, 0, 1)) for block in np.split(w, 2, -1)])

    shorter = {**options, "padding": ((2, 1), (1, 0))}  # PyTorch's output_padding: less padding behind
    for module, convert, pair, ours in (
        (torch.nn.Conv2d(4, 6, (3, 2), **theirs), kernel, (conv_forward, conv_backward), options),
        (
            torch.nn.ConvTranspose2d(4, 6, (3, 2), output_padding=1, **theirs),
            transposed_kernel,
            (conv_transpose_forward, conv_transpose_backward),
            shorter,
        ),
    ):
        forward, backward = pair
        params = {"w": numbers(2, 3, 2, 2, 6), "b": numbers(3, 6)}
        with torch.no_grad():
            module.weight.copy_(torch.tensor(convert(params["w"])))
            module.bias.copy_(torch.tensor(params["b"]))
        x_theirs = image(x).requires_grad_()
        y_theirs = module(x_theirs)
        with jax.enable_x64(True):
            y, cache = forward(params, x, **ours)
            dy = numbers(4, *y.shape)
            dparams, dx = backward(params, cache, jnp.asarray(dy), **ours)
        y_theirs.backward(image(dy))
        found = {"y": y, "dx": dx, "w": convert(np.asarray(dparams["w"])), "b": dparams["b"]}
        expected = {
            "y": np.moveaxis(y_theirs.detach().numpy(), 1, -1),
            "dx": np.moveaxis(x_theirs.grad.numpy(), 1, -1),
            "w": module.weight.grad.numpy(),
            "b": module.bias.grad.numpy(),
        }
        assert largest_error(found, expected) < 1e-12
