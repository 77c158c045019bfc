"""GraphML by the rules that make strict readers and Gephi agree."""

from __future__ import annotations

import json
import math
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import circuits_for_tests as by_hand
import igraph
import networkx
import pytest
from circuits_for_tests import CIRCUITS
from lxml import etree  # pyright: ignore[reportAttributeAccessIssue]

from wiremap.circuits import Circuit
from wiremap.circuits.result.document import description
from wiremap.edges import InputError
from wiremap.exporters import View
from wiremap.exporters.formats.graphml import from_graphml, to_graphml

NAMESPACE = "{http://graphml.graphdrawing.org/xmlns}"


SCHEMA = etree.XMLSchema(etree.parse(Path(__file__).with_name("graphml.xsd")))


def parsed(circuit: Circuit, view: View | None = None) -> tuple[ElementTree.Element, Any]:
    """The XML, and what networkx reads from it."""
    text = to_graphml(circuit, view or View())
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
    assert (edge["effect_low"], edge["effect_high"], edge["inclusion"]) == (1.0, 1.5, 1.0)
    assert edge["loss"] == 0.875
    assert edge["verified"] is True
    assert edge["n_pairs"] == 8
    assert (edge["sign"], edge["color"]) == ("positive", "#2166ac")
    assert json.loads(graph.graph["faithfulness"])["faithfulness"] == 0.8


def test_queries_keys_and_values_between_two_nodes_are_one_edge() -> None:
    _, graph = parsed(by_hand.circuit())
    edge = graph["a0.h0"]["a1.h1"]
    assert edge["slots"] == "q,k"
    assert edge["score"] == -0.5 + 0.25
    assert (edge["score_q"], edge["score_k"], edge["effect_q"]) == (-0.5, 0.25, -0.75)
    assert "effect" not in edge, "k was not measured"
    assert (edge["effect_low_q"], edge["effect_high_q"]) == (-1.25, 0.125)
    assert (edge["inclusion_q"], edge["inclusion_k"]) == (0.625, 0.0)
    assert edge["loss_q"] == -0.125
    assert not {"effect_low", "effect_high", "inclusion", "effect_low_k", "loss"} & set(edge)
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


@pytest.mark.parametrize("qkv", ["merge", "nodes", "parallel"])
@pytest.mark.parametrize("circuit", CIRCUITS.values(), ids=CIRCUITS)
def test_files_fit_the_schema_and_readers_agree(tmp_path: Path, circuit: Circuit, qkv: str) -> None:
    text = to_graphml(circuit, View(qkv=qkv))
    SCHEMA.assertValid(etree.fromstring(text.encode()))
    _, theirs = parsed(circuit, View(qkv=qkv))
    if circuit == by_hand.extreme():
        return  # igraph 1.0 reads no number below 2.2e-308
    (tmp_path / "circuit.graphml").write_text(text)
    other = igraph.Graph.Read_GraphML(str(tmp_path / "circuit.graphml"))
    assert other.vs["id"] == list(theirs)
    names = other.vs["id"]
    edges = graphml_order(theirs)
    assert [(names[e.source], names[e.target]) for e in other.es] == [edge[:2] for edge in edges]
    for edge, (*_, data) in zip(other.es, edges, strict=True):
        for name, value in data.items():
            assert edge[name] == value or name == "id"
    for name in ("model", "task", "method", "evidence"):
        assert json.loads(other[name]) == description(circuit)[name]


def graphml_order(graph: Any) -> list[tuple[str, str, dict[str, Any]]]:
    """networkx's edges as they stand in the file, by their ids."""
    edges = graph.edges(data=True)
    if graph.is_multigraph():
        edges = [
            (u, v, {**data, "id": key}) for u, v, key, data in graph.edges(keys=True, data=True)
        ]
    return sorted(edges, key=lambda edge: int(edge[2]["id"][1:]))


def test_the_schema_sees_mistakes() -> None:
    """Guards the test above: the schema refuses what networkx's own writer does."""
    text = to_graphml(by_hand.circuit())
    for old, new in (
        ('id="e1"', 'id="e0"'),
        ('target="m0"', 'target="m9"'),
        ('<data key="e_weight">', '<data key="e_height">'),
        ('for="node"', 'for="nodes"'),
        ('<edge id="e1"', '<edge label="q" id="e1"'),
        ("</graph>", "</graph><key id='late' for='node'/>"),
    ):
        assert old in text
        assert not SCHEMA.validate(etree.fromstring(text.replace(old, new, 1).encode())), new


