"""Which architectures wiremap takes apart, by the class that Hugging Face runs them with. No torch.

None has code of its own: what a block does is read off its modules (``parts``, ``model``). This is
the list of those proved against a slow reference; before any result a model must also show that its
parts make its own logits.
"""

from __future__ import annotations

from ..errors import InputError

SUPPORTED = {
    "GPT2LMHeadModel": "GPT-2",
    "LlamaForCausalLM": "Llama",
    "MistralForCausalLM": "Mistral",
    "GPTNeoXForCausalLM": "NeoX",
    "GPTJForCausalLM": "GPT-J",
    "PhiForCausalLM": "Phi",
    "FalconForCausalLM": "Falcon",
    "Qwen2ForCausalLM": "Qwen2",
    "Qwen3ForCausalLM": "Qwen3",
    "Gemma2ForCausalLM": "Gemma-2",
    "Gemma3ForCausalLM": "Gemma-3",
    "Olmo2ForCausalLM": "OLMo-2",
    "GraniteForCausalLM": "Granite",
    "MixtralForCausalLM": "Mixtral",
    "Qwen2MoeForCausalLM": "Qwen2-MoE",
    "Qwen3MoeForCausalLM": "Qwen3-MoE",
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
        known = ", ".join(f"{kind} ({cls})" for cls, kind in SUPPORTED.items())
        why = _MISSING.get(architecture, "its layout is unknown")
        raise InputError(f"architecture {architecture} is not supported: {why}. Supported: {known}")
