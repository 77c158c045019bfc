"""Which edges are kept and why the others went: by hand, and against searches written again."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import scipy.stats
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow import SlowModel

from wiremap.circuits import CircuitEdge, verify
from wiremap.circuits.choice.acdc import prune_by_acdc
from wiremap.circuits.choice.pruning import (
    BELOW_TAU,
    BELOW_THRESHOLD,
    BEYOND_SIZE,
    NOT_NEEDED,
    NOT_SIGNIFICANT,
    NOT_VERIFIED,
    ON_NO_PATH,
    TOLERANCE,
    Pruned,
    connected,
    p_value,
    prune_by_effect,
    prune_to_size,
    prune_to_target,
)
from wiremap.edges import Edge, InputError, Model, ModelGraph, PromptPairs
from wiremap.edges.effects.reduced import run_edges
from wiremap.edges.effects.reduced_runs import ReducedRuns
from wiremap.edges.question.question import Question
from wiremap.edges.runs.masks import places_mask
from wiremap.edges.runs.sweep import Resources


def edge(name: str, effect: float | None = None, score: float | None = None) -> CircuitEdge:
    source, _, target = name.partition("->")
    target, _, slot = target.partition("<")
    return CircuitEdge(source, target, slot.rstrip(">") or None, score, effect)  # pyright: ignore[reportArgumentType]


def names(edges: Sequence[CircuitEdge]) -> list[str]:
    return [edge.name for edge in edges]


def check_complete(edges: Sequence[CircuitEdge], pruned: Pruned) -> None:
    """Every edge is kept, or removed by one rule."""
    kept = names(pruned.kept)
    assert sorted([*kept, *pruned.removed]) == sorted(names(edges))
    assert len(kept) + sum(pruned.counts().values()) == len(edges)


SHAPE = ModelGraph(1, 2, 2)


# ---- by verified effect


def test_a_threshold_counts_verified_effects_of_either_sign() -> None:
    edges = [
        edge("input->m0", 0.5),
        edge("m0->logits", -0.5),
        edge("input->logits", 0.4),
        edge("input->a0.h0<q>", score=9.0),
        edge("a0.h1->logits", 3.0),
    ]
    pruned = prune_by_effect(SHAPE, edges, 0.5)
    check_complete(edges, pruned)
    assert names(pruned.kept) == ["input->m0", "m0->logits"]
    assert pruned.removed == {
        "input->logits": BELOW_THRESHOLD,
        "input->a0.h0<q>": NOT_VERIFIED,
        "a0.h1->logits": ON_NO_PATH,
    }
    assert len(prune_by_effect(SHAPE, edges).kept) == 3
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="expected a threshold >= 0"):
            prune_by_effect(SHAPE, edges, wrong)


def measured(name: str, effects: Sequence[float]) -> CircuitEdge:
    values = torch.tensor(effects, dtype=torch.float64)
    error = float(values.std() / len(effects) ** 0.5)
    return replace(edge(name, float(values.mean())), standard_error=error, n_pairs=len(effects))


def test_the_p_value_is_that_of_a_t_test() -> None:
    rng = random.Random(0)
    for n_pairs in (2, 3, 30):
        effects = [rng.gauss(0.3, 1) for _ in range(n_pairs)]
        expected = scipy.stats.ttest_1samp(effects, 0)[1]
        assert p_value(measured("input->m0", effects)) == pytest.approx(expected, rel=1e-9)
    assert p_value(measured("input->m0", [1.0, 1.0])) == 0
    assert p_value(measured("input->m0", [0.0, 0.0])) == 1
    one_pair = replace(edge("input->m0", 1.0), n_pairs=1)
    for wrong, n_pairs in ((one_pair, 1), (edge("input->m0", score=1.0), 0)):
        with pytest.raises(InputError, match=rf"at least 2 pairs for a t test, got {n_pairs};"):
            p_value(wrong)


def step_up(p_values: Sequence[float], alpha: float) -> set[int]:
    """Benjamini and Hochberg (1995), as they word it."""
    ranked = sorted(range(len(p_values)), key=lambda index: p_values[index])
    largest = max(
        (k for k, index in enumerate(ranked, 1) if p_values[index] <= k / len(p_values) * alpha),
        default=0,
    )
    return set(ranked[:largest])


@given(
    st.lists(st.floats(-3, 3), min_size=1, max_size=10),
    st.floats(0.001, 0.5),
    st.integers(0, 100),
)
@settings(deadline=None, max_examples=60)
def test_significance_is_benjamini_and_hochbergs(
    means: list[float], alpha: float, seed: int
) -> None:
    rng = random.Random(seed)
    edges = [
        measured(f"a0.h{index}->logits", [rng.gauss(mean, 1) for _ in range(6)])
        for index, mean in enumerate(means)
    ]
    unverified = edge("input->logits", score=9.0)
    pruned = prune_by_effect(ModelGraph(1, 10, 10), [*edges, unverified], alpha=alpha)
    check_complete([*edges, unverified], pruned)
    expected = step_up([p_value(one) for one in edges], alpha)
    for index, one in enumerate(edges):
        assert pruned.removed[one.name] == (ON_NO_PATH if index in expected else NOT_SIGNIFICANT)


def test_an_effect_may_have_to_be_both_large_and_significant() -> None:
    edges = [
        measured("input->m0", [1.0, 1.1, 0.9, 1.0]),
        measured("m0->logits", [2.0, 2.1, 1.9, 2.0]),
        measured("input->logits", [0.1, 0.11, 0.09, 0.1]),
        measured("input->a0.h0<q>", [9.0, -8.0, 7.0, 1.0]),
    ]
    pruned = prune_by_effect(SHAPE, edges, 0.5, 0.01)
    assert names(pruned.kept) == ["input->m0", "m0->logits"]
    assert pruned.counts() == {BELOW_THRESHOLD: 1, NOT_SIGNIFICANT: 1}
    assert "input->logits" in names(prune_by_effect(SHAPE, edges, alpha=0.01).kept)
    for wrong in (0.0, 1.0, math.nan):
        with pytest.raises(InputError, match="expected a level alpha between 0 and 1"):
            prune_by_effect(SHAPE, edges, alpha=wrong)


# ---- by size


def test_a_size_takes_verified_edges_first() -> None:
    edges = [
        edge("input->m0", 0.1, 5.0),
        edge("m0->logits", score=-9.0),
        edge("input->logits", -0.4, 0.0),
        edge("input->a0.h0<q>", score=7.0),
    ]
    pruned = prune_to_size(SHAPE, edges, 3)
    check_complete(edges, pruned)
    assert names(pruned.kept) == ["input->m0", "m0->logits", "input->logits"]
    assert pruned.removed == {"input->a0.h0<q>": BEYOND_SIZE}
    assert prune_to_size(SHAPE, edges, 99).removed == {"input->a0.h0<q>": ON_NO_PATH}
    with pytest.raises(InputError, match="at least 1 edge, got 0"):
        prune_to_size(SHAPE, edges, 0)
    with pytest.raises(InputError, match="unknown way to prune 'best'; there are top, greedy"):
        prune_to_size(SHAPE, edges, 1, "best")


def every_edge(shape: ModelGraph, worth: Callable[[], float | None]) -> list[CircuitEdge]:
    return [edge(shape.edge_name(one), worth(), random.random()) for one in shape.edges()]


def greedy_by_hand(shape: ModelGraph, edges: Sequence[CircuitEdge], size: int) -> set[str]:
    """Looks through all edges again for each that it adds."""
    joined, chosen = {"logits"}, set[str]()
    for _ in range(size):
        open_edges = [one for one in edges if one.target in joined and one.name not in chosen]
        if not open_edges:
            break
        best = max(open_edges, key=lambda one: (one.verified, abs(one.worth or 0)))
        chosen.add(best.name)
        joined.add(best.source)
        for kv_head in range(shape.n_kv_heads):
            for layer in range(shape.n_layers):
                heads = {f"a{layer}.h{head}" for head in shape.query_heads(kv_head)}
                if heads & joined:
                    joined.add(f"a{layer}.kv{kv_head}")
    return chosen


@pytest.mark.parametrize("shape", [ModelGraph(2, 2, 2), ModelGraph(2, 4, 2, parallel=True)])
def test_greedy_goes_from_the_logits_backwards(shape: ModelGraph) -> None:
    for seed in range(5):
        rng = random.Random(seed)
        edges = every_edge(shape, lambda: rng.choice((None, rng.gauss(0, 1))))  # noqa: B023
        for size in (1, 7, 20, shape.n_edges):
            pruned = prune_to_size(shape, edges, size, "greedy")
            check_complete(edges, pruned)
            chosen = greedy_by_hand(shape, edges, size)
            assert {name for name, rule in pruned.removed.items() if rule == BEYOND_SIZE} == {
                one.name for one in edges
            } - chosen
            assert set(names(pruned.kept)) <= chosen


def test_greedy_leaves_large_edges_that_lead_nowhere() -> None:
    edges = [edge("input->m0", 9.0), edge("input->logits", 0.1), edge("m0->logits", 0.2)]
    assert names(prune_to_size(SHAPE, edges, 1, "greedy").kept) == []
    assert names(prune_to_size(SHAPE, edges, 2, "greedy").kept) == ["input->m0", "m0->logits"]
    assert names(prune_to_size(SHAPE, edges, 1).kept) == []


# ---- by faithfulness


def test_a_target_takes_few_of_the_largest_verified_edges() -> None:
    shape = ModelGraph(1, 6, 6)
    worths = [0.1, -0.9, 0.3, 0.8, -0.2, 0.05]
    edges = [
        one
        for head, worth in enumerate(worths)
        for one in (edge(f"input->a0.h{head}<v>", worth), edge(f"a0.h{head}->logits", worth))
    ]
    unverified = edge("input->m0", score=5.0)
    asked: list[int] = []

    def share(places: Sequence[Edge]) -> float:
        kept = {shape.edge_name(place) for place in places}
        asked.append(len(kept))
        return sum(
            abs(worth)
            for head, worth in enumerate(worths)
            if {f"input->a0.h{head}<v>", f"a0.h{head}->logits"} <= kept
        ) / sum(map(abs, worths))

    pruned = prune_to_target(shape, [*edges, unverified], 0.8, share)
    check_complete([*edges, unverified], pruned)
    assert {one.effect for one in pruned.kept} == {-0.9, 0.8, 0.3}
    assert pruned.removed["input->m0"] == NOT_VERIFIED
    assert pruned.counts()[NOT_NEEDED] == 5, "two by elimination, their other ends by the path"
    assert pruned.counts()[ON_NO_PATH] == 1
    assert len(prune_to_target(shape, edges, 0.3, share).kept) == 2
    assert len(prune_to_target(shape, edges, 1.0, lambda kept: 0.5).kept) == 12, "short of it: all"
    assert prune_to_target(shape, [unverified], 0.5, share).kept == ()
    for wrong in (0.0, -1.0, 1.01, math.nan):
        with pytest.raises(InputError, match="faithfulness target above 0 and at most 1"):
            prune_to_target(shape, edges, wrong, share)


def live(slow: SlowModel, kept: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The edges on a path from input to logits, found by following them from either end."""

    def feeds(reader: str, writer: str) -> bool:
        if ".kv" in reader:
            layer, _, rest = reader.partition(".kv")
            group = slow.n_heads // slow.n_kv_heads
            heads = range(int(rest[0]) * group, (int(rest[0]) + 1) * group)
            return writer in {f"{layer}.h{head}" for head in heads}
        return reader.partition("<")[0] == writer

    forwards, backwards = {"input"}, {"logits"}
    for _ in range(3 * slow.n_layers + 2):
        for writer, reader in kept:
            if writer in forwards:
                forwards |= {other for other in slow.writers if feeds(reader, other)}
            if reader in backwards:
                backwards |= {other for other in slow.readers if feeds(other, writer)}
    return {(one, other) for one, other in kept if one in forwards and other in backwards}


