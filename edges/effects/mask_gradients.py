"""How the metric answers to the mask of every edge, at any circuit: the gradient of a reduced model.

A reader v reads, in a model reduced by a mask m whose entries may be fractions (see ``reduced``),

    input of v = its input in the corrupted run + sum over u of m_uv (u writes now - u wrote there)

so that, g_v being the gradient of the metric by the input of v,

    d metric / d m_uv = sum over positions of <g_v, u writes now - u wrote in the corrupted run>

At the mask of all edges this is the score of clean gradient and linear reader (EAP). Averaged along
the line from no edge to a circuit it is what the metric owes to each edge of that circuit: the mean
gradients times the mask add up to what the circuit differs from the corrupted run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from ..errors import InputError, WiremapError
from ..model.transformer import Model
from ..names.vocabulary import MASK_STEPS, METRIC
from ..question.metrics import Metric
from ..question.prompts import PromptPairs
from ..question.question import Question
from ..runs.memory import BatchSize
from ..runs.sweep import Report, Resources, check_finite, silent
from .mask_plan import MaskPlan
from .mask_tape import MaskTape
from .reduced_runs import ReducedRuns, Shared


@dataclass(frozen=True, eq=False)
class MaskGradients:
    """What a metric is under masks of edges, and its gradients by these masks.

    Attributes:
        values: the metric of each pair, of each mask the gradient was taken at.
        gradients: d mean metric over pairs / d mask, averaged over these masks; 0 where the model
            has no edge, or where none was wanted. In units of the metric.
    """

    values: Float64[Tensor, "step pair"]
    gradients: Float64[Tensor, "writer reader"]


def mask_gradients(
    model: Model,
    pairs: PromptPairs,
    mask: Tensor,
    *,
    metric: str | Metric = METRIC,
    wanted: Bool[Tensor, "writer reader"] | None = None,
    batch_size: int | None = None,
    progress: Report = silent,
) -> MaskGradients:
    """The gradient of a metric by the mask of every edge, at a mask.

    Args:
        mask: booleans, or numbers that say what share of its change an edge carries.
        metric: a name in ``METRICS`` or a function ``(logits, targets) -> [row]``.
        wanted: the edges whose gradients are wanted; None: all. Where they are those of the mask
            alone, only what lies on a path of these is computed.
        batch_size: pairs at once; None takes what fits into memory.
        progress: called with (stage, pairs finished since the last call, pairs in all).

    Raises:
        InputError: a mask of another shape, or of edges the model does not have; unknown options;
            pairs it cannot run.
        WiremapError: a metric or gradient that is not finite.
    """
    question = Question(pairs=pairs, metric=metric)
    with MaskedRuns(model, question, Resources(batch_size=batch_size, report=progress)) as runs:
        return runs.gradients(mask, wanted=wanted)


def mean_mask_gradients(
    model: Model,
    pairs: PromptPairs,
    mask: Tensor,
    *,
    metric: str | Metric = METRIC,
    steps: int = MASK_STEPS,
    wanted: Bool[Tensor, "writer reader"] | None = None,
    batch_size: int | None = None,
    progress: Report = silent,
) -> MaskGradients:
    """``mask_gradients``, averaged along the line from no edge to the mask.

    It is taken at (i + 0.5) / ``steps`` of the mask for each i below ``steps``. All steps share the
    clean and the corrupted runs. Else, args and errors as for ``mask_gradients``.
    """
    question = Question(pairs=pairs, metric=metric)
    with MaskedRuns(model, question, Resources(batch_size=batch_size, report=progress)) as runs:
        return runs.gradients_along(mask, steps, wanted=wanted)


class MaskedRuns(ReducedRuns):
    """Runs of a model under masks of its edges, and their gradients by the masks.

    As ``ReducedRuns``, whose clean and corrupted runs all masks share. A mask is of booleans, or of
    numbers that say what share of its change an edge carries.

    Attributes:
        n_gradients: how many forward and backward passes of all pairs were made for gradients.
    """

    def __init__(self, model: Model, question: Question, resources: Resources) -> None:
        super().__init__(model, question, resources)
        self.n_gradients = 0
        longest = int(question.pairs.lengths.max())
        fitting = resources.available(model) // cost_of_mask_gradients(model, longest)
        self._rows = BatchSize(resources.batch_size or fitting)

    def __enter__(self) -> MaskedRuns:  # noqa: PYI034  (beartype has no Self)
        super().__enter__()
        return self

    def gradients(
        self, mask: Tensor, *, wanted: Bool[Tensor, "writer reader"] | None = None
    ) -> MaskGradients:
        """See ``mask_gradients``."""
        return self._mean(mask, (1.0,), wanted)

    def gradients_along(
        self,
        mask: Tensor,
        steps: int = MASK_STEPS,
        *,
        wanted: Bool[Tensor, "writer reader"] | None = None,
    ) -> MaskGradients:
        """See ``mean_mask_gradients``. Raises InputError for less than one step."""
        if steps < 1:
            raise InputError(f"expected at least 1 step from no edge to the circuit, got {steps}")
        return self._mean(mask, [(step + 0.5) / steps for step in range(steps)], wanted)

    def _mean(
        self, mask: Tensor, parts: Sequence[float], wanted: Bool[Tensor, "writer reader"] | None
    ) -> MaskGradients:
        """Averaged over these parts of the mask."""
        graph, report = self.model.graph, self.resources.report
        plan = self._plan(mask, wanted)
        values = torch.zeros(len(parts), len(self.full), dtype=torch.float64)
        total = torch.zeros(len(graph.readers), len(plan.writers), dtype=torch.float64)

        def of_batch(batch: Shared) -> tuple[Tensor, Tensor]:
            at_parts = partial(self._at, plan, batch)
            runs = [run for _, run in self._rows.map_times(parts, len(batch), at_parts)]
            return torch.cat([run[0] for run in runs]), torch.stack([run[1] for run in runs]).sum(0)

        for whole in self._batches:
            for batch, (of_pairs, gradients) in self._rows.map(whole, of_batch):
                values[:, batch.rows] = of_pairs
                total += gradients
                report("mask gradients", len(parts) * len(batch), values.numel())
        self.n_gradients += len(parts)
        check_finite(values.float())
        if not bool(torch.isfinite(total).all()):
            raise WiremapError(
                "a gradient by the mask of an edge is not finite; try float32 (--dtype float32, "
                "dtype=torch.float32)"
            )
        gradients = torch.zeros(plan.wanted.shape, dtype=torch.float64)
        gradients[plan.writers] = total.T / values.numel()
        return MaskGradients(values, gradients.where(plan.wanted, 0.0))

    def _at(
        self, plan: MaskPlan, batch: Shared, parts: Sequence[float]
    ) -> tuple[Float64[Tensor, "step pair"], Float64[Tensor, "reader live"]]:
        """The metric of a batch's pairs under parts of a mask, and the gradients of its sum."""
        targets = batch.targets.repeat(len(parts))
        tape = MaskTape(self.model, plan, batch.ends, parts)
        values, gradient = tape.forward(lambda logits: self.question.measure(logits, targets))
        by_part = values.view(len(parts), len(batch))
        return by_part.cpu().double(), tape.backward(gradient).cpu().double()


def cost_of_mask_gradients(model: Model, n_pos: int) -> int:
    """Bytes that gradients of one pair need: two tables of writes, and what autograd keeps."""
    graph = model.graph
    n_readers = graph.n_heads + 2 * graph.n_kv_heads + 1
    streams = 2 * len(graph.writers) + 2 * n_readers + 18 * graph.n_layers
    patterns = 3 * graph.n_layers * graph.n_heads * n_pos**2
    numbers = streams * n_pos * model.d_model + patterns + 3 * model.d_vocab
    return model.dtype.itemsize * numbers
