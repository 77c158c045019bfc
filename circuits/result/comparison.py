"""Two circuits of models of one shape: what they share, and how alike they rank edges.

Plain data, no torch.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from ...edges.errors import InputError
from .circuit import Circuit, CircuitEdge


@dataclass(frozen=True)
class Comparison:
    """How circuit ``b`` differs from circuit ``a``. An edge's worth is as in ``CircuitEdge.worth``.

    Attributes:
        shared_nodes, lost_nodes, gained_nodes: in both, in ``a`` alone, in ``b`` alone; in the order
            of computation. Edges likewise.
        jaccard: shared edges / edges in either; None if there are none.
        weighted_jaccard: sum of min(|worth in a|, |worth in b|) / sum of the max, over edges in
            either; 0 where an edge is missing. None if an edge says no worth, or none is above 0.
        rank_correlation: Spearman's, of |worth| over edges in either, with 0 where an edge is
            missing and mean ranks for ties. Since each circuit lacks the other's edges, it is lower
            than over shared edges. None as above, or if all are of one worth in a circuit.
        sign_flips: shared edges that carry the behaviour in one and oppose it in the other.
        notes: what makes the figures less comparable.
    """

    a: Circuit
    b: Circuit
    shared_nodes: tuple[str, ...]
    lost_nodes: tuple[str, ...]
    gained_nodes: tuple[str, ...]
    shared_edges: tuple[str, ...]
    lost_edges: tuple[str, ...]
    gained_edges: tuple[str, ...]
    jaccard: float | None
    weighted_jaccard: float | None
    rank_correlation: float | None
    sign_flips: tuple[str, ...]
    notes: tuple[str, ...]

    def as_document(self) -> dict[str, Any]:
        """The comparison as plain JSON data, but for the circuits."""
        return {
            "edges": {"a": len(self.a.edges), "b": len(self.b.edges)},
            "jaccard": self.jaccard,
            "weighted_jaccard": self.weighted_jaccard,
            "rank_correlation": self.rank_correlation,
            "rank_correlation_over": "edges in either, worth 0 where missing",
            "sign_flips": list(self.sign_flips),
            "nodes_shared": list(self.shared_nodes),
            "nodes_lost": list(self.lost_nodes),
            "nodes_gained": list(self.gained_nodes),
            "edges_shared": list(self.shared_edges),
            "edges_lost": list(self.lost_edges),
            "edges_gained": list(self.gained_edges),
            "notes": list(self.notes),
        }

    def union(self) -> Circuit:
        """A circuit of all edges of either; of shared ones, with what ``a`` knows of them."""
        # Of the same names the later wins, which is what `a` says.
        edges = {edge.name: edge for edge in (*self.b.edges, *self.a.edges)}
        scores = {
            node.name: node.score
            for node in (*self.b.nodes, *self.a.nodes)
            if node.score is not None
        }
        return Circuit.build(self.a.shape, edges.values(), scores)

    def membership(self) -> dict[str, str]:
        """For every node and edge of either: ``shared``, ``a`` or ``b``."""
        places: dict[str, str] = {}
        for where, names in (
            ("shared", (*self.shared_nodes, *self.shared_edges)),
            ("a", (*self.lost_nodes, *self.lost_edges)),
            ("b", (*self.gained_nodes, *self.gained_edges)),
        ):
            places |= dict.fromkeys(names, where)
        return places


def compare(a: Circuit, b: Circuit) -> Comparison:
    """Compares two circuits; see ``Comparison``.

    Raises:
        InputError: circuits of models of different shapes.
    """
    _check_shapes(a, b)
    edges_a, edges_b = ({edge.name: edge for edge in circuit.edges} for circuit in (a, b))
    union = Circuit.build(a.shape, {**edges_a, **edges_b}.values())
    names = [edge.name for edge in union.edges]
    shared, lost, gained = _parted(names, edges_a.keys(), edges_b.keys())
    shared_nodes, lost_nodes, gained_nodes = _parted(
        [node.name for node in union.nodes],
        {node.name for node in a.nodes},
        {node.name for node in b.nodes},
    )
    weighted = correlation = None
    if all(edge.worth is not None for edge in (*a.edges, *b.edges)):
        # [edge] each, over the edges in either, so that they stand side by side.
        of_a, of_b = (
            [abs(edges[name].worth or 0.0) if name in edges else 0.0 for name in names]
            for edges in (edges_a, edges_b)
        )
        largest = math.fsum(map(max, of_a, of_b))
        weighted = math.fsum(map(min, of_a, of_b)) / largest if largest else None
        correlation = spearman(of_a, of_b)
    return Comparison(
        a,
        b,
        shared_nodes=shared_nodes,
        lost_nodes=lost_nodes,
        gained_nodes=gained_nodes,
        shared_edges=shared,
        lost_edges=lost,
        gained_edges=gained,
        jaccard=len(shared) / len(names) if names else None,
        weighted_jaccard=weighted,
        rank_correlation=correlation,
        sign_flips=tuple(name for name in shared if _flips(edges_a[name], edges_b[name])),
        notes=tuple(_notes(a, b)),
    )


def _check_shapes(a: Circuit, b: Circuit) -> None:
    of_a, of_b = a.shape.as_dict(), b.shape.as_dict()
    if of_a != of_b:
        differing = [
            f"{name} {of_a[name]} and {of_b[name]}" for name in of_a if of_a[name] != of_b[name]
        ]
        if a.shape.differs_in_kv_alone(b.shape):
            raise InputError(
                f"expected circuits with the same readers of keys and values, got "
                f"{', '.join(differing)}: the one has a reader for each query head (--kv "
                "per-query), the other for each key-value head that query heads share (--kv "
                "grouped); find both with the same --kv"
            )
        raise InputError(
            f"expected circuits of models of one shape, got {', '.join(differing)}; edges of "
            "different models have no correspondence"
        )


def _parted(
    names: Sequence[str], in_a: Collection[str], in_b: Collection[str]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The names that are in both, in ``a`` alone and in ``b`` alone, in their order."""
    return (
        tuple(name for name in names if name in in_a and name in in_b),
        tuple(name for name in names if name not in in_b),
        tuple(name for name in names if name not in in_a),
    )


