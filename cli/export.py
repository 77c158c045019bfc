"""``wiremap export``: a circuit as another file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..edges.errors import InputError
from ..edges.names.vocabulary import COLLAPSE, EDGES_DRAWN, QKV
from . import options
from .asked import Asked, gathered
from .console import show_note
from .reading import Reading, of_model, read

if TYPE_CHECKING:
    from ..circuits.result.circuit import Circuit
    from ..edges.names.graph import ModelGraph
    from ..exporters import View
    from ..exporters.hypotheses import Claim
    from ..exporters.registry import Format


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """What the file shows; see ``View``."""

    qkv: str | None
    top: int | None
    collapse: str | None
    group: Path | None

    def view(self) -> View:
        """This with the groups read."""
        from ..exporters import View, read_groups

        groups = read_groups(self.group) if self.group else {}
        return View(qkv=self.qkv, top=self.top, collapse=self.collapse, groups=groups)


@dataclass(frozen=True, kw_only=True)
class _Output:
    """Where the file goes."""

    out: Path | None
    force: bool
    quiet: bool

    def place(self, circuit: Path, target: Format) -> Path:
        """Beside the circuit by default. Raises InputError if a file is there and may not go."""
        from ..exporters import FORMATS

        out = self.out
        if out is None:
            # circuit.eap-ig.json becomes circuit.svg: the longest extension that fits is taken off.
            known = [
                each.extension for each in FORMATS.values() if circuit.name.endswith(each.extension)
            ]
            stem = circuit.name.removesuffix(max(known, key=len, default=circuit.suffix))
            out = circuit.with_name(stem + target.extension)
        if out.exists() and not self.force:
            raise InputError(f"{out} exists; replace it (--force), or choose another file (-o)")
        return out


@click.command()
@options.path_argument("circuit")
@click.option(
    "--to",
    "format",
    required=True,
    help="dot, svg, png, pdf, mermaid (diagrams); json, node-link, cytoscape, eap-ig, graphml, "
    "gexf, edges-csv (data, read back); html (viewer for a browser); report (to read and to print); "
    "scrub (claim for wiremap scrub).",
)
@options.choice(
    "--qkv",
    QKV,
    help="Edges into the query, key and value of one head: one edge with a score for each; nodes "
    "of their own; or parallel edges. Merged in graphml, gexf and mermaid, parallel elsewhere.",
)
@options.edges_drawn("a diagram")
@options.choice(
    "--collapse",
    COLLAPSE,
    help="Draw as one: queries, keys and values; the heads of a layer; the nodes of a group.",
)
@options.group
@options.shape_of_table
@options.reading
@options.out("File (beside CIRCUIT by default).")
@options.flag("--force", help="Replace the file if it exists.")
@options.flag("--quiet", help="Print errors only.")
@gathered(shown=_Shown, asked=Asked, reading=Reading, output=_Output)
def export(
    circuit: Path, format: str, shown: _Shown, asked: Asked, reading: Reading, output: _Output
) -> None:
    """Write a CIRCUIT in another format.

    CIRCUIT is a run directory, any file that can be read back, or a table or graph of edges (name
    its --model). Of scores alone (scores.safetensors, MIB's importances.json) --top says how many
    edges, the largest, are the circuit.
    """
    from ..exporters import write_circuit
    from ..exporters.registry import find_format

    claim = read(circuit, reading, output.quiet)
    target = find_format(claim.path, format)
    shape, described = of_model(asked, claim)
    found, shown = _chosen(claim, shape, target, shown)
    found = replace(found, model={**described, **found.model})
    out = output.place(claim.path, target)
    write_circuit(found, out, format, shown.view())
    if not output.quiet:
        click.echo(f"written to {out}")
        _tell_losses(format, target, shown, len(found.edges))


def _chosen(
    claim: Claim, shape: ModelGraph | None, target: Format, shown: _Shown
) -> tuple[Circuit, _Shown]:
    """The circuit, and what is shown of it; of scores alone the ``--top`` largest are one.

    So they are of a table, in formats that show all of a circuit.
    """
    drawn = "top" in target.shows
    if shown.top is None or (claim.scores is None and (drawn or claim.hypothesis is not None)):
        return claim.circuit(shape), shown
    circuit = claim.largest(shown.top, shape)
    live = len(circuit.shape.live([circuit.shape.edge(edge.name) for edge in circuit.edges]))
    if live < len(circuit.edges):
        show_note(
            f"{len(circuit.edges) - live} of the {len(circuit.edges)} largest edges are on no path of "
            "these from input to logits"
        )
    # Formats of data show all of a circuit, and refuse to be asked for less.
    return circuit, shown if drawn else replace(shown, top=None)


def _tell_losses(format: str, target: Format, shown: _Shown, n_edges: int) -> None:
    """Notes on what the file lacks, and on a diagram that is hard to read."""
    from ..exporters.pictures.dot import READABLE

    if target.loses:
        show_note(f"{format} loses {target.loses}")
    # Only diagrams leave edges out for want of room.
    if "top" not in target.shows:
        return
    drawn = min(shown.top or EDGES_DRAWN, n_edges)
    if shown.collapse in ("layers", "groups"):
        return  # its caption says how many edges the connections drawn are
    if drawn < n_edges:
        show_note(f"the diagram has the {drawn} largest of {n_edges} edges (--top)")
    if drawn > READABLE:
        show_note(
            f"diagrams of more than {READABLE} edges are hard to read; draw fewer (--top, "
            "--collapse), or open the circuit in Gephi (--to gexf)"
        )
