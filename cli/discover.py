"""``wiremap discover``: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..edges.errors import WiremapError
from . import options
from .console import progress, show_json, show_table

if TYPE_CHECKING:
    from ..circuits.circuit import Circuit

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
    help="How many edges to verify, best score first (200 by default).",
)
@click.option(
    "--target",
    type=float,
    help="Keep the fewest verified edges that reach this faithfulness (0.9 by default).",
)
@click.option("--threshold", type=float, help="Keep the verified edges of at least this effect.")
@click.option("--size", type=click.IntRange(min=1), help="Keep this many edges.")
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
    target: float | None,
    threshold: float | None,
    size: int | None,
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
    from ..circuits.discovery import DEFAULT_BUDGET
    from ..circuits.discovery import discover as run
    from ..circuits.document import to_document

    loaded = options.load_model(model, device, dtype, bos, kv)
    asked = options.load_pairs(loaded, task, pairs, corruption, n_pairs, seed)
    if out is None:
        name = asked.source.get("task") or Path(str(asked.source["pairs"])).stem
        out = Path("runs") / f"{Path(model).name}-{name}"
    try:
        with progress(quiet or as_json) as report:
            circuit = run(
                loaded,
                asked,
                out,
                metric=metric,
                direction=direction,
                gradient=gradient,
                **options.gradient_options(gradient, steps, schedule),
                reader=reader,
                budget=DEFAULT_BUDGET if budget is None else budget,
                target=target,
                threshold=threshold,
                size=size,
                allow_weak=allow_weak,
                batch_size=batch_size,
                resume=resume,
                progress=report,
            )
    except KeyboardInterrupt:
        click.echo(
            f"stopped; what was measured is kept in {out}: the same command with --resume goes on",
            err=True,
        )
        raise
    written = _export(circuit, out)
    if as_json:
        show_json(to_document(circuit))
    elif not quiet:
        _show(circuit, out, written)


def _export(circuit: Circuit, out: Path) -> list[str]:
    """Writes the circuit in the formats of a run directory; says what could not be drawn."""
    from ..exporters import write_circuit

    written: list[str] = []
    for name in ("report.html", "circuit.html", "circuit.dot", "circuit.graphml", "circuit.svg"):
        try:
            write_circuit(circuit, out / name, "report" if name == "report.html" else None)
            written.append(name)
        except WiremapError as error:
            if name != "circuit.svg":
                raise
            click.echo(f"note: {error}", err=True)
    return written


def _show(circuit: Circuit, out: Path, written: list[str]) -> None:
    edges = sorted(circuit.edges, key=lambda edge: -abs(edge.worth or 0.0))
    rows = [
        [
            edge.name,
            "" if edge.effect is None else f"{edge.effect:+.3f}",
            "" if edge.standard_error is None else f"{edge.standard_error:.3f}",
            "" if edge.score is None else f"{edge.score:+.3f}",
        ]
        for edge in edges[:_SHOWN]
    ]
    show_table(
        f"the {len(rows)} largest of {len(edges)} edges", ["edge", "effect", "s.e.", "score"], rows
    )
    if not edges:
        click.echo("note: no path from input to logits was kept; keep more edges", err=True)
    if circuit.faithfulness is not None:
        click.echo("\n" + options.summary(circuit.method["metric"], circuit.faithfulness))
        target = circuit.method["target"]
        if target is not None and not circuit.faithfulness.faithfulness >= target:
            verified, in_model = circuit.method["edges_verified"], circuit.method["edges_in_model"]
            click.echo(
                f"note: the {verified} verified edges (of {in_model}) do not reach a faithfulness of "
                f"{target:g}; verify more (--budget)",
                err=True,
            )
    click.echo(f"\nwritten to {out}: circuit.json {' '.join(written)} (and the data behind them)")
