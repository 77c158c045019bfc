"""How the metric answers to the mask of every edge, at any circuit: the gradient of a reduced model.

A reader v reads, in a model reduced by a mask m whose entries may be fractions (see ``reduced``),

    input of v = its input in the corrupted run + sum over u of m_uv (u writes now - u wrote there)

so that, g_v being the gradient of the metric by the input of v,

    d metric / d m_uv = sum over positions of <g_v, u writes now - u wrote in the corrupted run>

At the mask of all edges this is the score of clean gradient and linear reader (EAP). Averaged along
the line from no edge to a circuit it is what the metric owes to each edge of that circuit: the mean
gradients times the mask add up to what the circuit differs from the corrupted run.

Every block has a graph of its own, from what its readers read to what it writes. Besides these
graphs one table of what all writers write, and one of the gradients by it, are kept: autograd keeps
no copy of the writes for every layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from ..errors import InputError, WiremapError
from ..model.transformer import Model
from ..names.graph import ModelGraph
from ..question.metrics import Metric
from ..question.prompts import PromptPairs
from ..runs.masks import as_mask, edge_mask
from ..runs.sweep import check_finite
from .mask_tape import MaskPlan, MaskTape
from .reduced_runs import ReducedRuns

STEPS = 4
"""Midpoints of the line from no edge to a circuit."""


@dataclass(frozen=True, eq=False)
class MaskGradients:
    """What a metric is under masks of edges, and its gradients by these masks.

    Attributes:
        values: the metric of each pair, of each mask the gradient was taken at.
        gradients: d mean metric over pairs / d mask, averaged over these masks; 0 where the model
            has no edge, or where none was wanted. In units of the metric.
    """

    values: Float64[Tensor, "step pair"]
    gradients: Float64[Tensor, "reader writer"]


def mask_gradients(
    model: Model,
    pairs: PromptPairs,
    mask: Tensor,
    metric: str | Metric = "logit_diff",
    *,
    wanted: Bool[Tensor, "reader writer"] | None = None,
    batch_size: int | None = None,
) -> MaskGradients:
    """The gradient of a metric by the mask of every edge, at a mask.

    Args:
        mask: booleans, or numbers that say what share of its change an edge carries.
        metric: a name in ``METRICS`` or a function ``(logits, targets) -> [row]``.
        wanted: the edges whose gradients are wanted; None: all. Where they are those of the mask
            alone, only what lies on a path of these is computed.
        batch_size: pairs at once; None takes what fits into memory.

    Raises:
        InputError: a mask of another shape, or of edges the model does not have; unknown options;
            pairs it cannot run.
        WiremapError: a metric or gradient that is not finite.
    """
    with MaskedRuns(model, pairs, metric, batch_size) as runs:
        return runs.gradients(mask, wanted=wanted)


def mean_mask_gradients(
    model: Model,
    pairs: PromptPairs,
    mask: Tensor,
    metric: str | Metric = "logit_diff",
    *,
    steps: int = STEPS,
    wanted: Bool[Tensor, "reader writer"] | None = None,
    batch_size: int | None = None,
) -> MaskGradients:
    """``mask_gradients``, averaged along the line from no edge to the mask: at (i + 0.5) / steps of it.

    All steps share the clean and the corrupted runs.
    """
    with MaskedRuns(model, pairs, metric, batch_size) as runs:
        return runs.gradients_along(mask, steps, wanted=wanted)


class MaskedRuns(ReducedRuns):
    """Runs of a model under masks of its edges, and their gradients by the masks.

    As ``ReducedRuns``, whose clean and corrupted runs all masks share.

    Attributes:
        n_gradients: how many forward and backward passes of all pairs were made for gradients.
    """

    n_gradients: int = 0

    def __enter__(self) -> MaskedRuns:  # noqa: PYI034  (beartype has no Self)
        super().__enter__()
        return self

    def gradients(
        self, mask: Tensor, *, wanted: Bool[Tensor, "reader writer"] | None = None
    ) -> MaskGradients:
        """See ``mask_gradients``."""
        return self._mean(mask, (1.0,), wanted)

    def gradients_along(
        self,
        mask: Tensor,
        steps: int = STEPS,
        *,
        wanted: Bool[Tensor, "reader writer"] | None = None,
    ) -> MaskGradients:
        """See ``mean_mask_gradients``. Raises InputError for less than one step."""
        if steps < 1:
            raise InputError(f"expected at least 1 step from no edge to the circuit, got {steps}")
        return self._mean(mask, [(step + 0.5) / steps for step in range(steps)], wanted)

    def values(
        self, edges: Iterable[str] | Bool[Tensor, "reader writer"]
    ) -> Float64[Tensor, "pair"]:
        """As ``ReducedRuns.values``, in less time: only what can change is computed."""
        graph = self.model.graph
        mask = edges if isinstance(edges, Tensor) else edge_mask(graph, edges)
        plan = MaskPlan.of(self.model, as_weights(graph, mask), torch.zeros_like(mask))
        values = torch.zeros_like(self.full)
        self.n_runs += 1

        def measured(batch: Any) -> Tensor:
            tape = MaskTape(self.model, plan, batch.clean_input, batch.corrupted)
            found = tape.values(lambda logits: self._metric(logits, batch.targets))
            return found.cpu().double()

        for whole in self._batches:
            for batch, found in self._pairs_at_once.map(whole, measured):
                values[batch.rows] = found
        check_finite(values[None].float())
        return values

    def _mean(
        self, mask: Tensor, parts: Sequence[float], wanted: Bool[Tensor, "reader writer"] | None
    ) -> MaskGradients:
        graph = self.model.graph
        plan = MaskPlan.of(self.model, as_weights(graph, mask), wanted)
        values = torch.zeros(len(parts), len(self.full), dtype=torch.float64)
        total = torch.zeros(len(graph.readers), len(plan.writers), dtype=torch.float64)
        for whole in self._batches:
            for row, part in enumerate(parts):
                at = partial(self._at, plan.scaled(part))
                for batch, (found, gradients) in self._pairs_at_once.map(whole, at):
                    values[row, batch.rows] = found
                    total += gradients
        self.n_gradients += len(parts)
        check_finite(values.float())
        if not bool(torch.isfinite(total).all()):
            raise WiremapError(
                "a gradient by the mask of an edge is not finite; try float32 (--dtype float32)"
            )
        table = torch.zeros(plan.wanted.shape, dtype=torch.float64)
        table[:, plan.writers] = total / (len(parts) * len(self.full))
        return MaskGradients(values, table.where(plan.wanted, 0.0))

    def _at(self, plan: MaskPlan, batch: Any) -> tuple[Tensor, Tensor]:
        """The metric of a batch's pairs, and the gradient of its sum, by the weights of the plan."""
        tape = MaskTape(self.model, plan, batch.clean_input, batch.corrupted)
        values, gradient = tape.forward(lambda logits: self._metric(logits, batch.targets))
        return values.cpu().double(), tape.backward(gradient).cpu().double()


def as_weights(graph: ModelGraph, mask: Tensor) -> Float[Tensor, "reader writer"]:
    """The mask as numbers. Raises InputError for one that cannot be."""
    if mask.dtype == torch.bool:
        return as_mask(graph, mask).double()
    as_mask(graph, mask != 0)
    if not bool(torch.isfinite(mask).all()):
        raise InputError("expected a mask of finite numbers, got NaN or infinite ones")
    return mask.detach().cpu().double()
