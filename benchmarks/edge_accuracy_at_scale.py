"""How well edge scores rank on a real language model, where not every edge can be measured.

Part of ``edge_accuracy.py --smollm2 DIR``, which says what is compared. The truth here: exact
effects of every method's best edges and of some drawn at random. Where an edge stands in a method's
ranking is known for all of them, so that cost(k) is counted as on small models, but for edges that
no method has among its best. A method's own passes count as what they cost such a run: CPU seconds,
in units of the CPU seconds of one verified edge.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from verified_recall import Ranked, cost_curve, summary

from wiremap.circuits import load_task
from wiremap.edges import Model, PromptPairs, patch_edges, score_edges

N_PAIRS = 8
DRAWN_FROM = 64
BEST = 500
AT_RANDOM = 300
BUDGET = TOP = 200
CHUNK = 50
TASKS = {"ioi": "s2-flip", "agreement": "number"}
"""With their corruptions."""
COLUMNS = f"""
Own passes: of the method, in verified edges. Cost: of verified recall up to the true top {TOP}, the
oracle has 1; in brackets that of the ranking alone. Recall: the share of the true top {TOP} among the
first {BUDGET} verified; magnitude: their share of its summed magnitude; in brackets both where the
method's own passes are taken from the {BUDGET}. Largest missed: of the true top, by the first {BUDGET}.
Spearman: of magnitudes, over the edges at random. Signs: the share that is right, among those at
random and among the true top.
"""
CELLS = (
    "own passes", "cost", "recall", "magnitude", "largest missed", "Spearman", "signs, random",
    "signs, top",
)  # fmt: skip


@dataclass(frozen=True)
class Way:
    """A gradient rule and a reader rule, with the options of ``score_edges``."""

    gradient: str
    reader: str = "linear"
    steps: int = 10
    candidates: int | None = None

    @property
    def label(self) -> str:
        steps = f", {self.steps} steps" if self.gradient == "integrated" else ""
        best = "" if self.candidates is None else f", best {self.candidates:,}"
        return f"{self.gradient}{steps} x {self.reader}{best}"

    def options(self) -> dict[str, Any]:
        return {
            "gradient": self.gradient,
            "reader": self.reader,
            "steps": self.steps,
            "candidates": self.candidates,
        }


WAYS = (
    Way("relevance"),
    Way("clean"),
    Way("integrated", steps=5),
    Way("gim"),
    Way("corrupted"),
    Way("graddrop"),
    Way("integrated", "exact", steps=5, candidates=1000),
    Way("relevance", "exact", candidates=1000),
)


@dataclass(frozen=True)
class Scored:
    """A method's scores of all edges, in the graph's order, and the CPU seconds they took."""

    values: NDArray[numpy.float64]
    seconds: float


@dataclass(frozen=True)
class Row:
    """Of a method: the cells of its row, and its cost with its own passes and without."""

    cells: Sequence[str]
    costs: Sequence[float]


@dataclass
class Truth:
    """Exact mean effects by number of the edge, and the CPU seconds of all; kept in a file."""

    path: Path
    effects: dict[int, float]
    seconds: float

    @classmethod
    def read(cls, path: Path) -> Truth:
        truth = cls(path, {}, 0.0)
        for line in path.read_text().splitlines() if path.exists() else ():
            row = json.loads(line)
            truth.effects |= zip(row["edges"], row["effects"], strict=True)
            truth.seconds += row["seconds"]
        return truth

    def measure(self, model: Model, pairs: PromptPairs, edges: Sequence[int]) -> None:
        """Measures what is missing of ``edges``."""
        names = [model.graph.edge_name(edge) for edge in model.graph.edges()]
        missing = [edge for edge in edges if edge not in self.effects]
        for first in range(0, len(missing), CHUNK):
            chunk = missing[first : first + CHUNK]
            start = time.process_time()
            effects = patch_edges(model, pairs, [names[edge] for edge in chunk]).mean().tolist()
            seconds = time.process_time() - start
            row = {"edges": chunk, "effects": effects, "seconds": seconds}
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            self.effects |= zip(chunk, effects, strict=True)
            self.seconds += seconds


def short_pairs(model: Model, task: str) -> PromptPairs:
    """The shortest of the pairs that are drawn: exact effects cost by the token."""
    pairs = load_task(task, model, n_pairs=DRAWN_FROM, corruption=TASKS[task])
    rows = pairs.lengths.argsort(stable=True)[:N_PAIRS]
    length = int(pairs.lengths[rows].max())
    return PromptPairs(
        pairs.clean[rows, :length],
        pairs.corrupted[rows, :length],
        pairs.answers[rows],
        pairs.wrong[rows],
    )


def score(model: Model, pairs: PromptPairs, way: Way, work: Path) -> Scored:
    """The scores, from the file of an earlier run if there is one."""
    path = work / f"{way.label.replace(' ', '-').replace(',', '')}.npz"
    if not path.exists():
        start = time.process_time()
        scores = score_edges(model, pairs, **way.options()).scores
        seconds = time.process_time() - start
        rows, columns = torch.tensor(list(model.graph.edges())).T
        numpy.savez(path, values=scores[rows, columns].double().numpy(), seconds=seconds)
    with numpy.load(path) as kept:
        return Scored(kept["values"], float(kept["seconds"]))


def best_first(values: NDArray[numpy.float64]) -> NDArray[numpy.int64]:
    return numpy.argsort(-numpy.abs(values), kind="stable")


def measure_at_scale(directory: str, work: Path) -> str:
    """Scores and exact effects into ``work``, from where an earlier run left off; the tables."""
    model = Model.load(directory, device="cpu")
    measured = {task: _measured(model, task, work / task) for task in TASKS}
    text = COLUMNS
    for task, (setting, found) in measured.items():
        text += f"\n### {task}, {TASKS[task]}\n\n{setting}\n\n"
        text += f"| | {' | '.join(CELLS)} |\n{'|---' * (len(CELLS) + 1)}|\n"
        for way, row in zip(WAYS, found, strict=True):
            text += f"| {way.label} | {' | '.join(row.cells)} |\n"
    text += "\n### Both: geometric mean of the cost; in brackets that of the ranking alone\n\n"
    for number, way in enumerate(WAYS):
        costs = numpy.log([found[number].costs for _, found in measured.values()])
        with_own, alone = numpy.exp(costs.mean(0))
        text += f"- {way.label}: {with_own:.1f} ({alone:.1f})\n"
    return text


def _measured(model: Model, task: str, work: Path) -> tuple[str, list[Row]]:
    """One task: what was measured, in words, and a row for each method."""
    work.mkdir(parents=True, exist_ok=True)
    pairs = short_pairs(model, task)
    # The first of a longer sample, so that a later run may ask for more of the same.
    drawn = random.Random(0).sample(range(model.graph.n_edges), 500)[:AT_RANDOM]
    truth = Truth.read(work / "effects.jsonl")
    scored = {way.label: score(model, pairs, way, work) for way in WAYS}
    truth.measure(model, pairs, drawn)
    for label, method in scored.items():
        truth.measure(model, pairs, best_first(method.values)[:BEST].tolist())
        print(f"{task}, {label}: {len(truth.effects):,} edges measured", flush=True)
    return _report(pairs, list(scored.values()), truth, drawn)


def _report(
    pairs: PromptPairs, scored: Sequence[Scored], truth: Truth, drawn: Sequence[int]
) -> tuple[str, list[Row]]:
    """What was measured, in words, and a row for each method."""
    unit = truth.seconds / len(truth.effects)
    effects = numpy.zeros(len(scored[0].values))
    effects[list(truth.effects)] = list(truth.effects.values())
    top = best_first(effects)[:TOP]
    least = float(numpy.abs(effects[top[-1]]))
    best = {edge for one in scored for edge in best_first(one.values)[:BEST].tolist()}
    strays = sum(abs(effects[edge]) >= least and edge not in best for edge in drawn)
    text = (
        f"SmolLM2-135M-Instruct, the {len(pairs)} shortest of {DRAWN_FROM} pairs "
        f"({int(pairs.lengths.min())} to {int(pairs.lengths.max())} tokens), noising, logit "
        f"difference. Of {len(effects):,} edges {len(truth.effects):,} were measured: the best "
        f"{BEST} of every method, and {len(drawn)} at random. The largest effect is "
        f"{numpy.abs(effects).max():.3g} logits, the {TOP}th {least:.3g}; {strays} of the "
        f"{len(drawn)} at random reach that and are in no method's best {BEST}. One verified edge "
        f"took {unit:.2f} s of CPU time."
    )
    return text, [_row(method, effects, unit, top, drawn) for method in scored]


def _row(
    method: Scored,
    effects: NDArray[numpy.float64],
    unit: float,
    top: NDArray[numpy.int64],
    drawn: Sequence[int],
) -> Row:
    order, own = best_first(method.values), method.seconds / unit
    magnitudes = numpy.abs(effects)
    costs = [
        summary(cost_curve(Ranked(order, numpy.full(len(order), spent)), magnitudes, len(top)))
        for spent in (own, 0.0)
    ]
    shares: list[str] = []
    for count in (numpy.ones_like(effects), magnitudes):
        whole, rest = (
            count[numpy.intersect1d(order[:verified], top)].sum() / count[top].sum()
            for verified in (BUDGET, max(0, round(BUDGET - own)))
        )
        shares.append(f"{whole:.2f} ({rest:.2f})")
    missed = numpy.abs(effects[numpy.setdiff1d(top, order[:BUDGET])]).max(initial=0)
    ranks: Any = spearmanr(numpy.abs(method.values[drawn]), magnitudes[drawn])
    signs = [
        f"{(numpy.sign(method.values[some]) == numpy.sign(effects[some])).mean():.2f}"
        for some in (numpy.array(drawn), top)
    ]
    cells = [f"{own:.0f}", f"{costs[0]:.2f} ({costs[1]:.2f})", *shares]
    cells += [f"{missed:.2f}", f"{ranks.statistic:.2f}"]
    return Row((*cells, *signs), costs)
