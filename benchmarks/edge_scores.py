"""Time and memory of scoring every edge, beside the plain model and beside TransformerLens.

    python benchmarks/edge_scores.py [--device cpu|cuda]

GPT-2-small shape with random weights, 8 pairs of 16 tokens. The limit to compare each gradient rule
with is what it must do at least: its forward and backward passes of the plain bridge (parameters
frozen, logits everywhere). The peer is transformer_lens's own edge attribution. Peak memory is also
measured for the same model cut into 4 to 64 heads.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from gpt2_shape import N_PAIRS, build, plain_passes
from measure import interleaved_seconds, memory_alone, peak_bytes, write_section
from transformer_lens.tools.analysis.attribution_patching import (
    EdgeAttributionConfig,
    Node,
    attribution_patch,
)

from wiremap.edges import Model, PromptPairs, score_edges
from wiremap.edges.runs.sweep import check_pairs
from wiremap.edges.scores.edge_scores import EdgeScores

REPEATS = 5
HEADS = (4, 12, 16, 64)
STEPS = 5
RULES = {
    "clean": (2, 1),
    "both": (2, 2),
    "integrated": (1 + STEPS, STEPS),
    "graddrop": (2, 6.5),
    "relevance": (2, 1),
    "gim": (2, 1),
}
"""Of each rule, the forward and backward passes it must do at least."""


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
            edge = graph.edge(f"{writer_name(writer)}->{reader_name(reader)}")
            total[edge.writer, edge.reader] += score / N_PAIRS
    return EdgeScores(graph, total)


def writer_name(node: Node) -> str:
    return {"embed": "input", "mlp_out": f"m{node.layer}"}.get(
        node.kind, f"a{node.layer}.h{node.head}"
    )


def reader_name(node: Node) -> str:
    if node.kind == "logits":
        return "logits"
    return (
        f"m{node.layer}" if node.kind == "mlp_in" else f"a{node.layer}.h{node.head}<{node.kind[0]}>"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory-of", help="for this script's own use")
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.memory_of:
        what, n_heads = options.memory_of.split("-")
        model, pairs = build(device, int(n_heads))
        check_pairs(model, pairs)  # once per model; not part of scoring
        run = (
            (lambda: plain_passes(model, pairs))
            if what == "plain"
            else (lambda: score_edges(model, pairs, gradient="clean", batch_size=N_PAIRS))
        )
        print(peak_bytes(run, device))
        return
    memory = {
        name: statistics.median(memory_alone(__file__, name, options.device) for _ in range(3))
        for name in ("plain-12", *(f"wiremap-{n_heads}" for n_heads in HEADS))
    }
    model, pairs = build(device)
    runs: dict[str, Callable[[], object]] = {
        "forward": lambda: plain_passes(model, pairs, 2, 1),
        "forwards": lambda: plain_passes(model, pairs, 2 + STEPS, 1),
        "backwards": lambda: plain_passes(model, pairs, 2, 1 + STEPS),
    }
    for rule in RULES:
        runs[rule] = lambda rule=rule: score_edges(
            model, pairs, gradient=rule, steps=STEPS, batch_size=N_PAIRS
        )
    seconds = interleaved_seconds(runs, REPEATS, device)
    plain = statistics.median(seconds["forward"])
    forward = statistics.median(
        (more - less) / STEPS
        for more, less in zip(seconds["forwards"], seconds["forward"], strict=True)
    )
    backward = statistics.median(
        (more - less) / STEPS
        for more, less in zip(seconds["backwards"], seconds["forward"], strict=True)
    )
    # What a first forward and backward pass cost beyond the later ones belongs to all alike.
    once = plain - 2 * forward - backward
    for weight in model.bridge.parameters():  # the peer does not run frozen models
        weight.requires_grad_(True)
    start = time.perf_counter()
    peer = peer_scores(model, pairs).scores
    peer_seconds = time.perf_counter() - start
    ours = score_edges(model, pairs, gradient="corrupted").scores.to(peer)
    difference = float((ours - peer).nan_to_num().abs().max() / peer.abs().max())
    own = statistics.median(seconds["clean"])
    rows = [
        f"| `{rule}`{f', {STEPS} steps' if rule == 'integrated' else ''} | "
        f"{statistics.median(seconds[rule]):.2f} | {n_forward} forwards, {n_backward} backwards "
        f"| **{statistics.median(seconds[rule]) / (once + n_forward * forward + n_backward * backward):.2f}** |"
        for rule, (n_forward, n_backward) in RULES.items()
    ]
    peaks = [memory[f"wiremap-{n_heads}"] / 2**20 for n_heads in HEADS]
    write_section(
        "Scores of all 32,491 edges, GPT-2-small shape, 8 pairs x 16 tokens",
        device,
        f"""
Seconds of each gradient rule with the linear reader, relative to the plain bridge's passes that it
must do at least (one forward pass {forward:.3f} s, one backward pass {backward:.3f} s, all logits;
`integrated` is allowed 1.25):

| | seconds | at least | relative to that |
|---|---|---|---|
{chr(10).join(rows)}
| `transformer_lens` `attribution_patch`, edges | {peer_seconds:.1f} | | `clean` is **{peer_seconds / own:.0f}x** faster (wanted 20x) |

Scores equal those of `transformer_lens`, its positions summed, to {difference:.1e} of the largest.

Peak memory above the model: plain passes {memory["plain-12"] / 2**20:.0f} MiB, `clean`
{memory["wiremap-12"] / 2**20:.0f} MiB (**{memory["wiremap-12"] / memory["plain-12"]:.2f}**, allowed 1.3). With {", ".join(map(str, HEADS))} heads of the same
width in all: {", ".join(f"{peak:.0f}" for peak in peaks)} MiB (medians of 3 processes; the table of scores itself
takes {4 * (1 + 12 * (HEADS[-1] + 1)) * (12 * (3 * HEADS[-1] + 1) + 1) / 2**20:.0f} MiB with {HEADS[-1]}), the largest **{max(peaks) / min(peaks):.2f}** of the smallest (allowed 1.10).
""",
    )


if __name__ == "__main__":
    main()
