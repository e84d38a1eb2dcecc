"""Random directions of the inputs, along which a break of the backward pass is tried at the cost of a dot product."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from jaxnn.verify.explain.reverse_mode.flat_graph import Graph, TooLarge, replay

STEP = 1e-5  # of the central differences along u, relative to the inputs
MOST_NUMBERS = 20_000_000  # kept for the directions


class Directions:
    """Random directions u of the inputs, J u of all values, and what is missing along u."""

    def __init__(self, graph: Graph, truth: Sequence, leaves: Iterable[int], check_time: Callable[[], None]):
        leaves, rng = list(leaves), np.random.default_rng(0)
        bits = {v: graph.upstream.get(v, 0) for v in graph.active}
        size = {v: np.size(graph.values[v]) for v in graph.active}
        numbers = {i: sum(size[v] for v, b in bits.items() if b >> graph.inputs[i] & 1) for i in leaves}
        each = min(3, MOST_NUMBERS // max(1, sum(numbers.values())))
        self.together = each == 0  # too much to move one leaf at a time
        if 3 * sum(size.values()) > 2 * MOST_NUMBERS:
            raise TooLarge
        self.moves: list[dict[int, np.ndarray]] = []
        found: dict[int, tuple[list[int], list[np.ndarray]]] = {}
        for group in [leaves] if self.together else [[i] for i in leaves]:
            count = 3 if self.together else each if truth[group[0]].size > 1 else 1
            for _ in range(count):
                at = {i: graph.values[graph.inputs[i]] for i in group}
                u = {i: rng.normal(size=x.shape) * _typical(x) for i, x in at.items()}
                check_time()
                up, down = (replay(graph, {graph.inputs[i]: at[i] + h * u[i] for i in group}) for h in (STEP, -STEP))
                for v, y in up.items():
                    rows, tangents = found.setdefault(v, ([], []))
                    rows.append(len(self.moves))
                    tangents.append(((y - down[v]) / (2 * STEP)).ravel())
                self.moves.append(u)
        self.count = len(self.moves)
        self.leaf = np.asarray([-1 if self.together else next(iter(u)) for u in self.moves])
        self.tangents = {v: (np.asarray(rows), np.stack(tangents)) for v, (rows, tangents) in found.items()}

    def aim(self, truth: Sequence, missing: dict[int, np.ndarray], left: frozenset[int]):
        """Make what is missing the target: with how much slack, and along which directions."""
        target, slack = [], []
        tree = max(float(np.linalg.norm(t)) for t in truth)
        for u in self.moves:
            target.append(sum(float(np.vdot(d, missing[i])) for i, d in u.items()))
            open_ = sum(_typical(d) * float(np.linalg.norm(missing[i])) for i, d in u.items() if i in left)
            size = sum(_typical(d) * (float(np.linalg.norm(truth[i])) + 1e-3 * tree) for i, d in u.items())
            slack.append(5e-4 * open_ + 1e-7 * size if open_ else 1e-6 * size)
        self.target, self.slack = np.asarray(target), np.asarray(slack)
        self.open = np.asarray([leaf == -1 or leaf in left for leaf in self.leaf])

    def project(self, v: int, delta: np.ndarray) -> np.ndarray:
        """<delta, J u> with J = ∂v/∂inputs, for all directions u."""
        sketch = np.zeros(self.count)
        if v in self.tangents:
            rows, tangents = self.tangents[v]
            sketch[rows] = tangents @ np.ravel(delta)
        return sketch

    def fits(self, sketch: np.ndarray) -> bool:
        """Whether a change is what is missing."""
        return bool(np.all(np.abs(sketch - self.target) <= self.slack))


def _typical(x) -> float:
    """The root mean square of an array, 1 if it is 0."""
    return float(np.sqrt(np.mean(np.square(x)))) or 1.0
