"""Faithfulness by circuit size as a picture: SVG that stands alone (https://www.w3.org/TR/SVG2/).

One line for each ranking or search, its points marked; the model (1) and the corrupted run (0) as
dashed lines; if given, what was aimed at as a band, and what a circuit is worth on held-out pairs
as a point with its interval. Follows the reader's light or dark scheme. The same points give the same bytes.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...edges.errors import InputError
from .labels import printable
from .palette import POSITIVE

Points = Sequence[tuple[float, float]]
"""Of a curve: the fraction of the model's edges, and the faithfulness of the circuit."""


@dataclass(frozen=True, kw_only=True)
class Marks:
    """What is drawn beside the curves.

    Attributes:
        n_edges: of the model: the axis then counts edges, and is else in per cent.
        target: the faithfulnesses aimed at, from and to.
        held_out: fraction and faithfulness of a circuit on pairs held out.
        interval: of that faithfulness.
    """

    n_edges: int | None = None
    target: tuple[float, float] | None = None
    held_out: tuple[float, float] | None = None
    interval: tuple[float, float] | None = None

    @property
    def values(self) -> tuple[float, ...]:
        """The faithfulnesses that have to find a place."""
        point = () if self.held_out is None else self.held_out[1:]
        return (*(self.target or ()), *point, *(self.interval or ()))


_WIDTH, _HEIGHT = 640.0, 400.0


_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 92.0, 68.0, 56.0


_KEY = 135.0  # from one item of the legend to the next


_RIGHT_EDGE, _FLOOR = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM


# Colour, mark and dashes of each curve: any of the three tells them apart.
_STYLES = ((POSITIVE, "circle", ""), ("#d95f02", "square", "6 3"), ("#1b8a5a", "diamond", "2 3"))


_STYLE = (
    "text{font-family:Helvetica,Arial,sans-serif;font-size:11px;fill:#444}"
    ".title{font-size:15px;font-weight:bold;fill:#222}.paper{fill:#fff}"
    ".grid{stroke:#e6e6e6}.axis{stroke:#777}.end{stroke:#777;stroke-dasharray:5 4}"
    ".target{fill:#1b8a5a;fill-opacity:0.12}.held{stroke:#222;stroke-width:2}.dot{fill:#222}"
    "path{fill:none}"
)


_DARK = (
    "text{fill:#b9c0c8}.title{fill:#e8e8e8}.paper{fill:#15181c}.grid{stroke:#2b2e33}"
    ".axis,.end{stroke:#8a929b}.held{stroke:#e8e8e8}.dot{fill:#e8e8e8}"
)


_DARK_LINES = ("#74b3ec", "#ffa45c", "#5fcf9d")


