"""How much is verified: a number of edges, or what there is time for."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass, field
from datetime import timedelta

from ...edges.errors import InputError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}

_TIME = re.compile(
    r"(?:(?P<h>\d+(?:\.\d+)?)h)?(?:(?P<m>\d+(?:\.\d+)?)m)?(?:(?P<s>\d+(?:\.\d+)?)s)?"
)

CHUNK_IN_TIME = 8
"""Edges measured and written together where time says when to stop."""

_FOR_EVIDENCE = 0.2
"""The share of the time that is left to what is measured of the circuit as a whole."""


def parse_budget(text: str) -> int | timedelta:
    """``200`` is a number of edges; ``90s``, ``5m``, ``1h30m`` a time.

    Raises:
        InputError: it is neither, or nothing at all.
    """
    if text.isdecimal():
        return int(text)
    parts = _TIME.fullmatch(text)
    seconds = 0.0
    if parts is not None:
        given = {unit: float(number) for unit, number in parts.groupdict().items() if number}
        seconds = sum(number * _UNITS[unit] for unit, number in given.items())
    if not seconds:
        raise InputError(
            f"expected a number of edges, such as 200, or a time, such as 90s, 5m or 1h30m, got "
            f"{text!r:.40}"
        )
    return timedelta(seconds=seconds)


@dataclass
class Deadline:
    """The time that a run has, from when this was made on.

    Attributes:
        seconds: None is all that it takes.
        seconds_per_edge: that verifying took; known once edges were verified.
    """

    seconds: float | None
    seconds_per_edge: float = 0.0
    start: float = field(default_factory=time.monotonic)

    def left(self, share: float = 1.0) -> float:
        """Seconds left of this share of the time for measuring edges; endless without a limit."""
        if self.seconds is None:
            return math.inf
        return share * (1 - _FOR_EVIDENCE) * self.seconds - (time.monotonic() - self.start)
