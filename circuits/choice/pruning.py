"""From measured edges to a circuit: which edges to keep, and by which rule the others went.

Every rule ends by taking out what lies on no path from ``input`` to ``logits``. Such edges carry
nothing, so the reduced model does the same with and without them. (Not so where a norm stands
behind attention, as in Gemma-2: there all heads of a layer share its scale.)
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import networkx
from scipy.special import stdtr

from ...edges.errors import InputError
from ...edges.names.graph import ModelGraph
from ...edges.names.vocabulary import PRUNE
from ..result.circuit import CircuitEdge, all_nodes

NOT_VERIFIED = "not verified"


BELOW_THRESHOLD = "effect below threshold"


NOT_SIGNIFICANT = "not significant"


BEYOND_SIZE = "beyond size"


NOT_NEEDED = "not needed for the target"


BELOW_TAU = "metric falls by less than tau without it"


ON_NO_PATH = "on no path from input to logits"


@dataclass(frozen=True)
class Pruned:
    """What a rule made of a model's edges.

    Attributes:
        kept: in the order they were given.
        removed: the name of every other edge, with the rule it was removed by.
    """

    kept: tuple[CircuitEdge, ...]
    removed: Mapping[str, str]

    def counts(self) -> dict[str, int]:
        """How many edges each rule removed."""
        return dict(Counter(self.removed.values()))


def check_rules(
    target: float | None = None,
    threshold: float | None = None,
    alpha: float | None = None,
    size: int | None = None,
    prune: str | None = None,
    acdc: float | None = None,
) -> None:
    """Raises InputError for a rule that cannot be pruned by; None is a rule not used."""
    if target is not None and not 0 < target <= 1:
        raise InputError(f"expected a faithfulness target above 0 and at most 1, got {target}")
    if threshold is not None and not 0 <= threshold < math.inf:
        raise InputError(f"expected a threshold >= 0, got {threshold}")
    if alpha is not None and not 0 < alpha < 1:
        raise InputError(f"expected a level alpha between 0 and 1, such as 0.05, got {alpha}")
    if size is not None and size < 1:
        raise InputError(f"expected a size of at least 1 edge, got {size}")
    if prune is not None and prune not in PRUNE:
        raise InputError(f"unknown way to prune {prune!r}; there are {', '.join(PRUNE)}")
    if acdc is not None and not 0 < acdc < math.inf:
        raise InputError(f"expected a tau of ACDC above 0, in units of the metric, got {acdc}")


def removing(shape: ModelGraph, edges: Sequence[CircuitEdge], removed: Mapping[str, str]) -> Pruned:
    """All ``edges`` but those ``removed`` (names, with rules), and but those left on no path."""
    rest = connected(shape, [edge for edge in edges if edge.name not in removed])
    kept = {edge.name for edge in rest}
    return Pruned(
        tuple(rest),
        {
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
    check_rules(threshold=threshold, alpha=alpha)
    removed = {edge.name: NOT_VERIFIED for edge in edges if not edge.verified}
    verified = [edge for edge in edges if edge.verified]
    if alpha is not None and verified:
        from scipy.stats import false_discovery_control  # takes half a second

        adjusted = false_discovery_control([p_value(edge) for edge in verified])
        for edge, p in zip(verified, adjusted, strict=True):
            if not p <= alpha:
                removed[edge.name] = NOT_SIGNIFICANT
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
    return 2 * float(stdtr(n_pairs - 1, -abs(effect / error)))


def prune_to_size(
    shape: ModelGraph, edges: Sequence[CircuitEdge], size: int, prune: str = "top"
) -> Pruned:
    """Keeps the ``size`` largest edges: the verified by |effect| first, then the rest by |score|.

    Args:
        prune: ``top`` takes the largest anywhere; ``greedy`` begins at the logits and goes on
            adding the largest edge into a node that is connected to them already, as
            ``apply_greedy`` of EAP-IG does (Hanna et al., 2024, arXiv 2403.17806).

    Raises:
        InputError: a size below 1, an unknown way to prune.
    """
    check_rules(size=size, prune=prune)
    largest_first = sorted(edges, key=lambda edge: (not edge.verified, -abs(edge.worth or 0.0)))
    if prune == "greedy":
        largest_first = list(_backwards(shape, largest_first))
    chosen = {edge.name for edge in largest_first[:size]}
    return removing(
        shape, edges, {edge.name: BEYOND_SIZE for edge in edges if edge.name not in chosen}
    )


def _backwards(shape: ModelGraph, ranked: Sequence[CircuitEdge]) -> Iterator[CircuitEdge]:
    """The edges in the order greedy search adds them; of those it may add, the first in rank."""
    into: dict[str, list[tuple[int, CircuitEdge]]] = {}
    for rank, edge in enumerate(ranked):
        into.setdefault(edge.target, []).append((rank, edge))
    waiting = into.pop("logits", [])  # sorted, which makes it a heap
    while waiting:
        _, edge = heapq.heappop(waiting)
        yield edge
        for node in _nodes_read_by(shape, edge.source):
            for item in into.pop(node, []):
                heapq.heappush(waiting, item)


def _nodes_read_by(shape: ModelGraph, writer: str) -> list[str]:
    """The nodes whose inputs a writer depends on: itself and, of a head, the keys it shares."""
    nodes = [writer]
    if ".h" in writer and shape.n_kv_heads != shape.n_heads:
        layer, _, head = writer[1:].partition(".h")
        nodes.append(f"a{layer}.kv{int(head) * shape.n_kv_heads // shape.n_heads}")
    return nodes


def prune_to_target(
    shape: ModelGraph,
    edges: Sequence[CircuitEdge],
    target: float,
    faithfulness: Callable[[Collection[str]], float],
) -> Pruned:
    """Keeps few verified edges that together reach a faithfulness of ``target``.

    First as many as it takes, largest |effect| first, to get halfway from the target to 1, or where
    they do not, to the target (see ``fewest``): what is to spare lets the next step choose. Then
    edges are left out one by one, if the rest still reaches the target: first those without which
    the circuit began with the most faithfulness left, over and over until none can be left out.
    What is left on no path goes with the edge that was left out.

    So no single edge of the result can be spared; a smaller circuit may exist all the same. If all
    verified edges fall short of the target, all are kept.

    Args:
        faithfulness: of a set of edges, by name.

    Raises:
        InputError: a target that is not above 0 and at most 1.
    """
    check_rules(target=target)
    removed = {edge.name: NOT_VERIFIED for edge in edges if not edge.verified}
    verified = [edge for edge in edges if edge.verified]
    largest_first = sorted(verified, key=lambda edge: -abs(edge.effect or 0.0))

    def alone(some: Sequence[CircuitEdge]) -> float:
        return faithfulness([edge.name for edge in connected(shape, some)])

    for aim in ((1 + target) / 2, target):
        first = fewest(largest_first, aim, alone)
        if alone(first) >= aim:
            removed |= {edge.name: NOT_NEEDED for edge in largest_first[len(first) :]}
            spared = _spared(shape, first, target, alone)
            removed |= {edge.name: NOT_NEEDED for edge in spared}
            break
    return removing(shape, edges, removed)


def fewest(
    ranked: Sequence[CircuitEdge],
    target: float,
    faithfulness: Callable[[Sequence[CircuitEdge]], float],
) -> Sequence[CircuitEdge]:
    """The fewest of the ranked edges, from the first, that reach the target; all if none do.

    Found by bisection, as if faithfulness grew with every edge; it mostly does.
    """
    too_few, enough = 0, len(ranked)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if faithfulness(ranked[:middle]) >= target:
            enough = middle
        else:
            too_few = middle
    return ranked[:enough]


def _spared(
    shape: ModelGraph,
    edges: Sequence[CircuitEdge],
    target: float,
    faithfulness: Callable[[Sequence[CircuitEdge]], float],
) -> list[CircuitEdge]:
    """What of ``edges`` (largest first) can be left out while the rest reaches the target."""

    def without(edge: CircuitEdge) -> list[CircuitEdge]:
        return connected(shape, [other for other in kept if other is not edge])

    kept = connected(shape, edges)
    left = {edge.name: faithfulness(without(edge)) for edge in kept}
    most_left_first = sorted(kept, key=lambda edge: (-left[edge.name], abs(edge.effect or 0.0)))
    spared: list[CircuitEdge] = []
    n_spared = -1
    while n_spared < len(spared):
        n_spared = len(spared)
        for edge in most_left_first:
            # An edge that is gone went by itself, or with one that its path led through.
            if edge in kept and faithfulness(rest := without(edge)) >= target:
                spared.append(edge)
                kept = rest
    return spared


def connected(shape: ModelGraph, edges: Sequence[CircuitEdge]) -> list[CircuitEdge]:
    """The edges that lie on a path from ``input`` to ``logits`` through these edges.

    A head passes on what its query, key or value reads; a key-value head that a group shares
    passes on to every query head of the group.
    """
    graph = networkx.DiGraph((edge.source, edge.target) for edge in edges)
    for node in all_nodes(shape):
        if node.kind == "kv" and node.head is not None and node.name in graph:
            heads = (f"a{node.layer}.h{head}" for head in shape.query_heads(node.head))
            graph.add_edges_from((node.name, head) for head in heads)
    if "input" not in graph or "logits" not in graph:
        return []
    from_input = networkx.descendants(graph, "input") | {"input"}
    to_logits = networkx.ancestors(graph, "logits") | {"logits"}
    return [edge for edge in edges if edge.source in from_input and edge.target in to_logits]
