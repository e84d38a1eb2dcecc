"""Rules whose hand-written backward beats `jax.grad` of the plain forward: temporaries, which are exact, and time.

Both take turns in one process, and each row has a process of its own. Temporaries cost time where the system has to
hand out their pages at each call; in a process that has already freed enough memory from other rows, it does not.
"""

import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from benchmarks import fused_rows, layer_rows, measure
from benchmarks.fused_case import Case, Row

ROWS: tuple[Row, ...] = (*fused_rows.ROWS, *layer_rows.ROWS)
SHORTEST = 0.02  # least seconds per turn: anything faster is called several times


def compiled(case: Case) -> tuple[Any, Any]:
    """jax.grad's function and ours, compiled for the shapes of the arguments, which are not made."""
    shapes = jax.eval_shape(case.arguments)
    return jax.jit(case.plain).lower(*shapes).compile(), jax.jit(case.ours).lower(*shapes).compile()


def measured(row: Row, rounds: int) -> dict[str, Any]:
    """The row as in the results; speed is jax.grad's time over ours, in the same round."""
    case = row.build()
    plain, ours = compiled(case)
    memory = [f.memory_analysis() for f in (plain, ours)]
    found = {
        "name": row.name,
        "size": row.size,
        "unit": row.unit,
        "temporaries": None if None in memory else [m.temp_size_in_bytes for m in memory],
    }
    if not row.timed:
        return found
    arguments = case.arguments()
    seconds = in_turns(plain, ours, arguments, rounds)
    return found | {
        "difference": float(f"{difference(plain(*arguments), ours(*arguments)):.1g}"),
        "seconds": [measure.spread(of_one) for of_one in seconds],
        "speed": measure.spread(seconds[0] / seconds[1]),
    }


def difference(expected, found) -> float:
    """The largest max |found - expected| / max |expected| over the leaves."""
    pairs = zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True)
    return max(float(abs(np.asarray(a) - np.asarray(b)).max() / (abs(np.asarray(a)).max() or 1)) for a, b in pairs)


def in_turns(plain, ours, arguments: tuple, rounds: int) -> np.ndarray:
    """Seconds (2, rounds) per call of each; they take turns, and each goes first every other round."""
    functions = plain, ours
    calls = max(1, round(SHORTEST / min(seconds_of(f, arguments, 1) for f in functions)))
    seconds = np.zeros((2, rounds))
    for i in range(rounds):
        for which in (1, 0) if i % 2 else (0, 1):
            seconds[which, i] = seconds_of(functions[which], arguments, calls)
    return seconds


def seconds_of(f, arguments: tuple, calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(f(*arguments))
    return (time.perf_counter() - began) / calls


# ---------------------------------------------------------------- the table


def table(result: dict[str, Any]) -> str:
    head = ["rule", "size", "temporaries, `jax.grad` → ours", "ratio", "speed against `jax.grad`", "largest difference"]
    cells = [
        [
            row["name"],
            row["size"],
            *temporaries_of(row),
            measure.shown(row["speed"]) if "speed" in row else "compiled only",
            f"{row['difference']:.0e}" if "speed" in row else "compiled only",
        ]
        for row in result["rows"]
    ]
    return (
        measure.markdown(head, cells)
        + f"\n\nMedians (quartiles) of {result['settings']['rounds']} rounds. {measure.circumstances(result)}"
    )


def temporaries_of(row: dict[str, Any]) -> tuple[str, str]:
    """Both in the row's unit, and their ratio: two cells."""
    if row["temporaries"] is None:
        return "this device does not say", ""
    (of_plain, of_ours), (unit, n_bytes) = row["temporaries"], row["unit"]
    if of_ours == of_plain:
        ratio = "1"
    elif 0 < of_ours < of_plain:
        ratio = f"1/{three(of_plain / of_ours)}"
    else:
        ratio = three(of_ours / of_plain) if of_plain else "∞"
    return f"{three(of_plain / n_bytes)} → {three(of_ours / n_bytes)} {unit}", ratio


def three(x: float) -> str:
    """Three digits, and all of those before the point."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


def main() -> int:
    parser = measure.arguments(__doc__)
    parser.add_argument("--rounds", type=measure.at_least_one, default=11, help="turns of each")
    parser.add_argument("--only", metavar="TEXT", help="the rows whose name contains this")
    args = parser.parse_args()
    if args.write and args.only:
        parser.error("--write saves whole results; leave out --only")
    chosen = [row for row in ROWS if args.only is None or args.only in row.name]
    if not chosen:
        names = ", ".join(sorted({row.name for row in ROWS}))
        parser.error(f"--only {args.only!r}: no row has that in its name; the rows are {names}")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as processes:
        found = processes.map(measured, chosen, [args.rounds] * len(chosen))
        rows = list(tqdm(found, total=len(chosen), unit="row", disable=None))
    result = measure.result("fused", {"rounds": args.rounds}, (), rows)
    measure.finish(result, table(result), args.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
