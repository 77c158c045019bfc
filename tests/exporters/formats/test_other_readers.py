"""GraphML and GEXF as JGraphT, which checks the schema, and graphology, Gephi Lite's parser, read."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import circuits_for_tests as by_hand
import pytest
import synthetic

from wiremap.circuits import Circuit
from wiremap.circuits.result.document import description
from wiremap.exporters import View
from wiremap.exporters.formats.gexf import to_gexf
from wiremap.exporters.formats.graphml import to_graphml
from wiremap.exporters.formats.table import table

HERE = Path(__file__).with_name("readers")
JARS = [Path(f"/usr/share/java/jgrapht-{part}.jar") for part in ("core", "io")]
COMMANDS = {
    "jgrapht": ["java", "-cp", ":".join(map(str, JARS)), str(HERE / "ReadGraphML.java")],
    "graphology": ["node", str(HERE / "read_graph.mjs")],
}
WRITERS = {"graphml": to_graphml, "gexf": to_gexf}
TYPES: Mapping[str, Any] = {
    "string": str,
    "int": int,
    "double": float,
    "number": float,  # JavaScript has no other
    "boolean": {"true": True, "false": False}.__getitem__,
}
KNOWN = (
    "score", "effect", "effect_se", "effect_low", "effect_high", "n_pairs", "inclusion", "loss",
)  # fmt: skip
"""Columns of what is known of an edge."""
CASES = [
    (name, circuit, View(qkv=qkv))
    for name, circuit in {**by_hand.CIRCUITS, "labels": synthetic.hostile()}.items()
    for qkv in ("merge", "nodes", "parallel")
]
jgrapht = pytest.param(
    "jgrapht",
    "graphml",
    marks=pytest.mark.skipif(
        not (shutil.which("javac") and all(jar.exists() for jar in JARS)),
        reason="needs a JDK and JGraphT: apt-get install default-jdk-headless libjgrapht-java",
    ),
)
needs_graphology = pytest.mark.skipif(
    not (shutil.which("node") and (HERE / "node_modules").exists()),
    reason="needs Node.js and graphology: npm ci in tests/exporters/formats/readers",
)
graphology = [pytest.param("graphology", kind, marks=needs_graphology) for kind in WRITERS]


def read(reader: str, folder: Path, suffix: str, *texts: str) -> list[dict[str, Any]]:
    """What a reader makes of each text; ``refused`` says why it makes nothing of it."""
    paths = [folder / f"{index}.{suffix}" for index in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, encoding="utf-8")
    environment = {"PATH": os.environ["PATH"]}  # Java's messages in English, and no others
    found = subprocess.run(
        [*COMMANDS[reader], *paths], capture_output=True, text=True, check=True, env=environment
    )
    assert not found.stderr
    return [json.loads(line) for line in found.stdout.splitlines()]


def values(row: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    return {name: TYPES[kind](text) for name, (kind, text) in row.items()}


def exact(row: Mapping[str, Any], reader: str, *without: str) -> dict[str, str]:
    """Values such that True, 1 and 1.0 differ, and 0.0 and -0.0; but for what JavaScript has not."""
    return {
        name: repr(float(value) if type(value) is int and reader == "graphology" else value)
        for name, value in row.items()
        if name not in without
    }


@pytest.mark.parametrize(("reader", "kind"), [jgrapht, *graphology])
def test_readers_find_the_circuit(tmp_path: Path, reader: str, kind: str) -> None:
    texts = [WRITERS[kind](circuit, view) for _, circuit, view in CASES]
    for case, found in zip(CASES, read(reader, tmp_path, kind, *texts), strict=True):
        name, circuit, view = case
        assert "refused" not in found, (name, view, found)
        nodes = [(node, values(row)) for node, row in found["nodes"]]
        edges = [(*ends, values(row)) for *ends, row in found["edges"]]
        check_circuit(circuit, nodes, edges)
        check_rows(circuit, view, nodes, edges, reader, kind)
        about = values(found["about"])
        if kind == "gexf":
            assert json.loads(about["description"]) == description(circuit)
        for what in ("model", "task", "method", "evidence") if kind == "graphml" else ():
            assert json.loads(about[what]) == description(circuit)[what]


def check_circuit(
    circuit: Circuit, nodes: list[tuple[str, Any]], edges: list[tuple[str, str, str, Any]]
) -> None:
    """The circuit's own figures are there, whichever way its slots are shown."""
    inputs = {node for node, row in nodes if row["kind"] in ("q", "k", "v")}
    scores = {node: row.get("score") for node, row in nodes if node not in inputs}
    assert scores == {node.name: node.score for node in circuit.nodes}
    figures: list[tuple[Any, ...]] = []
    for _, source, target, row in edges:
        assert row["weight"] > 0
        slots = row["slots"].split(",") if "slots" in row else []
        for slot in slots or [None]:
            suffix = f"_{slot}" if len(slots) > 1 else ""
            known = [row.get(what + suffix) for what in KNOWN]
            reader = target.removesuffix(f".{slot}") if target in inputs else target
            if row["kind"] in ("group", "internal"):
                assert known == [None] * len(KNOWN)
            else:
                figures.append((source, reader, slot, *known))
        worth = row.get("effect", row.get("score"))
        if worth is not None and len(slots) < 2:
            signs = {"positive": 1, "zero": 0, "negative": -1}
            assert signs[row["sign"]] == (worth > 0) - (worth < 0)
    assert len(figures) == len(circuit.edges)
    assert set(figures) == {
        (
            e.source,
            e.target,
            e.slot,
            e.score,
            e.effect,
            e.standard_error,
            *ends,
            e.n_pairs,
            share,
            e.loss,
        )
        for e in circuit.edges
        for ends, share in [(e.interval or (None, None), e.inclusion)]
    }


