"""A model reduced to a set of edges: those carry their values, all others the corrupted run's.

A reader's input is the corrupted run's residual stream plus, for each kept edge into it, what its
writer writes now less what it wrote in the corrupted run. With all edges kept this is the clean
run, with none the corrupted run. In place of the corrupted run, any other may be the base.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from ..errors import InputError
from ..model.transformer import Model
from ..names.graph import SLOTS
from ..question.metrics import Metric, Targets
from ..question.prompts import PairBatch, PromptPairs
from ..question.question import Question
from ..runs.masks import EdgeSet, as_mask, full_mask, live_mask
from ..runs.sweep import (
    Report,
    Resources,
    Turn,
    Work,
    check_finite,
    silent,
    sweep,
    table,
)
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
    *,
    metric: str | Metric = "logit_diff",
    batch_size: int | None = None,
    progress: Report = silent,
) -> CircuitValues:
    """The metric of the model reduced to ``edges``, everything outside patched, on each pair.

    Args and errors as for ``run_edge_sets``, of one set and one metric.
    """
    resources = Resources(batch_size=batch_size, report=progress)
    return values_of_edges(model, Question(pairs=pairs, metric=metric), edges, resources)


def values_of_edges(
    model: Model, question: Question, edges: EdgeSet, resources: Resources
) -> CircuitValues:
    """The metric of the model reduced to ``edges``; see ``run_edges``."""
    (values,) = values_of_sets(model, [question], [edges], resources)
    return CircuitValues(values.full, values.empty, values.circuit[0])


def run_edge_sets(
    model: Model,
    pairs: PromptPairs,
    sets: Sequence[EdgeSet],
    *,
    metrics: Sequence[str | Metric] = ("logit_diff",),
    batch_size: int | None = None,
    progress: Report = silent,
) -> list[EdgeSetValues]:
    """Metrics of the model reduced to each of many sets of edges, everything outside patched.

    The clean and the corrupted run of a batch are made once for all sets and metrics, and of a set
    only those readers are computed anew that lie on a path of its edges from ``input`` to
    ``logits``: the others read what they read in the corrupted run, or nothing comes of them.

    Args:
        sets: edges by names such as ``a0.h1->a2.h3<q>``, or masks.
        metrics: names in ``METRICS`` or functions ``(logits, targets) -> [row]``.
        batch_size: rows (sets x pairs) at once; None takes what fits into memory.
        progress: called with (stage, runs finished since the last call, runs in all), a run being
            that of one pair with one set.

    Returns:
        One for each metric, in their order.

    Raises:
        InputError: an edge the model does not have, a mask of another shape or with edges that do
            not exist, no metric, unknown options, pairs it cannot run.
        WiremapError: a metric that is not finite; the pairs are named.
    """
    questions = [Question(pairs=pairs, metric=metric) for metric in metrics]
    return values_of_sets(model, questions, sets, Resources(batch_size=batch_size, report=progress))


def values_of_sets(
    model: Model, questions: Sequence[Question], sets: Sequence[EdgeSet], resources: Resources
) -> list[EdgeSetValues]:
    """What ``run_edge_sets`` gives, for questions that differ in their metric alone."""
    masks = (as_mask(model.graph, edges) for edges in sets)
    return _ReducedSets.of(model, questions, masks, len(sets)).values(resources)


def patch_together(
    model: Model,
    pairs: PromptPairs,
    sets: Sequence[EdgeSet],
    *,
    metric: str | Metric = "logit_diff",
    direction: str = "noising",
    batch_size: int | None = None,
    progress: Report = silent,
) -> Float32[Tensor, "set pair"]:
    """Exact effects of sets of edges, all edges of a set patched at once, on each pair.

    effect = metric(they carry the clean run's values) - metric(they carry the corrupted run's)

    all other edges carrying what is written in the edited run. Of a set of one edge it is that of
    ``patch_edges``.

    Args:
        direction: ``noising`` edits the clean run, ``denoising`` the corrupted one.

    Else, args and errors as for ``run_edge_sets``.
    """
    question = Question(pairs=pairs, metric=metric, direction=direction)
    return effects_of_sets(model, question, sets, Resources(batch_size=batch_size, report=progress))


def effects_of_sets(
    model: Model, question: Question, sets: Sequence[EdgeSet], resources: Resources
) -> Float32[Tensor, "set pair"]:
    """Exact effects of sets of edges patched at once; see ``patch_together``."""
    every = full_mask(model.graph)
    # The set carries the other run's values: the model reduced to all its other edges, with the
    # run edited in the place of the clean one.
    rest = (every & ~as_mask(model.graph, edges) for edges in sets)
    reduced = _ReducedSets.of(model, [question], rest, len(sets), swapped=not question.noising)
    (values,) = reduced.values(resources)
    return values.full - values.circuit if question.noising else values.circuit - values.empty


@dataclass(frozen=True)
class _ReducedSets:
    """The model reduced to each of some sets of edges.

    Attributes:
        questions: of the same pairs, one for each metric.
        masks: the sets.
        swapped: the two runs are in each other's place.
    """

    model: Model
    questions: Sequence[Question]
    masks: Bool[Tensor, "set reader writer"]
    swapped: bool

    @classmethod
    def of(
        cls,
        model: Model,
        questions: Sequence[Question],
        kept: Iterable[Bool[Tensor, "reader writer"]],
        n_sets: int,
        swapped: bool = False,
    ) -> _ReducedSets:
        """Of so many masks, one after the other: only those rows are ever in memory."""
        if not questions:
            raise InputError("expected at least one metric, got none; name one, such as logit_diff")
        masks = torch.zeros(n_sets, *full_mask(model.graph).shape, dtype=torch.bool)
        for row, mask in enumerate(kept):
            # Where heads share a scale, a head may change without a kept edge into it.
            masks[row] = mask if model.heads_share_scale else live_mask(model.graph, mask)
        return cls(model, questions, masks, swapped)

    def values(self, resources: Resources) -> list[EdgeSetValues]:
        """The metrics of all pairs; see ``run_edge_sets``."""
        pairs = self.questions[0].pairs
        values = table(self.model, len(self.questions), 2 + len(self.masks), len(pairs))

        def collect(batch: PairBatch, of_batch: Tensor) -> None:
            values[:, :, batch.rows] = of_batch.float()

        work = Work(
            stage="run circuits",
            function=self._of_batch,
            collect=collect,
            cost=cost_of_reduced_run,
            counts_rows=True,
            steps=len(self.masks),
        )
        sweep(self.model, pairs, work, resources)
        check_finite(values.flatten(0, 1))
        return [EdgeSetValues(metric[0], metric[1], metric[2:]) for metric in values]

    def _of_batch(self, batch: PairBatch, turn: Turn) -> Float[Tensor, "metric run pair"]:
        """Of the clean run, the corrupted one, and each set."""
        model = self.model
        clean = run(model, batch.clean, BASE if self.swapped else ())
        corrupted = run(model, batch.corrupted, () if self.swapped else BASE)
        now, base = (corrupted, clean) if self.swapped else (clean, corrupted)
        targets = Targets.of(batch, clean.logits)

        def measured(logits: Float[Tensor, "pair d_vocab"]) -> Float[Tensor, "metric pair"]:
            return torch.stack([question.measure(logits, targets) for question in self.questions])

        values = [measured(clean.logits), measured(corrupted.logits)]

        def of_sets(masks: Bool[Tensor, "set reader writer"]) -> list[Tensor]:
            return [measured(logits) for logits in set_logits(model, masks, now.input, base)]

        sets = turn.rows.map_times(self.masks, len(batch), of_sets, most=_SETS_AT_ONCE)
        for masks, of_masks in sets:
            values += of_masks
            turn.done(len(masks) * len(batch))
        return torch.stack(values, 1)


def cost_of_reduced_run(model: Model, n_pos: int) -> int:
    """Bytes that a reduced run of one pair needs: all writes, and a layer's inputs."""
    graph = model.graph
    streams = len(graph.writers) + 4 * graph.n_heads + 12 * graph.n_layers
    numbers = streams * n_pos * model.d_model + 4 * graph.n_heads * n_pos**2 + 3 * model.d_vocab
    return model.dtype.itemsize * numbers


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