class Setting:
    """A model of two layers in float64, a metric's slow values for sets of edges, and candidates."""

    def __init__(self, kind: str, n_pairs: int = 3) -> None:
        layers = {"n_layer": 2} if kind == "gpt2" else {"num_hidden_layers": 2}
        hf = tiny.hf_model(kind, **layers)
        self.slow = SlowModel(hf)
        pairs = tiny.pairs(n_pairs, n_pos=5)
        clean, corrupted = (self.slow.run(tokens)[0] for tokens in (pairs.clean, pairs.corrupted))
        change = clean - corrupted
        self.pairs = PromptPairs(pairs.clean, pairs.corrupted, change.argmax(-1), change.argmin(-1))
        self.full, self.empty = self.metric(clean), self.metric(corrupted)
        self.model = Model(tiny.bridge(hf.double()), name=kind)
        graph = self.model.graph
        all_names = [graph.edge_name(one) for one in graph.edges()]
        self.edges = [
            edge(item.name, item.effect, item.effect)
            for item in verify(self.model, self.pairs, all_names)
        ]
        self._known: dict[frozenset[tuple[str, str]], float] = {}

    def metric(self, logits: torch.Tensor) -> float:
        rows = torch.arange(len(logits))
        right, wrong = logits[rows, self.pairs.answers[:, 0]], logits[rows, self.pairs.wrong[:, 0]]
        return (right - wrong).mean().item()

    def value(self, kept: set[tuple[str, str]]) -> float:
        of = frozenset(kept)
        if of not in self._known:
            self._known[of] = self.metric(
                self.slow.reduced(self.pairs.clean, self.pairs.corrupted, kept)
            )
        return self._known[of]

    def faithfulness(self, kept: set[tuple[str, str]]) -> float:
        return (self.value(kept) - self.empty) / (self.full - self.empty)


