"""How many edges each method needs to be faithful on prompts it was not found on.

Of ``real_model.py``, which runs it. Rankings of one shot (EAP, EAP-IG with 5 steps, relevance; each
signed, what opposes last, and by magnitude) keep their best edges, and what is then on no path from
``input`` to ``logits`` is not counted. Of the sizes of a geometric series the smallest counts whose
faithfulness on the held-out pairs lies within the window, if the next larger is not below it. So
the held-out pairs choose the size for them; the search of wiremap has to choose its circuit without.
Beside this choice stands what the same hindsight would choose among the circuits that it pruned.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from wiremap.circuits import load_task
from wiremap.circuits.choice.search import SearchOptions, faithfulness, search, select_edges
from wiremap.circuits.evidence.gap import gap_of
from wiremap.circuits.evidence.held_out import set_aside
from wiremap.circuits.record.scores_file import SCORES_FILE, read_scores
from wiremap.circuits.record.search_file import SEARCH_FILE, open_journal
from wiremap.circuits.result.document import loads
from wiremap.circuits.tasks.builtin import usual_metric
from wiremap.circuits.zoo import RECIPES
from wiremap.edges import Model, PromptPairs, score_edges
from wiremap.edges.effects.reduced_runs import ReducedRuns
from wiremap.edges.errors import InputError
from wiremap.edges.question.question import Question
from wiremap.edges.runs.masks import edge_mask, full_mask, live_mask
from wiremap.edges.runs.sweep import Resources

SIZES = (
    5, 8, 12, 20, 30, 50, 80, 120, 200, 300, 500, 800, 1_200, 2_000, 3_500, 7_000, 14_000,
)  # fmt: skip
WINDOW = (0.9, 1.1)
N_HELD_OUT = 32
STEPS = 5
RANKINGS = {"EAP": "clean", "EAP-IG": "integrated", "relevance": "relevance"}
WAYS = ("signed", "magnitude")
METHODS = tuple(f"{name}, {way}" for name in RANKINGS for way in WAYS)
BASELINE = ("EAP-IG, signed", "EAP-IG, magnitude")


@dataclass(frozen=True)
class Case:
    """A model, the pairs to find a circuit on and those to judge it on.

    Attributes:
        run: a finished run directory, whose circuit and scores are taken.
    """

    name: str
    model: Model
    pairs: PromptPairs
    held_out: PromptPairs
    run: Path | None = None


@dataclass(frozen=True)
class Circuit:
    """How large and, on the held-out pairs, how faithful."""

    n_edges: int
    faithfulness: float

    @property
    def reached(self) -> bool:
        return WINDOW[0] <= self.faithfulness <= WINDOW[1]


@dataclass(frozen=True)
class Needed:
    """Of one case: the circuit that each method needs, None where no size does.

    Attributes:
        most: the edges of the largest size that was tried.
    """

    name: str
    n_edges: int
    most: int
    chosen: Circuit
    pruned: Circuit | None
    rankings: dict[str, Circuit | None]
    seconds: float

    @classmethod
    def read(cls, path: Path) -> Needed:
        document: dict[str, Any] = loads(path.read_text())
        rankings = {name: _circuit(known) for name, known in document.pop("rankings").items()}
        chosen, pruned = Circuit(**document.pop("chosen")), _circuit(document.pop("pruned"))
        return cls(chosen=chosen, pruned=pruned, rankings=rankings, **document)

    def of(self, method: str) -> int:
        """Edges of a ranking: where it does not reach the window, as many as were tried."""
        circuit = self.rankings[method]
        return self.most if circuit is None else circuit.n_edges


# ---- the cases


def _circuit(known: dict[str, Any] | None) -> Circuit | None:
    return None if known is None else Circuit(**known)


Cases = dict[str, Callable[[], Case]]
"""What makes each case, by its name: what was measured before needs no model."""


def bundled_cases() -> Cases:
    """Every bundled model on all of its tasks, corrupted as in training."""
    return {
        f"{model} {task}": partial(
            task_case, f"{model} {task}", model, task, recipe.corruptions.get(task)
        )
        for model, recipe in RECIPES.items()
        for task in recipe.weights
    }


def stories_case(directory: Path) -> Case:
    """A directory with a model and ``pairs.jsonl``, a third of which is held out."""
    model = Model.load(str(directory), device="cpu")
    pairs, held_out = set_aside(PromptPairs.read(directory / "pairs.jsonl", model), 1 / 3)
    return Case(f"{directory.name} pairs.jsonl", model, pairs, held_out)


def task_case(
    name: str, model_name: str, task: str, corruption: str | None, run: Path | None = None
) -> Case:
    """A built-in task; pairs of the search as ``wiremap discover`` draws them."""
    model = _loaded(model_name)
    pairs = load_task(task, model, corruption=corruption, part="search")
    held_out = load_task(task, model, N_HELD_OUT, corruption=corruption, part="held-out")
    seen = set(held_out.overlap(pairs))
    held_out = held_out.take(row for row in range(len(held_out)) if row not in seen)
    return Case(name, model, pairs, held_out, run)


@cache
def _loaded(name: str) -> Model:
    return Model.load(name, device="cpu")


# ---- what is measured


def needed(case: Case) -> Needed:
    """What every method needs. Raises InputError where the model does not do the task."""
    start = time.process_time()
    question = Question(pairs=case.pairs, metric=usual_metric(case.pairs))
    gap_of(case.model, question, Resources(), allow_weak=False)
    chosen, pruned = _searched(case, question)
    scores = {way: list(_ranked(case, question, gradient)) for way, gradient in RANKINGS.items()}
    about = question.about(pairs=case.held_out)
    with ReducedRuns(case.model, about, Resources()) as runs:

        def measured(mask: Tensor) -> Circuit:
            worth = faithfulness(runs.values(mask), runs.full, runs.empty)
            return Circuit(int(mask.sum()), worth)

        rankings = {
            f"{name}, {way}": smallest(measured(mask) for mask in _cuts(case.model, ranking))
            for name, ranked in scores.items()
            for way, ranking in zip(WAYS, ranked, strict=True)
        }
        path = sorted(pruned, key=lambda mask: int(mask.sum()))
        return Needed(
            name=case.name,
            n_edges=case.model.graph.n_edges,
            most=min(SIZES[-1], case.model.graph.n_edges),
            chosen=measured(chosen),
            pruned=smallest(measured(mask) for mask in path),
            rankings=rankings,
            seconds=time.process_time() - start,
        )


def smallest(rising: Iterator[Circuit]) -> Circuit | None:
    """The first circuit within the window whose successor is not below it.

    The last tried needs no successor.
    """
    candidate: Circuit | None = None
    for each in rising:
        if candidate is not None and each.faithfulness >= WINDOW[0]:
            return candidate
        candidate = each if each.reached else None
    return candidate


def _searched(case: Case, question: Question) -> tuple[Tensor, list[Tensor]]:
    """The circuit that wiremap's search chooses, and those that it pruned."""
    if case.run is None:
        result = search(case.model, question, SearchOptions(), Resources())
        rounds, chosen = result.rounds, result.chosen.mask
    else:
        document = loads((case.run / "circuit.json").read_text())
        _same_pairs(case, document)
        chosen = edge_mask(case.model.graph, [edge["id"] for edge in document["edges"]])
        journal = open_journal(case.run / SEARCH_FILE, case.model.graph)
        rounds = list(_known(journal.next_known, journal.rounds))
    return chosen, [each.mask for each in rounds if each.how == "pruned"]


