"""Prove every derivative of the library: `python scripts/verify_gradients.py` is `jaxnn verify`."""

import sys

from jaxnn.cli import main

if __name__ == "__main__":
    sys.exit(main(["verify", *sys.argv[1:]]))
