"""``wiremap score``: one scoring method, a ranked table and a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..edges.errors import InputError
from . import options
from .console import progress, show_json, show_table


@click.command()
@click.argument("what", type=click.Choice(["nodes", "edges"]))
@options.question
@options.gradient
@click.option(
    "--top", type=click.IntRange(min=1), default=20, show_default=True, help="Rows shown."
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="File for the scores (MODEL-TASK-WHAT.safetensors).",
)
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@options.output
def score(
    what: str,
    model: str,
    task: str | None,
    pairs: Path | None,
    corruption: str | None,
    n_pairs: int | None,
    seed: int | None,
    bos: bool | None,
    metric: str | None,
    direction: str,
    allow_weak: bool,
    device: str,
    dtype: str,
    batch_size: int | None,
    gradient: str | None,
    top: int,
    out: Path | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Estimate the effect of all NODES or EDGES at once (attribution patching).

    Scores are estimates, in units of the metric: positive carries the behaviour, negative opposes
    it. Writes them with their names; wiremap verify measures the best of them.
    """
    from ..circuits.discovery import describe_question, measure_gap, usual_metric
    from ..circuits.runs import write_scores
    from ..edges.attribution import score_edges, score_nodes

    loaded = options.load_model(model, device, dtype, bos)
    asked = options.load_pairs(loaded, task, pairs, corruption, n_pairs, seed)
    metric = metric or usual_metric(asked)
    name = asked.source.get("task") or Path(str(asked.source["pairs"])).stem
    out = out or Path(f"{Path(model).name}-{name}-{what}.safetensors")
    if out.exists() and not force:
        raise InputError(f"{out} exists; replace it (--force), or choose another file (-o)")
    measure_gap(loaded, asked, metric, allow_weak, batch_size)
    how: dict[str, Any] = {
        "metric": metric,
        "gradient": gradient,
        "direction": direction,
        "batch_size": batch_size,
    }
    score_all = score_nodes if what == "nodes" else score_edges
    with progress(quiet or as_json) as report:
        scores = score_all(
            loaded,
            asked,
            **how,
            progress=lambda done: report(f"score all {what}", done, len(asked)),
        )
    write_scores(out, describe_question(loaded, asked, **how), scores)
    ranked = scores.top()
    if as_json:
        show_json({"file": str(out), "scores": [{"name": n, "score": s} for n, s in ranked]})
    elif not quiet:
        rows = [[str(rank), n, f"{s:+.4f}"] for rank, (n, s) in enumerate(ranked[:top], start=1)]
        show_table(
            f"the {len(rows)} largest of {len(ranked)} {what}", ["rank", what[:-1], "score"], rows
        )
        click.echo(f"\nwritten to {out}; measure the best with: wiremap verify {out}")
