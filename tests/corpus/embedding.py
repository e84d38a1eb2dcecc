"""Embeddings: ids that occur twice, padding, tied weights, positions, pooling."""

import jax
import jax.numpy as jnp

from .case import INSTEAD, LEFT_OUT, Case, integers, numbers, subject

REPEATED = (
    r"duplicat|repeat|more than once|overwrit|accumul|several times|add (them )?(all )?up|\+=|occurs? (twice|more)"
)

# ---------------------------------------------------------------- a bag of words


def bag(params, ids, y):
    p = params["table"][ids].mean(1) @ params["w"]
    return jnp.mean((p - y) ** 2)


def bag_grad(params, ids, y, slip=None):
    table, w = params["table"], params["w"]
    h = table[ids].mean(1)
    dp = 2 * (h @ w - y) / y.size
    de = jnp.broadcast_to((dp @ w.T)[:, None] / ids.shape[1], (*ids.shape, table.shape[1]))
    if slip == "not divided by the length":
        de = de * ids.shape[1]
    dtable = jnp.zeros_like(table).at[ids].add(de)
    if slip == "set instead of add":
        dtable = jnp.zeros_like(table).at[ids].set(de)
    if slip == "averaged over repetitions":
        count = jnp.zeros(len(table), table.dtype).at[ids].add(1)
        dtable = dtable / jnp.maximum(count, 1)[:, None]
    if slip == "padding left out":
        dtable = dtable.at[0].set(0)
    if slip == "ids shifted":
        dtable = jnp.roll(dtable, 1, axis=0)
    if slip == "first word only":
        dtable = jnp.zeros_like(table).at[ids[:, 0]].add(de[:, 0])
    return {"table": dtable, "w": h.T @ dp}


BAG = subject(
    "bag of words",
    bag,
    bag_grad,
    ({"table": numbers(1, 7, 4), "w": numbers(2, 4, 2)}, integers(3, 6, 5, 3), numbers(4, 5, 2)),
    {
        "set instead of add": ("scatter_set", REPEATED),
        "averaged over repetitions": ("scatter_mean", REPEATED + r"|count|averag|occur"),
        "not divided by the length": ("mean_factor_inside", r"<3>", r"mean|1/n|divi|axis|averag"),
        "padding left out": ("row_left_out", r"\brow 0|\[0\b|\bid 0|index 0", r"zero|<0>|row"),
        "ids shifted": ("shifted", r"shift|roll|offset|off by one"),
        "first word only": (
            "ids_left_out",
            r"\bonly\b|first|" + LEFT_OUT,
            r"axis|column|args\[0\]|\bids?\b|index|word",
        ),
    },
)

# ---------------------------------------------------------------- one table, in and out


def tied(table, ids, targets):
    logits = table[ids] * 2.0 @ table.T
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(ids)), targets])


def tied_grad(table, ids, targets, slip=None):
    h = table[ids] * 2.0
    p = jax.nn.softmax(h @ table.T)
    d = (p - jax.nn.one_hot(targets, len(table), dtype=table.dtype)) / len(ids)
    at = targets if slip == "targets for ids" else ids
    embedding = jnp.zeros_like(table).at[at].add(2.0 * (d @ table))
    if slip == "not scaled":
        embedding = embedding / 2
    if slip == "output use only":
        return d.T @ h
    if slip == "input use only":
        return embedding
    if slip == "uses averaged":
        return (d.T @ h + embedding) / 2
    return d.T @ h + embedding


TIED = subject(
    "tied embedding",
    tied,
    tied_grad,
    (numbers(11, 6, 3), integers(12, 6, 4), integers(13, 6, 4)),
    {
        "output use only": ("one_use_of_a_tied_weight", r"\buses?\b|path|contribution|gather|tied", LEFT_OUT + "|only"),
        "input use only": ("one_use_of_a_tied_weight", r"\buses?\b|path|contribution|gather|tied", LEFT_OUT + "|only"),
        "uses averaged": ("half", r"<0.5>|1/2|<2>|halved", r"small|times|factor"),
        "not scaled": ("scale_missing", r"<2>|<0.5>|1/2", r"factor|mul|scal|times"),
        "targets for ids": ("wrong_indices", r"args\[1\]|index|indices|\bids\b", r"\brows?\b|another|" + INSTEAD),
    },
)

# ---------------------------------------------------------------- positions


def positions(params, ids, c):
    x = params["tokens"][ids] + params["places"]
    return jnp.sum(c * jnp.tanh(x))


def positions_grad(params, ids, c, slip=None):
    dx = c * (1 - jnp.tanh(params["tokens"][ids] + params["places"]) ** 2)
    places = dx.sum(0)
    if slip == "positions averaged":
        places = dx.mean(0)
    if slip == "positions of the first sentence":
        places = dx[0]
    return {"tokens": jnp.zeros_like(params["tokens"]).at[ids].add(dx), "places": places}


POSITIONS = subject(
    "positions",
    positions,
    positions_grad,
    ({"tokens": numbers(21, 5, 2), "places": numbers(22, 3, 2)}, integers(23, 5, 4, 3), numbers(24, 4, 3, 2)),
    {
        "positions averaged": ("broadcast_averaged", r"places", r"<4>|<0.25>|1/4", r"\bsum|mean|averag"),
        "positions of the first sentence": (
            "broadcast_not_summed",
            r"places",
            r"\bonly\b|first|not summed|sum over|\+=",
        ),
    },
)

# ---------------------------------------------------------------- right as long as the ids are distinct


def lookup(table, ids, c):
    return jnp.sum(c * jnp.sin(table[ids]))


def lookup_grad(table, ids, c):
    return jnp.zeros_like(table).at[ids].set(c * jnp.cos(table[ids]))


CASES = [
    *BAG,
    *TIED,
    *POSITIONS,
    Case(
        "set instead of add, tried with distinct ids",
        "right_for_distinct_ids",
        lookup,
        lookup_grad,
        (numbers(31, 6, 2), integers(32, 6, 6).argsort().astype("int32")[:4], numbers(33, 4, 2)),
        (REPEATED + r"|same example|example twice",),
    ),
]
