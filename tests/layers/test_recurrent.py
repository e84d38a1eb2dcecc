"""Recurrent layers: what the battery of test_rules.py does not say."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chosen import one_in

import jaxnn
from jaxnn import layers
from jaxnn.layer import Ctx
from jaxnn.layers import CELLS

KEY = jax.random.key(0, impl="unsafe_rbg")
NAMES = pytest.mark.parametrize("name", CELLS)
B, T, N_IN, H = 4, 7, 3, 2
MASK = np.array([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 1, 1], [0, 0, 0, 0, 0, 0, 0]], bool)


def numbers(name, n_batch=B, n_time=T, n_in=N_IN, n_units=H):
    """params, x, state, dh, dstate for a cell; the state and its gradient as the cell has them."""
    cell, rng = CELLS[name], np.random.default_rng(0)
    params = {
        "w": rng.normal(size=(n_in, cell.w_blocks * n_units)),
        "u": rng.normal(size=(n_units, cell.u_blocks * n_units)),
        "b": rng.normal(size=len(cell.biases) * n_units),
    }
    x, dh = rng.normal(size=(n_batch, n_time, n_in)), rng.normal(size=(n_batch, n_time, n_units))
    states = [tuple(rng.normal(size=(n_batch, n_units)) for _ in range(cell.n_states)) for _ in range(2)]
    state, dstate = states if name == "lstm" else (states[0][0], states[1][0])
    return params, x, state, dh, dstate


# ---------------------------------------------------------------- the textbook's scan, for autodiff


def textbook_step(name, params, state, x):
    """One step, gate by gate, from the equations of the papers; nothing of jaxnn."""
    sigmoid = jax.nn.sigmoid
    if name == "rnn":
        return jnp.tanh(x @ params["w"] + state @ params["u"] + params["b"][None])
    if name == "gru":
        (wn, wr, wz), (ur, uz, um) = jnp.split(params["w"], 3, 1), jnp.split(params["u"], 3, 1)
        bn, br, bz, bm = jnp.split(params["b"][None], 4, 1)
        r = sigmoid(x @ wr + state @ ur + br)
        z = sigmoid(x @ wz + state @ uz + bz)
        n = jnp.tanh(x @ wn + bn + r * (state @ um + bm))
        return (1 - z) * n + z * state
    h, c = state
    i, f, o, g = jnp.split(x @ params["w"] + h @ params["u"] + params["b"][None], 4, 1)
    c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
    return sigmoid(o) * jnp.tanh(c), c


def textbook(name, params, x, state, truncate):
    """(h, the last state), step after step in a scan, the gradient cut where truncated BPTT says."""

    def step(state, now):
        t, x, real = now
        if truncate:
            border = (t > 0) & (t % truncate == 0)
            state = jax.tree.map(lambda s: jnp.where(border, jax.lax.stop_gradient(s), s), state)
        new = textbook_step(name, params, state, x)
        state = jax.tree.map(lambda n, o: jnp.where(real[:, None], n, o), new, state)
        return state, state[0] if name == "lstm" else state

    state, h = jax.lax.scan(step, state, (jnp.arange(T), x.swapaxes(0, 1), jnp.asarray(MASK).T))
    return h.swapaxes(0, 1), state


# The loops are the same for every cell: each has its share of the ways to go, as they take long to compile.
WAYS = {
    "rnn": [{"truncate": 2}],
    "gru": [{}, {"chunk": 3}],
    "lstm": [{}, {"truncate": 2, "chunk": 3}],
}


@functools.cache
def both(name):
    """For each way to go, ((h, state), (dparams, dx, dstate)) of ours and of autodiff through the textbook, float64."""

    @jax.jit
    def run(params, x, state, dh, dstate):
        expected, found = {}, []
        for way in WAYS[name]:
            truncate = way.get("truncate", 0)
            if truncate not in expected:
                y, vjp = jax.vjp(functools.partial(textbook, name, truncate=truncate), params, x, state)
                expected[truncate] = y, vjp((dh, dstate))
            h, last, cache = jaxnn.layers.recurrent_forward(name, params, x, state, mask=MASK, **way)
            found.append(((h, last), jaxnn.layers.recurrent_backward(name, params, cache, dh, dstate)))
        return found, [expected[way.get("truncate", 0)] for way in WAYS[name]]

    with jax.enable_x64(True):
        return run(*numbers(name))


def close(found, expected, tolerance):
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, rtol=tolerance, atol=tolerance), found, expected)


@NAMES
def test_bptt_is_autodiff_of_the_plain_scan(name):
    """Sequences of unequal length, padding in the midst, one of nothing else; T no multiple of the chunk."""
    found, expected = both(name)
    close(found, expected, 1e-12)


@NAMES
@one_in(2, "n_time", [0, 1, 3, 8])
def test_a_chunk_longer_than_the_sequence(name, n_time):
    """The pairs with all they take, and the layers: as without chunks."""
    params, x, state, dh, dstate = numbers(name, n_time=n_time)
    mask = np.resize(MASK, (B, n_time))

    @functools.partial(jax.jit, static_argnums=0)
    def run(way, params, x, state, dh, dstate):
        results = []
        for options in ({"mask": mask, "truncate": 2}, {}):
            h, last, cache = jaxnn.layers.recurrent_forward(name, params, x, state, **options, **way)
            results.append((h, last, jaxnn.layers.recurrent_backward(name, params, cache, dh, dstate)))
        for options in ({}, {"last": True}):
            layer = getattr(layers, name)(H, **options, **way)
            y, _, cache = layer.forward(params, (), x, Ctx(mask=mask))
            results.append((y, layer.backward(params, cache, jnp.cos(1 + y))))
        return results

    with jax.enable_x64(True):
        arguments = params, x, state, dh, dstate
        whole, chunked = (run(Way(way), *arguments) for way in ({}, {"chunk": 8}))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13), chunked, whole)
    assert whole[0][0].shape == (B, n_time, H)


class Way(dict):
    """Options that a jitted function can be given."""

    def __hash__(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return hash(tuple(self.items()))


def test_truncation_makes_a_difference_to_the_gradient_only():
    (y, (whole, _, _)), (y_truncated, (truncated, _, _)) = both("lstm")[0]
    close(y_truncated, y, 1e-15)
    assert np.abs(truncated["u"] - whole["u"]).max() > 1e-2


def test_padding_hands_on_the_state_and_gets_no_gradient():
    (h, _), (_, dx, dstate) = both("gru")[0][0]
    np.testing.assert_array_equal(h[1, 4:], np.broadcast_to(h[1, 3], (3, H)))
    np.testing.assert_array_equal(np.asarray(dx)[~MASK], 0)
    _, _, state, dh, dlast = numbers("gru")
    np.testing.assert_array_equal(h[3], np.broadcast_to(state[3], (T, H)))
    np.testing.assert_allclose(dstate[3], dh[3].sum(0) + dlast[3], rtol=1e-12)


def test_a_long_sequence_in_pieces():
    """The state handed on, and its gradient handed back: the same as in one piece. NaN at padding harms nothing."""
    params, x, state, dh, dstate = numbers("lstm")
    x[~MASK] = np.nan

    @jax.jit
    def run(params, x, state, dh, dstate):
        forward = functools.partial(jaxnn.layers.recurrent_forward, "lstm", params)
        h_1, middle, cache_1 = forward(x[:, :4], state, mask=MASK[:, :4])
        h_2, last, cache_2 = forward(x[:, 4:], middle, mask=MASK[:, 4:])
        g_2, dx_2, dmiddle = jaxnn.layers.recurrent_backward("lstm", params, cache_2, dh[:, 4:], dstate)
        g_1, dx_1, dfirst = jaxnn.layers.recurrent_backward("lstm", params, cache_1, dh[:, :4], dmiddle)
        dparams = jax.tree.map(jnp.add, g_1, g_2)
        return (jnp.concatenate([h_1, h_2], 1), last), (dparams, jnp.concatenate([dx_1, dx_2], 1), dfirst)

    with jax.enable_x64(True):
        found = run(params, x, state, dh, dstate)
    close(found, both("lstm")[0][0], 1e-12)


def test_the_last_step_is_the_last_real_one():
    mask = MASK[:, ::-1][:3]  # so that the last column is not always real
    params, x, *_ = jax.tree.map(lambda a: a.astype(np.float32), numbers("gru", n_batch=3))
    dy = np.random.default_rng(1).normal(size=(3, H)).astype(np.float32)

    @jax.jit
    def run(params, x, dy):
        y, _, cache = layers.gru(H, last=True).forward(params, (), x, Ctx(mask=mask))
        h, _, cache_h = layers.gru(H).forward(params, (), x, Ctx(mask=mask))
        at_last = jnp.zeros_like(h).at[jnp.arange(3), np.array([6, 6, 4])].set(dy)
        return y, h, layers.gru(H).backward(params, cache_h, at_last), layers.gru(H, last=True).backward(
            params, cache, dy
        )

    y, h, expected, found = run(params, x, dy)
    np.testing.assert_array_equal(mask[:, ::-1].argmax(1), [0, 0, 2])
    np.testing.assert_array_equal(y, np.asarray(h)[[0, 1, 2], [6, 6, 4]])
    close(found, expected, 1e-5)


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_chunks_need_little_memory(name):
    """The gradient's temporaries, in arrays of T B H numbers: jax.grad of the plain scan takes 11 and 14.

    Those of the lstm are 0.76 with the XLA of JAX 0.8 and 0.10, and 0.91 with that of 0.12, which reuses fewer buffers.
    """
    n_batch, n_time, n_units = 4, 512, 128
    layer = getattr(layers, name)(n_units, chunk=8)

    def gradient(params, x, dy):
        _, _, cache = layer.forward(params, (), x, Ctx())
        return layer.backward(params, cache, dy)

    x = jax.ShapeDtypeStruct((n_batch, n_time, n_units), jnp.float32)
    _, params, _ = jax.eval_shape(lambda: layer.init(KEY, x.shape))
    memory = jax.jit(gradient).lower(params, x, x).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes <= 1.0 * 4 * n_time * n_batch * n_units


def test_slopes_of_saturated_gates_keep_their_digits():
    """Where 1 - σ cancels to 0 in float32, the gradient of the gate is small, not 0."""
    none, one = np.zeros((1, 4), np.float32), np.ones((1, 1), np.float32)

    @jax.jit
    def run(p_lstm, p_gru):
        lstm, gru = {"w": none, "u": none, "b": p_lstm}, {"w": none[:, :3], "u": none[:, :3], "b": p_gru}
        _, _, cache = jaxnn.layers.lstm_cell_forward(lstm, one, (one, one))
        g, _, _ = jaxnn.layers.lstm_cell_backward(lstm, cache, one, (0 * one, one))
        _, _, cache = jaxnn.layers.gru_cell_forward(gru, one, one)
        return g["b"], jaxnn.layers.gru_cell_backward(gru, cache, one)[0]["b"]

    def slope(z):
        return np.exp(-z) / (1 + np.exp(-z)) ** 2

    i, f, o, g = p_lstm = np.array([18.0, 19.0, 20.0, 15.0])
    n, r, z, m = p_gru = np.array([0.5, 18.0, 20.0, 1.0])
    of_lstm, of_gru = run(p_lstm.astype(np.float32), p_gru.astype(np.float32))
    c = 1 / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
    dc = 1 + 4 * slope(2 * c)
    expected = [dc * np.tanh(g) * slope(i), dc * slope(f), np.tanh(c) * slope(o), dc * 4 * slope(2 * g)]
    np.testing.assert_allclose(of_lstm, expected, rtol=2e-6)
    q = n + m / (1 + np.exp(-r))
    dpn = np.exp(-z) / (1 + np.exp(-z)) * 4 * slope(2 * q)
    np.testing.assert_allclose(of_gru, [dpn, dpn * m * slope(r), (1 - np.tanh(q)) * slope(z), dpn], rtol=2e-6)


@pytest.mark.quick
def test_first_weights():
    layer = layers.lstm(5)
    params = jax.jit(lambda key: layer.init(key, (1, 7, 3))[1])(jax.random.key(0))
    gates = np.split(np.asarray(params["u"]), 4, axis=1)
    for gate in gates:
        np.testing.assert_allclose(gate @ gate.T, np.eye(5), atol=1e-6)
    assert np.abs(gates[0] - gates[1]).max() > 0.1
    np.testing.assert_array_equal(params["b"], np.repeat([0, 1, 0, 0], 5))


def test_wrong_arguments():
    params = {"w": np.zeros((3, 8)), "u": np.zeros((2, 8)), "b": np.zeros(8)}
    params = jax.tree.map(np.float32, params)
    x, one = np.zeros((4, 7, 3), np.float32), np.zeros((4, 2), np.float32)
    state = one, one
    forward = functools.partial(jaxnn.layers.recurrent_forward, "lstm")

    def message(text):
        return pytest.raises(ValueError, match=re.escape(text))

    with message("recurrent: x has 5 features (shape (4, 7, 5)) but w expects 3 (shape (3, 8))"):
        forward(params, np.zeros((4, 7, 5), np.float32))
    with message("x has shape (4, 3), expected (B, T, n_in)"):
        forward(params, x[:, 0])
    with message("u has shape (2, 6), expected (2, 8) for 2 units; b has shape (6,), expected (8,)"):
        forward(params | {"u": params["u"][:, :6], "b": params["b"][:6]}, x)
    with message("the state has shapes [(4, 2)], expected [(4, 2), (4, 2)]"):
        forward(params, x, state[0])
    with message("have the dtypes bfloat16, float32: cast them to one"):
        forward(params, x.astype(jnp.bfloat16))
    with message("recurrent: x has dtype int32"):
        forward(params, np.zeros((4, 7, 3), np.int32))
    with message("params has ['u', 'w'], expected ['b', 'u', 'w']"):
        forward({"w": params["w"], "u": params["u"]}, x)
    with message("the mask is bool[7, 4], but x of shape (4, 7, 3) needs bool[4, 7] or bool[1, 7]"):
        forward(params, x, mask=np.ones((7, 4), bool))
    with message("the mask is float32[4, 7]"):
        forward(params, x, mask=np.ones((4, 7), np.float32))
    with message("recurrent: chunk = 0, expected a whole number that is 1 or greater"):
        forward(params, x, chunk=0)
    with message("lstm: truncate = 2.5"):
        layers.lstm(3, truncate=2.5)  # pyright: ignore[reportArgumentType]
    with message("gru: n_units = 0"):
        layers.gru(0)
    with message("unknown cell 'lsmt'; did you mean 'lstm'?"):
        jaxnn.layers.recurrent_forward("lsmt", params, x)
    with message("rnn: in_shape is (1, 3), expected (B, T, n_in)"):
        layers.rnn(3).init(KEY, (1, 3))
    with message("lstm_cell: x has shape (4, 7, 3), expected (B, n_in)"):
        jaxnn.layers.lstm_cell_forward(params, x, state)

    cache = jax.eval_shape(lambda: forward(params, x, chunk=2)[2])
    with message("recurrent_backward: dh has shape (4, 7, 1), but h has (4, 7, 2)"):
        jaxnn.layers.recurrent_backward("lstm", params, cache, np.zeros((4, 7, 1)))
    with message("recurrent_backward: dstate has shape (1, 2), but the state has (4, 2)"):
        jaxnn.layers.recurrent_backward("lstm", params, cache, None, (np.zeros((1, 2)),) * 2)
    cache = jax.eval_shape(lambda: jaxnn.layers.lstm_cell_forward(params, x[:, 0], state)[2])
    dy = np.zeros((4, 2))
    with message("lstm_cell_backward: dstate has shape (4, 1), but the state has (4, 2)"):
        jaxnn.layers.lstm_cell_backward(params, cache, dy, (dy, np.zeros((4, 1))))
    with message("lstm_cell_backward: dy has shape (4, 1), but the output has (4, 2)"):
        jaxnn.layers.lstm_cell_backward(params, cache, dy[:, :1])


# ---------------------------------------------------------------- another library's numbers


@pytest.mark.peers
@NAMES
def test_same_numbers_as_pytorch(name):
    """Its order of the gates: r z n and i f g o; its GRU has the biases of r and z twice."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    params, x, state, dh, dstate = numbers(name)
    n_blocks = {"rnn": [0], "gru": [1, 2, 0], "lstm": [0, 1, 3, 2]}[name]  # ours, in its order
    h_blocks = {"rnn": [0], "gru": [0, 1, 2], "lstm": [0, 1, 3, 2]}[name]

    def blocks(a, order):
        return np.concatenate([np.split(a, len(order), -1)[i] for i in order], -1).T

    w, u = blocks(params["w"], n_blocks), blocks(params["u"], h_blocks)
    if name == "gru":
        bn, br, bz, bm = np.split(params["b"], 4)
        b_ih, b_hh = np.concatenate([br, bz, bn]), np.concatenate([0 * br, 0 * bz, bm])
    else:
        b_ih = blocks(params["b"], n_blocks)
        b_hh = np.zeros_like(b_ih)
    module = getattr(torch.nn, name.upper())(N_IN, H, batch_first=True, dtype=torch.float64)
    weights = [torch.tensor(a, requires_grad=True) for a in (w, u, b_ih, b_hh, x)]
    own = dict(zip(("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"), weights, strict=False))
    first = jax.tree.map(lambda s: torch.tensor(s[None]), state)
    h, last = torch.func.functional_call(module, own, (weights[-1], first))
    loss = (h * torch.tensor(dh)).sum()
    for s, ds in zip(jax.tree.leaves(last), jax.tree.leaves(dstate), strict=True):
        loss = loss + (s[0] * torch.tensor(ds)).sum()
    dw, du, db_ih, db_hh, dx = (g.numpy() for g in torch.autograd.grad(loss, weights))

    with jax.enable_x64(True):

        @jax.jit
        def run(params, x, state, dh, dstate):
            h, last, cache = jaxnn.layers.recurrent_forward(name, params, x, state)
            return h, last, jaxnn.layers.recurrent_backward(name, params, cache, dh, dstate)

        our_h, our_last, (dparams, our_dx, _) = run(params, x, state, dh, dstate)
    close(our_h, h.detach().numpy(), 1e-12)
    close(jax.tree.leaves(our_last), [s[0].detach().numpy() for s in jax.tree.leaves(last)], 1e-12)
    close(blocks(np.asarray(dparams["w"]), n_blocks), dw, 1e-12)
    close(blocks(np.asarray(dparams["u"]), h_blocks), du, 1e-12)
    close(our_dx, dx, 1e-12)
    db = np.asarray(dparams["b"])
    if name == "gru":
        dbn, dbr, dbz, dbm = np.split(db, 4)
        close(np.concatenate([dbr, dbz, dbn]), db_ih, 1e-12)
        close(dbm, db_hh[2 * H :], 1e-12)
    else:
        close(blocks(db, n_blocks), db_ih, 1e-12)
