"""The second stage of the diagnosis: the backward pass is broken on purpose until it gives the user's wrong gradient.

Reverse mode is run over the forward's graph with one rule broken at a time, at one place, at all turns of a loop, or
everywhere. A broken backward pass that reproduces the wrong gradient in every leaf proves the cause.

A break changes the gradient of one value v by Δ, and the gradient of the inputs by Jᵀ Δ with J = ∂v/∂inputs. Along a
few random directions u of the inputs that is <Jᵀ Δ, u> = <Δ, J u>, and J u is known for all values from moving the
inputs along u. So a trial costs a few dot products, thousands take a second, and pairs of breaks that add up to what is
missing are found by sorting; only what fits along all u is actually run.
"""

import itertools
import math
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from jaxnn.verify.explain.evidence import Evidence
from jaxnn.verify.explain.reverse_mode.all_mistakes import Mistakes
from jaxnn.verify.explain.reverse_mode.broken_edges import Break, Change, times
from jaxnn.verify.explain.reverse_mode.flat_graph import (
    Graph,
    TooLarge,
    backpropagate,
    contribution,
    flatten,
    output_gradient,
)
from jaxnn.verify.explain.reverse_mode.mistake_words import Words
from jaxnn.verify.explain.reverse_mode.other_losses import other_gradients
from jaxnn.verify.explain.reverse_mode.primitive_rules import Node
from jaxnn.verify.explain.reverse_mode.sites import OTHER, SIMPLE, SLIP, Site, Way
from jaxnn.verify.explain.reverse_mode.trial_directions import Directions
from jaxnn.verify.explain.reverse_mode.value_mistakes import of_values, passed
from jaxnn.verify.explain.reverse_mode.value_names import factor_words
from jaxnn.verify.report.data import EXACT, Finding

MOST_RUNS = 40  # of trials that fit along the directions
MOST_NODES_FOR_SERIES = 150
MOST_MISTAKES = 3
WRONG_FACTOR = 1.6  # how much less simple than a missing one
Trial = tuple[Break, np.ndarray]  # and the change of the inputs' gradient along the directions


class Fit(NamedTuple):
    """Breaks that reproduce the user's gradient in some of the wrong leaves and leave all others as they were."""

    breaks: tuple[Break, ...]
    leaves: frozenset[int]
    factor: float = 1.0  # of the changes


class _OutOfTime(Exception):
    pass


def broken_backward(evidence: Evidence, seconds: float) -> list[Finding]:
    """The simplest mistakes in a backward pass that give exactly the user's wrong gradient.

    The list is empty where nothing was found: no explanation, no jaxpr, too many operations, no time left.
    """
    deadline = time.process_time() + seconds
    if evidence.jaxpr is None or not any(evidence.wrong):
        return []
    paths = (*evidence.input_paths, *evidence.given_paths)
    with jax.enable_x64(True), np.errstate(all="ignore"):
        try:
            graph = flatten(evidence.jaxpr, evidence.inputs, evidence.given, paths)
            search = _Search(graph, evidence, deadline)
            return [search.finding(fit) for fit in search.fits()] if search.possible else []
        except (TooLarge, _OutOfTime):
            return []


