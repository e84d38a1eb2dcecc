"""The proof of every derivative: witnesses, comparison, and the registry of every rule of the library.

    rule.py         what a rule is, and how layers, activations, losses and regularizers become one
    registry.py     every rule of the library, with example inputs
    witnesses.py    independent ways to the same gradient: autodiff, finite differences
    compare.py      how far two gradients are apart, leaf by leaf
    certify.py      a rule against its witnesses, in float64, float32 and bfloat16

The only place in the library where jax.grad and jax.vjp appear.
"""

from jaxnn.verify.certify import Certificate as Certificate
from jaxnn.verify.certify import certify as certify
from jaxnn.verify.compare import LeafError as LeafError
from jaxnn.verify.compare import compare as compare
from jaxnn.verify.registry import rules as rules
from jaxnn.verify.rule import Example as Example
from jaxnn.verify.rule import Rule as Rule
