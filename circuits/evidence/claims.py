"""Tests of what a circuit claims: it does what the model does, alone does it, and needs every edge.

The three idealized tests of Shi et al. (2024, "Hypothesis Testing the Circuit Hypothesis in LLMs",
arXiv 2410.13032), and a comparison with random circuits. The null hypothesis of the first three is
that the circuit is as claimed, so a small p speaks **against** it and a large p proves nothing: few
pairs leave every circuit standing. The null of the last is that it is no better than chance, so
there a small p speaks for it.

s is the metric on a pair, M the model, C the circuit: the model reduced to its edges, all others
patched with the corrupted run.

Deviations from the paper throughout: values patched in come from each pair's corrupted run; edges
are those of this package, keys, queries and values apart.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64
from scipy.special import bdtr, bdtrc
from torch import Tensor

from ...edges.effects.reduced import values_of_sets
from ...edges.errors import InputError
from ...edges.model.transformer import Model
from ...edges.names.graph import ModelGraph
from ...edges.names.vocabulary import METRIC, SEED
from ...edges.question.metrics import Metric
from ...edges.question.prompts import PromptPairs
from ...edges.question.question import Question
from ...edges.runs.masks import edge_places, full_mask, live_mask, places_mask
from ...edges.runs.sweep import Report, Resources, silent
from .faithfulness import check_gap
from .random_circuits import random_circuit, random_paths

# Of the metric's gap: two values so close are a tie.
_ROUNDING = 1e-4


# Random paths in a row that add nothing to a circuit, before it counts as too large.
_FRUITLESS = 1000


# How far sums of the same terms may be apart when these come in another order.
_CLOSE = 1e-12


@dataclass(frozen=True)
class HypothesisTest:
    """The outcome of a test.

    Attributes:
        null: the hypothesis tested, in words.
        small_p: what a small p-value means, in words.
        n: how many observations the p-value rests on: pairs, or random circuits.
        details: further figures, as plain data.
    """

    name: str
    statistic: float
    p_value: float
    n: int
    null: str
    small_p: str
    details: dict[str, Any] = field(default_factory=dict[str, Any])

    def as_document(self) -> dict[str, Any]:
        """The outcome as plain JSON data."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class ClaimOptions:
    """How a circuit's claims are tested; see ``run_tests``."""

    n_random: int = 100
    n_permutations: int = 1000
    margin: float = 0.1
    quantile: float = 0.9
    seed: int = SEED


def run_tests(
    model: Model,
    pairs: PromptPairs,
    edges: Collection[str],
    *,
    metric: str | Metric = METRIC,
    n_random: int = 100,
    n_permutations: int = 1000,
    margin: float = 0.1,
    quantile: float = 0.9,
    seed: int = SEED,
    batch_size: int | None = None,
    progress: Report = silent,
) -> list[HypothesisTest]:
    """All four tests of a circuit: equivalence, independence, minimality, against random circuits.

    All share the clean and the corrupted runs; there are about ``3 * n_random`` reduced runs of
    each pair, and one for each edge.

    Args:
        edges: of the circuit. Those on no path of them from ``input`` to ``logits`` count for
            nothing in the size of random circuits, and are tested as the others for minimality.
        n_random: random edges to compare each edge with, and random circuits to compare with.
        n_permutations: of the independence test.
        margin: of the equivalence test.
        quantile: of the minimality test.
        seed: of all draws.

    Raises:
        InputError: no edge on a path from input to logits, all edges of the model, a single pair,
            options out of range, the metric the same with and without all edges. Else as
            ``run_edge_sets``.
    """
    question = Question(pairs=pairs, metric=metric)
    options = ClaimOptions(
        n_random=n_random,
        n_permutations=n_permutations,
        margin=margin,
        quantile=quantile,
        seed=seed,
    )
    resources = Resources(batch_size=batch_size, report=progress)
    return tests_of(model, question, edges, options, resources)


