"""Does the gradient have its parameters' tree, leaves and dtypes? Checked before any number is compared."""

import difflib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.verify.judge.subject import Slot, Subject, describe
from jaxnn.verify.report.data import OBSERVED, Finding


class Structure(NamedTuple):
    """The manual gradient's leaves in the order of the subject's inputs, None where one is missing."""

    leaves: tuple[Any, ...]
    findings: tuple[Finding, ...]
    undeclared: tuple[bool, ...]  # True: the backward of a vjp returned None for the argument: no gradient claimed


def match(subject: Subject, gradient: Any) -> Structure:
    """Find every leaf of the gradient, and say what is missing, extra, in another container or of another dtype."""
    found: list[Finding] = []
    gradient = _unwrapped(subject, gradient, found)
    places, got = _by_path(subject.expected), _by_path(gradient)
    expected = [path for path, leaf in places.items() if leaf is not None]
    declared: set[str] = set()
    if not subject.scalar and isinstance(gradient, tuple | list):
        # The rule of custom_vjp: None for an argument means that no gradient is claimed for it.
        declared = {f"[{i}]" for i, g in enumerate(gradient) if g is None}
    leaves, undeclared, missing = [], [], []
    for slot, path in zip(subject.slots, expected, strict=True):
        leaf = got.get(path)
        is_declared = any(path.startswith(argument) for argument in declared)
        absent = path not in got and not is_declared
        if slot.is_input:
            undeclared.append(is_declared)
            leaves.append(leaf)
            absent = leaf is None and not is_declared
        else:
            _check_integer(slot, leaf, found)
        if absent:
            missing.append(slot)
    extra = [path for path in got if path not in places and got[path] is not None]
    in_order = [leaf for leaf in got.values() if leaf is not None]
    inputs = [slot for slot in subject.slots if slot.is_input]
    if missing and extra and [np.shape(leaf) for leaf in in_order] == [slot.shape for slot in inputs]:
        # A plain tuple for a namedtuple, a dict with other names: all leaves are there, in order.
        if isinstance(gradient, dict) and isinstance(subject.expected, dict):
            found.append(_missing_and_extra(missing, extra, subject, gradient))
        else:
            found.append(_container(subject, jax.tree.structure(subject.expected), jax.tree.structure(gradient)))
        return Structure(tuple(in_order), tuple(found), (False,) * len(inputs))
    if missing or extra:
        found.append(_missing_and_extra(missing, extra, subject, gradient))
    elif _containers_differ(subject.expected, gradient):
        found.append(_container(subject, jax.tree.structure(subject.expected), jax.tree.structure(gradient)))
    return Structure(tuple(leaves), tuple(found), tuple(undeclared))


def dtype_findings(subject: Subject, leaves: tuple, traceable: bool) -> list[Finding]:
    """Leaves whose dtype is not their parameter's. NumPy code may answer in float64."""
    wrong = []
    for path, given, leaf in zip(subject.input_paths, subject.inputs, leaves, strict=True):
        if leaf is None:
            continue
        dtype = jnp.result_type(leaf) if not hasattr(leaf, "dtype") else jnp.dtype(leaf.dtype)
        if np.shape(leaf) != np.shape(given):
            continue  # a finding of its own
        seen = jax.dtypes.canonicalize_dtype(given.dtype)  # NumPy's float64 is float32 to JAX
        plain = not isinstance(leaf, jax.Array) and not traceable
        if dtype not in (seen, jnp.dtype(given.dtype)) and not (plain and dtype == np.float64):
            wrong.append((path, dtype, seen))
    if not wrong:
        return []
    path, dtype, expected = wrong[0]
    more = f" (and {len(wrong) - 1} more leaves)" if len(wrong) > 1 else ""
    text = f"{path}: the gradient is {dtype}, the parameter {expected}{more}: a gradient has its parameter's dtype. "
    if jnp.issubdtype(dtype, jnp.integer):
        text += f"Integers have truncated its values: compute it in {expected}"
    else:
        text += f"Return it with .astype({expected})"
    return [Finding("dtype", text, tuple(p for p, _, _ in wrong), OBSERVED)]


