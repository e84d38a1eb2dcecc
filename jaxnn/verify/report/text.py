"""A report as text: the verdict, a table of the leaves, what is wrong, and what was checked."""

import os
import shutil
import textwrap
from collections.abc import Callable
from typing import Any, TextIO

import numpy as np

from jaxnn.verify.report.data import Finding, Leaf, Outcome, wrong_first

WIDTH = 110
SCREEN = 24  # lines that the report of a right gradient may take
WRONG_LEAVES, WRONG_FINDINGS = 10, 8  # the most that are reported one by one
ANSI = {"bad": "1;31", "good": "1;32", "hint": "33", "faint": "2"}
COLUMNS = ("leaf", "shape", "largest |g|", "vs autodiff", "vs differences", "verdict")
KINDS = {"WRONG": "bad", "kink": "hint", "ok": "good"}  # of a leaf's status; "integer" and others are faint

Paint = Callable[[str, str], str]


def show(report: Outcome, stream: TextIO) -> None:
    """Print the report, as wide as the terminal, and in colour if the stream takes it."""
    width = min(WIDTH, max(60, shutil.get_terminal_size((WIDTH, SCREEN)).columns)) if stream.isatty() else WIDTH
    print(render(report, width, painter(stream)), file=stream)


def painter(stream: TextIO) -> Paint:
    """paint(text, kind) -> text, coloured if the stream is a terminal and NO_COLOR is not set."""
    if stream.isatty() and not os.environ.get("NO_COLOR"):
        return lambda text, kind: f"\033[{ANSI[kind]}m{text}\033[0m"
    return plain


def plain(text: str, kind: str) -> str:
    """No colour."""
    return text


def render(report: Outcome, width: int = WIDTH, paint: Paint = plain) -> str:
    """The report as lines of at most `width` columns."""
    verdict = "RIGHT" if report.ok else "WRONG"
    head = _wrap(f"{verdict}  {summary(report)}", width, "       ")
    head[0] = paint(verdict, "good" if report.ok else "bad") + head[0].removeprefix(verdict)
    told = [finding for finding in report.findings if finding.wrong]
    findings = [line for i, finding in enumerate(told[:WRONG_FINDINGS]) for line in _finding(i, finding, width, paint)]
    if len(told) > WRONG_FINDINGS:
        findings.append(f"   … and {len(told) - WRONG_FINDINGS} more findings")
    notes = _notes(report, width, paint)
    around = len(head) + len(findings) + len(notes) + 3  # the table's header, two empty lines
    table = _table(wrong_first(report), width, max(3, SCREEN - around), paint)
    return "\n\n".join("\n".join(part) for part in (head, table, findings, notes) if part)


def summary(report: Outcome) -> str:
    """The verdict in a sentence, without the word right or wrong."""
    leaves = list(report.leaves.values())
    wrong = sum(leaf.status == "WRONG" for leaf in leaves)
    entries = sum(int(np.prod(leaf.shape)) for leaf in leaves)
    if wrong:
        found = f"{wrong} of {count(len(leaves), 'leaf')}"
    elif report.ok:
        worst = error(largest_error(leaves))
        found = f"{count(len(leaves), 'leaf')}, {count(entries, 'entry')}, largest error {worst}"
    else:
        held = sum(finding.wrong for finding in report.findings)
        found = f"{count(held, 'finding')}, though every leaf agrees with the truth at this point"
    value = "" if report.value is None else f"value {number(report.value)}, "
    return f"{report.name}: {found}  ({value}{report.seconds:.1f} s)"


def largest_error(leaves: list[Leaf]) -> float:
    """Against either witness, kinks aside; NaN if nothing was measured."""
    errors = [e for leaf in leaves if leaf.status == "ok" for e in (leaf.autodiff, leaf.differences) if e == e]
    return max(errors, default=np.nan)


def count(n: int, noun: str) -> str:
    """
    >>> count(1, "leaf"), count(1234, "entry")
    ('1 leaf', '1,234 entries')
    """
    plural = {"leaf": "leaves", "entry": "entries"}.get(noun, noun + "s")
    return f"{n:,} {noun if n == 1 else plural}"


def error(e: float) -> str:
    """A relative error in a column; a dash where none was measured."""
    return "–" if np.isnan(e) else "0" if e == 0 else f"{e:.1e}"


def number(x: Any) -> str:
    """A value of the forward or an entry."""
    try:
        return f"{float(x):.6g}"
    except (TypeError, ValueError):
        return str(x)


def two_numbers(manual: float, truth: float) -> tuple[str, str]:
    """Both sides, with as many digits as it takes to tell them apart.

    >>> two_numbers(0.5, 0.25), two_numbers(1.0, 1.00000001)
    (('0.5', '0.25'), ('1', '1.00000001'))
    """
    for digits in (6, 9, 12, 17):
        a, b = f"{manual:.{digits}g}", f"{truth:.{digits}g}"
        if a != b:
            break
    return a, b