def tests_of(
    model: Model,
    question: Question,
    edges: Collection[str],
    options: ClaimOptions,
    resources: Resources,
) -> list[HypothesisTest]:
    """All four tests of a circuit; see ``run_tests``."""
    graph, n_pairs, n_random = model.graph, len(question.pairs), options.n_random
    names = graph.in_order(edges)
    places = edge_places(graph, names)
    circuit = places_mask(graph, places)
    n_live = int(live_mask(graph, circuit).sum())
    if n_live == 0:
        raise InputError(
            "expected a circuit with a path from input to logits to test, got none; keep more edges"
        )
    if n_pairs < 2:
        raise InputError(f"expected at least 2 pairs to test on, got {n_pairs}; give more")
    if n_random < 1:
        raise InputError(f"expected at least 1 random circuit to compare with, got {n_random}")
    rng = random.Random(f"hypothesis tests {options.seed}")
    # One sweep for all four tests. Its sets are [circuit, rest of the model, without each edge,
    # 2 for each random path, random circuits]; values are taken apart in this order.
    without = [circuit & ~places_mask(graph, place[None]) for place in places]
    inflated = _inflated(graph, circuit, n_random, rng)
    drawn = [places_mask(graph, random_circuit(graph, n_live, rng)) for _ in range(n_random)]
    sets = [
        circuit,
        full_mask(graph) & ~circuit,
        *without,
        *(mask for both in inflated for mask in both),
        *drawn,
    ]
    (measured,) = values_of_sets(model, [question], sets, resources)
    full, empty = measured.full.cpu().double(), measured.empty.cpu().double()
    check_gap(full.mean().item(), empty.mean().item())
    # [set pair]
    values = measured.circuit.cpu().double()
    alone, complement, rest = values[0], values[1], values[2:]
    without_each, rest = rest[: len(names)], rest[len(names) :]
    # [2 * draw, pair] -> [draw, 2, pair]: a circuit with a path, then that less an edge.
    with_path, less_edge = rest[: 2 * n_random].unflatten(0, (n_random, 2)).unbind(1)
    gap = full.mean() - empty.mean()
    # [set pair] -> [set]; of the circuit first, of the random circuits last.
    faithfulness = (values.mean(1) - empty.mean()) / gap
    return [
        equivalence(alone, full, options.margin, tie=_ROUNDING * abs(float(gap))),
        independence(complement, full, options.n_permutations, options.seed),
        minimality(
            names,
            (alone - without_each).abs().mean(1),
            (with_path - less_edge).abs().mean(1),
            options.quantile,
        ),
        against_random(float(faithfulness[0]), faithfulness[-n_random:]),
    ]


def equivalence(
    circuit: Float64[Tensor, "pair"],
    model: Float64[Tensor, "pair"],
    margin: float = 0.1,
    tie: float = 0.0,
) -> HypothesisTest:
    """Is the circuit above the model on about half of the pairs?

    H0: |P(s(C) > s(M)) - 1/2| <= margin. The statistic is |k / n - 1/2|, k of n pairs being those
    where the circuit is above; p = P(|K / n - 1/2| >= statistic) for K ~ Binomial(n, 1/2 + margin),
    the least favourable case of H0 (a sign test with a margin). It asks for the sign alone: a
    circuit may pass that is far above and far below in turn.

    Deviations from Shi et al.: pairs on which the two differ by no more than ``tie`` say nothing of
    the sign and are left out of n; where all do, p is 1. ``run_tests`` takes 1e-4 of the metric's
    gap for ``tie``, since a circuit that is the model differs from it by rounding.

    Args:
        circuit, model: the metric on each pair.
        margin: from 0 up to, not including, 1/2; the paper's is 0.1.

    Raises:
        InputError: a margin out of range.
    """
    if not 0 <= margin < 0.5:
        raise InputError(f"expected a margin from 0 to below 0.5, got {margin}")
    difference = circuit - model
    above, below = int((difference > tie).sum()), int((difference < -tie).sum())
    n, fewer = above + below, min(above, below)
    p_value = 1.0
    # At an even split the two tails meet and p is 1. Else p = P(K <= fewer) + P(K >= n - fewer);
    # a share of 1/2 - margin would only swap the two.
    if 2 * fewer < n:
        share = 0.5 + margin
        p_value = float(bdtr(fewer, n, share) + bdtrc(n - fewer - 1, n, share))
    return HypothesisTest(
        "equivalence",
        abs(above / n - 0.5) if n else 0.0,
        min(p_value, 1.0),
        n,
        f"the circuit is above the model on 1/2 of the pairs, give or take {margin:g}",
        "the circuit is systematically above or below the model",
        {"above": above, "below": below, "ties": len(circuit) - n, "margin": margin},
    )


