"""All 1.6 million edges of an 8B-shaped Llama: time and peak memory.

    python benchmarks/llama_8b.py --device cuda [--layers 32] [--gradient relevance]

32 layers, 4096 wide, 32 heads that share 8 keys and values, random bfloat16 weights; 32 pairs of 64
tokens, one reader of keys and values for each query head (the field's 1,592,881 edges). Beside it
the same passes of the plain bridge. ``--layers`` and ``--pairs`` make it smaller, to try the script.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import transformers
from measure import interleaved_seconds, median_ratio, peak_bytes, write_section
from transformer_lens.model_bridge.sources import build_bridge_from_module

from wiremap.edges import Model, PromptPairs, score_edges
from wiremap.edges.runs.sweep import check_pairs

N_PAIRS, N_POS = 32, 64


def build(device: torch.device, n_layers: int, n_pairs: int) -> tuple[Model, PromptPairs]:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        num_hidden_layers=n_layers, hidden_size=4096, num_attention_heads=32,
        num_key_value_heads=8, intermediate_size=14336, vocab_size=128_256,
    )  # fmt: skip
    with device:
        hf: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    bridge = build_bridge_from_module(hf.eval(), "LlamaForCausalLM", hf_config=config)
    model = Model(bridge, f"llama-8b-shape-{n_layers}", kv="per-query")
    for weight in model.bridge.parameters():
        weight.requires_grad_(False)
    clean, corrupted = torch.randint(0, 128_000, (2, n_pairs, N_POS))
    answers = torch.randint(0, 128_000, (2, n_pairs))
    return model, PromptPairs(clean, corrupted, answers[0], answers[1])


@torch.no_grad()
def plain_forwards(model: Model, pairs: PromptPairs) -> None:
    """Both prompts of all pairs through the plain bridge, eight rows at a time."""
    for tokens in torch.cat([pairs.clean, pairs.corrupted]).split(8):
        model.bridge(tokens.to(model.device))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=N_PAIRS)
    parser.add_argument("--gradient", default="relevance")
    options = parser.parse_args()
    device = torch.device(options.device)
    model, pairs = build(device, options.layers, options.pairs)
    weights = sum(weight.numel() * weight.element_size() for weight in model.bridge.parameters())

    def score() -> object:
        return score_edges(model, pairs, gradient=options.gradient)

    check_pairs(model, pairs)
    peak = peak_bytes(score, device)
    runs = {"score": score, "plain": lambda: plain_forwards(model, pairs)}
    seconds = interleaved_seconds(runs, 3, device)
    write_section(
        f"Scores of all {model.graph.n_edges:,} edges, 8B-shaped Llama of {options.layers} layers, "
        f"bfloat16, {options.pairs} pairs x {N_POS} tokens",
        device,
        f"""
`score_edges`, gradient {options.gradient}, one reader of keys and values for each query head:
{min(seconds["score"]):.1f} s, **{median_ratio(seconds["score"], seconds["plain"]):.1f}** times the plain bridge's forward passes alone ({min(seconds["plain"]):.1f} s).
Peak memory above the model ({weights / 2**30:.1f} GiB): {peak / 2**30:.1f} GiB.
""",
    )


if __name__ == "__main__":
    main()
