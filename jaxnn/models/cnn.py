"""A convolutional network: neighbouring pixels are looked at together, in ever coarser stages.

Shapes: B batch, H and W the image, C channels.
"""

from collections.abc import Callable, Sequence

import jax

from jaxnn._checks import whole_each
from jaxnn.activations import Activation
from jaxnn.combinators import serial
from jaxnn.layer import Layer
from jaxnn.layers import activation as activation_layer
from jaxnn.layers import batch_norm, conv, max_pool
from jaxnn.models.mlp import mlp


def cnn(
    channels: Sequence[int],
    hidden: Sequence[int],
    n_out: int,
    *,
    activation: str | Activation = "relu",
    initializer: str | Callable[..., jax.Array] = "he_normal",
    dropout: float = 0.0,
) -> Layer:
    """A convolutional network as a Layer: one stage per entry of channels, then an `mlp` on the result.

    x_0 = x,  x_l = f(max_pool(batch_norm(conv(x_(l-1)))))  for each stage l,  y = mlp(x_L)
    backward: the chain rule of `serial`

    A stage: a 3×3 convolution to that many channels, without a bias since batch norm shifts; batch norm; the largest of
    each 2×2, which halves H and W (rounded down); the activation f, after the pooling because there is only a quarter
    to calculate: for an increasing f, such as relu, the result is the same. dropout: its probability in the mlp.
    x (B, H, W, C), grey images have C = 1; y (B, n_out): logits, or the predicted values.
    State: the running statistics of batch norm; ctx.mask (B,): True = a real example, see `jaxnn.layers.batch_norm`.
    Raises ValueError for images that shrink below 2×2 before a stage, and where the layers do.
    Source: LeCun et al. 1998, Gradient-based learning applied to document recognition; batch norm: arXiv:1502.03167.

    >>> model = cnn(channels=(8, 16), hidden=(32,), n_out=10)
    >>> jax.eval_shape(lambda key: model.init(key, (1, 28, 28, 1))[1], jax.random.key(0))[8][1]["w"].shape  # 7·7·16
    (784, 32)
    """
    layers = []
    for n in whole_each("cnn", "channels", channels, least=1):
        layers += [
            conv(n, (3, 3), use_bias=False, initializer=initializer),
            batch_norm(),
            max_pool((2, 2)),
            activation_layer(activation),
        ]
    head = mlp(hidden, n_out, activation=activation, initializer=initializer, dropout=dropout)
    return serial(*layers, head, name="cnn")
