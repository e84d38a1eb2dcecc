"""What the neurons of a first layer look for."""

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from jaxnn.plots.style import image_panel, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def weights(w: ArrayLike, image_shape: tuple[int, ...], count: int = 64) -> "Figure":
    """The weights of each neuron of a first layer as an image: red raises it, blue lowers it, on one scale for all.

    w (n_in, units): the first `count` columns are drawn. image_shape (h, w), (h, w, 1) or (h, w, channels), with n_in
    pixels in all; several channels are drawn side by side. ValueError for shapes that do not match, and for count < 1.

    >>> len(weights(np.ones((16, 3)), (4, 4)).axes)  # 3 images and the colour bar
    4
    """
    w, image_shape = np.asarray(w, np.float32), tuple(image_shape)
    if w.ndim != 2 or w.size == 0 or len(image_shape) not in (2, 3) or math.prod(image_shape) != len(w):
        raise ValueError(
            f"weights: w has shape {w.shape} and image_shape is {image_shape}; expected (n_in, units) and (h, w) or "
            f"(h, w, channels) with h · w · channels = n_in"
        )
    if count < 1:
        raise ValueError(f"weights: count = {count}, expected 1 or more")
    columns = w.T[:count].reshape(-1, *image_shape[:2], math.prod(image_shape[2:]))
    images = np.moveaxis(columns, 3, 2).reshape(len(columns), image_shape[0], -1)
    largest = float(np.abs(images).max()) or 1.0
    figure, axes = panels(len(images), 8, 1.1 * min(images.shape[2] / images.shape[1], 3), 1.0)
    drawn = []
    for ax, image in zip(axes, images, strict=True):
        image_panel(ax)
        drawn.append(ax.imshow(image, cmap="RdBu_r", vmin=-largest, vmax=largest))
    figure.colorbar(drawn[0], ax=axes, label="weight", shrink=0.8)
    return figure
