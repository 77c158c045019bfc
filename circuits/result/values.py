"""Values of plain JSON data, each checked: what is wrong, and where, is named.

All raise InputError; ``where`` is the place that its message names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

from ...edges.errors import InputError

LARGEST_COUNT = 2**31 - 1
"""Of pairs: what readers of 32-bit integers still read."""


def object_of(value: Any, where: str) -> dict[str, Any]:
    """The value, if it is an object of JSON. Raises InputError if not."""
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object, got {type(value).__name__}")
    return cast("dict[str, Any]", value)


def field(found: Mapping[str, Any], name: str, kind: type, where: str = "") -> Any:
    """A required field of a type; bool is no int."""
    place = f"{where}.{name}".lstrip(".")
    if name not in found:
        raise InputError(f"{place}: expected, but missing")
    value = found[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"{place}: expected {kind.__name__}, got {value!r:.60}")
    return value


def optional(found: Mapping[str, Any], name: str, kind: type, where: str) -> Any:
    """A field of a type, or None where there is none."""
    return None if found.get(name) is None else field(found, name, kind, where)


def count(found: Mapping[str, Any], name: str, where: str) -> int:
    """A required number of things, 1 or more."""
    amount = field(found, name, int, where)
    if not 1 <= amount <= LARGEST_COUNT:
        raise InputError(
            f"{where}.{name}: expected a number from 1 to {LARGEST_COUNT}, got {amount!r:.60}"
        )
    return amount


def number(found: Mapping[str, Any], name: str, where: str) -> float | None:
    """A finite number, or None where there is none."""
    value = found.get(name)
    return None if value is None else finite(value, f"{where}.{name}")


def finite(value: Any, where: str) -> float:
    """The value, if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{where}: expected a number, got {value!r:.60}")
    try:
        real = float(value)
    except OverflowError:  # an integer of JSON may be larger than any float
        real = math.inf
    if not math.isfinite(real):
        raise InputError(f"{where}: expected a finite number, got {value!r:.60}")
    return real
