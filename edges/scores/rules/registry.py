"""From the name of a gradient rule to the rule."""

from __future__ import annotations

from importlib import import_module

from ...errors import InputError
from ...model.transformer import Model
from ...names.vocabulary import GRADIENTS, METRIC, SCHEDULE, STEPS
from ...question.metrics import Metric
from ...question.question import check_direction
from .rule import GradientRule, RuleOptions


def recommended_gradient(metric: str | Metric = METRIC, model: Model | None = None) -> str:
    """The rule for edges that costs least verified recall where it was measured.

    In benchmarks/RESULTS.md: relevance with the linear reader, in the geometric mean over all
    settings. ``gim``, the second, for a model with modules that relevance has no rule for; and the
    corrupted run's gradient for ``kl``, which has none at the clean run.
    """
    if metric == "kl":
        return "corrupted"
    return "gim" if model is not None and model.unruled_modules() else "relevance"


def resolve_gradient(
    gradient: str | GradientRule | None,
    direction: str,
    metric: str | Metric,
    steps: int = STEPS,
    schedule: str = SCHEDULE,
) -> GradientRule:
    """The rule of that name.

    Args:
        gradient: None takes the run that ``direction`` edits, and the corrupted one for ``kl``.
        direction: ``noising`` edits the clean run, ``denoising`` the corrupted one; the rules at
            one run that do not name it take the run edited.
        steps, schedule: of ``integrated``.

    Raises:
        InputError: names that are not known, or a gradient that is zero by definition.
    """
    check_direction(direction)
    options = RuleOptions(
        "clean" if direction == "noising" else "corrupted", metric, steps, schedule
    )
    if gradient is None:
        gradient = "corrupted" if metric == "kl" else options.edited
    if not isinstance(gradient, str):
        return gradient
    if gradient not in GRADIENTS:
        raise InputError(f"unknown gradient {gradient!r}; there are {', '.join(GRADIENTS)}")
    return import_module(f".{gradient}", __package__).rule(options)
