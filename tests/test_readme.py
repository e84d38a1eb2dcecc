"""The README's code runs as it stands there, and prints what it says."""

import re
from pathlib import Path

import jax
import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


REPORT = re.findall(r"```text\n(WRONG.*?)```", README, flags=re.DOTALL)[0]


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
    assert [re.sub(r"\d+\.\d s\)", "s)", line) for line in printed] == [
        re.sub(r"\d+\.\d s\)", "s)", line) for line in promised
    ]
    if "record" in names:
        assert names["record"].validation["accuracy"] > 0.97
