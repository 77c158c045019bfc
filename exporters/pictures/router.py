"""Where nodes of a drawing stand, and ways for edges past those between their ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

COLUMN = 84.0
"""From the middle of a node to that of the next in its row."""


GUTTER = 56.0
"""For edges, left and right of the nodes."""


HEIGHT, SLOT_HEIGHT = 24.0, 13.0
"""Of a node, and of the cells of its slots."""


_CLEAR = 8.0


@dataclass(frozen=True)
class Box:
    """Where a node stands: its centre, and half its width."""

    x: float
    y: float
    half: float
    slots: str
    row: int

    @property
    def bottom(self) -> float:
        """Where edges arrive."""
        return self.y + HEIGHT / 2 + (SLOT_HEIGHT if self.slots else 0.0)

    @property
    def top(self) -> float:
        """Where edges leave."""
        return self.y - HEIGHT / 2

    def entrance(self, slot: str | None) -> float:
        """Where edges of a slot arrive."""
        if slot is None:
            return self.x
        return self.x + self.half * ((2 * self.slots.index(slot) + 1) / len(self.slots) - 1)


class Router:
    """Ways for edges past the nodes between their ends: upright S-curves, bowed to one side.

    A curve goes from (x0, y0) to (x1, y1) with control points (x0 + bow, middle) and
    (x1 + bow, middle).
    """

    def __init__(self, levels: Sequence[Sequence[Box]]) -> None:
        self._levels = levels
        nodes = [box.x for level in levels for box in level]
        room = COLUMN / 2 + GUTTER - 30  # ends fan out later
        self._left, self._right = min(nodes, default=0) - room, max(nodes, default=0) + room
        self._used: Counter[tuple[int, int]] = Counter()

    def path(self, start: Box, end: Box, slot: str | None, arrow: float) -> str:
        """The way from one node to another, less the arrow at its end."""
        x0, y0, x1, y1 = start.x, start.top, end.entrance(slot), end.bottom + arrow
        between = [
            # Rounded, so that edges between the same rows share what the cache holds.
            (level, _share_of_curve(round((level[0].y - y0) / (y1 - y0), 3)))
            for level in self._levels[start.row + 1 : end.row]
        ]
        bow, gaps = 0.0, list[tuple[int, int]]()
        if between:
            widest = max(len(level) for level, _ in between)
            # Outwards first: the input stands in the middle of the drawing.
            lean = -1.0 if x0 + x1 < 2 * self._levels[0][0].x else 1.0
            # Straight, then ever longer bows by half columns, to both sides.
            steps = [0.0] + [
                side * step * COLUMN / 2 for step in range(1, widest + 4) for side in (lean, -lean)
            ]
            best = float("inf")
            for candidate in steps:
                if abs(candidate) / COLUMN >= best:
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
        self, x0: float, x1: float, bow: float, between: Sequence[tuple[Sequence[Box], float]]
    ) -> tuple[float, list[tuple[int, int]]]:
        """What a bow costs: its length, nodes it runs behind, and edges that run there already."""
        cost = abs(bow) / COLUMN
        passed: list[tuple[int, int]] = []
        for level, t in between:
            x = _x(x0, x1, bow, t)
            column = round((x - level[0].x) / COLUMN)
            box = level[min(len(level) - 1, max(0, column))]
            if abs(x - box.x) < box.half + _CLEAR:
                cost += 3.0
            gap = (box.row, round(x / 10))
            cost += 0.4 * self._used[gap]
            passed.append(gap)
        return cost, passed


def _x(x0: float, x1: float, bow: float, t: float) -> float:
    """Where a curve is at its parameter t."""
    # The Bernstein form of the curve, collected by x0, x1 and bow.
    s = 1 - t
    return s * s * (x0 + 2 * t * x0) + t * t * (x1 + 2 * s * x1) + 3 * s * t * bow


def _towards(distance: float) -> float:
    """From -1, far to the left, to 1."""
    return max(-1.0, min(1.0, distance / (3 * COLUMN)))


@lru_cache(maxsize=4096)
def _share_of_curve(height: float) -> float:
    """The parameter t at which such a curve has gone this share of its height."""
    low, high = 0.0, 1.0
    # Bisection: the curve only rises, as both controls are at half its height.
    for _ in range(24):
        t = (low + high) / 2
        if 1.5 * t - 1.5 * t**2 + t**3 < height:
            low = t
        else:
            high = t
    return low
