"""Draw the gallery: what the library's formulas, initializers, networks and optimizers do, as six PNG files.

python scripts/plot_gallery.py                        all of them, into the folder gallery
python scripts/plot_gallery.py --only activations     one of them
"""

import argparse
import sys
from pathlib import Path

from figures import decision_boundary, formula_errors, init_variance, optimizer_paths, stability

from jaxnn import plots
from jaxnn.activations import ACTIVATIONS

GALLERY = {
    "activations": lambda quick: (plots.activations(), f"{len(ACTIVATIONS)} activations"),
    "formula_errors": formula_errors.draw,
    "stability": stability.draw,
    "init_variance": init_variance.draw,
    "decision_boundary": decision_boundary.draw,
    "optimizer_paths": optimizer_paths.draw,
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gallery"), help="the folder to write to (default: gallery)")
    parser.add_argument("--only", action="append", choices=GALLERY, help="one figure; repeatable")
    parser.add_argument("--quick", action="store_true", help="small settings, to check that everything works")
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.only or GALLERY:
        figure, finding = GALLERY[name](arguments.quick)
        path = arguments.out / f"{name}.png"
        figure.savefig(path)
        print(f"{path}: {finding}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
