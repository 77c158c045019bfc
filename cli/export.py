"""``wiremap export``: a circuit as another file."""

from __future__ import annotations

from pathlib import Path

import click

from ..cli import options
from ..edges.errors import InputError


@click.command()
@click.argument("circuit", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "format",
    required=True,
    help="dot, svg, png, pdf, mermaid (diagrams); json, node-link, cytoscape, eap-ig, graphml, "
    "gexf, edges-csv (data, read back); html (viewer for a browser); report (to read and to print); "
    "scrub (claim for wiremap scrub).",
)
@click.option(
    "--qkv",
    type=click.Choice(["merge", "nodes", "parallel"]),
    help="Edges into the query, key and value of one head: one edge with a score for each; nodes "
    "of their own; or parallel edges. Merged in graphml, gexf and mermaid, parallel elsewhere.",
)
@click.option(
    "--top", type=click.IntRange(min=1), help="Edges in a diagram, the largest (100 by default)."
)
@click.option(
    "--collapse",
    type=click.Choice(["qkv", "layers", "groups"]),
    help="Draw as one: queries, keys and values; the heads of a layer; the nodes of a group.",
)
@options.group
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="File (beside CIRCUIT by default)."
)
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
def export(
    circuit: Path,
    format: str,
    qkv: str | None,
    top: int | None,
    collapse: str | None,
    group: Path | None,
    out: Path | None,
    force: bool,
    quiet: bool,
) -> None:
    """Write a CIRCUIT (a run directory, or any file that can be read back) in another format."""
    from ..edges.names.vocabulary import EDGES_DRAWN
    from ..exporters import FORMATS, View, read_circuit, read_groups, write_circuit
    from ..exporters.pictures.dot import READABLE
    from ..exporters.registry import find_format

    if circuit.is_dir():
        circuit = circuit / "circuit.json"
    found = read_circuit(circuit)
    target = find_format(circuit, format)
    if out is None:
        known = [
            each.extension for each in FORMATS.values() if circuit.name.endswith(each.extension)
        ]
        stem = circuit.name.removesuffix(max(known, key=len, default=circuit.suffix))
        out = circuit.with_name(stem + target.extension)
    if out.exists() and not force:
        raise InputError(f"{out} exists; replace it (--force), or choose another file (-o)")
    groups = read_groups(group) if group else {}
    write_circuit(found, out, format, View(qkv=qkv, top=top, collapse=collapse, groups=groups))
    if quiet:
        return
    click.echo(f"written to {out}")
    if target.loses:
        click.echo(f"note: {format} loses {target.loses}", err=True)
    drawn = min(top or EDGES_DRAWN, len(found.edges))
    if "top" in target.shows and drawn < len(found.edges):
        click.echo(
            f"note: the diagram has the {drawn} largest of {len(found.edges)} edges (--top)",
            err=True,
        )
    if "top" in target.shows and drawn > READABLE:
        click.echo(
            f"note: diagrams of more than {READABLE} edges are hard to read; draw fewer (--top, "
            "--collapse), or open the circuit in Gephi (--to gexf)",
            err=True,
        )
