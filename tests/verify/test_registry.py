"""Nothing with a hand-written derivative may stay out of the registry."""

import importlib
import inspect
import pkgutil

import pytest

import jaxnn
from jaxnn import combinators, fused, layers, models
from jaxnn.layer import Layer
from jaxnn.verify import rules


def public_rules():
    """Every function named …_derivative or …_backward with its forward, and every constructor of a Layer."""
    found = {}
    for module in pkgutil.walk_packages(jaxnn.__path__, "jaxnn."):
        if module.name.startswith(("jaxnn.verify", "jaxnn.plots", "jaxnn.datasets")):
            continue
        for name, f in vars(importlib.import_module(module.name)).items():
            if inspect.isfunction(f) and not name.startswith("_") and name.endswith(("_derivative", "_backward")):
                found[f"{f.__module__}.{f.__name__}"] = f
    for module in (layers, combinators, models, fused):
        for name, f in vars(module).items():
            returns_layer = inspect.isfunction(f) and inspect.signature(f).return_annotation is Layer
            if returns_layer and not name.startswith("_") and "._" not in f.__module__:
                found[f"{f.__module__}.{name}"] = f
    return found


@pytest.mark.quick
def test_every_public_rule_is_registered():
    proven = {id(f) for rule in rules() for f in rule.public}
    missing = [name for name, f in public_rules().items() if id(f) not in proven]
    assert not missing, f"add these to jaxnn/verify/certificate/registry.py: {missing}"


def test_the_search_for_public_rules_finds_some():
    found = public_rules()
    for name in ("activations.sigmoid_derivative", "losses.mse_derivative", "layers.dense.dense", "models.mlp.mlp"):
        assert f"jaxnn.{name}" in found
    assert "jaxnn.combinators.repeat" in found
    assert "jaxnn.models.mlp.mlp_backward" in found


def test_names_are_unique():
    names = [rule.name for rule in rules()]
    assert len(names) == len(set(names))
