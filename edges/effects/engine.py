"""The engine of all patching: resumed, batched runs of many edits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from ..errors import WiremapError
from ..model.activations import Activations, Past
from ..model.transformer import Model
from ..question.metrics import Metric, Targets, resolve_metric
from ..question.prompts import PairBatch, PromptPairs
from ..question.question import check_direction
from ..runs.memory import BatchSize
from ..runs.trace import Run, answer_logits


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
    def of(
        cls, batch: PairBatch, clean: Run, other: Run | Activations, metric: Metric, direction: str
    ) -> Runs:
        """Noising edits the clean run, denoising the other one."""
        targets = Targets.of(batch, clean.logits)
        noising = direction == "noising"
        base, source = (clean, other) if noising else (other, clean)
        if isinstance(base, Activations):
            raise TypeError("values that are no run cannot be edited")
        start = 0 if isinstance(source, Activations) else first_difference(batch)
        values = source if isinstance(source, Activations) else source.kept
        return cls(base, values, metric(base.logits, targets), targets, 1 if noising else -1, start)

    @property
    def past(self) -> Past | None:
        """The keys and values that no edit changes; None if there are none."""
        if not self.start:
            return None
        k, v = (
            [one[:, : self.start] for one in kept] for kept in (self.base.kept.k, self.base.kept.v)
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


def patch_items(
    model: Model,
    pairs: PromptPairs,
    names: Sequence[str],
    layers: Sequence[int],
    metric: str | Metric,
    direction: str,
    batch_size: int | None,
    progress: Callable[[int], Any] | None,
    both_runs: Callable[[PairBatch], Iterable[tuple[Run, Run | Activations]]],
    final: Callable[[Runs, int, Sequence[int]], Float[Tensor, "row pos d_model"]],
    n_draws: int = 1,
) -> Effects:
    """Effects of all items, those of a layer sharing batches.

    Args:
        layers: of each item, where its edited run is resumed.
        both_runs: of a batch, for each draw, the clean run, and the run or values of the other.
        final: the last residual stream of the edited runs of some items of a layer, item by item.
        n_draws: how many draws ``both_runs`` gives; effects are their mean.
    """
    chosen_metric = resolve_metric(metric, pairs.wrong.shape[1] > 0)
    check_direction(direction)
    model.check_pairs(pairs)
    table = torch.zeros(len(names), len(pairs), device=model.device)
    by_layer: dict[int, list[int]] = {}
    for item, layer in enumerate(layers):
        by_layer.setdefault(layer, []).append(item)

    def patch(batch: PairBatch) -> None:
        items_at_once = BatchSize(n_rows // len(batch))
        table[:, batch.rows] = 0  # a batch that ran out of memory may have left something
        for clean, other in both_runs(batch):
            runs = Runs.of(batch, clean, other, chosen_metric, direction)
            for layer, items in sorted(by_layer.items()):

                def effects_of(
                    part: Sequence[int], layer: int = layer, runs: Runs = runs
                ) -> Tensor:
                    logits = answer_logits(model, final(runs, layer, part))
                    values = chosen_metric(logits, runs.targets.repeat(len(part)))
                    return runs.sign * (runs.values - values.view(len(part), -1))

                for part, effects in items_at_once.map(items, effects_of):
                    table[torch.tensor(part)[:, None], batch.rows] += effects.float() / n_draws
                    if progress is not None:
                        progress(effects.numel())

    with torch.no_grad(), model.borrowed():
        for bucket in pairs.batches():
            n_rows, pairs_at_once = _sizes(model, bucket)
            if batch_size is not None:
                n_rows = batch_size
                pairs_at_once = BatchSize(min(batch_size, pairs_at_once.rows))
            for _ in pairs_at_once.map(bucket, patch):
                pass
    strange = (~torch.isfinite(table)).nonzero().tolist()
    if strange:
        item, pair = strange[0]
        raise WiremapError(
            f"the effect of {names[item]} on pair {pair + 1} is not finite ({len(strange)} such); "
            "try float32 (--dtype float32, dtype=torch.float32)"
        )
    return Effects(tuple(names), table)


def _sizes(model: Model, bucket: PairBatch) -> tuple[int, BatchSize]:
    """How many edited rows to run at once, and of how many pairs to keep both runs.

    Estimates: of what a block needs for one row, and of what both runs leave behind of one pair.
    """
    n_pos = bucket.clean.shape[1]
    stream = n_pos * model.d_model
    of_row = 24 * stream + 4 * model.graph.n_heads * n_pos**2 + 2 * model.d_vocab
    of_pair = of_row + 10 * model.graph.n_layers * stream
    rows = BatchSize.fitting(4 * of_row, model.device).rows
    return rows, BatchSize.fitting(4 * of_pair, model.device)
