"""The search for a set of edges by running sets: what single edges do does not tell what many do.

Pruning. Beginning with all edges, each round runs the model reduced to the circuit at midpoints of
the line from no edge to the circuit, and takes the gradient of the metric by the mask of every edge
(``mask_gradients``). Averaged over the line it is what the metric owes to each edge of the circuit:
its shares add up to metric(circuit) - metric(no edge). The circuit of the next round is chosen by
these shares, and what lies on no path from ``input`` to ``logits`` goes.

Selection. Edges with positive shares carry the behaviour, those with negative ones oppose it. Of n
edges to keep,

    signed      the largest shares: what opposes goes first, so the circuit overshoots
    magnitude   the largest |shares|, whatever their sign
    adaptive    the largest, where an opposing share counts 0 (signed), 1/2 or 1 (magnitude): the
                least that keeps the circuit's faithfulness at the lower end of the target, or else
                that with the greatest; on the validation pairs where there are any (edges chosen on
                few pairs do more on these than on others)

What overshoots can be pruned further, and what falls short cannot: so the target's upper end counts only
where a circuit is chosen.

Elimination. Of the smallest circuit that the target holds for, groups of edges are taken out, the
least shares first, halves of a group that cannot be spared next, down to single edges.

Gradients are of the search's own pairs. How much opposing edges count and where to stop may be settled
on others (``validation``); what the circuit is worth is for a third set to say. Every circuit on the
way is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from ...edges.effects.mask_gradients import MaskedRuns
from ...edges.effects.reduced import run_edge_sets
from ...edges.effects.reduced_runs import ReducedRuns
from ...edges.errors import InputError
from ...edges.model.transformer import Model
from ...edges.question.metrics import Metric
from ...edges.question.prompts import PromptPairs
from ...edges.runs.masks import full_mask, live_mask

RULES = {"signed": 0.0, "magnitude": 1.0}
"""What an opposing share counts, of one that carries as much."""

SELECTIONS = ("adaptive", *RULES)

_PARTS = (0.0, 0.5, 1.0)
"""What an opposing share may count in adaptive selection."""

_FAR_BELOW = 0.5
"""Pruning ends below this share of the lower end of the target."""

Mask = Bool[Tensor, "reader writer"]


@dataclass(frozen=True)
class SearchOptions:
    """How to search.

    Args:
        target: the least and the greatest faithfulness wanted.
        metric: a name in ``METRICS`` or a function ``(logits, targets) -> [row]``.
        select: one of ``SELECTIONS``.
        steps: midpoints of the line that gradients are averaged over.
        shrink: the share of its edges that a circuit keeps in a round.
        finer: the same, from the smallest circuit that the target holds for on.
        fewest: no round is asked for fewer edges.
        trials: the most runs for elimination; 0 leaves it out.

    Raises:
        InputError: an option that cannot be.
    """

    target: tuple[float, float] = (0.9, 1.1)
    metric: str | Metric = "logit_diff"
    select: str = "adaptive"
    steps: int = 4
    shrink: float = 0.6
    finer: float = 0.85
    fewest: int = 5
    trials: int = 100

    def __post_init__(self) -> None:
        least, greatest = self.target
        if not 0 < least <= greatest:
            raise InputError(
                f"expected a target of two faithfulnesses above 0, the lower first, got {self.target}"
            )
        if self.select not in SELECTIONS:
            raise InputError(
                f"unknown selection {self.select!r}; there are {', '.join(SELECTIONS)}"
            )
        for name in ("shrink", "finer"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(
                    f"expected {name} between 0 and 1, the share of edges that a round keeps, got "
                    f"{getattr(self, name)}"
                )
        for name, least_number in (("steps", 1), ("fewest", 1), ("trials", 0)):
            if getattr(self, name) < least_number:
                raise InputError(
                    f"expected {name} of at least {least_number}, got {getattr(self, name)}"
                )

    def holds(self, faithfulness: float) -> bool:
        """Whether it lies within the target."""
        return self.target[0] <= faithfulness <= self.target[1]


@dataclass(frozen=True, eq=False)
class Round:
    """A circuit on the way down.

    Attributes:
        how: ``pruned`` or ``eliminated``.
        faithfulness: on the pairs of the search.
        validated: on the validation pairs; None without any.
    """

    mask: Mask
    how: str
    faithfulness: float
    validated: float | None = None

    @property
    def n_edges(self) -> int:
        """How many edges it has, all on a path from ``input`` to ``logits``."""
        return int(self.mask.sum())

    @property
    def judged(self) -> float:
        """The faithfulness that the target is held against: on other pairs where there are any."""
        return self.faithfulness if self.validated is None else self.validated


@dataclass
class SearchState:
    """What an interrupted search goes on from; the same state ends in the same result.

    Attributes:
        rounds: the circuits so far.
        trials: what elimination measured so far: whether the circuit can do without each group.
    """

    rounds: list[Round] = field(default_factory=list[Round])
    trials: list[bool] = field(default_factory=list[bool])


@dataclass(frozen=True, eq=False)
class SearchResult:
    """All circuits of a search, and the chosen one.

    Attributes:
        rounds: in the order they were come by.
        chosen: the smallest that the target holds for, or the one nearest to the target.
        reached: whether the target holds for it.
        minimal: whether elimination tried each edge of the last circuit alone, in vain.
        n_gradients, n_runs: forward and backward passes, and forward passes alone, of reduced
            models, over all pairs of the search; the runs over validation pairs are not counted.
    """

    rounds: tuple[Round, ...]
    chosen: Round
    reached: bool
    minimal: bool
    n_gradients: int
    n_runs: int


def search(
    model: Model,
    pairs: PromptPairs,
    validation: PromptPairs | None = None,
    *,
    options: SearchOptions | None = None,
    state: SearchState | None = None,
    save: Callable[[SearchState], Any] | None = None,
) -> SearchResult:
    """Looks for a small circuit whose faithfulness lies within a target. See the module.

    Where no circuit reaches the target, the one nearest to it is chosen.

    Args:
        validation: pairs that settle which circuits the target holds for, and how much opposing
            edges count; None takes ``pairs``.
        state: of a search that was interrupted, with the same arguments; it is gone on with.
        save: called with the state after each round and trial.

    Raises:
        InputError: pairs that the model cannot run, or a metric that is the same on clean and
            corrupted prompts.
        WiremapError: a metric or gradient that is not finite.
    """
    options = options or SearchOptions()
    with ExitStack() as entered:
        runs = entered.enter_context(MaskedRuns(model, pairs, options.metric))
        others = None
        if validation is not None:
            others = entered.enter_context(MaskedRuns(model, validation, options.metric))
        searching = _Search(runs, others, options, state or SearchState(), save)
        return searching.run()


class _Search:
    """One search, from its state on."""

    def __init__(
        self,
        runs: MaskedRuns,
        others: ReducedRuns | None,
        options: SearchOptions,
        state: SearchState,
        save: Callable[[SearchState], Any] | None,
    ) -> None:
        self.runs, self.others, self.options = runs, others, options
        self.state, self._save = state, save
        self.graph = runs.model.graph
        for measured in (runs, others):
            if measured is not None and _gap(measured) == 0:
                raise InputError(
                    "the metric is the same on the clean and on the corrupted prompts, so there is "
                    "nothing to be faithful to; use prompts that differ in the behaviour"
                )
        self._saved = list(state.rounds)
        self._tried = list(state.trials)
        state.rounds, state.trials = [], []

    def run(self) -> SearchResult:
        every = full_mask(self.graph)
        self._note(every, "pruned")
        self._prune(every, self.options.shrink)
        self._prune(self._smallest().mask, self.options.finer)
        minimal = False
        if self.options.trials and self.options.holds(self._smallest().judged):
            minimal = self._eliminate()
        chosen = self._smallest()
        return SearchResult(
            tuple(self.state.rounds),
            chosen,
            self.options.holds(chosen.judged),
            minimal,
            self.runs.n_gradients,
            self.runs.n_runs,
        )

    def _note(self, mask: Mask, how: str) -> Round:
        """Measures a circuit, unless it was before the search was interrupted."""
        if self._saved:
            found = self._saved.pop(0)
        else:
            validated = None if self.others is None else faithfulness(self.others, mask)
            found = Round(mask, how, faithfulness(self.runs, mask), validated)
        self.state.rounds.append(found)
        if self._save is not None and not self._saved:
            self._save(self.state)
        return found

    def _smallest(self) -> Round:
        """The smallest circuit so far that the target holds for, or the nearest to it."""
        return smallest_within(self.state.rounds, self.options.target)

    def _prune(self, mask: Mask, keep: float) -> None:
        """Rounds from a circuit down, until it is small or its faithfulness low."""
        n_edges = int(mask.sum())
        lowest = self.options.target[0] * (_FAR_BELOW if keep == self.options.shrink else 1.0)
        while (n_edges := int(n_edges * keep)) >= self.options.fewest:
            smaller = self._saved[0].mask if self._saved else self._chosen(mask, n_edges)
            if not bool(smaller.any()):
                return
            mask = smaller
            n_edges = min(n_edges, int(mask.sum()))
            if self._note(mask, "pruned").judged < lowest:
                return

    def _shares(self, mask: Mask) -> Float64[Tensor, "reader writer"]:
        """What the metric owes to each edge of a circuit."""
        return self.runs.gradients_along(mask, self.options.steps, wanted=mask).gradients

    def _chosen(self, mask: Mask, n_edges: int) -> Mask:
        """The next circuit."""
        shares, gap = self._shares(mask), _gap(self.runs)

        def keeping(opposing: float) -> Mask:
            kept = select_edges(shares, mask, n_edges, opposing=opposing, gap=gap)
            return live_mask(self.graph, kept)

        if self.options.select in RULES:
            return keeping(RULES[self.options.select])
        judging = self.runs if self.others is None else self.others
        return least_opposing(
            keeping, lambda kept: faithfulness(judging, kept), self.options.target[0]
        )

    def _eliminate(self) -> bool:
        """Takes groups out of the smallest circuit; whether no edge of it can be spared at last."""
        start = self._smallest()
        shares = self._shares(start.mask).abs()
        order = shares.where(start.mask, torch.inf).flatten().argsort(stable=True)
        places = order[: start.n_edges].tolist()

        def holds(mask: Mask) -> bool:
            """On all pairs there are: a circuit may not fit some of them at the cost of others."""
            measured = [self.runs] if self.others is None else [self.runs, self.others]
            return self.options.holds(faithfulness_of_all(measured, mask))

        def tried(mask: Mask) -> bool | None:
            if len(self.state.trials) >= self.options.trials:
                return None
            verdict = self._tried.pop(0) if self._tried else holds(mask)
            self.state.trials.append(verdict)
            if verdict:
                self._note(mask, "eliminated")
            elif self._save is not None and not self._tried:
                self._save(self.state)
            return verdict

        if not holds(start.mask):
            return False
        return eliminate(start.mask, places, tried, lambda mask: live_mask(self.graph, mask))[1]


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
    for part in _PARTS:
        kept = keeping(part)
        if any(torch.equal(kept, other) for _, other in tried):
            continue
        worth = measure(kept)
        if worth >= least:
            return kept
        tried.append((worth, kept))
    return max(tried, key=lambda one: one[0])[1]


def select_edges(
    shares: Float64[Tensor, "reader writer"],
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


def _gap(runs: ReducedRuns) -> float:
    """Mean metric of the clean runs less that of the corrupted ones."""
    return (runs.full.mean() - runs.empty.mean()).item()


def faithfulness(runs: ReducedRuns, mask: Mask) -> float:
    """(metric(circuit) - metric(no edge)) / (metric(all) - metric(no edge)), means over pairs."""
    return ((runs.values(mask).mean() - runs.empty.mean()) / _gap(runs)).item()


def faithfulness_of_all(several: Sequence[ReducedRuns], mask: Mask) -> float:
    """The same over the pairs of several together."""
    moved = sum(float((runs.values(mask) - runs.empty).sum()) for runs in several)
    return moved / sum(float((runs.full - runs.empty).sum()) for runs in several)


def smallest_within(rounds: Sequence[Round], target: tuple[float, float]) -> Round:
    """The smallest circuit whose faithfulness lies within the target, or that nearest to it.

    The next larger circuit must not lie below the target, if there is a choice: on few pairs, some
    small circuit of a path that has left the target comes back into it by chance. Of circuits
    equally small, or near, the last.

    Raises:
        InputError: no rounds.
    """
    if not rounds:
        raise InputError("expected at least one circuit to choose from, got none; run the search")
    least, greatest = target
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


@dataclass(frozen=True)
class Judged:
    """What a circuit is worth on pairs of its own.

    Attributes:
        faithfulness: of the metric; see ``faithfulness``.
        kl_share: 1 - KL(model || circuit) / KL(model || no edge), means over pairs, at the answer.
        accuracy: share of pairs whose most likely token is an answer; ``model_accuracy`` beside.
        values: the metric of the circuit on each pair less that of the corrupted run, in shares of
            the mean gap; their mean is the faithfulness.
    """

    n_edges: int
    faithfulness: float
    kl_share: float
    accuracy: float
    model_accuracy: float
    values: tuple[float, ...]


def judge(
    model: Model,
    pairs: PromptPairs,
    masks: Sequence[Mask],
    metric: str | Metric = "logit_diff",
    *,
    batch_size: int | None = None,
) -> list[Judged]:
    """Faithfulness, share of the divergence and accuracy of circuits, such as of a search's path.

    Raises:
        InputError: as ``run_edge_sets``.
    """
    metrics = [metric, "kl", "accuracy"]
    of_metric, kl, accuracy = run_edge_sets(model, pairs, masks, metrics, batch_size)
    full, empty = of_metric.full.double().mean(), of_metric.empty.double().mean()
    shares = (of_metric.circuit.double() - of_metric.empty.double()) / (full - empty)
    kl_shares = 1 - kl.circuit.double().mean(1) / kl.empty.double().mean()
    return [
        Judged(
            int(mask.sum()),
            shares[row].mean().item(),
            kl_shares[row].item(),
            accuracy.circuit[row].double().mean().item(),
            accuracy.full.double().mean().item(),
            tuple(shares[row].tolist()),
        )
        for row, mask in enumerate(masks)
    ]


def path_data(result: SearchResult, judged: Sequence[Judged]) -> Iterator[dict[str, Any]]:
    """Each circuit of a search as plain data: sizes, and what it is worth on these pairs."""
    for found, worth in zip(result.rounds, judged, strict=True):
        yield {
            "how": found.how,
            "edges": found.n_edges,
            "faithfulness_on_the_search_pairs": found.faithfulness,
            "faithfulness_on_the_validation_pairs": found.validated,
            "faithfulness": worth.faithfulness,
            "kl_share": worth.kl_share,
            "accuracy": worth.accuracy,
            "model_accuracy": worth.model_accuracy,
            "chosen": found is result.chosen,
        }
