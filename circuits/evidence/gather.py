"""What is told of a circuit beside its faithfulness: how sure its edges are, and what was missed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from ...edges.effects.bounds import Bound
from ...edges.errors import InputError
from ...edges.model.transformer import Model
from ...edges.names.vocabulary import SEED
from ...edges.question.question import Question
from ...edges.runs.sweep import Resources
from ...edges.scores.edge_scores import EdgeScores
from ..record.effects_file import Verified
from ..result.evidence import BoundEvidence, StabilityEvidence
from .claims import ClaimOptions, tests_of
from .faithfulness import BESIDE, MIB_SIZES, localization_of, readings_of
from .knockouts import EVEN, SPARSE, completeness_of, minimality_of
from .stability import Stability, bootstrap, keep_above, keep_largest


def bound_evidence(bound: Bound, n_pairs: int, of_pairs: int) -> BoundEvidence:
    """The bound as evidence, found over the first ``n_pairs`` of so many pairs."""
    statement = bound.statement()
    # A bound knows the pairs it was given, not that there are more.
    if n_pairs < of_pairs:
        statement = statement.replace("over these pairs", f"over the first {n_pairs} pairs")
    return BoundEvidence(
        largest=bound.largest,
        confidence=bound.confidence,
        samples=bound.n_samples,
        probability=bound.probability,
        n_edges=len(bound.names),
        n_pairs=n_pairs,
        statement=statement,
    )


def stability_evidence(stability: Stability, rule: str) -> StabilityEvidence:
    """What a circuit says of resampling as a whole; what it tells of an edge is the edge's."""
    return StabilityEvidence(rule=rule, resamples=stability.n_resamples, jaccard=stability.jaccard)


def resample(
    verified: Sequence[Verified], kept: Collection[str], threshold: float | None, seed: int = SEED
) -> tuple[Stability, str] | None:
    """How the choice of edges, and their effects, vary over resampled pairs; and the rule, in words.

    With a threshold, a resampled circuit is what reaches it; else the largest effects, as many as
    it takes to have all verified edges of the circuit, which what else pruned it is not part of.
    None for a single pair, or where no verified edge is kept or none can be left out.
    """
    ranked = sorted(verified, key=lambda edge: -abs(edge.effect))
    places = [place for place, edge in enumerate(ranked, start=1) if edge.name in kept]
    if not places or len(verified[0].effects) < 2:
        return None
    # All that was verified would be kept in every resample: nothing could vary.
    if threshold is None and places[-1] == len(verified):
        return None
    if threshold is None:
        rule, described = keep_largest(places[-1]), f"the {places[-1]} largest effects"
    else:
        rule, described = keep_above(threshold), f"|effect| >= {threshold:g}"
    names = [edge.name for edge in verified]
    effects = torch.tensor([edge.effects for edge in verified], dtype=torch.float64)
    return bootstrap(names, effects, rule, seed=seed), described


def gather(
    model: Model,
    question: Question,
    kept: Collection[str],
    scores: EdgeScores,
    resources: Resources,
) -> dict[str, Any]:
    """Curves and other metrics, as plain JSON data."""
    of_curve = resources.within("curve")
    localization = localization_of(model, question, scores, MIB_SIZES, of_curve)
    questions = [question.about(metric=metric) for metric in BESIDE]
    readings = readings_of(model, questions, list(kept), resources.quiet())
    return {
        "curve": {"ranked_by": "scores of all edges", **localization.as_document()},
        "metrics": {
            reading.metric: {
                "full": reading.full,
                "empty": reading.empty,
                "circuit": reading.circuit,
            }
            for reading in readings
        },
    }


def gather_tests(
    model: Model, question: Question, kept: Collection[str], resources: Resources
) -> dict[str, Any]:
    """Tests of what the circuit claims, as plain JSON data; and why those not done were not."""
    sections: dict[str, Callable[[Resources], Any]] = {
        "completeness": lambda part: completeness_of(
            model, question, kept, EVEN, part
        ).as_document(),
        "minimality": lambda part: minimality_of(model, question, kept, SPARSE, part).as_document(),
        "tests": lambda part: [
            test.as_document() for test in tests_of(model, question, kept, ClaimOptions(), part)
        ],
    }
    done: dict[str, Any] = {}
    for name, measure in sections.items():
        try:
            done[name] = measure(resources.within(name))
        except InputError as error:  # such as a circuit of no edges, or of all
            done.setdefault("not_done", {})[name] = str(error)
    return done
