"""From measured edges to a circuit: which edges to keep, and by which rule the others went.

Every rule ends by taking out what lies on no path from ``input`` to ``logits``. Such edges carry
nothing, so the reduced model does the same with and without them. (Not so where a norm stands
behind attention, as in Gemma-2: there all heads of a layer share its scale.)
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from scipy.special import stdtr

from ...edges.errors import InputError
from ...edges.names.graph import ROOT, Edge, ModelGraph
from ..result.circuit import CircuitEdge
from .rules import Rules

NOT_VERIFIED = "not verified"


BELOW_THRESHOLD = "effect below threshold"


NOT_SIGNIFICANT = "not significant"


BEYOND_SIZE = "beyond size"


NOT_NEEDED = "not needed for the target"


BELOW_TAU = "metric falls by less than tau without it"


ON_NO_PATH = "on no path from input to logits"


TOLERANCE = 1e-5
"""How far below a target a faithfulness may stay and still reach it. Rounding in float32 moves a
faithfulness by a few millionths, differently on every processor; a target of 1, which all edges
together reach exactly in theory, would be decided by it."""


@dataclass(frozen=True)
class Pruned:
    """What a rule made of a model's edges.

    Attributes:
        kept: in the order they were given.
        removed: the name of every other edge, with the rule it was removed by.
        beyond: how many more of the model's edges a rule removed, which were not given.
    """

    kept: tuple[CircuitEdge, ...]
    removed: Mapping[str, str]
    beyond: Mapping[str, int] = field(default_factory=dict[str, int])

    def counts(self) -> dict[str, int]:
        """How many edges each rule removed."""
        counts = Counter(self.removed.values())
        counts.update(self.beyond)
        return {rule: count for rule, count in counts.items() if count}


def reaches(faithfulness: float, target: float) -> bool:
    """Whether a faithfulness (or a share recovered) is at least the target, less ``TOLERANCE``."""
    return faithfulness >= target - TOLERANCE


def removing(shape: ModelGraph, edges: Sequence[CircuitEdge], removed: Mapping[str, str]) -> Pruned:
    """All ``edges`` but those ``removed`` (names, with rules), and but those left on no path."""
    rest = connected(shape, [edge for edge in edges if edge.name not in removed])
    kept = {edge.name for edge in rest}
    return Pruned(
        tuple(rest),
        {
            # A rule that took an edge is told even where the edge would have lost its path, too.
            name: removed.get(name, ON_NO_PATH)
            for name in (edge.name for edge in edges)
            if name not in kept
        },
    )


def prune_by_effect(
    shape: ModelGraph,
    edges: Sequence[CircuitEdge],
    threshold: float = 0.0,
    alpha: float | None = None,
) -> Pruned:
    """Keeps verified edges with |effect| >= ``threshold`` that are significant at ``alpha``.

    Significant are the effects that a two-sided t test over pairs (see ``p_value``) tells from 0
    when the false discovery rate among all verified edges is held at ``alpha`` (Benjamini and
    Hochberg, 1995, https://doi.org/10.1111/j.2517-6161.1995.tb02031.x): of n p-values, those up to
    the largest p_(k) <= k / n alpha. That holds for independent effects and for positively
    dependent ones; effects of edges measured on the same pairs are dependent in ways not known, so
    the rate is nominal. It says nothing about the edges that were not verified.

    Args:
        threshold: in units of the metric.
        alpha: None asks for no significance.

    Raises:
        InputError: a threshold or level that is none; ``alpha`` with effects of a single pair.
    """
    Rules(threshold=threshold, alpha=alpha).check()
    removed = {edge.name: NOT_VERIFIED for edge in edges if not edge.verified}
    verified = [edge for edge in edges if edge.verified]
    if alpha is not None and verified:
        from scipy.stats import false_discovery_control  # takes half a second

        adjusted = false_discovery_control([p_value(edge) for edge in verified])
        for edge, p in zip(verified, adjusted, strict=True):
            if not p <= alpha:
                removed[edge.name] = NOT_SIGNIFICANT
    # After the test, so that an edge that fails both is told as below the threshold.
    for edge in verified:
        if abs(edge.effect or 0.0) < threshold:
            removed[edge.name] = BELOW_THRESHOLD
    return removing(shape, edges, removed)


def p_value(edge: CircuitEdge) -> float:
    """Of the two-sided one-sample t test that the mean of the per-pair effects is 0.

    t = effect / standard error, with n_pairs - 1 degrees of freedom. Effects that are the same on
    every pair have p = 0, or 1 where they are 0.

    Raises:
        InputError: an edge that was not verified, or on one pair only.
    """
    effect, error, n_pairs = edge.effect, edge.standard_error, edge.n_pairs
    if effect is None or error is None or n_pairs is None:
        raise InputError(
            f"expected the effect of {edge.name} on at least 2 pairs for a t test, got "
            f"{n_pairs or 0}; verify it on more pairs, or leave alpha out"
        )
    if error == 0:
        return 0.0 if effect else 1.0
    # The lower tail twice: 1 less the upper one would round the smallest p-values to 0.
    return 2 * float(stdtr(n_pairs - 1, -abs(effect / error)))


def prune_to_size(
    shape: ModelGraph, edges: Sequence[CircuitEdge], size: int, prune: str = "top"
) -> Pruned:
    """Keeps the ``size`` largest edges: the verified by |effect| first, then the rest by |score|.

    Of edges of the same size, those given first.

    Args:
        prune: ``top`` takes the largest anywhere; ``greedy`` begins at the logits and goes on
            adding the largest edge into a node that is connected to them already, as
            ``apply_greedy`` of EAP-IG does (Hanna et al., 2024, arXiv 2403.17806).

    Raises:
        InputError: a size below 1, an unknown way to prune.
    """
    Rules(size=size, prune=prune).check()
    # An estimate never displaces a measurement, however large it is.
    largest_first = sorted(edges, key=lambda edge: (not edge.verified, -abs(edge.worth or 0.0)))
    if prune == "greedy":
        largest_first = list(_backwards(shape, largest_first))
    chosen = {edge.name for edge in largest_first[:size]}
    return removing(
        shape, edges, {edge.name: BEYOND_SIZE for edge in edges if edge.name not in chosen}
    )


def _backwards(shape: ModelGraph, ranked: Sequence[CircuitEdge]) -> Iterator[CircuitEdge]:
    """The edges in the order greedy search adds them; of those it may add, the first in rank."""
    places = [shape.edge(edge.name) for edge in ranked]
    # A reader gives its edges to the heap once, when a node that reads by it is first reached:
    # a key or value that a group shares is come by from each of the group's heads.
    into: dict[int, list[int]] = {}  # reader -> ranks of the edges into it
    for rank, place in enumerate(places):
        into.setdefault(place.reader, []).append(rank)
    waiting: list[int] = []
    node = ROOT
    while True:
        for reader in shape.read_by(node):
            for rank in into.pop(reader, []):
                heapq.heappush(waiting, rank)
        if not waiting:
            return
        rank = heapq.heappop(waiting)
        yield ranked[rank]
        node = places[rank].writer


def prune_to_target(
    shape: ModelGraph,
    edges: Sequence[CircuitEdge],
    target: float,
    faithfulness: Callable[[Sequence[Edge]], float],
) -> Pruned:
    """Keeps few verified edges that together reach a faithfulness of ``target``.

    First as many as it takes, largest |effect| first, to get halfway from the target to 1, or where
    they do not, to the target (see ``fewest``): what is to spare lets the next step choose. Then
    edges are left out one by one, if the rest still reaches the target: first those without which
    the circuit began with the most faithfulness left, over and over until none can be left out.
    What is left on no path goes with the edge that was left out.

    To reach a faithfulness is to fall short of it by at most ``TOLERANCE``; what is left without
    one edge or without another is the same if it rounds to the same multiple of ``TOLERANCE``, and
    then the edge of the smaller |effect| is tried first. Of effects of the same size, the edge given
    first counts as the larger.

    So no single edge of the result can be spared; a smaller circuit may exist all the same. If all
    verified edges fall short of the target, all are kept.

    Args:
        faithfulness: of a set of edges, by their places.

    Raises:
        InputError: a target that is not above 0 and at most 1.
    """
    Rules(target=target).check()
    removed = {edge.name: NOT_VERIFIED for edge in edges if not edge.verified}
    verified = [edge for edge in edges if edge.verified]
    verified.sort(key=lambda edge: -abs(edge.effect or 0.0))
    by_place = {shape.edge(edge.name): edge for edge in verified}
    largest_first = list(by_place)

    def alone(places: Sequence[Edge]) -> float:
        # Measured as it would be kept: edges on no path go in the end, and where a norm stands
        # behind attention they are not without effect.
        return faithfulness(shape.live(places))

    def effect(place: Edge) -> float:
        return abs(by_place[place].effect or 0.0)

    for aim in ((1 + target) / 2, target):
        first = fewest(largest_first, aim, alone)
        if reaches(alone(first), aim):
            spared = _spared(shape, first, target, effect, alone)
            # Of `first`, those on no path are in neither: `removing` tells them as such.
            for place in (*largest_first[len(first) :], *spared):
                removed[by_place[place].name] = NOT_NEEDED
            break
    return removing(shape, edges, removed)


def fewest(
    ranked: Sequence[Edge], target: float, faithfulness: Callable[[Sequence[Edge]], float]
) -> Sequence[Edge]:
    """The fewest of the ranked edges, from the first, that reach the target; all if none do.

    See ``reaches``. Found by bisection, as if faithfulness grew with every edge; it mostly does.
    """
    too_few, enough = 0, len(ranked)
    # Invariant: `too_few` edges fall short; `enough` reach the target, or are all there are.
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if reaches(faithfulness(ranked[:middle]), target):
            enough = middle
        else:
            too_few = middle
    return ranked[:enough]


def _spared(
    shape: ModelGraph,
    edges: Sequence[Edge],
    target: float,
    effect: Callable[[Edge], float],
    faithfulness: Callable[[Sequence[Edge]], float],
) -> list[Edge]:
    """What of ``edges`` (largest ``effect`` first) can be left out while the rest reaches the target."""

    def without(edge: Edge) -> list[Edge]:
        return shape.live([other for other in kept if other != edge])

    kept = shape.live(edges)
    # Rounded, so that digits that differ between processors do not decide the order.
    left = {edge: round(faithfulness(without(edge)) / TOLERANCE) for edge in kept}
    most_left_first = sorted(kept, key=lambda edge: (-left[edge], effect(edge)))
    spared: list[Edge] = []
    n_spared = -1
    # Over again until a round spares none: what could not go alone may go after another, since
    # faithfulness does not grow with every edge.
    while n_spared < len(spared):
        n_spared = len(spared)
        for edge in most_left_first:
            # An edge that is gone went by itself, or with one that its path led through.
            if edge in kept and reaches(faithfulness(rest := without(edge)), target):
                spared.append(edge)
                kept = rest
    return spared


def connected(shape: ModelGraph, edges: Sequence[CircuitEdge]) -> list[CircuitEdge]:
    """The edges that lie on a path from ``input`` to ``logits`` through these; see ``live_rows``."""
    places = [shape.edge(edge.name) for edge in edges]
    live = set(shape.live(places))
    return [edge for edge, place in zip(edges, places, strict=True) if place in live]
