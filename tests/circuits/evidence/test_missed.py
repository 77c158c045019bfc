"""What is said of edges that were not verified: that it holds as often as it says."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import tiny
import torch
from scipy.stats import hypergeom
from torch import Tensor

from wiremap.circuits import Verified
from wiremap.circuits.evidence import missed, next_best
from wiremap.circuits.evidence.missed import (
    SampleOptions,
    draw,
    most_above,
    numbers_of,
    sample_missed,
    shares_above,
    strata_of,
    thresholds_of,
)
from wiremap.circuits.evidence.next_best import MissedPlan, bound_next, next_options, plan_missed
from wiremap.circuits.evidence.verification import Verifier, VerifyOptions
from wiremap.circuits.result.evidence import BoundEvidence, Evidence
from wiremap.edges import InputError, Model, PromptPairs, patch_edges, score_edges
from wiremap.edges.effects import bounds
from wiremap.edges.question.question import Question
from wiremap.edges.runs.sweep import Resources

# ---- one stratum


@pytest.mark.parametrize("risk", [0.001, 0.01, 0.2])
def test_a_number_is_too_low_no_more_often_than_the_risk(risk: float) -> None:
    """By all draws there are, weighed by their probability; and no lower number would do."""
    for size, drawn in ((1, 1), (9, 4), (30, 12), (30, 29), (12, 12)):
        most = [most_above(size, drawn, above, risk) for above in range(drawn + 1)]
        assert most == sorted(most)
        assert most[-1] == size
        for true in range(size + 1):
            missed_by = [
                hypergeom.pmf(above, size, true, drawn)
                for above in range(drawn + 1)
                if most[above] < true
            ]
            assert sum(missed_by) <= risk + 1e-12
        for above, number in enumerate(most):
            # What all that were not drawn come to is the most there can be.
            assert number == size - drawn + above or (
                hypergeom.cdf(above, size, number + 1, drawn) <= risk
            )


def test_of_a_few_among_many_it_is_clopper_and_pearsons() -> None:
    """None of n: 1 - risk^(1/n)."""
    assert most_above(10_000_000, 500, 0, 0.01) / 1e7 == pytest.approx(1 - 0.01 ** (1 / 500), 1e-3)


# ---- strata


def test_strata_part_the_ranking() -> None:
    for size in (1, 2, 49, 50, 1_000, 70_651):
        strata = strata_of(size)
        assert [rank for stratum in strata for rank in stratum] == list(range(size))
        assert all(strata)
    assert strata_of(70_000)[0] == range(700)


def test_more_are_drawn_of_high_scores_and_as_many_as_there_are() -> None:
    assert numbers_of([700, 69_300], 500) == [46, 454]

    for sizes, number in (([10, 990], 500), ([3, 4, 5], 12), ([3, 4, 5], 100), ([1, 99], 1)):
        numbers = numbers_of(sizes, number)
        assert all(0 < own <= size for own, size in zip(numbers, sizes, strict=True))
        assert sum(numbers) == min(max(number, len(sizes)), sum(sizes))
        drawn = draw(sizes, number, 3)
        assert [len(set(own)) for own in drawn] == numbers
        assert drawn == draw(sizes, number, 3)
    assert draw([50, 900], 100, 0) != draw([50, 900], 100, 1)


# ---- coverage


def heavy_tailed(generator: torch.Generator, size: int) -> Tensor:
    """Magnitudes of which a score knew nothing."""
    return torch.randn(size, generator=generator).abs() ** 4


def ranked_well(generator: torch.Generator, size: int) -> Tensor:
    """Magnitudes nearly in the order of the scores."""
    effects = heavy_tailed(generator, size)
    noisy = effects * (1 + torch.randn(size, generator=generator))
    return effects[noisy.abs().argsort(descending=True)]


def at_the_edge(generator: torch.Generator, size: int) -> Tensor:
    """Just as many above the least threshold as make none found likeliest to be a miss; none high."""
    effects = torch.zeros(size)
    effects[torch.randperm(size - size // 100, generator=generator)[: size // 40] + size // 100] = 2
    return effects


@pytest.mark.parametrize("population", [heavy_tailed, ranked_well, at_the_edge])
@pytest.mark.parametrize("confidence", [0.99, 0.8])
def test_all_that_is_said_holds_as_often_as_it_says(
    population: Callable[[torch.Generator, int], Tensor], confidence: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    size, n_draws, misses = 4_000, 1_500, 0
    options = SampleOptions(n_edges=150, thresholds=(1.0, 5.0, 20.0), confidence=confidence)
    strata = strata_of(size)
    sizes = [len(stratum) for stratum in strata]
    effects = population(generator, size)
    true = [float((effects > threshold).sum()) / size for threshold in options.thresholds]
    magnitudes = effects.tolist()
    for seed in range(n_draws):
        drawn = [
            [magnitudes[stratum[place]] for place in own]
            for stratum, own in zip(strata, draw(sizes, options.n_edges, seed), strict=True)
        ]
        shares = shares_above(sizes, drawn, options)
        misses += any(said.share < share for said, share in zip(shares, true, strict=True))
    assert misses <= n_draws * (1 - confidence)


def test_the_coverage_test_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """The share found, without a margin, is too low about half of the time."""
    monkeypatch.setattr(missed, "most_above", lambda size, drawn, above, _: size * above // drawn)
    with pytest.raises(AssertionError):
        test_all_that_is_said_holds_as_often_as_it_says(heavy_tailed, 0.8)


# ---- on a model


@pytest.fixture(scope="module")
def linear() -> Model:
    return tiny.linear_model()


@pytest.fixture(scope="module")
def ranked(linear: Model, pairs: PromptPairs) -> list[str]:
    return [name for name, _ in score_edges(linear, pairs).top()]


@pytest.fixture(scope="module")
def effects(linear: Model, pairs: PromptPairs, ranked: list[str]) -> dict[str, float]:
    """The effects of all edges."""
    exact = patch_edges(linear, pairs, ranked).mean().tolist()
    return dict(zip(ranked, exact, strict=True))


def measured_by(model: Model, pairs: PromptPairs) -> Callable[[Sequence[str]], list[Verified]]:
    verifier = Verifier(model, Question(pairs=pairs), VerifyOptions(), Resources())
    return lambda names: list(verifier.measure(names))


def test_with_all_effects_known_what_is_said_is_true(
    linear: Model, pairs: PromptPairs, ranked: list[str], effects: dict[str, float]
) -> None:
    thresholds = (0.0, *sorted(map(abs, effects.values()))[:: len(effects) // 4][1:])
    for number, rest in ((20, ranked), (5, ranked[10:]), (10_000, ranked[3:])):
        options = SampleOptions(n_edges=number, thresholds=thresholds, unit="logits")
        sample = sample_missed(linear.graph, rest, measured_by(linear, pairs), options)
        assert sample.shares is not None
        for said, threshold in zip(sample.shares, thresholds, strict=True):
            true = sum(abs(effects[name]) > threshold for name in rest) / len(rest)
            assert said.above == threshold
            # A census is exact, as far as floats that are measured in other batches are.
            assert said.share >= true - (1 / len(rest) if number > len(rest) else 0)
            assert number <= len(rest) or said.share <= true + 1 / len(rest)
        assert sample.largest_edge in rest
        assert sample.largest == pytest.approx(effects[sample.largest_edge], rel=1e-4, abs=1e-5)
        assert (sample.n_edges, sample.drawn) == (len(rest), min(number, len(rest)))
        assert sample.statement is not None
        for words in ("99 % confidence", f"{len(rest):,} edges", sample.largest_edge, "logits"):
            assert words in sample.statement
        assert Evidence.from_document({"sample": sample.as_document()}).sample == sample


def test_places_and_names_are_the_same_rest_and_a_seed_the_same_sample(
    linear: Model, pairs: PromptPairs, ranked: list[str]
) -> None:
    measure = measured_by(linear, pairs)
    options = SampleOptions(n_edges=8, thresholds=(0.1,))
    places = torch.tensor([linear.graph.edge(name) for name in ranked])
    sample = sample_missed(linear.graph, ranked, measure, options)
    assert sample == sample_missed(linear.graph, places, measure, options)
    assert "all of this at once" not in str(sample.statement)
    names: list[str] = []

    def noted(chosen: Sequence[str]) -> list[Verified]:
        names.extend(chosen)
        return measure(chosen)

    sample_missed(linear.graph, ranked, noted, options)
    assert len(names) == len(set(names)) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            SampleOptions(n_edges=0, thresholds=(1.0,)),
            "expected a sample of at least 1 edge, got 0",
        ),
        (SampleOptions(n_edges=1, thresholds=()), "expected thresholds"),
        (SampleOptions(n_edges=1, thresholds=(math.nan,)), "expected thresholds"),
        (SampleOptions(n_edges=1, thresholds=(-1.0,)), "expected thresholds"),
        (
            SampleOptions(n_edges=1, thresholds=(1.0,), confidence=1.0),
            "expected a confidence above",
        ),
    ],
)
def test_samples_that_cannot_be_drawn(
    linear: Model, ranked: list[str], options: SampleOptions, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        sample_missed(linear.graph, ranked, lambda names: [], options)


def test_of_no_edges_nothing_is_said(linear: Model) -> None:
    with pytest.raises(InputError, match="got none"):
        sample_missed(
            linear.graph, [], lambda names: [], SampleOptions(n_edges=1, thresholds=(1.0,))
        )


def test_thresholds_rise_and_are_shares_of_the_gap() -> None:
    assert thresholds_of(-2.0) == [0.02, 0.1, 0.2]
    assert thresholds_of(2.0, -0.05) == [0.02, 0.05, 0.1, 0.2]
    assert thresholds_of(2.0, 0.1) == [0.02, 0.1, 0.2]


# ---- the next in rank


def test_the_next_in_rank_are_bounded_by_their_effects(
    linear: Model,
    pairs: PromptPairs,
    ranked: list[str],
    effects: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Effects add up in that model, so what is bounded are the effects themselves."""
    monkeypatch.setattr(next_best, "NEXT", 12)
    question, rest = Question(pairs=pairs), ranked[4:]
    samples = next_options(len(rest)).samples
    arguments = (linear, question, rest, Resources())
    bound = bound_next(*arguments, n_subsets=2 * samples, largest=math.inf)
    assert isinstance(bound, BoundEvidence)
    assert bound.largest is not None
    assert bound.largest >= max(abs(effects[name]) for name in rest[:12])
    assert (bound.n_edges, bound.n_pairs) == (12, len(pairs))
    assert "no next-best unverified edge has |average marginal effect|" in str(bound.statement)
    few = bound_next(*arguments, n_subsets=samples - 1, largest=math.inf)
    assert few == (
        f"the budget allows for {samples - 1} random subsets, and a bound needs {samples}; verify "
        "more (--budget, budget=)"
    )
    known = bound_next(*arguments, n_subsets=2 * samples, largest=0.99 * bound.largest)
    assert isinstance(known, str)
    assert "is known already" in known
    assert bound_next(linear, question, [], Resources(), n_subsets=9, largest=1.0) == (
        "all edges were verified"
    )


