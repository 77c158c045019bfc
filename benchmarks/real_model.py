"""How many edges each method needs for a faithfulness of 0.9 to 1.1 on other prompts, and its cost.

    python benchmarks/real_model.py [--only TEXT] [--model DIRECTORY --task ioi --corruption abc]

On every bundled model and task and on stories260K, or on a model given. Circuits are sought on 16
pairs; sizes are chosen on 16 others, and judged on 32 more. A method's *edges needed* are those of
its smallest circuit that the pairs for choosing put within 0.9 to 1.1 (and the next larger not
below); of one-shot rankings, which
have circuits of any size, the sizes tried are those of a geometric series. Cost is counted in
forward passes over the search's pairs: 3 for a gradient of all masks (a forward and a backward
pass, at 1.5 of the plain model's), 1 for a run.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from measure import write_section
from torch import Tensor

from wiremap.circuits import load_task
from wiremap.circuits.choice.search import (
    RULES,
    Judged,
    Round,
    SearchOptions,
    SearchResult,
    judge,
    search,
    select_edges,
    smallest_within,
)
from wiremap.circuits.tasks.task import usual_metric
from wiremap.circuits.zoo import RECIPES
from wiremap.edges import Model, PromptPairs, score_edges
from wiremap.edges.runs.masks import full_mask, live_mask

TARGET = (0.9, 1.1)
STORIES = Path("/work/shared/models/stories260K")
LEFT_OUT = "tasks-mini induction"
PER_GRADIENT = 3
ONE_SHOT = {"relevance": 4, "integrated": 17, "clean": 4}
"""Gradient rules, and the forward passes they cost: 2 runs, and 1 or 5 gradients."""


@dataclass(frozen=True)
class Question:
    """Pairs to search on, to choose a size on, and to judge on."""

    name: str
    model: Model
    search: PromptPairs
    choose: PromptPairs
    judge: PromptPairs

    @property
    def metric(self) -> str:
        return usual_metric(self.search)


@dataclass(frozen=True)
class Needed:
    """The circuit that a method comes to."""

    method: str
    worth: Judged | None
    """On the pairs to judge on; None where no circuit was within the target on those to choose on."""
    cost: int
    curve: list[Judged]
    """All circuits, on the pairs to choose on."""


def questions(options: argparse.Namespace) -> Iterator[Question]:
    if options.model:
        model = Model.load(options.model, device="cpu")
        name = f"{Path(options.model).name} {options.task} {options.corruption or ''}".strip()
        yield of_task(name, model, options.task, options.corruption)
        return
    for model_name, recipe in RECIPES.items():
        for task in recipe.weights:
            name = f"{model_name} {task}"
            if options.only in name and name != LEFT_OUT:
                yield of_task(name, Model.load(model_name, device="cpu"), task, None)
    if STORIES.exists() and options.only in "stories260K":
        model = Model.load(str(STORIES), device="cpu")
        pairs = PromptPairs.read(STORIES / "pairs.jsonl", model)
        parts = [pairs.take(range(start, len(pairs), 4)) for start in range(4)]
        rest = pairs.take(sorted({*range(2, len(pairs), 4), *range(3, len(pairs), 4)}))
        yield Question("stories260K", model, parts[0], parts[1], rest)


def of_task(name: str, model: Model, task: str, corruption: str | None) -> Question:
    sets = [
        load_task(task, model, n_pairs=n, seed=seed, corruption=corruption)
        for seed, n in enumerate((16, 16, 32))
    ]
    return Question(name, model, *sets)


def one_shot(asked: Question, gradient: str, sizes: Sequence[int]) -> Iterator[Needed]:
    graph = asked.model.graph
    scores = score_edges(
        asked.model, asked.search, metric=asked.metric, gradient=gradient, steps=5
    ).scores.T.double()  # [reader writer]
    every = full_mask(graph)
    for rule in ("signed", "magnitude"):
        masks = [
            live_mask(graph, select_edges(scores, every, size, opposing=RULES[rule]))
            for size in sizes
        ]
        masks = [mask for mask in masks if bool(mask.any())]
        yield needed(asked, f"{gradient}, {rule}", masks, ONE_SHOT[gradient])


def needed(asked: Question, method: str, masks: list[Tensor], cost: int) -> Needed:
    curve = judge(asked.model, asked.choose, masks, asked.metric)
    rounds = [
        Round(mask, method, found.faithfulness) for mask, found in zip(masks, curve, strict=True)
    ]
    best = smallest_within(rounds, TARGET)
    worth = None
    if TARGET[0] <= best.judged <= TARGET[1]:
        (worth,) = judge(asked.model, asked.judge, [best.mask], asked.metric)
    return Needed(method, worth, cost, curve)


def iterated(asked: Question, method: str, options: SearchOptions) -> Needed:
    result = search(asked.model, asked.search, asked.choose, options=options)
    masks = [found.mask for found in result.rounds]
    return needed(asked, method, masks, cost_of(result))


def cost_of(result: SearchResult) -> int:
    return 2 + PER_GRADIENT * result.n_gradients + result.n_runs


def methods(asked: Question, ratio: float) -> Iterator[Needed]:
    size, sizes = float(asked.model.graph.n_edges), list[int]()
    while (size := size * ratio) >= 8:
        sizes.append(int(size))
    for gradient in ONE_SHOT:
        yield from one_shot(asked, gradient, sizes)
    plain = SearchOptions(target=TARGET, metric=asked.metric, trials=0)
    for rule in ("signed", "magnitude", "adaptive"):
        yield iterated(asked, f"iterated, {rule}", replace(plain, select=rule))
    yield iterated(asked, "iterated, adaptive, then elimination", replace(plain, trials=100))


def row(found: Needed, model_edges: int) -> str:
    if found.worth is None:
        nearest = min(found.curve, key=lambda one: abs(one.faithfulness - 1), default=None)
        best = "" if nearest is None else f" (nearest {nearest.faithfulness:.2f})"
        return f"| {found.method} | none{best} | | | | {found.cost} |"
    worth = found.worth
    return (
        f"| {found.method} | **{worth.n_edges}** ({100 * worth.n_edges / model_edges:.2g} %) | "
        f"{worth.faithfulness:.2f} | {worth.kl_share:.2f} | "
        f"{worth.accuracy:.2f} / {worth.model_accuracy:.2f} | {found.cost} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="models and tasks with this text in their name")
    parser.add_argument("--model", help="a directory; else the bundled models and stories260K")
    parser.add_argument("--task", default="ioi")
    parser.add_argument("--corruption")
    parser.add_argument("--ratio", type=float, default=0.85, help="of sizes of one-shot rankings")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for asked in questions(options):
        n_edges = asked.model.graph.n_edges
        rows: list[str] = []
        for found in methods(asked, options.ratio):
            rows.append(row(found, n_edges))
            print(rows[-1], flush=True)
        nl = "\n"
        write_section(
            f"Edges needed on other prompts, {asked.name}, {n_edges:,} edges",
            torch.device("cpu"),
            f"""
Faithfulness within {TARGET[0]} to {TARGET[1]} on {len(asked.choose)} pairs that the search on
{len(asked.search)} did not see; what is said of the circuit is on {len(asked.judge)} more. *KL* is the share
recovered, *accuracy* the circuit's and the model's, *cost* forward passes over the search's pairs.

| method | edges needed | faithfulness | KL | accuracy | cost |
|---|---|---|---|---|---|
{nl.join(rows)}
""",
        )


if __name__ == "__main__":
    main()
