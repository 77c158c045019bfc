"""A question: checked once, and what it knows of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import tiny
import torch

from wiremap.edges import METRICS, InputError, PromptPairs
from wiremap.edges.question.metrics import Targets
from wiremap.edges.question.question import Question
from wiremap.edges.question.source import KINDS, Source


def without_wrong_answers() -> PromptPairs:
    pairs = tiny.pairs()
    return PromptPairs(pairs.clean, pairs.corrupted, pairs.answers)


@pytest.mark.parametrize(
    ("pairs", "options", "message"),
    [
        (tiny.pairs, {"metric": "loss"}, "unknown metric 'loss'"),
        (tiny.pairs, {"direction": "up"}, "unknown direction 'up'; there are noising, denoising"),
        (without_wrong_answers, {}, "metric logit_diff compares the answer with a wrong answer"),
        (without_wrong_answers, {"metric": "prob_diff"}, "metric prob_diff compares"),
        (
            tiny.pairs,
            {"direction": "denoising", "patch_with": Source("zero")},
            "zero patching has no such run",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused_at_once(
    pairs: Callable[[], PromptPairs], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Question(pairs=pairs(), **options)


@pytest.mark.parametrize("metric", ["log_prob", "kl", "accuracy"])
def test_some_metrics_need_no_wrong_answer(metric: str) -> None:
    assert Question(pairs=without_wrong_answers(), metric=metric).measure is METRICS[metric]


def test_it_knows_its_runs_and_its_sign() -> None:
    noising = Question(pairs=tiny.pairs())
    assert (noising.noising, noising.sign, noising.edited, noising.other) == (
        True, 1, "clean", "corrupted",
    )  # fmt: skip
    denoising = Question(pairs=tiny.pairs(), direction="denoising")
    assert (denoising.noising, denoising.sign, denoising.edited, denoising.other) == (
        False, -1, "corrupted", "clean",
    )  # fmt: skip


def test_a_metric_of_ones_own_is_checked_where_it_is_used() -> None:
    def summed(logits: torch.Tensor, targets: Targets) -> torch.Tensor:
        return logits.sum()

    question = Question(pairs=tiny.pairs(), metric=summed)
    nothing = torch.zeros(3, 1, dtype=torch.int64)
    with pytest.raises(InputError, match="one number per row"):
        question.measure(torch.zeros(3, 5), Targets(nothing, nothing, torch.zeros(3, 5)))
    assert "summed" in question.metric_name


def test_it_says_what_a_result_says_of_it() -> None:
    question = Question(pairs=tiny.pairs(), metric="kl", patch_with=Source("mean"))
    assert question.describe() == {"metric": "kl", "direction": "noising", "patch_with": "mean"}


def test_it_is_frozen_and_asks_the_same_of_others() -> None:
    question = Question(pairs=tiny.pairs(), direction="denoising")
    with pytest.raises(FrozenInstanceError):
        question.direction = "noising"  # pyright: ignore[reportAttributeAccessIssue]
    others = tiny.pairs(5)
    other = question.about(pairs=others, metric="kl")
    assert (other.pairs, other.metric, other.direction) == (others, "kl", "denoising")
    assert other.measure is METRICS["kl"]
    with pytest.raises(InputError, match="needs|compares"):
        question.about(pairs=without_wrong_answers())


@pytest.mark.parametrize("kind", KINDS)
def test_sources_are_told_apart(kind: str) -> None:
    prints = {Source(other).fingerprint() for other in KINDS}
    assert len(prints) == len(KINDS)
    assert Source(kind).fingerprint() == Source(kind).fingerprint()


def test_a_mean_is_told_apart_by_its_data_and_noise_by_its_scale_and_seeds() -> None:
    means = [Source("mean", data).fingerprint() for data in (None, tiny.pairs(), tiny.pairs(4))]
    noises = [Source("noise", None, *how).fingerprint() for how in ((3.0, 10), (2.0, 10), (3.0, 9))]
    assert len({*means, *noises}) == 6
    assert (Source("noise", noise_seeds=4).n_draws, Source("mean", noise_seeds=4).n_draws) == (4, 1)
