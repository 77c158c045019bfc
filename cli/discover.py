"""``wiremap discover``: the main job."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..edges.errors import InputError
from ..edges.names.vocabulary import (
    BOUNDED,
    BUDGET,
    HELD_OUT_SHARE,
    INTEGRATED,
    PRUNE,
    READER,
    TARGET,
)
from . import options
from .asked import Asked, Scoring, Shown, gathered, given
from .console import if_stopped, progress, show_json, show_note, show_table, show_text
from .loading import check_shape, load_model, load_split, subject
from .reading import Reading, read, scores_of
from .summary import missed, summary

if TYPE_CHECKING:
    from ..circuits.record.given_scores import GivenScores
    from ..circuits.result.circuit import Circuit
    from ..circuits.result.evidence import Evidence
    from ..edges.model.transformer import Model
    from ..edges.question.prompts import PromptPairs
    from ..exporters.hypotheses import Claim


@dataclass(frozen=True, kw_only=True)
class _Finding:
    """How many edges are verified, which are kept, and what else is tested; see ``discover``."""

    bound: bool
    tests: bool
    budget: int | timedelta | None
    until_bound: float | None
    faithful_to: str | None
    target: float | None
    threshold: float | None
    alpha: float | None
    size: int | None
    prune: str | None
    acdc: float | None


class _Budget(click.ParamType[int | timedelta]):
    """A number of edges, or a time."""

    name = "edges|time"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | timedelta:
        from ..circuits.choice.budget import parse_budget

        try:
            return parse_budget(str(value))
        except InputError as error:
            self.fail(str(error), param, ctx)


_kept = options.together(
    options.number(
        "--target",
        help="Search for few edges whose faithfulness together lies between this and 2 less this "
        f"({TARGET} by default).",
    ),
    click.option(
        "--faithful-to",
        metavar="METRIC",
        help="What the target is about: the metric by default; kl for all that the model says.",
    ),
    options.number("--threshold", help="Keep the verified edges of at least this effect."),
    options.number(
        "--alpha",
        help="Keep the verified edges significant at this false discovery rate "
        "(Benjamini-Hochberg).",
    ),
    options.count("--size", help="Keep this many edges."),
    options.choice(
        "--prune",
        PRUNE,
        help="How --size chooses: the largest edges (top, the default), or from the logits "
        "backwards.",
    ),
    options.number("--acdc", metavar="TAU", help="Keep what ACDC keeps; tries every edge."),
)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """Where the run goes, how much of it there is to do, and what it is judged on."""

    all_of_them: bool
    held_out: str | None
    out: Path | None
    resume: bool
    scores: Path | None


@click.command()
@options.question
@options.gradient
@options.reader
@options.file(
    "--scores",
    help="Scores of all edges to take in the place of scoring them: scores.safetensors, "
    "importances.json, or a table.",
)
@options.reading
@click.option(
    "--budget",
    "--top-k",
    "budget",
    type=_Budget(),
    help="How many edges to verify, the circuit's own first, then the best others "
    f"({BUDGET['cpu']} by default, on CUDA up to {BUDGET['cuda']:,}); or the time of the whole run, "
    "such as 5m.",
)
@options.flag("--all", "all_of_them", help="Verify all edges.")
@options.until_bound("Verify until what is left is bounded below this (metric units).")
@_kept
@click.option(
    "--bound/--no-bound",
    default=BOUNDED,
    help="Also bound what was not verified (the default), or do without.",
)
@options.flag("--tests", help="Also test what the circuit claims (see: evaluate).")
@click.option(
    "--held-out",
    metavar="SHARE|FILE",
    help="What the circuit is judged on and not found on: a share of --pairs, a file of others, or "
    f"0 for nothing. By default {HELD_OUT_SHARE:g} of --pairs, and of a built-in task as many pairs more.",
)
@options.tf32
@options.out("Run directory (runs/MODEL-TASK).")
@options.flag("--resume", help="Finish the run that the directory holds.")
@options.output
@gathered(asked=Asked, scoring=Scoring, reading=Reading, finding=_Finding, run=_Run, shown=Shown)
def discover(
    asked: Asked,
    scoring: Scoring,
    reading: Reading,
    finding: _Finding,
    run: _Run,
    shown: Shown,
) -> None:
    """Find, prove and draw the circuit of a behaviour.

    Scores all edges, searches for a small set of them that does what the model does, verifies its
    edges by path patching, judges it on prompts the search has not seen, and writes a run directory
    with the circuit as JSON, HTML (the viewer), DOT, SVG and GraphML. Without options it does so
    for the bundled model.
    """
    from ..circuits.discovery import discover as find
    from ..circuits.result.document import to_document

    claim = _scores(run.scores, scoring, reading, shown)
    model = load_model(asked if claim is None else _with_readers_of(claim, asked))
    # Options that contradict each other end the command before any pair is run.
    wanted = _wanted(model, finding, run)
    pairs, held_out = load_split(model, asked, run.held_out)
    out = run.out or Path("runs") / subject(model, pairs)
    with if_stopped(out), progress(shown.no_progress) as report:
        circuit = find(
            model,
            pairs,
            out,
            metric=asked.metric,
            direction=asked.direction,
            gradient=scoring.gradient,
            **scoring.settled(scoring.gradient or INTEGRATED),
            reader=scoring.reader,
            held_out=held_out,
            **wanted,
            allow_weak=asked.allow_weak,
            scores=None if claim is None else _given(claim, model),
            batch_size=asked.batch_size,
            resume=run.resume,
            progress=report,
        )
    if shown.as_json:
        show_json(to_document(circuit))
    elif not shown.quiet:
        _show(circuit, out)
    if claim is not None and claim.sign_unsaid and not shown.quiet:
        _show_signs(circuit, reading.flip_signs)
    if not shown.quiet:
        # Last, as it loads the model once more; on stderr, so beside JSON as well.
        _show_precision(model, pairs, circuit, out)


def _scores(path: Path | None, scoring: Scoring, reading: Reading, shown: Shown) -> Claim | None:
    """The scores that the search begins with, if it is not to make them."""
    if path is None:
        if options := given(
            {"--weight": reading.weight, "--flip-signs": reading.flip_signs or None}
        ):
            raise InputError(f"{', '.join(options)}: goes with --scores; name the file")
        return None
    made = given({"--gradient": scoring.gradient, **scoring.options})
    if scoring.reader != READER:
        made["--reader"] = scoring.reader
    if made:
        raise InputError(f"--scores {path} are there already; leave {', '.join(made)} out")
    claim = read(scores_of(path), reading, shown.quiet)
    if claim.hypothesis is not None:
        raise InputError(
            f"{path}: expected scores of all edges (scores.safetensors, importances.json, a table), "
            "got a circuit"
        )
    return claim


def _show_signs(circuit: Circuit, flipped: bool) -> None:
    """A note, if the effects measured are of the other sign than the scores that were given."""
    effects = [edge for edge in circuit.edges if edge.effect is not None and edge.score is not None]
    opposite = [edge for edge in effects if (edge.score or 0.0) * (edge.effect or 0.0) < 0]
    against, whole = (sum(abs(edge.effect or 0.0) for edge in part) for part in (opposite, effects))
    if 2 * against > whole:
        show_note(
            f"the signs of the scores contradict what was measured: of {len(effects)} verified edges "
            f"{len(opposite)} have an effect of the other sign; "
            + ("leave --flip-signs out" if flipped else "turn them (--flip-signs)")
        )


def _with_readers_of(claim: Claim, asked: Asked) -> Asked:
    """The options, with the scores' readers of keys and values unless others are asked for."""
    source = click.get_current_context().get_parameter_source("kv")
    usual = source is click.core.ParameterSource.DEFAULT
    return replace(asked, kv=claim.kv) if usual and claim.kv is not None else asked


