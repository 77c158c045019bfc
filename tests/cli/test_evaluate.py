"""``wiremap evaluate`` from outside: every section of it, and what it refuses or leaves out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import Result
from command import refused, wiremap

from wiremap.circuits import Circuit, evaluate, load_task
from wiremap.circuits.evidence.faithfulness import localize
from wiremap.circuits.record.scores_file import read_scores
from wiremap.edges import Model
from wiremap.exporters import read_circuit, write_circuit

SECTIONS = ("curve", "completeness", "minimality", "stability", "tests")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory of a small discover."""
    out = tmp_path_factory.mktemp("evaluate") / "run"
    asked = (
        "--model",
        "ioi-mini",
        "--task",
        "ioi",
        "--n-pairs",
        "6",
        "--budget",
        "40",
        "--no-bound",
    )
    result = wiremap("discover", *asked, "--size", "12", "-o", out)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="module")
def everything(run: Path) -> tuple[Result, Path, Path]:
    document, picture = run.parent / "all.json", run.parent / "curve.svg"
    return wiremap("evaluate", run, "--all", "-o", document, "-o", picture), document, picture


def test_all_of_it(run: Path, everything: tuple[Result, Path, Path]) -> None:
    result, path, _ = everything
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    document = json.loads(path.read_text())
    said = json.loads((run / "faithfulness.json").read_text())
    assert document["faithfulness"] == pytest.approx(said["faithfulness"], rel=1e-5)
    assert [one["metric"] for one in document["beside"]] == ["kl", "accuracy"]
    assert set(SECTIONS) <= document.keys()
    circuit = read_circuit(run / "circuit.json")
    assert len(document["completeness"]["knockouts"]) == 1 + len(circuit.edges) + 20
    assert len(document["minimality"]["edges"]) == len(circuit.edges)
    assert len(document["stability"]["edges"]) == 40
    assert [one["n"] for one in document["tests"]["tests"]] == [6, 6, 100, 100]
    for words in (
        "CPR (area",
        "CMD (area",
        "completeness: |F(C",
        "least needed",
        "Jaccard",
        "equivalence",
    ):
        assert words in result.stdout


def test_the_curve_is_that_of_the_scores(run: Path, everything: tuple[Result, Path, Path]) -> None:
    _, path, picture = everything
    told = json.loads(path.read_text())["curve"]
    _, scores, _ = read_scores(run / "scores.safetensors")
    assert scores is not None
    model = Model.load("ioi-mini")
    expected = localize(model, load_task("ioi", model, 6, part="search"), scores.top())
    assert told["cpr"] == pytest.approx(expected.cpr, rel=1e-5)
    assert told["cmd"] == pytest.approx(expected.cmd, rel=1e-5)
    assert told["ranked_by"] == "scores of all edges"
    root = ElementTree.fromstring(picture.read_text())
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert "ioi-mini on ioi" in texts
    assert any(f"CPR {expected.cpr:.3f}" in (text or "") for text in texts)


def test_a_circuit_alone_is_ranked_by_its_edges(run: Path) -> None:
    result = wiremap("evaluate", run / "circuit.json", "--curve", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert not set(SECTIONS[1:]) & document.keys()
    told = document["curve"]
    assert told["ranked_by"].startswith("the circuit's edges")
    *_, half, whole = told["absolute"]["points"]
    assert (half["asked"], half["faithfulness"]) == (
        document["edges"],
        pytest.approx(document["faithfulness"]),
    )
    assert (whole["asked"], whole["faithfulness"]) == (
        document["edges_in_model"],
        pytest.approx(1, abs=1e-4),
    )


def test_stability_needs_the_effects(run: Path) -> None:
    error = refused("evaluate", run / "circuit.json", "--stability")
    assert "expected a run directory with verified effects" in error


def test_an_empty_circuit_is_worth_0_and_said_to_be(run: Path, tmp_path: Path) -> None:
    found = read_circuit(run / "circuit.json")
    empty = Circuit.build(found.shape, [], model=found.model, task=found.task, method=found.method)
    path = tmp_path / "empty.json"
    write_circuit(empty, path)
    result = wiremap("evaluate", path, "--all", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["faithfulness"] == 0
    assert document["completeness"]["knockouts"][0]["removed"] == []
    assert "note: the circuit has no edges" in result.stderr
    for section in ("curve", "minimality", "stability", "tests"):
        assert section not in document
        assert f"note: no {section}: expected" in result.stderr
    assert "expected the edges of a circuit, got none" in refused("evaluate", path, "--minimality")


def test_another_metric_and_held_out_pairs(run: Path) -> None:
    asked = ("--task", "ioi", "--seed", "3", "--n-pairs", "8", "--metric", "kl")
    result = wiremap("evaluate", run, *asked, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert (document["metric"], document["full"], document["n_pairs"]) == ("kl", 0.0, 8)
    assert [one["metric"] for one in document["beside"]] == ["accuracy"]
    model = Model.load("ioi-mini")
    names = [edge.name for edge in read_circuit(run / "circuit.json").edges]
    expected = evaluate(
        model, load_task("ioi", model, 8, seed=3, part="search"), names, metric="kl"
    )
    assert document["faithfulness"] == pytest.approx(expected.faithfulness, rel=1e-4)


def test_a_picture_needs_the_curve(run: Path, tmp_path: Path) -> None:
    error = refused("evaluate", run, "-o", tmp_path / "x.svg")
    assert "x.svg is to show the curve; ask for it too (--curve)" in error


def test_a_threshold_is_the_rule_of_the_resamples(run: Path, tmp_path: Path) -> None:
    found = read_circuit(run / "circuit.json")
    method = {**found.method, "threshold": 0.25}
    write_circuit(replace(found, method=method), tmp_path / "circuit.json")
    (tmp_path / "effects.jsonl").write_bytes((run / "effects.jsonl").read_bytes())
    result = wiremap("evaluate", tmp_path, "--stability", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["stability"]["rule"] == "|effect| >= 0.25"
