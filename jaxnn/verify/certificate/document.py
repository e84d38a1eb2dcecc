"""The library's own certificate: every rule in the registry with its errors, as lines, as Markdown and as a page.

    jaxnn verify                 prints it
    jaxnn verify --write FOLDER  writes certificate.md and certificate.html
"""

import datetime
import difflib
import os
import textwrap
from collections.abc import Sequence
from html import escape
from pathlib import Path

import jax

from jaxnn._version import __version__
from jaxnn.verify.certificate.certify import DIFFERENCES_TOLERANCE, Certificate
from jaxnn.verify.certificate.registry import rules
from jaxnn.verify.judge.rule import Rule
from jaxnn.verify.report.data import FLOAT64_TOLERANCE
from jaxnn.verify.report.html import page, row, table, write_page
from jaxnn.verify.report.text import error

COLUMNS = ("autodiff", "differences", "float32", "bfloat16")

MEANING = (
    "Each rule is a function of this library with a hand-written derivative. Its errors are the largest of any "
    "entry at any of the rule's examples, relative to the largest entry of the leaf. autodiff and differences compare "
    f"the gradient, in float64, with jax.vjp of the forward (allowed: {FLOAT64_TOLERANCE:.0e}) and with central finite "
    f"differences (allowed: {DIFFERENCES_TOLERANCE:.0e}); float32 and bfloat16 compare value and gradient in that "
    "precision with float64 (allowed: what the registry states for the rule)."
)


def choose(only: str | None) -> list[Rule]:
    """The rules whose names contain `only`; all for None. ValueError if there are none."""
    known = rules()
    chosen = [rule for rule in known if only is None or only in rule.name]
    if not chosen:
        near = difflib.get_close_matches(str(only), [rule.name for rule in known], n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no rule's name contains {only!r}; {hint}`jaxnn verify` prints all of them")
    return chosen


def header(width: int) -> str:
    """The line above the rules; names are `width` wide."""
    return f"{'rule':{width}}" + "".join(f"  {name:>11}" for name in COLUMNS)


def line(certificate: Certificate, width: int) -> str:
    """One rule: its errors, and what is wrong with it."""
    errors = "".join(f"  {cell:>11}" for cell in _errors(certificate))
    return f"{certificate.name:{width}}{errors}  {_verdict(certificate)}"


def total(certificates: Sequence[Certificate]) -> str:
    """How many are proven, in a sentence."""
    wrong = sum(not certificate.ok for certificate in certificates)
    return f"{len(certificates) - wrong} of {len(certificates)} rules proven" + (f", {wrong} WRONG" if wrong else "")


def markdown(certificates: Sequence[Certificate], only: str | None) -> str:
    """The certificate as Markdown, in columns that are legible as plain text."""
    rows = [(c.name, *_errors(c), _verdict(c)) for c in certificates]
    rows = [tuple(cell.replace("|", r"\|") for cell in row) for row in (("rule", *COLUMNS, "verdict"), *rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[-1] = len("verdict")  # what is wrong with a rule may be long

    def aligned(cells: tuple[str, ...]) -> str:
        first, *errors, last = cells
        middle = [cell.rjust(width) for cell, width in zip(errors, widths[1:-1], strict=True)]
        return f"| {' | '.join([first.ljust(widths[0]), *middle, last.ljust(widths[-1])])} |"

    rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:-1]), "-" * 9])
    lines = "\n".join([aligned(rows[0]), f"|{rule}|", *map(aligned, rows[1:])])
    head = f"# Certificate\n\n**{total(certificates)}** ({_where(only)})"
    return f"{head}\n\n{textwrap.fill(MEANING, 120)}\n\n{lines}\n"


def html(certificates: Sequence[Certificate], only: str | None) -> str:
    """The certificate as a page of its own."""
    numbers = range(2, 6)
    rows = [
        row(["ok" if c.ok else "WRONG", c.name, *_errors(c)], "good" if c.ok else "bad", numbers, "; ".join(c.failures))
        for c in certificates
    ]
    body = f"<p>{escape(MEANING)}</p>" + table(["", "rule", *COLUMNS], rows, numbers)
    return page("Certificate", f"{total(certificates)} ({_where(only)})", all(c.ok for c in certificates), body)


def write(folder: str | os.PathLike, certificates: Sequence[Certificate], only: str | None) -> list[Path]:
    """Write certificate.md and certificate.html into a folder that exists."""
    texts = {"certificate.md": markdown(certificates, only), "certificate.html": html(certificates, only)}
    paths = [Path(folder) / name for name in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_page(path, text)
    return paths


def _errors(certificate: Certificate) -> list[str]:
    return [error(getattr(certificate, name)) for name in COLUMNS]


def _verdict(certificate: Certificate) -> str:
    return "ok" if certificate.ok else "WRONG  " + "; ".join(certificate.failures)


def _where(only: str | None) -> str:
    """What the figures were measured with, and when."""
    platform = {"cpu": "a CPU", "gpu": "a GPU", "tpu": "a TPU"}.get(jax.default_backend(), jax.default_backend())
    chosen = "" if only is None else f"only rules whose name contains {only!r}; "
    return f"{chosen}jaxnn {__version__}, jax {jax.__version__}, on {platform}, {datetime.date.today().isoformat()}"
