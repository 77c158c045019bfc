"""A model reduced to a set of edges: those carry their values, all others the corrupted run's.

A reader's input is the corrupted run's residual stream plus, for each kept edge into it, what its
writer writes now less what it wrote in the corrupted run. With all edges kept this is the clean
run, with none the corrupted run. In place of the corrupted run, any other may be the base.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from .errors import WiremapError
from .graph import SLOTS, ModelGraph
from .memory import BatchSize
from .metrics import Metric, Targets, resolve_metric
from .model import Model
from .prompts import PairBatch, PromptPairs, name_rows
from .trace import Run, answer_logits, run

BASE = ("resid_pre", "mlp_in", "q", "k", "v", "written", "mlp_out")
"""What the base run of ``masked_logits`` must keep."""


@dataclass(frozen=True)
class Additions:
    """What some readers read besides: ``of(reader)``, for those marked in ``readers``."""

    readers: Bool[Tensor, "reader"]
    of: Callable[[int], Float[Tensor, "pair pos d_model"]]


@dataclass(frozen=True, eq=False)
class CircuitValues:
    """The metric on each pair: with all edges (clean run), with none (corrupted run), with these."""

    full: Float32[Tensor, "pair"]
    empty: Float32[Tensor, "pair"]
    circuit: Float32[Tensor, "pair"]


def run_edges(
    model: Model,
    pairs: PromptPairs,
    edges: Collection[str],
    metric: str | Metric = "logit_diff",
    batch_size: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> CircuitValues:
    """The metric of the model reduced to ``edges``, everything outside patched, on each pair.

    Args:
        edges: names such as ``a0.h1->a2.h3<q>``.
        metric: a name in ``METRICS`` or a function ``(logits, targets) -> [row]``.
        batch_size: pairs at once; None takes what fits into memory.
        progress: called with the number of pairs finished since the last call.

    Raises:
        InputError: an edge the model does not have, unknown options, pairs it cannot run.
        WiremapError: a metric that is not finite; the pairs are named.
    """
    chosen_metric = resolve_metric(metric, pairs.wrong.shape[1] > 0)
    kept = edge_mask(model.graph, edges)
    model.check_pairs(pairs)
    table = torch.zeros(3, len(pairs), device=model.device)

    def values(batch: PairBatch) -> Tensor:
        clean = run(model, batch.clean, ())
        corrupted = run(model, batch.corrupted, BASE)
        targets = Targets.of(batch, clean.logits)
        logits = masked_logits(model, kept, clean.input, corrupted)
        return torch.stack(
            [chosen_metric(some, targets) for some in (clean.logits, corrupted.logits, logits)]
        )

    with torch.no_grad(), model.borrowed():
        for bucket in pairs.batches():
            size = BatchSize(batch_size) if batch_size else pairs_at_once(model, bucket)
            for batch, found in size.map(bucket, values):
                table[:, batch.rows] = found.float()
                if progress is not None:
                    progress(len(batch))
    check_finite(table)
    return CircuitValues(*table)


def edge_mask(graph: ModelGraph, edges: Iterable[str]) -> Bool[Tensor, "reader writer"]:
    """Which edges of the model are named. Raises InputError for a name it does not have."""
    mask = torch.zeros(len(graph.readers), len(graph.writers), dtype=torch.bool)
    for name in edges:
        edge = graph.edge(name)
        mask[edge.reader, edge.writer] = True
    return mask


def check_finite(values: Float32[Tensor, "run pair"]) -> None:
    """Raises WiremapError if a metric is not finite; the pairs are named."""
    strange = (~torch.isfinite(values)).any(0).nonzero().flatten().tolist()
    if strange:
        raise WiremapError(
            "the metric is not finite "
            + name_rows(strange, "try float32 (--dtype float32) or another metric")
        )


def pairs_at_once(model: Model, bucket: PairBatch) -> BatchSize:
    """How many pairs to run at once: an estimate of all writes, and a layer's inputs, of one pair."""
    graph, n_pos = model.graph, bucket.clean.shape[1]
    streams = len(graph.writers) + 4 * graph.n_heads + 12 * graph.n_layers
    numbers = streams * n_pos * model.d_model + 4 * graph.n_heads * n_pos**2 + 3 * model.d_vocab
    return BatchSize.fitting(4 * numbers, model.device)


def masked_logits(
    model: Model,
    kept: Bool[Tensor, "reader writer"],
    resid: Float[Tensor, "pair pos d_model"],
    base: Run,
    additions: Additions | None = None,
) -> Float[Tensor, "pair d_vocab"]:
    """Logits of the reduced model: kept edges carry what is written now, others what base's do.

    ``changes`` are writes now less writes of the base run.

    Args:
        resid: what the input writes now.
        base: a run that keeps ``BASE``.
        additions: what readers read besides.
    """
    graph, of_base = model.graph, base.kept
    changes = base.input.new_zeros(len(graph.writers), *base.input.shape)
    changes[0] = resid - base.input
    mask = kept.to(changes)
    added = torch.zeros(len(graph.readers), dtype=torch.bool)
    if additions is not None:
        added = additions.readers
    reads_change = kept.any(1) | added

    def change_of_input(
        readers: Sequence[int], n_writers: int
    ) -> Float[Tensor, "reader pair pos d_model"]:
        total = mask[torch.tensor(readers), :n_writers] @ changes[:n_writers].flatten(1)
        total = total.view(len(readers), *changes.shape[1:])
        if additions is not None:
            for place, reader in enumerate(readers):
                if bool(added[reader]):
                    total[place] += additions.of(reader)
        return total

    for layer in range(graph.n_layers):
        heads, mlp = graph.head_writers(layer), graph.mlp_writer(layer)
        attention = graph.attention_readers(layer)
        read = {slot: getattr(of_base, slot)[layer].clone() for slot in SLOTS}
        for slot in SLOTS:
            of_slot = [
                index
                for index in range(attention.start, attention.stop)
                if graph.readers[index].kind == slot and bool(reads_change[index])
            ]
            if of_slot:
                change = change_of_input(of_slot, heads.start)
                normed = model.attention_norm(layer, of_base.resid_pre[layer] + change)
                chosen = [graph.readers[index].head for index in of_slot]
                read[slot][:, :, chosen] = model.project_heads(layer, slot, chosen, normed).permute(
                    1, 2, 0, 3
                )
        if bool(reads_change[attention].any()):
            z = model.attend(layer, read["q"], read["k"], read["v"])
            change = model.written(layer, z) - of_base.written[layer]
            changes[heads] = torch.einsum("pthe,hem->hptm", change, model.output_weight(layer))
        reader = graph.mlp_reader(layer)
        if bool(reads_change[reader]):
            (change,) = change_of_input([reader], graph.readers[reader].n_writers)
            mlp_in = of_base.mlp_in[layer] + change
            changes[mlp] = model.mlp(layer, model.mlp_norm(layer, mlp_in)) - of_base.mlp_out[layer]
    (change,) = change_of_input([len(graph.readers) - 1], len(graph.writers))
    return answer_logits(model, base.final + change)
