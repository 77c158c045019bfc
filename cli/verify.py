"""``wiremap verify``: exact effects in rank order."""

from __future__ import annotations

import textwrap
from pathlib import Path

import click

from ..cli import options
from ..edges.errors import InputError
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
@click.option("--all", "all_of_them", is_flag=True, help="Measure all there are.")
@click.option(
    "--until-bound",
    type=float,
    help="Measure until what is left is bounded below this (metric units), or nothing is left.",
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
@click.option(
    "--frozen",
    type=click.Choice(["none", "heads", "all"]),
    default="none",
    show_default=True,
    help="What keeps its values downstream of an edge: nothing, other heads, or MLPs as well (path "
    "patching to the logits).",
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
@options.device
@options.tf32
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
    all_of_them: bool,
    until_bound: float | None,
    paths: tuple[str, ...],
    groups: tuple[str, ...],
    frozen: str,
    bound: bool,
    confidence: float,
    samples: int,
    probability: float,
    patch_with: str | None,
    mean_over: Path | None,
    noise_scale: float | None,
    noise_seeds: int | None,
    device: str,
    tf32: bool,
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
    from ..circuits.evidence.verification import TOGETHER, BoundOptions, verify_until
    from ..circuits.evidence.verification import verify as measure
    from ..circuits.record.effects_file import intervals
    from ..circuits.record.scores_file import SCORES_FILE, read_scores
    from ..edges.effects.bounds import bound_unverified, subsets_for_bound
    from ..edges.question.prompts import PromptPairs
    from ..edges.question.source import Source

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
    named = [*paths, *(TOGETHER.join(group.split(",")) for group in groups)]
    which: dict[str, object] = {
        "--budget": budget,
        "--all": all_of_them,
        "--until-bound": until_bound,
        "--path and --together": named,
    }
    given_which = [option for option, value in which.items() if value]
    if len(given_which) > 1:
        raise InputError(f"expected one way to say what to measure, got {', '.join(given_which)}")
    if edges is None and (named or frozen != "none"):
        raise InputError("--path, --together and --frozen are for scores of edges")
    names = [name for name, _ in ranked]
    cut = len(names) if all_of_them or until_bound else budget or _BUDGET
    names, rest = named or names[:cut], [] if named else names[cut:]
    if bound and not rest:
        raise InputError("--bound bounds what is not measured; leave it out, or measure fewer")
    if until_bound is not None and (frozen != "none" or patch_with not in (None, "corrupted")):
        raise InputError("--until-bound goes with no --frozen and no --patch-with")
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
        sampling = BoundOptions(
            samples=samples, probability=probability, confidence=confidence, items=items
        )
        subsets_for_bound(rest, sampling)
    model, pairs = options.reload(question["model"], question["task"], device, tf32)
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
            bounded = None
            if until_bound is not None:
                verified, bounded = verify_until(
                    model,
                    pairs,
                    names,
                    largest=until_bound,
                    metric=how["metric"],
                    direction=how["direction"],
                    batch_size=batch_size,
                    effects_file=out,
                    nodes=edges is None,
                    options=BoundOptions(
                        samples=samples, probability=probability, confidence=confidence
                    ),
                    progress=report,
                )
            else:
                verified = measure(
                    model,
                    pairs,
                    names,
                    metric=how["metric"],
                    direction=how["direction"],
                    batch_size=batch_size,
                    effects_file=out,
                    nodes=edges is None,
                    patch_with=source,
                    progress=report,
                    frozen=frozen,
                )
            if bound:
                bounded = bound_unverified(
                    model,
                    pairs,
                    rest,
                    metric=how["metric"],
                    direction=how["direction"],
                    items=items,
                    n_samples=samples,
                    probability=probability,
                    confidence=confidence,
                    batch_size=batch_size,
                    progress=report,
                )
    except KeyboardInterrupt:
        click.echo(f"stopped; what was measured is kept in {out}: --resume goes on", err=True)
        raise
    error = None
    if edges is not None:
        told = {"metric": how["metric"], "direction": how["direction"], "frozen": frozen}
        error = options.float32_error(model, pairs, verified, batch_size=batch_size, **told)
    estimates: dict[str, float] = dict(ranked)
    if as_json:
        show_json(
            {
                "file": str(out),
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
                "bound": None
                if bounded is None
                else {"largest": bounded.largest, "statement": bounded.statement()},
                "float32_error": error,
            }
        )
    elif not quiet:
        largest = sorted(verified, key=lambda item: -abs(item.effect))[:_SHOWN]
        rows = [
            [
                item.name,
                f"{item.effect:+.4f}",
                "" if item.standard_error is None else f"{item.standard_error:.4f}",
                "" if item.interval is None else "{:+.4f} to {:+.4f}".format(*item.interval),
                f"{estimates[item.name]:+.4f}" if item.name in estimates else "",
            ]
            for item in largest
        ]
        show_table(
            f"the {len(rows)} largest of {len(verified)} measured {items}",
            [items[:-1], "effect", "s.e.", "95 % interval", "score"],
            rows,
        )
        if bounded is not None:
            click.echo("\n" + textwrap.fill(bounded.statement(), 100))
        if until_bound is not None and bounded is None:
            click.echo("\nall were measured; there is nothing to bound")
        if error is not None:
            click.echo(f"\n{options.precision_note(model, error, len(verified))}")
        click.echo(f"\nwritten to {out}")
