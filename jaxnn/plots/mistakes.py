"""The images a classifier is most wrong about."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from jaxnn.plots.style import image_panel, new_figure, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def mistakes(
    images: ArrayLike, y_true: ArrayLike, scores: ArrayLike, classes: Sequence[str], count: int = 25
) -> "Figure":
    """The worst mistakes, largest loss first: the image, its class, what it was taken for, and with what certainty.

    images (n, h, w), (n, h, w, 1) or (n, h, w, 3): dark is low, scaled to the range of all images; y_true
    (n,) class ids; scores (n, classes) logits. The loss is -log softmax(scores) at the true class, and only images
    whose highest score is another class are drawn, at most `count`. ValueError for shapes that do not match, for
    class ids out of range, and for count < 1.
    """
    images, y_true, scores = np.asarray(images), np.asarray(y_true), np.asarray(scores, np.float64)
    n = len(y_true)
    fits = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
    if not fits or len(images) != n or y_true.shape != (n,) or scores.shape != (n, len(classes)):
        raise ValueError(
            f"mistakes: images has shape {images.shape}, y_true {y_true.shape}, scores {scores.shape}, and there are "
            f"{len(classes)} classes; expected (n, h, w) or (n, h, w, 1 or 3), (n,) and (n, {len(classes)})"
        )
    if not ((y_true >= 0) & (y_true < len(classes))).all():
        raise ValueError(
            f"mistakes: y_true goes from {y_true.min()} to {y_true.max()}, expected class ids from 0 to "
            f"{len(classes) - 1}"
        )
    if count < 1:
        raise ValueError(f"mistakes: count = {count}, expected 1 or more")
    log_p = scores - scores.max(1, keepdims=True)
    log_p = log_p - np.log(np.exp(log_p).sum(1, keepdims=True))
    said = scores.argmax(1)
    wrong = np.flatnonzero(said != y_true)
    worst = wrong[np.argsort(log_p[wrong, y_true[wrong]], kind="stable")][:count]
    if len(worst) == 0:
        figure = new_figure(4, 1.5)
        figure.text(0.5, 0.5, f"no mistakes in {n} images", ha="center", va="center", fontsize=13)
        return figure
    longest = max(map(len, classes)) + len("said  (100 %)")
    figure, axes = panels(len(worst), 5, max(1.5, 0.08 * longest, 4.2 / min(5, len(worst))), 1.95)
    figure.suptitle(f"the worst {len(worst)} of {len(wrong)} mistakes in {n} images", fontsize=11)
    low, high = float(images.min()), float(images.max())
    for ax, i in zip(axes, worst, strict=True):
        image_panel(ax)
        image = (images[i] - low) / ((high - low) or 1)
        ax.imshow(image.squeeze(-1) if image.shape[2:] == (1,) else image, cmap="gray", vmin=0, vmax=1)
        true, taken_for = classes[int(y_true[i])], classes[int(said[i])]
        certainty = 100 * np.exp(log_p[i, said[i]])
        ax.set_title(f"true {true}\nsaid {taken_for} ({certainty:.0f} %)", fontsize=9)
    return figure
