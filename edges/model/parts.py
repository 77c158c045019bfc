"""The parts of a block that architectures differ in: norms, and what attention does with q and k.

Which norms there are, the scale, soft-cap and window of the scores, and the rotation are read off
the modules and the config that ran in training. What these do not tell stands in ``architectures``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .architectures import SUPPORTED

See = Callable[[str, int, Tensor], Tensor]
"""Shown (name, layer, value) of every activation of a run as it comes; what it returns goes on."""


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


@dataclass(frozen=True)
class NormDerivative:
    """The derivative of a LayerNorm or RMSNorm at some x, one row per token.

    The norm is ``weight * normalized + bias`` with ``normalized = (x - mean) * scale`` (no mean for
    RMS). With P taking the mean away (the identity for RMS), its derivative is

        weight * scale * (P - normalized normalized^T / n)

    The epsilon of the norm is part of ``scale``, which makes this exact. Where the scale is held
    constant (``frozen``), the last term is missing.
    """

    weight: Float[Tensor, "n"]
    scale: Float[Tensor, "*token 1"]
    normalized: Float[Tensor, "*token n"]
    centers: bool
    frozen: bool = False

    def pull_back(self, gradient: Float[Tensor, "*token n"]) -> Float[Tensor, "*token n"]:
        """The transposed derivative times a gradient by the norm's output."""
        # ``normalized`` has no mean where the norm centers, so the two projections commute, and
        # the transpose is the same factors in the opposite order; no matrix is ever formed.
        gradient = gradient * self.weight * self.scale
        if not self.frozen:
            along = (gradient * self.normalized).mean(-1, keepdim=True)
            gradient = gradient - along * self.normalized
        return gradient - gradient.mean(-1, keepdim=True) if self.centers else gradient

    def push_forward(self, change: Float[Tensor, "*row n"]) -> Float[Tensor, "*row n"]:
        """The derivative times a change of the norm's input."""
        if self.centers:
            change = change - change.mean(-1, keepdim=True)
        if not self.frozen:
            change = change - (change * self.normalized).mean(-1, keepdim=True) * self.normalized
        return change * self.scale * self.weight


class Norm:
    """A LayerNorm or RMSNorm, in float32 at least, whatever the precision of the model."""

    def __init__(self, bridge: Any) -> None:
        self._bridge = bridge
        module = bridge.original_component
        self.centers = not bridge.uses_rms_norm
        self.eps = float(module.eps if hasattr(module, "eps") else module.variance_epsilon)

    @property
    def weight(self) -> Float[Tensor, "n"]:
        """What the normalized values are multiplied with."""
        weight = self._bridge.weight
        # Gemma's weights are distances from 1, and are added to it in float32.
        return 1.0 + weight.to(at_least_float32(weight.dtype)) if self._offset else weight

    @property
    def _offset(self) -> bool:
        return bool(self._bridge.uses_weight_offset)

    def _bias(self) -> Tensor | None:
        return getattr(self._bridge.original_component, "bias", None)

    def scale(self, x: Float[Tensor, "*token n"]) -> Float[Tensor, "*token 1"]:
        """1 / the root of the mean square (of what deviates from the mean, for a LayerNorm)."""
        return self._scale(self._centered(x))

    def _centered(self, x: Tensor) -> Tensor:
        x = x.to(at_least_float32(x.dtype))  # squares overflow in float16
        return x - x.mean(-1, keepdim=True) if self.centers else x

    def _scale(self, centered: Tensor) -> Tensor:
        return (centered.pow(2).mean(-1, keepdim=True) + self.eps).rsqrt()

    def __call__(
        self, x: Float[Tensor, "*token n"], see: See | None = None, layer: int = 0
    ) -> Float[Tensor, "*token n"]:
        """The norm of x; ``see`` sees its scale."""
        centered = self._centered(x)
        scale = self._scale(centered)
        if see is not None:
            scale = see("norm_scale", layer, scale)
        normed = centered * scale * self.weight
        bias = self._bias()
        return (normed if bias is None else normed + bias).to(x.dtype)

    def derivative(self, x: Float[Tensor, "*token n"], frozen: bool = False) -> NormDerivative:
        """The derivative at x."""
        centered = self._centered(x)
        scale = self._scale(centered)
        weight = self.weight.to(scale.dtype)
        return NormDerivative(weight, scale, centered * scale, self.centers, frozen)


