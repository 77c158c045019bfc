"""Circuits without a model: of any size, and with labels that try to be more than text."""

from __future__ import annotations

import random

import circuits_for_tests

from wiremap.circuits import Circuit, CircuitEdge, Faithfulness
from wiremap.edges import ModelGraph

HOSTILE = (
    "a\"b'c<d>&amp;]]>--><!--\n\\N \u202e\u2028\x00\x1b\ud800 \u05d0\u05d1\u05d2 \U0001f600 "
    "</script></style></svg><script>window.ran=1</script><img src=x onerror=window.ran=2> "
    "javascript:window.ran=3 $title ${script}"
)
GPT2 = ModelGraph(12, 12, 12)


def circuit(n_edges: int, shape: ModelGraph = GPT2, seed: int = 0) -> Circuit:
    """The same circuit every time: a few hubs, a few large effects, many small ones."""
    chance = random.Random(seed)
    matters = {writer.name: chance.paretovariate(1.6) for writer in shape.writers}
    matters |= {"input": 6.0, "logits": 8.0}
    likely: list[tuple[float, str, str, str]] = []
    for reader in shape.readers:
        slot = reader.kind if reader.kind in ("q", "k", "v") else ""
        for writer in shape.writers[: reader.n_writers]:
            size = (matters[writer.name] * matters.get(reader.node, 1.0)) ** 0.5
            likely.append((size * chance.random() ** 2, writer.name, reader.node, slot))
    likely.sort(reverse=True)
    largest = likely[0][0]
    edges: list[CircuitEdge] = []
    for rank, (size, source, target, slot) in enumerate(likely[:n_edges]):
        worth = 2.5 * size / largest * (-1 if chance.random() < 0.3 else 1)
        verified = rank < 0.75 * n_edges
        edges.append(
            CircuitEdge(
                source,
                target,
                slot or None,  # pyright: ignore[reportArgumentType]
                score=worth * chance.uniform(0.7, 1.2),
                effect=worth if verified else None,
                standard_error=abs(worth) * 0.1 if verified else None,
                n_pairs=64 if verified else None,
            )
        )
    return Circuit.build(
        shape,
        edges,
        model={"name": "gpt2-shape"},
        task={"task": f"synthetic, {n_edges:,} edges", "n_pairs": 64},
        method={"metric": "logit_diff", "direction": "noising"},
        faithfulness=Faithfulness(full=3.2, empty=-0.4, circuit=2.9, n_pairs=64),
    )


def hostile() -> Circuit:
    """A circuit whose every label is hostile to some format."""
    return circuits_for_tests.circuit(
        model={"name": HOSTILE},
        task={"pairs": HOSTILE, "corruption": HOSTILE},
        method={"metric": HOSTILE, "gradient": HOSTILE, HOSTILE: HOSTILE},
    )