def test_a_hopeless_bound_is_given_up_after_a_few_subsets(
    linear: Model, pairs: PromptPairs, ranked: list[str]
) -> None:
    rows: list[int] = []
    resources = Resources(report=lambda stage, done, total: rows.append(done))
    why = bound_next(
        linear, Question(pairs=pairs), ranked, resources, n_subsets=1_000, largest=1e-9
    )
    assert isinstance(why, str)
    assert why.startswith("by its first 8 subsets the bound would be about ")
    assert sum(rows) == bounds.PILOT * len(pairs)


def test_the_first_subsets_are_the_bounds_own(
    linear: Model, pairs: PromptPairs, ranked: list[str]
) -> None:
    options = bounds.BoundOptions(samples=200, probability=0.1, items="edges")
    arguments = (linear, Question(pairs=pairs), ranked[:20], options, Resources())
    whole, below = bounds.bound_names(*arguments), bounds.bound_below(*arguments, largest=math.inf)
    assert isinstance(below, bounds.Bound)
    torch.testing.assert_close(below.bounds, whole.bounds, rtol=1e-4, atol=1e-5)
    assert below.statement() == whole.statement()


def test_the_margin_expected_is_about_that_of_the_bound() -> None:
    options = bounds.BoundOptions(samples=300, probability=0.1)
    members = bounds.draw_subsets(300, 50, 0.1, seed=0)
    effects = torch.randn(50, generator=torch.Generator().manual_seed(0)).double()
    values = members.double() @ effects
    estimates, found = bounds.welch_bounds(values, members, options.confidence)
    margins = found - estimates.abs()
    expected = bounds.margin_expected(values, 50, options)
    assert expected == pytest.approx(float(margins.median()), rel=0.1)


