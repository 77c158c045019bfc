"""Faithfulness against edges: ways to choose a set of edges, each at the same sizes, and their cost.

    python benchmarks/frontier.py [--stories DIR] [--smollm2 DIR] [--only TEXT]

Of ``edges_needed.py`` are the models, the pairs to choose on and the held-out pairs to judge on.
Ways that only rank edges keep the best of a ranking at every size:

- EAP-IG (Hanna et al., 2024, arXiv 2403.17806), 5 steps, signed or by magnitude;
- the same of consistent edges alone: those whose score has one sign in 95 % of 1,000 resamples of
  the pairs (after Nikankin et al., 2025, arXiv 2510.25786; the rest comes last);
- mask gradients, averaged along the line from no edge to all: one shot, balanced;
- learned masks (after Bhaskar et al., 2024, arXiv 2406.16778, and Li and Janson, 2024, arXiv
  2406.09357, but with sigmoids instead of random hard-concrete masks): a sigmoid for every edge, Adam,
  the divergence of the circuit from the model, or its squared gap in the metric, plus a penalty on
  the sum of masks that rises linearly; edges rank by their masks at the end.

Ways that prune go from size to size, each a share of the one before, by gradients anew: signed
(what opposes goes first), by magnitude, or balanced, as wiremap's search does; or *regrown*: balanced,
but chosen from all edges, those that went before as well.

*Balanced* is that opposing edges count the part of their share that brings the circuit nearest to a
faithfulness of 1 on the pairs it is chosen on. A gradient counts 3 passes, a run 1; each is over all
pairs.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import edges_needed
import torch
from edges_needed import Case
from measure import write_section
from torch import Tensor

from wiremap.circuits.choice.search import balanced, faithfulness, select_edges
from wiremap.circuits.record.search_file import Round
from wiremap.edges import score_edges
from wiremap.edges.effects.mask_gradients import MaskedRuns
from wiremap.edges.effects.reduced_runs import ReducedRuns
from wiremap.edges.errors import InputError
from wiremap.edges.names.vocabulary import METRIC
from wiremap.edges.question.metrics import Metric, Targets, logit_diff
from wiremap.edges.question.question import Question
from wiremap.edges.runs.masks import full_mask, live_mask
from wiremap.edges.runs.sweep import Resources

KEEP = 0.6
FEWEST = 10
MOST = 4_000
STEPS = 4
GRADIENT = 3
RESAMPLES = 1_000
CONSISTENT = 0.95
LEARNING_STEPS = 60
LEARNING_RATE = 0.2
START = 2.0
PENALTY = 2.0
"""At the end, of a mask of all edges, in units of what the loss is without any edge."""
WINDOW = edges_needed.WINDOW


@dataclass(frozen=True)
class Way:
    """A way to choose: circuits of falling size.

    Attributes:
        passes: over all pairs, by the last of them.
    """

    name: str
    circuits: list[Tensor]
    passes: int


class Choosing:
    """All that the ways share of one case."""

    def __init__(self, case: Case) -> None:
        self.case, self.graph = case, case.model.graph
        self.question = Question(pairs=case.pairs)
        self.every = full_mask(self.graph)
        first = min(MOST, int(KEEP * self.graph.n_edges))
        n_sizes = 1 + int(math.log(first / FEWEST) / -math.log(KEEP))
        self.sizes = [int(first * KEEP**step) for step in range(n_sizes)]

    def runs(self, metric: str | Metric = METRIC) -> MaskedRuns:
        return MaskedRuns(self.case.model, self.question.about(metric=metric), Resources())

    # ---- rankings

    def ranked(self) -> Iterator[Way]:
        """EAP-IG, plain and of consistent edges."""
        scored = score_edges(
            self.case.model, self.case.pairs, gradient="integrated", steps=5, per_pair=True
        )
        scores = scored.scores.double()
        if scored.per_pair is None:
            raise InputError("expected scores of each pair")
        consistent = self._consistent(scored.per_pair.double())
        passes = 2 + 5 * GRADIENT
        for what, values in (
            ("signed", scores),
            ("magnitude", scores.abs()),
            ("consistent, signed", scores.where(consistent, -scores.abs())),
            ("consistent, magnitude", scores.abs().where(consistent, 0.0)),
        ):
            yield Way(f"EAP-IG, {what}", self._cuts(values), passes)

    def _consistent(self, per_pair: Tensor) -> Tensor:
        """Edges whose score has one sign in most resamples of the pairs."""
        generator = torch.Generator().manual_seed(0)
        n_pairs = len(per_pair)
        positive = torch.zeros(self.every.shape)
        flat = per_pair.nan_to_num().view(n_pairs, -1)
        for _ in range(RESAMPLES):
            drawn = torch.randint(n_pairs, (n_pairs,), generator=generator)
            counts = torch.bincount(drawn, minlength=n_pairs).double()
            positive += (counts @ flat > 0).view(self.every.shape)
        share = positive / RESAMPLES
        return (share >= CONSISTENT) | (share <= 1 - CONSISTENT)

    def _cuts(self, ranking: Tensor) -> list[Tensor]:
        """The best edges of every size that are on paths."""
        return [
            live_mask(self.graph, select_edges(ranking, self.every, size, opposing=0.0))
            for size in self.sizes
        ]

    # ---- gradients by masks

    def one_shot(self) -> Way:
        """Mask gradients at all edges."""
        with self.runs() as runs:
            shares = runs.gradients_along(self.every, STEPS).gradients
            circuits = [self._balanced(runs, shares, self.every, size) for size in self.sizes]
            return Way("mask gradients, one shot, balanced", circuits, self._passes(runs))

    def pruned(self, how: str) -> Way:
        """From size to size."""
        with self.runs() as runs:
            mask, circuits = self.every, list[Tensor]()
            for size in self.sizes:
                among = self.every if how == "regrown" else mask
                shares = runs.gradients_along(mask, STEPS, wanted=among).gradients
                if how in ("balanced", "regrown"):
                    mask = self._balanced(runs, shares.where(among, 0.0), among, size)
                else:
                    opposing = 1.0 if how == "magnitude" else 0.0
                    kept = select_edges(shares, mask, size, opposing=opposing, gap=_gap(runs))
                    mask = live_mask(self.graph, kept)
                circuits.append(mask)
            return Way(f"mask gradients, iterated, {how}", circuits, self._passes(runs))

    def _balanced(self, runs: MaskedRuns, shares: Tensor, mask: Tensor, size: int) -> Tensor:
        def counting(opposing: float) -> Round:
            kept = select_edges(shares, mask, size, opposing=opposing, gap=_gap(runs))
            left = live_mask(self.graph, kept)
            return Round(left, "pruned", faithfulness(runs.values(left), runs.full, runs.empty))

        return balanced(counting).mask

    def _passes(self, runs: MaskedRuns) -> int:
        return 2 + runs.n_runs + GRADIENT * runs.n_gradients

    # ---- learned masks

    def learned(self, name: str, metric: str | Metric) -> Way:
        """Edges ranked by masks that were learned."""
        with self.runs(metric) as runs:
            # Both metrics are losses with their signs turned: 0 for all edges.
            scale = (runs.full.mean() - runs.empty.mean()).item()
            logits = torch.full(self.every.shape, START, dtype=torch.float64)
            logits.requires_grad_()
            adam = torch.optim.Adam([logits], lr=LEARNING_RATE)
            for step in range(LEARNING_STEPS):
                mask = logits.detach().sigmoid() * self.every
                loss = -runs.gradients(mask.float()).gradients / scale
                penalty = PENALTY * (step + 1) / LEARNING_STEPS / self.graph.n_edges
                logits.grad = (loss + penalty) * mask * (1 - mask)
                adam.step()
            ranking = logits.detach()
            passes = self._passes(runs)
        return Way(f"learned masks, {name}", self._cuts(ranking), passes)


def squared_gap(logits: Tensor, targets: Targets) -> Tensor:
    """Minus the squared distance of the logit difference from the clean run's."""
    return -((logit_diff(logits, targets) - logit_diff(targets.clean_logits, targets)) ** 2)


