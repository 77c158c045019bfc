"""``wiremap evaluate``: what a circuit carries by itself, and how far its claims can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..edges.errors import InputError
from ..edges.names.vocabulary import METRIC, SEED
from . import options
from .asked import Asked, Shown, gathered
from .console import if_stopped, progress, show_json, show_note, show_table, show_text
from .loading import load_for_circuit, load_for_claim
from .reading import Reading, read
from .summary import summary

if TYPE_CHECKING:
    from ..circuits.result.circuit import Circuit, CircuitEdge
    from ..circuits.result.edge_table import EdgeTable
    from ..exporters.hypotheses import Claim


@dataclass(frozen=True, kw_only=True)
class _Sections:
    """What is told of the circuit beside its faithfulness; see ``Evaluation``."""

    curve: bool
    completeness: bool
    minimality: bool
    stability: bool
    tests: bool

    @property
    def named(self) -> list[str]:
        """Those asked for by name."""
        return [name for name, wanted in asdict(self).items() if wanted]


@click.command()
@options.path_argument("circuit")
@options.flags(
    curve="Faithfulness at ten sizes, CPR and CMD, of the run's scores, or else of the circuit's "
    "own edges; -o FILE.svg draws it.",
    completeness="Does the circuit break as the model does when edges are knocked out of both?",
    minimality="How much each edge is needed.",
    stability="How often each edge is chosen again when pairs are resampled; needs a run directory.",
    tests="Hypothesis tests: equivalence, independence, minimality, against random circuits.",
)
@options.flag("--all", "every", help="All of these that can be done.")
@options.other_question
@options.kv_of_circuit
@options.reading
@click.option("--seed", type=int, help=f"Of all draws; with --task, of its pairs too ({SEED}).")
@options.where_of_circuit
@options.out(
    "File for the result: .svg for the curve, else JSON. May be given twice.", multiple=True
)
@options.output
@gathered(sections=_Sections, asked=Asked, reading=Reading, shown=Shown)
def evaluate(
    circuit: Path,
    every: bool,
    sections: _Sections,
    asked: Asked,
    reading: Reading,
    out: tuple[Path, ...],
    shown: Shown,
) -> None:
    """Run a CIRCUIT alone, everything outside it patched, and say how much of the metric is left.

    CIRCUIT is a circuit's file, a run directory, or a table or graph of edges (name --model and
    --task or --pairs). Of scores alone (scores.safetensors, MIB's importances.json) --curve tells
    CPR and CMD. faithfulness = (m(circuit) - m(empty)) /
    (m(full) - m(empty)). The model and prompts are those it was found with, or others: held-out
    pairs of its task are --task NAME --seed 1.
    """
    from ..circuits.evidence.evaluation import Evaluation

    # A file knows the circuit; the scores of all edges are in its run directory.
    run = circuit if circuit.is_dir() else None
    claim = read(circuit, reading, shown.quiet)
    wanted = list(asdict(sections)) if every else sections.named
    # Asked before a model is loaded and run.
    pictures = [path for path in out if path.suffix.lower() == ".svg"]
    if pictures and "curve" not in wanted:
        raise InputError(f"{pictures[0]} is to show the curve; ask for it too (--curve)")
    if claim.scores is not None:
        _evaluate_scores(claim, claim.scores, asked, (wanted, out, shown))
        return
    model, pairs, found = load_for_circuit(claim, asked)
    with if_stopped(), progress(shown.no_progress) as report:
        # With --all, what cannot be made is left out with a note. What is named must be made.
        evaluation = Evaluation(
            circuit=found,
            model=model,
            pairs=pairs,
            metric=asked.metric or str(found.method.get("metric", METRIC)),
            run=run,
            seed=asked.seed or SEED,
            batch_size=asked.batch_size,
            report=report,
        )
        document, missing = evaluation.document(wanted, required=sections.named)
        if claim.sign_unsaid:
            document["signs"] = evaluation.signs()
    _write(out, document, found)
    if shown.as_json:
        show_json(document)
    elif not shown.quiet:
        _show(document, found)
    _show_signs(document.get("signs"), reading.flip_signs)
    if not found.edges:
        show_note("the circuit has no edges: what it carries is the corrupted run, 0")
    for name, why in missing.items():
        show_note(f"no {name}: {why}")


def _evaluate_scores(
    claim: Claim,
    scores: EdgeTable,
    asked: Asked,
    result: tuple[list[str], tuple[Path, ...], Shown],
) -> None:
    """The curve of scores alone: there is no circuit, of which more could be said."""
    from ..circuits.evidence.evaluation import Evaluation

    wanted, out, shown = result
    if wanted != ["curve"]:
        raise InputError(
            f"{claim.path}: expected a circuit, got scores only: CPR and CMD are all that can be told "
            "of them (--curve); choose a circuit of them first (export --top N, discover --scores)"
        )
    n_scored = sum(edge.score is not None for edge in scores.edges)
    model, pairs = load_for_claim(claim, asked)
    circuit = claim.largest(n_scored, model.graph)
    with if_stopped(), progress(shown.no_progress) as report:
        evaluation = Evaluation(
            circuit=circuit,
            model=model,
            pairs=pairs,
            metric=asked.metric or scores.metric or METRIC,
            batch_size=asked.batch_size,
            report=report,
        )
        # Largest first, and of equal ones the first in the order of computation.
        ranked = [(edge.name, edge.score or 0.0) for edge in _by_size(circuit)]
        curve = {"ranked_by": f"the scores of {claim.path.name}", **evaluation.curve_of(ranked)}
        document: dict[str, Any] = {
            "metric": evaluation.metric,
            "n_pairs": len(pairs),
            "edges_in_model": circuit.shape.n_edges,
            "curve": curve,
        }
        if claim.sign_unsaid:
            document["signs"] = evaluation.signs()
    _write(out, document, circuit)
    if shown.as_json:
        show_json(document)
    elif not shown.quiet:
        click.echo(f"scores of {len(ranked)} of {circuit.shape.n_edges} edges\n")
        _show_curve(curve)
    _show_signs(document.get("signs"), False)


def _by_size(circuit: Circuit) -> list[CircuitEdge]:
    return sorted(circuit.edges, key=lambda edge: -edge.size)


def _write(out: tuple[Path, ...], document: Mapping[str, Any], found: Circuit) -> None:
    """The document, and its curve into the files that are to be pictures."""
    from ..circuits.result.document import dumps
    from ..edges.files import write_atomically

    for path in out:
        if path.suffix.lower() != ".svg":
            write_atomically(path, dumps(document))
        elif "curve" in document:
            write_atomically(path, _picture(document, found))


def _show_signs(signs: Mapping[str, Any] | None, flipped: bool) -> None:
    """A note, if signs of scores are not those of what was measured."""
    if signs is None or signs["agree"]:
        return
    first = next(row for row in signs["edges"] if row["score"] * row["effect"] < 0)
    show_note(
        f"the signs of the scores contradict what was measured: of the {len(signs['edges'])} largest "
        f"{signs['opposite']} have an effect of the other sign, such as {first['edge']}, score "
        f"{first['score']:+.3g}, effect {first['effect']:+.3g}; "
        + ("leave --flip-signs out" if flipped else "turn them (--flip-signs)")
    )


# ---- what is shown


def _picture(document: Mapping[str, Any], found: Circuit) -> str:
    from ..exporters.pictures.curve import to_curve
    from ..exporters.pictures.labels import title

    curve = document["curve"]
    points = {
        name: [(point["fraction"], point["faithfulness"]) for point in curve[key]["points"]]
        for name, key in (("by score", "signed"), ("by |score|", "absolute"))
    }
    details = (
        f"{document['metric']}, {document['n_pairs']} pairs; CPR {curve['cpr']:.3f}, "
        f"CMD {curve['cmd']:.3f}"
    )
    return to_curve(points, title(found), details)


def _show(document: Mapping[str, Any], found: Circuit) -> None:
    from ..circuits.result.circuit import Faithfulness

    own = Faithfulness(*(document[key] for key in ("full", "empty", "circuit", "n_pairs")))
    click.echo(f"{len(found.edges)} of {found.shape.n_edges} edges")
    show_text(summary(document["metric"], own))
    for other in document["beside"]:
        show_text(
            f"{other['metric']}: {other['full']:.3f} clean, {other['empty']:.3f} corrupted, "
            f"{other['circuit']:.3f} with the circuit alone"
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


def _show_curve(curve: Mapping[str, Any]) -> None:
    # The same sizes of two rankings: by score, and by its magnitude.
    both = zip(curve["signed"]["points"], curve["absolute"]["points"], strict=True)
    show_table(
        f"faithfulness by size, ranked by {curve['ranked_by']}",
        ["% of edges", "edges", "by score", "kept", "by |score|", "kept"],
        [
            [
                f"{100 * signed['fraction']:g}",
                str(signed["asked"]),
                f"{signed['faithfulness']:.3f}",
                str(signed["kept"]),
                f"{absolute['faithfulness']:.3f}",
                str(absolute["kept"]),
            ]
            for signed, absolute in both
        ],
    )
    click.echo(f"CPR (area under the curve, by score) {curve['cpr']:.3f}")
    click.echo(f"CMD (area between the curve and 1, by |score|) {curve['cmd']:.3f}")


def _show_completeness(completeness: Mapping[str, Any]) -> None:
    without = ", ".join(completeness["largest_without"][:3]) or "nothing"
    more = len(completeness["largest_without"]) - 3
    show_text(
        f"completeness: |F(C without K) - F(M without K)| is {completeness['mean']:.3f} on average "
        f"over {len(completeness['knockouts'])} K\nand at most {completeness['largest']:.3f}, K being "
        f"{without}" + (f" and {more} more" if more > 0 else "")
    )


_SHOWN = 10  # rows of a table


def _show_minimality(minimality: Mapping[str, Any]) -> None:
    least = minimality["edges"][:_SHOWN]
    show_table(
        f"minimality: the {len(least)} least needed of {len(minimality['edges'])} edges",
        ["edge", "score", "alone", "with K of"],
        [
            [
                edge["edge"],
                f"{edge['score']:.3f}",
                f"{edge['alone']:.3f}",
                str(len(edge["removed"])),
            ]
            for edge in least
        ],
    )


def _show_stability(stability: Mapping[str, Any]) -> None:
    chosen = sorted(stability["edges"], key=lambda edge: -edge["frequency"])
    # Edges that are nearly always chosen, or nearly never, are no news.
    doubtful = [edge for edge in chosen if 0.05 < edge["frequency"] < 0.95]
    certain = sum(edge["frequency"] >= 0.95 for edge in chosen)
    show_text(
        f"stability over {stability['n_resamples']} resamples of {stability['n_pairs']} pairs "
        f"({stability['rule']}): mean pairwise Jaccard {stability['mean_pairwise_jaccard']:.3f};\n"
        f"{certain} edges are in at least 95 % of the circuits"
    )
    if doubtful:
        show_table(
            f"in between, the {min(_SHOWN, len(doubtful))} likeliest of {len(doubtful)}",
            ["edge", "frequency", "effect", "low", "high"],
            [
                [
                    edge["edge"],
                    f"{edge['frequency']:.3f}",
                    *(f"{value:+.3f}" for value in (edge["effect"], *edge["interval"])),
                ]
                for edge in doubtful[:_SHOWN]
            ],
        )


def _show_tests(tests: Mapping[str, Any]) -> None:
    show_table(
        "hypothesis tests",
        ["test", "statistic", "p", "n", "a small p means"],
        [
            [
                test["name"],
                f"{test['statistic']:.3g}",
                f"{test['p_value']:.3g}",
                str(test["n"]),
                test["small_p"],
            ]
            for test in tests["tests"]
        ],
    )
