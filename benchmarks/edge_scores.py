"""Time and memory of scoring every edge, beside the plain model and beside TransformerLens.

    python benchmarks/edge_scores.py [--device cpu|cuda]

GPT-2-small shape with random weights, 8 pairs of 16 tokens. The limit to compare with is what any
gradient method must do at least: two forward passes and one backward pass of the plain bridge
(parameters frozen, logits everywhere). The peer is transformer_lens's own edge attribution.
"""

from __future__ import annotations

import argparse
import time

import torch
from gpt2_shape import N_PAIRS, build, plain_passes
from measure import interleaved_seconds, median_ratio, memory_alone, peak_bytes, write_section
from transformer_lens.tools.analysis.attribution_patching import (
    EdgeAttributionConfig,
    Node,
    attribution_patch,
)

from wiremap.edges import Model, PromptPairs, score_edges
from wiremap.edges.attribution import EdgeScores

REPEATS = 7


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
    memory = {name: memory_alone(__file__, name, options.device) for name in runs}
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
