"""Metrics against figures worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from wiremap.edges import InputError
from wiremap.edges.question.metrics import (
    Targets,
    accuracy,
    kl,
    log_prob,
    logit_diff,
    prob_diff,
    resolve_metric,
)

LOGITS = torch.tensor([[1.0, 2.0, 4.0], [0.0, math.log(3), math.log(4)]])
TARGETS = Targets(
    answers=torch.tensor([[2, -1], [1, 2]]),
    wrong_answers=torch.tensor([[0, 1], [0, -1]]),
    clean_logits=torch.zeros(2, 3),
)


def test_logit_diff_takes_means_and_skips_the_filling() -> None:
    expected = torch.tensor([4 - (1 + 2) / 2, (math.log(3) + math.log(4)) / 2 - 0])
    torch.testing.assert_close(logit_diff(LOGITS, TARGETS), expected)


def test_prob_diff_takes_sums() -> None:
    first = LOGITS[0].softmax(0)
    expected = torch.tensor([float(first[2] - first[0] - first[1]), (3 + 4 - 1) / 8])
    torch.testing.assert_close(prob_diff(LOGITS, TARGETS), expected)


def test_log_prob_is_of_any_answer() -> None:
    expected = torch.tensor([float(LOGITS[0].log_softmax(0)[2]), math.log(7 / 8)])
    torch.testing.assert_close(log_prob(LOGITS, TARGETS), expected)


def test_kl_is_minus_the_divergence_from_the_clean_run() -> None:
    third, p = 1 / 3, LOGITS[1].softmax(0)
    expected = -sum(third * math.log(third / float(q)) for q in p)
    assert kl(LOGITS, TARGETS)[1].item() == pytest.approx(expected, rel=1e-5)
    assert kl(torch.zeros(2, 3), TARGETS).tolist() == [0, 0]


def test_repeated_targets_keep_their_order() -> None:
    assert TARGETS.repeat(2).answers.tolist() == TARGETS.answers.tolist() * 2


def test_metrics_by_name() -> None:
    assert resolve_metric("kl", has_wrong_answers=False) is kl
    own = resolve_metric(prob_diff, has_wrong_answers=False)
    torch.testing.assert_close(own(LOGITS, TARGETS), prob_diff(LOGITS, TARGETS))
    with pytest.raises(InputError, match="unknown metric 'loss'; there are logit_diff"):
        resolve_metric("loss", True)
    with pytest.raises(InputError, match="metric prob_diff compares the answer with a wrong"):
        resolve_metric("prob_diff", has_wrong_answers=False)


def test_accuracy_takes_any_answer_and_the_first_of_equals() -> None:
    assert accuracy(LOGITS, TARGETS).tolist() == [1, 1]
    wrong = Targets(torch.tensor([[1, -1], [0, -1]]), TARGETS.wrong_answers, TARGETS.clean_logits)
    assert accuracy(LOGITS, wrong).tolist() == [0, 0]
    assert accuracy(torch.zeros(2, 3), wrong).tolist() == [0, 1]
