"""`jaxnn train-text`: train a language model on a text and generate text with it."""

from collections.abc import Sequence

from jaxnn.cli.flags import in_one_line, parse
from jaxnn.runs import text
from jaxnn.runs.settings import TextSettings

PROG = "jaxnn train-text"
DESCRIPTION = """\
Train a language model on a text and generate text with it. Every gradient is calculated by the library's own
backward passes. The default text is the source code of Python's standard library; the last tenth is held out. Prints
how many bits per byte of it the model needs, beside those of a trigram model, and writes a run folder: settings,
metrics, parameters, curves, a sample.

examples:
  jaxnn train-text                                         a GPT on Python's own sources: minutes
  jaxnn train-text --data path/to/texts                    a file, or all files of a folder
  jaxnn train-text --model lstm                            a recurrent network for comparison
  jaxnn train-text --resume runs/text-1 --steps 3000       resume a run
  jaxnn train-text --resume runs/text-1 --temperature 0.5  let a finished one write again

exit status: 0 trained, 1 diverged, 2 could not be run
"""


def settings(argv: Sequence[str]) -> TextSettings:
    return parse(PROG, DESCRIPTION, text.DEFAULTS, argv)


def train_text(argv: Sequence[str]) -> int:
    """Run the command line; returns its exit status."""
    return in_one_line(PROG, lambda: text.run(settings(argv)))
