"""Networks built from layers and combinators."""

from jaxnn.models.cnn import cnn as cnn
from jaxnn.models.gpt import gpt as gpt
from jaxnn.models.lstm import lstm as lstm
from jaxnn.models.mlp import mlp as mlp
from jaxnn.models.sampling import generate as generate
from jaxnn.models.sampling import sample as sample
