"""The search for a set of edges by running sets: what single edges do does not tell what many do.

Pruning. Beginning with all edges, each round runs the model reduced to the circuit at midpoints of
the line from no edge to the circuit, and takes the gradient of the metric by the mask of every edge
(``mask_gradients``). Averaged over the line it is what the metric owes to each edge of the circuit:
its *shares* add up to metric(circuit) - metric(no edge). The circuit of the next round is chosen by
these shares, and what lies on no path from ``input`` to ``logits`` goes. (Integrated gradients:
Sundararajan et al., 2017, arXiv 1703.01365; of masks of edges, at the whole model alone, in Hanna et
al., 2024, arXiv 2403.17806, who integrate over inputs instead. Iterating is ours.)

Selection. Edges with positive shares carry the behaviour, those with negative ones oppose it. Kept by
sign alone, a circuit overshoots: it is worth several times the model, on other prompts something
else, and its other predictions are far from the model's. So of the edges to keep, an opposing share
counts a part, from 0 to 1, of one that carries as much: the part that brings the circuit's
faithfulness nearest to 1. The smallest circuits, which cannot overshoot, oppose nothing. (A ratio of
edges taken by sign and by magnitude is in Nikankin et al., 2025, arXiv 2510.25786; it is chosen by task
there.)

Elimination. Of the smallest circuit that is enough, groups of edges are taken out, the least shares
first, halves of a group that cannot be spared next, down to single edges.

Gradients are of all pairs, and so is the faithfulness that circuits are judged by. Chance makes some
of many circuits look well; so a circuit must be near 1 on every other pair and on the rest as well,
which in built-in tasks have other words and templates. What it is worth elsewhere is for pairs to say
that the search never saw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from ...edges.effects.mask_gradients import MaskedRuns
from ...edges.errors import InputError
from ...edges.model.transformer import Model
from ...edges.names.vocabulary import MASK_STEPS, TARGET
from ...edges.question.question import Question
from ...edges.runs.masks import full_mask, live_mask
from ...edges.runs.sweep import Resources
from ..record.search_file import Journal, Round
from .pruning import TOLERANCE
from .rules import Rules

Mask = Bool[Tensor, "writer reader"]

OPPOSING = (0.0, 0.5, 1.0)
"""What an opposing share may count, of one that carries as much, before it is tried more finely."""

_HALVINGS = 2
_NEAR = 0.0125
"""Finer parts are tried so often, until a circuit's faithfulness is so near to 1."""

_FEWEST_HALVED = 8
"""Fewer pairs are not judged by halves."""

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

    def off(self, each: Round) -> float:
        """How far a circuit is from what the search takes for enough; 0 if it is enough.

        On all pairs it shall be three quarters of the way from the target to 1, on each half of them
        a quarter: of many circuits those are taken that chance makes look well, and one cut down to
        the target itself would fall below it elsewhere.
        """
        of_halves = [self._off(half, 1 / 4) for half in each.halves]
        return max([self.off_on_all(each), *of_halves])

    def off_on_all(self, each: Round) -> float:
        """The same, whatever it is on the halves of the pairs."""
        return self._off(each.judged, 3 / 4)

    def reached(self, faithfulness: float) -> bool:
        """Whether it is within the target."""
        return self._off(faithfulness, 0) == 0

    def _off(self, faithfulness: float, way: float) -> float:
        """How far it is outside of the target, moved so far of the way to 1."""
        width = (1 - way) * (1 - self.target) + TOLERANCE
        return max(0.0, abs(faithfulness - 1) - width)