def independence(
    complement: Float64[Tensor, "pair"],
    model: Float64[Tensor, "pair"],
    n_permutations: int = 1000,
    seed: int = SEED,
) -> HypothesisTest:
    """Does what the rest of the model does without the circuit still follow what the model does?

    H0: s(rest) and s(M) are independent over pairs, the rest being the model reduced to the edges
    outside the circuit. The statistic is HSIC (Gretton et al., 2007), biased estimate
    tr(K H L H) / (n - 1)^2, with Gaussian kernels; p = (1 + number of permutations of the pairs
    with an HSIC as large) / (1 + number of permutations).

    Deviations from Shi et al.: each kernel's width is the median distance of its own values, where
    their software takes one for both; the 1 in the p-value, so that it is never 0. Where either
    does not vary at all, p is 1.

    Raises:
        InputError: fewer than 1 permutation.
    """
    if n_permutations < 1:
        raise InputError(f"expected at least 1 permutation, got {n_permutations}")
    n = len(model)
    # tr(K H L H) is the sum over entries of (H K H) * L, since H K H and L are symmetric: one
    # of the kernels is centred, once, and the other only permuted.
    centred, kernel = _centred(_kernel(complement)), _kernel(model)
    scale = (n - 1) ** 2
    observed = float((centred * kernel).sum()) / scale
    generator = torch.Generator().manual_seed(seed)
    as_large = 0
    for _ in range(n_permutations):
        order = torch.randperm(n, generator=generator)
        # Rows and columns alike: [pair pair] of the same pairs in another order.
        permuted = float((centred * kernel[order][:, order]).sum()) / scale
        as_large += permuted >= observed - _CLOSE
    return HypothesisTest(
        "independence",
        observed,
        (1 + as_large) / (1 + n_permutations),
        n,
        "without the circuit, what the model does on a pair is independent of what it did with it",
        "what is outside the circuit still takes part in the behaviour",
        {
            "permutations": n_permutations,
            "correlation": _correlation(complement, model),
            "mean_without_circuit": complement.mean().item(),
        },
    )


def minimality(
    names: Sequence[str],
    effects: Float64[Tensor, "edge"],
    random_effects: Float64[Tensor, "draw"],
    quantile: float = 0.9,
) -> HypothesisTest:
    """Does each edge matter more than a random edge of a circuit with something added?

    For every edge, H0: P(effect of the edge > effect of a random edge) >= ``quantile``. An edge's
    effect is the mean over pairs of |s(C) - s(C without the edge)|. A random edge is one of a
    random path from ``input`` to ``logits`` that was added to the circuit, outside it, and its
    effect that of knocking it out of that inflated circuit. p = P(K <= number of random effects
    below the edge's) for K ~ Binomial(number drawn, quantile). The p-value of the whole is the
    smallest over edges times their number (Bonferroni); the statistic the smallest share of random
    edges that an edge is above.

    Deviations from Shi et al.: |difference|, which their software squares; equal effects count as
    not above.

    Args:
        effects: of the circuit's edges.
        random_effects: of random edges of inflated circuits.

    Raises:
        InputError: a quantile outside (0, 1).
    """
    if not 0 < quantile < 1:
        raise InputError(f"expected a quantile between 0 and 1, got {quantile}")
    n_drawn = len(random_effects)
    # [edge 1] > [draw] -> [edge draw] -> [edge]
    above = (effects[:, None] > random_effects).sum(1)
    p_values = [float(bdtr(count, n_drawn, quantile)) for count in above.tolist()]
    adjusted = [min(1.0, p_value * len(names)) for p_value in p_values]
    of_edges = [
        {
            "edge": name,
            "effect": effect,
            "share_above": count / n_drawn,
            "p_value": p,
            "adjusted": q,
        }
        for name, effect, count, p, q in zip(
            names, effects.tolist(), above.tolist(), p_values, adjusted, strict=True
        )
    ]
    return HypothesisTest(
        "minimality",
        int(above.min()) / n_drawn,
        min(adjusted),
        n_drawn,
        f"every edge matters more than {quantile:g} of random edges would",
        "some edges matter no more than random ones: the circuit is not minimal",
        {
            "quantile": quantile,
            "correction": "Bonferroni",
            "edges": sorted(of_edges, key=lambda one: one["p_value"]),
            "random_effects_mean": random_effects.mean().item(),
        },
    )


