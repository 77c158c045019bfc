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
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any

from ...edges.effects.reduced import values_of_sets
from ...edges.errors import InputError
from ...edges.model.transformer import Model
from ...edges.names.vocabulary import METRIC, SEED
from ...edges.question.metrics import Metric
from ...edges.question.prompts import PromptPairs
from ...edges.question.question import Question
from ...edges.runs.masks import edge_places, full_mask, places_mask
from ...edges.runs.sweep import Report, Resources, silent
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


@dataclass(frozen=True, kw_only=True)
class Subsets:
    """Random subsets of a circuit's edges: how many, with what each edge is in one, and the seed."""

    n: int
    probability: float
    seed: int = SEED

    def of(self, n_edges: int, purpose: str) -> list[tuple[int, ...]]:
        """The subsets of so many edges, by their numbers, drawn anew for each purpose."""
        if self.n < 0:
            raise InputError(f"expected a number of random subsets, 0 or more, got {self.n}")
        rng = random.Random(f"{purpose} {self.seed}")
        return [
            tuple(edge for edge in range(n_edges) if rng.random() < self.probability)
            for _ in range(self.n)
        ]


EVEN = Subsets(n=20, probability=0.5)
"""Those of ``completeness``: every subset is as likely as any other."""


SPARSE = Subsets(n=4, probability=0.25)
"""Those of ``minimality``."""


def completeness(
    model: Model,
    pairs: PromptPairs,
    edges: Collection[str],
    *,
    metric: str | Metric = METRIC,
    n_subsets: int = 20,
    seed: int = SEED,
    batch_size: int | None = None,
    progress: Report = silent,
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
    question = Question(pairs=pairs, metric=metric)
    drawn = replace(EVEN, n=n_subsets, seed=seed)
    resources = Resources(batch_size=batch_size, report=progress)
    return completeness_of(model, question, edges, drawn, resources)


def completeness_of(
    model: Model,
    question: Question,
    edges: Collection[str],
    drawn: Subsets,
    resources: Resources,
) -> Completeness:
    """What knocking parts out of the circuit and the model does; see ``completeness``."""
    graph, names = model.graph, model.graph.in_order(edges)
    places = edge_places(graph, names)
    subsets: list[tuple[int, ...]] = [(), *((edge,) for edge in range(len(names)))]
    if names:
        subsets += drawn.of(len(names), "completeness")
    circuit, whole = places_mask(graph, places), full_mask(graph)
    removed = [places_mask(graph, places[list(subset)]) for subset in subsets]
    # [2 * subset]: the circuit without each K, then the whole model without each.
    sets = [kept & ~less for kept in (circuit, whole) for less in removed]
    (values,) = values_of_sets(model, [question], sets, resources)
    # [2 * subset, pair] -> [2 * subset]
    means = values.circuit.cpu().double().mean(1).tolist()
    n_sets = len(subsets)
    gone = [tuple(names[edge] for edge in subset) for subset in subsets]
    knockouts = tuple(map(Knockout, gone, means[:n_sets], means[n_sets:]))
    return Completeness(knockouts, mean(values.full), mean(values.empty), len(question.pairs))


def minimality(
    model: Model,
    pairs: PromptPairs,
    edges: Collection[str],
    *,
    metric: str | Metric = METRIC,
    n_subsets: int = 4,
    probability: float = 0.25,
    seed: int = SEED,
    batch_size: int | None = None,
    progress: Report = silent,
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
    question = Question(pairs=pairs, metric=metric)
    drawn = Subsets(n=n_subsets, probability=probability, seed=seed)
    resources = Resources(batch_size=batch_size, report=progress)
    return minimality_of(model, question, edges, drawn, resources)


def minimality_of(
    model: Model,
    question: Question,
    edges: Collection[str],
    drawn: Subsets,
    resources: Resources,
) -> Minimality:
    """How much each edge of the circuit is needed; see ``minimality``."""
    names = model.graph.in_order(edges)
    if not names:
        raise InputError("expected the edges of a circuit, got none, of which none can be too many")
    if not 0 < drawn.probability < 1:
        raise InputError(f"expected a probability between 0 and 1, got {drawn.probability}")
    subsets = [(), *drawn.of(len(names), "minimality")]
    every = frozenset(range(len(names)))
    # Two sets for each edge and K, one with the edge and one without. Many are the same for
    # several edges, such as the whole circuit for each: every set is run once. A dict is a set
    # that keeps its order, to which the values are matched.
    kept_sets: dict[frozenset[int], None] = {}
    ends: list[list[tuple[frozenset[int], frozenset[int]]]] = []
    for edge in range(len(names)):
        ends_of_edge = [
            # `-` binds before `|`: the edge is put back even if K has it.
            (every - set(removed) | {edge}, every - set(removed) - {edge})
            for removed in subsets
        ]
        ends.append(ends_of_edge)
        kept_sets |= dict.fromkeys(kept for both in ends_of_edge for kept in both)
    places = edge_places(model.graph, names)
    masks = [places_mask(model.graph, places[list(kept)]) for kept in kept_sets]
    (values,) = values_of_sets(model, [question], masks, resources)
    means = dict(zip(kept_sets, values.circuit.cpu().double().mean(1).tolist(), strict=True))
    needs: list[EdgeNeed] = []
    for edge, ends_of_edge in enumerate(ends):
        scores = [abs(means[with_it] - means[without]) for with_it, without in ends_of_edge]
        best = max(range(len(scores)), key=scores.__getitem__)
        # Each K counts less the edge itself, which stays out of what is told.
        removed = tuple(names[member] for member in subsets[best] if member != edge)
        needs.append(EdgeNeed(names[edge], scores[0], scores[best], removed))
    needs.sort(key=lambda one: one.score)
    return Minimality(tuple(needs), mean(values.full), mean(values.empty), len(question.pairs))
