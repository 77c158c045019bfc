"""``wiremap verify``: exact effects in rank order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..edges.errors import InputError
from ..edges.names import vocabulary as words
from . import options
from .asked import Asked, Shown, gathered, given
from .console import if_stopped, progress, show_json, show_table, show_text

if TYPE_CHECKING:
    from ..circuits.record.effects_file import Verified
    from ..circuits.record.ranking import Ranking
    from ..edges.effects.bounds import Bound
    from ..edges.model.transformer import Model
    from ..edges.question.prompts import PromptPairs
    from ..edges.question.source import Source


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is measured; see ``verify`` and ``verify_until``."""

    budget: int | None
    all_of_them: bool
    until_bound: float | None
    paths: tuple[str, ...]
    groups: tuple[str, ...]
    frozen: str

    @property
    def named(self) -> list[str]:
        """The paths and groups that are named, groups as ``verify`` has them."""
        from ..circuits.evidence.verification import TOGETHER

        return [*self.paths, *(TOGETHER.join(group.split(",")) for group in self.groups)]


@dataclass(frozen=True, kw_only=True)
class _Bounding:
    """How what is not measured is bounded; see ``bound_unverified``."""

    bound: bool
    confidence: float
    samples: int
    probability: float


_bounding = options.together(
    options.flag("--bound", help="Also bound what was not measured (random subsets)."),
    options.number("--confidence", default=words.CONFIDENCE, help="Of the bound."),
    options.count(
        "--samples",
        least=2,
        default=words.BOUND_SUBSETS,
        help="Subsets that the bound draws.",
    ),
    options.number(
        "--probability",
        default=words.PROBABILITY,
        help="With which a subset has each node or edge.",
    ),
)


@dataclass(frozen=True, kw_only=True)
class _Patching:
    """Where values patched into nodes come from; see ``Source``."""

    patch_with: str | None
    mean_over: Path | None
    noise_scale: float | None
    noise_seeds: int | None

    @property
    def from_elsewhere(self) -> bool:
        """Whether they come from anything but each pair's other run."""
        return self.patch_with not in (None, words.OTHER_RUN)


_patching = options.together(
    options.choice(
        "--patch-with",
        words.PATCH_KINDS,
        help="Where values patched into nodes come from: each pair's other run by default.",
    ),
    options.file(
        "--mean-over",
        help="Pairs whose corrupted prompts a mean is taken over; those measured by default.",
    ),
    options.number(
        "--noise-scale",
        help=f"Of noise on the embedding, in its standard deviations ({words.NOISE_SCALE:g}).",
    ),
    options.count("--noise-seeds", help=f"Draws of noise to average ({words.NOISE_SEEDS})."),
)


@dataclass(frozen=True, kw_only=True)
class _Output:
    """Where effects go, and whether there are some."""

    out: Path | None
    resume: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class _Work:
    """What is to be done once nothing contradicts anything: with ``names``, and with the rest."""

    model: Model
    pairs: PromptPairs
    ranking: Ranking
    names: Sequence[str]
    rest: Sequence[str]
    out: Path
    batch_size: int | None

    @property
    def question(self) -> dict[str, Any]:
        """Metric, direction and batch size, as every measurement takes them."""
        method = self.ranking.question["method"]
        question = {name: method[name] for name in ("metric", "direction")}
        return {**question, "batch_size": self.batch_size}


