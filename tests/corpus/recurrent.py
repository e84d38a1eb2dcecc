"""Recurrent networks: what flows back in time, what adds up over time, gates."""

import jax
import jax.numpy as jnp
from jax import lax

from .case import INSTEAD, LEFT_OUT, Case, numbers, positive, subject

TIME = r"\btime|recurr|hidden state|carr|previous|step before"

# ---------------------------------------------------------------- a plain RNN, in Python


def rnn(params, x, y):
    h = jnp.zeros(params["u"].shape[0], x.dtype)
    loss = 0.0
    for t in range(len(x)):
        h = jnp.tanh(x[t] @ params["w"] + h @ params["u"] + params["b"])
        loss = loss + jnp.sum((h - y[t]) ** 2)
    return loss / len(x)


def rnn_grad(params, x, y, slip=None):
    u = params["u"]
    hs = [jnp.zeros(u.shape[0], x.dtype)]
    for t in range(len(x)):
        hs.append(jnp.tanh(x[t] @ params["w"] + hs[-1] @ u + params["b"]))
    dw, du, db = jnp.zeros_like(params["w"]), jnp.zeros_like(u), jnp.zeros_like(params["b"])
    dnext = jnp.zeros_like(hs[0])
    for t in reversed(range(len(x))):
        dh = 2 * (hs[t + 1] - y[t]) / len(x) + dnext
        if slip == "loss of the last step only":
            dh = (2 * (hs[t + 1] - y[t]) / len(x) if t == len(x) - 1 else 0) + dnext
        dz = dh * (1 - hs[t + 1] ** 2)
        if slip == "tanh' of the step before":
            dz = dh * (1 - hs[t] ** 2)
        if slip == "overwritten at every step":
            dw, du, db = jnp.outer(x[t], dz), jnp.outer(hs[t], dz), dz
        else:
            dw, du, db = dw + jnp.outer(x[t], dz), du + jnp.outer(hs[t], dz), db + dz
        if slip == "state after for state before":
            du = du - jnp.outer(hs[t], dz) + jnp.outer(hs[t + 1], dz)
        dnext = dz @ u.T
        if slip == "not through time":
            dnext = jnp.zeros_like(dnext)
        if slip == "recurrent weight not transposed":
            dnext = dz @ u
        if slip == "tanh' skipped through time":
            dnext = dh @ u.T
        if slip == "one step back only":
            dnext = (2 * (hs[t + 1] - y[t]) / len(x) * (1 - hs[t + 1] ** 2)) @ u.T
    return {"w": dw, "u": du, "b": db}


RNN = subject(
    "rnn",
    rnn,
    rnn_grad,
    (
        {"w": numbers(1, 2, 3, scale=0.7), "u": numbers(2, 3, 3, scale=0.7), "b": numbers(3, 3)},
        numbers(4, 4, 2),
        numbers(5, 4, 3),
    ),
    {
        "not through time": ("bptt_missing", TIME, LEFT_OUT),
        "one step back only": ("bptt_truncated", TIME + "|truncat", LEFT_OUT + "|only|truncat"),
        "overwritten at every step": ("overwritten_over_time", r"overwrit|accumul|\+=|\badd|only the|\buses\b"),
        "loss of the last step only": (
            "losses_of_steps_missing",
            r"step|time|loss|path|contribution|sum of squares",
            LEFT_OUT,
        ),
        "state after for state before": ("off_by_one_in_time", r"operand|formed|shift|step before|previous|" + INSTEAD),
        "recurrent weight not transposed": ("weight_not_transposed", r"transpos"),
        "tanh' of the step before": ("derivative_of_another_step", r"tanh", r"step|taken|formed|" + INSTEAD),
        "tanh' skipped through time": ("activation_derivative_missing_in_time", r"tanh", r"derivative", LEFT_OUT),
    },
)

# ---------------------------------------------------------------- a linear recurrence, by scan


def decayed(a, x, c):
    def step(h, x):
        h = a * h + x
        return h, h

    _, hs = lax.scan(step, jnp.zeros_like(a), x)
    return jnp.sum(c * hs)


