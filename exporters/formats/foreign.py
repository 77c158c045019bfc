"""Graphs that other programs wrote, as rows of an edge table: GraphML, GEXF, node-link and the like.

networkx, Gephi and igraph write these formats without what wiremap needs to know of the model. What
they say of the edges is read all the same: the ends, by the names of nodes or by their labels, the
slot (an attribute ``slot``, or the key of a multigraph), and numbers by the names of attributes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from ...circuits.result.document import loads
from ...circuits.result.edge_table import NODE, Row
from ...edges.errors import InputError
from ...edges.names.graph import SLOTS
from ..format import Content
from .markup import local, parse_any

Values = Mapping[str, Any]


_LABELS = ("label", "name")


# Where networkx leaves the key of a multigraph's edge: in node-link and Cytoscape JSON, GraphML, GEXF.
_KEYS = ("key", "id", "networkx_key")


def graph_rows(content: Content) -> list[Row] | None:
    """The edges of a graph that another program wrote; None if it is none, or wiremap's own.

    Raises:
        InputError: a graph that is broken, or whose edges have no direction.
    """
    if content.start.startswith("<"):
        if not ("<graphml" in content.start or "<gexf" in content.start):
            return None
        root = parse_any(content.text)
        found = _graphml(root) if local(root) == "graphml" else _gexf(root)
    else:
        found = _json(content)
    if found is None:
        return None
    nodes, edges = found
    names = {key: _node_name(key, values) for key, values in nodes.items()}
    rows = [row for values in edges for row in _rows(values, names)]
    if not rows:
        raise InputError("expected a graph with edges, got none")
    return rows


Graph = tuple[Mapping[str, Values], Sequence[Values]]
"""The values of nodes by their ids, and of edges; these have ``source`` and ``target``."""


def _graphml(root: ElementTree.Element) -> Graph | None:
    keys = {part.get("id"): str(part.get("attr.name")) for part in root if local(part) == "key"}
    (graph, *more) = [part for part in root if local(part) == "graph"] or [None]
    if graph is None or more:
        raise InputError(f"expected one graph, got {len(more) + (graph is not None)}")
    # What the whole graph says: wiremap's own says of which shape the model is.
    if "shape" in _data(graph, keys):
        return None
    _check_directed(graph.get("edgedefault"))
    nodes = {str(n.get("id")): _data(n, keys) for n in graph if local(n) == "node"}
    edges = [{**part.attrib, **_data(part, keys)} for part in graph if local(part) == "edge"]
    return nodes, edges


def _data(element: ElementTree.Element, keys: Mapping[str | None, str]) -> dict[str, str]:
    return {
        keys.get(part.get("key"), str(part.get("key"))): (part.text or "").strip()
        for part in element
        if local(part) == "data"
    }


def _gexf(root: ElementTree.Element) -> Graph | None:
    texts = [part.text for part in root.iter() if local(part) == "description"]
    if any(_says_shape(text or "") for text in texts):
        return None
    graph = next((part for part in root if local(part) == "graph"), None)
    if graph is None:
        raise InputError("expected a graph, got none")
    titles = {
        (scope.get("class"), column.get("id")): str(column.get("title"))
        for scope in graph.iter()
        if local(scope) == "attributes"
        for column in scope
    }
    nodes = {str(n.get("id")): _attributes(n, "node", titles) for n in _all(graph, "node")}
    edges = [_attributes(edge, "edge", titles) for edge in _all(graph, "edge")]
    directed = graph.get("defaultedgetype", "undirected")
    for edge in edges:
        _check_directed(edge.pop("type", directed))
    # GEXF writes a weight of 1 or none at all.
    if any("weight" in edge for edge in edges):
        edges = [{"weight": "1.0", **edge} for edge in edges]
    return nodes, edges


def _all(graph: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    return (part for part in graph.iter() if local(part) == name)


def _attributes(
    element: ElementTree.Element, scope: str, titles: Mapping[tuple[str | None, str | None], str]
) -> dict[str, str]:
    values = dict(element.attrib)
    for part in element.iter():
        if local(part) == "attvalue":
            key = part.get("for") or part.get("id")
            values[titles.get((scope, key), str(key))] = part.get("value", "")
    return values


def _says_shape(text: str) -> bool:
    try:
        about = loads(text)
    except InputError:
        return False
    return isinstance(about, dict) and "shape" in about


def _json(content: Content) -> Graph | None:
    if not content.start.startswith(("{", "[")):
        return None
    data = content.data
    if isinstance(data, list):  # records, as pandas writes them
        return ({}, _objects(data, "edges")) if _has_ends(data) else None
    if "elements" in data and isinstance(data["elements"], dict):
        return _cytoscape(data)
    edges = next((data[name] for name in ("edges", "links") if name in data), None)
    if not isinstance(edges, list) or "format" in data:
        return None
    if isinstance(data.get("graph"), dict) and "shape" in data["graph"]:
        return None
    _check_directed("directed" if data.get("directed", True) else "undirected")
    nodes = _objects(data.get("nodes") or [], "nodes")
    return {str(node.get("id")): node for node in nodes}, _objects(edges, "edges")


def _cytoscape(data: Values) -> Graph | None:
    about = data.get("data")
    if isinstance(about, dict) and "shape" in about:
        return None
    _check_directed("directed" if data.get("directed", True) else "undirected")
    nodes, edges = (
        [_objects([each.get("data")], name)[0] for each in _objects(part, f"elements.{name}")]
        for name in ("nodes", "edges")
        for part in [data["elements"].get(name) or []]
    )
    return {str(node.get("id")): node for node in nodes}, edges


def _has_ends(data: Sequence[Any]) -> bool:
    return bool(data) and isinstance(data[0], dict) and {"source", "target"} <= data[0].keys()


def _objects(data: Any, where: str) -> list[Values]:
    items = data if isinstance(data, list) else [data]
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            raise InputError(f"{where}[{index}]: expected an object, got {type(item).__name__}")
    return items


def _check_directed(kind: str | None) -> None:
    if kind != "directed":
        raise InputError(
            "expected a directed graph, got edges without a direction, so which end writes and which "
            "reads is not said; write a DiGraph or MultiDiGraph"
        )


def _node_name(key: str, values: Values) -> str:
    """What a node is called: its id, if that is a node's name; else its label that is one."""
    names = [key, *(str(values[label]) for label in _LABELS if label in values)]
    return next((name for name in names if NODE.fullmatch(name)), names[-1])


def _rows(values: Values, names: Mapping[str, str]) -> Iterable[Row]:
    """The rows of an edge: one, or where wiremap merged its slots and Gephi saved them, one each."""
    cells = {str(name).lower(): _text(value) for name, value in values.items()}
    # Ties that wiremap draws between the parts of a head.
    if cells.get("kind") in ("group", "internal") or cells.get("key") == "group":
        return
    for end in ("source", "target"):
        if end not in cells:
            raise InputError(f"edges: expected a {end} of every edge, got {', '.join(cells)}")
        cells[end] = names.get(cells[end], cells[end])
    slots = cells.pop("slots", "").split(",")
    if not cells.get("slot"):
        keys = [cells[name] for name in _KEYS if cells.get(name) in SLOTS]
        slots = keys[:1] if slots == [""] and keys else slots
    for slot in slots:
        row = {**cells, "slot": cells.get("slot") or slot}
        if len(slots) > 1:
            row |= {name: cells.get(f"{name}_{slot}", "") for name in ("score", "effect")}
        yield Row(f"edge {row['source']:.40}->{row['target']:.40}", row)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return repr(value) if isinstance(value, float) else str(value).strip()
