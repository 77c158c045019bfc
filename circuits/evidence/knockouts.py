"""What knocking out parts of a circuit does: is anything missing from it, is anything too much?

Completeness and minimality of Wang et al. (2022, arXiv 2211.00593), for edges. F(X) is the metric
of the model reduced to the edges X, mean over pairs; M is the whole model, C the circuit.

Deviations from the paper: parts are edges, not heads; what is knocked out carries its value in the
corrupted run, not a mean over a reference distribution; K are single edges and random subsets,
neither whole classes of heads nor found by greedy search, so that both figures are lower bounds of
what a search over all K would find.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...edges.effects.reduced import run_edge_sets
from ...edges.errors import InputError
from ...edges.model.transformer import Model
from ...edges.names.vocabulary import METRIC, SEED
from ...edges.question.metrics import Metric
from ...edges.question.prompts import PromptPairs
from ...edges.runs.masks import edge_mask, full_mask
from .faithfulness import mean


@dataclass(frozen=True)
class Knockout:
    """A part K of the circuit, knocked out of the circuit and of the model.

    Attributes:
        removed: the edges K.
        circuit, model: F(C without K) and F(M without K), means over pairs, in units of the metric.
    """

    removed: tuple[str, ...]
    circuit: float
    model: float

    @property
    def incompleteness(self) -> float:
        """|F(C without K) - F(M without K)|: 0 where the circuit breaks as the model does."""
        return abs(self.circuit - self.model)


@dataclass(frozen=True)
class Completeness:
    """The result of ``completeness``.

    Attributes:
        full, empty: the metric of the model and of the corrupted run, to compare with.
        knockouts: the empty K first, then each edge alone, then random subsets.
    """

    knockouts: tuple[Knockout, ...]
    full: float
    empty: float
    n_pairs: int

    @property
    def largest(self) -> Knockout:
        """The knockout of the largest incompleteness."""
        return max(self.knockouts, key=lambda one: one.incompleteness)

    @property
    def mean(self) -> float:
        """The mean incompleteness, in units of the metric."""
        return sum(one.incompleteness for one in self.knockouts) / len(self.knockouts)

    def as_document(self) -> dict[str, Any]:
        """The result as plain JSON data."""
        return {
            "full": self.full,
            "empty": self.empty,
            "n_pairs": self.n_pairs,
            "largest": self.largest.incompleteness,
            "largest_without": list(self.largest.removed),
            "mean": self.mean,
            "knockouts": [
                {**asdict(one), "incompleteness": one.incompleteness} for one in self.knockouts
            ],
        }


@dataclass(frozen=True)
class EdgeNeed:
    """How much an edge of the circuit is needed, in units of the metric.

    Attributes:
        alone: |F(C) - F(C without the edge)|: its minimality score with K empty.
        score: the minimality score: the largest over the K tried.
        removed: the K that gave it.
    """

    edge: str
    alone: float
    score: float
    removed: tuple[str, ...]


@dataclass(frozen=True)
class Minimality:
    """The result of ``minimality``.

    Attributes:
        full, empty: the metric of the model and of the corrupted run, to compare with.
        edges: of the circuit, the least needed first.
    """

    edges: tuple[EdgeNeed, ...]
    full: float
    empty: float
    n_pairs: int

    @property
    def least(self) -> EdgeNeed:
        """The edge of the smallest score: the likeliest to be too much."""
        return self.edges[0]

    def as_document(self) -> dict[str, Any]:
        """The result as plain JSON data."""
        return {
            "full": self.full,
            "empty": self.empty,
            "n_pairs": self.n_pairs,
            "least": self.least.score,
            "least_needed": self.least.edge,
            "edges": [asdict(one) for one in self.edges],
        }


def completeness(
    model: Model,
    pairs: PromptPairs,
    edges: Collection[str],
    metric: str | Metric = METRIC,
    n_subsets: int = 20,
    seed: int = SEED,
    batch_size: int | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> Completeness:
    """|F(C without K) - F(M without K)| for parts K of the circuit; 0 throughout if it is complete.

    K is empty (what faithfulness asks), each edge alone, and ``n_subsets`` random subsets, drawn
    uniformly: each edge with probability 1/2. See the module for deviations from Wang et al.

    Args:
        edges: of the circuit; of none, only the empty K is left.
        n_subsets: how many random subsets; 0 for none.
        seed: of the subsets.

    Raises:
        InputError: a negative number of subsets. Else as ``run_edge_sets``.
    """
    graph, names = model.graph, model.graph.in_order(edges)
    subsets: list[tuple[str, ...]] = [(), *((name,) for name in names)]
    if names:
        subsets += _random_subsets(names, n_subsets, 0.5, f"completeness {seed}")
    circuit, whole = edge_mask(graph, names), full_mask(graph)
    removed = [edge_mask(graph, subset) for subset in subsets]
    sets = [kept & ~gone for kept in (circuit, whole) for gone in removed]
    (values,) = run_edge_sets(model, pairs, sets, [metric], batch_size, progress)
    means = values.circuit.cpu().double().mean(1).tolist()
    n_sets = len(subsets)
    knockouts = tuple(map(Knockout, subsets, means[:n_sets], means[n_sets:]))
    return Completeness(knockouts, mean(values.full), mean(values.empty), len(pairs))


def minimality(
    model: Model,
    pairs: PromptPairs,
    edges: Collection[str],
    metric: str | Metric = METRIC,
    n_subsets: int = 4,
    probability: float = 0.25,
    seed: int = SEED,
    batch_size: int | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> Minimality:
    """For each edge e, the largest |F(C without K and e) - F(C without K)| over the K tried.

    Wang et al. look for a K of its own for every node, which brings its part to light where others
    stand in for it (K being their class). Here the K are, for all edges alike, the empty set and
    ``n_subsets`` random subsets of the circuit, each less e, with every edge in it with
    ``probability``; the best is taken. A small score can thus mean that no K tried was the right
    one, and a maximum over more K is larger by chance. Costs about ``n_subsets + 1`` runs for each
    edge.

    Args:
        n_subsets: how many random subsets; 0 leaves the empty one alone.
        probability: a smaller one than a half, since where half a circuit is gone an edge seldom
            has anything left to carry.
        seed: of the subsets.

    Raises:
        InputError: no edges, a negative number of subsets, a probability outside (0, 1). Else as
            ``run_edge_sets``.
    """
    names = model.graph.in_order(edges)
    if not names:
        raise InputError("expected the edges of a circuit, got none, of which none can be too many")
    if not 0 < probability < 1:
        raise InputError(f"expected a probability between 0 and 1, got {probability}")
    drawn = [(), *_random_subsets(names, n_subsets, probability, f"minimality {seed}")]
    kept_sets: dict[frozenset[str], None] = {}
    ends: list[list[tuple[frozenset[str], frozenset[str]]]] = []
    for name in names:
        of_edge = [
            (frozenset(names) - set(removed) | {name}, frozenset(names) - set(removed) - {name})
            for removed in drawn
        ]
        ends.append(of_edge)
        kept_sets |= dict.fromkeys(one for both in of_edge for one in both)
    masks = [edge_mask(model.graph, kept) for kept in kept_sets]
    (values,) = run_edge_sets(model, pairs, masks, [metric], batch_size, progress)
    means = dict(zip(kept_sets, values.circuit.cpu().double().mean(1).tolist(), strict=True))
    needs: list[EdgeNeed] = []
    for name, of_edge in zip(names, ends, strict=True):
        scores = [abs(means[with_it] - means[without]) for with_it, without in of_edge]
        best = max(range(len(scores)), key=scores.__getitem__)
        removed = tuple(other for other in drawn[best] if other != name)
        needs.append(EdgeNeed(name, scores[0], scores[best], removed))
    needs.sort(key=lambda one: one.score)
    return Minimality(tuple(needs), mean(values.full), mean(values.empty), len(pairs))


def _random_subsets(
    names: Sequence[str], n_subsets: int, probability: float, seed: str
) -> list[tuple[str, ...]]:
    if n_subsets < 0:
        raise InputError(f"expected a number of random subsets, 0 or more, got {n_subsets}")
    rng = random.Random(seed)
    return [tuple(name for name in names if rng.random() < probability) for _ in range(n_subsets)]
