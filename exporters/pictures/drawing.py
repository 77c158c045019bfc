"""A circuit as SVG (https://www.w3.org/TR/SVG2/), drawn without another program.

Unlike the picture that Graphviz draws it takes no longer for 2,000 edges than for 20, and every
node and edge in it can be found again: nodes by ``data-node``, edges by ``data-edge``, their place
in ``circuit.edges``. Colours, dashes, widths and arrows mean what they mean in DOT.

Keeps: nodes, edges, slots, signs, magnitudes (as width), figures (as ``<title>``, which browsers
show as tooltips). Loses: the figures as data, and, beyond DRAWN edges, the smaller edges; the
legend says so.

In a page, nodes may be marked by the role they play (``data-role``, the place of the role).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from itertools import groupby

from ...circuits.result.circuit import Circuit, CircuitNode
from ...edges.names.graph import SLOTS
from .labels import (
    edge_text,
    escaped,
    line_width,
    node_text,
    row_label,
    title,
    worth_text,
)
from .layout import rows
from .legend import Roles, legend_of_edges, legend_of_roles, mark, role_class, wrapped
from .router import COLUMN, GUTTER, HEIGHT, SLOT_HEIGHT, Box, Router

DRAWN = 2000
"""The most edges that are drawn; more can neither be read nor be moved about smoothly."""


_MARGIN, _LEFT, _TOP = 16.0, 100.0, 12.0


_CAPTION, _LEGEND = 44.0, 32.0


_ARROWS = {"thin": 7.0, "wide": 11.0}


_HEADS = {
    "verified": "M0 0L8 4L0 8Z",
    "weighed": "M0 4L4 0L8 4L4 8Z",
    "scored": "M0 0L8 4L0 8Z",
    "unscored": "M0 0L8 4L0 8L3 4Z",
}


_WIDE = 2.5


_MANY = 200


_LINE, _LONGEST_LINE = 22.0, 640.0  # of the legend of roles


_LONGEST_LEGEND = 760.0  # a line of the legend of edges, where nodes need less room


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
    return sorted(places, key=lambda place: -circuit.edges[place].size)[:DRAWN]


def style() -> str:
    """The style sheet that stands inside every drawing."""
    path = files("wiremap.exporters").joinpath("templates/drawing.css")
    return path.read_text(encoding="utf-8")


def _svg(circuit: Circuit, roles: Roles, captioned: bool) -> str:
    levels = rows(circuit)
    columns = max((len(level) for level in levels), default=1)
    # Nothing here can measure text: 9 and 6.5 pixels a letter, at the two sizes.
    text_width = max(len(title(circuit)) * 9.0, len(_details(circuit)) * 6.5) if captioned else 0
    for_nodes = columns * COLUMN + 2 * GUTTER
    first = list(wrapped(legend_of_edges(circuit, DRAWN), max(for_nodes, _LONGEST_LEGEND)))
    width = _LEFT + max(
        for_nodes,
        *(sum(size for _, size in line) for line in first),
        text_width - _LEFT + _MARGIN,
    )
    room = min(width - 2 * _MARGIN, _LONGEST_LINE)
    lines_of_legend = [*first, *wrapped(legend_of_roles(circuit, roles), room)]
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
        *_markers(),
        "</defs>",
    ]
    if captioned:
        lines += [
            f'<rect class="paper" width="{width:.0f}" height="{height:.0f}"/>',
            f'<text class="title" x="{_MARGIN}" y="26">{escaped(title(circuit))}</text>',
            f'<text class="details" x="{_MARGIN}" y="44">{escaped(_details(circuit))}</text>',
        ]
    lines += [
        # What comes later lies on top: bands, edges, nodes.
        '<g class="rows">',
        *_bands(levels, boxes, width),
        '</g>\n<g class="edges">',
        *_edges(circuit, boxes, levels),
        '</g>\n<g class="nodes">',
        *(_node(node, boxes[node.name], circuit, roles) for node in circuit.nodes),
        "</g>",
        f'<g class="legend" transform="translate({_MARGIN} {legend_top:.0f})">',
        *_placed(lines_of_legend),
        "</g>",
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _markers() -> Iterator[str]:
    """The heads of arrows: filled, a diamond or hollow; thin or wide."""
    # A marker for each sign, as markers do not take the colour of their line.
    for sign in ("positive", "negative", "unscored"):
        for how, shape in _HEADS.items():
            if how != "weighed" and (sign == "unscored") != (how == "unscored"):
                continue  # there are no such edges
            for size, length in _ARROWS.items():
                yield (
                    # refX is where the line ends, the base: the way of an edge leaves room for its
                    # arrow.
                    f'<marker id="{sign}-{how}-{size}" viewBox="-1 -1 10 10" refX="0.5" refY="4" '
                    f'orient="auto" markerUnits="userSpaceOnUse" markerWidth="{length}" '
                    f'markerHeight="{length}"><path class="{sign} {how}" d="{shape}"/></marker>'
                )


def _placed(lines: Sequence[Sequence[tuple[str, float]]]) -> Iterator[str]:
    """Items of a legend, line by line, each after the room that those before it need."""
    for number, line in enumerate(lines):
        x = 0.0
        for item, size in line:
            yield f'<g transform="translate({x:.0f} {_LINE * number:.0f})">{item}</g>'
            x += size


def _details(circuit: Circuit) -> str:
    n_edges = f"{len(circuit.edges):,} of {circuit.shape.n_edges:,} edges"
    return ", ".join([n_edges, *worth_text(circuit)])


def _boxes(
    circuit: Circuit, levels: Sequence[Sequence[CircuitNode]], middle: float, top: float
) -> dict[str, Box]:
    slots: dict[str, set[str]] = {}
    for edge in circuit.edges:
        # An edge without a slot adds none: "" has no letters.
        slots.setdefault(edge.target, set()).update(edge.slot or "")
    # Denser pictures are taller, so that lines do not all run flat.
    spacing = 64.0 + min(36.0, len(circuit.edges) / max(1, len(levels)))
    return {
        node.name: Box(
            x=middle + (column - (len(level) - 1) / 2) * COLUMN,
            # The first row, the input's, stands lowest; SVG counts y downwards.
            y=top + HEIGHT / 2 + 4 + (len(levels) - 1 - number) * spacing,
            half=max(22.0, 7.0 + 3.7 * len(node.name)),
            slots="".join(slot for slot in SLOTS if slot in slots.get(node.name, ())),
            row=number,
        )
        for number, level in enumerate(levels)
        for column, node in enumerate(level)
    }


def _bands(
    levels: Sequence[Sequence[CircuitNode]], boxes: Mapping[str, Box], width: float
) -> Iterator[str]:
    """A tinted band behind every other layer, and what each row holds."""
    numbered = list(enumerate(levels))
    # Rows of one layer follow each other, as groupby needs them to.
    for layer, members in groupby(numbered, key=lambda row: row[1][0].layer):
        tops = [boxes[level[0].name] for _, level in members]
        if layer is not None and layer % 2 == 0:
            upper = min(box.top for box in tops) - 9
            lower = max(box.y for box in tops) + HEIGHT / 2 + SLOT_HEIGHT + 7
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


def _node(node: CircuitNode, box: Box, circuit: Circuit, roles: Roles) -> str:
    width = 2 * box.half
    text, kind, role, disc = node_text(node, circuit), node.kind, "", ""
    # At most one fits: a View has no node in two groups.
    for number, (name, members) in enumerate(roles.items()):
        if node.name in members:
            text = f"{text} ({name})"
            kind = f"{kind} {role_class(number)}"
            role = f'data-role="{number}" '
            disc = mark(number, -box.half, -HEIGHT / 2)
    parts = [
        (
            f'<g class="node {kind}" data-node="{node.name}" data-row="{box.row}" '
            f'{role}transform="translate({box.x:.1f} {box.y:.1f})">'
        ),
        f"<title>{escaped(text)}</title>",
        (
            f'<rect x="{-box.half:.1f}" y="{-HEIGHT / 2:.0f}" width="{width:.1f}" '
            f'height="{box.bottom - box.top:.0f}" rx="5"/>'
        ),
        f'<text y="4">{node.name}</text>',
    ]
    if box.slots:
        line = HEIGHT / 2 - 1
        parts.append(f'<path d="M{-box.half:.1f} {line:.0f}h{width:.1f}"/>')
        parts += [
            f'<text class="slot" x="{box.entrance(slot) - box.x:.1f}" y="{line + 10:.0f}">{slot}</text>'
            for slot in box.slots
        ]
    return "".join([*parts, disc, "</g>"])


def _edges(
    circuit: Circuit, boxes: Mapping[str, Box], levels: Sequence[Sequence[CircuitNode]]
) -> Iterator[str]:
    """Edges from the smallest to the largest, so that the largest lie on top."""
    for kv_head, head in circuit.groups:
        start, end = boxes[kv_head], boxes[head]
        yield (
            f'<path class="serves" data-from="{kv_head}" data-to="{head}" '
            f'd="M{start.x:.1f} {start.top:.1f}L{end.x:.1f} {end.bottom:.1f}"/>'
        )
    drawn = drawn_edges(circuit)
    largest = circuit.edges[drawn[0]].size if drawn else 0.0
    router = Router([[boxes[node.name] for node in level] for level in levels])
    # The largest choose their way first; two that would share it then keep apart.
    lines = [_edge(place, circuit, boxes, router, largest) for place in drawn]
    yield from reversed(lines)


def _edge(
    place: int, circuit: Circuit, boxes: Mapping[str, Box], router: Router, largest: float
) -> str:
    edge = circuit.edges[place]
    share = edge.size / largest if largest else 0.0
    # Among many edges the small ones fade further, or the large ones could not be followed.
    faintest = 0.4 if len(circuit.edges) <= _MANY else 0.15
    opacity = 1.0 if edge.sign == "unscored" else faintest + (1 - faintest) * share**0.5
    sign, how = edge.sign, edge.known_by
    width = line_width(edge.worth, largest)
    arrow = "wide" if width > _WIDE else "thin"
    path = router.path(boxes[edge.source], boxes[edge.target], edge.slot, _ARROWS[arrow] * 0.75)
    return (
        f'<path class="{sign}" data-edge="{place}" d="{path}" '
        f'stroke-width="{width:.2f}" stroke-opacity="{opacity:.2f}" '
        f'marker-end="url(#{sign}-{how}-{arrow})">'
        f"<title>{escaped(edge_text(edge, circuit))}</title></path>"
    )
