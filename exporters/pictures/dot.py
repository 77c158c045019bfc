"""Graphviz DOT (https://graphviz.org/doc/info/lang.html), layered diagrams.

Keeps: nodes, edges, slots; scores and effects as width, colour, dash and tooltips. Loses: edges
beyond the 100 largest (or as many as asked for; the caption says so), and figures as data. DOT is
for looking at and is not read back. Writing it needs no Graphviz.

Up to 500 edges ``dot`` finds the places; beyond, nodes stand in plain rows, which takes no time.
Diagrams read in grey, too: sign is told by dashes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import graphviz

from ...circuits.result.circuit import Circuit, EdgeEvidence
from ...edges.names.vocabulary import EDGES_DRAWN
from ..format import Format
from .labels import (
    NOT_SCORED,
    SCORED,
    WEIGHED,
    WIDEST,
    edge_text,
    escaped,
    line_width,
    node_text,
    printable,
    row_label,
    title,
    unit,
    worth_text,
)
from .layout import places, shown_rows
from .palette import COLOR, FAINT, FILL, FILL_OF_SLOT, NEGATIVE, POSITIVE, UNSCORED
from .shown import CHOICES, Shown, ShownEdge, ShownNode, View, show

READABLE = 300
"""More edges than this make a hairball."""


_MOST_FOR_DOT = 500


_MOST_IN_TOOLTIP = 20


_MANY_ROWS = 24  # stand closer, or the picture would be a tower


_MOST_HEADS = 8  # named in the box of a layer's attention


# Points from the middle of a node to that of the next.
_PER_COLUMN, _PER_ROW = 90.0, 110.0


_ARROWHEADS: Mapping[EdgeEvidence, str] = {
    "verified": "normal",
    "weighed": "diamond",
    "scored": "onormal",
    "unscored": "vee",
}


_NO_VIEW = View()


def to_dot(circuit: Circuit, view: View = _NO_VIEW, placed: bool | None = None) -> str:
    """The circuit as DOT: layered, input below, logits on top.

    Blue solid edges carry the behaviour, red dashed ones oppose it; width grows with magnitude;
    filled arrows are verified, filled diamonds verified in the circuit alone (a loss without an
    effect), hollow arrows merely scored.

    Args:
        view: what to show; the EDGES_DRAWN largest edges, parallel, by default.
        placed: nodes stand in rows of our own instead of where ``dot`` puts them; None does so
            beyond 500 edges, for which ``dot`` takes minutes.
    """
    shown = show_diagram(circuit, view)
    if placed is None:
        placed = len(shown.edges) > _MOST_FOR_DOT
    graph = graphviz.Digraph(
        "circuit",
        graph_attr={
            "rankdir": "BT",
            # Ranks go across the boxes of roles, not within each alone.
            "newrank": "true",
            "ranksep": "0.45" if len(shown_rows(shown)) <= _MANY_ROWS else "0.25",
            "nodesep": "0.28",
            "fontname": "Helvetica",
            "fontsize": "15",
            "labelloc": "t",
            "label": _caption(circuit, shown),
            # nop2 looks for no places, but takes those given.
            **(
                {"layout": "nop2", "splines": "line", "outputorder": "edgesfirst"} if placed else {}
            ),
        },
        node_attr={"shape": "plain", "fontname": "Helvetica", "fontsize": "12"},
        edge_attr={"fontname": "Helvetica", "fontsize": "10", "arrowsize": "0.6"},
    )
    ids = _ids(shown)
    largest = max((edge.size for edge in shown.edges), default=0.0)
    legend = _legend(circuit, shown, largest)
    if placed:
        _place(graph, circuit, shown, ids, legend)
    else:
        _rank(graph, circuit, shown, ids, legend)
        for number, (role, nodes) in enumerate(boxes(shown).items()):
            # The nodes are there already; the cluster only draws a box around them.
            if role is not None:
                box = graphviz.Digraph(f"cluster{number}", graph_attr=_box(role))
                for node in nodes:
                    box.node(ids[node.name])
                graph.subgraph(box)
    for edge in shown.edges:
        if edge.kind == "edge":
            style = _edge_attributes(edge, circuit, shown, largest)
            graph.edge(ids[edge.source], ids[edge.target], **style)
    for edge in shown.edges:
        if edge.kind != "edge":
            means = "serves" if edge.kind == "group" else "is read by"
            style = {"color": FAINT, "style": "dotted", "dir": "none", "tooltip": means}
            graph.edge(ids[edge.source], ids[edge.target], **style)
    return graph.source


def show_diagram(circuit: Circuit, view: View) -> Shown:
    """What a diagram shows: the EDGES_DRAWN largest edges, parallel, if nothing else is asked."""
    return show(circuit, replace(view, top=view.top or EDGES_DRAWN), "parallel")


def details(circuit: Circuit, shown: Shown) -> str:
    """How much of the circuit is shown, and how faithful it is."""
    n_edges = f"{circuit.shape.n_edges:,} edges"
    n_shown, n_kept = shown.n_edges + shown.n_inside, f"{len(circuit.edges):,} edges kept"
    if n_shown == len(circuit.edges):
        parts = [f"{len(circuit.edges)} of {n_edges}"]
    elif shown.collapsed:
        n_lines = sum(edge.kind == "edge" for edge in shown.edges)
        parts = [f"the {n_lines} largest connections, {n_shown} of {n_kept} of {n_edges}"]
    else:
        which = "first" if circuit.unscored else "largest"
        parts = [f"the {n_shown} {which} of {n_kept} of {n_edges}"]
    if shown.n_inside:
        parts.append(f"{shown.n_inside} inside a group not drawn")
    return ", ".join([*parts, *worth_text(circuit)])


def _ids(shown: Shown) -> dict[str, str]:
    """Names for Graphviz, which has its own ideas about dots, colons and brackets."""
    return {
        # Roles may hold any character, and are numbered.
        node.name: f"group{number}" if node.kind == "group" else node.name.replace(".", "_")
        for number, node in enumerate(shown.nodes)
    }


def _anchor(height: int) -> str:
    return f"row{height}"


def attribute(text: str) -> str:
    """Text as an attribute: Graphviz would decode entities and backslashes in it."""
    return graphviz.escape(printable(text).replace("&", "&amp;"))


def _rank(
    graph: graphviz.Digraph, circuit: Circuit, shown: Shown, ids: Mapping[str, str], legend: str
) -> None:
    """Puts every row on a rank of its own, in front of which it is named."""
    nodes = {node.name: node for node in shown.nodes}
    levels = shown_rows(shown)
    for height, names in enumerate(levels):
        level = graphviz.Digraph(graph_attr={"rank": "same"})
        level.node(_anchor(height), row_label(nodes[names[0]]), fontcolor=FAINT, fontsize="10")
        for name in names:
            level.node(ids[name], **_node_attributes(nodes[name], circuit, shown))
        # Beside the input there is room.
        if height == 0:
            level.node("legend", legend)
        graph.subgraph(level)
    # Heavy edges that are not drawn keep the rows in order, and what names them in a column.
    for height in range(1, len(levels)):
        graph.edge(_anchor(height - 1), _anchor(height), style="invis", weight="50")


def _place(
    graph: graphviz.Digraph, circuit: Circuit, shown: Shown, ids: Mapping[str, str], legend: str
) -> None:
    """Says where every node stands."""
    nodes = {node.name: node for node in shown.nodes}
    levels = shown_rows(shown)
    where = places(levels)
    words = [word for node in shown.nodes for word in (node.name, node.role or "")]
    # As wide as the longest name or role needs, at 7 points a letter.
    per_column = max(_PER_COLUMN, 7.0 * max(map(len, words), default=0) + 20)
    # In columns: one to the left of every node, for what names the rows.
    left = min((x for x, _ in where.values()), default=0.0) - 1

    def at(x: float, y: float) -> str:
        return f"{x * per_column:.1f},{y * _PER_ROW:.1f}"

    for height, names in enumerate(levels):
        label = row_label(nodes[names[0]])
        row = {"pos": at(left, float(height)), "fontcolor": FAINT, "fontsize": "10"}
        graph.node(_anchor(height), label, **row)
        for name in names:
            attributes = _node_attributes(nodes[name], circuit, shown, nodes[name].role)
            graph.node(ids[name], pos=at(*where[name]), **attributes)
    graph.node("legend", legend, pos=at(max((x for x, _ in where.values()), default=0.0) + 2, 0.0))


def boxes(shown: Shown) -> dict[str | None, list[ShownNode]]:
    """The shown nodes of each role, and under None those without one."""
    by_role: dict[str | None, list[ShownNode]] = {}
    for node in shown.nodes:
        by_role.setdefault(node.role, []).append(node)
    return by_role


def _box(role: str) -> dict[str, str]:
    return {
        "label": attribute(role),
        "tooltip": attribute(role),
        "style": "rounded",
        "color": "#667788",
        "fontsize": "11",
        "labeljust": "l",
        "labelloc": "b",  # rankdir=BT turns it upside down
    }


def _caption(circuit: Circuit, shown: Shown) -> str:
    return (
        f'<<B>{escaped(title(circuit))}</B><BR/><FONT POINT-SIZE="11" COLOR="#555555">'
        f"{escaped(details(circuit, shown))}</FONT><BR/> >"
    )


def _node_attributes(
    node: ShownNode, circuit: Circuit, shown: Shown, note: str | None = None
) -> dict[str, str]:
    return {
        "label": _node_label(node, shown.ports.get(node.name, ()), note or _heads(node)),
        "tooltip": attribute(_node_tooltip(node, circuit)),
    }


def _heads(node: ShownNode) -> str | None:
    """Which heads of its layer are in the box of an attention."""
    if node.kind != "attention":
        return None
    names = [name.partition(".")[2] for name in node.members]
    # Query heads first; names are in the order of computation, keys and values before them.
    names.sort(key=lambda name: name.startswith("kv"))
    more = len(names) - _MOST_HEADS
    return " ".join(names[:_MOST_HEADS]) + (f" +{more}" if more > 0 else "")


def _node_label(node: ShownNode, slots: Sequence[str], note: str | None) -> str:
    """A rounded box with the name, and below it a cell for each slot that edges arrive at."""
    name = f"<B>{escaped(node.name)}</B>"
    if note:
        name += f'<BR/><FONT POINT-SIZE="9">{escaped(note)}</FONT>'
    fill = FILL.get(node.kind, FILL_OF_SLOT)
    table = f'<TABLE BORDER="1" COLOR="#667788" CELLBORDER="0" CELLSPACING="0" STYLE="ROUNDED" BGCOLOR="{fill}"'
    if not slots:
        return f'<{table} CELLPADDING="5"><TR><TD>{name}</TD></TR></TABLE>>'
    cells = "".join(
        # The port is what ``headport`` of an edge names.
        f'<TD PORT="{slot}" BORDER="1" SIDES="T" COLOR="#aabbcc"><FONT POINT-SIZE="9" COLOR="#445566">{slot}</FONT></TD>'
        for slot in slots
    )
    return (
        f'<{table} CELLPADDING="3"><TR><TD COLSPAN="{len(slots)}" CELLPADDING="4">{name}</TD></TR>'
        f"<TR>{cells}</TR></TABLE>>"
    )


def _node_tooltip(node: ShownNode, circuit: Circuit) -> str:
    text = node_text(node, circuit)
    if node.role is not None:
        text += f" ({node.role})"
    if node.kind in ("attention", "group"):
        text += f": {', '.join(node.members)}"
    return text


def edge_tooltip(edge: ShownEdge, circuit: Circuit) -> str:
    """What is known of an edge, and of each of those it stands for."""
    if len(edge.members) == 1:
        return edge_text(edge.members[0], circuit)
    members = "; ".join(edge_text(member, circuit) for member in edge.members[:_MOST_IN_TOOLTIP])
    more = len(edge.members) - _MOST_IN_TOOLTIP
    whole = "" if edge.worth is None else f"{edge.worth:+.3g} {unit(circuit)} in all: "
    return f"{edge.name}: {whole}{members}" + (f"; and {more} more" if more > 0 else "")


def _style(edge: ShownEdge, largest: float) -> dict[str, str]:
    return {
        "color": COLOR[edge.sign],
        "style": "dashed" if edge.sign == "negative" else "solid",
        "penwidth": f"{line_width(edge.worth, largest):.2f}",
        "arrowhead": _ARROWHEADS[edge.known_by],
    }


def _edge_attributes(
    edge: ShownEdge, circuit: Circuit, shown: Shown, largest: float
) -> dict[str, str]:
    # Edges leave upwards and arrive from below; at the cell of their slot, if the node has such.
    to_port = edge.slots and edge.target in shown.ports
    return {
        **_style(edge, largest),
        "tooltip": attribute(edge_tooltip(edge, circuit)),
        "id": attribute(edge.name),
        "class": edge.known_by,
        "tailport": "n",
        "headport": f"{edge.slots[0]}:s" if to_port else "s",
    }


def _legend(circuit: Circuit, shown: Shown, largest: float) -> str:
    """One node that says what colour, dash, width and arrows mean."""
    edges = [edge for edge in shown.edges if edge.kind == "edge"]
    lines = [
        (_sample(POSITIVE, 3, dashed=False), "carries the behaviour"),
        (_sample(NEGATIVE, 3, dashed=True), "opposes it"),
    ]
    if circuit.unscored:
        lines = []
    if any(edge.sign == "unscored" for edge in edges):
        lines.append((_sample(UNSCORED, 3, dashed=False), NOT_SCORED))
    if largest:
        what = "effect" if any(edge.verified for edge in edges) else "score"
        lines.append(
            (
                _sample(POSITIVE, round(WIDEST), dashed=False),
                f"{what} {largest:.2g} {unit(circuit)}",
            )
        )
    known = {edge.known_by for edge in edges}
    if "weighed" in known:
        lines.append(("\u25c6", WEIGHED))
    if "scored" in known:
        lines.append(("\u25b7", SCORED))
    rows = "".join(
        f'<TR><TD>{sample}</TD><TD ALIGN="LEFT"><FONT POINT-SIZE="10" COLOR="#444444">'
        f"{escaped(text)}</FONT></TD></TR>"
        for sample, text in lines
    )
    return (
        '<<TABLE BORDER="1" COLOR="#cccccc" CELLBORDER="0" CELLSPACING="2" CELLPADDING="1" '
        f'STYLE="ROUNDED">{rows}</TABLE>>'
    )


def _sample(color: str, height: int, dashed: bool) -> str:
    """A short piece of line, drawn as table cells."""
    # The double braces leave the width open until ``format``.
    cell = f'<TD FIXEDSIZE="TRUE" WIDTH="{{}}" HEIGHT="{height}" BGCOLOR="{color}"></TD>'
    gap = f'<TD FIXEDSIZE="TRUE" WIDTH="4" HEIGHT="{height}"></TD>'
    cells = gap.join([cell.format(8)] * 3) if dashed else cell.format(32)
    return (
        f'<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="0"><TR>{cells}</TR></TABLE>'
    )


FORMATS = (
    Format(
        "dot",
        ".dot",
        "Graphviz source",
        encode=lambda circuit, view: to_dot(circuit, view).encode(),
        signs=lambda content: content.start.startswith(("digraph", "graph", "//")),
        called="Graphviz DOT",
        shows=CHOICES,
    ),
)
