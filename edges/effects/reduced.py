"""A model reduced to a set of edges: those carry their values, all others the corrupted run's.

A reader's input is the corrupted run's residual stream plus, for each kept edge into it, what its
writer writes now less what it wrote in the corrupted run. With all edges kept this is the clean
run, with none the corrupted run. In place of the corrupted run, any other may be the base.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from ..errors import InputError
from ..model.transformer import Model
from ..names.graph import SLOTS
from ..names.vocabulary import DIRECTION, METRIC
from ..question.metrics import Metric, Targets, resolve_metric
from ..question.prompts import PairBatch, PromptPairs
from ..question.question import check_direction
from ..runs.masks import EdgeSet, as_mask, full_mask, live_mask
from ..runs.memory import BatchSize
from ..runs.sweep import check_finite, pairs_at_once
from ..runs.trace import Run, answer_logits, run

_SETS_AT_ONCE = 64


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


def run_edges(
    model: Model,
    pairs: PromptPairs,
    edges: Collection[str],
    metric: str | Metric = METRIC,
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
        batch_size: rows (sets x pairs) at once; None takes what fits into memory.
        progress: called with the number of runs (sets x pairs) finished since the last call, and in
            all.

    Returns:
        One for each metric, in their order.

    Raises:
        InputError: an edge the model does not have, a mask of another shape or with edges that do
            not exist, no metric, unknown options, pairs it cannot run.
        WiremapError: a metric that is not finite; the pairs are named.
    """
    masks = (as_mask(model.graph, edges) for edges in sets)
    return _run_masks(model, pairs, masks, len(sets), metrics, batch_size, progress)


