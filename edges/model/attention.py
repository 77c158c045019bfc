"""Attention of a block: from the residual stream to queries, keys, values, and to what is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..names.graph import SLOTS, Slot
from .parts import Norm, NormDerivative, Scores, See, at_least_float32, in_out_weight, norm_of


class Attention:
    """Attention of one block, step by step.

    Args:
        bridge: the whole TransformerBridge.
        layer: the block's number.
        kv_group: how many readers of keys, or of values, one key-value head is split into.
    """

    def __init__(self, bridge: Any, layer: int, kv_group: int = 1) -> None:
        block = bridge.blocks[layer]
        self._layer = layer
        self._kv_group = kv_group
        self._d_head = int(bridge.cfg.d_head)
        self._d_model = int(bridge.cfg.d_model)
        self._norm = norm_of(block, "ln1")
        self._post_norm = norm_of(block, "ln1_post")
        self._multiplier = float(getattr(block, "residual_contribution_scale", 1.0))
        self._linears: dict[str, Any] = {name: getattr(block.attn, name) for name in (*SLOTS, "o")}
        self._head_norms = {slot: norm_of(block.attn, f"{slot}_norm") for slot in SLOTS}
        self._scores = Scores(bridge, layer)

    # ---- what is read

    def norm(
        self, resid: Float[Tensor, "*token d_model"], see: See | None = None
    ) -> Float[Tensor, "*token d_model"]:
        """The residual stream as queries, keys and values are computed from it."""
        return resid if self._norm is None else self._norm(resid, see, self._layer)

    def norm_derivative(self, resid: Float[Tensor, "*token d_model"]) -> NormDerivative | None:
        """The derivative of ``norm`` at a residual stream; None if it is the identity."""
        return None if self._norm is None else self._norm.derivative(resid)

    def projection(
        self, slot: Slot
    ) -> tuple[Float[Tensor, "head d_model d_head"], Float[Tensor, "head d_head"] | None]:
        """Weight and bias of the queries, keys or values, by (key-value) head."""
        linear = self._linears[slot]
        weight = linear.weight.view(-1, self._d_head, self._d_model).transpose(1, 2)
        bias = None if linear.bias is None else linear.bias.view(-1, self._d_head)
        return weight, bias

    def head_norm(self, slot: Slot) -> Norm | None:
        """The norm of the queries or keys, where there is one."""
        return self._head_norms[slot]

    def norm_spans_heads(self, slot: Slot) -> bool:
        """Whether the norm of queries or keys is one over all heads, rather than one for each."""
        norm = self._head_norms[slot]
        return norm is not None and len(norm.weight) != self._d_head

    def project_raw(
        self, slot: Slot, normed: Float[Tensor, "*token d_model"]
    ) -> Float[Tensor, "*token head d_head"]:
        """Queries, keys or values by (key-value) head, before any norm of theirs."""
        return self._linears[slot](normed).unflatten(-1, (-1, self._d_head))

    def project(
        self, slot: Slot, normed: Float[Tensor, "*token d_model"], see: See | None = None
    ) -> Float[Tensor, "*token head d_head"]:
        """Queries, keys or values, one for each reader of that slot."""
        heads = self._normalize_heads(slot, self.project_raw(slot, normed), see)
        return heads if slot == "q" else self.for_readers(heads)

    def for_readers(
        self, heads: Float[Tensor, "*token kv_head d_head"]
    ) -> Float[Tensor, "*token head d_head"]:
        """Keys or values (or what is of their shape) by reader: as they are, unless per query."""
        return heads if self._kv_group == 1 else heads.repeat_interleave(self._kv_group, -2)

    def project_heads(
        self,
        slot: Slot,
        heads: Sequence[int],
        normed: Float[Tensor, "item pair pos d_model"],
    ) -> Float[Tensor, "item pair pos d_head"]:
        """The query, key or value of ``heads[i]`` computed from a stream of its own, for each i."""
        group = 1 if slot == "q" else self._kv_group
        chosen = torch.tensor(heads, device=normed.device) // group
        if self.norm_spans_heads(slot):
            # Such a norm needs all heads of a stream: project them all, then take one of each item.
            every = self._normalize_heads(slot, self.project_raw(slot, normed))
            # [item pair pos head d_head] -> [item pair pos d_head]
            return every[torch.arange(len(heads), device=normed.device), :, :, chosen]
        weight, bias = self.projection(slot)
        if len(set(heads)) == 1:
            # A plain number: no copy of the weight for each item, and no wait for the device.
            projected = normed @ weight[heads[0] // group]
        else:
            projected = torch.einsum("ebpm,emd->ebpd", normed, weight[chosen])
        if bias is not None:
            projected = projected + bias[chosen][:, None, None]
        return self._normalize_heads(slot, projected)

    def _normalize_heads(self, slot: Slot, heads: Tensor, see: See | None = None) -> Tensor:
        norm = self._head_norms[slot]
        if norm is None:
            return heads
        if self.norm_spans_heads(slot):
            # [*token head d_head] -> [*token (head d_head)], and back
            return norm(heads.flatten(-2), see, self._layer).view_as(heads)
        return norm(heads, see, self._layer)

    # ---- who looks where

    def attend(
        self,
        q: Float[Tensor, "row query head d_head"],
        k: Float[Tensor, "row key kv_head d_head"],
        v: Float[Tensor, "row key kv_head d_head"],
        see: See | None = None,
    ) -> Float[Tensor, "row query head d_head"]:
        """Causal attention: z = softmax(rotated q . rotated k * scale) v, softmax in float32.

        Any number of heads may be given, so long as ``kv_head`` divides ``head``: each key and
        value serves as many consecutive query heads. Queries may be fewer than keys: they stand at
        the last positions. ``see`` sees the scores and the pattern.
        """
        scores = self.scores(q, k)
        if see is not None:
            scores = see("scores", self._layer, scores)
        pattern = scores.softmax(-1, dtype=at_least_float32(scores.dtype)).to(v.dtype)
        if see is not None:
            pattern = see("pattern", self._layer, pattern)
        return _mix(pattern, v)

    def scores(
        self, q: Float[Tensor, "row query head d_head"], k: Float[Tensor, "row key kv_head d_head"]
    ) -> Float[Tensor, "row head query key"]:
        """What the softmax of ``attend`` is taken of; -inf where a query may not look."""
        rotated = self._scores.rotate(q, k.shape[1] - q.shape[1])
        # [row query head d_head] -> [row query kv_head head_of_group d_head]
        grouped_q = rotated.unflatten(2, (k.shape[2], -1))
        products = torch.einsum("rqgnd,rkgd->rgnqk", grouped_q, self._scores.rotate(k))
        return self._scores(products).flatten(1, 2)

    # ---- what is written

    @property
    def shares_scale(self) -> bool:
        """Whether a norm scales what a head writes by what the others of its layer write."""
        return self._post_norm is not None

    def gain(self) -> Float[Tensor, "#d_model"]:
        """What the heads' summed outputs are multiplied with, after any scale, when written."""
        if self._post_norm is None:
            return self.raw_output_weight().new_full((1,), self._multiplier)
        return self._post_norm.weight * self._multiplier

    def raw_output_weight(self) -> Float[Tensor, "head d_head d_model"]:
        """W_O."""
        return in_out_weight(self._linears["o"]).reshape(-1, self._d_head, self._d_model)

    def output_weight(self) -> Float[Tensor, "head d_head d_model"]:
        """What makes a head's write of its ``written``: W_O, and the gain behind it."""
        weight = self.raw_output_weight()
        if self._post_norm is None and self._multiplier == 1:
            return weight
        return (weight * self.gain()).to(weight.dtype)

    def raw_output(self, z: Float[Tensor, "*token head d_head"]) -> Float[Tensor, "*token d_model"]:
        """The heads' outputs summed through W_O, bias included, before any norm behind it."""
        return self._linears["o"](z.flatten(-2))

    def finish(
        self, raw: Float[Tensor, "*token d_model"], see: See | None = None
    ) -> Float[Tensor, "*token d_model"]:
        """What attention adds to the residual stream, from ``raw_output``."""
        if self._post_norm is not None:
            raw = self._post_norm(raw, see, self._layer)
        return raw * self._multiplier if self._multiplier != 1 else raw

    def written(
        self, z: Float[Tensor, "*token head d_head"], see: See | None = None
    ) -> Float[Tensor, "*token head d_head"]:
        """z, times the scale of the norm behind attention where there is one.

        A head writes ``written @ output_weight``: with the scale of its own run, so that writes add
        up to the residual stream.
        """
        if self._post_norm is None:
            return z
        # The scale is of all heads' sum. Once it is fixed, the norm is linear: each head's share
        # is its own z times the scale, and the norm's weight can be put into W_O.
        scale = self._post_norm.scale(self.raw_output(z))  # [*token 1]
        if see is not None:
            scale = see("norm_scale", self._layer, scale)
        return (z * scale[..., None]).to(z.dtype)

    def write(
        self, z: Float[Tensor, "row query head d_head"], see: See | None = None
    ) -> Float[Tensor, "row query d_model"]:
        """What attention adds to the residual stream; ``see`` sees what each head writes."""
        written = z if see is None else see("written", self._layer, self.written(z, see))
        if see is None or self._post_norm is None:
            return self.finish(self.raw_output(written), see)
        # A changed ``written`` holds its scale already: no norm may scale the sum anew.
        return torch.einsum("rthe,hem->rtm", written, self.output_weight())


def _mix(
    pattern: Float[Tensor, "row head query key"], v: Float[Tensor, "row key kv_head d_head"]
) -> Float[Tensor, "row query head d_head"]:
    """The values that a pattern attends to, summed."""
    # [row head query key] -> [row kv_head head_of_group query key]
    grouped = pattern.unflatten(1, (v.shape[2], -1))
    return torch.einsum("rgnqk,rkgd->rqgnd", grouped, v).flatten(2, 3)
