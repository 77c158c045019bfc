"""Which architectures wiremap takes apart, by the class that Hugging Face runs them with. No torch.

None has code of its own: what a block does is read off its modules (``parts``, ``attention``,
``mlp``). This is the list of those proved against a slow reference, one line each, and of their
variants that are refused; before any result a model must also show that its parts make its own
logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import InputError


@dataclass(frozen=True)
class Architecture:
    """What is known of an architecture, and cannot be read off its modules.

    Attributes:
        name: what it is called.
        window_in_config: its attention takes a sliding window from the config, and keeps none.
    """

    name: str
    window_in_config: bool = False


SUPPORTED = {
    "GPT2LMHeadModel": Architecture("GPT-2"),
    "LlamaForCausalLM": Architecture("Llama"),
    "MistralForCausalLM": Architecture("Mistral", window_in_config=True),
    "GPTNeoXForCausalLM": Architecture("NeoX"),
    "GPTJForCausalLM": Architecture("GPT-J"),
    "PhiForCausalLM": Architecture("Phi"),
    "FalconForCausalLM": Architecture("Falcon"),
    "Qwen2ForCausalLM": Architecture("Qwen2"),
    "Qwen3ForCausalLM": Architecture("Qwen3"),
    "Gemma2ForCausalLM": Architecture("Gemma-2"),
    "Gemma3ForCausalLM": Architecture("Gemma-3"),
    "Olmo2ForCausalLM": Architecture("OLMo-2"),
    "GraniteForCausalLM": Architecture("Granite"),
    "MixtralForCausalLM": Architecture("Mixtral", window_in_config=True),
    "Qwen2MoeForCausalLM": Architecture("Qwen2-MoE"),
    "Qwen3MoeForCausalLM": Architecture("Qwen3-MoE", window_in_config=True),
}


_MISSING = {
    "BloomForCausalLM": "attention with ALiBi biases",
    "MptForCausalLM": "attention with ALiBi biases",
    "GptOssForCausalLM": "attention sinks and biased experts",
    "DeepseekV2ForCausalLM": "latent attention, whose keys and values are no function of one head",
    "DeepseekV3ForCausalLM": "latent attention, whose keys and values are no function of one head",
    "MambaForCausalLM": "a state-space model has no attention heads",
    "Gemma3ForConditionalGeneration": "a model of images and text; load its text model alone",
}


def refuse_unsupported(architecture: str) -> None:
    """Raises InputError, with what is missing, for an architecture wiremap cannot take apart."""
    if architecture not in SUPPORTED:
        names = ", ".join(f"{known.name} ({cls})" for cls, known in SUPPORTED.items())
        why = _MISSING.get(architecture, "its layout is unknown")
        raise InputError(f"architecture {architecture} is not supported: {why}. Supported: {names}")


def refuse_variants(bridge: Any, name: str) -> None:
    """Raises InputError for variants of supported architectures that are taken apart wrongly."""
    config = bridge.original_model.config
    first = bridge.blocks[0]
    double = str(next(bridge.parameters()).dtype) == "torch.float64"
    refused = {
        "attention without scaling (scale_attn_weights=False), here or by TransformerBridge; "
        "multiply it into the query weights": not getattr(config, "scale_attn_weights", True),
        "ALiBi position biases (alibi=True)": bool(getattr(config, "alibi", False)),
        "attention before the MLP (parallel_attn=False)": not getattr(
            config, "parallel_attn", True
        ),
        "a mixture of experts in float64 by grouped products; set the Hugging Face model's "
        'config._experts_implementation to "eager" before it is wrapped': (
            double
            and first.mlp.submodules.get("out") is None
            and getattr(config, "_experts_implementation", None) != "eager"
        ),
        "biases behind attention that a norm scales (attention_bias=True)": (
            "ln1_post" in first.submodules and bool(getattr(config, "attention_bias", False))
        ),
    }
    for what, has in refused.items():
        if has:
            raise InputError(f"model {name}: not supported is {what}")
