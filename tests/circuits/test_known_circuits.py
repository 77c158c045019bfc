"""Circuits that are known because the models were written by hand: what each method finds of them.

Patching edges one at a time has two blind spots, one in each direction. Of two branches of which
either is enough (or), noising sees none; of two that are both needed (and), denoising sees none.
Searches over sets of edges find a circuit either way, under *or* with one branch alone: the other
is redundant.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import gates_by_hand
import induction_by_hand
import pytest

from wiremap.circuits import Circuit, discover, evaluate, verify
from wiremap.edges import Model, PromptPairs, patch_edges

DIRECTIONS = ("noising", "denoising")


def found(model: Model, pairs: PromptPairs, direction: str, **rule: Any) -> Circuit:
    """What ``discover`` keeps when it verifies every edge."""
    options: dict[str, Any] = {"budget": model.graph.n_edges, "held_out": 0, "bound": False}
    return discover(model, pairs, direction=direction, **options, **rule)


def names(circuit: Circuit) -> set[str]:
    return {edge.name for edge in circuit.edges}


def effects(
    model: Model, pairs: PromptPairs, edges: Collection[str], direction: str
) -> list[float]:
    return patch_edges(model, pairs, list(edges), direction=direction).mean().tolist()


def faithfulness(model: Model, pairs: PromptPairs, edges: Collection[str]) -> float:
    return evaluate(model, pairs, list(edges)).faithfulness


# ---- induction


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_threshold_finds_exactly_the_induction_circuit(direction: str) -> None:
    model, pairs = induction_by_hand.model(), induction_by_hand.pairs()
    circuit = found(model, pairs, direction, threshold=0.05)
    assert names(circuit) == set(induction_by_hand.CIRCUIT)
    assert circuit.faithfulness is not None
    assert circuit.faithfulness.faithfulness == pytest.approx(1, abs=1e-4)
    every = [model.graph.edge_name(edge) for edge in model.graph.edges()]
    for item in verify(model, pairs, every, direction=direction):
        if item.name not in induction_by_hand.CIRCUIT:
            assert abs(item.effect) < 1e-4


def test_searches_find_the_induction_circuit_or_the_half_that_is_enough() -> None:
    """The corrupted prompts repeat their word at the same places.

    So there the second head looks to the right place anyhow, and clean values are enough. From the
    whole circuit ACDC does not get there one edge at a time: each of its edges is needed beside the
    others. The search, which takes out groups, does.
    """
    model, pairs = induction_by_hand.model(), induction_by_hand.pairs()
    enough = {"input->a1.h0<v>", "a1.h0->logits"}
    assert faithfulness(model, pairs, enough) == pytest.approx(1, abs=1e-4)
    assert names(found(model, pairs, "noising", acdc=0.01)) == set(induction_by_hand.CIRCUIT)
    for direction in DIRECTIONS:
        assert names(found(model, pairs, direction, target=0.99)) == enough


# ---- gates


@pytest.mark.parametrize(("gate", "blind"), [("or", "noising"), ("and", "denoising")])
@pytest.mark.filterwarnings("ignore::wiremap.edges.WiremapWarning")  # of empty circuits
def test_one_direction_sees_no_branch_and_the_other_both(gate: str, blind: str) -> None:
    model, pairs = gates_by_hand.model(gate), gates_by_hand.pairs()
    branches = [*gates_by_hand.BRANCHES[0], *gates_by_hand.BRANCHES[1]]
    (seeing,) = set(DIRECTIONS) - {blind}
    assert effects(model, pairs, branches, blind) == pytest.approx([0.0] * 4, abs=1e-5)
    assert effects(model, pairs, branches, seeing) == pytest.approx(
        [gates_by_hand.LOGIT] * 4, abs=1e-5
    )
    for direction in DIRECTIONS:
        assert effects(model, pairs, [gates_by_hand.GATE], direction) == pytest.approx(
            [gates_by_hand.LOGIT], abs=1e-5
        )
    assert names(found(model, pairs, blind, threshold=0.01)) == set()
    assert names(found(model, pairs, seeing, threshold=0.01)) == set(gates_by_hand.CIRCUIT)


def test_a_branch_is_enough_under_or_and_half_of_nothing_under_and() -> None:
    pairs = gates_by_hand.pairs()
    branch = [*gates_by_hand.BRANCHES[0], gates_by_hand.GATE]
    assert faithfulness(gates_by_hand.model("or"), pairs, branch) == pytest.approx(1, abs=1e-5)
    assert faithfulness(gates_by_hand.model("and"), pairs, branch) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("gate", ["or", "and"])
def test_searches_find_a_whole_circuit_of_either_gate(gate: str, direction: str) -> None:
    """Both branches of *and*; of *or* the first that holds, and never the other."""
    model, pairs = gates_by_hand.model(gate), gates_by_hand.pairs()
    for kept in (
        names(found(model, pairs, direction, target=0.999)),
        names(found(model, pairs, direction, acdc=0.01)),
    ):
        assert faithfulness(model, pairs, kept) == pytest.approx(1, abs=1e-5)
        if gate == "and":
            assert kept == set(gates_by_hand.CIRCUIT)
        else:
            assert kept in [{*branch, gates_by_hand.GATE} for branch in gates_by_hand.BRANCHES]
