"""The faithfulness curves of a circuit's evidence as a picture, alone or as a part of a page."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...circuits.result.circuit import Circuit
from ..pictures.curve import Marks, to_curve

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class CurveFigure:
    """The faithfulness curve as part of a page.

    Attributes:
        figure: markup, with an SVG inside.
        style: the style sheet in it, whose hash the page's policy needs.
    """

    figure: str
    style: str


def curves(circuit: Circuit) -> dict[str, Points]:
    """Fraction of the model's edges and faithfulness, by name: of the best by score, of a search."""
    curve = circuit.evidence.curve
    named = {} if curve is None else {"by score": curve.signed, "by |score|": curve.absolute}
    drawn = {
        name: [(point.fraction, point.faithfulness) for point in ranking.points]
        for name, ranking in named.items()
        if ranking and ranking.points
    }
    tried = _searched(circuit)
    return {**drawn, "the search": tried} if tried else drawn


def _searched(circuit: Circuit) -> Points:
    """The circuits that the search tried, by size; of those of one size the last."""
    search, n_edges = circuit.evidence.search, circuit.shape.n_edges
    by_size = {} if search is None else {each.edges: each.faithfulness for each in search.path}
    return [(size / n_edges, by_size[size]) for size in sorted(by_size) if 0 < size <= n_edges]


def _marks(circuit: Circuit) -> Marks:
    """What the search aimed at, and what came out on held-out pairs."""
    search, held_out = circuit.evidence.search, circuit.evidence.held_out
    n_edges, size = circuit.shape.n_edges, len(circuit.edges)
    target = point = interval = None
    if search is not None and search.least is not None and search.greatest is not None:
        target = (search.least, search.greatest)
    if held_out is not None and size:
        point = (size / n_edges, held_out.faithfulness)
        if held_out.interval is not None:
            low, high = held_out.interval
            interval = (low, high)
    return Marks(
        n_edges=n_edges if _searched(circuit) else None,
        target=target,
        held_out=point,
        interval=interval,
    )


def curve_picture(circuit: Circuit, title: str) -> str | None:
    """The circuit's faithfulness curves as SVG; None if there are none."""
    curve, drawn = circuit.evidence.curve, curves(circuit)
    if not drawn:
        return None
    details: list[str] = []
    if curve is not None:
        details += [f"ranked by {curve.ranked_by:.60}"] if curve.ranked_by is not None else []
        areas = {"CPR": curve.cpr, "CMD": curve.cmd}
        details += [f"{name} {area:.3f}" for name, area in areas.items() if area is not None]
    marks = _marks(circuit)
    if marks.target is not None:
        least, greatest = marks.target
        details.append(f"band: target of {least:g} to {greatest:g}")
    return to_curve(drawn, title, ", ".join(details), marks=marks)


def faithfulness_curve(circuit: Circuit) -> CurveFigure | None:
    """The same, as part of a page."""
    svg = curve_picture(circuit, "Faithfulness of the best edges alone")
    if svg is None:
        return None
    start, _, rest = svg.partition("<style>")
    own, _, end = rest.partition("</style>")
    # In a page the picture's style sheet is the page's, too: it is kept to the figure, and its dark
    # colours to screens.
    style = re.sub(
        r"([^{}]+)(\{[^{}]*\})",
        lambda rule: ",".join(f".curve {each}" for each in rule[1].split(",")) + rule[2],
        own,
    ).replace("@media (prefers", "@media screen and (prefers")
    svg = f"{start}<style>{style}</style>{end}"
    return CurveFigure(f'<figure class="curve">{svg}</figure>', style)
