"""From measured edges to a circuit: which edges to keep, and which of them hang together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import networkx

from ..edges.errors import InputError
from ..edges.graph import ModelGraph
from .circuit import CircuitEdge, all_nodes


def keep_by_threshold(edges: Iterable[CircuitEdge], threshold: float) -> list[CircuitEdge]:
    """The verified edges with |effect| >= ``threshold``, in units of the metric.

    Raises:
        InputError: a threshold that is negative or not a number.
    """
    if not 0 <= threshold < math.inf:
        raise InputError(f"expected a threshold >= 0, got {threshold}")
    return [edge for edge in edges if edge.effect is not None and abs(edge.effect) >= threshold]


def keep_by_size(edges: Iterable[CircuitEdge], size: int) -> list[CircuitEdge]:
    """The ``size`` largest edges by magnitude: the verified by effect first, then by score.

    Raises:
        InputError: a size below 1.
    """
    if size < 1:
        raise InputError(f"expected a size of at least 1 edge, got {size}")
    largest_first = sorted(
        edges, key=lambda edge: (edge.verified, abs(edge.worth or 0.0)), reverse=True
    )
    return largest_first[:size]


def connected(shape: ModelGraph, edges: Sequence[CircuitEdge]) -> list[CircuitEdge]:
    """The edges that lie on a path from ``input`` to ``logits`` through these edges.

    A head passes on what its query, key or value reads; a key-value head that a group shares
    passes on to every query head of the group.
    """
    graph = networkx.DiGraph((edge.source, edge.target) for edge in edges)
    for node in all_nodes(shape):
        if node.kind == "kv" and node.head is not None and node.name in graph:
            heads = (f"a{node.layer}.h{head}" for head in shape.query_heads(node.head))
            graph.add_edges_from((node.name, head) for head in heads)
    if "input" not in graph or "logits" not in graph:
        return []
    from_input = networkx.descendants(graph, "input") | {"input"}
    to_logits = networkx.ancestors(graph, "logits") | {"logits"}
    return [edge for edge in edges if edge.source in from_input and edge.target in to_logits]
