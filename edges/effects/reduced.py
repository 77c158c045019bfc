"""A model reduced to a set of edges: those carry their values, all others the corrupted run's.

A reader's input is the corrupted run's residual stream plus, for each kept edge into it, what its
writer writes now less what it wrote in the corrupted run. With all edges kept this is the clean
run, with none the corrupted run. In place of the corrupted run, any other may be the base.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from ..errors import InputError
from ..model.transformer import Model
from ..names.graph import SLOTS, Slot
from ..question.metrics import Metric, Targets, resolve_metric
from ..question.prompts import PairBatch, PromptPairs
from ..question.question import check_direction
from ..runs.masks import EdgeSet, as_mask, full_mask, live_mask
from ..runs.memory import BatchSize
from ..runs.sweep import check_finite, pairs_at_once
from ..runs.trace import Run, answer_logits, run
from ..runs.writes import head_writes

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
    edges: EdgeSet,
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
    noising, every = direction == "noising", full_mask(model.graph)
    rest = (every & ~as_mask(model.graph, edges) for edges in sets)
    (found,) = _run_masks(
        model, pairs, rest, len(sets), [metric], batch_size, progress, swapped=not noising
    )
    return found.full - found.circuit if noising else found.circuit - found.empty


def _run_masks(
    model: Model,
    pairs: PromptPairs,
    kept: Iterable[Bool[Tensor, "writer reader"]],
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

        def of_sets(some: Bool[Tensor, "set writer reader"]) -> list[Tensor]:
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
    kept: Bool[Tensor, "writer reader"],
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
    kept: Bool[Tensor, "set writer reader"],
    resid: Float[Tensor, "pair pos d_model"],
    base: Run,
    additions: Additions | None = None,
) -> Float[Tensor, "set pair d_vocab"]:
    """``masked_logits`` of several sets of edges at once.

    Of each set only those readers are computed that read something else than base's; those of all
    sets are one batch.
    """
    reduction = _Reduction.of(model, kept, resid, base, additions)
    for layer in range(model.graph.n_layers):
        reduction.run_attention(layer)
        reduction.run_mlp(layer)
    return reduction.logits()


Item = tuple[int, int]
"""A set, and a reader of it that is computed."""


@dataclass(frozen=True, eq=False)
class _Reduction:
    """Sets of edges that are run at once, layer by layer.

    Attributes:
        changes: of each set what writers write now less what they write in the base run; 0 until
            their layer was run.
        weights: 1 for each kept edge, else 0.
        reads_change: which readers read something else than base's, and are computed.
        additions: what readers read besides.
    """

    model: Model
    base: Run
    changes: Float[Tensor, "set writer pair pos d_model"]
    weights: Float[Tensor, "set reader writer"]
    reads_change: Bool[Tensor, "set reader"]
    additions: Additions | None

    @classmethod
    def of(
        cls,
        model: Model,
        kept: Bool[Tensor, "set writer reader"],
        resid: Float[Tensor, "pair pos d_model"],
        base: Run,
        additions: Additions | None,
    ) -> _Reduction:
        """Before the first layer: the input alone has been written."""
        changes = base.input.new_zeros(len(kept), len(model.graph.writers), *base.input.shape)
        changes[:, 0] = resid - base.input
        # By reader, whose row is then in one piece to multiply what it reads by.
        weights = kept.mT.contiguous().to(changes)
        reads_change = kept.any(1)
        if additions is not None:
            reads_change = reads_change | additions.readers
        return cls(model, base, changes, weights, reads_change, additions)

    def items(self, readers: slice) -> list[Item]:
        """The sets, and of each the readers among these, that read something else."""
        places = self.reads_change[:, readers].nonzero().tolist()
        return [(set_, readers.start + place) for set_, place in places]

    def read_change(
        self, items: Sequence[Item], last: int | None = None
    ) -> Float[Tensor, "item pair pos d_model"]:
        """What items read besides base's, at the ``last`` positions (None: all).

        All items read the same writers: they are readers of a layer before its own, or one reader.
        """
        where = slice(None) if last is None else slice(-last, None)
        n_writers = self.model.graph.readers[items[0][1]].n_writers
        totals: list[Tensor] = []
        for set_, members in groupby(items, key=lambda item: item[0]):
            readers = torch.tensor([reader for _, reader in members])
            writes = self.changes[set_, :n_writers, :, where]  # [writer pair pos d_model]
            total = self.weights[set_, readers, :n_writers] @ writes.flatten(1)
            totals.append(total.view(-1, *writes.shape[1:]))  # [reader pair pos d_model]
        change = torch.cat(totals)
        if self.additions is not None:
            for place, (_, reader) in enumerate(items):
                if bool(self.additions.readers[reader]):
                    change[place] += self.additions.of(reader)[:, where]
        return change

    def run_attention(self, layer: int) -> None:
        """Computes what the heads of a layer write, in the sets where any reads something else."""
        model, graph = self.model, self.model.graph
        items = self.items(graph.attention_readers(layer))
        if not items:
            return
        sets = sorted({set_ for set_, _ in items})
        q, k, v = (self._projected(layer, slot, sets, items) for slot in SLOTS)
        z = model.blocks[layer].attention.attend(q, k, v)  # [set*pair pos head d_head]
        written = model.blocks[layer].attention.written(z).unflatten(0, (len(sets), -1))
        change = written - self.base.kept.written[layer]  # [set pair pos head d_head]
        writes = head_writes(
            change, model.blocks[layer].attention.output_weight()
        )  # [head set pair pos d_model]
        self.changes[sets, graph.head_writers(layer)] = writes.transpose(0, 1)

    def _projected(
        self, layer: int, slot: Slot, sets: Sequence[int], items: Sequence[Item]
    ) -> Float[Tensor, "row pos head d_head"]:
        """The queries, keys or values of a layer, set by set: base's but where an item reads else."""
        model, kept, readers = self.model, self.base.kept, self.model.graph.readers
        base: Tensor = getattr(kept, slot)[layer]
        values = base.repeat(len(sets), 1, 1, 1, 1)  # [set pair pos head d_head]
        items = [item for item in items if readers[item[1]].kind == slot]
        if items:
            normed = model.blocks[layer].attention.norm(
                kept.resid_pre[layer] + self.read_change(items)
            )
            heads = [readers[reader].head for _, reader in items]
            row_of = {set_: row for row, set_ in enumerate(sets)}
            rows = [row_of[set_] for set_, _ in items]
            # Two lists of indices with dimensions between them: the items come first.
            values[rows, :, :, heads] = model.blocks[layer].attention.project_heads(
                slot, heads, normed
            )
        return values.flatten(0, 1)

    def run_mlp(self, layer: int) -> None:
        """Computes what the MLP of a layer writes, in the sets where it reads something else."""
        model, kept, reader = self.model, self.base.kept, self.model.graph.mlp_reader(layer)
        items = self.items(slice(reader, reader + 1))
        if not items:
            return
        # What the last MLP writes is read at the last position alone.
        last = 1 if layer == model.graph.n_layers - 1 else None
        change = self.read_change(items, last)  # [item pair pos d_model]
        where = slice(-change.shape[2], None)
        mlp_in = (kept.mlp_in[layer][:, where] + change).flatten(0, 1)
        written = model.blocks[layer].mlp(mlp_in).view_as(change)
        sets = [set_ for set_, _ in items]
        mlp = model.graph.mlp_writer(layer)
        self.changes[sets, mlp, :, where] = written - kept.mlp_out[layer][:, where]

    def logits(self) -> Float[Tensor, "set pair d_vocab"]:
        """The logits at the last position, when all layers have been run."""
        last = len(self.model.graph.readers) - 1
        change = self.read_change([(set_, last) for set_ in range(len(self.changes))], 1)
        final = self.base.final[:, -1:]
        # Set by set, so that one without edges gives base's logits to the last bit.
        return torch.stack([answer_logits(self.model, final + of_set) for of_set in change])
