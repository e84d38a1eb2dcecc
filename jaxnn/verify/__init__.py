"""The verifier: is a hand-written gradient right, and if not, where and why? And the proof of every rule here.

    verifier.py     verify_grad, verify_vjp, verify_custom_vjp, verify_pair, verify_layer: the steps of a verification
    judge/          is it right? the user's functions in one form, autodiff and differences, the vote on every entry
    explain/        why is it wrong? the backward broken on purpose, the forward changed, algebra on the leaves
    report/         how it is presented: data <- text <- figure <- html
    certificate/    every rule in the library, with example inputs, and the certificate that it is proven

The only place in the library where jax.grad and jax.vjp appear.
"""

from jaxnn.verify.certificate.certify import Certificate as Certificate
from jaxnn.verify.certificate.certify import certify as certify
from jaxnn.verify.certificate.registry import rules as rules
from jaxnn.verify.judge.compare import LeafError as LeafError
from jaxnn.verify.judge.compare import compare as compare
from jaxnn.verify.judge.rule import Example as Example
from jaxnn.verify.judge.rule import Rule as Rule
from jaxnn.verify.judge.subject import CannotVerify as CannotVerify
from jaxnn.verify.report.data import Finding as Finding
from jaxnn.verify.report.data import Leaf as Leaf
from jaxnn.verify.report.report import Report as Report
from jaxnn.verify.verifier import verify_custom_vjp as verify_custom_vjp
from jaxnn.verify.verifier import verify_grad as verify_grad
from jaxnn.verify.verifier import verify_layer as verify_layer
from jaxnn.verify.verifier import verify_pair as verify_pair
from jaxnn.verify.verifier import verify_vjp as verify_vjp
