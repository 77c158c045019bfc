"""How much of a behaviour a circuit carries by itself, and how soon a ranking of edges does.

Names of the MIB benchmark (Mueller et al., 2025, arXiv 2504.13151) and the plain ones beside them:

- **CPR**, circuit performance ratio: the area under the faithfulness curve; higher is better.
- **CMD**, circuit-model distance: the area between the faithfulness curve and 1; 0 is best.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ...edges.effects.reduced import values_of_edges, values_of_sets
from ...edges.effects.reduced_runs import ReducedRuns
from ...edges.errors import InputError, WiremapWarning
from ...edges.model.transformer import Model
from ...edges.names.graph import Edge, ModelGraph
from ...edges.names.vocabulary import METRIC
from ...edges.question.metrics import Metric
from ...edges.question.prompts import PromptPairs
from ...edges.question.question import Question
from ...edges.runs.masks import (
    EdgeList,
    EdgeSet,
    as_mask,
    edge_places,
    full_mask,
    live_mask,
    places_mask,
)
from ...edges.runs.sweep import Report, Resources, silent
from ...edges.scores.edge_scores import EdgeScores
from ..result.circuit import Faithfulness

MIB_SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The fractions of a model's edges at which MIB evaluates a ranking."""


BESIDE = ("kl", "accuracy")
"""Metrics that a circuit's evaluation tells beside its own."""


def evaluate(
    model: Model,
    pairs: PromptPairs,
    edges: EdgeSet,
    *,
    metric: str | Metric = METRIC,
    batch_size: int | None = None,
    progress: Report = silent,
) -> Faithfulness:
    """Runs the model reduced to ``edges``, everything outside patched with the corrupted run.

    faithfulness = (m(circuit) - m(empty)) / (m(full) - m(empty)), each m a mean over the pairs
    before the ratio is taken (as in MIB, Mueller et al., 2025, arXiv 2504.13151).

    Args and errors as for ``wiremap.edges.effects.reduced.run_edges``; no edges at all are a
    ``WiremapWarning``. Besides

    Raises:
        InputError: the metric is the same with and without all edges, so there is no ratio.
    """
    question = Question(pairs=pairs, metric=metric)
    resources = Resources(batch_size=batch_size, report=progress)
    return faithfulness_of(model, question, edges, resources)


def faithfulness_of(
    model: Model, question: Question, edges: EdgeSet, resources: Resources
) -> Faithfulness:
    """Runs the model reduced to ``edges``; see ``evaluate``."""
    edges = as_mask(model.graph, edges)
    if not bool(edges.any()):
        warnings.warn(
            "the circuit has no edges: what it carries is the corrupted run, a faithfulness of 0; "
            "keep more edges",
            WiremapWarning,
            stacklevel=3,
        )
    values = values_of_edges(model, question, edges, resources)
    full, empty, circuit = mean(values.full), mean(values.empty), mean(values.circuit)
    check_gap(full, empty)
    return Faithfulness(full, empty, circuit, len(question.pairs))


def mean(values: Float[Tensor, "pair"]) -> float:
    """Mean over pairs, summed in float64."""
    return values.cpu().double().mean().item()


def check_gap(full: float, empty: float) -> None:
    """Raises InputError if the metric is the same on the clean and on the corrupted prompts."""
    if full == empty:
        raise InputError(
            f"the metric is {full:.4g} on the clean and on the corrupted prompts alike, so "
            "there is nothing to be faithful to; use prompts that differ in the behaviour"
        )


@dataclass(frozen=True)
class Reading:
    """A metric of the model, of the corrupted run and of the circuit.

    Attributes:
        full, empty, circuit: means over pairs: all edges (the clean run), none (the corrupted run),
            these.
        standard_errors: of the three, in that order, over pairs; None for a single pair.
    """

    metric: str
    full: float
    empty: float
    circuit: float
    standard_errors: tuple[float, float, float] | None


def read_metrics(
    model: Model,
    pairs: PromptPairs,
    edges: EdgeSet,
    *,
    metrics: Sequence[str] = BESIDE,
    batch_size: int | None = None,
    progress: Report = silent,
) -> list[Reading]:
    """Several metrics of the model, the corrupted run and the circuit, all from the same runs.

    ``kl`` is minus the divergence from the clean run in nats, so 0 for the model itself;
    ``accuracy`` the share of pairs whose most likely token is an answer.

    Args and errors as for ``wiremap.edges.effects.reduced.run_edge_sets``.
    """
    questions = [Question(pairs=pairs, metric=metric) for metric in metrics]
    resources = Resources(batch_size=batch_size, report=progress)
    return readings_of(model, questions, edges, resources)


