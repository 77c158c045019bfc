"""What is told of a circuit beside its faithfulness: how sure its edges are, and what was missed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch

from ...edges.effects.bounds import Bound, bound_unverified, enough_samples
from ...edges.errors import InputError
from ...edges.model.transformer import Model
from ...edges.names.vocabulary import SEED
from ...edges.question.prompts import PromptPairs
from ..record.effects_file import Verified
from .claims import run_tests
from .faithfulness import localize, read_metrics
from .knockouts import completeness, minimality
from .stability import Stability, bootstrap, keep_above, keep_largest
from .verification import BoundOptions

BOUND_PAIRS = 16
"""Over how many pairs, the first, what was not verified is bounded by default."""


BOUND_PROBABILITY = 0.1
"""Larger than usual (0.03), so that few subsets are enough for every edge to be in some of them."""


Report = Callable[[str, int, int], Any]


def bound_rest(
    model: Model,
    pairs: PromptPairs,
    rest: Sequence[str],
    metric: str,
    direction: str,
    batch_size: int | None,
    report: Report,
) -> dict[str, Any] | None:
    """A bound on the edges that were not verified, from as few subsets as allow one.

    Over the first ``BOUND_PAIRS`` pairs; None where all edges were verified. See ``bound_unverified``.
    """
    if not rest:
        return None
    some = pairs.take(range(min(BOUND_PAIRS, len(pairs))))
    n_samples = enough_samples(len(rest), BOUND_PROBABILITY)
    found = bound_unverified(
        model,
        some,
        rest,
        metric,
        direction,
        "edges",
        n_samples,
        BOUND_PROBABILITY,
        BoundOptions().confidence,
        batch_size=batch_size,
        progress=lambda done: report("bound the rest", done, n_samples * len(some)),
    )
    return bound_document(found, len(some), len(pairs))


def bound_document(bound: Bound, n_pairs: int, of_pairs: int) -> dict[str, Any]:
    """The bound as plain JSON data, found over the first ``n_pairs`` of so many pairs."""
    statement = bound.statement()
    if n_pairs < of_pairs:
        statement = statement.replace("over these pairs", f"over the first {n_pairs} pairs")
    return {
        "largest": bound.largest,
        "confidence": bound.confidence,
        "samples": bound.n_samples,
        "probability": bound.probability,
        "n_edges": len(bound.names),
        "n_pairs": n_pairs,
        "statement": statement,
    }


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
    pairs: PromptPairs,
    kept: Collection[str],
    scores: Sequence[tuple[str, float]],
    method: Mapping[str, Any],
    report: Report,
) -> dict[str, Any]:
    """Curves, other metrics and, if the method asks for ``tests``, tests: as plain JSON data."""
    metric, batch_size = method["metric"], method["batch_size"]

    def told(stage: str) -> Callable[[int, int], Any]:
        return lambda done, total: report(stage, done, total)

    found: dict[str, Any] = {
        "curve": {
            "ranked_by": "scores of all edges",
            **localize(
                model, pairs, scores, metric, batch_size=batch_size, progress=told("curve")
            ).as_document(),
        },
        "metrics": {
            one.metric: {"full": one.full, "empty": one.empty, "circuit": one.circuit}
            for one in read_metrics(model, pairs, list(kept), batch_size=batch_size)
        },
    }
    if method["tests"]:
        of = (model, pairs, list(kept), metric)
        sections: dict[str, Callable[[], Any]] = {
            "completeness": lambda: completeness(
                *of, batch_size=batch_size, progress=told("completeness")
            ).as_document(),
            "minimality": lambda: minimality(
                *of, batch_size=batch_size, progress=told("minimality")
            ).as_document(),
            "tests": lambda: [
                one.as_document()
                for one in run_tests(*of, batch_size=batch_size, progress=told("tests"))
            ],
        }
        for name, measure in sections.items():
            try:
                found[name] = measure()
            except InputError as error:  # such as a circuit of no edges, or of all
                found.setdefault("not_done", {})[name] = str(error)
    return found
