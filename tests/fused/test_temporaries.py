"""What the rules of `jaxnn/fused` and the layers allocate beside `jax.grad`, on the rows of the benchmark.

They are only compiled: `memory_analysis` of a compiled program is exact, the same on every run.
"""

import pytest

from benchmarks import fused

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


ROWS = {(row.name, row.size): row for row in fused.ROWS}


def temporaries(name, size):
    """Bytes of jax.grad's, bytes of ours."""
    memory = [f.memory_analysis() for f in fused.compiled(ROWS[name, size].build())]
    return tuple(m.temp_size_in_bytes for m in memory)


@pytest.mark.parametrize("row", SHARES, ids=", ".join)
def test_a_small_share_of_what_jax_grad_takes(row):
    plain, ours = temporaries(*row)
    assert ours <= SHARES[row] * plain


def test_the_scores_of_a_vocabulary_of_131072_fit_a_cache():
    _, ours = temporaries("linear_cross_entropy, least", "N8192 D1024 V131072")
    assert ours < 10 * 2**20  # the scores themselves would be 4 GiB


def test_attention_s_memory_is_linear_in_the_sequence():
    plain, ours = temporaries("flash_attention, causal", "B2 H4 T16384 D64")
    assert plain > 24_000 * 2**20
    assert ours <= 8 * SHARES["flash_attention, causal", "B2 H4 T2048 D64"] * 384 * 2**20
