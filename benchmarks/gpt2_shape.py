"""The plain bridge of GPT-2-small shape with random weights: what scores are measured against."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformer_lens.model_bridge.sources import build_bridge_from_module

from wiremap.edges import Model, PromptPairs

N_PAIRS, N_POS = 8, 16


def build(device: torch.device, n_heads: int = 12, n_pos: int = N_POS) -> tuple[Model, PromptPairs]:
    torch.manual_seed(0)
    hf: Any = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_head=n_heads))
    hf.eval().to(device)
    with torch.no_grad():  # attention far from uniform
        for block in hf.transformer.h:
            block.attn.c_attn.weight.mul_(4)
    model = Model(
        build_bridge_from_module(hf, "GPT2LMHeadModel", hf_config=hf.config), "gpt2-shape"
    )
    for weight in model.bridge.parameters():
        weight.requires_grad_(False)
    clean, corrupted = torch.randint(0, 50_000, (2, N_PAIRS, n_pos))
    answers = torch.randint(0, 50_000, (2, N_PAIRS))
    return model, PromptPairs(clean, corrupted, answers[0], answers[1])


def plain_passes(model: Model, pairs: PromptPairs, forwards: int = 2, backwards: int = 1) -> None:
    """So many forward and backward passes of the plain bridge, logits everywhere."""
    rows = torch.arange(N_PAIRS)
    clean, corrupted = pairs.clean.to(model.device), pairs.corrupted.to(model.device)
    with torch.no_grad():
        for _ in range(forwards - 1):
            model.bridge(corrupted)
    leaves: list[torch.Tensor] = []

    def root(embedding: torch.Tensor, hook: Any) -> torch.Tensor:
        leaves.append(embedding.detach().requires_grad_())
        return leaves[0]

    with model.bridge.hooks(fwd_hooks=[("hook_embed", root)]):
        logits = model.bridge(clean)[:, -1]
    right = logits[rows, pairs.answers[:, 0].to(model.device)]
    wrong = logits[rows, pairs.wrong[:, 0].to(model.device)]
    for backward in range(backwards):
        again = backward < backwards - 1
        torch.autograd.grad((right - wrong).sum(), leaves, retain_graph=again)
