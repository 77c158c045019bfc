"""The QK fix against brute force in float64, in float32, on saturated rows above all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wiremap.edges.scores.qk_fix import KeyFix, contract_rows, pattern_difference

N_HEADS, N_POS = 6, 48
BOUND = 1e-5
GRADIENTS = ("around zero", "offset", "sparse")

Problem = tuple[Tensor, Tensor, Tensor]
"""Scores, patched scores and gradient by the pattern. ``[head query key]``"""


def hide(scores: Tensor, window: int | None = None) -> Tensor:
    """Scores with what a query may not see at -inf; with a window, it sees so many keys."""
    ones = torch.ones(scores.shape[-2:], dtype=torch.bool)
    hidden = ones.triu(1) if window is None else ones.triu(1) | ones.tril(-window)
    return scores.masked_fill(hidden, -torch.inf)


def a_gradient(shape: torch.Size, gradient: str, generator: torch.Generator) -> Tensor:
    values = torch.randn(shape, generator=generator)
    if gradient == "offset":  # of no consequence: the changes of a row sum to 0
        return values + 1000
    if gradient == "sparse":
        return values * (torch.rand(shape, generator=generator) < 0.1)
    return values


def causal(gradient: str = "around zero", deviation: float = 30.0) -> Problem:
    generator = torch.Generator().manual_seed(0)
    shape = torch.Size((N_HEADS, N_POS, N_POS))
    scores, patched = (deviation * torch.randn(shape, generator=generator) for _ in range(2))
    return hide(scores), hide(patched), a_gradient(shape, gradient, generator)


def windowed(gradient: str) -> Problem:
    scores, patched, by_pattern = causal(gradient)
    return hide(scores, 5), hide(patched, 5), by_pattern


def soft_capped(gradient: str, deviation: float = 30.0) -> Problem:
    """Gemma 2's scores."""
    scores, patched, by_pattern = causal(gradient, deviation)
    cap = 50.0
    return hide(cap * (scores / cap).tanh()), hide(cap * (patched / cap).tanh()), by_pattern


def tied(gradient: str) -> Problem:
    """Most scores are the cap itself, to rounding: many keys share a row's maximum."""
    return soft_capped(gradient, 1000.0)


def with_sink(gradient: str) -> Problem:
    """A learned sink: a last column that every query sees, that no patch changes."""
    scores, patched, by_pattern = causal(gradient)
    sink = 20 * torch.randn(N_HEADS, 1, 1, generator=torch.Generator().manual_seed(1))
    column = sink.expand(N_HEADS, N_POS, 1)
    return (
        torch.cat([scores, column], -1),
        torch.cat([patched, column], -1),
        torch.cat([by_pattern, torch.zeros_like(column)], -1),
    )


PROBLEMS = {
    "causal": causal,
    "window": windowed,
    "soft cap": soft_capped,
    "ties": tied,
    "sink": with_sink,
}


def one_replaced(scores: Tensor, patched: Tensor, key: int) -> Tensor:
    """The pattern with one key replaced alone."""
    scores = scores.clone()
    scores[..., key] = patched[..., key]
    return scores.softmax(-1)


def slow_key_fix(scores: Tensor, patched: Tensor, gradient: Tensor) -> Tensor:
    """Replaces each key alone and recomputes the softmax, in float64. ``[head key]``"""
    scores, patched, gradient = scores.double(), patched.double(), gradient.double()
    found: list[Tensor] = []
    for key in range(scores.shape[-1]):
        change = one_replaced(scores, patched, key) - scores.softmax(-1)
        found.append((change * gradient).sum((-2, -1)))
    return torch.stack(found, -1)


def slow_query_fix(scores: Tensor, patched: Tensor, gradient: Tensor) -> Tensor:
    """Recomputes one row after another, in float64. ``[head query]``"""
    scores, patched, gradient = scores.double(), patched.double(), gradient.double()
    found: list[Tensor] = []
    for query in range(scores.shape[-2]):
        change = patched[..., query, :].softmax(-1) - scores[..., query, :].softmax(-1)
        found.append((change * gradient[..., query, :]).sum(-1))
    return torch.stack(found, -1)


