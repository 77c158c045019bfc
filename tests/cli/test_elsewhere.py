"""Files of circuits and graphs that come from elsewhere, in every command that takes a circuit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import refused, told

from wiremap.circuits import Circuit, CircuitEdge
from wiremap.edges import InputError, ModelGraph
from wiremap.exporters import write_circuit

PER_QUERY = ModelGraph(4, 8, 8)  # of tasks-mini, whose 8 query heads share 4 keys and values
GROUPED = ModelGraph(4, 8, 4)
ON_TASKS = ("--model", "tasks-mini", "--task", "induction", "--n-pairs", "8")
ON_IOI = ("--model", "ioi-mini", "--task", "ioi", "--n-pairs", "8")
FAST = ("--repeats", "1", "--random-circuits", "0", "--leave-out")
EDGES = (
    CircuitEdge("input", "a0.h5", "v", 0.5),
    CircuitEdge("a0.h5", "a1.h3", "k", -0.25),
    CircuitEdge("input", "m0", None, 2.0),
    CircuitEdge("a1.h3", "logits", None, 1.5),
)


# ---- circuits of models whose query heads share keys and values


def of_eap_ig(path: Path, **cfg: Any) -> Path:
    """As EAP-IG writes it; a cfg may say more."""
    write_circuit(Circuit.build(PER_QUERY, EDGES, model={"d_model": 128}), path, "eap-ig")
    document = json.loads(path.read_text())
    document["cfg"] |= cfg
    path.write_text(json.dumps(document))
    return path


def of_csv(path: Path) -> Path:
    write_circuit(Circuit.build(PER_QUERY, EDGES), path, "edges-csv")
    return path


def of_own_csv(path: Path) -> Path:
    rows = [f"{edge.source},{edge.target},{edge.slot or ''}" for edge in EDGES]
    path.write_text("\n".join(["source,target,slot", *rows, ""]))
    return path


PER_QUERY_FILES: dict[str, Callable[[Path], Path]] = {
    "EAP-IG, cfg of older versions": of_eap_ig,
    "EAP-IG, cfg with groups": lambda path: of_eap_ig(
        path, n_key_value_heads=4, ungroup_grouped_query_attention=True
    ),
    "edges-csv": of_csv,
    "a table": of_own_csv,
}


@pytest.mark.parametrize("kind", PER_QUERY_FILES)
def test_circuits_with_a_reader_for_each_query_head_are_evaluated(
    kind: str, tmp_path: Path
) -> None:
    path = PER_QUERY_FILES[kind](tmp_path / "circuit.x")
    found = told("evaluate", path, *ON_TASKS)
    assert found["edges_in_model"] == PER_QUERY.n_edges
    assert found == told("evaluate", path, *ON_TASKS, "--kv", "per-query")
    assert told("scrub", path, *ON_TASKS, *FAST)["edges_in_model"] == PER_QUERY.n_edges
    error = refused("evaluate", path, *ON_TASKS, "--kv", "grouped")
    assert "--kv per-query" in error
    assert "--kv per-query" in refused("scrub", path, *ON_TASKS, *FAST, "--kv", "grouped")


def test_circuits_with_a_reader_for_each_key_value_head_are_as_before(tmp_path: Path) -> None:
    edges = (CircuitEdge("input", "a0.kv1", "v", 1.0), CircuitEdge("a0.h2", "logits", None, 1.0))
    path, table = tmp_path / "circuit.json", tmp_path / "own.csv"
    write_circuit(Circuit.build(GROUPED, edges), path)
    table.write_text("source,target\ninput,a0.kv1<v>\na0.h2,logits\n")
    for file in (path, table):
        assert told("evaluate", file, *ON_TASKS)["edges_in_model"] == GROUPED.n_edges
        assert "--kv grouped" in refused("evaluate", file, *ON_TASKS, "--kv", "per-query")
    both = of_csv(tmp_path / "other.csv")
    assert "(--kv per-query), the other for each" in refused("compare", path, both)


def test_a_table_of_both_names_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "own.csv"
    table.write_text("source,target\ninput,a0.kv1<v>\ninput,a0.h2<k>\n")
    error = refused("evaluate", table, *ON_TASKS)
    assert "got both: input->a0.kv1<v> and input->a0.h2<k>" in error


def test_groups_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = of_eap_ig(tmp_path / "circuit.json", n_key_value_heads=3)
    assert "expected a divisor of n_heads, which is 8, got 3" in refused(
        "evaluate", path, *ON_TASKS
    )


@pytest.mark.parametrize(
    ("shape", "name", "kv"),
    [(GROUPED, "input->a0.h1<k>", "per-query"), (PER_QUERY, "input->a0.kv1<v>", "grouped")],
)
def test_names_of_the_other_kv_are_explained(shape: ModelGraph, name: str, kv: str) -> None:
    with pytest.raises(InputError, match=f"--kv {kv}"):
        shape.edge(name)
