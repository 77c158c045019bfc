"""Tiny random models of every architecture kind, with weights that make mistakes visible."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformer_lens.model_bridge.sources import build_bridge_from_module

from wiremap.edges import Model, PromptPairs

VOCABULARY = 50

_SIZES: dict[str, Any] = {
    "num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 48,
    "max_position_embeddings": 32,
}  # fmt: skip
_FALCON = {
    **{name: size for name, size in _SIZES.items() if name != "intermediate_size"},
    "model_type": "falcon", "ffn_hidden_size": 48, "alibi": False,
}  # fmt: skip
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_EXPERTS = {
    **_GROUPED, "num_hidden_layers": 2, "num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
}  # fmt: skip

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
    "mistral": {**_GROUPED, "model_type": "mistral", "sliding_window": 4, "head_dim": 8},
    "gptj": {
        "model_type": "gptj", "n_layer": 3, "n_head": 4, "n_embd": 32, "n_positions": 32,
        "rotary_dim": 4,
    },
    "phi": {**_SIZES, "model_type": "phi", "partial_rotary_factor": 0.5},
    "falcon": {
        **_FALCON, "multi_query": True, "parallel_attn": True, "new_decoder_architecture": False,
    },
    "falcon-new": {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
    "qwen2": {**_GROUPED, "model_type": "qwen2"},
    "qwen3": {**_GROUPED, "model_type": "qwen3", "head_dim": 8},
    "gemma2": {
        **_GROUPED, "model_type": "gemma2", "head_dim": 8, "sliding_window": 4,
        "query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 6.0,
    },
    "gemma3": {
        **_GROUPED, "model_type": "gemma3_text", "head_dim": 8, "sliding_window": 4,
        "sliding_window_pattern": 2, "query_pre_attn_scalar": 4,
    },
    "olmo2": {**_GROUPED, "model_type": "olmo2"},
    "granite": {
        **_GROUPED, "model_type": "granite", "residual_multiplier": 0.5,
        "embedding_multiplier": 3.0, "logits_scaling": 2.0, "attention_multiplier": 0.3,
    },
    "mixtral": {
        **_GROUPED, "model_type": "mixtral", "num_hidden_layers": 2, "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "qwen2-moe": {**_EXPERTS, "model_type": "qwen2_moe", "shared_expert_intermediate_size": 40},
    "qwen3-moe": {**_EXPERTS, "model_type": "qwen3_moe", "head_dim": 8, "norm_topk_prob": True},
}  # fmt: skip
UNBRIDGED = ("falcon-new",)  # TransformerLens 4.3 splits its fused projection as Falcon's older one
EVERY_KIND = tuple(kind for kind in _CONFIGS if kind not in UNBRIDGED)
KINDS = ("gpt2", "llama-gqa", "neox", "neox-sequential")


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
                weight.copy_(0.3 * noise + _middle(name, config.model_type))
            elif "wte" in name or "embed" in name or "wpe" in name or "lm_head" in name:
                weight.copy_(noise)
            else:
                fan_in = weight.shape[0] if ".c_" in name else weight.shape[-1]
                weight.copy_(1.5 * noise / fan_in**0.5)
    return model


def _middle(name: str, model_type: str) -> float:
    """What a bias or a norm's weights are around."""
    if "bias" in name:
        return 0.0
    around_one = 0.0 if model_type in ("gemma2", "gemma3_text") else 1.0  # Gemma's are added to 1
    sharper = 0.5 if "q_norm" in name or "k_norm" in name else 0.0
    return around_one + sharper


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


def pairs_ending_apart(n_pairs: int = 2, *, n_pos: int, seed: int = 0) -> PromptPairs:
    """Pairs whose last tokens differ too, so that queries of the first layer count."""
    ends = pairs(n_pairs, n_pos, seed)
    corrupted = ends.corrupted.clone()
    corrupted[:, -1] = 1 + corrupted[:, -1] % (VOCABULARY - 1)
    return PromptPairs(ends.clean, corrupted, ends.answers, ends.wrong)


def able(model: Model, pairs: PromptPairs) -> PromptPairs:
    """The pairs with answers the model prefers on the clean prompts: a task it does."""
    with torch.no_grad():
        clean, corrupted = (
            model.logits(model.run(model.embed(tokens)))[:, -1]
            for tokens in (pairs.clean, pairs.corrupted)
        )
    change = clean - corrupted
    return PromptPairs(pairs.clean, pairs.corrupted, change.argmax(-1), change.argmin(-1))


def one_pair(of: PromptPairs, row: int) -> PromptPairs:
    """A pair alone."""
    rows = slice(row, row + 1)
    return PromptPairs(of.clean[rows], of.corrupted[rows], of.answers[rows], of.wrong[rows])