def _unwrapped(subject: Subject, gradient: Any, found: list[Finding]) -> Any:
    """The gradient without a value next to it or a tuple around it, both of which are findings."""
    expected = jax.tree.structure(subject.expected)
    if jax.tree.structure(gradient) == expected or not isinstance(gradient, tuple | list):
        if not subject.scalar and not isinstance(gradient, tuple | list):
            text = (
                f"the backward must return a tuple with one gradient for each of the {len(subject.expected)} "
                f"argument(s); it returned a {type(gradient).__name__}. For one argument that is (dx,)"
            )
            found.append(Finding("container", text, (), OBSERVED))
            return (gradient,) if len(subject.expected) == 1 else gradient
        return gradient
    if len(gradient) == 2 and _fits(subject.expected, gradient[1]) and jnp.ndim(_first_leaf(gradient[0])) == 0:
        text = "the manual gradient returns the tuple (value, gradient), as jax.value_and_grad does; "
        text += "return the gradient alone"
        found.append(Finding("value_and_grad", text, (), OBSERVED))
        return gradient[1]
    if len(gradient) == 1 and _fits(subject.expected, gradient[0]):
        text = "the gradient is wrapped in a tuple of one; return it bare (or give argnums=(0,))"
        found.append(Finding("container", text, (), OBSERVED))
        return gradient[0]
    return gradient


def _first_leaf(tree):
    leaves = jax.tree.leaves(tree)
    return leaves[0] if len(leaves) == 1 else np.zeros(2)


def _by_path(tree: Any) -> dict[str, Any]:
    """Leaf by path, None kept; dict keys, attributes and indices are told apart by container below."""
    with_paths = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: x is None)
    return {"".join(_token(part) for part in path): leaf for path, leaf in with_paths}


def _token(part) -> str:
    """A namedtuple's field and a dict's key of the same name are the same place; the container is checked elsewhere."""
    for attribute in ("key", "name", "idx"):
        if hasattr(part, attribute):
            return f"[{getattr(part, attribute)!r}]"
    return f"[{part}]"


def _fits(expected: Any, gradient: Any) -> bool:
    """Whether the gradient has all the leaves, in the same containers."""
    return not _containers_differ(expected, gradient) and jax.tree.leaves(gradient) != []


def _containers_differ(expected: Any, gradient: Any) -> bool:
    """Whether the same leaves are in other containers; None stands for a whole subtree."""
    if gradient is None:
        return False
    try:
        jax.tree.map(lambda g, e: None, gradient, expected, is_leaf=lambda x: x is None)
    except (ValueError, TypeError):
        return True
    return False


def _check_integer(slot: Slot, leaf: Any, found: list[Finding]) -> None:
    if leaf is None or (hasattr(leaf, "dtype") and leaf.dtype == jax.dtypes.float0):
        return
    try:
        nonzero = bool(np.any(np.asarray(leaf) != 0))
    except (TypeError, ValueError):
        return  # a key, say
    if nonzero:
        text = f"{slot.path} holds {slot.dtype}, which has no gradient, but yours is not zero; return None or zeros"
        found.append(Finding("integer", text, (slot.path,), OBSERVED))


def _missing_and_extra(missing: list[Slot], extra: list[str], subject: Subject, gradient: Any) -> Finding:
    parts = []
    if type(gradient) is not type(subject.expected):
        parts.append(f"the gradient is {describe(gradient)}, the parameters are {describe(subject.expected)}")
    if missing:
        names = ", ".join(f"{slot.path} {slot.dtype}{list(slot.shape)}" for slot in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        parts.append(f"the gradient of {names}{more} is missing (None, or no such leaf)")
    if extra:
        names = ", ".join(extra[:5]) + (f" and {len(extra) - 5} more" if len(extra) > 5 else "")
        parts.append(f"the gradient has {names or 'a leaf'}, which the parameters don't have (extra)")
    if len(missing) == 1 and len(extra) == 1:
        known = [_last(path) for path in _by_path(subject.expected)]
        close = difflib.get_close_matches(_last(extra[0]), known, n=1)
        parts.append(f"is {_last(extra[0])!r} meant to be {_last(missing[0].path)!r}?" if close else "another name?")
    text = "; ".join(parts) + ". The gradient must be the same tree as the parameters"
    return Finding("missing_leaf" if missing else "extra_leaf", text, tuple(s.path for s in missing), OBSERVED)


def _last(path: str) -> str:
    return path.rstrip("]").split("[")[-1].strip("'\"")


def _container(subject: Subject, expected, got) -> Finding:
    text = f"the gradient has the tree {got}, the parameters have {expected}"
    text = text if len(text) < 300 else "the gradient is built from different containers than the parameters"
    text += (
        ": the same leaves in other containers (a list for a tuple), so jax.tree.map over them fails. "
        f"Return the containers of the parameters ({', '.join(sorted(_containers(subject.expected)))})"
    )
    return Finding("container", text, (), OBSERVED)


def _containers(tree) -> set[str]:
    found = set()

    def look(x):
        if isinstance(x, dict | list | tuple):
            found.add(type(x).__name__)
        return False

    jax.tree.flatten(tree, is_leaf=look)
    return found
