"""What each writer adds to the residual stream, made where it is needed.

A head writes ``written @ output_weight``, which no run keeps; the input and an MLP write what a run
keeps of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..model.activations import Activations
from ..model.transformer import Model
from ..names.graph import Writer
from .trace import Run, Tape

WRITES = ("written", "mlp_out")
"""What a run keeps so that writes can be made of it."""


def before_output(
    resid: Float[Tensor, "pair pos d_model"], kept: Activations, writer: Writer
) -> Float[Tensor, "pair pos _"]:
    """What ``through_output`` makes a write of: of a head d_head numbers, of others the write.

    Args:
        resid: what the input writes.
        kept: ``WRITES`` of a run.
    """
    if writer.kind == "input":
        return resid
    if writer.head is None:
        return kept.mlp_out[writer.layer]
    return kept.written[writer.layer][:, :, writer.head]


def through_output(
    model: Model, writer: Writer, value: Float[Tensor, "*row _"]
) -> Float[Tensor, "*row d_model"]:
    """A write of ``before_output``, a part of it, or a difference of two."""
    if writer.head is None:
        return value
    return value @ model.blocks[writer.layer].attention.output_weight()[writer.head]


def head_writes(
    written: Float[Tensor, "*row head d_head"], weight: Float[Tensor, "head d_head d_model"]
) -> Float[Tensor, "head *row d_model"]:
    """The writes of heads of a layer, of what they wrote and their output weights."""
    return torch.einsum("...he,hem->h...m", written, weight)


@dataclass(frozen=True)
class Writes:
    """What makes the writes of a batch: of one run, or differences of two."""

    input: Float[Tensor, "pair pos d_model"]
    written: Sequence[Float[Tensor, "pair pos head d_head"]]
    mlp_out: Sequence[Float[Tensor, "pair pos d_model"]]

    @classmethod
    def difference(cls, one: Run | Tape, other: Run | Tape) -> Writes:
        """The writes of one run less those of the other."""

        def less(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
            return [x - y for x, y in zip(a, b, strict=True)]

        return cls(
            one.input - other.input,
            less(one.kept.written, other.kept.written),
            less(one.kept.mlp_out, other.kept.mlp_out),
        )

    def of(self, model: Model, writers: Sequence[int]) -> Float[Tensor, "writer pair pos d_model"]:
        """The writes of some writers, as large as they stand in the residual stream."""
        writes = self.input.new_empty(len(writers), *self.input.shape)
        # Heads of a layer are put off, to be multiplied with their weights in one product.
        by_layer: dict[int, list[int]] = {}
        for place, writer in enumerate(writers):
            node = model.graph.writers[writer]
            if node.kind == "head":
                by_layer.setdefault(node.layer, []).append(place)
            else:
                # Layer -1 is the input's.
                writes[place] = self.input if node.layer < 0 else self.mlp_out[node.layer]
        for layer, places in by_layer.items():
            heads = [model.graph.writers[writers[place]].head for place in places]
            written = self.written[layer][:, :, heads]  # [pair pos head d_head]
            writes[places] = head_writes(
                written, model.blocks[layer].attention.output_weight()[heads]
            )
        return writes
