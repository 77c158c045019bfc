"""The search for a small circuit beside ACDC: how many edges, how faithful, how long.

    python benchmarks/pruning.py [--only TEXT]

On every bundled model and task (but one: tasks-mini induction), 16 pairs. All circuits are sought
and evaluated on the same pairs. Seconds are the processor's, of one thread (so that other load does
not count), and whole: for the target search, and the rules by effect and size, they include scoring
all edges and verifying the best 200; for ACDC, the corrupted run. ACDC (Conmy et al., 2023, arXiv
2304.14997; ``circuits/choice/acdc.py``) is swept over eight values of tau, and the best is the one with
the fewest edges that reaches the target, chosen in hindsight. Each of its trials is a run of its
own, as in the paper; the target search counts the same kind of runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from measure import write_section

from wiremap.circuits import load_task, verify
from wiremap.circuits.choice.acdc import prune_by_acdc
from wiremap.circuits.choice.pruning import Pruned, prune_by_effect, prune_to_size, prune_to_target
from wiremap.circuits.discovery import candidates_of
from wiremap.circuits.result.circuit import CircuitEdge
from wiremap.circuits.tasks.builtin import usual_metric
from wiremap.circuits.zoo import RECIPES
from wiremap.edges import EdgeScores, Model, PromptPairs, score_edges
from wiremap.edges.effects.reduced_runs import ReducedRuns
from wiremap.edges.question.question import Question
from wiremap.edges.runs.masks import EdgeSet, as_mask, places_mask
from wiremap.edges.runs.sweep import Resources, check_pairs
from wiremap.edges.scores.rules.registry import recommended_gradient

N_PAIRS = 16
BUDGET = 200
TARGET = 0.9
SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1)
"""tau for the task's metric, of the gap between the clean and the corrupted run."""
NATS = (0.0001, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""tau for the divergence."""
LEFT_OUT = "tasks-mini induction"


@dataclass(frozen=True)
class Found:
    """A circuit and what it took; ``seconds`` of a sweep are those of all its values."""

    how: str
    n_edges: int
    faithfulness: float
    seconds: float
    one: float
    """Seconds of the value chosen alone."""
    n_runs: int


class Bench:
    """A model and task: methods of finding a circuit, each timed from its beginning."""

    def __init__(self, model: Model, pairs: PromptPairs) -> None:
        self.model, self.pairs = model, pairs
        self.metric = usual_metric(pairs)
        check_pairs(model, pairs)  # once per model; not part of any method
        with ReducedRuns(model, Question(pairs=pairs, metric=self.metric), Resources()) as runs:
            self.full, self.empty = runs.full.mean().item(), runs.empty.mean().item()
        nothing = torch.zeros(len(model.graph.writers), len(model.graph.readers))
        unscored = EdgeScores(model.graph, nothing)
        self.every = candidates_of(unscored, unscored.ranking()[0])

    def faithfulness(self, runs: ReducedRuns, edges: EdgeSet) -> float:
        return (runs.values(as_mask(self.model.graph, edges)).mean().item() - self.empty) / (
            self.full - self.empty
        )

    def measured(self) -> list[CircuitEdge]:
        """All edges scored, the best verified, as ``discover`` does it."""
        gradient = recommended_gradient(self.metric)
        scores = score_edges(self.model, self.pairs, metric=self.metric, gradient=gradient)
        best = [name for name, _ in scores.top(BUDGET)]
        verified = verify(self.model, self.pairs, best, metric=self.metric)
        return candidates_of(scores, scores.ranking()[0], verified)

    def timed(self, how: str, find: Callable[[ReducedRuns], Pruned], metric: str) -> Found:
        start = time.process_time()
        with ReducedRuns(
            self.model, Question(pairs=self.pairs, metric=metric), Resources()
        ) as runs:
            pruned = find(runs)
        seconds = time.process_time() - start
        with ReducedRuns(
            self.model, Question(pairs=self.pairs, metric=self.metric), Resources()
        ) as task:
            reached = self.faithfulness(task, [edge.name for edge in pruned.kept])
        return Found(how, len(pruned.kept), reached, seconds, seconds, runs.n_runs)

    def target(self) -> Found:
        def find(runs: ReducedRuns) -> Pruned:
            return prune_to_target(
                self.model.graph,
                self.measured(),
                TARGET,
                lambda edges: self.faithfulness(runs, places_mask(self.model.graph, edges)),
            )

        return self.timed("target search", find, self.metric)

    def simple(self, n_edges: int) -> list[Found]:
        """Threshold at the largest effect, and greedily at the least size, that reach the target.

        What is measured is measured once for all values.
        """
        graph, gap = self.model.graph, self.full - self.empty
        start = time.process_time()
        edges = self.measured()
        seconds = time.process_time() - start
        sizes = [max(1, round(share * n_edges)) for share in (0.5, 1, 1.5, 2, 3, 4, 6, 8)]
        shares = (0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
        swept = {
            "threshold": [
                self.timed(
                    f"threshold {share * gap:.2g}",
                    lambda _, share=share: prune_by_effect(graph, edges, share * gap),
                    self.metric,
                )
                for share in shares
            ],
            "greedy": [
                self.timed(
                    f"greedy, {size} edges",
                    lambda _, size=size: prune_to_size(graph, edges, size, "greedy"),
                    self.metric,
                )
                for size in sizes
            ],
        }
        return [
            replace(best, seconds=best.seconds + seconds, one=best.one + seconds)
            for best in map(best_of, swept.values())
        ]

    def acdc(self, metric: str) -> Found:
        taus = NATS if metric == "kl" else [share * (self.full - self.empty) for share in SHARES]
        return best_of(
            [
                self.timed(
                    f"ACDC, {metric}, tau {tau:.2g}",
                    lambda runs, tau=tau: prune_by_acdc(runs, self.every, tau),
                    metric,
                )
                for tau in taus
            ]
        )


def best_of(swept: list[Found]) -> Found:
    """The fewest edges that reach the target, or the most faithful; seconds of all together."""
    reaching = [found for found in swept if found.faithfulness >= TARGET]
    best = min(reaching, key=lambda found: found.n_edges) if reaching else max(
        swept, key=lambda found: found.faithfulness
    )  # fmt: skip
    total, n_runs = sum(found.seconds for found in swept), sum(found.n_runs for found in swept)
    return Found(best.how, best.n_edges, best.faithfulness, total, best.seconds, n_runs)


def row(name: str, found: Found) -> str:
    return (
        f"| {name} | {found.how} | {found.n_edges} | {found.faithfulness:.3f} | "
        f"{found.seconds:.1f} | {found.one:.1f} | {found.n_runs} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="models and tasks with this text in their name")
    options = parser.parse_args()
    rows: list[str] = []
    judged: list[str] = []
    for model_name, recipe in RECIPES.items():
        model = Model.load(model_name, device="cpu")
        for task in recipe.weights:
            name = f"{model_name} {task}"
            if name == LEFT_OUT or options.only not in name:
                continue
            # Corrupted as in training: a comparison that stays when a task's usual contrast changes.
            corruption = recipe.corruptions.get(task)
            bench = Bench(model, load_task(task, model, n_pairs=N_PAIRS, corruption=corruption))
            bench.measured()  # warm
            before = bench.target()
            acdcs = [bench.acdc(bench.metric), bench.acdc("kl")]
            after = bench.target()
            ours = before if before.seconds > after.seconds else after  # the slower of the two
            simple = bench.simple(ours.n_edges)
            rows += [row(name, found) for found in (ours, *simple, *acdcs)]
            judged += [
                f"| {name} | {found.how} | {ours.n_edges} / {found.n_edges} | "
                f"**{found.seconds / ours.seconds:.0f}x** | {found.one / ours.seconds:.1f}x | "
                f"{found.n_runs / ours.n_runs:.0f}x |"
                for found in acdcs
            ]
            print(*rows[-5:], *judged[-2:], sep="\n", flush=True)
    if options.only:
        return
    nl = "\n"
    write_section(
        f"Pruning to a faithfulness of {TARGET:g}, {N_PAIRS} pairs",
        torch.device("cpu"),
        f"""
The fewest edges at which each method reaches {TARGET:g} (the most faithful circuit where none does),
on the pairs it was sought on. *Seconds* are processor seconds of one thread from nothing to the circuit,
all eight values of a swept parameter together; *of one value*, the best one alone. The first three include scoring all
edges and verifying the best {BUDGET} (of 479, 1055 and 110). *Runs* are those of the reduced model.

| model and task | method | edges | faithfulness | seconds | of one value | runs |
|---|---|---|---|---|---|---|
{nl.join(rows)}

The target search against ACDC at its best tau. Wanted: no more edges, and found at least 10x faster
than the sweep. ACDC makes one run a trial, as in the paper; it could resume runs at the layer it
tries, which would save it up to half. Times of the target search are the slower of two.

| model and task | against | edges | faster than the sweep | than its best tau alone | fewer runs |
|---|---|---|---|---|---|
{nl.join(judged)}
""",
    )


if __name__ == "__main__":
    main()
