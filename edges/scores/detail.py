"""Scores of all edges at once, and of what the best of them and the MLPs are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..model.transformer import Model
from ..names.graph import mlp_name
from ..question.prompts import PromptPairs
from ..runs.sweep import Report, silent
from .crossing import Crossings, score_crossings
from .edge_scores import EdgeScores, score_edges
from .refinement import SplitScores, score_split

# What ``score_edges`` takes and the scores of parts and crossings do not.
_OF_EDGES_ALONE = ("reader", "candidates", "positions", "per_pair")


@dataclass(frozen=True, eq=False)
class DetailedScores:
    """Scores of edges, of the edges of parts of MLPs, and of edges by query and key position."""

    edges: EdgeScores
    parts: tuple[SplitScores, ...]
    crossings: Crossings | None

    @property
    def tables(self) -> tuple[EdgeScores | SplitScores | Crossings, ...]:
        """All there are, as ``write_scores`` takes them."""
        crossings = () if self.crossings is None else (self.crossings,)
        return (self.edges, *self.parts, *crossings)


def mixtures(model: Model) -> list[str]:
    """What to split to have the experts of every mixture: ``m5:experts`` and so on."""
    blocks = enumerate(model.blocks)
    return [f"{mlp_name(layer)}:experts" for layer, block in blocks if block.mlp.experts()]


def score_in_detail(
    model: Model,
    pairs: PromptPairs,
    splits: Sequence[str] = (),
    *,
    crossing: int | None = None,
    progress: Report = silent,
    **method: Any,
) -> DetailedScores:
    """Scores of all edges, of the MLPs split, and of the best edges into keys and values.

    Args:
        splits: see ``score_split``.
        crossing: how many of the best edges into keys and values are scored by query and key
            position; see ``score_crossings``.
        progress: called with (stage, pairs finished since the last call, pairs in all).
        method: as ``score_edges``.

    Raises:
        InputError: as ``score_edges``, ``score_split`` and ``score_crossings``.
    """
    shared = {name: value for name, value in method.items() if name not in _OF_EDGES_ALONE}
    edges = score_edges(model, pairs, **method, progress=progress)
    parts = tuple(score_split(model, pairs, split, **shared, progress=progress) for split in splits)
    crossings = None
    if crossing is not None:
        # Largest first, as ``top`` has them: the first so many are the best.
        into = [name for name, _ in edges.top() if name.endswith(("<k>", "<v>"))]
        crossings = score_crossings(model, pairs, into[:crossing], **shared)
    return DetailedScores(edges, parts, crossings)
