"""``wiremap compare``, from outside."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import circuits_for_tests as by_hand
import pytest
from click.testing import Result
from command import wiremap

from wiremap.circuits import Circuit
from wiremap.exporters import write_circuit


def compare(*arguments: str | Path) -> Result:
    return wiremap("compare", *arguments)


@pytest.fixture
def circuit(tmp_path: Path) -> Path:
    path = tmp_path / "circuit.json"
    write_circuit(by_hand.circuit(), path)
    return path


def test_it_says_what_is_shared(circuit: Path, tmp_path: Path) -> None:
    found = by_hand.circuit()
    smaller, picture = tmp_path / "smaller.json", tmp_path / "both.dot"
    write_circuit(Circuit.build(found.shape, found.edges[2:], method=found.method), smaller)
    result = compare(circuit, smaller, "-o", picture)
    assert result.exit_code == 0, result.output
    assert "Jaccard 0.667" in result.stdout
    lost = [edge.name for edge in found.edges[:2]]
    assert f"in A alone, largest first: {lost[0]}, {lost[1]}" in result.stdout
    assert f"written to {picture}" in result.stdout
    assert picture.read_text().startswith("digraph comparison")
    told = json.loads(compare(circuit, smaller, "--json").stdout)
    assert told["edges"] == {"a": 6, "b": 4}
    assert told["edges_lost"] == lost
    assert told["edges_gained"] == []
    quiet = compare(circuit, circuit, "--quiet")
    assert quiet.stdout == ""
    assert "note: worth is a measured effect for 5 of 6 edges in A" in quiet.stderr


def test_what_cannot_be_compared_is_refused(circuit: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    write_circuit(Circuit.build(replace(by_hand.SHAPE, n_layers=3), []), other)
    for arguments, message in (
        ((circuit, other), "of one shape, got n_layers 2 and 3"),
        ((circuit, tmp_path / "none.json"), "cannot be read"),
        ((circuit, circuit, "-o", tmp_path / "x.txt"), "expected a .dot, .svg"),
    ):
        result = compare(*arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert message in result.stderr
