"""Running a model over all pairs, batch by batch."""

from __future__ import annotations

from .memory import BatchSize
from ..model.transformer import Model
from ..question.prompts import PairBatch
import torch
from jaxtyping import Float32
from torch import Tensor
from ..errors import WiremapError
from .memory import BatchSize
from ..model.transformer import Model
from ..question.prompts import PairBatch
from ..errors import name_rows


def trace_size(
    model: Model, bucket: PairBatch, n_patterns: int = 4, memory_limit: int | None = None
) -> BatchSize:
    """How many pairs to trace at once: an estimate of what autograd keeps of one pair.

    Args:
        n_patterns: how many tables of the size of attention patterns are kept for each layer.
    """
    n_pos = bucket.clean.shape[1]
    residual_like = 60 * n_pos * model.d_model
    patterns = n_patterns * model.graph.n_heads * n_pos**2
    numbers = model.graph.n_layers * (residual_like + patterns) + 3 * model.d_vocab
    return BatchSize.fitting(4 * numbers, model.device, memory_limit)


def check_finite(values: Float32[Tensor, "run pair"]) -> None:
    """Raises WiremapError if a metric is not finite; the pairs are named."""
    strange = (~torch.isfinite(values)).any(0).nonzero().flatten().tolist()
    if strange:
        raise WiremapError(
            "the metric is not finite "
            + name_rows(strange, "try float32 (--dtype float32) or another metric")
        )


def pairs_at_once(model: Model, bucket: PairBatch) -> BatchSize:
    """How many pairs to run at once: an estimate of all writes, and a layer's inputs, of one pair."""
    graph, n_pos = model.graph, bucket.clean.shape[1]
    streams = len(graph.writers) + 4 * graph.n_heads + 12 * graph.n_layers
    numbers = streams * n_pos * model.d_model + 4 * graph.n_heads * n_pos**2 + 3 * model.d_vocab
    return BatchSize.fitting(4 * numbers, model.device)