def odds_form(scores: Tensor, patched: Tensor, gradient: Tensor) -> Tensor:
    """The form in common use, with the new weights p' to full precision at that."""
    exact = (scores.double(), patched.double())
    new = torch.stack([one_replaced(*exact, key)[..., key] for key in range(N_POS)], -1)
    pattern = scores.softmax(-1)
    mean = (pattern * gradient).sum(-1, keepdim=True)
    rest = (1 - pattern).clamp(min=torch.finfo(pattern.dtype).eps)
    return ((new.to(pattern.dtype) - pattern) / rest * (gradient - mean)).sum(-2)


def error(found: Tensor, expected: Tensor) -> float:
    """The largest of each head's, relative to the head's largest entry."""
    scale = expected.abs().amax(-1, keepdim=True)
    assert float(scale.min()) > 0.1
    return float(((found.double() - expected) / scale).abs().max())


def n_saturated(scores: Tensor) -> int:
    """Rows with a weight above 0.999999 although there are other keys to see."""
    largest = scores.double().softmax(-1).amax(-1)
    return int(((largest > 0.999999) & (scores.isfinite().sum(-1) > 1)).sum())


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_each_key_alone_equals_brute_force(problem: str, gradient: str) -> None:
    scores, patched, by_pattern = PROBLEMS[problem](gradient)
    assert scores.dtype == patched.dtype == by_pattern.dtype == torch.float32
    expected = slow_key_fix(scores, patched, by_pattern)
    assert error(KeyFix(scores, patched).contract(by_pattern), expected) < BOUND


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_each_query_equals_brute_force(problem: str, gradient: str) -> None:
    scores, patched, by_pattern = PROBLEMS[problem](gradient)
    expected = slow_query_fix(scores, patched, by_pattern)
    found = contract_rows(pattern_difference(scores, patched), scores, by_pattern)
    assert error(found, expected) < BOUND


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_problems_are_saturated(problem: str) -> None:
    scores, patched, _ = PROBLEMS[problem]("around zero")
    for table in (scores, patched):
        assert n_saturated(table) > (30 if problem != "ties" else 5)


def test_the_tied_problem_has_ties() -> None:
    scores, _, _ = tied("around zero")
    at_the_top = (scores == scores.amax(-1, keepdim=True)).sum(-1)
    assert int((at_the_top > 1).sum()) > 200


def test_rows_saturated_in_one_key_keep_their_small_estimates() -> None:
    """The rows that plain AtP misses, alone: nothing larger hides their errors."""
    scores, patched, by_pattern = causal("offset")
    saturated = scores.softmax(-1).amax(-1) > 0.999999
    saturated[:, 0] = False
    rows = saturated.nonzero()[:40]
    for head, query in rows.tolist():
        row = slice(query, query + 1)
        problem = (scores[head, row], patched[head, row], by_pattern[head, row])
        expected = slow_key_fix(*problem)
        found = KeyFix(*problem[:2]).contract(problem[2]).double()
        # Relative to each estimate itself, as far as the float64 differences can be trusted.
        wrong = (found - expected).abs() > 1e-4 * expected.abs() + 1e-11
        assert not bool(wrong.any())
    assert len(rows) == 40


def test_the_odds_form_fails_the_bound() -> None:
    """Guards the tests above: the same formula, written without care, is far off."""
    scores, patched, by_pattern = causal()
    expected = slow_key_fix(scores, patched, by_pattern)
    assert error(odds_form(scores, patched, by_pattern), expected) > 1000 * BOUND
    in_float64 = odds_form(*(tensor.double() for tensor in causal("around zero", 2.0)))
    assert error(in_float64, slow_key_fix(*causal("around zero", 2.0))) < 1e-9


