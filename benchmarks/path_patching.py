"""Path patching of edges: edges per second beside TransformerLens, a forward pass and the hardware.

    python benchmarks/path_patching.py [--device cpu|cuda] [--tokens 16] [--edges N]

GPT-2-small shape with random weights, 8 pairs, float32 without TF32. Effects of a random sample of
all edges (all 32,491 on CUDA), against (a) transformer_lens's direct path patching of the same
head-to-head edges, (b) one forward pass of the plain bridge for each edge, and (c) the rate of the
matrix products that the device itself reaches, on the products the engine does.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import torch
from gpt2_shape import N_PAIRS, build
from measure import interleaved_seconds, median_ratio, write_section
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformer_lens.patching import get_act_patch_direct_path

from wiremap.edges import Model, PromptPairs, patch_edges
from wiremap.edges.runs.sweep import check_pairs

REPEATS = 3
SAMPLE = 256
SOURCE = (9, 3)


def peer_effects(model: Model, pairs: PromptPairs) -> torch.Tensor:
    """transformer_lens's effects of the edges from one head into the queries of all later ones."""
    clean, corrupted = pairs.clean.to(model.device), pairs.corrupted.to(model.device)
    right, wrong = pairs.answers[:, 0].to(model.device), pairs.wrong[:, 0].to(model.device)
    rows = torch.arange(N_PAIRS, device=model.device)

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return (logits[rows, -1, right] - logits[rows, -1, wrong]).mean()

    z = f"blocks.{SOURCE[0]}.attn.hook_z"
    with torch.no_grad():
        _, clean_cache = model.bridge.run_with_cache(clean, names_filter=z)
        logits, cache = model.bridge.run_with_cache(corrupted, names_filter=z)
        patched = get_act_patch_direct_path(
            model.bridge, corrupted, clean_cache, cache, metric, *SOURCE, "q", verbose=False
        )
    return patched[SOURCE[0] + 1 :].flatten() - metric(logits)


def matrix_rate(device: torch.device) -> float:
    """Floating-point operations per second of a large float32 matrix product."""
    size = 8192 if device.type == "cuda" else 2048
    one, other = torch.randn(2, size, size, device=device)
    seconds = interleaved_seconds({"": lambda: one @ other}, 5, device)[""]
    return 2 * size**3 / statistics.median(seconds)


def busiest(model: Model, pairs: PromptPairs, edges: list[str], device: torch.device) -> str:
    """Where the time goes: the operators that take most of it, in percent."""
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with profile(activities=activities) as found:
        patch_edges(model, pairs, edges)
    of = [
        (event.key, event.self_device_time_total if cuda else event.self_cpu_time_total)
        for event in found.key_averages()
    ]
    total = sum(time for _, time in of)
    largest = sorted(of, key=lambda item: -item[1])[:8]
    return ", ".join(f"`{name[:50]}` {100 * time / total:.0f} %" for name, time in largest)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--edges", type=int, help="a sample; all on CUDA")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.backends.cuda.matmul.allow_tf32 = False
    model, pairs = build(device, n_pos=options.tokens)
    names = [model.graph.edge_name(edge) for edge in model.graph.edges()]
    n_edges = options.edges or (len(names) if device.type == "cuda" else SAMPLE)
    sample = random.Random(0).sample(names, n_edges)
    later = [
        f"a{SOURCE[0]}.h{SOURCE[1]}->a{layer}.h{head}<q>"
        for layer in range(SOURCE[0] + 1, model.graph.n_layers)
        for head in range(model.graph.n_heads)
    ]
    check_pairs(model, pairs)  # once per model; not part of patching
    seconds = interleaved_seconds(
        {
            "sample": lambda: patch_edges(model, pairs, sample),
            "later": lambda: patch_edges(model, pairs, later, direction="denoising"),
            "forwards": lambda: [model.bridge(pairs.clean.to(device)) for _ in range(8)],
        },
        REPEATS,
        device,
    )
    rate = matrix_rate(device)
    with FlopCounterMode(display=False) as counter:
        patch_edges(model, pairs, sample)
    flops = counter.get_total_flops()
    start = time.perf_counter()
    peer = peer_effects(model, pairs)
    peer_seconds = time.perf_counter() - start
    ours = patch_edges(model, pairs, later, direction="denoising").mean().to(peer)
    difference = float((ours - peer).abs().max() / peer.abs().max())
    own = statistics.median(seconds["sample"])
    of_forward = median_ratio(seconds["forwards"], seconds["sample"]) * n_edges / 8
    of_limit = flops / rate / own
    write_section(
        f"Path patching, GPT-2-small shape, {N_PAIRS} pairs x {options.tokens} tokens",
        device,
        f"""
{n_edges:,} of {len(names):,} edges{"" if n_edges == len(names) else ", drawn at random"}, float32: {own:.2f} s, **{n_edges / own:.0f} edges per second**
(all would take {own * len(names) / n_edges:.0f} s).

| beside | it takes | wiremap is faster |
|---|---|---|
| `transformer_lens` `get_act_patch_direct_path`, {len(later)} edges | {peer_seconds:.1f} s | **{peer_seconds / statistics.median(seconds["later"]):.1f}x** (wanted on a CPU 5x) |
| one forward pass for each edge | {statistics.median(seconds["forwards"]) / 8 * n_edges:.1f} s | **{of_forward:.1f}x** (wanted on a CPU 4x) |
| its own matrix products at the device's rate ({rate / 1e12:.2f} TFLOP/s) | {flops / rate:.2f} s | **{100 * of_limit:.0f} %** of that rate (wanted on a GPU 35 %) |

Effects equal those of `transformer_lens` to {difference:.1e} of the largest. Time goes to
{busiest(model, pairs, sample, device)}.
""",
    )


if __name__ == "__main__":
    main()