# ---- time


def test_a_plan_takes_the_time_there_is() -> None:
    plan = plan_missed(0.1, 150.0, 70_000, subset_cost=0.8)
    assert plan.n_subsets > 0
    assert plan.no_bound is None
    assert 149 < 0.1 * (plan.n_sample + 0.8 * plan.n_subsets) <= 150
    for seconds in (0.0, -1.0):
        plan = plan_missed(0.1, seconds, 70_000)
        assert (plan.n_sample, plan.n_subsets) == (0, 0)
    little = plan_missed(0.1, 5.0, 70_000, subset_cost=0.8)
    assert (little.n_sample, little.n_subsets) == (50, 0)
    assert str(little.no_bound).startswith("the budget allows for 20 random subsets, and a bound")
    assert plan_missed(0.1, 1e6, 40).n_sample == 40
    assert plan_missed(0.1, 100.0, 0) == MissedPlan(0, 0, "all edges were verified")
    for edge, subset in ((0.0, 1.0), (1.0, 0.0), (math.nan, 1.0)):
        with pytest.raises(InputError, match="above 0, got"):
            plan_missed(edge, 1.0, 10, subset_cost=subset)


def test_what_is_verified_in_less_time_is_not_bounded() -> None:
    plan = plan_missed(0.1, 1e6, 70_000, subset_cost=7.0)
    assert (plan.n_sample, plan.n_subsets) == (70_000, 0)
    assert str(plan.no_bound).endswith("take longer than to verify these one by one")
