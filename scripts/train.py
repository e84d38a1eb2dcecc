"""Train a multilayer perceptron on your own data: IDX images, CSV or NPZ; classes or numbers.

python scripts/train.py --data FOLDER            the four IDX files of MNIST or a relative, gzip or raw
python scripts/train.py --data table.csv         numeric columns, the last one to predict (or --label NAME)
python scripts/train.py --data arrays.npz        arrays x and y
"""

from _config import Config, exit_with_one_line, parse
from _run import run

DEFAULTS = Config(data="moons", layers=(256, 128), rate=1e-3, batch=128, epochs=10)


def main() -> int:
    return run(parse(__doc__ or "", DEFAULTS))


if __name__ == "__main__":
    exit_with_one_line(main)
