"""Where nodes stand: input below, logits on top, a row for each kind of node of each layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ...circuits.result.circuit import Circuit, CircuitNode
from .shown import Shown, row

_SWEEPS = 8


def rows(circuit: Circuit) -> list[tuple[CircuitNode, ...]]:
    """The occupied rows from the input upwards; within a row, nodes ordered to cross few edges."""
    nodes = {node.name: node for node in circuit.nodes}
    joined = [*((edge.source, edge.target) for edge in circuit.edges), *circuit.groups]
    levels = _ordered({node.name: row(node.kind, node.layer) for node in circuit.nodes}, joined)
    return [tuple(nodes[name] for name in level) for level in levels]


def shown_rows(shown: Shown) -> list[list[str]]:
    """The same of what is shown of a circuit: names of nodes."""
    joined = [(edge.source, edge.target) for edge in shown.edges]
    return _ordered({node.name: node.row for node in shown.nodes}, joined)


def positions(circuit: Circuit) -> dict[str, tuple[float, float]]:
    """Coordinates of every node, y upwards, one unit apart, rows centred on x = 0."""
    return places([[node.name for node in level] for level in rows(circuit)])


def places(levels: Sequence[Sequence[str]]) -> dict[str, tuple[float, float]]:
    """The same of ordered rows of names."""
    return {
        name: (column - (len(names) - 1) / 2, float(height))
        for height, names in enumerate(levels)
        for column, name in enumerate(names)
    }


def _ordered(row_of: Mapping[str, int], joined: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Rows of names; each is sorted by where its neighbours stand, downwards and upwards in turn."""
    by_row: dict[int, list[str]] = {}
    for name, number in row_of.items():
        by_row.setdefault(number, []).append(name)
    levels = [by_row[number] for number in sorted(by_row)]
    neighbours: dict[str, list[str]] = {name: [] for name in row_of}
    for source, target in joined:
        neighbours[source].append(target)
        neighbours[target].append(source)
    column = {name: x for name, (x, _) in places(levels).items()}
    # The barycentre heuristic (Sugiyama, Tagawa and Toda 1981): each node goes to the mean column
    # of its neighbours. The sort is stable, so the same circuit gives the same rows.
    for sweep in range(_SWEEPS):
        for names in levels if sweep % 2 else reversed(levels):
            names.sort(key=lambda name: _mean(neighbours[name], column))
            # At once, so that the next row sees the new order of this one.
            column |= {name: x for name, (x, _) in places([names]).items()}
    return levels


def _mean(names: Sequence[str], column: Mapping[str, float]) -> float:
    # Without neighbours in the middle: rows are centred on 0.
    return sum(column[name] for name in names) / len(names) if names else 0.0
