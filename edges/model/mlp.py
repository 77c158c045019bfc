"""The MLP of a block: its neurons, or its mixture of experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .parts import NormDerivative, See, in_out_weight, norm_of


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


class Mlp:
    """The MLP of one block, a mixture of experts included.

    Args:
        bridge: the whole TransformerBridge.
        layer: the block's number.

    Attributes:
        d_mlp: its neurons; 0 for a mixture of experts.
    """

    def __init__(self, bridge: Any, layer: int) -> None:
        block = bridge.blocks[layer]
        self._layer = layer
        self._post_norm = norm_of(block, "ln2_post")
        self._norm = norm_of(block, "ln2")
        if self._norm is None and self._post_norm is None:
            self._norm = norm_of(block, "ln1")  # one norm before attention and MLP
        self._multiplier = float(getattr(block, "residual_contribution_scale", 1.0))
        mlp = block.mlp
        self._module: Any = mlp.original_component
        self._out: Any = mlp.submodules.get("out")
        self._up: Any = mlp.submodules.get("in")
        self._gate: Any = mlp.submodules.get("gate")
        self._activation = _activation(self._module) if self._out is not None else None
        self.d_mlp = 0 if self._out is None else in_out_weight(self._out).shape[0]

    @property
    def has_neurons(self) -> bool:
        """Whether it is one layer of neurons, and no mixture of experts."""
        return self._out is not None

    def unruled(self) -> str | None:
        """The module whose inside cannot be shown, in words; None if there is none."""
        where = f"blocks.{self._layer}.mlp ({type(self._module).__name__})"
        if self._out is None:
            return f"the mixture of experts {where}"
        return f"the activation of {where}" if self._activation is None else None

    def norm(
        self, resid: Float[Tensor, "*token d_model"], see: See | None = None
    ) -> Float[Tensor, "*token d_model"]:
        """The residual stream as the MLP is computed from it."""
        return resid if self._norm is None else self._norm(resid, see, self._layer)

    def norm_derivative(
        self, resid: Float[Tensor, "*token d_model"], frozen: bool = False
    ) -> NormDerivative | None:
        """The derivative of ``norm`` at a residual stream; None if it is the identity."""
        return None if self._norm is None else self._norm.derivative(resid, frozen)

    def __call__(
        self, resid: Float[Tensor, "*token d_model"], see: See | None = None
    ) -> Float[Tensor, "*token d_model"]:
        """What the MLP writes, given the residual stream it reads; ``see`` sees its neurons.

        Shown are, where the MLP has them: ``gate`` (the activation's input), ``activation`` (its
        output), and for gated ones ``up`` (what that is multiplied with) and ``product``; last
        ``neurons``, what W_out is applied to.
        """
        normed = self.norm(resid, see)
        hooks = [] if see is None else self._show(see)
        try:
            out = self._module(normed)
        finally:
            for hook in hooks:
                hook.remove()
        if self._post_norm is not None:
            out = self._post_norm(out, see, self._layer)
        return out * self._multiplier if self._multiplier != 1 else out

    def _show(self, see: See) -> list[torch.utils.hooks.RemovableHandle]:
        """Hooks through which ``see`` is shown the inside of the MLP; none for experts."""
        if self._out is None:
            return []
        layer = self._layer

        def before(name: str) -> Callable[[Any, tuple[Tensor]], tuple[Tensor]]:
            return lambda module, arguments: (see(name, layer, arguments[0]),)

        def after(name: str) -> Callable[[Any, tuple[Tensor], Tensor], Tensor]:
            return lambda module, arguments, value: see(name, layer, value)

        hooks: list[torch.utils.hooks.RemovableHandle] = []
        if self._gate is not None:
            hooks.append(self._up.register_forward_hook(after("up")))
            hooks.append(self._out.register_forward_pre_hook(before("product")))
        hooks.append(self._out.register_forward_pre_hook(before("neurons")))
        if self._activation is not None:
            hooks.append(self._activation.register_forward_pre_hook(before("gate")))
            hooks.append(self._activation.register_forward_hook(after("activation")))
        return hooks

    # ---- its parts

    def weights(self) -> MlpWeights:
        """The weights around the neurons, the gain behind them included."""
        gated = self._gate is not None
        gain = 1.0 if self._post_norm is None else self._post_norm.weight
        return MlpWeights(
            gate=in_out_weight(self._gate if gated else self._up),
            up=in_out_weight(self._up) if gated else None,
            out=in_out_weight(self._out) * gain * self._multiplier,
        )

    def scale(self, neurons: Float[Tensor, "*token d_mlp"]) -> Float[Tensor, "*token 1"]:
        """What a norm behind the MLP scales its output with, in the run these neurons are of."""
        if self._post_norm is None:
            return torch.ones_like(neurons[..., :1])
        return self._post_norm.scale(self._out(neurons))

    def experts(self) -> tuple[str, ...]:
        """Names of its experts: ``e0`` and so on, and ``shared``; none for an MLP."""
        if not hasattr(self._module, "experts"):
            return ()
        shared = ("shared",) if hasattr(self._module, "shared_expert") else ()
        return (*(f"e{index}" for index in range(int(self._module.experts.num_experts))), *shared)

    def expert(
        self,
        name: str,
        normed: Float[Tensor, "token d_model"],
        routed_by: Float[Tensor, "token d_model"],
    ) -> Float[Tensor, "token d_model"]:
        """What one expert writes: its output times the routing weight that ``routed_by`` gives it.

        The shared expert's gate reads what the expert reads.
        """
        mlp = self._module
        if name == "shared":
            return torch.sigmoid(mlp.shared_expert_gate(normed)) * mlp.shared_expert(normed)
        _, weights, chosen = mlp.gate(routed_by)
        weights = weights * (chosen == int(name[1:]))  # all others count 0
        return mlp.experts(normed, chosen, weights)


def _activation(mlp: Any) -> Any:
    """The activation module of an MLP; None for one that has none of its own."""
    for name in ("act", "act_fn", "activation_fn"):
        if isinstance(getattr(mlp, name, None), torch.nn.Module):
            return getattr(mlp, name)
    return None
