"""The search for sets: true sets of circuits made by hand, nothing to spare, resumed to the same end."""

from __future__ import annotations

import copy
import random
from typing import Any

import gates_by_hand
import induction_by_hand
import pytest
import tiny
import torch
from torch import Tensor

from wiremap.circuits.choice.search import (
    RULES,
    Round,
    SearchOptions,
    SearchResult,
    SearchState,
    eliminate,
    faithfulness,
    judge,
    least_opposing,
    path_data,
    search,
    select_edges,
    smallest_within,
)
from wiremap.edges import InputError, Model, PromptPairs
from wiremap.edges.effects.reduced_runs import ReducedRuns
from wiremap.edges.runs.masks import edge_mask, full_mask, live_mask

NEAR = SearchOptions(target=(0.5, 1.5), trials=200, shrink=0.7)


def names(model: Model, mask: Tensor) -> set[str]:
    graph = model.graph
    return {graph.edge_name(edge) for edge in graph.edges() if mask[edge.reader, edge.writer]}


def small() -> Model:
    """Two layers, so that every subset of few edges can be run."""
    return tiny.model("gpt2", n_layer=2, n_head=2, n_embd=16)


# ---- circuits known by construction


def test_of_an_or_gate_either_branch_is_enough() -> None:
    model = gates_by_hand.model("or")
    result = search(model, gates_by_hand.pairs(), options=SearchOptions(fewest=1))
    branches = [{*branch, gates_by_hand.GATE} for branch in gates_by_hand.BRANCHES]
    assert names(model, result.chosen.mask) in branches
    assert result.reached
    assert result.minimal


def test_of_an_and_gate_both_branches_are_needed() -> None:
    model = gates_by_hand.model("and")
    result = search(model, gates_by_hand.pairs(), options=SearchOptions(fewest=1))
    assert names(model, result.chosen.mask) == set(gates_by_hand.CIRCUIT)
    assert result.reached
    assert result.minimal


def test_an_induction_circuit_is_the_true_one() -> None:
    model, pairs = induction_by_hand.model(), pairs_that_repeat_elsewhere()
    result = search(model, pairs, options=SearchOptions(fewest=1))
    assert names(model, result.chosen.mask) == set(induction_by_hand.CIRCUIT)
    assert result.minimal


def pairs_that_repeat_elsewhere() -> PromptPairs:
    """As ``induction_by_hand``'s, but what is repeated in the corrupted prompt stands one earlier.

    Else the corrupted run attends to the right position, too, and the values alone are enough.
    """
    pairs = induction_by_hand.pairs()
    corrupted = pairs.corrupted[:, [1, 2, 0, 3, 4, 5]]
    return PromptPairs(pairs.clean, corrupted, pairs.answers, pairs.wrong)


# ---- elimination


@pytest.mark.parametrize("seed", range(3))
def test_no_edge_of_the_circuit_left_can_be_spared(seed: int) -> None:
    model, pairs = small(), tiny.pairs(4, seed=seed)
    result = search(model, pairs, options=NEAR)
    assert result.minimal
    chosen = result.rounds[-1]
    with ReducedRuns(model, pairs) as runs:
        for place in chosen.mask.flatten().nonzero().flatten().tolist():
            without = chosen.mask.clone()
            without.view(-1)[place] = False
            left = live_mask(model.graph, without)
            assert not (left.any() and NEAR.holds(faithfulness(runs, left)))


@pytest.mark.parametrize("seed", range(20))
def test_elimination_leaves_a_smallest_set_where_needs_do_not_depend_on_others(seed: int) -> None:
    rng = random.Random(seed)
    n_edges = rng.randint(1, 40)
    needed = set(rng.sample(range(n_edges), rng.randint(0, min(8, n_edges))))
    tried: list[int] = []

    def spared(mask: Tensor) -> bool:
        tried.append(int(mask.sum()))
        return needed <= set(mask.flatten().nonzero().flatten().tolist())

    order = rng.sample(range(n_edges), n_edges)
    mask, minimal = eliminate(torch.ones(1, n_edges, dtype=torch.bool), order, spared, Tensor.clone)
    left = set(mask.flatten().nonzero().flatten().tolist())
    assert left == needed or (not needed and len(left) == 1)  # an empty circuit is never tried
    assert minimal
    assert len(tried) <= 6 * (len(needed) + 1) * (1 + n_edges.bit_length())