def to_curve(
    curves: Mapping[str, Points],
    title: str,
    details: str = "",
    *,
    logarithmic: bool = True,
    marks: Marks | None = None,
) -> str:
    """The picture of one to three curves.

    Args:
        curves: by name; fractions above 0 and at most 1, growing.
        details: a line under the title.
        logarithmic: whether fractions are drawn on a logarithmic axis.
        marks: what is drawn beside them.

    Raises:
        InputError: no curve or more than three, one without points, points that cannot be drawn.
    """
    _check(curves)
    marks = marks or Marks()
    fractions = [fraction for points in curves.values() for fraction, _ in points]
    if marks.held_out is not None:
        fractions.append(marks.held_out[0])
    values = [*(value for points in curves.values() for _, value in points), *marks.values]
    # From here on ``x`` and ``y`` turn a fraction and a faithfulness into pixels.
    x, x_ticks = _across(min(fractions), logarithmic, marks.n_edges)
    y, y_ticks = _up(min(0.0, *values), max(1.0, *values))
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" '
            f'width="{_WIDTH:.0f}" height="{_HEIGHT:.0f}">'
        ),
        f"<style>{_style(len(curves))}</style>",
        f'<rect class="paper" width="{_WIDTH:.0f}" height="{_HEIGHT:.0f}"/>',
        _text(_LEFT, 24.0, title, "start", 'class="title"'),
        _text(_LEFT, 42.0, details, "start"),
    ]
    # What comes later lies on top: target, grid, ends, axes, curves, what was held out.
    lines += _band(marks, y)
    for fraction, label in x_ticks:
        lines += [
            _line("grid", x(fraction), _TOP, x(fraction), _FLOOR),
            _text(x(fraction), _FLOOR + 17, label),
        ]
    for value, label in y_ticks:
        lines += [
            _line("grid", _LEFT, y(value), _RIGHT_EDGE, y(value)),
            _text(_LEFT - 8, y(value) + 4, label, "end"),
        ]
    for value, label in ((1.0, "the model"), (0.0, "corrupted run")):
        lines += [
            _line("end", _LEFT, y(value), _RIGHT_EDGE, y(value)),
            _text(_RIGHT_EDGE + 6, y(value) + 4, label, "start"),
        ]
    lines += [
        _line("axis", _LEFT, _FLOOR, _RIGHT_EDGE, _FLOOR),
        _line("axis", _LEFT, _TOP, _LEFT, _FLOOR),
        _text((_LEFT + _RIGHT_EDGE) / 2, _HEIGHT - 16, _axis_name(marks)),
        (
            f'<text transform="translate(18 {(_TOP + _FLOOR) / 2:.1f}) rotate(-90)" '
            'text-anchor="middle">faithfulness</text>'
        ),
    ]
    for number, (name, points) in enumerate(curves.items()):
        lines += _curve(number, [(x(fraction), y(value)) for fraction, value in points])
        lines += [
            _mark(number, cx, cy, f"{100 * fraction:.3g} % of edges: {value:.3f}")
            for (fraction, value), (cx, cy) in (
                (point, (x(point[0]), y(point[1]))) for point in points
            )
        ]
        if len(curves) > 1 or marks.held_out is not None:
            left = _LEFT + _KEY * number
            lines += [
                *_curve(number, [(left, 57.0), (left + 26, 57.0)]),
                _mark(number, left + 13, 57.0, name),
                _text(left + 32, 61.0, name, "start"),
            ]
    lines += _held_out(marks, x, y, _LEFT + _KEY * len(curves))
    return "\n".join([*lines, "</svg>"]) + "\n"


def _axis_name(marks: Marks) -> str:
    if marks.n_edges is None:
        return "edges kept, % of the model's"
    return f"edges kept, of the model's {marks.n_edges:,}"


def _band(marks: Marks, y: Callable[[float], float]) -> Iterator[str]:
    """What was aimed at."""
    if marks.target is not None:
        least, greatest = marks.target
        yield (
            f'<rect class="target" x="{_LEFT:.1f}" y="{y(greatest):.1f}" '
            f'width="{_RIGHT_EDGE - _LEFT:.1f}" height="{y(least) - y(greatest):.1f}">'
            f"<title>target: {least:g} to {greatest:g}</title></rect>"
        )


def _held_out(
    marks: Marks, x: Callable[[float], float], y: Callable[[float], float], left: float
) -> Iterator[str]:
    """The worth on held-out pairs, and what the point means."""
    if marks.held_out is None:
        return
    fraction, value = marks.held_out
    text = f"on held-out pairs: {value:.3f}"
    if marks.interval is not None:
        low, high = marks.interval
        text += f" ({low:.3f} to {high:.3f})"
        yield _line("held", x(fraction), y(low), x(fraction), y(high))
    for cx, cy in ((x(fraction), y(value)), (left + 13, 57.0)):
        yield (
            f'<circle class="dot" cx="{cx:.1f}" cy="{cy:.1f}" r="4.5">'
            f"<title>{_escaped(text)}</title></circle>"
        )
    yield _text(left + 24, 61.0, "held-out pairs", "start")


def _check(curves: Mapping[str, Points]) -> None:
    if not 1 <= len(curves) <= len(_STYLES):
        raise InputError(f"expected 1 to {len(_STYLES)} curves to draw, got {len(curves)}")
    for name, points in curves.items():
        fractions = [fraction for fraction, _ in points]
        # The set refuses a fraction that comes twice.
        growing = fractions == sorted(set(fractions))
        if not points or not growing or not 0 < fractions[0] <= fractions[-1] <= 1:
            raise InputError(
                f"curve {name!r:.60}: expected points at growing fractions, above 0 and at most 1, "
                f"got {fractions}"
            )
        if not all(math.isfinite(value) for _, value in points):
            raise InputError(f"curve {name!r:.60}: expected finite faithfulness at every point")