def readings_of(
    model: Model, questions: Sequence[Question], edges: EdgeSet, resources: Resources
) -> list[Reading]:
    """What ``read_metrics`` gives, for questions that differ in their metric alone."""
    readings: list[Reading] = []
    of_metrics = values_of_sets(model, questions, [edges], resources)
    for question, values in zip(questions, of_metrics, strict=True):
        n_pairs = len(question.pairs)
        # [run pair], the runs being full, empty, circuit; one circuit was asked for.
        table = torch.stack([values.full, values.empty, values.circuit[0]]).cpu().double()
        full, empty, circuit = table.mean(1).tolist()
        errors = None
        if n_pairs > 1:
            of_full, of_empty, of_circuit = (table.std(1) / math.sqrt(n_pairs)).tolist()
            errors = (of_full, of_empty, of_circuit)
        readings.append(Reading(question.metric_name, full, empty, circuit, errors))
    return readings


@dataclass(frozen=True)
class CurvePoint:
    """A ranking cut off at one size.

    Attributes:
        fraction: of the model's edges.
        asked: edges taken: int(fraction * edges in the model), or all that the ranking has.
        kept: of these, edges on a path of them from ``input`` to ``logits``.
        faithfulness: of the model reduced to these; see ``evaluate``.
    """

    fraction: float
    asked: int
    kept: int
    faithfulness: float


@dataclass(frozen=True)
class Curve:
    """Faithfulness by circuit size, for one ranking of edges.

    Attributes:
        full, empty: the metric of the model and of the corrupted run, means over pairs.
        n_edges: of the model.
    """

    points: tuple[CurvePoint, ...]
    full: float
    empty: float
    n_pairs: int
    n_edges: int

    @property
    def area(self) -> float:
        """Area under the curve: trapezoids of f over the fraction asked, linear.

        From the smallest to the largest fraction, with no point at 0: at MIB's sizes a curve that
        is 1 throughout has the area 0.999. Values of f above 1 are not cut off.
        """
        return self._area(lambda faithfulness: faithfulness)

    @property
    def distance(self) -> float:
        """Area between the curve and 1: trapezoids of |1 - f|, as ``area``; 0 is best."""
        return self._area(lambda faithfulness: abs(1 - faithfulness))

    @property
    def average(self) -> float:
        """Mean of f over the points."""
        return math.fsum(point.faithfulness for point in self.points) / len(self.points)

    def _area(self, height: Callable[[float], float]) -> float:
        return math.fsum(
            (right.fraction - left.fraction)
            * (height(left.faithfulness) + height(right.faithfulness))
            / 2
            for left, right in pairwise(self.points)
        )

    def as_document(self) -> dict[str, Any]:
        """The curve as plain JSON data."""
        return {
            "full": self.full,
            "empty": self.empty,
            "n_pairs": self.n_pairs,
            "edges_in_model": self.n_edges,
            "area_under_the_faithfulness_curve": self.area,
            "area_between_the_faithfulness_curve_and_1": self.distance,
            "average_faithfulness": self.average,
            "points": [asdict(point) for point in self.points],
        }


@dataclass(frozen=True)
class Localization:
    """A table of scores as MIB judges it.

    Attributes:
        signed: the curve of the edges ranked by score, largest first.
        absolute: that of the edges ranked by |score|.
    """

    signed: Curve
    absolute: Curve

    @property
    def cpr(self) -> float:
        """MIB's circuit performance ratio: area under the curve of the signed ranking."""
        return self.signed.area

    @property
    def cmd(self) -> float:
        """MIB's circuit-model distance: area between the curve of the absolute ranking and 1."""
        return self.absolute.distance

    def as_document(self) -> dict[str, Any]:
        """Both curves and MIB's two figures as plain JSON data."""
        return {
            "cpr": self.cpr,
            "cmd": self.cmd,
            "signed": self.signed.as_document(),
            "absolute": self.absolute.as_document(),
        }


def curve(
    model: Model,
    pairs: PromptPairs,
    ranking: EdgeList,
    *,
    metric: str | Metric = METRIC,
    sizes: Sequence[float] = MIB_SIZES,
    batch_size: int | None = None,
    progress: Report = silent,
) -> Curve:
    """Faithfulness of the best edges of a ranking, at growing fractions of the model's edges.

    At fraction p the ``int(p * n_edges)`` best edges are taken and those of them kept that lie on a
    path from ``input`` to ``logits`` (MIB's ``apply_topn`` with ``prune``); everything else is
    patched with the corrupted run. f as in ``evaluate``. At fraction 1 all edges of the model are
    kept, and f is 1. All sizes share the clean and the corrupted runs.

    Deviations from MIB: prompts of different lengths are run apart, not filled up; key-value heads
    that query heads share have one key and one value reader, unless the model was made with
    ``kv="per-query"``; and how equally ranked edges follow one another is the ranking's.

    Args:
        ranking: names of edges, or their places (``EdgeScores.ranking``), best first. A ranking of fewer edges than are asked for is taken
            whole.
        sizes: fractions above 0 and up to 1, growing.

    Raises:
        InputError: an empty ranking, an edge twice in it, sizes that cannot be used, the metric the
            same with and without all edges. Else as ``run_edge_sets``.
    """
    question = Question(pairs=pairs, metric=metric)
    resources = Resources(batch_size=batch_size, report=progress)
    (only,) = curves_of(model, question, [ranking], sizes, resources)
    return only


