"""GraphML by the rules that make strict readers and Gephi agree."""

from __future__ import annotations

import math
from io import BytesIO
from typing import Any
from xml.etree import ElementTree

import circuits_for_tests as by_hand
import networkx
import pytest

from wiremap.circuits import Circuit
from wiremap.edges import InputError
from wiremap.exporters.graphml import check_graphml, to_graphml

NAMESPACE = "{http://graphml.graphdrawing.org/xmlns}"


def parsed(circuit: Circuit) -> tuple[ElementTree.Element, Any]:
    """The XML, and what networkx reads from it."""
    text = to_graphml(circuit)
    return ElementTree.fromstring(text), networkx.read_graphml(BytesIO(text.encode()))


@pytest.mark.parametrize("circuit", [by_hand.circuit(), by_hand.grouped()], ids=["full", "grouped"])
def test_the_rules(circuit: Circuit) -> None:
    root, _ = parsed(circuit)
    keys = list(root.iter(f"{NAMESPACE}key"))
    ids = [key.get("id") for key in keys]
    assert len(set(ids)) == len(ids)
    assert all(key_id == (key_id or "").lower() for key_id in ids)
    columns = [(key.get("for"), key.get("attr.name")) for key in keys]
    assert len(set(columns)) == len(columns)
    assert {key.get("for") for key in keys} == {"graph", "node", "edge"}
    assert {key.get("attr.type") for key in keys} <= {"string", "boolean", "int", "double"}
    edges = list(root.iter(f"{NAMESPACE}edge"))
    assert len({edge.get("id") for edge in edges}) == len(edges)
    assert len({(edge.get("source"), edge.get("target")) for edge in edges}) == len(edges)
    for edge in edges:
        weight = edge.findtext(f"{NAMESPACE}data[@key='e_weight']")
        assert 0 < float(weight or "nan") < math.inf
    children = [child.tag for child in root]
    assert children == [f"{NAMESPACE}key"] * len(keys) + [f"{NAMESPACE}graph"]
    (graph,) = root.iter(f"{NAMESPACE}graph")
    kinds = [child.tag for child in graph if child.tag != f"{NAMESPACE}data"]
    assert kinds == sorted(kinds, reverse=True), "nodes before edges"
    used = {data.get("key") for data in root.iter(f"{NAMESPACE}data")}
    assert used == set(ids)


def test_networkx_reads_types_and_values() -> None:
    _, graph = parsed(by_hand.circuit())
    assert set(graph) == {"input", "a0.h0", "m0", "a1.h1", "logits"}
    node = graph.nodes["m0"]
    assert (node["kind"], node["layer"], node["score"]) == ("mlp", 0, 0.5)
    assert "layer" not in graph.nodes["input"]
    edge = graph["input"]["a0.h0"]
    assert edge["effect"] == edge["weight"] == 1.25
    assert edge["effect_se"] == 0.125
    assert edge["verified"] is True
    assert edge["n_pairs"] == 8
    assert (edge["sign"], edge["color"]) == ("positive", "#2166ac")
    assert graph.graph["faithfulness"] == "0.8"


def test_queries_keys_and_values_between_two_nodes_are_one_edge() -> None:
    _, graph = parsed(by_hand.circuit())
    edge = graph["a0.h0"]["a1.h1"]
    assert edge["slots"] == "q,k"
    assert edge["score"] == -0.5 + 0.25
    assert (edge["score_q"], edge["score_k"], edge["effect_q"]) == (-0.5, 0.25, -0.75)
    assert "effect" not in edge, "k was not measured"
    assert edge["verified"] is False
    assert edge["weight"] == 0.75 - 0.25
    assert edge["sign"] == "negative"
    assert "effect_k" not in edge


def test_zero_and_tiny_edges_keep_a_weight_gephi_does_not_delete() -> None:
    _, graph = parsed(by_hand.circuit())
    zero, tiny = graph["input"]["m0"], graph["a1.h1"]["logits"]
    assert zero["weight"] == 1e-30
    assert (zero["effect"], zero["abs_score"], zero["sign"]) == (0.0, 0.0, "zero")
    assert (tiny["effect"], tiny["weight"]) == (-1e-9, 1e-9)


def test_ranks_follow_magnitude() -> None:
    _, graph = parsed(by_hand.circuit())
    edges = sorted(graph.edges(data=True), key=lambda edge: edge[2]["rank"])
    weights = [data["weight"] for _, _, data in edges]
    assert weights == sorted(weights, reverse=True)
    assert [data["rank"] for _, _, data in edges] == list(range(1, len(edges) + 1))


def test_hostile_text_stays_text() -> None:
    hostile = 'quote " < & ]]> \n \x00\x1b\ufffe \u202e \U0001f600 INF null </script>'
    _, graph = parsed(by_hand.circuit(model={"name": hostile}))
    assert "\\u0000" in graph.graph["model"]
    assert "</script>" in graph.graph["model"]


@pytest.mark.parametrize("circuit", [by_hand.circuit(), by_hand.grouped()], ids=["full", "grouped"])
def test_our_own_check_counts(circuit: Circuit) -> None:
    _, graph = parsed(circuit)
    counted = (graph.number_of_nodes(), graph.number_of_edges())
    assert check_graphml(to_graphml(circuit)) == counted


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("</graphml>", "", "expected XML"),
        ("graphml.graphdrawing.org", "elsewhere.example", "expected a graphml document"),
        ('id="e1"', 'id="e0"', "expected distinct edge ids, got one twice: Gephi would drop"),
        ('target="m0"', 'target="m9"', "its target 'm9' is no node"),
        ('<data key="e_weight">1.25<', '<data key="e_weight">-1.25<', "a weight above 0"),
        ('<data key="e_weight">1.25<', '<data key="e_weight">nan<', "a weight above 0"),
        ('<data key="e_weight">1.25<', '<data key="e_weight">much<', "a weight above 0"),
        ("<graphml", "<!DOCTYPE x [<!ENTITY a 'a'>]><graphml", "without a document type"),
        ('<node id="m0"', '<node id="input"', "expected distinct node ids"),
    ],
)
def test_broken_files_are_refused(old: str, new: str, message: str) -> None:
    text = to_graphml(by_hand.circuit())
    assert old in text
    with pytest.raises(InputError, match=message):
        check_graphml(text.replace(old, new, 1))
