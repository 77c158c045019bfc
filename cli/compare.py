"""``wiremap compare``: what two circuits share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..edges.names.vocabulary import EDGES_DRAWN
from . import options
from .asked import Asked, Shown, gathered
from .console import show_json, show_note, show_table, show_text
from .reading import Reading, read, shape_of

if TYPE_CHECKING:
    from ..circuits.result.comparison import Comparison


@click.command()
@options.path_argument("a")
@options.path_argument("b")
@options.out("Diagram: .svg, .dot, .png or .pdf.")
@options.edges_drawn("the diagram")
@options.shape_of_table
@options.reading
@options.output
@gathered(asked=Asked, reading=Reading, shown=Shown)
def compare(
    a: Path,
    b: Path,
    asked: Asked,
    reading: Reading,
    out: Path | None,
    top: int | None,
    shown: Shown,
) -> None:
    """Compare circuits A and B: nodes and edges shared, lost (A alone) and gained (B alone).

    Either may be a table or graph of edges, of the other's model or that of --model.

    Jaccard: shared edges of those in either. Weighted: sum of the smaller |worth| over sum of the
    larger, worth being the verified effect, or the score where there is none. Rank correlation:
    Spearman's of |worth| over edges in either, 0 where an edge is missing.
    """
    from ..circuits.result.comparison import compare as run
    from ..exporters.pictures.two_circuits import write_comparison

    claims = [read(path, reading, shown.quiet) for path in (a, b)]
    shape = shape_of(asked, *claims)
    found = run(*(claim.circuit(shape) for claim in claims))
    if out is not None:
        write_comparison(found, out, top or EDGES_DRAWN, (str(a), str(b)))
    if shown.as_json:
        show_json({"a": str(a), "b": str(b), **found.as_document()})
    elif not shown.quiet:
        _show(found, a, b)
        if out is not None:
            show_text(f"\nwritten to {out}")
    # Also beside JSON: notes go to stderr, and stdout stays JSON.
    for note in found.notes:
        show_note(note)


def _show(found: Comparison, a: Path, b: Path) -> None:
    show_table(
        f"A = {a}, B = {b}",
        ["", "shared", "A alone (lost)", "B alone (gained)"],
        [
            [what, *(str(len(names)) for names in parts)]
            for what, *parts in (
                ("nodes", found.shared_nodes, found.lost_nodes, found.gained_nodes),
                ("edges", found.shared_edges, found.lost_edges, found.gained_edges),
            )
        ],
    )
    for what, value in (
        ("Jaccard", found.jaccard),
        ("weighted Jaccard", found.weighted_jaccard),
        ("rank correlation (missing edges count as 0)", found.rank_correlation),
    ):
        click.echo(f"{what} {'undefined' if value is None else format(value, '.3f')}")
    if found.sign_flips:
        show_text(f"of opposite signs: {_listed(found.sign_flips)}")
    for where, circuit, names in (
        ("A", found.a, found.lost_edges),
        ("B", found.b, found.gained_edges),
    ):
        size = {edge.name: edge.size for edge in circuit.edges}
        if names:
            largest = sorted(names, key=lambda name, size=size: -size[name])
            order = "not scored" if circuit.unscored else "largest first"
            show_text(f"in {where} alone, {order}: {_listed(largest)}")


_SHOWN = 10  # rows of a table


def _listed(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
