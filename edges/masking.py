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

from .errors import InputError, WiremapError
from .gradients import check_direction
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


@dataclass(frozen=True, eq=False)
class EdgeSetValues:
    """The metric on each pair: with all edges (clean run), with none (corrupted run), with each set."""

    full: Float32[Tensor, "pair"]
    empty: Float32[Tensor, "pair"]
    circuit: Float32[Tensor, "set pair"]


EdgeSet = Collection[str] | Bool[Tensor, "reader writer"]
"""Edges by name, or as a mask over the model's readers and writers, such as of ``edge_mask``."""


def run_edges(
    model: Model,
    pairs: PromptPairs,
    edges: Collection[str],
    metric: str | Metric = "logit_diff",
    batch_size: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> CircuitValues:
    """The metric of the model reduced to ``edges``, everything outside patched, on each pair.

    Args and errors as for ``run_edge_sets``, of one set and one metric; ``progress`` is called with
    the number of pairs finished since the last call.
    """
    told = progress and (lambda done, total: progress(done))
    (found,) = run_edge_sets(model, pairs, [edges], [metric], batch_size, told)
    return CircuitValues(found.full, found.empty, found.circuit[0])


def run_edge_sets(
    model: Model,
    pairs: PromptPairs,
    sets: Sequence[EdgeSet],
    metrics: Sequence[str | Metric] = ("logit_diff",),
    batch_size: int | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> list[EdgeSetValues]:
    """Metrics of the model reduced to each of many sets of edges, everything outside patched.

    The clean and the corrupted run of a batch are made once for all sets and metrics, and of a set
    only those readers are computed anew that lie on a path of its edges from ``input`` to
    ``logits``: the others read what they read in the corrupted run, or nothing comes of them.

    Args:
        sets: edges by names such as ``a0.h1->a2.h3<q>``, or masks.
        metrics: names in ``METRICS`` or functions ``(logits, targets) -> [row]``.
        batch_size: pairs at once; None takes what fits into memory.
        progress: called with the number of runs (sets x pairs) finished since the last call, and in
            all.

    Returns:
        One for each metric, in their order.

    Raises:
        InputError: an edge the model does not have, a mask of another shape or with edges that do
            not exist, no metric, unknown options, pairs it cannot run.
        WiremapError: a metric that is not finite; the pairs are named.
    """
    return _run_masks(
        model,
        pairs,
        [_mask_of(model.graph, edges) for edges in sets],
        metrics,
        batch_size,
        progress,
    )


def patch_together(
    model: Model,
    pairs: PromptPairs,
    sets: Sequence[EdgeSet],
    metric: str | Metric = "logit_diff",
    direction: str = "noising",
    batch_size: int | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> Float32[Tensor, "set pair"]:
    """Exact effects of sets of edges, all edges of a set patched at once, on each pair.

    effect = metric(they carry the clean run's values) - metric(they carry the corrupted run's)

    all other edges carrying what is written in the edited run. Of a set of one edge it is that of
    ``patch_edges``.

    Args:
        direction: ``noising`` edits the clean run, ``denoising`` the corrupted one.

    Else, args and errors as for ``run_edge_sets``.
    """
    check_direction(direction)
    every = full_mask(model.graph)
    rest = [every & ~_mask_of(model.graph, edges) for edges in sets]
    noising = direction == "noising"
    (found,) = _run_masks(model, pairs, rest, [metric], batch_size, progress, not noising)
    return found.full - found.circuit if noising else found.circuit - found.empty


def _run_masks(
    model: Model,
    pairs: PromptPairs,
    masks: Sequence[Bool[Tensor, "reader writer"]],
    metrics: Sequence[str | Metric],
    batch_size: int | None,
    progress: Callable[[int, int], Any] | None,
    swapped: bool = False,
) -> list[EdgeSetValues]:
    """See ``run_edge_sets``; ``swapped`` puts the two runs in each other's place in reduced models."""
    if not metrics:
        raise InputError("expected at least one metric, got none; name one, such as logit_diff")
    chosen = [resolve_metric(metric, pairs.wrong.shape[1] > 0) for metric in metrics]
    if not model.heads_share_scale:  # else a head may change without a kept edge into it
        masks = [live_mask(model.graph, mask) for mask in masks]
    model.check_pairs(pairs)
    table = torch.zeros(len(chosen), 2 + len(masks), len(pairs), device=model.device)

    def values(batch: PairBatch) -> Float[Tensor, "metric run pair"]:
        clean = run(model, batch.clean, BASE if swapped else ())
        corrupted = run(model, batch.corrupted, () if swapped else BASE)
        kept, base = (corrupted, clean) if swapped else (clean, corrupted)
        targets = Targets.of(batch, clean.logits)

        def measured(logits: Float[Tensor, "pair d_vocab"]) -> Float[Tensor, "metric pair"]:
            return torch.stack([metric(logits, targets) for metric in chosen])

        ends = [measured(clean.logits), measured(corrupted.logits)]
        reduced = [measured(masked_logits(model, mask, kept.input, base)) for mask in masks]
        return torch.stack([*ends, *reduced], 1)

    with torch.no_grad(), model.borrowed():
        for bucket in pairs.batches():
            size = BatchSize(batch_size) if batch_size else pairs_at_once(model, bucket)
            for batch, found in size.map(bucket, values):
                table[:, :, batch.rows] = found.float()
                if progress is not None:
                    progress(len(batch) * len(masks), len(pairs) * len(masks))
    check_finite(table.flatten(0, 1))
    return [EdgeSetValues(of_metric[0], of_metric[1], of_metric[2:]) for of_metric in table]


def _mask_of(graph: ModelGraph, edges: EdgeSet) -> Bool[Tensor, "reader writer"]:
    if not isinstance(edges, Tensor):
        return edge_mask(graph, edges)
    edges, every = edges.cpu(), full_mask(graph)
    if edges.dtype != torch.bool or edges.shape != every.shape:
        raise InputError(
            f"expected a mask of edges as booleans [reader writer], {list(every.shape)}, got "
            f"{edges.dtype} of shape {list(edges.shape)}; see edge_mask"
        )
    if bool((edges & ~every).any()):
        reader, writer = (edges & ~every).nonzero()[0].tolist()
        raise InputError(
            f"the mask has an edge that does not exist in this model, from "
            f"{graph.writers[writer].name} to {graph.readers[reader].name}; see full_mask"
        )
    return edges


def full_mask(graph: ModelGraph) -> Bool[Tensor, "reader writer"]:
    """All edges of the model."""
    n_writers = torch.tensor([reader.n_writers for reader in graph.readers])
    return torch.arange(len(graph.writers)) < n_writers[:, None]


def live_mask(
    graph: ModelGraph, kept: Bool[Tensor, "reader writer"]
) -> Bool[Tensor, "reader writer"]:
    """Of these edges, those on a path of them from ``input`` to ``logits``.

    A head passes on what its query, key or value reads, and a key or value that a group shares is
    passed on by every query head of the group.
    """
    group = graph.n_heads // graph.n_kv_heads
    reached = torch.zeros(len(graph.writers), dtype=torch.bool)
    needed = kept[-1].clone()
    used = torch.zeros(len(graph.readers), dtype=torch.bool)
    used[-1] = reached[0] = True
    for layer in range(graph.n_layers):
        q, k, v = _by_slot(graph, (kept[graph.attention_readers(layer)] & reached).any(1))
        reached[graph.head_writers(layer)] = q | (k | v).repeat_interleave(group)
        reached[graph.mlp_writer(layer)] = (kept[graph.mlp_reader(layer)] & reached).any()
    for layer in reversed(range(graph.n_layers)):
        if needed[graph.mlp_writer(layer)]:
            used[graph.mlp_reader(layer)] = True
            needed |= kept[graph.mlp_reader(layer)]
        heads = needed[graph.head_writers(layer)]
        groups = heads.view(-1, group).any(1)
        attention = graph.attention_readers(layer)
        used[attention] = torch.cat([heads, groups, groups])
        needed |= kept[attention][used[attention]].any(0)
    return kept & reached & used[:, None]


def _by_slot(graph: ModelGraph, of_readers: Bool[Tensor, "reader"]) -> Sequence[Tensor]:
    """What belongs to a layer's attention readers, as its queries', keys' and values'."""
    return of_readers.split([graph.n_heads, graph.n_kv_heads, graph.n_kv_heads])


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
        readers: Sequence[int], n_writers: int, last: int | None = None
    ) -> Float[Tensor, "reader pair pos d_model"]:
        """What readers read besides base's, at the ``last`` positions (None: all)."""
        where = slice(None) if last is None else slice(-last, None)
        of_writers = changes[:n_writers, :, where]
        total = mask[torch.tensor(readers), :n_writers] @ of_writers.flatten(1)
        total = total.view(len(readers), *of_writers.shape[1:])
        if additions is not None:
            for place, reader in enumerate(readers):
                if bool(added[reader]):
                    total[place] += additions.of(reader)[:, where]
        return total

    for layer in range(graph.n_layers):
        heads, mlp = graph.head_writers(layer), graph.mlp_writer(layer)
        attention = graph.attention_readers(layer)
        if bool(reads_change[attention].any()):
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
                    projected = model.project_heads(layer, slot, chosen, normed)
                    read[slot][:, :, chosen] = projected.permute(1, 2, 0, 3)
            z = model.attend(layer, read["q"], read["k"], read["v"])
            change = model.written(layer, z) - of_base.written[layer]
            changes[heads] = torch.einsum("pthe,hem->hptm", change, model.output_weight(layer))
        reader = graph.mlp_reader(layer)
        if bool(reads_change[reader]):
            # What the last MLP writes is read at the last position alone.
            last = 1 if layer == graph.n_layers - 1 else None
            (change,) = change_of_input([reader], graph.readers[reader].n_writers, last)
            where = slice(-change.shape[1], None)
            mlp_in = of_base.mlp_in[layer][:, where] + change
            written = model.mlp(layer, model.mlp_norm(layer, mlp_in))
            changes[mlp, :, where] = written - of_base.mlp_out[layer][:, where]
    (change,) = change_of_input([len(graph.readers) - 1], len(graph.writers), 1)
    return answer_logits(model, base.final[:, -1:] + change)
