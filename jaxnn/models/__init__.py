"""Networks built from layers and combinators."""

from jaxnn.models.mlp import mlp as mlp
