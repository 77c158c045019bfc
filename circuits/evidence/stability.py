"""How much of a circuit hangs on which prompt pairs happened to be drawn: bootstrap over pairs.

Pairs are drawn anew with replacement, effects averaged over them, and edges chosen by the same rule
again (Efron, 1979; for circuits, Meloux et al., 2025, arXiv 2510.00845). An edge that is chosen in
few resamples, or an interval around 0, is one that other prompts of the kind may not show.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...edges.errors import InputError
from ...edges.names.vocabulary import INTERVAL, RESAMPLES, SEED
from ..choice.rules import Rules
from ..record.intervals import LEAST_RESAMPLES, percentile_intervals, resampled_means

Rule = Callable[[Mapping[str, float]], Collection[str]]
"""From mean effects by edge, to the names of the edges that make the circuit."""


@dataclass(frozen=True)
class EdgeStability:
    """An edge over resamples of the pairs.

    Attributes:
        effect: mean over the pairs themselves, in units of the metric.
        low, high: percentile bootstrap interval of the mean effect.
        frequency: share of the resampled circuits that have it.
    """

    edge: str
    effect: float
    low: float
    high: float
    frequency: float


@dataclass(frozen=True)
class Stability:
    """The result of ``bootstrap``.

    Attributes:
        edges: in the order they were given.
        jaccard: mean over all two resampled circuits of edges in both / edges in either; 1 where
            every resample gives the same circuit (two empty ones are the same).
        confidence: of each interval by itself.
    """

    edges: tuple[EdgeStability, ...]
    jaccard: float
    n_pairs: int
    n_resamples: int
    confidence: float
    seed: int

    def as_document(self) -> dict[str, Any]:
        """The result as plain JSON data."""
        return {
            "mean_pairwise_jaccard": self.jaccard,
            "n_pairs": self.n_pairs,
            "n_resamples": self.n_resamples,
            "confidence": self.confidence,
            "seed": self.seed,
            "edges": [
                {
                    "edge": one.edge,
                    "effect": one.effect,
                    "interval": [one.low, one.high],
                    "frequency": one.frequency,
                }
                for one in self.edges
            ],
        }


def keep_largest(size: int) -> Rule:
    """The rule that keeps the ``size`` edges of largest |mean effect|; of equals, the first."""
    Rules(size=size).check()
    return lambda effects: sorted(effects, key=lambda name: -abs(effects[name]))[:size]


def keep_above(threshold: float) -> Rule:
    """The rule that keeps edges of |mean effect| >= ``threshold``, in units of the metric."""
    Rules(threshold=threshold).check()
    return lambda effects: [name for name, effect in effects.items() if abs(effect) >= threshold]


def bootstrap(
    names: Sequence[str],
    effects: Float[Tensor, "edge pair"],
    rule: Rule,
    *,
    n_resamples: int = RESAMPLES,
    confidence: float = INTERVAL,
    seed: int = SEED,
) -> Stability:
    """How often each edge is chosen again, and where its mean effect lies, over resampled pairs.

    The rule chooses among ``names`` alone: an edge that was not verified on the pairs at hand
    cannot come in, so what is told is how stable the choice among the verified is.

    Args:
        names: of the verified edges.
        effects: the effect of each on each pair, in units of the metric.
        rule: such as ``keep_largest(len(circuit.edges))`` or ``keep_above(0.1)``.
        n_resamples: at least ``LEAST_RESAMPLES``.
        confidence: of the intervals: the (1 - confidence) / 2 quantile of resampled means at
            either side, interpolated linearly.
        seed: of the draws; all edges share them.

    Raises:
        InputError: no edges or one twice, a single pair, a table of another shape or not finite,
            too few resamples, a confidence outside (0, 1), a rule that names another edge.
    """
    _check(names, effects, n_resamples, confidence)
    # On the CPU: the draws are then the same whatever device the effects come from.
    table = effects.detach().cpu().double()
    resampled = resampled_means(table, n_resamples, seed)
    low, high = percentile_intervals(resampled, confidence).tolist()
    chosen = torch.zeros(resampled.shape, dtype=torch.bool)
    place = {name: index for index, name in enumerate(names)}
    for row, means in enumerate(resampled):  # row by row: as lists, all take much memory
        for name in rule(dict(zip(names, means.tolist(), strict=True))):
            if name not in place:
                raise InputError(f"expected a rule that chooses among the edges given, got {name}")
            chosen[row, place[name]] = True
    frequency = chosen.double().mean(0).tolist()
    rows = zip(names, table.mean(1).tolist(), low, high, frequency, strict=True)
    return Stability(
        tuple(EdgeStability(*row) for row in rows),
        _mean_jaccard(chosen),
        table.shape[1],
        n_resamples,
        confidence,
        seed,
    )


def _mean_jaccard(chosen: Bool[Tensor, "resample edge"]) -> float:
    members = chosen.double()
    # [resample edge] @ [edge resample]: how many edges each two resampled circuits share.
    both, sizes = members @ members.T, members.sum(1)
    either = sizes[:, None] + sizes - both
    # Two empty circuits are 0 / 0, in whose place the 1 is taken.
    shares = torch.where(either > 0, both / either, 1.0)
    # Each two once, and none with itself.
    first, second = torch.triu_indices(len(chosen), len(chosen), offset=1)
    return shares[first, second].mean().item()


def _check(
    names: Sequence[str], effects: Float[Tensor, "edge pair"], n_resamples: int, confidence: float
) -> None:
    if not names or len(set(names)) < len(names):
        raise InputError(
            f"expected the names of verified edges, each once, got {len(names)} names, "
            f"{len(set(names))} of them distinct; verify edges first"
        )
    if len(effects) != len(names):
        raise InputError(
            f"expected effects of {len(names)} edges on each pair, [edge pair], got "
            f"{list(effects.shape)}"
        )
    if effects.shape[1] < 2:
        raise InputError(
            f"expected at least 2 pairs to resample, got {effects.shape[1]}; verify on more pairs"
        )
    strange = (~effects.isfinite()).any(1).nonzero().flatten().tolist()
    if strange:
        raise InputError(f"expected finite effects; they are not for {names[strange[0]]}")
    if n_resamples < LEAST_RESAMPLES:
        raise InputError(f"expected at least {LEAST_RESAMPLES} resamples, got {n_resamples}")
    if not 0 < confidence < 1:
        raise InputError(f"expected a confidence between 0 and 1, got {confidence}")
