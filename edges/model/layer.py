"""The modules of one block, by what they are used for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..names.graph import SLOTS
from .parts import Norm, Scores, See


class Layer:
    """The modules of a block, by what wiremap uses them for; what it does not have is None."""

    def __init__(self, bridge: Any, layer: int) -> None:
        block = bridge.blocks[layer]

        def norm(of: Any, name: str) -> Norm | None:
            return Norm(of.submodules[name]) if name in of.submodules else None

        self.post_attention_norm = norm(block, "ln1_post")
        self.post_mlp_norm = norm(block, "ln2_post")
        self.attention_norm = norm(block, "ln1")
        self.mlp_norm = norm(block, "ln2")
        if self.mlp_norm is None and self.post_mlp_norm is None:
            self.mlp_norm = self.attention_norm  # one norm before attention and MLP
        attention = block.attn
        self.linears: dict[str, Any] = {name: getattr(attention, name) for name in (*SLOTS, "o")}
        norms = {slot: norm(attention, f"{slot}_norm") for slot in SLOTS}
        self.head_norms = {slot: one for slot, one in norms.items() if one is not None}
        self.scores = Scores(bridge, layer)
        self.multiplier = float(getattr(block, "residual_contribution_scale", 1.0))
        mlp = block.mlp
        self.mlp: Any = mlp.original_component
        self.out: Any = mlp.submodules.get("out")
        self.up: Any = mlp.submodules.get("in")
        self.gate: Any = mlp.submodules.get("gate")
        self.activation = _activation(self.mlp) if self.out is not None else None
        self.d_mlp = 0 if self.out is None else self.out_weight().shape[0]

    def out_weight(self) -> Float[Tensor, "d_mlp d_model"]:
        """What the neurons are multiplied with."""
        return in_out_weight(self.out)

    def show_mlp(self, layer: int, see: See) -> list[torch.utils.hooks.RemovableHandle]:
        """Hooks through which ``see`` is shown the inside of the MLP; none for experts."""
        if self.out is None:
            return []

        def before(name: str) -> Callable[[Any, tuple[Tensor]], tuple[Tensor]]:
            return lambda module, arguments: (see(name, layer, arguments[0]),)

        def after(name: str) -> Callable[[Any, tuple[Tensor], Tensor], Tensor]:
            return lambda module, arguments, value: see(name, layer, value)

        hooks: list[torch.utils.hooks.RemovableHandle] = []
        if self.gate is not None:
            hooks.append(self.up.register_forward_hook(after("up")))
            hooks.append(self.out.register_forward_pre_hook(before("product")))
        hooks.append(self.out.register_forward_pre_hook(before("neurons")))
        if self.activation is not None:
            hooks.append(self.activation.register_forward_pre_hook(before("gate")))
            hooks.append(self.activation.register_forward_hook(after("activation")))
        return hooks


@dataclass(frozen=True)
class MlpWeights:
    """What neurons are read through and written with.

    Attributes:
        gate: of what enters the activation.
        up: of what the activation is multiplied with; None without a gate.
    """

    gate: Float[Tensor, "d_model d_mlp"]
    up: Float[Tensor, "d_model d_mlp"] | None
    out: Float[Tensor, "d_mlp d_model"]


def _activation(mlp: Any) -> Any:
    """The activation module of an MLP; None for one that has none of its own."""
    for name in ("act", "act_fn", "activation_fn"):
        if isinstance(getattr(mlp, name, None), torch.nn.Module):
            return getattr(mlp, name)
    return None


def in_out_weight(linear: Any) -> Float[Tensor, "n_in n_out"]:
    """The weight of a linear map; GPT-2 keeps its matrices as [in, out], others as [out, in]."""
    module = linear.original_component
    return module.weight if type(module).__name__ == "Conv1D" else module.weight.T
