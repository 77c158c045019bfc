"""A model reduced to one set of edges after another: what all reductions share is run once.

That is the clean input and the corrupted run; each further set of edges costs one run.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from ..model.transformer import Model
from ..question.metrics import Targets
from ..question.prompts import PairBatch
from ..question.question import Question
from ..runs.masks import EdgeSet, as_mask, edge_mask, full_mask
from ..runs.memory import BatchSize
from ..runs.sweep import Progress, Resources, Turn, Work, check_finite, sweep
from ..runs.trace import Run, run
from .mask_plan import MaskPlan, as_weights
from .mask_tape import Ends, MaskTape
from .reduced import BASE, cost_of_reduced_run


@dataclass(frozen=True)
class Shared:
    """What every reduction of a batch starts from."""

    rows: Int64[Tensor, "pair"]
    ends: Ends
    targets: Targets

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> Shared:
        if range(len(self))[part] == range(len(self)):
            return self  # as ever, but where memory ran out
        base, targets = self.ends.base, self.targets
        kept = base.kept.map(lambda value: value[part])
        return Shared(
            self.rows[part],
            Ends(
                self.ends.resid[part],
                Run(base.input[part], kept, base.final[part], base.logits[part]),
            ),
            Targets(targets.answers[part], targets.wrong_answers[part], targets.clean_logits[part]),
        )


class ReducedRuns:
    """Runs of a model reduced to sets of edges, everything outside patched; see ``reduced``.

    Used in a ``with`` statement, in which the model is frozen and without hooks. The corrupted run
    of all pairs stays on the model's device: of each token and layer, its queries, keys and values,
    and four residual streams.

    Attributes:
        full, empty: the metric on each pair with all edges (the clean run) and with none (the
            corrupted run), in units of the metric.
        n_runs: how many sets of edges were run so far.

    Raises:
        InputError: unknown options, pairs it cannot run.
        WiremapError: a metric that is not finite; the pairs are named. Also from ``values``.
    """

    full: Float64[Tensor, "pair"]
    empty: Float64[Tensor, "pair"]

    def __init__(self, model: Model, question: Question, resources: Resources) -> None:
        self.model, self.question, self.resources = model, question, resources
        n_pairs = len(question.pairs)
        self._batches: list[Shared] = []
        self._pairs_at_once = BatchSize(n_pairs)
        self._borrowed = ExitStack()
        self.n_runs = 0
        ends = torch.zeros(2, n_pairs, dtype=torch.float64)

        def start(batch: PairBatch, turn: Turn) -> tuple[Shared, Float[Tensor, "run pair"]]:
            clean = run(model, batch.clean, ())
            corrupted = run(model, batch.corrupted, BASE)
            targets = Targets.of(batch, clean.logits)
            shared = Shared(batch.rows, Ends(clean.input, corrupted), targets)
            both = [question.measure(end.logits, targets) for end in (clean, corrupted)]
            return shared, torch.stack(both)

        def collect(batch: PairBatch, started: tuple[Shared, Float[Tensor, "run pair"]]) -> None:
            shared, values = started
            self._batches.append(shared)
            ends[:, batch.rows] = values.cpu().double()

        work = Work(
            stage="run both prompts", function=start, collect=collect, cost=cost_of_reduced_run
        )
        sweep(model, question.pairs, work, resources)
        check_finite(ends.float())
        self.full, self.empty = ends

    def __enter__(self) -> ReducedRuns:  # noqa: PYI034  (beartype has no Self)
        """Borrows the model: once for all runs, since tiny models run faster than that takes."""
        self._borrowed.enter_context(torch.no_grad())
        self._borrowed.enter_context(self.model.borrowed())
        return self

    def __exit__(self, *error: object) -> None:
        """Gives the model back as it was."""
        self._borrowed.close()

    def values(self, edges: EdgeSet | Float[Tensor, "writer reader"]) -> Float64[Tensor, "pair"]:
        """The metric of the model reduced to ``edges``, on each pair. Only what can change is run.

        Args:
            edges: names, a mask as ``edge_mask`` makes it, or numbers that say what share of its
                change an edge carries.

        Raises:
            InputError: an edge the model does not have.
        """
        plan = self._plan(edges, torch.zeros_like(full_mask(self.model.graph)))
        values = torch.zeros_like(self.full)
        self.n_runs += 1

        def measured(batch: Shared) -> Tensor:
            tape = MaskTape(self.model, plan, batch.ends)
            return self.question.measure(tape.logits(), batch.targets).cpu().double()

        # Where memory holds fewer pairs than the shared runs had, they are halved here.
        for whole in self._batches:
            for batch, of_batch in self._pairs_at_once.map(whole, measured):
                values[batch.rows] = of_batch
        check_finite(values[None].float())
        return values

    def values_without(
        self, edges: EdgeSet | Float[Tensor, "writer reader"], groups: Sequence[EdgeSet]
    ) -> Float64[Tensor, "group pair"]:
        """The metric of the model reduced to ``edges`` without each group of them, on each pair.

        As ``values`` of what is left, in less time: the run of ``edges`` is shared, and of each
        group only what is downstream of it is run again. Progress is reported as runs of one pair.

        Raises:
            InputError: an edge the model does not have.
        """
        graph = self.model.graph
        plan = self._plan(edges, torch.zeros_like(full_mask(graph)))
        lost = [plan.by_plan(as_mask(graph, group)) for group in groups]
        values = torch.zeros(len(groups), len(self.full), dtype=torch.float64)
        progress = Progress("run circuits without edges", values.numel(), self.resources.report)

        def measured(batch: Shared) -> Tensor:
            tape = MaskTape(self.model, plan, batch.ends)
            tape.logits()
            of_groups = torch.zeros(len(groups), len(batch), dtype=torch.float64)
            for place, of_group in enumerate(lost):
                logits = tape.logits_without(of_group)
                of_groups[place] = self.question.measure(logits, batch.targets)
                progress.reached((place + 1) * len(batch))
            return of_groups

        for whole in self._batches:
            for batch, of_batch in self._pairs_at_once.map(whole, measured):
                values[:, batch.rows] = of_batch
                progress.finish(of_batch.numel())
        self.n_runs += 1 + len(groups)
        check_finite(values.float())
        return values

    def _plan(
        self,
        edges: EdgeSet | Float[Tensor, "writer reader"],
        wanted: Bool[Tensor, "writer reader"] | None,
    ) -> MaskPlan:
        """What these edges leave to be computed, and the gradients of those wanted."""
        graph = self.model.graph
        mask = edges if isinstance(edges, Tensor) else edge_mask(graph, edges)
        return MaskPlan.of(self.model, as_weights(graph, mask), wanted)
