"""Scores of edges: a gradient rule times a reader rule, every edge at once.

Edge attribution patching (Syed et al., 2023, arXiv 2310.10348) is the linear reader:

    score(u->v) = (u_clean - u_corrupted) . d metric / d (input of v)

The exact reader computes v anew and goes on from its output by the gradient (see ``exact``); where
the gradient is taken is the gradient rule's business (see ``rules``):

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

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from ..errors import InputError, WiremapError, name_rows
from ..model.transformer import Model
from ..names.graph import Edge, ModelGraph
from ..names.vocabulary import (
    DIRECTION,
    EDGE_AGGREGATE,
    EDGE_AGGREGATES,
    METRIC,
    READER,
    SCHEDULE,
    STEPS,
    SUMMED,
)
from ..question.metrics import Metric, Targets
from ..question.prompts import PairBatch, PromptPairs
from ..question.question import Question
from ..question.spans import position_labels
from ..runs.masks import every_edge, full_mask, places_mask
from ..runs.sweep import Report, Resources, Turn, Work, silent, sweep, table
from ..runs.trace import BothRuns, cost_of_trace, first_nonfinite
from ..runs.writes import WRITES, Writes
from .exact import ExactReader, OutputGradients, PositionOptions
from .linear import ReaderGradients, linear_scores
from .reader_rules import READER_RULES
from .rules.registry import recommended_gradient, resolve_gradient
from .rules.rule import GradientRule, check_depends


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
        places, scores = self.ranking(aggregate)
        names = [self.graph.edge_name(Edge(*ends)) for ends in places[:n].tolist()]
        return list(zip(names, scores[:n].tolist(), strict=True))

    def ranking(
        self, aggregate: str = EDGE_AGGREGATE
    ) -> tuple[Int64[Tensor, "edge end"], Float32[Tensor, "edge"]]:
        """All edges, largest by magnitude first: where writer and reader stand, and the scores.

        Edges of equal magnitude stand in the order of computation. Args as for ``top``.
        """
        places = every_edge(self.graph)
        scores = self.aggregated(aggregate).cpu()[places[:, 0], places[:, 1]]
        order = scores.abs().argsort(descending=True, stable=True)
        return places[order], scores[order]

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
        places = every_edge(self.graph)
        scores = self.by_position.cpu()[:, places[:, 0], places[:, 1]].flatten()
        order = scores.abs().argsort(descending=True, stable=True)[:n]
        # The flat table is [position edge]: the rest is the edge, the quotient the position.
        edges = [self.graph.edge_name(Edge(*ends)) for ends in places[order % len(places)].tolist()]
        positions = [self.positions[place] for place in (order // len(places)).tolist()]
        names = [f"{edge} @{position}" for edge, position in zip(edges, positions, strict=True)]
        return list(zip(names, scores[order].tolist(), strict=True))


def score_edges(
    model: Model,
    pairs: PromptPairs,
    metric: str | Metric = METRIC,
    *,
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
    progress: Report = silent,
) -> EdgeScores:
    """Estimates of the effects of all edges at once; see the module for what can be combined.

    Args:
        metric: a name in ``METRICS`` or a function ``(logits, targets) -> [row]``.
        gradient: a name in ``GRADIENTS``, or a rule of your own; None takes
            ``recommended_gradient``: integrated, for ``kl`` corrupted.
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
        progress: called with (stage, pairs finished since the last call, pairs in all).

    Costs, with F a forward and B a backward pass: 2F + 1B for one gradient, 2F + k(F + B) for k
    steps, 2F + (L + 1) / 2 B for GradDrop, and a matrix product per layer and gradient. The exact
    reader evaluates a reader for every edge, about one forward pass for every two writers.

    Raises:
        InputError: unknown option values, pairs the model cannot run, a metric that is constant.
        WiremapError: activations or gradients that are not finite; the module and pairs are named.
    """
    question = Question(pairs=pairs, metric=metric, direction=direction)
    gradient = gradient or recommended_gradient(metric)
    rule = resolve_gradient(gradient, direction, metric, steps, schedule)
    options = EdgeOptions(
        reader=reader, candidates=candidates, positions=positions, per_pair=per_pair
    )
    resources = Resources(batch_size=batch_size, memory_limit=memory_limit, report=progress)
    return edge_scores(model, question, rule, options, resources)


@dataclass(frozen=True, kw_only=True)
class EdgeOptions:
    """How edges are read, and what is kept of it; see ``score_edges``."""

    reader: str = READER
    candidates: int | None = None
    positions: str = SUMMED
    per_pair: bool = False


def edge_scores(
    model: Model,
    question: Question,
    rule: GradientRule,
    options: EdgeOptions,
    resources: Resources,
) -> EdgeScores:
    """Scores of all edges by a gradient rule; see ``score_edges``."""
    rule.check(model)
    check_reader(options.reader, options.candidates, model.graph)
    scorer = _Scorer(model, question, rule, options, resources)
    every = scorer.exists
    if options.candidates is None:
        return scorer.scores(options.reader, every)
    linear = scorer.scores("linear", every)
    best = linear.ranking()[0][: options.candidates]
    wanted = places_mask(model.graph, best).to(every.device)
    return _overlaid(linear, scorer.scores(options.reader, wanted), wanted)


def check_reader(reader: str, candidates: int | None, graph: ModelGraph) -> None:
    """Raises InputError for a reader rule that is not known, or candidates that cannot be."""
    if reader not in READER_RULES:
        raise InputError(f"unknown reader {reader!r}; there are {', '.join(READER_RULES)}")
    if candidates is None:
        return
    if not READER_RULES[reader].exact:
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
        question: Question,
        rule: GradientRule,
        options: EdgeOptions,
        resources: Resources,
    ) -> None:
        self.model, self.question, self.rule = model, question, rule
        self.labels = position_labels(question.pairs, options.positions)
        self.per_pair, self.resources = options.per_pair, resources
        self.exists = full_mask(model.graph).to(model.device)
        self.chunk_bytes = resources.available(model) // 64
        n_layers = model.graph.n_layers
        # Some rules (GradDrop) take more gradients at the logits than within the blocks.
        within = [reader.kind != "logits" for reader in model.graph.readers]
        self.divisor = torch.tensor(
            [rule.divisor(n_layers, inside) for inside in within], device=model.device
        )

    def scores(self, reader: str, wanted: Bool[Tensor, "writer reader"]) -> EdgeScores:
        """The scores of all pairs.

        Args:
            wanted: edges to ask the exact reader about.
        """
        self.reader_rule = READER_RULES[reader]
        self.wanted, self.depends = wanted & self.exists, False
        model, n_pairs, shape = self.model, len(self.question.pairs), self.exists.shape
        by_position = table(model, len(self.labels.names), *shape)
        by_pair = table(model, n_pairs, *shape) if self.per_pair else None

        def collect(
            batch: PairBatch, scores: Float32[Tensor, "pair_or_all position writer reader"]
        ) -> None:
            for part in scores:
                by_position.add_(part)
            if by_pair is not None:
                by_pair[batch.rows] = scores.sum(1)

        work = Work(
            stage="score all edges",
            function=self._batch,
            collect=collect,
            cost=cost_of_trace,
            gradients=True,
        )
        sweep(model, self.question.pairs, work, self.resources)
        check_depends(self.depends)
        by_position.div_(n_pairs).masked_fill_(~self.exists, torch.nan)
        return EdgeScores(
            model.graph,
            by_position[0] if self.labels.summed else by_position.sum(0),
            None if by_pair is None else by_pair.masked_fill_(~self.exists, torch.nan),
            None if self.labels.summed else by_position,
            () if self.labels.summed else self.labels.names,
            self.rule.unsigned,
            self.rule.name,
            reader,
        )

    def _batch(
        self, batch: PairBatch, turn: Turn
    ) -> Float32[Tensor, "pair_or_all position writer reader"]:
        """A batch's scores by position; of each pair, if pairs count by themselves."""
        # Absolute values are each pair's own: summed over pairs first, they would cancel.
        by_pair = self.per_pair or self.rule.unsigned
        groups, n_groups = self.labels.groups(batch, by_pair)
        self.groups, self.n_groups = groups.to(self.model.device), n_groups
        linear, exact = self.reader_rule.linear, self.reader_rule.exact
        runs = BothRuns(
            self.model, batch, self.question.measure, (*WRITES, *self.reader_rule.keeps)
        )
        totals = table(self.model, n_groups, *self.exists.shape)
        outputs = OutputGradients()
        difference: Writes | None = None
        for way in self.rule.passes(runs, self.reader_rule.by, turn.rows.rows):
            # Gone through here to its end, and only once: layers come as they are computed.
            layers = {layer: (gradients, times) for layer, gradients, times in way.layers}
            if exact:
                outputs.add(layers, way.n_runs, self.rule.unsigned)
            if linear:
                difference = difference or Writes.difference(runs.at("clean"), runs.at("corrupted"))
                gradients = {layer: gradients for layer, (gradients, _) in layers.items()}
                times = {layer: times for layer, (_, times) in layers.items()}
                of_readers = ReaderGradients(self.model, way, gradients)
                self._add_linear(totals, difference, of_readers, times)
                del gradients, of_readers
            del way, layers  # so that a pass is not in memory while the next is made
        self.depends |= runs.depends
        if exact:
            self._replace_exact(totals, runs, outputs)
        totals /= self.divisor
        self._refuse_nonfinite(totals, batch)
        # [(pair label) writer reader] -> [pair label ...], or one in place of pairs if they are summed
        return totals.view(-1, len(self.labels.names), *self.exists.shape)

    def _add_linear(
        self,
        totals: Float32[Tensor, "group writer reader"],
        difference: Writes,
        gradients: ReaderGradients,
        times: dict[int, int],
    ) -> None:
        """Adds a pass's scores, those of a layer as often as ``times`` says."""
        of_readers = [times.get(reader.layer, 0) for reader in self.model.graph.readers]
        weights = torch.tensor(of_readers, device=totals.device)
        for group in range(self.n_groups):
            tokens = (self.groups.flatten() == group).nonzero().flatten()
            if not self.rule.unsigned:
                linear_scores(gradients, difference, tokens, self.chunk_bytes, totals[group])
                continue
            # A table of its own, since absolute values are taken of the pass's sum over tokens.
            scores = torch.zeros_like(totals[group])
            linear_scores(gradients, difference, tokens, self.chunk_bytes, scores)
            totals[group] += scores.abs_() * weights

    @torch.no_grad()
    def _replace_exact(
        self,
        totals: Float32[Tensor, "group writer reader"],
        runs: BothRuns,
        gradients: OutputGradients,
    ) -> None:
        """The scores of the exact reader, in place of what stands there."""
        options = PositionOptions(each=not self.labels.summed)
        reader = ExactReader(runs, self.question, gradients, options, 4 * self.chunk_bytes)
        attention_only = self.reader_rule.attention_only
        for writers, column, estimates in reader.reactions(self.wanted, attention_only):
            grouped = self._grouped(estimates)  # [variant writer group]
            layer = self.model.graph.readers[column].layer
            times = torch.tensor(gradients.times(layer), device=grouped.device)[:, None, None]
            scores = (times * (grouped.abs() if self.rule.unsigned else grouped)).sum(0)
            totals[:, writers, column] = scores.T  # [writer group] -> [group writer]
        if attention_only:
            return
        targets = Targets.of(runs.batch, runs.at("clean").logits)
        for writers, effects in reader.effects_on_logits(self.wanted, targets):
            # The logits are read at the last position alone.
            at_last = effects.new_zeros(1, *effects.shape, self.groups.shape[1])
            at_last[0, ..., -1] = effects
            (scores,) = self._grouped(at_last)
            scores = scores.abs() if self.rule.unsigned else scores
            # A constant of the rule's mean, whatever the gradients.
            totals[:, writers, -1] = scores.T * self.divisor[-1]

    def _grouped(
        self, estimates: Float32[Tensor, "variant writer pair pos"]
    ) -> Float32[Tensor, "variant writer group"]:
        """Summed over the tokens of each group."""
        summed = estimates.new_zeros(*estimates.shape[:2], self.n_groups)
        # [pair pos] -> [token], and likewise of the estimates' last two axes
        return summed.index_add_(2, self.groups.flatten(), estimates.flatten(2))

    def _refuse_nonfinite(self, totals: Tensor, batch: PairBatch) -> None:
        """Raises WiremapError, with the module and the pairs, if a score is not finite."""
        if bool(torch.isfinite(totals).all()):
            return
        where, rows = None, batch.rows.tolist()
        # Pair by pair, so that the one that went wrong can be named.
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
