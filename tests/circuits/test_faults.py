"""Memory that runs out at every stage: batches are halved, the results stay; and broken effects."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from wiremap.circuits import completeness, discover, localize, minimality, read_metrics, run_tests
from wiremap.circuits.choice.pruning import prune_to_target
from wiremap.circuits.evidence.verification import verify
from wiremap.circuits.result.circuit import CircuitEdge
from wiremap.edges import (
    InputError,
    Model,
    PromptPairs,
    WiremapError,
    patch_edges,
    score_edges,
    score_nodes,
)
from wiremap.edges.effects.bounds import bound_unverified
from wiremap.edges.effects.mask_gradients import mean_mask_gradients
from wiremap.edges.effects.reduced import patch_together, run_edge_sets
from wiremap.edges.effects.reduced_runs import ReducedRuns
from wiremap.edges.model.mlp import Mlp
from wiremap.edges.question.question import Question
from wiremap.edges.runs.masks import full_mask, places_mask
from wiremap.edges.runs.sweep import Resources, check_pairs

OUT_OF_MEMORY = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"
N_PAIRS = 6

Stage = Callable[[Model, PromptPairs], Tensor]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model("gpt2")


@pytest.fixture(scope="module")
def task(model: Model) -> PromptPairs:
    pairs = tiny.able(model, tiny.pairs(N_PAIRS))
    check_pairs(model, pairs)  # once for all: the first run of a model is of one row, to check it
    return pairs


def some_edges(model: Model, step: int = 9) -> list[str]:
    return [model.graph.edge_name(edge) for edge in model.graph.edges()][::step]


def a_circuit(model: Model) -> list[str]:
    """Edges of a path through every layer, and some beside it."""
    path = ["input->m0", "m0->m1", "m1->m2", "m2->logits", "input->a1.h1<v>", "a1.h1->logits"]
    return [*path, "m0->a2.h2<q>", "a2.h2->m2"]


def scoring_edges(model: Model, pairs: PromptPairs) -> Tensor:
    return score_edges(model, pairs).scores.nan_to_num()


def scoring_nodes(model: Model, pairs: PromptPairs) -> Tensor:
    return score_nodes(model, pairs, "writers", method="atp").scores


def verifying(model: Model, pairs: PromptPairs) -> Tensor:
    found = verify(model, pairs, [*some_edges(model), "m0->m1 + m1->m2"])
    return torch.tensor([one.effects for one in found])


def bounding(model: Model, pairs: PromptPairs) -> Tensor:
    rest = some_edges(model, 30)
    found = bound_unverified(
        model,
        pairs,
        rest,
        metric="logit_diff",
        direction="noising",
        items="edges",
        n_samples=40,
        probability=0.3,
    )
    return found.bounds


def pruning(model: Model, pairs: PromptPairs) -> Tensor:
    """The metric of every circuit that the search for a small one tries."""
    tried: list[float] = []
    edges = [
        CircuitEdge(name.partition("->")[0], name.partition("->")[2], effect=1.0 / (1 + place))
        for place, name in enumerate(["input->m0", "m0->m1", "m1->m2", "m2->logits", "m0->logits"])
    ]
    with ReducedRuns(model, Question(pairs=pairs), Resources()) as runs:

        def faithfulness(kept: Any) -> float:
            tried.append(runs.values(places_mask(model.graph, kept)).mean().item())
            return len(kept) / len(edges)

        prune_to_target(model.graph, edges, 0.7, faithfulness)
        return torch.tensor([*tried, *runs.full, *runs.empty])


def gradients_by_masks(model: Model, pairs: PromptPairs) -> Tensor:
    found = mean_mask_gradients(model, pairs, full_mask(model.graph), steps=3)
    return torch.cat([found.values.flatten(), found.gradients.flatten()])


def drawing_the_curve(model: Model, pairs: PromptPairs) -> Tensor:
    scores = score_edges(model, pairs).top()
    found = localize(model, pairs, scores)
    return torch.tensor([found.cpr, found.cmd])


def reading_metrics(model: Model, pairs: PromptPairs) -> Tensor:
    found = read_metrics(model, pairs, a_circuit(model))
    return torch.tensor([[one.full, one.empty, one.circuit] for one in found])


def trying_claims(model: Model, pairs: PromptPairs) -> Tensor:
    edges = a_circuit(model)
    complete = completeness(model, pairs, edges, n_subsets=2)
    minimal = minimality(model, pairs, edges, n_subsets=1)
    tests = run_tests(model, pairs, edges, n_random=2, n_permutations=50)
    return torch.tensor(
        [complete.mean, minimal.least.score, tests[0].statistic, tests[3].statistic]
    )


STAGES = [
    scoring_edges, scoring_nodes, verifying, bounding, pruning, gradients_by_masks,
    drawing_the_curve, reading_metrics, trying_claims,
]  # fmt: skip


@pytest.fixture(scope="module")
def enough(model: Model, task: PromptPairs) -> dict[Stage, tuple[Tensor, int, int]]:
    """Of each stage, its result in memory enough, its calls of an MLP and its largest batch."""
    found: dict[Stage, tuple[Tensor, int, int]] = {}
    for stage in STAGES:
        rows: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            allow(patch, lambda n, rows=rows: rows.append(n))
            result = stage(model, task)
        found[stage] = result, len(rows), max(rows)
    return found


def allow(patch: pytest.MonkeyPatch, check: Callable[[int], None]) -> None:
    """``check`` is told the rows of every batch that an MLP runs on, and may raise."""
    mlp = Mlp.__call__

    def checked(self: Mlp, resid: Tensor, see: Any = None) -> Tensor:
        check(len(resid))
        return mlp(self, resid, see)

    patch.setattr(Mlp, "__call__", checked)


@pytest.mark.parametrize("stage", STAGES)
def test_batches_shrink_to_what_fits_and_the_result_stays(
    model: Model,
    task: PromptPairs,
    enough: dict[Stage, tuple[Tensor, int, int]],
    monkeypatch: pytest.MonkeyPatch,
    stage: Stage,
) -> None:
    expected, _, most = enough[stage]
    for limit in (most - 1, 2):
        largest = 0

        def check(n_rows: int, limit: int = limit) -> None:
            nonlocal largest
            if n_rows > limit:
                raise RuntimeError(OUT_OF_MEMORY)
            largest = max(largest, n_rows)

        with monkeypatch.context() as patch:
            allow(patch, check)
            found = stage(model, task)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
        assert 0 < largest <= limit


@pytest.mark.parametrize("stage", STAGES)
def test_memory_that_runs_out_once_at_any_call_changes_nothing(
    model: Model,
    task: PromptPairs,
    enough: dict[Stage, tuple[Tensor, int, int]],
    monkeypatch: pytest.MonkeyPatch,
    stage: Stage,
) -> None:
    """Something else on the device took it meanwhile."""
    expected, n_calls, _ = enough[stage]
    for when in random.Random(stage.__name__).sample(range(n_calls), min(2, n_calls)):
        calls = 0

        def check(n_rows: int, when: int = when) -> None:
            nonlocal calls
            calls += 1
            if calls == when + 1 and n_rows > 1:
                raise torch.OutOfMemoryError

        with monkeypatch.context() as patch:
            allow(patch, check)
            found = stage(model, task)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_a_row_that_does_not_fit_is_said_to(
    model: Model, task: PromptPairs, monkeypatch: pytest.MonkeyPatch, stage: Stage
) -> None:
    def check(n_rows: int) -> None:
        raise RuntimeError(OUT_OF_MEMORY)

    allow(monkeypatch, check)
    with pytest.raises(WiremapError, match="a single row does not fit into memory: .* use shorter"):
        stage(model, task)


def test_many_sets_of_one_pair_shrink_too(
    model: Model, task: PromptPairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pair alone is no single row where many sets of edges are run on it at once."""
    one = task.take(range(1))
    sets = [[name] for name in some_edges(model)] + [a_circuit(model)]
    (expected,) = run_edge_sets(model, one, sets)
    together = patch_together(model, one, sets)
    allowed: list[int] = []

    def check(n_rows: int) -> None:
        if n_rows > 3:
            raise torch.OutOfMemoryError
        allowed.append(n_rows)

    allow(monkeypatch, check)
    (found,) = run_edge_sets(model, one, sets)
    torch.testing.assert_close(found.circuit, expected.circuit, rtol=1e-4, atol=1e-5)
    found = patch_together(model, one, sets)
    torch.testing.assert_close(found, together, rtol=1e-4, atol=1e-4)
    assert max(allowed) > 1