@pytest.mark.parametrize("circuit", CIRCUITS.values(), ids=CIRCUITS)
def test_what_networkx_wrote_again_is_still_the_circuit(circuit: Circuit) -> None:
    for qkv in ("merge", "nodes", "parallel"):
        _, graph = parsed(circuit, View(qkv=qkv))
        again = BytesIO()
        networkx.write_graphml_xml(graph, again)
        assert from_graphml(again.getvalue().decode()) == circuit


def test_queries_keys_and_values_as_nodes() -> None:
    _, graph = parsed(by_hand.circuit(), View(qkv="nodes"))
    assert graph["a0.h0"]["a1.h1.q"]["score"] == -0.5
    assert graph["a0.h0"]["a1.h1.k"]["score"] == 0.25
    assert "a1.h1" not in graph["a0.h0"]
    bridge = graph["a1.h1.q"]["a1.h1"]
    assert bridge["kind"] == "internal"
    assert 0 < bridge["weight"] <= min(data["weight"] for *_, data in graph.edges(data=True))
    assert graph.nodes["a1.h1.q"]["y"] < graph.nodes["a1.h1"]["y"]


def test_queries_keys_and_values_as_parallel_edges() -> None:
    _, graph = parsed(by_hand.circuit(), View(qkv="parallel"))
    edges = graph["a0.h0"]["a1.h1"].values()
    assert {edge["slots"]: edge["score"] for edge in edges} == {"q": -0.5, "k": 0.25}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("</graphml>", "", "expected XML"),
        ("graphml.graphdrawing.org", "elsewhere.example", "expected a graphml document of http"),
        ('id="e1"', 'id="e0"', "expected distinct edge ids, got one twice: Gephi would drop"),
        ('target="m0"', 'target="m9"', "its target 'm9' is no node"),
        ('<data key="e_weight">1.25<', '<data key="e_weight">-1.25<', "a weight above 0"),
        ('<data key="e_weight">1.25<', '<data key="e_weight">nan<', "of type 'double', got 'nan'"),
        ('<data key="e_weight">1.25<', '<data key="e_weight">much<', "of type 'double'"),
        ('<data key="e_score">0.5<', '<data key="e_score">1e999<', "expected a finite number"),
        ('_schema_version">1.2<', '_schema_version">2.0<', "reads version 1.2, the document has 2"),
        ('key="g_shape">{', 'key="g_shape">[', "shape: expected JSON"),
        ('<data key="g_shape">', '<data key="g_shade">', "expected a declared key, got 'g_shade'"),
        ('attr.name="shape"', 'attr.name="shade"', "not what Gephi made of it"),
        ('source="a0.h0" target="a1.h1"', 'source="a1.h1" target="a0.h0"', "does not exist"),
        ('<data key="e_slots">q,k<', '<data key="e_slots">q,w<', "expected slots such as"),
        ('<data key="e_slots">q,k<', '<data key="e_slots">q,q<', "is named twice"),
        ('<data key="e_effect">1.25<', '<data key="e_sign">1.25<', "expected one value of 'sign'"),
        (
            '<data key="e_effect">1.25</data>',
            "",
            "an effect with an error, an interval or a number",
        ),
        (
            '<data key="e_n_pairs">8<',
            '<data key="e_n_pairs">0<',
            "n_pairs: expected a number from 1",
        ),
        ('<data key="n_kind">mlp<', '<data key="n_kind">head<', "do not fit its name"),
        (
            "<edge ",
            "<hyperedge /><edge ",
            "expected data, node, edge, desc inside, got 'hyperedge'",
        ),
        ("</graph>", "</graph><graph/>", "expected one graph, got 2"),
        ("<graphml", "<!DOCTYPE x [<!ENTITY a 'a'>]><graphml", "without a document type"),
        ('<node id="m0"', '<node id="input"', "expected distinct node ids"),
    ],
)
def test_broken_files_are_refused(old: str, new: str, message: str) -> None:
    text = to_graphml(by_hand.circuit())
    assert old in text
    with pytest.raises(InputError, match=message):
        from_graphml(text.replace(old, new, 1))
