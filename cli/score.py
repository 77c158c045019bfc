"""``wiremap score nodes|edges``: one scoring method, a ranked table and files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..cli import options
from ..edges.errors import InputError
from ..edges.names.nodes import FAMILIES
from .console import progress, show_json, show_table

if TYPE_CHECKING:
    from ..edges.model.transformer import Model
    from ..edges.question.prompts import PromptPairs
    from ..edges.scores.crossing import Crossings
    from ..edges.scores.edge_scores import EdgeScores
    from ..edges.scores.node_scores import NodeScores
    from ..edges.scores.refinement import SplitScores

_METHODS = ("atp", "atp-qk", "atp-star")
_BASELINES = ("iterative", "subsampling", "blocks", "hierarchical")


@click.group()
def score() -> None:
    """Estimate the effect of all nodes, or of all edges, at once."""


def _into_a_file(command: options.Command) -> options.Command:
    """Options of what comes out."""
    for option in (
        click.option("--force", is_flag=True, help="Replace files that exist."),
        click.option(
            "-o",
            "--out",
            type=click.Path(path_type=Path),
            help="File for the scores (MODEL-TASK-WHAT.safetensors).",
        ),
        click.option(
            "--top", type=click.IntRange(min=1), default=20, show_default=True, help="Rows shown."
        ),
    ):
        command = option(command)
    return command


@score.command()
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
    help="What the AtP* paper recommends by default. The last four patch, and need no gradients.",
)
@click.option(
    "--samples", type=click.IntRange(min=2), help="Subsets of --method subsampling (300)."
)
@click.option(
    "--positions",
    type=click.Choice(["sum", "each"]),
    default="sum",
    show_default=True,
    help="Nodes of all positions together, or of each token position.",
)
@click.option(
    "--aggregate",
    type=click.Choice(["abs-of-mean", "mean-of-abs"]),
    default="abs-of-mean",
    show_default=True,
    help="What ranks nodes: |mean estimate| over pairs, or mean |estimate|.",
)
@_into_a_file
@options.output
def nodes(
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
    nodes: tuple[str, ...],
    method: str | None,
    samples: int | None,
    positions: str,
    aggregate: str,
    top: int,
    out: Path | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Estimate the effects of all nodes at once: attribution patching, AtP* and their like.

    Scores are estimates, in units of the metric: positive carries the behaviour, negative opposes
    it. AtP* and GradDrop give unsigned rankings. wiremap verify measures the best of them.
    """
    from ..edges.scores.baselines import rank_nodes
    from ..edges.scores.node_scores import check_method, recommended_method, score_nodes

    loaded = options.load_model(model, device, dtype, bos, kv)
    asked = options.load_pairs(loaded, task, pairs, corruption, n_pairs, seed)
    (out,) = _places(loaded, asked, "nodes", out, force, (".safetensors",))
    how = _how(loaded, asked, metric, direction, batch_size, allow_weak)
    how["nodes"] = list(nodes or ("heads", "mlps"))
    how["positions"] = positions
    how["method"] = method or recommended_method(how["nodes"], len(asked), gradient)
    if how["method"] in _BASELINES:
        given = {"--gradient": gradient, "--steps": steps, "--schedule": schedule}
        _refuse_options(f"method {how['method']}", given)
        how |= {"n_samples": samples or 300, "seed": seed or 0}
    else:
        _refuse_options(f"method {how['method']}", {"--samples": samples})
        how |= options.gradient_options(gradient, steps, schedule)
        rule, _ = check_method(
            how["method"], gradient, direction, how["metric"], how["steps"], how["schedule"]
        )
        how["gradient"] = rule.name
    with progress(quiet or as_json) as report:
        if how["method"] in _BASELINES:
            scores = rank_nodes(loaded, asked, **how).scores
        else:
            scores = score_nodes(
                loaded,
                asked,
                **how,
                progress=report,
            )
    _write(out, loaded, asked, {**how, "aggregate": aggregate}, scores)
    ranked = scores.top(aggregate=aggregate)
    gradient_line = f", gradient {how['gradient']}" if "gradient" in how else ""
    line = (
        f"method {how['method']}{gradient_line}, positions {positions}, ranked by {aggregate}"
        f"{', an unsigned ranking' if scores.unsigned else ''}"
    )
    _show("nodes", ranked, top, scores.unsigned, line, {"scores": out}, as_json, quiet)


