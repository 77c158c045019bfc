"""``wiremap scrub``: is a circuit's claim, that only its edges matter, true?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..cli import options
from ..edges.errors import InputError
from .console import progress, show_json, show_table

if TYPE_CHECKING:
    from ..circuits.evidence.scrubbing import Scrubbing
    from ..circuits.result.circuit import CircuitEdge
    from ..circuits.result.hypothesis import Hypothesis

_SHOWN = 15
_TABLES = (".csv", ".tsv")


@click.command()
@click.argument("circuit", type=click.Path(path_type=Path))
@click.option(
    "--scheme",
    type=click.Choice(["together", "per-edge", "per-path"]),
    help="How many other prompts: one for each pair (default), for each dropped edge, or for each "
    "node of the tree of kept paths.",
)
@click.option(
    "--other",
    help="Which: any of the same length (default), same-label, feature:COLUMN, or paired (each "
    "pair's corrupted prompt).",
)
@click.option(
    "--repeats", type=click.IntRange(min=1), help="Draws of other prompts for every pair (10)."
)
@click.option("--seed", type=int, help="Of the draws (0); with --task, of its pairs too.")
@click.option(
    "--min-recovered", type=float, help="The claim: exit with 1 if less than this is recovered."
)
@click.option("--drop-one", is_flag=True, help="Also scrub without each kept edge in turn.")
@click.option(
    "--random-circuits",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="Circuits of random paths, of as many edges, to compare with.",
)
@click.option(
    "--leave-out", is_flag=True, help="Leave out pairs that no other prompt of --other goes with."
)
@click.option(
    "--max-tree",
    type=click.IntRange(min=1),
    help="Nodes that the tree of --scheme per-path may have (20,000).",
)
@options.other_question
@click.option(
    "--kv",
    type=click.Choice(["grouped", "per-query"]),
    help="Readers of shared keys and values, for a table of edges; as in the circuit by default.",
)
@options.where_of_circuit
@click.option("-o", "--out", type=click.Path(path_type=Path), help="File for the result, as JSON.")
@options.output
@click.pass_context
def scrub(
    context: click.Context,
    circuit: Path,
    scheme: str | None,
    other: str | None,
    repeats: int | None,
    seed: int | None,
    min_recovered: float | None,
    drop_one: bool,
    random_circuits: int,
    leave_out: bool,
    max_tree: int | None,
    model: str | None,
    task: str | None,
    pairs: Path | None,
    corruption: str | None,
    n_pairs: int | None,
    bos: bool | None,
    metric: str | None,
    kv: str | None,
    device: str,
    dtype: str | None,
    batch_size: int | None,
    out: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Test the claim of a CIRCUIT, that only its edges matter, by causal scrubbing.

    CIRCUIT is circuit.json, a run directory, scrub.json (wiremap export --to scrub), or a table of
    edges with the columns source, target and slot (.csv or .tsv; name --model and --task or
    --pairs). What reaches a node by any other edge comes from other prompts of the same length.

    recovered = (scrubbed - random) / (original - random). Exit codes: 0 the claim held, or none was
    made; 1 less than --min-recovered was recovered; 2 bad input.
    """
    from ..circuits.describe import describe_model, describe_task
    from ..circuits.evidence.scrubbing import scrub as run
    from ..circuits.result.document import dumps
    from ..circuits.result.hypothesis import Hypothesis, check_settings
    from ..edges.files import write_atomically
    from ..edges.names.vocabulary import MAX_TREE

    found = _read(circuit)
    claim = found if isinstance(found, Hypothesis) else None
    if kv is not None and claim is not None:
        raise InputError("--kv goes with a table of edges; this circuit says which it is")
    scheme = scheme or (claim.scheme if claim else "together")
    other = other or (claim.other if claim else "any")
    repeats = repeats or (claim.repeats if claim else 10)
    if min_recovered is None and claim:
        min_recovered = claim.min_recovered
    check_settings(scheme, other, repeats, min_recovered)
    of = claim.circuit if claim else None
    loaded, asked = options.load_for_circuit(
        of.model if of else {},
        of.task if of else {},
        model,
        task,
        pairs,
        corruption,
        n_pairs,
        seed if task else None,
        bos,
        device,
        dtype,
        kv,
    )
    edges: list[CircuitEdge] = list(of.edges if of else found)  # pyright: ignore[reportArgumentType]
    if of:
        options.check_shape(loaded, of)
        metric = metric or str(of.method.get("metric", "logit_diff"))
    seed = (claim.seed if claim else 0) if seed is None else seed
    with progress(quiet or as_json) as report:
        result = run(
            loaded,
            asked,
            [edge.name for edge in edges],
            scheme,
            other,
            metric or "logit_diff",
            repeats,
            seed,
            random_circuits,
            drop_one,
            leave_out,
            max_tree or MAX_TREE,
            batch_size,
            lambda done, total: report("scrub", done, total),
        )
    held = None if min_recovered is None else result.circuit.recovered >= min_recovered
    document = {
        "model": describe_model(loaded),
        "dataset": describe_task(asked),
        **result.as_document(),
        "edges_in_model": loaded.graph.n_edges,
        "claim": {"min_recovered": min_recovered, "held": held},
    }
    if out is not None:
        write_atomically(out, dumps(document))
    if as_json:
        show_json(document)
    elif not quiet:
        _show(document, result)
    if result.left_out:
        click.echo(f"note: {len(result.left_out)} pairs left out (--leave-out)", err=True)
    if result.n_edges == len(result.dead):
        click.echo("note: no path of kept edges leads from input to logits", err=True)
    if held is False:
        context.exit(1)


