"""Every rule and every model with its batch on 8 devices: the numbers of one device, on meshes of both types of axes.

A process has as many devices as it started with, so these run in processes of their own: this file, as a script.
"""

import functools
import json
import os
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxnn
from jaxnn.activations import ACTIVATIONS
from jaxnn.layers import (
    dense_backward,
    embedding_backward,
    embedding_forward,
    recurrent_backward,
    recurrent_forward,
)
from jaxnn.losses import get_loss
from jaxnn.optimizers import adamw, clip_by_global_norm
from jaxnn.regularizers import REGULARIZERS
from jaxnn.training.step import Batch, TrainState, train_step
from jaxnn.verify.certificate.registry import rules
from jaxnn.verify.judge.compare import largest_error
from jaxnn.verify.judge.rule import numbers, random_params, shapes_of

N_DEVICES, N_EXAMPLES = 8, 24  # no other axis has this size


def test_without_a_mesh_a_backward_is_the_plain_expression():
    params, x, dy = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}, jnp.ones((4, 5, 3)), jnp.ones((4, 5, 2))

    def plain(params, x, dy):
        return {"w": jnp.tensordot(x, dy, ((0, 1), (0, 1))), "b": dy.sum((0, 1))}, dy @ params["w"].T

    assert str(jax.make_jaxpr(dense_backward)(params, x, dy)) == str(jax.make_jaxpr(plain)(params, x, dy))

    params, ids, dy = {"table": jnp.ones((7, 2))}, jnp.ones((4, 5), int), jnp.ones((4, 5, 2))

    def plain_embedding(params, ids, dy):
        table = params["table"]
        y = table.at[jnp.where((ids >= 0) & (ids < 7), ids, 7)].get(mode="fill", fill_value=jnp.nan)
        again = jnp.where((ids >= 0) & (ids < 7), ids, 7)
        return y, {"table": jnp.zeros((7, 2)).at[again].add(dy, mode="drop")}

    def embedding(params, ids, dy):
        y, cache = embedding_forward(params, ids)
        return y, embedding_backward(params, cache, dy)[0]

    assert str(jax.make_jaxpr(embedding)(params, ids, dy)) == str(jax.make_jaxpr(plain_embedding)(params, ids, dy))


# ---------------------------------------------------------------- what is run


class Case(NamedTuple):
    """A function, and which of its arguments' leaves have the batch first."""

    f: Any  # (*args) -> (gradient or new parameters, anything else)
    args: tuple
    batched: Any  # a bool for each leaf of args
    like: Any  # (*args) -> what has the shardings of the first of f's results


def rule_case(rule, example) -> Case:
    """y and the gradient, with a batch of N_EXAMPLES."""

    def batched(path, leaf):
        names = [getattr(step, "key", None) for step in path]
        if path[0].idx == 1 and path[1].idx < 2 and any(isinstance(one, jaxnn.Ctx) for one in example.given):
            return False  # a layer's state and context
        if not isinstance(leaf, np.ndarray) or leaf.ndim == 0 or (leaf.dtype == bool and len(leaf) == 1):
            return False
        return "params" not in names and "table" not in names

    def resized(path, leaf):
        if not batched(path, leaf):
            return leaf
        shape = N_EXAMPLES, *leaf.shape[1:]
        return numbers(99, *shape) if getattr(path[-1], "key", None) == "x" else np.resize(leaf, shape)

    def run(inputs, given):
        y = rule.forward(inputs, given)
        dy = jax.tree.map(lambda y: jnp.sin(5 * y + 1), y)
        return rule.backward(inputs, given, dy), y

    args = example.inputs, example.given
    of_batch, args = (jax.tree_util.tree_map_with_path(f, args) for f in (batched, resized))
    return Case(run, args, of_batch, lambda inputs, given: inputs)


