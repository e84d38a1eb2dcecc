"""Train a multilayer perceptron on the packaged handwritten digits: `python scripts/train_digits.py`.

Every gradient is calculated by the library's own backward passes. With the defaults it takes a few seconds on a
laptop, gets more than 97 % of the held-out fifth right, and writes a run folder: metrics, parameters and figures.
"""

from _config import Config, exit_with_one_line, parse
from _run import run

DEFAULTS = Config(data="digits", layers=(256, 128), rate=2e-3, batch=32, epochs=30, dropout=0.2)


def main() -> int:
    return run(parse(__doc__ or "", DEFAULTS))


if __name__ == "__main__":
    exit_with_one_line(main)
