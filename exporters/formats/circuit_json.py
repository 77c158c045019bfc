"""wiremap's own JSON (``circuits/circuit.schema.json``), which ``circuit.json`` of a run is.

Keeps everything, and is read back equal.
"""

from __future__ import annotations

from ...circuits.result.document import dumps, from_document, to_document
from ..format import Format

FORMATS = (
    Format(
        "json",
        ".json",
        "wiremap's own, complete and read back",
        encode=lambda circuit, view: dumps(to_document(circuit)).encode(),
        decode=lambda content: from_document(content.data),
        signs=lambda content: "format" in content.keys,
        loses="",
    ),
)