def curves_of(
    model: Model,
    question: Question,
    rankings: Sequence[EdgeList],
    sizes: Sequence[float],
    resources: Resources,
) -> list[Curve]:
    """The curve of each ranking, as ``curve``; all share the clean and the corrupted runs."""
    sizes = _check_sizes(sizes)
    graph, n_pairs = model.graph, len(question.pairs)
    places = [edge_places(graph, ranking) for ranking in rankings]
    # Cuts of all rankings go into one sweep, [ranking * size], and are parted again at the end.
    cuts = [cut for ranking in places for cut in _cuts(graph, ranking, sizes)]
    masks = [live_mask(graph, mask) for _, mask in cuts]
    # One after the other, each computing what it can change: faster on large models than as a batch.
    with ReducedRuns(model, question, resources.quiet()) as runs:
        full, empty = runs.full.mean().item(), runs.empty.mean().item()
        check_gap(full, empty)
        means: list[float] = []
        for mask in masks:
            means.append(runs.values(mask).mean().item())
            resources.report("run circuits", n_pairs, n_pairs * len(masks))
    points = [
        CurvePoint(fraction, asked, int(mask.sum()), (value - empty) / (full - empty))
        # Lists: the sizes over and over, once for each ranking.
        for fraction, (asked, _), mask, value in zip(
            sizes * len(rankings), cuts, masks, means, strict=True
        )
    ]
    starts = range(0, len(points), len(sizes))
    return [
        Curve(tuple(points[start : start + len(sizes)]), full, empty, n_pairs, graph.n_edges)
        for start in starts
    ]


def localize(
    model: Model,
    pairs: PromptPairs,
    scores: EdgeScores | Mapping[str, float] | Iterable[tuple[str, float]],
    *,
    metric: str | Metric = METRIC,
    sizes: Sequence[float] = MIB_SIZES,
    batch_size: int | None = None,
    progress: Report = silent,
) -> Localization:
    """CPR and CMD of scored edges, as MIB: see ``curve`` and ``Localization``.

    Scores that are unsigned rankings (GradDrop's) give the same ranking twice.

    Args:
        scores: a table of all edges, or some by name: positive carries the behaviour.

    Raises:
        InputError: a score that is not finite. Else as ``curve``.
    """
    question = Question(pairs=pairs, metric=metric)
    resources = Resources(batch_size=batch_size, report=progress)
    return localization_of(model, question, scores, sizes, resources)


def localization_of(
    model: Model,
    question: Question,
    scores: EdgeScores | Mapping[str, float] | Iterable[tuple[str, float]],
    sizes: Sequence[float],
    resources: Resources,
) -> Localization:
    """CPR and CMD of scored edges; see ``localize``."""
    if isinstance(scores, EdgeScores):
        places, values = scores.ranking()
    else:
        # A mapping, or pairs of a name and a score: dict takes either.
        scores = dict(scores)
        places = edge_places(model.graph, list(scores))
        values = torch.tensor(list(scores.values()), dtype=torch.float64)
    strange = (~values.isfinite()).nonzero().flatten().tolist()
    if strange:
        score = values[strange[0]].item()
        name = model.graph.edge_name(Edge(*places[strange[0]].tolist()))
        raise InputError(f"expected finite scores to rank by, got {score} for {name}")
    # Stable: edges of equal scores keep the order they came in.
    # [edge end] by the order of [edge].
    rankings = [
        places[worth.argsort(descending=True, stable=True)] for worth in (values, values.abs())
    ]
    signed, absolute = curves_of(model, question, rankings, sizes, resources)
    return Localization(signed, absolute)


def _check_sizes(sizes: Sequence[float]) -> list[float]:
    fractions = list(sizes)
    # A set and sorted: what is unchanged by both grows strictly.
    in_range = all(0 < size <= 1 for size in fractions)
    if not fractions or not in_range or fractions != sorted(set(fractions)):
        raise InputError(
            f"expected growing fractions of the edges, above 0 and at most 1, got {fractions}"
        )
    return fractions


def _cuts(
    graph: ModelGraph, ranking: Int64[Tensor, "edge end"], sizes: Sequence[float]
) -> list[tuple[int, Bool[Tensor, "writer reader"]]]:
    """Of each size, how many edges of the ranking are taken, and which."""
    if not len(ranking):
        raise InputError("expected a ranking of edges, got none; score the edges first")
    # A mask holds an edge once, however often it is ranked.
    if int(places_mask(graph, ranking).sum()) < len(ranking):
        raise InputError("expected each edge once in a ranking; some are named twice")
    cuts: list[tuple[int, Bool[Tensor, "writer reader"]]] = []
    for size in sizes:
        # int cuts off, as MIB's does.
        n_edges = graph.n_edges if size == 1 else int(size * graph.n_edges)
        # All edges are all of them, whatever the ranking leaves out.
        mask = full_mask(graph) if size == 1 else places_mask(graph, ranking[:n_edges])
        cuts.append((int(mask.sum()), mask))
    return cuts
