"""Gradients written by hand, right and wrong, that prove the verifier.

Each file is a subject: forward functions, their right gradient, and one realistic slip per case, of the kind that a
student or an engineer makes. The files named right_* hold gradients that are right but don't look it.
"""

from . import (
    activations,
    attention,
    convolution,
    dropout,
    embedding,
    generality,
    layers,
    losses,
    mlp,
    norms,
    precision,
    recurrent,
    regression,
    right_algebra,
    right_forms,
    right_kinks,
    right_numbers,
    right_programs,
    similarity,
    structure,
)
from .case import Case, check, first_findings, names_the_cause, session

CASES: list[Case] = [
    case._replace(name=f"{module.__name__.rsplit('.', 1)[-1]}: {case.name}")
    for module in (
        mlp,
        activations,
        losses,
        regression,
        similarity,
        norms,
        dropout,
        convolution,
        attention,
        recurrent,
        embedding,
        structure,
        precision,
        generality,
        layers,
        right_forms,
        right_numbers,
        right_kinks,
        right_programs,
        right_algebra,
    )
    for case in module.CASES
]
WRONG = [case for case in CASES if case.kind]
RIGHT = [case for case in CASES if not case.kind]
