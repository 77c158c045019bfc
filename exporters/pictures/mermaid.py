"""Mermaid flowcharts (https://mermaid.js.org/syntax/flowchart.html), for Markdown pages.

Keeps: nodes, edges, slots as labels of edges; sign as colour and dash, magnitude as width, verified
or not as arrow, cross (verified in the circuit alone) or circle. Loses: edges beyond the 100 largest (or as many as asked for; Mermaid
itself stops at 500), figures, tooltips. Not read back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...circuits.result.circuit import Circuit, EdgeEvidence
from ..format import Format
from .dot import boxes, details, show_diagram
from .labels import line_width, title
from .palette import COLOR
from .shown import CHOICES, View

MOST_EDGES = 500
"""More than this Mermaid does not draw, unless it is configured to."""


_ENDS: Mapping[EdgeEvidence, str] = {
    "verified": ">",
    "weighed": "x",
    "scored": "o",
    "unscored": "-",
}


_NO_VIEW = View()


_ENTITIES = {'"': "#quot;", "#": "#35;", "&": "#amp;", "<": "#lt;", ">": "#gt;", ";": "#59;"}


def to_mermaid(circuit: Circuit, view: View = _NO_VIEW) -> str:
    """The circuit as a flowchart, input below, logits on top; the same bytes every time."""
    shown = show_diagram(circuit, view if view.qkv else replace(view, qkv="merge"))
    # Names hold dots, and a role may be a word that Mermaid takes for its own, such as end.
    ids = {node.name: f"n{number}" for number, node in enumerate(shown.nodes)}
    lines = ["flowchart BT", f"accTitle: {_text(f'{title(circuit)} - {details(circuit, shown)}')}"]
    for number, (role, nodes) in enumerate(boxes(shown).items()):
        if role is not None:
            lines.append(f'subgraph s{number}["{_text(role)}"]')
        lines += [f'{ids[node.name]}["{_text(node.name)}"]' for node in nodes]
        if role is not None:
            lines.append("end")
    largest = max((edge.size for edge in shown.edges), default=0.0)
    # linkStyle counts all links, those of ties as well.
    for number, edge in enumerate(shown.edges):
        if edge.kind != "edge":
            lines += [f"{ids[edge.source]} -.- {ids[edge.target]}"]
            continue
        arrow = ("-.-" if edge.sign == "negative" else "--") + _ENDS[edge.known_by]
        label = f"|{','.join(edge.slots)}|" if edge.slots else ""
        color = COLOR[edge.sign]
        lines += [
            f"{ids[edge.source]} {arrow}{label} {ids[edge.target]}",
            f"linkStyle {number} stroke:{color},stroke-width:{line_width(edge.worth, largest):.2f}px",
        ]
    if not circuit.unscored:
        lines.append(
            "%% blue, solid: carries the behaviour; red, dashed: opposes it; wide: large; "
            "arrow: verified, cross: in the circuit alone, circle: only scored"
        )
    if any(edge.kind == "edge" and edge.sign == "unscored" for edge in shown.edges):
        lines.append("%% grey, without an arrow: not scored")
    return "\n".join([*lines, ""])


def _text(text: str) -> str:
    """Text between quotes, in one line; Mermaid reads entities after ``#``."""
    line = "".join(char if char.isprintable() else " " for char in text)
    return "".join(_ENTITIES.get(char, char) for char in line)


FORMATS = (
    Format(
        "mermaid",
        ".mmd",
        "Mermaid flowchart, for Markdown",
        encode=lambda circuit, view: to_mermaid(circuit, view).encode(),
        signs=lambda content: content.start.startswith("flowchart"),
        called="a Mermaid flowchart",
        shows=CHOICES,
    ),
)
