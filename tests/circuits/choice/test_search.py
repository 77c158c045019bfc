"""The search for sets: true sets of circuits made by hand, nothing to spare, resumed to the same end."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gates_by_hand
import induction_by_hand
import pytest
import tiny
import torch
from torch import Tensor

from wiremap.circuits.choice.search import (
    SearchOptions,
    SearchResult,
    balanced,
    eliminate,
    faithfulness,
    judged_on,
    search,
    select_edges,
    smallest_enough,
)
from wiremap.circuits.record.search_file import Journal, Round, open_journal
from wiremap.edges import InputError, Model, PromptPairs
from wiremap.edges.effects.mask_gradients import MaskedRuns
from wiremap.edges.question.question import Question
from wiremap.edges.runs.masks import edge_names, full_mask, live_mask
from wiremap.edges.runs.sweep import Resources

WIDE = SearchOptions(target=0.3, trials=60)


def find(
    model: Model,
    pairs: PromptPairs,
    options: SearchOptions | None = None,
    journal: Journal | None = None,
) -> SearchResult:
    question = Question(pairs=pairs)
    return search(model, question, options or SearchOptions(), Resources(), journal)


def names(model: Model, mask: Tensor) -> set[str]:
    return set(edge_names(model.graph, mask.nonzero()))


def small() -> Model:
    """Two layers, so that every subset of few edges can be run."""
    return tiny.model("gpt2", n_layer=2, n_head=2, n_embd=16)


# ---- circuits known by construction


def test_of_an_or_gate_either_branch_is_enough() -> None:
    model = gates_by_hand.model("or")
    result = find(model, gates_by_hand.pairs())
    branches = [{*branch, gates_by_hand.GATE} for branch in gates_by_hand.BRANCHES]
    assert names(model, result.chosen.mask) in branches
    assert result.reached
    assert result.minimal


def test_of_an_and_gate_both_branches_are_needed() -> None:
    model = gates_by_hand.model("and")
    result = find(model, gates_by_hand.pairs())
    assert names(model, result.chosen.mask) == set(gates_by_hand.CIRCUIT)
    assert result.reached
    assert result.minimal


def test_an_induction_circuit_is_the_true_one() -> None:
    model, pairs = induction_by_hand.model(), pairs_that_repeat_elsewhere()
    result = find(model, pairs)
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


@pytest.mark.parametrize("seed", [0, 3])
def test_no_edge_of_the_circuit_left_can_be_spared(seed: int) -> None:
    model, pairs = small(), tiny.pairs(4, seed=seed)
    result = find(model, pairs, SearchOptions(target=0.5, trials=300))
    assert result.minimal
    mask = result.chosen.mask
    with MaskedRuns(model, Question(pairs=pairs), Resources()) as runs:
        for place in mask.flatten().nonzero().flatten().tolist():
            without = mask.clone()
            without.view(-1)[place] = False
            left = live_mask(model.graph, without)
            worth = faithfulness(runs.values(left), runs.full, runs.empty)
            off = SearchOptions(target=0.5).off(Round(left, "needed", worth))
            assert off or not left.any() or abs(worth - 1) > 0.0125


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
    for opposing in (0.0, 0.5, 1.0):
        assert int(select_edges(shares, every, 3, opposing=opposing).sum()) == 3


@pytest.mark.parametrize(
    ("worth", "expected", "runs"),
    [
        (lambda _: 1.01, 0.0, 1),
        (lambda part: 0.8 - part, 0.0, 5),
        (lambda part: 3 - 2 * part, 1.0, 3),
        (lambda part: 2.5 - 2.4 * part, 0.625, 6),
        (lambda part: part - 1.7, 1.0, 5),
        (lambda part: 1.5 - 2 * part, 0.25, 4),
    ],
)
def test_opposing_edges_count_what_brings_a_circuit_nearest_to_the_model(
    worth: Callable[[float], float], expected: float, runs: int
) -> None:
    tried: list[float] = []

    def counting(part: float) -> Round:
        tried.append(part)
        return of_size(4, worth(part))

    assert balanced(counting).judged == worth(expected)
    assert len(tried) == len(set(tried)) == runs


# ---- the whole search


@pytest.fixture(scope="module")
def one_result() -> SearchResult:
    return find(small(), tiny.pairs(8), WIDE)


def test_circuits_are_smaller_round_by_round_and_on_paths(one_result: SearchResult) -> None:
    graph = small().graph
    pruned = [each for each in one_result.rounds if each.how == "pruned"]
    assert torch.equal(pruned[0].mask, full_mask(graph))
    assert pruned[0].judged == pytest.approx(1, abs=1e-4)
    for each in one_result.rounds:
        assert torch.equal(live_mask(graph, each.mask), each.mask)


def test_a_circuit_is_judged_on_all_pairs_and_on_both_halves(one_result: SearchResult) -> None:
    pairs = tiny.pairs(8)
    of_halves = [pairs.take(range(start, 8, 2)) for start in (0, 1)]
    for each in one_result.rounds:
        for part, expected in zip((pairs, *of_halves), (each.judged, *each.halves), strict=True):
            with MaskedRuns(small(), Question(pairs=part), Resources()) as runs:
                worth = faithfulness(runs.values(each.mask), runs.full, runs.empty)
            assert worth == pytest.approx(expected, abs=1e-4)
        assert each.how != "spared" or WIDE.off(each) == 0


def test_elimination_leaves_a_circuit_as_near_as_it_was(one_result: SearchResult) -> None:
    pruned = [each for each in one_result.rounds[1:] if each.how == "pruned"]
    start = smallest_enough(pruned, WIDE)
    assert WIDE.off(start) == 0
    assert abs(one_result.chosen.judged - 1) <= max(0.0125, abs(start.judged - 1)) + 1e-4


def test_few_pairs_are_not_judged_by_halves() -> None:
    assert judged_on(7) == [slice(None)]
    assert len(judged_on(8)) == 3


def test_shares_add_up_to_what_the_circuit_carries(one_result: SearchResult) -> None:
    """Gradients along a line add up to the difference of its ends, with steps enough."""
    pairs = tiny.pairs(8)
    mask = one_result.chosen.mask
    with MaskedRuns(small(), Question(pairs=pairs), Resources()) as runs:
        shares = runs.gradients_along(mask, 64, wanted=mask).gradients
        carried = (runs.values(mask) - runs.empty).mean().item()
    assert shares.sum().item() == pytest.approx(carried, rel=0.02, abs=1e-3)
    assert bool((one_result.shares[~mask] == 0).all())


def assert_same(one: SearchResult, other: SearchResult) -> None:
    assert len(one.rounds) == len(other.rounds)
    for each, expected in zip(other.rounds, one.rounds, strict=True):
        assert torch.equal(each.mask, expected.mask)
        assert (each.how, each.judged, each.halves) == (
            expected.how,
            expected.judged,
            expected.halves,
        )
    assert torch.equal(one.chosen.mask, other.chosen.mask)
    assert torch.equal(one.shares, other.shares)
    assert (one.reached, one.minimal) == (other.reached, other.minimal)


def test_an_interrupted_search_goes_on_from_its_file(
    one_result: SearchResult, tmp_path: Path
) -> None:
    model, pairs = small(), tiny.pairs(8)
    whole = tmp_path / "whole.jsonl"
    assert_same(one_result, find(model, pairs, WIDE, open_journal(whole, model.graph)))
    lines = whole.read_bytes().splitlines(keepends=True)
    assert len(lines) == len(one_result.rounds) > 5
    for kept in (0, 1, len(lines) // 2, len(lines)):
        path = tmp_path / f"{kept}.jsonl"
        torn = lines[kept][:20] if kept < len(lines) else b""
        path.write_bytes(b"".join(lines[:kept]) + torn)
        assert_same(one_result, find(model, pairs, WIDE, open_journal(path, model.graph)))
        assert path.read_bytes() == whole.read_bytes()


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    path.write_text('{"how": "pruned"}\n')
    with pytest.raises(InputError, match=r"search\.jsonl, line 1: expected a circuit"):
        open_journal(path, small().graph)


def test_an_unreachable_target_gives_the_nearest_circuit() -> None:
    """Chance alone decides how faithful circuits of random weights are."""
    result = find(small(), tiny.pairs(4), SearchOptions(target=1.0, trials=5))
    assert not result.reached
    assert not result.minimal
    tried = [each for each in result.rounds[1:] if each.how != "needed"]
    nearest = min(abs(each.judged - 1) for each in tried)
    assert abs(result.chosen.judged - 1) == pytest.approx(nearest)


def of_size(n_edges: int, judged: float, halves: tuple[float, ...] = ()) -> Round:
    return Round(torch.arange(9)[None] < n_edges, "pruned", judged, halves)


def test_what_is_enough_is_near_to_the_model_on_both_halves() -> None:
    off = SearchOptions(target=0.9).off
    assert off(of_size(3, 0.98)) == off(of_size(3, 1.02, (1.07, 0.93))) == 0
    assert off(of_size(3, 0.95)) == pytest.approx(0.025, abs=1e-4)
    assert off(of_size(3, 1.05)) == pytest.approx(0.025, abs=1e-4)
    assert off(of_size(3, 1.0, (1.1, 0.9))) == pytest.approx(0.025, abs=1e-4)


def test_the_smallest_circuit_that_is_enough_is_chosen() -> None:
    options = SearchOptions(target=0.9)
    rounds = [of_size(9, 1.0), of_size(5, 0.98), of_size(4, 1.3), of_size(3, 0.7)]
    assert smallest_enough(rounds, options) is rounds[1]
    by_chance = [*rounds, of_size(2, 1.0)]
    assert smallest_enough(by_chance, options) is rounds[1]
    assert smallest_enough(by_chance[2:], options) is by_chance[4]
    apart = [of_size(9, 1.0, (1.01, 0.99)), of_size(5, 1.0, (1.2, 0.8))]
    assert smallest_enough(apart, options) is apart[0]
    assert smallest_enough(apart[1:], options) is apart[1]
    assert smallest_enough([of_size(9, 1.4), of_size(5, 0.8)], options).n_edges == 5
    with pytest.raises(InputError, match="at least one circuit"):
        smallest_enough([], options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": 0.0}, "target above 0 and at most 1, got 0"),
        ({"target": 1.1}, "target above 0 and at most 1, got 1.1"),
        ({"steps": 0}, "expected steps of at least 1"),
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
        find(small(), same)
