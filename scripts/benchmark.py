"""How fast the library trains, as ratios measured in one process.

One epoch of 784-256-128-10, batch 128, Adam, on MNIST (--data FOLDER) or on random images of its size:
by this library; by jax.grad of the same forward under the same scan; and, where they are installed
(pip install '.[bench]'), by torch, by flax with optax, and by scikit-learn. All contenders take turns, round by round,
so that a slow minute of the machine slows all of them; the table gives medians, the spread, and the share of the
machine's own peak in matrix multiplication, measured between the turns.

--verify: instead, the verifier beside jax's and chex's gradient checkers on the wrong and right gradients of
tests/corpus: what each catches, wrongly flags, and names the cause of, in how many seconds.
--fused: instead, each rule of jaxnn/fused and of the layers beside jax.grad of its plain forward: the temporaries that
XLA allocates, which are exact, and the time. --only NAME: the rows with this in their name.
"""

import argparse
import functools
import importlib.util
import itertools
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _config import Parser, exit_with_one_line
from _fused_benchmark import fused_benchmark
from _fused_rows import ROWS
from _verify_benchmark import verify_benchmark
from tqdm import tqdm

from jaxnn import Ctx, Layer, Loss, adam, get_loss, global_norm, models
from jaxnn.optimizers import Optimizer
from jaxnn.training import Batch, TrainState, scale_pixels, start, train_step
from jaxnn.training.fit import run_epoch
from jaxnn.training.rows import batches, on_device, shuffled
from jaxnn.training.step import StepRecord

SIZES = (784, 256, 128, 10)
BATCH = 128
RATE = 1e-3
PEAK_SIZE = 1024  # of the square matrices whose product measures the machine's peak


class Contender(NamedTuple):
    """Something that trains one epoch when called."""

    run: Callable[[], Any]
    temporaries: int | None = None  # bytes of the compiled epoch, where there is one


# ---------------------------------------------------------------- ours, and jax.grad of the same forward


def autodiff_step(
    model: Layer, loss: Loss, optimizer: Optimizer, train_state: TrainState, batch: Batch, key: jax.Array
) -> tuple[TrainState, StepRecord]:
    """`train_step` with jax.grad in the place of our backward, for comparison."""

    def objective(params):
        y_pred, state, _ = model.forward(params, train_state.state, batch.x, Ctx(train=True, key=key))
        return plain_cross_entropy(batch.y, y_pred, batch.weights), state

    (value, state), grads = jax.value_and_grad(objective, has_aux=True)(train_state.params)
    record = StepRecord(value, global_norm(grads), optimizer.rate(train_state.opt_state))
    params, opt_state = optimizer.update(train_state.params, grads, train_state.opt_state)
    return train_state._replace(params=params, state=state, opt_state=opt_state), record


def plain_cross_entropy(y_true, y_pred, weights):
    """The loss as one writes it for jax.grad."""
    losses = -jnp.take_along_axis(jax.nn.log_softmax(y_pred), y_true[:, None], axis=-1)[:, 0]
    return jnp.sum(losses * weights) / jnp.sum(weights)


def ours(x: np.ndarray, y: np.ndarray, step) -> Contender:
    """An epoch as `fit` runs it: shuffled on the host, one compiled call."""
    model, optimizer = models.mlp(SIZES[1:-1], SIZES[-1]), adam(RATE)
    train_state = start(jax.random.key(0), model, optimizer, (1, SIZES[0]))
    step = functools.partial(step, model, get_loss("softmax_cross_entropy_with_integer_labels"), optimizer)
    rows, labels = on_device(x), jnp.asarray(y)
    key = jax.random.key(1)

    def arguments(train_state):
        return train_state, rows, labels, *batches(len(x), BATCH, shuffled(key, len(x))), key

    compiled = run_epoch.lower(step, scale_pixels(255), *arguments(train_state)).compile()
    carried = [train_state]

    def run():
        carried[0], record = jax.block_until_ready(compiled(*arguments(carried[0])))
        return float(record.loss[-1])

    memory = compiled.memory_analysis()
    return Contender(run, None if memory is None else memory.temp_size_in_bytes)


# ---------------------------------------------------------------- the peers


def torch_eager(x: np.ndarray, y: np.ndarray) -> Contender:
    """torch, eager, its fused Adam, images as float32 in memory."""
    import torch  # pyright: ignore[reportMissingImports]

    layers = [torch.nn.Linear(m, n) for m, n in itertools.pairwise(SIZES)]
    model = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    images, labels = torch.from_numpy(x.astype(np.float32) / 255), torch.from_numpy(y.astype(np.int64))

    def run():
        for index in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images[index]), labels[index])
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    return Contender(run)


def flax_optax(x: np.ndarray, y: np.ndarray) -> Contender:
    """flax nnx with optax, the customary loop in Python over a jitted step."""
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

    images, labels = x.astype(np.float32) / 255, y.astype(np.int32)
    rng = np.random.default_rng(0)

    def run():
        order = rng.permutation(len(images))
        for i in range(0, len(images) - BATCH + 1, BATCH):
            loss = step(model, optimizer, images[order[i : i + BATCH]], labels[order[i : i + BATCH]])
        return float(loss)

    return Contender(run)


def scikit_learn(x: np.ndarray, y: np.ndarray) -> Contender:
    """scikit-learn's MLPClassifier, one epoch a call."""
    from sklearn.neural_network import MLPClassifier  # pyright: ignore[reportMissingImports]

    settings = {"batch_size": BATCH, "learning_rate_init": RATE, "alpha": 0, "max_iter": 1, "warm_start": True}
    model = MLPClassifier(SIZES[1:-1], **settings)
    images = x.astype(np.float32) / 255

    def run():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that one iteration has not converged
            model.fit(images, y)
        return float(model.loss_)

    return Contender(run)


