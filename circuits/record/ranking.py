"""The nodes or edges of a scores file, best first: what there is to measure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...edges.errors import InputError
from ...edges.names.vocabulary import EDGE_AGGREGATE, NODE_AGGREGATE
from .scores_file import SCORES_FILE, read_scores


@dataclass(frozen=True, eq=False)
class Ranking:
    """Nodes or edges, best first, and what they were scored for.

    Attributes:
        items: what is ranked.
        scored: all there are, as (name, score).
        question: see ``describe_question``.
    """

    path: Path
    items: Literal["nodes", "edges"]
    scored: list[tuple[str, float]]
    question: dict[str, Any]

    @property
    def names(self) -> list[str]:
        """Best first."""
        return [name for name, _ in self.scored]


def read_ranking(path: Path) -> Ranking:
    """What a scores file, or a run directory, ranks, by the aggregate it was ranked by.

    Edges, if it has scores of edges, else nodes.

    Raises:
        InputError: a file without scores of either, or no scores file at all.
    """
    if path.is_dir():
        path = path / SCORES_FILE
    nodes, edges, question = read_scores(path)
    method = question["method"]
    if edges is not None:
        scored = edges.top(aggregate=method.get("aggregate", EDGE_AGGREGATE))
        return Ranking(path, "edges", scored, question)
    if nodes is not None:
        scored = nodes.top(aggregate=method.get("aggregate", NODE_AGGREGATE))
        return Ranking(path, "nodes", scored, question)
    raise InputError(f"{path}: expected scores of nodes or edges, the file has neither")
