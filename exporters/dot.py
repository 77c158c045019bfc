"""Graphviz DOT (https://graphviz.org/doc/info/lang.html), and pictures drawn from it by ``dot``.

Keeps: nodes, edges, slots, scores, effects (as width, colour, dash and tooltips). Loses: the
figures themselves as data; DOT is for looking at, and is not read back. Writing DOT needs no
Graphviz; pictures need its ``dot`` program.
"""

from __future__ import annotations

import html
import shutil
import subprocess

import graphviz

from ..circuits.circuit import Circuit, CircuitEdge, CircuitNode
from ..edges.errors import WiremapError
from .layout import rows

POSITIVE = "#2166ac"
NEGATIVE = "#b2182b"
FAINT = "#999999"
THINNEST, WIDEST = 0.6, 5.0
FILL = {
    "input": "#ececec",
    "kv": "#e6f0e2",
    "head": "#e4ecf7",
    "mlp": "#f7edd8",
    "logits": "#ececec",
}

RENDER_SECONDS = 60
"""How long ``dot`` may take for one picture."""


def to_dot(circuit: Circuit) -> str:
    """The circuit as DOT: layered, input below, logits on top.

    Blue solid edges carry the behaviour, red dashed ones oppose it; width grows with magnitude;
    filled arrows are verified, hollow ones merely scored.
    """
    graph = graphviz.Digraph(
        "circuit",
        graph_attr={
            "rankdir": "BT",
            "newrank": "true",
            "ranksep": "0.45",
            "nodesep": "0.28",
            "fontname": "Helvetica",
            "fontsize": "15",
            "labelloc": "t",
            "label": _caption(circuit),
        },
        node_attr={"shape": "plain", "fontname": "Helvetica", "fontsize": "12"},
        edge_attr={"fontname": "Helvetica", "fontsize": "10", "arrowsize": "0.6"},
    )
    slots: dict[str, set[str]] = {}
    for edge in circuit.edges:
        slots.setdefault(edge.target, set()).update(edge.slot or "")
    largest = max((abs(edge.worth or 0.0) for edge in circuit.edges), default=0.0)
    levels = rows(circuit)
    for height, nodes in enumerate(levels):
        level = graphviz.Digraph(graph_attr={"rank": "same"})
        level.node(_anchor(height), row_label(nodes[0]), fontcolor=FAINT, fontsize="10")
        for node in nodes:
            level.node(
                _id(node.name),
                _node_label(node, sorted(slots.get(node.name, ()))),
                tooltip=_attribute(node_text(node, circuit)),
            )
        if height == 0:
            level.node("legend", _legend(circuit, largest))
        graph.subgraph(level)
    for height in range(1, len(levels)):
        graph.edge(_anchor(height - 1), _anchor(height), style="invis", weight="50")
    for edge in circuit.edges:
        graph.edge(_id(edge.source), _id(edge.target), **_edge_attributes(edge, circuit, largest))
    for kv_head, head in circuit.groups:
        graph.edge(
            _id(kv_head), _id(head), color=FAINT, style="dotted", dir="none", tooltip="serves"
        )
    return graph.source