def decayed_grad(a, x, c, slip=None):
    _, hs = lax.scan(lambda h, x: (a * h + x,) * 2, jnp.zeros_like(a), x)
    before = jnp.concatenate([jnp.zeros_like(hs[:1]), hs[:-1]])
    if slip == "state after for state before":
        before = hs

    def back(dh, c):
        dh = c + a * dh
        return dh, dh

    _, dhs = lax.scan(back, jnp.zeros_like(a), c, reverse=slip != "not in reverse")
    return jnp.sum(dhs * before, axis=0), dhs


DECAYED = subject(
    "decayed sum by scan",
    decayed,
    decayed_grad,
    (positive(11, 3, low=0.3, high=0.9), numbers(12, 5, 3), numbers(13, 5, 3)),
    {
        "not in reverse": ("scan_not_reversed", r"revers|\border|flip"),
        "state after for state before": ("off_by_one_in_time", r"operand|formed|shift|step before|previous|" + INSTEAD),
    },
    argnums=(0, 1),
)

# ---------------------------------------------------------------- LSTM, two steps


def lstm(params, x):
    n = params["u"].shape[0]
    h, c = jnp.zeros((len(x), n), x.dtype), jnp.zeros((len(x), n), x.dtype)
    for t in range(x.shape[1]):
        i, f, g, o = jnp.split(x[:, t] @ params["w"] + h @ params["u"], 4, axis=1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return jnp.mean(jnp.sum(h**2, axis=1))


def lstm_grad(params, x, slip=None):
    n = params["u"].shape[0]
    h = c = jnp.zeros((len(x), n), x.dtype)
    saved = []
    for t in range(x.shape[1]):
        z = x[:, t] @ params["w"] + h @ params["u"]
        i, f, o = (jax.nn.sigmoid(z[:, k * n : (k + 1) * n]) for k in (0, 1, 3))
        g = jnp.tanh(z[:, 2 * n : 3 * n])
        saved.append((h, c, i, f, g, o))
        c = f * c + i * g
        h = o * jnp.tanh(c)
    dw, du = jnp.zeros_like(params["w"]), jnp.zeros_like(params["u"])
    dh, dc = 2 * h / len(x), jnp.zeros_like(c)
    for t in reversed(range(x.shape[1])):
        before, c, i, f, g, o = saved[t]
        new = f * c + i * g
        tanh_c = new if slip == "tanh of the cell forgotten" else jnp.tanh(new)
        do = dh * tanh_c * o * (1 - o)
        dc = dc + dh * o * (1 - jnp.tanh(new) ** 2)
        if slip == "cell not through tanh":
            dc = dc - dh * o * (1 - jnp.tanh(new) ** 2) + dh * o
        if slip == "cell of the next step forgotten":
            dc = dh * o * (1 - jnp.tanh(new) ** 2)
        di, df, dg = dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g**2)
        if slip == "new cell in the forget gate":
            df = dc * new * f * (1 - f)
        if slip == "candidate as a gate":
            dg = dc * i * g * (1 - g)
        gates = [di, df, dg, do]
        if slip == "gates in another order":
            gates = [df, di, dg, do]
        dz = jnp.concatenate(gates, axis=1)
        dw, du = dw + x[:, t].T @ dz, du + before.T @ dz
        dh, dc = dz @ params["u"].T, dc * f
        if slip == "cell without the forget gate":
            dc = dc / f
    return {"w": dw, "u": du}


LSTM = subject(
    "lstm",
    lstm,
    lstm_grad,
    ({"w": numbers(21, 3, 8), "u": numbers(22, 2, 8)}, numbers(23, 3, 3, 3)),
    {
        "cell of the next step forgotten": ("cell_path_missing", r"\bcell|`c`|carr|time|path|contribution", LEFT_OUT),
        "cell without the forget gate": ("factor_missing", r"sigmoid|gate|factor|product", LEFT_OUT),
        "cell not through tanh": ("activation_derivative_missing", r"tanh", r"derivative", LEFT_OUT),
        "tanh of the cell forgotten": (
            "preactivation_as_input",
            r"tanh|\bcell|`c`",
            r"before|formed|operand|" + INSTEAD,
        ),
        "new cell in the forget gate": ("off_by_one_in_time", r"operand|formed|previous|step|" + INSTEAD),
        "candidate as a gate": ("derivative_of_another_activation", r"tanh", r"sigmoid|a\(1"),
        "gates in another order": (
            "columns_permuted",
            r"permut|\border|exchang|swap|" + INSTEAD,
            r"split|column|slice|gate|axis|entries|part",
        ),
    },
)

