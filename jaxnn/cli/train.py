"""`jaxnn train`: train a network on images, a table or points in the plane."""

from collections.abc import Sequence

from jaxnn.cli.flags import in_one_line, parse
from jaxnn.runs import examples
from jaxnn.runs.settings import ExampleSettings

PROG = "jaxnn train"
DESCRIPTION = """\
Train a network on your data, to predict classes or numbers, depending on the labels. Every gradient is calculated by
the library's own backward passes. A fifth of the data, or the files' own test set, is held out and measured after every
epoch. Writes a run folder: settings, metrics, parameters, figures.

examples:
  jaxnn train --data digits                      the packaged handwritten digits
  jaxnn train --data moons --layers 32,32        points in the plane
  jaxnn train --data path/to/mnist               the four IDX files of MNIST or a relative, gzip or raw
  jaxnn train --data path/to/mnist --model cnn   a convolutional network; for images
  jaxnn train --data table.csv --label price     numeric columns; without --label the last one is predicted
  jaxnn train --data arrays.npz                  arrays x and y
  jaxnn train --resume runs/table-1 --epochs 20  resume a run

exit status: 0 trained, 1 diverged, 2 could not be run
"""


def settings(argv: Sequence[str]) -> ExampleSettings:
    return parse(PROG, DESCRIPTION, examples.DEFAULTS, argv)


def train(argv: Sequence[str]) -> int:
    """Run the command line; returns its exit status."""
    return in_one_line(PROG, lambda: examples.run(settings(argv)))
