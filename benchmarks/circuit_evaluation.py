"""Time of evaluating circuits of ten sizes, beside TransformerLens.

    python benchmarks/circuit_evaluation.py [--device cpu|cuda]

GPT-2-small shape with random weights, 8 pairs of 16 tokens, all 32,491 edges ranked by score. The
peer is transformer_lens's own ``faithfulness``, which patches with the corrupted run, as we do. It
has edges of its own at every position, from a position to itself: a circuit is given to it with
each edge at all positions, which is the same circuit. Its ``input`` is the token embedding, ours
the position embedding too; where clean and corrupted prompts are of one length both write the same
there, so that patching either is the same. It takes one pair at a time, and runs one more circuit
for each class of edges (into_qk, into_v, into_mlp, into_logits) that the circuit has, with no way
to leave that out: it is timed as it comes, on one pair and three sizes, and the time scaled to ten
sizes and all pairs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from edge_scores import reader_name, writer_name
from gpt2_shape import N_PAIRS, N_POS, build
from measure import interleaved_seconds, write_section
from transformer_lens.tools.analysis.attribution_patching import (
    Node,
    cache_activation_and_gradient,
    enumerate_edges,
    faithfulness,
)

from wiremap.circuits.evidence.faithfulness import MIB_SIZES, curve, evaluate
from wiremap.edges import Model, PromptPairs, score_edges

REPEATS = 3
PEER_SIZES = (0.01, 0.1, 0.5)
WANTED = 20
"""How many times faster than the peer."""


def peer_edges(model: Model, pairs: PromptPairs) -> dict[str, list[tuple[Node, Node]]]:
    """transformer_lens's edges, at every position, by our name of them."""
    from transformer_lens.tools.analysis import attribution_patching as peer

    names = peer._edge_hook_names(model.graph.n_layers)  # pyright: ignore[reportPrivateUsage]
    with torch.no_grad(), peer._edge_hook_flags(model.bridge):  # pyright: ignore[reportPrivateUsage]
        cache = cache_activation_and_gradient(
            model.bridge,
            pairs.clean[:1].to(model.device),
            lambda logits: logits.sum(),
            names_filter=names,
            compute_gradient=False,
        )
        edges: Any = enumerate_edges(model.bridge, cache)
    found: dict[str, list[tuple[Node, Node]]] = {}
    for writer, reader in edges:
        found.setdefault(f"{writer_name(writer)}->{reader_name(reader)}", []).append(
            (writer, reader)
        )
    return found


def peer_faithfulness(
    model: Model,
    pair: PromptPairs,
    edges: Sequence[str],
    known: dict[str, list[tuple[Node, Node]]],
) -> float:
    answer, wrong = int(pair.answers[0, 0]), int(pair.wrong[0, 0])
    found = faithfulness(
        model.bridge,
        pair.clean.to(model.device),
        pair.corrupted.to(model.device),
        lambda logits: logits[0, -1, answer] - logits[0, -1, wrong],
        [edge for name in edges for edge in known[name]],
    )
    return found.recovered


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    model, pairs = build(device)
    ranking = [name for name, _ in score_edges(model, pairs).top()]
    one = PromptPairs(pairs.clean[:1], pairs.corrupted[:1], pairs.answers[:1], pairs.wrong[:1])
    known = peer_edges(model, one)
    rows: list[str] = []
    peer_seconds: list[float] = []
    largest = 0.0
    for size in PEER_SIZES:
        best = [model.graph.edge(name) for name in ranking[: int(size * len(ranking))]]
        edges = [model.graph.edge_name(edge) for edge in model.graph.live(best)]
        ours = evaluate(model, one, edges).faithfulness
        start = time.perf_counter()
        theirs = peer_faithfulness(model, one, edges, known)
        peer_seconds.append(time.perf_counter() - start)
        if abs(ours - theirs) > 1e-3 * max(1.0, abs(theirs)):
            raise RuntimeError(f"{len(edges)} edges: ours {ours}, transformer_lens {theirs}")
        largest = max(largest, abs(ours - theirs))
        rows.append(
            f"| {100 * size:g} % | {len(edges):,} | {ours:.5f} | {theirs:.5f} | {peer_seconds[-1]:.1f} |"
        )
    seconds = interleaved_seconds(
        {
            "ten sizes": lambda: curve(model, pairs, ranking),
            "one size": lambda: curve(model, pairs, ranking, sizes=[0.1]),
            "ten sizes, one pair": lambda: curve(model, one, ranking),
        },
        REPEATS,
        device,
    )
    own = {name: statistics.median(times) for name, times in seconds.items()}
    scaled = statistics.mean(peer_seconds) * len(MIB_SIZES)
    ratio_one = scaled / own["ten sizes, one pair"]
    ratio_all = scaled * N_PAIRS / own["ten sizes"]
    write_section(
        f"Circuits of ten sizes, GPT-2-small shape, {N_PAIRS} pairs x {N_POS} tokens",
        device,
        f"""
Faithfulness of one pair at three sizes, ours and that of `transformer_lens` `faithfulness`, all
dropped edges carrying the corrupted run's values (largest difference {largest:.1e}), and the
seconds it took:

| size | edges kept | wiremap | `transformer_lens` | its seconds |
|---|---|---|---|---|
{chr(10).join(rows)}

| | one pair | {N_PAIRS} pairs |
|---|---|---|
| wiremap, ten sizes (the faithfulness curve) | {own["ten sizes, one pair"]:.2f} s | {own["ten sizes"]:.2f} s |
| `transformer_lens`, scaled from the mean of the three sizes | {scaled:.0f} s | {scaled * N_PAIRS:.0f} s |
| wiremap is faster | **{ratio_one:.0f}x** | **{ratio_all:.0f}x** (wanted {WANTED}x) |

It runs up to four circuits more for each, one without each class of edges; if each costs as much as
the circuit itself, **{ratio_all / 5:.0f}x** are left. One size alone takes wiremap {own["one size"]:.2f} s for
{N_PAIRS} pairs. Load of the machine at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.
""",
    )


if __name__ == "__main__":
    main()
