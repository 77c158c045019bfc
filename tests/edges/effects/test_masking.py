"""Models reduced to many sets of edges: each as alone, as the slow model, and pruned by liveness."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import tiny
import torch
from slow import SlowModel

from wiremap.edges import Edge, InputError, Model, ModelGraph
from wiremap.edges.effects.reduced import BASE, masked_logits, run_edge_sets, run_edges
from wiremap.edges.runs.masks import (
    edge_mask,
    edge_places,
    every_edge,
    full_mask,
    live_mask,
    places_mask,
)
from wiremap.edges.runs.trace import run


def some_edges(graph: ModelGraph, share: float, seed: int = 0) -> list[str]:
    names = [graph.edge_name(edge) for edge in graph.edges()]
    return random.Random(seed).sample(names, int(share * len(names)))


@pytest.mark.parametrize("kind", tiny.EVERY_KIND)
def test_reduced_models_equal_the_slow_one_in_float64(kind: str) -> None:
    hf = tiny.hf_model(kind).double()
    hf.config._experts_implementation = "eager"  # grouped products have no float64
    slow, model, pairs = SlowModel(hf), Model(tiny.bridge(hf)), tiny.pairs(2)
    for seed, share in enumerate((0.05, 0.5, 0.95)):
        names = some_edges(model.graph, share, seed)
        kept = {(writer, reader) for writer, _, reader in (name.partition("->") for name in names)}
        expected = slow.reduced(pairs.clean, pairs.corrupted, kept)
        with torch.no_grad(), model.borrowed():
            base = run(model, pairs.corrupted, BASE)
            resid = model.embed(pairs.clean)
            found = masked_logits(model, edge_mask(model.graph, names), resid, base)
        # Not closer: norms and softmaxes of some kinds are computed in float32.
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama-gqa", "neox", "gemma2", "mixtral"])
def test_each_set_is_as_if_it_were_alone(kind: str) -> None:
    model, pairs = tiny.model(kind), tiny.pairs(5)
    sets = [[], *(some_edges(model.graph, 0.1 * n, n) for n in range(1, 6))]
    every = full_mask(model.graph)
    found = run_edge_sets(model, pairs, [*sets, every], metrics=["logit_diff", "kl"], batch_size=2)
    for metric, of_metric in zip(("logit_diff", "kl"), found, strict=True):
        for edges, values in zip(sets, of_metric.circuit[:-1], strict=True):
            alone = run_edges(model, pairs, edges, metric=metric)
            torch.testing.assert_close(values, alone.circuit, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(of_metric.full, alone.full, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(of_metric.empty, alone.empty, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(of_metric.circuit[0], of_metric.empty, rtol=0, atol=0)
        torch.testing.assert_close(of_metric.circuit[-1], of_metric.full, rtol=1e-4, atol=1e-4)


def test_masks_are_the_same_as_names() -> None:
    model, pairs = tiny.model("llama-gqa"), tiny.pairs(3)
    names = some_edges(model.graph, 0.4)
    (found,) = run_edge_sets(model, pairs, [names, edge_mask(model.graph, names)])
    torch.testing.assert_close(found.circuit[0], found.circuit[1], rtol=1e-5, atol=1e-5)


def on_a_path(graph: ModelGraph, edges: Sequence[Edge]) -> set[Edge]:
    """Of these edges, those on a path from input to logits: every path is walked, by names."""
    into: dict[str, list[tuple[str, Edge]]] = {}
    for edge in edges:
        writer, _, reader = graph.edge_name(edge).partition("->")
        nodes = [reader.partition("<")[0]]
        layer, _, kv_head = nodes[0].partition(".kv")
        if kv_head:
            group = graph.n_heads // graph.n_kv_heads
            nodes = [f"{layer}.h{int(kv_head) * group + head}" for head in range(group)]
        for node in nodes:
            into.setdefault(node, []).append((writer, edge))
    live: set[Edge] = set()

    def walk(node: str, path: tuple[Edge, ...]) -> None:
        if node == "input":
            live.update(path)
        for writer, edge in into.get(node, []):
            walk(writer, (*path, edge))

    walk("logits", ())
    return live


@pytest.mark.parametrize(
    "graph",
    [ModelGraph(3, 4, 4), ModelGraph(3, 4, 2), ModelGraph(3, 4, 1, parallel=True)],
    ids=["heads", "groups", "parallel"],
)
def test_live_edges_are_those_on_a_path(graph: ModelGraph) -> None:
    n_live: list[int] = []
    for seed in range(60):
        names = some_edges(graph, (seed + 1) / 240, seed)
        live = live_mask(graph, edge_mask(graph, names))
        places = [graph.edge(name) for name in names]
        expected = on_a_path(graph, places)
        assert graph.live(places) == [edge for edge in places if edge in expected]
        assert torch.equal(live, places_mask(graph, list(expected)))
        n_live.append(int(live.sum()))
    assert min(n_live) == 0
    assert max(n_live) > 10
    assert torch.equal(live_mask(graph, full_mask(graph)), full_mask(graph))
    assert int(full_mask(graph).sum()) == graph.n_edges


def test_places_names_and_masks_say_the_same() -> None:
    graph = ModelGraph(2, 4, 2)
    names = some_edges(graph, 0.4)
    places = edge_places(graph, names)
    assert [graph.edge_name(Edge(*ends)) for ends in places.tolist()] == names
    assert edge_places(graph, places) is places
    assert torch.equal(places_mask(graph, places), edge_mask(graph, names))
    assert [Edge(*ends) for ends in every_edge(graph).tolist()] == list(graph.edges())
    assert not places_mask(graph, edge_places(graph, [])).any()


def test_progress_counts_sets_times_pairs() -> None:
    model, pairs = tiny.model("gpt2"), tiny.pairs(5)
    told: list[tuple[str, int, int]] = []
    run_edge_sets(model, pairs, [[]] * 3, batch_size=2, progress=lambda *step: told.append(step))
    steps = [2, 2, 2, 2, 2, 2, 2, 1]  # of the last batch, a single pair, two sets at once
    assert told == [("run circuits", done, 15) for done in steps]


def test_no_set_gives_the_two_runs_alone() -> None:
    (found,) = run_edge_sets(tiny.model("gpt2"), tiny.pairs(3), [])
    assert found.circuit.shape == (0, 3)
    assert float((found.full - found.empty).abs().max()) > 0.1


def test_what_is_no_set_of_edges_is_refused() -> None:
    model, pairs = tiny.model("gpt2"), tiny.pairs(2)
    with pytest.raises(InputError, match="unknown writer 'a9.h9'"):
        run_edge_sets(model, pairs, [[], ["a9.h9->logits"]])
    with pytest.raises(InputError, match=r"expected a mask of edges as booleans"):
        run_edge_sets(model, pairs, [torch.zeros(3, 3, dtype=torch.bool)])
    with pytest.raises(InputError, match=r"an edge that does not exist .* from a0.h0 to a0.h0<q>"):
        run_edge_sets(model, pairs, [torch.ones_like(full_mask(model.graph))])
    with pytest.raises(InputError, match="at least one metric"):
        run_edge_sets(model, pairs, [[]], metrics=[])
