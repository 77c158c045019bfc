"""One hop of a path: readers of a layer that each see a changed input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..model.transformer import Model
from ..names.graph import SLOTS, Reader, Slot
from ..runs.writes import before_output, through_output
from .engine import Runs

_KINDS: tuple[Literal["mlp"] | Slot, ...] = ("mlp", *SLOTS)


def path_change(
    model: Model, runs: Runs, writer: int, readers: Sequence[int]
) -> Float[Tensor, "pair pos d_model"]:
    """How what the last reader of a path reads changes: that is, what is written before it.

    Args:
        readers: those before the last; none for an edge.
    """
    change = _difference(model, runs, writer)
    for place in readers:
        reader = model.graph.readers[place]
        hop = Hop(model, runs, reader.layer, [reader], change[None], [0])
        change = hop.written_changes()[0]
        if change.shape[1] == 1:  # written at the last position alone, by the last layer
            change = torch.nn.functional.pad(change, (0, 0, runs.resid_before(0).shape[1] - 1, 0))
    return change


def _difference(model: Model, runs: Runs, writer: int) -> Float[Tensor, "pair pos d_model"]:
    """What a writer adds to the residual stream in the other run, less what it adds in the base."""
    node, base, other = model.graph.writers[writer], runs.base, runs.other
    there = before_output(other.input[0], other, node)
    change = there - before_output(base.input, base.kept, node)
    return through_output(model, node, change[:, runs.start :])


@dataclass(frozen=True)
class Hop:
    """Readers of one layer, each of which alone sees its input changed: one item each.

    Attributes:
        changes: of what is read, few, each for several items.
        of: which of them each item has.
    """

    model: Model
    runs: Runs
    layer: int
    readers: Sequence[Reader]
    changes: Float[Tensor, "change pair pos d_model"]
    of: Sequence[int]

    @property
    def _written_at(self) -> slice:
        """The positions at which it matters what the layer writes; of the base run's."""
        last = self.layer == self.model.graph.n_layers - 1
        return slice(-1, None) if last else slice(self.runs.start, None)

    def _cut(
        self, stream: Float[Tensor, "*item pos d_model"]
    ) -> Float[Tensor, "*item query d_model"]:
        """Of positions that may change, those at which it matters what the layer writes."""
        return stream[..., -1:, :] if self._written_at.start == -1 else stream

    def read_changes(
        self, items: Sequence[int] | None = None
    ) -> Float[Tensor, "item pair pos d_model"]:
        """How what the readers (or these of them) read changes."""
        of = self.of if items is None else [self.of[item] for item in items]
        return self.changes[torch.tensor(of, device=self.changes.device)]

    def _by_kind(self) -> Iterator[tuple[Literal["mlp"] | Slot, list[int]]]:
        for kind in _KINDS:
            items = [item for item, reader in enumerate(self.readers) if reader.kind == kind]
            if items:
                yield kind, items

    def _joined(self, parts: Sequence[tuple[list[int], Tensor]]) -> Tensor:
        """Results of some items each, in the order of the items."""
        if len(parts) == 1:
            return parts[0][1]
        # argsort of a permutation is its inverse.
        order = torch.tensor([item for items, _ in parts for item in items])
        return torch.cat([part for _, part in parts])[order.argsort().to(self.changes.device)]

    def resid_after(self) -> Float[Tensor, "item pair query d_model"]:
        """The residual stream after the layer."""
        parts: list[tuple[list[int], Tensor]] = []
        after = self._cut(self.runs.resid_before(self.layer + 1))
        for kind, items in self._by_kind():
            if kind == "mlp":
                parts.append((items, after + self._mlp_change(items)))
            else:
                raw = self._raw_change(*self._z_change(kind, items))
                parts.append((items, self._after_attention(self._attention_change(raw))))
        return self._joined(parts)

    def written_changes(self) -> Float[Tensor, "item pair query d_model"]:
        """How what the readers' own heads or MLPs write changes."""
        parts: list[tuple[list[int], Tensor]] = []
        for kind, items in self._by_kind():
            if kind == "mlp":
                parts.append((items, self._mlp_change(items)))
            else:
                parts.append((items, self._own_change(*self._z_change(kind, items))))
        return self._joined(parts)

    def _mlp_change(self, items: Sequence[int]) -> Float[Tensor, "item pair query d_model"]:
        kept, at = self.runs.base.kept, self._written_at
        mlp_in = kept.mlp_in[self.layer][:, at] + self._cut(self.read_changes(items))
        return self._mlp(mlp_in) - kept.mlp_out[self.layer][:, at]

    def _mlp(
        self, mlp_in: Float[Tensor, "item pair query d_model"]
    ) -> Float[Tensor, "item pair query d_model"]:
        # [item pair pos d_model] -> [(item pair) pos d_model], and back
        return self.model.blocks[self.layer].mlp(mlp_in.flatten(0, 1)).view_as(mlp_in)

    def _z_change(
        self, slot: Slot, items: Sequence[int]
    ) -> tuple[Float[Tensor, "item pair query n d_head"], Int64[Tensor, "item n"]]:
        """How outputs of heads change when one query, key or value (of a head each) is computed anew.

        A key or value serves all query heads of its group; they are recomputed, no others. Gives the
        change of each such z, and which query heads they are.
        """
        model, kept, layer, start = self.model, self.runs.base.kept, self.layer, self.runs.start
        device, n_pairs = self.changes.device, self.changes.shape[1]
        group = model.graph.n_heads // model.graph.n_kv_heads
        heads = torch.tensor([self.readers[item].head for item in items], device=device)
        # Items that share a change share its norm and projection: each is made once, for all heads.
        used = sorted({self.of[item] for item in items})
        change_of = torch.tensor([used.index(self.of[item]) for item in items], device=device)
        if slot == "q":
            kv_heads, query_heads = heads // group, heads[:, None]
        else:
            kv_heads = heads
            query_heads = heads[:, None] * group + torch.arange(group, device=device)

        def rows(activation: Tensor, chosen: Tensor) -> Tensor:
            """``[pair pos head d_head]`` at heads ``[item n]`` as ``[(item pair) pos n d_head]``."""
            # [pair pos item n d_head] -> [item pair pos n d_head] -> [(item pair) pos n d_head]
            return activation[:, :, chosen].permute(2, 0, 1, 3, 4).flatten(0, 1)

        changes = (
            self.changes
            if len(used) == len(self.changes)
            else self.changes[torch.tensor(used, device=device)]
        )
        attention = model.blocks[layer].attention
        normed = attention.norm(self.runs.resid_before(layer) + changes)
        new = attention.project(slot, self._cut(normed) if slot == "q" else normed)
        # [change pair pos head d_head] -> [item pair pos d_head] -> [(item pair) pos 1 d_head]
        new = new[change_of, :, :, heads].flatten(0, 1)[:, :, None]
        if slot == "q":
            q, k, v = (
                new,
                rows(kept.k[layer], kv_heads[:, None]),
                rows(kept.v[layer], kv_heads[:, None]),
            )
        else:
            q = rows(kept.q[layer][:, self._written_at], query_heads)
            both = {name: rows(kept[name][layer], kv_heads[:, None]) for name in ("k", "v")}
            # Before ``start`` nothing changes, and nothing was computed anew.
            both[slot] = torch.cat([both[slot][:, :start], new], 1)
            k, v = both["k"], both["v"]
        z = attention.attend(q, k, v) - rows(kept.z[layer][:, self._written_at], query_heads)
        return z.unflatten(0, (len(items), n_pairs)), query_heads

    def _raw_change(
        self, z: Float[Tensor, "item pair query n d_head"], of: Int64[Tensor, "item n"]
    ) -> Float[Tensor, "item pair query d_model"]:
        """How the sum of a layer's heads changes, before any norm behind them."""
        weight = self.model.blocks[self.layer].attention.raw_output_weight()
        return torch.einsum("ebpnd,endm->ebpm", z, weight[of])

    def _attention_change(
        self, raw: Float[Tensor, "item pair query d_model"]
    ) -> Float[Tensor, "item pair query d_model"]:
        """How what attention writes changes when the sum of its heads changes by ``raw``."""
        attention = self.model.blocks[self.layer].attention
        base = attention.raw_output(self.runs.base.kept.z[self.layer][:, self._written_at])
        # A difference of two, for a norm behind attention is not linear.
        return attention.finish(base + raw) - attention.finish(base)

    def _after_attention(
        self, change: Float[Tensor, "item pair query d_model"]
    ) -> Float[Tensor, "item pair query d_model"]:
        """The residual stream after the layer when what attention writes there is changed."""
        if self.model.graph.parallel:
            return self._cut(self.runs.resid_before(self.layer + 1)) + change
        mlp_in = self.runs.base.kept.mlp_in[self.layer][:, self._written_at] + change
        return mlp_in + self._mlp(mlp_in)

    def _own_change(
        self, z: Float[Tensor, "item pair query n d_head"], of: Int64[Tensor, "item n"]
    ) -> Float[Tensor, "item pair query d_model"]:
        """How what these heads write changes, each scaled as the norm behind attention now scales."""
        model, layer = self.model, self.layer
        attention = model.blocks[layer].attention
        if not model.heads_share_scale:
            return self._attention_change(self._raw_change(z, of))
        kept = self.runs.base.kept
        # The scale is of all heads' sum, so all are needed: [item pair query head d_head].
        every = kept.z[layer][:, self._written_at].repeat(len(z), 1, 1, 1, 1)
        item = torch.arange(len(z), device=z.device)[:, None]
        # Two indices with dimensions between them come first: [item n pair query d_head].
        every[item, :, :, of] += z.permute(0, 3, 1, 2, 4)
        change = attention.written(every) - kept.written[layer][:, self._written_at]
        own = change[item, :, :, of]
        return torch.einsum("enbpd,endm->ebpm", own, attention.output_weight()[of])


def through_mlps(
    model: Model, runs: Runs, hop: Hop, change: Float[Tensor, "item pair 1 d_model"]
) -> Float[Tensor, "item pair 1 d_model"]:
    """How the last residual stream changes when MLPs alone react to what a head or MLP writes.

    MLPs mix no positions, so the last one is all there is to follow.
    """
    kept = runs.base.kept
    for layer in range(hop.layer, model.graph.n_layers):
        # In the reader's own layer the MLP reads what attention writes, unless they are parallel.
        reacts = torch.tensor(
            [
                layer > hop.layer or (reader.kind != "mlp" and not model.graph.parallel)
                for reader in hop.readers
            ],
            device=change.device,
        )
        mlp_in = kept.mlp_in[layer][:, -1:] + change
        mlp_out = model.blocks[layer].mlp(mlp_in.flatten(0, 1)).view_as(mlp_in)
        reaction = mlp_out - kept.mlp_out[layer][:, -1:]
        change = change + reaction * reacts[:, None, None, None]
    return change
