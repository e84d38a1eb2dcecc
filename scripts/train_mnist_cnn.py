"""Train a convolutional network on images: MNIST or a relative, or else the packaged handwritten digits.

Every gradient is calculated by the library's own backward passes. On MNIST ten epochs take some minutes on two cores
of a CPU and get more than 99.2 % of the 10,000 test images right.

python scripts/train_mnist_cnn.py --data FOLDER           the four IDX files of MNIST or a relative, gzip or raw
python scripts/train_mnist_cnn.py                         the packaged digits, for a try: some seconds
python scripts/train_mnist_cnn.py --resume runs/mnist-1   go on with a run that was stopped
"""

import dataclasses

from _config import Config, exit_with_one_line, parse
from _data import Data
from _run import run

from jaxnn import models
from jaxnn.layer import Layer


@dataclasses.dataclass(frozen=True)
class CnnConfig(Config):
    """The settings of a convolutional network."""

    channels: tuple[int, ...] = dataclasses.field(
        default=(24, 48, 96), metadata={"help": "of the convolutions, each followed by pooling to half the size"}
    )


DEFAULTS = CnnConfig(data="digits", layers=(128,), rate=2e-3, batch=100, epochs=10, dropout=0.4)


def make_cnn(config: CnnConfig, data: Data) -> Layer:
    """The network of the config; ValueError where the data are not images."""
    shape = data.train[0].shape
    if not data.images:
        raise ValueError(f"{config.data}: x has shape {shape}, expected images (N, height, width) or (…, 3); for other "
                         f"data there is train.py")  # fmt: skip
    return models.cnn(config.channels, config.layers, data.n_out, config.activation, config.initializer, config.dropout)


def main() -> int:
    return run(parse(__doc__ or "", DEFAULTS), make_cnn)


if __name__ == "__main__":
    exit_with_one_line(main)