def render(dot: str, kind: str) -> bytes:
    """A picture of DOT text: ``svg``, ``png`` or ``pdf``.

    Raises:
        WiremapError: ``dot`` is not installed, takes longer than RENDER_SECONDS, or fails.
    """
    program = shutil.which("dot")
    if program is None:
        raise WiremapError(
            f"no {kind} picture: the dot program of Graphviz is not installed; install it "
            "(apt install graphviz, brew install graphviz), or open the DOT file elsewhere"
        )
    command = [program, f"-T{kind}", *(["-Gdpi=160"] if kind == "png" else [])]
    try:
        drawn = subprocess.run(
            command, input=dot.encode(), capture_output=True, timeout=RENDER_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise WiremapError(
            f"no {kind} picture: dot took longer than {RENDER_SECONDS} s; draw fewer edges "
            "(a larger --threshold or smaller --size), or open the DOT file elsewhere"
        ) from None
    if drawn.returncode != 0:
        reason = drawn.stderr.decode(errors="replace").strip()
        raise WiremapError(f"no {kind} picture: dot failed with: {reason:.300}")
    return drawn.stdout


def title(circuit: Circuit) -> str:
    """What the circuit is of: ``gpt2 on ioi``."""
    model = str(circuit.model.get("name", "model")).rstrip("/").rpartition("/")[2]
    task = str(circuit.task.get("task") or circuit.task.get("pairs", "")).rpartition("/")[2]
    return " on ".join(part for part in (model, task) if part)


def unit(circuit: Circuit) -> str:
    """The unit of the circuit's scores and effects."""
    metric = str(circuit.method.get("metric", ""))
    return {
        "logit_diff": "logits",
        "prob_diff": "probability",
        "log_prob": "nats",
        "kl": "nats",
    }.get(metric, metric or "metric")


def _id(name: str) -> str:
    """A node's name without the dot and brackets that Graphviz has its own ideas about."""
    return name.replace(".", "_")


def _anchor(height: int) -> str:
    return f"row{height}"


def printable(text: str) -> str:
    """Without the control characters that make an SVG ill-formed."""
    return "".join(char for char in text if char.isprintable())


def _text(text: str) -> str:
    """Text as part of an HTML-like label."""
    return html.escape(printable(text))


def _attribute(text: str) -> str:
    """Text as an attribute: Graphviz would decode entities and backslashes in it."""
    return graphviz.escape(printable(text).replace("&", "&amp;"))


def _caption(circuit: Circuit) -> str:
    details = [f"{len(circuit.edges)} of {circuit.shape.n_edges:,} edges"]
    if circuit.faithfulness is not None:
        details.append(f"faithfulness {circuit.faithfulness.faithfulness:.2f}")
        details.append(
            f"{circuit.method.get('metric', 'metric')} over {circuit.faithfulness.n_pairs} pairs"
        )
    return (
        f'<<B>{_text(title(circuit))}</B><BR/><FONT POINT-SIZE="11" COLOR="#555555">'
        f"{_text(', '.join(details))}</FONT><BR/> >"
    )


def row_label(node: CircuitNode) -> str:
    """What the nodes of the row are that this one stands in."""
    if node.layer is None:
        return ""
    part = {"kv": "keys, values", "head": "attention", "mlp": "MLP"}[node.kind]
    return f"{node.layer} {part}"


def _node_label(node: CircuitNode, slots: list[str]) -> str:
    """A rounded box with the name, and below it a cell for each slot that edges arrive at."""
    name = f"<B>{_text(node.name)}</B>"
    table = f'<TABLE BORDER="1" COLOR="#667788" CELLBORDER="0" CELLSPACING="0" STYLE="ROUNDED" BGCOLOR="{FILL[node.kind]}"'
    if not slots:
        return f'<{table} CELLPADDING="5"><TR><TD>{name}</TD></TR></TABLE>>'
    cells = "".join(
        f'<TD PORT="{slot}" BORDER="1" SIDES="T" COLOR="#aabbcc"><FONT POINT-SIZE="9" COLOR="#445566">{slot}</FONT></TD>'
        for slot in slots
    )
    return (
        f'<{table} CELLPADDING="3"><TR><TD COLSPAN="{len(slots)}" CELLPADDING="4">{name}</TD></TR>'
        f"<TR>{cells}</TR></TABLE>>"
    )


def node_text(node: CircuitNode, circuit: Circuit) -> str:
    """What is known of a node, in one line."""
    if node.score is None:
        return node.name
    return f"{node.name}: score {node.score:+.3g} {unit(circuit)}"


def edge_text(edge: CircuitEdge, circuit: Circuit) -> str:
    """What is known of an edge, in one line."""
    parts: list[str] = []
    if edge.effect is not None:
        error = "" if edge.standard_error is None else f" ± {edge.standard_error:.2g}"
        parts.append(f"effect {edge.effect:+.3g}{error} {unit(circuit)} ({edge.n_pairs} pairs)")
    if edge.score is not None:
        parts.append(f"score {edge.score:+.3g}")
    return f"{edge.name}: {', '.join(parts)}" if parts else edge.name


def line_width(worth: float, largest: float) -> float:
    """How wide an edge is drawn, growing with its magnitude."""
    share = abs(worth) / largest if largest else 0.0
    return THINNEST + (WIDEST - THINNEST) * share


def _style(worth: float, verified: bool, largest: float) -> dict[str, str]:
    return {
        "color": NEGATIVE if worth < 0 else POSITIVE,
        "style": "dashed" if worth < 0 else "solid",
        "penwidth": f"{line_width(worth, largest):.2f}",
        "arrowhead": "normal" if verified else "onormal",
    }


def _edge_attributes(edge: CircuitEdge, circuit: Circuit, largest: float) -> dict[str, str]:
    attributes = {
        **_style(edge.worth or 0.0, edge.verified, largest),
        "tooltip": _attribute(edge_text(edge, circuit)),
        "id": edge.name,
        "class": "verified" if edge.verified else "scored",
        "tailport": "n",
        "headport": "s",
    }
    if edge.slot:
        attributes["headport"] = f"{edge.slot}:s"
    return attributes


def _legend(circuit: Circuit, largest: float) -> str:
    """One node that says what colour, dash, width and arrows mean."""
    verified = any(edge.verified for edge in circuit.edges)
    lines = [
        (_sample(POSITIVE, 3, dashed=False), "carries the behaviour"),
        (_sample(NEGATIVE, 3, dashed=True), "opposes it"),
    ]
    if largest:
        what = "effect" if verified else "score"
        lines.append(
            (
                _sample(POSITIVE, round(WIDEST), dashed=False),
                f"{what} {largest:.2g} {unit(circuit)}",
            )
        )
    if not all(edge.verified for edge in circuit.edges):
        lines.append(("\u25b7", "hollow arrow: scored, not verified"))
    rows = "".join(
        f'<TR><TD>{sample}</TD><TD ALIGN="LEFT"><FONT POINT-SIZE="10" COLOR="#444444">'
        f"{_text(text)}</FONT></TD></TR>"
        for sample, text in lines
    )
    return (
        '<<TABLE BORDER="1" COLOR="#cccccc" CELLBORDER="0" CELLSPACING="2" CELLPADDING="1" '
        f'STYLE="ROUNDED">{rows}</TABLE>>'
    )


def _sample(color: str, height: int, dashed: bool) -> str:
    """A short piece of line, drawn as table cells."""
    cell = f'<TD FIXEDSIZE="TRUE" WIDTH="{{}}" HEIGHT="{height}" BGCOLOR="{color}"></TD>'
    gap = f'<TD FIXEDSIZE="TRUE" WIDTH="4" HEIGHT="{height}"></TD>'
    cells = gap.join([cell.format(8)] * 3) if dashed else cell.format(32)
    return (
        f'<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="0"><TR>{cells}</TR></TABLE>'
    )
