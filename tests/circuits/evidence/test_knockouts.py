"""Completeness and minimality on a circuit that is known, and against runs one by one."""

from __future__ import annotations

import json

import induction_by_hand as by_hand
import pytest
import tiny

from wiremap.circuits import evaluate
from wiremap.circuits.evidence.knockouts import completeness, minimality
from wiremap.edges import InputError, Model, PromptPairs


@pytest.fixture(scope="module")
def known() -> tuple[Model, PromptPairs]:
    return by_hand.model(), by_hand.pairs()


@pytest.fixture(scope="module")
def some() -> tuple[Model, PromptPairs, list[str]]:
    model = tiny.model("llama-gqa")
    names = [model.graph.edge_name(edge) for edge in model.graph.edges()]
    return model, tiny.pairs(3), names[::9]


def test_the_true_circuit_is_complete(known: tuple[Model, PromptPairs]) -> None:
    found = completeness(*known, by_hand.CIRCUIT, n_subsets=6)
    assert len(found.knockouts) == 1 + len(by_hand.CIRCUIT) + 6
    assert found.largest.incompleteness == pytest.approx(0, abs=1e-4)
    assert found.mean == pytest.approx(0, abs=1e-4)
    assert (found.full, found.n_pairs) == (pytest.approx(5.0, abs=1e-4), 24)
    assert found.knockouts[0].removed == ()
    assert found.knockouts[0].circuit == pytest.approx(5.0, abs=1e-4)
    by_edge = {one.removed: one.model for one in found.knockouts[1:6]}
    assert by_edge.keys() == {(name,) for name in by_hand.CIRCUIT}
    assert max(by_edge.values()) < 2  # every edge is needed


def test_a_part_of_it_is_not(known: tuple[Model, PromptPairs]) -> None:
    found = completeness(*known, by_hand.CIRCUIT[1:])
    assert found.knockouts[0].incompleteness == pytest.approx(found.largest.incompleteness)
    assert found.largest.incompleteness > 3
    nothing = completeness(*known, [])
    assert [one.removed for one in nothing.knockouts] == [()]
    assert nothing.largest.incompleteness == pytest.approx(nothing.full - nothing.empty)


def test_an_idle_edge_is_the_least_needed(known: tuple[Model, PromptPairs]) -> None:
    found = minimality(*known, [*by_hand.CIRCUIT, "input->m1"])
    assert found.least.edge == "input->m1"
    assert found.least.score == pytest.approx(0, abs=1e-5)
    for need in found.edges[1:]:
        assert need.alone > 3
        assert need.score >= need.alone


def test_completeness_equals_runs_one_by_one(some: tuple[Model, PromptPairs, list[str]]) -> None:
    model, pairs, circuit = some
    found = completeness(model, pairs, circuit, n_subsets=3, seed=1)
    every = [model.graph.edge_name(edge) for edge in model.graph.edges()]
    assert len({one.removed for one in found.knockouts}) == 4 + len(circuit) > 20
    for one in (*found.knockouts[:3], *found.knockouts[-3:]):
        for names, value in ((circuit, one.circuit), (every, one.model)):
            kept = [name for name in names if name not in one.removed]
            assert evaluate(model, pairs, kept).circuit == pytest.approx(value, abs=1e-4)


def test_minimality_equals_runs_one_by_one(some: tuple[Model, PromptPairs, list[str]]) -> None:
    model, pairs, circuit = some
    found = minimality(model, pairs, circuit, n_subsets=3)
    assert [need.score for need in found.edges] == sorted(need.score for need in found.edges)
    assert any(need.removed for need in found.edges)
    for need in found.edges[-4:]:
        for removed, score in (((), need.alone), (need.removed, need.score)):
            kept = [name for name in circuit if name not in removed]
            without = [name for name in kept if name != need.edge]
            assert need.edge in kept
            one, other = (evaluate(model, pairs, edges).circuit for edges in (kept, without))
            assert abs(one - other) == pytest.approx(score, abs=1e-4)


def test_draws_hang_on_the_seed_alone(some: tuple[Model, PromptPairs, list[str]]) -> None:
    model, pairs, circuit = some
    for check in (completeness, minimality):
        found = check(model, pairs, circuit)
        assert check(model, pairs, circuit[::-1]) == found
        assert check(model, pairs, circuit, seed=1) != found
        json.dumps(found.as_document(), allow_nan=False)


def test_wrong_input_is_refused(known: tuple[Model, PromptPairs]) -> None:
    with pytest.raises(InputError, match="expected the edges of a circuit, got none"):
        minimality(*known, [])
    with pytest.raises(InputError, match="probability between 0 and 1, got 1"):
        minimality(*known, by_hand.CIRCUIT, probability=1.0)
    for check in (completeness, minimality):
        with pytest.raises(InputError, match="0 or more, got -1"):
            check(*known, by_hand.CIRCUIT, n_subsets=-1)
        with pytest.raises(InputError, match="unknown writer"):
            check(*known, ["m7->logits"])
