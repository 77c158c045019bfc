"""``wiremap validate``: is a file what wiremap would have written?"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import click

from ..edges.errors import InputError
from . import options
from .asked import Asked, Shown, gathered, given
from .console import show_json, show_text
from .loading import load_model


@click.command()
@options.path_argument("file")
@options.pairs_of_model
@options.out("Of prompt pairs: write those that cannot be used to this file, as JSON Lines.")
@options.output
@gathered(asked=Asked, shown=Shown)
def validate(file: Path, out: Path | None, asked: Asked, shown: Shown) -> None:
    """Check a FILE that wiremap wrote: its schema, and what a schema cannot say.

    Knows run.json, scrub.json, effects.jsonl, losses.jsonl, search.jsonl, scores.safetensors, circuits in every format that can
    be read back, and whole run directories. With --model, FILE is one of prompt pairs, and every pair
    that cannot be used is listed with its cause.
    """
    if asked.model is not None:
        _check_pairs(file, out, asked, shown)
        return
    if out is not None or given({"--chat": asked.chat, "--bos": asked.bos}):
        raise InputError(
            "--out, --chat and --bos are of prompt pairs; say of which --model they are"
        )
    files = sorted(_data_files(file)) if file.is_dir() else [file]
    try:
        found = [{"file": str(path), **_check(path)} for path in files]
    except InputError:
        _refuse_pairs(file)
        raise
    if shown.as_json:
        show_json(found)
    elif not shown.quiet:
        for result in found:
            # The whole numbers are counts; the rest names file and format.
            details = ", ".join(
                f"{value} {name}" for name, value in result.items() if isinstance(value, int)
            )
            click.echo(f"{result['file']}: valid {result['format']}, {details}")


def _refuse_pairs(file: Path) -> None:
    """Raises InputError if a file that is none of wiremap's has prompt pairs."""
    from ..edges.question.columns import find_columns
    from ..edges.question.pairs_file import read_pairs_file

    try:
        records = [record for record in read_pairs_file(file).records if record]
        missing = find_columns(records).missing
    except InputError:
        return
    if not missing:
        raise InputError(f"{file}: holds prompt pairs; say which model they are for (--model)")


def _check_pairs(file: Path, out: Path | None, asked: Asked, shown: Shown) -> None:
    """Lists the pairs that cannot be used. Raises InputError if there are any."""
    from ..edges.files import write_atomically
    from ..edges.question.records import bad_rows

    # Its tokenizer is all that is needed, which no GPU helps.
    model = load_model(replace(asked, device="cpu"))
    n_pairs, bad = bad_rows(file, model, chat=bool(asked.chat))
    if out is not None:
        write_atomically(out, "".join(json.dumps(row, default=str) + "\n" for row in bad))
    if shown.as_json:
        show_json([{"file": str(file), "format": "prompt pairs", "pairs": n_pairs, "bad": bad}])
    elif not shown.quiet:
        for row in bad:
            line = f" (line {row['line']})" if "line" in row else ""
            show_text(f"row {row['row']}{line}: {row['cause']}; {row['next_step'] or 'mend it'}")
    if bad:
        written = " (-o FILE writes them)" if out is None else f"; they are in {out}"
        raise InputError(
            f"{file}: {len(bad)} of {n_pairs} pairs cannot be used{written}; mend them, or leave them "
            "out (--skip-bad-pairs, skip_bad=True)"
        )
    if not (shown.as_json or shown.quiet):
        show_text(f"{file}: valid prompt pairs, {n_pairs} of {n_pairs}")


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
