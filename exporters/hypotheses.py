"""What claims that only some edges matter: a circuit, a hypothesis, or a table of edges."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from ..circuits.result.circuit import CircuitEdge
from ..circuits.result.document import loads
from ..circuits.result.hypothesis import (
    FORMAT,
    Hypothesis,
    from_hypothesis_document,
    read_edge_table,
)
from ..edges.errors import InputError
from ..edges.files import read_text
from .registry import read_circuit

_TABLES = (".csv", ".tsv")


def read_claim(path: Path) -> Hypothesis | list[CircuitEdge]:
    """The hypothesis of a file or a run directory; a circuit is made one. Of a table, its edges.

    Raises:
        InputError: neither of them, or broken; the place is named.
    """
    if path.is_dir():
        path = path / "circuit.json"
    if path.suffix.lower() in _TABLES:
        return read_edge_table(path)
    # A hypothesis says that it is one. All other JSON is left to read_circuit, which knows what may
    # be wrong with it.
    if path.suffix.lower() == ".json":
        try:
            document = loads(read_text(path))
            if (
                isinstance(document, dict)
                and cast("dict[str, Any]", document).get("format") == FORMAT
            ):
                return from_hypothesis_document(document)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    return Hypothesis(read_circuit(path))
