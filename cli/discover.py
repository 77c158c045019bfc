"""``wiremap discover``: the main job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..edges.errors import InputError
from . import options
from .console import if_stopped, progress, show_json, show_table

if TYPE_CHECKING:
    from ..circuits.result.circuit import Circuit
    from ..circuits.result.evidence import Evidence

_SHOWN = 15


@click.command()
@options.question
@options.gradient
@options.reader
@click.option(
    "--budget",
    "--top-k",
    "budget",
    type=click.IntRange(min=1),
    help="How many edges to verify, best score first (200 by default, on CUDA up to 50,000).",
)
@click.option("--all", "all_of_them", is_flag=True, help="Verify all edges.")
@click.option(
    "--until-bound",
    type=float,
    help="Verify until what is left is bounded below this (metric units).",
)
@click.option(
    "--target",
    type=float,
    help="Keep few verified edges that reach this faithfulness, none to spare (0.9 by default).",
)
@click.option("--threshold", type=float, help="Keep the verified edges of at least this effect.")
@click.option(
    "--alpha",
    type=float,
    help="Keep the verified edges significant at this false discovery rate (Benjamini-Hochberg).",
)
@click.option("--size", type=click.IntRange(min=1), help="Keep this many edges.")
@click.option(
    "--prune",
    type=click.Choice(("top", "greedy")),
    help="How --size chooses: the largest edges (top, the default), or from the logits backwards.",
)
@click.option("--acdc", type=float, metavar="TAU", help="Keep what ACDC keeps; tries every edge.")
@click.option(
    "--bound/--no-bound",
    default=True,
    help="Also bound what was not verified (the default), or do without.",
)
@click.option("--tests", is_flag=True, help="Also test what the circuit claims (see: evaluate).")
@options.tf32
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Run directory (runs/MODEL-TASK)."
)
@click.option("--resume", is_flag=True, help="Finish the run that the directory holds.")
@options.output
def discover(
    model: str,
    task: str | None,
    pairs: Path | None,
    corruption: str | None,
    n_pairs: int | None,
    seed: int | None,
    bos: bool | None,
    kv: str,
    metric: str | None,
    direction: str,
    allow_weak: bool,
    device: str,
    dtype: str,
    batch_size: int | None,
    gradient: str | None,
    steps: int | None,
    schedule: str | None,
    reader: str,
    budget: int | None,
    all_of_them: bool,
    until_bound: float | None,
    target: float | None,
    threshold: float | None,
    alpha: float | None,
    size: int | None,
    prune: str | None,
    acdc: float | None,
    bound: bool,
    tests: bool,
    tf32: bool,
    out: Path | None,
    resume: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Find, prove and draw the circuit of a behaviour.

    Scores all edges, verifies the best by path patching, prunes, evaluates, and writes a run
    directory with the circuit as JSON, HTML (the viewer), DOT, SVG and GraphML. Without options it
    does so for the bundled model.
    """
    from ..circuits.discovery import discover as run
    from ..circuits.record.effects_file import EFFECTS_FILE, read_effects
    from ..circuits.result.document import to_document

    loaded = options.load_model(model, device, dtype, bos, kv, tf32)
    if all_of_them:
        if budget is not None or until_bound is not None:
            raise InputError("--all verifies all edges; leave --budget and --until-bound out")
        budget = loaded.graph.n_edges
    asked = options.load_pairs(loaded, task, pairs, corruption, n_pairs, seed)
    if out is None:
        name = asked.source.get("task") or Path(str(asked.source["pairs"])).stem
        out = Path("runs") / f"{Path(model).name}-{name}"
    with if_stopped(out), progress(quiet or as_json) as report:
        circuit = run(
            loaded,
            asked,
            out,
            metric=metric,
            direction=direction,
            gradient=gradient,
            **options.gradient_options(gradient, steps, schedule),
            reader=reader,
            budget=budget,
            until_bound=until_bound,
            target=target,
            threshold=threshold,
            alpha=alpha,
            size=size,
            prune=prune,
            acdc=acdc,
            bound=bound,
            tests=tests,
            allow_weak=allow_weak,
            batch_size=batch_size,
            resume=resume,
            progress=report,
        )
    if as_json:
        show_json(to_document(circuit))
    elif not quiet:
        _show(circuit, out)
    if not quiet:
        verified = read_effects(out / EFFECTS_FILE)
        method = circuit.method
        error = options.float32_error(
            loaded,
            asked,
            verified,
            metric=method["metric"],
            direction=method["direction"],
            batch_size=batch_size,
        )
        if error is not None:
            click.echo(f"note: {options.precision_note(loaded, error, len(verified))}", err=True)


def _evidence(evidence: Evidence) -> Iterator[str]:
    """What else was measured, in lines."""
    if evidence.metrics is not None:
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
    if (bound := evidence.bound) is not None:
        yield (
            f"missed: no average marginal effect of the {bound.n_edges} unverified edges above "
            f"{bound.largest:.3g}, with {100 * (bound.confidence or 0):g} % confidence (first "
            f"{bound.n_pairs} pairs; circuit.json says what that is)"
        )
    for name, why in (evidence.not_done or {}).items():
        yield f"no {name}: {why}"
    for test in evidence.tests or ():
        yield f"{test.name}: p = {test.p_value:.3g} ({test.small_p})"


def _show(circuit: Circuit, out: Path) -> None:
    from ..circuits.choice.pruning import reaches
    from ..exporters.run_directory import files_written

    edges = sorted(circuit.edges, key=lambda edge: -abs(edge.worth or 0.0))
    rows = [
        [
            edge.name,
            "" if edge.effect is None else f"{edge.effect:+.3f}",
            "" if edge.interval is None else "{:+.3f} to {:+.3f}".format(*edge.interval),
            "" if edge.inclusion is None else f"{edge.inclusion:.2f}",
            "" if edge.score is None else f"{edge.score:+.3f}",
        ]
        for edge in edges[:_SHOWN]
    ]
    columns = ["edge", "effect", "95 % interval", "in resamples", "score"]
    show_table(f"the {len(rows)} largest of {len(edges)} edges", columns, rows)
    why = ", ".join(f"{n} {rule}" for rule, n in (circuit.evidence.removed or {}).items())
    click.echo(f"removed: {why or 'none'}")
    if circuit.faithfulness is not None:
        click.echo("\n" + options.summary(circuit.method["metric"], circuit.faithfulness))
        for line in _evidence(circuit.evidence):
            click.echo(line)
        verified, in_model = circuit.method["edges_verified"], circuit.method["edges_in_model"]
        if not circuit.method.get("bound", True) and verified < in_model:
            click.echo(
                f"missed: nothing bounds the {in_model - verified} unverified edges (--no-bound)"
            )
        target = circuit.method["target"]
        if target is not None and not reaches(circuit.faithfulness.faithfulness, target):
            click.echo(
                f"note: the {verified} verified edges (of {in_model}) do not reach a faithfulness of "
                f"{target:g}; verify more (--budget)",
                err=True,
            )
    click.echo(
        f"\nwritten to {out}: circuit.json {' '.join(files_written(out))} (and the data behind them)"
    )
