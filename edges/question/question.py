"""What is asked of a model."""

from __future__ import annotations

from ..errors import InputError
from ..names.vocabulary import DIRECTIONS


def check_direction(direction: str) -> None:
    """Raises InputError for a direction that is not known."""
    if direction not in DIRECTIONS:
        raise InputError(f"unknown direction {direction!r}; there are {', '.join(DIRECTIONS)}")
