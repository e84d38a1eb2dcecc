"""The benchmarks: the README says what their results say, what they compare is the same, and the numbers are right."""

import functools
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import autodiff, checkers, fused, measure, models, tables
from benchmarks.fused_case import Case, Row
from jaxnn import Ctx, get_loss
from jaxnn import models as networks
from jaxnn.training import Batch, loss_and_gradient

README = tables.README.read_text(encoding="utf-8")

# ---------------------------------------------------------------- results and the README


def test_the_readme_s_tables_are_those_of_the_results():
    assert tables.differing(README) == [], "run python -m benchmarks.tables"


@pytest.mark.parametrize("name", tables.TABLES)
def test_one_other_digit_in_a_table_is_noticed(name):
    right = tables.written(README)
    block = next(found for found in tables.BLOCK.finditer(right) if found[2] == name)
    digit = re.compile(r"[0-8]").search(right, right.index("---", block.end(1)), block.end())
    assert digit
    altered = right[: digit.start()] + str(int(digit[0]) + 1) + right[digit.end() :]
    assert tables.differing(altered) == [name]
    assert tables.written(altered) == right
    assert tables.differing(right.replace(f"table: {name} -->", "")) == [name]


@pytest.mark.parametrize("name", tables.TABLES)
def test_a_result_says_where_and_how_it_was_measured_and_names_no_host(name):
    result = measure.load(name)
    assert list(result) == ["benchmark", "date", "machine", "versions", "left_out", "settings", "rows"]
    assert set(result["machine"]) == {"cpu", "cores", "memory_gib", "device"}
    assert {"python", "jax", "jaxlib", "numpy"} <= set(result["versions"])
    assert result["rows"]


def test_a_saved_result_is_the_same_when_it_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    rows = [{"name": "a [b]", "seconds": measure.spread([1.0, 2.0, 4.0])}, {"name": "none", "missed": []}]
    result = measure.result("trial", {"rounds": 3}, ["no_such_package"], rows)
    path = measure.save(result)
    assert measure.load("trial") == result
    assert '"each": [1.0, 2.0, 4.0]' in path.read_text()
    assert result["left_out"] == ["no_such_package"]
    assert "Left out, not installed: no_such_package." in measure.circumstances(result)


def test_spread():
    spread = measure.spread([5.0, 1.0, 2.00004, 3.0, 4.0])
    assert spread == {"median": 3.0, "quartiles": [2.0, 4.0], "each": [5.0, 1.0, 2.0, 3.0, 4.0]}
    assert measure.shown(spread, 1, scale=1000) == "3,000.0 (2,000.0 … 4,000.0)"


# ---------------------------------------------------------------- turns


def counting() -> measure.Contender:
    turns = iter(range(10))
    return measure.Contender(lambda: next(turns), {"colour": "red"})


def failing() -> measure.Contender:
    raise ValueError("not today")


def test_everybody_takes_a_turn_in_every_round():
    turns = measure.in_turns({"a": counting, "b": counting}, rounds=2)
    assert turns.first == {"a": 0, "b": 0}
    assert turns.facts == {"a": {"colour": "red"}, "b": {"colour": "red"}}
    assert [times.shape for times in (*turns.seconds.values(), *turns.peaks.values())] == [(2,)] * 4
    assert all((peaks > 1e8).all() for peaks in turns.peaks.values())


def test_a_contender_that_fails_ends_the_benchmark(capfd):
    with pytest.raises(RuntimeError, match=r"function failing.* ended"):
        measure.in_turns({"a": failing}, rounds=1)
    assert "not today" in capfd.readouterr().err


# ---------------------------------------------------------------- what is compared