def _given(claim: Claim, model: Model) -> GivenScores:
    from ..circuits.record.given_scores import given_scores

    if claim.shape is not None:
        check_shape(model, claim.shape)
    return given_scores(model.graph, claim.edges, str(claim.path))


def _wanted(model: Model, finding: _Finding, run: _Run) -> dict[str, Any]:
    """What to verify and keep; ``--all`` is a budget of all edges."""
    # The fields have the names that ``circuits.discover`` calls its parameters by.
    wanted = asdict(finding)
    if run.all_of_them:
        if finding.budget is not None or finding.until_bound is not None:
            raise InputError("--all verifies all edges; leave --budget and --until-bound out")
        wanted["budget"] = model.graph.n_edges
    return wanted


def _show_precision(model: Model, pairs: PromptPairs, circuit: Circuit, out: Path) -> None:
    """How far effects that were not measured in float32 are off."""
    from ..circuits.evidence.precision import float32_error, precision_note
    from ..circuits.record.effects_file import EFFECTS_FILE, read_effects
    from ..edges.question.question import Question

    verified = read_effects(out / EFFECTS_FILE)
    metric, direction, batch_size = (
        circuit.method[name] for name in ("metric", "direction", "batch_size")
    )
    question = Question(pairs=pairs, metric=metric, direction=direction)
    error = float32_error(model, question, verified, batch_size=batch_size)
    if error is not None:
        show_note(precision_note(model, error, len(verified)))