def rule_cases(of: slice) -> dict[str, Case]:
    """The examples of every rule in which the examples of a batch, or their gradients, meet."""
    plain = {*ACTIVATIONS, *REGULARIZERS}  # these go entry by entry
    return {
        f"{rule.name}, example {i}": rule_case(rule, example)
        for rule in rules()
        if rule.name.split(",")[0] not in plain and rule.name != "recurrent"  # whose mask is for a batch of 4
        for i, example in enumerate(rule.examples[of])
    } | {"recurrent, in chunks": recurrent_case(), "gpt, jax.grad": autodiff_case()}


def recurrent_case() -> Case:
    """In chunks, with a state and padding."""
    params = {"w": numbers(1, 3, 8), "u": numbers(2, 2, 8), "b": numbers(3, 8)}
    x, h, c = numbers(4, N_EXAMPLES, 5, 3), numbers(5, N_EXAMPLES, 2), numbers(6, N_EXAMPLES, 2)
    real = np.arange(5) < np.arange(N_EXAMPLES)[:, None] % 7

    def run(params, x, state, real):
        y, _, cache = recurrent_forward("lstm", params, x, state, mask=real, chunk=2, truncate=3)
        dparams, dx, dstate = recurrent_backward("lstm", params, cache, jnp.sin(5 * y + 1))
        return (dparams, dx, dstate), y

    args = params, x, (h, c), real
    batched = jax.tree.map(lambda leaf: len(leaf) == N_EXAMPLES, args)
    return Case(run, args, batched, lambda params, x, state, real: (params, x, state))


def model_cases() -> dict[str, Case]:
    ids, targets = (np.random.default_rng(i).integers(5, size=(N_EXAMPLES, 6)) for i in range(2))
    rows, images, labels = numbers(7, N_EXAMPLES, 5), numbers(8, N_EXAMPLES, 3, 3, 2), targets[:, 0] % 3
    models = jaxnn.models
    return {
        "mlp": training_case(models.mlp((7,), 3, dropout=0.25), rows, labels),
        "cnn": training_case(models.cnn((3,), (4,), 3, dropout=0.25), images, labels),
        "gpt": training_case(models.gpt(5, 4, 1, 2, dropout=0.25), ids, targets),
        "lstm": training_case(models.lstm(5, 4, 1, dropout=0.25), ids, targets),
    }


def training_case(model, x, labels) -> Case:
    """A training step: forward, loss, backward and update. The last examples are padding."""
    loss, optimizer = get_loss("softmax_cross_entropy_with_integer_labels"), clip_by_global_norm(adamw(0.1), 0.5)
    params, state = model_at(model, x.shape)
    train_state = TrainState(params, state, optimizer.init(params), jax.random.key(1), jnp.zeros((), jnp.int32))
    batch = Batch(x, labels, (np.arange(N_EXAMPLES) < 19).astype(float))

    def run(train_state, batch, key):
        train_state, record = train_step(model, loss, optimizer, train_state, batch, key)
        return train_state.params, (train_state.state, train_state.opt_state, record)

    batched = jax.tree.map(lambda _: False, train_state), Batch(True, True, True), False
    return Case(run, (train_state, batch, jax.random.key(2)), batched, lambda train_state, *_: train_state.params)


def autodiff_case() -> Case:
    """jax.grad, which finds the rules written by hand."""
    model, ids = jaxnn.models.gpt(5, 4, 1, 2, max_length=6), np.arange(6 * N_EXAMPLES).reshape(-1, 6) % 5
    params, state = model_at(model, ids.shape)
    f = jaxnn.as_custom_vjp(model)

    def run(params, ids):
        return jax.grad(lambda params: jnp.sin(f(params, state, ids, jaxnn.Ctx())[0]).sum())(params), ()

    return Case(run, (params, ids), (jax.tree.map(lambda _: False, params), True), lambda params, ids: params)


