"""``wiremap score nodes|edges``: one scoring method, a ranked table and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..edges.errors import InputError
from ..edges.names import vocabulary as words
from ..edges.names.nodes import FAMILIES
from . import options
from .asked import Asked, Scoring, Shown, gathered, given
from .console import if_stopped, progress, show_json, show_table, show_text
from .loading import load_model, load_pairs, subject

if TYPE_CHECKING:
    from ..edges.model.transformer import Model
    from ..edges.question.prompts import PromptPairs
    from ..edges.scores.crossing import Crossings
    from ..edges.scores.detail import DetailedScores
    from ..edges.scores.edge_scores import EdgeScores
    from ..edges.scores.node_scores import NodeScores
    from ..edges.scores.refinement import SplitScores


@dataclass(frozen=True, kw_only=True)
class _Output:
    """Which files are written, and how much of them is shown."""

    top: int
    out: Path | None
    force: bool


@dataclass(frozen=True, kw_only=True)
class _Nodes:
    """Which nodes are scored, and how else than edges are; see ``score_nodes``, ``rank_nodes``."""

    nodes: tuple[str, ...]
    method: str | None
    samples: int | None
    positions: str
    aggregate: str


@dataclass(frozen=True, kw_only=True)
class _Edges:
    """What edges are scored by beside the rules, and what is told beside their scores."""

    candidates: int | None
    positions: str
    aggregate: str
    crossing: int | None
    split: str | None
    experts: bool
    memory_limit: float | None
    importances: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class _Ranking:
    """What is shown of scores: the best, how they were made, the files, and finer tables."""

    what: str
    ranked: list[tuple[str, float]]
    unsigned: bool
    line: str
    files: dict[str, Path]
    finer: Mapping[str, list[tuple[str, float]]] = field(
        default_factory=dict[str, list[tuple[str, float]]]
    )


_output = options.together(
    options.count("--top", default=words.ROWS_SHOWN, help="Rows shown."),
    options.out("File for the scores (MODEL-TASK-WHAT.safetensors)."),
    options.flag("--force", help="Replace files that exist."),
    options.output,
)


def _by_position(
    positions: Sequence[str], aggregates: Sequence[str], *, which: str, ranks: str
) -> options.Option[Any]:
    """Whether positions are told apart, and what they rank by; the first aggregate is the default."""
    return options.together(
        options.choice("--positions", positions, words.SUMMED, help=which),
        options.choice("--aggregate", aggregates, aggregates[0], help=ranks),
    )


@click.group()
def score() -> None:
    """Estimate the effect of all nodes, or of all edges, at once."""


# ---- nodes


@score.command()
@options.question
@options.gradient
@options.choice(
    "--nodes",
    FAMILIES,
    multiple=True,
    help=f"Which nodes; may be given again ({' and '.join(words.NODES)} by default).",
)
@options.choice(
    "--method",
    [*words.METHODS, *words.BASELINES],
    help="What the AtP* paper recommends by default. The last four patch, and need no gradients.",
)
@options.count("--samples", least=2, help=f"Subsets of --method subsampling ({words.N_SUBSETS}).")
@_by_position(
    words.NODE_POSITIONS,
    words.NODE_AGGREGATES,
    which="Nodes of all positions together, or of each token position.",
    ranks="What ranks nodes: |mean estimate| over pairs, or mean |estimate|.",
)
@_output
@gathered(asked=Asked, scoring=Scoring, wanted=_Nodes, output=_Output, shown=Shown)
def nodes(asked: Asked, scoring: Scoring, wanted: _Nodes, output: _Output, shown: Shown) -> None:
    """Estimate the effects of all nodes at once: attribution patching, AtP* and their like.

    Scores are estimates, in units of the metric: positive carries the behaviour, negative opposes
    it. AtP* and GradDrop give unsigned rankings. wiremap verify measures the best of them.
    """
    model = load_model(asked)
    pairs = load_pairs(model, asked)
    # Before anything runs: a file in the way must not cost the scores.
    (out,) = _places(output, f"{subject(model, pairs)}-nodes", (".safetensors",))
    # All of the method is settled here, as the file has to say it.
    method = _method_of_nodes(model, pairs, asked, scoring, wanted)
    scores = _score_nodes(model, pairs, method, shown)
    _write(out, model, pairs, {**method, "aggregate": wanted.aggregate}, scores)
    gradient = f", gradient {method['gradient']}" if "gradient" in method else ""
    ranking = _Ranking(
        what="nodes",
        ranked=scores.top(aggregate=wanted.aggregate),
        unsigned=scores.unsigned,
        line=f"method {method['method']}{gradient}, positions {wanted.positions}, ranked by "
        f"{wanted.aggregate}{', an unsigned ranking' if scores.unsigned else ''}",
        files={"scores": out},
    )
    _show(ranking, output.top, shown)


def _method_of_nodes(
    model: Model, pairs: PromptPairs, asked: Asked, scoring: Scoring, wanted: _Nodes
) -> dict[str, Any]:
    """How nodes are scored, all of it, once the model is known to do the task."""
    from ..edges.scores.node_scores import check_method, recommended_method
    from ..edges.scores.rules.registry import resolve_gradient

    method = _question(model, pairs, asked)
    method["nodes"] = list(wanted.nodes or words.NODES)
    method["positions"] = wanted.positions
    name = wanted.method or recommended_method(method["nodes"], len(pairs), scoring.gradient)
    method["method"] = name
    # These patch: subsets and a seed are theirs, rules of gradients are not.
    if name in words.BASELINES:
        _refuse_options(name, {"--gradient": scoring.gradient, **scoring.options})
        return {
            **method,
            "n_samples": wanted.samples or words.N_SUBSETS,
            "seed": asked.seed or words.SEED,
        }
    _refuse_options(name, {"--samples": wanted.samples})
    method |= scoring.settled(scoring.gradient)
    gradient, _ = check_method(name, scoring.gradient)
    rule = resolve_gradient(
        gradient,
        direction=asked.direction,
        metric=method["metric"],
        steps=method["steps"],
        schedule=method["schedule"],
    )
    return {**method, "gradient": rule.name}


def _score_nodes(
    model: Model, pairs: PromptPairs, method: Mapping[str, Any], shown: Shown
) -> NodeScores:
    from ..edges.scores.baselines import rank_nodes
    from ..edges.scores.node_scores import score_nodes

    with if_stopped(), progress(shown.no_progress) as report:
        if method["method"] in words.BASELINES:
            return rank_nodes(model, pairs, **method).scores
        return score_nodes(
            model,
            pairs,
            **method,
            progress=report,
        )


def _refuse_options(method: str, options: dict[str, Any]) -> None:
    superfluous = given(options)
    if superfluous:
        raise InputError(f"{', '.join(superfluous)}: not for method {method}; leave it out")


# ---- edges


@score.command()
@options.question
@options.gradient
@options.reader
@options.count(
    "--candidates",
    help="Ask --reader exact only about so many edges, the best by the linear one.",
)
@_by_position(
    words.POSITIONS,
    words.EDGE_AGGREGATES,
    which="Also score each token position, or the named spans of the pairs file.",
    ranks="What ranks edges: the sum over positions, or the sum of absolute values by position.",
)
@options.count(
    "--crossing",
    help="Split so many of the best edges into keys and values by query position, too.",
)
@click.option(
    "--split",
    help="Also score the parts of an MLP as writers and readers: m5:neurons, m5:experts.",
)
@options.flag("--experts", help="--split of every mixture of experts.")
@click.option(
    "--memory-limit",
    type=click.FloatRange(min=0, min_open=True),
    help="GiB to work with; 1 on a CPU, 40 % of what is free on a GPU by default.",
)
@options.flag(
    "--importances",
    help="Also write EAP-IG's importances.json (with --kv per-query where heads share keys).",
)
@_output
@gathered(asked=Asked, scoring=Scoring, wanted=_Edges, output=_Output, shown=Shown)
def edges(asked: Asked, scoring: Scoring, wanted: _Edges, output: _Output, shown: Shown) -> None:
    """Estimate the effects of all edges at once: a gradient rule times a reader rule.

    Scores are estimates, in units of the metric: positive carries the behaviour, negative opposes
    it. Writes them with their names and a heat map; wiremap verify measures the best of them.
    """
    from ..edges.scores.detail import score_in_detail

    model = load_model(asked)
    pairs = load_pairs(model, asked)
    # What can be refused is refused before anything runs: files, splits, readers.
    files = _files_of_edges(output, f"{subject(model, pairs)}-edges", wanted.importances)
    splits = _splits(model, wanted)
    _check_edges(model, pairs, scoring, wanted)
    detailed = bool(splits or wanted.crossing)
    method = _method_of_edges(model, pairs, asked, scoring, detailed)
    method |= {
        "reader": scoring.reader,
        "candidates": wanted.candidates,
        "positions": wanted.positions,
    }
    limit = None if wanted.memory_limit is None else int(wanted.memory_limit * 2**30)
    with if_stopped(), progress(shown.no_progress) as report:
        scores = score_in_detail(
            model,
            pairs,
            splits,
            crossing=wanted.crossing,
            progress=report,
            **method,
            memory_limit=limit,
        )
    # No matter of scoring, but the file says what its ranking is by.
    method["aggregate"] = wanted.aggregate
    _write(files["scores"], model, pairs, method, *scores.tables)
    _draw(files["heat map"], model, scores.edges, wanted.aggregate)
    if wanted.importances:
        _write_importances(files["importances"], model, scores.edges)
    _show(_ranking_of_edges(scores, method, files), output.top, shown)


def _files_of_edges(output: _Output, name: str, importances: bool) -> dict[str, Path]:
    """Where the files go, by what is in them."""
    suffixes = {"scores": ".safetensors", "heat map": ".svg"}
    if importances:
        suffixes["importances"] = ".importances.json"
    places = _places(output, name, tuple(suffixes.values()))
    return dict(zip(suffixes, places, strict=True))


def _splits(model: Model, wanted: _Edges) -> list[str]:
    """What to split, each once. Raises InputError for what cannot be."""
    from ..edges.scores.detail import mixtures
    from ..edges.scores.refinement import parse_split

    splits = [wanted.split] if wanted.split else []
    if wanted.experts:
        splits += mixtures(model)
        if not splits:
            raise InputError(f"model {model.name} has no mixture of experts; leave --experts out")
    splits = list(dict.fromkeys(splits))
    for split in splits:
        parse_split(model, split)
    return splits


def _check_edges(model: Model, pairs: PromptPairs, scoring: Scoring, wanted: _Edges) -> None:
    """Raises InputError for what cannot be told of edges, before anything is run."""
    from ..edges.question.spans import one_length
    from ..edges.scores.edge_scores import check_reader
    from ..exporters.formats.eap_ig import check_names

    if wanted.importances:
        # EAP-IG has no names for key-value heads that query heads share.
        check_names(model.graph)
    if wanted.aggregate != words.EDGE_AGGREGATE and wanted.positions == words.SUMMED:
        raise InputError(
            f"aggregate {wanted.aggregate} needs scores by position (--positions each or spans)"
        )
    check_reader(scoring.reader, wanted.candidates, model.graph)
    if wanted.crossing is not None:
        one_length(pairs)


def _method_of_edges(
    model: Model, pairs: PromptPairs, asked: Asked, scoring: Scoring, detailed: bool
) -> dict[str, Any]:
    """How edges are scored, once the model is known to do the task."""
    from ..edges.scores.rules.registry import recommended_gradient, resolve_gradient

    method = _question(model, pairs, asked)
    gradient = scoring.gradient or recommended_gradient(method["metric"])
    method |= scoring.settled(gradient)
    rule = resolve_gradient(gradient, direction=asked.direction, metric=method["metric"])
    if rule.unsigned and detailed:
        raise InputError(
            f"--split and --crossing need signed scores, which gradient {rule.name} has not; use "
            "another gradient (--gradient integrated)"
        )
    return {**method, "gradient": rule.name}


def _ranking_of_edges(
    detailed: DetailedScores, method: Mapping[str, Any], files: dict[str, Path]
) -> _Ranking:
    scores, candidates = detailed.edges, method["candidates"]
    finer: dict[str, list[tuple[str, float]]] = {}
    if scores.by_position is not None:
        finer["edges by position"] = scores.top_by_position()
    if detailed.crossings is not None:
        finer["edges from key to query position"] = detailed.crossings.top()
    for part in detailed.parts:
        finer[f"edges of the parts of {part.node}"] = part.top()
    return _Ranking(
        what="edges",
        ranked=scores.top(aggregate=method["aggregate"]),
        unsigned=scores.unsigned,
        line=f"gradient {method['gradient']}, reader {method['reader']}"
        f"{f', the best {candidates:,} by the linear one' if candidates else ''}, positions "
        f"{method['positions']}, ranked by {method['aggregate']}"
        f"{', an unsigned ranking' if scores.unsigned else ''}",
        files=files,
        finer=finer,
    )


def _draw(out: Path, model: Model, scores: EdgeScores, aggregate: str) -> None:
    from ..edges.files import write_atomically
    from ..exporters.pictures.heatmap import to_heatmap

    table = scores.aggregated(aggregate).cpu().numpy()
    title = f"{Path(model.name).name}: {scores.graph.n_edges:,} edges"
    write_atomically(out, to_heatmap(scores.graph, table, title))


def _write_importances(out: Path, model: Model, scores: EdgeScores) -> None:
    from ..exporters.formats.eap_ig import write_importances

    # [writer reader] as lists: a million single look-ups in a tensor would be slow.
    table = scores.scores.cpu().tolist()
    write_importances(out, model.graph, model.d_model, lambda writer, reader: table[writer][reader])


# ---- both


def _places(output: _Output, name: str, suffixes: tuple[str, ...]) -> list[Path]:
    """Where the files go. Raises InputError if one is there and may not be replaced."""
    # --out names the scores; the other files stand beside them, named alike.
    out = output.out or Path(f"{name}.safetensors")
    places = [out, *(out.with_suffix(suffix) for suffix in suffixes[1:])]
    for place in places:
        if place.exists() and not output.force:
            raise InputError(f"{place} exists; replace it (--force), or choose another file (-o)")
    return places


def _question(model: Model, pairs: PromptPairs, asked: Asked) -> dict[str, Any]:
    """What nodes and edges are asked alike, once the model is known to do the task."""
    from ..circuits.evidence.gap import measure_gap
    from ..circuits.tasks.builtin import usual_metric

    metric, batch_size = asked.metric or usual_metric(pairs), asked.batch_size
    measure_gap(model, pairs, metric, allow_weak=asked.allow_weak, batch_size=batch_size)
    return {"metric": metric, "direction": asked.direction, "batch_size": batch_size}


def _write(
    out: Path,
    model: Model,
    pairs: PromptPairs,
    method: Mapping[str, Any],
    *scores: NodeScores | EdgeScores | SplitScores | Crossings,
) -> None:
    from ..circuits.describe import describe_question
    from ..circuits.record.scores_file import write_scores

    write_scores(out, describe_question(model, pairs, **method), *scores)


def _show(ranking: _Ranking, top: int, shown: Shown) -> None:
    files = {name: str(path) for name, path in ranking.files.items()}
    if shown.as_json:
        show_json(
            {
                "file": files["scores"],
                "files": files,
                "scores": _named(ranking.ranked),
                **{title: _named(table) for title, table in ranking.finer.items()},
            }
        )
    elif not shown.quiet:
        n_ranked = len(ranking.ranked)
        title = f"the {min(top, n_ranked)} largest of {n_ranked:,} {ranking.what}"
        _show_rows(title, ranking.ranked[:top], ranking.what[:-1], ranking.unsigned)
        show_text(f"\n{ranking.line}")
        others = "".join(f"; {name}: {path}" for name, path in files.items() if name != "scores")
        show_text(
            f"written to {files['scores']}{others}\n"
            f"measure the best with: wiremap verify {files['scores']}"
        )
        for table, rows in ranking.finer.items():
            _show_rows(table, rows[:top], unsigned=ranking.unsigned)


def _named(ranked: list[tuple[str, float]]) -> list[dict[str, str | float]]:
    return [{"name": name, "score": value} for name, value in ranked]


def _show_rows(
    title: str, ranked: list[tuple[str, float]], what: str = "edge", unsigned: bool = False
) -> None:
    sign = "" if unsigned else "+"
    rows = [[str(rank), name, f"{value:{sign}.4f}"] for rank, (name, value) in enumerate(ranked, 1)]
    show_table(title, ["rank", what, "score"], rows)
