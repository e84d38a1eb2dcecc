"""Pooling beyond the battery: ties, NaN, padding, a loop as the witness, memory, what cannot be, and PyTorch."""

import re
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxnn import layers
from jaxnn.layer import Ctx
from jaxnn.layers import avg_pool_backward, avg_pool_forward, max_pool_backward, max_pool_forward
from jaxnn.verify.judge.compare import largest_error

# (spatial sizes, window), and how it moves
CASES = [
    (((7,), (3,)), {"stride": 1, "padding": "same"}),
    (((9, 6), (2, 3)), {"stride": None, "padding": "valid"}),  # the window's own stride; a row that it never reaches
    (((6, 7), (3, 2)), {"stride": (1, 3), "padding": ((2, 1), (0, 1))}),
    (((5, 4), (1, 2)), {"stride": 3, "padding": "same"}),  # skips entries
    (((7, 8), (5, 6)), {"stride": (2, 3), "padding": "same"}),  # enough taps for a loop
]


def numbers(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def lax_pool(x, init, combine, window, stride, padding):
    stride = window if stride is None else (stride,) * len(window) if isinstance(stride, int) else stride
    padding = padding.upper() if isinstance(padding, str) else ((0, 0), *padding, (0, 0))
    return lax.reduce_window(x, init, combine, (1, *window, 1), (1, *stride, 1), padding)


def max_by_lax(x, window, options):
    return lax_pool(x, -jnp.inf, lax.max, window, **options)


def avg_by_lax(x, window, options):
    total, n = (lax_pool(one, 0.0, lax.add, window, **options) for one in (x, jnp.ones_like(x)))
    return total / n


@pytest.mark.parametrize(
    ("constructor", "truth"), [(layers.max_pool, max_by_lax), (layers.avg_pool, avg_by_lax)], ids=["max", "avg"]
)
def test_against_autodiff_of_lax(constructor, truth):
    """x has many equal entries: of ties, both give the gradient to the first in the window."""
    models, points = [], []
    for i, ((sizes, window), options) in enumerate(CASES):
        models.append((constructor(window, **options), window, options))
        y_shape, _, _ = models[-1][0].init(jax.random.key(0), (2, *sizes, 3))
        x = np.random.default_rng(i).integers(0, 3, size=(2, *sizes, 3)).astype(float)
        points.append((x, numbers(i, *y_shape)))

    @jax.jit
    def ours_and_truth(points):
        results = []
        for (layer, window, options), (x, dy) in zip(models, points, strict=True):
            y, _, cache = layer.forward({}, (), x, Ctx())
            expected, vjp = jax.vjp(lambda x, w=window, o=options: truth(x, w, o), x)
            results.append(((y, layer.backward({}, cache, dy)[1]), (expected, *vjp(dy))))
        return results

    with jax.enable_x64(True):
        for case, (ours, expected) in zip(CASES, ours_and_truth(points), strict=True):
            assert largest_error(ours, expected) < 1e-14, case


@pytest.mark.quick
def test_the_formulas_as_loops():
    """Window by window; of ties the first row by row, and padding neither wins nor counts."""
    (b, h, w, c), window, stride, front = (2, 5, 4, 3), (3, 2), (2, 1), (1, 1)
    options = {"window": window, "stride": stride, "padding": ((1, 1), (1, 0))}
    x, dy = np.round(numbers(1, b, h, w, c)) - 5, numbers(2, b, 3, 4, c)
    y_max, dx_max, y_avg, dx_avg = np.zeros_like(dy), np.zeros_like(x), np.zeros_like(dy), np.zeros_like(x)
    for n, *o, j in np.ndindex(*dy.shape):
        start = [stride[a] * o[a] - front[a] for a in (0, 1)]
        seen = [(n, start[0] + t, start[1] + u, j) for t, u in product(range(3), range(2))]
        seen = [i for i in seen if 0 <= i[1] < h and 0 <= i[2] < w]
        largest = max(seen, key=lambda i: x[i])  # the first of them
        y_max[n, *o, j], y_avg[n, *o, j] = x[largest], np.mean([x[i] for i in seen])
        dx_max[largest] += dy[n, *o, j]
        for i in seen:
            dx_avg[i] += dy[n, *o, j] / len(seen)

    @jax.jit
    def ours(x, dy):
        (y_max, of_max), (y_avg, of_avg) = max_pool_forward({}, x, **options), avg_pool_forward({}, x, **options)
        dx_max, dx_avg = max_pool_backward({}, of_max, dy, **options), avg_pool_backward({}, of_avg, dy, **options)
        return y_max, dx_max[1], y_avg, dx_avg[1]

    with jax.enable_x64(True):
        assert largest_error(ours(x, dy), (y_max, dx_max, y_avg, dx_avg)) < 1e-14


@jax.jit
def in_pairs(x, dy):
    """Of a sequence x (T,), (y, dx) of windows of two with one entry of padding on either side."""
    y, cache = max_pool_forward({}, x[None, :, None], (2,), padding=((1, 1),))
    return y.ravel(), max_pool_backward({}, cache, dy[None, :, None], (2,), padding=((1, 1),))[1].ravel()


def test_nan_and_infinity():
    nan, inf = np.nan, np.inf
    for x, y, dx in (
        ([nan, 1, nan, 2], [nan, nan, 2], [1, 0, 2, 3]),
        ([1, nan, nan, nan], [1, nan, nan], [1, 2, 0, 3]),
        ([1, -inf, inf, -inf], [1, inf, -inf], [1, 0, 2, 3]),
        ([-inf, -inf, -inf, 1], [-inf, -inf, 1], [0, 2, 0, 3]),  # in front of x[0] the padding is -inf too
    ):
        found_y, found_dx = in_pairs(np.array(x, np.float32), np.array([1, 2, 3], np.float32))
        np.testing.assert_array_equal(found_y, y)
        np.testing.assert_array_equal(found_dx, dx)


def test_windows_of_more_taps_than_a_byte_counts():
    x = np.zeros((1, 520, 2), np.float32)
    x[0, 259, 0] = x[0, 519, 1] = 1
    y, (which, _) = max_pool_forward({}, x, (260,))
    np.testing.assert_array_equal(y[0], [[1, 0], [0, 1]])
    np.testing.assert_array_equal(which[0], [[259, 0], [0, 259]])


BLIND = [
    (((3,), (2,)), {"stride": 1, "padding": ((2, 0),)}),
    (((3,), (2,)), {"stride": 1, "padding": ((5, 0),)}),  # the first places lie far outside
    (((3,), (2,)), {"stride": 1, "padding": ((0, 4),)}),
    (((5,), (1,)), {"stride": 4, "padding": ((1, 0),)}),
    (((2,), (2,)), {"stride": 5, "padding": ((0, 6),)}),
    (((6, 3), (2, 2)), {"stride": None, "padding": ((0, 0), (0, 3))}),
]


@pytest.mark.parametrize(("sizes", "options"), BLIND)
@pytest.mark.parametrize("constructor", [layers.max_pool, layers.avg_pool])
def test_windows_that_see_nothing_but_padding(constructor, sizes, options):
    in_sizes, window = sizes
    layer = constructor(window, **options)
    for call in (lambda x: layer.forward({}, (), x, Ctx()), lambda x: layer.init(jax.random.key(0), x.shape)):
        with pytest.raises(ValueError, match=r"sees nothing but padding, at place \d of \d on axis"):
            call(jnp.ones((2, *in_sizes, 3)))


def test_windows_over_the_edge_see_what_is_there():
    """All windows of every size, stride and padding on a short axis: an error, or finite means of 1."""
    for n, k, s, front, behind in product((1, 2, 4), (1, 2, 3), (1, 2, 4), range(5), range(5)):
        places = range(0, n + front + behind - k + 1, s)
        sees = [any(0 <= o + tap - front < n for tap in range(k)) for o in places]
        if not places:
            continue
        layer = layers.avg_pool((k,), stride=s, padding=((front, behind),))
        if all(sees):
            assert layer.init(jax.random.key(0), (1, n, 1))[0] == (1, len(places), 1)
        else:
            fails("sees nothing but padding", layer.init, None, (1, n, 1))


def test_low_precision_is_summed_in_float32():
    """256 + 1 + 1 is 256 in bfloat16. Without jit, where XLA would skip the rounding in between by itself."""
    options = {"window": (3,), "stride": 1, "padding": ((0, 2),)}  # all three windows see the last entry
    x = jnp.array([256, 1, 1], jnp.bfloat16).reshape(1, 3, 1)
    dy = x[:, ::-1]  # the last window's is added first
    counts = jnp.array([3, 2, 1], jnp.bfloat16).reshape(1, 3, 1)
    mean, of_avg = avg_pool_forward({}, x, **options)
    total, _, _ = layers.global_avg_pool().forward({}, (), x, Ctx())
    _, of_max = max_pool_forward({}, -counts, **options)  # the last entry is the largest
    _, dx_max = max_pool_backward({}, of_max, dy, **options)
    _, dx_avg = avg_pool_backward({}, of_avg, dy * counts, **options)
    assert [one.item() for one in (mean[0, 0, 0], total[0, 0], dx_max[0, 2, 0], dx_avg[0, 2, 0])] == [86, 86, 258, 258]


@pytest.mark.parametrize(("window", "stride", "side"), [(2, 2, 28), (3, 2, 29)])
def test_the_backward_of_max_pool_needs_less_memory_than_autodiff(window, stride, side):
    options = {"window": (window, window), "stride": stride, "padding": "valid"}

    def ours(x, dy):
        y, cache = max_pool_forward({}, x, **options)
        return y, max_pool_backward({}, cache, dy, **options)[1]

    def autodiff(x, dy):
        y, vjp = jax.vjp(lambda x: lax_pool(x, -jnp.inf, lax.max, **options), x)
        return y, vjp(dy)[0]

    def temporaries(f):
        shapes = [jax.ShapeDtypeStruct((8, n, n, 32), jnp.float32) for n in (side, 14)]
        memory = jax.jit(f).lower(*shapes).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    assert temporaries(ours) < 0.2 * temporaries(autodiff)


def fails(message, f, *args, **kwargs):
    with pytest.raises(ValueError, match=re.escape(message)):
        f(*args, **kwargs)


def test_what_cannot_be():
    image = jnp.zeros((2, 6, 5, 3))
    for who, constructor in (("max_pool", layers.max_pool), ("avg_pool", layers.avg_pool)):

        def forward(window, x=image, constructor=constructor, **options):
            return constructor(window, **options).forward({}, (), x, Ctx())

        fails(f"{who}: window = 2 and x has shape (2, 6, 5, 3)", forward, 2)
        fails(f"{who}: window = (2,) and x has shape (2, 6, 5, 3)", forward, (2,))
        fails(f"{who}: window = (2, 2) and x has shape (6, 5, 3)", constructor((2, 2)).init, None, (6, 5, 3))
        fails("window = 0", forward, (2, 0))
        fails("stride = 0", forward, (2, 2), stride=0)
        fails(f"{who}: a window spans 7 entries, but axis 1 has 6 and padding (0, 0)", forward, (7, 2))
        fails("a window of (2, 2) sees nothing but padding", forward, (2, 2), padding=((2, 0), (0, 0)))
        fails("unknown padding 'sme'; did you mean 'same'?", forward, (2, 2), padding="sme")
        fails(f"{who}: x has dtype int32", forward, (2, 2), image.astype(int))
        _, _, cache = forward((2, 2))
        dy = image[:, :3, :2, :1]
        fails(f"{who}_backward: dy has shape (2, 3, 2, 1)", constructor((2, 2)).backward, {}, cache, dy)
    layer = layers.global_avg_pool()
    for shape in ((2, 3), (2, 0, 3)):
        fails(f"global_avg_pool: x has shape {shape}", layer.forward, {}, (), jnp.zeros(shape), Ctx())
    _, _, cache = layer.forward({}, (), image, Ctx())
    fails("global_avg_pool_backward: dy has shape (2, 1)", layer.backward, {}, cache, jnp.zeros((2, 1)))


@pytest.mark.peers
def test_pytorch_says_the_same():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x = np.random.default_rng(0).integers(0, 4, size=(2, 7, 6, 3)).astype(float)
    options = {"window": (3, 2), "stride": (2, 1), "padding": ((1, 1), (1, 1))}
    theirs = {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 1)}

    def nchw(x):
        return torch.tensor(np.moveaxis(np.asarray(x), -1, 1))

    for module, layer in (
        (torch.nn.MaxPool2d(**theirs), layers.max_pool(**options)),
        (torch.nn.AvgPool2d(**theirs, count_include_pad=False), layers.avg_pool(**options)),
    ):
        x_theirs = nchw(x).requires_grad_()
        y_theirs = module(x_theirs)
        with jax.enable_x64(True):
            y, _, cache = layer.forward({}, (), x, Ctx())
            dy = numbers(1, *y.shape)
            _, dx = layer.backward({}, cache, jnp.asarray(dy))
        y_theirs.backward(nchw(dy))
        assert largest_error((nchw(y), nchw(dx)), (y_theirs.detach(), x_theirs.grad)) < 1e-14
