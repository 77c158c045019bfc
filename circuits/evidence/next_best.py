"""A bound on the edges next in rank to those verified, and how much time what was missed is given.

The subset bound (``edges.effects.bounds``) over all edges of a large model patches thousands of them
at once, which is far from the intact model and tells nothing of a single edge. Over the few hundred
next in rank, with about ``AT_ONCE`` patched at once, its width is some times their effects. What lies
beyond is told of by a random sample alone (``missed``).

A bound needs subsets enough for every edge to be in a few. Where a subset takes as long as several
edges, as in models of many layers, the same edges are verified one by one in less time, and exactly:
no bound is planned then.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...edges.effects.bounds import BoundOptions, TooWide, bound_below, enough_samples
from ...edges.errors import InputError
from ...edges.model.transformer import Model
from ...edges.names.vocabulary import SEED
from ...edges.question.question import Question
from ...edges.runs.masks import EdgeList
from ...edges.runs.sweep import Resources
from ..result.evidence import BoundEvidence
from .gather import bound_evidence

NEXT = 300
"""So many edges, next in rank, are bounded."""


AT_ONCE = 20
"""So many of them a subset has on average: few, to stay near the intact model."""


SUBSETS = 300
"""Twenty with each edge: about what the quantile of Student's t stops shrinking at."""


SUBSET_COST = 7.0
"""Seconds that a subset takes for each that an edge takes to verify: as on a model of 30 layers.

A subset runs all of the model once more, an edge the layers after its reader and few positions.
"""


SHARE_OF_SUBSETS = 1 / 3
"""Of the time for what was missed; the sample has the rest."""


@dataclass(frozen=True)
class MissedPlan:
    """What there is time for.

    Attributes:
        n_sample: edges to sample.
        n_subsets: to patch for a bound; 0 for none.
        no_bound: in words, why there is to be none.
    """

    n_sample: int
    n_subsets: int
    no_bound: str | None = None


def plan_missed(
    seconds_per_edge: float, seconds: float, n_rest: int, *, subset_cost: float = SUBSET_COST
) -> MissedPlan:
    """How many edges to sample and how many subsets to patch in so many seconds.

    Args:
        seconds_per_edge: that an edge takes to verify, over the same pairs.
        seconds: in all.
        n_rest: edges that were not verified.
        subset_cost: of a subset, in edges.

    Raises:
        InputError: a time that an edge takes, or the cost of a subset, which is not above 0.
    """
    if not (seconds_per_edge > 0 and subset_cost > 0):
        raise InputError(
            f"expected seconds per edge and a subset's cost above 0, got {seconds_per_edge} and "
            f"{subset_cost}"
        )
    in_edges = max(seconds, 0.0) / seconds_per_edge
    in_time = int(SHARE_OF_SUBSETS * in_edges / subset_cost)
    # As many edges as are bounded can be verified in the time of so many subsets.
    worth = int(min(NEXT, n_rest) / subset_cost)
    n_subsets = min(SUBSETS, in_time, worth)
    no_bound = _no_bound(n_rest, in_time, worth)
    if no_bound is not None:
        n_subsets = 0
    n_sample = int(in_edges - n_subsets * subset_cost)
    return MissedPlan(min(n_sample, n_rest), n_subsets, no_bound)


def _no_bound(n_rest: int, in_time: int, worth: int) -> str | None:
    """Why there is to be no bound with so many subsets, if so."""
    if not n_rest:
        return "all edges were verified"
    needed = next_options(n_rest).samples
    if worth < needed:
        return (
            f"the {needed} random subsets that a bound on the {min(NEXT, n_rest)} edges next in rank "
            "needs take longer than to verify these one by one"
        )
    return _too_few(in_time, needed) if in_time < needed else None


def _too_few(n_subsets: int, needed: int) -> str:
    return (
        f"the budget allows for {n_subsets} random subsets, and a bound needs {needed}; verify more "
        "(--budget, budget=)"
    )


def next_options(n_rest: int, seed: int = SEED) -> BoundOptions:
    """How the next in rank of so many edges are bounded, by as few subsets as allow a bound."""
    n_items = min(NEXT, n_rest)
    # Of fewer edges no more than a tenth at once, or subsets would be far from the intact model.
    probability = min(AT_ONCE / n_items, 0.1)
    samples = enough_samples(n_items, probability, seed)
    return BoundOptions(samples=samples, probability=probability, seed=seed, items="edges")


def bound_next(
    model: Model,
    question: Question,
    rest: EdgeList,
    resources: Resources,
    *,
    n_subsets: int,
    largest: float,
) -> BoundEvidence | str:
    """A bound on the ``NEXT`` edges next in rank, or in words why there is none.

    Args:
        rest: the edges that were not verified, best score first.
        n_subsets: to patch; too few for a bound are none.
        largest: what is known already, such as the largest verified |effect|, in units of the
            metric: no bound is given that is not below.
    """
    if not len(rest):
        return "all edges were verified"
    options = next_options(len(rest))
    if n_subsets < options.samples:
        return _too_few(n_subsets, options.samples)
    options = replace(options, samples=n_subsets)
    bound = bound_below(model, question, rest[:NEXT], options, resources, largest=largest)
    if isinstance(bound, TooWide):
        return bound.reason()
    if not bound.largest < largest:
        return f"it came to {bound.largest:.3g} {bound.unit}, and {largest:.3g} is known already"
    n_pairs = len(question.pairs)
    # Edges beyond those are not bounded, so the words must not say that of all.
    which = "unverified" if len(rest) <= NEXT else "next-best unverified"
    return bound_evidence(replace(bound, which=which), n_pairs, n_pairs)