@pytest.fixture(scope="module", params=["gpt2", "llama-gqa", "neox-sequential"])
def question(request: pytest.FixtureRequest) -> Setting:
    return Setting(request.param)


def pair_of(name: str) -> tuple[str, str]:
    writer, _, reader = name.partition("->")
    return writer, reader


def test_reduced_runs_are_those_of_run_edges_and_of_the_slow_model(question: Setting) -> None:
    model, pairs = question.model, question.pairs
    with ReducedRuns(model, Question(pairs=pairs), Resources(batch_size=2)) as runs:
        some_sets = [
            random.Random(seed).sample(names(question.edges), 12 * seed) for seed in range(4)
        ]
        values = [runs.values(some) for some in some_sets]
    assert runs.full.mean().item() == pytest.approx(question.full, rel=1e-5)
    assert runs.empty.mean().item() == pytest.approx(question.empty, rel=1e-5)
    for some, found in zip(some_sets, values, strict=True):
        torch.testing.assert_close(found.float(), run_edges(model, pairs, some).circuit.cpu())
        expected = question.value({pair_of(name) for name in some})
        assert found.mean().item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def target_by_hand(question: Setting, target: float) -> set[tuple[str, str]]:
    """The search as its description says, on slow runs of sets of names."""
    slow, enough = question.slow, question.faithfulness
    size = {pair_of(one.name): abs(one.effect or 0) for one in question.edges}
    ranked = sorted(size, key=lambda one: -size[one])

    def first(aim: float) -> set[tuple[str, str]]:
        low, high = 0, len(ranked)
        while high - low > 1:
            middle = (low + high) // 2
            if enough(live(slow, set(ranked[:middle]))) >= aim - TOLERANCE:
                high = middle
            else:
                low = middle
        return live(slow, set(ranked[:high]))

    kept = first((1 + target) / 2)
    assert enough(kept) >= (1 + target) / 2 - TOLERANCE, "all are verified, so it is reached"
    left = {one: round(enough(live(slow, kept - {one})) / TOLERANCE) for one in kept}
    order = sorted(kept, key=lambda one: (-left[one], size[one]))
    before = None
    while kept != before:
        before = set(kept)
        for one in order:
            rest = live(slow, kept - {one})
            if one in kept and enough(rest) >= target - TOLERANCE:
                kept = rest
    return kept


