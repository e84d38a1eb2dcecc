"""What a report shows: the text, the dictionary, the figures and the page, of reports made by hand.

Every figure is rendered once, since layout and missing glyphs warn only then, and warnings are errors here.
"""

import html.parser
import io
import json
import re
import textwrap
from typing import Any

import numpy as np
import pytest

from jaxnn.verify.report import text
from jaxnn.verify.report.data import CONSISTENT, EXACT, UNKNOWN, Curve, Finding, Leaf
from jaxnn.verify.report.figure import figure, heat_map, panel_figures, reduce_blocks, scatter
from jaxnn.verify.report.html import report_page, write_page
from jaxnn.verify.report.report import Report, WrongGradient

RNG = np.random.default_rng(0)


def leaf(path: str, manual, truth, status: str = "ok", n_wrong: int = 0, **fields) -> Leaf:
    manual, truth = np.asarray(manual, float), np.asarray(truth, float)
    same = manual.shape == truth.shape and truth.size > 0
    gaps = np.abs(manual - truth) if same else np.zeros(())
    largest = float(np.abs(truth).max(initial=0))
    error = float(np.nanmax(gaps)) / (largest or 1)  # inf where an entry is
    worst = tuple(map(int, np.unravel_index(int(np.nanargmax(gaps)), gaps.shape))) if same else ()
    made = Leaf(path, truth.shape, "float32", status, largest, error, error, n_wrong, worst, manual, truth)
    return made._replace(**fields)


def right(path: str, shape=(2, 3), error: float = 3e-15) -> Leaf:
    truth = RNG.normal(size=shape)
    return leaf(path, truth, truth, autodiff=error, differences=2e-10)


def report(leaves: list[Leaf], findings: tuple[Finding, ...] = (), notes: tuple[str, ...] = ("checked.",), value=1.5):
    return Report("grad against loss", {one.path: one for one in leaves}, findings, notes, 0.25, value)


W: Any = leaf("params['w']", [[2.0, 4.0], [6.0, 8.0]], [[1.0, 2.0], [3.0, 4.0]], "WRONG", 4)
CURVE = Curve((1, 1), 10.0 ** -np.arange(1, 8), 4 + 10.0 ** -np.arange(2, 9))
TWICE = Finding("factor", "params['w']: every entry is twice too large.", ("params['w']",), EXACT, "model.py:4")
WRONG = report([right("params['b']", (3,)), W._replace(curve=CURVE)], (TWICE,))
RIGHT = report([right("params['b']", (3,)), right("params['w']")])


# ---------------------------------------------------------------- text


def test_text_of_a_right_gradient():
    assert str(RIGHT) == textwrap.dedent("""\
        RIGHT  grad against loss: 2 leaves, 9 entries, largest error 2.0e-10  (value 1.5, 0.2 s)

          leaf         shape   largest |g|  vs autodiff  vs differences  verdict
          params['b']  (3,)       {}      3.0e-15         2.0e-10  ok
          params['w']  (2, 3)     {}      3.0e-15         2.0e-10  ok

        note  checked.""").format(*(f"{RIGHT.leaves[path].largest:.2e}" for path in RIGHT.leaves))


@pytest.mark.quick
def test_text_of_a_wrong_gradient():
    b = WRONG.leaves["params['b']"].largest
    assert str(WRONG) == textwrap.dedent(f"""\
        WRONG  grad against loss: 1 of 2 leaves  (value 1.5, 0.2 s)

          leaf         shape   largest |g|  vs autodiff  vs differences  verdict
          params['w']  (2, 2)     4.00e+00      1.0e+00         1.0e+00  WRONG
              all 4 entries, worst at [1, 1]: manual 8, truth 4
          params['b']  (3,)       {b:.2e}      3.0e-15         2.0e-10  ok

        1. params['w']: every entry is twice too large.
           [reproduces your gradient exactly · model.py:4]

        note  checked.""")


@pytest.mark.parametrize("leaves", [3, 300])
def test_a_right_gradient_takes_at_most_a_screen(leaves):
    notes = tuple(f"note {i} has so many words that it is wrapped to two lines" + " or more" * 9 for i in range(30))
    kink = leaf("params['kink']", 1.0, 0.5, "kink", autodiff=0.5)
    many = report([*(right(f"params['{'long' * 20}'][{i}]", error=i * 1e-15) for i in range(leaves)), kink], (), notes)
    lines = str(many).splitlines()
    assert len(lines) <= text.SCREEN
    assert max(map(len, lines)) <= text.WIDTH
    assert "kink" in lines[3]  # told first, and no part of the largest error
    assert "largest error 2.0e-10" in lines[0]
    more = [line for line in lines if "more leaves" in line]
    shown = sum("…'][" in line or "longlong" in line for line in lines)
    assert more == ([] if leaves == 3 else [f"  … and {leaves - shown} more leaves, all right, largest error 2.0e-10"])
    assert re.search(r"… and \d+ more; to_dict\(\) and to_html\(\)", lines[-1])


