"""``wiremap verify``: exact effects in rank order."""

from __future__ import annotations

import textwrap
from pathlib import Path

import click

from ..edges.errors import InputError
from . import options
from .console import progress, show_json, show_table

_SHOWN = 20
_BUDGET = 200


@click.command()
@click.argument("scores", type=click.Path(path_type=Path))
@click.option(
    "--budget",
    "--top-k",
    "budget",
    type=click.IntRange(min=1),
    help="How many to measure, best score first (200 by default, or all if they are fewer).",
)
@click.option("--bound", is_flag=True, help="Also bound what was not measured (random subsets).")
@click.option("--confidence", type=float, default=0.99, show_default=True, help="Of the bound.")
@click.option(
    "--samples",
    type=click.IntRange(min=2),
    default=1000,
    show_default=True,
    help="Subsets that the bound draws.",
)
@click.option(
    "--probability",
    type=float,
    default=0.03,
    show_default=True,
    help="With which a subset has each node or edge.",
)
@click.option(
    "--patch-with",
    type=click.Choice(["corrupted", "mean", "mean-by-position", "zero", "noise"]),
    help="Where values patched into nodes come from: each pair's other run by default.",
)
@click.option(
    "--mean-over",
    type=click.Path(path_type=Path),
    help="Pairs whose corrupted prompts a mean is taken over; those measured by default.",
)
@click.option(
    "--noise-scale", type=float, help="Of noise on the embedding, in its standard deviations (3)."
)
@click.option("--noise-seeds", type=click.IntRange(min=1), help="Draws of noise to average (10).")
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
    budget: int | None,
    bound: bool,
    confidence: float,
    samples: int,
    probability: float,
    patch_with: str | None,
    mean_over: Path | None,
    noise_scale: float | None,
    noise_seeds: int | None,
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
    from ..edges.bounds import bound_unverified, subsets_for_bound
    from ..edges.prompts import PromptPairs
    from ..edges.sources import Source

    if scores.is_dir():
        scores = scores / SCORES_FILE
    nodes, edges, question = read_scores(scores)
    how = question["method"]
    items = "nodes" if edges is None else "edges"
    if edges is not None:
        ranked = edges.top(aggregate=how.get("aggregate", "sum"))
    elif nodes is not None:
        ranked = nodes.top(aggregate=how.get("aggregate", "abs-of-mean"))
    else:
        raise InputError(f"{scores}: expected scores of nodes or edges, the file has neither")
    if budget is not None and budget > len(ranked):
        raise InputError(f"expected a budget of at most {len(ranked)}, all there are, got {budget}")
    names = [name for name, _ in ranked]
    names, rest = names[: budget or _BUDGET], names[budget or _BUDGET :]
    out = out or scores.with_suffix(".effects.jsonl")
    if out.exists() and not resume:
        raise InputError(f"{out} exists; go on with it (--resume), or choose another file (-o)")
    given: dict[str, tuple[object, tuple[str, ...]]] = {
        "--mean-over": (mean_over, ("mean", "mean-by-position")),
        "--noise-scale": (noise_scale, ("noise",)),
        "--noise-seeds": (noise_seeds, ("noise",)),
    }
    for option, (value, kinds) in given.items():
        if value is not None and patch_with not in kinds:
            raise InputError(f"{option} goes with --patch-with {' or '.join(kinds)}")
    if edges is not None and patch_with not in (None, "corrupted"):
        raise InputError(
            f"edges are patched with the pairs' other runs, got --patch-with {patch_with}; leave it "
            "out, or measure nodes"
        )
    if bound and patch_with not in (None, "corrupted"):
        raise InputError(
            f"--bound patches with the pairs' other runs, got --patch-with {patch_with}; leave one "
            "of them out"
        )
    if bound:
        subsets_for_bound(rest, samples, probability, confidence, items=items)
    model, pairs = options.reload(question["model"], question["task"], device)
    source = None
    if patch_with is not None and edges is None:
        source = Source(
            patch_with,
            PromptPairs.read(mean_over, model) if mean_over else None,
            3.0 if noise_scale is None else noise_scale,
            noise_seeds or 10,
        )
    try:
        with progress(quiet or as_json) as report:
            verified = measure(
                model,
                pairs,
                names,
                how["metric"],
                how["direction"],
                batch_size,
                out,
                nodes=edges is None,
                patch_with=source,
                progress=lambda done: report("measure", done, len(names)),
            )
            bounded = None
            if bound:
                bounded = bound_unverified(
                    model,
                    pairs,
                    rest,
                    how["metric"],
                    how["direction"],
                    items,
                    samples,
                    probability,
                    confidence,
                    batch_size=batch_size,
                    progress=lambda done: report("bound", done, samples * len(pairs)),
                )
    except KeyboardInterrupt:
        click.echo(f"stopped; what was measured is kept in {out}: --resume goes on", err=True)
        raise
    estimates = dict(ranked)
    if as_json:
        show_json(
            {
                "file": str(out),
                "effects": [
                    {
                        "name": item.name,
                        "score": estimates[item.name],
                        "effect": item.effect,
                        "standard_error": item.standard_error,
                    }
                    for item in verified
                ],
                "bound": None
                if bounded is None
                else {"largest": bounded.largest, "statement": bounded.statement()},
            }
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
        show_table(
            f"the {len(rows)} largest of {len(verified)} measured {items}",
            [items[:-1], "effect", "s.e.", "score"],
            rows,
        )
        if bounded is not None:
            click.echo("\n" + textwrap.fill(bounded.statement(), 100))
        click.echo(f"\nwritten to {out}")
