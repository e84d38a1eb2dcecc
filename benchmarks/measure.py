"""What the benchmarks share: turns, their spread, and the result files."""

import argparse
import contextlib
import datetime
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

RESULTS = Path(__file__).resolve().parent / "results"
PEAK_SIZE = 1024  # of the square matrices whose product measures the machine's peak
PEAK_OPERATIONS = 4 * 2 * PEAK_SIZE**3  # of four products

# ---------------------------------------------------------------- turns


class Contender(NamedTuple):
    """Something that is timed."""

    turn: Callable[[], Any]  # one turn of it, finished when it returns
    facts: Mapping[str, Any] = {}  # anything else to say about it in the results


class Turns(NamedTuple):
    """What `in_turns` finds; each mapping is by the contender's name."""

    facts: Mapping[str, Mapping[str, Any]]
    first: Mapping[str, Any]  # what the first turn returned, which isn't timed
    seconds: Mapping[str, np.ndarray]  # (rounds,)
    peaks: Mapping[str, np.ndarray]  # (rounds,) the machine's peak in operations per second, around each turn


def in_turns(builds: Mapping[str, Callable[[], Contender]], rounds: int) -> Turns:
    """Let everybody take a turn in every round, so that a slow minute of the machine slows all of them.

    Each contender is built in a process of its own and waits there for its turn: no two share a thread pool or an
    allocator. The functions that build them are pickled, so they must be at module level.
    """
    seconds: dict[str, list[float]] = {name: [] for name in builds}
    peaks: dict[str, list[float]] = {name: [] for name in builds}
    with contextlib.ExitStack() as stack:
        peak, _ = stack.enter_context(_running(_peak))
        started = {name: stack.enter_context(_running(build)) for name, build in builds.items()}
        names = list(builds)
        for i in tqdm(range(rounds), unit="round", disable=None):
            start = i % len(names)  # nobody always follows the same neighbour
            for name in names[start:] + names[:start]:
                before, turn = peak(), started[name][0]
                seconds[name].append(turn())
                peaks[name].append(2 * PEAK_OPERATIONS / (before + peak()))
    return Turns(
        facts={name: greeting[0] for name, (_, greeting) in started.items()},
        first={name: greeting[1] for name, (_, greeting) in started.items()},
        seconds={name: np.array(values) for name, values in seconds.items()},
        peaks={name: np.array(values) for name, values in peaks.items()},
    )


@contextlib.contextmanager
def _running(build: Callable[[], Contender]) -> Iterator[tuple[Callable[[], float], tuple[Mapping, Any]]]:
    """A process for one contender: (take a turn and return its seconds, (its facts, its first turn's value))."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(there, build), daemon=True)
    process.start()
    there.close()

    def receive():
        try:
            return here.recv()
        except EOFError:
            raise RuntimeError(f"the process of {build} ended; see above for what went wrong") from None

    def turn() -> float:
        here.send("turn")
        return receive()

    try:
        yield turn, receive()
    finally:
        with contextlib.suppress(OSError):  # it may have ended on its own
            here.send(None)
        process.join(10)
        process.terminate()


def _serve(connection, build: Callable[[], Contender]) -> None:
    contender = build()
    connection.send((contender.facts, contender.turn()))
    while connection.recv() is not None:
        began = time.perf_counter()
        contender.turn()
        connection.send(time.perf_counter() - began)


def _peak() -> Contender:
    """Four products of large square matrices."""
    import jax
    import jax.numpy as jnp

    a = jax.random.normal(jax.random.key(0), (PEAK_SIZE, PEAK_SIZE))
    multiply = jax.jit(jnp.matmul)

    def turn():
        jax.block_until_ready([multiply(a, a) for _ in range(4)])

    return Contender(turn)


# ---------------------------------------------------------------- numbers


def spread(values: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """Median, quartiles and each value, to four digits."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": _four(middle), "quartiles": [_four(low), _four(high)], "each": [_four(v) for v in values]}


def _four(x: float) -> float:
    return float(f"{x:.4g}")


def shown(spread: dict[str, Any], digits: int = 2, scale: float = 1) -> str:
    """A spread as a cell: median (quartiles)."""
    middle, low, high = (f"{scale * x:,.{digits}f}" for x in (spread["median"], *spread["quartiles"]))
    return f"{middle} ({low} … {high})"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# ---------------------------------------------------------------- results


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with the flags of every benchmark."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="save the result in benchmarks/results")
    return parser


def at_least_one(text: str) -> int:
    """The type of an argument that counts something."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}, expected at least 1")
    return value


def cores() -> int:
    """The cores that this process may use: every contender takes all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def installed(packages: Sequence[str]) -> list[str]:
    """Those of the packages that are installed; prints which are left out."""
    here = [package for package in packages if importlib.util.find_spec(package)]
    for package in packages:
        if package not in here:
            print(f"{package} is not installed: left out (pip install '.[bench]' brings it)")
    return here


def result(name: str, settings: dict[str, Any], peers: Sequence[str], rows: Sequence[Mapping]) -> dict[str, Any]:
    """Everything in a result file. peers: the import names of packages that may be missing."""
    import jax

    distributions = ["jax", "jaxlib", "numpy", *peers]
    names = ["scikit-learn" if package == "sklearn" else package for package in distributions]
    here = [name for name, package in zip(names, distributions, strict=True) if importlib.util.find_spec(package)]
    return {
        "benchmark": name,
        "date": datetime.date.today().isoformat(),
        "machine": {
            "cpu": _cpu(),
            "cores": cores(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
            "device": jax.devices()[0].device_kind,
        },
        "versions": {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in here}},
        "left_out": [name for name in names if name not in here],
        "settings": settings,
        "rows": list(rows),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.*)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def save(result: dict[str, Any]) -> Path:
    """Write the result as JSON, each list of numbers on one line."""
    text = json.dumps(result, indent=1, ensure_ascii=False)
    text = re.sub(r"\[([^\[\]{}]*)\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    path = RESULTS / f"{result['benchmark']}.json"
    path.write_text(text + "\n", encoding="utf-8")
    return path


def load(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def circumstances(result: dict[str, Any]) -> str:
    """Machine, versions and date in one sentence, to go below a table."""
    machine, versions = result["machine"], result["versions"]
    used = ", ".join(f"{name} {v}" for name, v in versions.items() if name not in ("jaxlib", "numpy", "python"))
    missing = f" Left out, not installed: {', '.join(result['left_out'])}." if result["left_out"] else ""
    return (
        f"Measured on {result['date']}: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB; "
        f"{used}.{missing}"
    )


def finish(result: dict[str, Any], table: str, write: bool) -> None:
    print(table)
    if write:
        print(f"\nsaved as {save(result)}")
