"""Two circuits in one diagram, coloured by which of them has what.

Keeps: nodes, edges and slots of both, and which circuit has them; |worth| as width. Loses: signs
and figures, and edges beyond those asked for (the caption says so).
"""

from __future__ import annotations

from pathlib import Path

import graphviz

from ...circuits.result.circuit import Circuit, CircuitEdge
from ...circuits.result.comparison import Comparison
from ...edges.errors import InputError
from ...edges.files import write_atomically
from ...edges.names.vocabulary import EDGES_DRAWN
from .dot import attribute
from .graphviz import render
from .labels import printable
from .layout import rows

COLOURS = {"shared": "#5f7fa3", "a": "#d95f02", "b": "#1b8a5a"}


_STYLES = {"shared": "solid", "a": "dashed", "b": "dotted"}  # read in grey, too


_FILLS = {"shared": "#e4ecf7", "a": "#fbe6d4", "b": "#dcf1e6"}


_THINNEST, _WIDEST = 1.0, 5.0


def to_comparison_dot(
    comparison: Comparison, top: int = EDGES_DRAWN, names: tuple[str, str] = ("A", "B")
) -> str:
    """Both circuits as DOT: input below, logits on top; shared grey-blue, A orange, B green.

    Edges in A alone are dashed, in B alone dotted; width grows with the larger |worth| of the two.

    Args:
        top: how many edges are drawn, the largest.
        names: what the caption calls the circuits.
    """
    whole, where = comparison.union(), comparison.membership()
    worth: dict[str, float] = {}
    for edge in (*comparison.a.edges, *comparison.b.edges):
        worth[edge.name] = max(edge.size, worth.get(edge.name, 0.0))
    drawn = sorted(whole.edges, key=lambda edge: -worth[edge.name])[:top]
    circuit = Circuit.build(whole.shape, drawn)
    # Widths are shares of it, and all edges may be worth 0.
    largest = max((worth[edge.name] for edge in drawn), default=0.0) or 1.0
    graph = graphviz.Digraph(
        "comparison",
        graph_attr={
            "rankdir": "BT",
            "ranksep": "0.45",
            "nodesep": "0.28",
            "fontname": "Helvetica",
            "fontsize": "12",
            "labelloc": "t",
            "label": _caption(comparison, len(drawn), names),
        },
        node_attr={
            "shape": "box",
            "style": "rounded,filled",
            "fontname": "Helvetica",
            "fontsize": "12",
            "height": "0.3",
        },
        edge_attr={"fontname": "Helvetica", "fontsize": "9", "arrowsize": "0.6"},
    )
    for level in rows(circuit):
        row = graphviz.Digraph(graph_attr={"rank": "same"})
        for node in level:
            owner = where[node.name]
            row.node(
                _id(node.name),
                node.name,
                color=COLOURS[owner],
                fillcolor=_FILLS[owner],
                **{"class": owner},
            )
        graph.subgraph(row)
    for edge in circuit.edges:
        graph.edge(
            _id(edge.source),
            _id(edge.target),
            label=edge.slot or "",
            id=edge.name,
            tooltip=_tooltip(edge, comparison, names),
            color=COLOURS[where[edge.name]],
            fontcolor=COLOURS[where[edge.name]],
            style=_STYLES[where[edge.name]],
            penwidth=f"{_THINNEST + (_WIDEST - _THINNEST) * worth[edge.name] / largest:.2f}",
            **{"class": where[edge.name]},
        )
    # Which query heads a key-value head serves: grey, as it carries nothing.
    for kv_head, head in circuit.groups:
        graph.edge(_id(kv_head), _id(head), color="#999999", style="dotted", dir="none")
    return graph.source


def write_comparison(
    comparison: Comparison,
    path: str | Path,
    top: int = EDGES_DRAWN,
    names: tuple[str, str] = ("A", "B"),
) -> None:
    """Writes the diagram, whole or not at all: ``.dot``, ``.svg``, ``.png`` or ``.pdf``.

    Raises:
        InputError: another extension, or a place that cannot be written.
        WiremapError: a picture that ``dot`` could not draw (missing, too slow, failed).
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("dot", "svg", "png", "pdf"):
        raise InputError(f"{path}: expected a .dot, .svg, .png or .pdf file for the diagram")
    dot = to_comparison_dot(comparison, top, names)
    write_atomically(path, dot.encode() if kind == "dot" else render(dot, kind))


def _id(name: str) -> str:
    return name.replace(".", "_")


def _caption(comparison: Comparison, n_drawn: int, names: tuple[str, str]) -> str:
    shared, lost, gained = (
        len(edges)
        for edges in (comparison.shared_edges, comparison.lost_edges, comparison.gained_edges)
    )
    a, b = (printable(name) for name in names)
    caption = (
        f"{shared} edges shared (solid), {lost} in {a} alone (orange, dashed), "
        f"{gained} in {b} alone (green, dotted)"
    )
    if n_drawn < shared + lost + gained:
        caption += f"; the {n_drawn} largest are drawn"
    return attribute(caption)


def _tooltip(edge: CircuitEdge, comparison: Comparison, names: tuple[str, str]) -> str:
    worths = [
        f"{printable(name)}: {'unknown' if own.worth is None else format(own.worth, '+.3g')}"
        for name, circuit in zip(names, (comparison.a, comparison.b), strict=True)
        for own in circuit.edges
        if own.name == edge.name
    ]
    return attribute(f"{edge.name}: {', '.join(worths)}")
