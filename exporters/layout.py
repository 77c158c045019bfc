"""Where nodes stand: input below, logits on top, a row for each kind of node of each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..circuits.circuit import Circuit, CircuitNode

# Within a layer, in the order of computation.
_ROW_OF_KIND = {"kv": 0, "head": 1, "mlp": 2}
_SWEEPS = 8


def row(node: CircuitNode) -> int:
    """The node's row, counted from 0 for the input; a layer has three, used or not."""
    if node.layer is None:
        return 0 if node.kind == "input" else 1_000_000
    return 1 + 3 * node.layer + _ROW_OF_KIND[node.kind]


def rows(circuit: Circuit) -> list[tuple[CircuitNode, ...]]:
    """The occupied rows from the input upwards; within a row, nodes ordered to cross few edges."""
    by_row: dict[int, list[CircuitNode]] = {}
    for node in circuit.nodes:
        by_row.setdefault(row(node), []).append(node)
    ordered = [by_row[number] for number in sorted(by_row)]
    neighbours: dict[str, list[str]] = {node.name: [] for node in circuit.nodes}
    for source, target in [(edge.source, edge.target) for edge in circuit.edges] + [
        *circuit.groups
    ]:
        neighbours[source].append(target)
        neighbours[target].append(source)
    for sweep in range(_SWEEPS):
        for nodes in ordered if sweep % 2 else reversed(ordered):
            places = _places(ordered)
            nodes.sort(key=lambda node: _mean_place(neighbours[node.name], places))
    return [tuple(nodes) for nodes in ordered]


def positions(circuit: Circuit) -> dict[str, tuple[float, float]]:
    """Coordinates of every node, y upwards, one unit apart, rows centred on x = 0."""
    return {
        node.name: (column - (len(nodes) - 1) / 2, float(height))
        for height, nodes in enumerate(rows(circuit))
        for column, node in enumerate(nodes)
    }


def _places(ordered: Sequence[Sequence[CircuitNode]]) -> dict[str, float]:
    return {
        node.name: column - (len(nodes) - 1) / 2
        for nodes in ordered
        for column, node in enumerate(nodes)
    }


def _mean_place(names: Sequence[str], places: Mapping[str, float]) -> float:
    return sum(places[name] for name in names) / len(names) if names else 0.0