def _known(next_known: Callable[[], Any], taken: list[Any]) -> Iterator[Any]:
    """The rounds that a journal holds."""
    while (each := next_known()) is not None:
        taken.append(each)
        yield each


def _same_pairs(case: Case, document: dict[str, Any]) -> None:
    """Raises InputError for a run on other pairs."""
    of_run = document["task"]["sha256"]
    if of_run != case.pairs.fingerprint():
        raise InputError(
            f"{case.run}: its pairs are not those that {case.name} is asked on; run it anew"
        )


def _ranked(case: Case, question: Question, gradient: str) -> Iterator[Tensor]:
    """All edges' scores, the sign turned so that positive carries the behaviour; and magnitudes."""
    if gradient == "integrated" and case.run is not None:
        edges = read_scores(case.run / SCORES_FILE)[1]
        if edges is None:
            raise InputError(f"{case.run / SCORES_FILE}: expected scores of edges")
    else:
        edges = score_edges(
            case.model, case.pairs, question.metric_name, gradient=gradient, steps=STEPS
        )
    yield edges.scores.cpu()
    yield edges.scores.cpu().abs()


def _cuts(model: Model, ranking: Tensor) -> Iterator[Tensor]:
    """The best edges of every size, less what lies on no path."""
    every = full_mask(model.graph)
    for size in SIZES:
        if size >= model.graph.n_edges:
            break
        yield live_mask(model.graph, select_edges(ranking, every, size, opposing=0.0))
    if model.graph.n_edges <= SIZES[-1]:
        yield every


