"""What a mask of edges leaves to be computed: which readers, and which writers anew.

A reader is left out if nothing it reads can change, or if nothing comes of it: if no path of kept
edges leads to it from ``input``, or from it to ``logits``. In here tables are by reader first, whose
row is then in one piece to multiply what it reads by.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InputError
from ..model.transformer import Model
from ..names.graph import ModelGraph
from ..runs.masks import as_mask, full_mask, live_mask


def as_weights(graph: ModelGraph, mask: Tensor) -> Float[Tensor, "writer reader"]:
    """A mask, of booleans or of shares, as numbers. Raises InputError for one that cannot be."""
    if mask.dtype == torch.bool:
        return as_mask(graph, mask).double()
    as_mask(graph, mask != 0)
    if not bool(torch.isfinite(mask).all()):
        raise InputError(
            "expected a mask of finite numbers, got NaN or infinite ones; 1 keeps an edge whole, 0 "
            "leaves it out"
        )
    return mask.detach().cpu().double()


@dataclass(frozen=True, eq=False)
class MaskPlan:
    """What of a model a mask leaves to be computed.

    Attributes:
        weights: of each reader, and of each of ``writers``, the share of its change that is read.
        writers: positions, in order, of ``input`` and of what the computed readers write as.
        readers: those that are computed: what they read may change, or a gradient is wanted there.
        wanted: the edges whose gradients are wanted and may differ from 0.
        before: how many of the ``writers`` stand before each of the model's.
    """

    weights: Float[Tensor, "reader live"]
    writers: list[int]
    readers: list[bool]
    wanted: Bool[Tensor, "writer reader"]
    before: list[int]

    @classmethod
    def of(
        cls,
        model: Model,
        weights: Float[Tensor, "writer reader"],
        wanted: Bool[Tensor, "writer reader"] | None,
    ) -> MaskPlan:
        """The plan for a mask, and for the gradients of these edges (None: of all)."""
        graph, kept = model.graph, weights != 0
        wanted = full_mask(graph) if wanted is None else as_mask(graph, wanted)
        # Where heads share a scale, a head may change without a kept edge into it.
        if not model.heads_share_scale and not bool((wanted & ~kept).any()):
            kept = live_mask(graph, kept)
        reached, used = _reached(model, kept.T), _used(model, kept.T)
        wanted = wanted & reached[:, None] & used
        readers = (kept & reached[:, None]).any(0) | wanted.any(0)
        writers = _written_by(model, readers)
        by_reader = weights.where(kept, 0.0)[writers].T.contiguous()
        return cls(
            by_reader.to(model.device, model.dtype),
            writers.nonzero().flatten().tolist(),
            readers.tolist(),
            wanted,
            [0, *accumulate(writers.int().tolist())],
        )

    def scaled(self, part: float) -> MaskPlan:
        """The same with ``part`` of the mask."""
        return replace(self, weights=part * self.weights)

    def without(self, lost: Bool[Tensor, "reader live"]) -> MaskPlan:
        """The same without some of the edges; what only these needed is computed all the same."""
        return replace(self, weights=self.weights.masked_fill(lost, 0))

    def by_plan(self, mask: Bool[Tensor, "writer reader"]) -> Bool[Tensor, "reader live"]:
        """Those edges of a mask that the plan reads anything by, as its weights are laid out."""
        return mask[self.writers].T.to(self.weights.device) & (self.weights != 0)

    def places(self, start: int, stop: int) -> slice:
        """Where those of these writers of the model stand among the plan's."""
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
        attention = readers[graph.attention_readers(layer)]
        writers[graph.head_writers(layer)] = _heads_of(model, attention)
        writers[graph.mlp_writer(layer)] = readers[graph.mlp_reader(layer)]
    return writers


def _heads_of(model: Model, readers: Bool[Tensor, "reader"]) -> Bool[Tensor, "head"]:
    """The heads of a layer whose writes depend on these of its attention readers."""
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
