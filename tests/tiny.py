"""Tiny random models of every architecture kind, with weights that make mistakes visible."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformer_lens.model_bridge.sources import build_bridge_from_module

from wiremap.edges import Model, PromptPairs

VOCABULARY = 50

_CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "n_layer": 3, "n_head": 4, "n_embd": 32, "n_positions": 32},
    "llama-gqa": {
        "model_type": "llama", "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "hidden_size": 32, "intermediate_size": 48,
        "max_position_embeddings": 32,
    },
    "neox": {
        "model_type": "gpt_neox", "num_hidden_layers": 3, "num_attention_heads": 4,
        "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 32,
        "rotary_pct": 0.5,
    },
    "neox-sequential": {
        "model_type": "gpt_neox", "num_hidden_layers": 2, "num_attention_heads": 2,
        "hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 32,
        "rotary_pct": 0.25, "use_parallel_residual": False,
    },
}  # fmt: skip
KINDS = tuple(_CONFIGS)


def hf_model(kind: str, seed: int = 0, **changes: Any) -> Any:
    """A random Hugging Face model: attention far from uniform, norm weights far from 1."""
    config = transformers.AutoConfig.for_model(
        **{**_CONFIGS[kind], **changes}, vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1:
                weight.copy_(0.3 * noise + (1.0 if "bias" not in name else 0.0))
            elif "wte" in name or "embed" in name or "wpe" in name or "lm_head" in name:
                weight.copy_(noise)
            else:
                fan_in = weight.shape[0] if "c_" in name else weight.shape[1]
                weight.copy_(1.5 * noise / fan_in**0.5)
    return model


def bridge(hf: Any) -> Any:
    return build_bridge_from_module(hf, type(hf).__name__, hf_config=hf.config)


def model(kind: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Model:
    return Model(bridge(hf_model(kind, seed, **changes).to(dtype)), name=f"tiny {kind}")


def linear_model() -> Model:
    """A GPT-2 whose output is linear in every write, to the precision of float32.

    Attention is uniform (no queries), the MLP's activation is the identity, and each norm divides
    by a constant: its epsilon is so large that the variance does not count.
    """
    hf = hf_model("gpt2", activation_function="linear", layer_norm_epsilon=1e12)
    d_model = hf.config.n_embd
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            if "ln_" in name and name.endswith("weight"):
                weight.mul_(1e6)
            if "c_attn" in name:
                weight[..., : 2 * d_model] = 0
    return Model(bridge(hf), name="linear")


def pairs(n_pairs: int = 3, n_pos: int = 7, seed: int = 0) -> PromptPairs:
    """Random pairs that differ in two of their tokens."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(1, VOCABULARY, (n_pairs, n_pos), generator=generator)
    corrupted = clean.clone()
    corrupted[:, [1, n_pos - 3]] = torch.randint(1, VOCABULARY, (n_pairs, 2), generator=generator)
    answers = torch.stack(
        [torch.randperm(VOCABULARY, generator=generator)[:2] for _ in range(n_pairs)]
    )
    return PromptPairs(clean, corrupted, answers[:, 0], answers[:, 1])
