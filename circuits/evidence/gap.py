"""Does the model do the task at all?"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...edges.effects.reduced import values_of_edges
from ...edges.errors import InputError
from ...edges.model.transformer import Model
from ...edges.question.prompts import PromptPairs
from ...edges.question.question import Question
from ...edges.runs.sweep import Resources


@dataclass(frozen=True)
class MetricGap:
    """What the model does on clean and on corrupted prompts; means over pairs.

    Attributes:
        standard_error: of the gap; nan for a single pair.
    """

    clean: float
    corrupted: float
    standard_error: float

    @property
    def gap(self) -> float:
        """Clean minus corrupted."""
        return self.clean - self.corrupted

    @property
    def weakness(self) -> str | None:
        """Why this is no behaviour worth explaining; None if it is one."""
        if self.gap <= 0:
            return "the model does it no better on the clean prompts than on the corrupted ones"
        if self.gap < 2 * self.standard_error:
            return "the difference is within two standard errors of zero"
        return None


def measure_gap(
    model: Model,
    pairs: PromptPairs,
    metric: str,
    *,
    allow_weak: bool = False,
    batch_size: int | None = None,
) -> MetricGap:
    """The metric on clean and on corrupted prompts.

    Raises:
        InputError: there is no behaviour to explain (see ``MetricGap.weakness``), unless
            ``allow_weak``.
    """
    question = Question(pairs=pairs, metric=metric)
    return gap_of(model, question, Resources(batch_size=batch_size), allow_weak)


def gap_of(
    model: Model, question: Question, resources: Resources, allow_weak: bool = False
) -> MetricGap:
    """The metric on clean and on corrupted prompts; see ``measure_gap``."""
    # A circuit of no edges: all that is wanted is what comes with any, the clean and the
    # corrupted run.
    values = values_of_edges(model, question, [], resources)
    full, empty = values.full.cpu().double(), values.empty.cpu().double()
    # By pair, since what makes a pair easy or hard does so for both of its prompts and cancels.
    difference = full - empty
    n_pairs = len(question.pairs)
    gap = MetricGap(
        full.mean().item(),
        empty.mean().item(),
        difference.std().item() / math.sqrt(n_pairs) if n_pairs > 1 else math.nan,
    )
    if gap.weakness and not allow_weak:
        raise InputError(
            f"expected model {model.name} to do the task; its mean {question.metric_name} is "
            f"{gap.clean:.4g} on the clean prompts and {gap.corrupted:.4g} on the corrupted ones "
            f"(gap {gap.gap:.4g} +- {gap.standard_error:.2g}): {gap.weakness}. Use prompts it can "
            "answer, or go on anyway with --allow-weak (allow_weak=True)"
        )
    return gap
