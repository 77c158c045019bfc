"""``wiremap evaluate``: what a circuit carries by itself."""

from __future__ import annotations

from pathlib import Path

import click

from ..edges.errors import InputError
from . import options
from .console import progress, show_json


@click.command()
@click.argument("circuit", type=click.Path(path_type=Path))
@options.other_question
@click.option("--seed", type=int, help="Seed of the built-in task's pairs.")
@options.where
@click.option("-o", "--out", type=click.Path(path_type=Path), help="File for the result, as JSON.")
@options.output
def evaluate(
    circuit: Path,
    model: str | None,
    task: str | None,
    pairs: Path | None,
    corruption: str | None,
    n_pairs: int | None,
    bos: bool | None,
    metric: str | None,
    seed: int | None,
    device: str,
    dtype: str,
    batch_size: int | None,
    out: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run a CIRCUIT alone, everything outside it patched, and say how much of the metric is left.

    faithfulness = (m(circuit) - m(empty)) / (m(full) - m(empty)). The model and prompts are those
    it was found with, or others: held-out pairs of its task are --task NAME --seed 1.
    """
    from ..circuits.document import dumps, faithfulness_document
    from ..circuits.faithfulness import evaluate as run
    from ..edges.files import write_atomically
    from ..exporters import read_circuit

    if circuit.is_dir():
        circuit = circuit / "circuit.json"
    found = read_circuit(circuit)
    if task is None and pairs is None and seed is not None:
        raise InputError("--seed goes with --task; name the task too")
    loaded, asked = options.load_for_circuit(
        found.model, found.task, model, task, pairs, corruption, n_pairs, seed, bos, device, dtype
    )
    metric = metric or str(found.method.get("metric", "logit_diff"))
    options.check_shape(loaded, found)
    with progress(quiet or as_json) as report:
        result = run(
            loaded,
            asked,
            [edge.name for edge in found.edges],
            metric,
            batch_size,
            lambda done: report("evaluate the circuit", done, len(asked)),
        )
    document = {"metric": metric, "edges": len(found.edges), **faithfulness_document(result)}
    if out is not None:
        write_atomically(out, dumps(document))
    if as_json:
        show_json(document)
    elif not quiet:
        click.echo(f"{len(found.edges)} of {found.shape.n_edges} edges")
        click.echo(options.summary(metric, result))
