"""The README's tables of the benchmarks, from benchmarks/results: `python -m benchmarks.tables`.

A table goes between `<!-- table: NAME -->` and `<!-- end -->`, and shows the result NAME. --check changes nothing: it
says which tables differ from the results, and exits with 1 if any does.
"""

import argparse
import re
import sys
from pathlib import Path

from benchmarks import checkers, epoch, fused, measure, models

README = Path(__file__).resolve().parent.parent / "README.md"
TABLES = {"checkers": checkers.table, "epoch": epoch.table, "models": models.table, "fused": fused.table}
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def written(text: str) -> str:
    """The text with each table in place of what was between its markers."""
    return BLOCK.sub(lambda found: f"{found[1]}{TABLES[found[2]](measure.load(found[2]))}\n{found[3]}", text)


def differing(text: str) -> list[str]:
    """The names of the tables that are missing from the text or differ from the results."""
    blocks = {found[2]: found[0] for found in BLOCK.finditer(text)}
    return [name for name in TABLES if name not in blocks or written(blocks[name]) != blocks[name]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, only say what differs")
    args = parser.parse_args()
    text = README.read_text(encoding="utf-8")
    if not args.check:
        README.write_text(written(text), encoding="utf-8")
        return 0
    for name in differing(text):
        print(f"README.md: the table {name!r} differs from benchmarks/results/{name}.json; python -m benchmarks.tables")
    return 1 if differing(text) else 0


if __name__ == "__main__":
    sys.exit(main())
