"""The engine of all patching: resumed, batched runs of many edits."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from ..errors import WiremapError
from ..model.activations import Activations, Past
from ..model.transformer import Model
from ..question.metrics import Targets
from ..question.prompts import PairBatch
from ..question.question import Question
from ..runs.sweep import Resources, Turn, Work, sweep, table
from ..runs.trace import Run, answer_logits, run
from .sources import values_of


@dataclass(frozen=True, eq=False)
class Effects:
    """Exact effects of nodes or edges on each pair, in units of the metric."""

    names: tuple[str, ...]
    effects: Float32[Tensor, "item pair"]

    def mean(self) -> Float32[Tensor, "item"]:
        """Mean effect over pairs."""
        return self.effects.mean(1)

    def standard_error(self) -> Float32[Tensor, "item"]:
        """Standard error of the mean over pairs (n - 1 in the variance); nan for a single pair."""
        n_pairs = self.effects.shape[1]
        if n_pairs == 1:
            return torch.full_like(self.effects[:, 0], torch.nan)
        return self.effects.std(1) / n_pairs**0.5


@dataclass(frozen=True)
class Runs:
    """The run a batch's edits are made in, and where its new values come from.

    Attributes:
        values: the metric of each pair in the edited run.
        sign: makes effects clean minus other: 1 for noising, -1 for denoising.
        start: the first position at which both runs can differ.
    """

    base: Run
    other: Activations
    values: Float[Tensor, "pair"]
    targets: Targets
    sign: int
    start: int

    @classmethod
    def of(cls, batch: PairBatch, clean: Run, other: Run | Activations, question: Question) -> Runs:
        """Noising edits the clean run, denoising the other one."""
        targets = Targets.of(batch, clean.logits)
        base, source = (clean, other) if question.noising else (other, clean)
        if isinstance(base, Activations):
            raise TypeError("values that are no run cannot be edited")
        # Constants differ from a run everywhere, even where both prompts have the same tokens.
        start = 0 if isinstance(source, Activations) else first_difference(batch)
        values = source if isinstance(source, Activations) else source.kept
        return cls(
            base, values, question.measure(base.logits, targets), targets, question.sign, start
        )

    @property
    def past(self) -> Past | None:
        """The keys and values that no edit changes; None if there are none."""
        if not self.start:
            return None
        k, v = (
            [of_layer[:, : self.start] for of_layer in kept]
            for kept in (self.base.kept.k, self.base.kept.v)
        )
        return Past(k, v)

    def resid_before(self, layer: int) -> Float[Tensor, "pair pos d_model"]:
        """The residual stream before block ``layer`` in the edited run, where it may change."""
        resid_pre = self.base.kept.resid_pre
        resid = resid_pre[layer] if layer < len(resid_pre) else self.base.final
        return resid[:, self.start :]


def first_difference(batch: PairBatch) -> int:
    """The first position at which clean and corrupted prompt of a pair differ, at most the last."""
    differs = (batch.clean != batch.corrupted).any(0).tolist()
    return differs.index(True) if True in differs else len(differs) - 1


@dataclass(frozen=True, kw_only=True)
class Items:
    """What is patched: items that are edited by themselves, each in a run of its own.

    Attributes:
        names: of the items.
        layers: of each item, where its edited run is resumed.
        base, other: names of the activations needed of the run edited, and of what values are
            taken from.
        final: the last residual stream of the edited runs of some items of a layer, item by item.
    """

    names: Sequence[str]
    layers: Sequence[int]
    base: Collection[str]
    other: Collection[str]
    final: Callable[[Runs, int, Sequence[int]], Float[Tensor, "row pos d_model"]]


def patch_items(model: Model, question: Question, items: Items, resources: Resources) -> Effects:
    """Effects of all items, those of a layer sharing batches; of several draws their mean."""
    pairs, n_draws = question.pairs, question.patch_with.n_draws
    of_clean, of_other = items.base, items.other
    if not question.noising:  # it is the other run then that is edited
        of_clean, of_other = of_other, of_clean
    source = values_of(model, question, of_other)
    effects = table(model, len(items.names), len(pairs))
    by_layer: dict[int, list[int]] = {}
    for item, layer in enumerate(items.layers):
        by_layer.setdefault(layer, []).append(item)

    def patch(batch: PairBatch, turn: Turn) -> None:
        effects[:, batch.rows] = 0  # a batch that ran out of memory may have left something
        clean = run(model, batch.clean, of_clean)
        for other in source.draws(batch):
            runs = Runs.of(batch, clean, other, question)
            for layer, of_layer in sorted(by_layer.items()):

                def differences(
                    part: Sequence[int], layer: int = layer, runs: Runs = runs
                ) -> Float[Tensor, "item pair"]:
                    logits = answer_logits(model, items.final(runs, layer, part))
                    values = question.measure(logits, runs.targets.repeat(len(part)))
                    # [(item pair)] -> [item pair]
                    return runs.sign * (runs.values - values.view(len(part), -1))

                for part, changes in turn.rows.map_times(of_layer, len(batch), differences):
                    # Places [item 1] and [pair] together are those of [item pair].
                    effects[torch.tensor(part)[:, None], batch.rows] += changes.float() / n_draws
                    turn.done(changes.numel())

    work = Work(
        stage="patch",
        function=patch,
        collect=lambda batch, result: None,  # effects are where they belong
        cost=_cost_of_both_runs,
        row_cost=_cost_of_row,
        counts_rows=True,
        steps_of_pair=len(items.names) * n_draws,
    )
    sweep(model, pairs, work, resources)
    strange = (~torch.isfinite(effects)).nonzero().tolist()
    if strange:
        item, pair = strange[0]
        raise WiremapError(
            f"the effect of {items.names[item]} on pair {pair + 1} is not finite ({len(strange)} "
            "such); try float32 (--dtype float32, dtype=torch.float32)"
        )
    return Effects(tuple(items.names), effects)


def _cost_of_row(model: Model, n_pos: int) -> int:
    """Bytes that one row of an edited run needs: what a block makes of it."""
    numbers = 24 * n_pos * model.d_model + 4 * model.graph.n_heads * n_pos**2 + 2 * model.d_vocab
    return model.dtype.itemsize * numbers


def _cost_of_both_runs(model: Model, n_pos: int) -> int:
    """Bytes that both runs of one pair leave behind, and the run itself."""
    kept = 10 * model.graph.n_layers * n_pos * model.d_model
    return _cost_of_row(model, n_pos) + model.dtype.itemsize * kept
