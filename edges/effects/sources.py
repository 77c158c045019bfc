"""How the values are made that patching puts in: a small object for each kind of source.

What the kinds are is in ``question.source``. An object is made once for a question and gives, for
each batch of pairs, a run or activations to take values from.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..model.activations import Activations
from ..model.transformer import Model
from ..question.prompts import PairBatch
from ..question.question import Question
from ..runs.sweep import Resources, Turn, Work, sweep
from ..runs.trace import Run, answer_logits, run


@runtime_checkable
class Values(Protocol):
    """The values of a source."""

    def draws(self, batch: PairBatch) -> Iterator[Run | Activations]:
        """For each draw, the run (or, where it is none, the activations) values come from."""
        ...


def values_of(model: Model, question: Question, keep: Collection[str]) -> Values:
    """The values that the question patches with.

    Args:
        keep: names of the activations that are needed of them.
    """
    return VALUES[question.patch_with.kind](model, question, keep)


@dataclass(frozen=True)
class Corrupted:
    """Each pair's corrupted run."""

    model: Model
    question: Question
    keep: Collection[str]

    def draws(self, batch: PairBatch) -> Iterator[Run]:
        """One."""
        yield run(self.model, batch.corrupted, self.keep)


@dataclass(frozen=True)
class Noised:
    """The clean run with noise on what the input writes, where the prompts differ."""

    model: Model
    question: Question
    keep: Collection[str]

    def draws(self, batch: PairBatch) -> Iterator[Run]:
        """One for each seed."""
        for seed in range(self.question.patch_with.n_draws):
            yield self._noised(batch, seed)

    def _noised(self, batch: PairBatch, seed: int) -> Run:
        model, scale = self.model, self.question.patch_with.noise_scale
        resid = model.embed(batch.clean.to(model.device))
        draws: list[Tensor] = []
        for row in batch.rows.tolist():  # so that no draw depends on how pairs are batched
            generator = torch.Generator().manual_seed(1_000_003 * seed + row)
            draws.append(torch.randn(resid.shape[1:], generator=generator))
        differs = (batch.clean != batch.corrupted)[:, :, None].to(resid.device)
        noise = torch.stack(draws).to(resid) * scale * model.embedding_deviation()
        resid = resid + noise * differs
        kept = Activations()
        final = model.run(resid, kept.noting(self.keep))
        return Run(resid, kept, final, answer_logits(model, final))


@dataclass(frozen=True)
class Zeros:
    """Zeros in the shape of the batch's activations."""

    model: Model
    question: Question
    keep: Collection[str]

    def draws(self, batch: PairBatch) -> Iterator[Activations]:
        """One."""
        yield _filled(self.model, batch, self.keep, lambda name, layer, like: like.new_zeros(()))


@dataclass(frozen=True)
class Means:
    """Means over a data set: of all its tokens, or at each position."""

    model: Model
    question: Question
    keep: Collection[str]
    means: Activations = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "means", means_over(self.model, self.question, self.keep))

    def draws(self, batch: PairBatch) -> Iterator[Activations]:
        """One."""
        yield _filled(
            self.model,
            batch,
            self.keep,
            lambda name, layer, like: self.means[name][layer].to(like),
        )


VALUES: Mapping[str, Callable[[Model, Question, Collection[str]], Values]] = {
    "corrupted": Corrupted,
    "mean": Means,
    "mean-by-position": Means,
    "zero": Zeros,
    "noise": Noised,
}
"""How the values of every kind of source are made."""


def _filled(
    model: Model,
    batch: PairBatch,
    keep: Collection[str],
    value: Callable[[str, int, Tensor], Tensor],
) -> Activations:
    """Activations of the batch's shape that are the same for every pair."""
    like = run(model, batch.clean[:1], keep).kept  # one pair has all the shapes
    constants = Activations()
    for name in keep:
        for layer, tensor in enumerate(like[name]):
            # Expanded, a constant takes no more memory than for one pair.
            constant = value(name, layer, tensor).expand(len(batch), *tensor.shape[1:])
            constants.add(name, constant)
    return constants


def means_over(model: Model, question: Question, keep: Collection[str]) -> Activations:
    """Means of activations over a data set's corrupted prompts. ``[1 pos ...]``, or pos is 1."""
    source = question.patch_with
    by_position = source.nature.by_position
    over = (0,) if by_position else (0, 1)
    sums: dict[tuple[str, int], Tensor] = {}
    count = 0

    def totals(batch: PairBatch, turn: Turn) -> dict[tuple[str, int], Tensor]:
        kept = run(model, batch.corrupted, keep).kept
        # In double precision: there may be many tokens, and their values may nearly cancel.
        return {
            (name, layer): tensor.cpu().double().sum(over, keepdim=True)
            for name in keep
            for layer, tensor in enumerate(kept[name])
        }

    def add(batch: PairBatch, of_batch: dict[tuple[str, int], Tensor]) -> None:
        nonlocal count
        for key, total in of_batch.items():
            sums[key] = sums.get(key, 0) + total
        count += len(batch) * (1 if by_position else batch.clean.shape[1])

    work = Work(stage="average values", function=totals, collect=add, cost=_cost_of_keeping)
    sweep(model, source.data(question.pairs), work, Resources())
    means = Activations()
    for (name, _), total in sums.items():  # layers of a name come in order
        means.add(name, (total / count).float())
    return means


def _cost_of_keeping(model: Model, n_pos: int) -> int:
    """Bytes that all activations of a pair take."""
    numbers = model.graph.n_layers * n_pos * (20 * model.d_model + 4 * model.d_mlp)
    return model.dtype.itemsize * numbers
