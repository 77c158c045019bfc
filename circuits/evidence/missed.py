"""What was missed among edges that were not verified, by a random sample of them that is.

A sample says how many of the others have an effect above some size, never that none has: a single
edge among thousands is in no sample. What can bound the largest is in ``edges.effects.bounds``.

The others stand in the order of their ranking and are parted by it into strata, from each of which
edges are drawn at random without replacement and verified exactly. Where k of the n drawn from N
are above a threshold, at most K of the N are, K being the largest number for which k or fewer is no
rarer than the risk: the hypergeometric inversion of Clopper and Pearson (1934), exact for a finite
population, whatever the scores are worth. The numbers of the strata are added. That all of them
hold, for all thresholds at once, is Bonferroni's inequality.

Of the shares w of the others that the strata are, edges are drawn by sqrt(w), and the risk is split
by sqrt(w): with nothing above a threshold, K/N is about ln(1/risk)/n, and these make the sum least.
Every stratum adds its own K, even if nothing is found in it, so few are best (see ``ENDS``). An
unstratified sample would bound a share that is nearly 0 a little lower still (one K, not two), and
would say less of where large effects are likeliest, as hardly any of the best 1 % were in it.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from ...edges.errors import InputError
from ...edges.names.graph import Edge, ModelGraph
from ...edges.names.vocabulary import CONFIDENCE, SEED
from ...edges.runs.masks import EdgeList, edge_places
from ..record.effects_file import Verified
from ..result.evidence import SampleEvidence, ShareEvidence, StratumEvidence

ENDS = (0.01,)
"""Where the strata end, as shares of the ranking: the best 1 % apart from the rest."""


GAP_SHARES = (0.01, 0.05, 0.1)
"""The thresholds of a report, as shares of the gap between clean and corrupted runs."""


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """How edges that were not verified are sampled.

    Args:
        n_edges: how many are drawn; all, if there are no more.
        thresholds: of |effect|, in units of the metric, fixed before the sample is drawn.
        confidence: of all that is said of all thresholds together.
        seed: of the draw.
        unit: what effects are measured in, in words.
    """

    n_edges: int
    thresholds: Sequence[float]
    confidence: float = CONFIDENCE
    seed: int = SEED
    unit: str = "units of the metric"

    def check(self) -> None:
        """Raises InputError for what no sample can be drawn by."""
        if self.n_edges < 1:
            raise InputError(f"expected a sample of at least 1 edge, got {self.n_edges}")
        if not self.thresholds or not all(0 <= x < math.inf for x in self.thresholds):
            raise InputError(
                f"expected thresholds of |effect|, finite and not below 0, got "
                f"{list(self.thresholds)}; they are in metric units"
            )
        if not 0 < self.confidence < 1:
            raise InputError(
                f"expected a confidence above 0 and below 1, got {self.confidence}; 0.99 stands "
                "for 99 %"
            )


def thresholds_of(gap: float, smallest_kept: float | None = None) -> list[float]:
    """The thresholds of a report: ``GAP_SHARES`` of the gap, and the least |effect| kept, rising.

    Args:
        gap: clean minus corrupted metric.
        smallest_kept: of the circuit's verified edges.
    """
    own = [] if smallest_kept is None else [abs(smallest_kept)]
    return sorted({*own, *(share * abs(gap) for share in GAP_SHARES)})


def sample_missed(
    graph: ModelGraph,
    rest: EdgeList,
    measure: Callable[[Sequence[str]], Sequence[Verified]],
    options: SampleOptions,
) -> SampleEvidence:
    """A random sample of edges, verified exactly, and what it says of all of them.

    Args:
        rest: the edges that were not verified, best score first.
        measure: their exact effects, in the order of the names, such as by ``Verifier.measure``.
            The |effect| counted is that of the mean over the pairs it measures.

    Raises:
        InputError: no edges, options that no sample can be drawn by.
    """
    options.check()
    if not len(rest):
        raise InputError("expected edges that were not verified, got none; nothing was missed")
    places = edge_places(graph, rest)
    strata = strata_of(len(places))
    drawn = draw([len(stratum) for stratum in strata], options.n_edges, options.seed)
    ranks = [stratum[place] for stratum, own in zip(strata, drawn, strict=True) for place in own]
    names = [graph.edge_name(Edge(*ends)) for ends in places[ranks].tolist()]
    measured = list(measure(names))
    effects = iter(abs(edge.effect) for edge in measured)
    # [stratum][edge]
    sizes = [[next(effects) for _ in own] for own in drawn]
    largest = max(measured, key=lambda edge: abs(edge.effect))
    shares = shares_above([len(stratum) for stratum in strata], sizes, options)
    return SampleEvidence(
        n_edges=len(places),
        drawn=len(names),
        n_pairs=len(measured[0].effects),
        confidence=options.confidence,
        seed=options.seed,
        largest=largest.effect,
        largest_edge=largest.name,
        shares=shares,
        strata=tuple(
            StratumEvidence(n_edges=len(stratum), drawn=len(own))
            for stratum, own in zip(strata, drawn, strict=True)
        ),
        statement=statement_of(shares, largest, len(places), len(names), options),
    )


def strata_of(n_edges: int) -> list[range]:
    """The ranks of so many edges, parted at ``ENDS``; those that would be empty are left out."""
    ends = [0, *(round(share * n_edges) for share in ENDS), n_edges]
    return [range(*pair) for pair in pairwise(ends) if pair[0] < pair[1]]


def draw(sizes: Sequence[int], n_edges: int, seed: int) -> list[list[int]]:
    """Which edges of each stratum are drawn, without replacement and in order."""
    rng = random.Random(seed)
    numbers = numbers_of(sizes, n_edges)
    return [
        sorted(rng.sample(range(size), number)) for size, number in zip(sizes, numbers, strict=True)
    ]


def numbers_of(sizes: Sequence[int], n_edges: int) -> list[int]:
    """How many edges to draw from each stratum, by the root of its size; all of one, if need be.

    At least one of each, even if that makes more than ``n_edges``.
    """
    numbers: dict[int, int] = {}
    # The smaller strata come first: what they cannot take is left to the larger ones.
    order = sorted(range(len(sizes)), key=lambda stratum: sizes[stratum])
    for index, stratum in enumerate(order):
        roots = [math.sqrt(sizes[other]) for other in order[index:]]
        left = n_edges - sum(numbers.values())
        numbers[stratum] = min(sizes[stratum], max(1, round(left * roots[0] / sum(roots))))
    return [numbers[stratum] for stratum in range(len(sizes))]


def shares_above(
    sizes: Sequence[int], effects: Sequence[Sequence[float]], options: SampleOptions
) -> tuple[ShareEvidence, ...]:
    """For each threshold, how many of the drawn are above it, and at most what share of all is.

    Args:
        sizes: of the strata.
        effects: |effect| of the edges drawn from each.
    """
    roots = [math.sqrt(size) for size in sizes]
    each = (1 - options.confidence) / len(options.thresholds)
    shares: list[ShareEvidence] = []
    for threshold in options.thresholds:
        above = [sum(effect > threshold for effect in own) for own in effects]
        most = sum(
            most_above(size, len(own), found, each * root / sum(roots))
            for size, own, found, root in zip(sizes, effects, above, roots, strict=True)
        )
        shares.append(ShareEvidence(above=threshold, found=sum(above), share=most / sum(sizes)))
    return tuple(shares)


@lru_cache(maxsize=1 << 12)
def most_above(size: int, drawn: int, above: int, risk: float) -> int:
    """At most so many of ``size`` edges are above a threshold that ``above`` of ``drawn`` are above.

    The largest number for which so few among the drawn have a probability above ``risk``. It is
    below the true number with a probability of at most ``risk``, over the draw.
    """
    from scipy.stats import hypergeom

    def too_many(number: int) -> bool:
        return bool(hypergeom.cdf(above, size, number, drawn) <= risk)

    # Of the others none may be above, or all: size - drawn + above.
    candidates = range(above, size - drawn + above + 1)
    return candidates[0] + bisect_left(candidates, True, key=too_many) - 1


def statement_of(
    shares: Sequence[ShareEvidence],
    largest: Verified,
    n_rest: int,
    n_drawn: int,
    options: SampleOptions,
) -> str:
    """What was shown, in words."""
    lines = ", ".join(
        f"{100 * share.share:.2g} % above {share.above:.3g} ({share.found} of the {n_drawn} drawn)"
        for share in shares
    )
    together = " (all of this at once)" if len(shares) > 1 else ""
    return (
        f"With {100 * options.confidence:.6g} % confidence at most these shares of the {n_rest:,} "
        f"edges that were not verified have an |effect| above so many {options.unit}: {lines}"
        f"{together}. {n_drawn:,} of them, drawn at random, more of those with high scores, were "
        f"verified; the largest effect among these is {largest.effect:+.3g}, of {largest.name}. A "
        "share says nothing of how large the few above it are."
    )