class _Search:
    """The search for the breaks that reproduce one wrong gradient."""

    def __init__(self, graph: Graph, evidence: Evidence, deadline: float):
        self.graph, self.evidence, self.deadline = graph, evidence, deadline
        self.made: tuple[Break, ...] = ()  # found already
        truth = [np.asarray(t, np.float64) for t in evidence.truth]
        self.truth = truth
        self.manual = {
            i: np.asarray(m, np.float64)
            for i, m in enumerate(evidence.manual)
            if m is not None and np.size(m) and np.shape(m) == truth[i].shape and np.isfinite(m).all()
        }
        wrong = frozenset(i for i in self.manual if evidence.wrong[i])
        self.left = wrong  # to be explained
        self.tree = max((_largest(t) for t in truth), default=0.0)
        self.tolerance = {}
        for i, m in self.manual.items():
            self.tolerance[i] = 1e-6 * max(_largest(truth[i]), _largest(m)) + 1e-11 * self.tree
            if i in wrong:
                self.tolerance[i] = min(self.tolerance[i], 1e-3 * _largest(m - truth[i]))
        self.look(())
        # Where the forward's own rules (at kinks, in custom_vjp) don't give the truth, breaking them proves nothing.
        own = {i: self.gradients[graph.inputs[i]] for i in self.manual}
        self.possible = bool(wrong) and all(
            np.isfinite(g).all() and _largest(g - truth[i]) <= max(self.tolerance[i], 1e-7 * self.tree)
            for i, g in own.items()
        )
        self.trials_made = 0

    def check_time(self):
        if time.process_time() > self.deadline:
            raise _OutOfTime

    # ------------------------------------------------------------ the course of the search

    def fits(self) -> list[Fit]:
        """One fit that explains all wrong leaves; or several, each explaining some of them.

        A mistake near the loss explains the leaves behind it exactly; with it made, the next is found further upstream.
        """
        self.mistakes = Mistakes(self.graph)
        self.directions = Directions(self.graph, self.truth, self.manual, self.check_time)
        found: list[Fit] = []
        while self.left and len(found) < MOST_MISTAKES:
            try:
                fit = self.round()
            except _OutOfTime:
                break
            if fit is None:
                break
            found.append(fit)
            self.left -= fit.leaves
            self.made += tuple(times(b, fit.factor) for b in fit.breaks)
            self.look(())
        return found

    def round(self) -> Fit | None:
        """The simplest fit for all remaining leaves, else one for as many as possible."""
        self.directions.aim(self.truth, self.missing, self.left)
        some: list[Fit] = []  # that explain only some leaves

        def explains_all(fit):
            some.extend([fit] if fit else [])
            return fit is not None and fit.leaves == self.left

        trials: list[Trial] = []

        def tried(found: Iterable[Trial]) -> Fit | None:
            new = list(found)
            trials.extend(new)
            return self.match(new)

        simple = [b for b in self.mistakes.several if b.rank < SLIP]
        other = [b for b in self.mistakes.several if b.rank >= SLIP]
        stages = (
            lambda: tried([*self.single(self.mistakes.sites), *self.values(), *self.parallel(self.mistakes.swaps)]),
            lambda: tried(self.parallel(simple)),
            lambda: self.series(simple),
            lambda: tried(self.parallel(other)),
            lambda: self.series(other),
            lambda: tried(self.paths()),
            lambda: self.pairs(trials),
            lambda: tried(self.instead()),
        )
        try:
            for stage in stages:
                if explains_all(fit := stage()):
                    return fit
            if not some and explains_all(fit := self.pairs_in_series(trials)):
                return fit
        except _OutOfTime:
            if not some:
                raise
        return min(some, key=lambda fit: (-len(fit.leaves), sum(b.rank for b in fit.breaks)), default=None)

    # ------------------------------------------------------------ running

    def run(self, breaks: Iterable[Break]) -> dict[int, np.ndarray]:
        """The gradients of all values with these breaks made, on top of those found before."""
        self.check_time()
        changes: dict[int, list] = {}
        for c in itertools.chain.from_iterable(b.changes for b in (*self.made, *breaks)):
            changes.setdefault(c.target, []).append(c.delta)
        return backpropagate(self.graph, self.evidence.dy, changes)

    def look(self, breaks: Iterable[Break]):
        """Take the backward pass with some breaks as the starting point: what is missing then?"""
        self.gradients = self.run(breaks)
        self.missing = {i: m - self.gradients[self.graph.inputs[i]] for i, m in self.manual.items()}

    def verify(self, first: Break, *others: Break) -> Fit | None:
        """What breaks explain when they are actually made."""
        breaks = (first, *others)
        gradients = self.run(breaks)
        leaves = self.explained(gradients)
        if leaves or others or not first.scales:
            return Fit(breaks, leaves) if leaves else None
        factor = self.factor(gradients)
        if factor is None or self.explained(self.run((times(first, factor),))) != self.left:
            return None
        return Fit(breaks, self.left, factor)

    def explained(self, gradients) -> frozenset[int]:
        """The wrong leaves that gradients reproduce; none if they don't leave all others as they were."""
        found = set()
        for i, m in self.manual.items():
            error = _largest(gradients[self.graph.inputs[i]] - m)
            if i in self.left:
                found |= {i} if error <= self.tolerance[i] else set()
            elif not error <= 2 * self.tolerance[i] + _largest(self.missing[i]):
                return frozenset()
        return frozenset(found)

    def factor(self, gradients) -> float | None:
        """What the change of the gradients must be multiplied by to give what is missing."""
        leaves = sorted(self.left)
        inputs = [self.graph.inputs[i] for i in leaves]
        ours = np.concatenate([(gradients[v] - self.gradients[v]).ravel() for v in inputs])
        theirs = np.concatenate([self.missing[i].ravel() for i in leaves])
        if not ours @ ours:
            return None
        factor = float(ours @ theirs / (ours @ ours))
        # With few numbers some factor always fits.
        enough = np.count_nonzero(theirs) >= 4 or factor_words(self.graph, 1 - factor)
        return factor if enough else None

    # ------------------------------------------------------------ trials

    def sketch(self, changes: Iterable[Change]) -> np.ndarray:
        """The change of the inputs' gradient along the directions."""
        return sum((self.along(c.target, c.delta(self.gradients)) for c in changes), np.zeros(self.directions.count))

    def along(self, v: int, delta: np.ndarray) -> np.ndarray:
        """<delta, J u> for all directions u."""
        self.trials_made += 1
        if self.trials_made % 64 == 0:
            self.check_time()
        return self.directions.project(v, delta)

    def single(self, places: list[Site]) -> Iterator[Trial]:
        """One rule broken at one place."""
        for n, site in enumerate(places):
            dy = output_gradient(self.graph, site.node, self.gradients)
            if dy is None:
                continue
            right = site.right(dy)
            for way in self.mistakes.singly(site):
                used = dy if way.of < 0 else self.gradients.get(way.of)
                if used is None:
                    continue
                b = Break(
                    way.rank + 1e-4 * n,
                    way.kind,
                    (self.mistakes.at(site, way),),
                    self.mistakes.words(site, way),
                    site.node,
                    way.name == "missing",
                )
                yield b, self.along(site.target, way.apply(used) - right)

    def values(self) -> Iterator[Trial]:
        """A value's whole gradient broken."""
        for b in of_values(self.graph, self.evidence.dy):
            yield b, self.sketch(b.changes)

    def instead(self) -> Iterator[Trial]:
        """Another value's gradient, or something else up to a factor, in place of a value's gradient."""
        d = self.directions
        for v in sorted(self.graph.active, reverse=True):
            g, uses = self.gradients.get(v), self.graph.uses.get(v)
            if g is None or g.size < 2 or not uses or v not in d.tangents:
                continue
            for b in passed(self.graph, v):
                yield b, self.sketch(b.changes)
            theirs = (d.target + self.along(v, g))[d.open] / d.slack[d.open]
            node, name = self.graph.producer.get(v) or uses[0][0], Words(self.graph, *uses[0]).value(v)
            for words, other in other_gradients(self.graph, v):
                ours = self.along(v, other)[d.open] / d.slack[d.open]
                if not ours @ ours:
                    continue
                c = float(ours @ theirs / (ours @ ours))
                change = Change(v, lambda g, v=v, x=c * other: x - g.get(v, 0.0), (v,))
                text = f"the gradient of {name} is taken as {c:.4g} times {words}, u = {name}"
                if not words:
                    text = f"the gradient of {name} that comes from downstream is ignored: it is {c:.4g} everywhere"
                yield Break(SLIP + 1, "loss", (change,), lambda text=text: text, node), self.sketch((change,))

    def parallel(self, several: list[Break]) -> Iterator[Trial]:
        """Those breaks at several places that do not act on one another."""
        for b in several:
            if not self.mistakes.in_series(b):
                yield b, self.sketch(b.changes)

    def series(self, several: list[Break]) -> Fit | None:
        """Those breaks at several places that act on one another: each has to be run."""
        best = None
        for b in several:
            if not self.mistakes.in_series(b):
                continue
            fit = self.verify(b)
            if fit is None and b.kind == "time" and b.scales:
                factors = (f for f in (0.5, -1.0, 2.0) if self.explained(self.run((times(b, 1 - f),))) == self.left)
                fit = next((Fit((b,), self.left, 1 - f) for f in factors), None)
            if fit is not None and fit.leaves == self.left:
                return fit
            if fit is not None and (best is None or len(fit.leaves) > len(best.leaves)):
                best = fit
        return best

    def paths(self) -> Iterator[Trial]:
        """A factor or derivative that is missing only in what one operand gets, as in db = dh.sum(0) for dz.sum(0)."""
        graph = self.graph
        if len(graph.nodes) > 400:
            return
        ways = [(s, w) for s in self.mistakes.sites for w in s.ways if w.rank <= SIMPLE and w.name != "missing"]
        for tag, (site, way) in enumerate(ways, 1):
            if graph.turn[site.node].in_time:
                continue
            broken = self.run((Break(0.0, "", (self.mistakes.at(site, way),), str),))
            for node in graph.nodes:
                if not graph.reaches(node.outs[0], site.target):
                    continue
                now, dy = (output_gradient(graph, node, g) for g in (broken, self.gradients))
                if len(node.outs) > 1 or now is None or dy is None or np.array_equal(now, dy):
                    continue
                for k, v in enumerate(node.ins):
                    if v in graph.active:
                        delta = contribution(graph, node, k, now - dy)
                        change = Change(v, lambda g, d=delta: d, ())
                        yield self.on_path(site, way, tag, change, node, k), self.along(v, delta)

    def on_path(self, site: Site, way: Way, tag: int, change: Change, node: Node, k: int) -> Break:
        """A way at its site that acts only on the gradient of another node's operand."""
        words = Words(self.graph, node, k)
        scope = f"the gradient of {words.value(words.origin(node.ins[k]))} (through {words.here})"
        rank = way.rank + (OTHER if change.target in self.graph.inputs else OTHER + 0.5)
        return Break(rank, way.kind, (change,), self.mistakes.words(site, way), site.node, False, tag, scope)

    # ------------------------------------------------------------ fitting

    def match(self, trials: list[Trial]) -> Fit | None:
        """The best fit among trials: those that fit along the directions are actually run, the simplest first."""
        if not trials:
            return None
        d = self.directions
        sketches = np.stack([s for _, s in trials])
        close = np.asarray(np.abs(sketches - d.target) <= d.slack)
        stays = close[:, ~d.open].all(1) & np.isfinite(sketches).all(1)
        fit = self.simplest(trials[j][0] for j in np.flatnonzero(stays & close.all(1)))
        fit = fit or self.simplest(self.scaled(trials[j]) for j in np.flatnonzero(stays))
        if fit or d.together:
            return fit
        counts = np.sum([close[:, d.leaf == i].all(1) for i in self.left], axis=0) * stays
        some = sorted(np.flatnonzero(counts), key=lambda j: (-counts[j], trials[j][0].rank))
        best = None
        for j in some[:MOST_RUNS]:
            if best and counts[j] <= len(best.leaves):
                break
            fit = self.verify(trials[j][0]) if trials[j][0].rank < OTHER + 1 else None
            best = fit if fit and (best is None or len(fit.leaves) > len(best.leaves)) else best
        return best

    def scaled(self, trial: Trial) -> Break | None:
        """The trial's break if some multiple of it fits along the directions."""
        b, sketch = trial
        d = self.directions
        if not b.scales:
            return None
        ours, theirs = sketch[d.open] / d.slack[d.open], d.target[d.open] / d.slack[d.open]
        if not ours @ ours or np.any(np.abs(ours * (ours @ theirs) / (ours @ ours) - theirs) > 1):
            return None
        constant = b.node is not None and Words(self.graph, b.node, self.operand(b)).constant_factor(2.0)
        return b._replace(rank=b.rank + WRONG_FACTOR - (0.5 if constant else 0.0))

    def simplest(self, breaks: Iterable[Break | None]) -> Fit | None:
        """The simplest break that explains everything that is left."""
        for b in sorted((b for b in breaks if b), key=lambda b: b.rank)[:MOST_RUNS]:
            fit = self.verify(b)
            if fit and fit.leaves == self.left:
                return fit
        return None

    def pairs(self, trials: list[Trial]) -> Fit | None:
        """Two breaks whose changes add up to what is missing."""
        d = self.directions
        unique: dict[tuple[int, bytes], Trial] = {}
        for b, sketch in sorted(trials, key=lambda trial: trial[0].rank):
            if (b.rank < SLIP + 0.9 or b.tag) and np.isfinite(sketch).all() and np.any(np.abs(sketch) > 3 * d.slack):
                unique.setdefault((b.tag, np.round(sketch / d.slack).tobytes()), (b, sketch))
        some = list(unique.values())[:4000]
        if len(some) < 2:
            return None
        sketches = np.stack([sketch for _, sketch in some])
        # On a line: the partner is next to what the first of a pair leaves unexplained.
        weights = np.random.default_rng(1).normal(size=d.count) / d.slack
        values, wanted, reach = sketches @ weights, d.target @ weights, 3 * math.sqrt(d.count)
        order = np.argsort(values)
        low, high = (np.searchsorted(values[order], wanted - values + r) for r in (-reach, reach))
        found = [
            (some[i][0].rank + some[j][0].rank, i, j)
            for i in range(len(some))
            for j in order[low[i] : high[i]]
            if i < j
            and some[i][0].tag == some[j][0].tag
            and np.all(np.abs(sketches[i] + sketches[j] - d.target) <= 2 * d.slack)
        ]
        for _, i, j in sorted(found)[:MOST_RUNS]:
            fit = self.verify(some[i][0], some[j][0])
            if fit and fit.leaves == self.left:
                return fit
        return None

    def pairs_in_series(self, trials: list[Trial]) -> Fit | None:
        """A break and another one upstream of it: the second works on what the first has changed."""
        if len(self.graph.nodes) > MOST_NODES_FOR_SERIES:
            return None
        try:
            for b in sorted((b for b, _ in trials if b.rank < SIMPLE), key=lambda b: b.rank):
                self.look((b,))
                self.directions.aim(self.truth, self.missing, self.left)
                upstream = [s for s in self.mistakes.sites if self.graph.reaches(s.target, b.changes[0].target)]
                for second, sketch in self.single(upstream):
                    if second.rank <= SIMPLE + 0.5 and self.directions.fits(sketch):
                        fit = self.verify(b, second)
                        if fit and fit.leaves == self.left:
                            return fit
            return None
        finally:
            self.look(())
            self.directions.aim(self.truth, self.missing, self.left)

    # ------------------------------------------------------------ what is said

    def operand(self, b: Break) -> int:
        """The operand of a break's node whose gradient it changes."""
        return next((k for k, v in enumerate(b.node.ins) if v == b.changes[0].target), 0) if b.node else 0

    def finding(self, fit: Fit) -> Finding:
        """The fit in words."""
        first = fit.breaks[0]
        texts = [f"only in {b.scope}: {b.says()}" if b.scope else b.says() for b in fit.breaks]
        text = texts[0]
        if fit.factor != 1:
            text = self.wrong_factor(first, 1 - fit.factor)
        elif len(texts) > 1 and first.scope:
            text = f"only in {' and '.join(b.scope for b in fit.breaks)}: {first.says()}"
        elif len(texts) > 1:
            text = "two mistakes together: " + "; and ".join(f"({i}) {text}" for i, text in enumerate(texts, 1))
        source = next((b.node.place.source for b in fit.breaks if b.node), "")
        leaves = tuple(self.evidence.input_paths[i] for i in sorted(fit.leaves))
        return Finding(first.kind if fit.factor == 1 else "factor", text, leaves, EXACT, source or None)

    def wrong_factor(self, b: Break, factor: float) -> str:
        words = Words(self.graph, b.node, self.operand(b)) if b.node else None
        constant = words.constant_factor(factor) if words and factor > 0 else ""
        named = factor_words(self.graph, factor) or f"{factor:.6g} times too large"
        return constant or f"{words.path() if words else 'the incoming gradient'} is {named}"


def _largest(x) -> float:
    return float(np.max(np.abs(x), initial=0.0))
