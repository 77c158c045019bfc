"""Edge scores against transformer_lens's own, where it has any: one pair, positions summed."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from transformer_lens.tools.analysis.attribution_patching import (
    EdgeAttributionConfig,
    Node,
    attribution_patch,
)

from wiremap.edges import score_edges


def writer(node: Node) -> str:
    if node.kind == "embed":
        return "input"
    return f"m{node.layer}" if node.kind == "mlp_out" else f"a{node.layer}.h{node.head}"


def reader(node: Node) -> str:
    if node.kind == "logits":
        return "logits"
    if node.kind == "mlp_in":
        return f"m{node.layer}"
    return f"a{node.layer}.h{node.head}<{node.kind[0]}>"


@pytest.mark.parametrize("kind", ["gpt2", "neox", "neox-sequential"])
def test_scores_equal_those_of_transformer_lens(kind: str) -> None:
    model, pairs = tiny.model(kind), tiny.pairs(3)
    graph = model.graph
    expected = torch.zeros(len(graph.writers), len(graph.readers))
    for row in range(len(pairs)):
        answer, wrong = int(pairs.answers[row, 0]), int(pairs.wrong[row, 0])

        def metric(logits: Any, answer: int = answer, wrong: int = wrong) -> Any:
            return logits[0, -1, answer] - logits[0, -1, wrong]

        found = attribution_patch(
            model.bridge,
            pairs.clean[row : row + 1],
            pairs.corrupted[row : row + 1],
            metric,
            EdgeAttributionConfig(granularity="edge"),
        )
        for (source, target), score in found.edge_scores.items():
            edge = graph.edge(f"{writer(source)}->{reader(target)}")
            expected[edge.writer, edge.reader] += score / len(pairs)
    ours = score_edges(model, pairs, gradient="corrupted").scores
    assert float(expected.abs().max()) > 0.1
    torch.testing.assert_close(ours.nan_to_num(), expected, rtol=1e-3, atol=1e-5)
