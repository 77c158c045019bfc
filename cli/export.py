"""``wiremap export``: a circuit as another file."""

from __future__ import annotations

from pathlib import Path

import click

from ..edges.errors import InputError


@click.command()
@click.argument("circuit", type=click.Path(path_type=Path))
@click.option("--to", "format", required=True, help="json, dot, svg, png, pdf, graphml or scrub.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="File (beside CIRCUIT by default)."
)
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
def export(circuit: Path, format: str, out: Path | None, force: bool, quiet: bool) -> None:
    """Write a CIRCUIT (circuit.json, or a run directory) in another format."""
    from ..exporters import read_circuit, write_circuit
    from ..exporters.formats import find_format

    if circuit.is_dir():
        circuit = circuit / "circuit.json"
    found = read_circuit(circuit)
    out = out or circuit.with_suffix(find_format(circuit, format).extension)
    if out.exists() and not force:
        raise InputError(f"{out} exists; replace it (--force), or choose another file (-o)")
    write_circuit(found, out, format)
    if not quiet:
        click.echo(f"written to {out}")
