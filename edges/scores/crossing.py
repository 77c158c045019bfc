"""Edges into keys and values, split by where they are read and where the head uses them.

A key or value at one position serves the queries at all later ones. PEAP (Haklay et al., 2025,
arXiv 2502.04577) tells these crossings apart: how much of an edge goes from position s, where its
writer writes, to position t, where the head's output lands. Here by the exact reader, each key (or
value) patched alone; summed over queries this is its score by position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor

from ..errors import InputError
from ..model.transformer import Model
from ..names.vocabulary import DIRECTION, METRIC, SCHEDULE, STEPS
from ..question.metrics import Metric
from ..question.prompts import PairBatch, PromptPairs
from ..question.question import Question
from ..question.spans import one_length
from ..runs.masks import full_mask
from ..runs.sweep import Report, Resources, Turn, Work, silent, sweep, table
from ..runs.trace import BothRuns, cost_of_trace
from ..runs.writes import WRITES
from .exact import OUTPUTS, REACTIONS, ExactReader, OutputGradients, PositionOptions
from .rules.registry import recommended_gradient, resolve_gradient
from .rules.rule import GradientRule, check_depends


@dataclass(frozen=True, eq=False)
class Crossings:
    """Estimated effects of edges by query and key position; mean over pairs, units of the metric."""

    edges: tuple[str, ...]
    scores: Float32[Tensor, "edge query key"]

    def top(self, n: int | None = None) -> list[tuple[str, float]]:
        """The ``n`` largest by magnitude, as (edge from key position to query position, score)."""
        flat = self.scores.cpu().flatten()
        order = flat.abs().argsort(descending=True, stable=True)[:n].tolist()
        # A place in the flat table is (edge * n_pos + query) * n_pos + key.
        n_pos = self.scores.shape[1]
        return [
            (
                f"{self.edges[i // n_pos**2]} @{i % n_pos} to @{i // n_pos % n_pos}",
                flat[i].item(),
            )
            for i in order
        ]


def score_crossings(
    model: Model,
    pairs: PromptPairs,
    edges: Sequence[str],
    *,
    metric: str | Metric = METRIC,
    gradient: str | GradientRule | None = None,
    direction: str = DIRECTION,
    steps: int = STEPS,
    schedule: str = SCHEDULE,
    batch_size: int | None = None,
    memory_limit: int | None = None,
    progress: Report = silent,
) -> Crossings:
    """Scores of edges into keys and values by (query position, key position).

    Args:
        edges: names such as ``a0.h1->a2.h3<v>``; into keys and values only, each counts once.

    All else as ``score_edges``, with the exact reader.

    Raises:
        InputError: no edges or others, prompts of several lengths, graddrop (its absolute values
            would not sum to an edge's score). Else as ``score_edges``.
    """
    question = Question(pairs=pairs, metric=metric, direction=direction)
    gradient = gradient or recommended_gradient(metric)
    rule = resolve_gradient(gradient, direction, metric, steps, schedule)
    resources = Resources(batch_size=batch_size, memory_limit=memory_limit, report=progress)
    return crossing_scores(model, question, edges, rule, resources)


def crossing_scores(
    model: Model,
    question: Question,
    edges: Sequence[str],
    rule: GradientRule,
    resources: Resources,
) -> Crossings:
    """Scores of edges into keys and values by query and key; see ``score_crossings``."""
    edges, places = _into_keys_or_values(model, edges)
    rule.check(model)
    if rule.unsigned:
        raise InputError(f"crossings need signed scores, which gradient {rule.name} has not")
    n_pos = one_length(question.pairs)
    # By query and key an estimate has n_pos times the numbers that it has by position.
    item_bytes = resources.available(model) // (16 * n_pos)
    wanted = torch.zeros_like(full_mask(model.graph))
    # [edge end] -> a list of writers and one of readers, as an index wants them
    wanted[tuple(torch.tensor(list(places)).T)] = True
    total = table(model, len(edges), n_pos, n_pos)
    depends = False

    def scores(batch: PairBatch, turn: Turn) -> Float32[Tensor, "edge query key"]:
        nonlocal depends
        runs = BothRuns(model, batch, question.measure, (*WRITES, *REACTIONS))
        gradients = OutputGradients()
        for way in rule.passes(runs, OUTPUTS, turn.rows.rows):
            layers = {layer: (at, times) for layer, at, times in way.layers}
            gradients.add(layers, way.n_runs, rule.unsigned)
        depends |= runs.depends
        options = PositionOptions(each=True, crossing=True)
        reader = ExactReader(runs, question, gradients, options, item_bytes)
        part = torch.zeros_like(total)
        with torch.no_grad():
            for writers, column, estimates in reader.reactions(wanted):
                # [variant writer pair query key], of one variant, summed over pairs
                for writer, crossed in zip(writers, estimates[0].sum(1), strict=True):
                    part[places[writer, column]] = crossed
        return part

    work = Work(
        stage="score crossings",
        function=scores,
        collect=lambda batch, part: total.add_(part),
        cost=cost_of_trace,
        gradients=True,
    )
    sweep(model, question.pairs, work, resources)
    check_depends(depends)
    # The reactions were summed over pairs, and over all runs the rule takes gradients at.
    n_terms = len(question.pairs) * rule.divisor(model.graph.n_layers, within=True)
    return Crossings(tuple(edges), total / n_terms)


def _into_keys_or_values(
    model: Model, edges: Sequence[str]
) -> tuple[list[str], dict[tuple[int, int], int]]:
    """Each edge once, and its place by writer and reader. Raises InputError for other edges."""
    graph = model.graph
    if not edges:
        raise InputError("expected at least one edge into keys or values, got none")
    names = list(dict.fromkeys(edges))
    named = [graph.edge(name) for name in names]
    strange = [
        name
        for name, edge in zip(names, named, strict=True)
        if graph.readers[edge.reader].kind not in ("k", "v")
    ]
    if strange:
        raise InputError(
            f"expected edges into keys or values, got {strange[0]}; all others are read and used at "
            'one position (--positions each, positions="each")'
        )
    return names, {(edge.writer, edge.reader): place for place, edge in enumerate(named)}
