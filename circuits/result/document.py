"""A circuit as a JSON document, and back, with every check a reader can make.

The document is described by ``circuit.schema.json`` (JSON Schema 2020-12) beside this file.
``from_document`` checks what the schema says and what it cannot say: that the edges exist in a
model of this shape, that the nodes are theirs, that no number is NaN and no name comes twice.
A newer minor version may add fields, which are ignored; a newer major version is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, cast, get_args

from ...edges.errors import InputError
from ...edges.names.graph import ModelGraph
from .circuit import Circuit, CircuitEdge, CircuitNode, Faithfulness, NodeKind
from .values import count, field, number, object_of, optional

FORMAT = "wiremap-circuit"


SCHEMA_VERSION = "1.2"


def description(circuit: Circuit) -> dict[str, Any]:
    """What a document says of the circuit as a whole: all but its nodes and edges."""
    return {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "generator": {"name": "wiremap", "version": version("wiremap")},
        "shape": circuit.shape.as_dict(),
        "model": dict(circuit.model),
        "task": dict(circuit.task),
        "method": dict(circuit.method),
        "faithfulness": circuit.faithfulness and faithfulness_document(circuit.faithfulness),
        "evidence": circuit.evidence.as_document(),
    }


def to_document(circuit: Circuit) -> dict[str, Any]:
    """The circuit as plain JSON data."""
    return {
        **description(circuit),
        "nodes": [
            {
                "id": node.name,
                "kind": node.kind,
                "layer": node.layer,
                "head": node.head,
                "score": node.score,
            }
            for node in circuit.nodes
        ],
        "edges": [
            {
                "id": edge.name,
                "source": edge.source,
                "target": edge.target,
                "slot": edge.slot,
                "score": edge.score,
                "verified": {
                    "effect": edge.effect,
                    "standard_error": edge.standard_error,
                    "interval": edge.interval and list(edge.interval),
                    "n_pairs": edge.n_pairs,
                }
                if edge.verified
                else None,
                "inclusion": edge.inclusion,
                "loss": edge.loss,
            }
            for edge in circuit.edges
        ],
    }


def faithfulness_document(found: Faithfulness) -> dict[str, Any]:
    """What a circuit carries by itself, as plain JSON data."""
    return {**asdict(found), "faithfulness": found.faithfulness}


def dumps(document: Mapping[str, Any]) -> str:
    """Strict JSON text of a document, one node or edge a line, the same bytes every time."""
    lines = [f"{json.dumps(key)}: {_value(value)}" for key, value in document.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _value(value: Any) -> str:
    if isinstance(value, list) and value:
        items = [json.dumps(item, allow_nan=False) for item in cast("list[Any]", value)]
        return "[\n" + ",\n".join(items) + "\n]"
    return json.dumps(value, allow_nan=False)


def loads(text: str) -> Any:
    """The data of a strict JSON text: no NaN, no infinity, no key twice.

    Raises:
        InputError: it is not that.
    """

    # Left to itself Python takes NaN, keeps the last of two equal keys, and reads 1e999 as
    # infinity; other readers of the file would not agree.
    constants: list[str] = []

    def keep_constant(constant: str) -> float:
        constants.append(constant)
        return float(constant)

    def refuse_repeats(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            keys = [key for key, _ in items]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise InputError(f"expected distinct keys, got {twice!r} twice in one object")
        return found

    def finite(digits: str) -> float:
        number = float(digits)
        if not math.isfinite(number):
            raise InputError(f"expected finite numbers, got {digits:.60}")
        return number

    try:
        data = json.loads(
            text,
            parse_constant=keep_constant,
            parse_float=finite,
            object_pairs_hook=refuse_repeats,
        )
    # What the hooks refused, in their words; an InputError is a ValueError, too.
    except InputError:
        raise
    except (ValueError, RecursionError) as error:  # ValueError: also integers beyond 4300 digits
        raise InputError(f"expected JSON: {error}") from None
    if constants:
        # Refused when all is read, as only then it can be said where it stands.
        place = next(_not_finite(data), "")
        raise InputError(
            f"{place:.120}{': ' if place else ''}expected JSON numbers, got {constants[0]}, which JSON "
            "does not have"
        )
    return data


def _not_finite(data: Any, where: str = "") -> Iterator[str]:
    """The places of numbers that are not finite."""
    if isinstance(data, float) and not math.isfinite(data):
        yield where
    elif isinstance(data, dict):
        for name, value in cast("dict[str, Any]", data).items():
            yield from _not_finite(value, f"{where}.{name}".lstrip("."))
    elif isinstance(data, list):
        for index, value in enumerate(cast("list[Any]", data)):
            yield from _not_finite(value, f"{where}[{index}]")


def checked(circuit: Circuit) -> Circuit:
    """The circuit with plain numbers, if it is one that can be read back.

    Raises:
        InputError: it is contradictory in itself, or holds what JSON does not have.
    """
    # Reading makes every check there is; what is left is that nothing came back changed.
    back = from_document(to_document(circuit))
    if (back.nodes, back.edges) != (circuit.nodes, circuit.edges):
        both = zip(circuit.edges, back.edges, strict=True)
        differing = next((edge.name for edge, read in both if edge != read), "nodes")
        raise InputError(
            f"{differing}: expected nodes and edges in the order of computation, and an effect "
            "wherever there is an error, an interval (of two numbers) or a number of pairs; use "
            "Circuit.build"
        )
    about = description(back)
    for name in ("model", "task", "method", "evidence"):
        try:
            json.dumps(about[name], allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{name}: expected plain JSON data: {error}") from None
    return back


def from_document(document: Any) -> Circuit:
    """The circuit of a JSON document.

    Raises:
        InputError: anything the document lacks or contradicts; the place is named.
    """
    top = object_of(document, "the document")
    if top.get("format") != FORMAT:
        raise InputError(
            f"expected a document with format {FORMAT!r}, got {top.get('format')!r:.60}"
        )
    check_version(field(top, "schema_version", str), SCHEMA_VERSION)
    shape = shape_from(object_of(field(top, "shape", dict, ""), "shape"))
    # Nodes follow from the edges: those of the document give their scores, and are compared.
    edges = [
        edge_from(object_of(item, f"edges[{index}]"), f"edges[{index}]")
        for index, item in enumerate(field(top, "edges", list, ""))
    ]
    nodes = [
        _node(object_of(item, f"nodes[{index}]"), f"nodes[{index}]")
        for index, item in enumerate(field(top, "nodes", list, ""))
    ]
    scores = {node.name: node.score for node in nodes if node.score is not None}
    circuit = Circuit.build(
        shape,
        edges,
        scores,
        model=object_of(field(top, "model", dict, ""), "model"),
        task=object_of(field(top, "task", dict, ""), "task"),
        method=object_of(field(top, "method", dict, ""), "method"),
        faithfulness=_faithfulness(top.get("faithfulness")),
        evidence=optional(top, "evidence", dict, ""),
    )
    _check_nodes(nodes, circuit)
    return circuit


def check_version(found: str, known: str) -> None:
    """Raises InputError unless a file of schema version ``found`` can be read as ``known``."""
    major, _, minor = found.partition(".")
    if not (major.isdecimal() and minor.isdecimal()):
        raise InputError(f"schema_version: expected 'major.minor', got {found!r:.60}")
    if int(major) != int(known.partition(".")[0]):
        raise InputError(
            f"schema_version: this wiremap reads version {known}, the document has "
            f"{found}; use the wiremap that wrote it"
        )


def shape_from(found: Mapping[str, Any]) -> ModelGraph:
    """The graph of a model, from plain data. Raises InputError for sizes that cannot be."""
    sizes = {
        name: field(found, name, int, "shape") for name in ("n_layers", "n_heads", "n_kv_heads")
    }
    for name, size in sizes.items():
        if not 1 <= size <= 100_000:
            raise InputError(f"shape.{name}: expected a number from 1 to 100000, got {size}")
    if sizes["n_layers"] * sizes["n_heads"] > 100_000:
        raise InputError(f"shape: expected at most 100000 heads in all, got {sizes}")
    return ModelGraph(**sizes, parallel=field(found, "parallel", bool, "shape"))


def _node(found: Mapping[str, Any], where: str) -> CircuitNode:
    kind = field(found, "kind", str, where)
    if kind not in get_args(NodeKind):
        expected = ", ".join(get_args(NodeKind))
        raise InputError(f"{where}.kind: expected one of {expected}, got {kind!r:.60}")
    return CircuitNode(
        name=field(found, "id", str, where),
        kind=kind,
        layer=optional(found, "layer", int, where),
        head=optional(found, "head", int, where),
        score=number(found, "score", where),
    )


def edge_from(found: Mapping[str, Any], where: str) -> CircuitEdge:
    """An edge from plain data. Raises InputError, naming the place, for what it lacks."""
    slot = optional(found, "slot", str, where)
    if slot not in (None, "q", "k", "v"):
        raise InputError(f"{where}.slot: expected q, k, v or null, got {slot!r:.60}")
    verified = optional(found, "verified", dict, where)
    measured: dict[str, Any] = {}
    if verified is not None:
        inside = f"{where}.verified"
        measured = {
            "effect": number(verified, "effect", inside),
            "standard_error": number(verified, "standard_error", inside),
            "interval": _interval(verified, inside),
            "n_pairs": count(verified, "n_pairs", inside),
        }
        if measured["effect"] is None:
            raise InputError(f"{inside}.effect: expected a number, got null")
        if (measured["standard_error"] or 0.0) < 0:
            raise InputError(
                f"{inside}.standard_error: expected 0 or more, got {measured['standard_error']}"
            )
    edge = CircuitEdge(
        source=field(found, "source", str, where),
        target=field(found, "target", str, where),
        slot=slot,
        score=number(found, "score", where),
        inclusion=_inclusion(found, where),
        loss=number(found, "loss", where),
        **measured,
    )
    if field(found, "id", str, where) != edge.name:
        raise InputError(f"{where}.id: expected {edge.name!r:.80}, got {found['id']!r:.80}")
    return edge


def _interval(found: Mapping[str, Any], where: str) -> tuple[float, float] | None:
    ends = optional(found, "interval", list, where)
    if ends is None:
        return None
    if len(ends) != 2:
        raise InputError(f"{where}.interval: expected two numbers or null, got {ends!r:.60}")
    low, high = (number({"interval": end}, "interval", where) for end in ends)
    if low is None or high is None or low > high:
        raise InputError(
            f"{where}.interval: expected [low, high] with low <= high, got {ends!r:.60}"
        )
    return low, high


def _inclusion(found: Mapping[str, Any], where: str) -> float | None:
    share = number(found, "inclusion", where)
    if share is not None and not 0 <= share <= 1:
        raise InputError(f"{where}.inclusion: expected a share from 0 to 1, got {share}")
    return share


def _faithfulness(found: Any) -> Faithfulness | None:
    if found is None:
        return None
    values = object_of(found, "faithfulness")
    numbers = {name: number(values, name, "faithfulness") for name in ("full", "empty", "circuit")}
    if None in numbers.values() or numbers["full"] == numbers["empty"]:
        raise InputError("faithfulness: expected numbers full, empty and circuit, full != empty")
    return Faithfulness(
        **cast("dict[str, float]", numbers),
        n_pairs=count(values, "n_pairs", "faithfulness"),
    )


def _check_nodes(found: list[CircuitNode], circuit: Circuit) -> None:
    """The nodes must be exactly the ends of the edges."""
    expected = {node.name: node for node in circuit.nodes}
    names = {node.name for node in found}
    if len(names) < len(found):
        raise InputError("nodes: expected distinct ids, got one twice")
    if missing := [name for name in expected if name not in names]:
        raise InputError(f"nodes: missing {', '.join(missing[:5])}, which edges refer to")
    for node in found:
        if node != expected.get(node.name):
            raise InputError(
                f"nodes: {node.name!r:.60} is not an end of any edge, or its kind, layer or head "
                "do not fit its name"
            )
