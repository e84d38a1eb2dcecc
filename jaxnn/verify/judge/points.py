"""More than one point: a gradient that is right only for biases of 0, positive inputs or a batch of one is wrong."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxnn.verify.judge.evaluate import Evaluator, cotangent

MOVES = (0.3, 0.3, 1.0)  # as shares of a leaf's size: the last one flips many signs


class Variant(NamedTuple):
    """Another point, and how it differs from the user's, in words."""

    words: str
    inputs: tuple[np.ndarray, ...]
    given: tuple[Any, ...]
    dy: tuple[np.ndarray, ...]


def moved(evaluator: Evaluator, claimed: tuple[bool, ...]) -> Iterator[Variant]:
    """The parameters moved at random by a share of each leaf's size; leaves that claim no gradient stay.

    Leaves within (0, 1) stay there if the forward clips: they are probabilities, and the function changes outside.
    """
    moves = MOVES if evaluator.differentiable else MOVES[:1]  # where differences are the only witness, a small one
    for seed, share in enumerate(moves):
        rng = np.random.default_rng(seed)
        inputs = tuple(
            _move(rng, x, share, "clamp" in evaluator.primitives) if claim else x
            for x, claim in zip(evaluator.inputs, claimed, strict=True)
        )
        dy = evaluator.dy if evaluator.subject.scalar else cotangent(seed + 1, evaluator.y)
        words = "with the parameters moved at random" if evaluator.subject.scalar else "with the inputs moved at random"
        yield Variant(words, inputs, evaluator.given, dy)


def _move(rng, x: np.ndarray, share: float, clips: bool) -> np.ndarray:
    size = (float(np.sqrt(np.mean(np.square(x)))) if x.size else 0.0) or 1.0
    there = x + share * size * rng.normal(size=x.shape)
    if clips and x.size and (x > 0).all() and (x < 1).all():
        there = np.abs(there) % 2  # reflected at both ends
        there = np.clip(np.where(there > 1, 2 - there, there), 1e-3, 1 - 1e-3)
    return there


def longer(evaluator: Evaluator) -> Iterator[Variant]:
    """Three entries along an axis that has one: a sequence of one step hides the recurrence."""
    leaves = (*evaluator.inputs, *evaluator.given)
    first = len(evaluator.inputs) if evaluator.subject.scalar else 0
    paths = (*evaluator.subject.input_paths, *evaluator.subject.given_paths)
    if evaluator.jaxpr is None:
        return
    operations = evaluator.operations(evaluator.inputs, evaluator.given)
    for axis in range(1, max((np.ndim(leaf) for leaf in leaves), default=0)):
        members = [i for i, x in enumerate(leaves) if i >= first and np.ndim(x) > axis and np.shape(x)[axis] == 1]
        words = f"with 3 entries along axis {axis} of {' and '.join(paths[i] for i in members)} (a longer sequence)"
        variant = _taken(evaluator, frozenset(members), np.zeros(3, int), words, axis) if members else None
        if variant is not None and _alike(evaluator, variant, operations) and evaluator.accepts(*variant[1:]):
            yield variant


def batches(evaluator: Evaluator) -> Iterator[Variant]:
    """Other batches, if the arguments have a batch axis: an example twice, another number of examples, just one."""
    found = _batch_axis(evaluator)
    if found is None:
        return
    n, members = found
    rows = {f"with a batch of {_other_size(n)}": np.arange(_other_size(n)) % n}
    if n > 1:
        rows["with the first example twice in the batch"] = np.r_[0, 0, 2:n]
        rows["with a batch of one"] = np.arange(1)
    for words, chosen in rows.items():
        variant = _taken(evaluator, members, chosen, words)
        if variant is not None:
            yield variant


def _other_size(n: int) -> int:
    """Fewer where possible: with more rows, indices may run past an array of n entries."""
    return 2 if n == 3 else 3


def _batch_axis(evaluator: Evaluator) -> tuple[int, frozenset[int]] | None:
    """(size, which leaves have it as their first axis) of the batch; None if none is found.

    Leaves share a batch axis if the forward accepts another number of rows in all of them, with the same operations
    (if only some of them changed, arrays would be broadcast that were not before), and so does the gradient. Data come
    before parameters: a table may have as many rows as the batch.
    """
    leaves = (*evaluator.inputs, *evaluator.given)
    n_inputs = len(evaluator.inputs)
    sizes = [np.shape(leaf)[0] for leaf in leaves if np.ndim(leaf) > 0]
    if evaluator.jaxpr is None or not sizes:
        return None
    operations = evaluator.operations(evaluator.inputs, evaluator.given)
    refused = None
    of_data = [np.shape(leaf)[0] for leaf in evaluator.given if np.ndim(leaf) > 0]
    if evaluator.subject.scalar and not of_data:
        return None  # a loss of parameters alone
    for n in sorted(set(of_data or sizes), key=lambda size: (-sizes.count(size), sizes.index(size))):
        every = [i for i, leaf in enumerate(leaves) if np.ndim(leaf) > 0 and np.shape(leaf)[0] == n]
        data = [i for i in every if i >= n_inputs]
        candidates = [data, every] + [[j for j in every if j != i] for i in every if len(every) > 2]
        for members in dict.fromkeys(frozenset(members) for members in candidates if members and n > 0):
            variant = _taken(evaluator, members, np.arange(_other_size(n)) % n, "")
            if variant is None or not _alike(evaluator, variant, operations):
                continue
            if evaluator.accepts(*variant[1:]):
                return n, members
            refused = refused or (n, members)
    return refused


def _alike(evaluator: Evaluator, variant: Variant, operations: set[str] | None) -> bool:
    """Whether the forward does the same for the variant's shapes, apart from how it slices its arguments."""
    there = evaluator.operations(variant.inputs, variant.given)
    taking = {"slice", "dynamic_slice", "gather", "squeeze", "reshape", "concatenate"}
    return there is not None and operations is not None and there ^ operations <= taking


def _is_measured(x: np.ndarray) -> bool:
    """Floats that may be moved: neither labels (0, 1, 2) nor shares that add up to 1."""
    if not np.issubdtype(x.dtype, np.floating) or (x == np.round(x)).all():
        return False
    return x.ndim < 2 or not np.allclose(x.sum(-1), 1, atol=1e-5)


def _taken(
    evaluator: Evaluator, members: frozenset[int], rows: np.ndarray, words: str, axis: int = 0
) -> Variant | None:
    """The point with these rows along an axis of some leaves; None if the forward refuses it."""
    leaves = [*evaluator.inputs, *evaluator.given]
    for i in members:
        n = leaves[i].shape[axis]
        taken = leaves[i][(slice(None),) * axis + (rows,)]
        if len(rows) > n and isinstance(taken, np.ndarray) and _is_measured(taken):
            # Copies of the same examples would hide a gradient that uses the first one for all.
            copies = (slice(None),) * axis + (slice(n, None),)
            taken[copies] = _move(np.random.default_rng(i), taken[copies], 0.3, False)
        leaves[i] = taken
    inputs, given = tuple(leaves[: len(evaluator.inputs)]), tuple(leaves[len(evaluator.inputs) :])
    y = evaluator.shapes_of_y(inputs, given)
    if y is None:
        return None
    dy = evaluator.dy if evaluator.subject.scalar else cotangent(9, y)
    return Variant(words, inputs, given, dy)