def check_rows(
    circuit: Circuit,
    view: View,
    nodes: list[tuple[str, Any]],
    edges: list[tuple[str, str, str, Any]],
    reader: str,
    kind: str,
) -> None:
    """Every column has the value and type that we gave it, in our order, and there is no other."""
    our_nodes, our_edges = table(circuit, view, "merge")
    if kind == "gexf":
        for row in (*our_nodes, *our_edges):
            red, green, blue = bytes.fromhex(str(row["color"])[1:])
            row["color"] = f"rgb({red},{green},{blue})"
        for row in our_nodes:
            row["z"] = 0.0
        for row in our_edges if view.qkv == "parallel" else ():
            row["kind"] = row.get("slots", row["kind"])
    assert [node for node, _ in nodes] == [row["label"] for row in our_nodes]
    for (_, theirs), ours in zip(nodes, our_nodes, strict=True):
        assert exact(theirs, reader) == exact(ours, reader)
    assert [edge for edge, *_ in edges] == [f"e{index}" for index in range(len(our_edges))]
    for (_, *ends, theirs), ours in zip(edges, our_edges, strict=True):
        assert ends == [ours["source"], ours["target"]]
        assert exact(theirs, reader) == exact(ours, reader, "source", "target")


@pytest.mark.parametrize(("reader", "kind"), graphology)
def test_names_that_mean_something_elsewhere_stay_names(
    tmp_path: Path, reader: str, kind: str
) -> None:
    name = by_hand.HOSTILE + synthetic.HOSTILE.replace("\u2028", "")  # xmldom: a line break
    view = View(collapse="groups", groups={name: ["a0.h0", "a1.h1"]})
    (found,) = read(reader, tmp_path, kind, WRITERS[kind](by_hand.circuit(), view))
    legal = re.sub("[\x00\x1b\ufffe\ud800]", "", name)
    nodes = {node: values(row) for node, row in found["nodes"]}
    assert nodes.keys() == {"input", "m0", "logits", legal}
    assert nodes[legal]["label"] == legal
    assert ["input", legal] in [ends for _, *ends, _ in found["edges"]]


@pytest.mark.parametrize(("reader", "kind"), [jgrapht, *graphology])
def test_readers_refuse_mistakes(tmp_path: Path, reader: str, kind: str) -> None:
    """Guards the tests above: what we should get wrong, these would not read."""
    text = WRITERS[kind](by_hand.circuit(), View())
    mistakes = {
        ("jgrapht", "graphml"): [
            ('<data key="e_weight">', '<data key="e_height">', "e_height"),
            ('attr.type="double"', 'attr.type="number"', "'number' is not facet-valid"),
            ('id="e1"', 'id="e0"', "Duplicate unique value [e0]"),
            ('target="m0"', 'target="m9"', "'m9'"),
        ],
        ("graphology", "graphml"): [
            ('attr.type="double"', 'attr.type="number"', "spec.cast is not a function"),
            ('id="e1"', 'id="e0"', 'merge the "e0" edge'),
            ('target="m0"', 'target="m9"', "an inexisting node"),
        ],
        ("graphology", "gexf"): [
            ('for="1"', 'for="99"', 'undeclared attribute "99"'),
            ('id="e1"', 'id="e0"', 'merge the "e0" edge'),
            ('target="m0"', 'target="m9"', "an inexisting node"),
        ],
    }[reader, kind]
    assert all(old in text for old, *_ in mistakes)
    broken = [text.replace(old, new, 1) for old, new, _ in mistakes]
    found = read(reader, tmp_path, kind, *broken)
    for (_, new, message), answer in zip(mistakes, found, strict=True):
        assert message in answer.get("refused", "read"), (new, answer)
