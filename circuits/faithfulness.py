"""How much of a behaviour a circuit carries by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..edges.errors import InputError
from ..edges.masking import run_edges
from ..edges.metrics import Metric
from ..edges.model import Model
from ..edges.prompts import PromptPairs
from .circuit import Faithfulness


def evaluate(
    model: Model,
    pairs: PromptPairs,
    edges: Sequence[str],
    metric: str | Metric = "logit_diff",
    batch_size: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Faithfulness:
    """Runs the model reduced to ``edges``, everything outside patched with the corrupted run.

    faithfulness = (m(circuit) - m(empty)) / (m(full) - m(empty)), each m a mean over the pairs
    before the ratio is taken (as in MIB, Mueller et al., 2025, arXiv 2504.13151).

    Args and errors as for ``wiremap.edges.masking.run_edges``; besides

    Raises:
        InputError: the metric is the same with and without all edges, so there is no ratio.
    """
    values = run_edges(model, pairs, edges, metric, batch_size, progress)
    full, empty, circuit = (
        values_of.cpu().double().mean().item()
        for values_of in (values.full, values.empty, values.circuit)
    )
    if full == empty:
        raise InputError(
            f"the metric is {full:.4g} on the clean and on the corrupted prompts alike, so "
            "there is nothing to be faithful to; use prompts that differ in the behaviour"
        )
    return Faithfulness(full, empty, circuit, len(pairs))
