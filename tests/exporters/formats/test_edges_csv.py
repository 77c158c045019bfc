"""Edges as CSV: for data frames and for TransformerLens, and back."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import circuits_for_tests as by_hand
import pytest
import tiny
import torch
from circuits_for_tests import CIRCUITS

from wiremap.circuits import Circuit, CircuitEdge
from wiremap.edges import InputError, ModelGraph
from wiremap.exporters.formats.edges_csv import COLUMNS, from_edges_csv, to_edges_csv


def rows(circuit: Circuit) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(to_edges_csv(circuit))))


def test_a_row_for_each_edge() -> None:
    text = to_edges_csv(by_hand.circuit())
    assert text.splitlines()[0] == ",".join(COLUMNS)
    found = {(row["source"], row["target"], row["slot"]): row for row in rows(by_hand.circuit())}
    assert len(found) == len(by_hand.EDGES)
    row = found["a0.h0", "a1.h1", "q"]
    assert (row["score"], row["effect"], row["standard_error"]) == ("-0.5", "-0.75", "0.25")
    assert row["n_pairs"] == "8"
    assert (row["effect_low"], row["effect_high"], row["inclusion"]) == ("-1.25", "0.125", "0.625")
    assert (row["loss"], found["a0.h0", "a1.h1", "k"]["loss"]) == ("-0.125", "")
    row = found["a0.h0", "a1.h1", "k"]
    assert (row["effect"], row["standard_error"], row["n_pairs"]) == ("", "", "")
    assert float(found["a1.h1", "logits", ""]["effect"]) == -1e-9


@pytest.mark.parametrize("kind", ["gpt2", "llama-gqa"])
def test_hook_names_are_those_of_transformer_lens(kind: str) -> None:
    """Every edge of a model: the hooks are there, and have an entry for each head."""
    bridge = tiny.bridge(tiny.hf_model(kind))
    cfg = bridge.cfg
    shape = ModelGraph(cfg.n_layers, cfg.n_heads, cfg.n_key_value_heads or cfg.n_heads)
    every: list[CircuitEdge] = []
    for edge in shape.edges():
        reader = shape.readers[edge.reader]
        slot = reader.kind if reader.kind in ("q", "k", "v") else None
        every.append(CircuitEdge(shape.writers[edge.writer].name, reader.node, slot))
    bridge.set_use_split_qkv_input(True)
    bridge.set_use_attn_result(True)
    bridge.set_use_hook_mlp_in(True)
    _, cache = bridge.run_with_cache(torch.tensor([[1, 2, 3]]))
    sizes: dict[str, set[int]] = {}
    for row in rows(Circuit.build(shape, every)):
        for name in (row["hook_source"], row["hook_target"]):
            hook, _, index = name.rstrip("]").partition("[")
            assert cache[hook].shape[-1] == cfg.d_model
            if index:
                sizes.setdefault(hook, set()).add(int(index))
            else:
                assert cache[hook].ndim == 3
    for hook, indices in sizes.items():
        assert indices == set(range(cache[hook].shape[2]))


@pytest.mark.parametrize("circuit", [CIRCUITS[name] for name in CIRCUITS if name != "empty"])
def test_edges_come_back(circuit: Circuit) -> None:
    expected = Circuit.build(circuit.shape, circuit.edges)
    assert from_edges_csv(to_edges_csv(circuit)) == expected
    assert replace(expected, nodes=circuit.nodes) != circuit or not circuit.model


def test_columns_may_be_moved_and_added() -> None:
    text = to_edges_csv(by_hand.circuit())
    found = list(csv.reader(io.StringIO(text)))
    other = io.StringIO()
    csv.writer(other).writerows([["note", *row[::-1]] for row in found])
    assert "\r\n" in other.getvalue()
    assert from_edges_csv(other.getvalue()).edges == by_hand.circuit().edges


def test_files_without_intervals_are_read() -> None:
    found = list(csv.DictReader(io.StringIO(to_edges_csv(by_hand.circuit()))))
    columns = [
        name for name in COLUMNS if name not in ("effect_low", "effect_high", "inclusion", "loss")
    ]
    older = io.StringIO()
    writer = csv.DictWriter(older, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(found)
    edges = [
        replace(edge, interval=None, inclusion=None, loss=None) for edge in by_hand.circuit().edges
    ]
    assert list(from_edges_csv(older.getvalue()).edges) == edges


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("source,target", "from,target", "expected a column source, got 'from, target"),
        ("source,target", "target,target", "expected distinct columns"),
        (",parallel", "", "expected a column parallel"),
        ("input,a0.h0,v", "input,a0.h0,w", "row 2.slot: expected q, k, v or null, got 'w'"),
        ("input,a0.h0,v", "input,a9.h0,v", "unknown reader 'a9.h0<v>'"),
        ("input,a0.h0,v", "m1,a0.h0,v", "does not exist in this model"),
        ("input,a0.h0,v", "a0.h0,a1.h1,q", "edge a0.h0->a1.h1<q> is named twice"),
        ("input,a0.h0,v,0.5,", "input,a0.h0,v,nan,", "row 2, score: expected a number, got 'nan'"),
        ("input,a0.h0,v,0.5,", "input,a0.h0,v,1e999,", "expected a finite number"),
        ("input,a0.h0,v,0.5,", "input,a0.h0,v,0.5,,", "row 2: expected 17 values"),
        ("input,a0.h0,v,0.5,", 'input,a0.h0,v,"0.5,', "expected CSV"),
        (
            "input,a0.h0,v,0.5,1.25,",
            "input,a0.h0,v,0.5,,",
            "an effect with an error, an interval or a number",
        ),
        ("1.25,0.125,8,", "1.25,-0.125,8,", "standard_error: expected 0 or more"),
        ("8,1.0,1.5,", "8,1.0,,", "with low <= high, got \\[1.0, None\\]"),
        ("8,1.0,1.5,", "8,2.0,1.5,", "with low <= high, got \\[2.0, 1.5\\]"),
        ("8,1.0,1.5,1.0,", "8,1.0,1.5,1.1,", "row 2.inclusion: expected a share from 0 to 1"),
        ("1.25,0.125,8,", "1.25,0.125,8.5,", "n_pairs: expected int, got 8.5"),
        ("1.25,0.125,8,", "1.25,0.125,0,", "n_pairs: expected a number from 1"),
        (",2,2,2,false", ",3,2,2,false", "expected edges of one model, got "),
        (",2,2,2,false", ",2,2,2,no", "parallel|edges of one model"),
    ],
)
def test_broken_files_are_refused(old: str, new: str, message: str) -> None:
    text = to_edges_csv(by_hand.circuit())
    assert old in text
    with pytest.raises(InputError, match=message):
        from_edges_csv(text.replace(old, new, 1))


def test_other_shapes_and_no_edges_are_refused() -> None:
    text = to_edges_csv(by_hand.circuit())
    with pytest.raises(InputError, match="parallel: expected true or false, got 'no'"):
        from_edges_csv(text.replace(",2,2,2,false", ",2,2,2,no"))
    with pytest.raises(InputError, match="shape.n_layers: expected int, got None"):
        from_edges_csv(text.replace(",2,2,2,false", ",,2,2,false"))
    with pytest.raises(InputError, match="expected at least one edge"):
        from_edges_csv(text.splitlines()[0])
