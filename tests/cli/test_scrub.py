"""``wiremap scrub``, from outside."""

from __future__ import annotations

import csv
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from command import refused, told, wiremap

from wiremap.circuits import Circuit, discover, load_task
from wiremap.edges import Model
from wiremap.exporters import read_circuit, write_circuit

FAST = ("--repeats", "1", "--random-circuits", "1", "--leave-out")


def scrubbed(*arguments: str | Path) -> dict[str, Any]:
    return told("scrub", *arguments)


@pytest.fixture(scope="module")
def circuit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A circuit of the bundled model."""
    model = Model.load("ioi-mini")
    found = discover(model, load_task("ioi", model, 24), budget=40, size=10, bound=False)
    path = tmp_path_factory.mktemp("scrub") / "circuit.json"
    write_circuit(found, path)
    return path


def test_scrub_says_what_it_found(circuit: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    result = wiremap("scrub", circuit, *FAST, "--drop-one", "-o", out)
    assert result.exit_code == 0, result.output
    told = json.loads(out.read_text())
    for text in (
        f"recovered {told['recovered']:.3f} (95 % interval {told['interval'][0]:.3f} to",
        f"1 - AUE/ATE {told['explained']:.3f}",
        "scheme together, other prompts: any, 1 repeats; random: unconditional",
        f"{told['edges']} of 479 edges kept, 0 of them dead; the tree has {told['tree_size']} nodes",
        f"random circuits of as many edges recover {told['random_circuits'][0]:.3f}",
        f"the {told['edges']} lowest of {told['edges']}",
    ):
        assert text in result.stdout
    assert f"note: {len(told['rows_left_out'])} pairs left out" in result.stderr
    assert told["n_pairs"] == 24 - len(told["rows_left_out"]) > 12
    ratio = (told["scrubbed"]["mean"] - told["random"]["mean"]) / (
        told["original"]["mean"] - told["random"]["mean"]
    )
    assert told["recovered"] == pytest.approx(ratio)
    assert told["claim"] == {"min_recovered": None, "held": None}
    assert told["model"]["name"] == "ioi-mini"
    assert told["dataset"]["task"] == "ioi"


def test_exit_codes_tell_whether_the_claim_held(circuit: Path) -> None:
    for least, code, word in (("0.2", 0, "held"), ("0.9999", 1, "failed")):
        result = wiremap("scrub", circuit, *FAST, "--min-recovered", least)
        assert result.exit_code == code
        assert f"claim {word}: at least {least} recovered" in result.stdout
    quiet = wiremap("scrub", circuit, *FAST[:-1], "--other", "paired", "--quiet")
    assert (quiet.exit_code, quiet.output) == (0, "")


def test_the_three_inputs_say_the_same(circuit: Path, tmp_path: Path) -> None:
    hypothesis, table = tmp_path / "scrub.json", tmp_path / "edges.csv"
    assert wiremap("export", circuit, "--to", "scrub", "-o", hypothesis).exit_code == 0
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["source", "target", "slot", "score"])
        for edge in read_circuit(circuit).edges:
            writer.writerow([edge.source, edge.target, edge.slot or "", edge.score])
    first = scrubbed(circuit, *FAST)
    assert scrubbed(hypothesis, *FAST) == first
    same = ("--model", "ioi-mini", "--task", "ioi", "--n-pairs", "24")
    assert scrubbed(table, *same, *FAST) == first


def test_a_hypothesis_file_says_how_and_options_say_otherwise(
    circuit: Path, tmp_path: Path
) -> None:
    path = tmp_path / "scrub.json"
    wiremap("export", circuit, "--to", "scrub", "-o", path)
    document = json.loads(path.read_text())
    document["other_inputs"] = {"sampler": "feature:order", "scheme": "per-edge"}
    document["settings"] = {"repeats": 1, "seed": 5}
    document["claim"]["min_recovered"] = 0.9999
    path.write_text(json.dumps(document))
    result = wiremap("scrub", path, "--leave-out", "--random-circuits", "0", "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert (told["scheme"], told["other"]) == ("per-edge", "feature:order")
    assert (told["repeats"], told["seed"]) == (1, 5)
    assert told["claim"] == {"min_recovered": 0.9999, "held": False}
    other = scrubbed(path, *FAST, "--scheme", "together", "--other", "any", "--min-recovered", "0",
                     "--seed", "0")  # fmt: skip
    expected = scrubbed(circuit, *FAST)
    assert {**other, "claim": None} == {**expected, "claim": None}


def test_an_empty_circuit_recovers_nothing_and_says_why(circuit: Path, tmp_path: Path) -> None:
    found = read_circuit(circuit)
    path = tmp_path / "circuit.json"
    write_circuit(
        Circuit.build(found.shape, [], model=found.model, task=found.task, method=found.method),
        path,
    )
    result = wiremap("scrub", path, *FAST, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["recovered"] == 0.0
    assert "note: no path of kept edges leads from input to logits" in result.stderr


def test_bad_input_is_refused(circuit: Path, tmp_path: Path) -> None:
    assert "same length in tokens; none in" in refused("scrub", circuit)
    assert "expected a column 'x' in every pair" in refused(
        "scrub", circuit, "--other", "feature:x"
    )
    assert "unknown other prompts 'x'" in refused("scrub", circuit, "--other", "x")
    assert "'per-node' is not one of" in refused("scrub", circuit, "--scheme", "per-node")
    assert "the tree of the circuit has" in refused(
        "scrub", circuit, "--scheme", "per-path", "--max-tree", "5", "--leave-out"
    )
    other = ("--model", "tasks-mini", "--task", "induction")
    assert "the circuit is of a model of shape" in refused("scrub", circuit, *other)
    assert "name the task too" in refused("scrub", circuit, "--n-pairs", "3")
    table = tmp_path / "edges.csv"
    table.write_text("source,target\ninput,m9\n")
    assert "does not say" in refused("scrub", table)
    assert "name it (--model)" in refused("scrub", table, "--task", "ioi")
    asked = ("--model", "ioi-mini", "--task", "ioi")
    assert "unknown reader 'm9'" in refused("scrub", table, *asked)
    for name, text, message in (
        ("list.json", "[1]", "expected an object"),
        ("other.json", '{"format": "x"}', "expected a document with format"),
        ("broken.json", "{", "expected JSON"),
        ("scrub.json", '{"format": "wiremap-scrub"}', "schema_version: expected, but missing"),
    ):
        (tmp_path / name).write_text(text)
        assert message in refused("scrub", tmp_path / name)
    assert "cannot be read" in refused("scrub", tmp_path / "none.json")


def test_the_schema_of_hypotheses_is_printed_and_they_are_validated(
    circuit: Path, tmp_path: Path
) -> None:
    path = tmp_path / "scrub.json"
    wiremap("export", circuit, "--to", "scrub", "-o", path)
    schema = json.loads(wiremap("schema", "scrub").stdout)
    assert schema == json.loads(files("wiremap.circuits").joinpath("scrub.schema.json").read_text())
    jsonschema.validate(json.loads(path.read_text()), schema)
    n_edges = len(read_circuit(circuit).edges)
    assert f"valid hypothesis, {n_edges} edges" in wiremap("validate", path).stdout
    path.write_text(path.read_text().replace("recompute", "frozen"))
    assert "model.layernorm: wiremap scrubs with" in refused("validate", path)
