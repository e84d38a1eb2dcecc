"""Embeddings and positions: what the battery of test_rules.py does not say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import layers
from jaxnn.combinators import remat, serial
from jaxnn.layer import Ctx, as_custom_vjp
from jaxnn.layers import cos_sin, embedding_backward, embedding_forward, rotary_backward, rotary_forward
from jaxnn.verify.judge.rule import numbers, random_params, shapes_of

KEY = jax.random.key(0, impl="unsafe_rbg")


def test_ids_out_of_range_are_nan_and_give_nothing_to_the_table():
    """Under jit, where their values are not known; the gradient is that of finite differences all the same."""
    ids, dy = np.array([[1, 4, 1], [-1, 2, 5]]), numbers(1, 2, 3, 2)
    valid = ((ids >= 0) & (ids < 5))[..., None]
    h, table = 1e-3, numbers(2, 5, 2)

    @jax.jit
    def run(table, ids, dy):
        y, cache = embedding_forward({"table": table}, ids)
        return y, embedding_backward({"table": table}, cache, dy)[0]["table"]

    with jax.enable_x64(True):
        y, dtable = run(table, ids, dy)
        moved = jax.jit(jax.vmap(lambda step: jnp.where(valid, run(table + step, ids, dy)[0] * dy, 0).sum()))
        steps = h * np.eye(10).reshape(10, 5, 2)
        slopes = (np.asarray(moved(steps)) - np.asarray(moved(-steps))).reshape(5, 2) / (2 * h)
    np.testing.assert_array_equal(np.isnan(y), ~np.broadcast_to(valid, y.shape))
    np.testing.assert_array_equal(np.where(valid, y, 0), np.where(valid, table[ids % 5], 0))
    np.testing.assert_allclose(dtable, slopes, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(dtable[1], dy[0, 0] + dy[0, 2])  # a duplicate
    assert not dtable[0].any()
    assert not dtable[3].any()


def test_ids_that_are_no_rows():
    params = {"table": jnp.ones((5, 2))}
    for ids in ([0, 5], [-1, 0]):
        with pytest.raises(ValueError, match=rf"ids from {min(ids)} to {max(ids)}, but the table .* has rows 0 to 4"):
            embedding_forward(params, jnp.array(ids))
    with pytest.raises(ValueError, match="ids has dtype float32"):
        embedding_forward(params, jnp.ones(3))
    with pytest.raises(ValueError, match=r"params has \['w'\], expected \['table'\]"):
        embedding_forward({"w": jnp.ones(3)}, jnp.zeros(3, int))
    with pytest.raises(ValueError, match=r"dy has shape \(3, 1\), but .* has \(3, 2\)"):
        embedding_backward(params, jnp.zeros(3, int), jnp.ones((3, 1)))
    with pytest.raises(ValueError, match="n_rows = 0"):
        layers.embedding(0, 3)


def test_bytes_find_more_rows_than_a_byte_can_count():
    table = numbers(3, 300, 1).astype(np.float32)
    y, _ = jax.jit(embedding_forward)({"table": table}, np.array([255, 128], np.uint8))
    np.testing.assert_array_equal(y, table[[255, 128]])


def test_a_bfloat16_table_is_summed_in_float32():
    """In bfloat16 a sum of ones stays at 256."""
    params, ids, dy = {"table": np.zeros((2, 1), jnp.bfloat16)}, np.zeros(1000, int), np.ones((1000, 1), jnp.bfloat16)
    dparams, dx = jax.jit(embedding_backward)(params, ids, dy)
    assert dparams["table"].dtype == jnp.bfloat16
    assert dparams["table"].tolist() == [[1000], [0]]
    assert dx is None


def test_an_embedding_begins_a_network():
    """Layers of ids keep the promises that the battery checks for layers of floats."""
    model = serial(remat(layers.embedding(7, 4)), layers.learned_positions(5), layers.dense(3))
    out_shape, shapes, state = shapes_of(model, (2, 3))
    assert out_shape == (2, 3, 3)
    params = jax.tree.map(np.float32, random_params(shapes))
    ids, dy = np.array([[0, 6, 6], [2, 0, 6]]), numbers(4, 2, 3, 3).astype(np.float32)

    @jax.jit
    def both(params, ids, dy):
        f = as_custom_vjp(model)
        through_grad = jax.grad(lambda params: jnp.vdot(f(params, state, ids, Ctx())[0], dy))(params)
        return through_grad, *model.backward(params, model.forward(params, state, ids, Ctx())[2], dy)

    through_grad, dparams, dx = both(params, ids, dy)
    assert dx is None
    jax.tree.map(np.testing.assert_array_equal, through_grad, dparams)
    y, _, _ = jax.eval_shape(model.forward, params, state, jax.ShapeDtypeStruct((0, 3), jnp.int32), Ctx())
    assert y.shape == (0, 3, 3)


def test_tables_are_drawn_small():
    layers_and_shapes = (layers.embedding(7, 30), (2, 3)), (layers.learned_positions(7), (2, 3, 30))
    for layer, in_shape in layers_and_shapes:
        _, params, _ = layer.init(KEY, in_shape)
        assert params["table"].shape == (7, 30)
        assert abs(np.std(params["table"]) / 0.02 - 1) < 0.3


def test_learned_positions_end():
    layer, params = layers.learned_positions(4), {"table": np.ones((4, 2), np.float32)}
    with pytest.raises(ValueError, match=r"x has 5 positions \(shape \(1, 5, 2\)\) but the table only has 4"):
        layer.forward(params, (), np.ones((1, 5, 2), np.float32), Ctx())
    with pytest.raises(ValueError, match=r"expected \(\.\.\., T, 2\) .*; x is bfloat16, the table float32"):
        layer.forward(params, (), np.ones((1, 3, 1), jnp.bfloat16), Ctx())
    with pytest.raises(ValueError, match=r"in_shape is \(3,\)"):
        layer.init(KEY, (3,))


def test_sinusoidal_positions_are_those_of_the_paper():
    layer = layers.sinusoidal_positions()
    y, _, _ = jax.jit(layer.forward)({}, (), np.ones((2, 3, 4), np.float32), Ctx())
    angle = np.arange(3)[:, None] / 10_000.0 ** (np.array([0, 0, 2, 2]) / 4)
    waves = np.where([True, False, True, False], np.sin(angle), np.cos(angle))
    np.testing.assert_allclose(y, np.broadcast_to(1 + waves, y.shape), rtol=1e-6)
    with pytest.raises(ValueError, match="even number D"):
        layer.forward({}, (), np.ones((2, 3, 5), np.float32), Ctx())


def test_angles_are_exact_at_large_positions():
    """float32 products t ω would be off by 6e-3 at 1e5."""
    t = np.array([-(10**6), -1, 0, 1, 2, 12345, 99_999, 10**5, 10**6 - 1])
    angle = t[:, None] * 10_000.0 ** -(np.arange(32) / 32)
    for dtype, bound in ((np.float32, 5e-7), (np.float64, 3e-10)):
        with jax.enable_x64(dtype == np.float64):
            cos, sin = jax.jit(functools.partial(cos_sin, n=32, dtype=dtype))(t.astype(np.int32))
        assert cos.dtype == dtype
        assert np.abs(np.asarray(cos) - np.cos(angle)).max() < bound
        assert np.abs(np.asarray(sin) - np.sin(angle)).max() < bound
    with pytest.raises(ValueError, match=r"base = 0\.5"):
        cos_sin(jnp.arange(2), 3, base=0.5)


def test_rotary_positions_depend_on_the_distance_alone():
    q, k = numbers(5, 1, 6), numbers(6, 1, 6)

    @jax.jit
    def score(m, n):
        return jnp.vdot(rotary_forward(q, offset=m)[0], rotary_forward(k, offset=n)[0])

    with jax.enable_x64(True):
        near, far = float(score(3, 7)), [float(score(s + 3, s + 7)) for s in (-5, 1000, 10**5)]
        other = float(score(3, 8))
    np.testing.assert_allclose(far, near, rtol=1e-9)
    assert abs(other - near) > 1e-2


@pytest.mark.quick
def test_rotary_positions_are_a_complex_product_of_the_two_halves():
    x = numbers(7, 2, 4, 6)

    @jax.jit
    def run(x):
        y, cache = rotary_forward(x, offset=10, base=50.0)
        part, _ = rotary_forward(x[:, 2:], offset=12, base=50.0)
        return y, cache, rotary_backward(cache, y), part

    with jax.enable_x64(True):
        y, cache, turned_back, part = run(x)
    turn = np.exp(1j * np.arange(10, 14)[:, None] * 50.0 ** -(np.arange(3) / 3))
    z = (x[..., :3] + 1j * x[..., 3:]) * turn
    np.testing.assert_allclose(y, np.concatenate([z.real, z.imag], -1), rtol=1e-12)
    np.testing.assert_allclose(turned_back, x, rtol=1e-12)
    np.testing.assert_allclose(part, y[:, 2:], rtol=1e-12)
    with pytest.raises(ValueError, match=r"x has shape \(2, 3\), expected \(\.\.\., T, d\) with an even number"):
        rotary_forward(np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match="rotary_backward: dy has shape"):
        rotary_backward(cache, y[:, 1:])


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (4, 4, 6)])
def test_an_offset_for_each_example(shape):
    """Also where there are as many examples as positions."""
    x, dy = numbers(8, *shape), numbers(9, *shape)
    offsets = np.array([7, -2, 100, 0])[: shape[0]]

    @jax.jit
    def run(x, dy, offset):
        y, cache = rotary_forward(x, offset=offset)
        return y, rotary_backward(cache, dy)

    with jax.enable_x64(True):
        each = [run(x[i : i + 1], dy[i : i + 1], offset) for i, offset in enumerate(offsets)]
        found = run(x, dy, offsets)
    for a, b in zip(found, zip(*each, strict=True), strict=True):
        np.testing.assert_array_equal(a, np.concatenate(b))


@pytest.mark.parametrize(
    ("offset", "message"),
    [
        (1.5, "offset is 1.5 of dtype float32, expected integers; nothing is rounded"),
        (2.0, "offset is 2.0"),
        (True, "offset is True"),
        (np.ones(2, np.float32), "offset is an array of dtype float32"),
        (np.arange(4), r"offset has shape \(4,\), but x of shape \(2, 3, 4, 6\)"),  # T
        (np.zeros((2, 3), int), r"offset has shape \(2, 3\)"),
        (2**31, "offset = 2147483648, expected 32-bit integers"),
        (np.array([0, 2**32 + 1]), "expected 32-bit integers"),
        (None, "offset is None, expected an array of numbers"),
    ],
)
def test_an_offset_that_is_none(offset, message):
    with pytest.raises(ValueError, match=message):
        rotary_forward(np.ones((2, 3, 4, 6), np.float32), offset=offset)


def test_positions_that_are_none():
    with pytest.raises(ValueError, match="cos_sin: positions is an array of dtype float32, expected integers"):
        cos_sin(jnp.ones(3), 2)
    with pytest.raises(ValueError, match=r"offset has shape \(3,\)"):
        rotary_forward(np.ones((3, 2), np.float32), offset=np.arange(3))  # x (T, d) has no examples


@pytest.mark.peers
def test_embedding_is_pytorch_s():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    ids, table, dy = np.array([[1, 4, 1], [0, 2, 1]]), numbers(8, 5, 2), numbers(9, 2, 3, 2)
    theirs = torch.nn.Embedding.from_pretrained(torch.tensor(table), freeze=False)
    their_y = theirs(torch.tensor(ids))
    their_y.backward(torch.tensor(dy))
    with jax.enable_x64(True):
        y, cache = embedding_forward({"table": jnp.asarray(table)}, jnp.asarray(ids))
        dparams, _ = embedding_backward({"table": jnp.asarray(table)}, cache, jnp.asarray(dy))
    np.testing.assert_array_equal(y, their_y.detach().numpy())
    np.testing.assert_allclose(dparams["table"], theirs.weight.grad.numpy(), rtol=1e-12, atol=1e-14)
