"""`jaxnn verify`: check a gradient of your own from the shell, or prove those of the library."""

import argparse
import contextlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxnn.cli.user_functions import CannotRun, arguments, function

RIGHT, WRONG, NOT_RUN = 0, 1, 2

VERIFY = """\
With LOSS and GRAD: is GRAD(params, ...) the gradient of LOSS(params, ...) in params? Prints a report that says which
leaves are wrong, by how much, and the probable cause.

Without them: the library's own certificate, one line per derivative, with the errors against automatic differentiation
and finite differences in float64, and of float32 and bfloat16 against float64.
"""

EXAMPLES = """\
Functions are named as module:name, or as path/to/file.py:name. The current directory is searched first.

examples:
  jaxnn verify homework:loss homework:grad --inputs homework:make_inputs
  jaxnn verify model.py:loss model.py:grad --inputs model.py:inputs --argnums 0,1 --html report.html
  jaxnn verify homework:loss homework:grad --inputs homework:make_inputs --json > report.json
  jaxnn verify                         every rule of the library (a minute or two)
  jaxnn verify --only tanh             rules whose name contains "tanh"
  jaxnn verify --write docs            the same, and docs/certificate.md and docs/certificate.html

exit status: 0 right, 1 wrong, 2 could not be run
"""


def verify(argv: Sequence[str]) -> int:
    """Run the command line; returns its exit status."""
    args = parser().parse_args(argv)
    try:
        with _own_import_path():
            return _verify(args)
    except (CannotRun, OSError) as error:
        print(f"jaxnn verify: {error}", file=sys.stderr)
    except Exception:
        traceback.print_exc()
        print("jaxnn verify: this should not have happened; please report it with these lines", file=sys.stderr)
    return NOT_RUN


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="jaxnn verify",
        description=VERIFY,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("loss", nargs="?", metavar="LOSS", help="the forward, loss(params, *args) -> a scalar")
    add("grad", nargs="?", metavar="GRAD", help="the gradient to check, grad(params, *args)")
    mine = made.add_argument_group("your own gradient")
    mine.add_argument("--inputs", metavar="INPUTS", help="the tuple (params, *args), or a function that returns it")
    mine.add_argument("--argnums", type=_argnums, default=0, metavar="0,1",
                      help="which arguments GRAD differentiates, as in jax.grad (default: 0)")  # fmt: skip
    mine.add_argument("--html", metavar="FILE", help="write the report as a page, with its figures")
    mine.add_argument("--figure", metavar="FILE", help="write the figures as .png, .svg or .pdf")
    mine.add_argument("--json", action="store_true", help="print the report as JSON")
    library = made.add_argument_group("the library's certificate")
    library.add_argument("--only", metavar="NAME", help="rules whose name contains this")
    library.add_argument("--write", nargs="?", const=".", metavar="FOLDER",
                         help="write certificate.md and certificate.html (default: into this folder)")  # fmt: skip
    return made


def _argnums(text: str) -> int | tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 0,1") from None
    return numbers if "," in text else numbers[0]


def _verify(args: argparse.Namespace) -> int:
    own = {"--inputs": args.inputs, "--html": args.html, "--figure": args.figure, "--json": args.json or None}
    library = {"--only": args.only, "--write": args.write}
    if args.loss is None:
        _refuse(own, "are for a gradient of your own: jaxnn verify module:loss module:grad --inputs module:make_inputs")
        return _certificate(args.only, args.write)
    _refuse(library, "are for the library's certificate, without LOSS and GRAD")
    if args.grad is None or args.inputs is None:
        raise CannotRun(
            f"LOSS is {args.loss}, but {'GRAD' if args.grad is None else '--inputs'} is missing; write "
            "jaxnn verify module:loss module:grad --inputs module:make_inputs"
        )
    return _own_gradient(args)


def _refuse(options: dict[str, Any], why: str) -> None:
    if given := [name for name, value in options.items() if value is not None]:
        raise CannotRun(f"{', '.join(given)}: such options {why}")


# ---------------------------------------------------------------- a gradient of the user's


def _own_gradient(args: argparse.Namespace) -> int:
    from jaxnn.verify.report.html import require_folder
    from jaxnn.verify.report.text import show
    from jaxnn.verify.verifier import CannotVerify, verify_grad

    for path in (args.html, args.figure):  # before minutes of work are lost
        if path is not None:
            require_folder(path)
    _require_format(args.figure)
    # What the user's code prints would corrupt the JSON.
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        loss, grad = function(args.loss), function(args.grad)
        inputs = arguments(args.inputs)
        try:
            report = verify_grad(loss, grad, *inputs, argnums=args.argnums)
        except CannotVerify as error:
            raise CannotRun(str(error)) from None
    if args.html is not None:
        report.to_html(args.html)
    if args.figure is not None:
        report.figure().savefig(args.figure)
    if args.json:
        print(json.dumps(report.to_dict(), indent=2, allow_nan=False))
    else:
        show(report, sys.stdout)
    return RIGHT if report.ok else WRONG


def _require_format(path: str | None) -> None:
    if path is None:
        return
    from matplotlib.backend_bases import FigureCanvasBase

    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if Path(path).suffix.lower().removeprefix(".") not in known:
        raise CannotRun(f"--figure {path}: the name should end in one of {', '.join('.' + end for end in known)}")


@contextlib.contextmanager
def _own_import_path():
    """Modules in the current directory can be imported, as with `python -m`, while the command runs."""
    before = sys.path.copy()
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before


# ---------------------------------------------------------------- the library's certificate


def _certificate(only: str | None, folder: str | None) -> int:
    from tqdm import tqdm

    from jaxnn.verify import certify
    from jaxnn.verify.certificate import document
    from jaxnn.verify.report.html import require_folder

    if folder is not None:
        require_folder(Path(folder) / "certificate.md")
    try:
        chosen = document.choose(only)
    except ValueError as error:
        raise CannotRun(str(error)) from None
    width = max(len(rule.name) for rule in chosen)
    print(document.header(width))
    certificates = []
    for rule in tqdm(chosen, unit="rule", disable=None):
        certificates.append(certify(rule))
        tqdm.write(document.line(certificates[-1], width))
    print(document.total(certificates))
    if folder is not None:
        for path in document.write(folder, certificates, only):
            print(path)
    return RIGHT if all(c.ok for c in certificates) else WRONG
