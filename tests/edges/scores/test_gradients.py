"""Gradient rules with the linear reader, against the slow model one pass at a time."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from comparing import name_of
from slow import Experts, SlowModel
from slow_scores import (
    REFERENCE,
    REFERENCE_KIND,
    REFERENCE_PAIRS,
    REFERENCE_RULES,
    RULES,
    SlowScores,
    assert_equal_scores,
    reference_scores,
)
from torch import Tensor

from wiremap.edges import InputError, Model, PromptPairs, score_edges
from wiremap.edges.scores.rules.relevance import Relevance
from wiremap.edges.scores.rules.rule import GradientRule, Modified

Options = dict[str, Any]

LEFT: Options = {"gradient": "integrated", "steps": 3, "schedule": "left"}
EVERY_RULE: list[Options] = [
    {"gradient": "both"},
    {"gradient": "integrated", "steps": 2},
    {"gradient": "graddrop"},
    {"gradient": "relevance"},
    {"gradient": "gim"},
]
AT_THE_RUN_EDITED = ("graddrop", "relevance", "gim")
EXPERTS = ("mixtral", "qwen2-moe", "qwen3-moe")


@pytest.mark.parametrize("options", EVERY_RULE, ids=name_of)
def test_every_edge_equals_the_slow_model(
    every_twins: tuple[Model, SlowModel], some_pairs: PromptPairs, options: Options
) -> None:
    model, slow = every_twins
    if options["gradient"] == "relevance" and isinstance(slow.blocks[0].mlp, Experts):
        pytest.skip("refused, see below")
    expected = SlowScores(slow, some_pairs, **options).scores().sum(1)
    found = score_edges(model, some_pairs, per_pair=True, **options)
    assert_equal_scores(found.per_pair, expected, slow)
    assert_equal_scores(found.scores, expected.mean(0), slow)
    assert found.unsigned == (options["gradient"] == "graddrop")
    assert found.gradient == options["gradient"]


def test_the_left_schedule_equals_the_slow_model(
    twins: tuple[Model, SlowModel], some_pairs: PromptPairs
) -> None:
    model, slow = twins
    expected = SlowScores(slow, some_pairs, **LEFT).scores().sum(1)
    found = score_edges(model, some_pairs, per_pair=True, **LEFT)
    assert_equal_scores(found.per_pair, expected, slow)


@pytest.mark.parametrize("gradient", AT_THE_RUN_EDITED)
@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_rules_at_one_run_take_the_run_edited(
    twins: tuple[Model, SlowModel], some_pairs: PromptPairs, gradient: str, direction: str
) -> None:
    """The clean run is edited by noising, the corrupted one by denoising."""
    model, slow = twins
    expected = SlowScores(slow, some_pairs, gradient, direction).scores().sum(1)
    found = score_edges(model, some_pairs, gradient=gradient, direction=direction, per_pair=True)
    assert_equal_scores(found.per_pair, expected, slow)


def test_no_two_rules_of_the_slow_model_are_the_same(some_pairs: PromptPairs) -> None:
    """Guards the tests above."""
    slow = SlowModel(tiny.hf_model("llama-gqa"))
    cases: list[Options] = [{"gradient": "clean"}, {"gradient": "corrupted"}, *EVERY_RULE, LEFT]
    cases += [{"gradient": name, "direction": "denoising"} for name in AT_THE_RUN_EDITED]
    tables = [SlowScores(slow, some_pairs, **case).scores() for case in cases]
    for index, one in enumerate(tables):
        for other in tables[:index]:
            assert float((one.abs() - other.abs()).abs().max()) > 0.05 * float(one.abs().max())


# ---- integrated


@pytest.mark.parametrize(
    ("schedule", "steps", "gradient"),
    [("left", 1, "corrupted"), ("left", 2, None), ("midpoint", 2, None)],
)
def test_schedules_take_the_runs_they_name(
    some_pairs: PromptPairs, schedule: str, steps: int, gradient: str | None
) -> None:
    """One left step is the corrupted run; two are it and the middle; midpoints are neither end."""
    model = tiny.model("gpt2")

    def integrated(steps: int, schedule: str) -> Tensor:
        return score_edges(
            model, some_pairs, gradient="integrated", steps=steps, schedule=schedule
        ).scores.nan_to_num()

    if gradient is None:
        corrupted, middle = integrated(1, "left"), integrated(1, "midpoint")
        four = integrated(4, "left")
        left = (corrupted + middle) / 2
        expected = left if schedule == "left" else 2 * four - left
    else:
        expected = score_edges(model, some_pairs, gradient=gradient).scores.nan_to_num()
    torch.testing.assert_close(integrated(steps, schedule), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{"memory_limit": 16 * 20_000}, {"batch_size": 1}], ids=name_of)
def test_steps_may_share_batches_or_not(
    twins: tuple[Model, SlowModel], some_pairs: PromptPairs, options: Options
) -> None:
    model, _ = twins
    whole = score_edges(model, some_pairs, gradient="integrated", steps=5).scores
    parts = score_edges(model, some_pairs, gradient="integrated", steps=5, **options).scores
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4, equal_nan=True)


# ---- GradDrop


def test_absolute_values_are_taken_of_each_pair(twins: tuple[Model, SlowModel]) -> None:
    model, pairs = twins[0], tiny.pairs(3, n_pos=6)
    together = score_edges(model, pairs, gradient="graddrop", per_pair=True)
    assert together.unsigned
    assert together.per_pair is not None
    assert bool((together.per_pair.nan_to_num() >= 0).all())
    for row in range(3):
        alone = score_edges(model, tiny.one_pair(pairs, row), gradient="graddrop")
        torch.testing.assert_close(
            alone.scores, together.per_pair[row], rtol=1e-4, atol=1e-4, equal_nan=True
        )
    without = score_edges(model, pairs, gradient="graddrop")
    assert without.per_pair is None
    torch.testing.assert_close(
        without.scores, together.per_pair.mean(0), rtol=1e-4, atol=1e-4, equal_nan=True
    )


def test_graddrop_of_edges_to_the_logits_is_their_absolute_score(
    twins: tuple[Model, SlowModel], some_pairs: PromptPairs
) -> None:
    """They have a direct effect alone, which no dropped layer changes."""
    model, _ = twins
    dropped = score_edges(model, some_pairs, gradient="graddrop", per_pair=True).per_pair
    plain = score_edges(model, some_pairs, gradient="clean", per_pair=True).per_pair
    assert dropped is not None
    assert plain is not None
    torch.testing.assert_close(dropped[..., -1], plain[..., -1].abs(), rtol=1e-4, atol=1e-5)


def test_graddrop_needs_two_layers(some_pairs: PromptPairs) -> None:
    with pytest.raises(InputError, match="GradDrop needs at least two layers"):
        score_edges(tiny.model("gpt2", n_layer=1), some_pairs, gradient="graddrop")


# ---- relevance


def test_a_constant_pattern_gives_queries_and_keys_exactly_nothing(
    every_twins: tuple[Model, SlowModel], some_pairs: PromptPairs
) -> None:
    model, slow = every_twins
    if isinstance(slow.blocks[0].mlp, Experts):
        pytest.skip("has no place for relevance")
    rule = Modified("relevance", "clean", lambda: Relevance(attention=True))
    assert isinstance(rule, GradientRule)
    rules = replace(RULES["relevance"], detach_pattern=True)
    expected = SlowScores(slow, some_pairs, rules=rules).scores().sum(1)
    found = score_edges(model, some_pairs, gradient=rule, per_pair=True).per_pair
    assert found is not None
    for index, reader in enumerate(slow.readers):
        edges = found[..., : len(slow.reads(reader)), index]
        assert bool(edges.any()) != reader.endswith(("<q>", "<k>")), reader
    assert_equal_scores(found, expected, slow, without="qk")


@pytest.mark.parametrize("kind", EXPERTS)
def test_relevance_of_a_mixture_of_experts_is_refused(kind: str, some_pairs: PromptPairs) -> None:
    model = tiny.model(kind)
    with pytest.raises(
        InputError,
        match=r"relevance has no rule for the mixture of experts blocks\.0\.mlp \(\w+\) of model "
        rf"tiny {kind}; use another gradient",
    ):
        score_edges(model, some_pairs, gradient="relevance")
    rule = Modified("mine", "clean", Relevance, in_mlp=True)
    with pytest.raises(InputError, match="gradient mine has no rule"):
        score_edges(model, some_pairs, gradient=rule)


# ---- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient": "integrated", "steps": 0}, "expected at least one step, got 0"),
        (
            {"gradient": "integrated", "schedule": "right"},
            "unknown schedule 'right'; there are midpoint, left",
        ),
        ({"gradient": "gimp"}, "unknown gradient 'gimp'; there are clean, .*graddrop.*, gim"),
        *(
            ({"gradient": name, "metric": "kl"}, "metric kl is 0 at the clean run")
            for name in ("clean", "gim", "relevance", "graddrop")
        ),
    ],
)
def test_options_that_cannot_be_are_refused(
    options: Options, message: str, some_pairs: PromptPairs
) -> None:
    with pytest.raises(InputError, match=message):
        score_edges(tiny.model("gpt2"), some_pairs, **options)


@pytest.mark.parametrize("gradient", [None, "corrupted", "both", "integrated"])
def test_kl_has_a_gradient_away_from_the_clean_run(
    gradient: str | None, some_pairs: PromptPairs
) -> None:
    scores = score_edges(tiny.model("gpt2"), some_pairs, "kl", gradient=gradient).scores
    assert float(scores.nan_to_num().abs().max()) > 1e-2


@pytest.mark.parametrize("gradient", ["graddrop", "relevance", "gim"])
def test_kl_has_a_gradient_where_the_corrupted_run_is_edited(
    gradient: str, some_pairs: PromptPairs
) -> None:
    scores = score_edges(
        tiny.model("gpt2"), some_pairs, "kl", gradient=gradient, direction="denoising"
    ).scores
    assert float(scores.nan_to_num().abs().max()) > 1e-2


# ---- the committed reference scores


def committed(name: str) -> dict[str, float]:
    return json.loads(REFERENCE.read_text())[name]


@pytest.mark.parametrize("reader", ["linear", "exact"])
@pytest.mark.parametrize("rule", REFERENCE_RULES)
def test_scores_are_the_committed_ones(rule: str, reader: str) -> None:
    model, pairs = tiny.model(REFERENCE_KIND), tiny.pairs(**REFERENCE_PAIRS)
    found = dict(score_edges(model, pairs, reader=reader, **REFERENCE_RULES[rule]).top())
    expected = committed(f"{rule} {reader}")
    assert found.keys() == expected.keys()
    largest = max(map(abs, expected.values()))
    assert largest > 1
    for edge, score in expected.items():
        assert abs(found[edge] - score) < 1e-4 * largest, edge


def test_the_slow_model_still_gives_the_committed_scores() -> None:
    slow = SlowModel(tiny.hf_model(REFERENCE_KIND))
    tables = reference_scores(slow, tiny.pairs(**REFERENCE_PAIRS))
    for name, table in tables.items():
        assert table == pytest.approx(committed(name), rel=1e-4, abs=5e-5), "but for rounding"