def _read(path: Path) -> Hypothesis | list[CircuitEdge]:
    """What CIRCUIT holds: a hypothesis, a circuit (made one), or the edges of a table."""
    from ..circuits.result.document import loads
    from ..circuits.result.hypothesis import (
        FORMAT,
        Hypothesis,
        from_hypothesis_document,
        read_edge_table,
    )
    from ..edges.files import read_text
    from ..exporters import read_circuit

    if path.is_dir():
        path = path / "circuit.json"
    if path.suffix.lower() in _TABLES:
        return read_edge_table(path)
    if path.suffix.lower() == ".json":
        try:
            document = loads(read_text(path))
            if isinstance(document, dict) and document.get("format") == FORMAT:  # pyright: ignore[reportUnknownMemberType]
                return from_hypothesis_document(document)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    return Hypothesis(read_circuit(path))


def _show(document: dict[str, Any], result: Scrubbing) -> None:
    rows = [
        [name, f"{told['mean']:.3f}", "" if error is None else f"{error:.3f}"]
        for name, told in ((name, document[name]) for name in ("original", "scrubbed", "random"))
        for error in [told["standard_error"]]
    ]
    show_table(
        f"{document['metric']}, mean over {document['n_pairs']} pairs", ["", "mean", "s.e."], rows
    )
    interval = document["interval"]
    between = "" if interval is None else f" (95 % interval {interval[0]:.3f} to {interval[1]:.3f})"
    click.echo(
        f"\nrecovered {document['recovered']:.3f}{between}, 1 - AUE/ATE {document['explained']:.3f}"
    )
    click.echo(
        f"scheme {document['scheme']}, other prompts: {document['other']}, {document['repeats']} "
        f"repeats; random: {document['baselines']['random']}"
    )
    click.echo(
        f"{result.n_edges} of {document['edges_in_model']} edges kept, {len(result.dead)} of them dead; "
        f"the tree has {result.circuit.tree_size:,} nodes"
    )
    if result.random_circuits:
        by_chance = ", ".join(f"{one.recovered:.3f}" for one in result.random_circuits)
        click.echo(f"random circuits of as many edges recover {by_chance}")
    if result.without:
        needed = sorted(result.without.items(), key=lambda item: item[1].recovered)
        click.echo()
        show_table(
            f"recovered without one edge, the {min(_SHOWN, len(needed))} lowest of {len(needed)}",
            ["without", "recovered"],
            [[name, f"{one.recovered:.3f}"] for name, one in needed[:_SHOWN]],
        )
    claim = document["claim"]
    if claim["held"] is not None:
        outcome = "held" if claim["held"] else "failed"
        click.echo(f"claim {outcome}: at least {claim['min_recovered']:g} recovered")