PEERS = {"torch": torch_eager, "flax": flax_optax, "sklearn": scikit_learn}


# ---------------------------------------------------------------- measuring


def peak_flops() -> Callable[[], float]:
    """A function that measures the floating-point operations a second of one large matrix product."""
    a = jax.random.normal(jax.random.key(0), (PEAK_SIZE, PEAK_SIZE))
    multiply = jax.jit(jnp.matmul).lower(a, a).compile()
    multiply(a, a).block_until_ready()

    def measure():
        began = time.perf_counter()
        for _ in range(4):
            product = multiply(a, a)
        product.block_until_ready()
        return 4 * 2 * PEAK_SIZE**3 / (time.perf_counter() - began)

    return measure


def epoch_flops(n: int) -> float:
    """Of all matrix products in an epoch of n examples: three a layer, less the first layer's gradient to its input."""
    products = [m * k for m, k in itertools.pairwise(SIZES)]
    return n * (6 * sum(products) - 2 * products[0])


def measure(contenders: dict[str, Contender], rounds: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Seconds (rounds,) of each contender, and the peak around each turn. Everybody takes a turn in every round."""
    peak = peak_flops()
    for contender in contenders.values():
        contender.run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    peaks: dict[str, list[float]] = {name: [] for name in contenders}
    for i in tqdm(range(rounds), unit="round", disable=None):
        names = list(contenders)
        for name in names[i % len(names) :] + names[: i % len(names)]:  # nobody always follows the same neighbour
            before = peak()
            began = time.perf_counter()
            contenders[name].run()
            seconds[name].append(time.perf_counter() - began)
            peaks[name].append((before + peak()) / 2)
    return {k: np.array(v) for k, v in seconds.items()}, {k: np.array(v) for k, v in peaks.items()}


def table(contenders: dict[str, Contender], seconds, peaks, n: int) -> str:
    """Medians and spread: seconds, ratio to ours within the same round, share of peak, temporaries."""
    lines = [
        "| epoch of 784-256-128-10, batch 128, Adam | seconds, median (min … max) | ratio to ours (quartiles) "
        "| share of peak | temporaries |",
        "|---|---|---|---|---|",
    ]
    reference = seconds["jaxnn"]
    for name, contender in contenders.items():
        s, ratio = seconds[name], seconds[name] / reference
        share = np.median(epoch_flops(n) / s / peaks[name])
        low, middle, high = np.quantile(ratio, [0.25, 0.5, 0.75])
        temporaries = "" if contender.temporaries is None else f"{contender.temporaries / 2**10:,.0f} KiB"
        lines.append(
            f"| {name} | {np.median(s):.3f} ({s.min():.3f} … {s.max():.3f}) | {middle:.2f} ({low:.2f} … {high:.2f}) "
            f"| {100 * share:.0f} % | {temporaries} |"
        )
    return "\n".join(lines)


def load(folder: str | None, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 784) uint8 and labels (n,) int32."""
    if folder is not None:
        from jaxnn import datasets

        train, _ = datasets.idx_folder(folder)
        return train.x.reshape(len(train.x), -1)[:n], train.y[:n]
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, SIZES[0]), np.uint8), rng.integers(0, SIZES[-1], n, np.int32)


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a folder of MNIST's IDX files; without it, random images of the same size")
    parser.add_argument("--examples", type=int, default=60_000, help="examples in the epoch")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contender")
    parser.add_argument("--no-peers", action="store_true", help="this library and jax.grad only")
    parser.add_argument("--verify", action="store_true", help="compare gradient checkers on tests/corpus, nothing else")
    parser.add_argument("--every", type=int, default=1, help="with --verify: only every so-and-so-many-th case")
    parser.add_argument("--fused", action="store_true", help="compare each rule with jax.grad, nothing else")
    parser.add_argument("--only", help="with --fused: the rows whose name contains this")
    args = parser.parse_args()
    if args.every < 1:
        raise ValueError(f"--every {args.every}: expected at least 1")
    if args.verify:
        print(verify_benchmark(args.every))
        return 0
    if args.fused and args.rounds >= 1:
        print(fused_benchmark(ROWS, args.rounds, args.only))
        return 0
    if args.examples < BATCH or args.rounds < 1:
        raise ValueError(f"--examples {args.examples} --rounds {args.rounds}: expected at least {BATCH} and 1")
    x, y = load(args.data, args.examples)
    contenders = {"jaxnn": ours(x, y, train_step), "jax.grad, same scan": ours(x, y, autodiff_step)}
    for package, make in {} if args.no_peers else PEERS.items():
        if importlib.util.find_spec(package):
            contenders[make.__name__.replace("_", " ")] = make(x, y)
        else:
            print(f"{package} is not installed: left out (pip install '.[bench]' brings it)")
    seconds, peaks = measure(contenders, args.rounds)
    device = jax.devices()[0]
    print(f"jax {jax.__version__} on {device.platform} ({device.device_kind}), peak "
          f"{np.median(np.concatenate(list(peaks.values()))) / 1e9:,.0f} GF/s in {PEAK_SIZE}³ float32, "
          f"{len(x):,} examples, {args.rounds} rounds")  # fmt: skip
    print(table(contenders, seconds, peaks, len(x)))
    return 0


if __name__ == "__main__":
    exit_with_one_line(main)
