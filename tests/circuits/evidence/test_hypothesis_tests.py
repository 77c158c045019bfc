"""Hypothesis tests: p-values under nulls made for it, under clear alternatives, and on models."""

from __future__ import annotations

import json
import math
import random

import induction_by_hand as by_hand
import pytest
import tiny
import torch

from wiremap.circuits.evidence.claims import (
    against_random,
    equivalence,
    independence,
    minimality,
    run_tests,
)
from wiremap.circuits.evidence.random_circuits import random_circuit
from wiremap.edges import InputError, Model, PromptPairs


@pytest.fixture(scope="module")
def known() -> tuple[Model, PromptPairs]:
    return by_hand.model(), by_hand.pairs(40)


def noise(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def false_alarms(p_values: list[float], level: float) -> float:
    return sum(p <= level for p in p_values) / len(p_values)


# ---- equivalence


def test_equivalence_equals_a_sum_by_hand() -> None:
    circuit = torch.tensor([1.0, 1, 1, 1, -1, 0, 0], dtype=torch.float64)
    found = equivalence(circuit, torch.zeros_like(circuit), margin=0.1)
    chances = [math.comb(5, k) * 0.6**k * 0.4 ** (5 - k) for k in range(6)]
    assert found.p_value == pytest.approx(chances[0] + chances[1] + chances[4] + chances[5])
    assert (found.statistic, found.n) == (pytest.approx(0.3), 5)
    assert found.details == {"above": 4, "below": 1, "ties": 2, "margin": 0.1}


def test_equivalence_under_its_null_and_against_it() -> None:
    model = noise(400, 80, seed=0)
    circuit = model + noise(400, 80, seed=1)
    p_values = [equivalence(*both, margin=0.0).p_value for both in zip(circuit, model, strict=True)]
    for level in (0.05, 0.2, 0.5):
        assert level - 0.12 <= false_alarms(p_values, level) <= level + 0.03  # signs are discrete
    with_margin = [equivalence(*both).p_value for both in zip(circuit, model, strict=True)]
    assert false_alarms(with_margin, 0.05) < 0.01
    assert equivalence(model[0] - 1, model[0]).p_value < 1e-10
    assert equivalence(model[0] + 1, model[0]).p_value < 1e-10


def test_a_circuit_that_is_the_model_is_equivalent() -> None:
    model = noise(30, seed=0)
    assert equivalence(model, model).p_value == 1
    assert equivalence(model - 1e-6, model).p_value < 1e-3
    assert equivalence(model - 1e-6, model, tie=1e-5).p_value == 1


# ---- independence


def test_independence_is_uniform_under_its_null() -> None:
    one, other = noise(200, 30, seed=2), noise(200, 30, seed=3)
    p_values = [independence(a, b, 99).p_value for a, b in zip(one, other, strict=True)]
    for level in (0.05, 0.2, 0.5, 0.8):
        spread = 3 * math.sqrt(level * (1 - level) / 200)
        assert abs(false_alarms(p_values, level) - level) < spread


def test_dependence_is_seen_without_correlation() -> None:
    one = noise(100, seed=4)
    found = independence(one, one**2 + 0.1 * noise(100, seed=5))
    assert found.p_value == pytest.approx(1 / 1001)
    assert abs(found.details["correlation"]) < 0.5
    assert independence(one, one).statistic > found.statistic > 0


def test_hsic_equals_its_formula() -> None:
    one, other = noise(9, seed=6), noise(9, seed=7)
    kernels: list[torch.Tensor] = []
    for values in (one, other):
        distances = [abs(float(a - b)) for a in values for b in values if a != b]
        width = sorted(distances)[(len(distances) - 1) // 2]
        rows = [[math.exp(-(float(a - b) ** 2) / (2 * width**2)) for b in values] for a in values]
        kernels.append(torch.tensor(rows, dtype=torch.float64))
    centre = torch.eye(9, dtype=torch.float64) - 1 / 9
    expected = torch.trace(kernels[0] @ centre @ kernels[1] @ centre) / 8**2
    assert independence(one, other, 1).statistic == pytest.approx(float(expected), rel=1e-9)


def test_what_does_not_vary_is_independent() -> None:
    model = noise(20, seed=8)
    for constant in (torch.zeros_like(model), torch.full_like(model, 1 / 3)):
        found = independence(constant, model)
        assert found.p_value == 1
        assert found.statistic == pytest.approx(0, abs=1e-12)
        assert found.details["correlation"] is None
        assert independence(model, constant).p_value == 1


# ---- minimality


def test_minimality_under_its_null_and_against_it() -> None:
    draws = torch.rand(400, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    at_the_edge = torch.tensor([0.9], dtype=torch.float64)  # above 0.9 of random edges
    p_values = [minimality(["e"], at_the_edge, row).p_value for row in draws]
    for level in (0.05, 0.2, 0.5):
        assert level - 0.15 <= false_alarms(p_values, level) <= level + 0.06
    clear = minimality(["good", "idle"], torch.tensor([2.0, 0.0], dtype=torch.float64), draws[0])
    assert clear.p_value < 1e-90
    assert clear.statistic == 0
    assert [one["edge"] for one in clear.details["edges"]] == ["idle", "good"]
    assert [one["adjusted"] for one in clear.details["edges"]] == [clear.p_value, 1.0]
    assert minimality(["good"], torch.tensor([2.0], dtype=torch.float64), draws[0]).p_value == 1


def test_minimality_equals_a_sum_by_hand() -> None:
    found = minimality(
        ["a", "b"],
        torch.tensor([2.5, 9.0], dtype=torch.float64),
        torch.tensor([1.0, 2.0, 2.5, 3.0], dtype=torch.float64),
        quantile=0.75,
    )
    chances = [math.comb(4, k) * 0.75**k * 0.25 ** (4 - k) for k in range(3)]
    first = found.details["edges"][0]
    assert (first["edge"], first["share_above"]) == ("a", 0.5)
    assert first["p_value"] == pytest.approx(sum(chances))
    assert found.p_value == pytest.approx(2 * sum(chances))


# ---- random circuits


def test_random_circuits_are_counted_by_distance_from_1() -> None:
    drawn = torch.tensor([0.0, 0.5, 0.9, 1.05, 1.5], dtype=torch.float64)
    found = against_random(0.9, drawn)
    assert found.statistic == pytest.approx(2 / 5)
    assert found.p_value == pytest.approx(3 / 6)
    assert against_random(1.0, drawn).p_value == pytest.approx(1 / 6)


# ---- on models


def test_the_true_circuit_stands(known: tuple[Model, PromptPairs]) -> None:
    found = {one.name: one for one in run_tests(*known, by_hand.CIRCUIT, n_random=40)}
    assert found["equivalence"].p_value == 1
    assert found["independence"].p_value > 0.01
    assert found["minimality"].p_value == 1
    assert found["against random circuits"].p_value == pytest.approx(1 / 41)
    assert found["against random circuits"].details["faithfulness"] == pytest.approx(1, abs=1e-5)
    json.dumps([one.as_document() for one in found.values()], allow_nan=False)


def test_wrong_circuits_fall(known: tuple[Model, PromptPairs]) -> None:
    model, pairs = known
    incomplete = {
        one.name: one for one in run_tests(model, pairs, by_hand.CIRCUIT[1:], n_random=40)
    }
    assert incomplete["equivalence"].p_value < 0.01
    inflated = {
        one.name: one
        for one in run_tests(model, pairs, [*by_hand.CIRCUIT, "input->m0"], n_random=40)
    }
    assert inflated["equivalence"].p_value == 1
    assert inflated["minimality"].p_value < 1e-6
    worst = inflated["minimality"].details["edges"][0]
    assert worst["edge"] == "input->m0"


def test_a_random_circuit_is_as_random_ones() -> None:
    model, pairs = tiny.model("llama-gqa"), tiny.pairs(24)
    graph = model.graph
    edges = [graph.edge_name(edge) for edge in random_circuit(graph, 30, random.Random(3))]
    found = {one.name: one for one in run_tests(model, pairs, edges, n_random=60)}
    assert found["against random circuits"].p_value > 0.05
    assert found["independence"].p_value < 0.05  # the rest still does it
    again = run_tests(model, pairs, edges[::-1], n_random=60)
    assert again == list(found.values())


def test_wrong_input_is_refused(known: tuple[Model, PromptPairs]) -> None:
    model, pairs = known
    with pytest.raises(InputError, match="a path from input to logits to test"):
        run_tests(model, pairs, ["input->m0"])
    with pytest.raises(InputError, match="at least 2 pairs to test on, got 1"):
        run_tests(model, tiny.one_pair(pairs, 0), by_hand.CIRCUIT)
    with pytest.raises(InputError, match="at least 1 random circuit"):
        run_tests(model, pairs, by_hand.CIRCUIT, n_random=0)
    every = [model.graph.edge_name(edge) for edge in model.graph.edges()]
    with pytest.raises(InputError, match="leaves edges of the model out"):
        run_tests(model, pairs, every)
    with pytest.raises(InputError, match="margin from 0 to below 0.5"):
        run_tests(model, pairs, by_hand.CIRCUIT, n_random=2, margin=0.5)
    with pytest.raises(InputError, match="quantile between 0 and 1"):
        run_tests(model, pairs, by_hand.CIRCUIT, n_random=2, quantile=1.0)
    with pytest.raises(InputError, match="at least 1 permutation"):
        run_tests(model, pairs, by_hand.CIRCUIT, n_random=2, n_permutations=0)
    same = PromptPairs(pairs.clean, pairs.clean, pairs.answers, pairs.wrong)
    with pytest.raises(InputError, match="nothing to be faithful to"):
        run_tests(model, same, by_hand.CIRCUIT, n_random=2)