@pytest.mark.parametrize(
    ("question", "target"),
    [
        ("gpt2", 0.6), ("gpt2", 1.0), ("llama-gqa", 0.9),
        ("neox-sequential", 0.6), ("neox-sequential", 1.0),
    ],
    indirect=["question"],
)  # fmt: skip
def test_the_target_search_is_that_written_again(question: Setting, target: float) -> None:
    graph = question.model.graph
    with ReducedRuns(question.model, Question(pairs=question.pairs), Resources()) as runs:
        full, empty = runs.full.mean().item(), runs.empty.mean().item()

        def faithfulness(kept: Sequence[Edge]) -> float:
            return (runs.values(places_mask(graph, kept)).mean().item() - empty) / (full - empty)

        pruned = prune_to_target(graph, question.edges, target, faithfulness)
    check_complete(question.edges, pruned)
    assert set(pruned.counts()) <= {NOT_NEEDED, ON_NO_PATH}
    kept = {pair_of(one.name) for one in pruned.kept}
    assert question.faithfulness(kept) >= target - 1.01 * TOLERANCE
    for one in kept:
        assert question.faithfulness(kept - {one}) < target - 0.99 * TOLERANCE, "none can be spared"
    assert kept == target_by_hand(question, target)


def acdc_by_hand(question: Setting, tau: float) -> tuple[set[tuple[str, str]], set[str]]:
    """What is kept in the end, and all edges removed by a trial; every trial is made."""
    slow = question.slow
    kept, value = set(slow.edges), question.full
    tried: set[str] = set()
    for reader in reversed(slow.readers):
        for writer in reversed(slow.reads(reader)):
            without = question.value(kept - {(writer, reader)})
            if value - without < tau:
                kept.remove((writer, reader))
                tried.add(f"{writer}->{reader}")
                value = without
    return live(slow, kept), tried


