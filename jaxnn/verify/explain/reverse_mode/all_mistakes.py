"""The mistakes in a backward pass: the ways to get a rule wrong, at one place and at all places that are alike."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxnn.verify.explain.reverse_mode.broken_edges import Break, Change, given, without
from jaxnn.verify.explain.reverse_mode.composites import blocks
from jaxnn.verify.explain.reverse_mode.flat_graph import Graph, output_gradient
from jaxnn.verify.explain.reverse_mode.loop_mistakes import in_loops
from jaxnn.verify.explain.reverse_mode.mistake_words import Words
from jaxnn.verify.explain.reverse_mode.norm_mistakes import normalizations
from jaxnn.verify.explain.reverse_mode.rule_mistakes import sites
from jaxnn.verify.explain.reverse_mode.sites import SIMPLE, SLIP, Site, Way

IN_A_LOOP, ON_A_LINE, EVERYWHERE = 0.3, 0.4, 0.5  # how much less simple than at one place
LONG_LOOP = 4  # in longer ones, single turns are broken only in simple ways


class Mistakes:
    """Everything that can be wrong in the reverse mode of a graph."""

    def __init__(self, graph: Graph):
        self.graph = graph
        position = {node: i for i, node in enumerate(graph.nodes)}
        # of two equal explanations the one nearer the loss
        found = [*sites(graph), *map(_named, (*blocks(graph), *normalizations(graph)))]
        self.sites = sorted(found, key=lambda site: -position[site.node])

    # ------------------------------------------------------------ one place

    def at(self, site: Site, way: Way) -> Change:
        """The change that one way makes at its site."""
        graph = self.graph

        def delta(gradients):
            dy = output_gradient(graph, site.node, gradients)
            if dy is None:
                return np.zeros(graph.values[site.target].shape)
            used = gradients.get(way.of) if way.of >= 0 else dy
            return way.apply(used) - site.right(dy) if used is not None else -site.right(dy)

        return Change(site.target, delta, site.node.outs if way.of < 0 else (*site.node.outs, way.of))

    def words(self, site: Site, way: Way, where: str = "") -> Callable[[], str]:
        """The text for a way at its site."""
        return lambda: way.says(Words(self.graph, site.node, max(site.k, 0), where))

    def singly(self, place: Site) -> list[Way]:
        """The ways tried at this one place: in a long loop, only the first and the last turn can be special."""
        turn = self.graph.turn[place.node]
        inside = turn.length > LONG_LOOP and 0 < turn.t < turn.length - 1
        return [way for way in place.ways if way.rank <= SIMPLE] if inside else place.ways

    # ------------------------------------------------------------ several places

    def groups(self) -> Iterator[tuple[list[Site], str, float]]:
        """Sites that are alike: all turns of a loop, one line of code for several layers, one function everywhere."""
        graph = self.graph

        def kind(node):
            return node.name, node.params.get("y"), tuple(v in graph.active for v in node.ins)

        keys: dict[float, Callable[[Any], Any]] = {
            IN_A_LOOP: lambda node: graph.turn[node].operation,
            ON_A_LINE: lambda node: (node.name, node.place[:3], node.place.path),
            EVERYWHERE: kind,
        }
        seen = set()
        for extra, key in keys.items():
            found: dict[Any, list[Site]] = {}
            for site in self.sites:
                found.setdefault((key(site.node), site.k), []).append(site)
            for group in found.values():
                members = frozenset((site.node, site.k) for site in group)
                if len(group) > 1 and members not in seen:
                    seen.add(members)
                    turn = graph.turn[group[0].node]
                    if extra == IN_A_LOOP and turn.in_time:
                        where = f" at each of the {len(group)} time steps"
                    else:
                        where = f" (and at all {len(group)} places like it)"
                    yield group, where, extra

    def alike(self) -> Iterator[Break]:
        """One rule broken at all places that are alike."""
        for group, where, extra in self.groups():
            by_name: dict[str, list[tuple[Site, Way]]] = {}
            for site in group:
                for way in site.ways:
                    if extra == IN_A_LOOP or way.rank <= SLIP or self.graph.turn[site.node].length > 1:
                        by_name.setdefault(way.name, []).append((site, way))
            for name, pairs in by_name.items():
                if len(pairs) > 1:
                    site, way = pairs[0]
                    changes = tuple(self.at(s, w) for s, w in pairs)
                    says = self.words(site, way, where)
                    yield Break(way.rank + extra, way.kind, changes, says, site.node, name == "missing")

    @functools.cached_property
    def swaps(self) -> list[Break]:
        """The gradients of an operation's two operands swapped, in one place or in all turns of a loop."""
        return list(self._swaps())

    def _swaps(self):
        found: dict[tuple, list[Break]] = {}
        by_site = {(site.node, site.k): site for site in self.sites if site.k >= 0}
        for node in self.graph.nodes:
            both = [by_site[node, k] for k in range(len(node.ins)) if (node, k) in by_site]
            if node.name in ("select_n", "max", "min") and len(both) == 2:
                ways = [(site, way) for site in both for way in site.ways if way.name == "mask inverted"]
                says = Words(self.graph, node, 0).condition_negated
                yield Break(SIMPLE, "mask", tuple(self.at(*pair) for pair in ways), says, node)
            for i, j in self._swappable(node):
                changes = without(self.graph, [(node, i), (node, j)])
                for k, other in ((i, j), (j, i)):
                    changes += (Change(node.ins[k], lambda g, e=(node, other): given(self.graph, e, g), node.outs),)
                b = Break(SLIP, "operand", changes, Words(self.graph, node, 0).operands_swapped, node)
                yield b
                found.setdefault((self.graph.turn[node].operation, i, j), []).append(b)
        for breaks in found.values():
            if len(breaks) > 1:
                yield breaks[0]._replace(rank=SLIP + IN_A_LOOP, changes=tuple(c for b in breaks for c in b.changes))

    def _swappable(self, node):
        if node.name in ("mul", "dot_general", "concatenate", "stack") and len(node.ins) <= 4:
            for i, j in itertools.combinations(range(len(node.ins)), 2):
                u, v = node.ins[i], node.ins[j]
                active = u in self.graph.active and v in self.graph.active and u != v
                if active and self.graph.values[u].shape == self.graph.values[v].shape != ():
                    yield i, j

    @functools.cached_property
    def several(self) -> list[Break]:
        """All breaks at several places, the simplest first."""
        return sorted([*in_loops(self.graph), *self.alike(), *self.swaps], key=lambda b: b.rank)

    def in_series(self, b: Break) -> bool:
        """Whether one of a break's changes reads a gradient that another one changes."""
        reads = functools.reduce(lambda bits, v: bits | 1 << v, {v for c in b.changes for v in c.reads}, 0)
        return any(self.graph.upstream[c.target] & reads for c in b.changes)


def _named(site):
    """A site of a function with a name: its mistakes come before equal ones of the operations it consists of."""
    return site._replace(ways=[way._replace(rank=way.rank - 0.1) for way in site.ways])
