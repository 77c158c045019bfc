"""The bound on what was not verified: its numbers, its coverage, and where it is known to fail."""

from __future__ import annotations

from collections.abc import Callable
from itertools import compress
from typing import Any

import pytest
import scipy.stats
import tiny
import torch
from torch import Tensor

from wiremap.edges import InputError, WiremapError, patch_edges, patch_nodes
from wiremap.edges.effects.bounds import (
    BoundOptions,
    bound_effects,
    bound_unverified,
    draw_subsets,
    measure_edges,
    measure_nodes,
    samples_needed,
    welch_bounds,
)
from wiremap.edges.question.metrics import Targets
from wiremap.edges.question.question import Question
from wiremap.edges.runs.sweep import Resources

N_ITEMS = 20
NAMES = [f"item{index}" for index in range(N_ITEMS)]


def additive(effects: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda members: members.double() @ effects.double()


# ---- the numbers


def scipy_margin(values: Tensor, chosen: Tensor, level: float, equal_var: bool) -> float:
    """Half the width of the two-sided interval whose upper end is the one-sided bound."""
    result: Any = scipy.stats.ttest_ind(
        values[chosen].numpy(), values[~chosen].numpy(), equal_var=equal_var
    )
    interval = result.confidence_interval(2 * level - 1)
    return float(interval.high - interval.low) / 2


def test_a_welch_bound_by_hand() -> None:
    """With: 1, 5, 3 (mean 3, variance 4); without: 0, 1, 0, 1, 0, 1 (mean 1/2, variance 3/10).

    se^2 = 4/3 + 1/20 = 83/60; freedom = (83/60)^2 / ((4/3)^2/2 + (1/20)^2/5) = 2.1516...
    """
    values = torch.tensor([1.0, 5, 3, 0, 1, 0, 1, 0, 1])
    members = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0, 0], dtype=torch.bool)[:, None]
    estimates, bounds = welch_bounds(values, members, 0.95)
    freedom = (83 / 60) ** 2 / ((4 / 3) ** 2 / 2 + (1 / 20) ** 2 / 5)
    quantile = scipy.stats.t.ppf(0.95, freedom)
    assert freedom == pytest.approx(2.1516, abs=1e-4)
    assert float(estimates) == pytest.approx(2.5)
    assert float(bounds) == pytest.approx(2.5 + quantile * (83 / 60) ** 0.5)


def test_bounds_are_the_larger_of_scipys_two_intervals() -> None:
    members = draw_subsets(100, N_ITEMS, 0.1, seed=0)
    effects = planted("exponential", torch.Generator().manual_seed(0))
    values = members.double() @ effects + 100
    estimates, bounds = welch_bounds(values, members, 0.9)
    level = 1 - 0.1 / N_ITEMS
    welch_is_larger = 0
    for item in range(N_ITEMS):
        chosen = members[:, item]
        expected = float(values[chosen].mean() - values[~chosen].mean())
        welch, pooled = (
            scipy_margin(values, chosen, level, equal_var) for equal_var in (False, True)
        )
        welch_is_larger += welch > pooled
        assert float(estimates[item]) == pytest.approx(expected)
        assert float(bounds[item]) == pytest.approx(abs(expected) + max(welch, pooled))
    assert 0 < welch_is_larger < N_ITEMS


def test_values_that_do_not_vary_leave_nothing_open() -> None:
    members = torch.tensor([[True], [True], [False], [False]])
    estimates, bounds = welch_bounds(2 - 5 * members[:, 0].double(), members, 0.99)
    assert (float(estimates), float(bounds)) == (-5.0, 5.0)


def test_samples_needed_are_needed() -> None:
    for n_items, probability in ((1, 0.5), (50, 0.03), (2000, 0.2), (20, 0.9)):
        n_samples = samples_needed(n_items, probability)
        rare, full = (
            scipy.stats.binom.cdf(1, n, share)
            for n, share in ((n_samples, probability), (n_samples, 1 - probability))
        )
        assert n_items * (rare + full) <= 0.01
        rare, full = (
            scipy.stats.binom.cdf(1, n_samples - 1, share)
            for share in (probability, 1 - probability)
        )
        assert n_items * (rare + full) > 0.01


def test_subsets_are_bernoulli_and_seeded() -> None:
    members = draw_subsets(4000, 50, 0.03, seed=1)
    assert torch.equal(members, draw_subsets(4000, 50, 0.03, seed=1))
    assert not torch.equal(members, draw_subsets(4000, 50, 0.03, seed=2))
    shares = members.double().mean(0)
    assert float(shares.mean()) == pytest.approx(0.03, abs=0.002)
    assert float((shares - 0.03).abs().max()) < 5 * (0.03 * 0.97 / 4000) ** 0.5


# ---- coverage