def test_elimination_ends_where_no_more_may_be_tried() -> None:
    mask, minimal = eliminate(
        torch.ones(1, 8, dtype=torch.bool), range(8), lambda _: None, Tensor.clone
    )
    assert bool(mask.all())
    assert not minimal


# ---- selection


def test_opposing_edges_count_as_much_as_is_said() -> None:
    shares = torch.tensor([[5, 4, 3, 0.5, -7, -2, -0.1]], dtype=torch.float64)
    every = torch.ones_like(shares, dtype=torch.bool)

    def kept(n_edges: int, opposing: float, gap: float = 5.0) -> list[float]:
        sign = 1 if gap > 0 else -1
        mask = select_edges(sign * shares, every, n_edges, opposing=opposing, gap=gap)
        return shares[mask].tolist()

    assert kept(3, 0.0) == [5, 4, 3]
    assert kept(6, 0.0) == [5, 4, 3, 0.5, -2, -0.1]
    assert kept(3, 1.0) == [5, 4, -7]
    assert kept(3, 1.0, -2.0) == [5, 4, -7]
    assert kept(2, 0.5) == [5, 4]
    assert kept(5, 0.5) == [5, 4, 3, -7, -2]
    assert len(kept(9, 1.0)) == 7


def test_edges_without_a_share_may_be_kept() -> None:
    shares, every = torch.zeros(1, 5).double(), torch.ones(1, 5, dtype=torch.bool)
    for opposing in RULES.values():
        assert int(select_edges(shares, every, 3, opposing=opposing).sum()) == 3


@pytest.mark.parametrize(
    ("worth", "expected", "runs"),
    [
        ({0.0: 3.0, 0.5: 1.0, 1.0: 0.95}, 0.0, 1),
        ({0.0: 0.8, 0.5: 1.2, 1.0: 1.0}, 0.5, 2),
        ({0.0: 0.5, 0.5: 0.7, 1.0: 0.6}, 0.5, 3),
    ],
)
def test_opposing_edges_count_no_more_than_the_target_needs(
    worth: dict[float, float], expected: float, runs: int
) -> None:
    masks = {part: torch.arange(4) < 1 + 2 * part for part in worth}
    tried: list[float] = []

    def measure(mask: Tensor) -> float:
        tried.append(next(part for part in worth if torch.equal(mask, masks[part])))
        return worth[tried[-1]]

    assert torch.equal(least_opposing(masks.__getitem__, measure, 0.9), masks[expected])
    assert len(tried) == runs


# ---- the whole search


@pytest.fixture(scope="module")
def one_result() -> SearchResult:
    return search(small(), tiny.pairs(4), tiny.pairs(4, seed=5), options=NEAR)


def test_circuits_are_smaller_round_by_round_and_on_paths(one_result: SearchResult) -> None:
    graph = small().graph
    pruned = [found for found in one_result.rounds if found.how == "pruned"]
    assert torch.equal(pruned[0].mask, full_mask(graph))
    assert pruned[0].faithfulness == pytest.approx(1, abs=1e-4)
    for found in one_result.rounds:
        assert torch.equal(live_mask(graph, found.mask), found.mask)
    with ReducedRuns(small(), tiny.pairs(4, seed=5)) as runs:
        for found in one_result.rounds:
            assert found.validated == pytest.approx(faithfulness(runs, found.mask), abs=1e-4)


def test_the_same_search_gives_the_same(one_result: SearchResult) -> None:
    again = search(small(), tiny.pairs(4), tiny.pairs(4, seed=5), options=NEAR)
    assert_same(one_result, again)


def assert_same(one: SearchResult, other: SearchResult) -> None:
    assert len(one.rounds) == len(other.rounds)
    for found, expected in zip(other.rounds, one.rounds, strict=True):
        assert torch.equal(found.mask, expected.mask)
        assert found.how == expected.how
        assert found.faithfulness == expected.faithfulness
        assert found.validated == expected.validated
    assert torch.equal(one.chosen.mask, other.chosen.mask)
    assert (one.reached, one.minimal) == (other.reached, other.minimal)


