"""The search for a set of edges by running sets: what single edges do does not tell what many do.

Pruning. Beginning with all edges, each round runs the model reduced to the circuit at midpoints of
the line from no edge to the circuit, and takes the gradient of the metric by the mask of every edge
(``mask_gradients``). Averaged over the line it is what the metric owes to each edge of the circuit:
its *shares* add up to metric(circuit) - metric(no edge). The circuit of the next round is chosen by
these shares, and what lies on no path from ``input`` to ``logits`` goes. (Integrated gradients:
Sundararajan et al., 2017, arXiv 1703.01365; of masks of edges, at the whole model alone, in Hanna et
al., 2024, arXiv 2403.17806, who integrate over inputs instead. Iterating is ours.)

Selection. Edges with positive shares carry the behaviour, those with negative ones oppose it. Of the
edges to keep, an opposing share counts 0, 1/2 or 1 of one that carries as much: the least of these
that keeps the circuit's faithfulness at the target. With 0 what opposes goes first, so the circuit
overshoots; what overshoots can be pruned further, and what falls short cannot.

Elimination. Of the smallest circuit within the target, groups of edges are taken out, the least
shares first, halves of a group that cannot be spared next, down to single edges.

Gradients are of every other pair; how much opposing edges count, where to stop and what can be spared
is judged by these and by the rest, on whichever it is worth less: edges chosen on few pairs do
more on these than elsewhere, and the rest alone are few as well. What the circuit is worth is for
pairs to say that the search never saw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from ...edges.effects.mask_gradients import MaskedRuns
from ...edges.errors import InputError
from ...edges.model.transformer import Model
from ...edges.names.vocabulary import MASK_STEPS, TARGET
from ...edges.question.prompts import PromptPairs
from ...edges.question.question import Question
from ...edges.runs.masks import full_mask, live_mask
from ...edges.runs.sweep import Resources
from ..record.search_file import Journal, Round
from .pruning import TOLERANCE
from .rules import Rules

Mask = Bool[Tensor, "writer reader"]

OPPOSING = (0.0, 0.5, 1.0)
"""What an opposing share may count, of one that carries as much."""

_FEWEST_SPLIT = 8
"""With fewer pairs, all serve for gradients and judging alike."""

_FIRST = 0.05
_FIRST_AT_LEAST = 1000
"""The first round keeps a twentieth of the edges: most of a large model does nothing here. Of small
models it keeps as much as any other round."""

_SHRINK = 0.6
_FINER = 0.85
"""The share of its edges that a circuit keeps in a round; and from the smallest within the target on."""

_FEWEST = 5
"""No round is asked for fewer edges; elimination may leave fewer."""

_OFTEN = 30
_ROUNDS = 6
"""For the time left: pruning often goes down to so few edges, and takes so many finer rounds."""

_FAR_BELOW = 0.5
"""The first pruning ends below this share of the target."""


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How to search.

    Args:
        target: how faithful the circuit shall be: from ``target`` to ``2 - target``.
        steps: midpoints of the line that gradients are averaged over.
        trials: the most runs for elimination; 0 leaves it out.

    Raises:
        InputError: an option that cannot be.
    """

    target: float = TARGET
    steps: int = MASK_STEPS
    trials: int = 100

    def __post_init__(self) -> None:
        Rules(target=self.target).check()
        for name, least in (("steps", 1), ("trials", 0)):
            if getattr(self, name) < least:
                raise InputError(f"expected {name} of at least {least}, got {getattr(self, name)}")

    @property
    def aim(self) -> tuple[float, float]:
        """The least and the greatest faithfulness that the search takes for enough.

        The least lies three quarters of the way from the target to 1: of many circuits those are
        taken that chance makes look well; one cut down to the target itself would fall below it
        elsewhere.
        """
        return (3 + self.target) / 4 - TOLERANCE, 2 - self.target + TOLERANCE

    def enough(self, faithfulness: float) -> bool:
        """Whether it is what the search aims at."""
        least, greatest = self.aim
        return least <= faithfulness <= greatest

    def reached(self, faithfulness: float) -> bool:
        """Whether it is within the target."""
        return self.target - TOLERANCE <= faithfulness <= self.aim[1]