@pytest.mark.parametrize("share", [0.01, 0.1])
def test_acdc_is_that_written_again(question: Setting, share: float) -> None:
    tau = share * (question.full - question.empty)
    done: list[int] = []
    with ReducedRuns(question.model, Question(pairs=question.pairs), Resources()) as runs:
        pruned = prune_by_acdc(runs, question.edges, tau, lambda _, n, total: done.append(n))
    check_complete(question.edges, pruned)
    assert sum(done) == question.model.graph.n_edges
    kept, tried = acdc_by_hand(question, tau)
    assert {pair_of(one.name) for one in pruned.kept} == kept
    by_tau = {name for name, rule in pruned.removed.items() if rule == BELOW_TAU}
    assert by_tau <= tried, "what is removed untried makes no difference"
    assert set(pruned.counts()) <= {BELOW_TAU, ON_NO_PATH}


def test_acdc_by_divergence_keeps_more_for_a_smaller_tau() -> None:
    question = Setting("neox-sequential")
    with ReducedRuns(
        question.model, Question(pairs=question.pairs, metric="kl"), Resources()
    ) as runs:
        strict, lax = (prune_by_acdc(runs, question.edges, tau) for tau in (1e-6, 1e6))
        assert len(strict.kept) > len(lax.kept) == 0
        for wrong in (0.0, -1.0, math.nan, math.inf):
            with pytest.raises(InputError, match="expected a tau of ACDC above 0"):
                prune_by_acdc(runs, question.edges, wrong)


# ---- what hangs together


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
