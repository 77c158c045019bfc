"""The gradient at the corrupted run."""

from __future__ import annotations

from .rule import AtRuns, GradientRule, RuleOptions


def rule(options: RuleOptions) -> GradientRule:
    """The gradient at the corrupted run."""
    return AtRuns("corrupted", ("corrupted",))
