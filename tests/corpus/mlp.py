"""Networks of dense layers: factors, transposes, activations, biases, loops over the batch."""

import jax
import jax.numpy as jnp

from .case import INSTEAD, LEFT_OUT, SIGN, numbers, subject

# ---------------------------------------------------------------- two layers, tanh, mean squared error


def tanh_net(params, x, y):
    h = jnp.tanh(x @ params["w1"] + params["b1"])
    p = h @ params["w2"] + params["b2"]
    return jnp.mean((p - y) ** 2)


def tanh_net_grad(params, x, y, slip=None):
    z = x @ params["w1"] + params["b1"]
    h = jnp.tanh(z)
    p = h @ params["w2"] + params["b2"]
    dp = 2 * (p - y) / p.size
    if slip == "no mean":
        dp = 2 * (p - y)
    if slip == "no 2":
        dp = (p - y) / p.size
    if slip == "divided by the batch":
        dp = 2 * (p - y) / len(x)
    if slip == "target minus prediction":
        dp = 2 * (y - p) / p.size
    if slip == "no residual":
        dp = 2 * p / p.size
    dw2, db2 = h.T @ dp, dp.sum(0)
    if slip == "pre-activation as input":
        dw2 = z.T @ dp
    if slip == "bias averaged":
        db2 = dp.mean(0)
    if slip == "bias of the first example":
        db2 = dp[0]
    dh = dp @ params["w2"].T
    dz = dh * (1 - h**2)
    if slip == "no tanh'":
        dz = dh
    if slip == "tanh' of tanh":
        dz = dh * (1 - jnp.tanh(h) ** 2)
    if slip == "1 - tanh":
        dz = dh * (1 - h)
    if slip == "sigmoid's derivative":
        dz = dh * h * (1 - h)
    dw1, db1 = x.T @ dz, dz.sum(0)
    if slip == "last example left out":
        dw1 = x[:-1].T @ dz[:-1]
    if slip == "bias forgotten":
        db1 = jnp.zeros_like(db1)
    if slip == "every sample has the last gradient":
        dw1 = jnp.outer(x[-1], dz[-1])
    return {"w1": dw1, "b1": db1, "w2": dw2, "b2": db2}


TANH = subject(
    "tanh net",
    tanh_net,
    tanh_net_grad,
    (
        {"w1": numbers(1, 5, 4), "b1": numbers(2, 4), "w2": numbers(3, 4, 3), "b2": numbers(4, 3)},
        numbers(5, 7, 5),
        numbers(6, 7, 3),
    ),
    {
        "no mean": ("mean_factor", r"<21>", r"mean|1/n|divi|number of elements"),
        "no 2": ("square_factor", r"<0.5>|<2>|1/2|twice", r"square|exponent|power|factor|too (small|large)"),
        "divided by the batch": ("mean_over_rows", r"<3>", r"axis|elements|mean|divi|outputs|columns"),
        "target minus prediction": ("sign", SIGN),
        "no residual": ("target_ignored", r"args\[1\]|target|difference in|subtract", LEFT_OUT + "|all 0|" + INSTEAD),
        "pre-activation as input": (
            "preactivation_as_input",
            r"tanh|activation",
            r"pre-?activation|before|input of|instead|in place of",
        ),
        "bias averaged": ("bias_averaged", r"b2", r"<7>|batch", r"sum|mean|averag"),
        "bias of the first example": (
            "bias_first_row",
            r"b2",
            r"row|example|first|\[0\]|index 0",
            r"sum|only|one|single",
        ),
        "no tanh'": ("activation_derivative_missing", r"tanh", r"derivative|tanh'|1 ?[-−] ?tanh", LEFT_OUT),
        "tanh' of tanh": (
            "derivative_at_output",
            r"tanh",
            r"derivative|tanh'",
            r"output|twice|pre-?activation|at the activation|already",
        ),
        "1 - tanh": ("derivative_formula", r"tanh", r"derivative|tanh'|1 ?[-−]"),
        "sigmoid's derivative": ("derivative_of_another_activation", r"tanh", r"sigmoid|logistic|\(1 ?[-−]"),
        "last example left out": ("example_left_out", r"w1", r"last|example|row|<6>"),
        "bias forgotten": ("leaf_zero", r"b1", r"zero|<0>"),
        "every sample has the last gradient": (
            "overwritten_in_loop",
            r"w1",
            r"last|<6>|overwrit|accumul|only|one example",
        ),
    },
)