def planted(kind: str, generator: torch.Generator) -> Tensor:
    uniform = torch.rand(N_ITEMS, generator=generator, dtype=torch.float64)
    if kind == "normal":
        return torch.randn(N_ITEMS, generator=generator, dtype=torch.float64)
    if kind == "exponential":
        return -uniform.log()
    if kind == "cauchy":
        return ((uniform - 0.5) * torch.pi).tan()
    few = torch.zeros(N_ITEMS, dtype=torch.float64)
    few[:2] = 1.0
    return few


CONFIDENCES = (0.9, 0.99)


def misses(
    kind: str, noise: float, n_samples: int, probability: float, n: int
) -> tuple[list[int], list[float]]:
    """In how many of ``n`` repetitions some effect is above its bound; median largest / truth.

    Both for each of CONFIDENCES.
    """
    generator = torch.Generator().manual_seed(0)
    missed, ratios = torch.zeros(2, n, dtype=torch.bool), torch.empty(2, n)
    for repetition in range(n):
        effects = planted(kind, generator)
        members = torch.rand(n_samples, N_ITEMS, generator=generator) < probability
        values = members.double() @ effects
        values += noise * torch.randn(n_samples, generator=generator, dtype=torch.float64)
        for row, confidence in enumerate(CONFIDENCES):
            _, bounds = welch_bounds(values, members, confidence)
            missed[row, repetition] = (effects.abs() > bounds + 1e-9).any()
            ratios[row, repetition] = bounds.max() / effects.abs().max()
    return missed.sum(1).tolist(), ratios.median(1).values.tolist()


@pytest.mark.parametrize(
    ("kind", "noise", "n_samples", "probability"),
    [
        ("normal", 0.3, 200, 0.1),
        ("exponential", 0.0, 600, 0.03),
        ("cauchy", 0.0, 200, 0.3),
        ("few", 0.3, 200, 0.1),
        ("few", 0.0, 600, 0.03),
        ("few", 0.0, 200, 0.3),
    ],
)
def test_coverage(kind: str, noise: float, n_samples: int, probability: float) -> None:
    """The family-wise miss rate of planted additive effects is not above its nominal rate.

    Margin: the count of misses is refused where a true rate just at the nominal one gives more in
    less than 1 of 1,000 runs of this test (binomial): 130 of 1,000 at 90 %, 21 at 99 %. Measured
    are at most 26 and 3. Nor are the bounds vacuous: the largest is below 2.5 x the largest effect.
    """
    n = 1000
    missed, ratios = misses(kind, noise, n_samples, probability, n)
    for confidence, count, ratio in zip(CONFIDENCES, missed, ratios, strict=True):
        assert count <= scipy.stats.binom.isf(1e-3, n, 1 - confidence)
        assert 1 < ratio < 2.5


def test_the_pooled_margin_is_needed() -> None:
    """Two large effects, each in few subsets, most often none with both: Welch alone misses."""
    n, missed = 300, 0
    generator = torch.Generator().manual_seed(0)
    for _ in range(n):
        members = torch.rand(600, 2, generator=generator) < 0.03
        values = members.double().sum(1)
        values += 1e-6 * torch.randn(600, generator=generator)  # scipy warns about equal values
        missed_here = False
        for item in range(2):
            chosen = members[:, item]
            margin = scipy_margin(values, chosen, 1 - 0.01 / N_ITEMS, equal_var=False)
            estimate = float(values[chosen].mean() - values[~chosen].mean())
            missed_here |= bool(abs(estimate) + margin < 1)
        missed += missed_here
    assert missed / n > 0.2
    assert misses("few", 0.0, 600, 0.03, n)[0] == [0, 0]


def test_the_bound_tightens_with_samples() -> None:
    effects = planted("normal", torch.Generator().manual_seed(3))
    truth = float(effects.abs().max())
    ratios = [
        bound_effects(
            additive(effects), NAMES, BoundOptions(samples=n_samples, probability=0.1)
        ).largest
        / truth
        for n_samples in (200, 2000, 20000)
    ]
    assert ratios[0] > ratios[1] > ratios[2] > 1
    assert ratios[2] < 1.1


# ---- known limits: interactions


def test_limitation_an_item_that_counts_only_while_others_are_intact() -> None:
    """item0 alone is worth 1, but any other patched item takes its place or makes it idle.

    Its average marginal effect is 0.9^19 = 0.135 of its effect: a bound that is right about the
    average is wrong about the effect. With rarer items it comes closer, as p -> 0 promises.
    """

    def measure(members: Tensor) -> Tensor:
        return (members[:, 0] & ~members[:, 1:].any(1)).double()

    assert float(measure(torch.eye(N_ITEMS, dtype=torch.bool))[0]) == 1.0
    found = bound_effects(measure, NAMES, BoundOptions(samples=2000, probability=0.1))
    assert 0.9**19 < found.largest < 0.4
    rarer = bound_effects(measure, NAMES, BoundOptions(samples=20000, probability=0.005))
    assert rarer.largest > 0.995**19


