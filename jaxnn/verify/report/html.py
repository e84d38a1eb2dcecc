"""A report as a web page: one file with its style and figures embedded, legible on a phone, light or dark."""

import base64
import io
import os
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import jax

from jaxnn._version import __version__
from jaxnn.verify.report.data import Finding, Leaf, Outcome, wrong_first
from jaxnn.verify.report.figure import LEAVES, errors_figure, panel_figures
from jaxnn.verify.report.text import KINDS, credit, error, summary, unnamed_leaves, where

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPEN_ROWS = 40  # rows of the table of leaves visible without a click

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --line: #d5d5d5; --faint: #666; --bad: #b3261e;
  --good: #1a6e34; --hint: #805500; --tint: #f5f5f5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #161616; --line: #3d3d3d; --faint: #a0a0a0;
  --bad: #ff8a80; --good: #7fd99a; --hint: #e8b75a; --tint: #222; } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 1rem; }
header { margin-bottom: 1rem; border-left: .4rem solid; padding-left: .8rem; } header p { color: var(--ink); }
h1 { margin: 0; font-size: 1.5rem; } h2 { margin: 1.8rem 0 .6rem; font-size: 1.15rem; }
h3 { margin: 1.2rem 0 .4rem; font-size: 1rem; overflow-wrap: anywhere; } p { margin: .3rem 0; }
.good { color: var(--good); } .bad { color: var(--bad); } .hint { color: var(--hint); } .faint { color: var(--faint); }
.text { white-space: pre-wrap; overflow-wrap: anywhere; } li { margin: .6rem 0; }
code, td { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: .85rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; }
th, td { padding: .25rem .7rem .25rem 0; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { font-size: .85rem; color: var(--faint); } .n { text-align: right; }
td.where { padding-left: 1.5rem; white-space: normal; min-width: 16rem; }
summary { cursor: pointer; padding: .4rem 0; }
.panels { display: flex; flex-wrap: wrap; gap: .8rem; }
figure { margin: 0; flex: 1 1 18rem; max-width: 34rem; }
figure.wide { max-width: 48rem; margin-top: 1rem; overflow-x: auto; } figure.wide img { min-width: 36rem; }
figure img { width: 100%; border-radius: .3rem; background: #fff; }
figcaption { font-size: .85rem; color: var(--faint); }
"""


def report_page(report: Outcome) -> str:
    """The whole page of a report."""
    leaves = wrong_first(report)
    wrong = [leaf for leaf in leaves if leaf.status == "WRONG"]
    told = [finding for finding in report.findings if finding.wrong]
    notes = [finding for finding in report.findings if not finding.wrong]
    parts = []
    if told:
        parts.append("<h2>What is wrong</h2><ol>" + "".join(map(_finding, told)) + "</ol>")
    parts.append("<h2>Leaves</h2>" + _leaves(leaves))
    for leaf in wrong[:LEAVES]:
        shape = f'<span class="faint">{leaf.shape}</span>'
        panels = "".join(_image(drawn, caption) for caption, drawn in panel_figures(leaf))
        parts.append(f'<h3><code>{escape(leaf.path)}</code> {shape}</h3><div class="panels">{panels}</div>')
    if len(wrong) > LEAVES:
        parts.append(f'<p class="faint">The first {LEAVES} of {len(wrong):,} wrong leaves are drawn.</p>')
    if not wrong and report.leaves:
        drawn = errors_figure(report)
        parts.append(_image(drawn, "The largest error of every leaf, and the tolerance in float64.", "wide"))
    if notes or report.notes:
        items = "".join(map(_finding, notes)) + "".join(f'<li class="text">{escape(n)}</li>' for n in report.notes)
        parts.append(f"<h2>Notes</h2><ul>{items}</ul>")
    verdict = "RIGHT" if report.ok else "WRONG"
    return page(verdict, summary(report), report.ok, "\n".join(parts))


def page(verdict: str, sentence: str, ok: bool, body: str) -> str:
    """A page of this library: the verdict on top, then the body, which is already HTML."""

    kind = "good" if ok else "bad"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(verdict)}: {escape(sentence)}</title>
<style>{STYLE}</style>
</head>
<body><main>
<header class="{kind}"><h1>{escape(verdict)}</h1><p class="text">{escape(sentence)}</p></header>
{body}
<p class="faint">jaxnn {escape(__version__)}, jax {escape(jax.__version__)}</p>
</main></body>
</html>
"""


def table(head: list[str], rows: list[str], numbers: range) -> str:
    """A table that scrolls sideways where it is too wide. Rows are already HTML; columns in `numbers` align right."""
    cells = "".join(f"<th{_side(i, numbers)}>{escape(name)}</th>" for i, name in enumerate(head))
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def row(cells: list[str], kind: str, numbers: range, more: str = "") -> str:
    """A row of a table; the first cell, the verdict, is coloured as `kind`. `more` goes into a row below."""
    verdict, *others = cells
    inner = "".join(f"<td{_side(i, numbers)}>{escape(cell)}</td>" for i, cell in enumerate(others, 1))
    below = f'<tr><td colspan="{len(cells)}" class="where">{escape(more)}</td></tr>' if more else ""
    return f'<tr><td class="{kind}">{escape(verdict)}</td>{inner}</tr>{below}'


def require_folder(path: str | os.PathLike) -> None:
    """FileNotFoundError unless the folder that `path` will be written to exists."""
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {folder}; make it first, or write somewhere else")


def write_page(path: str | os.PathLike, text: str) -> None:
    """All or nothing: the file appears under its name only once it is complete."""
    require_folder(path)
    path = Path(path)
    partial = path.with_name(path.name + ".part")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _side(i: int, numbers: range) -> str:
    return ' class="n"' if i in numbers else ""


def _finding(finding: Finding) -> str:
    explained = ""
    if unnamed := unnamed_leaves(finding):
        explained = f'<p class="faint">explains {", ".join(f"<code>{escape(path)}</code>" for path in unnamed)}</p>'
    last = f'<p class="hint">{escape(credit(finding))}</p>' if credit(finding) else ""
    return f'<li><div class="text">{escape(finding.text)}</div>{explained}{last}</li>'


def _leaves(leaves: list[Leaf]) -> str:
    if not leaves:
        return "<p>No leaves: nothing was differentiated.</p>"
    head = ["", "leaf", "shape", "largest |g|", "vs autodiff", "vs differences"]
    numbers = range(3, 6)
    rows = []
    for leaf in leaves:
        kind = KINDS.get(leaf.status, "faint")
        cells = [leaf.status, leaf.path, str(leaf.shape), f"{leaf.largest:.2e}"]
        cells += [error(leaf.autodiff), error(leaf.differences)]
        rows.append(row(cells, kind, numbers, where(leaf) if leaf.status == "WRONG" else ""))
    first = table(head, rows[:OPEN_ROWS], numbers)
    if len(rows) <= OPEN_ROWS:
        return first
    rest = table(head, rows[OPEN_ROWS:], numbers)
    return f"{first}<details><summary>{len(rows) - OPEN_ROWS:,} more leaves</summary>{rest}</details>"


def _image(drawn: "Figure", caption: str, kind: str = "") -> str:
    data = io.BytesIO()
    drawn.savefig(data, format="png", dpi=170)
    source = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    text = escape(caption)
    return f'<figure class="{kind}"><img alt="{text}" src="{source}"><figcaption>{text}</figcaption></figure>'
