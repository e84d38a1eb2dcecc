"""What benchmark.py and plot_gallery.py need of a command line."""

import sys
from collections.abc import Callable
from pathlib import Path

from jaxnn.cli.flags import Parser as Parser
from jaxnn.cli.flags import in_one_line


def exit_with_one_line(main: Callable[[], int]) -> None:
    sys.exit(in_one_line(Path(sys.argv[0]).name, main))
