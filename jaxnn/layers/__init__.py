"""Layers, one family a file. Each constructor returns a `jaxnn.Layer`."""

from jaxnn.layers.activation import activation as activation
from jaxnn.layers.activation import log_softmax as log_softmax
from jaxnn.layers.activation import softmax as softmax
from jaxnn.layers.dense import dense as dense
from jaxnn.layers.dropout import dropout as dropout
from jaxnn.layers.flatten import flatten as flatten
