"""The gradient at the clean run (Nanda, 2022; Syed et al., 2023, arXiv 2310.10348)."""

from __future__ import annotations

from .rule import AtRuns, GradientRule, RuleOptions


def rule(options: RuleOptions) -> GradientRule:
    """The gradient at the clean run. Raises InputError for a metric that has none there."""
    return AtRuns("clean", (options.at("clean"),))
