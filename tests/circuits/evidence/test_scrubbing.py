"""Causal scrubbing: on a circuit known by its weights, against recursion, and what it refuses."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import induction_by_hand as by_hand
import pytest
import tiny
import torch
from slow import SlowModel, Writes, total
from torch import Tensor

from wiremap.circuits import evaluate
from wiremap.circuits.evidence.other_prompts import OtherPrompts
from wiremap.circuits.evidence.random_circuits import random_circuit
from wiremap.circuits.evidence.scrubbing import Scrubbing, scrub
from wiremap.edges import InputError, Model, ModelGraph, PromptPairs, WiremapError
from wiremap.edges.names.vocabulary import SCHEMES
from wiremap.edges.question.metrics import Targets, logit_diff
from wiremap.edges.question.prompts import PADDING


@pytest.fixture(scope="module")
def known() -> tuple[Model, PromptPairs]:
    return by_hand.model(), by_hand.pairs()


@pytest.fixture(scope="module")
def tiny_gpt2() -> tuple[Model, SlowModel]:
    hf = tiny.hf_model("gpt2")
    slow = SlowModel(hf)
    return Model(tiny.bridge(hf)), slow


def some_edges(model: Model, share: float, seed: int = 0) -> list[str]:
    names = [model.graph.edge_name(edge) for edge in model.graph.edges()]
    return random.Random(seed).sample(names, int(share * len(names)))


def same(one: Scrubbing, other: Scrubbing, tolerance: float = 0.0) -> None:
    for found, expected in (
        (one.original, other.original),
        (one.random, other.random),
        (one.circuit.values, other.circuit.values),
    ):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# ---- a circuit that is known


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_true_circuit_holds_and_each_of_its_edges_is_needed(
    known: tuple[Model, PromptPairs], scheme: str
) -> None:
    found = scrub(*known, by_hand.CIRCUIT, scheme=scheme, drop_one=True, random_circuits=3)
    assert float(found.original.mean()) == pytest.approx(5.0, abs=1e-4)
    assert found.circuit.recovered == pytest.approx(1.0, abs=1e-5)
    assert found.circuit.explained == pytest.approx(1.0, abs=1e-5)
    assert found.circuit.interval == pytest.approx((1.0, 1.0), abs=1e-5)
    assert found.circuit.tree_size == 6
    assert set(found.without) == set(by_hand.CIRCUIT)
    for without in found.without.values():
        assert without.recovered < 0.2
        assert without.explained < 0.2
    assert [one.recovered < 0.2 for one in found.random_circuits] == [True] * 3


@pytest.mark.parametrize("scheme", SCHEMES)
def test_all_edges_recover_everything_and_none_nothing(
    known: tuple[Model, PromptPairs], scheme: str
) -> None:
    model, pairs = known
    every = [model.graph.edge_name(edge) for edge in model.graph.edges()]
    whole, nothing = (scrub(model, pairs, edges, scheme=scheme) for edges in (every, []))
    assert whole.circuit.recovered == pytest.approx(1.0, abs=1e-5)
    if scheme == "per-edge":  # the logits read many prompts at once: about 0
        assert abs(nothing.circuit.recovered) < 0.25
    else:
        assert nothing.circuit.recovered == 0.0
        assert nothing.circuit.explained == 0.0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_paired_is_the_faithfulness_of_evaluate(scheme: str) -> None:
    model, pairs = tiny.model("llama-gqa"), tiny.pairs(5)
    edges = some_edges(model, 0.3)
    found, expected = (
        scrub(model, pairs, edges, scheme=scheme, other="paired"),
        evaluate(model, pairs, edges),
    )
    assert found.circuit.recovered == pytest.approx(expected.faithfulness, rel=1e-3, abs=1e-4)
    assert found.settings["repeats"] == 1
    assert found.settings["baselines"] == {"original": "identity", "random": "corrupted"}


# ---- against slow oracles, draws included


def test_together_equals_an_explicit_tree(tiny_gpt2: tuple[Model, SlowModel]) -> None:
    """Every copy of a node runs the whole model again; all read the one other prompt."""
    model, slow = tiny_gpt2
    pairs, edges = mixed_lengths(), some_edges(model, 0.35)
    found = scrub(model, pairs, edges, repeats=2, seed=3)
    assert found.circuit.tree_size > 30
    kept = {tuple(name.split("->")) for name in edges}

    def copy(node: str, clean: Tensor, other: Tensor) -> Tensor:
        """What a copy of a node writes; for the logits, they."""
        if node == "input":
            return slow.embed(clean)
        other_writes = slow.run(other)[1]

        def read(reader: str, writes: Writes) -> Tensor:
            if reader.partition("<")[0] != node:
                return total(reader, writes)
            known = {
                name: copy(name, clean, other) if (name, reader) in kept else other_writes[name]
                for name in writes
            }
            return total(reader, known)

        logits, writes = slow.run(other, read)
        return logits if node == "logits" else writes[node]

    others = OtherPrompts(pairs, "any", 3)
    original, scrubbed, unrelated = (torch.zeros(12).double() for _ in range(3))
    for bucket in pairs.batches():
        rows, targets = bucket.rows, Targets.of(bucket, torch.empty(len(bucket), 0))
        original[rows] = logit_diff(slow.run(bucket.clean)[0], targets)
        for repeat in range(2):
            other = bucket.clean[others.draw("logits", repeat)[0, rows]]
            scrubbed[rows] += logit_diff(copy("logits", bucket.clean, other), targets) / 2
            unrelated[rows] += logit_diff(slow.run(other)[0], targets) / 2
    torch.testing.assert_close(found.original, original, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.circuit.values, scrubbed, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.random, unrelated, rtol=1e-4, atol=1e-4)
    expected = (scrubbed - unrelated).mean() / (original - unrelated).mean()
    assert found.circuit.recovered == pytest.approx(float(expected), rel=1e-3)


def test_explained_and_errors_by_hand(tiny_gpt2: tuple[Model, SlowModel]) -> None:
    """One repeat, so that the means per pair are the values themselves."""
    model, pairs = tiny_gpt2[0], tiny.pairs(4)
    found = scrub(model, pairs, some_edges(model, 0.4), repeats=1)
    original, rand, scrubbed = (
        values.tolist() for values in (found.original, found.random, found.circuit.values)
    )
    unexplained = sum(abs(o - s) for o, s in zip(original, scrubbed, strict=True))
    in_all = sum(abs(o - r) for o, r in zip(original, rand, strict=True))
    assert found.circuit.explained == pytest.approx(1 - unexplained / in_all)
    mean = sum(scrubbed) / 4
    error = (sum((value - mean) ** 2 for value in scrubbed) / 3) ** 0.5 / 2
    told = found.as_document()["scrubbed"]
    assert (told["mean"], told["standard_error"]) == pytest.approx((mean, error))
    low, high = found.circuit.interval or (0, 0)
    assert low < found.circuit.recovered < high


# ---- draws


@pytest.mark.parametrize("other", ["any", "same-label", "feature:kind"])
def test_draws_agree_are_of_the_same_length_and_never_the_pair_itself(other: str) -> None:
    pairs = mixed_lengths()
    draws = OtherPrompts(pairs, other, 0).draw("somewhere", 0, 400)
    lengths = pairs.lengths.tolist()
    agreeing = {
        "any": [0] * 12,
        "same-label": [set(row) for row in pairs.answers.tolist()],
        "feature:kind": [record["kind"] for record in pairs.features],
    }[other]
    for row in range(12):
        same_length = [at for at in range(12) if lengths[at] == lengths[row]]
        expected = {at for at in same_length if at != row and agreeing[at] == agreeing[row]}
        drawn = Counter(same_length[place] for place in draws[:, row].tolist())
        assert set(drawn) == expected
        assert len(expected) > 0
        assert max(drawn.values()) < 2 * min(drawn.values())  # uniform: about 400 / n each


def mixed_lengths() -> PromptPairs:
    """Twelve pairs of two lengths; answers, also as sets in another order, and a column."""
    generator = torch.Generator().manual_seed(0)
    clean, corrupted = torch.randint(1, 50, (2, 12, 7), generator=generator)
    for tokens in (clean, corrupted):
        tokens[::2, 5:] = PADDING
    answers = torch.tensor([[1, 2], [3, 4], [2, 1], [4, 3]] * 2 + [[5, 1]] * 4)
    wrong = torch.full((12,), 9)
    features = tuple({"kind": ["a", {"b": row < 6}]} for row in range(12))
    return PromptPairs(clean, corrupted, answers, wrong, features)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_seeds_reproduce_and_batches_change_nothing(scheme: str) -> None:
    model, pairs = tiny.model("llama-gqa"), mixed_lengths()
    edges = some_edges(model, 0.2)

    def scrubbed(seed: int, batch_size: int | None) -> Scrubbing:
        return scrub(
            model, pairs, edges, scheme=scheme, repeats=2, seed=seed, batch_size=batch_size
        )

    first = scrubbed(1, None)
    assert first.as_document() == scrubbed(1, None).as_document()
    same(scrubbed(1, 1), first, 1e-4)
    assert not torch.equal(scrubbed(2, None).circuit.values, first.circuit.values)


# ---- dead edges, random circuits


@pytest.mark.parametrize("scheme", SCHEMES)
def test_dead_edges_do_nothing_and_are_named(known: tuple[Model, PromptPairs], scheme: str) -> None:
    dead = ["a0.h1->logits", "input->a1.h1<q>"]
    found = scrub(*known, [*by_hand.CIRCUIT[1:], *dead], scheme=scheme)
    assert set(found.dead) == {*dead, "a0.h0->a1.h0<k>"}
    same(found, scrub(*known, [by_hand.CIRCUIT[i] for i in (1, 3, 4)], scheme=scheme))


def test_random_circuits_have_the_size_asked_for_and_hang_together() -> None:
    graph = ModelGraph(4, 4, 2)
    for n_edges in (0, 1, 7, 60, graph.n_edges - 1, graph.n_edges):
        edges = random_circuit(graph, n_edges, random.Random(0))
        assert len(set(edges)) == len(edges) == n_edges
    edges = random_circuit(graph, 60, random.Random(0))
    assert len(graph.live(edges)) > 50
    assert edges != random_circuit(graph, 60, random.Random(1))


# ---- refusals


def test_bad_questions_are_refused(known: tuple[Model, PromptPairs]) -> None:
    model, pairs = known
    for message, options in (
        ("unknown scheme 'per-node'; there are together, per-edge, per-path", {"scheme": "per-node"}),
        ("unknown other prompts 'mean'; there are any, same-label, paired and", {"other": "mean"}),
        ("unknown other prompts 'feature:'", {"other": "feature:"}),
        ("expected at least 1 repeat, got 0", {"repeats": 0}),
        ("expected a column 'order' in every pair; missing in 24 rows: 1, 2, .*; there are kind",
         {"other": "feature:order"}),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            scrub(model, pairs, by_hand.CIRCUIT, **options)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="unknown writer 'a7.h0'"):
        scrub(model, pairs, ["a7.h0->logits"])


def test_pairs_without_another_prompt_are_named() -> None:
    model, pairs = tiny.model("gpt2"), tiny.pairs(3)
    answers = torch.tensor([5, 6, 5])
    with pytest.raises(InputError, match=r"in tokens and same-label; none in row 2; give more"):
        scrub(model, replace(pairs, answers=answers), [], other="same-label")
    clean, corrupted = pairs.clean.clone(), pairs.corrupted.clone()
    clean[0, 6] = corrupted[0, 6] = PADDING
    lengths = replace(pairs, clean=clean, corrupted=corrupted)
    with pytest.raises(InputError, match=r"of the same length in tokens; none in row 1;"):
        scrub(model, lengths, [])
    found = scrub(model, lengths, ["m0->logits", "input->m0"], leave_out=True)
    assert found.left_out == (0,)
    assert found.as_document()["rows_left_out"] == [1]
    rows = slice(1, None)
    rest = PromptPairs(clean[rows], corrupted[rows], pairs.answers[rows], pairs.wrong[rows])
    same(found, scrub(model, rest, ["m0->logits", "input->m0"]))
    with pytest.raises(InputError, match="no pair goes with another prompt; give more pairs"):
        scrub(model, tiny.pairs(1), [], leave_out=True)
    scrub(model, lengths, ["m0->logits", "input->m0"], other="paired")


def test_large_trees_are_refused_with_their_size() -> None:
    model, pairs = tiny.model("gpt2"), tiny.pairs(3)
    every = some_edges(model, 1.0)
    with pytest.raises(InputError, match=r"the tree of the circuit has 23,904 nodes, more than"):
        scrub(model, pairs, every, scheme="per-path", max_tree=20_000)
    few = ["m0->logits", "input->m0"]
    assert scrub(model, pairs, few, scheme="per-path", max_tree=3).circuit.tree_size == 3
    chain = ["input->m0", "m0->m1", "m1->m2", "m2->logits"]
    with pytest.raises(InputError, match="the tree of a random circuit of as many edges has 6 nod"):
        scrub(model, pairs, chain, scheme="per-path", max_tree=5, random_circuits=200)
    with pytest.raises(InputError, match="has a norm behind attention"):
        scrub(tiny.model("gemma2"), pairs, few, scheme="per-path")


def test_nothing_to_recover_and_values_that_are_not_finite_are_refused() -> None:
    model, pairs = tiny.model("gpt2"), tiny.pairs(3)

    def constant(logits: Tensor, targets: Targets) -> Tensor:
        return logits[:, 0] * 0 + 1

    def broken(logits: Tensor, targets: Targets) -> Tensor:
        return logits[:, 0] / 0

    with pytest.raises(InputError, match="the metric is 1 on the prompts and on random others"):
        scrub(model, pairs, [], metric=constant)
    with pytest.raises(WiremapError, match="the metric is not finite in 3 rows"):
        scrub(model, pairs, [], metric=broken)


def test_a_single_pair_has_no_interval() -> None:
    found = scrub(tiny.model("gpt2"), tiny.pairs(1), ["input->logits"], other="paired")
    assert found.circuit.interval is None
    assert found.as_document()["original"]["standard_error"] is None