def _gap(runs: ReducedRuns) -> float:
    return (runs.full.mean() - runs.empty.mean()).item()


# ---- what is said


def measured(case: Case) -> Iterator[tuple[Way, list[tuple[int, float]]]]:
    """All ways, and the edges and held-out faithfulness of their circuits."""
    choosing = Choosing(case)
    question = Question(pairs=case.held_out)
    with ReducedRuns(case.model, question, Resources()) as runs:
        for way in _ways(choosing):
            yield (
                way,
                [
                    (int(mask.sum()), faithfulness(runs.values(mask), runs.full, runs.empty))
                    for mask in way.circuits
                ],
            )


def _ways(choosing: Choosing) -> Iterator[Way]:
    yield from choosing.ranked()
    yield choosing.one_shot()
    for how in ("signed", "magnitude", "balanced", "regrown"):
        yield choosing.pruned(how)
    yield choosing.learned("divergence", "kl")
    yield choosing.learned("squared gap", squared_gap)


def table(case: Case) -> Iterator[str]:
    """Lines of Markdown, each printed as it comes."""
    sizes = Choosing(case).sizes
    yield f"### {case.name}, {len(case.pairs)} pairs, {len(case.held_out)} held out\n"
    yield f"| of {case.model.graph.n_edges:,} edges | {' | '.join(f'{size:,}' for size in sizes)} | needed | passes |"
    yield "|" + "---|" * (len(sizes) + 3)
    for way, points in measured(case):
        cells = [f"{worth:.2f}" for _, worth in points]
        yield f"| {way.name} | {' | '.join(cells)} | {_needed(points)} | {way.passes} |"
    yield ""


