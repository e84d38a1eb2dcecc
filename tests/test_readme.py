"""The README's code runs as it stands there, and prints what it says."""

import re
from decimal import Decimal
from pathlib import Path

import jax
import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


REPORT = re.findall(r"```text\n(WRONG.*?)```", README, flags=re.DOTALL)[0]


NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]\d+)?(?!\w)")
NOISE = 1e-10  # errors below it are rounding in float64, which differs from one version of JAX to the next


def says(printed, promised):
    """Whether a line prints what is promised: the words, the counts, and every decimal to its last digit; no times."""
    printed, promised = (re.sub(r"\d+\.\d s\)", "s)", line) for line in (printed, promised))
    if NUMBER.sub("#", printed).split() != NUMBER.sub("#", promised).split():
        return False
    return all(map(agree, NUMBER.findall(printed), NUMBER.findall(promised)))


def agree(printed, promised):
    a, b = Decimal(printed), Decimal(promised)
    one_in_the_last_digit = Decimal(1).scaleb(int(b.as_tuple().exponent)) if "." in promised else 0
    return abs(a - b) <= one_in_the_last_digit or max(abs(a), abs(b)) < NOISE


def test_what_counts_as_printed():
    promised = "b1  (4,)  4.16e-01  2.7e+00  0  2.8e-12  ok  (value 3.89677, 0.9 s)"
    assert says(promised, promised)
    assert says("b1  (4,)  4.15e-01  2.7e+00  3.1e-17   0  ok  (value 3.89678, 12.3 s)", promised)
    for wrong in (
        promised.replace("(4,)", "(5,)"),
        promised.replace("4.16", "4.18"),
        promised.replace("4.16e-01", "4.16e-02"),
        promised.replace("2.8e-12", "2.8e-07"),
        promised.replace("  0  ", "  1.2e-03  "),
        promised.replace("3.89677", "3.89687"),
        promised.replace("ok", "WRONG"),
        promised.replace("b1", "b2"),
    ):
        assert not says(wrong, promised), wrong


def test_there_are_three_examples():
    assert len(BLOCKS) == 3


@pytest.mark.parametrize("block", BLOCKS, ids=["pure functions", "check a gradient", "train"])
def test_it_runs(block, capsys, tmp_path):
    names = {}
    file = tmp_path / "README.md"  # the report quotes the lines of the user's source
    file.write_text(block, encoding="utf-8")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as a reader has it
        exec(compile(block, str(file), "exec"), names)
    promised = REPORT.splitlines() if "verify_grad" in block else re.findall(r"print\(.*\)  # (.*)", block)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(promised)
    for line, said in zip(printed, promised, strict=True):
        assert says(line, said), (line, said)
    if "record" in names:
        assert names["record"].validation["accuracy"] > 0.97
