"""Training: a step, an epoch as one compiled call, fit and fit_text as generators, evaluation, files of parameters."""

from jaxnn.training.checkpoint import load_tree as load_tree
from jaxnn.training.checkpoint import save_tree as save_tree
from jaxnn.training.fit import EpochRecord as EpochRecord
from jaxnn.training.fit import fit as fit
from jaxnn.training.fit_text import RoundRecord as RoundRecord
from jaxnn.training.fit_text import evaluate_text as evaluate_text
from jaxnn.training.fit_text import fit_text as fit_text
from jaxnn.training.loop import Diverged as Diverged
from jaxnn.training.metrics import accuracy as accuracy
from jaxnn.training.metrics import bits_per_byte as bits_per_byte
from jaxnn.training.metrics import confusion_matrix as confusion_matrix
from jaxnn.training.metrics import r_squared as r_squared
from jaxnn.training.metrics import root_mean_square_error as root_mean_square_error
from jaxnn.training.predict import evaluate as evaluate
from jaxnn.training.predict import predict as predict
from jaxnn.training.rows import scale_pixels as scale_pixels
from jaxnn.training.step import Batch as Batch
from jaxnn.training.step import TrainState as TrainState
from jaxnn.training.step import loss_and_gradient as loss_and_gradient
from jaxnn.training.step import start as start
from jaxnn.training.step import train_step as train_step
