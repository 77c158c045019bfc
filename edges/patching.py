"""Exact effects of edges: what the metric does when one reader sees another value of one writer.

Path patching of an edge u->v: v's input alone sees the other run's value of u; v's output changes,
and everything downstream of v is recomputed. (Wang et al., 2022, arXiv 2211.00593, freeze all other
heads; here they are recomputed. Patching whole nodes is in ``node_patching``.)

Noising edits the clean run with values of the corrupted one, denoising the other way round. In
both, effect = metric with the clean value - metric with the corrupted value, all else as in the
edited run: positive carries the behaviour, negative opposes it.

The edited run is resumed at the reader's layer from the residual stream it left there. The edges
of a layer share batches, one row for each edge and pair; of that layer the patched reader alone is
recomputed, after it whole blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from .errors import WiremapError
from .gradients import check_direction
from .graph import SLOTS, Reader, Slot
from .memory import BatchSize
from .metrics import Metric, Targets, resolve_metric
from .model import Activations, Model
from .prompts import PairBatch, PromptPairs
from .readers import reread
from .trace import Run, answer_logits, run

_KINDS: tuple[Literal["mlp"] | Slot, ...] = ("mlp", *SLOTS)
_BASE = ("resid_pre", "mlp_in", "q", "k", "v", "z", "written", "mlp_out")
_OTHER = ("input", "written", "mlp_out")


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
    """

    base: Run
    other: Activations
    values: Float[Tensor, "pair"]
    targets: Targets
    sign: int

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
        values = source if isinstance(source, Activations) else source.kept
        return cls(base, values, metric(base.logits, targets), targets, 1 if noising else -1)

    def resid_after(self, layer: int) -> Float[Tensor, "pair pos d_model"]:
        """The residual stream after block ``layer`` in the edited run."""
        resid_pre = self.base.kept.resid_pre
        return resid_pre[layer + 1] if layer + 1 < len(resid_pre) else self.base.final


def patch_edges(
    model: Model,
    pairs: PromptPairs,
    edges: Sequence[str],
    metric: str | Metric = "logit_diff",
    direction: str = "noising",
    batch_size: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Effects:
    """Exact effects of edges by path patching, on each pair.

    effect(u->v) = metric(v reads u's clean value) - metric(v reads u's corrupted value)

    Args:
        edges: names such as ``a0.h1->a2.h3<q>``.
        metric: a name in ``METRICS`` or a function ``(logits, targets) -> [row]``.
        direction: ``noising`` edits the clean run, ``denoising`` the corrupted one.
        batch_size: rows (edges x pairs) at once; None takes what fits into memory.
        progress: called with the number of rows finished since the last call.

    Raises:
        InputError: an edge the model does not have, unknown options, pairs it cannot run.
        WiremapError: an effect that is not finite; the edge and the pair are named.
    """
    readers = model.graph.readers
    found = [model.graph.edge(name) for name in edges]
    layers = [readers[edge.reader].layer for edge in found]

    def both_runs(batch: PairBatch) -> Iterator[tuple[Run, Run]]:
        noising = direction == "noising"
        clean = run(model, batch.clean, _BASE if noising else _OTHER)
        yield clean, run(model, batch.corrupted, _OTHER if noising else _BASE)

    def final(runs: Runs, layer: int, items: Sequence[int]) -> Tensor:
        change = torch.stack([_difference(model, runs, found[item].writer) for item in items])
        of_items = [readers[found[item].reader] for item in items]
        resid = _after_readers(model, runs, layer, of_items, change).flatten(0, 1)
        return model.run(resid, start=layer + 1)

    return patch_items(
        model, pairs, edges, layers, metric, direction, batch_size, progress, both_runs, final
    )


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
            "try float32 (--dtype float32)"
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


def _difference(model: Model, runs: Runs, writer: int) -> Float[Tensor, "pair pos d_model"]:
    """What a writer adds to the residual stream in the other run, less what it adds in the base."""
    node = model.graph.writers[writer]
    base, other = runs.base.kept, runs.other
    if node.kind == "input":
        return other.input[0] - runs.base.input
    if node.kind == "mlp":
        return other.mlp_out[node.layer] - base.mlp_out[node.layer]
    change = (other.written[node.layer] - base.written[node.layer])[:, :, node.head]
    return change @ model.output_weight(node.layer)[node.head]


def _after_readers(
    model: Model,
    runs: Runs,
    layer: int,
    readers: Sequence[Reader],
    change: Float[Tensor, "item pair pos d_model"],
) -> Float[Tensor, "item pair pos d_model"]:
    """The residual stream after ``layer`` when each reader alone sees its input changed."""
    if readers[0].kind == "logits":
        return runs.base.final + change
    resid = torch.empty_like(change)
    for kind in _KINDS:
        items = torch.tensor([index for index, reader in enumerate(readers) if reader.kind == kind])
        if not len(items):
            continue
        if kind == "mlp":
            mlp_in = (runs.base.kept.mlp_in[layer] + change[items]).flatten(0, 1)
            mlp_out = model.mlp(layer, model.mlp_norm(layer, mlp_in)).view_as(change[items])
            resid[items] = runs.resid_after(layer) + mlp_out - runs.base.kept.mlp_out[layer]
        else:
            heads = [readers[index].head for index in items.tolist()]
            normed = model.attention_norm(layer, runs.base.kept.resid_pre[layer] + change[items])
            z, of = reread(model, runs.base.kept, layer, kind, heads, normed)
            raw = torch.einsum("ebpnd,endm->ebpm", z, model.raw_output_weight(layer)[of])
            written = _written_change(model, runs, layer, raw)
            resid[items] = _after_attention(model, runs, layer, written)
    return resid


def _written_change(
    model: Model, runs: Runs, layer: int, raw: Float[Tensor, "item pair pos d_model"]
) -> Float[Tensor, "item pair pos d_model"]:
    """How what attention writes changes when the sum of its heads changes by ``raw``."""
    base = model.raw_attention_output(layer, runs.base.kept.z[layer])
    return model.finish_attention(layer, base + raw) - model.finish_attention(layer, base)


def _after_attention(
    model: Model, runs: Runs, layer: int, change: Float[Tensor, "item pair pos d_model"]
) -> Float[Tensor, "item pair pos d_model"]:
    """The residual stream after ``layer`` when what attention writes there is changed."""
    if model.graph.parallel:
        return runs.resid_after(layer) + change
    mlp_in = runs.base.kept.mlp_in[layer] + change
    rows = mlp_in.flatten(0, 1)
    return mlp_in + model.mlp(layer, model.mlp_norm(layer, rows)).view_as(mlp_in)
