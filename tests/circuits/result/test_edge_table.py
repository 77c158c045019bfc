"""Tables of edges, whoever wrote them."""

from __future__ import annotations

from pathlib import Path

import pytest

from wiremap.circuits import CircuitEdge
from wiremap.circuits.result.edge_table import EdgeTable, read_edge_table
from wiremap.edges import InputError


@pytest.mark.parametrize(
    "text",
    [
        "source,target,slot\ninput,m0,\nm0,a1.h0,q\n",
        "Source,Target,Slot\r\ninput,m0,\r\nm0,a1.h0,Q\r\n",
        "slot\ttarget\tsource\n\tm0\tinput\nq\ta1.h0\tm0\n",
        "source;target\ninput;m0\nm0;a1.h0<q>\n",
        'source,target,slot,note,in_circuit\ninput,m0,,"a, b",1\nm0,a1.h0<q>,q,,True\nm1,logits,,,0\n',
        "\ufeffsource,target,slot\ninput,m0,\n\nm0,a1.h0,q\n",
    ],
)
def test_tables_of_edges_are_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "edges.csv"
    path.write_bytes(text.encode())
    assert read_edge_table(path) == EdgeTable(
        (CircuitEdge("input", "m0"), CircuitEdge("m0", "a1.h0", "q"))
    )


def test_scores_of_a_table_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "edges.csv"
    path.write_text("source,target,slot,score,effect\ninput,m0,,-0.5,\nm0,logits,,1e-3,2\n")
    assert read_edge_table(path).edges == (
        CircuitEdge("input", "m0", score=-0.5),
        CircuitEdge("m0", "logits", score=1e-3, effect=2.0),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected the columns source, target and slot .* found none"),
        ("from,to\na,b\n", "missing source, target; found from, to"),
        ("source,target\ninput\n", "line 2: expected as many cells as the header has"),
        ("source,target\ninput,m0,q\n", "line 2: expected as many cells as the header has"),
        ("source,target,slot\ninput,a0.h0,x\n", "line 2 .*: expected slot to be q, k, v or nothing"),
        ("source,target,slot\ninput,a0.h0<q>,k\n", "line 2 .*: expected slot to be"),
        ("source,target\n,m0\n", "line 2 .*: expected a source and a target, got a blank"),
        ("source,target,score\ninput,m0,nan\n", "line 2 .*: expected score to be a finite number"),
        ("source,target,effect\ninput,m0,big\n", "line 2 .*: expected effect to be a finite number"),
        ("source,target,in_circuit\ninput,m0,perhaps\n", "expected in_circuit to be 1 or 0"),
        ('source,target\n"input,m0\n', "not readable as a table"),
    ],
)  # fmt: skip
def test_broken_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "edges.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=f"edges.csv: .*{message}"):
        read_edge_table(path)
