"""The command `jaxnn`: one file per command, each reading flags for what the package does."""

from jaxnn.cli.main import main as main