def test_limitation_backup_heads() -> None:
    """Either of two heads suffices: together they are worth 1, yet each average is only p."""

    def measure(members: Tensor) -> Tensor:
        return members[:, :2].all(1).double()

    pair = torch.zeros(1, N_ITEMS, dtype=torch.bool)
    pair[0, :2] = True
    assert float(measure(pair)) == 1.0
    found = bound_effects(measure, NAMES, BoundOptions(samples=2000, probability=0.1))
    assert 0.1 < found.largest < 0.3


def test_limitation_what_was_never_drawn_together_is_not_seen() -> None:
    """Backup heads again, with about n p^2 = 0.3 subsets that have both: for this seed none has.

    All values are 0, and so are the bounds, although the averages are p = 0.03.
    """

    def measure(members: Tensor) -> Tensor:
        return members[:, :2].all(1).double()

    assert not draw_subsets(350, N_ITEMS, 0.03, seed=1)[:, :2].all(1).any()
    assert bound_effects(measure, NAMES, BoundOptions(samples=350, seed=1)).largest == 0


# ---- on models


def test_heads_of_a_layer_of_a_linear_model_have_their_exact_effects() -> None:
    """Their effects add up; over all subsets the differences of means are the effects."""
    model, pairs = tiny.linear_model(), tiny.pairs(4)
    names = [f"a1.h{head}" for head in range(4)]
    exact = patch_nodes(model, pairs, names).mean().double()
    assert float(exact.abs().max()) > 0.1
    subsets = (torch.arange(16)[:, None] >> torch.arange(4) & 1).bool()
    values = measure_nodes(model, Question(pairs=pairs), names, Resources())(subsets)
    estimates, bounds = welch_bounds(values, subsets, 0.9)
    torch.testing.assert_close(estimates, exact, rtol=1e-3, atol=1e-4)
    assert bool((bounds >= exact.abs() - 1e-5).all())


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_a_single_unverified_node_is_measured_exactly(direction: str) -> None:
    model, pairs = tiny.model("llama-gqa"), tiny.pairs(4)
    for name in ("a1.h2", "a0.kv1<k>", "m1@4"):
        exact = float(patch_nodes(model, pairs, [name], direction=direction).mean())
        found = bound_unverified(
            model, pairs, [name], direction=direction, n_samples=20, probability=0.3
        )
        assert float(found.estimates) == pytest.approx(exact, abs=1e-4)
        assert found.largest == pytest.approx(abs(exact), abs=1e-4)


def test_nodes_of_a_model_are_bounded() -> None:
    model, pairs = tiny.linear_model(), tiny.pairs(4)
    names = [f"a1.h{head}" for head in range(4)]
    exact = patch_nodes(model, pairs, names).mean().double()
    rows: list[int] = []
    found = bound_unverified(model, pairs, names, n_samples=200, probability=0.2, seed=4,
                             progress=lambda _, n, total: rows.append(n))  # fmt: skip
    assert sum(rows) == 200 * 4
    assert found.names == tuple(names)
    assert bool((found.bounds >= exact.abs()).all())
    assert bool((found.bounds < 3 * exact.abs().max()).all())
    again = bound_unverified(model, pairs, names, n_samples=200, probability=0.2, seed=4)
    assert torch.equal(found.bounds, again.bounds)
    other = bound_unverified(model, pairs, names, n_samples=200, probability=0.2, seed=5)
    assert not torch.equal(found.bounds, other.bounds)
    in_parts = bound_unverified(
        model, pairs, names, n_samples=200, probability=0.2, seed=4, batch_size=7
    )
    torch.testing.assert_close(in_parts.bounds, found.bounds, rtol=1e-4, atol=1e-5)


def test_subsets_are_patched_jointly() -> None:
    model, pairs = tiny.model("gpt2"), tiny.pairs(3)
    names = ["a0.h1", "m1", "a2.h0<q>", "a1.h3@5"]
    members = draw_subsets(6, len(names), 0.5, seed=0)
    subsets = [list(compress(names, row.tolist())) for row in members]
    assert any(len(subset) > 1 for subset in subsets)
    expected = patch_nodes(model, pairs, subsets).mean().double()
    torch.testing.assert_close(
        measure_nodes(model, Question(pairs=pairs), names, Resources())(members),
        expected,
        rtol=1e-4,
        atol=1e-5,
    )


