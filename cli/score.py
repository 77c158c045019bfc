"""``wiremap score``: one scoring method, a ranked table and a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..edges.errors import InputError
from ..edges.nodes import FAMILIES
from . import options
from .console import progress, show_json, show_table

if TYPE_CHECKING:
    from ..edges.atpstar import NodeScores
    from ..edges.attribution import EdgeScores

_METHODS = ("atp", "atp-qk", "atp-star")
_BASELINES = ("iterative", "subsampling", "blocks", "hierarchical")


@click.command()
@click.argument("what", type=click.Choice(["nodes", "edges"]))
@options.question
@options.gradient
@click.option(
    "--nodes",
    multiple=True,
    type=click.Choice(list(FAMILIES)),
    help="Which nodes; may be given again (heads and mlps by default).",
)
@click.option(
    "--method",
    type=click.Choice([*_METHODS, *_BASELINES]),
    help="For nodes; what the AtP* paper recommends by default. The last four patch, and need no "
    "gradients.",
)
@click.option(
    "--samples", type=click.IntRange(min=2), help="Subsets of --method subsampling (300)."
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
    samples: int | None,
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
    from ..edges.attribution import score_edges
    from ..edges.baselines import rank_nodes
    from ..edges.gradients import resolve_gradient

    of_nodes = {
        "--nodes": nodes or None, "--method": method, "--samples": samples, "--steps": steps,
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
        how["positions"] = positions or "sum"
        how["method"] = method or recommended_method(how["nodes"], len(asked), gradient)
        if how["method"] in _BASELINES:
            _refuse_options(how["method"], {"--gradient": gradient, "--steps": steps})
            how |= {"n_samples": samples or 300, "seed": seed or 0}
        else:
            _refuse_options(how["method"], {"--samples": samples})
            how["steps"] = steps or 10
            rule, _ = check_method(how["method"], gradient, direction, metric, how["steps"])
            how["gradient"] = rule.name
            if how["gradient"] != "integrated":
                _refuse_options(how["method"], {"--steps": steps})
    else:
        how["gradient"] = resolve_gradient(gradient, direction, metric).name
    measure_gap(loaded, asked, metric, allow_weak, batch_size)
    with progress(quiet or as_json) as report:
        if how.get("method") in _BASELINES:
            scores = rank_nodes(loaded, asked, **how).scores
        else:
            score_all = score_nodes if what == "nodes" else score_edges
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
        sign = "" if isinstance(scores, NodeScores) and scores.unsigned else "+"
        rows = [
            [str(rank), n, f"{s:{sign}.4f}"] for rank, (n, s) in enumerate(ranked[:top], start=1)
        ]
        show_table(
            f"the {len(rows)} largest of {len(ranked)} {what}", ["rank", what[:-1], "score"], rows
        )
        click.echo(f"\n{_method_line(scores, how, aggregate)}")
        click.echo(f"written to {out}; measure the best with: wiremap verify {out}")


def _refuse_options(method: str, given: dict[str, object]) -> None:
    superfluous = [name for name, value in given.items() if value is not None]
    if superfluous:
        raise InputError(
            f"{', '.join(superfluous)}: not for method {method} with this gradient; leave it out"
        )


def _method_line(scores: NodeScores | EdgeScores, how: dict[str, Any], aggregate: str) -> str:
    """What the scores are, in a line."""
    if "method" not in how:
        return f"edge attribution patching, gradient at the {how['gradient']} run"
    gradient = f", gradient {how['gradient']}" if "gradient" in how else ""
    unsigned = ", an unsigned ranking" if getattr(scores, "unsigned", False) else ""
    return (
        f"method {how['method']}{gradient}, positions {how['positions']}, ranked by "
        f"{aggregate}{unsigned}"
    )
