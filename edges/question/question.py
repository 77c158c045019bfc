"""What is asked of a model: how much of what it does on these pairs is due to something in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from ..errors import InputError
from ..names.vocabulary import DIRECTION, DIRECTIONS, METRIC
from .metrics import Metric, resolve_metric
from .prompts import PromptPairs
from .source import CORRUPTED, Source

_UNITS = {"logit_diff": "logits", "log_prob": "nats", "kl": "nats", "prob_diff": "probability"}

RunName = Literal["clean", "corrupted"]


def check_direction(direction: str) -> None:
    """Raises InputError for a direction that is not known."""
    if direction not in DIRECTIONS:
        raise InputError(f"unknown direction {direction!r}; there are {', '.join(DIRECTIONS)}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """Pairs, what a run of them is worth, which run is edited, and with what.

    Args:
        pairs: clean and corrupted prompts with their answers.
        metric: a name in ``METRICS`` or a function ``(logits, targets) -> [row]``.
        direction: ``noising`` edits the clean run, ``denoising`` the corrupted one.
        patch_with: where patched values come from.

    Raises:
        InputError: an unknown metric or direction, a metric that needs wrong answers for pairs
            without, a source that the pairs or the direction do not allow.
    """

    pairs: PromptPairs
    metric: str | Metric = METRIC
    direction: str = DIRECTION
    patch_with: Source = CORRUPTED

    def __post_init__(self) -> None:
        check_direction(self.direction)
        _ = self.measure  # made here, so that a metric unknown is refused at once
        self.patch_with.check(self.pairs, self.direction)

    @cached_property
    def measure(self) -> Metric:
        """The metric as a function of (logits, targets)."""
        return resolve_metric(self.metric, self.pairs.wrong.shape[1] > 0)

    @property
    def noising(self) -> bool:
        """Whether the clean run is the one edited."""
        return self.direction == "noising"

    @property
    def sign(self) -> int:
        """What makes (metric of the run edited - metric once edited) clean minus corrupted."""
        return 1 if self.noising else -1

    @property
    def edited(self) -> RunName:
        """The run that is edited."""
        return "clean" if self.noising else "corrupted"

    @property
    def other(self) -> RunName:
        """The run that values are taken from."""
        return "corrupted" if self.noising else "clean"

    @property
    def metric_name(self) -> str:
        """The metric's name; of a function, what Python calls it."""
        return self.metric if isinstance(self.metric, str) else repr(self.metric)

    @property
    def unit(self) -> str:
        """What the metric is measured in, in words."""
        return _UNITS.get(self.metric_name, "units of the metric")

    def about(
        self, pairs: PromptPairs | None = None, metric: str | Metric | None = None
    ) -> Question:
        """The same of other pairs, or by another metric."""
        return replace(
            self,
            pairs=self.pairs if pairs is None else pairs,
            metric=self.metric if metric is None else metric,
        )

    def describe(self) -> Mapping[str, Any]:
        """All but the pairs as plain data, the way a result's ``method`` begins."""
        return {
            "metric": self.metric_name,
            "direction": self.direction,
            "patch_with": self.patch_with.kind,
        }
