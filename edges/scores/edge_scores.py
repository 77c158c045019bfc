"""Scores of edges: a gradient rule times a reader rule, every edge at once.

Edge attribution patching (Syed et al., 2023, arXiv 2310.10348) is the linear reader:

    score(u->v) = (u_clean - u_corrupted) . d metric / d (input of v)

The exact reader computes v anew and goes on from its output by the gradient (see ``readers``); where
the gradient is taken is the gradient rule's business (see ``gradients``):

                   linear                      exact-attention
    clean          EAP                         AtP with the QK fix, on edges
    graddrop       AtP with GradDrop           AtP* on edges
    integrated     EAP-IG (2403.17806)
    relevance      RelP (2508.21258), the default

Scores are summed over positions, averaged over pairs, in units of the metric. The sign follows the
effect they estimate: positive carries the behaviour (EAP as published has the opposite sign). With
the linear reader and a signed rule a writer's outgoing edge scores sum to its node score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from ..errors import InputError, WiremapError, name_rows
from ..model.transformer import Model
from ..names.graph import ModelGraph
from ..names.vocabulary import (
    DIRECTION,
    EDGE_AGGREGATE,
    EDGE_AGGREGATES,
    METRIC,
    READER,
    READERS,
    SCHEDULE,
    STEPS,
    SUMMED,
)
from ..question.metrics import Metric, Targets, resolve_metric
from ..question.prompts import PairBatch, PromptPairs
from ..question.spans import Labels, position_labels
from ..runs.masks import existing_edges
from ..runs.memory import BatchSize, available_bytes
from ..runs.sweep import trace_size
from ..runs.trace import BothRuns, first_nonfinite
from ..runs.writes import WRITES, Writes
from .exact import OUTPUTS, REACTIONS, OutputGradients, exact_reader
from .linear import INPUTS, linear_scores
from .rules import (
    GradientRule,
    Gradients,
    Pass,
    check_depends,
    recommended_gradient,
    resolve_gradient,
)


@dataclass(frozen=True, eq=False)
class EdgeScores:
    """Estimated effects of all edges, mean over pairs, in units of the metric.

    Attributes:
        scores: summed over positions; nan where no edge exists; rows and columns in the order of
            ``graph.writers`` and ``graph.readers``.
        per_pair: the same for each pair, if asked for.
        by_position: the same for each position (or span), if asked for.
        positions: the names of the positions.
        unsigned: a ranking, not estimates of effects (GradDrop).
        gradient, reader: how they were made.
        exact: which edges the exact reader was asked about, if not all or none.
    """

    graph: ModelGraph
    scores: Float32[Tensor, "writer reader"]
    per_pair: Float32[Tensor, "pair writer reader"] | None = None
    by_position: Float32[Tensor, "position writer reader"] | None = None
    positions: tuple[str, ...] = ()
    unsigned: bool = False
    gradient: str = "clean"
    reader: str = READER
    exact: Bool[Tensor, "writer reader"] | None = None

    def top(self, n: int | None = None, aggregate: str = EDGE_AGGREGATE) -> list[tuple[str, float]]:
        """The ``n`` largest by magnitude (all by default), as (edge name, score).

        Args:
            aggregate: a name in ``EDGE_AGGREGATES``; ``sum-of-abs`` needs scores by position.
        """
        edges = list(self.graph.edges())
        rows, columns = torch.tensor(edges).T
        scores = self.aggregated(aggregate).cpu()[rows, columns]
        order = scores.abs().argsort(descending=True, stable=True)[:n].tolist()
        return [(self.graph.edge_name(edges[index]), scores[index].item()) for index in order]

    def aggregated(self, aggregate: str) -> Float32[Tensor, "writer reader"]:
        """One number for each edge; see ``EDGE_AGGREGATES``."""
        if aggregate not in EDGE_AGGREGATES:
            raise InputError(
                f"unknown aggregate {aggregate!r}; there are {', '.join(EDGE_AGGREGATES)}"
            )
        if aggregate == "sum":
            return self.scores
        if self.by_position is None:
            raise InputError(
                "aggregate sum-of-abs needs scores by position (--positions each or spans, "
                'positions="each" or "spans")'
            )
        return self.by_position.abs().sum(0)

    def top_by_position(self, n: int | None = None) -> list[tuple[str, float]]:
        """The ``n`` largest by magnitude, as (edge name @ position, score)."""
        if self.by_position is None:
            raise InputError("expected scores by position; ask for positions each or spans")
        edges = list(self.graph.edges())
        rows, columns = torch.tensor(edges).T
        scores = self.by_position.cpu()[:, rows, columns].flatten()
        order = scores.abs().argsort(descending=True, stable=True)[:n].tolist()
        names = [self.graph.edge_name(edge) for edge in edges]
        return [
            (f"{names[i % len(edges)]} @{self.positions[i // len(edges)]}", scores[i].item())
            for i in order
        ]


def score_edges(
    model: Model,
    pairs: PromptPairs,
    metric: str | Metric = METRIC,
    gradient: str | GradientRule | None = None,
    direction: str = DIRECTION,
    steps: int = STEPS,
    schedule: str = SCHEDULE,
    reader: str = READER,
    candidates: int | None = None,
    positions: str = SUMMED,
    per_pair: bool = False,
    batch_size: int | None = None,
    memory_limit: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> EdgeScores:
    """Estimates of the effects of all edges at once; see the module for what can be combined.

    Args:
        metric: a name in ``METRICS`` or a function ``(logits, targets) -> [row]``.
        gradient: a name in ``GRADIENTS``, or a rule of your own; None takes
            ``recommended_gradient``: relevance, or for mixtures of experts gim.
        direction: ``noising`` edits the clean run, ``denoising`` the corrupted one.
        steps, schedule: of ``integrated``; schedule ``left`` is EAP-IG's.
        reader: ``linear``, ``exact``, or ``exact-attention``: queries and keys through the exact
            softmax, all else linear (the QK fix alone).
        candidates: ask the exact reader about so many edges, the best by the linear one.
        positions: ``sum``; ``each`` scores every token position too, for which all prompts must be
            of one length; ``spans`` the named spans of the pairs' ``spans`` column. With the exact
            reader positions are patched one at a time, and a key's scores are then of that key
            alone (their sum is not the effect of all keys together).
        per_pair: keep the scores of each pair too (pairs x writers x readers numbers).
        batch_size: pairs at once; None takes what fits into memory.
        memory_limit: bytes to work with; None takes 1 GiB on a CPU, 40 % of what is free on a GPU.
        progress: called with the number of pairs finished since the last call.

    Costs, with F a forward and B a backward pass: 2F + 1B for one gradient, 2F + k(F + B) for k
    steps, 2F + (L + 1) / 2 B for GradDrop, and a matrix product per layer and gradient. The exact
    reader evaluates a reader for every edge, about one forward pass for every two writers.

    Raises:
        InputError: unknown option values, pairs the model cannot run, a metric that is constant.
        WiremapError: activations or gradients that are not finite; the module and pairs are named.
    """
    gradient = gradient or recommended_gradient(metric, model)
    rule = resolve_gradient(gradient, direction, metric, steps, schedule)
    rule.check(model)
    check_reader(reader, candidates, model.graph)
    chosen_metric = resolve_metric(metric, pairs.wrong.shape[1] > 0)
    labels = position_labels(pairs, positions)
    model.check_pairs(pairs)

    def score(reader: str, wanted: Tensor | None) -> EdgeScores:
        scorer = _Scorer(
            model, pairs, chosen_metric, rule, direction, reader, wanted, labels, per_pair,
            memory_limit,
        )  # fmt: skip
        return scorer.run(batch_size, progress)

    if candidates is None:
        return score(reader, None)
    linear = score("linear", None)
    best = [model.graph.edge(name) for name, _ in linear.top(candidates)]
    wanted = torch.zeros_like(linear.scores, dtype=torch.bool)
    rows, columns = torch.tensor(best, device=wanted.device).T
    wanted[rows, columns] = True
    return _overlaid(linear, score(reader, wanted), wanted)


def check_reader(reader: str, candidates: int | None, graph: ModelGraph) -> None:
    """Raises InputError for a reader rule that is not known, or candidates that cannot be."""
    if reader not in READERS:
        raise InputError(f"unknown reader {reader!r}; there are {', '.join(READERS)}")
    if candidates is None:
        return
    if reader == "linear":
        raise InputError(
            'candidates are for the exact reader (--reader exact, reader="exact"); the '
            "linear one scores all edges"
        )
    if not 1 <= candidates <= graph.n_edges:
        raise InputError(
            f"expected between 1 and {graph.n_edges:,} candidates, the edges of the model, got "
            f"{candidates:,}; leave them out to ask about all"
        )


def _overlaid(linear: EdgeScores, exact: EdgeScores, wanted: Tensor) -> EdgeScores:
    """The exact scores where they were asked for, the linear ones elsewhere."""

    def both(one: Tensor | None, other: Tensor | None) -> Tensor | None:
        return None if one is None or other is None else torch.where(wanted, one, other)

    return replace(
        exact,
        scores=torch.where(wanted, exact.scores, linear.scores),
        per_pair=both(exact.per_pair, linear.per_pair),
        by_position=both(exact.by_position, linear.by_position),
        exact=wanted,
    )


class _Scorer:
    """One way of scoring, over all batches."""

    def __init__(
        self,
        model: Model,
        pairs: PromptPairs,
        metric: Metric,
        rule: GradientRule,
        direction: str,
        reader: str,
        wanted: Bool[Tensor, "writer reader"] | None,
        labels: Labels,
        per_pair: bool,
        memory_limit: int | None,
    ) -> None:
        self.model, self.pairs, self.metric, self.rule = model, pairs, metric, rule
        self.direction, self.reader, self.labels = direction, reader, labels
        self.per_pair, self.memory_limit = per_pair, memory_limit
        self.exists = existing_edges(model.graph).to(model.device)
        self.wanted = self.exists if wanted is None else wanted
        self.chunk_bytes = available_bytes(model.device, memory_limit) // 64
        n_layers = model.graph.n_layers
        within = [reader.kind != "logits" for reader in model.graph.readers]
        self.divisor = torch.tensor(
            [rule.divisor(n_layers, inside) for inside in within], device=model.device
        )
        self.depends = False

    def run(self, batch_size: int | None, progress: Callable[[int], Any] | None) -> EdgeScores:
        """The scores of all pairs."""
        model, n_pairs = self.model, len(self.pairs)
        shape = self.exists.shape
        by_position = torch.zeros(len(self.labels.names), *shape, device=model.device)
        table = torch.zeros(n_pairs, *shape, device=model.device) if self.per_pair else None
        with model.borrowed():
            for bucket in self.pairs.batches():
                size = trace_size(model, bucket, memory_limit=self.memory_limit)
                self.n_rows = size.rows
                if batch_size is not None:
                    size = BatchSize(batch_size)
                for batch, scores in size.map(bucket, self._batch):
                    for part in scores:
                        by_position += part
                    if table is not None:
                        table[batch.rows] = scores.sum(1)
                    if progress is not None:
                        progress(len(batch))
        check_depends(self.depends)
        by_position.div_(n_pairs).masked_fill_(~self.exists, torch.nan)
        return EdgeScores(
            model.graph,
            by_position[0] if self.labels.summed else by_position.sum(0),
            None if table is None else table.masked_fill_(~self.exists, torch.nan),
            None if self.labels.summed else by_position,
            () if self.labels.summed else self.labels.names,
            self.rule.unsigned,
            self.rule.name,
            self.reader,
        )

    def _batch(self, batch: PairBatch) -> Float32[Tensor, "pair_or_all position writer reader"]:
        """A batch's scores by position; of each pair, if pairs count by themselves."""
        by_pair = self.per_pair or self.rule.unsigned
        groups, n_groups = self.labels.groups(batch, by_pair)
        self.groups, self.n_groups = groups.to(self.model.device), n_groups
        linear, exact = self.reader != "exact", self.reader != "linear"
        by = (*(INPUTS if linear else ()), *(OUTPUTS if exact else ()))
        keep = (*WRITES, *(REACTIONS if exact else ()))
        runs = BothRuns(self.model, batch, self.metric, keep)
        totals = torch.zeros(n_groups, *self.exists.shape, device=self.model.device)
        outputs = OutputGradients()
        difference: Writes | None = None
        for one in self.rule.passes(runs, by, self.n_rows):
            found = {layer: (gradients, times) for layer, gradients, times in one.layers}
            if exact:
                outputs.add(found, one.n_runs, self.rule.unsigned)
            if linear:
                difference = difference or Writes.difference(runs.at("clean"), runs.at("corrupted"))
                self._add_linear(totals, difference, one, found)
            del one, found
        self.depends |= runs.depends
        if exact:
            self._replace_exact(totals, runs, outputs)
        totals /= self.divisor
        self._refuse_nonfinite(totals, batch)
        return totals.view(-1, len(self.labels.names), *self.exists.shape)

    def _add_linear(
        self,
        totals: Float32[Tensor, "group writer reader"],
        difference: Writes,
        one: Pass,
        found: dict[int, tuple[Gradients, int]],
    ) -> None:
        layers = {layer: gradients for layer, (gradients, _) in found.items()}
        times = torch.tensor(
            [
                found[reader.layer][1] if reader.layer in found else 0
                for reader in self.model.graph.readers
            ],
            device=totals.device,
        )
        for group in range(self.n_groups):
            tokens = (self.groups.flatten() == group).nonzero().flatten()
            table = torch.zeros_like(totals[group]) if self.rule.unsigned else totals[group]
            linear_scores(
                self.model,
                difference,
                one.tape.kept.resid_pre,
                layers,
                one.n_runs,
                one.frozen,
                tokens,
                self.chunk_bytes,
                table,
            )
            if self.rule.unsigned:
                totals[group] += table.abs_() * times

    @torch.no_grad()
    def _replace_exact(
        self,
        totals: Float32[Tensor, "group writer reader"],
        runs: BothRuns,
        gradients: OutputGradients,
    ) -> None:
        """The scores of the exact reader, in place of what stands there."""
        reader = exact_reader(
            runs,
            self.direction,
            gradients,
            not self.labels.summed,
            self.wanted & self.exists,
            4 * self.chunk_bytes,
        )
        for writers, column, estimates in reader.reactions(self.reader == "exact-attention"):
            grouped = self._grouped(estimates)
            layer = self.model.graph.readers[column].layer
            times = torch.tensor(gradients.times(layer), device=grouped.device)[:, None, None]
            found = (times * (grouped.abs() if self.rule.unsigned else grouped)).sum(0)
            totals[:, writers, column] = found.T
        if self.reader == "exact-attention":
            return
        targets = Targets.of(runs.batch, runs.at("clean").logits)
        for writers, effects in reader.effects_on_logits(self.metric, targets):
            at_last = effects.new_zeros(1, *effects.shape, self.groups.shape[1])
            at_last[0, ..., -1] = effects
            (found,) = self._grouped(at_last)
            found = found.abs() if self.rule.unsigned else found
            # A constant of the rule's mean, whatever the gradients.
            totals[:, writers, -1] = found.T * self.divisor[-1]

    def _grouped(
        self, estimates: Float32[Tensor, "variant writer pair pos"]
    ) -> Float32[Tensor, "variant writer group"]:
        """Summed over the tokens of each group."""
        summed = estimates.new_zeros(*estimates.shape[:2], self.n_groups)
        return summed.index_add_(2, self.groups.flatten(), estimates.flatten(2))

    def _refuse_nonfinite(self, totals: Tensor, batch: PairBatch) -> None:
        """Raises WiremapError, with the module and the pairs, if a score is not finite."""
        if bool(torch.isfinite(totals).all()):
            return
        where, rows = None, batch.rows.tolist()
        for index in range(len(batch)):
            where = first_nonfinite(self.model, batch[index : index + 1])
            if where is not None:
                rows = [rows[index]]
                break
        where = where or f"{self.rule.name} gradient"
        raise WiremapError(
            f"NaN or infinite values in the {where}, "
            + name_rows(
                rows, "try float32 (--dtype float32, dtype=torch.float32) or another metric"
            )
        )
