"""Names and index order."""

from __future__ import annotations

import difflib

import pytest

from wiremap.edges import Edge, InputError, ModelGraph
from wiremap.edges.names.graph import ROOT


@pytest.mark.parametrize(
    ("layers", "heads", "n_edges"),
    [
        pytest.param(12, 12, 32_491, id="gpt2"),
        pytest.param(24, 14, 179_749, id="qwen2.5-0.5b"),
        pytest.param(26, 8, 74_218, id="gemma-2-2b"),
        pytest.param(32, 32, 1_592_881, id="llama-3.1-8b"),
    ],
)
def test_as_many_edges_as_the_field_counts(layers: int, heads: int, n_edges: int) -> None:
    assert ModelGraph(layers, heads, heads).n_edges == n_edges


def test_order_of_writers_and_readers_is_eap_igs() -> None:
    graph = ModelGraph(2, 2, 2)
    assert [writer.name for writer in graph.writers] == [
        "input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1",
    ]  # fmt: skip
    assert [reader.name for reader in graph.readers] == [
        "a0.h0<q>", "a0.h1<q>", "a0.h0<k>", "a0.h1<k>", "a0.h0<v>", "a0.h1<v>", "m0",
        "a1.h0<q>", "a1.h1<q>", "a1.h0<k>", "a1.h1<k>", "a1.h0<v>", "a1.h1<v>", "m1",
        "logits",
    ]  # fmt: skip


def test_grouped_keys_and_values_are_named_after_their_own_heads() -> None:
    graph = ModelGraph(1, 4, 2)
    names = [reader.name for reader in graph.readers]
    assert names[4:8] == ["a0.kv0<k>", "a0.kv1<k>", "a0.kv0<v>", "a0.kv1<v>"]
    assert list(graph.query_heads(1)) == [2, 3]
    assert graph.readers[5].node == "a0.kv1"


def test_places_of_a_layer() -> None:
    graph = ModelGraph(3, 4, 2)
    assert [graph.writers[i].name for i in range(*graph.head_writers(1).indices(99))] == [
        f"a1.h{head}" for head in range(4)
    ]
    assert graph.writers[graph.mlp_writer(2)].name == "m2"
    assert graph.readers[graph.mlp_reader(1)].name == "m1"
    assert graph.readers[graph.attention_readers(2)][0].name == "a2.h0<q>"
    assert {reader.layer for reader in graph.readers[graph.attention_readers(2)]} == {2}


def test_every_edge_has_one_name_and_comes_back_from_it() -> None:
    graph = ModelGraph(2, 3, 3, parallel=True)
    edges = list(graph.edges())
    assert len(set(edges)) == len(edges) == graph.n_edges
    assert [graph.edge(graph.edge_name(edge)) for edge in edges] == edges


@pytest.mark.parametrize("graph", [ModelGraph(2, 4, 4), ModelGraph(2, 4, 2, parallel=True)])
def test_what_a_reader_feeds_is_what_reads_by_it(graph: ModelGraph) -> None:
    for index, reader in enumerate(graph.readers):
        fed = [graph.writers[node].name for node in graph.fed_by(index) if node != ROOT]
        if reader.kind in ("k", "v"):
            group = graph.n_heads // graph.n_kv_heads
            heads = range(reader.head * group, (reader.head + 1) * group)
            assert fed == [f"a{reader.layer}.h{head}" for head in heads]
        else:
            assert fed == ([] if reader.kind == "logits" else [reader.node])
        assert all(index in graph.read_by(node) for node in graph.fed_by(index))
    assert graph.read_by(0) == ()
    assert graph.read_by(ROOT) == (len(graph.readers) - 1,)
    kinds = [graph.readers[reader].slot for reader in graph.read_by(graph.head_writers(1).start)]
    assert kinds == ["q", "k", "v"]
    assert [graph.readers[reader].slot for reader in graph.read_by(graph.mlp_writer(1))] == [None]


def test_a_path_goes_on_with_what_its_reader_feeds() -> None:
    graph = ModelGraph(2, 4, 2)
    writer, readers = graph.path("input->a0.kv1<v>->a1.h0<q>->m1->logits")
    assert graph.writers[writer].name == "input"
    assert [graph.readers[reader].name for reader in readers] == [
        "a0.kv1<v>", "a1.h0<q>", "m1", "logits",
    ]  # fmt: skip
    with pytest.raises(InputError, match="unknown writer 'logits'"):
        graph.path("m0->logits->m1")
    with pytest.raises(InputError, match="expected an edge 'writer->reader', got 'm0'"):
        graph.path("m0")


def test_a_parallel_block_has_no_edges_from_its_heads_to_its_mlp() -> None:
    one, other = ModelGraph(2, 3, 3), ModelGraph(2, 3, 3, parallel=True)
    assert one.n_edges - other.n_edges == 2 * 3
    assert one.edge("a1.h2->m1") == Edge(7, one.mlp_reader(1))
    with pytest.raises(InputError, match="parallel block read the same residual stream"):
        other.edge("a1.h2->m1")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a0.h1", "expected an edge 'writer->reader', got 'a0.h1'"),
        ("a0.h9->m1", r"unknown writer 'a0.h9' in a model of 2 layers with 2 heads.*did you mean"),
        ("a0.h1->a1.h1<w>", r"unknown reader 'a1.h1<w>'.*did you mean .*a1.h1<q>"),
        ("m1->a0.h1<q>", "'m1->a0.h1<q>' does not exist in this model: m1 is computed after"),
        ("a0.h0->a0.h1<q>", "computed after"),
        ("logits->m0", "unknown writer 'logits'"),
    ],
)
def test_a_wrong_edge_name_is_explained(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ModelGraph(2, 2, 2).edge(name)


def test_kv_heads_must_divide_heads() -> None:
    with pytest.raises(InputError, match="expected n_kv_heads to divide n_heads, got 3 and 4"):
        ModelGraph(1, 4, 3)


def test_long_names_are_shortened_and_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    monkeypatch.setattr(difflib, "get_close_matches", lambda name, *_, **__: compared.append(name))
    with pytest.raises(InputError) as error:
        ModelGraph(100, 100, 100).edge("a" * 1_000_000 + "->logits")
    assert len(str(error.value)) < 300
    assert not compared
