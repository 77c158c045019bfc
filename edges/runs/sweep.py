"""The one loop over pairs: where batches meet devices, memory, progress and interruption.

An engine says what is to be done with a batch, what one pair costs and what becomes of results
(``Work``); how many pairs are run at once, and where, is decided here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float32
from torch import Tensor

from ..errors import InputError, WiremapError, name_rows
from ..model.checks import check_parts
from ..model.transformer import Model
from ..question.prompts import PairBatch, PromptPairs
from .memory import BatchSize, available_bytes

Report = Callable[[str, int, int], Any]
"""Called with (stage, steps done since the last call, steps of the stage in all)."""


def silent(stage: str, done: int, total: int) -> None:
    """A report to nobody."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a computation may take, and whom it tells how far it is. Changes no result.

    Args:
        batch_size: pairs, or rows (edited runs x pairs), at once; None takes what fits into memory.
        memory_limit: bytes to work with; None takes 1 GiB on a CPU, 40 % of what is free on a GPU.
        report: told of progress.
    """

    batch_size: int | None = None
    memory_limit: int | None = None
    report: Report = silent

    def available(self, model: Model) -> int:
        """Bytes that one batch may take."""
        return available_bytes(model.device, self.memory_limit)

    def quiet(self) -> Resources:
        """The same without a report: for a part of what is reported as a whole."""
        return replace(self, report=silent)

    def within(self, stage: str, total: int | None = None) -> Resources:
        """The same for a part of ``stage``, of so many steps; None takes the part's own number."""

        def report(_: str, done: int, of_part: int) -> None:
            self.report(stage, done, of_part if total is None else total)

        return replace(self, report=report)


Cost = Callable[[Model, int], int]
"""An estimate of the bytes that a model needs for one row of so many tokens."""


Result = TypeVar("Result")


@dataclass(kw_only=True)
class Turn:
    """One batch's turn: what it may take, and how far it is.

    Attributes:
        rows: how many rows may be run at once. It outlives the batch: what turns out to be too much
            stays so for the batches that follow.
        reached: is told the number of steps of the batch that are done.
    """

    rows: BatchSize
    reached: Callable[[int], None]
    n_done: int = 0

    def done(self, steps: int) -> None:
        """So many more steps of this batch are done."""
        self.n_done += steps
        self.reached(self.n_done)


@dataclass(frozen=True, kw_only=True)
class Work(Generic[Result]):
    """What to do with every batch of pairs.

    Attributes:
        stage: what progress reports call it.
        function: gives the result of a batch; is called again for the halves of a batch that memory
            did not hold. May report steps itself, else a batch's count when it is finished.
        collect: takes the result of each batch, once.
        cost: of one pair, in bytes.
        row_cost: of one row, where a batch is run more than once (``Turn.rows``); None: as ``cost``.
        counts_rows: a batch size given by the caller counts rows, rather than pairs.
        begin: is called with all pairs of a length before their batches.
        gradients: for autograd, which is off otherwise.
        steps_of_pair: what progress counts.
    """

    stage: str
    function: Callable[[PairBatch, Turn], Result]
    collect: Callable[[PairBatch, Result], Any]
    cost: Cost
    row_cost: Cost | None = None
    counts_rows: bool = False
    begin: Callable[[PairBatch], Any] | None = None
    gradients: bool = False
    steps_of_pair: int = 1


def sweep(model: Model, pairs: PromptPairs, work: Work[Any], resources: Resources) -> None:
    """Does ``work`` on all pairs: lengths apart, shortest first, each in the order of its pairs.

    The model is borrowed from the first batch to the last, and is as it was when this returns or
    raises. Batches that run out of memory are halved.

    Raises:
        InputError: pairs the model cannot run.
        WiremapError: memory does not hold a single pair. Also what ``work`` raises.
    """
    check_pairs(model, pairs)
    progress = Progress(work.stage, len(pairs) * work.steps_of_pair, resources.report)
    with nullcontext() if work.gradients else torch.no_grad(), model.borrowed():
        for bucket in pairs.batches():
            if work.begin is not None:
                work.begin(bucket)
            size, rows = _sizes(model, bucket, work, resources)
            estimate = size.rows

            def function(
                batch: PairBatch,
                size: BatchSize = size,
                rows: BatchSize = rows,
                estimate: int = estimate,
            ) -> Any:
                if size.rows < estimate:  # what did not fit may have been rows as well as pairs
                    rows.rows = min(rows.rows, size.rows)
                return work.function(batch, Turn(rows=rows, reached=progress.reached))

            for batch, result in size.map(bucket, function):
                work.collect(batch, result)
                progress.finish(len(batch) * work.steps_of_pair)


