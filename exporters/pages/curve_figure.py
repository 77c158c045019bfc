"""The faithfulness curves of a circuit's evidence as a picture, alone or as a part of a page."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...circuits.result.circuit import Circuit
from ..pictures.curve import to_curve

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
    """The faithfulness curves: fraction of the model's edges and faithfulness, by name."""
    curve = circuit.evidence.curve
    if curve is None:
        return {}
    named = {"by score": curve.signed, "by |score|": curve.absolute}
    return {
        name: [(point.fraction, point.faithfulness) for point in ranking.points]
        for name, ranking in named.items()
        if ranking and ranking.points
    }


def curve_picture(circuit: Circuit, title: str) -> str | None:
    """The circuit's faithfulness curves as SVG; None if there are none."""
    curve, drawn = circuit.evidence.curve, curves(circuit)
    if curve is None or not drawn:
        return None
    details = [f"ranked by {curve.ranked_by:.60}"] if curve.ranked_by is not None else []
    areas = {"CPR": curve.cpr, "CMD": curve.cmd}
    details += [f"{name} {area:.3f}" for name, area in areas.items() if area is not None]
    return to_curve(drawn, title, ", ".join(details))


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