# ---------------------------------------------------------------- three layers, relu, square in the middle


def relu_net(params, x, y):
    h = x
    for w, b in params[:-1]:
        h = jax.nn.relu(h @ w + b)
    w, b = params[-1]
    return 0.5 * jnp.sum((h @ w + b - y) ** 2) / len(x)


def relu_net_grad(params, x, y, slip=None):
    (w1, b1), (w2, b2), (w3, b3) = params
    z1 = x @ w1 + b1
    h1 = jnp.maximum(z1, 0)
    z2 = h1 @ w2 + b2
    h2 = jnp.maximum(z2, 0)
    d3 = (h2 @ w3 + b3 - y) / len(x)
    dw3 = h2.T @ d3
    d2 = (d3 @ w3.T) * (z2 > 0)
    if slip == "no relu mask":
        d2 = d3 @ w3.T
    if slip == "mask of the gradient":
        d2 = jnp.maximum(d3 @ w3.T, 0)
    if slip == "mask of another layer":
        d2 = (d3 @ w3.T) * (z1 > 0)
    if slip == "mask upside down":
        d2 = (d3 @ w3.T) * (z2 < 0)
    dw2 = h1.T @ d2
    if slip == "transposed":
        dw2 = d2.T @ h1
    if slip == "input of the layer before":
        dw2 = h2.T @ d2
    d1 = (d2 @ w2.T) * (z1 > 0)
    if slip == "weight not transposed":
        d1 = (d2 @ w2) * (z1 > 0)
    if slip == "no relu mask anywhere":
        d2 = d3 @ w3.T
        dw2, d1 = h1.T @ d2, d2 @ w2.T
    if slip == "stopped":
        d1 = 0 * d1
    db1, db2, db3 = d1.sum(0), d2.sum(0), d3.sum(0)
    if slip == "biases swapped":
        db1, db2 = db2, db1
    if slip == "bias of another delta":
        db1 = d2.sum(0)
    if slip == "bias along the wrong axis":
        db2 = d2.sum(1)
    return [(x.T @ d1, db1), (dw2, db2), (dw3, db3)]


RELU = subject(
    "relu net",
    relu_net,
    relu_net_grad,
    (
        [(numbers(11, 5, 4), numbers(12, 4)), (numbers(13, 4, 4), numbers(14, 4)), (numbers(15, 4, 3), numbers(16, 3))],
        numbers(17, 4, 5),
        numbers(18, 4, 3),
    ),
    {
        "no relu mask": ("relu_mask_missing", r"relu|max|mask", LEFT_OUT),
        "mask of the gradient": (
            "relu_of_the_gradient",
            r"relu|mask",
            r"sign of the|incoming|cotangent|\bdy\b|of the gradient",
        ),
        "mask of another layer": ("mask_of_another_layer", r"relu|mask|where", INSTEAD + "|taken from"),
        "mask upside down": (
            "mask_inverted",
            r"relu|max|mask|> ?0",
            r"invert|upside|opposite|negat|complement|where it should not|revers|flip|< ?0",
        ),
        "transposed": ("transposed", r"\[1\]\[0\]", r"transpos"),
        "input of the layer before": ("wrong_operand", r"\[1\]\[0\]", r"operand|instead|formed with|in place"),
        "weight not transposed": ("weight_not_transposed", r"transpos"),
        "no relu mask anywhere": ("relu_mask_missing_everywhere", r"relu|max|mask", LEFT_OUT),
        "stopped": ("path_stopped", LEFT_OUT + "|zero|<0>", r"\[0\]\[1\]|\[0\]\[0\]|path|layer"),
        "biases swapped": ("leaves_swapped", r"swap|exchang|interchang|each other", r"\[0\]\[1\]", r"\[1\]\[1\]"),
        "bias of another delta": (
            "another_leafs_gradient",
            r"\[0\]\[1\]",
            r"\[1\]\[1\]",
            r"gradient of|equals|same as|is that of",
        ),
        "bias along the wrong axis": ("summed_over_wrong_axis", r"\[1\]\[1\]", r"axis|axes"),
    },
)


CASES = [*TANH, *RELU]
