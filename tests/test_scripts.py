"""The training scripts: short programs on the library's public names, each run here on small settings."""

import ast
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = sorted((Path(__file__).parents[1] / "scripts").glob("train_*.py"))
# The flags that make a run short, what it must print, and what it leaves.
RUNS = {
    "train_digits": (
        "--epochs 2", "test accuracy ",
        {"metrics.jsonl", "params.npz", "confusion.png", "curves.png", "mistakes.png", "weights.png"},
    ),
    "train_mnist_cnn": ("--epochs 1", "test accuracy ", {"params.npz", "curves.png", "mistakes.png"}),
    "train_table": ("--epochs 3 --data table.csv --label y", "test rmse ", set()),
    "train_text": ("--steps 2 --data text.txt", "held-out text: ", {"params.npz", "curves.png"}),
}  # fmt: skip


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The working directory, with data to train on."""
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(40, 2))
    np.savetxt("table.csv", np.c_[x[:, 0] - x[:, 1], x], delimiter=",", header="y,a,b", comments="")
    Path("text.txt").write_text("the cat sat on the mat. " * 80)
    return tmp_path


def test_each_script_is_run():
    assert [path.stem for path in SCRIPTS] == list(RUNS)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_it_is_short_and_has_only_public_names(script):
    source = script.read_text(encoding="utf-8")
    assert len(source.splitlines()) < 80
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [node.attr] if isinstance(node, ast.Attribute) else []
        assert not [name for name in names if any(part.startswith("_") for part in name.split("."))]


@pytest.mark.parametrize(
    "name",
    # The larger models take a quarter of a minute each.
    [pytest.param(name, marks=[pytest.mark.slow] * (name in ("train_mnist_cnn", "train_text"))) for name in RUNS],
)
def test_it_runs(name, files, monkeypatch, capsys):
    flags, last, left = RUNS[name]
    out = files / ("out.png" if name == "train_table" else "out")
    monkeypatch.setattr(sys, "argv", [name, *flags.split(), "--out", str(out)])
    runpy.run_path(str(SCRIPTS[0].parent / f"{name}.py"), run_name="__main__")
    assert capsys.readouterr().out.splitlines()[-1].startswith(last)
    assert ({p.name for p in out.iterdir()} if out.is_dir() else set()) == left
    assert out.exists()
