"""How tests compare effects, and what they call their cases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def name_of(options: Mapping[str, Any]) -> str:
    return "-".join(map(str, options.values()))


def assert_equal_effects(found: Tensor, expected: Tensor, at_least: float = 0.5) -> None:
    """Equal to 1e-4 of the largest, which must be one to speak of."""
    assert float(expected.abs().max()) > at_least
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4
