"""What a drawing's colours, dashes, widths, arrows and marks mean, as SVG.

Nodes are marked by the role they play, with a colour and a number: colours repeat after _COLOURS
roles, numbers do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from ...circuits.result.circuit import Circuit
from .labels import NOT_SCORED, SCORED, WEIGHED, WIDEST, escaped, printable, unit

_COLOURS = 8  # of roles, in drawing.css


_LONGEST = 32  # name of a role; its tooltip has all of it


Roles = Mapping[str, Sequence[str]]
"""Names of nodes by the role they play."""


def legend_of_edges(circuit: Circuit, n_drawn: int) -> Iterator[tuple[str, float]]:
    """What colour, dash, width and arrows mean: pieces of SVG with the room they need."""
    edges = circuit.edges
    largest = max((edge.size for edge in edges), default=0.0)
    known = {edge.known_by for edge in edges}
    signs = {"positive": "carries the behaviour", "negative": "opposes it"}
    if circuit.unscored:
        signs = {}
    if any(edge.sign == "unscored" for edge in edges):
        signs["unscored"] = NOT_SCORED
    items = [
        (f'<path class="{sign}" stroke-width="3" d="M0 0h30"/>', text)
        for sign, text in signs.items()
    ]
    if largest:
        what = "effect" if any(edge.verified for edge in edges) else "score"
        sample = f'<path class="positive" stroke-width="{WIDEST}" d="M0 0h30"/>'
        items.append((sample, f"{what} {largest:.2g} {unit(circuit)}"))
    if "weighed" in known:
        items.append(('<path class="positive weighed" d="M12 0L16 -4L20 0L16 4Z"/>', WEIGHED))
    if "scored" in known:
        items.append(('<path class="positive scored" d="M12 -4L20 0L12 4Z"/>', SCORED))
    if len(edges) > n_drawn:
        which = "first" if circuit.unscored else "largest"
        items.append(("", f"drawn: the {n_drawn:,} {which} of {len(edges):,} edges"))
    for sample, text in items:
        start = 36 if sample else 0
        shown = escaped(text)
        # Nothing here can measure text: 6.2 pixels a letter, and a gap.
        yield f'{sample}<text x="{start}" y="4">{shown}</text>', start + 6.2 * len(text) + 18


def legend_of_roles(circuit: Circuit, roles: Roles) -> Iterator[tuple[str, float]]:
    """The mark of each role, its name, and how many nodes of the circuit play it."""
    nodes = {node.name for node in circuit.nodes}
    for number, (role, members) in enumerate(roles.items()):
        present = [name for name in members if name in nodes]
        absent = [name for name in members if name not in nodes]
        tooltip = f"{role}: {', '.join(present) or 'no node'}"
        if absent:
            tooltip += f"; not in this circuit: {', '.join(absent)}"
        name = printable(role)
        name = name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "\u2026"
        item = (
            f'<g class="key {role_class(number)}" data-by="role" data-key="{number}" '
            f'data-name="{escaped(name)}"><title>{escaped(tooltip)}</title>{mark(number, 8.0, 0.0)}'
            f'<text x="22" y="4"><tspan>{escaped(name)}</tspan> \u00d7{len(present)}</text></g>'
        )
        yield item, 22 + 6.2 * (len(name) + 3) + 14


def role_class(number: int) -> str:
    """The class of what is marked by a role; colours repeat, numbers do not."""
    return f"marked role{number % _COLOURS}"


def mark(number: int, x: float, y: float) -> str:
    """The mark of a role: a coloured disc with its number."""
    return (
        f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="8"/>'
        f'<text class="number" x="{x:.1f}" y="{y + 3.5:.1f}">{number + 1}</text>'
    )


def wrapped(items: Iterable[tuple[str, float]], room: float) -> Iterator[list[tuple[str, float]]]:
    """The items in lines that are no wider than the room, if one item is not."""
    line: list[tuple[str, float]] = []
    for item in items:
        if line and sum(size for _, size in line) + item[1] > room:
            yield line
            line = []
        line.append(item)
    if line:
        yield line
