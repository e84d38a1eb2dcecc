"""Hand-written rules beside `jax.grad` of the plain forward: ratios of temporaries and of time.

Both take turns in one process, and each row has a process of its own. Temporaries cost time where the system has to
hand out their pages at each call; in a process that has freed enough memory of other rows before, it does not.
"""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

SHORTEST = 0.02  # seconds of a turn at least: what takes less is called several times


class Case(NamedTuple):
    """Two functions of the same arguments with the same results: a value and its gradients, or a gradient alone."""

    ours: Callable[..., Any]  # by the hand-written backward
    plain: Callable[..., Any]  # by jax.grad of the forward as one writes it
    arguments: Callable[[], tuple]  # makes the arguments, arrays: what is closed over would be a constant for XLA


class Row(NamedTuple):
    """A line of the table."""

    name: str
    size: str
    build: Callable[[], Case]  # of a module's own functions: it goes to another process
    timed: bool = True  # False: it is only compiled, and its arguments are never made
    unit: tuple[str, int] = ("MiB", 2**20)  # the temporaries are shown in these: a name and its bytes


def fused_benchmark(rows: Sequence[Row], rounds: int, only: str | None) -> str:
    """A Markdown table of the rows, or of those whose name contains `only`."""
    chosen = [row for row in rows if only is None or only in row.name]
    if not chosen:
        raise ValueError(f"--only {only!r}: no row has that in its name; there are {sorted({r.name for r in rows})}")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as processes:
        found = processes.map(_line, chosen, [rounds] * len(chosen))
        lines = list(tqdm(found, total=len(chosen), unit="row", disable=None))
    head = [
        "| rule | size | temporaries, `jax.grad` → ours | ratio | speed against `jax.grad`, median (quartiles) "
        "| largest difference |",
        "|---|---|---|---|---|---|",
    ]
    device = jax.devices()[0]
    about = f"jax {jax.__version__} on {device.platform} ({device.device_kind}), {rounds} rounds"
    return "\n".join([about, "", *head, *lines])


def compiled(case: Case) -> tuple[Any, Any]:
    """jax.grad's and our function, compiled for the shapes of the arguments, which are not made."""
    shapes = jax.eval_shape(case.arguments)
    return jax.jit(case.plain).lower(*shapes).compile(), jax.jit(case.ours).lower(*shapes).compile()


def _line(row: Row, rounds: int) -> str:
    case = row.build()
    plain, ours = compiled(case)
    speed = difference = "compiled only"
    if row.timed:
        arguments = case.arguments()
        difference = f"{_difference(plain(*arguments), ours(*arguments)):.0e}"
        low, middle, high = np.quantile(_speeds(plain, ours, arguments, rounds), [0.25, 0.5, 0.75])
        speed = f"{middle:.2f} ({low:.2f} … {high:.2f})"
    return f"| {row.name} | {row.size} | {_temporaries(plain, ours, row.unit)} | {speed} | {difference} |"


def _temporaries(plain, ours, unit: tuple[str, int]) -> str:
    """Both, and their ratio; two cells."""
    sizes = [f.memory_analysis() for f in (plain, ours)]
    if None in sizes:
        return "this device does not say | "
    of_plain, of_ours = (size.temp_size_in_bytes for size in sizes)
    name, n_bytes = unit
    if of_ours == of_plain:
        ratio = "1"
    elif 0 < of_ours < of_plain:
        ratio = f"1/{_three(of_plain / of_ours)}"
    else:
        ratio = _three(of_ours / of_plain) if of_plain else "∞"
    return f"{_three(of_plain / n_bytes)} → {_three(of_ours / n_bytes)} {name} | {ratio}"


def _three(x: float) -> str:
    """Three digits, and all before the point."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def _difference(expected, found) -> float:
    """The largest over the leaves of max |found - expected| / max |expected|."""
    pairs = zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True)
    return max(float(abs(np.asarray(a) - np.asarray(b)).max() / (abs(np.asarray(a)).max() or 1)) for a, b in pairs)


def _speeds(plain, ours, arguments: tuple, rounds: int) -> list[float]:
    """The plain function's time over ours, once a round; they take turns, and each goes first every other round."""
    calls = max(1, round(SHORTEST / min(_seconds(f, arguments, 1) for f in (plain, ours))))
    ratios = []
    for i in range(rounds):
        first, second = (plain, ours) if i % 2 else (ours, plain)
        times = {f: _seconds(f, arguments, calls) for f in (first, second)}
        ratios.append(times[plain] / times[ours])
    return ratios


def _seconds(f, arguments: tuple, calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(f(*arguments))
    return time.perf_counter() - began
