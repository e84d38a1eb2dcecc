"""Text as data, the trigram model, training on a text, and `jaxnn train-text`."""

import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnn.runs.text
from jaxnn import datasets, layers
from jaxnn.cli import main
from jaxnn.cli.train_text import settings
from jaxnn.optimizers import adamw
from jaxnn.runs.settings import TextSettings
from jaxnn.training import Diverged, TrainState, evaluate_text, fit_text, load_tree, save_tree
from jaxnn.training.fit_text import Windows

RNG = np.random.default_rng(0)


# ---------------------------------------------------------------- files


@pytest.mark.quick
def test_a_file_is_held_out_from_a_tenth_before_its_end(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"0123456789" * 3)
    assert datasets.text_files(path) == (b"0123456789" * 2 + b"0123456", b"789")
    path.write_bytes("€".encode() * 4)  # 12 bytes: the last one alone would be a part of a character
    assert datasets.text_files(path) == ("€".encode() * 3, "€".encode())


def test_a_folder_is_held_out_file_by_file(tmp_path):
    for name, text in {
        "b/z.txt": b"z" * 40, "a.txt": b"a" * 50, "c.py": b"c" * 7, "d.md": b"d" * 6, "empty": b"",
        "data.bin": b"\0" * 9,
        ".git/x": b"hidden", "b/.y": b"hidden",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text)
    train, held_out = datasets.text_files(tmp_path)
    assert train == b"a" * 50 + b"z" * 40
    assert held_out == b"c" * 7 + b"d" * 6
    (tmp_path / "e").write_bytes(b"e" * 900)  # nine tenths of all: something must stay on either side
    assert datasets.text_files(tmp_path).held_out == b"e" * 900


def test_the_standard_library_is_python():
    train, held_out = datasets.standard_library()
    assert len(train) > 1_000_000
    assert 0.05 < len(held_out) / (len(train) + len(held_out)) < 0.2
    assert b"\nclass ArgumentParser" in train
    assert b"\nclass zipimporter" in held_out  # of the last module in every version; zipfile became a package


def test_where_there_is_no_text(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt: no such file"):
        datasets.text_files(tmp_path / "nowhere.txt")
    (tmp_path / "empty").write_bytes(b"")
    for path in (tmp_path / "empty", tmp_path):
        with pytest.raises(ValueError, match="no text in it; expected a file that is not empty"):
            datasets.text_files(path)


def test_characters():
    vocabulary = datasets.character_vocabulary("zä�äz€".encode())
    assert b"".join(vocabulary.symbols).decode() == "�zä€"
    assert vocabulary.encode("€za".encode()).tolist() == [3, 1, 0]
    assert vocabulary.decode([2, 0, 3]) == "ä�€"
    assert datasets.character_vocabulary("�".encode()).encode(b"a").tolist() == [0]
    with pytest.raises(ValueError, match=r"not UTF-8 \(byte 0xff at 1\)"):
        vocabulary.encode(b"a\xff")
    assert datasets.byte_vocabulary().decode([97, 255]) == "a�"


# ---------------------------------------------------------------- the trigram model


def test_trigram_bits_by_hand():
    train, held_out, k = b"abracadabra", b"abrax", 2.0

    def p(context, c):  # the last of at most two bytes first
        if context is None:
            return 1 / 256
        shorter = p(context[1:] if context else None, c)
        # An occurrence at the very end of the text has nothing after it, so it does not count.
        places = [i for i in range(len(train) - len(context)) if train[i:].startswith(context)]
        after = [train[i + len(context)] for i in places]
        return (after.count(c) + k * shorter) / (len(after) + k)

    expected = -np.mean([math.log2(p(held_out[i - 2 : i], held_out[i])) for i in range(2, 5)])
    assert datasets.trigram_bits(datasets.Text(train, held_out), k) == pytest.approx(expected, rel=1e-12)
    assert sum(p(b"br", c) for c in range(256)) == pytest.approx(1)
    with pytest.raises(ValueError, match="the parts have 11 and 2 bytes, expected at least 3"):
        datasets.trigram_bits(datasets.Text(train, b"ab"))


# ---------------------------------------------------------------- training


MODEL = layers.embedding(9, 9)  # the scores of what comes next are a row of its table: a bigram model
OPTIMIZER = adamw(lambda step: jnp.where(step < 4, 0.3, jnp.inf))
IDS = (np.arange(200) % 7).astype(np.uint8)
TABLE = RNG.normal(size=(9, 9)).astype(np.float32)


def run(train_state, steps):
    return fit_text(MODEL, IDS, train_state, optimizer=OPTIMIZER, window=4, batch_size=3, steps=steps, every=2)


def test_training_goes_on_where_it_stopped_and_stops_where_it_diverges(tmp_path):
    params = {"table": jnp.asarray(TABLE)}
    key = jax.random.key(0, impl="unsafe_rbg")
    beginning = TrainState(params, (), OPTIMIZER.init(params), key, jnp.int32(0))
    first, second = run(beginning, 4)
    assert [first.step, second.step] == [2, 4]
    assert second.loss < first.loss
    save_tree(tmp_path / "t.npz", first.train_state)
    (again,) = run(load_tree(tmp_path / "t.npz", beginning), 4)
    assert again[:-1] == second[:-1]
    np.testing.assert_array_equal(again.train_state.params["table"], second.train_state.params["table"])
    assert list(run(second.train_state, 4)) == []
    with pytest.raises(Diverged, match=r"the loss became nan at step 6 of 6; .*Try a smaller rate") as error:
        next(run(second.train_state, 6))
    np.testing.assert_array_equal(error.value.train_state.params["table"], second.train_state.params["table"])


def test_windows_are_the_ids_and_those_that_come_next():
    batch = Windows(3)(jnp.arange(9) ** 2, jnp.array([0, 5]))
    assert batch.x.tolist() == [[0, 1, 4], [25, 36, 49]]
    assert batch.y.tolist() == [[1, 4, 9], [36, 49, 64]]
    assert batch.weights is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"window": 200}, r"ids have shape \(200,\), expected \(n,\) with n > window = 200"),
        ({"ids": IDS[None]}, r"ids have shape \(1, 200\)"),
        ({"batch_size": 0}, "batch_size = 0, expected a whole number"),
        ({"every": 0}, "every = 0, expected a whole number"),
    ],
)
def test_what_fit_text_refuses(wrong, message):
    arguments = {"ids": IDS, "window": 4, "batch_size": 3, "steps": 2} | wrong
    ids = arguments.pop("ids")
    with pytest.raises(ValueError, match=f"fit_text: {message}"):
        next(fit_text(MODEL, ids, None, optimizer=OPTIMIZER, **arguments))  # pyright: ignore[reportArgumentType]