def test_an_interrupted_search_is_gone_on_with(one_result: SearchResult) -> None:
    states: list[SearchState] = []

    def save(state: SearchState) -> None:
        states.append(copy.deepcopy(state))

    pairs, others = tiny.pairs(4), tiny.pairs(4, seed=5)
    assert_same(one_result, search(small(), pairs, others, options=NEAR, save=save))
    assert len(states) > 10
    for state in (states[0], states[len(states) // 2], states[-2], states[-1]):
        assert_same(one_result, search(small(), pairs, others, options=NEAR, state=state))


def test_an_unreachable_target_gives_the_nearest_circuit() -> None:
    options = SearchOptions(target=(30.0, 40.0), trials=10)
    result = search(small(), tiny.pairs(4), options=options)
    assert not result.reached
    assert not result.minimal
    best = max(found.faithfulness for found in result.rounds)
    assert result.chosen.faithfulness == best


def test_the_smallest_within_the_target_is_chosen() -> None:
    def of_size(n_edges: int, faithfulness: float, validated: float | None = None) -> Round:
        return Round(torch.arange(9)[None] < n_edges, "pruned", faithfulness, validated)

    rounds = [of_size(9, 1.0), of_size(5, 0.95), of_size(4, 1.3), of_size(3, 0.7)]
    assert smallest_within(rounds, (0.9, 1.1)) is rounds[1]
    assert smallest_within(rounds, (1.2, 1.25)) is rounds[2]
    assert smallest_within(rounds, (0.6, 1.4)) is rounds[3]
    by_chance = [*rounds, of_size(2, 1.0)]
    assert smallest_within(by_chance, (0.9, 1.1)) is rounds[1]
    assert smallest_within(by_chance[2:], (0.9, 1.1)) is by_chance[4]
    held_out = [of_size(5, 1.0, 0.7), of_size(6, 0.5, 1.0)]
    assert smallest_within(held_out, (0.9, 1.1)) is held_out[1]
    with pytest.raises(InputError, match="at least one circuit"):
        smallest_within([], (0.9, 1.1))


def test_circuits_are_judged_on_other_pairs(one_result: SearchResult) -> None:
    model, pairs = small(), tiny.pairs(5, seed=9)
    masks = [found.mask for found in one_result.rounds]
    judged = judge(model, pairs, masks)
    assert judged[0].faithfulness == pytest.approx(1, abs=1e-3)
    assert judged[0].kl_share == pytest.approx(1, abs=1e-3)
    with ReducedRuns(model, pairs) as runs:
        for found, mask in zip(judged, masks, strict=True):
            assert found.faithfulness == pytest.approx(faithfulness(runs, mask), abs=1e-3)
            assert sum(found.values) / 5 == pytest.approx(found.faithfulness)
            assert found.n_edges == int(mask.sum())
    rows = list(path_data(one_result, judged))
    assert len(rows) == len(masks)
    assert sum(row["chosen"] for row in rows) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": (1.1, 0.9)}, "the lower first"),
        ({"target": (0.0, 0.9)}, "above 0"),
        ({"select": "best"}, "unknown selection 'best'"),
        ({"shrink": 1.0}, "expected shrink between 0 and 1"),
        ({"finer": 0.0}, "expected finer between 0 and 1"),
        ({"steps": 0}, "expected steps of at least 1"),
        ({"fewest": 0}, "expected fewest of at least 1"),
        ({"trials": -1}, "expected trials of at least 0"),
    ],
)
def test_options_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SearchOptions(**changes)


def test_a_metric_that_does_not_change_is_refused() -> None:
    pairs = tiny.pairs(2)
    same = type(pairs)(pairs.clean, pairs.clean, pairs.answers, pairs.wrong)
    with pytest.raises(InputError, match="the same on the clean and on the corrupted"):
        search(small(), same)


def test_hand_made_names_are_edges() -> None:
    model = gates_by_hand.model("and")
    assert names(model, edge_mask(model.graph, gates_by_hand.CIRCUIT)) == set(gates_by_hand.CIRCUIT)
