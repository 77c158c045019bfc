"""The exact reader: a reader's reaction computed anew, then the gradient from its output on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..model.transformer import Model
from ..names.graph import SLOTS, Slot
from ..question.metrics import Targets
from ..question.question import Question
from ..runs.trace import BothRuns, answer_logits
from ..runs.writes import Writes
from .qk_fix import KeyFix, contract_rows, pattern_difference
from .rules.rule import Gradients

OUTPUTS = ("z", "mlp_out")
"""those that the exact reader needs."""


REACTIONS = ("resid_pre", "mlp_in", *SLOTS)
"""What the run edited keeps so that readers can be computed anew."""


@dataclass(frozen=True)
class OutputGradients:
    """Gradients at what readers give, by layer; several where a rule averages absolute values.

    Attributes:
        layers: of each layer, gradients with how often each counts.
    """

    layers: dict[int, list[tuple[Gradients, int]]] = field(
        default_factory=dict[int, list[tuple[Gradients, int]]]
    )

    def add(self, found: dict[int, tuple[Gradients, int]], n_runs: int, unsigned: bool) -> None:
        """Takes in those of a pass: signed ones are summed, absolute values need each by itself."""
        for layer, (gradients, times) in found.items():
            if not set(OUTPUTS) <= set(gradients):
                continue  # a stream alone: behind all blocks, or before one that is dropped
            # [(run pair) pos ...] -> [pair pos ...]
            new = {
                name: gradients[name].unflatten(0, (n_runs, -1)).sum(0, dtype=torch.float32)
                for name in OUTPUTS
            }
            if unsigned:
                self.layers.setdefault(layer, []).append((new, times))
            elif layer in self.layers:
                for name, gradient in self.layers[layer][0][0].items():
                    gradient += new[name]
            else:
                self.layers[layer] = [(new, times)]

    def at(self, layer: int, name: str) -> Float[Tensor, "variant pair pos *entry"]:
        """All gradients by an activation."""
        return torch.stack([gradients[name] for gradients, _ in self.layers[layer]])

    def times(self, layer: int) -> list[int]:
        """How often each counts."""
        return [times for _, times in self.layers[layer]]


Reactions = Iterator[tuple[list[int], int, Float[Tensor, "variant writer pair *places"]]]
"""Of some writers and a reader, the estimated effects by position, one for each gradient."""


@dataclass(frozen=True, kw_only=True)
class PositionOptions:
    """At which positions readers are read anew.

    Attributes:
        each: every position is patched alone, rather than all at once.
        crossing: keep what keys and values are worth by query, too: estimates are
            ``[variant writer pair query key]`` then.
    """

    each: bool
    crossing: bool = False


class ExactReader:
    """Readers of the run edited, computed anew with another write in their input.

    Args:
        runs: both runs; the one edited keeps what ``REACTIONS`` names.
        gradients: at what readers give.
        options: at which positions.
        item_bytes: what a batch of readers computed anew may take.

    Attributes:
        base: the run edited.
        change: writes of the other run less those of the run edited.
        sign: makes effects clean minus corrupted: -1 where the clean run is edited.
    """

    def __init__(
        self,
        runs: BothRuns,
        question: Question,
        gradients: OutputGradients,
        options: PositionOptions,
        item_bytes: int,
    ) -> None:
        self.model, self.gradients, self.options = runs.model, gradients, options
        self.metric = question.measure
        self.base = runs.at(question.edited)
        self.change = Writes.difference(runs.at(question.other), self.base)
        self.sign = -question.sign
        n_pairs, n_pos = self.change.input.shape[:2]
        model = runs.model
        group = model.graph.n_heads // model.graph.n_kv_heads
        width = 6 * model.d_model + 3 * (model.d_mlp or 4 * model.d_model)
        numbers = n_pairs * (n_pos * width + 4 * group * n_pos**2)
        self.at_once = max(1, item_bytes // (4 * numbers))

    def reactions(
        self, wanted: Bool[Tensor, "writer reader"], attention_only: bool = False
    ) -> Reactions:
        """Everything wanted but the edges to the logits, layer by layer.

        Args:
            attention_only: queries and keys alone.
        """
        graph, wanted = self.model.graph, wanted.cpu()
        for layer in range(graph.n_layers):
            attention = graph.attention_readers(layer)
            readers = [
                reader
                for reader in range(attention.start, attention.stop)
                if not attention_only or graph.readers[reader].kind != "v"
            ]
            for writers in self._chunks(wanted[:, readers].any(1)):
                # [writer pair pos d_model], normalized once for all readers of the layer.
                resid = self.base.kept.resid_pre[layer] + self.change.of(self.model, writers)
                normed = self.model.blocks[layer].attention.norm(resid)
                for reader in readers:
                    # Of the writers normalized together, those whose edge into it is wanted.
                    places = wanted[writers, reader].nonzero().flatten()
                    if len(places):
                        chosen = [writers[place] for place in places.tolist()]
                        rows = normed
                        if len(places) < len(writers):
                            rows = normed[places.to(normed.device)]
                        yield chosen, reader, self.sign * self._of_head(layer, reader, rows)
            if not attention_only:
                yield from self._of_mlp(layer, wanted)

    def _chunks(self, writers: Bool[Tensor, "writer"]) -> Iterator[list[int]]:
        chosen = writers.nonzero().flatten()
        yield from (part.tolist() for part in chosen.split(self.at_once) if len(part))

    def _of_mlp(self, layer: int, wanted: Bool[Tensor, "writer reader"]) -> Reactions:
        reader = self.model.graph.mlp_reader(layer)
        gradient = None
        for writers in self._chunks(wanted[:, reader]):
            if gradient is None:  # made only where anything is wanted
                gradient = self.gradients.at(layer, "mlp_out").float()
            mlp_in = self.base.kept.mlp_in[layer] + self.change.of(self.model, writers)
            mlp_out = self.model.blocks[layer].mlp(mlp_in.flatten(0, 1))
            moved = mlp_out.view_as(mlp_in) - self.base.kept.mlp_out[layer]
            yield (
                writers,
                reader,
                self.sign * torch.einsum("wbpm,vbpm->vwbp", moved.float(), gradient),
            )

    def _of_head(
        self, layer: int, reader: int, normed: Float[Tensor, "writer pair pos d_model"]
    ) -> Float[Tensor, "variant writer pair *places"]:
        """What one query, key or value read anew is worth, for each stream it may read."""
        model, kept, n_writers = self.model, self.base.kept, len(normed)
        slot = cast("Slot", model.graph.readers[reader].kind)
        head = model.graph.readers[reader].head
        new = model.blocks[layer].attention.project_heads(slot, [head] * n_writers, normed)
        kv_head, queries = _heads(model, slot, head)
        # [variant pair query head d_head], of the heads that use this query, key or value.
        gradient = self.gradients.at(layer, "z")[..., queries, :].float()
        q, k = kept.q[layer][:, :, queries], kept.k[layer][:, :, kv_head : kv_head + 1]
        before = model.blocks[layer].attention.scores(q, k).float()
        if slot == "v":  # the pattern stays, so values enter linearly
            change = new - kept.v[layer][:, :, head]
            return _value_reaction(before.softmax(-1), change, gradient, self.options.crossing)
        rows = new.flatten(0, 1)[:, :, None]  # [writer pair pos d_head] -> [row pos 1 d_head]

        def repeated(heads: Tensor) -> Tensor:
            return heads.repeat(n_writers, 1, 1, 1)

        of_rows = (rows, repeated(k)) if slot == "q" else (repeated(q), rows)
        after = model.blocks[layer].attention.scores(*of_rows).float()
        value = kept.v[layer][:, :, kv_head].float()
        # As z = pattern . values, the gradient by the pattern is gradient . values. A query moves its
        # own row alone, so that one run with all of them changed has each query's effect; a key
        # moves every row, and needs a softmax of its own.
        return _pattern_reaction(
            before,
            after.unflatten(0, (n_writers, -1)),
            torch.einsum("vbqhd,bkd->vbhqk", gradient, value),
            alone=slot == "k" and self.options.each,
            crossing=self.options.crossing,
        )

    def effects_on_logits(
        self, wanted: Bool[Tensor, "writer reader"], targets: Targets
    ) -> Iterator[tuple[list[int], Float[Tensor, "writer pair"]]]:
        """The edges to the logits: metric with the clean less with the corrupted write."""
        base = self.metric(self.base.logits, targets)
        for writers in self._chunks(wanted[:, -1].cpu()):
            final = self.base.final[:, -1:] + self.change.of(self.model, writers)[:, :, -1:]
            logits = answer_logits(self.model, final.flatten(0, 1))
            values = self.metric(logits, targets.repeat(len(writers)))
            yield writers, self.sign * (values.view(len(writers), -1) - base).float()


def _heads(model: Model, slot: str, head: int) -> tuple[int, list[int]]:
    """The key-value reader and the query heads that a query, key or value has to do with."""
    group = model.graph.n_heads // model.graph.n_kv_heads
    if slot == "q":
        return head // group, [head]
    return head, list(model.graph.query_heads(head))


def _value_reaction(
    pattern: Float[Tensor, "pair head query key"],
    change: Float[Tensor, "writer pair key d_head"],
    gradient: Float[Tensor, "variant pair query head d_head"],
    crossing: bool,
) -> Float[Tensor, "variant writer pair *places"]:
    """What another value is worth, by its position (and by query): values enter linearly."""
    if crossing:
        # [variant writer pair head query key], then summed over heads
        worth = torch.einsum("wbkd,vbqhd->vwbhqk", change.float(), gradient)
        return (worth * pattern).sum(3)
    # Queries are summed over before writers come in: no table of patterns for each writer.
    at_values = torch.einsum("bhqk,vbqhd->vbkd", pattern, gradient)
    return torch.einsum("wbkd,vbkd->vwbk", change.float(), at_values)


def _pattern_reaction(
    before: Float[Tensor, "pair head query key"],
    after: Float[Tensor, "writer pair head query key"],
    gradient: Float[Tensor, "variant pair head query key"],
    alone: bool,
    crossing: bool,
) -> Float[Tensor, "variant writer pair *places"]:
    """What other scores are worth through the softmax: by query, or for each key alone by key."""
    before = before.expand_as(after)
    if alone:
        fix = KeyFix(before, after)
        # [writer pair head query key] -> [writer pair query key], -> [writer pair key]
        by_query = [fix.by_query(variant.expand_as(after)).sum(-3) for variant in gradient]
        return torch.stack([table if crossing else table.sum(-2) for table in by_query])
    difference = pattern_difference(before, after)
    return torch.stack(
        # [writer pair head query] -> [writer pair query]
        [
            contract_rows(difference, before, variant.expand_as(after)).sum(-2)
            for variant in gradient
        ]
    )
