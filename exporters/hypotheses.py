"""What claims that only some edges matter: a circuit, a hypothesis, or a table of edges.

The one way in for all commands that take a circuit, whoever wrote the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..circuits.result.circuit import Circuit, CircuitEdge
from ..circuits.result.edge_table import EdgeTable, csv_rows, edge_table
from ..circuits.result.hypothesis import FORMAT, Hypothesis, from_hypothesis_document
from ..edges.errors import InputError
from ..edges.names.graph import ModelGraph
from .format import Content
from .formats.eap_ig import importances
from .formats.edges_csv import COLUMNS
from .formats.foreign import graph_rows
from .registry import content_of, decoded

TABLE = "table of edges"


_UNSAID = ("eap-ig", TABLE)
"""Formats that do not say what the sign of a score means."""


_TABLES = (".csv", ".tsv")


@dataclass(frozen=True)
class Claim:
    """What a file says of the edges that matter.

    Attributes:
        path: of the file.
        format: a name of ``FORMATS``, ``scrub`` or ``TABLE``.
        stated: a table says nothing of the model, and is a circuit of any that has its edges.
    """

    path: Path
    format: str
    stated: Hypothesis | EdgeTable

    @property
    def edges(self) -> tuple[CircuitEdge, ...]:
        """Its edges, in a table as they stand there."""
        return (
            self.stated.circuit.edges if isinstance(self.stated, Hypothesis) else self.stated.edges
        )

    @property
    def scores(self) -> EdgeTable | None:
        """Scores of which no circuit was chosen; None if it is something else."""
        table = self.stated if isinstance(self.stated, EdgeTable) else None
        return table if table is not None and table.alone else None

    @property
    def shape(self) -> ModelGraph | None:
        """The shape of its model, if the file says it."""
        return (
            self.stated.circuit.shape if isinstance(self.stated, Hypothesis) else self.stated.shape
        )

    @property
    def kv(self) -> str | None:
        """The ``kv`` by which a model has its readers, if it says."""
        stated = self.stated
        return stated.circuit.shape.kv if isinstance(stated, Hypothesis) else stated.kv

    @property
    def about(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """What it says of the model and of the pairs; a table mostly nothing."""
        said = self.stated.circuit if isinstance(self.stated, Hypothesis) else self.stated
        return said.model, said.task

    @property
    def sign_unsaid(self) -> bool:
        """Whether there are scores, and the format does not say what their sign means."""
        return self.format in _UNSAID and any(edge.score for edge in self.edges)

    def flipped(self) -> Claim:
        """With every score, of edges and nodes, of the other sign.

        Raises:
            InputError: there are verified effects, whose sign is that of the metric; or no scores.
        """
        if verified := next((edge.name for edge in self.edges if edge.verified), None):
            raise InputError(
                f"{self.path}: --flip-signs is for scores alone; here effects were measured, such as "
                f"that of {verified}, and a positive one carries the behaviour"
            )
        if all(edge.score is None for edge in self.edges):
            raise InputError(f"{self.path}: --flip-signs is for scores, and no edge has any")
        return replace(self, stated=_flipped(self.stated))

    @property
    def hypothesis(self) -> Hypothesis | None:
        """The circuit with how it is to be tested; None of a table."""
        return self.stated if isinstance(self.stated, Hypothesis) else None

    def circuit(self, shape: ModelGraph | None = None) -> Circuit:
        """The circuit.

        Args:
            shape: of the model that a table is of.

        Raises:
            InputError: a table, and no shape; an edge that the model does not have; scores alone.
        """
        if isinstance(self.stated, Hypothesis):
            return self.stated.circuit
        shape = self.stated.shape or shape
        if shape is None:
            raise InputError(
                f"{self.path}: a {TABLE} does not say of which model it is; name the model (--model)"
            )
        try:
            return self.stated.circuit(shape)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from None

    def largest(self, n: int, shape: ModelGraph | None = None) -> Circuit:
        """The circuit of the ``n`` largest scores. Raises InputError as ``EdgeTable.largest``."""
        if isinstance(self.stated, Hypothesis):
            raise InputError(f"{self.path}: expected scores of edges, got a circuit")
        shape = self.stated.shape or shape
        if shape is None:
            raise InputError(
                f"{self.path}: a {TABLE} does not say of which model it is; name the model (--model)"
            )
        try:
            return self.stated.largest(n, shape)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from None


def _flipped(stated: Hypothesis | EdgeTable) -> Hypothesis | EdgeTable:
    if isinstance(stated, EdgeTable):
        return replace(stated, edges=tuple(_flipped_edge(edge) for edge in stated.edges))
    circuit = stated.circuit
    return replace(
        stated,
        circuit=replace(
            circuit,
            edges=tuple(_flipped_edge(edge) for edge in circuit.edges),
            nodes=tuple(replace(node, score=_negative(node.score)) for node in circuit.nodes),
        ),
    )


def _flipped_edge(edge: CircuitEdge) -> CircuitEdge:
    return replace(edge, score=_negative(edge.score))


def _negative(score: float | None) -> float | None:
    return -score if score else score  # no -0


def read_claim(path: str | Path, weight: str | None = None) -> Claim:
    """The circuit, hypothesis or table of edges of a file, or of a run directory.

    A table is CSV, TSV, a graph of another program (GraphML, GEXF, node-link or Cytoscape JSON), or
    a JSON list of records. EAP-IG's JSON of no edge in the graph are scores alone.

    Args:
        weight: the column of a table that is the score; see ``edge_table``.

    Raises:
        InputError: none of them, or broken; the place is named.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "circuit.json"
    try:
        format, stated = _stated(content_of(path), path.suffix.lower() in _TABLES, weight)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return Claim(path, format, stated)


def _stated(
    content: Content, named_table: bool, weight: str | None
) -> tuple[str, Hypothesis | EdgeTable]:
    rows = graph_rows(content)
    if rows is None and _is_table(content, named_table):
        rows = csv_rows(content.text)
    if rows is not None:
        return TABLE, edge_table(rows, weight)
    if weight is not None:
        raise InputError(
            f"--weight {weight} goes with a {TABLE}; this file says what its scores are"
        )
    if "cfg" in content.keys and (scores := importances(content.data)) is not None:
        return "eap-ig", scores
    # A hypothesis says that it is one.
    if "format" in content.keys and content.data["format"] == FORMAT:
        return "scrub", from_hypothesis_document(content.data)
    # All else is left to the formats, which know what may be wrong with it.
    format, circuit = decoded(content)
    return format, Hypothesis(circuit)


def _is_table(content: Content, named_table: bool) -> bool:
    """Whether it is a table, and not the one that wiremap writes, which says the model's shape."""
    header = content.start.partition("\n")[0].lower().replace('"', "")
    columns = {name.strip() for name in header.replace("\t", ",").replace(";", ",").split(",")}
    if header.startswith("source,") and {*COLUMNS[-4:]} <= columns:
        return False
    return named_table or {"source", "target"} <= columns
