"""Scores that someone has already, as the table that a search begins with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from ...edges.errors import InputError
from ...edges.names.graph import ModelGraph
from ...edges.runs.masks import full_mask
from ...edges.scores.edge_scores import EdgeScores
from ..result.circuit import CircuitEdge


@dataclass(frozen=True, eq=False)
class GivenScores:
    """Scores of all edges that were not made here.

    Attributes:
        edges: positive carries the behaviour, as everywhere.
        source: where they are from, such as the name of their file.
    """

    edges: EdgeScores
    source: str

    def describe(self, nodes_by: str) -> dict[str, Any]:
        """What a result's ``method`` says of them in the place of how scores were made.

        Args:
            nodes_by: the gradient rule that scores nodes.
        """
        # Without nan, of which there are many, so that equal tables are equal bytes.
        table = self.edges.scores.nan_to_num().numpy().tobytes()
        return {
            **dict.fromkeys(("gradient", "steps", "schedule", "reader")),
            "scores": {"source": self.source, "sha256": hashlib.sha256(table).hexdigest()},
            "nodes_scored_by": nodes_by,
        }


def given_scores(graph: ModelGraph, edges: Iterable[CircuitEdge], source: str) -> GivenScores:
    """The table of these scores.

    Raises:
        InputError: an edge that the model does not have, one without a score, or one that is missing.
    """
    table = torch.full((len(graph.writers), len(graph.readers)), torch.nan)
    for edge in edges:
        if edge.score is not None:
            table[graph.edge(edge.name)] = edge.score
    missing = (full_mask(graph) & table.isnan()).nonzero().tolist()
    if missing:
        (writer, reader), *_ = missing
        first = f"{graph.writers[writer].name}->{graph.readers[reader].name}"
        raise InputError(
            f"{source}: expected a score of every one of {graph.n_edges:,} edges, {len(missing):,} have "
            f"none, such as {first}"
        )
    return GivenScores(EdgeScores(graph, table, gradient="given", reader="given"), source)
