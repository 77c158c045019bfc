"""A run directory is written by one function, for Python and for the command."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import circuits_for_tests as by_hand
import pytest
from click.testing import CliRunner

from wiremap.circuits import Circuit, CircuitEdge, discover, load_task
from wiremap.cli import main
from wiremap.edges import InputError, Model, ModelGraph
from wiremap.edges.errors import WiremapWarning
from wiremap.exporters import write_circuit, write_run_directory
from wiremap.exporters.run_directory import files_written

NAMES = [
    "faithfulness.svg",
    "report.html",
    "circuit.html",
    "circuit.dot",
    "circuit.graphml",
    "circuit.svg",
]


@pytest.fixture
def no_dot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wiremap.exporters.pictures.graphviz.shutil.which", lambda name: None)


def test_files_are_those_of_the_formats(tmp_path: Path, no_dot: None) -> None:
    circuit = by_hand.circuit(evidence={"curve": by_hand.CURVE})
    with pytest.warns(WiremapWarning, match="no svg picture: the dot program of Graphviz") as told:
        written = write_run_directory(circuit, tmp_path)
    assert len(told) == 1
    assert written == NAMES[:-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(written)
    for name in written[1:]:
        write_circuit(circuit, tmp_path / "again", "report" if name == "report.html" else name[8:])
        assert (tmp_path / "again").read_bytes() == (tmp_path / name).read_bytes()


def test_without_a_curve_there_is_no_picture_of_it(tmp_path: Path, no_dot: None) -> None:
    with pytest.warns(WiremapWarning):
        assert write_run_directory(by_hand.circuit(), tmp_path) == NAMES[1:-1]


def test_broken_circuits_and_places_are_refused(tmp_path: Path, no_dot: None) -> None:
    with pytest.raises(InputError, match="method: expected plain JSON data"):
        write_run_directory(by_hand.circuit(method={"path": tmp_path}), tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"cannot write .*none/report.html"):
        write_run_directory(by_hand.circuit(), tmp_path / "none")


def test_python_writes_the_files_that_the_command_writes(tmp_path: Path) -> None:
    options = ["--model", "induction-mini", "--n-pairs", "4", "--budget", "30", "--size", "10"]
    result = CliRunner().invoke(main, ["discover", *options, "-o", str(tmp_path / "command")])
    assert result.exit_code == 0, result.output
    model = Model.load("induction-mini")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WiremapWarning)  # without Graphviz
        discover(
            model,
            load_task("induction", model, 4, part="search"),
            tmp_path / "python",
            budget=30,
            size=10,
        )
    names = {path.name for path in (tmp_path / "command").iterdir()}
    assert names == {path.name for path in (tmp_path / "python").iterdir()}
    assert names >= {*NAMES[:-1], "circuit.json", "effects.jsonl"}
    for name in names - {"run.json"}:
        assert (tmp_path / "command" / name).read_bytes() == (
            tmp_path / "python" / name
        ).read_bytes(), name
    written = " ".join(name for name in NAMES if name in names)
    assert f"circuit.json {written} (and" in result.stdout


def test_the_command_says_what_could_not_be_drawn(tmp_path: Path, no_dot: None) -> None:
    options = ["--model", "induction-mini", "--n-pairs", "2", "--budget", "5", "--size", "3"]
    result = CliRunner().invoke(main, ["discover", *options, "-o", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert "note: no svg picture: the dot program of Graphviz is not installed" in result.stderr
    assert "circuit.graphml (and" in result.stdout
    assert not (tmp_path / "run" / "circuit.svg").exists()


@pytest.mark.skipif(shutil.which("dot") is None, reason="needs Graphviz: apt install graphviz")
def test_large_circuits_have_an_overview_of_layers(tmp_path: Path) -> None:
    shape = ModelGraph(6, 4, 4)
    edges = [CircuitEdge("input", f"a{layer}.h{head}", slot, score=1.0)
             for layer in range(6) for head in range(4) for slot in ("q", "k", "v")]  # fmt: skip
    assert write_run_directory(Circuit.build(shape, edges), tmp_path)[-1] == "circuit-layers.svg"
    assert files_written(tmp_path)[-1] == "circuit-layers.svg"
    picture = (tmp_path / "circuit-layers.svg").read_text()
    assert "72 of" in picture
    assert ">a5<" in picture
    assert "a5.h0" not in picture.partition("</title>")[0]
    # A smaller one in its place takes it away.
    assert "circuit-layers.svg" not in write_run_directory(
        Circuit.build(shape, edges[:60]), tmp_path
    )
    assert "circuit-layers.svg" not in files_written(tmp_path)