class Progress:
    """Steps done, told once each, whatever memory makes be done again."""

    def __init__(self, stage: str, total: int, report: Report) -> None:
        self._stage, self._total, self._report = stage, total, report
        self._finished = 0  # steps of batches that are done
        self._told = 0

    def reached(self, steps: int) -> None:
        """So many steps of the present batch are done, or were when it was tried before."""
        new = self._finished + steps - self._told
        if new > 0:
            self._told += new
            self._report(self._stage, new, self._total)

    def finish(self, steps: int) -> None:
        """A batch of so many steps is done."""
        self.reached(steps)
        self._finished += steps


def _sizes(
    model: Model, bucket: PairBatch, work: Work[Any], resources: Resources
) -> tuple[BatchSize, BatchSize]:
    """How many pairs, and how many rows, to run at once."""
    n_pos, available = bucket.clean.shape[1], resources.available(model)
    n_pairs = available // max(work.cost(model, n_pos), 1)
    n_rows = n_pairs
    if work.row_cost is not None:
        n_rows = available // max(work.row_cost(model, n_pos), 1)
    if resources.batch_size is not None:
        if work.counts_rows:
            # Runs of a pair are kept, however few rows there are: memory limits pairs all the same.
            n_rows, n_pairs = resources.batch_size, min(resources.batch_size, n_pairs)
        else:
            n_pairs = resources.batch_size
    return BatchSize(n_pairs), BatchSize(n_rows)


def table(model: Model, *shape: int) -> Tensor:
    """Zeros to collect results in, where the model is."""
    return torch.zeros(*shape, device=model.device)


def check_pairs(model: Model, pairs: PromptPairs) -> None:
    """Refuses pairs this model cannot run, and a bridge whose parts do not make the whole.

    Raises:
        InputError: prompts longer than the context, tokens outside the vocabulary.
        WiremapError: see ``check_parts``.
    """
    too_long = (pairs.lengths > model.n_context).nonzero().flatten().tolist()
    if too_long:
        raise InputError(
            f"expected prompts of at most {model.n_context} tokens, the context of model "
            f"{model.name}; longer " + name_rows(too_long, "shorten them")
        )
    # What tables are filled up with is negative, and passes.
    tokens = torch.cat([pairs.clean, pairs.corrupted, pairs.answers, pairs.wrong], dim=1)
    strange = (tokens >= model.d_vocab).any(1).nonzero().flatten().tolist()
    if strange:
        raise InputError(
            f"expected tokens below {model.d_vocab}, the vocabulary of model {model.name}; "
            "others " + name_rows(strange, _next_step(model, int(tokens.max())))
        )
    # Shortest first, so the last: longer prompts show windows and positions that shorter ones do not.
    longest = list(pairs.batches())[-1]
    check_parts(model, longest.clean[:1].to(model.device))


def _next_step(model: Model, largest: int) -> str:
    """What to do about a token that the embedding lacks."""
    tokenizer = model.tokenizer
    if tokenizer is None or not model.d_vocab <= largest < tokenizer.n_tokens:
        return "tokenize with this model's tokenizer"
    return (
        f"its tokenizer has {tokenizer.n_tokens} tokens, such as {tokenizer.decode(largest)!r:.60}: the "
        "embedding was not resized when tokens were added. Take the model whose embedding was "
        "(resize_token_embeddings), or leave these tokens out"
    )


def check_finite(values: Float32[Tensor, "run pair"]) -> None:
    """Raises WiremapError if a metric is not finite; the pairs are named."""
    strange = (~torch.isfinite(values)).any(0).nonzero().flatten().tolist()
    if strange:
        raise WiremapError(
            "the metric is not finite "
            + name_rows(
                strange, "try float32 (--dtype float32, dtype=torch.float32) or another metric"
            )
        )
