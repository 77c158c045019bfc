"""``wiremap scrub``: is a circuit's claim, that only its edges matter, true?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..edges.names import vocabulary as words
from . import options
from .asked import Asked, Shown, gathered, given
from .console import if_stopped, progress, show_json, show_note, show_table, show_text
from .loading import load_for_circuit
from .reading import Reading, read

if TYPE_CHECKING:
    from ..circuits.evidence.scrubbing import Scrubbing
    from ..circuits.result.hypothesis import Hypothesis
    from ..edges.model.transformer import Model
    from ..edges.question.prompts import PromptPairs


@dataclass(frozen=True, kw_only=True)
class _Testing:
    """How the claim is tested; None is as the hypothesis says. See ``scrub``."""

    scheme: str | None
    other: str | None
    repeats: int | None
    min_recovered: float | None
    drop_one: bool
    random_circuits: int
    leave_out: bool
    max_tree: int | None


@click.command()
@options.path_argument("circuit")
@options.choice(
    "--scheme",
    words.SCHEMES,
    help="How many other prompts: one for each pair (default), for each dropped edge, or for each "
    "node of the tree of kept paths.",
)
@click.option(
    "--other",
    help="Which: any of the same length (default), same-label, feature:COLUMN, or paired (each "
    "pair's corrupted prompt).",
)
@options.count("--repeats", help=f"Draws of other prompts for every pair ({words.REPEATS}).")
@click.option(
    "--seed", type=int, help=f"Of the draws ({words.SEED}); with --task, of its pairs too."
)
@options.number("--min-recovered", help="The claim: exit with 1 if less than this is recovered.")
@options.flag("--drop-one", help="Also scrub without each kept edge in turn.")
@options.count(
    "--random-circuits",
    least=0,
    default=words.RANDOM_CIRCUITS,
    help="Circuits of random paths, of as many edges, to compare with.",
)
@options.flag("--leave-out", help="Leave out pairs that no other prompt of --other goes with.")
@options.count(
    "--max-tree",
    help=f"Nodes that the tree of --scheme per-path may have ({words.MAX_TREE:,}).",
)
@options.other_question
@options.kv_of_circuit
@options.weight
@options.where_of_circuit
@options.out("File for the result, as JSON.")
@options.output
@gathered(testing=_Testing, asked=Asked, reading=Reading, shown=Shown)
def scrub(
    circuit: Path,
    testing: _Testing,
    asked: Asked,
    reading: Reading,
    out: Path | None,
    shown: Shown,
) -> None:
    """Test the claim of a CIRCUIT, that only its edges matter, by causal scrubbing.

    CIRCUIT is circuit.json, a run directory, scrub.json (wiremap export --to scrub), or a table of
    edges with the columns source, target and slot (CSV, GraphML, GEXF, node-link JSON; name --model
    and --task or --pairs). What reaches a node by any other edge comes from other prompts of the same length.

    recovered = (scrubbed - random) / (original - random). Exit codes: 0 the claim held, or none was
    made; 1 less than --min-recovered was recovered; 2 bad input.
    """
    from ..circuits.evidence.claimed import scrub_document
    from ..circuits.result.document import dumps
    from ..edges.files import write_atomically

    claim = read(circuit, reading, shown.quiet, signed=False)
    # A table of edges names no model, task or settings: there the options have to.
    settings = _settings(claim.hypothesis, testing, asked)
    # Scrubbing does not need it: the result is judged when it is there.
    min_recovered = settings.pop("min_recovered")
    model, pairs, found = load_for_circuit(claim, asked)
    result = _scrubbed(model, pairs, [edge.name for edge in found.edges], settings, shown)
    document = scrub_document(model, pairs, result, min_recovered)
    if out is not None:
        write_atomically(out, dumps(document))
    if shown.as_json:
        show_json(document)
    elif not shown.quiet:
        _show(document, result)
    if result.left_out:
        show_note(f"{len(result.left_out)} pairs left out (--leave-out)")
    # Then nothing of a pair's own prompt reaches the logits.
    if result.n_edges == len(result.dead):
        show_note("no path of kept edges leads from input to logits")
    # Last, when all is written and shown: a claim that failed is a result, no error.
    if document["claim"]["held"] is False:
        click.get_current_context().exit(1)


def _settings(hypothesis: Hypothesis | None, testing: _Testing, asked: Asked) -> dict[str, Any]:
    """How to scrub: as the options say, else as the hypothesis does, else as usual."""
    from ..circuits.result.hypothesis import check_settings

    usual: dict[str, Any] = {
        "scheme": words.SCHEME,
        "other": words.OTHER,
        "repeats": words.REPEATS,
        "min_recovered": None,
        "seed": words.SEED,
    }
    if hypothesis is not None:
        usual = {name: getattr(hypothesis, name) for name in usual}
    # Options that were not given are None, and leave what was there.
    settings = {**usual, **given({**asdict(testing), "seed": asked.seed})}
    check_settings(
        settings["scheme"], settings["other"], settings["repeats"], settings["min_recovered"]
    )
    metric = (hypothesis and hypothesis.circuit.method.get("metric")) or words.METRIC
    return {**settings, "metric": str(asked.metric or metric), "batch_size": asked.batch_size}


def _scrubbed(
    model: Model, pairs: PromptPairs, edges: list[str], settings: dict[str, Any], shown: Shown
) -> Scrubbing:
    from ..circuits.evidence.scrubbing import scrub as run

    with if_stopped(), progress(shown.no_progress) as report:
        return run(
            model,
            pairs,
            edges,
            **settings,
            progress=report,
        )


_SHOWN = 15  # rows of a table


def _show(document: dict[str, Any], result: Scrubbing) -> None:
    rows = [
        [name, f"{document[name]['mean']:.3f}", "" if error is None else f"{error:.3f}"]
        for name in ("original", "scrubbed", "random")
        # A loop over one value, to give it a name.
        for error in [document[name]["standard_error"]]
    ]
    show_table(
        f"{document['metric']}, mean over {document['n_pairs']} pairs", ["", "mean", "s.e."], rows
    )
    interval = document["interval"]
    between = "" if interval is None else f" (95 % interval {interval[0]:.3f} to {interval[1]:.3f})"
    show_text(
        f"\nrecovered {document['recovered']:.3f}{between}, 1 - AUE/ATE {document['explained']:.3f}"
    )
    show_text(
        f"scheme {document['scheme']}, other prompts: {document['other']}, {document['repeats']} "
        f"repeats; random: {document['baselines']['random']}"
    )
    show_text(
        f"{result.n_edges} of {document['edges_in_model']} edges kept, {len(result.dead)} of them dead; "
        f"the tree has {result.circuit.tree_size:,} nodes"
    )
    if result.random_circuits:
        by_chance = ", ".join(f"{chance.recovered:.3f}" for chance in result.random_circuits)
        show_text(f"random circuits of as many edges recover {by_chance}")
    if result.without:
        needed = sorted(result.without.items(), key=lambda item: item[1].recovered)
        click.echo()
        show_table(
            f"recovered without one edge, the {min(_SHOWN, len(needed))} lowest of {len(needed)}",
            ["without", "recovered"],
            [[name, f"{rest.recovered:.3f}"] for name, rest in needed[:_SHOWN]],
        )
    claim = document["claim"]
    if claim["held"] is not None:
        outcome = "held" if claim["held"] else "failed"
        click.echo(f"claim {outcome}: at least {claim['min_recovered']:g} recovered")
