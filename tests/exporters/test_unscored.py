"""Circuits that are sets of edges alone: nothing says what an edge is worth, and no file invents it."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import circuits_for_tests as by_hand
import pytest

from wiremap.circuits import Circuit, CircuitEdge
from wiremap.circuits.result.comparison import compare
from wiremap.edges import ModelGraph
from wiremap.edges.names.graph import Slot
from wiremap.exporters import FORMATS, View, read_circuit, write_circuit
from wiremap.exporters.pictures.palette import NEGATIVE, POSITIVE, UNSCORED
from wiremap.exporters.pictures.two_circuits import to_comparison_dot
from wiremap.exporters.registry import decode

ENDS: list[tuple[str, str, Slot | None]] = [
    ("input", "a0.h1", "v"),
    ("input", "a0.h1", "k"),
    ("a0.h1", "logits", None),
]
BARE = Circuit.build(
    by_hand.SHAPE, [CircuitEdge(*ends) for ends in ENDS], model={"d_model": 8, "name": "tiny"}
)
MIXED = Circuit.build(
    by_hand.SHAPE,
    [*BARE.edges, CircuitEdge("m0", "logits", None, score=-2.0), CircuitEdge("input", "m0", None, 1.0)],
    model={"d_model": 8},
)  # fmt: skip


def mib(graph: ModelGraph, kept: list[str]) -> str:
    """A circuit of the MIB track that says of each edge whether it is in there, and no more."""
    edges = {graph.edge_name(edge): {} for edge in graph.edges()}
    return json.dumps(
        {
            "cfg": {"n_layers": graph.n_layers, "n_heads": graph.n_heads, "d_model": 8}
            | {"parallel_attn_mlp": graph.parallel},
            "nodes": {},
            "edges": {name: {"in_graph": name in kept} for name in edges},
        }
    )


def text(circuit: Circuit, name: str, **view: Any) -> str:
    return FORMATS[name].encode(circuit, View(**view)).decode()


@pytest.mark.parametrize("parallel", [False, True])
def test_sets_of_edges_are_read_without_a_score(parallel: bool) -> None:
    graph = ModelGraph(2, 2, 2, parallel)
    kept = ["input->a0.h1<v>", "a0.h1->logits"]
    found = decode(mib(graph, kept))[1]
    assert [(edge.name, edge.worth, edge.known_by) for edge in found.edges] == [
        (name, None, "unscored") for name in kept
    ]
    assert found.unscored
    assert [edge.sign for edge in found.edges] == ["unscored"] * 2


@pytest.mark.parametrize("circuit", [BARE, MIXED], ids=["bare", "mixed"])
@pytest.mark.parametrize(
    "name", [name for name, known in FORMATS.items() if known.loses is not None]
)
def test_what_is_not_known_is_not_known_after_reading(
    name: str, circuit: Circuit, tmp_path: Path
) -> None:
    path = tmp_path / "circuit"
    write_circuit(circuit, path, name)
    assert read_circuit(path).edges == circuit.edges


@pytest.mark.parametrize("qkv", ["merge", "parallel", "nodes"])
@pytest.mark.parametrize("name", ["dot", "mermaid", "graphml", "gexf", "cytoscape"])
def test_no_picture_and_no_table_has_a_sign_of_it(name: str, qkv: str) -> None:
    content = text(BARE, name, qkv=qkv)
    assert POSITIVE not in content
    assert NEGATIVE not in content
    for word in ("positive", "negative", "carries", "opposes", "zero", "+0"):
        assert word not in content.replace(">zero</data>", "").replace('value="zero"', "") or (
            word == "zero" and qkv == "nodes"  # ties between the parts of a head carry nothing
        )
    mixed = text(MIXED, name, qkv=qkv)
    assert "not scored" in mixed or "unscored" in mixed


def test_tables_have_no_magnitude_and_no_rank_of_it() -> None:
    for circuit, weight in ((BARE, 1.0), (MIXED, 1.0)):
        elements = json.loads(text(circuit, "cytoscape"))["elements"]["edges"]
        rows = [row["data"] for row in elements if row["data"].get("sign") == "unscored"]
        assert len(rows) == 3
        for row in rows:
            assert not {"score", "abs_score", "rank", "effect"} & row.keys()
            assert row["weight"] == weight
    table = csv.DictReader(io.StringIO(text(BARE, "edges-csv")))
    assert {row["score"] for row in table} == {""}


def test_the_drawing_and_the_pages_say_that_nothing_is_scored() -> None:
    for name in ("html", "report"):
        page = text(BARE, name)
        drawn = page[page.index("<svg") : page.index("</svg>")]
        assert len(re.findall(r'<path class="unscored" data-edge', drawn)) == 3
        assert not re.findall(r'<path class="(positive|negative)" data-edge', drawn)
        assert "carries the behaviour</text>" not in drawn
        assert "not scored</text>" in drawn
        assert "input-&gt;a0.h1&lt;v&gt;: not scored" in drawn
        mixed = text(MIXED, name)
        assert "carries the behaviour</text>" in mixed
        assert "not scored</text>" in mixed
    report = text(BARE, "report")
    assert "Not scored: 3 edges" in report
    assert "Scored, not verified" not in report
    assert "Largest first" not in report
    boxes = text(BARE, "html")
    assert boxes.count('value="unscored" checked> not scored <small>3</small>') == 2
    assert 'value="unscored"' not in text(by_hand.circuit(), "html")


def test_merged_edges_are_known_as_far_as_their_parts() -> None:
    parts = [CircuitEdge("input", "a0.h1", "v"), CircuitEdge("input", "a0.h1", "k", score=-1.0)]
    content = text(Circuit.build(by_hand.SHAPE, parts), "dot", qkv="merge")
    assert f'color="{NEGATIVE}"' in content
    assert UNSCORED not in content.partition("legend")[0]


def test_the_diagram_of_two_has_widths_all_the_same() -> None:
    content = to_comparison_dot(compare(BARE, BARE))
    widths = re.findall(r'penwidth="?([0-9.]+)', content)
    assert len(widths) == 3
    assert len(set(widths)) == 1


def test_of_a_scored_circuit_nothing_is_said_of_scores_that_lack() -> None:
    for name in ("dot", "mermaid", "graphml", "gexf", "cytoscape", "report"):
        content = text(by_hand.circuit(), name)
        assert "not scored" not in content.lower().replace("scored, not verified", "")