def patch_together(
    model: Model,
    pairs: PromptPairs,
    sets: Sequence[EdgeSet],
    metric: str | Metric = METRIC,
    direction: str = DIRECTION,
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
    noising, every = direction == "noising", full_mask(model.graph)
    rest = (every & ~as_mask(model.graph, edges) for edges in sets)
    (found,) = _run_masks(
        model, pairs, rest, len(sets), [metric], batch_size, progress, swapped=not noising
    )
    return found.full - found.circuit if noising else found.circuit - found.empty


def _run_masks(
    model: Model,
    pairs: PromptPairs,
    kept: Iterable[Bool[Tensor, "reader writer"]],
    n_sets: int,
    metrics: Sequence[str | Metric],
    batch_size: int | None,
    progress: Callable[[int, int], Any] | None,
    swapped: bool = False,
) -> list[EdgeSetValues]:
    """See ``run_edge_sets``; ``swapped`` puts the two runs in each other's place in reduced models."""
    if not metrics:
        raise InputError("expected at least one metric, got none; name one, such as logit_diff")
    chosen = [resolve_metric(metric, pairs.wrong.shape[1] > 0) for metric in metrics]
    masks = torch.zeros(n_sets, *full_mask(model.graph).shape, dtype=torch.bool)
    for row, mask in enumerate(kept):
        # Where heads share a scale, a head may change without a kept edge into it.
        masks[row] = mask if model.heads_share_scale else live_mask(model.graph, mask)
    model.check_pairs(pairs)
    table = torch.zeros(len(chosen), 2 + len(masks), len(pairs), device=model.device)

    def values(batch: PairBatch, size: BatchSize) -> Float[Tensor, "metric run pair"]:
        clean = run(model, batch.clean, BASE if swapped else ())
        corrupted = run(model, batch.corrupted, () if swapped else BASE)
        now, base = (corrupted, clean) if swapped else (clean, corrupted)
        targets = Targets.of(batch, clean.logits)

        def measured(logits: Float[Tensor, "pair d_vocab"]) -> Float[Tensor, "metric pair"]:
            return torch.stack([metric(logits, targets) for metric in chosen])

        found = [measured(clean.logits), measured(corrupted.logits)]

        def of_sets(some: Bool[Tensor, "set reader writer"]) -> list[Tensor]:
            return [measured(logits) for logits in set_logits(model, some, now.input, base)]

        tried = max(1, min(_SETS_AT_ONCE, size.rows // len(batch)))
        sets_at_once = BatchSize(tried)
        for _, some in sets_at_once.map(masks, of_sets):
            found += some
        if sets_at_once.rows < tried:  # so that the next batch begins with what fits
            size.rows = sets_at_once.rows * len(batch)
        return torch.stack(found, 1)

    with torch.no_grad(), model.borrowed():
        for bucket in pairs.batches():
            size = BatchSize(batch_size) if batch_size else pairs_at_once(model, bucket)
            for batch, found in size.map(bucket, partial(values, size=size)):
                table[:, :, batch.rows] = found.float()
                if progress is not None:
                    progress(len(batch) * len(masks), len(pairs) * len(masks))
    check_finite(table.flatten(0, 1))
    return [EdgeSetValues(of_metric[0], of_metric[1], of_metric[2:]) for of_metric in table]


def masked_logits(
    model: Model,
    kept: Bool[Tensor, "reader writer"],
    resid: Float[Tensor, "pair pos d_model"],
    base: Run,
    additions: Additions | None = None,
) -> Float[Tensor, "pair d_vocab"]:
    """Logits of the reduced model: kept edges carry what is written now, others what base's do.

    Args:
        resid: what the input writes now.
        base: a run that keeps ``BASE``.
        additions: what readers read besides.
    """
    return set_logits(model, kept[None], resid, base, additions)[0]


def set_logits(
    model: Model,
    kept: Bool[Tensor, "set reader writer"],
    resid: Float[Tensor, "pair pos d_model"],
    base: Run,
    additions: Additions | None = None,
) -> Float[Tensor, "set pair d_vocab"]:
    """``masked_logits`` of several sets of edges at once.

    Of each set only those readers are computed that read something else than base's; those of all
    sets are one batch. ``changes`` are writes now less writes of the base run.
    """
    graph, of_base = model.graph, base.kept
    changes = base.input.new_zeros(len(kept), len(graph.writers), *base.input.shape)
    changes[:, 0] = resid - base.input
    mask = kept.to(changes)
    added = torch.zeros(len(graph.readers), dtype=torch.bool)
    if additions is not None:
        added = additions.readers
    reads_change = kept.any(2) | added

    def change_of_input(
        items: Sequence[tuple[int, int]], n_writers: int, last: int | None = None
    ) -> Float[Tensor, "item pair pos d_model"]:
        """What readers, each of a set, read besides base's, at the ``last`` positions (None: all)."""
        where = slice(None) if last is None else slice(-last, None)
        totals: list[Tensor] = []
        for one, members in groupby(items, key=lambda item: item[0]):
            readers = torch.tensor([reader for _, reader in members])
            of_writers = changes[one, :n_writers, :, where]
            total = mask[one, readers, :n_writers] @ of_writers.flatten(1)
            totals.append(total.view(-1, *of_writers.shape[1:]))
        change = torch.cat(totals)
        if additions is not None:
            for place, (_, reader) in enumerate(items):
                if bool(added[reader]):
                    change[place] += additions.of(reader)[:, where]
        return change

    def items_of(readers: slice) -> list[tuple[int, int]]:
        """The sets, and of each the readers among these, that read something else."""
        found = reads_change[:, readers].nonzero().tolist()
        return [(one, readers.start + place) for one, place in found]

    for layer in range(graph.n_layers):
        heads, mlp = graph.head_writers(layer), graph.mlp_writer(layer)
        items = items_of(graph.attention_readers(layer))
        if items:
            sets = sorted({one for one, _ in items})
            place = {one: index for index, one in enumerate(sets)}
            read: list[Tensor] = []
            for slot in SLOTS:
                values = getattr(of_base, slot)[layer].repeat(len(sets), 1, 1, 1, 1)
                of_slot = [item for item in items if graph.readers[item[1]].kind == slot]
                if of_slot:
                    change = change_of_input(of_slot, heads.start)
                    normed = model.attention_norm(layer, of_base.resid_pre[layer] + change)
                    chosen = [graph.readers[reader].head for _, reader in of_slot]
                    places = [place[one] for one, _ in of_slot]
                    projected = model.project_heads(layer, slot, chosen, normed)
                    values[places, :, :, chosen] = projected
                read.append(values.flatten(0, 1))
            q, k, v = read
            z = model.attend(layer, q, k, v)
            written = model.written(layer, z).unflatten(0, (len(sets), -1))
            change = written - of_base.written[layer]
            changes[sets, heads] = torch.einsum(
                "spthe,hem->shptm", change, model.output_weight(layer)
            )
        reader = graph.mlp_reader(layer)
        items = items_of(slice(reader, reader + 1))
        if items:
            # What the last MLP writes is read at the last position alone.
            last = 1 if layer == graph.n_layers - 1 else None
            change = change_of_input(items, graph.readers[reader].n_writers, last)
            where = slice(-change.shape[2], None)
            mlp_in = (of_base.mlp_in[layer][:, where] + change).flatten(0, 1)
            written = model.mlp(layer, model.mlp_norm(layer, mlp_in)).view_as(change)
            sets = [one for one, _ in items]
            changes[sets, mlp, :, where] = written - of_base.mlp_out[layer][:, where]
    logits = len(graph.readers) - 1
    change = change_of_input([(one, logits) for one in range(len(kept))], len(graph.writers), 1)
    # Set by set, so that one without edges gives base's logits to the last bit.
    return torch.stack([answer_logits(model, base.final[:, -1:] + one) for one in change])
