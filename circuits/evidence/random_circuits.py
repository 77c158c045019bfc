"""Random circuits and paths, to compare a circuit with."""

from __future__ import annotations

import random
from collections.abc import Iterator

from ...edges.names.graph import ROOT, Edge, ModelGraph

_FRUITLESS = 100


def random_circuit(graph: ModelGraph, n_edges: int, rng: random.Random) -> list[Edge]:
    """Edges of random paths, exactly ``n_edges`` of them.

    The last path is cut off where there are enough edges, so a few may be dead; when walks find no
    more, the rest is drawn from all edges that are left.
    """
    found: dict[Edge, None] = {}
    fruitless = 0
    for path in random_paths(graph, rng):
        n_before = len(found)
        found |= dict.fromkeys(path)
        fruitless = 0 if len(found) > n_before else fruitless + 1
        if len(found) >= n_edges or fruitless == _FRUITLESS:
            break
    if len(found) < n_edges:
        rest = [edge for edge in graph.edges() if edge not in found]
        found |= dict.fromkeys(rng.sample(rest, n_edges - len(found)))
    return list(found)[:n_edges]


def random_paths(graph: ModelGraph, rng: random.Random) -> Iterator[list[Edge]]:
    """Random paths without end, each from the logits back to the input.

    Each is a random walk: a uniform choice of what a node reads, then of the slot it reads by.
    """
    while True:
        path: list[Edge] = []
        node = ROOT
        while node != 0:
            reader = rng.choice(graph.read_by(node))
            node = rng.randrange(graph.readers[reader].n_writers)
            path.append(Edge(node, reader))
        yield path
