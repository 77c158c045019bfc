"""A model reduced to one set of edges after another: what all reductions share is run once.

That is the clean input and the corrupted run; each further set of edges costs one run.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from ..model.transformer import Model
from ..question.metrics import Targets
from ..question.prompts import PairBatch
from ..question.question import Question
from ..runs.masks import edge_mask, full_mask
from ..runs.memory import BatchSize
from ..runs.sweep import Resources, Turn, Work, check_finite, sweep
from ..runs.trace import Run, run
from .reduced import BASE, cost_of_reduced_run, masked_logits


@dataclass(frozen=True)
class _Shared:
    """What every reduction of a batch starts from."""

    rows: Int64[Tensor, "pair"]
    clean_input: Float[Tensor, "pair pos d_model"]
    corrupted: Run
    targets: Targets

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> _Shared:
        if range(len(self))[part] == range(len(self)):
            return self  # as ever, but where memory ran out
        base, targets = self.corrupted, self.targets
        kept = base.kept.map(lambda value: value[part])
        return _Shared(
            self.rows[part],
            self.clean_input[part],
            Run(base.input[part], kept, base.final[part], base.logits[part]),
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
        self.model, self.question = model, question
        n_pairs = len(question.pairs)
        self._batches: list[_Shared] = []
        self._pairs_at_once = BatchSize(n_pairs)
        self._borrowed = ExitStack()
        self.n_runs = 0
        every = full_mask(model.graph)
        ends = torch.zeros(2, n_pairs, dtype=torch.float64)

        def start(batch: PairBatch, turn: Turn) -> tuple[_Shared, Float[Tensor, "run pair"]]:
            clean = run(model, batch.clean, ())
            corrupted = run(model, batch.corrupted, BASE)
            targets = Targets.of(batch, clean.logits)
            shared = _Shared(batch.rows, clean.input, corrupted, targets)
            # No reduction needs more memory, so a batch that is too large is halved here, unless
            # something else takes the memory meanwhile.
            masked_logits(model, every, shared.clean_input, corrupted)
            both = [question.measure(end.logits, targets) for end in (clean, corrupted)]
            return shared, torch.stack(both)

        def collect(batch: PairBatch, started: tuple[_Shared, Float[Tensor, "run pair"]]) -> None:
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

    def values(
        self, edges: Iterable[str] | Bool[Tensor, "writer reader"]
    ) -> Float64[Tensor, "pair"]:
        """The metric of the model reduced to ``edges``, on each pair.

        Args:
            edges: names, or a mask as ``edge_mask`` makes it.

        Raises:
            InputError: an edge the model does not have.
        """
        kept = edges if isinstance(edges, Tensor) else edge_mask(self.model.graph, edges)
        values = torch.zeros_like(self.full)
        self.n_runs += 1

        def measured(batch: _Shared) -> Tensor:
            logits = masked_logits(self.model, kept, batch.clean_input, batch.corrupted)
            return self.question.measure(logits, batch.targets).cpu().double()

        for whole in self._batches:
            for batch, of_batch in self._pairs_at_once.map(whole, measured):
                values[batch.rows] = of_batch
        check_finite(values[None].float())
        return values
