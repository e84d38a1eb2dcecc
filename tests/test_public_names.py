"""What is reached by name: `dir(jaxnn)` is exact, and no export hides something that is reached nowhere else."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

import jaxnn


def declared():
    """The names that `jaxnn/__init__.py` imports for its users, `import x as x`."""
    tree = ast.parse(Path(jaxnn.__file__).read_text(encoding="utf-8"))
    imports = [alias for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert all(alias.name == alias.asname for alias in imports)
    return {alias.name for alias in imports}


def test_dir_shows_what_is_declared_and_nothing_else():
    assert set(dir(jaxnn)) == declared()
    assert len(dir(jaxnn)) == len(set(dir(jaxnn))) > 100
    for name in dir(jaxnn):
        value = getattr(jaxnn, name)
        if isinstance(value, types.ModuleType):
            assert value.__name__ == f"jaxnn.{name}"
        elif not isinstance(value, (dict, str)):
            assert value.__module__.startswith("jaxnn."), name
    with pytest.raises(AttributeError, match="module 'jaxnn' has no attribute 'Any'"):
        jaxnn.Any  # noqa: B018


def test_dir_does_not_depend_on_what_was_imported_and_imports_little():
    code = (
        "import sys, jaxnn; names = dir(jaxnn); early = [m for m in sys.modules if m.startswith(('jaxnn.verify',"
        " 'jaxnn.training', 'jaxnn.datasets'))]; jaxnn.training; jaxnn.verify_grad; import jaxnn.cli;"
        " print(names == dir(jaxnn), early)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split("\n")[0] == "True []"


@pytest.mark.quick
@pytest.mark.parametrize("package", ["layers", "models", "fused"])
def test_constructors_and_pairs_are_reached_from_the_package(package):
    package = importlib.import_module(f"jaxnn.{package}")
    found = set()
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.startswith("_"):
            continue
        module = importlib.import_module(f"{package.__name__}.{module.name}")
        for name, f in vars(module).items():
            if not inspect.isfunction(f) or f.__module__ != module.__name__ or name.startswith("_"):
                continue
            if name.endswith(("_forward", "_backward")) or inspect.signature(f).return_annotation is jaxnn.Layer:
                assert getattr(package, name, None) is f, f"{package.__name__}.{name}"
                found.add(name)
    assert len(found) > 5


@pytest.mark.parametrize("table", ["ACTIVATIONS", "LOSSES", "REGULARIZERS"])
def test_a_function_has_its_name_in_the_table_and_its_derivative_says_so(table):
    module = getattr(jaxnn, table.lower())
    for name, pair in getattr(jaxnn, table).items():
        assert pair.value is getattr(jaxnn, name) is getattr(module, name)
        assert pair.derivative is getattr(jaxnn, f"{name}_derivative")


@pytest.mark.parametrize("table", ["INITIALIZERS", "OPTIMIZERS", "SCHEDULES"])
def test_a_name_in_a_table_is_that_of_a_function(table):
    module = getattr(jaxnn, table.lower())
    for name, f in getattr(jaxnn, table).items():
        assert inspect.isfunction(getattr(module, name))
        assert f is getattr(module, name) or table == "SCHEDULES"  # there, with what is customary for the rest


POSITIONAL = {"n_kv_heads", "state", "dstate", "weights"}  # a size, and arrays: no hyper-parameters


@pytest.mark.parametrize("package", ["layers", "models", "fused", "combinators"])
def test_hyper_parameters_are_by_keyword_and_results_have_types(package):
    package = importlib.import_module(f"jaxnn.{package}")
    functions = [(name, f) for name, f in vars(package).items() if inspect.isfunction(f) and not name.startswith("_")]
    found = [(name, f) for name, f in functions if f.__module__.startswith(package.__name__)]
    assert len(found) > 7
    for name, f in found:
        signature = inspect.signature(f)
        assert signature.return_annotation is not inspect.Signature.empty, name
        for parameter in signature.parameters.values():
            if parameter.default is not inspect.Parameter.empty and parameter.name not in POSITIONAL:
                assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, f"{name}: {parameter.name}"
            assert parameter.name not in ("rate", "bias"), name