def test_edges(kind: str) -> None:
    model, pairs = tiny.model(kind), tiny.pairs(3)
    names = ["input->m0", "a0.h1->logits", "m0->a1.h0<q>"]
    exact = patch_edges(model, pairs, names).mean().double()
    singles = measure_edges(model, Question(pairs=pairs), names, Resources())(
        torch.eye(3, dtype=torch.bool)
    )
    torch.testing.assert_close(singles, exact, rtol=1e-3, atol=1e-4)
    found = bound_unverified(model, pairs, names, items="edges", n_samples=16, probability=0.4)
    assert found.largest > 0
    assert "no unverified edge has" in found.statement()
    alone = bound_unverified(model, pairs, names[:1], items="edges", n_samples=6, probability=0.5)
    assert alone.largest == pytest.approx(abs(float(exact[0])), abs=1e-4)


def test_the_statement_says_what_it_is_about() -> None:
    model, pairs = tiny.model("gpt2"), tiny.pairs(2)
    names = ["a0.h1", "m1"]
    found = bound_unverified(model, pairs, names, n_samples=50, probability=0.25, confidence=0.95)
    text = found.statement()
    for part in (
        "With 95 % confidence no unverified node has |average marginal effect| above ",
        f"above {found.largest:.3g} logits (Bonferroni over 2 nodes)",
        "probability 0.25; 50 subsets",
        "over these pairs",
        "node's own effect as the probability goes to 0",
        "backup heads",
    ):
        assert part in text
    nats = bound_unverified(model, pairs, names, metric="kl", n_samples=50, probability=0.25)
    assert " nats (" in nats.statement()


# ---- refusals


def test_bad_options_are_refused() -> None:
    effects = additive(torch.ones(2))
    for confidence in (0.0, 1.0, 99.0, float("nan")):
        with pytest.raises(InputError, match="expected a confidence above 0 and below 1, got"):
            bound_effects(effects, ["a", "b"], BoundOptions(confidence=confidence))
        with pytest.raises(InputError, match="expected a confidence"):
            welch_bounds(torch.zeros(4), torch.eye(4, 1, dtype=torch.bool), confidence)
    for probability in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(InputError, match="expected a probability"):
            bound_effects(effects, ["a", "b"], BoundOptions(probability=probability))
    with pytest.raises(InputError, match="expected at least 2 samples"):
        bound_effects(effects, ["a", "b"], BoundOptions(samples=1))
    with pytest.raises(InputError, match="not verified, got none"):
        bound_effects(effects, [], BoundOptions())
    with pytest.raises(InputError, match="expected each name once, got a again"):
        bound_effects(effects, ["a", "b", "a"], BoundOptions())


def test_too_few_samples_are_refused_with_the_number_needed() -> None:
    def never(members: Tensor) -> Tensor:
        raise AssertionError("measured")

    needed = samples_needed(N_ITEMS, 0.03)
    assert 200 < needed < 500
    with pytest.raises(
        InputError, match=rf"item\d+ in [01] of 40; draw {needed} samples at probability 0.03"
    ):
        bound_effects(never, NAMES, BoundOptions(samples=40, probability=0.03))
    with pytest.raises(InputError, match="of 40; draw"):
        bound_effects(never, NAMES, BoundOptions(samples=40, probability=0.97))
    bound_effects(additive(torch.ones(N_ITEMS)), NAMES, BoundOptions(samples=needed))
    with pytest.raises(InputError, match="got item 1 in 1 of 4; draw more"):
        welch_bounds(torch.zeros(4), torch.tensor([[1, 1], [1, 0], [0, 0], [0, 0]]).bool(), 0.9)


def test_bad_names_and_directions_are_refused() -> None:
    model, pairs = tiny.model("gpt2"), tiny.pairs(2)
    with pytest.raises(InputError, match="unknown node 'a9.h0'"):
        bound_unverified(model, pairs, ["m0", "a9.h0"])
    with pytest.raises(InputError, match="expected positions below 7"):
        bound_unverified(model, pairs, ["m0@7"])
    with pytest.raises(InputError, match="unknown writer 'a9.h0'"):
        bound_unverified(model, pairs, ["a9.h0->logits"], items="edges")
    with pytest.raises(InputError, match="unknown items 'heads'; there are nodes, edges"):
        bound_unverified(model, pairs, ["m0"], items="heads")
    for items, name in (("nodes", "m0"), ("edges", "m0->logits")):
        with pytest.raises(InputError, match="unknown direction 'sideways'"):
            bound_unverified(model, pairs, [name], direction="sideways", items=items)
        with pytest.raises(InputError, match="unknown metric 'nonsense'"):
            bound_unverified(model, pairs, [name], metric="nonsense", items=items)


def test_effects_that_are_not_finite_are_refused() -> None:
    def broken(logits: Tensor, targets: Targets) -> Tensor:
        return logits[:, 0] / 0

    with pytest.raises(WiremapError, match="effect of subset 1 of the nodes on pair 1 is not fin"):
        bound_unverified(tiny.model("gpt2"), tiny.pairs(2), ["m0"], metric=broken, probability=0.5)
