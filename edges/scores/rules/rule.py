"""What a gradient rule is: it goes backwards through runs of a batch.

A rule gives the gradients of the metric at the activations of every block: at what readers read, and
at what they give. What is made of them (scores of nodes, of edges, by whichever reader rule) is the
same for all rules.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor

from ...errors import InputError
from ...model.parts import See
from ...model.transformer import Model
from ...names.vocabulary import SCHEDULES
from ...question.metrics import Metric
from ...runs.trace import BothRuns, Tape

Gradients = dict[str, Tensor]
"""Gradients by the activations of a block, by name; ``resid_pre`` is the stream before it."""


@dataclass(frozen=True)
class Pass:
    """One way back through some runs of a batch.

    Attributes:
        n_runs: how many runs of each pair the rows are, one run after the other.
        tape: the runs gone back through, with the residual streams they kept.
        layers: for each block gone through, last first, its number, the gradients there, and how
            often they count. The number of layers stands for the last residual stream.
        frozen: the norms' scales counted as constants.
    """

    n_runs: int
    tape: Tape
    layers: Iterator[tuple[int, Gradients, int]]
    frozen: bool = False


@runtime_checkable
class GradientRule(Protocol):
    """Where gradients are taken, and how they come back."""

    @property
    def name(self) -> str:
        """What results call it; of a built-in rule its name in ``GRADIENTS``."""
        ...

    @property
    def unsigned(self) -> bool:
        """Whether absolute values are averaged: a ranking, not estimates of effects."""
        ...

    def passes(self, runs: BothRuns, by: Collection[str], n_rows: int) -> Iterator[Pass]:
        """The ways back through the runs of a batch; each is to be gone through to its end.

        Args:
            by: names of the activations whose gradients are wanted.
            n_rows: how many rows may be run at once.
        """
        ...

    def divisor(self, n_layers: int, within: bool) -> int:
        """What the sum over all passes is divided by to make it a mean.

        Args:
            within: for what lies within a block, rather than before or after all of them.
        """
        ...

    def check(self, model: Model) -> None:
        """Raises InputError if the model has no place for the rule."""
        ...


def check_steps(steps: int, schedule: str) -> None:
    """Raises InputError for no steps, or a schedule that is not known."""
    if steps < 1:
        raise InputError(f"expected at least one step, got {steps}")
    if schedule not in SCHEDULES:
        raise InputError(f"unknown schedule {schedule!r}; there are {', '.join(SCHEDULES)}")


@dataclass(frozen=True)
class RuleOptions:
    """What a rule is made from.

    Attributes:
        edited: the run that is edited, ``clean`` or ``corrupted``; rules at one run that do not name
            it take this one.
        metric: what gradients are of.
        steps, schedule: of rules that take several; see ``integrated``.
    """

    edited: str
    metric: str | Metric
    steps: int
    schedule: str

    def __post_init__(self) -> None:
        """Whatever the rule: steps are asked for, if in vain."""
        check_steps(self.steps, self.schedule)

    def at(self, run: str) -> str:
        """This run, if the metric has a gradient there. Raises InputError if it has not."""
        if self.metric == "kl" and run == "clean":
            raise InputError(
                "metric kl is 0 at the clean run, and so is its gradient; use the gradient at the "
                "corrupted run (--gradient corrupted), or denoising"
            )
        return run


@dataclass(frozen=True)
class AtRuns:
    """The mean of the gradients at one run, or at both."""

    name: str
    runs: tuple[str, ...]
    unsigned: bool = field(default=False, init=False)

    def passes(self, runs: BothRuns, by: Collection[str], n_rows: int) -> Iterator[Pass]:
        """One for each run."""
        for name in self.runs:
            yield whole_pass(runs.model, runs.tape(name, by))

    def divisor(self, n_layers: int, within: bool) -> int:
        """How many runs."""
        return len(self.runs)

    def check(self, model: Model) -> None:
        """Any model will do."""


@dataclass(frozen=True)
class Modified:
    """The gradient at one run, changed on its way back.

    Attributes:
        through: makes what changes gradients, anew for each pass.
        in_mlp: it changes gradients inside of MLPs, so they must not be mixtures of experts.
    """

    name: str
    run: str
    through: Callable[[], See]
    in_mlp: bool = False
    unsigned: bool = field(default=False, init=False)

    def passes(self, runs: BothRuns, by: Collection[str], n_rows: int) -> Iterator[Pass]:
        """One."""
        tape = runs.tape(self.run, by, self.through())
        yield whole_pass(runs.model, tape, frozen=True)

    def divisor(self, n_layers: int, within: bool) -> int:
        """One run."""
        return 1

    def check(self, model: Model) -> None:
        """Raises InputError, with the modules, if the rule has none for them."""
        strange = model.unruled_modules() if self.in_mlp else None
        if strange:
            raise InputError(
                f"gradient {self.name} has no rule for {strange} of model {model.name}; use "
                "another gradient (--gradient integrated)"
            )


def share(value: Tensor, part: float) -> Tensor:
    """The value itself, with a part of its gradient: what several factors share."""
    return value * part + value.detach() * (1 - part)


def whole_pass(model: Model, tape: Tape, n_runs: int = 1, frozen: bool = False) -> Pass:
    """From the metric back to the input, everything counted once."""

    def layers() -> Iterator[tuple[int, Gradients, int]]:
        # The stream that the logits read counts as that before a block behind the last.
        yield model.graph.n_layers, {"resid_pre": tape.final_gradient}, 1
        for layer, gradients in back_through(tape):
            yield layer, gradients, 1

    return Pass(n_runs, tape, layers(), frozen)


def back_through(
    tape: Tape,
    gradient: Tensor | None = None,
    start: int | None = None,
    again: bool = False,
) -> Iterator[tuple[int, Gradients]]:
    """The gradients of each block, last first, that by the residual stream before it included."""
    gradient = tape.final_gradient if gradient is None else gradient
    for layer, by_sites, below in tape.backward(gradient, start, again):
        yield layer, {**by_sites, "resid_pre": below}


def check_depends(depends: bool) -> None:
    """Raises InputError if no pair's metric had a gradient other than zero."""
    if not depends:
        raise InputError(
            "the metric's gradient is zero for all pairs: the metric does not change with the "
            "model's output there; use another metric or gradient"
        )