def test_many_wrong_leaves_and_findings_are_summed_up():
    leaves = [W._replace(path=f"[{i}]") for i in range(30)]
    findings = tuple(Finding("factor", f"finding {i}", (f"[{i}]",), UNKNOWN) for i in range(12))
    lines = str(report([right("ok"), *leaves], findings)).splitlines()
    assert sum(line.endswith("WRONG") and line.startswith("  [") for line in lines) == text.WRONG_LEAVES
    assert "  … and 20 more leaves, all WRONG" in lines
    assert "   … and 4 more findings" in lines


def test_wrong_leaves_stand_in_the_order_of_their_findings():
    paths = ["a", "b", "c", "d"]
    findings = (Finding("x", "c", ("c",)), Finding("y", "b", ("b", "c")))
    lines = str(report([W._replace(path=path) for path in paths], findings)).splitlines()
    assert [line[2] for line in lines if line.endswith("  WRONG")] == ["c", "b", "a", "d"]


def test_what_is_not_held_against_the_gradient_is_a_note():
    kink = Finding("kink", "relu is at its kink", ("params['b']",), CONSISTENT, "model.py:7", wrong=False)
    told = report([right("params['b']")], (kink,))
    assert told.ok
    assert "note  relu is at its kink [model.py:7]" in str(told).splitlines()
    assert "consistent" not in str(told)


def test_wrong_though_every_leaf_is_right():
    impure = Finding("impure", "two calls gave two gradients")
    assert str(report([right("w")], (impure,))).startswith(
        "WRONG  grad against loss: 1 finding, though every leaf agrees with the truth at this point"
    )


def test_long_findings_hang_and_keep_their_line_ends():
    finding = Finding("raised", "word " * 60 + "\n  File x\n    y = 1", ("a", "b"), UNKNOWN)
    lines = text._finding(0, finding, 80, text.plain)
    assert lines[0].startswith("1. word")
    assert all(line.startswith("   ") and len(line) <= 80 for line in lines[1:])
    assert lines[-4:] == ["     File x", "       y = 1", "   explains a, b", "   [cause unknown]"]


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (W._replace(manual=None), "no such leaf"),
        (W._replace(truth=None), "nothing of its name"),
        (W._replace(manual=np.zeros((3, 2))), "manual has the shape (3, 2), truth (2, 2)"),
        (W._replace(n_wrong=0), "its numbers are right"),
        (leaf("s", 1 + 1e-7, 1.0, "WRONG", 1), "1 of 1 entry, worst: manual 1.0000001, truth 1"),
        (leaf("n", [np.nan, 1.0], [1.0, 1.0], "WRONG", 1, worst=(0,)), "worst at [0]: manual nan, truth 1"),
    ],
)
def test_where_a_leaf_is_wrong(one, said):
    assert said in text.where(one)


def test_errors_that_nobody_measured_are_dashes():
    ids = right("ids")._replace(status="integer", autodiff=np.nan, differences=np.nan)
    assert str(report([ids])).splitlines()[3].split()[-3:] == ["–", "–", "integer"]
    assert "largest error –" in str(report([ids]))


