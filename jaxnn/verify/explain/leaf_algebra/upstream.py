"""Which leaves lie upstream of which in the forward: where a mistake enters, if only some leaves are wrong."""

from collections.abc import Iterator

from jaxnn.verify.explain.evidence import Evidence
from jaxnn.verify.jax_internals import Jaxpr, Literal, Var, called


def enters(evidence: Evidence) -> str:
    """Where the mistake enters the backward pass, in words; "" if that can't be told."""
    reach = _reach(evidence)
    wrong = [i for i, is_wrong in enumerate(evidence.wrong) if is_wrong]
    right = [i for i, is_wrong in enumerate(evidence.wrong) if not is_wrong and evidence.truth[i].any()]
    if reach is None or not wrong or not right:
        return ""
    names = evidence.input_paths
    before = [r for r in right if any(_upstream(reach, r, w) for w in wrong)]
    if not before:
        near = [r for r in right if any(_upstream(reach, w, r) for w in wrong)]
        if not near:
            return ""
        last = [w for w in wrong if not any(_upstream(reach, w, other) for other in wrong)]
        first = [r for r in near if not any(_upstream(reach, other, r) for other in near)]
        return (
            f"the leaves nearer the loss are right ({_list(names, near)}): "
            f"the mistake enters between {_list(names, first)} and {_list(names, last)}"
        )
    if len(wrong) == 1:
        return f"leaves further from the loss are right ({_list(names, before)}): the mistake is this leaf's own"
    return ""


def nearest_the_loss(evidence: Evidence) -> list[int]:
    """The leaves, those nearest the loss first; in the tree's order where the forward is not known."""
    reach = _reach(evidence)
    leaves = list(range(len(evidence.inputs)))
    if reach is None:
        return leaves
    return sorted(leaves, key=lambda i: sum(_upstream(reach, i, other) for other in leaves))


def _list(names, leaves):
    shown = ", ".join(names[i] for i in leaves[:3])
    return shown + (", …" if len(leaves) > 3 else "")


def _upstream(reach, a, b):
    """Whether leaf b joins the path that leads from leaf a to the output."""
    return reach[b] < reach[a]


def _reach(evidence) -> list[set[int]] | None:
    """For every leaf the equations it leads to, starting with the first that joins it with something else."""
    if evidence.jaxpr is None:
        return None
    jaxpr = evidence.jaxpr.jaxpr
    env = {var: object() for var in (*jaxpr.constvars, *jaxpr.invars)}
    equations = list(_flat(jaxpr, env))
    found = []
    for var in jaxpr.invars[: len(evidence.inputs)]:
        alone, joined, numbers = {env[var]}, set(), set()
        for k, (ins, outs) in enumerate(equations):
            if joined.intersection(ins) or (alone.intersection(ins) and not alone.issuperset(ins)):
                joined.update(outs)
                numbers.add(k)
            elif alone.intersection(ins):
                alone.update(outs)
        found.append(numbers)
    return found


def _flat(jaxpr: Jaxpr, env: dict[Var, object]) -> Iterator[tuple[list[object], list[object]]]:
    """(values used, values made) of every equation; those that merely call a jaxpr are replaced by what it contains."""
    for eqn in jaxpr.eqns:
        ins = [None if isinstance(atom, Literal) else env[atom] for atom in eqn.invars]
        call = called(eqn)
        if call is None:
            env.update((var, object()) for var in eqn.outvars)
            yield [value for value in ins if value is not None], [env[var] for var in eqn.outvars]
        else:
            inside = {var: object() for var in call.jaxpr.constvars}
            inside.update((var, value or object()) for var, value in zip(call.jaxpr.invars, ins, strict=True))
            yield from _flat(call.jaxpr, inside)
            for var, atom in zip(eqn.outvars, call.jaxpr.outvars, strict=True):
                env[var] = object() if isinstance(atom, Literal) else inside[atom]
