"""The rules a circuit can be pruned by, as they are asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...edges.errors import InputError
from ...edges.names.vocabulary import PRUNE


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Which edges are kept: those of the one rule that is given; see ``discover``.

    Attributes:
        target, threshold, alpha, size, prune, acdc: None is a rule not used.
    """

    target: float | None = None
    threshold: float | None = None
    alpha: float | None = None
    size: int | None = None
    prune: str | None = None
    acdc: float | None = None

    def check(self) -> None:
        """Raises InputError for a rule that cannot be pruned by."""
        # Written as "not in range", so that a nan, which every comparison denies, is refused too.
        if self.target is not None and not 0 < self.target <= 1:
            raise InputError(
                f"expected a faithfulness target above 0 and at most 1, got {self.target}"
            )
        if self.threshold is not None and not 0 <= self.threshold < math.inf:
            raise InputError(f"expected a threshold >= 0, got {self.threshold}")
        if self.alpha is not None and not 0 < self.alpha < 1:
            raise InputError(
                f"expected a level alpha between 0 and 1, such as 0.05, got {self.alpha}"
            )
        if self.size is not None and self.size < 1:
            raise InputError(f"expected a size of at least 1 edge, got {self.size}")
        if self.prune is not None and self.prune not in PRUNE:
            raise InputError(f"unknown way to prune {self.prune!r}; there are {', '.join(PRUNE)}")
        if self.acdc is not None and not 0 < self.acdc < math.inf:
            raise InputError(
                f"expected a tau of ACDC above 0, in units of the metric, got {self.acdc}"
            )
