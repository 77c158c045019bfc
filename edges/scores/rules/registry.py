"""From the name of a gradient rule to the rule."""

from __future__ import annotations

from importlib import import_module

from ...errors import InputError
from ...names.vocabulary import GRADIENTS, INTEGRATED, METRIC, SCHEDULE, STEPS
from ...question.metrics import Metric
from ...question.question import check_direction
from .rule import GradientRule, RuleOptions


def recommended_gradient(metric: str | Metric = METRIC) -> str:
    """The rule for edges whose ranking finds a real language model's large effects soonest.

    In benchmarks/RESULTS.md ("Accuracy of edge scores on a real language model"): ``integrated``
    with 5 steps and the linear reader. In models as small as the bundled ones ``relevance``
    costs about half, because there a pass costs as much as a few verified edges. For ``kl``, where
    it was not measured, the corrupted run's gradient.
    """
    return "corrupted" if metric == "kl" else INTEGRATED


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
