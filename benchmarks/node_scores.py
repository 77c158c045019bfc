"""Time and memory of AtP* over all attention nodes, beside the passes it must make at least.

    python benchmarks/node_scores.py [--device cpu|cuda]

GPT-2-small shape with random weights, 8 pairs of 16 tokens; queries, keys, values and outputs of
all heads at every position. GradDrop over L layers needs 2 forward and (L + 1) / 2 backward passes
(6.5 here); the limit is the same of the plain bridge: the mean of 6 and of 7 backward passes.
"""

from __future__ import annotations

import argparse

import torch
from gpt2_shape import N_PAIRS, build, plain_passes
from measure import interleaved_seconds, memory_alone, peak_bytes, write_section

from wiremap.edges import score_nodes
from wiremap.edges.runs.sweep import check_pairs

REPEATS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory-of", choices=["plain", "atp-star"])
    options = parser.parse_args()
    device = torch.device(options.device)
    model, pairs = build(device)

    def score(method: str) -> None:
        score_nodes(model, pairs, "heads", method=method, positions="each", batch_size=N_PAIRS)

    runs = {"plain": lambda: plain_passes(model, pairs), "atp-star": lambda: score("atp-star")}
    if options.memory_of:
        check_pairs(model, pairs)  # once per model; not part of scoring
        print(peak_bytes(runs[options.memory_of], device))
        return
    memory = {name: memory_alone(__file__, name, options.device) for name in runs}
    seconds = interleaved_seconds(
        {
            "1 backward": lambda: plain_passes(model, pairs, 2, 1),
            "6 backwards": lambda: plain_passes(model, pairs, 2, 6),
            "7 backwards": lambda: plain_passes(model, pairs, 2, 7),
            "atp": lambda: score("atp"),
            "atp-qk": lambda: score("atp-qk"),
            "atp-star": lambda: score("atp-star"),
        },
        REPEATS,
        device,
    )
    median = {name: sorted(found)[REPEATS // 2] for name, found in seconds.items()}
    limit = (median["6 backwards"] + median["7 backwards"]) / 2
    one = median["1 backward"]
    write_section(
        "AtP* of all attention nodes, GPT-2-small shape, 8 pairs x 16 tokens",
        device,
        f"""
| | seconds | relative to plain passes |
|---|---|---|
| plain bridge: 2 forwards + 1 backward, all logits | {one:.3f} | 1 |
| plain bridge: 2 forwards + 6.5 backwards, all logits | {limit:.3f} | 1 |
| AtP, 9,216 nodes | {median["atp"]:.3f} | {median["atp"] / one:.2f} of 2 forwards + 1 backward |
| AtP + QK fix | {median["atp-qk"]:.3f} | {median["atp-qk"] / one:.2f} of 2 forwards + 1 backward |
| AtP* (QK fix + GradDrop) | {median["atp-star"]:.3f} | **{median["atp-star"] / limit:.2f}** of 2 forwards + 6.5 backwards (allowed 1.3) |

Peak memory above the model: AtP* {memory["atp-star"] / 2**20:.0f} MiB, plain forward and backward
{memory["plain"] / 2**20:.0f} MiB: **{memory["atp-star"] / memory["plain"]:.2f}** (allowed 1.5).
""",
    )


if __name__ == "__main__":
    main()
