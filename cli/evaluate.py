"""``wiremap evaluate``: what a circuit carries by itself, and how far its claims can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..cli import options
from ..edges.errors import InputError
from .console import progress, show_json, show_table

if TYPE_CHECKING:
    from ..circuits.result.circuit import Circuit
    from ..edges.model.transformer import Model
    from ..edges.question.prompts import PromptPairs

_SHOWN = 10
_SECTIONS = ("curve", "completeness", "minimality", "stability", "tests")


@click.command()
@click.argument("circuit", type=click.Path(path_type=Path))
@click.option(
    "--curve",
    is_flag=True,
    help="Faithfulness at ten sizes, CPR and CMD, of the run's scores, or else of the circuit's "
    "own edges; -o FILE.svg draws it.",
)
@click.option(
    "--completeness",
    is_flag=True,
    help="Does the circuit break as the model does when edges are knocked out of both?",
)
@click.option("--minimality", is_flag=True, help="How much each edge is needed.")
@click.option(
    "--stability",
    is_flag=True,
    help="How often each edge is chosen again when pairs are resampled; needs a run directory.",
)
@click.option(
    "--tests",
    is_flag=True,
    help="Hypothesis tests: equivalence, independence, minimality, against random circuits.",
)
@click.option("--all", "every", is_flag=True, help="All of these that can be done.")
@options.other_question
@click.option("--seed", type=int, help="Of all draws; with --task, of its pairs too (0).")
@options.where_of_circuit
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    multiple=True,
    help="File for the result: .svg for the curve, else JSON. May be given twice.",
)
@options.output
def evaluate(
    circuit: Path,
    every: bool,
    model: str | None,
    task: str | None,
    pairs: Path | None,
    corruption: str | None,
    n_pairs: int | None,
    bos: bool | None,
    metric: str | None,
    seed: int | None,
    device: str,
    dtype: str | None,
    batch_size: int | None,
    out: tuple[Path, ...],
    as_json: bool,
    quiet: bool,
    **asked_for: bool,
) -> None:
    """Run a CIRCUIT alone, everything outside it patched, and say how much of the metric is left.

    CIRCUIT is a circuit's file, or a run directory. faithfulness = (m(circuit) - m(empty)) /
    (m(full) - m(empty)). The model and prompts are those it was found with, or others: held-out
    pairs of its task are --task NAME --seed 1.
    """
    from ..circuits.result.document import dumps
    from ..edges.files import write_atomically
    from ..exporters import read_circuit

    run = circuit if circuit.is_dir() else None
    found = read_circuit(circuit / "circuit.json" if run else circuit)
    pictures = [path for path in out if path.suffix.lower() == ".svg"]
    wanted = [name for name in _SECTIONS if every or asked_for[name]]
    if pictures and "curve" not in wanted:
        raise InputError(f"{pictures[0]} is to show the curve; ask for it too (--curve)")
    of_pairs = seed if task else None
    loaded, asked = options.load_for_circuit(
        found.model,
        found.task,
        model,
        task,
        pairs,
        corruption,
        n_pairs,
        of_pairs,
        bos,
        device,
        dtype,
    )
    metric = metric or str(found.method.get("metric", "logit_diff"))
    options.check_shape(loaded, found)
    measures: dict[str, Callable[..., dict[str, Any]]] = {
        "curve": partial(_curve, found, run),
        "completeness": partial(_knockouts, "completeness", found, seed or 0),
        "minimality": partial(_knockouts, "minimality", found, seed or 0),
        "stability": partial(_stability, found, run, seed or 0),
        "tests": partial(_tests, found, seed or 0),
    }
    notes: list[str] = []
    with progress(quiet or as_json) as report:

        def told(stage: str) -> Callable[[str, int, int], Any]:
            return lambda _, done, total: report(stage, done, total)

        document = _alone(found, loaded, asked, metric, batch_size, told("evaluate the circuit"))
        for name in wanted:
            try:
                document[name] = measures[name](loaded, asked, metric, batch_size, told(name))
            except InputError as error:
                if asked_for[name]:
                    raise
                notes.append(f"no {name}: {error}")
    for path in out:
        if path not in pictures:
            write_atomically(path, dumps(document))
        elif "curve" in document:
            write_atomically(path, _picture(document, found))
    if as_json:
        show_json(document)
    elif not quiet:
        _show(document, found)
    if not found.edges:
        notes.insert(0, "the circuit has no edges: what it carries is the corrupted run, 0")
    for note in notes:
        click.echo(f"note: {note}", err=True)


# ---- what is measured


def _alone(
    found: Circuit,
    model: Model,
    pairs: PromptPairs,
    metric: str,
    batch_size: int | None,
    told: Callable[[str, int, int], Any],
) -> dict[str, Any]:
    from ..circuits.evidence.faithfulness import BESIDE, check_gap, read_metrics
    from ..circuits.result.circuit import Faithfulness
    from ..circuits.result.document import faithfulness_document

    names = [edge.name for edge in found.edges]
    metrics = (metric, *(name for name in BESIDE if name != metric))
    own, *beside = read_metrics(
        model, pairs, names, metrics=metrics, batch_size=batch_size, progress=told
    )
    check_gap(own.full, own.empty)
    result = Faithfulness(own.full, own.empty, own.circuit, len(pairs))
    return {
        "metric": metric,
        "edges": len(names),
        "edges_in_model": found.shape.n_edges,
        **faithfulness_document(result),
        "standard_errors": own.standard_errors and list(own.standard_errors),
        "beside": [asdict(reading) for reading in beside],
    }


def _curve(
    found: Circuit,
    run: Path | None,
    model: Model,
    pairs: PromptPairs,
    metric: str,
    batch_size: int | None,
    told: Callable[[str, int, int], Any],
) -> dict[str, Any]:
    from ..circuits.evidence.faithfulness import localize
    from ..circuits.record.scores_file import SCORES_FILE, read_scores

    ranked_by = "the circuit's edges, by verified effect, or score where there is none"
    scores = [(edge.name, edge.worth or 0.0) for edge in found.edges]
    if run is not None and (run / SCORES_FILE).is_file():
        _, table, _ = read_scores(run / SCORES_FILE)
        if table is not None:
            if table.graph != found.shape:
                raise InputError(f"{run / SCORES_FILE}: expected scores of the circuit's model")
            ranked_by, scores = "scores of all edges", table.top()
    result = localize(model, pairs, scores, metric=metric, batch_size=batch_size, progress=told)
    return {"ranked_by": ranked_by, **result.as_document()}


def _knockouts(
    name: str,
    found: Circuit,
    seed: int,
    model: Model,
    pairs: PromptPairs,
    metric: str,
    batch_size: int | None,
    told: Callable[[str, int, int], Any],
) -> dict[str, Any]:
    from ..circuits.evidence.knockouts import completeness, minimality

    names = [edge.name for edge in found.edges]
    measure = completeness if name == "completeness" else minimality
    result = measure(
        model, pairs, names, metric=metric, seed=seed, batch_size=batch_size, progress=told
    )
    return {"seed": seed, **result.as_document()}


def _stability(
    found: Circuit,
    run: Path | None,
    seed: int,
    model: Model,
    pairs: PromptPairs,
    metric: str,
    batch_size: int | None,
    told: Callable[[str, int, int], Any],
) -> dict[str, Any]:
    """Of the effects that the run measured, on its own pairs."""
    from ..circuits.evidence.gather import resample
    from ..circuits.record.effects_file import EFFECTS_FILE, read_effects

    if run is None or not (run / EFFECTS_FILE).is_file():
        raise InputError(
            f"expected a run directory with verified effects ({EFFECTS_FILE}) to resample; name "
            "the directory in place of the circuit's file"
        )
    if not found.edges:
        raise InputError("expected a circuit with edges, whose choice may be stable, got none")
    verified = read_effects(run / EFFECTS_FILE)
    threshold = found.method.get("threshold")
    resampled = resample(verified, [edge.name for edge in found.edges], threshold, seed)
    if resampled is None:
        raise InputError(
            "expected verified edges in the circuit and at least 2 pairs to resample; verify more"
        )
    result, described = resampled
    return {"rule": described, **result.as_document()}


def _tests(
    found: Circuit,
    seed: int,
    model: Model,
    pairs: PromptPairs,
    metric: str,
    batch_size: int | None,
    told: Callable[[str, int, int], Any],
) -> dict[str, Any]:
    from ..circuits.evidence.claims import run_tests

    names = [edge.name for edge in found.edges]
    tests = run_tests(
        model, pairs, names, metric=metric, seed=seed, batch_size=batch_size, progress=told
    )
    return {"seed": seed, "tests": [one.as_document() for one in tests]}


# ---- what is shown


def _picture(document: Mapping[str, Any], found: Circuit) -> str:
    from ..exporters.pictures.curve import to_curve
    from ..exporters.pictures.labels import title

    told = document["curve"]
    points = {
        name: [(point["fraction"], point["faithfulness"]) for point in told[key]["points"]]
        for name, key in (("by score", "signed"), ("by |score|", "absolute"))
    }
    details = (
        f"{document['metric']}, {document['n_pairs']} pairs; CPR {told['cpr']:.3f}, "
        f"CMD {told['cmd']:.3f}"
    )
    return to_curve(points, title(found), details)


def _show(document: Mapping[str, Any], found: Circuit) -> None:
    from ..circuits.result.circuit import Faithfulness

    own = Faithfulness(*(document[key] for key in ("full", "empty", "circuit", "n_pairs")))
    click.echo(f"{len(found.edges)} of {found.shape.n_edges} edges")
    click.echo(options.summary(document["metric"], own))
    for one in document["beside"]:
        click.echo(
            f"{one['metric']}: {one['full']:.3f} clean, {one['empty']:.3f} corrupted, "
            f"{one['circuit']:.3f} with the circuit alone"
        )
    shown: dict[str, Callable[[Any], None]] = {
        "curve": _show_curve,
        "completeness": _show_completeness,
        "minimality": _show_minimality,
        "stability": _show_stability,
        "tests": _show_tests,
    }
    for name, show in shown.items():
        if name in document:
            click.echo()
            show(document[name])


def _show_curve(told: Mapping[str, Any]) -> None:
    both = zip(told["signed"]["points"], told["absolute"]["points"], strict=True)
    show_table(
        f"faithfulness by size, ranked by {told['ranked_by']}",
        ["% of edges", "edges", "by score", "kept", "by |score|", "kept"],
        [
            [
                f"{100 * one['fraction']:g}",
                str(one["asked"]),
                f"{one['faithfulness']:.3f}",
                str(one["kept"]),
                f"{other['faithfulness']:.3f}",
                str(other["kept"]),
            ]
            for one, other in both
        ],
    )
    click.echo(f"CPR (area under the curve, by score) {told['cpr']:.3f}")
    click.echo(f"CMD (area between the curve and 1, by |score|) {told['cmd']:.3f}")


def _show_completeness(told: Mapping[str, Any]) -> None:
    without = ", ".join(told["largest_without"][:3]) or "nothing"
    more = len(told["largest_without"]) - 3
    click.echo(
        f"completeness: |F(C without K) - F(M without K)| is {told['mean']:.3f} on average over "
        f"{len(told['knockouts'])} K\nand at most {told['largest']:.3f}, K being {without}"
        + (f" and {more} more" if more > 0 else "")
    )


def _show_minimality(told: Mapping[str, Any]) -> None:
    least = told["edges"][:_SHOWN]
    show_table(
        f"minimality: the {len(least)} least needed of {len(told['edges'])} edges",
        ["edge", "score", "alone", "with K of"],
        [
            [one["edge"], f"{one['score']:.3f}", f"{one['alone']:.3f}", str(len(one["removed"]))]
            for one in least
        ],
    )


def _show_stability(told: Mapping[str, Any]) -> None:
    chosen = sorted(told["edges"], key=lambda one: -one["frequency"])
    doubtful = [one for one in chosen if 0.05 < one["frequency"] < 0.95]
    certain = sum(one["frequency"] >= 0.95 for one in chosen)
    click.echo(
        f"stability over {told['n_resamples']} resamples of {told['n_pairs']} pairs ({told['rule']}): "
        f"mean pairwise Jaccard {told['mean_pairwise_jaccard']:.3f};\n{certain} edges are in at "
        "least 95 % of the circuits"
    )
    if doubtful:
        show_table(
            f"in between, the {min(_SHOWN, len(doubtful))} likeliest of {len(doubtful)}",
            ["edge", "frequency", "effect", "low", "high"],
            [
                [
                    one["edge"],
                    f"{one['frequency']:.3f}",
                    *(f"{value:+.3f}" for value in (one["effect"], *one["interval"])),
                ]
                for one in doubtful[:_SHOWN]
            ],
        )


def _show_tests(told: Mapping[str, Any]) -> None:
    show_table(
        "hypothesis tests",
        ["test", "statistic", "p", "n", "a small p means"],
        [
            [
                one["name"],
                f"{one['statistic']:.3g}",
                f"{one['p_value']:.3g}",
                str(one["n"]),
                one["small_p"],
            ]
            for one in told["tests"]
        ],
    )
