"""GraphML (http://graphml.graphdrawing.org/specification.html), so that strict readers agree.

networkx's own writer numbers parallel edges 0, 1, 2, which Gephi takes for repeats and drops, and
writes several columns of one name when types differ; hence this one. Its rules: every edge id and
key is unique; q, k and v edges between two nodes are merged into one, with ``score_q`` and so on;
``weight`` is the magnitude and never 0, because Gephi deletes edges of weight 0 and draws negative
ones thinnest; sign and signed values stand in columns of their own; values that are missing are
left out.

Keeps: nodes, edges, slots, scores, effects, layered positions (Gephi: y upwards), colours, and the
run's description as graph data (Gephi warns that it ignores that). Loses: nothing but the order of
edges. Not read back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from xml.etree import ElementTree

from ..circuits.circuit import Circuit, CircuitEdge
from ..edges.errors import InputError
from .dot import NEGATIVE, POSITIVE
from .layout import positions

_NAMESPACE = "http://graphml.graphdrawing.org/xmlns"
_SMALLEST_WEIGHT = 1e-30
_SPACING = 100.0
_SIZE = {"input": 20.0, "logits": 20.0, "mlp": 16.0, "head": 12.0, "kv": 12.0}
_COLOR = {
    "input": "#888888",
    "logits": "#888888",
    "mlp": "#d9a441",
    "head": "#5b84b1",
    "kv": "#7fa66b",
}
_ILLEGAL = re.compile("[^\\t\\n\\r\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")

Value = str | bool | int | float
_TYPES: Mapping[type, str] = {str: "string", bool: "boolean", int: "int", float: "double"}


def to_graphml(circuit: Circuit) -> str:
    """The circuit as GraphML text, the same bytes every time."""
    metadata = {
        "generator": "wiremap",
        "model": json.dumps(circuit.model),
        "task": json.dumps(circuit.task),
        "method": json.dumps(circuit.method),
    }
    if circuit.faithfulness is not None:
        metadata["faithfulness"] = repr(circuit.faithfulness.faithfulness)
    nodes, edges = _nodes(circuit), _edges(circuit)
    root = ElementTree.Element("graphml", xmlns=_NAMESPACE)
    for scope, rows in (("graph", [metadata]), ("node", nodes), ("edge", edges)):
        for name, kind in _columns(rows).items():
            ElementTree.SubElement(
                root,
                "key",
                {
                    "id": f"{scope[0]}_{name}",
                    "for": scope,
                    "attr.name": name,
                    "attr.type": _TYPES[kind],
                },
            )
    graph = ElementTree.SubElement(root, "graph", id="circuit", edgedefault="directed")
    _add_data(graph, "g", metadata)
    for node in nodes:
        element = ElementTree.SubElement(graph, "node", id=str(node["label"]))
        _add_data(element, "n", node)
    for index, edge in enumerate(edges):
        ends = {name: str(edge[name]) for name in ("source", "target")}
        element = ElementTree.SubElement(graph, "edge", {"id": f"e{index}", **ends})
        _add_data(element, "e", edge)
    ElementTree.indent(root, "")
    return "<?xml version='1.0' encoding='UTF-8'?>\n" + ElementTree.tostring(root, "unicode") + "\n"


def _nodes(circuit: Circuit) -> list[dict[str, Value]]:
    places = positions(circuit)
    return [
        _known(
            label=node.name,
            kind=node.kind,
            layer=node.layer,
            head=node.head,
            score=node.score,
            x=places[node.name][0] * _SPACING,
            y=places[node.name][1] * _SPACING,
            size=_SIZE[node.kind],
            color=_COLOR[node.kind],
            in_circuit=True,
        )
        for node in circuit.nodes
    ]


def _edges(circuit: Circuit) -> list[dict[str, Value]]:
    """One row for each pair of joined nodes, largest magnitude first."""
    merged: dict[tuple[str, str], list[CircuitEdge]] = {}
    for edge in circuit.edges:
        merged.setdefault((edge.source, edge.target), []).append(edge)
    rows = [_merged(edges) for edges in merged.values()]
    rows.sort(key=lambda row: -float(row["weight"]))
    thinnest = float(rows[-1]["weight"]) if rows else 1.0
    groups = [
        _known(
            source=kv_head,
            target=head,
            kind="group",
            weight=thinnest,
            sign="zero",
            color="#999999",
            in_circuit=True,
            verified=False,
        )
        for kv_head, head in circuit.groups
    ]
    return [{**row, "rank": rank} for rank, row in enumerate(rows, start=1)] + groups


def _merged(edges: Sequence[CircuitEdge]) -> dict[str, Value]:
    """The q, k and v edges between two nodes as one: sums, and each slot's own figures."""
    first = edges[0]
    worth = sum(edge.worth or 0.0 for edge in edges)
    by_slot = {
        f"{what}_{edge.slot}": value
        for edge in edges
        if edge.slot
        for what, value in (
            ("score", edge.score),
            ("effect", edge.effect),
            ("effect_se", edge.standard_error),
        )
    }
    return _known(
        source=first.source,
        target=first.target,
        kind="edge",
        weight=max(abs(worth), _SMALLEST_WEIGHT),
        score=_sum(edge.score for edge in edges),
        abs_score=abs(worth),
        sign="positive" if worth > 0 else "negative" if worth < 0 else "zero",
        effect=_sum(edge.effect for edge in edges),
        effect_se=first.standard_error if len(edges) == 1 else None,
        n_pairs=first.n_pairs,
        slots=",".join(edge.slot for edge in edges if edge.slot) or None,
        verified=all(edge.verified for edge in edges),
        in_circuit=True,
        color=NEGATIVE if worth < 0 else POSITIVE,
        **by_slot,
    )


