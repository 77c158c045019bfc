"""The circuit type: order, nodes, graph, document."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from importlib.resources import files
from typing import Any

import circuits_for_tests as by_hand
import jsonschema
import pytest

from wiremap.circuits import Circuit, CircuitEdge
from wiremap.circuits.result.document import dumps, from_document, loads, to_document
from wiremap.circuits.result.evidence import Evidence
from wiremap.edges import InputError, ModelGraph

SCHEMA = json.loads(files("wiremap.circuits").joinpath("circuit.schema.json").read_text())


def test_edges_and_nodes_stand_in_the_order_of_computation() -> None:
    circuit = by_hand.circuit()
    assert [edge.name for edge in circuit.edges] == [
        "input->a0.h0<v>", "input->m0", "a0.h0->a1.h1<q>", "a0.h0->a1.h1<k>",
        "m0->logits", "a1.h1->logits",
    ]  # fmt: skip
    assert [node.name for node in circuit.nodes] == [
        "input", "a0.h0", "m0", "a1.h1", "logits",
    ]  # fmt: skip
    backwards = Circuit.build(by_hand.SHAPE, by_hand.EDGES[::-1], {})
    assert backwards.edges == circuit.edges


def test_faithfulness_by_hand() -> None:
    found = by_hand.circuit().faithfulness
    assert found is not None
    assert found.faithfulness == (3 - -1) / (4 - -1)


def test_the_graph_keeps_parallel_edges_and_what_is_known_of_them() -> None:
    graph = by_hand.circuit().graph
    assert graph.number_of_edges() == 6
    assert set(graph["a0.h0"]["a1.h1"]) == {"q", "k"}
    edge = graph["a0.h0"]["a1.h1"]["q"]
    assert (edge["effect"], edge["effect_low"], edge["effect_high"]) == (-0.75, -1.25, 0.125)
    assert edge["inclusion"] == 0.625
    assert graph["a0.h0"]["a1.h1"]["k"]["effect_low"] is None
    assert graph["a0.h0"]["a1.h1"]["k"]["verified"] is False
    assert graph.nodes["m0"] == {"kind": "mlp", "layer": 0, "head": None, "score": 0.5}


def test_a_shared_key_value_head_leads_to_its_query_heads() -> None:
    circuit = by_hand.grouped()
    assert circuit.groups == (("a0.kv1", "a0.h2"), ("a0.kv1", "a0.h3"))
    assert set(circuit.graph["a0.kv1"]) == {"a0.h2", "a0.h3"}


def test_edges_twice_or_not_in_the_model_are_refused() -> None:
    edge = CircuitEdge("input", "m0")
    with pytest.raises(InputError, match="edge input->m0 is named twice"):
        Circuit.build(by_hand.SHAPE, [edge, edge])
    with pytest.raises(InputError, match="unknown writer 'a5.h0'"):
        Circuit.build(by_hand.SHAPE, [CircuitEdge("a5.h0", "logits")])


# ---- the document


@pytest.mark.parametrize("circuit", [by_hand.circuit(), by_hand.grouped()], ids=["full", "grouped"])
def test_documents_come_back_equal_and_fit_the_schema(circuit: Circuit) -> None:
    text = dumps(to_document(circuit))
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(json.loads(text), SCHEMA)
    back = from_document(loads(text))
    assert back == circuit
    assert dumps(to_document(back)) == text


def test_an_empty_circuit_is_a_circuit() -> None:
    empty = Circuit.build(by_hand.SHAPE, [])
    text = dumps(to_document(empty))
    jsonschema.validate(json.loads(text), SCHEMA)
    assert from_document(loads(text)) == empty


def test_not_a_number_is_never_written() -> None:
    edge = replace(by_hand.EDGES[0], score=math.nan)
    circuit = Circuit.build(by_hand.SHAPE, [edge])
    with pytest.raises(ValueError, match="JSON compliant"):
        dumps(to_document(circuit))


def edited(**changes: Any) -> dict[str, Any]:
    return {**to_document(by_hand.circuit()), **changes}


def with_edge(index: int = 0, **changes: Any) -> dict[str, Any]:
    document = to_document(by_hand.circuit())
    document["edges"][index] = {**document["edges"][index], **changes}
    return document


WRONG: dict[str, tuple[Any, str]] = {
    "a list": ([], "the document: expected an object, got list"),
    "another format": (edited(format="gexf"), "expected a document with format 'wiremap-circuit'"),
    "a newer schema": (edited(schema_version="2.0"), "reads version 1.2, the document has 2.0"),
    "a strange version": (edited(schema_version="one"), "expected 'major.minor', got 'one'"),
    "no edges": ({k: v for k, v in edited().items() if k != "edges"}, "edges: expected, but miss"),
    "a shape of text": (edited(shape={"n_layers": "2"}), "shape.n_layers: expected int, got '2'"),
    "a boolean size": (edited(shape={"n_layers": True}), "shape.n_layers: expected int, got True"),
    "no layers": (
        edited(shape={"n_layers": 0, "n_heads": 1, "n_kv_heads": 1, "parallel": False}),
        "shape.n_layers: expected a number from 1 to 100000, got 0",
    ),
    "a monstrous shape": (
        edited(shape={"n_layers": 90000, "n_heads": 90000, "n_kv_heads": 1, "parallel": False}),
        "expected at most 100000 heads",
    ),
    "an edge of another model": (
        with_edge(source="a7.h0", id="a7.h0->a0.h0<v>"),
        "unknown writer 'a7.h0'",
    ),
    "an edge backwards": (
        with_edge(4, source="a1.h1", target="m0", id="a1.h1->m0"),
        "does not exist in this model",
    ),
    "an id that does not fit": (with_edge(id="input->m0"), r"edges\[0\].id: expected 'input->a0"),
    "an unknown slot": (with_edge(slot="w"), r"edges\[0\].slot: expected q, k, v or null"),
    "a text as score": (with_edge(score="big"), r"edges\[0\].score: expected a number, got 'big'"),
    "a huge score": (with_edge(score=10**400), r"edges\[0\].score: expected a finite number"),
    "verified by nothing": (
        with_edge(verified={"effect": None, "standard_error": None, "n_pairs": 1}),
        "verified.effect: expected a number, got null",
    ),
    "verified on no pairs": (
        with_edge(verified={"effect": 1.0, "standard_error": None, "n_pairs": 0}),
        r"verified.n_pairs: expected a number from 1 to 2147483647, got 0",
    ),
    "verified on too many pairs": (
        with_edge(verified={"effect": 1.0, "standard_error": None, "n_pairs": 2**31}),
        "got 2147483648",
    ),
    "a negative error": (
        with_edge(verified={"effect": 1.0, "standard_error": -0.5, "n_pairs": 2}),
        r"verified.standard_error: expected 0 or more, got -0.5",
    ),
    **{
        f"an interval that is {what}": (
            with_edge(
                verified={"effect": 1.0, "standard_error": None, "n_pairs": 2, "interval": ends}
            ),
            rf"edges\[0\].verified.interval: expected {message}",
        )
        for what, ends, message in (
            ("no list", 1.0, "list, got 1.0"),
            ("a number", [1.0], r"two numbers or null, got \[1.0\]"),
            ("half open", [1.0, None], r"\[low, high\] with low <= high, got \[1.0, None\]"),
            ("upside down", [1.0, 0.5], r"\[low, high\] with low <= high, got \[1.0, 0.5\]"),
            ("endless", [1.0, 10**400], "a finite number"),
            ("of text", ["1", "2"], "a number, got '1'"),
        )
    },
    "included in more than all": (
        with_edge(inclusion=1.5),
        r"edges\[0\].inclusion: expected a share",
    ),
    "included in less than none": (with_edge(inclusion=-0.5), "a share from 0 to 1, got -0.5"),
    "a list as evidence": (edited(evidence=[]), r"evidence: expected dict, got \[\]"),
    "a missing node": (edited(nodes=[]), "nodes: missing input"),
    "an edge twice": (
        edited(edges=to_document(by_hand.circuit())["edges"] * 2),
        "is named twice",
    ),
    "a node of no kind": (
        edited(nodes=[{**node, "kind": "neuron"} for node in edited()["nodes"]]),
        r"nodes\[0\].kind: expected one of input, head, kv, mlp, logits, got 'neuron'",
    ),
    "a node of the wrong kind": (
        edited(nodes=[{**node, "kind": "mlp"} for node in edited()["nodes"]]),
        "its kind, layer or head do not fit its name",
    ),
    "a ratio of nothing": (
        edited(faithfulness={"full": 1, "empty": 1, "circuit": 1, "n_pairs": 1}),
        "full != empty",
    ),
}


@pytest.mark.parametrize(("document", "message"), WRONG.values(), ids=WRONG)
def test_wrong_documents_are_refused(document: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_document(document)


def test_unknown_fields_of_a_newer_minor_version_are_ignored() -> None:
    document = {**with_edge(strength=3), "schema_version": "1.7", "layout": {"rows": 3}}
    assert from_document(document) == by_hand.circuit()


def test_documents_of_version_1_0_are_read() -> None:
    document: dict[str, Any] = {**to_document(by_hand.circuit()), "schema_version": "1.0"}
    del document["evidence"]
    for edge in document["edges"]:
        del edge["inclusion"], edge["loss"]
        if edge["verified"]:
            del edge["verified"]["interval"]
    jsonschema.validate(document, SCHEMA)
    edges = [replace(edge, interval=None, inclusion=None, loss=None) for edge in by_hand.EDGES]
    back = from_document(document)
    assert back == replace(by_hand.circuit(), edges=Circuit.build(by_hand.SHAPE, edges).edges)
    assert back.evidence == Evidence()


def test_intervals_inclusion_and_evidence_come_back() -> None:
    evidence = {"bound": {"largest": 0.25}, "removed": {"score": 3}}
    text = dumps(to_document(by_hand.circuit(evidence=evidence)))
    jsonschema.validate(json.loads(text), SCHEMA)
    back = from_document(loads(text))
    assert (back.edges[0].interval, back.edges[0].inclusion) == ((1.0, 1.5), 1.0)
    assert back.evidence.as_document() == evidence
    for broken in (
        with_edge(inclusion=2),
        with_edge(verified={"effect": 1, "standard_error": 1, "n_pairs": 1, "interval": [1]}),
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, SCHEMA)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected JSON"),
        ("{", "expected JSON"),
        ('{"a": NaN}', "got NaN, which JSON does not have"),
        ('{"a": -Infinity}', "got -Infinity"),
        ('{"a": 1e999}', "expected finite numbers, got 1e999"),
        ('{"a": 1, "a": 2}', "got 'a' twice in one object"),
        ("[" * 100_000, "expected JSON"),
        (f'{{"a": {"9" * 5000}}}', "expected JSON"),
    ],
)
def test_text_that_is_not_strict_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        loads(text)


def test_grouped_shapes_have_edges_into_kv_heads() -> None:
    assert ModelGraph(1, 4, 2).edge("input->a0.kv1<v>")
