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
from ..question.metrics import Metric, resolve_metric
from ..question.prompts import PairBatch, PromptPairs
from ..question.spans import one_length
from ..runs.masks import existing_edges
from ..runs.memory import BatchSize, available_bytes
from ..runs.sweep import trace_size
from ..runs.trace import BothRuns
from ..runs.writes import WRITES
from .exact import OUTPUTS, REACTIONS, OutputGradients, exact_reader
from .rules import GradientRule, check_depends, recommended_gradient, resolve_gradient


@dataclass(frozen=True, eq=False)
class Crossings:
    """Estimated effects of edges by query and key position; mean over pairs, units of the metric."""

    edges: tuple[str, ...]
    scores: Float32[Tensor, "edge query key"]

    def top(self, n: int | None = None) -> list[tuple[str, float]]:
        """The ``n`` largest by magnitude, as (edge from key position to query position, score)."""
        flat = self.scores.cpu().flatten()
        order = flat.abs().argsort(descending=True, stable=True)[:n].tolist()
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
    metric: str | Metric = METRIC,
    gradient: str | GradientRule | None = None,
    direction: str = DIRECTION,
    steps: int = STEPS,
    schedule: str = SCHEDULE,
    batch_size: int | None = None,
    memory_limit: int | None = None,
) -> Crossings:
    """Scores of edges into keys and values by (query position, key position).

    Args:
        edges: names such as ``a0.h1->a2.h3<v>``; into keys and values only, each counts once.

    All else as ``score_edges``, with the exact reader.

    Raises:
        InputError: no edges or others, prompts of several lengths, graddrop (its absolute values
            would not sum to an edge's score). Else as ``score_edges``.
    """
    graph = model.graph
    if not edges:
        raise InputError("expected at least one edge into keys or values, got none")
    edges = list(dict.fromkeys(edges))
    found = [graph.edge(name) for name in edges]
    strange = [
        name
        for name, edge in zip(edges, found, strict=True)
        if graph.readers[edge.reader].kind not in ("k", "v")
    ]
    if strange:
        raise InputError(
            f"expected edges into keys or values, got {strange[0]}; all others are read and used at "
            'one position (--positions each, positions="each")'
        )
    gradient = gradient or recommended_gradient(metric, model)
    rule = resolve_gradient(gradient, direction, metric, steps, schedule)
    rule.check(model)
    if rule.unsigned:
        raise InputError(f"crossings need signed scores, which gradient {rule.name} has not")
    n_pos = one_length(pairs)
    chosen_metric = resolve_metric(metric, pairs.wrong.shape[1] > 0)
    model.check_pairs(pairs)
    wanted = torch.zeros_like(existing_edges(graph))
    wanted[tuple(torch.tensor(found).T)] = True
    place: dict[tuple[int, int], int] = {edge: index for index, edge in enumerate(found)}
    total = torch.zeros(len(edges), n_pos, n_pos, device=model.device)
    depends = False

    def scores(batch: PairBatch) -> Float32[Tensor, "edge query key"]:
        nonlocal depends
        runs = BothRuns(model, batch, chosen_metric, (*WRITES, *REACTIONS))
        gradients = OutputGradients()
        for one in rule.passes(runs, OUTPUTS, size_of_trace.rows):
            layers = {layer: (at, times) for layer, at, times in one.layers}
            gradients.add(layers, one.n_runs, rule.unsigned)
        depends |= runs.depends
        item_bytes = available_bytes(model.device, memory_limit) // (16 * n_pos)
        reader = exact_reader(runs, direction, gradients, True, wanted, item_bytes, crossing=True)
        part = torch.zeros_like(total)
        with torch.no_grad():
            for writers, column, estimates in reader.reactions():
                for writer, table in zip(writers, estimates[0].sum(1), strict=True):
                    part[place[writer, column]] = table
        return part

    with model.borrowed():
        (bucket,) = pairs.batches()
        size_of_trace = trace_size(model, bucket, memory_limit=memory_limit)
        for _, part in BatchSize(batch_size or size_of_trace.rows).map(bucket, scores):
            total += part
    check_depends(depends)
    return Crossings(tuple(edges), total / (len(pairs) * rule.divisor(graph.n_layers, True)))