@dataclass(frozen=True, eq=False)
class SearchResult:
    """All circuits of a search, and the chosen one.

    Attributes:
        rounds: in the order they were come by; the first is that of all edges.
        chosen: the smallest that the search takes for enough, or the one nearest to it.
        shares: of the chosen circuit's edges, on the pairs of the gradients, in units of the metric.
        reached: whether the chosen one is within the target.
        minimal: whether elimination tried each edge of the chosen circuit alone, in vain.
    """

    rounds: tuple[Round, ...]
    chosen: Round
    shares: Float64[Tensor, "writer reader"]
    reached: bool
    minimal: bool

    @property
    def n_rounds(self) -> int:
        """Circuits pruned: each took one gradient at every midpoint."""
        return sum(each.how == "pruned" for each in self.rounds[1:])

    @property
    def n_trials(self) -> int:
        """Groups of edges that elimination tried to do without."""
        return len(self.rounds) - 1 - self.n_rounds

    def path(self) -> Iterator[dict[str, Any]]:
        """The circuits that were pruned or spared, as plain data."""
        for each in self.rounds[1:]:
            if each.how != "needed":
                yield {
                    "how": each.how,
                    "edges": each.n_edges,
                    "faithfulness": each.judged,
                }


def split(pairs: PromptPairs) -> tuple[PromptPairs, PromptPairs]:
    """The pairs that gradients are taken on, every other one, and the rest.

    Of fewer than 8 pairs, all are both.
    """
    if len(pairs) < _FEWEST_SPLIT:
        return pairs, pairs
    return pairs.take(range(0, len(pairs), 2)), pairs.take(range(1, len(pairs), 2))


def search(
    model: Model,
    question: Question,
    options: SearchOptions,
    resources: Resources,
    journal: Journal | None = None,
) -> SearchResult:
    """Looks for a small circuit whose faithfulness lies within a target. See the module.

    Where no circuit reaches the target, the one nearest to it is chosen.

    Args:
        journal: of a search that was interrupted, to be gone on with.

    Raises:
        InputError: pairs that the model cannot run, or a metric that is the same on clean and
            corrupted prompts.
        WiremapError: a metric or gradient that is not finite.
    """
    searching, judging = split(question.pairs)
    with ExitStack() as entered:

        def runs_of(pairs: PromptPairs) -> MaskedRuns:
            about = question.about(pairs=pairs)
            return entered.enter_context(MaskedRuns(model, about, resources.quiet()))

        runs = runs_of(searching)
        others = runs if searching is judging else runs_of(judging)
        return _Search(runs, others, options, resources, journal or Journal()).result()