# ---------------------------------------------------------------- GRU, one step


def gru(params, x, h, c):
    r = jax.nn.sigmoid(x @ params["wr"] + h @ params["ur"])
    z = jax.nn.sigmoid(x @ params["wz"] + h @ params["uz"])
    n = jnp.tanh(x @ params["wn"] + (r * h) @ params["un"])
    return jnp.sum(c * ((1 - z) * n + z * h))


def gru_grad(params, x, h, c, slip=None):
    r = jax.nn.sigmoid(x @ params["wr"] + h @ params["ur"])
    z = jax.nn.sigmoid(x @ params["wz"] + h @ params["uz"])
    n = jnp.tanh(x @ params["wn"] + (r * h) @ params["un"])
    dn = c * (1 - z) * (1 - n**2)
    dz = c * (h - n) * z * (1 - z)
    if slip == "the state's share of the gate":
        dz = -c * n * z * (1 - z)
    if slip == "gate for its complement":
        dn = c * z * (1 - n**2)
    drh = dn @ params["un"].T
    dr = drh * h * r * (1 - r)
    if slip == "reset gate held constant":
        dr = jnp.zeros_like(dr)
    dh = c * z + drh * r + dz @ params["uz"].T + dr @ params["ur"].T
    if slip == "state through the output only":
        dh = c * z
    if slip == "state not through the candidate":
        dh = dh - drh * r
    reset = h if slip == "state not reset" else r * h
    dparams = {
        "wr": x.T @ dr,
        "ur": h.T @ dr,
        "wz": x.T @ dz,
        "uz": h.T @ dz,
        "wn": x.T @ dn,
        "un": reset.T @ dn,
    }
    return dparams, dh


W, U = numbers(31, 3, 2, 4), numbers(32, 3, 4, 4)
GRU = subject(
    "gru",
    gru,
    gru_grad,
    (
        dict(zip(["wr", "wz", "wn", "ur", "uz", "un"], [*W, *U], strict=True)),
        numbers(33, 3, 2),
        numbers(34, 3, 4),
        numbers(35, 3, 4),
    ),
    {
        "the state's share of the gate": ("path_missing", r"path|contribution|\buses?\b|product|difference", LEFT_OUT),
        "gate for its complement": ("gate_complement", r"complement|formed with|belongs|" + INSTEAD),
        "reset gate held constant": (
            "path_stopped",
            LEFT_OUT + "|zero|<0>",
            r"\['[wu]r'\]|reset|path|contribution|sigmoid",
        ),
        "state through the output only": ("paths_missing", r"\buses?\b|path|contribution", LEFT_OUT + "|only"),
        "state not through the candidate": ("path_missing", r"\buses?\b|path|contribution", LEFT_OUT + "|only"),
        "state not reset": ("wrong_operand", r"\['un'\]", r"formed|operand|product|factor|" + INSTEAD),
    },
    argnums=(0, 2),
)

# ---------------------------------------------------------------- right for a sequence of one step


def summed(w, x):
    h, total = jnp.zeros((len(x), w.shape[1]), x.dtype), 0.0
    for t in range(x.shape[1]):
        h = jnp.tanh(x[:, t] @ w + h)
        total = total + jnp.mean(h)
    return total


def summed_grad(w, x):
    h, dw = jnp.zeros((len(x), w.shape[1]), x.dtype), jnp.zeros_like(w)
    for t in range(x.shape[1]):
        h = jnp.tanh(x[:, t] @ w + h)
        dw = dw + x[:, t].T @ (1 - h**2) / h.size
    return dw


CASES = [
    *RNN,
    *DECAYED,
    *LSTM,
    *GRU,
    Case(
        "rnn without time, tried with one step",
        "right_for_one_step",
        summed,
        summed_grad,
        (numbers(41, 3, 2), numbers(42, 4, 1, 3)),
        (r"\bsteps?\b|\btime|axis 1|longer|length",),
    ),
]
