"""A bound on what was not verified: random subsets of it are patched together.

After the top nodes or edges are verified, subsets of all the others are drawn, each item with
probability p, and patched jointly (Kramar et al., 2024, arXiv 2403.00745, section on diagnostics).
What is bounded is not the effect of an item but its average marginal effect,

    E[effect(S with the item)] - E[effect(S without it)]        S a random subset of the others

over these pairs, in units of the metric. It tends to the item's own effect as p goes to 0, and is
that effect where effects add up. Interactions break this in the unsafe direction: an item that
counts only while others are intact has an average below its effect, and backup heads, each of
which can stand in for the others, have small averages although together they are worth much.

The confidence is that of t intervals: means over the subsets with an item, about n p of n, are
taken as near normal. What two items do only together shows in the subsets that have both, about
n p^2; where those are few or none, the bound knows nothing of it, on average or otherwise. A larger
p shows more of it, at the price of averages further from the effects in the intact model.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress

import torch
from jaxtyping import Bool, Float, Float64
from scipy.special import stdtrit
from torch import Tensor

from ..errors import InputError
from ..model.transformer import Model
from ..names.graph import Edge
from ..names.vocabulary import BOUND_SUBSETS, CONFIDENCE, DIRECTION, METRIC, PROBABILITY, SEED
from ..question.metrics import Metric
from ..question.prompts import PromptPairs
from ..question.question import Question
from ..runs.masks import EdgeList, edge_places, places_mask
from ..runs.sweep import Report, Resources, silent
from .node_effects import NodeEdits, patch_edits
from .reduced import effects_of_sets

Measure = Callable[[Bool[Tensor, "sample item"]], Float[Tensor, "sample"]]
"""Effects of subsets patched jointly, each the mean over pairs."""


# Memberships are turned into doubles, eight times as large, for so many items at a time.
_ITEMS_AT_ONCE = 1 << 14


# Each is a table of all the model's edges.
_SUBSETS_AT_ONCE = 64


PILOT = 8
"""So many subsets tell beforehand about how wide a bound will be."""


_RISK = 0.01
"""How often the number of samples that an error names may still turn out too small."""


@dataclass(frozen=True, eq=False)
class Bound:
    """Upper confidence bounds on the |average marginal effect| of unverified items.

    Attributes:
        names: the unverified items.
        estimates: of each, mean effect of the subsets with it less that of those without.
        bounds: with ``confidence``, no item's |average marginal effect| is above its bound.
        confidence: that all bounds hold at once, over the draw of the subsets.
        probability: with which each subset has each item.
        items, unit: ``nodes`` or ``edges``, and what effects are measured in.
        correction: how the confidence of all was made of the confidence of each.
        which: of the model's items these are, in a word or two.
    """

    names: tuple[str, ...]
    estimates: Float64[Tensor, "item"]
    bounds: Float64[Tensor, "item"]
    confidence: float
    probability: float
    n_samples: int
    items: str = "nodes"
    unit: str = "units of the metric"
    correction: str = "Bonferroni"
    which: str = "unverified"

    @property
    def largest(self) -> float:
        """The largest bound: no item's |average marginal effect| is above it."""
        return float(self.bounds.max())

    def statement(self) -> str:
        """What was shown, with the definition of what it is about."""
        item, items, which = self.items[:-1], self.items, self.which
        article = "an" if item == "edge" else "a"
        return (
            f"With {100 * self.confidence:.6g} % confidence no {which} {item} has |average "
            f"marginal effect| above {self.largest:.3g} {self.unit} ({self.correction} over "
            f"{len(self.names)} {items}). The average marginal effect of {article} {item}, averaged over "
            f"random subsets of the {which} {items} (each drawn with probability "
            f"{self.probability:g}; {self.n_samples} subsets) and over these pairs, is the effect "
            f"of the subset with the {item} less that without it. It tends to the {item}'s own "
            f"effect as the probability goes to 0; interactions, such as backup heads, can make it "
            "smaller than that effect."
        )


@dataclass(frozen=True, kw_only=True)
class BoundOptions:
    """How what was not verified is bounded.

    Args:
        samples: how many random subsets are patched.
        probability: with which each subset has each item: small, to stay near the intact model,
            and such that subsets with an item (samples * probability) are some tens.
        confidence: of all bounds together.
        seed: of the subsets.
        items: ``nodes`` or ``edges``.
    """

    samples: int = BOUND_SUBSETS
    probability: float = PROBABILITY
    confidence: float = CONFIDENCE
    seed: int = SEED
    items: str = "nodes"


