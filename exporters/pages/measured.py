"""What is shown of a circuit's evidence: plain data of a file, so taken as it comes, or left out."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

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


def part(circuit: Circuit, name: str) -> Mapping[str, Any]:
    """What the evidence holds under a name; nothing if that is no object."""
    found = circuit.evidence.get(name)
    return cast("Mapping[str, Any]", found) if isinstance(found, Mapping) else {}


def figure(found: Mapping[str, Any], *names: str) -> float | None:
    """The first finite number that stands under one of the names."""
    for name in names:
        value = found.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            # An integer of JSON may be larger than any float.
            value = float(value) if abs(value) < 1e300 else math.inf
            if math.isfinite(value):
                return value
    return None


def curves(circuit: Circuit) -> dict[str, Points]:
    """The faithfulness curves: fraction of the model's edges and faithfulness, by name."""
    found = part(circuit, "curve")
    named = {"by score": "signed", "by |score|": "absolute"}
    by_name = {name: found.get(key) for name, key in named.items() if key in found}
    read = {name: _points(one) for name, one in (by_name or {"by score": found}).items()}
    return {name: points for name, points in read.items() if points}


def curve_picture(circuit: Circuit, title: str) -> str | None:
    """The circuit's faithfulness curves as SVG; None if there are none."""
    drawn = curves(circuit)
    if not drawn:
        return None
    found = part(circuit, "curve")
    told = (
        [f"ranked by {ranked_by:.60}"]
        if isinstance(ranked_by := found.get("ranked_by"), str)
        else []
    )
    areas = {name.upper(): figure(found, name) for name in ("cpr", "cmd")}
    told += [f"{name} {area:.3f}" for name, area in areas.items() if area is not None]
    return to_curve(drawn, title, ", ".join(told))


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
        lambda rule: ",".join(f".curve {one}" for one in rule[1].split(",")) + rule[2],
        own,
    ).replace("@media (prefers", "@media screen and (prefers")
    svg = f"{start}<style>{style}</style>{end}"
    return CurveFigure(f'<figure class="curve">{svg}</figure>', style)


def _points(found: Any) -> Points:
    """The points of a curve, growing; none if they are not all there."""
    points = found.get("points") if isinstance(found, Mapping) else None
    read: Points = []
    for point in points if isinstance(points, list) else []:
        told = cast("Mapping[str, Any]", point if isinstance(point, Mapping) else {})
        fraction, value = figure(told, "fraction"), figure(told, "faithfulness")
        if fraction is None or value is None or not (read[-1][0] if read else 0) < fraction <= 1:
            return []
        read.append((fraction, value))
    return read
