"""``wiremap verify``: exact effects in rank order."""

from __future__ import annotations

from pathlib import Path

import click

from ..edges.errors import InputError
from . import options
from .console import progress, show_json, show_table

_SHOWN = 20


@click.command()
@click.argument("scores", type=click.Path(path_type=Path))
@click.option(
    "--budget",
    "--top-k",
    "budget",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    help="How many to measure, best score first.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Rows at once.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="File for the effects (SCORES.effects.jsonl).",
)
@click.option("--resume", is_flag=True, help="Go on with the effects that the file holds.")
@options.output
def verify(
    scores: Path,
    budget: int,
    device: str,
    batch_size: int | None,
    out: Path | None,
    resume: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure the best of SCORES by patching: edges by path patching, nodes by activation patching.

    SCORES is a file of wiremap score, or a run directory; it says which model and prompts it
    belongs to, and they must not have changed since. Effects are appended to a file as they come.
    """
    from ..circuits.runs import SCORES_FILE, read_scores
    from ..circuits.verification import verify as measure

    if scores.is_dir():
        scores = scores / SCORES_FILE
    nodes, edges, question = read_scores(scores)
    found = edges or nodes
    if found is None:
        raise InputError(f"{scores}: expected scores of nodes or edges, the file has neither")
    out = out or scores.with_suffix(".effects.jsonl")
    if out.exists() and not resume:
        raise InputError(f"{out} exists; go on with it (--resume), or choose another file (-o)")
    model, pairs = options.reload(question["model"], question["task"], device)
    how = question["method"]
    ranked = (
        nodes.top(budget, how.get("aggregate", "abs-of-mean"))
        if nodes and not edges
        else found.top(budget)
    )
    try:
        with progress(quiet or as_json) as report:
            verified = measure(
                model,
                pairs,
                [name for name, _ in ranked],
                how["metric"],
                how["direction"],
                batch_size,
                out,
                nodes=edges is None,
                progress=lambda done: report("measure", done, len(ranked)),
            )
    except KeyboardInterrupt:
        click.echo(f"stopped; what was measured is kept in {out}: --resume goes on", err=True)
        raise
    estimates = dict(ranked)
    if as_json:
        show_json(
            [
                {
                    "name": item.name,
                    "score": estimates[item.name],
                    "effect": item.effect,
                    "standard_error": item.standard_error,
                }
                for item in verified
            ]
        )
    elif not quiet:
        largest = sorted(verified, key=lambda item: -abs(item.effect))[:_SHOWN]
        rows = [
            [
                item.name,
                f"{item.effect:+.4f}",
                "" if item.standard_error is None else f"{item.standard_error:.4f}",
                f"{estimates[item.name]:+.4f}",
            ]
            for item in largest
        ]
        what = "node" if edges is None else "edge"
        show_table(
            f"the {len(rows)} largest of {len(verified)} measured {what}s",
            [what, "effect", "s.e.", "score"],
            rows,
        )
        click.echo(f"\nwritten to {out}")
