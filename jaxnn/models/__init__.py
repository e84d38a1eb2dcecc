"""Networks built from layers and combinators."""

from jaxnn.models.cnn import cnn as cnn
from jaxnn.models.gpt import gpt as gpt
from jaxnn.models.gpt import tied_backward as tied_backward
from jaxnn.models.gpt import tied_forward as tied_forward
from jaxnn.models.lstm import lstm as lstm
from jaxnn.models.mlp import mlp as mlp
from jaxnn.models.mlp import mlp_backward as mlp_backward
from jaxnn.models.mlp import mlp_forward as mlp_forward
from jaxnn.models.sampling import generate as generate
from jaxnn.models.sampling import sample as sample