def bound_unverified(
    model: Model,
    pairs: PromptPairs,
    names: EdgeList,
    *,
    metric: str | Metric = METRIC,
    direction: str = DIRECTION,
    items: str = "nodes",
    n_samples: int = BOUND_SUBSETS,
    probability: float = PROBABILITY,
    confidence: float = CONFIDENCE,
    seed: int = SEED,
    batch_size: int | None = None,
    progress: Report = silent,
) -> Bound:
    """Bounds the average marginal effects of nodes or edges that were not verified.

    Costs ``n_samples`` edited runs of each pair.

    Args:
        names: all that was not verified, nodes or edges as ``items`` says; edges also by places.
        metric: a name in ``METRICS`` or a function ``(logits, targets) -> [row]``.
        direction: ``noising`` or ``denoising``.
        n_samples, probability, confidence, seed: see ``BoundOptions``.
        batch_size: rows (subsets x pairs) at once; None takes what fits into memory.
        progress: called with (stage, rows finished since the last call, rows in all).

    Raises:
        InputError: no names, a name that is unknown or given twice, unknown options, a confidence
            or probability outside (0, 1), too few samples (the number needed is named).
        WiremapError: an effect that is not finite.
    """
    options = BoundOptions(
        samples=n_samples, probability=probability, confidence=confidence, seed=seed, items=items
    )
    question = Question(pairs=pairs, metric=metric, direction=direction)
    resources = Resources(batch_size=batch_size, report=progress)
    return bound_names(model, question, names, options, resources)


def bound_names(
    model: Model,
    question: Question,
    items: EdgeList,
    options: BoundOptions,
    resources: Resources,
) -> Bound:
    """Bounds the average marginal effects of nodes or edges; see ``bound_unverified``."""
    measure, names, unit = _measured_by(model, question, items, options, resources)
    return bound_effects(measure, names, options, unit)


@dataclass(frozen=True)
class TooWide:
    """Why nothing is bounded: the bound would not be below what it was wanted below.

    Attributes:
        margin: what the bound would at least be about, by its first ``PILOT`` subsets.
        largest: what it was wanted below; both in units of the metric.
    """

    margin: float
    largest: float
    unit: str

    def reason(self) -> str:
        """In words."""
        return (
            f"by its first {PILOT} subsets the bound would be about {self.margin:.3g} {self.unit} or "
            f"more, which is not below {self.largest:.3g}"
        )


def bound_below(
    model: Model,
    question: Question,
    items: EdgeList,
    options: BoundOptions,
    resources: Resources,
    *,
    largest: float,
) -> Bound | TooWide:
    """As ``bound_names``, given up after ``PILOT`` subsets where it would not be below ``largest``.

    Those subsets are the first of the bound's own. That others are not measured then makes no
    bound less sure: one that is not given cannot be wrong. One that is given may be above
    ``largest`` all the same, as the first subsets tell of its width only roughly.
    """
    measure, names, unit = _measured_by(model, question, items, options, resources)
    members = subsets_for_bound(names, options)
    first = measure(members[:PILOT])
    margin = margin_expected(first, len(names), options)
    if not margin < largest:
        return TooWide(margin, largest, unit)

    def others(every: Bool[Tensor, "sample item"]) -> Float[Tensor, "sample"]:
        return torch.cat([first, measure(every[PILOT:])]) if len(every) > PILOT else first

    return bound_effects(others, names, options, unit)


def margin_expected(values: Float[Tensor, "sample"], n_items: int, options: BoundOptions) -> float:
    """About how far bounds will be above |estimate|, by the effects of a few subsets.

    t * s * sqrt(1 / (n p) + 1 / (n (1 - p))), the pooled margin of ``welch_bounds`` with the standard
    deviation s of ``values`` and the expected numbers of subsets with an item and without. The bound
    is that and |estimate|: by chance alone some of n_items estimates are a few standard errors.
    """
    n, p = options.samples, options.probability
    variance = values.double().var().reshape(1)
    tail = (1 - options.confidence) / n_items
    squared_error = variance * (1 / (n * p) + 1 / (n * (1 - p)))
    return float(_margin(squared_error, torch.full((1,), max(n - 2.0, 1.0)).double(), tail))


def _measured_by(
    model: Model,
    question: Question,
    items: EdgeList,
    options: BoundOptions,
    resources: Resources,
) -> tuple[Measure, Sequence[str], str]:
    """What measures subsets of the items, their names, and the unit of their effects."""
    if options.items not in ("nodes", "edges"):
        raise InputError(f"unknown items {options.items!r}; there are nodes, edges")
    names = items
    if isinstance(names, Tensor):
        names = [model.graph.edge_name(Edge(*ends)) for ends in names.tolist()]
    whole = resources.within("bound the rest", options.samples * len(question.pairs))
    unit = question.unit
    if options.items == "nodes":
        return measure_nodes(model, question, names, whole), names, unit
    return measure_edges(model, question, items, whole), names, unit


