"""networkx's node-link JSON (https://networkx.org/documentation/stable/reference/readwrite).

``networkx.node_link_graph(json.load(file), edges="edges")`` gives ``Circuit.graph``, with the run's
description in ``graph.graph``: a multigraph, q, k and v edges being parallel edges of the keys
``q``, ``k`` and ``v``. Strict JSON: what is missing is null.

Keeps everything, and is read back equal, also when networkx wrote it again (3.3 and older say
``links`` for ``edges``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...circuits.result.circuit import Circuit
from ...circuits.result.document import description, dumps, from_document
from ...circuits.result.values import field
from ...edges.errors import InputError
from ...edges.names.graph import SLOTS
from ..format import Format
from .table import edge_document

_GROUP = "group"


def to_node_link(circuit: Circuit) -> str:
    """The circuit as node-link JSON text, one node or edge a line."""
    return dumps(
        {
            "directed": True,
            "multigraph": True,
            "graph": description(circuit),
            "nodes": [
                {
                    "kind": node.kind,
                    "layer": node.layer,
                    "head": node.head,
                    "score": node.score,
                    "id": node.name,
                }
                for node in circuit.nodes
            ],
            "edges": [
                {
                    **edge.figures,
                    "source": edge.source,
                    "target": edge.target,
                    "key": edge.slot or "",
                }
                for edge in circuit.edges
            ]
            + [
                # Ties that only say which query heads a key-value head serves; they are skipped on
                # reading.
                {"source": kv_head, "target": head, "key": _GROUP}
                for kv_head, head in circuit.groups
            ],
        }
    )


def from_node_link(data: Mapping[str, Any]) -> Circuit:
    """The circuit of node-link data that wiremap wrote, or networkx after it.

    Raises:
        InputError: not that; what is lacking or contradictory is named.
    """
    about = field(data, "graph", dict)
    if "shape" not in about:
        raise InputError(
            "graph: expected what the circuit was found in (shape), got none; wiremap reads the "
            "node-link JSON it wrote, or networkx after it; another is a table of edges (read_claim)"
        )
    edges = field(data, "edges" if "edges" in data else "links", list)
    return from_document(
        {
            **about,
            "nodes": field(data, "nodes", list),
            "edges": [
                _edge(row, index)
                for index, row in enumerate(edges)
                # What is no object goes on to _edge, which says so.
                if not (isinstance(row, dict) and row.get("key") == _GROUP)
            ],
        }
    )


def _edge(row: Any, index: int) -> dict[str, Any]:
    where = f"edges[{index}]"
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected an object, got {type(row).__name__}")
    source, target, key = (field(row, name, str, where) for name in ("source", "target", "key"))
    if key not in ("", *SLOTS):
        raise InputError(f"{where}.key: expected q, k, v, group or '', got {key!r:.60}")
    return edge_document(row, source=source, target=target, slot=key or None)


FORMATS = (
    Format(
        "node-link",
        ".node-link.json",
        "networkx, d3",
        encode=lambda circuit, view: to_node_link(circuit).encode(),
        decode=lambda content: from_node_link(content.data),
        signs=lambda content: "multigraph" in content.keys,
        loses="",
    ),
)
