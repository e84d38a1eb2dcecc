"""Text as data, the trigram model, and scripts/train_text.py."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import datasets, layers
from jaxnn.optimizers import adamw
from jaxnn.training import TrainState, load_tree, save_tree

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "scripts")


# ---------------------------------------------------------------- files


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
    from _text import trigram_bits

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
    assert trigram_bits(train, held_out, k) == pytest.approx(expected, rel=1e-12)
    assert sum(p(b"br", c) for c in range(256)) == pytest.approx(1)


# ---------------------------------------------------------------- training


MODEL = layers.embedding(9, 9)  # the scores of what comes next are a row of its table: a bigram model
OPTIMIZER = adamw(lambda step: jnp.where(step < 4, 0.3, jnp.inf))
IDS = (np.arange(200) % 7).astype(np.uint8)
TABLE = RNG.normal(size=(9, 9)).astype(np.float32)


def run(train_state, steps):
    from _text import rounds

    return rounds(MODEL, OPTIMIZER, train_state, IDS, window=4, batch=3, steps=steps, every=2)


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
    with pytest.raises(FloatingPointError, match="between step 4 and 6; try a smaller --rate"):
        next(run(second.train_state, 6))
    assert np.isfinite(second.train_state.params["table"]).all()


def test_the_loss_is_that_of_all_windows():
    from _text import mean_loss

    ids = RNG.integers(0, 9, 31)  # 7 windows, in batches of 3; the last two ids are left over
    log_p = TABLE - np.log(np.exp(TABLE).sum(1, keepdims=True))
    losses = -log_p[ids[:28], ids[1:29]]
    found = [mean_loss(MODEL, {"table": TABLE}, (), ids, 4, 3, n) for n in (None, 9, 1)]
    # One batch of 3 from 7 windows: the first, the middle and the last one.
    expected = [losses.mean(), losses.mean(), losses.reshape(7, 4)[[0, 3, 6]].mean()]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# ---------------------------------------------------------------- the script


@pytest.fixture
def script():
    import train_text

    return train_text


def test_a_run_leaves_its_folder(script, tmp_path, capsys):
    (tmp_path / "text").write_text("the cat sat on the mat. " * 40)
    out = tmp_path / "run"
    tiny = ["--model", "lstm", "--width", "4", "--layers", "1", "--window", "8", "--batch", "2", "--length", "5"]
    tiny += ["--level", "character", "--prompt", "the", "--steps", "4", "--every", "2", "--temperature", "0"]
    assert script.main([*tiny, "--data", str(tmp_path / "text"), "--out", str(out)]) == 0
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

    config = script.parse(["--resume", str(out), "--steps", "6"])
    assert config == script.parse([*tiny, "--data", str(tmp_path / "text"), "--steps", "6", "--resume", str(out)])
    (tmp_path / "text").write_text("THE CAT SAT ON THE MAT. " * 40)
    with pytest.raises(ValueError, match=r"has other characters than .*vocabulary\.txt"):
        script.main(["--resume", str(out)])
    (out / "config.json").write_text('{"model": "gpt", "color": 3}')
    with pytest.raises(ValueError, match=r"config\.json: not the settings of a run of this script \(.*color"):
        script.parse(["--resume", str(out)])


def test_wrong_settings(script, tmp_path):
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
        "--seed -1": "--seed -1: expected a whole number from 0",
        "--temperature -1": "--temperature = -1",
        "--top-k 0": "--top-k = 0",
        "--width x": "argument --width: invalid int value: 'x'; see --help",
        "--level word": "invalid choice: 'word'",
        "--prompt=": "--prompt is empty",
        f"--resume {tmp_path}": r"there is no .*config\.json",
        f"--data {short} --window 9 --out {tmp_path / 'full'}": "exists and is not an empty folder",
    }.items():
        with pytest.raises((ValueError, OSError), match=message):
            script.main(flags.split())
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["file"]


def test_the_defaults_make_models(script):
    for config in script.DEFAULTS.values():
        script.check(config)
        script.make_model(config, 256)
        script.make_optimizer(config)