def test_the_size_that_fits_is_remembered(
    model: Model, task: PromptPairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of further batches none is tried that is as large as what failed."""
    sets = [a_circuit(model)] * 40
    refused: list[int] = []

    def check(n_rows: int) -> None:
        if n_rows > 4:
            refused.append(n_rows)
            raise torch.OutOfMemoryError

    allow(monkeypatch, check)
    run_edge_sets(model, task, sets, batch_size=64)
    assert len(refused) <= 8


def test_the_main_job_goes_through_in_little_memory(
    model: Model, task: PromptPairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, every = task.take(range(3)), model.graph.n_edges
    expected = discover(model, task, budget=every, size=60)

    def check(n_rows: int) -> None:
        if n_rows > 16:
            raise RuntimeError(OUT_OF_MEMORY)

    allow(monkeypatch, check)
    found = discover(model, task, tmp_path / "run", budget=every, size=60)
    assert {edge.name for edge in found.edges} == {edge.name for edge in expected.edges}
    assert found.faithfulness is not None
    assert expected.faithfulness is not None
    assert found.faithfulness.circuit == pytest.approx(expected.faithfulness.circuit, rel=1e-4)
    curves = [one.evidence.curve and one.evidence.curve.cpr for one in (found, expected)]
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)


# ---- effects that are no numbers


def test_an_effect_that_is_not_finite_names_edge_and_pair_and_is_not_written(
    model: Model, task: PromptPairs, tmp_path: Path
) -> None:
    names, file = some_edges(model), tmp_path / "effects.jsonl"

    def broken(logits: Tensor, targets: Any) -> Tensor:
        values = logits[:, 0].clone()
        values[4::N_PAIRS] = torch.nan
        return values

    with pytest.raises(WiremapError, match=r"the effect of \S+->\S+ on pair 5 is not finite"):
        verify(model, task, names, metric=broken, effects_file=file)
    assert not file.exists()
    with pytest.raises(WiremapError, match="the metric is not finite in row 5"):
        run_edge_sets(model, task, [names], metrics=[broken])


def test_an_edge_that_does_not_exist_is_named_with_the_nearest(model: Model) -> None:
    pairs = tiny.pairs(2)
    with pytest.raises(InputError, match=r"a9\.h1.*a0\.h1"):
        patch_edges(model, pairs, ["a9.h1->logits"])
    with pytest.raises(InputError, match="attention and MLP of a parallel block read the same"):
        patch_edges(tiny.model("neox"), pairs, ["a1.h1->m1"])