def test_colour_only_on_a_terminal_that_wants_it(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def shown(stream):
        text.show(WRONG, stream)
        return stream.getvalue().removesuffix("\n")

    coloured = shown(Terminal())
    assert coloured.startswith("\033[1;31mWRONG\033[0m  grad")
    assert coloured.count("\033[1;31m") == 3  # the verdict, the leaf, the finding
    assert re.sub(r"\033\[[\d;]*m", "", coloured) == str(WRONG)
    assert shown(io.StringIO()) == str(WRONG)
    monkeypatch.setenv("NO_COLOR", "1")
    assert shown(Terminal()) == str(WRONG)
    monkeypatch.setenv("COLUMNS", "70")
    assert max(map(len, shown(Terminal()).splitlines())) <= 85  # numbers are not cut off, names and texts are


# ---------------------------------------------------------------- data


def test_dictionary_goes_through_json():
    infinite = leaf("params['i']", [np.inf, 1.0], [1.0, 1.0], "WRONG", 1, worst=(0,), differences=np.nan)
    told = report([infinite, W._replace(curve=CURVE), W._replace(path="gone", manual=None)], (TWICE,), value=np.nan)
    found = json.loads(json.dumps(told.to_dict(), allow_nan=False))
    assert found == told.to_dict()
    assert (found["ok"], found["name"], found["value"], found["notes"]) == (False, told.name, "nan", ["checked."])
    assert found["leaves"]["params['i']"] == {
        "shape": [2],
        "dtype": "float32",
        "status": "WRONG",
        "largest": 1.0,
        "autodiff": "inf",
        "differences": None,
        "n_wrong": 1,
        "worst": {"index": [0], "manual": "inf", "truth": 1.0},
        "curve": None,
    }
    assert found["leaves"]["params['w']"]["curve"] == {
        "index": [1, 1],
        "steps": CURVE.steps.tolist(),
        "slopes": CURVE.slopes.tolist(),
    }
    assert found["leaves"]["gone"]["worst"] == {"index": [1, 1], "manual": None, "truth": 4.0}
    assert found["findings"] == [
        {
            "kind": "factor",
            "text": TWICE.text,
            "leaves": ["params['w']"],
            "confidence": EXACT,
            "source": "model.py:4",
            "wrong": True,
        }
    ]


def test_raise_if_wrong():
    RIGHT.raise_if_wrong()
    with pytest.raises(AssertionError) as raised:
        WRONG.raise_if_wrong()
    assert raised.type is WrongGradient
    assert str(raised.value) == str(WRONG)


# ---------------------------------------------------------------- figures


def an_axes() -> Any:
    from matplotlib.figure import Figure

    return Figure().add_subplot()


def axes_of(drawn) -> list[Any]:
    drawn.draw_without_rendering()
    return [ax for ax in drawn.axes if ax.get_title(loc="left")]


def test_figure_of_a_wrong_leaf_shows_its_numbers():
    heat, points, curve = axes_of(WRONG.figure())
    np.testing.assert_allclose(heat.images[0].get_array(), (W.manual - W.truth) / 4)
    assert heat.images[0].norm.vmin == -heat.images[0].norm.vmax  # white is 0
    wrong = next(line for line in points.lines if line.get_label() == "wrong, 4")
    np.testing.assert_array_equal(wrong.get_xydata(), np.c_[W.truth.ravel(), W.manual.ravel()])
    lines = {line.get_label(): line for line in curve.lines}
    np.testing.assert_array_equal(lines["from truth"].get_xdata(), CURVE.steps)
    np.testing.assert_allclose(lines["from truth"].get_ydata(), np.abs(CURVE.slopes - 4))
    np.testing.assert_allclose(lines["from manual"].get_ydata(), np.abs(CURVE.slopes - 8))
    assert (curve.get_xscale(), curve.get_yscale()) == ("log", "log")


def test_figure_draws_four_wrong_leaves_whatever_they_are():
    nan = np.arange(24.0).reshape(2, 3, 4)
    odd = [
        leaf("nan", np.where(nan == 5, np.nan, nan), nan, "WRONG", 1, worst=(0, 1, 1)),
        leaf("another shape", np.zeros((3, 2)), np.zeros((2, 3)), "WRONG", 6, worst=()),
        leaf("huge", [3e307, -1.0], [-2e5, 1.0], "WRONG", 2)._replace(
            curve=Curve((0,), CURVE.steps, np.array([np.nan, *CURVE.slopes[1:]]))
        ),
        leaf("scalar", 3.0, 0.0, "WRONG", 1),
        leaf("left out", 3.0, 0.0, "WRONG", 1),
        right("right"),
    ]
    axes = axes_of(figure(report(odd)))
    assert len(axes) == 12
    assert axes[0].images[0].get_array().mask.sum() == 1
    assert axes[0].images[0].get_array().shape == (6, 4)
    assert "not drawn: 1 NaN or huge" in axes[1].get_title(loc="left")
    assert "manual has the shape (3, 2)" in axes[3].texts[0].get_text()
    assert "manual 3" in axes[9].texts[0].get_text()


def test_truth_that_is_zero_is_drawn_absolutely():
    ax = axes_of(panel_figures(leaf("b", [0.0, 1e-3, 0.0], np.zeros(3), "WRONG", 1))[0][1])[0]
    np.testing.assert_array_equal(ax.images[0].get_array(), [[0, 1e-3, 0]])


def test_the_entries_with_the_largest_errors_are_the_wrong_ones():
    ax = an_axes()
    scatter(ax, leaf("w", [1.0, 2.5, 3.0, 5.0], [1.0, 2.0, 3.0, 4.0], "WRONG", 2))
    points = {line.get_label(): list(line.get_xdata()) for line in ax.lines}
    assert sorted(points["wrong, 2"]) == [2, 4]
    assert sorted(points["right, 2"]) == [1, 3]


def test_blocks_keep_their_largest_entry_with_its_sign():
    x = RNG.normal(size=(10, 7))
    x[9, 6] = np.nan
    reduced = reduce_blocks(x, 5)
    assert reduced.shape == (5, 5)
    assert np.isnan(reduced[4, 4])
    block = x[2:4, 0:1].ravel()
    assert reduced[1, 0] == block[np.abs(block).argmax()]
    assert np.isin(reduced[~np.isnan(reduced)], x).all()
    assert np.nanmax(np.abs(reduced)) == np.nanmax(np.abs(x))
    np.testing.assert_array_equal(reduce_blocks(x, 10), x)


def test_large_leaf_is_reduced():
    ax = an_axes()
    truth = np.ones((1, 300, 500))
    manual = truth.copy()
    manual[0, 123, 456] = 0
    assert heat_map(ax, leaf("w", manual, truth, "WRONG", 1))
    image = ax.images[0]
    assert max(image.get_array().shape) <= 96
    assert image.get_array().min() == -1
    assert (image.get_array() != 0).sum() == 1
    assert image.get_extent() == [-0.5, 499.5, 299.5, -0.5]  # the axes count the leaf's own entries


def test_figure_of_a_right_gradient_shows_every_error():
    leaves = [right(f"leaf {i}")._replace(autodiff=i * 1e-15, differences=i * 1e-12) for i in range(50)]
    ids = right("ids")._replace(autodiff=np.nan, differences=np.nan, status="integer")
    drawn: Any = report([*leaves, ids]).figure()
    drawn.draw_without_rendering()
    [ax] = drawn.axes
    lines = {line.get_label(): line for line in ax.lines}
    assert lines["tolerance"].get_xdata()[0] == 1e-7
    shown = [label.get_text() for label in ax.get_yticklabels()]
    assert shown == [f"leaf {i}" for i in range(10, 50)]
    np.testing.assert_allclose(lines["against autodiff"].get_xdata(), np.arange(10, 50) * 1e-15)
    np.testing.assert_allclose(lines["against differences"].get_xdata(), np.arange(10, 50) * 1e-12)
    assert "40 leaves with the largest errors" in drawn.get_suptitle()


def test_little_to_draw():
    report([]).figure().draw_without_rendering()
    drawn: Any = report([right("w")._replace(autodiff=0.0, differences=np.nan)]).figure()
    drawn.draw_without_rendering()
    assert drawn.axes[0].lines[1].get_xdata() == [1e-17]  # an error of 0 has a place on the log axis


# ---------------------------------------------------------------- page


class Page(html.parser.HTMLParser):
    """The text of a page, its tags and links; fails where tags do not match."""

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data

    def of(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def test_page_of_a_wrong_gradient():
    evil = "<script>alert('x')</script> & more"
    told = report([W._replace(path=evil, curve=CURVE)], (TWICE._replace(text=evil, leaves=("other <b>",)),), (evil,))
    page = Page(report_page(told))
    assert page.of("script") == []
    assert page.of("b") == []
    assert page.text.count(evil) == 4  # the finding, the table, the panels' title, the note
    assert "all 4 entries, worst at [1, 1]: manual 8, truth 4" in page.text
    assert "reproduces your gradient exactly · model.py:4" in page.text
    assert len(page.of("img")) == 3
    assert all(image["alt"] and str(image["src"]).startswith("data:image/png;base64,") for image in page.of("img"))
    assert page.of("link") == []
    assert "url(" not in report_page(RIGHT)
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.of("meta")
    assert page.of("header") == [{"class": "bad"}]


def test_page_of_a_right_gradient_folds_a_long_table(tmp_path):
    leaves = [right(f"leaf {i}") for i in range(60)]
    report(leaves).to_html(tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.of("header") == [{"class": "good"}]
    assert "20 more leaves" in page.text
    assert all(f"leaf {i}" in page.text for i in range(60))
    assert len(page.of("img")) == 1


def test_page_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("before")
    with pytest.raises(UnicodeEncodeError):
        write_page(path, "half of it \ud800")
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere; make it first"):
        RIGHT.to_html(tmp_path / "nowhere" / "report.html")
