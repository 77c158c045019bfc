"""A run under a mask of edges that can be gone through backwards, block by block.

Every block has graphs of its own, from its queries, keys and values, and from what its MLP reads, to
what it writes. Besides these there is one table of what all writers write, and one of the gradients
by it: autograd keeps no copy of the writes for every layer. What each query, key and value is
computed from, a residual stream for each, is made once more on the way back rather than kept. Only positions from the first on at which two prompts of the
batch differ are computed, and of the last block only what the last position needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError
from ..model.transformer import Model
from ..names.graph import SLOTS
from ..runs.masks import full_mask, live_mask
from ..runs.trace import Run, answer_logits


@dataclass(frozen=True)
class MaskPlan:
    """What of a model a mask leaves to be computed.

    Attributes:
        weights: of each reader, and of each of ``writers``, the share of its change that is read.
        writers: positions, in order, of ``input`` and of what the computed readers write as.
        readers: those that are computed: what they read may change, or a gradient is wanted there.
        wanted: the edges whose gradients are wanted and may differ from 0.
    """

    weights: Float[Tensor, "reader live"]
    writers: list[int]
    readers: list[bool]
    wanted: Bool[Tensor, "reader writer"]
    before: list[int]

    @classmethod
    def of(
        cls,
        model: Model,
        weights: Float[Tensor, "reader writer"],
        wanted: Bool[Tensor, "reader writer"] | None,
    ) -> MaskPlan:
        """The plan for a mask, and for the gradients of these edges (None: of all)."""
        graph, kept = model.graph, weights != 0
        wanted = full_mask(graph) if wanted is None else wanted
        if not model.heads_share_scale and not bool((wanted & ~kept).any()):
            kept = live_mask(graph, kept)
        reached, used = _reached(model, kept), _used(model, kept)
        wanted = wanted & reached & used[:, None]
        readers = (kept & reached).any(1) | wanted.any(1)
        writers = _written_by(model, readers)
        return cls(
            weights.where(kept, 0.0)[:, writers].to(model.device, model.dtype),
            writers.nonzero().flatten().tolist(),
            readers.tolist(),
            wanted,
            [0, *accumulate(writers.int().tolist())],
        )

    def scaled(self, part: float) -> MaskPlan:
        """The same with ``part`` of the mask."""
        return MaskPlan(part * self.weights, self.writers, self.readers, self.wanted, self.before)

    def places(self, start: int, stop: int) -> slice:
        """Where those of these writers stand in the tables of writers that are computed."""
        return slice(self.before[start], self.before[stop])


def _reached(model: Model, kept: Bool[Tensor, "reader writer"]) -> Bool[Tensor, "writer"]:
    """The writers that a path of these edges leads to from ``input``."""
    graph = model.graph
    reached = torch.zeros(len(graph.writers), dtype=torch.bool)
    reached[0] = True
    for layer in range(graph.n_layers):
        changed = (kept[graph.attention_readers(layer)] & reached).any(1)
        reached[graph.head_writers(layer)] = _heads_of(model, changed)
        reached[graph.mlp_writer(layer)] = (kept[graph.mlp_reader(layer)] & reached).any()
    return reached


def _written_by(model: Model, readers: Bool[Tensor, "reader"]) -> Bool[Tensor, "writer"]:
    """``input``, and the writers that these readers belong to."""
    graph = model.graph
    writers = torch.zeros(len(graph.writers), dtype=torch.bool)
    writers[0] = True
    for layer in range(graph.n_layers):
        of_heads = readers[graph.attention_readers(layer)]
        writers[graph.head_writers(layer)] = _heads_of(model, of_heads)
        writers[graph.mlp_writer(layer)] = readers[graph.mlp_reader(layer)]
    return writers


def _heads_of(model: Model, readers: Bool[Tensor, "reader"]) -> Bool[Tensor, "head"]:
    """The heads of a layer whose writes depend on these of its readers."""
    graph = model.graph
    q, k, v = readers.split([graph.n_heads, graph.n_kv_heads, graph.n_kv_heads])
    heads = q | (k | v).repeat_interleave(graph.n_heads // graph.n_kv_heads)
    return heads.any().expand_as(heads) if model.heads_share_scale else heads


def _used(model: Model, kept: Bool[Tensor, "reader writer"]) -> Bool[Tensor, "reader"]:
    """The readers from whose node a path of these edges leads to ``logits``."""
    graph, group = model.graph, model.graph.n_heads // model.graph.n_kv_heads
    used = torch.zeros(len(graph.readers), dtype=torch.bool)
    used[-1] = True
    needed = kept[-1].clone()
    for layer in reversed(range(graph.n_layers)):
        if needed[graph.mlp_writer(layer)]:
            used[graph.mlp_reader(layer)] = True
            needed |= kept[graph.mlp_reader(layer)]
        heads = needed[graph.head_writers(layer)]
        if model.heads_share_scale:
            heads = heads.any().expand_as(heads)
        groups = heads.view(-1, group).any(1)
        attention = graph.attention_readers(layer)
        used[attention] = torch.cat([heads, groups, groups])
        needed |= kept[attention][used[attention]].any(0)
    return used


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
    """One run of a batch under a mask, to be gone through backwards once.

    ``changes`` are writes now less writes of the base run. [writer pair pos d_model]

    Args:
        resid: what the input writes now.
        base: a run that keeps ``BASE`` of ``reduced``.
    """

    def __init__(
        self, model: Model, plan: MaskPlan, resid: Float[Tensor, "pair pos d_model"], base: Run
    ) -> None:
        self.model, self.plan, self.base = model, plan, base
        differs = (resid != base.input).any(-1).any(0).tolist()
        self.start = differs.index(True) if True in differs else len(differs) - 1
        change = (resid - base.input)[:, self.start :]
        self.changes = change.new_zeros(len(plan.writers), *change.shape)
        self.changes[0] = change
        self._blocks: list[_Block] = []

    def values(
        self, metric: Callable[[Float[Tensor, "pair d_vocab"]], Float[Tensor, "pair"]]
    ) -> Float[Tensor, "pair"]:
        """The metric of each pair, with nothing kept to go back through."""
        with torch.no_grad():
            for layer in range(self.model.graph.n_layers):
                self._block(layer)
            return metric(answer_logits(self.model, self._final()))

    def forward(
        self, metric: Callable[[Float[Tensor, "pair d_vocab"]], Float[Tensor, "pair"]]
    ) -> tuple[Float[Tensor, "pair"], Float[Tensor, "pair 1 d_model"]]:
        """The metric of each pair, and the gradient of its sum by the last residual stream."""
        with torch.enable_grad():
            for layer in range(self.model.graph.n_layers):
                self._blocks.append(self._block(layer))
            final = self._final().requires_grad_()
            values = metric(answer_logits(self.model, final))
            if not values.requires_grad:
                raise InputError("the metric does not depend on the logits; use another metric")
            (gradient,) = torch.autograd.grad(values.sum(), final)
        return values.detach(), gradient

    def _final(self) -> Float[Tensor, "pair 1 d_model"]:
        """The last residual stream, at the last position."""
        change = self.plan.weights[-1] @ self.changes[:, :, -1].flatten(1)
        return self.base.final[:, -1:] + change.view_as(self.base.final[:, -1:])

    def _kept(self, name: str, layer: int) -> Tensor:
        """What the base run kept, from the first difference on."""
        return getattr(self.base.kept, name)[layer][:, self.start :]

    def _block(self, layer: int) -> _Block:
        """Runs a block and puts what changes of its writes among ``changes``."""
        graph, plan = self.model.graph, self.plan
        reader = graph.mlp_reader(layer)
        attention = [
            index for index in range(*graph.attention_readers(layer).indices(reader))
            if plan.readers[index]
        ]  # fmt: skip
        block = _Block(attention, [reader] if plan.readers[reader] else [])
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

    def _changes_read(
        self, layer: int, rows: list[int]
    ) -> Float[Tensor, "reader pair pos d_model"]:
        """What these readers of a layer read besides base's, of the writers before the layer.

        One product for all of them: it goes through all that was written so far.
        """
        earlier = self.plan.places(0, self.model.graph.head_writers(layer).start)
        read = _read(self.plan.weights[rows, earlier], self.changes[earlier].flatten(1))
        return read.view(-1, *self.changes.shape[1:])

    def _run_mlp(
        self, layer: int, block: _Block, change: Float[Tensor, "pair query d_model"]
    ) -> None:
        """Runs the MLP, given what it reads of the writers before the block."""
        graph, plan, n_positions = self.model.graph, self.plan, change.shape[1]
        reader, mlp = graph.mlp_reader(layer), graph.mlp_writer(layer)
        own = plan.places(graph.head_writers(layer).start, graph.readers[reader].n_writers)
        if own.start < own.stop:
            of_heads = self.changes[own, :, -n_positions:].flatten(1)
            change += (plan.weights[reader, own] @ of_heads).view_as(change)
        block.mlp_read = change.add_(self._kept("mlp_in", layer)[:, -n_positions:])
        block.mlp_read.requires_grad_()
        block.mlp_out = self.model.mlp(layer, self.model.mlp_norm(layer, block.mlp_read))
        written = block.mlp_out.detach() - self._kept("mlp_out", layer)[:, -n_positions:]
        self.changes[plan.places(mlp, mlp + 1), :, -n_positions:] = written

    def _project(
        self, layer: int, read: Float[Tensor, "reader pair pos d_model"], readers: list[int]
    ) -> list[Float[Tensor, "pair _ _ d_head"]]:
        """Queries, keys and values; base's of those that are not computed."""
        model, graph = self.model, self.model.graph
        values: list[Tensor] = []
        for slot in SLOTS:
            places = [
                place for place, index in enumerate(readers) if graph.readers[index].kind == slot
            ]
            where = slice(self._first(layer) if slot == "q" else 0, None)
            of_slot = self._kept(slot, layer)[:, where]
            if places:
                streams = read[places[0] : places[-1] + 1, :, where]
                heads = [graph.readers[readers[place]].head for place in places]
                normed = model.attention_norm(layer, streams)
                projected = model.project_heads(layer, slot, heads, normed).movedim(0, 2)
                chosen = torch.tensor(heads, device=model.device)
                of_slot = of_slot.index_copy(2, chosen, projected.to(of_slot.dtype))
            values.append(of_slot if places else of_slot.detach().clone())
        return values

    def _attend(
        self, layer: int, projected: tuple[Tensor, Tensor, Tensor]
    ) -> Float[Tensor, "pair query head d_head"]:
        """What the heads write before W_O, where queries are; all that is before is base's."""
        q, k, v = projected
        if self.start:
            past = (getattr(self.base.kept, slot)[layer][:, : self.start] for slot in ("k", "v"))
            k, v = (torch.cat([before, now], 1) for before, now in zip(past, (k, v), strict=True))
        return self.model.written(layer, self.model.attend(layer, q, k, v))

    def _write_heads(self, layer: int, written: Float[Tensor, "pair query head d_head"]) -> None:
        heads = self._live_heads(layer)
        n_positions = written.shape[1]
        change = written - self._kept("written", layer)[:, -n_positions:]
        weight = self.model.output_weight(layer)[heads]
        self.changes[self._places(layer), :, -n_positions:] = torch.einsum(
            "pthe,hem->hptm", change[:, :, heads], weight
        )

    def _places(self, layer: int) -> slice:
        heads = self.model.graph.head_writers(layer)
        return self.plan.places(heads.start, heads.stop)

    def _live_heads(self, layer: int) -> list[int]:
        first = self.model.graph.head_writers(layer).start
        return [writer - first for writer in self.plan.writers[self._places(layer)]]

    def backward(
        self, final_gradient: Float[Tensor, "pair 1 d_model"]
    ) -> Float[Tensor, "reader live"]:
        """The gradients by the weights of the plan, given that by the last residual stream."""
        plan, changes = self.plan, self.changes
        found = torch.zeros_like(plan.weights)
        found[-1] = changes[:, :, -1].flatten(1) @ final_gradient.flatten()
        by_writes = torch.zeros_like(changes)
        by_writes[:, :, -1] = (plan.weights[-1][:, None] * final_gradient.flatten()).view_as(
            changes[:, :, -1]
        )
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
            at_mlp = self._by_mlp_read(layer, block, by_writes).flatten()
            own = plan.places(heads.start, graph.readers[reader].n_writers)
            if own.start < own.stop:
                found[reader, own] = changes[own].flatten(1) @ at_mlp
                by_writes[own].flatten(1).addr_(plan.weights[reader, own], at_mlp)
            gradients.append(at_mlp[None])
        if block.attention:
            gradients.insert(0, self._by_read(layer, block, by_writes).flatten(1))
        if not gradients:
            return
        rows, earlier = [*block.attention, *block.mlp], plan.places(0, heads.start)
        at_readers = gradients[0] if len(gradients) == 1 else torch.cat(gradients)
        found[rows, earlier] = at_readers @ changes[earlier].flatten(1).T
        _add_written(by_writes[earlier].flatten(1), plan.weights[rows, earlier], at_readers)

    def _by_mlp_read(
        self, layer: int, block: _Block, by_writes: Tensor
    ) -> Float[Tensor, "pair pos d_model"]:
        """The gradient by what the MLP reads, 0 at positions that are not computed."""
        if block.mlp_read is None or block.mlp_out is None:
            raise RuntimeError("the MLP was not run")
        mlp = self.model.graph.mlp_writer(layer)
        place = self.plan.places(mlp, mlp + 1).start
        n_positions = block.mlp_out.shape[1]
        (gradient,) = torch.autograd.grad(
            block.mlp_out, block.mlp_read, by_writes[place, :, -n_positions:]
        )
        missing = self.changes.shape[2] - n_positions
        return torch.nn.functional.pad(gradient, (0, 0, missing, 0)) if missing else gradient

    def _by_read(
        self, layer: int, block: _Block, by_writes: Tensor
    ) -> Float[Tensor, "reader pair pos d_model"]:
        """The gradients by what the attention readers read."""
        if block.written is None or block.projected is None:
            raise RuntimeError("attention was not run")
        n_positions = block.written.shape[1]
        heads, of_heads = self._live_heads(layer), by_writes[self._places(layer), :, -n_positions:]
        weight = self.model.output_weight(layer)[heads]
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