def _evidence(evidence: Evidence) -> Iterator[str]:
    """What else was measured, in lines."""
    if evidence.metrics is not None:
        # The metric kl is minus the divergence, so that more is better.
        kl, accuracy = evidence.metrics["kl"], evidence.metrics["accuracy"]
        yield (
            f"KL from the model {-kl.circuit:.3g} nats (corrupted {-kl.empty:.3g}), accuracy "
            f"{accuracy.circuit:.2f} (model {accuracy.full:.2f})"
        )
    if (curve := evidence.curve) is not None:
        yield f"all edges by score, at ten sizes: CPR {curve.cpr:.3f}, CMD {curve.cmd:.3f}"
    if (stability := evidence.stability) is not None:
        yield (
            f"over {stability.resamples} resamples of the pairs, circuits of {stability.rule} agree "
            f"to a mean Jaccard of {stability.jaccard:.2f}"
        )
    if evidence.sample is not None:
        yield from missed(evidence.sample)
    if (bound := evidence.bound) is not None:
        yield (
            f"missed: no average marginal effect of {bound.n_edges} unverified edges next in rank "
            f"above {bound.largest:.3g}, with {100 * (bound.confidence or 0):g} % confidence "
            f"({bound.n_pairs} pairs; circuit.json says what that is)"
        )
    for name, why in (evidence.not_done or {}).items():
        yield f"no {name}: {why}"
    for test in evidence.tests or ():
        yield f"{test.name}: p = {test.p_value:.3g} ({test.small_p})"


_SHOWN = 15  # rows of a table


def _show(circuit: Circuit, out: Path) -> None:
    from ..circuits.result.headline import headline, remarks
    from ..exporters.run_directory import files_written

    show_text(headline(circuit))
    for remark in remarks(circuit):
        show_text(f"  {remark}")
    show_text("")
    edges = sorted(circuit.edges, key=lambda edge: -abs(edge.worth or 0.0))
    rows = [
        [
            edge.name,
            "" if edge.effect is None else f"{edge.effect:+.3f}",
            "" if edge.interval is None else "{:+.3f} to {:+.3f}".format(*edge.interval),
            "" if edge.loss is None else f"{edge.loss:+.3f}",
            "" if edge.score is None else f"{edge.score:+.3f}",
        ]
        for edge in edges[:_SHOWN]
    ]
    columns = ["edge", "effect", "95 % interval", "loss without", "score"]
    show_table(f"the {len(rows)} largest of {len(edges)} edges", columns, rows)
    why = ", ".join(f"{n:,} {rule}" for rule, n in (circuit.evidence.removed or {}).items())
    show_text(f"removed: {why or 'none'}")
    if circuit.faithfulness is not None:
        show_text("\n" + summary(circuit.method["metric"], circuit.faithfulness))
        for line in _evidence(circuit.evidence):
            show_text(line)
        verified, in_model = circuit.method["edges_verified"], circuit.method["edges_in_model"]
        # Where a bound was wanted, the evidence has it, or why there is none.
        if not circuit.method.get("bound", True) and verified < in_model:
            show_text(
                f"missed: nothing bounds the {in_model - verified} unverified edges (--no-bound)"
            )
    show_text(
        f"\nwritten to {out}: circuit.json {' '.join(files_written(out))} (and the data behind them)"
    )
