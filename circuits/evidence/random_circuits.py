"""Random circuits and paths, to compare a circuit with."""

from __future__ import annotations

import random
from collections.abc import Iterator

from ...edges.names.graph import ROOT, Edge, ModelGraph

# Paths in a row that bring no new edge, before the rest is drawn edge by edge.
_FRUITLESS = 100


def random_circuit(graph: ModelGraph, n_edges: int, rng: random.Random) -> list[Edge]:
    """Edges of random paths, exactly ``n_edges`` of them.

    The last path is cut off where there are enough edges, so a few may be dead; when walks find no
    more, the rest is drawn from all edges that are left.
    """
    # In the order drawn, which a set would lose: the cut at the end takes from the last path.
    chosen: dict[Edge, None] = {}
    fruitless = 0
    for path in random_paths(graph, rng):
        n_before = len(chosen)
        chosen |= dict.fromkeys(path)
        fruitless = 0 if len(chosen) > n_before else fruitless + 1
        if len(chosen) >= n_edges or fruitless == _FRUITLESS:
            break
    if len(chosen) < n_edges:
        rest = [edge for edge in graph.edges() if edge not in chosen]
        chosen |= dict.fromkeys(rng.sample(rest, n_edges - len(chosen)))
    return list(chosen)[:n_edges]


def random_paths(graph: ModelGraph, rng: random.Random) -> Iterator[list[Edge]]:
    """Random paths without end, each from the logits back to the input.

    Each is a random walk: a uniform choice of what a node reads, then of the slot it reads by.
    """
    while True:
        path: list[Edge] = []
        node = ROOT
        # Writer 0 is the input; every other node reads something earlier, so a walk ends there.
        while node != 0:
            reader = rng.choice(graph.read_by(node))
            # A reader can read the first n_writers writers, no others.
            node = rng.randrange(graph.readers[reader].n_writers)
            path.append(Edge(node, reader))
        yield path
