"""Settings, data and folders of runs, and the commands that read them from flags."""

import dataclasses
import gzip
import json
import re
import shlex
import struct
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnn.cli.train
import jaxnn.cli.train_text
import jaxnn.cli.verify
from jaxnn.cli import main
from jaxnn.cli.main import COMMANDS
from jaxnn.runs import data, folder
from jaxnn.runs.settings import ExampleSettings, TextSettings, flag_name
from jaxnn.training import Diverged, TrainState, load_tree

KEY = jax.random.key(0, impl="unsafe_rbg")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---------------------------------------------------------------- the command line

HELP = {
    "train": jaxnn.cli.train.DESCRIPTION,
    "train-text": jaxnn.cli.train_text.DESCRIPTION,
    "verify": jaxnn.cli.verify.EXAMPLES,
}
READERS = {
    "train": jaxnn.cli.train.settings,
    "train-text": jaxnn.cli.train_text.settings,
    "verify": lambda argv: jaxnn.cli.verify.parser().parse_args(argv),
}
# Two spaces or more stand before what an example does.
EXAMPLES = [re.split("  +", line)[0] for text in HELP.values() for line in re.findall("^  jaxnn (.*)", text, re.M)]


def test_every_command_shows_examples():
    assert set(HELP) == set(READERS) == set(COMMANDS)
    assert {line.split()[0] for line in EXAMPLES} == set(HELP)
    assert len(EXAMPLES) == 7 + 5 + 6


@pytest.mark.parametrize("line", EXAMPLES)
def test_an_example_of_the_help_is_a_command_line(line, empty_folder):
    for name, kind in {"table-1": ExampleSettings, "text-1": TextSettings}.items():
        (empty_folder / "runs" / name).mkdir(parents=True)
        (empty_folder / "runs" / name / "config.json").write_text(json.dumps(dataclasses.asdict(kind(seed=7))))
    command, *argv = shlex.split(line.partition(">")[0])
    found = vars(READERS[command](argv)) if command == "verify" else dataclasses.asdict(READERS[command](argv))
    assert found.get("seed", 0) == (7 if "--resume" in argv else 0)


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    for name, (_, about) in COMMANDS.items():
        assert re.search(rf"^  {name} +{about}$", printed, re.M)


