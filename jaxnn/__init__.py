"""The mathematics of neural networks as pure JAX functions: every derivative by hand, every derivative proven.

    activations losses regularizers initializers optimizers schedules     the chapters of the mathematics
    layer layers combinators models                                       layers, and layers made of layers
    fused                                                                 rules leaner than jax.grad
    training datasets plots verify                                        what one does with them

Importing jaxnn changes no setting of JAX and touches no device. `jaxnn.datasets`, `testing`, `training` and `verify`
are imported when they are named, and so are `jaxnn.verify_grad` and its relatives.
"""

import importlib as _importlib
import typing as _typing

from jaxnn import activations as activations
from jaxnn import combinators as combinators
from jaxnn import fused as fused
from jaxnn import initializers as initializers
from jaxnn import layer as layer
from jaxnn import layers as layers
from jaxnn import losses as losses
from jaxnn import models as models
from jaxnn import optimizers as optimizers
from jaxnn import plots as plots
from jaxnn import regularizers as regularizers
from jaxnn import schedules as schedules
from jaxnn._summary import summary as summary
from jaxnn._version import __version__ as __version__
from jaxnn.activations import ACTIVATIONS as ACTIVATIONS
from jaxnn.activations import Activation as Activation
from jaxnn.activations import celu as celu
from jaxnn.activations import celu_derivative as celu_derivative
from jaxnn.activations import elu as elu
from jaxnn.activations import elu_derivative as elu_derivative
from jaxnn.activations import gelu_erf as gelu_erf
from jaxnn.activations import gelu_erf_derivative as gelu_erf_derivative
from jaxnn.activations import gelu_tanh as gelu_tanh
from jaxnn.activations import gelu_tanh_derivative as gelu_tanh_derivative
from jaxnn.activations import get_activation as get_activation
from jaxnn.activations import hard_sigmoid as hard_sigmoid
from jaxnn.activations import hard_sigmoid_derivative as hard_sigmoid_derivative
from jaxnn.activations import hard_silu as hard_silu
from jaxnn.activations import hard_silu_derivative as hard_silu_derivative
from jaxnn.activations import hard_tanh as hard_tanh
from jaxnn.activations import hard_tanh_derivative as hard_tanh_derivative
from jaxnn.activations import identity as identity
from jaxnn.activations import identity_derivative as identity_derivative
from jaxnn.activations import leaky_relu as leaky_relu
from jaxnn.activations import leaky_relu_derivative as leaky_relu_derivative
from jaxnn.activations import log_sigmoid as log_sigmoid
from jaxnn.activations import log_sigmoid_derivative as log_sigmoid_derivative
from jaxnn.activations import log_softmax as log_softmax
from jaxnn.activations import log_softmax_backward as log_softmax_backward
from jaxnn.activations import log_softmax_forward as log_softmax_forward
from jaxnn.activations import mish as mish
from jaxnn.activations import mish_derivative as mish_derivative
from jaxnn.activations import relu as relu
from jaxnn.activations import relu6 as relu6
from jaxnn.activations import relu6_derivative as relu6_derivative
from jaxnn.activations import relu_derivative as relu_derivative
from jaxnn.activations import selu as selu
from jaxnn.activations import selu_derivative as selu_derivative
from jaxnn.activations import sigmoid as sigmoid
from jaxnn.activations import sigmoid_derivative as sigmoid_derivative
from jaxnn.activations import silu as silu
from jaxnn.activations import silu_derivative as silu_derivative
from jaxnn.activations import softmax as softmax
from jaxnn.activations import softmax_backward as softmax_backward
from jaxnn.activations import softmax_forward as softmax_forward
from jaxnn.activations import softplus as softplus
from jaxnn.activations import softplus_derivative as softplus_derivative
from jaxnn.activations import softsign as softsign
from jaxnn.activations import softsign_derivative as softsign_derivative
from jaxnn.activations import tanh as tanh
from jaxnn.activations import tanh_derivative as tanh_derivative
from jaxnn.combinators import add as add
from jaxnn.combinators import concat as concat
from jaxnn.combinators import multiply as multiply
from jaxnn.combinators import parallel as parallel
from jaxnn.combinators import remat as remat
from jaxnn.combinators import repeat as repeat
from jaxnn.combinators import residual as residual
from jaxnn.combinators import serial as serial
from jaxnn.initializers import INITIALIZERS as INITIALIZERS
from jaxnn.initializers import fans as fans
from jaxnn.initializers import get_initializer as get_initializer
from jaxnn.initializers import he_normal as he_normal
from jaxnn.initializers import he_uniform as he_uniform
from jaxnn.initializers import lecun_normal as lecun_normal
from jaxnn.initializers import lecun_uniform as lecun_uniform
from jaxnn.initializers import orthogonal as orthogonal
from jaxnn.initializers import truncated_normal as truncated_normal
from jaxnn.initializers import xavier_normal as xavier_normal
from jaxnn.initializers import xavier_uniform as xavier_uniform
from jaxnn.layer import Backward as Backward
from jaxnn.layer import Ctx as Ctx
from jaxnn.layer import Forward as Forward
from jaxnn.layer import Init as Init
from jaxnn.layer import Layer as Layer
from jaxnn.layer import as_custom_vjp as as_custom_vjp
from jaxnn.layer import from_pair as from_pair
from jaxnn.losses import LOSSES as LOSSES
from jaxnn.losses import Loss as Loss
from jaxnn.losses import binary_cross_entropy as binary_cross_entropy
from jaxnn.losses import binary_cross_entropy_derivative as binary_cross_entropy_derivative
from jaxnn.losses import binary_cross_entropy_with_logits as binary_cross_entropy_with_logits
from jaxnn.losses import binary_cross_entropy_with_logits_derivative as binary_cross_entropy_with_logits_derivative
from jaxnn.losses import cosine_distance as cosine_distance
from jaxnn.losses import cosine_distance_derivative as cosine_distance_derivative
from jaxnn.losses import focal as focal
from jaxnn.losses import focal_derivative as focal_derivative
from jaxnn.losses import gaussian_nll as gaussian_nll
from jaxnn.losses import gaussian_nll_derivative as gaussian_nll_derivative
from jaxnn.losses import get_loss as get_loss
from jaxnn.losses import hinge as hinge
from jaxnn.losses import hinge_derivative as hinge_derivative
from jaxnn.losses import huber as huber
from jaxnn.losses import huber_derivative as huber_derivative
from jaxnn.losses import kl_divergence as kl_divergence
from jaxnn.losses import kl_divergence_derivative as kl_divergence_derivative
from jaxnn.losses import log_cosh as log_cosh
from jaxnn.losses import log_cosh_derivative as log_cosh_derivative
from jaxnn.losses import mae as mae
from jaxnn.losses import mae_derivative as mae_derivative
from jaxnn.losses import mse as mse
from jaxnn.losses import mse_derivative as mse_derivative
from jaxnn.losses import poisson_nll as poisson_nll
from jaxnn.losses import poisson_nll_derivative as poisson_nll_derivative
from jaxnn.losses import softmax_cross_entropy as softmax_cross_entropy
from jaxnn.losses import softmax_cross_entropy_derivative as softmax_cross_entropy_derivative
from jaxnn.losses import softmax_cross_entropy_with_integer_labels as softmax_cross_entropy_with_integer_labels
from jaxnn.losses import (
    softmax_cross_entropy_with_integer_labels_derivative as softmax_cross_entropy_with_integer_labels_derivative,
)
from jaxnn.losses import squared_hinge as squared_hinge
from jaxnn.losses import squared_hinge_derivative as squared_hinge_derivative
from jaxnn.optimizers import OPTIMIZERS as OPTIMIZERS
from jaxnn.optimizers import Optimizer as Optimizer
from jaxnn.optimizers import adagrad as adagrad
from jaxnn.optimizers import adam as adam
from jaxnn.optimizers import adamw as adamw
from jaxnn.optimizers import amsgrad as amsgrad
from jaxnn.optimizers import clip_by_global_norm as clip_by_global_norm
from jaxnn.optimizers import clip_by_value as clip_by_value
from jaxnn.optimizers import global_norm as global_norm
from jaxnn.optimizers import heavy_ball as heavy_ball
from jaxnn.optimizers import lion as lion
from jaxnn.optimizers import momentum as momentum
from jaxnn.optimizers import nadam as nadam
from jaxnn.optimizers import nesterov as nesterov
from jaxnn.optimizers import rmsprop as rmsprop
from jaxnn.optimizers import sgd as sgd
from jaxnn.regularizers import REGULARIZERS as REGULARIZERS
from jaxnn.regularizers import Regularizer as Regularizer
from jaxnn.regularizers import elastic_net as elastic_net
from jaxnn.regularizers import elastic_net_derivative as elastic_net_derivative
from jaxnn.regularizers import l1 as l1
from jaxnn.regularizers import l1_derivative as l1_derivative
from jaxnn.regularizers import l2 as l2
from jaxnn.regularizers import l2_derivative as l2_derivative
from jaxnn.schedules import SCHEDULES as SCHEDULES