@pytest.mark.slow
def test_the_other_side_of_a_comparison_has_the_same_loss_and_gradient():
    ours, loss = networks.cnn((3,), (5,), 4), get_loss("softmax_cross_entropy_with_integer_labels")
    _, params, state = ours.init(jax.random.key(0), (1, 6, 6, 1))
    batch = Batch(jax.random.normal(jax.random.key(1), (7, 6, 6, 1)), jnp.arange(7) % 4, jnp.ones(7).at[5].set(0.0))
    ctx = Ctx(train=True, key=jax.random.key(2), mask=batch.weights > 0)
    by_autodiff = autodiff.layer_by_autodiff(ours), autodiff.plain_cross_entropy()
    found, expected = (
        jax.jit(functools.partial(loss_and_gradient, *model_and_loss))(params, state, batch, ctx)
        for model_and_loss in (by_autodiff, (ours, loss))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)


def turns_of(**first) -> measure.Turns:
    facts = {name: {"parameters": len(name)} for name in first}
    return measure.Turns(facts, first, {}, {})


def test_contenders_that_compute_something_else_are_refused():
    models.require_the_same("gpt", turns_of(us=[2.0, 1.0], it=[2.0001, 1.004]))
    with pytest.raises(RuntimeError, match=r"at the same weights it has the loss 2\.001"):
        models.require_the_same("gpt", turns_of(us=[2.0, 1.0], it=[2.001, 1.0]))
    with pytest.raises(RuntimeError, match="the losses diverge"):
        models.require_the_same("gpt", turns_of(us=[2.0, 1.0], it=[2.0, 1.02]))
    with pytest.raises(RuntimeError, match="they has 4 parameters, us 2"):
        models.require_the_same("gpt", turns_of(us=[2.0], they=[2.0]))


@pytest.mark.peers
@pytest.mark.parametrize("name", models.SETTINGS)
def test_the_networks_in_torch_are_the_same(name):
    pytest.importorskip("torch")
    from benchmarks.models_torch import by_torch

    given = name, models.weights(name), models.SETTINGS[name].batches(2)
    ours, theirs = models.by_jax(*given, autodiff=False), by_torch(*given, compiled=False)
    assert theirs.facts["parameters"] == ours.facts["parameters"]
    np.testing.assert_allclose(theirs.turn(), ours.turn(), rtol=1e-4)


def triple() -> Case:
    return Case(lambda x: 3 * x, lambda x: x + 2.001 * x, lambda: (jnp.ones(4),))


def test_a_row_of_the_rules_beside_jax_grad():
    row = fused.measured(Row("triple", "4", triple), 3)
    assert row["difference"] == 3e-4
    assert [len(seconds["each"]) for seconds in (*row["seconds"], row["speed"])] == [3, 3, 3]
    only_compiled = fused.measured(Row("triple", "5", triple, timed=False), 3)
    text = fused.table(measure.result("fused", {"rounds": 3}, (), [row, only_compiled]))
    assert re.search(r"\| triple \| 4 \| 0 → 0 MiB \| 1 \| [\d.]+ \([\d.]+ … [\d.]+\) \| 3e-04 \|", text)
    assert "| triple | 5 | 0 → 0 MiB | 1 | compiled only | compiled only |" in text


@pytest.mark.parametrize(
    ("plain", "ours", "ratio"), [(8, 8, "1"), (2000, 8, "1/250"), (8, 12, "1.5"), (8, 0, "0"), (0, 8, "∞")]
)
def test_the_ratio_of_temporaries(plain, ours, ratio):
    assert fused.temporaries_of({"temporaries": [plain, ours], "unit": ["B", 1]})[1] == ratio


def test_what_a_checker_says_is_counted():
    corpus = SimpleNamespace(names_the_cause=lambda case, text: case.kind in text)
    said = [("w1", "sign", True, "a sign"), ("w2", "sign", True, "?"), ("w3", "sign", False, "a sign"),
            ("r1", "", True, "wrong"), ("r2", "", False, "")]  # fmt: skip
    pairs = [(SimpleNamespace(name=n, kind=k), checkers.Outcome(flagged, text, 1.0)) for n, k, flagged, text in said]
    row = checkers.row("some", corpus, pairs)
    assert (row["caught"], row["named"], row["flagged"]) == (2, 1, 1)
    assert (row["not_caught"], row["caught_but_not_named"], row["right_but_flagged"]) == (["w3"], ["w2"], ["r1"])
