"""GradDrop: each layer's write constant in turn (AtP*: Kramár et al., 2024, arXiv 2403.00745)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from ...errors import InputError
from ...model.transformer import Model
from ...runs.trace import BothRuns
from .rule import GradientRule, Gradients, Pass, RuleOptions, back_through


def rule(options: RuleOptions) -> GradientRule:
    """Absolute values at the run edited. Raises InputError for a metric without gradient there."""
    return GradDrop(options.at(options.edited))


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
        # The gradients behind each block, filled in while the first pass is gone through: it must come
        # to its end before another begins.
        after = [tape.final_gradient] * n_layers

        def undropped() -> Iterator[tuple[int, Gradients, int]]:
            yield n_layers, {"resid_pre": tape.final_gradient}, n_layers
            for layer, gradients in back_through(tape, again=True):
                if layer > 0:
                    after[layer - 1] = gradients["resid_pre"]
                yield layer, gradients, layer

        def dropped(at: int) -> Iterator[tuple[int, Gradients, int]]:
            # A block whose write is constant passes the gradient behind it on to the stream before it.
            yield at, {"resid_pre": after[at]}, 1
            for layer, gradients in back_through(tape, after[at], at, again=True):
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
