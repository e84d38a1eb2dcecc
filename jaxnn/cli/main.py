"""The command `jaxnn`: chooses the command."""

import argparse
import sys
from collections.abc import Callable, Sequence

from jaxnn.cli.train import train
from jaxnn.cli.train_text import train_text
from jaxnn.cli.verify import verify

COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (train, "train a network on images, a table or points"),
    "train-text": (train_text, "train a language model on a text and generate text with it"),
    "verify": (verify, "check a hand-written gradient, or all of the library's"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="jaxnn",
        usage="jaxnn COMMAND ...",
        description="The mathematics of neural networks, every derivative by hand, every derivative proven.",
        epilog="\n".join(
            ["commands:"]
            + [f"  {name:12}{about}" for name, (_, about) in COMMANDS.items()]
            + ["", "jaxnn COMMAND --help says more."]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    command, _ = COMMANDS[parser.parse_args(argv[:1]).command]
    return command(argv[1:])
