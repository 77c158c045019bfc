"""``wiremap validate``: is a file what wiremap would have written?"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import click

from ..edges.errors import InputError
from . import options
from .asked import Shown, gathered
from .console import show_json


@click.command()
@options.path_argument("file")
@options.output
@gathered(shown=Shown)
def validate(file: Path, shown: Shown) -> None:
    """Check a FILE that wiremap wrote: its schema, and what a schema cannot say.

    Knows run.json, scrub.json, effects.jsonl, losses.jsonl, search.jsonl, scores.safetensors, circuits in every format that can
    be read back, and whole run directories.
    """
    files = sorted(_data_files(file)) if file.is_dir() else [file]
    found = [{"file": str(path), **_check(path)} for path in files]
    if shown.as_json:
        show_json(found)
    elif not shown.quiet:
        for result in found:
            # The whole numbers are counts; the rest names file and format.
            details = ", ".join(
                f"{value} {name}" for name, value in result.items() if isinstance(value, int)
            )
            click.echo(f"{result['file']}: valid {result['format']}, {details}")


def _data_files(directory: Path) -> list[Path]:
    """The files of a run directory that hold data; a run without any of its files is refused."""
    # What else is there, pages and pictures, is never read back.
    names = (
        "run.json",
        "scores.safetensors",
        "search.jsonl",
        "effects.jsonl",
        "losses.jsonl",
        "circuit.json",
        "circuit.graphml",
    )
    present = [directory / name for name in names if (directory / name).exists()]
    if directory / "run.json" not in present:
        raise InputError(f"{directory}: expected a run directory, but it has no run.json")
    return present


def _check(path: Path) -> dict[str, Any]:
    """What a file is and how much is in it. Raises InputError if it is not right."""
    from ..circuits.evidence.losses import LOSSES_FILE
    from ..circuits.record.effects_file import read_effects
    from ..circuits.record.scores_file import read_scores
    from ..circuits.record.search_file import SEARCH_FILE, count_rounds
    from ..exporters.registry import read_format

    if path.suffix == ".safetensors":
        nodes, edges, _ = read_scores(path)
        return {
            "format": "scores",
            "nodes": len(nodes.scores) if nodes else 0,
            "edges": edges.graph.n_edges if edges else 0,
        }
    if path.name == SEARCH_FILE:
        return {"format": "search", "circuits": count_rounds(path)}
    if path.name == LOSSES_FILE:
        return {"format": "losses", "losses": len(read_effects(path))}
    if path.suffix == ".jsonl":
        return {"format": "verified effects", "effects": len(read_effects(path))}
    if path.suffix == ".json":
        # By what the document says it is: all three kinds end with .json.
        known = _run_or_hypothesis(path)
        if known is not None:
            return known
    format, circuit = read_format(path)
    return {
        "format": "circuit" if format == "json" else format,
        "nodes": len(circuit.nodes),
        "edges": len(circuit.edges),
        "verified": sum(edge.verified for edge in circuit.edges),
    }


def _run_or_hypothesis(path: Path) -> dict[str, Any] | None:
    """What a run.json or a hypothesis holds; None if the file is neither."""
    from ..circuits.record.run_directory import read_run
    from ..circuits.result import hypothesis
    from ..circuits.result.document import loads
    from ..edges.files import read_text

    try:
        # What is no JSON goes on to read_format, which says where it breaks.
        found = loads(read_text(path))
    except InputError:
        return None
    format = cast("dict[str, Any]", found).get("format") if isinstance(found, dict) else None
    if format == "wiremap-run":
        return {"format": "run", "stages": len(read_run(path)["stages"])}
    if format != hypothesis.FORMAT:
        return None
    try:
        claimed = hypothesis.from_hypothesis_document(found).circuit
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return {"format": "hypothesis", "edges": len(claimed.edges)}
