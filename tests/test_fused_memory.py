"""What the rules of `jaxnn/fused` and the layers allocate beside `jax.grad`, on the rows of the benchmark.

They are only compiled: `memory_analysis` of a compiled program is exact, the same on every run.
"""

import importlib
from pathlib import Path

import jax.numpy as jnp
import pytest

# The temporaries of the hand-written rule, as a share of those of jax.grad of the plain forward: at most this much.
# Attention is at 1/200 with jax 0.10, but XLA of jax 0.8 makes a copy of the size of q.
SHARES = {
    ("linear_cross_entropy, default", "N4096 D512 V32768"): 1 / 25,
    ("linear_cross_entropy, least", "N4096 D512 V32768"): 1 / 200,
    ("flash_attention, causal", "B2 H4 T2048 D64"): 1 / 90,
    ("flash_attention, causal, padding mask", "B2 H4 T2048 D64"): 1 / 90,
    ("flash_attention, causal, 1 key head", "B2 H4 T2048 D64"): 1 / 90,
    ("flash_attention, every key", "B2 H4 T2048 D64"): 1 / 90,
}


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "scripts")
    return importlib.import_module("_fused_benchmark")


@pytest.fixture
def temporaries(benchmark):
    """(name, size) of a row -> bytes of jax.grad's, bytes of ours."""
    rows = {(row.name, row.size): row for row in importlib.import_module("_fused_rows").ROWS}

    def of(name, size):
        memory = [f.memory_analysis() for f in benchmark.compiled(rows[name, size].build())]
        return tuple(m.temp_size_in_bytes for m in memory)

    return of


@pytest.mark.parametrize("row", SHARES, ids=", ".join)
def test_a_small_share_of_what_jax_grad_takes(temporaries, row):
    plain, ours = temporaries(*row)
    assert ours <= SHARES[row] * plain


def test_the_scores_of_a_vocabulary_of_131072_fit_a_cache(temporaries):
    _, ours = temporaries("linear_cross_entropy, least", "N8192 D1024 V131072")
    assert ours < 10 * 2**20  # the scores themselves would be 4 GiB


def test_attention_s_memory_is_linear_in_the_sequence(temporaries):
    plain, ours = temporaries("flash_attention, causal", "B2 H4 T16384 D64")
    assert plain > 24_000 * 2**20
    assert ours <= 8 * SHARES["flash_attention, causal", "B2 H4 T2048 D64"] * 384 * 2**20


def triple():
    from _fused_benchmark import Case  # in the process of the row too

    return Case(lambda x: 3 * x, lambda x: x + 2 * x, lambda: (jnp.ones(4),))


def test_a_line_of_the_table(benchmark):
    row = benchmark.Row("triple", "4", triple)
    text = benchmark.fused_benchmark([row, row._replace(name="other", timed=False)], 3, "trip")
    name, size, temporaries, ratio, speed, difference = text.splitlines()[-1].strip("| ").split(" | ")
    assert (name, size, temporaries, ratio, difference) == ("triple", "4", "0 → 0 MiB", "1", "0e+00")
    assert speed.endswith(")")
    with pytest.raises(ValueError, match="no row has that in its name; there are \\['other', 'triple'\\]"):
        benchmark.fused_benchmark([row, row._replace(name="other")], 3, "fourfold")
