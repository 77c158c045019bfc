"""Layers as adapter and quantization libraries put them in the place of plain ones.

Attributes are named as in peft, bitsandbytes and GPTQ; none of them is installed for the tests.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear


class BaseTunerLayer(nn.Module):
    """What peft's layers have in common: the layer itself inside, and its weight seen as theirs."""

    def __init__(self, base_layer: Any) -> None:
        super().__init__()
        self.base_layer = base_layer

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias


class Lora(BaseTunerLayer):
    """LoRA: y = W x + scaling B A x."""

    def __init__(self, base_layer: Any, rank: int = 2) -> None:
        super().__init__(base_layer)
        rows, columns = base_layer.weight.shape
        turned = type(base_layer).__name__ == "Conv1D"
        n_out, n_in = (columns, rows) if turned else (rows, columns)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(n_in, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, n_out, bias=False)})
        self.scaling = {"default": 2.0}

    def delta(self) -> Tensor:
        up: Any = self.lora_B["default"]
        down: Any = self.lora_A["default"]
        return up.weight @ down.weight * self.scaling["default"]

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + linear(x, self.delta())


class LoraEmbedding(BaseTunerLayer):
    """LoRA on an embedding."""

    def __init__(self, base_layer: nn.Embedding) -> None:
        super().__init__(base_layer)
        n, d = base_layer.weight.shape
        self.lora_embedding_A = nn.ParameterDict({"default": nn.Parameter(torch.randn(2, n))})
        self.lora_embedding_B = nn.ParameterDict({"default": nn.Parameter(torch.randn(d, 2))})

    def forward(self, x: Tensor) -> Tensor:
        low = embedding(x, self.lora_embedding_A["default"].T)
        return self.base_layer(x) + low @ self.lora_embedding_B["default"].T


class Dora(Lora):
    """DoRA: LoRA, and the length of each row learned for itself."""

    def __init__(self, base_layer: Any) -> None:
        super().__init__(base_layer)
        self.lora_magnitude_vector = nn.Parameter(base_layer.weight.detach().norm(dim=1) * 1.1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.base_layer.weight + self.delta()
        return linear(x, weight * (self.lora_magnitude_vector / weight.norm(dim=1))[:, None])


class Ia3(BaseTunerLayer):
    """IA3: what comes in, or goes out, times a learned vector."""

    def __init__(self, base_layer: Any, is_feedforward: bool = False) -> None:
        super().__init__(base_layer)
        n = base_layer.in_features if is_feedforward else base_layer.out_features
        self.ia3_l = nn.ParameterDict({"default": nn.Parameter(torch.full((n,), 1.5))})
        self.is_feedforward = is_feedforward

    def forward(self, x: Tensor) -> Tensor:
        by = self.ia3_l["default"]
        return self.base_layer(x * by) if self.is_feedforward else self.base_layer(x) * by


class ModulesToSaveWrapper(nn.Module):
    """A module trained whole beside an adapter, with the original kept."""

    def __init__(self, original_module: Any) -> None:
        super().__init__()
        self.original_module = original_module
        self.modules_to_save = nn.ModuleDict({"default": original_module})

    @property
    def weight(self) -> Tensor:
        return self.original_module.weight

    def forward(self, *given: Any, **named: Any) -> Any:
        return self.modules_to_save["default"](*given, **named)


class Scaled(nn.Linear):
    """A Linear of someone's own that computes more than its weight."""

    def __init__(self, like: Any) -> None:
        super().__init__(like.in_features, like.out_features, like.bias is not None)
        self.load_state_dict(like.state_dict())

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Linear8bitLt(nn.Linear):
    """bitsandbytes in 8 bits: integers in the weight, and their scales beside them."""

    def __init__(self, like: Any) -> None:
        super().__init__(like.in_features, like.out_features, like.bias is not None)
        weight = like.weight.detach()
        self.SCB = weight.abs().amax(1)
        packed = (weight / self.SCB[:, None] * 127).round().to(torch.int8)
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight * (self.SCB / 127)[:, None])


class QuantLinear(nn.Module):
    """GPTQ: no weight at all, but packed integers, zeros and scales as buffers."""

    def __init__(self, like: nn.Linear) -> None:
        super().__init__()
        n_in, n_out = like.in_features, like.out_features
        self.n_out = n_out
        self.register_buffer("qweight", torch.zeros(n_in // 8, n_out, dtype=torch.int32))
        self.register_buffer("qzeros", torch.zeros(1, n_out // 8, dtype=torch.int32))
        self.register_buffer("scales", torch.ones(1, n_out))

    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.zeros(x.shape[-1], self.n_out)


class Quantized(Tensor):
    """torchao: a plain Linear, whose weight is a tensor of another kind."""
