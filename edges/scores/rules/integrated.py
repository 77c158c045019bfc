"""The mean gradient along the line between the two inputs (EAP-IG: Hanna et al., 2024, arXiv 2403.17806)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from ...model.transformer import Model
from ...names.vocabulary import SCHEDULE, STEPS
from ...runs.trace import BothRuns
from .rule import GradientRule, Pass, RuleOptions, check_steps, whole_pass


def rule(options: RuleOptions) -> GradientRule:
    """The mean of the gradients at ``options.steps`` runs. Raises InputError for no steps."""
    return Integrated(options.steps, options.schedule)


@dataclass(frozen=True)
class Integrated:
    """The mean of the gradients at ``steps`` runs between the two, as integrated gradients take it.

    Their inputs lie on the straight line between what the input writes in the corrupted and in the
    clean run: at the midpoints of equal parts, or (``left``, EAP-IG as published) at the corrupted
    end of each part. Steps share batches as far as memory allows.
    """

    steps: int = STEPS
    schedule: str = SCHEDULE
    name: str = field(default="integrated", init=False)
    unsigned: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        check_steps(self.steps, self.schedule)

    def passes(self, runs: BothRuns, by: Collection[str], n_rows: int) -> Iterator[Pass]:
        """One for as many steps as fit."""
        offset = 0.5 if self.schedule == "midpoint" else 0.0
        parts = [(step + offset) / self.steps for step in range(self.steps)]
        # Each step is a run of the whole batch, so one at least, whatever the rows allowed.
        at_once = max(1, n_rows // len(runs.batch))
        for start in range(0, self.steps, at_once):
            steps = parts[start : start + at_once]
            yield whole_pass(runs.model, runs.between(steps, by), n_runs=len(steps))

    def divisor(self, n_layers: int, within: bool) -> int:
        """How many steps."""
        return self.steps

    def check(self, model: Model) -> None:
        """Any model will do."""