def test_the_loss_is_that_of_all_windows():
    ids = RNG.integers(0, 9, 31)  # 7 windows, in batches of 3; the last two ids are left over
    measure = functools.partial(evaluate_text, MODEL, {"table": TABLE}, (), ids, window=4, batch_size=3)
    log_p = TABLE - np.log(np.exp(TABLE).sum(1, keepdims=True))
    losses = -log_p[ids[:28], ids[1:29]]
    found = [measure(batches=n) for n in (None, 9, 1)]
    # One batch of 3 from 7 windows: the first, the middle and the last one.
    expected = [losses.mean(), losses.mean(), losses.reshape(7, 4)[[0, 3, 6]].mean()]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# ---------------------------------------------------------------- the command


def test_a_run_leaves_its_folder(tmp_path, capsys):
    (tmp_path / "text").write_text("the cat sat on the mat. " * 40)
    out = tmp_path / "run"
    tiny = ["--model", "lstm", "--width", "4", "--layers", "1", "--window", "8", "--batch", "2", "--length", "5"]
    tiny += ["--level", "character", "--prompt", "the", "--steps", "4", "--every", "2", "--temperature", "0"]
    assert main(["train-text", *tiny, "--data", str(tmp_path / "text"), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for line in ("864 bytes to learn from, 96 held out", "a byte trigram model: 0.", "step 2/4", "step 4/4",
                 "held-out text: lstm ", "a sample at temperature 0:\nthe", f"run folder {out}: "):  # fmt: skip
        assert line in printed
    rows = [json.loads(row) for row in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    assert len((out / "sample.txt").read_text()) == 3 + 5
    assert {p.name for p in out.iterdir()} == {
        "config.json", "metrics.jsonl", "params.npz", "sample.txt", "curves.png", "train_state.npz", "vocabulary.txt"
    }  # fmt: skip

    found = settings(["--resume", str(out), "--steps", "6"])
    assert found == settings([*tiny, "--data", str(tmp_path / "text"), "--steps", "6", "--resume", str(out)])
    (tmp_path / "text").write_text("THE CAT SAT ON THE MAT. " * 40)
    assert main(["train-text", "--resume", str(out), "--steps", "7"]) == 2
    assert re.search(r"has other characters than .*vocabulary\.txt", capsys.readouterr().err)
    assert json.loads((out / "config.json").read_text())["steps"] == 4
    (out / "config.json").write_text('{"model": "gpt", "color": 3}')
    with pytest.raises(ValueError, match=r"config\.json: not the settings of a run of this command \(.*color"):
        settings(["--resume", str(out)])


def test_wrong_settings(tmp_path, capsys):
    short = tmp_path / "short.txt"
    short.write_bytes(b"x" * 1000)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    for flags, message in {
        "--data no/such/file.txt": r"no/such/file\.txt: no such file",
        f"--data {short}": r"the held-out part has a length of 100, expected more than --window 128",
        f"--data {short} --window 2000": "the training part has a length of 900",
        "--model gtp": "unknown model 'gtp'; did you mean 'gpt'",
        f"--heads 3 --data {short} --window 9": "n_heads = 3 must divide width = 128",
        "--steps 0": "--steps = 0, expected a whole number",
        "--seed -1": "--seed = -1, expected a whole number from 0",
        "--temperature -1": "--temperature = -1",
        "--dropout 1": "--dropout = 1.0, expected 0 <= --dropout < 1",
        "--top-k 0": "--top-k = 0",
        "--width x": "argument --width: invalid int value: 'x'; see --help",
        "--level word": "unknown level 'word'; known: byte, character",
        "--prompt=": "--prompt is empty",
        f"--resume {tmp_path}": r"there is no .*config\.json",
        "--resume x --out y": r"there is no x.config\.json",
        f"--data {short} --window 9 --out {tmp_path / 'full'}": "exists and is not an empty folder",
    }.items():
        assert main(["train-text", *flags.split()]) == 2
        printed = capsys.readouterr()
        assert re.fullmatch(f"jaxnn train-text: error: .*{message}.*\n", printed.err)
        assert printed.out == ""
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["file"]


def test_settings_that_do_not_go_together():
    with pytest.raises(ValueError, match="--resume continues in the run's own folder; leave out --out"):
        TextSettings(resume="x", out="y")


def test_the_defaults_make_models():
    for begin in jaxnn.runs.text.DEFAULTS.values():
        jaxnn.runs.text.make_model(begin, 256)
        jaxnn.runs.text.make_optimizer(begin)
