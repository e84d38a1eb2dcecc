"""The command `jaxnn`: one file a command, each a reader of flags before what the package does."""

from jaxnn.cli.main import main as main
