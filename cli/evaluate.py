"""``wiremap evaluate``: what a circuit carries by itself."""

from __future__ import annotations

from pathlib import Path

import click

from ..edges.errors import InputError
from . import options
from .console import progress, show_json


@click.command()
@click.argument("circuit", type=click.Path(path_type=Path))
@click.option("--model", help="Another model than the circuit was found in.")
@click.option("--task", help="Another built-in task than it was found on.")
@click.option("--pairs", type=click.Path(path_type=Path), help="Other prompt pairs.")
@click.option("--corruption", help="How the task's corrupted prompts differ.")
@click.option("--n-pairs", type=click.IntRange(min=1), help="Pairs of the built-in task.")
@click.option("--seed", type=int, help="Seed of the built-in task's pairs.")
@click.option("--bos/--no-bos", default=None, help="Begin every prompt with the BOS token.")
@click.option("--metric", help="Another metric than it was found with.")
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
    seed: int | None,
    bos: bool | None,
    metric: str | None,
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
    other = {"--corruption": corruption, "--n-pairs": n_pairs, "--seed": seed}
    if task is None and pairs is None and any(value is not None for value in other.values()):
        raise InputError("--corruption, --n-pairs and --seed go with --task; name the task too")
    if model is None and task is None and pairs is None:
        loaded, asked = options.reload(found.model, found.task, device)
    else:
        name = model or str(found.model.get("name", ""))
        loaded = options.load_model(name, device, dtype, bos, str(found.model.get("kv", "grouped")))
        task = task or (None if pairs else found.task.get("task"))
        asked = options.load_pairs(loaded, task, pairs, corruption, n_pairs, seed)
    metric = metric or str(found.method.get("metric", "logit_diff"))
    if loaded.graph != found.shape:
        raise InputError(
            f"the circuit is of a model of shape {found.shape.as_dict()}, but {loaded.name} is "
            f"{loaded.graph.as_dict()}; choose a model of the same shape"
        )
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
