"""Prove every derivative of the library: `python scripts/verify_gradients.py`.

Walks the registry and prints a line a rule: the hand-written backward against jax.vjp of the forward and against
finite differences, both in float64, and value and gradient in float32 and bfloat16 against float64. All numbers are
the largest error of an entry, relative to the largest entry of its leaf. Exit status 1 if any rule fails.
"""

import argparse

from _config import Parser, exit_with_one_line
from tqdm import tqdm

from jaxnn._checks import unknown_name
from jaxnn.verify import Certificate, certify, rules

WIDTH = 66


def header() -> str:
    return f"{'rule':{WIDTH}} {'jax.vjp':>8} {'differ.':>8} {'float32':>8} {'bfloat16':>8}"


def line(c: Certificate) -> str:
    errors = " ".join(f"{error:8.1e}" for error in (c.autodiff, c.differences, c.float32, c.bfloat16))
    return f"{c.name:{WIDTH}} {errors}  {'ok' if c.ok else 'WRONG  ' + '; '.join(c.failures)}"


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="rules whose name contains this")
    args = parser.parse_args()
    chosen = [rule for rule in rules() if args.only is None or args.only in rule.name]
    if not chosen:
        raise unknown_name("rule", args.only, [rule.name for rule in rules()])
    print(header())
    wrong = 0
    for rule in tqdm(chosen, unit="rule", disable=None):
        certificate = certify(rule)
        wrong += not certificate.ok
        tqdm.write(line(certificate))
    print(f"{len(chosen) - wrong} of {len(chosen)} rules proven" + (f", {wrong} WRONG" if wrong else ""))
    return 1 if wrong else 0


if __name__ == "__main__":
    exit_with_one_line(main)
