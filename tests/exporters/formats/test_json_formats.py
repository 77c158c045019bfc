"""The JSON dialects of other programs: strict, read by what they are for, and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import circuits_for_tests as by_hand
import networkx
import numpy as np
import pytest
from circuits_for_tests import CIRCUITS

from wiremap.circuits import Circuit, CircuitEdge
from wiremap.circuits.result.document import description
from wiremap.edges import InputError, ModelGraph
from wiremap.exporters import View
from wiremap.exporters.formats.cytoscape import from_cytoscape, to_cytoscape
from wiremap.exporters.formats.eap_ig import from_eap_ig, to_eap_ig
from wiremap.exporters.formats.node_link import from_node_link, to_node_link


def strict(text: str) -> Any:
    """JSON as browsers read it."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


# ---- node-link


@pytest.mark.parametrize("circuit", CIRCUITS.values(), ids=CIRCUITS)
def test_networkx_makes_the_graph_of_node_link_data(circuit: Circuit) -> None:
    graph = networkx.node_link_graph(strict(to_node_link(circuit)), edges="edges")
    assert isinstance(graph, networkx.MultiDiGraph)
    assert dict(graph.nodes(data=True)) == dict(circuit.graph.nodes(data=True))
    theirs, ours = (list(g.edges(keys=True, data=True)) for g in (graph, circuit.graph))
    assert theirs == ours
    assert graph.graph == description(circuit)


@pytest.mark.parametrize("key", ["edges", "links"])
@pytest.mark.parametrize("circuit", CIRCUITS.values(), ids=CIRCUITS)
def test_what_networkx_wrote_again_is_still_the_circuit(circuit: Circuit, key: str) -> None:
    graph = networkx.node_link_graph(strict(to_node_link(circuit)), edges="edges")
    assert from_node_link(networkx.node_link_data(graph, edges=key)) == circuit


# ---- Cytoscape


@pytest.mark.parametrize("qkv", ["merge", "nodes", "parallel"])
@pytest.mark.parametrize("circuit", CIRCUITS.values(), ids=CIRCUITS)
def test_cytoscape_elements_have_what_cytoscape_needs(circuit: Circuit, qkv: str) -> None:
    data = strict(to_cytoscape(circuit, View(qkv=qkv)))
    nodes, edges = data["elements"]["nodes"], data["elements"]["edges"]
    names = [node["data"]["id"] for node in nodes]
    ids = names + [edge["data"]["id"] for edge in edges]
    assert len(set(ids)) == len(ids)
    for edge in edges:
        assert {edge["data"]["source"], edge["data"]["target"]} <= set(names)
    places = [(node["position"]["x"], node["position"]["y"]) for node in nodes]
    assert len(set(places)) == len(places)
    assert from_cytoscape(data) == circuit


def test_cytoscape_keeps_parallel_edges_and_has_classes_for_signs() -> None:
    data = strict(to_cytoscape(by_hand.circuit()))
    nodes = {node["data"]["id"]: node for node in data["elements"]["nodes"]}
    assert nodes["logits"]["position"]["y"] < nodes["input"]["position"]["y"], "downwards"
    edges = [edge for edge in data["elements"]["edges"] if edge["data"]["target"] == "a1.h1"]
    assert [(edge["data"]["slots"], edge["classes"]) for edge in edges] == [
        ("q", "negative"), ("k", "positive"),
    ]  # fmt: skip


# ---- EAP-IG


