"""``wiremap validate``: is a file what wiremap would have written?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..edges.errors import InputError
from . import options
from .console import show_json


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@options.output
def validate(file: Path, as_json: bool, quiet: bool) -> None:
    """Check a FILE that wiremap wrote: its schema, and what a schema cannot say.

    Knows circuit.json, scrub.json, run.json, effects.jsonl, scores.safetensors, GraphML, and whole
    run directories.
    """
    files = sorted(_data_files(file)) if file.is_dir() else [file]
    found = [{"file": str(path), **_check(path)} for path in files]
    if as_json:
        show_json(found)
    elif not quiet:
        for result in found:
            details = ", ".join(
                f"{value} {name}" for name, value in result.items() if isinstance(value, int)
            )
            click.echo(f"{result['file']}: valid {result['format']}, {details}")


def _data_files(directory: Path) -> list[Path]:
    """The files of a run directory that hold data; a run without any of its files is refused."""
    names = ("run.json", "scores.safetensors", "effects.jsonl", "circuit.json", "circuit.graphml")
    present = [directory / name for name in names if (directory / name).exists()]
    if directory / "run.json" not in present:
        raise InputError(f"{directory}: expected a run directory, but it has no run.json")
    return present


def _check(path: Path) -> dict[str, Any]:
    """What a file is and how much is in it. Raises InputError if it is not right."""
    from ..circuits import hypothesis
    from ..circuits.document import from_document, loads
    from ..circuits.runs import check_run, read_scores
    from ..circuits.verification import read_effects
    from ..edges.files import read_text
    from ..exporters.graphml import check_graphml

    if path.suffix == ".safetensors":
        nodes, edges, _ = read_scores(path)
        return {
            "format": "scores",
            "nodes": len(nodes.scores) if nodes else 0,
            "edges": edges.graph.n_edges if edges else 0,
        }
    if path.suffix == ".jsonl":
        return {"format": "verified effects", "effects": len(read_effects(path))}
    try:
        if path.suffix == ".graphml":
            n_nodes, n_edges = check_graphml(read_text(path))
            return {"format": "GraphML", "nodes": n_nodes, "edges": n_edges}
        if path.suffix == ".json":
            document = loads(read_text(path))
            if isinstance(document, dict) and document.get("format") == "wiremap-run":  # pyright: ignore[reportUnknownMemberType]
                return {"format": "run", "stages": len(check_run(document)["stages"])}
            if isinstance(document, dict) and document.get("format") == hypothesis.FORMAT:  # pyright: ignore[reportUnknownMemberType]
                claimed = hypothesis.from_hypothesis_document(document).circuit
                return {"format": "hypothesis", "edges": len(claimed.edges)}
            circuit = from_document(document)
            return {
                "format": "circuit",
                "nodes": len(circuit.nodes),
                "edges": len(circuit.edges),
                "verified": sum(edge.verified for edge in circuit.edges),
            }
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    raise InputError(
        f"{path}: expected a .json, .jsonl, .safetensors or .graphml file, got {path.suffix or 'no'} "
        "extension; pictures and DOT are drawn from circuit.json: validate that"
    )
