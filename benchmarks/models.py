"""A training step of train_mnist_cnn.py's CNN, without dropout, and of the GPT and the LSTM of `jaxnn train-text`.

By this library; by jax.grad of the same forward in the same loop, a scan over the steps in one compiled call; and, if
installed, by PyTorch, eager and compiled. All get the same weights, batches and optimizer, and take turns, each in a
process of its own. Before anything is reported, the losses of the first steps and the numbers of parameters are
compared: a contender that computes something else is an error.
"""

import functools
import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from benchmarks.autodiff import layer_by_autodiff, plain_cross_entropy
from benchmarks.measure import Contender
from jaxnn import Layer, adam, adamw, clip_by_global_norm, get_loss, models
from jaxnn.optimizers import Optimizer, is_weight
from jaxnn.training import Batch, start
from jaxnn.training.loop import Step, run_steps

SAME_LOSS = 1e-4  # relative, at the same weights
SAME_COURSE = 1e-2  # relative, after some steps of the same optimizer, which amplify roundings


class Setting(NamedTuple):
    """A network, and how it is trained."""

    size: str
    model: Layer
    optimizer: Optimizer
    batches: Callable[[int], Batch]  # that many, stacked along the first axis


def images(n: int) -> Batch:
    rng = np.random.default_rng(0)
    x = rng.random((n, 100, 28, 28, 1), np.float32)
    return Batch(x, rng.integers(0, 10, (n, 100), np.int32), np.ones((n, 100), np.float32))  # weights as in `fit`


def text(n: int) -> Batch:
    ids = np.random.default_rng(0).integers(0, 256, (n, 16, 129), np.int32)
    return Batch(ids[..., :-1], ids[..., 1:])


def for_text(decays: Callable[[jax.Array], bool]) -> Optimizer:
    return clip_by_global_norm(adamw(5e-3, beta2=0.99, weight_decay=0.1, decays=decays), 1.0)


SETTINGS = {
    "cnn": Setting(
        "28x28, channels 24-48-96, dense 128, B100", models.cnn((24, 48, 96), (128,), 10), adam(2e-3), images
    ),
    "gpt": Setting(
        "width 128, 4 layers, 4 heads, B16 T128", models.gpt(256, 128, 4, 4), for_text(lambda p: p.ndim > 2), text
    ),
    "lstm": Setting("width 256, 1 layer, B16 T128", models.lstm(256, 256, 1), for_text(is_weight), text),
}


def weights(name: str) -> Any:
    """The network's parameters before training, as NumPy arrays."""
    setting = SETTINGS[name]
    train_state = start(jax.random.key(0), setting.model, setting.optimizer, setting.batches(1).x.shape[1:])
    return jax.tree.map(np.asarray, train_state.params)


def nth(batches: Batch, n: jax.Array) -> Batch:
    return jax.tree.map(lambda part: part[n], batches)


def by_jax(name: str, params: Any, batches: Batch, autodiff: bool) -> Contender:
    """A turn is one step per batch; it returns their losses."""
    _, model, optimizer, _ = SETTINGS[name]
    loss = get_loss("softmax_cross_entropy_with_integer_labels")
    if autodiff:
        model, loss = layer_by_autodiff(model), plain_cross_entropy()

    train_state = start(jax.random.key(0), model, optimizer, batches.x.shape[1:])
    train_state = train_state._replace(params=jax.tree.map(jnp.asarray, params))
    rest = (jax.tree.map(jnp.asarray, batches), jnp.arange(len(batches.x)), train_state.key)
    compiled = run_steps.lower(Step(model, loss, optimizer), nth, train_state, *rest).compile()
    memory = compiled.memory_analysis()
    carried = [train_state]

    def turn() -> list[float]:
        carried[0], records = jax.block_until_ready(compiled(carried[0], *rest))
        return records.loss.tolist()

    n_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    return Contender(turn, {"parameters": n_params, "temporaries": memory and memory.temp_size_in_bytes})


