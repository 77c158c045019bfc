"""A run under a mask of edges that can be gone through backwards, block by block.

Every block has graphs of its own, from its queries, keys and values, and from what its MLP reads, to
what it writes. Besides these there is one table of what all writers write, and one of the gradients
by it: autograd keeps no copy of the writes for every layer. What each query, key and value is
computed from, a residual stream for each, is made once more on the way back rather than kept. Only
positions from the first on at which two prompts of the batch differ are computed, and of the last
block only what the last position needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError
from ..model.transformer import Model
from ..names.graph import SLOTS
from ..runs.trace import Run, answer_logits
from ..runs.writes import head_writes
from .mask_plan import MaskPlan

Measure = Callable[[Float[Tensor, "row d_vocab"]], Float[Tensor, "row"]]
"""The metric of each row, by its logits."""


@dataclass(frozen=True)
class Ends:
    """The two runs between which masks decide, edge by edge.

    Attributes:
        resid: what the input writes where all edges are kept.
        base: the run of no edges, which keeps ``BASE`` of ``reduced``.
    """

    resid: Float[Tensor, "pair pos d_model"]
    base: Run


@dataclass
class _Block:
    """A block's two graphs, from leaves to writes; None where nothing is computed.

    Attributes:
        attention, mlp: the readers computed, in order.
        projected: queries, keys and values, from the first difference on.
    """

    attention: list[int]
    mlp: list[int]
    projected: tuple[Tensor, Tensor, Tensor] | None = None
    written: Tensor | None = None
    mlp_read: Tensor | None = None
    mlp_out: Tensor | None = None


class MaskTape:
    """Runs of a batch under parts of a mask, to be gone through backwards once.

    A row is one pair under one part; the pairs of a part follow each other. ``changes`` are writes
    now less writes of the base run. [writer row pos d_model]

    Args:
        ends: the two runs between which the mask decides.
        parts: of the plan's weights, the share that holds in each run.
    """

    def __init__(
        self, model: Model, plan: MaskPlan, ends: Ends, parts: Sequence[float] = (1.0,)
    ) -> None:
        self.model, self.plan, self.base = model, plan, ends.base
        self._n_parts = len(parts)
        if self._n_parts == 1:
            self.plan = plan if parts[0] == 1 else plan.scaled(parts[0])
        by_row = torch.tensor(parts, dtype=model.dtype, device=model.device)
        self._parts = by_row.repeat_interleave(len(ends.resid))[:, None, None]  # [row 1 1]
        change = ends.resid - ends.base.input
        differs = (ends.resid != ends.base.input).any(-1).any(0).tolist()
        self.start = differs.index(True) if True in differs else len(differs) - 1
        change = self._each_part(change[:, self.start :])
        self.changes = change.new_zeros(len(plan.writers), *change.shape)
        self.changes[0] = change
        self._blocks: list[_Block] = []

    @torch.no_grad()
    def logits(self) -> Float[Tensor, "row d_vocab"]:
        """The logits at the last position, with nothing kept to go back through."""
        for layer in range(self.model.graph.n_layers):
            self._block(layer, self._computed(layer))
        return answer_logits(self.model, self._final())

    @torch.no_grad()
    def logits_without(self, lost: Bool[Tensor, "reader live"]) -> Float[Tensor, "row d_vocab"]:
        """The logits without some more edges, once ``logits`` were computed with them.

        Attention and MLPs are run again only where something that they read has changed.
        """
        plan, before = self.plan, list[tuple[slice, Tensor]]()
        changed = torch.zeros(len(plan.writers), dtype=torch.bool, device=lost.device)
        self.plan = plan.without(lost)
        try:
            for layer in range(self.model.graph.n_layers):
                *attention, mlp = self._every_reader(layer)
                for part, writers in ((attention, self._heads(layer)), ([mlp], self._mlp(layer))):
                    readers = [index for index in part if plan.readers[index]]
                    reads_change = lost[readers] | ((plan.weights[readers] != 0) & changed)
                    if bool(reads_change.any()):
                        before.append((writers, self.changes[writers].clone()))
                        self._block(layer, readers)
                        changed[writers] = True
            return answer_logits(self.model, self._final())
        finally:
            self.plan = plan
            for writers, values in before:
                self.changes[writers] = values

    @torch.enable_grad()
    def forward(
        self, metric: Measure
    ) -> tuple[Float[Tensor, "row"], Float[Tensor, "row 1 d_model"]]:
        """The metric of each row, and the gradient of its sum by the last residual stream.

        Raises:
            InputError: a metric that does not depend on the logits.
        """
        for layer in range(self.model.graph.n_layers):
            self._blocks.append(self._block(layer, self._computed(layer)))
        final = self._final().requires_grad_()
        values = metric(answer_logits(self.model, final))
        if not values.requires_grad:
            raise InputError("the metric does not depend on the logits; use another metric")
        (gradient,) = torch.autograd.grad(values.sum(), final)
        return values.detach(), gradient

    def _final(self) -> Float[Tensor, "row 1 d_model"]:
        """The last residual stream, at the last position."""
        final = self._each_part(self.base.final[:, -1:])
        change = self.plan.weights[-1] @ self.changes[:, :, -1].flatten(1)
        return final + self._share(change.view_as(final))

    def _each_part(self, value: Float[Tensor, "pair *any"]) -> Float[Tensor, "row *any"]:
        """What is the same in the runs of all parts, for each of them."""
        if self._n_parts == 1:
            return value
        return value.repeat(self._n_parts, *[1] * (value.ndim - 1))

    def _share(self, change: Float[Tensor, "*any row pos d_model"]) -> Tensor:
        """Of what is read, or of gradients by it, each row's part; in place."""
        # The plan's weights hold the part of a single one.
        return change if self._n_parts == 1 else change.mul_(self._parts)

    def _kept(self, name: str, layer: int) -> Tensor:
        """What the base run kept, from the first difference on."""
        return self._each_part(self.base.kept[name][layer][:, self.start :])

    def _every_reader(self, layer: int) -> range:
        """The readers of a layer: those of attention, and last that of the MLP."""
        return range(
            self.model.graph.attention_readers(layer).start, self.model.graph.mlp_reader(layer) + 1
        )

    def _computed(self, layer: int) -> list[int]:
        """The readers of a layer that are computed."""
        return [index for index in self._every_reader(layer) if self.plan.readers[index]]

    def _block(self, layer: int, readers: Sequence[int]) -> _Block:
        """Runs these readers of a layer and puts what changes of its writes among ``changes``."""
        mlp = self.model.graph.mlp_reader(layer)
        attention = [index for index in readers if index != mlp]
        block = _Block(attention, [mlp] if mlp in readers else [])
        if not attention and not block.mlp:
            return block
        change = self._changes_read(layer, [*attention, *block.mlp])
        mlp_change = change[-1, :, self._first(layer) :].clone()
        if attention:
            with torch.no_grad():
                read = change[: len(attention)].add_(self._kept("resid_pre", layer))
                q, k, v = self._project(layer, read, attention)
            block.projected = (q.requires_grad_(), k.requires_grad_(), v.requires_grad_())
            block.written = self._attend(layer, block.projected)
            self._write_heads(layer, block.written.detach())
        if block.mlp:
            self._run_mlp(layer, block, mlp_change)
        return block

    def _first(self, layer: int) -> int:
        """The first position at which a layer writes: of the last layer the last is enough."""
        return -1 if layer == self.model.graph.n_layers - 1 else 0

    def _changes_read(self, layer: int, rows: list[int]) -> Float[Tensor, "reader row pos d_model"]:
        """What these readers of a layer read besides base's, of the writers before the layer.

        One product for all of them: it goes through all that was written so far.
        """
        earlier = self.plan.places(0, self.model.graph.head_writers(layer).start)
        read = _read(self.plan.weights[rows, earlier], self.changes[earlier].flatten(1))
        return self._share(read.view(-1, *self.changes.shape[1:]))

    def _run_mlp(
        self, layer: int, block: _Block, change: Float[Tensor, "row query d_model"]
    ) -> None:
        """Runs the MLP, given what it reads of the writers before the block."""
        graph, plan, n_positions = self.model.graph, self.plan, change.shape[1]
        reader = graph.mlp_reader(layer)
        own = plan.places(graph.head_writers(layer).start, graph.readers[reader].n_writers)
        if own.start < own.stop:
            of_heads = self.changes[own, :, -n_positions:].flatten(1)
            change += self._share((plan.weights[reader, own] @ of_heads).view_as(change))
        block.mlp_read = change.add_(self._kept("mlp_in", layer)[:, -n_positions:])
        block.mlp_read.requires_grad_()
        block.mlp_out = self.model.blocks[layer].mlp(block.mlp_read)
        written = block.mlp_out.detach() - self._kept("mlp_out", layer)[:, -n_positions:]
        self.changes[self._mlp(layer), :, -n_positions:] = written

    def _project(
        self, layer: int, read: Float[Tensor, "reader row pos d_model"], readers: list[int]
    ) -> list[Float[Tensor, "row _ _ d_head"]]:
        """Queries, keys and values; base's of those that are not computed."""
        attention, every = self.model.blocks[layer].attention, self.model.graph.readers
        values: list[Tensor] = []
        for slot in SLOTS:
            places = [place for place, index in enumerate(readers) if every[index].kind == slot]
            where = slice(self._first(layer) if slot == "q" else 0, None)
            of_slot = self._kept(slot, layer)[:, where]
            if places:
                streams = read[places[0] : places[-1] + 1, :, where]
                heads = [every[readers[place]].head for place in places]
                normed = attention.norm(streams)
                projected = attention.project_heads(slot, heads, normed).movedim(0, 2)
                chosen = torch.tensor(heads, device=of_slot.device)
                of_slot = of_slot.index_copy(2, chosen, projected.to(of_slot.dtype))
            values.append(of_slot if places else of_slot.detach().clone())
        return values

    def _attend(
        self, layer: int, projected: tuple[Tensor, Tensor, Tensor]
    ) -> Float[Tensor, "row query head d_head"]:
        """What the heads write before W_O, where queries are; all that is before is base's."""
        q, k, v = projected
        if self.start:
            kept_k, kept_v = (
                self._each_part(self.base.kept[slot][layer][:, : self.start]) for slot in ("k", "v")
            )
            k, v = torch.cat([kept_k, k], 1), torch.cat([kept_v, v], 1)
        attention = self.model.blocks[layer].attention
        return attention.written(attention.attend(q, k, v))

    def _write_heads(self, layer: int, written: Float[Tensor, "row query head d_head"]) -> None:
        heads = self._live_heads(layer)
        n_positions = written.shape[1]
        change = written - self._kept("written", layer)[:, -n_positions:]
        weight = self.model.blocks[layer].attention.output_weight()[heads]
        writes = head_writes(change[:, :, heads], weight)  # [head row pos d_model]
        self.changes[self._heads(layer), :, -n_positions:] = writes

    def _heads(self, layer: int) -> slice:
        """Where the heads of a layer stand among the plan's writers."""
        heads = self.model.graph.head_writers(layer)
        return self.plan.places(heads.start, heads.stop)

    def _mlp(self, layer: int) -> slice:
        """Where the MLP of a layer stands among the plan's writers, if it does."""
        mlp = self.model.graph.mlp_writer(layer)
        return self.plan.places(mlp, mlp + 1)

    def _live_heads(self, layer: int) -> list[int]:
        first = self.model.graph.head_writers(layer).start
        return [writer - first for writer in self.plan.writers[self._heads(layer)]]

    def backward(
        self, final_gradient: Float[Tensor, "row 1 d_model"]
    ) -> Float[Tensor, "reader live"]:
        """The gradients by the weights of the plan, given that by the last residual stream.

        Those of all parts are added up, each by the weights that held in its run.
        """
        plan, changes = self.plan, self.changes
        found = torch.zeros_like(plan.weights)
        found[-1] = changes[:, :, -1].flatten(1) @ final_gradient.flatten()
        by_writes = torch.zeros_like(changes)
        at_logits = self._share(final_gradient).flatten()
        by_writes[:, :, -1] = (plan.weights[-1][:, None] * at_logits).view_as(changes[:, :, -1])
        for layer in reversed(range(self.model.graph.n_layers)):
            self._back_through(layer, self._blocks.pop(), by_writes, found)
        return found

    def _back_through(
        self, layer: int, block: _Block, by_writes: Tensor, found: Float[Tensor, "reader live"]
    ) -> None:
        """Adds what goes through a block to ``found`` and to the gradients by earlier writes."""
        graph, plan, changes = self.model.graph, self.plan, self.changes
        heads, reader = graph.head_writers(layer), graph.mlp_reader(layer)
        gradients: list[Tensor] = []
        if block.mlp:
            at_mlp = self._by_mlp_read(layer, block, by_writes)
            gradients.append(at_mlp[None])
            own = plan.places(heads.start, graph.readers[reader].n_writers)
            if own.start < own.stop:
                found[reader, own] = changes[own].flatten(1) @ at_mlp.flatten()
                share = self._share(at_mlp.clone()).flatten()
                by_writes[own].flatten(1).addr_(plan.weights[reader, own], share)
        if block.attention:
            gradients.insert(0, self._by_read(layer, block, by_writes))
        if not gradients:
            return
        rows, earlier = [*block.attention, *block.mlp], plan.places(0, heads.start)
        at_readers = gradients[0] if len(gradients) == 1 else torch.cat(gradients)
        found[rows, earlier] = at_readers.flatten(1) @ changes[earlier].flatten(1).T
        at_readers = self._share(at_readers).flatten(1)
        _add_written(by_writes[earlier].flatten(1), plan.weights[rows, earlier], at_readers)

    def _by_mlp_read(
        self, layer: int, block: _Block, by_writes: Tensor
    ) -> Float[Tensor, "row pos d_model"]:
        """The gradient by what the MLP reads, 0 at positions that are not computed."""
        if block.mlp_read is None or block.mlp_out is None:
            raise RuntimeError("the MLP was not run")
        place = self._mlp(layer).start
        n_positions = block.mlp_out.shape[1]
        (gradient,) = torch.autograd.grad(
            block.mlp_out, block.mlp_read, by_writes[place, :, -n_positions:]
        )
        missing = self.changes.shape[2] - n_positions
        return torch.nn.functional.pad(gradient, (0, 0, missing, 0)) if missing else gradient

    def _by_read(
        self, layer: int, block: _Block, by_writes: Tensor
    ) -> Float[Tensor, "reader row pos d_model"]:
        """The gradients by what the attention readers read."""
        if block.written is None or block.projected is None:
            raise RuntimeError("attention was not run")
        n_positions = block.written.shape[1]
        heads, of_heads = self._live_heads(layer), by_writes[self._heads(layer), :, -n_positions:]
        weight = self.model.blocks[layer].attention.output_weight()[heads]
        gradient = torch.zeros_like(block.written)
        gradient[:, :, heads] = torch.einsum("hptm,hem->pthe", of_heads, weight)
        by_projected = torch.autograd.grad(block.written, block.projected, gradient)
        block.written = block.projected = None
        read = self._changes_read(layer, block.attention).add_(self._kept("resid_pre", layer))
        read.requires_grad_()
        with torch.enable_grad():
            projected = self._project(layer, read, block.attention)
        ends = [
            (value, at_value)
            for value, at_value in zip(projected, by_projected, strict=True)
            if value.requires_grad
        ]
        (found,) = torch.autograd.grad([end[0] for end in ends], read, [end[1] for end in ends])
        return found


def _read(
    weights: Float[Tensor, "reader live"], changes: Float[Tensor, "live n"]
) -> Float[Tensor, "reader n"]:
    """What readers read of changes; in one pass where all read alike, as with all edges."""
    if len(weights) > 1 and bool((weights == weights[0]).all()):
        return (weights[:1] @ changes).expand(len(weights), -1).clone()
    return weights @ changes


def _add_written(
    by_writes: Float[Tensor, "live n"],
    weights: Float[Tensor, "reader live"],
    gradients: Float[Tensor, "reader n"],
) -> None:
    """Adds, in place, what the gradients by what readers read make of those by what is written."""
    if len(weights) > 1 and bool((weights == weights[0]).all()):
        by_writes.addr_(weights[0], gradients.sum(0))
    else:
        by_writes.addmm_(weights.T, gradients)
