"""The command line: what it prints, what it writes, and its exit status."""

import importlib
import json
import re
import runpy
import sys
import textwrap
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jaxnn.activations import ACTIVATIONS
from jaxnn.cli import main
from jaxnn.verify import verifier
from jaxnn.verify.certificate import document, registry
from jaxnn.verify.certificate.certify import Certificate
from jaxnn.verify.judge.rule import activation_rule
from jaxnn.verify.report.data import EXACT, Finding, Leaf
from jaxnn.verify.report.report import Report

HOMEWORK = """
    import numpy as np

    def loss(w, x):
        return (w * x * x).sum()

    def right(w, x):
        print("said by the user's code")
        return x * x

    def twice(w, x):
        return 2 * x * x

    def fails(w, x):
        return x[7:8] * undefined_name

    class Model:
        loss = staticmethod(loss)

    def make_inputs():
        return np.array([0.3, -1.2], np.float32), np.array([2.0, 3.0], np.float32)

    def raises():
        raise RuntimeError("no data here")

    inputs = make_inputs()
    as_list = list(inputs)
    empty = ()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path_factory, monkeypatch):
    """The working directory: one for all tests, since a module is imported once."""
    made = tmp_path_factory.getbasetemp() / "cli"
    if not made.exists():
        made.mkdir()
        (made / "homework_7.py").write_text(textwrap.dedent(HOMEWORK))
        (made / "below").mkdir()
        (made / "below" / "random.py").write_text("from neighbour_7 import loss\ndef right(w, x): return x\n")
        (made / "below" / "neighbour_7.py").write_text("def loss(w, x): return w\n")
        (made / "needs_more.py").write_text("import surely_not_installed\n")
        (made / "no_python.py").write_text("def f(:\n")
        (made / "exits.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(made)
    return made


@pytest.fixture
def run(capsys):
    def run(*argv):
        path = list(sys.path)
        status = main(["verify", *argv])
        assert sys.path == path
        printed = capsys.readouterr()
        return SimpleNamespace(status=status, out=printed.out, err=printed.err)

    return run


@pytest.fixture
def asked(monkeypatch):
    """The engine replaced by one that notes its arguments and finds the gradient wrong."""
    calls = []
    truth = np.ones((2, 2))
    leaf = Leaf("w", (2, 2), "float32", "WRONG", 1.0, 1.0, np.nan, 4, (0, 0), 2 * truth, truth)

    def verify_grad(*args, **options):
        calls.append((args, options))
        return Report("g against f", {"w": leaf}, (Finding("factor", "twice", ("w",), EXACT),), (), 0.1)

    monkeypatch.setattr(verifier, "verify_grad", verify_grad)
    return calls


# ---------------------------------------------------------------- a gradient of the user's

OWN = ("homework_7:loss", "homework_7:right", "--inputs", "homework_7:inputs")


@pytest.mark.quick
def test_a_right_gradient(run):
    done = run("homework_7:loss", "homework_7:right", "--inputs", "homework_7:make_inputs")
    assert (done.status, done.err) == (0, "")
    assert "RIGHT  right against loss: 1 leaf" in done.out
    assert "\033" not in done.out


def test_a_wrong_gradient(run):
    done = run("homework_7.py:Model.loss", "homework_7.py:twice", "--inputs", "homework_7.py:inputs")
    assert (done.status, done.err) == (1, "")
    assert done.out.startswith("WRONG  twice against loss: 1 of 1 leaf")
    assert "manual 18, truth 9" in done.out


def test_the_engine_s_refusal_is_printed_as_it_is(run):
    done = run("homework_7:loss", "homework_7:fails", "--inputs", "homework_7:inputs")
    assert (done.status, done.out) == (2, "")
    assert "undefined_name" in done.err
    assert "in fails" in done.err  # the user's own traceback
    assert "jaxnn/verify" not in done.err


def test_everything_arrives_at_the_engine(run, asked):
    done = run(*OWN, "--argnums", "0,1")
    assert done.status == 1
    [((loss, grad, w, x), options)] = asked
    assert (loss.__name__, grad.__name__, options) == ("loss", "right", {"argnums": (0, 1)})
    np.testing.assert_array_equal([w, x], np.array([[0.3, -1.2], [2.0, 3.0]], np.float32))
    run(*OWN, "--argnums", "1")
    run(*OWN)
    assert [options["argnums"] for _, options in asked[1:]] == [1, 0]


def test_a_file_is_imported_once_and_under_no_other_module_s_name(run, asked):
    import random

    run("below/random.py:loss", "below/random.py:right", "--inputs", "homework_7:inputs")
    run("below/random.py:loss", "below/random.py:right", "--inputs", "homework_7:inputs")
    [((loss, right, *_), _), ((_, again, *_), _)] = asked
    assert loss.__module__ == "neighbour_7"
    assert right is again
    assert sys.modules["random"] is random


def test_json_alone_is_on_stdout(run):
    done = run(*OWN, "--json")
    assert done.status == 0
    assert json.loads(done.out)["leaves"].keys() == {"params"}
    assert "said by the user's code" in done.err


def test_page_and_figure_are_written(run, asked, folder):
    files = {name: folder / f"report.{name}" for name in ("html", "svg")}
    run(*OWN, "--html", str(files["html"]), "--figure", str(files["svg"]))
    assert "<h1>WRONG</h1>" in files["html"].read_text()
    assert "<svg" in files["svg"].read_text()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("homwork_7:loss", *OWN[1:]), "no module 'homwork_7' .*did you mean 'homework_7'"),
        (("homwork_7.py:loss", *OWN[1:]), r"no file homwork_7.py; did you mean 'homework_7.py'"),
        (("homework_7:los", *OWN[1:]), "homework_7 has no 'los'; did you mean 'loss'"),
        (("homework_7:zzzz", *OWN[1:]), "homework_7 has no 'zzzz'; it has Model, as_list, "),
        (("homework_7", *OWN[1:]), "'homework_7' names no function; write module:name"),
        (("homework_7:inputs", *OWN[1:]), "homework_7:inputs is a tuple, expected a function"),
        (("needs_more:loss", *OWN[1:]), r"(?s)importing needs_more failed.*needs_more.py.*No module named 'surely_not"),
        (("no_python.py:f", *OWN[1:]), r"(?s)importing no_python.py failed.*def f\(:.*SyntaxError"),
        (("exits:f", *OWN[1:]), "(?s)importing exits failed.*SystemExit: 3"),
        ((*OWN[:3], "homework_7:as_list"), r"gave a list, expected a tuple .*\(params, x, y\)"),
        ((*OWN[:3], "homework_7:empty"), "gave an empty tuple"),
        ((*OWN[:3], "homework_7:raises"), r"(?s)calling homework_7:raises\(\) failed.*in raises.*no data here"),
        ((*OWN[:3], "homework_7:loss"), r"(?s)calling homework_7:loss\(\) failed.*missing 2 required"),
        (OWN[:2], "--inputs is missing; write jaxnn verify module:loss"),
        (OWN[:1], "GRAD is missing"),
        ((*OWN, "--html", "nowhere/report.html"), r"nowhere/report.html: there is no folder .*nowhere"),
        ((*OWN, "--figure", "report.doc"), r"--figure report.doc: the name should end in one of .*\.png"),
        ((*OWN, "--only", "tanh"), "--only: such options are for the library's certificate"),
        (("--json", "--html", "x.html"), "--html, --json: such options are for a gradient of your own"),
        (("--only", "tanh", "--write", "nowhere"), r"there is no folder .*nowhere"),
    ],
)
def test_what_cannot_be_run_is_one_paragraph_and_status_2(run, monkeypatch, argv, said):
    monkeypatch.setattr(verifier, "verify_grad", None)  # all of it is found before the work begins
    done = run(*argv)
    assert (done.status, done.out) == (2, "")
    assert re.search(said, done.err), done.err
    assert done.err.startswith("jaxnn verify: ")
    assert "jaxnn/verify" not in done.err
    assert "Traceback" not in done.err


def test_a_fault_of_our_own_is_no_verdict(run, monkeypatch):
    def verify_grad(*args, **options):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(verifier, "verify_grad", verify_grad)
    done = run(*OWN)
    assert (done.status, done.out) == (2, "")
    assert "Traceback" in done.err
    assert "ZeroDivisionError: ours" in done.err


@pytest.mark.parametrize("argv", [["verify", *OWN, "--argnums", "one"], [], ["verfy"]])
def test_argparse_s_own_errors_have_status_2(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert "usage: jaxnn" in capsys.readouterr().err


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("start", "argv"),
    [
        (lambda: runpy.run_module("jaxnn", run_name="__main__"), ["verify", "--help"]),
        (lambda: runpy.run_path(str(ROOT / "scripts" / "verify_gradients.py"), run_name="__main__"), ["--help"]),
    ],
)
def test_module_and_script_are_the_same_command(start, argv, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["called", *argv])
    with pytest.raises(SystemExit) as ended:
        start()
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: jaxnn verify ")
    assert "jaxnn verify homework:loss homework:grad --inputs homework:make_inputs" in printed
    assert "0 right, 1 wrong, 2 could not be run" in printed


def test_the_installed_command():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, name = project["scripts"]["jaxnn"].partition(":")
    assert getattr(importlib.import_module(module), name) is main


# ---------------------------------------------------------------- the certificate


GOOD = Certificate("tanh | a bar", 0.0, 1.5e-11, 1e-7, 2.5e-3, ())
BAD = Certificate("<b>", 0.5, 0.25, np.inf, 2e-3, ("autodiff: error 5.0e-01, allowed 1.0e-07", "float32: inf"))


@pytest.fixture
def few_rules(monkeypatch):
    """A registry of three rules: the whole one takes a second to make."""
    rules = tuple(activation_rule(name, ACTIVATIONS[name]) for name in ("tanh", "hard_tanh", "relu"))
    monkeypatch.setattr(document, "rules", lambda: rules)


@pytest.mark.usefixtures("few_rules")
def test_certificate_of_chosen_rules(run, folder):
    done = run("--only", "hard_tanh", "--write")
    assert done.status == 0
    head, line, total, *written = done.out.splitlines()
    assert head.split() == ["rule", "autodiff", "differences", "float32", "bfloat16"]
    assert line.split()[0] == "hard_tanh"
    assert all(float(cell) < 1e-6 for cell in line.split()[1:-1])
    assert line[len(head) :] == "  ok"  # the columns end where the header's do
    assert total == "1 of 1 rules proven"
    assert written == ["certificate.md", "certificate.html"]
    text = (folder / "certificate.md").read_text(encoding="utf-8")
    assert "only rules whose name contains 'hard_tanh'" in text
    assert str(folder) not in text
    assert "hard_tanh" in (folder / "certificate.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("few_rules")
def test_a_rule_that_is_wrong_is_status_1(run, monkeypatch):
    monkeypatch.setattr("jaxnn.verify.certify", lambda rule: BAD if rule.name == "relu" else GOOD)
    done = run()
    assert done.status == 1
    assert [line.split()[0] for line in done.out.splitlines()] == ["rule", "tanh", "tanh", "<b>", "2"]
    assert "WRONG  autodiff: error 5.0e-01, allowed 1.0e-07; float32: inf" in done.out
    assert done.out.splitlines()[-1] == "2 of 3 rules proven, 1 WRONG"


@pytest.mark.usefixtures("few_rules")
def test_no_rule_of_that_name(run):
    done = run("--only", "tahn")
    assert (done.status, done.out) == (2, "")
    assert "no rule's name contains 'tahn'; did you mean 'tanh'" in done.err


def test_certificate_as_markdown_and_page():
    text = document.markdown([GOOD, BAD], None)
    assert re.search(r"\*\*1 of 2 rules proven, 1 WRONG\*\* \(jaxnn \S+, jax \S+, on a .PU, \d{4}-\d\d-\d\d\)", text)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows == [
        "| rule          | autodiff | differences | float32 | bfloat16 | verdict |",
        "|---------------|---------:|------------:|--------:|---------:|---------|",
        r"| tanh \| a bar |        0 |     1.5e-11 | 1.0e-07 |  2.5e-03 | ok      |",
        "| <b>           |  5.0e-01 |     2.5e-01 |     inf |  2.0e-03 "
        "| WRONG  autodiff: error 5.0e-01, allowed 1.0e-07; float32: inf |",
    ]
    page = document.html([GOOD, BAD], None)
    assert '<td class="bad">WRONG</td>' in page
    assert ">autodiff: error 5.0e-01, allowed 1.0e-07; float32: inf</td>" in page
    assert "<td>&lt;b&gt;</td>" in page
    assert '<header class="bad">' in page
    assert '<header class="good">' in document.html([GOOD], None)


def test_without_a_name_it_is_the_whole_registry():
    assert document.rules is registry.rules
