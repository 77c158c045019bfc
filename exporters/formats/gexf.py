"""GEXF 1.3 (https://gexf.net), Gephi's own format.

Beyond GraphML it keeps q, k and v edges apart in Gephi, if asked for (``parallel``): each is of a
kind of its own, and Gephi merges only edges of one kind. Positions, sizes and colours are those
that Gephi draws (colours by r, g, b, which every reader knows).

Keeps everything, and is read back equal: nodes, edges, slots, scores, effects, losses as attributes, and
the run's description as JSON in the description (Gephi shows it, and may write another in its
place: such a file is no circuit any more). Refused on reading: document types, other elements.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from ...circuits.result.circuit import Circuit
from ...circuits.result.document import description, loads
from ...edges.errors import InputError
from ..format import Format
from ..pictures.shown import View
from .markup import attributes, children, content, local, parse, values
from .table import Row, Value, columns, from_rows, table

_NAMESPACE = "http://gexf.net/1.3"


_TYPES: Mapping[type, str] = {str: "string", bool: "boolean", int: "integer", float: "double"}


_NATIVE = {
    "node": ("label", "x", "y", "size", "color"),
    "edge": ("source", "target", "kind", "weight", "color"),
}


_NO_VIEW = View()


def to_gexf(circuit: Circuit, view: View = _NO_VIEW) -> str:
    """The circuit as GEXF text, the same bytes every time."""
    nodes, edges = table(circuit, view, "merge")
    kept_apart = view.qkv == "parallel"
    lines = [
        "<?xml version='1.0' encoding='UTF-8'?>",
        f'<gexf xmlns="{_NAMESPACE}" xmlns:viz="{_NAMESPACE}/viz" version="1.3">',
        "<meta>",
        "<creator>wiremap</creator>",
        f"<description>{content(json.dumps(description(circuit), allow_nan=False))}</description>",
        "</meta>",
        '<graph defaultedgetype="directed" mode="static">',
    ]
    # Values name their attribute by the id declared for its title, which is its number here.
    titles: dict[str, dict[str, str]] = {}
    for scope, rows in (("node", nodes), ("edge", edges)):
        # What GEXF has an element or an XML attribute for is no column besides.
        kinds = {name: kind for name, kind in columns(rows).items() if name not in _NATIVE[scope]}
        titles[scope] = {name: str(index) for index, name in enumerate(kinds)}
        lines += [
            f'<attributes class="{scope}">',
            *(
                f"<attribute{attributes(id=titles[scope][name], title=name, type=_TYPES[kind])} />"
                for name, kind in kinds.items()
            ),
            "</attributes>",
        ]
    lines.append("<nodes>")
    for node in nodes:
        lines += [
            f"<node{attributes(id=node['label'], label=node['label'])}>",
            *_attvalues(node, titles["node"]),
            _color(node),
            f"<viz:position{attributes(x=node['x'], y=node['y'], z=0.0)} />",
            f"<viz:size{attributes(value=node['size'])} />",
            "</node>",
        ]
    lines += ["</nodes>", "<edges>"]
    for index, edge in enumerate(edges):
        # Of a kind for each slot, parallel edges are not merged by Gephi.
        kind = edge.get("slots", edge["kind"]) if kept_apart else edge["kind"]
        ends = {name: edge[name] for name in ("source", "target")}
        lines += [
            f"<edge{attributes(id=f'e{index}', **ends, weight=edge['weight'], kind=kind)}>",
            *_attvalues(edge, titles["edge"]),
            _color(edge),
            "</edge>",
        ]
    return "\n".join([*lines, "</edges>", "</graph>", "</gexf>", ""])


def from_gexf(text: str) -> Circuit:
    """The circuit of a GEXF text that wiremap wrote.

    Raises:
        InputError: not that; what is lacking or contradictory is named.
    """
    root = parse(text, _NAMESPACE, "gexf")
    parts = _parts(root, "meta", "graph")
    about = _about(parts.get("meta"))
    if "graph" not in parts:
        raise InputError("expected a graph, got none")
    titles: dict[str | None, dict[str | None, ElementTree.Element]] = {}
    nodes: list[dict[str, Any]] = []
    edges: list[dict[str, Any]] = []
    # Attributes stand before the nodes and edges that have them; those of a file in another order
    # would be refused as not declared.
    for part in children(parts["graph"], "attributes", "nodes", "edges"):
        if local(part) == "attributes":
            declared = list(children(part, "attribute"))
            scope = titles[part.get("class")] = {column.get("id"): column for column in declared}
            names = {column.get("title") for column in declared}
            # Two of one id, or of one title, would become one here, and a column be lost.
            if not len(scope) == len(names) == len(declared):
                raise InputError("attributes: expected distinct ids and titles, got one twice")
        elif local(part) == "nodes":
            for node in children(part, "node"):
                row = _row(node, titles.get("node", {}), f"node {node.get('id')!r:.60}")
                nodes.append({**row, "label": node.get("id")})
        else:
            for edge in children(part, "edge"):
                row = _row(edge, titles.get("edge", {}), f"edge {edge.get('id')!r:.60}")
                ends = {name: edge.get(name) for name in ("id", "source", "target", "kind")}
                edges.append({**row, **ends})
    if len({edge["id"] for edge in edges}) < len(edges):
        raise InputError("expected distinct edge ids, got one twice")
    return from_rows(about, nodes, edges)


def _attvalues(row: Row, titles: Mapping[str, str]) -> Sequence[str]:
    return (
        "<attvalues>",
        *(
            f"<attvalue{attributes(for_=titles[name], value=value)} />"
            for name, value in row.items()
            if name in titles
        ),
        "</attvalues>",
    )


def _color(row: Mapping[str, Value]) -> str:
    # [red green blue], of "#2166ac".
    red, green, blue = bytes.fromhex(str(row["color"])[1:])
    return f"<viz:color{attributes(r=red, g=green, b=blue)} />"


def _parts(element: ElementTree.Element, *names: str) -> dict[str, ElementTree.Element]:
    """The elements inside, each once."""
    inside = list(children(element, *names))
    parts = {local(child): child for child in inside}
    if len(parts) < len(inside):
        raise InputError(f"{local(element)}: expected {', '.join(names)} once each, got one twice")
    return parts


def _about(meta: ElementTree.Element | None) -> dict[str, Any]:
    text = (
        None
        if meta is None
        else next((child.text for child in meta if local(child) == "description"), None)
    )
    # No description, one that is no JSON, and one of Gephi's own come to the same.
    try:
        about = loads(text or "")
    except InputError:
        about = None
    if not isinstance(about, dict) or "shape" not in about:
        raise InputError(
            "expected a description that says what the circuit was found in, got none; wiremap "
            "reads the GEXF it wrote, not what Gephi made of it; that is a table of edges (read_claim)"
        )
    return {str(name): value for name, value in about.items()}


def _row(
    element: ElementTree.Element,
    titles: Mapping[str | None, ElementTree.Element],
    where: str,
) -> dict[str, Any]:
    row: dict[str, Any] = {}
    # Colours, positions and sizes may be what Gephi made of them, and are made anew.
    for part in children(element, "attvalues", "color", "position", "size"):
        for value in children(part, "attvalue") if local(part) == "attvalues" else ():
            declared = titles.get(value.get("for"))
            if declared is None:
                raise InputError(
                    f"{where}: expected a declared attribute, got {value.get('for')!r:.60}"
                )
            name = str(declared.get("title"))
            if name in row:
                raise InputError(f"{where}: expected one value of {name!r:.60}, got two")
            row[name] = values(declared.get("type"), value.get("value", ""), f"{where}, {name:.60}")
    return row


FORMATS = (
    Format(
        "gexf",
        ".gexf",
        "Gephi",
        encode=lambda circuit, view: to_gexf(circuit, view).encode(),
        decode=lambda content: from_gexf(content.text),
        signs=lambda content: content.start.startswith("<") and "<gexf" in content.start,
        loses="",
        shows=("qkv",),
    ),
)