def _flips(one: CircuitEdge, other: CircuitEdge) -> bool:
    return (one.worth or 0.0) * (other.worth or 0.0) < 0


def _notes(a: Circuit, b: Circuit) -> list[str]:
    notes: list[str] = []
    metrics = [str(circuit.method.get("metric", "unknown")) for circuit in (a, b)]
    if metrics[0] != metrics[1]:
        notes.append(f"worth is in units of {metrics[0]} in A and of {metrics[1]} in B")
    for name, circuit in (("A", a), ("B", b)):
        if lacking := sum(edge.worth is None for edge in circuit.edges):
            notes.append(f"{lacking} edges of {name} say no worth: nothing is weighed or ranked")
    measured = [sum(edge.verified for edge in circuit.edges) for circuit in (a, b)]
    in_part = any(0 < n < len(circuit.edges) for n, circuit in zip(measured, (a, b), strict=True))
    if in_part or (a.edges and b.edges and bool(measured[0]) != bool(measured[1])):
        notes.append(
            f"worth is a measured effect for {measured[0]} of {len(a.edges)} edges in A and "
            f"{measured[1]} of {len(b.edges)} in B, and an estimate for the others"
        )
    return notes


def spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None if either is constant."""
    ranks = [_centred_ranks(values) for values in (one, other)]
    products = math.fsum(x * y for x, y in zip(*ranks, strict=True))
    squares = [math.fsum(x * x for x in values) for values in ranks]
    return products / math.sqrt(squares[0] * squares[1]) if all(squares) else None


def _centred_ranks(values: Sequence[float]) -> list[float]:
    """Ranks less their mean."""
    # All places that equal values take when sorted; their mean is the rank of each.
    places: dict[float, list[int]] = {}
    for place, value in enumerate(sorted(values)):
        places.setdefault(value, []).append(place)
    middle = (len(values) - 1) / 2
    return [sum(places[value]) / len(places[value]) - middle for value in values]