def _sum(values: Iterable[float | None]) -> float | None:
    """The sum; None if any is missing."""
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)


def _known(**values: Value | None) -> dict[str, Value]:
    """The values that are there."""
    return {name: value for name, value in values.items() if value is not None}


def _columns(rows: Sequence[Mapping[str, Value]]) -> dict[str, type]:
    """Every column of the rows with its type; source and target are no columns."""
    return {
        name: type(value)
        for row in rows
        for name, value in row.items()
        if name not in ("source", "target")
    }


def _add_data(element: ElementTree.Element, prefix: str, row: Mapping[str, Value]) -> None:
    for name, value in row.items():
        if name in ("source", "target"):
            continue
        data = ElementTree.SubElement(element, "data", key=f"{prefix}_{name}")
        if isinstance(value, bool):
            data.text = "true" if value else "false"
        elif isinstance(value, str):
            data.text = _ILLEGAL.sub("", value)
        else:
            data.text = repr(value)


def check_graphml(text: str) -> tuple[int, int]:
    """How many nodes and edges GraphML text has, if it keeps the rules above.

    Raises:
        InputError: not XML, or a rule is broken; the element is named.
    """
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InputError("expected GraphML without a document type, got one; it is not read")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise InputError(f"expected XML: {error}") from None
    tag = f"{{{_NAMESPACE}}}"
    if root.tag != f"{tag}graphml":
        raise InputError(f"expected a graphml document, got {root.tag!r:.60}")
    names = [(key.get("for"), key.get("attr.name")) for key in root.iter(f"{tag}key")]
    if len(set(names)) < len(names):
        raise InputError("expected one key for each column, got two of one name")
    nodes = [node.get("id") for node in root.iter(f"{tag}node")]
    edges = list(root.iter(f"{tag}edge"))
    if len(set(nodes)) < len(nodes):
        raise InputError("expected distinct node ids, got one twice")
    if len({edge.get("id") for edge in edges}) < len(edges):
        raise InputError("expected distinct edge ids, got one twice: Gephi would drop the edge")
    for edge in edges:
        name = edge.get("id")
        for end in ("source", "target"):
            if edge.get(end) not in nodes:
                raise InputError(f"edge {name}: its {end} {edge.get(end)!r:.60} is no node")
        weight = edge.findtext(f"{tag}data[@key='e_weight']") or "nan"
        try:
            positive = float(weight) > 0
        except ValueError:
            positive = False
        if not positive:
            raise InputError(f"edge {name}: expected a weight above 0, got {weight!r:.60}")
    return len(nodes), len(edges)
