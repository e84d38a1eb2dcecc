"""An epoch of 784-256-128-10 with Adam on as many random images as MNIST has, beside other libraries.

By `fit`; by `fit` with jax.grad in place of the hand-written backward; and, if installed, by PyTorch, by Flax with
Optax, and by scikit-learn. All take turns, each in a process of its own. The table also has each one's share of the
machine's own peak in matrix multiplication, measured around its turns.
"""

import functools
import itertools
import sys
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import measure
from benchmarks.autodiff import layer_by_autodiff, plain_cross_entropy
from benchmarks.measure import Contender
from jaxnn import adam, get_loss, models
from jaxnn.training import fit, scale_pixels, start

SIZES = (784, 256, 128, 10)
BATCH = 128
RATE = 1e-3


def images_and_labels(n: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, 784) uint8 and (n,) int32."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, SIZES[0]), np.uint8), rng.integers(0, SIZES[-1], n, np.int32)


# ---------------------------------------------------------------- ours, and jax.grad of the same forward


def by_fit(n: int, autodiff: bool) -> Contender:
    model, optimizer = models.mlp(SIZES[1:-1], SIZES[-1]), adam(RATE)
    loss = get_loss("softmax_cross_entropy_with_integer_labels")
    if autodiff:
        model, loss = layer_by_autodiff(model), plain_cross_entropy()
    train_state = start(jax.random.key(0), model, optimizer, (1, SIZES[0]))
    epochs = fit(model, images_and_labels(n), train_state, loss=loss, optimizer=optimizer, epochs=10**6,
                 batch_size=BATCH, prepare=scale_pixels(255))  # fmt: skip
    return Contender(lambda: next(epochs).loss)


# ---------------------------------------------------------------- the peers


def torch_eager(n: int) -> Contender:
    """With its fused Adam, the images as float32 in memory."""
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(measure.cores())
    layers = [torch.nn.Linear(m, n) for m, n in itertools.pairwise(SIZES)]
    model = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    x, y = images_and_labels(n)
    images, labels = torch.from_numpy(x.astype(np.float32) / 255), torch.from_numpy(y.astype(np.int64))

    def turn():
        loss = torch.zeros(())
        for index in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images[index]), labels[index])
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    return Contender(turn)


def flax_optax(n: int) -> Contender:
    """The usual Python loop over a jitted step."""
    import optax  # pyright: ignore[reportMissingImports]
    from flax import nnx  # pyright: ignore[reportMissingImports]

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(m, n, rngs=rngs) for m, n in itertools.pairwise(SIZES)])

        def __call__(self, x):
            for linear in self.layers[:-1]:
                x = nnx.relu(linear(x))
            return self.layers[-1](x)

    model = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(RATE), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, images, labels):
        def objective(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

        loss, grads = nnx.value_and_grad(objective)(model)
        optimizer.update(model, grads)
        return loss

    x, labels = images_and_labels(n)
    images = x.astype(np.float32) / 255
    rng = np.random.default_rng(0)

    def turn():
        order, loss = rng.permutation(len(images)), 0.0
        for i in range(0, len(images) - BATCH + 1, BATCH):
            loss = step(model, optimizer, images[order[i : i + BATCH]], labels[order[i : i + BATCH]])
        return float(loss)

    return Contender(turn)


def scikit_learn(n: int) -> Contender:
    """MLPClassifier, one epoch per call."""
    from sklearn.neural_network import MLPClassifier  # pyright: ignore[reportMissingImports]

    settings = {"batch_size": BATCH, "learning_rate_init": RATE, "alpha": 0, "max_iter": 1, "warm_start": True}
    model = MLPClassifier(SIZES[1:-1], **settings)
    x, y = images_and_labels(n)
    images = x.astype(np.float32) / 255

    def turn():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that one iteration has not converged
            model.fit(images, y)
        return float(model.loss_)

    return Contender(turn)


PEERS: dict[str, tuple[str, Callable[[int], Contender]]] = {
    "torch": ("PyTorch, eager, fused Adam", torch_eager),
    "flax": ("Flax and Optax, a loop in Python", flax_optax),
    "sklearn": ("scikit-learn", scikit_learn),
}


# ---------------------------------------------------------------- the table


def operations(n: int) -> float:
    """Of all matrix products in an epoch of n examples: three per layer, but no gradient of the first input."""
    products = [m * k for m, k in itertools.pairwise(SIZES)]
    return n * (6 * sum(products) - 2 * products[0])


def rows(builds: dict[str, Callable[[], Contender]], rounds: int, n: int) -> list[dict[str, Any]]:
    turns = measure.in_turns(builds, rounds)
    ours = turns.seconds[next(iter(builds))]
    return [
        {
            "name": name,
            "seconds": measure.spread(s),
            "ratio": measure.spread(s / ours),
            "peak_share": measure.spread(operations(n) / s / turns.peaks[name]),
            "peak_gflops": measure.spread(turns.peaks[name] / 1e9),
        }
        for name, s in turns.seconds.items()
    ]


def table(result: dict[str, Any]) -> str:
    cells = [
        [
            row["name"],
            measure.shown(row["seconds"], 3),
            measure.shown(row["ratio"]) if row is not result["rows"][0] else "1",
            f"{100 * row['peak_share']['median']:.0f} %",
        ]
        for row in result["rows"]
    ]
    settings = result["settings"]
    return (
        measure.markdown(["an epoch by", "seconds", "ratio to ours", "share of peak"], cells)
        + f"\n\n{settings['examples']:,} examples, medians (quartiles) of {settings['rounds']} rounds; ratios are of "
        f"the same round. {measure.circumstances(result)}"
    )


def main() -> int:
    parser = measure.arguments(__doc__)
    parser.add_argument("--examples", type=measure.at_least_one, default=60_000, help="examples in the epoch")
    parser.add_argument("--rounds", type=measure.at_least_one, default=11, help="turns of each contender")
    args = parser.parse_args()
    if args.examples < BATCH:
        parser.error(f"--examples {args.examples}: expected at least {BATCH}, a batch")
    n = args.examples
    builds = {
        "jaxnn": functools.partial(by_fit, n, autodiff=False),
        "jaxnn with `jax.grad`": functools.partial(by_fit, n, autodiff=True),
    }
    for package in measure.installed(tuple(PEERS)):
        name, build = PEERS[package]
        builds[name] = functools.partial(build, n)
    settings = {"sizes": SIZES, "batch": BATCH, "rate": RATE, "examples": n, "rounds": args.rounds}
    peers = ("torch", "flax", "optax", "sklearn")
    result = measure.result("epoch", settings, peers, rows(builds, args.rounds, n))
    measure.finish(result, table(result), args.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