@score.command()
@options.question
@options.gradient
@options.reader
@click.option(
    "--candidates",
    type=click.IntRange(min=1),
    help="Ask --reader exact only about so many edges, the best by the linear one.",
)
@click.option(
    "--positions",
    type=click.Choice(["sum", "each", "spans"]),
    default="sum",
    show_default=True,
    help="Also score each token position, or the named spans of the pairs file.",
)
@click.option(
    "--aggregate",
    type=click.Choice(["sum", "sum-of-abs"]),
    default="sum",
    show_default=True,
    help="What ranks edges: the sum over positions, or the sum of absolute values by position.",
)
@click.option(
    "--crossing",
    type=click.IntRange(min=1),
    help="Split so many of the best edges into keys and values by query position, too.",
)
@click.option(
    "--split",
    help="Also score the parts of an MLP as writers and readers: m5:neurons, m5:experts.",
)
@click.option("--experts", is_flag=True, help="--split of every mixture of experts.")
@click.option(
    "--memory-limit",
    type=click.FloatRange(min=0, min_open=True),
    help="GiB to work with; 1 on a CPU, 40 % of what is free on a GPU by default.",
)
@click.option(
    "--importances",
    is_flag=True,
    help="Also write EAP-IG's importances.json (with --kv per-query where heads share keys).",
)
@_into_a_file
@options.output
def edges(
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
    candidates: int | None,
    positions: str,
    aggregate: str,
    crossing: int | None,
    split: str | None,
    experts: bool,
    memory_limit: float | None,
    importances: bool,
    top: int,
    out: Path | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Estimate the effects of all edges at once: a gradient rule times a reader rule.

    Scores are estimates, in units of the metric: positive carries the behaviour, negative opposes
    it. Writes them with their names and a heat map; wiremap verify measures the best of them.
    """
    from ..edges.question.spans import one_length
    from ..edges.scores.crossing import score_crossings
    from ..edges.scores.edge_scores import check_reader, score_edges
    from ..edges.scores.refinement import parse_split, score_split
    from ..edges.scores.rules import recommended_gradient, resolve_gradient
    from ..exporters.formats.importances import check_names

    loaded = options.load_model(model, device, dtype, bos, kv)
    asked = options.load_pairs(loaded, task, pairs, corruption, n_pairs, seed)
    suffixes = (".safetensors", ".svg", *((".importances.json",) if importances else ()))
    places = _places(loaded, asked, "edges", out, force, suffixes)
    splits = [split] if split else []
    if experts:
        blocks = enumerate(loaded.blocks)
        splits += [f"m{layer}:experts" for layer, block in blocks if block.mlp.experts()]
        if not splits:
            raise InputError(f"model {loaded.name} has no mixture of experts; leave --experts out")
    splits = list(dict.fromkeys(splits))
    for one in splits:
        parse_split(loaded, one)
    if importances:
        check_names(loaded.graph)
    if aggregate != "sum" and positions == "sum":
        raise InputError(
            f"aggregate {aggregate} needs scores by position (--positions each or spans)"
        )
    check_reader(reader, candidates, loaded.graph)
    if crossing is not None:
        one_length(asked)
    how = _how(loaded, asked, metric, direction, batch_size, allow_weak)
    gradient = gradient or recommended_gradient(how["metric"], loaded)
    how |= options.gradient_options(gradient, steps, schedule)
    rule = resolve_gradient(gradient, direction, how["metric"])
    how["gradient"] = rule.name
    if rule.unsigned and (splits or crossing):
        raise InputError(
            f"--split and --crossing need signed scores, which gradient {rule.name} has not; use "
            "another gradient (--gradient integrated)"
        )
    limit = None if memory_limit is None else int(memory_limit * 2**30)
    with progress(quiet or as_json) as report:
        scores = score_edges(
            loaded,
            asked,
            **how,
            reader=reader,
            candidates=candidates,
            positions=positions,
            memory_limit=limit,
            progress=report,
        )
        parts = [
            score_split(
                loaded,
                asked,
                one,
                **how,
                memory_limit=limit,
                progress=report,
            )
            for one in splits
        ]
        crossings = None
        if crossing is not None:
            across = [name for name, _ in scores.top() if name.endswith(("<k>", "<v>"))]
            crossings = score_crossings(loaded, asked, across[:crossing], **how, memory_limit=limit)
    how |= {
        "reader": reader,
        "candidates": candidates,
        "positions": positions,
        "aggregate": aggregate,
    }
    ranked = scores.top(aggregate=aggregate)
    kinds: tuple[str, ...] = ("scores", "heat map", "importances")
    written: dict[str, Path] = dict(zip(kinds, places, strict=False))
    tables = [*parts] if crossings is None else [*parts, crossings]
    _write(written["scores"], loaded, asked, how, scores, *tables)
    _draw(
        written["heat map"], scores, aggregate, f"{Path(loaded.name).name}: {len(ranked):,} edges"
    )
    if importances:
        _write_importances(written["importances"], loaded, scores)
    line = (
        f"gradient {how['gradient']}, reader {reader}"
        f"{f', the best {candidates:,} by the linear one' if candidates else ''}, positions "
        f"{positions}, ranked by {aggregate}{', an unsigned ranking' if scores.unsigned else ''}"
    )
    finer: dict[str, list[tuple[str, float]]] = {}
    if scores.by_position is not None:
        finer["edges by position"] = scores.top_by_position()
    if crossings is not None:
        finer["edges from key to query position"] = crossings.top()
    for one in parts:
        finer[f"edges of the parts of {one.node}"] = one.top()
    _show("edges", ranked, top, scores.unsigned, line, written, as_json, quiet, finer)


def _places(
    loaded: Model,
    asked: PromptPairs,
    what: str,
    out: Path | None,
    force: bool,
    suffixes: tuple[str, ...],
) -> list[Path]:
    """Where the files go. Raises InputError if one is there and may not be replaced."""
    name = asked.source.get("task") or Path(str(asked.source["pairs"])).stem
    out = out or Path(f"{Path(loaded.name).name}-{name}-{what}.safetensors")
    places = [out, *(out.with_suffix(suffix) for suffix in suffixes[1:])]
    for place in places:
        if place.exists() and not force:
            raise InputError(f"{place} exists; replace it (--force), or choose another file (-o)")
    return places


def _how(
    loaded: Model,
    asked: PromptPairs,
    metric: str | None,
    direction: str,
    batch_size: int | None,
    allow_weak: bool,
) -> dict[str, Any]:
    """What nodes and edges are asked alike, once the model is known to do the task."""
    from ..circuits.evidence.gap import measure_gap
    from ..circuits.tasks.task import usual_metric

    metric = metric or usual_metric(asked)
    measure_gap(loaded, asked, metric, allow_weak=allow_weak, batch_size=batch_size)
    return {"metric": metric, "direction": direction, "batch_size": batch_size}


def _write(
    out: Path,
    loaded: Model,
    asked: PromptPairs,
    how: dict[str, Any],
    *scores: NodeScores | EdgeScores | SplitScores | Crossings,
) -> None:
    from ..circuits.describe import describe_question
    from ..circuits.record.scores_file import write_scores

    write_scores(out, describe_question(loaded, asked, **how), *scores)


def _draw(out: Path, scores: EdgeScores, aggregate: str, title: str) -> None:
    from ..edges.files import write_atomically
    from ..exporters.pictures.heatmap import to_heatmap

    table = scores.aggregated(aggregate).cpu().numpy()
    write_atomically(out, to_heatmap(scores.graph, table, title))


def _write_importances(out: Path, loaded: Model, scores: EdgeScores) -> None:
    from ..exporters.formats.importances import write_importances

    table = scores.scores.cpu().tolist()
    write_importances(
        out, loaded.graph, loaded.d_model, lambda writer, reader: table[writer][reader]
    )


def _refuse_options(what: str, given: Mapping[str, object]) -> None:
    superfluous = [name for name, value in given.items() if value is not None]
    if superfluous:
        raise InputError(f"{', '.join(superfluous)}: not for {what}; leave it out")


def _show(
    what: str,
    ranked: list[tuple[str, float]],
    top: int,
    unsigned: bool,
    line: str,
    written: dict[str, Path],
    as_json: bool,
    quiet: bool,
    finer: Mapping[str, list[tuple[str, float]]] | None = None,
) -> None:
    finer = finer or {}
    files = {name: str(path) for name, path in written.items()}
    if as_json:
        show_json(
            {
                "file": files["scores"],
                "files": files,
                "scores": _named(ranked),
                **{title: _named(some) for title, some in finer.items()},
            }
        )
    elif not quiet:
        title = f"the {min(top, len(ranked))} largest of {len(ranked):,} {what}"
        _show_rows(title, ranked[:top], what[:-1], unsigned)
        click.echo(f"\n{line}")
        others = "".join(f"; {name}: {path}" for name, path in files.items() if name != "scores")
        click.echo(
            f"written to {files['scores']}{others}\n"
            f"measure the best with: wiremap verify {files['scores']}"
        )
        for table, some in finer.items():
            _show_rows(table, some[:top], unsigned=unsigned)


def _named(ranked: list[tuple[str, float]]) -> list[dict[str, str | float]]:
    return [{"name": name, "score": value} for name, value in ranked]


def _show_rows(
    title: str, ranked: list[tuple[str, float]], what: str = "edge", unsigned: bool = False
) -> None:
    sign = "" if unsigned else "+"
    rows = [[str(rank), name, f"{value:{sign}.4f}"] for rank, (name, value) in enumerate(ranked, 1)]
    show_table(title, ["rank", what, "score"], rows)