# ---- what is said


def compare(cases: Cases, work: Path) -> list[Needed]:
    """All cases, each kept in a file of ``work``; those that are there are not measured again."""
    work.mkdir(parents=True, exist_ok=True)
    rows: list[Needed] = []
    for name, case in cases.items():
        path = work / f"{name.replace(' ', '-').replace(',', '')}.json"
        if not path.exists():
            try:
                found = needed(case())
            except InputError as error:
                print(f"{name} is left out: {error}", flush=True)
                continue
            path.write_text(json.dumps(asdict(found), indent=1) + "\n")
        rows.append(Needed.read(path))
        print(table(rows[-1:])[-1], flush=True)
    return rows


def table(rows: Sequence[Needed]) -> list[str]:
    """Lines of Markdown."""
    titles = ["model and task", "of", "wiremap", "its path, in hindsight", *METHODS]
    return [
        f"| {' | '.join(titles)} |",
        "|" + "---|" * len(titles),
        *(f"| {' | '.join(_cells(row))} |" for row in rows),
    ]


def _cells(row: Needed) -> list[str]:
    chosen = f"**{row.chosen.n_edges:,}** ({row.chosen.faithfulness:.2f})"
    if not row.chosen.reached:
        chosen += ", missed"
    return [row.name, f"{row.n_edges:,}", chosen, *map(_cell(row), _circuits(row))]


def _circuits(row: Needed) -> list[Circuit | None]:
    return [row.pruned, *(row.rankings[method] for method in METHODS)]


def _cell(row: Needed) -> Callable[[Circuit | None], str]:
    def cell(circuit: Circuit | None) -> str:
        if circuit is None:
            return f"> {row.most:,}"
        return f"{circuit.n_edges:,} ({circuit.faithfulness:.2f})"

    return cell


def summary(rows: Sequence[Needed]) -> list[str]:
    """Geometric means of edges relative to EAP-IG's, and to the best ranking of each case."""
    reached = [row for row in rows if row.chosen.reached]
    hindsight = [row for row in rows if row.pruned is not None]

    def line(what: str, kept: Sequence[Needed], edges: Callable[[Needed], int]) -> str:
        if not kept:
            return f"- {what}: within the window in none of {len(rows)} cases"
        of_baseline, of_best = (
            statistics.geometric_mean(
                [edges(row) / min(row.of(method) for method in methods) for row in kept]
            )
            for methods in (BASELINE, METHODS)
        )
        return (
            f"- {what}: **{of_baseline:.2f}**; {of_best:.2f} of the best ranking of each case "
            f"({len(kept)} of {len(rows)} cases)"
        )

    return [
        line("wiremap, where its choice is within the window", reached, _chosen),
        line("its path, in hindsight as the rankings", hindsight, _pruned),
        *(line(method, rows, lambda row, one=method: row.of(one)) for method in METHODS),
    ]


def _chosen(row: Needed) -> int:
    return row.chosen.n_edges


def _pruned(row: Needed) -> int:
    return row.most if row.pruned is None else row.pruned.n_edges