class _Search:
    """One search, from what is known on."""

    def __init__(
        self,
        runs: MaskedRuns,
        others: MaskedRuns,
        options: SearchOptions,
        resources: Resources,
        journal: Journal,
    ) -> None:
        self.runs, self.others, self.options = runs, others, options
        self.resources, self.journal = resources, journal
        self.graph = runs.model.graph
        self.gap = _gap(runs)
        # A gradient is taken for about three runs. How far down pruning goes is not known before.
        self._passes = 3 * options.steps + 2
        falling = math.log(_first(self.graph.n_edges) / _OFTEN) / -math.log(_SHRINK)
        self._total = (_ROUNDS + max(0, round(falling))) * self._passes + options.trials
        self._told = 0
        for measured in (runs, others):
            if _gap(measured) == 0:
                raise InputError(
                    "the metric is the same on the clean and on the corrupted prompts, so there is "
                    "nothing to be faithful to; use prompts that differ in the behaviour"
                )

    def result(self) -> SearchResult:
        """Prunes, prunes in finer steps, eliminates."""
        every = full_mask(self.graph)
        self._note(every)
        n_edges = self.graph.n_edges
        self._prune(every, _first(n_edges), _SHRINK, _FAR_BELOW * self.options.target)
        # From what is more than enough as well: a coarse round may have gone past the aim.
        least = self._smallest((self.options.aim[0], math.inf))
        self._prune(least.mask, int(_FINER * least.n_edges), _FINER, self.options.target)
        chosen, minimal = self._eliminate(self._smallest())
        self.resources.report("search", self._total - self._told, self._total)
        return SearchResult(
            rounds=tuple(self.journal.rounds),
            chosen=chosen,
            shares=self._shares(chosen.mask),
            reached=self.options.reached(chosen.judged),
            minimal=minimal,
        )

    def _report(self, passes: int) -> None:
        """So many passes over the pairs were made, or are about to be."""
        passes = min(passes, self._total - self._told)
        self._told += passes
        self.resources.report("search", passes, self._total)

    def _smallest(self, window: tuple[float, float] | None = None) -> Round:
        """The smallest pruned circuit so far that is enough, or the nearest to it."""
        rounds = [each for each in self.journal.rounds if each.how == "pruned"]
        # All edges are within any target, and no circuit.
        return smallest_within(rounds[1:] or rounds, window or self.options.aim)

    def _note(self, mask: Mask) -> Round:
        """Measures a pruned circuit."""

        def measured() -> Round:
            return Round(mask, "pruned", self._judged(mask))

        self._report(self._passes)
        return self.journal.add(mask, measured)

    def _prune(self, mask: Mask, n_edges: int, keep: float, lowest: float) -> None:
        """Rounds from a circuit down, until it is small or its faithfulness low."""
        while n_edges >= min(_FEWEST, self.graph.n_edges):
            known = self.journal.next_known()
            smaller = self._chosen(mask, n_edges) if known is None else known.mask
            if not bool(smaller.any()) or torch.equal(smaller, mask):
                return
            mask = smaller
            if self._note(mask).judged < lowest:
                return
            n_edges = int(keep * min(n_edges, int(mask.sum())))

    def _judged(self, mask: Mask, least: float = -math.inf) -> float:
        """The lower of its faithfulness on the pairs of the gradients and on the others.

        Where it is below ``least`` on the others, that is all that is measured.
        """
        of_others = faithfulness(self.others, mask)
        if self.others is self.runs or of_others < least:
            return of_others
        return min(of_others, faithfulness(self.runs, mask))

    def _shares(self, mask: Mask) -> Float64[Tensor, "writer reader"]:
        """What the metric owes to each edge of a circuit."""
        steps = self.options.steps
        return self.runs.gradients_along(mask, steps, wanted=mask).gradients.where(mask, 0.0)

    def _chosen(self, mask: Mask, n_edges: int) -> Mask:
        """The next circuit."""
        shares = self._shares(mask)

        def keeping(opposing: float) -> Mask:
            kept = select_edges(shares, mask, n_edges, opposing=opposing, gap=self.gap)
            return live_mask(self.graph, kept)

        return least_opposing(keeping, self._judged, self.options.aim[0])

    def _eliminate(self, start: Round) -> tuple[Round, bool]:
        """The circuit less what it can do without; and whether each edge left is needed.

        One that is not enough is left as it is.
        """
        if not self.options.trials or not self.options.enough(start.judged):
            return start, False
        shares = self._shares(start.mask).abs()
        order = shares.where(start.mask, torch.inf).flatten().argsort(stable=True)
        places = order[: start.n_edges].tolist()
        left = start
        n_before = len(self.journal.rounds)

        def spared(mask: Mask) -> bool | None:
            nonlocal left
            if len(self.journal.rounds) - n_before >= self.options.trials:
                return None

            def tried() -> Round:
                judged = self._judged(mask, self.options.aim[0])
                return Round(mask, "spared" if self.options.enough(judged) else "needed", judged)

            self._report(1)
            latest = self.journal.add(mask, tried)
            if latest.how == "spared":
                left = latest
            return latest.how == "spared"

        _, minimal = eliminate(start.mask, places, spared, lambda mask: live_mask(self.graph, mask))
        return left, minimal