def _needed(points: Sequence[tuple[int, float]]) -> str:
    """The smallest within the window whose next larger is not below it."""
    rising = (edges_needed.Circuit(*point) for point in reversed(points))
    circuit = edges_needed.smallest(rising)
    return f"> {points[0][0]:,}" if circuit is None else f"{circuit.n_edges:,}"


def main() -> None:
    """Prints all tables and writes them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stories", type=Path, help="a model with pairs.jsonl")
    parser.add_argument("--smollm2", type=Path, help="adds agreement of SmolLM2")
    parser.add_argument(
        "--only", default="", help="cases with this text in their name; not written"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines: list[str] = []
    for name, case in _cases(options.stories, options.smollm2).items():
        if options.only not in name:
            continue
        try:
            for line in table(case()):
                print(line, flush=True)
                lines.append(line)
        except InputError as error:
            sys.exit(f"{name}: {error}")
    if options.only:
        return
    newline = "\n"
    write_section(
        "Ways to choose a set of edges",
        torch.device("cpu"),
        f"""
Faithfulness on held-out pairs of the circuits of each size (asked for; what is on no path is not
kept), in units of the model's; *needed* are the edges at which it is within {WINDOW[0]:g} to {WINDOW[1]:g}, chosen in
hindsight; passes over the pairs to choose on, for all sizes. The ways: benchmarks/frontier.py.

{newline.join(lines)}
""",
    )


def _cases(stories: Path | None, smollm2: Path | None) -> dict[str, Callable[[], Case]]:
    cases = edges_needed.bundled_cases()
    if stories:
        cases[f"{stories.name} pairs.jsonl"] = lambda: edges_needed.stories_case(stories)
    if smollm2:
        name = "SmolLM2 agreement"
        cases[name] = lambda: edges_needed.task_case(name, str(smollm2), "agreement", None)
    return cases


if __name__ == "__main__":
    main()
