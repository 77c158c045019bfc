"""GraphML (http://graphml.graphdrawing.org/specification.html), so that strict readers agree.

networkx's own writer numbers parallel edges 0, 1, 2, which Gephi takes for repeats and drops, and
writes several columns of one name when types differ; hence this one. Its rules: every edge id and
key is unique; q, k and v edges between two nodes are merged into one, with ``score_q`` and so on
(unless asked for otherwise); ``score`` and ``effect`` are then sums, what does not add up (errors, intervals, losses) stands by
slot alone; ``weight`` is the magnitude and never 0, because Gephi deletes edges
of weight 0 and draws negative ones thinnest; sign and signed values stand in columns of their own;
values that are missing are left out.

Keeps everything, and is read back equal, also after networkx wrote it again: nodes, edges, slots,
scores, effects, losses, and the run's description as graph data (Gephi warns that it ignores that, and does
not write it again: what Gephi saved is no longer a circuit). Adds layered positions (y upwards) and
colours. Refused on reading: document types, nested graphs, hyperedges, ports.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any
from xml.etree import ElementTree

from ...circuits.result.circuit import Circuit
from ...circuits.result.document import description, loads
from ...edges.errors import InputError
from ..format import Format
from ..pictures.shown import View
from .markup import attributes, children, content, local, parse, values
from .table import Row, columns, from_rows, table

_NAMESPACE = "http://graphml.graphdrawing.org/xmlns"


_TYPES: Mapping[type, str] = {str: "string", bool: "boolean", int: "int", float: "double"}


_NO_VIEW = View()


def to_graphml(circuit: Circuit, view: View = _NO_VIEW) -> str:
    """The circuit as GraphML text, the same bytes every time."""
    # GraphML has no nested values: what is nested travels as JSON text.
    about: Row = {
        name: value if isinstance(value, str) else json.dumps(value, allow_nan=False)
        for name, value in description(circuit).items()
    }
    nodes, edges = table(circuit, view, "merge")
    lines = [
        "<?xml version='1.0' encoding='UTF-8'?>",
        f'<graphml xmlns="{_NAMESPACE}">',
    ]
    for scope, rows in (("graph", [about]), ("node", nodes), ("edge", edges)):
        for name, kind in columns(rows).items():
            # Names need only be unique among nodes, or edges; ids of keys in the whole file.
            named = {"for": scope, "attr.name": name, "attr.type": _TYPES[kind]}
            lines.append(f"<key{attributes(id=f'{scope[0]}_{name}', **named)} />")
    lines.append('<graph id="circuit" edgedefault="directed">')
    lines += _data("g", about)
    for node in nodes:
        lines += [f"<node{attributes(id=node['label'])}>", *_data("n", node), "</node>"]
    for index, edge in enumerate(edges):
        ends = attributes(source=edge["source"], target=edge["target"])
        lines += [f'<edge id="e{index}"{ends}>', *_data("e", edge), "</edge>"]
    return "\n".join([*lines, "</graph>", "</graphml>", ""])


def from_graphml(text: str) -> Circuit:
    """The circuit of a GraphML text that wiremap wrote, or networkx after it.

    Raises:
        InputError: not that; what is lacking or contradictory is named.
    """
    about, nodes, edges = _read(text)
    if "shape" not in about:
        raise InputError(
            "expected graph data that says what the circuit was found in, got none; wiremap reads "
            "the GraphML it wrote, not what Gephi made of it; that is a table of edges (read_claim)"
        )
    _check_rules(nodes, edges)
    return from_rows(
        {
            # These two were text already, and are no JSON.
            name: value if name in ("format", "schema_version") else _loads(name, value)
            for name, value in about.items()
        },
        nodes,
        edges,
    )


def _data(prefix: str, row: Row) -> list[str]:
    return [
        f'<data key="{prefix}_{name}">{content(value)}</data>'
        for name, value in row.items()
        if name not in ("source", "target")
    ]


def _loads(name: str, value: Any) -> Any:
    try:
        return loads(str(value))
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _read(text: str) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """The graph's own row, and those of nodes and edges. Raises InputError for a broken rule."""
    root = parse(text, _NAMESPACE, "graphml")
    inside = list(children(root, "key", "graph", "desc"))
    keys: dict[str | None, ElementTree.Element] = {
        key.get("id"): key for key in inside if local(key) == "key"
    }
    graphs = [element for element in inside if local(element) == "graph"]
    # A key whose id comes twice has replaced the first in ``keys``: there are fewer than came in.
    if len(keys) + len(graphs) < sum(local(element) != "desc" for element in inside):
        raise InputError("expected distinct key ids, got one twice")
    if len(graphs) != 1:
        raise InputError(f"expected one graph, got {len(graphs)}")
    names = [(key.get("for"), key.get("attr.name")) for key in keys.values()]
    # networkx writes two keys of one name where types differ: which holds cannot be told.
    if len(set(names)) < len(names):
        raise InputError("expected one key for each column, got two of one name")
    about: dict[str, Any] = {}
    nodes: list[dict[str, Any]] = []
    edges: list[dict[str, Any]] = []
    for element in children(graphs[0], "data", "node", "edge", "desc"):
        if local(element) == "data":
            about |= _values([element], keys, "graph")
        elif local(element) == "node":
            where = f"node {element.get('id')!r:.60}"
            row = _values(children(element, "data", "desc"), keys, where)
            nodes.append({**row, "label": element.get("id")})
        elif local(element) == "edge":
            ends = f"{element.get('source')}->{element.get('target')}"
            where = f"edge {element.get('id') or ends!r:.60}"
            row = _values(children(element, "data", "desc"), keys, where)
            edges.append(
                {**row, **{name: element.get(name) for name in ("id", "source", "target")}}
            )
    return about, nodes, edges


def _values(
    data: Iterable[ElementTree.Element],
    keys: Mapping[str | None, ElementTree.Element],
    where: str,
) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for element in data:
        if local(element) == "desc":
            continue
        key = keys.get(element.get("key"))
        if key is None:
            raise InputError(f"{where}: expected a declared key, got {element.get('key')!r:.60}")
        name = str(key.get("attr.name"))
        if name in row:
            raise InputError(f"{where}: expected one value of {name!r:.60}, got two")
        row[name] = values(key.get("attr.type"), element.text or "", f"{where}, {name:.60}")
    return row


def _check_rules(nodes: list[dict[str, Any]], edges: list[dict[str, Any]]) -> None:
    names = {node["label"] for node in nodes}
    if len(names) < len(nodes):
        raise InputError("expected distinct node ids, got one twice")
    # GraphML lets edges go without ids.
    ids = [edge["id"] for edge in edges if edge["id"] is not None]
    if len(set(ids)) < len(ids):
        raise InputError("expected distinct edge ids, got one twice: Gephi would drop the edge")
    for edge in edges:
        for end in ("source", "target"):
            if edge[end] not in names:
                raise InputError(f"edge {edge['id']}: its {end} {edge[end]!r:.60} is no node")
        weight = edge.get("weight")
        # ``not weight > 0``, since nan is not at most 0 either. networkx writes whole numbers as such.
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not weight > 0:
            raise InputError(
                f"edge {edge['id'] or edge['source']}: expected a weight above 0, got {weight!r:.60}"
            )


FORMATS = (
    Format(
        "graphml",
        ".graphml",
        "Gephi, yEd, igraph, networkx, graph-tool",
        encode=lambda circuit, view: to_graphml(circuit, view).encode(),
        decode=lambda content: from_graphml(content.text),
        signs=lambda content: content.start.startswith("<") and "<graphml" in content.start,
        loses="",
        shows=("qkv",),
    ),
)
