"""The verifier beside jax's and chex's gradient checkers, on tests/corpus: who catches what, and who names the cause.

The peers get what they ask for: a function of float arrays only, with a custom_vjp made from the case's forward and
manual gradient, in reverse mode, with their default tolerances. Whatever they raise counts as caught.
"""

import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads
from tqdm import tqdm

from benchmarks import measure


class Outcome(NamedTuple):
    """What one checker says about one case."""

    flagged: bool
    text: str  # what the user reads
    seconds: float


# ---------------------------------------------------------------- a case in the form the peers take


def differentiable(case) -> tuple[Callable, list[Any]]:
    """(f, leaves): f(*leaves) is the case's forward of its float leaves, its derivative the manual gradient."""
    forward, backward, args, argnums = _functions(case)
    leaves, tree = jax.tree.flatten(tuple(args[i] for i in argnums))
    floats = [jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves]

    @jax.custom_vjp
    def f(chosen):
        return forward(*_replaced(args, argnums, chosen))

    def f_backward(chosen, dy):
        gradient = backward(_replaced(args, argnums, chosen), dy)
        if jax.tree.structure(gradient) == tree:  # integers have no gradient, however a case expresses that
            each = zip(jax.tree.leaves(gradient), leaves, floats, strict=True)
            gradient = tree.unflatten([g if ok else np.zeros(np.shape(x), jax.dtypes.float0) for g, x, ok in each])
        return (gradient,)

    f.defvjp(lambda chosen: (f(chosen), chosen), f_backward)

    def of_leaves(*moving):
        each = iter(moving)
        return f(tree.unflatten([next(each) if ok else x for x, ok in zip(leaves, floats, strict=True)]))

    return of_leaves, [np.asarray(x) for x, ok in zip(leaves, floats, strict=True) if ok]


def _functions(case) -> tuple[Callable, Callable, tuple, tuple[int, ...]]:
    """(forward(*args), backward(args, dy) -> a tuple of gradients, args, which of them have a gradient)."""
    if case.how == "grad":
        argnums = (case.argnums,) if isinstance(case.argnums, int) else case.argnums

        def backward(args, dy):
            gradient = case.manual(*args)
            gradient = (gradient,) if isinstance(case.argnums, int) else gradient
            return jax.tree.map(lambda g: g * dy if jnp.issubdtype(jnp.result_type(g), jnp.floating) else g, gradient)

        return case.forward, backward, case.args, argnums
    if case.how == "vjp":
        f_fwd, f_bwd = case.manual
        return case.forward, lambda args, dy: f_bwd(f_fwd(*args)[1], dy), case.args, tuple(range(len(case.args)))
    x, ctx, key = case.args
    layer = case.forward
    _, params, state = layer.init(key, x.shape)

    def layer_backward(args, dy):
        return layer.backward(args[0], layer.forward(args[0], state, args[1], ctx)[2], dy)

    return lambda params, x: layer.forward(params, state, x, ctx)[0], layer_backward, (params, x), (0, 1)


def _replaced(args: tuple, argnums: tuple[int, ...], chosen: tuple) -> tuple:
    args_list = list(args)
    for i, argument in zip(argnums, chosen, strict=True):
        args_list[i] = argument
    return tuple(args_list)


# ---------------------------------------------------------------- the checkers


def peer(checker: Callable[[Callable, list], None], case, session) -> Outcome:
    """Flagged if the checker raises; its text is what it raises."""
    began = time.perf_counter()
    text = ""
    try:
        with session(case):
            checker(*differentiable(case))
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
    return Outcome(bool(text), text, time.perf_counter() - began)


def ours(case, corpus) -> Outcome:
    began = time.perf_counter()
    report = corpus.check(case)
    return Outcome(not report.ok, corpus.first_findings(report), time.perf_counter() - began)


def checkers(corpus) -> dict[str, Callable[[Any], Outcome]]:
    """By name; chex only where it is installed."""
    found = {
        "jaxnn": lambda case: ours(case, corpus),
        "jax `check_grads`": lambda case: peer(
            lambda f, args: check_grads(f, args, order=1, modes=("rev",)), case, corpus.session
        ),
    }
    if importlib.util.find_spec("chex"):
        import chex  # pyright: ignore[reportMissingImports]

        found["chex `assert_numerical_grads`"] = lambda case: peer(
            lambda f, args: chex.assert_numerical_grads(f, args, order=1, modes=("rev",)), case, corpus.session
        )
    return found


# ---------------------------------------------------------------- the table


def rows(corpus, cases: list) -> list[dict[str, Any]]:
    """What every checker says about the cases: counts, the names of those it was wrong about, and seconds for each."""
    contenders = checkers(corpus)
    said: dict[str, list[Outcome]] = {name: [] for name in contenders}
    for case in tqdm(cases, unit="case", disable=None):
        for name, checker in contenders.items():
            said[name].append(checker(case))
    return [row(name, corpus, list(zip(cases, outcomes, strict=True))) for name, outcomes in said.items()]


def row(name: str, corpus, pairs: list[tuple[Any, Outcome]]) -> dict[str, Any]:
    caught = [(case, outcome) for case, outcome in pairs if case.kind and outcome.flagged]
    unnamed = [case.name for case, outcome in caught if not corpus.names_the_cause(case, outcome.text)]
    flagged = [case.name for case, outcome in pairs if not case.kind and outcome.flagged]
    return {
        "name": name,
        "caught": len(caught),
        "named": len(caught) - len(unnamed),
        "flagged": len(flagged),
        "seconds": measure.spread([outcome.seconds for _, outcome in pairs]),
        "not_caught": [case.name for case, outcome in pairs if case.kind and not outcome.flagged],
        "caught_but_not_named": unnamed,
        "right_but_flagged": flagged,
    }


def table(result: dict[str, Any]) -> str:
    of = result["settings"]
    totals = {"caught": of["wrong"], "named": of["wrong"], "flagged": of["right"]}
    cells = [
        [row["name"], *(f"{row[count]} of {n}" for count, n in totals.items()), measure.shown(row["seconds"])]
        for row in result["rows"]
    ]
    part = "" if of["every"] == 1 else f"Every {of['every']}th case only: "
    return (
        measure.markdown(["checker", "wrong, caught", "cause named", "right, flagged", "seconds"], cells)
        + f"\n\n{part}{of['wrong']} wrong gradients of {of['kinds']} kinds and {of['right']} right ones; seconds of a "
        f"first call, compiling included, as medians (quartiles) over the cases. {measure.circumstances(result)}"
    )


def main() -> int:
    parser = measure.arguments(__doc__)
    parser.add_argument("--every", type=measure.at_least_one, default=1, metavar="N", help="only every Nth case")
    args = parser.parse_args()
    corpus = load_corpus()
    cases = corpus.CASES[:: args.every]
    kinds = [case.kind for case in cases if case.kind]
    settings = {"every": args.every, "wrong": len(kinds), "kinds": len(set(kinds)), "right": len(cases) - len(kinds)}
    measure.installed(["chex"])
    result = measure.result("checkers", settings, ["chex"], rows(corpus, cases))
    measure.finish(result, table(result), args.write)
    return 0


def load_corpus() -> Any:
    """The package tests/corpus, next to the benchmarks in the repository."""
    tests = Path(__file__).resolve().parent.parent / "tests"
    if not (tests / "corpus" / "__init__.py").exists():
        raise FileNotFoundError(f"the corpus of gradients is not in {tests}: run this in a clone of the repository")
    sys.path.insert(0, str(tests))
    import corpus  # pyright: ignore[reportMissingImports]

    return corpus


if __name__ == "__main__":
    sys.exit(main())