if _typing.TYPE_CHECKING:
    from jaxnn import datasets as datasets
    from jaxnn import testing as testing
    from jaxnn import training as training
    from jaxnn import verify as verify
    from jaxnn.verify import CannotVerify as CannotVerify
    from jaxnn.verify import verify_custom_vjp as verify_custom_vjp
    from jaxnn.verify import verify_grad as verify_grad
    from jaxnn.verify import verify_layer as verify_layer
    from jaxnn.verify import verify_pair as verify_pair
    from jaxnn.verify import verify_vjp as verify_vjp

_MODULES = ("datasets", "testing", "training", "verify")
_OF_VERIFY = ("CannotVerify", "verify_custom_vjp", "verify_grad", "verify_layer", "verify_pair", "verify_vjp")
_PUBLIC = ("__version__", *_MODULES, *_OF_VERIFY, *(name for name in globals() if not name.startswith("_")))


def __dir__() -> list[str]:
    """What is imported above by name, and what is imported when it is named."""
    return sorted(_PUBLIC)


def __getattr__(name: str) -> _typing.Any:
    """Imported when they are first used: training needs none of the verifier."""
    if name in _MODULES:
        return _importlib.import_module(f"jaxnn.{name}")
    if name in _OF_VERIFY:
        return getattr(_importlib.import_module("jaxnn.verify"), name)
    raise AttributeError(f"module 'jaxnn' has no attribute {name!r}")