def test_rows_without_a_relative_gradient_fail_the_bound() -> None:
    """Guards the tests of queries: a common offset of the gradient is no small thing."""
    scores, patched, by_pattern = causal("offset")
    expected = slow_query_fix(scores, patched, by_pattern)
    naive = (pattern_difference(scores, patched) * by_pattern).sum(-1)
    assert error(naive, expected) > BOUND


@pytest.mark.parametrize("change", [1e-2, 1e-4])
def test_small_changes_are_as_precise_as_their_scores(change: float) -> None:
    scores, other, by_pattern = causal("offset", 2.0)
    patched = scores + change * (other - scores).nan_to_num()
    expected = slow_key_fix(scores, patched, by_pattern)
    found = KeyFix(scores, patched).contract(by_pattern)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-7 / change
    expected = slow_query_fix(scores, patched, by_pattern)
    found = contract_rows(pattern_difference(scores, patched), scores, by_pattern)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-6 / change


def test_nothing_patched_is_worth_nothing() -> None:
    scores, _, by_pattern = causal("offset")
    assert not bool(KeyFix(scores, scores).contract(by_pattern).any())
    difference = pattern_difference(scores, scores)
    assert not bool(contract_rows(difference, scores, by_pattern).any())


def test_hidden_keys_are_worth_nothing() -> None:
    scores, patched, by_pattern = causal("offset")
    scores[:, 1:, 0] = patched[:, 1:, 0] = -torch.inf  # the first query sees nothing else
    found = KeyFix(scores, patched).contract(by_pattern)
    assert not bool(found[:, 0].any())
    expected = slow_key_fix(scores, patched, by_pattern)
    assert error(found, expected) < BOUND
    elsewhere = by_pattern.masked_fill(scores.isinf(), 1e6)
    torch.testing.assert_close(KeyFix(scores, patched).contract(elsewhere), found)


def test_the_sink_is_worth_nothing_and_takes_weight() -> None:
    scores, patched, by_pattern = with_sink("around zero")
    found = KeyFix(scores, patched).contract(by_pattern)
    assert not bool(found[:, -1].any())
    without = KeyFix(scores[..., :-1], patched[..., :-1]).contract(by_pattern[..., :-1])
    assert float((found[:, :-1] - without).abs().max()) > 0.1


@pytest.mark.parametrize("n_pos", [1, N_POS])
def test_rows_with_one_visible_key_are_worth_nothing(n_pos: int) -> None:
    generator = torch.Generator().manual_seed(2)
    scores, patched = (
        hide(30 * torch.randn(N_HEADS, n_pos, n_pos, generator=generator), 1) for _ in range(2)
    )
    by_pattern = a_gradient(scores.shape, "offset", generator)
    assert bool((scores.isfinite().sum(-1) == 1).all())
    zero = torch.zeros(N_HEADS, n_pos)
    assert torch.equal(KeyFix(scores, patched).contract(by_pattern), zero)
    difference = pattern_difference(scores, patched)
    assert torch.equal(contract_rows(difference, scores, by_pattern), zero)


def test_leading_dimensions_are_rows_apart() -> None:
    scores, patched, by_pattern = (
        tensor.unflatten(0, (2, N_HEADS // 2)) for tensor in causal("offset")
    )
    together = KeyFix(scores, patched).contract(by_pattern)
    assert together.shape == (2, N_HEADS // 2, N_POS)
    for pair in range(2):
        alone = KeyFix(scores[pair], patched[pair]).contract(by_pattern[pair])
        assert torch.equal(alone, together[pair])


def test_not_finite_scores_are_not_hidden() -> None:
    for broken in range(2):
        problem = [tensor.clone() for tensor in causal()]
        problem[broken][1, 20, 7] = torch.nan
        scores, patched, by_pattern = problem
        assert bool(KeyFix(scores, patched).contract(by_pattern)[1].isnan().any())
        rows = contract_rows(pattern_difference(scores, patched), scores, by_pattern)
        assert bool(rows[1, 20].isnan())
