"""Which edges are kept, on a graph small enough to prune by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from wiremap.circuits import CircuitEdge
from wiremap.circuits.pruning import (
    connected,
    keep_by_faithfulness,
    keep_by_size,
    keep_by_threshold,
)
from wiremap.edges import InputError, ModelGraph


def edge(name: str, effect: float | None = None, score: float | None = None) -> CircuitEdge:
    source, _, target = name.partition("->")
    target, _, slot = target.partition("<")
    return CircuitEdge(source, target, slot.rstrip(">") or None, score, effect)  # pyright: ignore[reportArgumentType]


def names(edges: list[CircuitEdge]) -> list[str]:
    return [edge.name for edge in edges]


def test_a_threshold_counts_verified_effects_of_either_sign() -> None:
    edges = [edge("input->m0", 0.5), edge("m0->logits", -0.5), edge("input->logits", 0.4)]
    scored = edge("input->a0.h0<q>", score=9.0)
    assert names(keep_by_threshold([*edges, scored], 0.5)) == ["input->m0", "m0->logits"]
    assert len(keep_by_threshold(edges, 0.0)) == 3
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="expected a threshold >= 0"):
            keep_by_threshold(edges, wrong)


def test_a_size_takes_verified_edges_first() -> None:
    edges = [
        edge("input->m0", 0.1, 5.0),
        edge("m0->logits", score=-9.0),
        edge("input->logits", -0.4, 0.0),
        edge("input->a0.h0<q>", score=7.0),
    ]
    assert names(keep_by_size(edges, 3)) == ["input->logits", "input->m0", "m0->logits"]
    assert len(keep_by_size(edges, 99)) == 4
    with pytest.raises(InputError, match="at least 1 edge, got 0"):
        keep_by_size(edges, 0)


def test_a_target_takes_the_fewest_of_the_largest_verified_edges() -> None:
    effects = [0.1, -0.9, 0.3, 0.8, -0.2, 0.05]
    edges = [edge(f"input->a0.h{i}<q>", effect) for i, effect in enumerate(effects)]
    unverified = edge("input->m0", score=5.0)
    asked: list[int] = []

    def share(kept: Sequence[CircuitEdge]) -> float:
        asked.append(len(kept))
        return sum(abs(one.effect or 0) for one in kept) / sum(map(abs, effects))

    kept = keep_by_faithfulness([*edges, unverified], 0.8, share)
    assert [one.effect for one in kept] == [-0.9, 0.8, 0.3]
    assert len(asked) <= 3
    assert len(keep_by_faithfulness(edges, 0.3, share)) == 1
    assert len(keep_by_faithfulness(edges, 1.0, lambda kept: 0.5)) == 6, "short of it: all"
    assert keep_by_faithfulness([unverified], 0.5, share) == []
    for wrong in (0.0, -1.0, 1.01, math.nan):
        with pytest.raises(InputError, match="faithfulness target above 0 and at most 1"):
            keep_by_faithfulness(edges, wrong, share)


def test_only_paths_from_input_to_logits_remain() -> None:
    kept = ["input->a0.h0<v>", "a0.h0->m1", "m1->logits"]
    dead_ends = ["input->a1.h1<q>", "m0->logits", "a0.h1->m0", "a0.h0->a1.h0<k>"]
    edges = [edge(name) for name in (*dead_ends, *kept)]
    assert names(connected(ModelGraph(2, 2, 2), edges)) == kept


def test_nothing_remains_without_a_path() -> None:
    assert connected(ModelGraph(2, 2, 2), [edge("input->m0"), edge("m1->logits")]) == []
    assert connected(ModelGraph(2, 2, 2), []) == []


def test_a_shared_key_value_head_passes_on_to_its_group_only() -> None:
    shape = ModelGraph(1, 4, 2)
    edges = [edge("input->a0.kv1<v>"), edge("a0.h0->logits"), edge("a0.h3->logits")]
    assert names(connected(shape, edges)) == ["input->a0.kv1<v>", "a0.h3->logits"]
