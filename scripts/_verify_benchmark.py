"""The verifier beside jax's and chex's checkers, on the corpus of the tests: who catches what, and names the cause.

The peers are given what they ask for: a function with a custom_vjp made of the case's forward and manual gradient, of
float arrays only, in reverse mode, with their default tolerances. Whatever they raise counts as caught.
"""

import functools
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

TESTS = Path(__file__).resolve().parent.parent / "tests"


class Outcome(NamedTuple):
    """What one checker says of one case."""

    flagged: bool
    text: str  # what the user reads
    seconds: float


# ---------------------------------------------------------------- a case in the form that the peers take


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
        if jax.tree.structure(gradient) == tree:  # integers have no gradient, however a case writes that
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
    """Flagged if the checker raises; what it raises is what it says."""
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
        "jax check_grads": lambda case: peer(
            lambda f, args: check_grads(f, args, order=1, modes=("rev",)), case, corpus.session
        ),
    }
    if importlib.util.find_spec("chex"):
        import chex  # pyright: ignore[reportMissingImports]

        found["chex assert_numerical_grads"] = lambda case: peer(
            lambda f, args: chex.assert_numerical_grads(f, args, order=1, modes=("rev",)), case, corpus.session
        )
    return found


# ---------------------------------------------------------------- the table


def verify_benchmark(every: int) -> str:
    """Every so-and-so-many-th case of tests/corpus through every checker; a table of what they said."""
    corpus = _corpus()
    contenders = checkers(corpus)
    cases = corpus.CASES[::every]
    outcomes: dict[str, list[Outcome]] = {name: [] for name in contenders}
    for case in tqdm(cases, unit="case", disable=None):
        for name, checker in contenders.items():
            outcomes[name].append(checker(case))
    kinds = [case.kind for case in cases if case.kind]
    lines = [
        f"{len(kinds)} wrong gradients of {len(set(kinds))} kinds, {len(cases) - len(kinds)} right ones; "
        "seconds of the first call, compiling included",
        "",
        "| checker | wrong, caught | cause named | right, flagged | median seconds | in all |",
        "|---|---|---|---|---|---|",
        *(_row(name, corpus, cases, said) for name, said in outcomes.items()),
    ]
    if not importlib.util.find_spec("chex"):
        lines.append("\nchex is not installed: left out (pip install chex brings it)")
    return "\n".join(lines)


def _row(name: str, corpus, cases: list, said: list[Outcome]) -> str:
    pairs = list(zip(cases, said, strict=True))
    wrong = sum(bool(case.kind) for case in cases)
    caught = [(case, outcome) for case, outcome in pairs if case.kind and outcome.flagged]
    named = sum(corpus.names_the_cause(case, outcome.text) for case, outcome in caught)
    flagged = sum(outcome.flagged for case, outcome in pairs if not case.kind)
    seconds = [outcome.seconds for outcome in said]
    return (
        f"| {name} | {len(caught)} of {wrong} | {named} of {wrong} "
        f"| {flagged} of {len(cases) - wrong} | {np.median(seconds):.2f} | {sum(seconds):.0f} |"
    )


@functools.cache
def _corpus() -> Any:
    """The package tests/corpus, which lies beside the scripts in the repository."""
    if not (TESTS / "corpus" / "__init__.py").exists():
        raise ValueError(f"--verify needs the corpus of the tests, which is not in {TESTS}: run it in the repository")
    sys.path.insert(0, str(TESTS))
    import corpus  # pyright: ignore[reportMissingImports]

    return corpus
