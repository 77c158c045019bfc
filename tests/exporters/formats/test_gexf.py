"""GEXF 1.3: what Gephi needs, what networkx reads, what comes back."""

from __future__ import annotations

from io import BytesIO
from typing import Any
from xml.etree import ElementTree

import circuits_for_tests as by_hand
import networkx
import pytest
from circuits_for_tests import CIRCUITS

from wiremap.circuits import Circuit
from wiremap.edges import InputError
from wiremap.exporters import View
from wiremap.exporters.formats.gexf import from_gexf, to_gexf
from wiremap.exporters.formats.graphml import to_graphml

NAMESPACE = "{http://gexf.net/1.3}"


def read(circuit: Circuit, qkv: str | None = None) -> Any:
    """What networkx reads."""
    return networkx.read_gexf(BytesIO(to_gexf(circuit, View(qkv=qkv)).encode()), version="1.3")


@pytest.mark.parametrize("qkv", ["merge", "nodes", "parallel"])
@pytest.mark.parametrize("circuit", CIRCUITS.values(), ids=CIRCUITS)
def test_networkx_reads_the_same_as_from_graphml(circuit: Circuit, qkv: str) -> None:
    graph = read(circuit, qkv)
    text = to_graphml(circuit, View(qkv=qkv))
    other = networkx.read_graphml(BytesIO(text.encode()), force_multigraph=graph.is_multigraph())
    drawing = {"label", "x", "y", "size", "color", "viz", "id", "kind"}
    assert list(graph) == list(other)
    for name, row in graph.nodes(data=True):
        viz, theirs = row["viz"], other.nodes[name]
        assert (viz["position"]["x"], viz["position"]["y"]) == (theirs["x"], theirs["y"])
        assert viz["size"] == theirs["size"]
        assert "#{r:02x}{g:02x}{b:02x}".format(**viz["color"]) == theirs["color"]
        assert row["kind"] == theirs["kind"]
        assert comparable(row, drawing) == comparable(theirs, drawing)
    one, two = (
        sorted((u, v, sorted(comparable(row, drawing).items())) for u, v, row in g.edges(data=True))
        for g in (graph, other)
    )
    assert one == two


def comparable(row: dict[str, Any], without: set[str]) -> dict[str, Any]:
    return {name: str(value) for name, value in row.items() if name not in without}


def test_gephi_keeps_parallel_edges_apart_and_drops_none() -> None:
    root = ElementTree.fromstring(to_gexf(by_hand.circuit(), View(qkv="parallel")))
    edges = list(root.iter(f"{NAMESPACE}edge"))
    assert len(edges) == len(by_hand.EDGES)
    assert len({edge.get("id") for edge in edges}) == len(edges)
    ends = [(edge.get("source"), edge.get("target"), edge.get("kind")) for edge in edges]
    assert len(set(ends)) == len(ends)
    assert ("a0.h0", "a1.h1", "q") in ends
    assert all(float(edge.get("weight", "nan")) > 0 for edge in edges)


def test_merged_edges_are_of_one_kind() -> None:
    root = ElementTree.fromstring(to_gexf(by_hand.circuit()))
    assert {edge.get("kind") for edge in root.iter(f"{NAMESPACE}edge")} == {"edge"}


def test_what_gephi_draws_stands_after_the_values() -> None:
    """Gephi reads attvalues that come after viz elements, other readers do not."""
    root = ElementTree.fromstring(to_gexf(by_hand.circuit()))
    for node in root.iter(f"{NAMESPACE}node"):
        assert [child.tag.rpartition("}")[2] for child in node] == [
            "attvalues", "color", "position", "size",
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("</gexf>", "", "expected XML"),
        ("http://gexf.net/1.3", "http://gexf.net/2.0", "expected a gexf document of http://gexf.n"),
        ("<gexf", "<!DOCTYPE x [<!ENTITY a 'a'>]><gexf", "without a document type"),
        ("<description>{", "<description>made by Gephi 0.10.1 {", "not what Gephi made of it"),
        ("</meta>", "</meta><meta/>", "expected meta, graph once each, got one twice"),
        ('id="e1"', 'id="e0"', "expected distinct edge ids, got one twice"),
        ('<node id="m0"', '<node id="input"', "nodes: expected distinct ids"),
        ('<node id="m0"', '<node id="m1"', "nodes: missing m0"),
        ('target="m0"', 'target="m9"', "unknown reader 'm9'"),
        ('source="a0.h0" target="a1.h1"', 'source="a1.h1" target="a0.h0"', "does not exist"),
        ('source="input"', 'origin="input"', "edges: expected a source, got None"),
        ('for="1"', 'for="99"', "expected a declared attribute, got '99'"),
        ('<attribute id="1"', '<attribute id="0"', "expected distinct ids and titles"),
        ('value="1.25"', 'value="NaN"', "expected a value of type 'double', got 'NaN'"),
        ('value="1.25"', 'value="1_25"', "expected a value of type 'double', got '1_25'"),
        ('type="double"', 'type="anyURI"', "expected a value of type 'anyURI'"),
        ("<nodes>", "<nodes><nodes/>", "nodes: expected node inside, got 'nodes'"),
        (
            '"schema_version": "1.2"',
            '"schema_version": "9.0"',
            "reads version 1.2, the document has 9.0",
        ),
    ],
)
def test_broken_files_are_refused(old: str, new: str, message: str) -> None:
    text = to_gexf(by_hand.circuit())
    assert from_gexf(text) == by_hand.circuit()
    assert old in text
    with pytest.raises(InputError, match=message):
        from_gexf(text.replace(old, new, 1))
