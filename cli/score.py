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
    "--nodes",
    multiple=True,
    type=click.Choice(["heads", "mlps", "neurons", "residual", "writers"]),
    help="Which nodes; may be given again (heads and mlps by default).",
)
@click.option(
    "--method",
    type=click.Choice(["atp", "atp-qk", "atp-star"]),
    help="For nodes; what the AtP* paper recommends by default.",
)
@click.option("--steps", type=click.IntRange(min=1), help="Steps of --gradient integrated (10).")
@click.option(
    "--positions",
    type=click.Choice(["sum", "each"]),
    help="Nodes of all positions together, or of each token position (sum by default).",
)
@click.option(
    "--aggregate",
    type=click.Choice(["abs-of-mean", "mean-of-abs"]),
    help="What ranks nodes: |mean estimate| over pairs, the default, or mean |estimate|.",
)
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
    nodes: tuple[str, ...],
    method: str | None,
    steps: int | None,
    positions: str | None,
    aggregate: str | None,
    top: int,
    out: Path | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Estimate the effect of all NODES or EDGES at once (attribution patching, AtP*).

    Scores are estimates, in units of the metric: positive carries the behaviour, negative opposes
    it. AtP* and GradDrop give unsigned rankings. Writes them with their names; wiremap verify
    measures the best of them.
    """
    from ..circuits.discovery import describe_question, measure_gap, usual_metric
    from ..circuits.runs import write_scores
    from ..edges.atpstar import NodeScores, check_method, recommended_method, score_nodes
    from ..edges.attribution import check_gradient, score_edges

    of_nodes = {
        "--nodes": nodes or None, "--method": method, "--steps": steps,
        "--positions": positions, "--aggregate": aggregate,
    }  # fmt: skip
    given = [name for name, value in of_nodes.items() if value is not None]
    if what == "edges" and given:
        raise InputError(f"{', '.join(given)}: for scores of nodes, not of edges; leave it out")
    loaded = options.load_model(model, device, dtype, bos)
    asked = options.load_pairs(loaded, task, pairs, corruption, n_pairs, seed)
    metric = metric or usual_metric(asked)
    name = asked.source.get("task") or Path(str(asked.source["pairs"])).stem
    out = out or Path(f"{Path(model).name}-{name}-{what}.safetensors")
    if out.exists() and not force:
        raise InputError(f"{out} exists; replace it (--force), or choose another file (-o)")
    how: dict[str, Any] = {"metric": metric, "direction": direction, "batch_size": batch_size}
    if what == "nodes":
        how["nodes"] = list(nodes or ("heads", "mlps"))
        how["method"] = method or recommended_method(how["nodes"], len(asked))
        how["steps"] = steps or 10
        how["gradient"], _ = check_method(how["method"], gradient, direction, metric, how["steps"])
        how["positions"] = positions or "sum"
    else:
        how["gradient"] = check_gradient(gradient, direction, metric)
    measure_gap(loaded, asked, metric, allow_weak, batch_size)
    score_all = score_nodes if what == "nodes" else score_edges
    with progress(quiet or as_json) as report:
        scores = score_all(
            loaded,
            asked,
            **how,
            progress=lambda done: report(f"score all {what}", done, len(asked)),
        )
    aggregate = aggregate or "abs-of-mean"
    question = describe_question(loaded, asked, **how, aggregate=aggregate)
    write_scores(out, question, scores)
    ranked = scores.top(aggregate=aggregate) if isinstance(scores, NodeScores) else scores.top()
    if as_json:
        show_json({"file": str(out), "scores": [{"name": n, "score": s} for n, s in ranked]})
    elif not quiet:
        rows = [[str(rank), n, f"{s:+.4f}"] for rank, (n, s) in enumerate(ranked[:top], start=1)]
        show_table(
            f"the {len(rows)} largest of {len(ranked)} {what}", ["rank", what[:-1], "score"], rows
        )
        click.echo(f"\n{_method_line(how, aggregate)}")
        click.echo(f"written to {out}; measure the best with: wiremap verify {out}")


def _method_line(how: dict[str, Any], aggregate: str) -> str:
    """What the scores are, in a line."""
    if "method" not in how:
        return f"edge attribution patching, gradient at the {how['gradient']} run"
    unsigned = ", an unsigned ranking" if how["gradient"] == "graddrop" else ""
    return (
        f"method {how['method']}, gradient {how['gradient']}, positions {how['positions']}, "
        f"ranked by {aggregate}{unsigned}"
    )