@click.command()
@options.path_argument("scores")
@options.budget(
    f"How many to measure, best score first ({words.BUDGET['cpu']} by default, or all if they are "
    "fewer)."
)
@options.flag("--all", "all_of_them", help="Measure all there are.")
@options.until_bound(
    "Measure until what is left is bounded below this (metric units), or nothing is left."
)
@click.option(
    "--path",
    "paths",
    multiple=True,
    help="Measure this path (or edge), such as 'a5.h1->a8.h6<v>->logits', instead of the best.",
)
@click.option(
    "--together",
    "groups",
    multiple=True,
    help="Measure these edges, parted by commas, patched all at once, instead of the best.",
)
@options.choice(
    "--frozen",
    words.FROZEN,
    words.NOTHING,
    help="What keeps its values downstream of an edge: nothing, other heads, or MLPs as well (path "
    "patching to the logits).",
)
@_bounding
@_patching
@options.device
@options.tf32
@options.count("--batch-size", help="Rows at once.")
@options.out("File for the effects (SCORES.effects.jsonl).")
@options.flag("--resume", help="Go on with the effects that the file holds.")
@options.output
@gathered(
    plan=_Plan, bounding=_Bounding, patching=_Patching, asked=Asked, output=_Output, shown=Shown
)
def verify(
    scores: Path,
    plan: _Plan,
    bounding: _Bounding,
    patching: _Patching,
    asked: Asked,
    output: _Output,
    shown: Shown,
) -> None:
    """Measure the best of SCORES by patching: edges by path patching, nodes by activation patching.

    SCORES is a file of wiremap score, or a run directory; it says which model and prompts it
    belongs to, and they must not have changed since. Effects are appended to a file as they come.
    """
    from ..circuits.record.ranking import read_ranking
    from ..circuits.reloading import reload

    ranking = read_ranking(scores)
    # What contradicts itself ends here, before the model is loaded.
    names, rest = _chosen(ranking, plan)
    _check_bounding(plan, bounding, patching, rest)
    out = _place(ranking, output)
    _check_patching(ranking, bounding, patching)
    if bounding.bound:
        _check_subsets(ranking, bounding, rest)
    question = ranking.question
    model, pairs = reload(question["model"], question["task"], asked.device, tf32=asked.tf32)
    work = _Work(
        model=model,
        pairs=pairs,
        ranking=ranking,
        names=names,
        rest=rest,
        out=out,
        batch_size=asked.batch_size,
    )
    # Edges are patched with the other run of their own pair, always.
    source = None if ranking.items == "edges" else _source(pairs, model, patching)
    with if_stopped(out), progress(shown.no_progress) as report:
        verified, bound = _measured(work, plan, bounding, source, report)
    error = None if ranking.items == "nodes" else _error(work, verified, plan)
    if shown.as_json:
        show_json(_document(work, verified, bound, error))
    elif not shown.quiet:
        _show(work, verified)
        _show_rest(work, bound, plan, error, len(verified))
        show_text(f"\nwritten to {out}")


# ---- what is asked


def _chosen(ranking: Ranking, plan: _Plan) -> tuple[Sequence[str], Sequence[str]]:
    """What to measure, and the rest. Raises InputError for a plan that contradicts itself."""
    n_ranked = len(ranking.scored)
    if plan.budget is not None and plan.budget > n_ranked:
        raise InputError(
            f"expected a budget of at most {n_ranked}, all there are, got {plan.budget}"
        )
    named = plan.named
    which: dict[str, object] = {
        "--budget": plan.budget,
        "--all": plan.all_of_them,
        "--until-bound": plan.until_bound,
        "--path and --together": named,
    }
    several = [option for option, value in which.items() if value]
    if len(several) > 1:
        raise InputError(f"expected one way to say what to measure, got {', '.join(several)}")
    if ranking.items == "nodes" and (named or plan.frozen != words.NOTHING):
        raise InputError("--path, --together and --frozen are for scores of edges")
    if named:
        return named, []
    # Until a bound holds any number may be measured, so all are handed over, best first.
    all_of_them = plan.all_of_them or plan.until_bound
    # A slice ends where the ranking does, which may be before the default budget.
    cut = n_ranked if all_of_them else plan.budget or words.BUDGET["cpu"]
    return ranking.names[:cut], ranking.names[cut:]


def _check_bounding(
    plan: _Plan, bounding: _Bounding, patching: _Patching, rest: Sequence[str]
) -> None:
    if bounding.bound and not rest:
        raise InputError("--bound bounds what is not measured; leave it out, or measure fewer")
    if plan.until_bound is not None and (plan.frozen != words.NOTHING or patching.from_elsewhere):
        raise InputError("--until-bound goes with no --frozen and no --patch-with")


def _place(ranking: Ranking, output: _Output) -> Path:
    """Where effects go. Raises InputError if the file is there and is not to be gone on with."""
    out = output.out or ranking.path.with_suffix(".effects.jsonl")
    if out.exists() and not output.resume:
        raise InputError(f"{out} exists; go on with it (--resume), or choose another file (-o)")
    return out


def _check_patching(ranking: Ranking, bounding: _Bounding, patching: _Patching) -> None:
    kinds_of = {
        "--mean-over": ("mean", "mean-by-position"),
        "--noise-scale": ("noise",),
        "--noise-seeds": ("noise",),
    }
    options = given(
        {
            "--mean-over": patching.mean_over,
            "--noise-scale": patching.noise_scale,
            "--noise-seeds": patching.noise_seeds,
        }
    )
    for option in options:
        if patching.patch_with not in kinds_of[option]:
            raise InputError(f"{option} goes with --patch-with {' or '.join(kinds_of[option])}")
    if ranking.items == "edges" and patching.from_elsewhere:
        raise InputError(
            f"edges are patched with the pairs' other runs, got --patch-with {patching.patch_with}; "
            "leave it out, or measure nodes"
        )
    if bounding.bound and patching.from_elsewhere:
        raise InputError(
            f"--bound patches with the pairs' other runs, got --patch-with {patching.patch_with}; "
            "leave one of them out"
        )