def read_eap_ig(data: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Scores and membership of edges, and membership of writers, by EAP-IG's own indices.

    Writers: input, then per layer its heads and its MLP. Readers: per layer q, k, v of all heads and
    the MLP, then the logits.
    """
    layers, heads = data["cfg"]["n_layers"], data["cfg"]["n_heads"]
    assert isinstance(data["cfg"]["d_model"], int)
    n_writers, n_readers = 1 + layers * (heads + 1), layers * (3 * heads + 1) + 1
    scores = np.full((n_writers, n_readers), np.nan)
    in_graph = np.zeros((n_writers, n_readers), bool)
    nodes = np.zeros(n_writers, bool)

    def writer(name: str) -> int:
        if name == "input":
            return 0
        layer, _, head = name[1:].partition(".h")
        return 1 + int(layer) * (heads + 1) + (int(head) if head else heads)

    def reader(name: str) -> int:
        if name == "logits":
            return n_readers - 1
        layer, _, rest = name[1:].partition(".h")
        head, _, slot = rest.partition("<")
        start = int(layer) * (3 * heads + 1)
        return start + ("qkv".index(slot[0]) * heads + int(head) if rest else 3 * heads)

    for name, node in data["nodes"].items():
        if name != "logits":
            nodes[writer(name)] = node["in_graph"]
    for name, edge in data["edges"].items():
        source, _, target = name.partition("->")
        assert isinstance(edge["score"], float)
        assert isinstance(edge["in_graph"], bool)
        assert np.isnan(scores[writer(source), reader(target)])
        scores[writer(source), reader(target)] = edge["score"]
        in_graph[writer(source), reader(target)] = edge["in_graph"]
    return scores, in_graph, nodes


@pytest.mark.parametrize("parallel", [False, True])
def test_eap_ig_finds_every_edge_of_the_model(parallel: bool) -> None:
    """The number of edges is EAP-IG's own count for GPT-2; entries are those of its matrices."""
    shape = ModelGraph(12, 12, 12, parallel)
    edges = [
        CircuitEdge("a3.h2", "a5.h7", "v", score=1.5),
        CircuitEdge("a3.h2", "m11", score=1.0, effect=-2.5, standard_error=0.5, n_pairs=4),
        CircuitEdge("input", "logits", effect=0.25, n_pairs=4),
    ]
    circuit = Circuit.build(shape, edges, {"a3.h2": 7.0}, model={"d_model": 768})
    data = strict(to_eap_ig(circuit))
    scores, in_graph, nodes = read_eap_ig(data)
    assert len(data["edges"]) == np.isfinite(scores).sum() == (32347 if parallel else 32491)
    heads, layer = 12, 3 * 12 + 1
    source = 1 + 3 * (heads + 1) + 2
    found = {(int(u), int(v)): scores[u, v] for u, v in np.argwhere(in_graph)}
    assert found == {
        (source, 5 * layer + 2 * heads + 7): 1.5,
        (source, 11 * layer + 3 * heads): -2.5,
        (0, 12 * layer): 0.25,
    }
    assert not scores[np.isfinite(scores) & ~in_graph].any()
    assert np.flatnonzero(nodes).tolist() == [0, source, 1 + 5 * 13 + 7, 1 + 11 * 13 + 12]
    assert data["nodes"]["a3.h2"]["score"] == 7.0


def eap_ig(**entries: dict[str, Any]) -> dict[str, Any]:
    """A sparse file of a model of 2 layers with 2 heads."""
    return {
        "cfg": {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 8},
        "nodes": {"input": {"in_graph": True}, "m0": {"in_graph": True, "score": 0.5}},
        "edges": {
            "input->m0": {"score": 1.0, "in_graph": True},
            "m0->logits": {"score": -2.0, "in_graph": False},
            "m0->a1.h1<k>": {"in_graph": True},
        },
        **entries,
    }


def test_eap_ig_reads_files_that_list_some_edges() -> None:
    edges = [CircuitEdge("input", "m0", score=1.0), CircuitEdge("m0", "a1.h1", "k")]
    expected = Circuit.build(by_hand.SHAPE, edges, {"m0": 0.5}, model={"d_model": 8})
    assert from_eap_ig(eap_ig()) == expected


def test_eap_ig_comes_back_without_what_it_has_no_place_for() -> None:
    circuit = by_hand.circuit(model={"name": "tiny", "d_model": 8})
    expected = Circuit.build(
        circuit.shape,
        [CircuitEdge(e.source, e.target, e.slot, score=e.worth or 0.0) for e in circuit.edges],
        {"m0": 0.5, "input": -2.0},
        model={"d_model": 8},
    )
    assert from_eap_ig(strict(to_eap_ig(circuit))) == expected


def test_eap_ig_has_no_name_for_shared_heads_and_needs_the_width() -> None:
    with pytest.raises(InputError, match=r"query heads share 2 of them\. .*--kv per-query"):
        to_eap_ig(by_hand.grouped())
    with pytest.raises(InputError, match=r"needs the width.*or set model\.d_model in its JSON"):
        to_eap_ig(by_hand.circuit())


# ---- what is wrong


def edited(data: dict[str, Any], *path: Any, to: Any) -> dict[str, Any]:
    """The data with the value at a path changed."""
    copy: Any = json.loads(json.dumps(data))
    place = copy
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = to
    return copy


NODE_LINK = json.loads(to_node_link(by_hand.circuit()))
CYTOSCAPE = json.loads(to_cytoscape(by_hand.circuit()))
WRONG: dict[str, tuple[Callable[[Any], Circuit], dict[str, Any], str]] = {
    "node-link of something else": (
        from_node_link,
        edited(NODE_LINK, "graph", to={}),
        "expected what the circuit was found in",
    ),
    "node-link, newer": (
        from_node_link,
        edited(NODE_LINK, "graph", "schema_version", to="2.0"),
        "reads version 1.2, the document has 2.0",
    ),
    "node-link, dangling": (
        from_node_link,
        edited(NODE_LINK, "edges", 0, "target", to="m7"),
        "unknown reader 'm7<v>'",
    ),
    "node-link, twice": (
        from_node_link,
        edited(NODE_LINK, "edges", to=NODE_LINK["edges"] * 2),
        "is named twice",
    ),
    "node-link, nodes twice": (
        from_node_link,
        edited(NODE_LINK, "nodes", to=NODE_LINK["nodes"] * 2),
        "expected distinct ids, got one twice",
    ),
    "node-link, a number as key": (
        from_node_link,
        edited(NODE_LINK, "edges", 0, "key", to=0),
        r"edges\[0\].key: expected str, got 0",
    ),
    "node-link, an unknown key": (
        from_node_link,
        edited(NODE_LINK, "edges", 0, "key", to="w"),
        "expected q, k, v, group or ''",
    ),
    "node-link, an edge of text": (
        from_node_link,
        edited(NODE_LINK, "edges", 0, to="a->b"),
        r"edges\[0\]: expected an object, got str",
    ),
    "Cytoscape, no data": (
        from_cytoscape,
        edited(CYTOSCAPE, "elements", "nodes", 0, to={}),
        r"elements.nodes\[0\].data: expected, but missing",
    ),
    "Cytoscape, a flat list": (
        from_cytoscape,
        edited(CYTOSCAPE, "elements", to=[]),
        "elements: expected dict",
    ),
    "Cytoscape, a text as score": (
        from_cytoscape,
        edited(CYTOSCAPE, "elements", "edges", 0, "data", "score", to="big"),
        "score: expected a number, got 'big'",
    ),
    "EAP-IG, a flag missing": (
        from_eap_ig,
        eap_ig(edges={"input->m0": {"score": 1.0}}),
        "edges.input->m0.in_graph: expected, but missing",
    ),
    "EAP-IG, an unknown node": (
        from_eap_ig,
        eap_ig(nodes={"a0.h9": {"in_graph": True}}),
        "'a0.h9' is no node of a model of this size",
    ),
    "EAP-IG, a cycle": (
        from_eap_ig,
        eap_ig(edges={"m1->a0.h0<q>": {"score": 1.0, "in_graph": True}}),
        "does not exist in this model",
    ),
    "EAP-IG, a flag of text": (
        from_eap_ig,
        eap_ig(edges={"input->m0": {"score": 1.0, "in_graph": "true"}}),
        "expected bool, got 'true'",
    ),
    "EAP-IG, neurons": (
        from_eap_ig,
        eap_ig(nodes={"m0": {"in_graph": True, "neurons": [True, False]}}),
        "m0 keeps some of its neurons only",
    ),
    "EAP-IG, nothing chosen": (
        from_eap_ig,
        eap_ig(edges={"input->m0": {"score": 1.0, "in_graph": False}}),
        r"got scores only; choose a circuit in EAP-IG \(apply_topn",
    ),
    "EAP-IG, not pruned": (
        from_eap_ig,
        eap_ig(nodes={"m0": {"in_graph": False}}),
        "m0 is not in_graph, but edges of it are; prune the graph",
    ),
    "EAP-IG, no sizes": (
        from_eap_ig,
        eap_ig(cfg={"parallel_attn_mlp": False}),
        "shape.n_layers: expected int, got None",
    ),
}


@pytest.mark.parametrize(("read", "data", "message"), WRONG.values(), ids=WRONG)
def test_wrong_files_are_refused(
    read: Callable[[Any], Circuit], data: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read(data)


def test_an_unknown_score_stays_unknown_in_eap_ig() -> None:
    circuit = Circuit.build(by_hand.SHAPE, [CircuitEdge("input", "m0")], model={"d_model": 8})
    data = strict(to_eap_ig(circuit))
    assert not any("score" in entry for entry in data["edges"].values())
    assert from_eap_ig(data).edges == circuit.edges


def test_nodes_of_older_eap_ig_are_truth_values() -> None:
    circuit = Circuit.build(by_hand.SHAPE, [CircuitEdge("input", "m0")], model={"d_model": 8})
    data = strict(to_eap_ig(circuit))
    data["nodes"] = {name: entry["in_graph"] for name, entry in data["nodes"].items()}
    assert from_eap_ig(data) == circuit
