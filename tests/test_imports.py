"""Where things may be, and who may import whom: the rules of the layout, read from the source text."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Every place of the package, each above what it may import. A new module or folder gets its line here.
ORDER = (
    "_version", "_checks", "_exact", "_parallel", "_after",
    "activations", "schedules", "initializers", "regularizers", "losses", "optimizers",
    "layer", "_summary", "_branches", "combinators", "layers", "fused", "models",
    "datasets", "plots", "training",
    "verify.jax_internals", "verify.report", "verify.judge", "verify.explain", "verify.verifier",
    "verify.certificate", "verify", "testing",
    "runs", "cli", "__main__", "",
)  # fmt: skip
FOREIGN = ("optax", "flax", "equinox", "haiku", "torch", "jax._src")
OUTSIDE = ("tests", "scripts", "benchmarks", "docs")
AUTODIFF = ("grad", "value_and_grad", "vjp", "jvp", "jacrev", "jacfwd", "linearize", "hessian")


def module_of(path: Path, root: Path = ROOT) -> str:
    """jaxnn/layers/conv.py -> jaxnn.layers.conv, jaxnn/layers/__init__.py -> jaxnn.layers."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_of(path): path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("jaxnn/**/*.py"))}


def place_of(module: str) -> str:
    """jaxnn.layers.conv -> layers; the folders of verify are places of their own."""
    parts = module.split(".")[1:]
    return ".".join(parts[:2] if parts[:1] == ["verify"] else parts[:1])


@functools.cache
def imports(source: str) -> tuple[str, ...]:
    """What a source imports, also inside its functions; but not what only a type checker sees."""
    return tuple(_imports(source))


def _imports(source: str) -> Iterator[str]:
    tree = ast.parse(source)
    unseen = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in unseen:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def own_imports(source: str, modules=frozenset(SOURCES)) -> set[str]:
    """The modules of the package that a source imports: of `jaxnn.layers.conv` it is the module, not the name in it."""
    names = [name for name in imports(source) if name.split(".")[0] == "jaxnn"]
    return {name if name in modules else name.rpartition(".")[0] for name in names}


def upward(sources: dict[str, str]) -> list[str]:
    """The imports that do not go down ORDER."""
    return [
        f"{module} imports {other}"
        for module, source in sources.items()
        for other in own_imports(source, frozenset(sources))
        if place_of(other) != place_of(module)
        and ORDER.index(place_of(other)) > ORDER.index(place_of(module))  # a ValueError: it has no line in ORDER
    ]


def circle(sources: dict[str, str]) -> list[str]:
    """Modules that import each other in a circle, [] if there are none."""
    edges = {module: own_imports(source, frozenset(sources)) - {module} for module, source in sources.items()}
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        found = next((c for other in sorted(edges.get(module, ())) if (c := visit(other, [*path, module]))), [])
        done.add(module)
        return found

    return next((found for module in sources if (found := visit(module, []))), [])


def private(source: str) -> list[str]:
    """Imports of private modules or names of the package."""
    return [name for name in imports(source) if name.startswith("jaxnn.") and re.search(r"\._[a-z]", name)]


@pytest.mark.quick
def test_every_module_has_its_place():
    places = {place_of(module) for module in SOURCES}
    assert not places - set(ORDER), "give these places of the package a line in ORDER"


@pytest.mark.quick
def test_imports_go_down():
    assert upward(SOURCES) == []


@pytest.mark.quick
def test_no_circle():
    assert circle(SOURCES) == []


def test_a_folder_does_not_import_itself_by_its_init():
    """`from jaxnn.layers import dense` inside layers/ would make a circle of the folder and its modules."""
    inside = [
        f"{module} imports {other}"
        for module, source in SOURCES.items()
        for other in own_imports(source)
        if module.startswith(other + ".")
    ]
    assert inside == []


def test_imports_are_absolute():
    assert [module for module, source in SOURCES.items() if any(name[0] == "." for name in imports(source))] == []


def test_nobody_outside_imports_a_private_name():
    found = {
        str(path.relative_to(ROOT)): names
        for folder in OUTSIDE
        for path in sorted((ROOT / folder).rglob("*.py"))
        if (names := private(path.read_text(encoding="utf-8")))
    }
    assert found == {}


@pytest.mark.parametrize("library", FOREIGN)
def test_the_library_stands_alone(library):
    users = [m for m, source in SOURCES.items() for name in imports(source) if f"{name}.".startswith(library + ".")]
    assert users == []


def test_autodiff_is_in_the_verifier_alone():
    users = {module for module, source in SOURCES.items() if differentiates(source)}
    assert users
    assert [module for module in users if not module.startswith("jaxnn.verify.")] == []


def differentiates(source: str) -> bool:
    """Whether it reads jax.grad, or a relative of it, in whatever way."""
    attributes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute))
    read = {f"{node.value.id}.{node.attr}" for node in attributes if isinstance(node.value, ast.Name)}
    return not {f"jax.{name}" for name in AUTODIFF}.isdisjoint(read.union(imports(source)))


# ---------------------------------------------------------------- the checks can fail


def test_each_check_sees_what_it_is_for():
    assert upward({"jaxnn.losses": "", "jaxnn.activations": "from jaxnn.losses import mse"}) != []
    assert upward({"jaxnn.activations": "", "jaxnn.losses": "from jaxnn.activations import relu"}) == []
    ring = {"jaxnn.a": "def f():\n    import jaxnn.b", "jaxnn.b": "import jaxnn.c", "jaxnn.c": "from jaxnn.a import x"}
    assert circle(ring) == ["jaxnn.a", "jaxnn.b", "jaxnn.c", "jaxnn.a"]
    assert circle({**ring, "jaxnn.c": ""}) == []
    assert private("from jaxnn._checks import whole") == ["jaxnn._checks.whole"]
    assert private("from jaxnn.layers.conv import _product") == ["jaxnn.layers.conv._product"]
    assert private("from jaxnn import __version__, layers") == []
    assert differentiates("import functools, jax\nf = functools.partial(jax.grad, argnums=1)")
    assert differentiates("from jax import vjp")
    assert not differentiates("import jax\n\n\ndef f(x):\n    \"no jax.grad( here\"\n    return jax.jit(x)")


# ---------------------------------------------------------------- how large a folder may be

BUDGETS = re.findall(r"^\| `(jaxnn/\S+)` \| ([\d,]+) \|$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize(("folder", "budget"), BUDGETS)
def test_a_folder_keeps_its_budget_of_lines(folder, budget):
    files = ROOT.glob(folder if folder.endswith(".py") else f"{folder}/**/*.py")
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)
    limit = int(budget.replace(",", ""))
    assert limit / 3 < lines <= limit, "make room, or change the number in CONTRIBUTING.md and say why"


def test_every_folder_has_a_budget():
    folders = {f"jaxnn/{place.split('.')[0]}" for place in map(place_of, SOURCES) if (ROOT / "jaxnn" / place).is_dir()}
    assert folders - {"jaxnn/"} == {folder for folder, _ in BUDGETS} - {"jaxnn/*.py"}