def against_random(
    faithfulness: float, random_faithfulness: Float64[Tensor, "draw"]
) -> HypothesisTest:
    """Is the circuit more faithful than circuits of random paths, of as many edges?

    A random circuit is as faithful or more where |1 - f| is no larger. The statistic is the share
    of those; p = (1 + their number) / (1 + number drawn), the p-value of H0 that the circuit was
    drawn as they were. In the spirit of the sufficiency test of Shi et al., which asks whether a
    given quantile of random circuits is beaten.
    """
    distances = (1 - random_faithfulness).abs()
    as_good = int((distances <= abs(1 - faithfulness)).sum())
    n_drawn = len(distances)
    return HypothesisTest(
        "against random circuits",
        as_good / n_drawn,
        (1 + as_good) / (1 + n_drawn),
        n_drawn,
        "the circuit is as any of random paths with as many edges",
        "the circuit is more faithful than random ones",
        {
            "faithfulness": faithfulness,
            "random_faithfulness": random_faithfulness.tolist(),
        },
    )


def _inflated(
    graph: ModelGraph, circuit: Bool[Tensor, "writer reader"], n_draws: int, rng: random.Random
) -> list[tuple[Bool[Tensor, "writer reader"], Bool[Tensor, "writer reader"]]]:
    """The circuit with a random path added, and that less one of the edges added; each time anew."""
    inflated: list[tuple[Tensor, Tensor]] = []
    fruitless = 0
    for path in random_paths(graph, rng):
        # What the circuit has already is no random edge; a path wholly inside is drawn again.
        added = [edge for edge in path if not circuit[edge]]
        fruitless = 0 if added else fruitless + 1
        if fruitless == _FRUITLESS:
            raise InputError(
                "expected a circuit that leaves edges of the model out, so that random ones can be "
                "added to it; this one has all, or nearly; keep fewer"
            )
        if added:
            larger, less = circuit | places_mask(graph, added), rng.choice(added)
            inflated.append((larger, larger & ~places_mask(graph, [less])))
        if len(inflated) == n_draws:
            break
    return inflated


def _kernel(values: Float64[Tensor, "pair"]) -> Float64[Tensor, "pair pair"]:
    """Gaussian kernel, as wide as the median distance of two different values."""
    distances = (values[:, None] - values).abs()
    # Without the zeros of equal values, which could make the median 0: a width to divide by.
    apart = distances[distances > 0]
    if not len(apart):
        # All values are the same; centred, this kernel is 0, and so is HSIC: p is 1.
        return torch.ones_like(distances)
    return (-(distances**2) / (2 * apart.median() ** 2)).exp()


def _centred(kernel: Float64[Tensor, "pair pair"]) -> Float64[Tensor, "pair pair"]:
    """H K H, H taking off the mean."""
    return kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean()


def _correlation(one: Float[Tensor, "pair"], other: Float[Tensor, "pair"]) -> float | None:
    """Pearson's; None where either does not vary."""
    correlation = float(torch.corrcoef(torch.stack([one, other]))[0, 1])
    return None if math.isnan(correlation) else correlation