def measure_nodes(
    model: Model, question: Question, names: Sequence[str], resources: Resources
) -> Measure:
    """What measures subsets of these nodes: see ``patch_nodes``. Raises InputError likewise."""
    NodeEdits.of_names(model, [names]).check_positions(question.pairs)

    def measure(members: Bool[Tensor, "sample item"]) -> Float[Tensor, "sample"]:
        edits = NodeEdits.of_names(model, _named(names, members))
        labels = [f"subset {sample + 1} of the nodes" for sample in range(len(members))]
        effects = patch_edits(model, question, labels, edits, resources)
        return effects.effects.cpu().double().mean(1)

    return measure


def measure_edges(
    model: Model, question: Question, names: EdgeList, resources: Resources
) -> Measure:
    """What measures subsets of these edges: see ``patch_together``. Raises InputError likewise."""
    places = edge_places(model.graph, names)

    def measure(members: Bool[Tensor, "sample item"]) -> Float[Tensor, "sample"]:
        effects: list[Tensor] = []
        for chunk in members.split(_SUBSETS_AT_ONCE):
            sets = [places_mask(model.graph, places[row]) for row in chunk]
            of_chunk = effects_of_sets(model, question, sets, resources)
            effects.append(of_chunk.cpu().double().mean(1))
        return torch.cat(effects)

    return measure


def _named(names: Sequence[str], members: Bool[Tensor, "sample item"]) -> list[list[str]]:
    """The names of each subset's members."""
    return [list(compress(names, row.tolist())) for row in members]


def bound_effects(
    measure: Measure,
    names: Sequence[str],
    options: BoundOptions,
    unit: str = "units of the metric",
) -> Bound:
    """Bounds the average marginal effects of anything whose subsets can be measured.

    Raises:
        InputError: as ``bound_unverified``.
    """
    members = subsets_for_bound(names, options)
    estimates, bounds = welch_bounds(measure(members), members, options.confidence)
    return Bound(
        tuple(names),
        estimates,
        bounds,
        options.confidence,
        options.probability,
        options.samples,
        items=options.items,
        unit=unit,
    )


def subsets_for_bound(names: Sequence[str], options: BoundOptions) -> Bool[Tensor, "sample item"]:
    """The subsets that a bound measures. Raises InputError where no bound can come of them."""
    n_samples, probability, items = options.samples, options.probability, options.items
    if not names:
        raise InputError(
            f"expected the names of the {items} that were not verified, got none; where all were "
            "verified there is nothing to bound"
        )
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise InputError(f"expected each name once, got {', '.join(twice)} again; give it once")
    _check_confidence(options.confidence)
    members = draw_subsets(n_samples, len(names), probability, options.seed)
    rare = _too_rare(members)
    if rare is not None:
        needed = max(samples_needed(len(names), probability), n_samples + 1)
        raise InputError(
            f"expected every one of {len(names)} {items} in at least 2 subsets and outside at "
            f"least 2, got {names[rare]} in {int(members[:, rare].sum())} of {n_samples}; draw "
            f"{needed} samples at probability {probability:g}"
        )
    return members


def draw_subsets(
    n_samples: int, n_items: int, probability: float, seed: int
) -> Bool[Tensor, "sample item"]:
    """Random subsets that have each item with ``probability``, independently (Bernoulli).

    Raises:
        InputError: fewer than 2 samples, a probability outside (0, 1).
    """
    if n_samples < 2:
        raise InputError(f"expected at least 2 samples (random subsets), got {n_samples}")
    if not 0 < probability < 1:
        raise InputError(
            f"expected a probability (of an item to be in a subset) above 0 and below 1, got "
            f"{probability}; 0.03 is usual"
        )
    # Subset by subset, so that the first ones are the same however many are drawn.
    generator = torch.Generator().manual_seed(seed)
    return torch.stack(
        [torch.rand(n_items, generator=generator) < probability for _ in range(n_samples)]
    )


def samples_needed(n_items: int, probability: float) -> int:
    """So many subsets that each item is in two and outside two, but for 1 in 100 draws of them.

    A union bound over the items of the binomial tails.
    """

    def enough(n_samples: int) -> bool:
        # No subset, or one, that has the item (share = probability), or that has it not.
        tails = sum(
            (1 - share) ** n_samples + n_samples * share * (1 - share) ** (n_samples - 1)
            for share in (probability, 1 - probability)
        )
        return n_items * tails <= _RISK

    # Once enough, any more are: a range, of which nothing is written out, can be bisected. It begins
    # with 4, two subsets with the item and two without.
    return 4 + bisect_left(range(4, 1 << 60), True, key=enough)