def where(leaf: Leaf) -> str:
    """How much of a wrong leaf is wrong, and its worst entry with both numbers."""
    if leaf.manual is None:
        return "the manual gradient has no such leaf"
    if leaf.truth is None:
        return "the manual gradient has this leaf, but nothing of its name is differentiated"
    if leaf.manual.shape != leaf.truth.shape:
        return f"manual has the shape {leaf.manual.shape}, truth {leaf.truth.shape}"
    n = leaf.truth.size
    if not leaf.n_wrong:
        return "its numbers are right"
    parts = [f"all {n:,} entries" if leaf.n_wrong == n > 1 else f"{leaf.n_wrong:,} of {count(n, 'entry')}"]
    manual, truth = leaf.at_worst
    if manual is not None and truth is not None:
        a, b = two_numbers(manual, truth)
        parts.append(f"worst{f' at {list(leaf.worst)}' if leaf.worst else ''}: manual {a}, truth {b}")
    return ", ".join(parts)


def credit(finding: Finding) -> str:
    """How sure the finding is, and the source line that it is about."""
    return " · ".join(part for part in (finding.confidence if finding.wrong else None, finding.source) if part)


def _table(leaves: list[Leaf], width: int, room: int, paint: Paint) -> list[str]:
    """One line per leaf, two for a wrong one; as many of the right ones as there is room for."""
    if not leaves:
        return ["  no leaves: nothing was differentiated"]
    wrong = [leaf for leaf in leaves if leaf.status == "WRONG"]
    right = leaves[len(wrong) :]
    told, shown = wrong[:WRONG_LEAVES], right if len(right) <= room else right[: room - 1]
    rows = [COLUMNS, *map(_row, told + shown)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[0] = min(widths[0], max(20, width - 12 - sum(widths[1:])))

    def aligned(row: tuple[str, ...]) -> str:
        path, shape, *errors, _ = row
        cells = [elide(path, widths[0]).ljust(widths[0]), shape.ljust(widths[1])]
        cells += [cell.rjust(w) for cell, w in zip(errors, widths[2:5], strict=True)]
        return "  " + "  ".join(cells) + "  "

    lines = [paint(aligned(COLUMNS) + COLUMNS[-1], "faint")]
    for leaf in told:
        lines += [aligned(_row(leaf)) + paint("WRONG", "bad"), *_wrap(f"      {where(leaf)}", width, "      ")]
    if more := len(wrong) - len(told):
        lines.append(f"  … and {count(more, 'leaf').replace(' ', ' more ')}, all WRONG")
    lines += [aligned(_row(leaf)) + paint(leaf.status, KINDS.get(leaf.status, "faint")) for leaf in shown]
    if rest := right[len(shown) :]:
        more = count(len(rest), "leaf").replace(" ", " more ")
        lines.append(f"  … and {more}, all right, largest error {error(largest_error(rest))}")
    return lines


def _row(leaf: Leaf) -> tuple[str, ...]:
    largest = "–" if np.isnan(leaf.largest) else f"{leaf.largest:.2e}"
    return leaf.path, str(leaf.shape), largest, error(leaf.autodiff), error(leaf.differences), leaf.status


def _finding(i: int, finding: Finding, width: int, paint: Paint) -> list[str]:
    label = f"{i + 1}. "
    lines = _wrap(label + finding.text, width, " " * 3)
    lines[0] = paint(label, "bad") + lines[0].removeprefix(label)
    if unnamed := unnamed_leaves(finding):
        shown = ", ".join(unnamed[:4]) + (f" and {len(unnamed) - 4} more" if len(unnamed) > 4 else "")
        lines += _wrap(f"   explains {shown}", width, " " * 5)
    return [*lines, "   " + paint(f"[{credit(finding)}]", "hint")]


def unnamed_leaves(finding: Finding) -> list[str]:
    """The leaves that a finding explains, unless its text names them."""
    return [path for path in finding.leaves if path not in finding.text]


def _notes(report: Outcome, width: int, paint: Paint) -> list[str]:
    texts = [
        finding.text + (f" [{credit(finding)}]" if credit(finding) else "")
        for finding in report.findings
        if not finding.wrong
    ]
    texts += report.notes
    lines: list[str] = []
    for i, text in enumerate(texts):
        wrapped = _wrap(f"note  {text}", width, " " * 6)
        if report.ok and i and len(lines) + len(wrapped) > SCREEN - 11:
            return [*lines, f"      … and {len(texts) - i} more; to_dict() and to_html() have all of them"]
        lines += [paint("note", "faint") + wrapped[0].removeprefix("note"), *wrapped[1:]]
    return lines


def _wrap(text: str, width: int, indent: str) -> list[str]:
    """Lines of `width` columns with a hanging indent; line breaks in the text and the indents after them stay."""
    lines: list[str] = []
    for line in text.splitlines() or [""]:
        deeper = indent + line[: len(line) - len(line.lstrip())]
        lines += textwrap.wrap(
            line.lstrip() if lines else line,
            width,
            initial_indent=deeper if lines else "",
            subsequent_indent=deeper if lines else indent,
            break_on_hyphens=False,
        ) or [""]
    return lines


def elide(text: str, width: int) -> str:
    """
    >>> elide("params['encoder']['w']", 15)
    "params[…']['w']"
    """
    if len(text) <= width:
        return text
    left = (width - 1) // 2
    return f"{text[:left]}…{text[len(text) - (width - 1 - left) :]}"