def model_at(model, in_shape):
    """Random params, and a state of halves; nothing is drawn by init, which would have to be compiled."""
    _, params, state = shapes_of(model, in_shape)
    return random_params(params), jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5), state)


# ---------------------------------------------------------------- how it is run


def mesh_of(axis_type: str):
    return jax.make_mesh((N_DEVICES,), ("examples",), axis_types=(AxisType[axis_type],))


def on_mesh(case: Case, mesh) -> tuple:
    """The arguments on the mesh: batches sharded, all else whole on every device."""

    def put(leaf, batched):
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec("examples") if batched else PartitionSpec()))

    return jax.tree.map(put, case.args, case.batched)


def wrong_types(case: Case) -> dict[str, str]:
    """What is wrong with the types, which say where an array lives where axes are Explicit; nothing is calculated."""
    mesh = mesh_of("Explicit")
    with jax.set_mesh(mesh):
        args = on_mesh(case, mesh)
        gradient, others = jax.eval_shape(case.f, *args)
        found = jax.tree.map(lambda a: a.sharding.spec, gradient)
        expected = jax.tree.map(lambda a: jax.typeof(a).sharding.spec, case.like(*args))
    wrong = {} if found == expected else {"gradient": f"lives at {found}, not {expected}"}
    of_batch = [a for a in jax.tree.leaves(others) if a.shape[:1] == (N_EXAMPLES,)]
    if any(a.sharding.spec[0] != "examples" for a in of_batch):
        wrong["y"] = "is whole on every device"
    return wrong


def wrong_numbers(case: Case, axis_types=("Auto", "Explicit")) -> dict[str, str]:
    wrong = {}
    one_device = jax.device_get(jax.jit(case.f)(*case.args))
    for axis_type in axis_types:
        mesh = mesh_of(axis_type)
        with jax.set_mesh(mesh):
            error = largest_error(jax.device_get(jax.jit(case.f)(*on_mesh(case, mesh))), one_device)
        if error > 1e-11:
            wrong[axis_type] = f"differs from one device by {error}"
    jax.eval_shape(case.f, *on_mesh(case, mesh_of("Explicit")))  # the mesh is not set: the arrays alone say what it is
    return wrong


RUNS = {
    "types": lambda: (wrong_types, rule_cases(slice(None)) | model_cases()),
    # Each compilation takes seconds. With Auto axes the program is the one without a mesh: XLA takes care of the rest.
    "models": lambda: (functools.partial(wrong_numbers, axis_types=("Explicit",)), model_cases()),
    "all": lambda: (wrong_numbers, rule_cases(slice(1)) | model_cases()),
}


def main(run: str) -> None:
    """Print what is wrong, a JSON object."""
    assert len(jax.devices()) == N_DEVICES
    wrong = {}
    with jax.enable_x64(True):
        check, cases = RUNS[run]()
        for name, case in cases.items():
            try:
                found = check(case)
            except Exception as error:
                found = {type(error).__name__: str(error)}
            wrong |= {f"{name}: {kind}": words for kind, words in found.items()}
    print(json.dumps(wrong))


def wrong_on_8_devices(run: str) -> dict[str, str]:
    strict = {"JAX_NUMPY_DTYPE_PROMOTION": "strict", "JAX_NUMPY_RANK_PROMOTION": "raise"}
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PLATFORMS": "cpu"}
    devices = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={N_DEVICES}"}
    command = [sys.executable, "-W", "error", __file__, run]
    done = subprocess.run(command, env=os.environ | strict | quick | devices, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_types_say_where_every_gradient_lives():
    assert wrong_on_8_devices("types") == {}


@pytest.mark.slow
def test_models_train_on_8_devices_as_on_one():
    assert wrong_on_8_devices("models") == {}


@pytest.mark.slow
def test_every_rule_and_model_gives_on_8_devices_the_numbers_of_one():
    assert wrong_on_8_devices("all") == {}


if __name__ == "__main__":
    main(sys.argv[1])
