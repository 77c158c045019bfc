"""A model reduced to a set of edges: those carry their values, all others the corrupted run's.

A reader's input is the corrupted run's residual stream plus, for each kept edge into it, what its
writer writes now less what it wrote in the corrupted run. With all edges kept this is the clean
run, with none the corrupted run. In place of the corrupted run, any other may be the base.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from ..errors import InputError
from ..model.transformer import Model
from ..names.graph import SLOTS, Slot
from ..names.vocabulary import DIRECTION, METRIC
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
    *,
    metric: str | Metric = METRIC,
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
    metrics: Sequence[str | Metric] = (METRIC,),
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
    metric: str | Metric = METRIC,
    direction: str = DIRECTION,
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
    masks: Bool[Tensor, "set writer reader"]
    swapped: bool

    @classmethod
    def of(
        cls,
        model: Model,
        questions: Sequence[Question],
        kept: Iterable[Bool[Tensor, "writer reader"]],
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
            steps_of_pair=len(self.masks),
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

        def of_sets(masks: Bool[Tensor, "set writer reader"]) -> list[Tensor]:
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
        base: Tensor = kept[slot][layer]
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
