"""Time and memory of scoring every edge, beside the plain model and beside TransformerLens.

    python benchmarks/edge_scores.py [--device cpu|cuda]

GPT-2-small shape with random weights, 8 pairs of 16 tokens. The limit to compare with is what any
gradient method must do at least: two forward passes and one backward pass of the plain bridge
(parameters frozen, logits everywhere). The peer is transformer_lens's own edge attribution.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from typing import Any

import torch
import transformers
from measure import interleaved_seconds, median_ratio, peak_bytes, write_section
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformer_lens.tools.analysis.attribution_patching import (
    EdgeAttributionConfig,
    Node,
    attribution_patch,
)

from wiremap.edges import Model, PromptPairs, score_edges
from wiremap.edges.attribution import EdgeScores

N_PAIRS, N_POS, REPEATS = 8, 16, 7


def build(device: torch.device) -> tuple[Model, PromptPairs]:
    torch.manual_seed(0)
    hf: Any = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    hf.eval().to(device)
    with torch.no_grad():  # attention far from uniform
        for block in hf.transformer.h:
            block.attn.c_attn.weight.mul_(4)
    model = Model(
        build_bridge_from_module(hf, "GPT2LMHeadModel", hf_config=hf.config), "gpt2-shape"
    )
    for weight in model.bridge.parameters():
        weight.requires_grad_(False)
    clean, corrupted = torch.randint(0, 50_000, (2, N_PAIRS, N_POS))
    answers = torch.randint(0, 50_000, (2, N_PAIRS))
    return model, PromptPairs(clean, corrupted, answers[0], answers[1])


def plain_passes(model: Model, pairs: PromptPairs) -> None:
    """Two forward passes and one backward pass of the plain bridge, logits everywhere."""
    rows = torch.arange(N_PAIRS)
    clean, corrupted = pairs.clean.to(model.device), pairs.corrupted.to(model.device)
    with torch.no_grad():
        model.bridge(corrupted)
    leaves: list[torch.Tensor] = []

    def root(embedding: torch.Tensor, hook: Any) -> torch.Tensor:
        leaves.append(embedding.detach().requires_grad_())
        return leaves[0]

    with model.bridge.hooks(fwd_hooks=[("hook_embed", root)]):
        logits = model.bridge(clean)[:, -1]
    right = logits[rows, pairs.answers[:, 0].to(model.device)]
    wrong = logits[rows, pairs.wrong[:, 0].to(model.device)]
    torch.autograd.grad((right - wrong).sum(), leaves)


def peer_scores(model: Model, pairs: PromptPairs) -> EdgeScores:
    """transformer_lens's scores of all edges, its positions summed, its pairs averaged."""
    graph = model.graph
    total = torch.zeros(len(graph.writers), len(graph.readers), device=model.device)
    for row in range(N_PAIRS):
        answer, wrong = int(pairs.answers[row, 0]), int(pairs.wrong[row, 0])
        found = attribution_patch(
            model.bridge,
            pairs.clean[row : row + 1].to(model.device),
            pairs.corrupted[row : row + 1].to(model.device),
            lambda logits, a=answer, w=wrong: logits[0, -1, a] - logits[0, -1, w],
            EdgeAttributionConfig(granularity="edge"),
        )
        for (writer, reader), score in found.edge_scores.items():
            edge = graph.edge(f"{_writer(writer)}->{_reader(reader)}")
            total[edge.writer, edge.reader] += score / N_PAIRS
    return EdgeScores(graph, total)


def _writer(node: Node) -> str:
    return {"embed": "input", "mlp_out": f"m{node.layer}"}.get(
        node.kind, f"a{node.layer}.h{node.head}"
    )


def _reader(node: Node) -> str:
    if node.kind == "logits":
        return "logits"
    return (
        f"m{node.layer}" if node.kind == "mlp_in" else f"a{node.layer}.h{node.head}<{node.kind[0]}>"
    )


def memory_alone(what: str, device: str) -> int:
    """Peak bytes of one run in a process of its own, where nothing else has been allocated."""
    command = [sys.executable, "-W", "ignore", __file__, "--device", device, "--memory-of", what]
    return int(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory-of", choices=["plain", "wiremap"])
    options = parser.parse_args()
    device = torch.device(options.device)
    model, pairs = build(device)
    runs = {
        "plain": lambda: plain_passes(model, pairs),
        "wiremap": lambda: score_edges(model, pairs, batch_size=N_PAIRS),
    }
    if options.memory_of:
        model.check_pairs(pairs)  # once per model; not part of scoring
        print(peak_bytes(runs[options.memory_of], device))
        return
    memory = {name: memory_alone(name, options.device) for name in runs}
    seconds = interleaved_seconds(runs, REPEATS, device)
    for weight in model.bridge.parameters():  # the peer does not run frozen models
        weight.requires_grad_(True)
    start = time.perf_counter()
    peer = peer_scores(model, pairs).scores
    peer_seconds = time.perf_counter() - start
    ours = score_edges(model, pairs, gradient="corrupted").scores.to(peer)
    difference = float((ours - peer).nan_to_num().abs().max() / peer.abs().max())
    own = sorted(seconds["wiremap"])[REPEATS // 2]
    plain = sorted(seconds["plain"])[REPEATS // 2]
    write_section(
        "Scores of all 32,491 edges, GPT-2-small shape, 8 pairs x 16 tokens",
        device,
        f"""
| | seconds | peak memory above the model | relative to plain passes |
|---|---|---|---|
| plain bridge: 2 forwards + 1 backward, all logits | {plain:.3f} | {memory["plain"] / 2**20:.0f} MiB | 1 / 1 |
| `score_edges` | {own:.3f} | {memory["wiremap"] / 2**20:.0f} MiB | time **{median_ratio(seconds["wiremap"], seconds["plain"]):.2f}** (allowed 1.25), memory **{memory["wiremap"] / memory["plain"]:.2f}** (allowed 1.3) |
| `transformer_lens` `attribution_patch`, edges | {peer_seconds:.1f} | | `score_edges` is **{peer_seconds / own:.0f}x** faster (wanted 20x) |

Scores equal those of `transformer_lens`, its positions summed, to {difference:.1e} of the largest.
""",
    )


if __name__ == "__main__":
    main()