@dataclass(frozen=True, eq=False)
class SearchResult:
    """All circuits of a search, and the chosen one.

    Attributes:
        rounds: in the order they were come by; the first is that of all edges.
        chosen: the smallest that the search takes for enough, or the one nearest to it.
        shares: of the chosen circuit's edges, in units of the metric.
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
    with MaskedRuns(model, question, resources.quiet()) as runs:
        return _Search(runs, options, resources, journal or Journal()).result()


class _Search:
    """One search, from what is known on."""

    def __init__(
        self, runs: MaskedRuns, options: SearchOptions, resources: Resources, journal: Journal
    ) -> None:
        self.runs, self.options = runs, options
        self.resources, self.journal = resources, journal
        self.graph = runs.model.graph
        self.gap = (runs.full.mean() - runs.empty.mean()).item()
        # A gradient is taken for about three runs. How far down pruning goes is not known before.
        self._passes = 3 * options.steps + len(OPPOSING)
        falling = math.log(_first(self.graph.n_edges) / _OFTEN) / -math.log(_SHRINK)
        self._total = (_ROUNDS + max(0, round(falling))) * self._passes + options.trials
        self._told = 0
        if self.gap == 0:
            raise InputError(
                "the metric is the same on the clean and on the corrupted prompts, so there is "
                "nothing to be faithful to; use prompts that differ in the behaviour"
            )

    def result(self) -> SearchResult:
        """Prunes, prunes in finer steps, eliminates."""
        every = full_mask(self.graph)
        self._add(every, lambda: self._judged(every))
        self._prune(every, _first(self.graph.n_edges), _SHRINK)
        # A coarse round may have gone past the smallest that is enough.
        least = self._smallest()
        self._prune(least.mask, int(_FINER * least.n_edges), _FINER)
        chosen, minimal = self._eliminate(self._smallest())
        self.resources.report("search", self._total - self._told, self._total)
        return SearchResult(
            rounds=tuple(self.journal.rounds),
            chosen=chosen,
            shares=self._shares(chosen.mask),
            reached=self.options.reached(chosen.judged),
            minimal=minimal,
        )

    def _add(self, mask: Mask, measure: Callable[[], Round]) -> Round:
        """One more circuit that was pruned."""
        self._report(self._passes)
        return self.journal.add(mask, measure)

    def _report(self, passes: int) -> None:
        """So many passes over the pairs were made, or are about to be."""
        passes = min(passes, self._total - self._told)
        self._told += passes
        self.resources.report("search", passes, self._total)

    def _smallest(self) -> Round:
        """The smallest pruned circuit so far that is enough, or the nearest to it."""
        rounds = [each for each in self.journal.rounds if each.how == "pruned"]
        # All edges are within any target, and no circuit.
        return smallest_enough(rounds[1:] or rounds, self.options)

    def _prune(self, mask: Mask, n_edges: int, keep: float) -> None:
        """Rounds from a circuit down, until it is small or falls short of the target."""
        while n_edges >= min(_FEWEST, self.graph.n_edges):
            smaller = self.journal.next_known() or self._chosen(mask, n_edges)
            if not bool(smaller.mask.any()) or torch.equal(smaller.mask, mask):
                return
            mask = smaller.mask
            if self._add(mask, lambda each=smaller: each).judged < self.options.target - TOLERANCE:
                return
            n_edges = int(keep * min(n_edges, int(mask.sum())))

    def _judged(self, mask: Mask) -> Round:
        """A circuit that was pruned, judged."""
        values = self.runs.values(mask)
        of_all, *of_halves = (
            faithfulness(values[rows], self.runs.full[rows], self.runs.empty[rows])
            for rows in judged_on(len(values))
        )
        return Round(mask, "pruned", of_all, tuple(of_halves))

    def _shares(self, mask: Mask) -> Float64[Tensor, "writer reader"]:
        """What the metric owes to each edge of a circuit."""
        steps = self.options.steps
        return self.runs.gradients_along(mask, steps, wanted=mask).gradients.where(mask, 0.0)

    def _chosen(self, mask: Mask, n_edges: int) -> Round:
        """The next circuit."""
        shares = self._shares(mask)

        def counting(opposing: float) -> Round:
            kept = select_edges(shares, mask, n_edges, opposing=opposing, gap=self.gap)
            return self._judged(live_mask(self.graph, kept))

        return balanced(counting)

    def _eliminate(self, start: Round) -> tuple[Round, bool]:
        """The circuit less what it can do without; and whether each edge left is needed.

        It stays near to 1, or as near as it was: step by step it would drift to where it is barely
        enough, which elsewhere is not. One that is not enough is left as it is.
        """
        if not self.options.trials or self.options.off(start):
            return start, False
        shares = self._shares(start.mask).abs()
        order = shares.where(start.mask, torch.inf).flatten().argsort(stable=True)
        places = order[: start.n_edges].tolist()
        left = start
        farthest = max(_NEAR, abs(start.judged - 1)) + TOLERANCE
        n_before = len(self.journal.rounds)

        def spared(mask: Mask) -> bool | None:
            nonlocal left
            if len(self.journal.rounds) - n_before >= self.options.trials:
                return None

            def tried() -> Round:
                each = self._judged(mask)
                enough = not self.options.off(each) and abs(each.judged - 1) <= farthest
                return replace(each, how="spared" if enough else "needed")

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


def judged_on(n_pairs: int) -> list[slice]:
    """The pairs that circuits are judged on: all; every other one, and the rest, if not too few."""
    halves = [slice(0, None, 2), slice(1, None, 2)]
    return [slice(None), *(halves if n_pairs >= _FEWEST_HALVED else [])]


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


def balanced(counting: Callable[[float], Round]) -> Round:
    """Of the circuits that count opposing edges more or less, the one nearest to a faithfulness of 1.

    ``OPPOSING`` is tried, then what lies halfway from the nearest to its neighbours, and so on; no
    more once one is near. Of equally near ones the first.
    """
    tried: dict[float, Round] = {}

    def distance(part: float) -> float:
        return abs(tried[part].judged - 1)

    def nearest(parts: Iterable[float]) -> float:
        for part in parts:
            near = any(distance(other) <= _NEAR for other in tried)
            if 0 <= part <= 1 and not near:
                tried[part] = counting(part)
        return min(tried, key=distance)

    part, step = nearest(OPPOSING), OPPOSING[1]
    for _ in range(_HALVINGS):
        step /= 2
        part = nearest((part - step, part + step))
    return tried[part]


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


def faithfulness(
    values: Float64[Tensor, "pair"], full: Float64[Tensor, "pair"], empty: Float64[Tensor, "pair"]
) -> float:
    """(metric(circuit) - metric(no edge)) / (metric(all) - metric(no edge)), means over pairs."""
    return ((values.mean() - empty.mean()) / (full.mean() - empty.mean())).item()


def smallest_enough(rounds: Sequence[Round], options: SearchOptions) -> Round:
    """The smallest circuit that is enough, or that nearest to it.

    Where none is enough on both halves of the pairs, what it is on all of them decides. The next
    larger circuit must not fall short of the target, if there is a choice: on few pairs, some small
    circuit of a path that fell short comes back into it by chance. Of circuits equally small, or
    near, the last.

    Raises:
        InputError: no rounds.
    """
    if not rounds:
        raise InputError("expected at least one circuit to choose from, got none; run the search")
    falling = sorted(rounds, key=lambda one: -one.n_edges)
    supported = [
        one
        for larger, one in zip([falling[0], *falling], falling, strict=False)
        if larger.judged >= options.target - TOLERANCE
    ]
    for off in (options.off, options.off_on_all):
        enough = [one for one in supported if not off(one)]
        if enough:
            return enough[-1]
    return min(reversed(falling), key=options.off_on_all)
