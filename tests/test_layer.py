"""What a layer tells whoever looks at it: its name in errors, profiles and tables, and what it is made of."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chosen import one_in

from jaxnn import Activation, fused, layers, models, summary
from jaxnn.combinators import add, concat, multiply, parallel, remat, repeat, residual, serial
from jaxnn.layer import Ctx, Layer, from_pair, tree

KEY = jax.random.key(0, impl="unsafe_rbg")
COMBINATORS = [serial, parallel, concat, add, multiply, residual, lambda inner: repeat(inner, 2), remat]
COMBINATORS += [layers.weight_norm, lambda inner: fused.reversible(inner, inner, 2)]


def bare(name="layer"):
    """y = x."""
    return from_pair(lambda params, x: (x, None), lambda params, cache, dy: ({}, dy), name=name)


def initialized(model, in_shape):
    return model.init(KEY, in_shape)[1:]


@pytest.mark.parametrize("module", [layers, fused, models])
def test_a_layer_has_the_name_of_its_constructor(module):
    arguments = {
        "activation": ("tanh",), "attention": (2,), "avg_pool": ((2,),), "batch_norm": (), "conv": (3, (2,)),
        "conv_transpose": (3, (2,)), "dense": (3,), "dropout": (0.5,), "embedding": (5, 3), "flatten": (),
        "gated_mlp": (3,), "global_avg_pool": (), "group_norm": (2,), "gru": (3,), "instance_norm": (),
        "layer_norm": (), "learned_positions": (3,), "log_softmax": (), "lstm": (3,), "max_pool": ((2,),),
        "reshape": ((-1,),), "rms_norm": (), "rnn": (3,), "sinusoidal_positions": (), "softmax": (),
        "transpose": ((2, 1),), "weight_norm": (layers.dense(2),), "dense_stack": (2,),
        "reversible": (bare(), bare(), 2), "cnn": ((2,), (3,), 2), "gpt": (5, 4, 1, 2), "mlp": ((3,), 2),
    }  # fmt: skip
    arguments = {**arguments, "lstm": (5, 3, 1) if module is models else (3,)}
    constructors = {name: f for name, f in vars(module).items() if _returns_layer(f)}
    assert constructors
    for name, constructor in constructors.items():
        made = constructor(*arguments[name])
        assert made.name == ("tanh" if name == "activation" else name)


def _returns_layer(f):
    return getattr(f, "__annotations__", {}).get("return") is Layer


def test_an_activation_of_one_s_own():
    assert layers.activation(Activation(jnp.sin, jnp.cos)).name == "activation"


@pytest.mark.quick
def test_three_functions_make_a_layer():
    f = bare()
    plain = Layer(f.init, f.forward, f.backward)
    assert plain[3:] == ("layer", (), None)
    assert (str(plain), repr(plain)) == ("layer", "layer()")
    y, _, _ = serial(plain).forward(({},), ((),), jnp.ones(2), Ctx())
    np.testing.assert_array_equal(y, jnp.ones(2))


@pytest.mark.quick
def test_a_tree_of_names():
    block = residual(serial(layers.rms_norm(), layers.dense(4)))
    both = add(layers.activation("tanh"), serial(name="nothing"))
    model = serial(layers.dense(4), repeat(block, 3), both, name="net")
    assert str(model).splitlines() == [
        "net", "  [0] dense", "  [1] repeat", "    residual", "      serial", "        [0] rms_norm",
        "        [1] dense", "  [2] add", "    [0] tanh", "    [1] nothing",
    ]  # fmt: skip
    assert repr(model) == "net(dense(), repeat(residual(serial(rms_norm(), dense()))), add(tanh(), nothing()))"
    assert repr({"model": model.parts[2]}) == "{'model': add(tanh(), nothing())}"


@one_in(3, "combinator", list(COMBINATORS))
def test_the_same_combinator_of_other_layers(combinator):
    """with_parts(*parts) is the same function; with other parts, a function of those."""
    model = combinator(layers.dense(4))
    x = np.linspace(-1, 1, 24, dtype=np.float32).reshape(3, 8 if model.name == "reversible" else 4, -1)[..., 0]
    params, state = initialized(model, x.shape)
    again = model.with_parts(*model.parts)
    jax.tree.map(
        np.testing.assert_array_equal,
        again.forward(params, state, x, Ctx())[0],
        model.forward(params, state, x, Ctx())[0],
    )
    other = model.with_parts(*(bare("other") for _ in model.parts))
    assert other.name == model.name
    assert {part.name for part in other.parts} == {"other"}
    if model.name != "weight_norm":
        params, state = initialized(other, x.shape)
        assert not jax.tree.leaves(params)


@pytest.mark.slow
def test_parts_of_the_models():
    labels = dict(tree(models.gpt(5, 4, 2, 2, max_length=3)))
    assert (labels[()], labels[(0,)], labels[(0, 0)]) == ("gpt", "body", "[0] learned_positions")
    gpt, ids = models.gpt(5, 4, 2, 2), np.zeros((1, 3), np.int32)
    params, state = initialized(gpt, ids.shape)
    y = gpt.forward(params, state, ids, Ctx())[0]
    again = gpt.with_parts(*gpt.parts)  # pyright: ignore[reportOptionalCall]
    np.testing.assert_array_equal(again.forward(params, state, ids, Ctx())[0], y)
    cnn = models.cnn((2, 3), (4,), 2)
    assert [part.name for part in cnn.parts][3:5] == ["relu", "conv"]
    assert cnn.parts[-1].name == "mlp"


# ---------------------------------------------------------------- errors and scopes


def test_an_error_says_which_layer_of_which():
    model = serial(
        bare(), residual(serial(bare(), layers.dense(4))), parallel(bare(), layers.embedding(5, 2)), name="net"
    )
    params, state = initialized(model, (2, 4))
    x = jnp.ones((2, 4))
    with pytest.raises(ValueError, match=r"^net\[2\] parallel\[1\] embedding: ids has dtype float32"):
        model.forward(params, state, x, Ctx())
    with pytest.raises(ValueError, match=r"^net\[1\] residual serial\[1\] dense: x has 3 features"):
        model.forward(params, state, x[:, :3], Ctx())

    def refuse(*arguments):
        raise ValueError("no")

    with pytest.raises(ValueError, match=r"^serial\[1\] layer: no$"):
        serial(bare(), from_pair(refuse, refuse)).forward(({}, {}), ((), ()), x, Ctx())
    _, _, cache = serial(bare(), layers.dense(4)).forward(({}, params[1][1]), ((), ()), x, Ctx())
    with pytest.raises(ValueError, match=r"^serial\[1\] dense_backward: dy has shape"):
        serial(bare(), layers.dense(4)).backward(({}, params[1][1]), cache, x[:, :2])


def scopes(f, *arguments):
    """The scopes in the metadata of the compiled program."""
    text = jax.jit(f).lower(*arguments).compile().as_text() or ""
    return {name.rsplit("/", 1)[0].split("/", 1)[-1] for name in re.findall(r'op_name="([^"]*)"', text)}


def test_a_compiled_program_says_which_layer_each_operation_is_of():
    inner = residual(serial(layers.layer_norm(), layers.dense(3)))
    model = serial(layers.conv(3, (2,)), layers.flatten(), layers.dense(3), inner, name="net")
    params, state = initialized(model, (2, 4, 3))
    x = jnp.ones((2, 4, 3))

    def both(params, x, dy):
        with jax.named_scope("forward"):
            y, _, cache = model.forward(params, state, x, Ctx())
        with jax.named_scope("backward"):
            return y, model.backward(params, cache, dy)

    found = scopes(both, params, x, jnp.ones((2, 3)))
    for name in ("net/0_conv", "net/2_dense", "net/3/residual/serial/0_layer_norm", "net/3/residual/serial/1_dense"):
        for way in ("forward", "backward"):
            assert any(scope.startswith(f"{way}/{name}") for scope in found), (way, name, sorted(found))


def test_names_change_no_number():
    """The jaxpr of a serial is that of its layers by hand."""
    parts = layers.dense(3), layers.activation("tanh")
    model = serial(*parts)
    params, state = initialized(model, (2, 4))

    def by_hand(params, x, dy):
        y, _, first = parts[0].forward(params[0], (), x, Ctx())
        y, _, second = parts[1].forward(params[1], (), y, Ctx())
        dp1, dy = parts[1].backward(params[1], second, dy)
        dp0, dx = parts[0].backward(params[0], first, dy)
        return y, (dp0, dp1), dx

    def ours(params, x, dy):
        y, _, cache = model.forward(params, state, x, Ctx())
        return y, *model.backward(params, cache, dy)

    arguments = params, jnp.ones((2, 4)), jnp.ones((2, 3))
    assert str(jax.make_jaxpr(ours)(*arguments)) == str(jax.make_jaxpr(by_hand)(*arguments))


def test_layers_are_static_arguments():
    """Equal by the identity of their functions: a second call with the same layer does not trace again."""
    traces = []

    def run(model, x):
        traces.append(model)
        return model.forward((), (), x, Ctx())[0]

    run = jax.jit(run, static_argnums=0)
    one, other = serial(), serial()
    for model in (one, one, Layer(*one), other):
        run(model, jnp.ones(2))
    assert traces == [one, other]
    assert one != other
    assert hash(one) == hash(Layer(*one))


# ---------------------------------------------------------------- summary


def test_summary_counts_what_init_makes():
    model = models.cnn((2, 3), (4,), 2)
    out_shape, params, state = model.init(KEY, (1, 12, 12, 1))
    lines = summary(model, (1, 12, 12, 1)).splitlines()
    assert lines[0].split() == ["layer", "output", "parameters", "state"]

    def size(tree):
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    expected = {"cnn": (out_shape, params, state), "[1] batch_norm": (None, params[1], state[1])}
    expected["[8] mlp"] = (out_shape, params[8], state[8])
    for name, (shape, p, s) in expected.items():
        [line] = [line for line in lines if line.strip().startswith(name)]
        assert line.split()[-2:] == [str(size(p)), str(size(s))]
        assert shape is None or str(shape) in line
    assert len(lines) == 1 + len(str(model).splitlines())
    assert [line.split("(")[0].strip() for line in lines[1:]] == [line.strip() for line in str(model).splitlines()]


def test_summary_of_layers_run_n_times_and_of_tuples():
    block = repeat(residual(layers.dense(3)), 5)
    assert summary(serial(block, parallel(layers.dense(2), layers.flatten())), (7, 3)).splitlines() == [
        "layer            output            parameters",
        "serial           ((7, 2), (7, 3))          68",
        "  [0] repeat     (7, 3)                    60",
        "    residual     (7, 3)                    12",
        "      dense      (7, 3)                    12",
        "  [1] parallel   ((7, 2), (7, 3))           8",
        "    [0] dense    (7, 2)                     8",
        "    [1] flatten  (7, 3)                     0",
    ]


def test_summary_of_every_combinator_and_of_a_layer_without_parts():
    for combinator in COMBINATORS:
        lines = summary(combinator(layers.dense(4)), (2, 8 if combinator is COMBINATORS[-1] else 4)).splitlines()
        assert all(re.search(r"\(2, \d\)|\(\(2, 4\),\)", line) for line in lines[1:]), lines
    gpt = summary(models.gpt(5, 4, 2, 2), (1, 3))
    assert "attention" in gpt
    assert "(1, 3, 5)" in gpt.splitlines()[1]
    of_mine = Layer(*serial(layers.dense(3))[:3], "mine")
    assert summary(of_mine, (1, 2)).split() == ["layer", "output", "parameters", "mine", "(1,", "3)", "9"]
    with pytest.raises(ValueError, match=r"^serial conv: in_shape is \(1, 2\)"):
        summary(serial(layers.conv(2, (3,))), (1, 2))