def enough_samples(n_items: int, probability: float, seed: int = SEED) -> int:
    """So many subsets that a bound can come of those that ``draw_subsets`` then draws."""
    n_samples = samples_needed(n_items, probability)
    while _too_rare(draw_subsets(n_samples, n_items, probability, seed)) is not None:
        n_samples += 1 + n_samples // 10
    return n_samples


def welch_bounds(
    values: Float[Tensor, "sample"], members: Bool[Tensor, "sample item"], confidence: float
) -> tuple[Float64[Tensor, "item"], Float64[Tensor, "item"]]:
    """Each item's difference of means, and upper bounds on its absolute expectation.

    d = mean of the values with the item - mean of those without
    bound = |d| + the larger of two margins t * se, each with its Student t quantile:

        Welch (1947)    se^2 = s_w^2 / n_w + s_o^2 / n_o            Welch-Satterthwaite freedom
        pooled          se^2 = s^2 (1 / n_w + 1 / n_o)              n_w + n_o - 2

    The t quantile is one-sided, at 1 - (1 - confidence) / n_items: Bonferroni over the items. One
    side is enough for an absolute value. For an expectation D >= 0, |D| > |d| + margin implies
    D - d > margin, one tail of d; for D < 0 it implies d - D > margin, the other. D has one sign,
    so only one of the tails can ever be a miss.

    Deviation from the paper: the pooled margin. Few subsets have a given item, and by chance none
    of them may have any of the few other large items: its group then seems to vary too little, and
    Welch's margin alone misses far more often than it should. Without interactions both groups
    vary alike, so what all samples show of it is used where it is more.

    Raises:
        InputError: a confidence outside (0, 1), an item in fewer than two samples or outside
            fewer than two.
    """
    _check_confidence(confidence)
    rare = _too_rare(members)
    if rare is not None:
        raise InputError(
            f"expected every item in at least 2 samples and outside at least 2, got item {rare} "
            f"in {int(members[:, rare].sum())} of {len(members)}; draw more (see samples_needed)"
        )
    # Centred, because squares of values far from 0 would lose what they vary by in the difference.
    centred = values.cpu().double() - values.cpu().double().mean()
    powers = torch.stack([torch.ones_like(centred), centred, centred**2])
    # Number, sum and sum of squares of each item's subsets: [power sample] @ [sample item].
    inside = torch.cat(
        [powers @ part.double() for part in members.cpu().split(_ITEMS_AT_ONCE, dim=1)], dim=1
    )
    groups = torch.stack([inside, powers.sum(1, keepdim=True) - inside])  # with it, without it
    n, total, squares = groups.unbind(1)  # each [group item]
    difference = total[0] / n[0] - total[1] / n[1]
    variation = (squares - total**2 / n).clamp(min=0)  # below 0 by rounding alone
    tail = (1 - confidence) / members.shape[1]
    parts = variation / (n - 1) / n
    # 0 / 0 where nothing varies in either group; the margin is 0 there, whatever the quantile.
    freedom = parts.sum(0) ** 2 / (parts**2 / (n - 1)).sum(0)
    welch = _margin(parts.sum(0), freedom, tail)
    pooled_freedom = n.sum(0) - 2
    pooled = _margin(variation.sum(0) / pooled_freedom * (1 / n).sum(0), pooled_freedom, tail)
    return difference, difference.abs() + torch.maximum(welch, pooled)


def _margin(
    squared_error: Float64[Tensor, "item"], freedom: Float64[Tensor, "item"], tail: float
) -> Float64[Tensor, "item"]:
    """The upper ``tail`` quantile of Student's t times the standard error, 0 where that is 0."""
    quantile = -torch.as_tensor(stdtrit(freedom.numpy(), tail))
    error = squared_error.sqrt()
    return torch.where(error > 0, quantile * error, 0.0)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise InputError(
            f"expected a confidence above 0 and below 1, got {confidence}; 0.99 stands for 99 %"
        )


def _too_rare(members: Bool[Tensor, "sample item"]) -> int | None:
    """The first item that is in fewer than two samples, or outside fewer than two."""
    n_with = members.sum(0)
    rare = ((n_with < 2) | (n_with > len(members) - 2)).nonzero().flatten().tolist()
    return rare[0] if rare else None
