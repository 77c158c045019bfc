"""The JSON of EAP-IG (https://github.com/hannamw/EAP-IG), which the MIB circuit track takes.

    {"cfg":   {"n_layers": int, "n_heads": int, "parallel_attn_mlp": bool, "d_model": int},
     "nodes": {"a0.h1": {"in_graph": bool, "score": float}},
     "edges": {"input->a0.h1<q>": {"score": float, "in_graph": bool}}}

Every edge of the model is listed, as EAP-IG lists them. Of a circuit, ``score`` is the verified
effect of an edge, its score where it was not verified, nothing where it has neither, and 0 for edges
outside the circuit, whose scores a circuit does not know; of a circuit without scores none is said (EAP-IG's ``from_json`` asks for them, the circuits of MIB that are sets alone have none). Scores of all edges (MIB's importances.json) are written one by one,
so that a million of them take no memory; none is in the graph yet. Signs agree with those of MIB,
whose loss is minus the metric: positive edges carry the behaviour.

Keeps: edges, what each is worth, and scores of nodes. Loses: whether an edge is verified, with what
error and interval and on how many pairs (its effect comes back as its score), and how often it is
included; and model (but for its sizes), task, method, faithfulness, evidence. Reads files that list
every edge and files that list some; an edge belongs to the circuit when it is ``in_graph``.
Where query heads share keys and values, EAP-IG has a reader for each query head (``kv="per-query"``
in wiremap): such files are read as circuits of these, whatever their ``cfg`` says of key-value heads;
a model is then loaded to fit (``ModelGraph.kv``). Circuits of neurons are refused, and so is writing
circuits with one reader for a shared key-value head, which these names have no word for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...circuits.result.circuit import Circuit, CircuitEdge, all_nodes
from ...circuits.result.document import dumps, shape_from
from ...circuits.result.edge_table import EdgeTable
from ...circuits.result.values import field, number
from ...edges.errors import InputError
from ...edges.files import write_parts_atomically
from ...edges.names.graph import ModelGraph
from ..format import Format


def to_eap_ig(circuit: Circuit) -> str:
    """The circuit as EAP-IG's JSON text.

    Raises:
        InputError: shared key-value heads; or the circuit does not say ``d_model``, without which
            EAP-IG does not read the file.
    """
    shape = circuit.shape
    check_names(shape)
    d_model = circuit.model.get("d_model")
    if not isinstance(d_model, int):
        raise InputError(
            "EAP-IG needs the width of the residual stream, and the circuit's model does not say "
            "it; find the circuit anew, or set model.d_model in its JSON"
        )
    scores = {node.name: node.score for node in circuit.nodes}
    worths = {edge.name: edge.worth for edge in circuit.edges}
    # Of a circuit without scores no edge has one, as in the circuits of MIB that are sets alone.
    outside = {} if circuit.unscored else {"score": 0.0}
    return dumps(
        {
            "cfg": _cfg(shape, d_model),
            "nodes": {
                node.name: {
                    "in_graph": node.name in scores,
                    **({} if scores.get(node.name) is None else {"score": scores[node.name]}),
                }
                for node in all_nodes(shape)
            },
            "edges": {
                name: {
                    **(outside if name not in worths else _score(worths[name])),
                    "in_graph": name in worths,
                }
                for name in map(shape.edge_name, shape.edges())
            },
        }
    )


def _score(worth: float | None) -> dict[str, float]:
    return {} if worth is None else {"score": float(worth)}


def write_importances(
    path: str | Path, graph: ModelGraph, d_model: int, score: Callable[[int, int], float]
) -> None:
    """Writes the scores of all edges, for EAP-IG's ``Graph.from_json``.

    Args:
        score: of the edge with these places among ``graph.writers`` and ``graph.readers``.

    Raises:
        InputError: key-value heads that query heads share, which have no name there; a score that
            is not finite; a place that cannot be written.
    """
    check_names(graph)
    write_parts_atomically(Path(path), _parts(graph, d_model, score))


def from_eap_ig(data: Mapping[str, Any]) -> Circuit:
    """The circuit of EAP-IG's data: its edges that are ``in_graph``, with their scores.

    Raises:
        InputError: not that; names the model of this size does not have; a circuit of neurons; or
            scores alone, from which nothing was chosen.
    """
    shape, model = _model(field(data, "cfg", dict))
    nodes, edges = _entries(data, "nodes"), _entries(data, "edges")
    _check_whole(nodes, shape)
    kept = [
        edge for name, entry in edges.items() if (edge := _edge(name, entry, shape)) is not None
    ]
    # MIB's importances.json has scores and no edge in the graph; a circuit that lost all its edges
    # has neither.
    if not kept and any(number(entry, "score", name) for name, entry in edges.items()):
        raise InputError(
            "expected edges that are in_graph, got scores only; choose a circuit in EAP-IG "
            "(apply_topn, apply_threshold) before you write it, or here: export --top N, discover "
            "--scores; evaluate --curve ranks them"
        )
    _check_ends(nodes, kept)
    scores = {name: number(entry, "score", f"nodes.{name}") for name, entry in nodes.items()}
    known_scores = {name: score for name, score in scores.items() if score is not None}
    return Circuit.build(shape, kept, known_scores, model=model)


def importances(data: Mapping[str, Any]) -> EdgeTable | None:
    """The scores of EAP-IG's data in which no edge is in the graph; None of a circuit.

    Raises:
        InputError: not that; a name the model does not have; a score that is not finite.
    """
    entries = _entries(data, "edges")
    scored = any(number(entry, "score", f"edges.{name}") for name, entry in entries.items())
    if not scored or any(entry["in_graph"] for entry in entries.values()):
        return None
    shape, model = _model(field(data, "cfg", dict))
    whole = {name: {**entry, "in_graph": True} for name, entry in entries.items()}
    edges = tuple(edge for name, entry in whole.items() if (edge := _edge(name, entry, shape)))
    return EdgeTable(edges, "score", alone=True, shape=shape, model=model)


def _model(cfg: Mapping[str, Any]) -> tuple[ModelGraph, dict[str, Any]]:
    """The shape of the model, and what else is said of it."""
    shape = shape_from(
        {
            "n_layers": cfg.get("n_layers"),
            "n_heads": cfg.get("n_heads"),
            "n_kv_heads": cfg.get("n_heads"),
            "parallel": field(cfg, "parallel_attn_mlp", bool, "cfg"),
        }
    )
    d_model = cfg.get("d_model")
    model: dict[str, Any] = {"d_model": d_model} if isinstance(d_model, int) else {}
    if cfg.get("n_key_value_heads") is not None:
        _check_groups(cfg)
        if cfg["n_key_value_heads"] != shape.n_heads:
            model["kv"] = "per-query"
    return shape, model


def check_names(graph: ModelGraph) -> None:
    """Raises InputError for key-value heads that query heads share: they have no name there."""
    if graph.n_kv_heads != graph.n_heads:
        raise InputError(
            f"EAP-IG names keys and values by query head; this model's {graph.n_heads} query heads "
            f"share {graph.n_kv_heads} of them. Score with one reader for each: --kv per-query "
            "(and find the circuit anew), or write another format"
        )


def _check_groups(cfg: Mapping[str, Any]) -> None:
    """Raises InputError for key-value heads that query heads cannot share evenly."""
    n_heads, n_kv_heads = (
        field(cfg, name, int, "cfg") for name in ("n_heads", "n_key_value_heads")
    )
    if n_kv_heads < 1 or n_heads % n_kv_heads:
        raise InputError(
            f"cfg.n_key_value_heads: expected a divisor of n_heads, which is {n_heads}, got "
            f"{n_kv_heads}"
        )


def _check_whole(nodes: Mapping[str, Mapping[str, Any]], shape: ModelGraph) -> None:
    """Raises InputError for nodes that the model does not have, or that are there in part."""
    known = {node.name for node in all_nodes(shape)}
    for name, entry in nodes.items():
        if name not in known:
            raise InputError(f"nodes: {name!r:.60} is no node of a model of this size")
        # One truth value for each neuron. All true, or none listed, is a whole node.
        neurons = entry.get("neurons", [])
        if not isinstance(neurons, list) or not all(neurons):
            raise InputError(
                f"nodes: {name} keeps some of its neurons only, which wiremap has no edges for; "
                "read a circuit of whole nodes"
            )


def _check_ends(nodes: Mapping[str, Mapping[str, Any]], edges: Sequence[CircuitEdge]) -> None:
    """Raises InputError for an edge of the circuit whose ends are not in it."""
    ends = {end for edge in edges for end in (edge.source, edge.target)}
    for name in sorted(nodes.keys() & ends):
        if not nodes[name]["in_graph"]:
            raise InputError(
                f"nodes: {name} is not in_graph, but edges of it are; prune the graph in EAP-IG "
                "before you write it"
            )


def _entries(data: Mapping[str, Any], name: str) -> dict[str, dict[str, Any]]:
    """The nodes or edges by name; each says whether it is in the graph."""
    entries = dict(field(data, name, dict))
    for entry_name, entry in entries.items():
        where = f"{name}.{entry_name:.60}"
        if name == "nodes" and isinstance(entry, bool):  # as older versions have it
            entry = entries[entry_name] = {"in_graph": entry}
        if not isinstance(entry, dict):
            raise InputError(f"{where}: expected an object, got {type(entry).__name__}")
        field(entry, "in_graph", bool, where)
    return entries


def _edge(name: str, entry: Mapping[str, Any], shape: ModelGraph) -> CircuitEdge | None:
    """An edge of the circuit; None if the entry says that it is not in there."""
    # Edges outside the circuit are checked, too: a file of another model must not pass because the
    # edges that this one lacks happen to be left out.
    edge = shape.edge(name)
    score = number(entry, "score", f"edges.{name}")
    if not entry["in_graph"]:
        return None
    reader = shape.readers[edge.reader]
    slot = reader.kind if reader.kind in ("q", "k", "v") else None
    return CircuitEdge(shape.writers[edge.writer].name, reader.node, slot, score=score)


def _cfg(graph: ModelGraph, d_model: int) -> dict[str, Any]:
    return {
        "n_layers": graph.n_layers,
        "n_heads": graph.n_heads,
        "parallel_attn_mlp": graph.parallel,
        "d_model": d_model,
    }


def _parts(graph: ModelGraph, d_model: int, score: Callable[[int, int], float]) -> Iterator[str]:
    # Written piece by piece: json.dumps would need all edges in memory at once.
    cfg = _cfg(graph, d_model)
    # The logits write nothing, but are a node there.
    nodes = [writer.name for writer in graph.writers] + ["logits"]
    yield f'{{"cfg": {json.dumps(cfg)},\n"nodes": {{\n'
    yield ",\n".join(f'{json.dumps(name)}: {{"in_graph": false}}' for name in nodes)
    yield '},\n"edges": {\n'
    # Before an edge, not after it: JSON allows no comma behind the last.
    separator = ""
    for edge in graph.edges():
        value = float(score(*edge))  # numpy's floats have another repr
        if not math.isfinite(value):
            raise InputError(f"expected finite scores, got {value} for {graph.edge_name(edge)}")
        name = json.dumps(graph.edge_name(edge))
        yield f'{separator}{name}: {{"score": {value!r}, "in_graph": false}}'
        separator = ",\n"
    yield "}}\n"


FORMATS = (
    Format(
        "eap-ig",
        ".eap-ig.json",
        "EAP-IG, the MIB circuit track",
        encode=lambda circuit, view: to_eap_ig(circuit).encode(),
        decode=lambda content: from_eap_ig(content.data),
        signs=lambda content: "cfg" in content.keys,
        loses="errors, intervals, inclusion, losses, numbers of pairs, task, method, faithfulness, evidence "
        "and the model but for its sizes; a verified effect comes back as the score",
    ),
)
