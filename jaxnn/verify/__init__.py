"""The verifier: is a hand-written gradient right, where not, and why? And the proof of every rule of the library.

    verifier.py     verify_grad, verify_vjp, verify_layer: the course of a verification
    subject.py      the user's functions and arguments in one form
    structure.py    tree, leaves, dtypes
    evaluate.py     forward, manual gradient and autodiff in float64 and in the user's precision
    graph.py        float64 arithmetic in a function's own jaxpr
    witnesses.py    autodiff and finite differences
    compare.py      how far two gradients are apart, leaf by leaf
    judge.py        the vote of the witnesses on every entry
    points.py       moved parameters, other batches
    evidence.py     what a diagnosis may look at
    checks.py       purity, vmap and scan, the promises of a pair, precision
    cause.py        the probable cause of a wrong gradient, from the next two
    diagnose/       hypotheses about the cause, tested on the leaves
    breaks.py       the backward pass broken on purpose, until it makes the same mistake; reverse/ has its rules
    table.py        the verdict leaf by leaf, for the report
    report.py       what was found; text.py, html.py, figure.py show it
    rule.py         what a rule of the library is
    registry.py     every rule of the library, with example inputs
    certify.py      a rule against its witnesses, in float64, float32 and bfloat16; certificate.py writes it down

The only place in the library where jax.grad and jax.vjp appear.
"""

from jaxnn.verify.certify import Certificate as Certificate
from jaxnn.verify.certify import certify as certify
from jaxnn.verify.compare import LeafError as LeafError
from jaxnn.verify.compare import compare as compare
from jaxnn.verify.registry import rules as rules
from jaxnn.verify.report import Finding as Finding
from jaxnn.verify.report import Leaf as Leaf
from jaxnn.verify.report import Report as Report
from jaxnn.verify.rule import Example as Example
from jaxnn.verify.rule import Rule as Rule
from jaxnn.verify.subject import CannotVerify as CannotVerify
from jaxnn.verify.verifier import verify_grad as verify_grad
from jaxnn.verify.verifier import verify_layer as verify_layer
from jaxnn.verify.verifier import verify_vjp as verify_vjp
