"""Cytoscape.js JSON (https://js.cytoscape.org/#notation/elements-json); Cytoscape opens it too.

``cytoscape({container, elements: file.elements, layout: {name: "preset"}})`` shows it: positions
are layered, y downwards as on a screen, and negative edges have the class ``negative``. q, k and v
edges stay apart unless asked for otherwise.

Keeps everything, and is read back equal: nodes, edges, slots, scores, effects, losses, and the run's
description as the graph's ``data``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...circuits.result.circuit import Circuit
from ...circuits.result.document import description, dumps
from ...circuits.result.values import field
from ...edges.errors import InputError
from ..format import Format
from ..pictures.shown import View
from .table import Row, from_rows, table

_NO_VIEW = View()


def to_cytoscape(circuit: Circuit, view: View = _NO_VIEW) -> str:
    """The circuit as Cytoscape.js JSON text."""
    nodes, edges = table(circuit, view, "parallel")
    return dumps(
        {
            "data": description(circuit),
            "elements": {
                "nodes": [_node(row) for row in nodes],
                "edges": [_edge(row, index) for index, row in enumerate(edges)],
            },
        }
    )


def from_cytoscape(data: Mapping[str, Any]) -> Circuit:
    """The circuit of Cytoscape.js data that wiremap wrote.

    Raises:
        InputError: not that; what is lacking or contradictory is named.
    """
    about = field(data, "data", dict)
    elements = field(data, "elements", dict)
    rows: dict[str, list[dict[str, Any]]] = {}
    for group in ("nodes", "edges"):
        rows[group] = []
        for index, element in enumerate(field(elements, group, list, "elements")):
            where = f"elements.{group}[{index}]"
            if not isinstance(element, dict):
                raise InputError(f"{where}: expected an object, got {type(element).__name__}")
            rows[group].append(field(element, "data", dict, where))
    # There a node is known by its id, so that counts, whatever became of the label.
    nodes = [{**row, "label": row.get("id")} for row in rows["nodes"]]
    return from_rows(about, nodes, rows["edges"])


def _node(row: Row) -> dict[str, Any]:
    values = {name: value for name, value in row.items() if name not in ("x", "y")}
    return {
        "data": {"id": row["label"], **values},
        # Rows count y upwards.
        "position": {"x": row["x"], "y": -float(row["y"])},
        "classes": row["kind"],
    }


def _edge(row: Row, index: int) -> dict[str, Any]:
    return {
        # Nodes and edges share one space of ids: an edge needs one that no node has.
        "data": {"id": f"e{index}", **row},
        "classes": row["sign"] if row["kind"] == "edge" else row["kind"],
    }


FORMATS = (
    Format(
        "cytoscape",
        ".cyjs",
        "Cytoscape and Cytoscape.js",
        encode=lambda circuit, view: to_cytoscape(circuit, view).encode(),
        decode=lambda content: from_cytoscape(content.data),
        signs=lambda content: "elements" in content.keys,
        loses="",
        shows=("qkv",),
    ),
)
