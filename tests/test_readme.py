"""The README's code runs as it stands there, and prints what it says."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_there_are_three_examples():
    assert len(BLOCKS) == 3


@pytest.mark.parametrize("block", BLOCKS, ids=["pure functions", "check a gradient", "train"])
def test_it_runs(block, capsys):
    names = {}
    exec(compile(block, "README.md", "exec"), names)
    promised = re.findall(r"print\(.*\)  # (.*)", block)
    assert capsys.readouterr().out.splitlines() == promised
    if "record" in names:
        assert names["record"].validation["accuracy"] > 0.97
