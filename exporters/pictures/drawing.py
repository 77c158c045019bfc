"""A circuit as SVG (https://www.w3.org/TR/SVG2/), drawn without another program.

Unlike the picture that Graphviz draws it takes no longer for 2,000 edges than for 20, and every
node and edge in it can be found again: nodes by ``data-node``, edges by ``data-edge``, their place
in ``circuit.edges``. Colours, dashes, widths and arrows mean what they mean in DOT.

Keeps: nodes, edges, slots, signs, magnitudes (as width), figures (as ``<title>``, which browsers
show as tooltips). Loses: the figures as data, and, beyond DRAWN edges, the smaller edges; the
legend says so.

In a page, nodes may be marked by the role they play, with a colour and a number (``data-role``, the
place of the role): colours repeat after _COLOURS roles, numbers do not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from itertools import groupby

from ...circuits.result.circuit import Circuit, CircuitEdge, CircuitNode
from ...edges.names.graph import SLOTS
from .labels import (
    WIDEST,
    edge_text,
    escaped,
    line_width,
    node_text,
    printable,
    row_label,
    title,
    unit,
)
from .layout import rows

DRAWN = 2000
"""The most edges that are drawn; more can neither be read nor be moved about smoothly."""


_COLUMN = 84.0


_MARGIN, _LEFT, _TOP = 16.0, 100.0, 12.0


_GUTTER = 56.0  # for edges, left and right of the nodes


_CAPTION, _LEGEND = 44.0, 32.0


_HEIGHT, _SLOT_HEIGHT = 24.0, 13.0  # of a node, of the cells of its slots


_ARROWS = {"thin": 7.0, "wide": 11.0}


_WIDE = 2.5


_CLEAR = 8.0


_MANY = 200


_LINE, _LONGEST_LINE = 22.0, 640.0  # of the legend of roles


_COLOURS = 8  # of roles, in drawing.css


_LONGEST = 32  # name of a role; its tooltip has all of it


Roles = Mapping[str, Sequence[str]]
"""Names of nodes by the role they play."""


@dataclass(frozen=True)
class _Box:
    """Where a node stands: its centre, and half its width."""

    x: float
    y: float
    half: float
    slots: str
    row: int

    @property
    def bottom(self) -> float:
        return self.y + _HEIGHT / 2 + (_SLOT_HEIGHT if self.slots else 0.0)

    @property
    def top(self) -> float:
        return self.y - _HEIGHT / 2

    def entrance(self, slot: str | None) -> float:
        """Where edges of a slot arrive."""
        if slot is None:
            return self.x
        return self.x + self.half * ((2 * self.slots.index(slot) + 1) / len(self.slots) - 1)


def to_svg(circuit: Circuit) -> str:
    """The circuit as an SVG picture that stands alone: titled, with a legend, on white."""
    return _svg(circuit, {}, captioned=True)


def drawing(circuit: Circuit, roles: Roles) -> str:
    """The same picture as part of a page, which has the title already and a background.

    Args:
        roles: nodes are marked by, and the legend names.
    """
    return _svg(circuit, roles, captioned=False)


def drawn_edges(circuit: Circuit) -> list[int]:
    """Places in ``circuit.edges`` of the edges that are drawn, largest magnitude first."""
    places = range(len(circuit.edges))
    return sorted(places, key=lambda place: -abs(circuit.edges[place].worth or 0.0))[:DRAWN]


def style() -> str:
    """The style sheet that stands inside every drawing."""
    path = files("wiremap.exporters").joinpath("templates/drawing.css")
    return path.read_text(encoding="utf-8")


def _svg(circuit: Circuit, roles: Roles, captioned: bool) -> str:
    levels = rows(circuit)
    legend = list(_legend(circuit))
    columns = max((len(level) for level in levels), default=1)
    text_width = max(len(title(circuit)) * 9.0, len(_details(circuit)) * 6.5) if captioned else 0
    width = _LEFT + max(
        columns * _COLUMN + 2 * _GUTTER,
        sum(size for _, size in legend),
        text_width - _LEFT + _MARGIN,
    )
    room = min(width - 2 * _MARGIN, _LONGEST_LINE)
    lines_of_legend = [legend, *_wrapped(_legend_of_roles(circuit, roles), room)]
    legend_top = _TOP + 8 + (_CAPTION if captioned else 0.0)
    top = legend_top - 8 + _LEGEND + _LINE * (len(lines_of_legend) - 1)
    boxes = _boxes(circuit, levels, _LEFT + (width - _LEFT) / 2, top)
    height = max((box.bottom for box in boxes.values()), default=top) + _MARGIN
    lines = [
        (
            '<svg xmlns="http://www.w3.org/2000/svg" class="wiremap" '
            f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}">'
        ),
        f"<style>{style()}</style>",
        "<defs>",
        *(
            f'<marker id="{kind}-{how}-{size}" viewBox="-1 -1 10 10" refX="0.5" refY="4" '
            f'orient="auto" markerUnits="userSpaceOnUse" markerWidth="{length}" '
            f'markerHeight="{length}"><path class="{kind} {how}" d="M0 0L8 4L0 8Z"/></marker>'
            for kind in ("positive", "negative")
            for how in ("verified", "scored")
            for size, length in _ARROWS.items()
        ),
        "</defs>",
    ]
    if captioned:
        lines += [
            f'<rect class="paper" width="{width:.0f}" height="{height:.0f}"/>',
            f'<text class="title" x="{_MARGIN}" y="26">{escaped(title(circuit))}</text>',
            f'<text class="details" x="{_MARGIN}" y="44">{escaped(_details(circuit))}</text>',
        ]
    lines += [
        '<g class="rows">',
        *_bands(levels, boxes, width),
        '</g>\n<g class="edges">',
        *_edges(circuit, boxes, levels),
        '</g>\n<g class="nodes">',
        *(_node(node, boxes[node.name], circuit, roles) for node in circuit.nodes),
        "</g>",
        f'<g class="legend" transform="translate({_MARGIN} {legend_top:.0f})">',
    ]
    for number, line in enumerate(lines_of_legend):
        x = 0.0
        for item, size in line:
            lines.append(f'<g transform="translate({x:.0f} {_LINE * number:.0f})">{item}</g>')
            x += size
    return "\n".join([*lines, "</g>", "</svg>"]) + "\n"


def _details(circuit: Circuit) -> str:
    details = [f"{len(circuit.edges):,} of {circuit.shape.n_edges:,} edges"]
    if circuit.faithfulness is not None:
        found = circuit.faithfulness
        details.append(f"faithfulness {found.faithfulness:.2f} over {found.n_pairs} pairs")
    return ", ".join(details)


def _boxes(
    circuit: Circuit, levels: Sequence[Sequence[CircuitNode]], middle: float, top: float
) -> dict[str, _Box]:
    slots: dict[str, set[str]] = {}
    for edge in circuit.edges:
        slots.setdefault(edge.target, set()).update(edge.slot or "")
    # Denser pictures are taller, so that lines do not all run flat.
    spacing = 64.0 + min(36.0, len(circuit.edges) / max(1, len(levels)))
    return {
        node.name: _Box(
            x=middle + (column - (len(level) - 1) / 2) * _COLUMN,
            y=top + _HEIGHT / 2 + 4 + (len(levels) - 1 - number) * spacing,
            half=max(22.0, 7.0 + 3.7 * len(node.name)),
            slots="".join(slot for slot in SLOTS if slot in slots.get(node.name, ())),
            row=number,
        )
        for number, level in enumerate(levels)
        for column, node in enumerate(level)
    }


def _bands(
    levels: Sequence[Sequence[CircuitNode]], boxes: Mapping[str, _Box], width: float
) -> Iterator[str]:
    """A tinted band behind every other layer, and what each row holds."""
    numbered = list(enumerate(levels))
    for layer, members in groupby(numbered, key=lambda row: row[1][0].layer):
        tops = [boxes[level[0].name] for _, level in members]
        if layer is not None and layer % 2 == 0:
            upper = min(box.top for box in tops) - 9
            lower = max(box.y for box in tops) + _HEIGHT / 2 + _SLOT_HEIGHT + 7
            yield (
                f'<rect class="band" rx="6" x="0" y="{upper:.1f}" width="{width:.0f}" '
                f'height="{lower - upper:.1f}"/>'
            )
    for number, level in numbered:
        box = boxes[level[0].name]
        label = row_label(level[0]) or level[0].name
        middle = (boxes[level[0].name].x + boxes[level[-1].name].x) / 2
        yield (
            f'<text class="row" data-row="{number}" data-x="{middle:.1f}" '
            f'x="{_MARGIN}" y="{box.y + 4:.1f}">{label}</text>'
        )


def _node(node: CircuitNode, box: _Box, circuit: Circuit, roles: Roles) -> str:
    width = 2 * box.half
    text, kind, role, mark = node_text(node, circuit), node.kind, "", ""
    for number, (name, members) in enumerate(roles.items()):
        if node.name in members:
            text = f"{text} ({name})"
            kind = f"{kind} {_role_class(number)}"
            role = f'data-role="{number}" '
            mark = _mark(number, -box.half, -_HEIGHT / 2)
    parts = [
        (
            f'<g class="node {kind}" data-node="{node.name}" data-row="{box.row}" '
            f'{role}transform="translate({box.x:.1f} {box.y:.1f})">'
        ),
        f"<title>{escaped(text)}</title>",
        (
            f'<rect x="{-box.half:.1f}" y="{-_HEIGHT / 2:.0f}" width="{width:.1f}" '
            f'height="{box.bottom - box.top:.0f}" rx="5"/>'
        ),
        f'<text y="4">{node.name}</text>',
    ]
    if box.slots:
        line = _HEIGHT / 2 - 1
        parts.append(f'<path d="M{-box.half:.1f} {line:.0f}h{width:.1f}"/>')
        parts += [
            f'<text class="slot" x="{box.entrance(slot) - box.x:.1f}" y="{line + 10:.0f}">{slot}</text>'
            for slot in box.slots
        ]
    return "".join([*parts, mark, "</g>"])


def _edges(
    circuit: Circuit, boxes: Mapping[str, _Box], levels: Sequence[Sequence[CircuitNode]]
) -> Iterator[str]:
    """Edges from the smallest to the largest, so that the largest lie on top."""
    for kv_head, head in circuit.groups:
        start, end = boxes[kv_head], boxes[head]
        yield (
            f'<path class="serves" data-from="{kv_head}" data-to="{head}" '
            f'd="M{start.x:.1f} {start.top:.1f}L{end.x:.1f} {end.bottom:.1f}"/>'
        )
    drawn = drawn_edges(circuit)
    largest = abs(circuit.edges[drawn[0]].worth or 0.0) if drawn else 0.0
    router = _Router([[boxes[node.name] for node in level] for level in levels])
    # The largest choose their way first; two that would share it then keep apart.
    lines = [_edge(place, circuit.edges[place], circuit, boxes, router, largest) for place in drawn]
    yield from reversed(lines)


def _edge(
    place: int,
    edge: CircuitEdge,
    circuit: Circuit,
    boxes: Mapping[str, _Box],
    router: _Router,
    largest: float,
) -> str:
    worth = edge.worth or 0.0
    share = abs(worth) / largest if largest else 0.0
    faintest = 0.4 if len(circuit.edges) <= _MANY else 0.15
    sign = "negative" if worth < 0 else "positive"
    how = "verified" if edge.verified else "scored"
    width = line_width(worth, largest)
    arrow = "wide" if width > _WIDE else "thin"
    path = router.path(boxes[edge.source], boxes[edge.target], edge.slot, _ARROWS[arrow] * 0.75)
    return (
        f'<path class="{sign}" data-edge="{place}" d="{path}" '
        f'stroke-width="{width:.2f}" stroke-opacity="{faintest + (1 - faintest) * share**0.5:.2f}" '
        f'marker-end="url(#{sign}-{how}-{arrow})">'
        f"<title>{escaped(edge_text(edge, circuit))}</title></path>"
    )


class _Router:
    """Ways for edges past the nodes between their ends: upright S-curves, bowed to one side.

    A curve goes from (x0, y0) to (x1, y1) with control points (x0 + bow, middle) and
    (x1 + bow, middle).
    """

    def __init__(self, levels: Sequence[Sequence[_Box]]) -> None:
        self._levels = levels
        nodes = [box.x for level in levels for box in level]
        room = _COLUMN / 2 + _GUTTER - 30  # ends fan out later
        self._left, self._right = min(nodes, default=0) - room, max(nodes, default=0) + room
        self._used: Counter[tuple[int, int]] = Counter()

    def path(self, start: _Box, end: _Box, slot: str | None, arrow: float) -> str:
        """The way from one node to another, less the arrow at its end."""
        x0, y0, x1, y1 = start.x, start.top, end.entrance(slot), end.bottom + arrow
        between = [
            (level, _share_of_curve(round((level[0].y - y0) / (y1 - y0), 3)))
            for level in self._levels[start.row + 1 : end.row]
        ]
        bow, gaps = 0.0, list[tuple[int, int]]()
        if between:
            widest = max(len(level) for level, _ in between)
            lean = -1.0 if x0 + x1 < 2 * self._levels[0][0].x else 1.0
            steps = [0.0] + [
                side * step * _COLUMN / 2 for step in range(1, widest + 4) for side in (lean, -lean)
            ]
            best = float("inf")
            for candidate in steps:
                if abs(candidate) / _COLUMN >= best:
                    break  # no longer bow can cost less
                if candidate and not self._inside(x0, x1, candidate):
                    continue
                cost, passed = self._cost(x0, x1, candidate, between)
                if cost < best:
                    best, bow, gaps = cost, candidate, passed
        self._used.update(gaps)
        # Ends fan out over the node, or the slot, towards where the edge goes.
        x0, x1 = (
            x0 + 0.6 * start.half * _towards(x1 + bow - x0),
            x1 + 0.6 * end.half / max(1, len(end.slots)) * _towards(x0 + bow - x1),
        )
        middle = (y0 + y1) / 2
        return (
            f"M{x0:.1f} {y0:.1f}C{x0 + bow:.1f} {middle:.1f} {x1 + bow:.1f} {middle:.1f} "
            f"{x1:.1f} {y1:.1f}"
        )

    def _inside(self, x0: float, x1: float, bow: float) -> bool:
        """Whether a curve stays in the drawing."""
        return all(self._left < _x(x0, x1, bow, t) < self._right for t in (0.25, 0.5, 0.75))

    def _cost(
        self, x0: float, x1: float, bow: float, between: Sequence[tuple[Sequence[_Box], float]]
    ) -> tuple[float, list[tuple[int, int]]]:
        """What a bow costs: its length, nodes it runs behind, and edges that run there already."""
        cost = abs(bow) / _COLUMN
        passed: list[tuple[int, int]] = []
        for level, t in between:
            x = _x(x0, x1, bow, t)
            column = round((x - level[0].x) / _COLUMN)
            box = level[min(len(level) - 1, max(0, column))]
            if abs(x - box.x) < box.half + _CLEAR:
                cost += 3.0
            gap = (box.row, round(x / 10))
            cost += 0.4 * self._used[gap]
            passed.append(gap)
        return cost, passed


def _x(x0: float, x1: float, bow: float, t: float) -> float:
    """Where a curve is at its parameter t."""
    s = 1 - t
    return s * s * (x0 + 2 * t * x0) + t * t * (x1 + 2 * s * x1) + 3 * s * t * bow


def _towards(distance: float) -> float:
    """From -1, far to the left, to 1."""
    return max(-1.0, min(1.0, distance / (3 * _COLUMN)))


@lru_cache(maxsize=4096)
def _share_of_curve(height: float) -> float:
    """The parameter t at which such a curve has gone this share of its height."""
    low, high = 0.0, 1.0
    for _ in range(24):
        t = (low + high) / 2
        if 1.5 * t - 1.5 * t**2 + t**3 < height:
            low = t
        else:
            high = t
    return low


def _legend(circuit: Circuit) -> Iterator[tuple[str, float]]:
    """What colour, dash, width and arrows mean: pieces of SVG with the room they need."""
    edges = circuit.edges
    largest = max((abs(edge.worth or 0.0) for edge in edges), default=0.0)
    items = [
        ('<path class="positive" stroke-width="3" d="M0 0h30"/>', "carries the behaviour"),
        ('<path class="negative" stroke-width="3" d="M0 0h30"/>', "opposes it"),
    ]
    if largest:
        what = "effect" if any(edge.verified for edge in edges) else "score"
        sample = f'<path class="positive" stroke-width="{WIDEST}" d="M0 0h30"/>'
        items.append((sample, f"{what} {largest:.2g} {unit(circuit)}"))
    if not all(edge.verified for edge in edges):
        arrow = '<path class="positive scored" d="M12 -4L20 0L12 4Z"/>'
        items.append((arrow, "hollow arrow: scored, not verified"))
    if len(edges) > DRAWN:
        items.append(("", f"drawn: the {DRAWN:,} largest of {len(edges):,} edges"))
    for sample, text in items:
        start = 36 if sample else 0
        shown = escaped(text)
        yield f'{sample}<text x="{start}" y="4">{shown}</text>', start + 6.2 * len(text) + 18


def _legend_of_roles(circuit: Circuit, roles: Roles) -> Iterator[tuple[str, float]]:
    """The mark of each role, its name, and how many nodes of the circuit play it."""
    nodes = {node.name for node in circuit.nodes}
    for number, (role, members) in enumerate(roles.items()):
        present = [name for name in members if name in nodes]
        absent = [name for name in members if name not in nodes]
        told = f"{role}: {', '.join(present) or 'no node'}"
        if absent:
            told += f"; not in this circuit: {', '.join(absent)}"
        name = printable(role)
        name = name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "\u2026"
        item = (
            f'<g class="key {_role_class(number)}" data-by="role" data-key="{number}" '
            f'data-name="{escaped(name)}"><title>{escaped(told)}</title>{_mark(number, 8.0, 0.0)}'
            f'<text x="22" y="4"><tspan>{escaped(name)}</tspan> \u00d7{len(present)}</text></g>'
        )
        yield item, 22 + 6.2 * (len(name) + 3) + 14


def _role_class(number: int) -> str:
    return f"marked role{number % _COLOURS}"


def _mark(number: int, x: float, y: float) -> str:
    return (
        f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="8"/>'
        f'<text class="number" x="{x:.1f}" y="{y + 3.5:.1f}">{number + 1}</text>'
    )


def _wrapped(items: Iterable[tuple[str, float]], room: float) -> Iterator[list[tuple[str, float]]]:
    """The items in lines that are no wider than the room, if one item is not."""
    line: list[tuple[str, float]] = []
    for item in items:
        if line and sum(size for _, size in line) + item[1] > room:
            yield line
            line = []
        line.append(item)
    if line:
        yield line