def _first(n_edges: int) -> int:
    """How many edges the first round keeps."""
    return max(int(_FIRST * n_edges), min(int(_SHRINK * n_edges), _FIRST_AT_LEAST))


def eliminate(
    mask: Mask,
    places: Sequence[int],
    spared: Callable[[Mask], bool | None],
    live: Callable[[Mask], Mask],
) -> tuple[Mask, bool]:
    """Takes out of a circuit all groups of edges that it can do without.

    A group that cannot be spared is split into halves, which are tried one after the other, down to
    single edges; and all over again, until nothing goes.

    Args:
        places: of the edges that may go, in the flattened mask, the likeliest first.
        spared: whether this smaller circuit is enough; None when no more may be tried.
        live: the edges of a mask that are on a path.

    Returns:
        The circuit left, and whether each of its edges was tried alone, in vain.
    """
    while True:
        before = int(mask.sum())
        groups = [list(places)]
        while groups:
            group = [place for place in groups.pop() if bool(mask.view(-1)[place])]
            if not group:
                continue
            without = mask.clone()
            without.view(-1)[group] = False
            without = live(without)
            verdict = bool(without.any()) and spared(without)
            if verdict is None:
                return mask, False
            if verdict:
                mask = without
            elif len(group) > 1:
                half = (len(group) + 1) // 2
                groups += [group[half:], group[:half]]
        if int(mask.sum()) == before:
            return mask, True


def least_opposing(
    keeping: Callable[[float], Mask], measure: Callable[[Mask], float], least: float
) -> Mask:
    """The circuit that counts opposing edges least and is worth ``least``, or is worth the most."""
    tried: list[tuple[float, Mask]] = []
    for part in OPPOSING:
        kept = keeping(part)
        if any(torch.equal(kept, other) for _, other in tried):
            continue
        worth = measure(kept)
        if worth >= least:
            return kept
        tried.append((worth, kept))
    return max(tried, key=lambda one: one[0])[1]


def select_edges(
    shares: Float64[Tensor, "writer reader"],
    mask: Mask,
    n_edges: int,
    *,
    opposing: float,
    gap: float = 1.0,
) -> Mask:
    """``n_edges`` edges of a circuit by what the metric owes to each; of equal ones the first.

    Args:
        opposing: what a share of the other sign than the gap counts; with 0 such edges come last.
        gap: metric(all edges) - metric(none).
    """
    shares = shares if gap > 0 else -shares
    values = torch.where(shares < 0, -opposing * shares, shares) if opposing else shares
    ranked = values.masked_fill(~mask, -torch.inf).flatten()
    chosen = torch.zeros_like(mask)
    chosen.view(-1)[ranked.argsort(descending=True, stable=True)[:n_edges]] = True
    return chosen & mask


def _gap(runs: MaskedRuns) -> float:
    """Mean metric of the clean runs less that of the corrupted ones."""
    return (runs.full.mean() - runs.empty.mean()).item()


def faithfulness(runs: MaskedRuns, mask: Mask) -> float:
    """(metric(circuit) - metric(no edge)) / (metric(all) - metric(no edge)), means over pairs."""
    return ((runs.values(mask).mean() - runs.empty.mean()) / _gap(runs)).item()


def smallest_within(rounds: Sequence[Round], window: tuple[float, float]) -> Round:
    """The smallest circuit whose faithfulness lies within the window, or that nearest to it.

    The next larger circuit must not lie below the window, if there is a choice: on few pairs, some
    small circuit of a path that has left the window comes back into it by chance. Of circuits
    equally small, or near, the last.

    Raises:
        InputError: no rounds.
    """
    if not rounds:
        raise InputError("expected at least one circuit to choose from, got none; run the search")
    least, greatest = window
    falling = sorted(rounds, key=lambda one: -one.n_edges)
    supported = [
        one
        for larger, one in zip([falling[0], *falling], falling, strict=False)
        if least <= one.judged <= greatest and larger.judged >= least
    ]
    if supported:
        return supported[-1]

    def distance(one: Round) -> float:
        return max(least - one.judged, one.judged - greatest, 0.0)

    return min(reversed(falling), key=distance)