class Scores:
    """How a layer turns queries and keys into what its softmax is taken of.

    Args:
        bridge: the whole TransformerBridge.
        layer: the layer's number.
    """

    def __init__(self, bridge: Any, layer: int) -> None:
        self._bridge = bridge
        attention = bridge.blocks[layer].attn.original_component
        config = bridge.original_model.config
        d_head = int(bridge.cfg.d_head)
        self.scale = float(getattr(attention, "scaling", d_head**-0.5))
        self.soft_cap: float | None = getattr(attention, "attn_logit_softcapping", None)
        layer_types = getattr(config, "layer_types", None)
        self._layer_type: str | None = layer_types[layer] if layer_types else None
        self.window = self._window(attention, config, str(bridge.cfg.architecture))
        self._interleaved: Tensor | None = getattr(attention, "embed_positions", None)

    def __call__(
        self, products: Float[Tensor, "*batch query key"]
    ) -> Float[Tensor, "*batch query key"]:
        """Scores from the products of rotated queries and keys; -inf where a query may not look.

        Queries stand at the last positions of the keys.
        """
        scores = products * self.scale
        if self.soft_cap is not None:
            scores = (scores / self.soft_cap).tanh() * self.soft_cap
        n_query, n_key = scores.shape[-2:]
        return scores.masked_fill(self._hidden(n_query, n_key, scores.device), -torch.inf)

    def _window(self, attention: Any, config: Any, architecture: str) -> int | None:
        """How many keys, itself included, a query sees; None for all before it."""
        if self._layer_type is not None:
            return int(config.sliding_window) if self._layer_type == "sliding_attention" else None
        holder = config if SUPPORTED[architecture].window_in_config else attention
        return getattr(holder, "sliding_window", None)

    def _hidden(self, n_query: int, n_key: int, device: torch.device) -> Bool[Tensor, "query key"]:
        """Which keys a query may not look at: those after it, and those before its window."""
        every = torch.ones(n_query, n_key, dtype=torch.bool, device=device)
        itself = n_key - n_query  # the key of query 0; query i stands i further right
        hidden = every.triu(1 + itself)
        return hidden if self.window is None else hidden | every.tril(itself - self.window)

    def rotate(
        self, heads: Float[Tensor, "row pos head d_head"], start: int = 0
    ) -> Float[Tensor, "row pos head d_head"]:
        """Rotary position embedding of queries or keys; the identity where there is none.

        Args:
            start: the position of the first of them.
        """
        stop = start + heads.shape[1]
        if self._interleaved is not None:
            # GPT-J turns neighbours (0, 1), (2, 3), ...: [pos sines+cosines] -> [pos n_rotated]
            table = self._interleaved[start:stop].to(heads)
            sin, cos = (half.repeat_interleave(2, -1) for half in table.chunk(2, dim=-1))
            even_odd = heads[..., : cos.shape[-1]].unflatten(-1, (-1, 2))
            turned = torch.stack([-even_odd[..., 1], even_odd[..., 0]], -1).flatten(-2)
            cos, sin = cos[:, None], sin[:, None]
        elif hasattr(self._bridge, "rotary_emb"):
            # All others turn entry i of the first half with entry i of the second.
            positions = torch.arange(start, stop, device=heads.device)[None]
            rotary = self._bridge.rotary_emb.original_component
            by_type = (self._layer_type,) if hasattr(rotary, "layer_types") else ()
            tables = rotary(heads, positions, *by_type)
            cos, sin = (table[0, :, None] for table in tables)
            low, high = heads[..., : cos.shape[-1]].chunk(2, dim=-1)
            turned = torch.cat([-high, low], -1)
        else:
            return heads
        # Some models rotate the first entries of a head only.
        rotated, rest = heads[..., : cos.shape[-1]], heads[..., cos.shape[-1] :]
        return torch.cat([rotated * cos + turned * sin, rest], -1)


def norm_of(module: Any, name: str) -> Norm | None:
    """The norm of this name in a part of the bridge; None where there is none."""
    return Norm(module.submodules[name]) if name in module.submodules else None


def in_out_weight(linear: Any) -> Float[Tensor, "n_in n_out"]:
    """The weight of a linear map; GPT-2 keeps its matrices as [in, out], others as [out, in]."""
    module = linear.original_component
    return module.weight if type(module).__name__ == "Conv1D" else module.weight.T