def _check_subsets(ranking: Ranking, bounding: _Bounding, rest: Sequence[str]) -> None:
    """Raises InputError where no bound can come of the subsets, before anything is measured."""
    from ..edges.effects.bounds import BoundOptions, subsets_for_bound

    options = BoundOptions(
        samples=bounding.samples,
        probability=bounding.probability,
        confidence=bounding.confidence,
        items=ranking.items,
    )
    subsets_for_bound(rest, options)


def _source(pairs: PromptPairs, model: Model, patching: _Patching) -> Source | None:
    from ..edges.question.prompts import PromptPairs
    from ..edges.question.source import Source

    if patching.patch_with is None:
        return None
    mean_over = None
    if patching.mean_over:
        # Put as the pairs are that they are patched into.
        chat = bool(pairs.source.get("chat"))
        mean_over = PromptPairs.read(patching.mean_over, model, chat=chat)
    noise = given({"noise_scale": patching.noise_scale, "noise_seeds": patching.noise_seeds})
    return Source(patching.patch_with, mean_over, **noise)


# ---- what is measured


def _measured(
    work: _Work,
    plan: _Plan,
    bounding: _Bounding,
    source: Source | None,
    report: Callable[[str, int, int], Any],
) -> tuple[list[Verified], Bound | None]:
    """The effects, and a bound on the others, if it was asked for and there are others."""
    from ..circuits.evidence.verification import verify as measure
    from ..circuits.evidence.verification import verify_until
    from ..edges.effects.bounds import BoundOptions, bound_unverified

    method: dict[str, Any] = {
        **work.question,
        "effects_file": work.out,
        "nodes": work.ranking.items == "nodes",
        "progress": report,
    }
    draws: dict[str, Any] = {"probability": bounding.probability, "confidence": bounding.confidence}
    if plan.until_bound is not None:
        # verify_until bounds what it leaves as it goes; verify bounds nothing by itself.
        subsets = BoundOptions(samples=bounding.samples, **draws)
        return verify_until(
            work.model, work.pairs, work.names, largest=plan.until_bound, options=subsets, **method
        )
    method |= {"patch_with": source, "frozen": plan.frozen}
    verified = measure(work.model, work.pairs, work.names, **method)
    if not bounding.bound:
        return verified, None
    return verified, bound_unverified(
        work.model,
        work.pairs,
        work.rest,
        **work.question,
        items=work.ranking.items,
        n_samples=bounding.samples,
        **draws,
        progress=report,
    )


def _error(work: _Work, verified: Sequence[Verified], plan: _Plan) -> float | None:
    from ..circuits.evidence.precision import float32_error
    from ..edges.question.question import Question

    method = work.ranking.question["method"]
    question = Question(pairs=work.pairs, metric=method["metric"], direction=method["direction"])
    return float32_error(
        work.model, question, verified, batch_size=work.batch_size, frozen=plan.frozen
    )


# ---- what is shown


def _document(
    work: _Work, verified: Sequence[Verified], bound: Bound | None, error: float | None
) -> dict[str, Any]:
    from ..circuits.record.effects_file import intervals

    estimates = dict(work.ranking.scored)
    return {
        "file": str(work.out),
        "effects": [
            {
                "name": item.name,
                "score": estimates.get(item.name),
                "effect": item.effect,
                "standard_error": item.standard_error,
                "interval": interval,
            }
            for item, interval in zip(verified, intervals(verified), strict=True)
        ],
        "bound": bound and {"largest": bound.largest, "statement": bound.statement()},
        "float32_error": error,
    }


_SHOWN = 20  # rows of a table


def _show(work: _Work, verified: Sequence[Verified]) -> None:
    estimates, items = dict(work.ranking.scored), work.ranking.items
    largest = sorted(verified, key=lambda item: -abs(item.effect))[:_SHOWN]
    rows = [
        [
            item.name,
            f"{item.effect:+.4f}",
            "" if item.standard_error is None else f"{item.standard_error:.4f}",
            "" if item.interval is None else "{:+.4f} to {:+.4f}".format(*item.interval),
            # Paths and groups that were named have no score.
            f"{estimates[item.name]:+.4f}" if item.name in estimates else "",
        ]
        for item in largest
    ]
    show_table(
        f"the {len(rows)} largest of {len(verified)} measured {items}",
        [items[:-1], "effect", "s.e.", "95 % interval", "score"],
        rows,
    )


def _show_rest(
    work: _Work, bound: Bound | None, plan: _Plan, error: float | None, n_verified: int
) -> None:
    """What else is known: of what was not measured, and of how exact it is."""
    from ..circuits.evidence.precision import precision_note

    if bound is not None:
        show_text("\n" + bound.statement(), piped=100)
    elif plan.until_bound is not None:
        show_text("\nall were measured; there is nothing to bound")
    if error is not None:
        show_text(f"\n{precision_note(work.model, error, n_verified)}")