def _style(n_curves: int) -> str:
    light = "".join(f".c{n}{{stroke:{_STYLES[n][0]}}}" for n in range(n_curves))
    light += "".join(f".m{n}{{fill:{_STYLES[n][0]}}}" for n in range(n_curves))
    dark = "".join(
        f".c{n}{{stroke:{color}}}.m{n}{{fill:{color}}}"
        for n, color in enumerate(_DARK_LINES[:n_curves])
    )
    return f"{_STYLE}{light}@media (prefers-color-scheme: dark){{{_DARK}{dark}}}"


def _across(
    smallest: float, logarithmic: bool, n_edges: int | None
) -> tuple[Callable[[float], float], list[tuple[float, str]]]:
    """Where a fraction is drawn, and which are marked."""
    width = _RIGHT_EDGE - _LEFT
    if not logarithmic:
        ticks = [(share / 5, f"{20 * share}") for share in range(6)]
        return (lambda fraction: _LEFT + width * fraction), ticks
    # At least from 10 % on: a single point, or the whole model alone, would span no axis.
    start = min(math.log10(smallest), -1.0)
    whole = 100 if n_edges is None else n_edges
    decades = range(math.floor(start + math.log10(whole)), math.floor(math.log10(whole)) + 1)
    # Of many decades only the powers of ten: else labels run into each other.
    digits = (1,) if start < -4 else (1, 2, 5)
    amounts = [digit * 10.0**decade for decade in decades for digit in digits]
    ticks = [
        (amount / whole, f"{amount:g}" if n_edges is None else f"{amount:,.0f}")
        for amount in amounts
        # Rounding must not cost a tick at either end; and there is no half an edge.
        if start - 1e-9 <= math.log10(amount / whole) <= 1e-9 and (n_edges is None or amount >= 1)
    ]
    # The logarithm goes from ``start`` on the left to 0, the whole model, on the right.
    return (lambda fraction: _LEFT + width * (1 - math.log10(fraction) / start)), ticks


def _up(lowest: float, highest: float) -> tuple[Callable[[float], float], list[tuple[float, str]]]:
    """Where a faithfulness is drawn, and which are marked: about six, at round numbers."""
    # The step that would give six ticks, rounded up to 1, 2, 5 or 10 times a power of ten.
    rough = (highest - lowest) / 6
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(digit * size for digit in (1, 2, 5, 10) if digit * size >= rough * (1 - 1e-9))
    first, last = math.floor(lowest / step + 1e-9), math.ceil(highest / step - 1e-9)
    bottom, top = first * step, last * step
    ticks = [(number * step, f"{number * step:.6g}") for number in range(first, last + 1)]
    return (lambda value: _FLOOR - (_FLOOR - _TOP) * (value - bottom) / (top - bottom)), ticks


def _curve(number: int, points: Sequence[tuple[float, float]]) -> list[str]:
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dashes = _STYLES[number][2]
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return [f'<path class="c{number}" stroke-width="2"{dashed} d="M{path}"/>']


def _mark(number: int, x: float, y: float, text: str) -> str:
    """A point, with what browsers show as its tooltip."""
    shape = _STYLES[number][1]
    tooltip = f"<title>{_escaped(text)}</title>"
    if shape == "circle":
        return f'<circle class="m{number}" cx="{x:.1f}" cy="{y:.1f}" r="3.5">{tooltip}</circle>'
    turned = f' transform="rotate(45 {x:.1f} {y:.1f})"' if shape == "diamond" else ""
    return (
        f'<rect class="m{number}" x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6"{turned}>'
        f"{tooltip}</rect>"
    )


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path class="{kind}" d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str = "middle", more: str = "") -> str:
    more = f" {more}" if more else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{_escaped(text)}</text>'


def _escaped(text: str) -> str:
    return html.escape(printable(text))
