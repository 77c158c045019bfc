"""The loop over pairs: order, memory, progress, interruption."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from tokens_for_tests import letters_core

from wiremap.edges import InputError, Model, PromptPairs, Tokenizer, WiremapError
from wiremap.edges.question.prompts import PADDING, PairBatch
from wiremap.edges.runs.sweep import Resources, Turn, Work, sweep, table


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model("gpt2")


def mixed_pairs() -> PromptPairs:
    """Seven pairs of lengths 7, 4, 7, 4, 7, 4, 7."""
    pairs = tiny.pairs(7)
    clean, corrupted = pairs.clean.clone(), pairs.corrupted.clone()
    for tokens in (clean, corrupted):
        tokens[1::2, 4:] = PADDING
    return PromptPairs(clean, corrupted, pairs.answers, pairs.wrong)


def bytes_of_tokens(model: Model, n_pos: int) -> int:
    return n_pos


def work(function: Callable[[PairBatch, Turn], Any], **options: Any) -> Work[Any]:
    given: dict[str, Any] = {
        "stage": "work",
        "cost": bytes_of_tokens,
        "collect": lambda batch, result: None,
    }
    return Work(function=function, **{**given, **options})


def too_large() -> RuntimeError:
    return RuntimeError("[enforce fail at alloc_cpu.cpp] can't allocate memory")


def test_lengths_are_run_apart_and_pairs_in_order(model: Model) -> None:
    seen: list[tuple[int, list[int]]] = []
    pairs = mixed_pairs()
    rows = table(model, len(pairs))

    def collect(batch: PairBatch, total: torch.Tensor) -> None:
        seen.append((batch.clean.shape[1], batch.rows.tolist()))
        rows[batch.rows] = total

    sweep(
        model,
        pairs,
        work(lambda batch, turn: batch.clean.sum(1).float(), collect=collect),
        Resources(batch_size=2),
    )
    assert seen == [(4, [1, 3]), (4, [5]), (7, [0, 2]), (7, [4, 6])]
    assert rows.tolist() == pairs.clean.clamp(min=0).sum(1).tolist()


def test_batches_are_as_large_as_memory_allows(model: Model) -> None:
    sizes: list[tuple[int, int, int]] = []

    def function(batch: PairBatch, turn: Turn) -> None:
        sizes.append((batch.clean.shape[1], len(batch), turn.rows.rows))

    sweep(model, mixed_pairs(), work(function), Resources(memory_limit=8))
    assert sizes == [(4, 2, 2), (4, 1, 2), *[(7, 1, 1)] * 4]
    sizes.clear()
    cheap_rows = work(function, row_cost=lambda model, n_pos: 1)
    sweep(model, mixed_pairs(), cheap_rows, Resources(memory_limit=8, batch_size=3))
    assert sizes == [(4, 3, 8), (7, 3, 8), (7, 1, 8)]
    sizes.clear()
    rows_counted = work(function, row_cost=lambda model, n_pos: 1, counts_rows=True)
    sweep(model, mixed_pairs(), rows_counted, Resources(memory_limit=8, batch_size=3))
    assert sizes == [(4, 2, 3), (4, 1, 3), *[(7, 1, 3)] * 4]


def test_a_batch_that_memory_does_not_hold_is_halved(model: Model) -> None:
    tried: list[tuple[int, int]] = []
    collected: list[int] = []

    def function(batch: PairBatch, turn: Turn) -> None:
        tried.append((len(batch), turn.rows.rows))
        if len(batch) > 2:
            raise too_large()

    sweep(
        model,
        tiny.pairs(7),
        work(function, collect=lambda batch, result: collected.extend(batch.rows.tolist())),
        Resources(memory_limit=700),
    )
    # Rows, too, are no more than what is tried next.
    assert tried == [(7, 100), (4, 4), (2, 2), (2, 2), (2, 2), (1, 2)]
    assert collected == list(range(7))


def test_a_pair_that_memory_does_not_hold_is_an_error_of_ours(model: Model) -> None:
    def function(batch: PairBatch, turn: Turn) -> None:
        raise too_large()

    with pytest.raises(WiremapError, match="a single row does not fit into memory"):
        sweep(model, tiny.pairs(), work(function), Resources())


@pytest.mark.parametrize("reports", [True, False], ids=["step by step", "batch by batch"])
@pytest.mark.parametrize("limit", [100, 3, 1])
def test_progress_sums_to_the_total_and_is_never_more(
    model: Model, limit: int, reports: bool
) -> None:
    """Also where steps were reported before memory ran out, and are done once more."""
    told: list[tuple[str, int, int]] = []
    pairs = mixed_pairs()

    def function(batch: PairBatch, turn: Turn) -> None:
        for step in range(5):
            if step == 3 and len(batch) > limit:
                raise too_large()
            if reports:
                turn.done(len(batch))

    sweep(
        model,
        pairs,
        work(function, steps_of_pair=5),
        Resources(report=lambda *report: told.append(report)),
    )
    assert {(stage, total) for stage, _, total in told} == {("work", 35)}
    assert all(done > 0 for _, done, _ in told)
    assert sum(done for _, done, _ in told) == 35


def state(model: Model) -> tuple[Any, ...]:
    bridge = model.bridge
    return (
        [module.training for module in bridge.modules()],
        [weight.requires_grad for weight in bridge.parameters()],
        [hook.has_hooks() for hook in bridge.hook_dict.values()],
        torch.is_grad_enabled(),
    )


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), StopIteration()])
@pytest.mark.parametrize("where", ["function", "collect", "report", "begin"])
def test_an_error_gives_the_model_back(model: Model, error: BaseException, where: str) -> None:
    def fail(*_: Any) -> None:
        raise error

    def nothing(*_: Any) -> None: ...

    hooks: dict[str, Any] = dict.fromkeys(("function", "collect", "report", "begin"), nothing)
    hooks[where] = fail
    model.bridge.train()
    for weight in model.bridge.parameters():
        weight.requires_grad_(True)
    before = state(model)
    report = hooks.pop("report")
    kept: list[BaseException] = []  # with its traceback, and so with every frame of it
    try:
        sweep(model, tiny.pairs(), work(**hooks), Resources(report=report))
    except (type(error), RuntimeError) as raised:
        kept.append(raised)
    assert kept
    assert state(model) == before


def test_the_model_is_frozen_meanwhile_and_autograd_off_unless_asked_for(model: Model) -> None:
    model.bridge.train()
    seen: list[tuple[bool, bool, bool]] = []

    def function(batch: PairBatch, turn: Turn) -> None:
        frozen = not any(weight.requires_grad for weight in model.bridge.parameters())
        seen.append((frozen, model.bridge.training, torch.is_grad_enabled()))

    sweep(model, tiny.pairs(), work(function), Resources())
    sweep(model, tiny.pairs(), work(function, gradients=True), Resources())
    assert seen == [(True, False, False), (True, False, True)]


def test_each_length_begins_once(model: Model) -> None:
    begun: list[list[int]] = []
    sweep(
        model,
        mixed_pairs(),
        work(lambda batch, turn: None, begin=lambda bucket: begun.append(bucket.rows.tolist())),
        Resources(batch_size=1),
    )
    assert begun == [[1, 3, 5], [0, 2, 4, 6]]


def test_pairs_that_the_model_cannot_run_are_refused_before_anything_is_run(model: Model) -> None:
    def function(batch: PairBatch, turn: Turn) -> None:
        pytest.fail("was run")

    with pytest.raises(InputError, match="tokens of at most 32|at most 32 tokens"):
        sweep(model, tiny.pairs(2, n_pos=40), work(function), Resources())
    tokens = torch.full((2, 4), 60)
    strange = PromptPairs(tokens, tokens, torch.tensor([1, 1]), torch.tensor([2, 2]))
    with pytest.raises(InputError, match="expected tokens below 50"):
        sweep(model, strange, work(function), Resources())


@pytest.mark.parametrize("place", ["clean", "answers"])
def test_tokens_that_were_added_without_their_embedding_are_said(place: str) -> None:
    core = letters_core()
    core.add_tokens([f"<{number}>" for number in range(60)])  # numbered from 11, of 50 in the model
    model, pairs = tiny.model("gpt2"), tiny.pairs(2)
    model.tokenizer = Tokenizer(core, bos=True)
    getattr(pairs, place)[1, 0] = 65
    with pytest.raises(
        InputError, match="71 tokens, such as '<54>': the embedding was not resized"
    ):
        sweep(model, pairs, work(lambda batch, turn: None), Resources())
    getattr(pairs, place)[1, 0] = 80  # which this tokenizer has not
    with pytest.raises(InputError, match="in row 2; tokenize with this model's tokenizer"):
        sweep(model, pairs, work(lambda batch, turn: None), Resources())


def test_a_limit_must_be_positive(model: Model) -> None:
    with pytest.raises(InputError, match="expected a memory limit above 0 bytes, got 0"):
        sweep(model, tiny.pairs(), work(lambda batch, turn: None), Resources(memory_limit=0))


def test_a_part_reports_as_part_of_its_stage() -> None:
    told: list[tuple[str, int, int]] = []
    resources = Resources(report=lambda *report: told.append(report))
    resources.within("whole", 10).report("part", 3, 4)
    resources.within("renamed").report("part", 3, 4)
    resources.quiet().report("part", 3, 4)
    assert told == [("whole", 3, 10), ("renamed", 3, 4)]
