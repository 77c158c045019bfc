"""What each writer adds to the residual stream, made where it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import torch
from jaxtyping import Float
from torch import Tensor
from ..model.transformer import Model
from .trace import Run, Tape


WRITES = ("written", "mlp_out")
"""What a run keeps so that writes can be made of it."""


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
        found = self.input.new_empty(len(writers), *self.input.shape)
        by_layer: dict[int, list[int]] = {}
        for place, writer in enumerate(writers):
            node = model.graph.writers[writer]
            if node.kind == "head":
                by_layer.setdefault(node.layer, []).append(place)
            else:
                found[place] = self.input if node.layer < 0 else self.mlp_out[node.layer]
        for layer, places in by_layer.items():
            heads = [model.graph.writers[writers[place]].head for place in places]
            written = self.written[layer][:, :, heads]
            found[places] = torch.einsum(
                "bphe,hem->hbpm", written, model.output_weight(layer)[heads]
            )
        return found
