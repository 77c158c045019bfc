"""A model reduced to a set of edges: those carry their values, all others the corrupted run's.

A reader's input is the corrupted run's residual stream plus, for each kept edge into it, what its
writer writes now less what it wrote in the corrupted run. With all edges kept this is the clean
run, with none the corrupted run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from .errors import WiremapError
from .graph import SLOTS
from .memory import BatchSize
from .metrics import Metric, Targets, resolve_metric
from .model import Model
from .prompts import PairBatch, PromptPairs, name_rows
from .trace import Run, answer_logits, run

_KEPT = ("resid_pre", "mlp_in", "q", "k", "v", "written", "mlp_out")


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
    graph = model.graph
    chosen_metric = resolve_metric(metric, pairs.wrong.shape[1] > 0)
    kept = torch.zeros(len(graph.readers), len(graph.writers), dtype=torch.bool)
    for name in edges:
        edge = graph.edge(name)
        kept[edge.reader, edge.writer] = True
    model.check_pairs(pairs)
    table = torch.zeros(3, len(pairs), device=model.device)

    def values(batch: PairBatch) -> Tensor:
        clean = run(model, batch.clean, ())
        corrupted = run(model, batch.corrupted, _KEPT)
        targets = Targets.of(batch, clean.logits)
        logits = _masked_logits(model, kept, clean, corrupted)
        return torch.stack(
            [chosen_metric(some, targets) for some in (clean.logits, corrupted.logits, logits)]
        )

    with torch.no_grad(), model.borrowed():
        for bucket in pairs.batches():
            size = BatchSize(batch_size) if batch_size else _pairs_at_once(model, bucket)
            for batch, found in size.map(bucket, values):
                table[:, batch.rows] = found.float()
                if progress is not None:
                    progress(len(batch))
    strange = (~torch.isfinite(table)).any(0).nonzero().flatten().tolist()
    if strange:
        raise WiremapError(
            "the metric is not finite "
            + name_rows(strange, "try float32 (--dtype float32) or another metric")
        )
    return CircuitValues(*table)


def _pairs_at_once(model: Model, bucket: PairBatch) -> BatchSize:
    """How many pairs to run at once: an estimate of all writes, and a layer's inputs, of one pair."""
    graph, n_pos = model.graph, bucket.clean.shape[1]
    streams = len(graph.writers) + 4 * graph.n_heads + 12 * graph.n_layers
    numbers = streams * n_pos * model.d_model + 4 * graph.n_heads * n_pos**2 + 3 * model.d_vocab
    return BatchSize.fitting(4 * numbers, model.device)


def _masked_logits(
    model: Model,
    kept: Bool[Tensor, "reader writer"],
    clean: Run,
    corrupted: Run,
) -> Float[Tensor, "pair d_vocab"]:
    """Logits of the reduced model. ``changes`` are writes now less writes of the corrupted run."""
    graph, base = model.graph, corrupted.kept
    changes = corrupted.input.new_zeros(len(graph.writers), *corrupted.input.shape)
    changes[0] = clean.input - corrupted.input
    mask = kept.to(changes)

    def change_of_input(
        readers: Tensor, n_writers: int
    ) -> Float[Tensor, "reader pair pos d_model"]:
        total = mask[readers, :n_writers] @ changes[:n_writers].flatten(1)
        return total.view(len(readers), *changes.shape[1:])

    has_inputs = kept.any(1)
    for layer in range(graph.n_layers):
        heads, mlp = graph.head_writers(layer), graph.mlp_writer(layer)
        attention = graph.attention_readers(layer)
        read = {slot: getattr(base, slot)[layer].clone() for slot in SLOTS}
        for slot in SLOTS:
            of_slot = [
                index
                for index in range(attention.start, attention.stop)
                if graph.readers[index].kind == slot and bool(has_inputs[index])
            ]
            if of_slot:
                change = change_of_input(torch.tensor(of_slot), heads.start)
                normed = model.attention_norm(layer, base.resid_pre[layer] + change)
                chosen = [graph.readers[index].head for index in of_slot]
                read[slot][:, :, chosen] = model.project_heads(layer, slot, chosen, normed).permute(
                    1, 2, 0, 3
                )
        if bool(has_inputs[attention].any()):
            z = model.attend(layer, read["q"], read["k"], read["v"])
            change = model.written(layer, z) - base.written[layer]
            changes[heads] = torch.einsum("pthe,hem->hptm", change, model.output_weight(layer))
        reader = graph.mlp_reader(layer)
        if bool(has_inputs[reader]):
            n_read = graph.readers[reader].n_writers
            (change,) = change_of_input(torch.tensor([reader]), n_read)
            mlp_in = base.mlp_in[layer] + change
            changes[mlp] = model.mlp(layer, model.mlp_norm(layer, mlp_in)) - base.mlp_out[layer]
    (change,) = change_of_input(torch.tensor([len(graph.readers) - 1]), len(graph.writers))
    return answer_logits(model, corrupted.final + change)