def contenders(name: str, n_steps: int) -> dict[str, Callable[[], Contender]]:
    given = name, weights(name), SETTINGS[name].batches(n_steps)
    builds = {
        "jaxnn": functools.partial(by_jax, *given, autodiff=False),
        "jaxnn with `jax.grad`": functools.partial(by_jax, *given, autodiff=True),
    }
    if measure.installed(["torch"]):
        from benchmarks import models_torch

        builds["PyTorch, eager"] = functools.partial(models_torch.by_torch, *given, compiled=False)
        builds["PyTorch, compiled"] = functools.partial(models_torch.by_torch, *given, compiled=True)
    return builds


def require_the_same(name: str, turns: measure.Turns) -> None:
    """RuntimeError if a contender's losses or number of parameters differ from those of the first."""
    (ours, expected), *others = turns.first.items()
    for other, losses in others:
        counts = [turns.facts[who]["parameters"] for who in (ours, other)]
        if counts[0] != counts[1]:
            raise RuntimeError(f"{name}: {other} has {counts[1]:,} parameters, {ours} {counts[0]:,}")
        if not math.isclose(losses[0], expected[0], rel_tol=SAME_LOSS):
            raise RuntimeError(f"{name}: at the same weights {other} has the loss {losses[0]}, {ours} {expected[0]}")
        if not np.allclose(losses, expected, rtol=SAME_COURSE, atol=0):
            raise RuntimeError(f"{name}: the losses diverge, {other} {losses}, {ours} {expected}")


def rows(name: str, n_steps: int, rounds: int) -> list[dict[str, Any]]:
    turns = measure.in_turns(contenders(name, n_steps), rounds)
    require_the_same(name, turns)
    ours = next(iter(turns.seconds.values()))
    return [
        {
            "model": name,
            "size": SETTINGS[name].size,
            "name": who,
            **turns.facts[who],
            "first_losses": [float(f"{loss:.6g}") for loss in turns.first[who]],
            "seconds": measure.spread(seconds / n_steps),
            "ratio": measure.spread(seconds / ours),
            "peak_gflops": measure.spread(turns.peaks[who] / 1e9),
        }
        for who, seconds in turns.seconds.items()
    ]


def table(result: dict[str, Any]) -> str:
    cells = []
    for i, row in enumerate(result["rows"]):
        first = i == 0 or result["rows"][i - 1]["model"] != row["model"]
        temporaries = row.get("temporaries")
        cells.append(
            [
                f"{row['model']}: {row['size']}; {row['parameters']:,} parameters" if first else "",
                row["name"],
                measure.shown(row["seconds"], 1, scale=1000),
                "1" if first else measure.shown(row["ratio"]),
                f"{temporaries / 2**20:,.1f} MiB" if temporaries else "",
            ]
        )
    settings = result["settings"]
    return (
        measure.markdown(["a step of", "by", "ms", "ratio to ours", "temporaries"], cells)
        + f"\n\nMedians (quartiles) of {settings['rounds']} rounds of {settings['steps']} steps; ratios are of the "
        f"same round. {measure.circumstances(result)}"
    )


def main() -> int:
    parser = measure.arguments(__doc__)
    parser.add_argument("--rounds", type=measure.at_least_one, default=11, help="turns of each contender")
    parser.add_argument("--steps", type=measure.at_least_one, default=10, help="training steps in a turn")
    parser.add_argument("--only", choices=SETTINGS, help="one of the networks")
    args = parser.parse_args()
    if args.write and args.only:
        parser.error("--write saves whole results; leave out --only")
    names = [args.only] if args.only else list(SETTINGS)
    found = [row for name in names for row in rows(name, args.steps, args.rounds)]
    settings = {"rounds": args.rounds, "steps": args.steps}
    result = measure.result("models", settings, ["torch"], found)
    measure.finish(result, table(result), args.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