@pytest.mark.parametrize("kind", [ExampleSettings, TextSettings])
def test_every_field_is_a_flag_and_is_explained(kind, capsys):
    command = "train" if kind is ExampleSettings else "train-text"
    with pytest.raises(SystemExit) as ended:
        READERS[command](["--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    for field in dataclasses.fields(kind):
        assert re.search(rf"^  {flag_name(field)} ", printed, re.M)


@pytest.mark.quick
def test_flags_are_read_in_their_field_s_type():
    flags = "--layers 8,4 --rate 0.5 --epochs 3 --label 7 --seed 2"
    found = jaxnn.cli.train.settings(flags.split())
    assert found == ExampleSettings(layers=(8, 4), rate=0.5, epochs=3, label="7", seed=2)
    assert jaxnn.cli.train.settings(["--layers", ""]).layers == ()
    assert jaxnn.cli.train_text.settings(["--top-k", "5"]).top_k == 5


def test_the_model_says_where_to_begin_and_the_run_to_go_on_with_more_so(empty_folder):
    assert jaxnn.cli.train.settings(["--model", "cnn"]).batch == 100
    assert jaxnn.cli.train_text.settings(["--model", "lstm", "--layers", "2"]) == TextSettings(
        model="lstm", width=256, layers=2
    )
    (empty_folder / "config.json").write_text(json.dumps(dataclasses.asdict(ExampleSettings(model="cnn", batch=7))))
    found = jaxnn.cli.train.settings(["--resume", str(empty_folder), "--epochs", "99"])
    assert found == ExampleSettings(model="cnn", batch=7, epochs=99, resume=str(empty_folder))


def test_wrong_flags_of_train(empty_folder, capsys):
    (empty_folder / "broken.csv").write_text("a,b,y\n1,2,3\n4,oops,6\n")
    (empty_folder / "notes.txt").write_text("")
    (empty_folder / "full").mkdir()
    (empty_folder / "full" / "file").write_text("")
    for flags, message in {
        "--data broken.csv": "broken.csv.*(line|row) 3.*b",
        "--data no-such-folder": "unknown data set 'no-such-folder'; .*and there is no file or folder",
        "--data moon": "unknown data set 'moon'; did you mean 'moons'",
        "--data notes.txt": "notes.txt: neither a .csv file, a .npz file nor a folder",
        "--data=": "--data is empty",
        "--activation relo": "unknown activation 'relo'; did you mean 'relu'",
        "--optimizer adan": "unknown optimizer 'adan'; did you mean",
        "--loss mze": "unknown loss for classification 'mze'; did you mean 'mse'",
        "--dropout 1.5": r"--dropout = 1.5, expected 0 <= --dropout < 1",
        "--layers 8,x": "'8,x' is not a list of sizes such as 256,128",
        "--layers 8,0": "--layers = 0, expected a whole number that is 1 or greater",
        "--rate 0": "--rate = 0.0, expected a finite number greater than 0",
        "--epochs 0": "--epochs = 0, expected a whole number",
        "--seed 4294967296": "--seed = 4294967296, expected a whole number from 0 to",
        "--label x": "--label names a column of a .csv file",
        "--task regression": "--task is for .csv and .npz files",
        "--epoch 3": "unrecognized arguments: --epoch 3; see --help",
        "--data moons --out full": "--out full exists and is not an empty folder",
    }.items():
        assert main(["train", *flags.split()]) == 2
        printed = capsys.readouterr()
        assert re.fullmatch(f"jaxnn train: error: .*{message}.*\n", printed.err), printed.err
        assert printed.out == ""
    assert not (empty_folder / "runs").exists()
    assert [p.name for p in (empty_folder / "full").iterdir()] == ["file"]


# ---------------------------------------------------------------- data


def load(name, label=None, task="auto", loss="auto"):
    return data.load(str(name), label, task, loss, KEY)


def write_idx(path, numbers):
    head = struct.pack(f">HBB{numbers.ndim}I", 0, 8, numbers.ndim, *numbers.shape)
    with (gzip.open(path, "wb") if path.suffix == ".gz" else path.open("wb")) as file:
        file.write(head + numbers.astype(np.uint8).tobytes())


def test_the_digits(empty_folder):
    (empty_folder / "digits").mkdir()  # a folder of that name is ./digits
    found = load("digits")
    assert found.train[0].shape == (1438, 8, 8, 1)
    assert found.images
    assert (found.loss, found.n_out) == ("softmax_cross_entropy_with_integer_labels", 10)
    assert float(found.prepare(jnp.uint8(16))) == 1
    assert found.standardizer is None


def test_points_are_standardised_by_the_training_part():
    found = load("moons")
    assert [len(part) for part in (*found.train, *found.test)] == [800, 800, 200, 200]
    np.testing.assert_allclose(found.train[0].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(found.train[0].std(0), 1, atol=1e-6)
    assert np.abs(found.test[0].mean(0)).max() > 1e-4
    assert not found.images


def test_a_folder_of_images_brings_its_own_test_set(empty_folder):
    rng = np.random.default_rng(0)
    for part, n in (("train", 9), ("t10k", 4)):
        write_idx(empty_folder / f"{part}-images-idx3-ubyte.gz", rng.integers(0, 256, (n, 5, 4)))
        write_idx(empty_folder / f"{part}-labels-idx1-ubyte", np.arange(n) % 3)
    found = load(empty_folder)
    assert (found.train[0].shape, found.test[0].shape) == ((9, 5, 4, 1), (4, 5, 4, 1))
    assert found.labels.tolist() == [0, 1, 2, 0]
    assert float(found.prepare(jnp.uint8(255))) == 1


def test_numbers_are_predicted_standardised_and_told_in_their_unit(empty_folder):
    x = np.random.default_rng(0).normal(size=(50, 2))
    y = 30 + 7 * x[:, 0]
    np.savetxt(empty_folder / "t.csv", np.c_[y, x], delimiter=",", header="price,a,b", comments="")
    found = load(empty_folder / "t.csv", label="price")
    assert (found.loss, found.n_out, found.classes) == ("mse", 1, ())
    np.testing.assert_allclose(found.train[1].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(found.y_mean + found.y_std * found.test[1], found.labels, rtol=1e-5)
    assert load(empty_folder / "t.csv", "price", loss="gaussian_nll").n_out == 2
    with pytest.raises(ValueError, match="poisson_nll predicts counts, but the labels go down to -"):
        load(empty_folder / "t.csv", "a", loss="poisson_nll")


def test_classes_as_the_loss_takes_them(empty_folder):
    np.savez(empty_folder / "c.npz", x=np.arange(12.0).reshape(6, 2), y=np.array(["up", "down"] * 3))
    found = load(empty_folder / "c.npz")
    assert found.classes == ("down", "up")
    one_hot = data.class_targets("mse", np.array([1, 0]), 3)
    assert one_hot.tolist() == [[0, 1, 0], [1, 0, 0]]
    assert data.class_targets("squared_hinge", np.array([1]), 3).tolist() == [[-1, 1, -1]]
    assert data.class_targets("softmax_cross_entropy_with_integer_labels", np.array([1]), 3).tolist() == [1]


# ---------------------------------------------------------------- folders


def state_of(w):
    return TrainState(params={"w": jnp.float32(w)}, state=(), opt_state=(), key=KEY, epoch=jnp.int32(0))


def describe(record):
    return {"loss": record.loss, "validation": {"r2": record.loss}}, f"loss {record.loss}"


def records(*losses, end=None):
    for loss in losses:
        yield SimpleNamespace(loss=loss, train_state=state_of(loss))
    if end is not None:
        raise end


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        (None, 0, ""),
        (KeyboardInterrupt(), 0, "stopped; the run folder holds everything that was reported"),
        (Diverged("the loss became nan", "step 3", state_of(2.0)), 1, "diverged: the loss became nan at step 3"),
    ],
)
def test_what_is_reported_is_in_the_folder(empty_folder, capsys, end, status, said):
    found, given = folder.record_training(empty_folder, state_of(0.0), records(1.0, 2.0, end=end), describe)
    assert given == status
    assert float(found.params["w"]) == 2
    assert float(load_tree(empty_folder / "train_state.npz", state_of(0.0)).params["w"]) == 2
    assert [row["loss"] for row in folder.read_metrics(empty_folder)] == [1, 2]
    printed = capsys.readouterr().out
    assert printed.startswith("loss 1.0\nloss 2.0\n")
    assert said in printed


def test_a_training_that_stops_at_once_leaves_the_beginning(empty_folder):
    found, _ = folder.record_training(empty_folder, state_of(5.0), records(end=KeyboardInterrupt()), describe)
    assert float(found.params["w"]) == 5
    assert folder.read_metrics(empty_folder) == []


def test_sessions_add_up_and_json_has_no_nan(empty_folder):
    for loss in (1.0, np.nan):
        folder.record_training(empty_folder, state_of(0.0), records(loss), describe)
    assert folder.read_metrics(empty_folder) == [
        {"loss": 1.0, "validation": {"r2": 1.0}}, {"loss": None, "validation": {"r2": None}}
    ]  # fmt: skip


def test_a_new_run_gets_the_next_free_folder_and_can_be_read_back(empty_folder):
    settings = ExampleSettings(data="x.csv", layers=(3,), seed=5)
    made = [folder.open_folder(settings, "x") for _ in range(2)]
    assert [str(path) for path in made] == ["runs/x-1", "runs/x-2"]
    assert folder.read_settings(made[1], ExampleSettings) == settings
    named = dataclasses.replace(settings, out="here/it/is")
    assert folder.read_settings(folder.open_folder(named, "x"), ExampleSettings) == settings
    again = dataclasses.replace(settings, resume="runs/x-1", epochs=99)
    assert folder.open_folder(again, "x") == made[0]
    assert folder.read_settings(made[0], ExampleSettings) == dataclasses.replace(settings, epochs=99)
    with pytest.raises(ValueError, match="not the settings of a run of this command"):
        folder.read_settings(made[0], TextSettings)


# ---------------------------------------------------------------- a run of `jaxnn train`


def test_moons_from_an_empty_folder(empty_folder, capsys):
    tiny = ["--data", "moons", "--layers", "4", "--batch", "400", "--epochs", "2"]
    assert main(["train", *tiny, "--l2", "0.001"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^epoch 2/2  loss .*  test loss .*  test accuracy 0", printed, re.M)
    assert re.search(r"^test accuracy \d+\.\d\d % \(\d+ of 200\)$", printed, re.M)
    assert {p.name for p in (empty_folder / "runs" / "moons-1").iterdir()} == {
        "config.json", "confusion.png", "curves.png", "metrics.jsonl", "params.npz", "train_state.npz"
    }  # fmt: skip


def test_numbers_and_a_training_that_diverges(empty_folder, capsys):
    x = np.random.default_rng(0).normal(size=(50, 2))
    np.savetxt(empty_folder / "t.csv", np.c_[x, 30 + 7 * x[:, 0]], delimiter=",", header="a,b,price", comments="")
    flags = ["--optimizer", "sgd", "--rate", "1e30", "--batch", "8", "--layers", "4"]
    assert main(["train", "--data", "t.csv", *flags]) == 1
    printed = capsys.readouterr().out
    assert "diverged: " in printed
    assert "no epoch was finished: the parameters are the initial ones" in printed
    assert re.search(r"^test rmse \d\S*, R² \S+ on 10$", printed, re.M)
    made = {p.name for p in (empty_folder / "runs" / "t-1").iterdir()}
    assert made == {"config.json", "metrics.jsonl", "params.npz", "predictions.png"}
