"""From measured edges to a circuit: which edges to keep, and which of them hang together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import networkx

from ..edges.errors import InputError
from ..edges.graph import ModelGraph
from .circuit import CircuitEdge, all_nodes


def check_rules(
    target: float | None = None, threshold: float | None = None, size: int | None = None
) -> None:
    """Raises InputError for a rule that cannot be pruned by; None is a rule not used."""
    if target is not None and not 0 < target <= 1:
        raise InputError(f"expected a faithfulness target above 0 and at most 1, got {target}")
    if threshold is not None and not 0 <= threshold < math.inf:
        raise InputError(f"expected a threshold >= 0, got {threshold}")
    if size is not None and size < 1:
        raise InputError(f"expected a size of at least 1 edge, got {size}")


def keep_by_threshold(edges: Iterable[CircuitEdge], threshold: float) -> list[CircuitEdge]:
    """The verified edges with |effect| >= ``threshold``, in units of the metric.

    Raises:
        InputError: a threshold that is negative or not a number.
    """
    check_rules(threshold=threshold)
    return [edge for edge in edges if edge.effect is not None and abs(edge.effect) >= threshold]


def keep_by_size(edges: Iterable[CircuitEdge], size: int) -> list[CircuitEdge]:
    """The ``size`` largest edges by magnitude: the verified by effect first, then by score.

    Raises:
        InputError: a size below 1.
    """
    check_rules(size=size)
    largest_first = sorted(
        edges, key=lambda edge: (edge.verified, abs(edge.worth or 0.0)), reverse=True
    )
    return largest_first[:size]


def keep_by_faithfulness(
    edges: Iterable[CircuitEdge],
    target: float,
    faithfulness: Callable[[Sequence[CircuitEdge]], float],
) -> list[CircuitEdge]:
    """The fewest verified edges, largest effect first, that reach a faithfulness of ``target``.

    Found by bisection, as if faithfulness grew with every edge; it mostly does. If all verified
    edges together fall short of the target, all are kept.

    Args:
        faithfulness: of a set of edges.

    Raises:
        InputError: a target that is not above 0 and at most 1.
    """
    check_rules(target=target)
    verified = keep_by_threshold(edges, 0.0)
    largest_first = sorted(verified, key=lambda edge: -abs(edge.effect or 0.0))
    too_few, enough = 0, len(largest_first)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if faithfulness(largest_first[:middle]) >= target:
            enough = middle
        else:
            too_few = middle
    return largest_first[:enough]


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
