"""The mean of the gradients at both runs (Hanna et al., 2024, arXiv 2403.17806)."""

from __future__ import annotations

from .rule import AtRuns, GradientRule, RuleOptions


def rule(options: RuleOptions) -> GradientRule:
    """The mean of the gradients at the clean and at the corrupted run."""
    return AtRuns("both", ("clean", "corrupted"))
