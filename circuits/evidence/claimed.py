"""The result of scrubbing as a document: what was scrubbed, and whether the claim held."""

from __future__ import annotations

from typing import Any

from ...edges.model.transformer import Model
from ...edges.question.prompts import PromptPairs
from ..describe import describe_model, describe_task
from .scrubbing import Scrubbing


def scrub_document(
    model: Model, pairs: PromptPairs, result: Scrubbing, min_recovered: float | None = None
) -> dict[str, Any]:
    """The result as plain JSON data, with the model, the pairs and what was claimed.

    Args:
        min_recovered: the claim holds if at least this fraction is recovered; None claims nothing.
    """
    held = None if min_recovered is None else result.circuit.recovered >= min_recovered
    return {
        "model": describe_model(model),
        "dataset": describe_task(pairs),
        **result.as_document(),
        "edges_in_model": model.graph.n_edges,
        "claim": {"min_recovered": min_recovered, "held": held},
    }
