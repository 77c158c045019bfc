"""Gradient rules: the runs at which gradients are taken, and what they pass on their way back.

A rule is a small object that goes backwards through runs of a batch and gives the gradients of the
metric at the activations of every block: at what readers read, and at what they give. What is made
of them (scores of nodes, of edges, by whichever reader rule) is the same for all rules.

    clean, corrupted   at that run                                      (Nanda, 2022; arXiv 2310.10348)
    both               the mean of the two                              (Hanna et al., 2024, 2403.17806)
    integrated         the mean along the line between the two inputs   (EAP-IG, arXiv 2403.17806)
    graddrop           at the run edited, each layer's write constant in turn, absolute values
                       averaged: unsigned                               (AtP*, arXiv 2403.00745)
    relevance          LRP's rules in place of derivatives              (RelP, arXiv 2508.21258)
    gim                softer softmax, gradients shared among factors   (GIM, arXiv 2505.17630)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor

from ..errors import InputError
from ..model.parts import See
from ..model.transformer import Model
from ..names.vocabulary import METRIC, SCHEDULE, SCHEDULES, STEPS
from ..question.metrics import Metric
from ..question.question import check_direction
from ..runs.trace import BothRuns, Tape
from .propagation import Relevance, gim

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
        """One of ``GRADIENTS``."""
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
        if self.steps < 1:
            raise InputError(f"expected at least one step, got {self.steps}")
        if self.schedule not in SCHEDULES:
            raise InputError(
                f"unknown schedule {self.schedule!r}; there are {', '.join(SCHEDULES)}"
            )

    def passes(self, runs: BothRuns, by: Collection[str], n_rows: int) -> Iterator[Pass]:
        """One for as many steps as fit."""
        offset = 0.5 if self.schedule == "midpoint" else 0.0
        parts = [(step + offset) / self.steps for step in range(self.steps)]
        at_once = max(1, n_rows // len(runs.batch))
        for start in range(0, self.steps, at_once):
            some = parts[start : start + at_once]
            yield whole_pass(runs.model, runs.between(some, by), n_runs=len(some))

    def divisor(self, n_layers: int, within: bool) -> int:
        """How many steps."""
        return self.steps

    def check(self, model: Model) -> None:
        """Any model will do."""


@dataclass(frozen=True)
class GradDrop:
    """Each layer's whole write constant in turn: cancelling paths no longer hide each other.

        1/(L-1) sum over layers l of |estimate with l's write constant in the backward pass|

    Dropping a layer changes no gradient above it, so each pass restarts from the gradient at the
    residual stream after it: (L + 1) / 2 backward passes in all. What lies in the dropped layer has
    no gradient; what lies in none (the input, the logits, residual streams) is divided by L.
    """

    run: str
    name: str = field(default="graddrop", init=False)
    unsigned: bool = field(default=True, init=False)

    def passes(self, runs: BothRuns, by: Collection[str], n_rows: int) -> Iterator[Pass]:
        """Nothing dropped, which counts for all passes that drop a layer below; then each layer."""
        n_layers = runs.model.graph.n_layers
        tape = runs.tape(self.run, by)
        after = [tape.final_gradient] * n_layers

        def undropped() -> Iterator[tuple[int, Gradients, int]]:
            yield n_layers, {"resid_pre": tape.final_gradient}, n_layers
            for layer, gradients in _backward(tape, again=True):
                if layer > 0:
                    after[layer - 1] = gradients["resid_pre"]
                yield layer, gradients, layer

        def dropped(at: int) -> Iterator[tuple[int, Gradients, int]]:
            yield at, {"resid_pre": after[at]}, 1
            for layer, gradients in _backward(tape, after[at], at, again=True):
                yield layer, gradients, 1

        yield Pass(1, tape, undropped())
        for layer in reversed(range(n_layers)):
            yield Pass(1, tape, dropped(layer))

    def divisor(self, n_layers: int, within: bool) -> int:
        """In how many of the passes there is a gradient."""
        return n_layers - 1 if within else n_layers

    def check(self, model: Model) -> None:
        """Raises InputError for a model of one layer."""
        if model.graph.n_layers < 2:
            raise InputError("GradDrop needs at least two layers, one to drop and one to keep")


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
                'another gradient (--gradient integrated, gradient="integrated")'
            )


def whole_pass(model: Model, tape: Tape, n_runs: int = 1, frozen: bool = False) -> Pass:
    """From the metric back to the input, everything counted once."""

    def layers() -> Iterator[tuple[int, Gradients, int]]:
        yield model.graph.n_layers, {"resid_pre": tape.final_gradient}, 1
        for layer, gradients in _backward(tape):
            yield layer, gradients, 1

    return Pass(n_runs, tape, layers(), frozen)


def _backward(
    tape: Tape, gradient: Tensor | None = None, start: int | None = None, again: bool = False
) -> Iterator[tuple[int, Gradients]]:
    """The gradients of each block, last first, that by the residual stream before it included."""
    gradient = tape.final_gradient if gradient is None else gradient
    for layer, found, below in tape.backward(gradient, start, again):
        yield layer, {**found, "resid_pre": below}


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
    integrated = Integrated(steps, schedule)
    edited = "clean" if direction == "noising" else "corrupted"
    if gradient is None:
        gradient = "corrupted" if metric == "kl" else edited
    if not isinstance(gradient, str):
        return gradient
    rules: dict[str, Callable[[], GradientRule]] = {
        "clean": lambda: AtRuns("clean", ("clean",)),
        "corrupted": lambda: AtRuns("corrupted", ("corrupted",)),
        "both": lambda: AtRuns("both", ("clean", "corrupted")),
        "integrated": lambda: integrated,
        "graddrop": lambda: GradDrop(edited),
        "relevance": lambda: Modified("relevance", edited, Relevance, in_mlp=True),
        "gim": lambda: Modified("gim", edited, gim),
    }
    if gradient not in rules:
        raise InputError(f"unknown gradient {gradient!r}; there are {', '.join(rules)}")
    at_clean = gradient == "clean" or (
        gradient in ("graddrop", "relevance", "gim") and edited == "clean"
    )
    if metric == "kl" and at_clean:
        raise InputError(
            "metric kl is 0 at the clean run, and so is its gradient; use the gradient at the "
            'corrupted run (--gradient corrupted, gradient="corrupted"), or denoising'
        )
    return rules[gradient]()


def check_depends(depends: bool) -> None:
    """Raises InputError if no pair's metric had a gradient other than zero."""
    if not depends:
        raise InputError(
            "the metric's gradient is zero for all pairs: the metric does not change with the "
            "model's output there; use another metric or gradient"
        )
