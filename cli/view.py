"""``wiremap view``: a circuit in the browser."""

from __future__ import annotations

import tempfile
import webbrowser
from pathlib import Path

import click

from ..edges.errors import InputError
from . import options
from .asked import Asked, gathered
from .console import show_note
from .reading import Reading, read, shape_of


@click.command()
@options.path_argument("circuit")
@options.out("File for the page (beside CIRCUIT by default, or a temporary one if that cannot be).")
@options.group
@options.shape_of_table
@options.reading
@options.flag("--no-open", help="Write the page and print where it is, no more.")
@gathered(asked=Asked, reading=Reading)
def view(
    circuit: Path,
    asked: Asked,
    reading: Reading,
    out: Path | None,
    group: Path | None,
    no_open: bool,
) -> None:
    """Look through a CIRCUIT (circuit.json, a run directory, or any that export takes) in the browser.

    The page is one file that needs no network. A page that an earlier view wrote is replaced.
    """
    from ..edges.files import write_atomically
    from ..exporters import View, read_groups
    from ..exporters.pages.viewer import MARK, to_html

    claim = read(circuit, reading)
    roles = View(groups=read_groups(group) if group else {})
    page = to_html(claim.circuit(shape_of(asked, claim)), roles)
    path = out or claim.path.with_suffix(".html")
    # Only pages of our own are replaced. Their mark stands in the head, near the beginning.
    if path.exists() and not (path.is_file() and MARK.encode() in path.read_bytes()[:4096]):
        raise InputError(f"{path} exists and is not a page of wiremap; choose another file (-o)")
    try:
        write_atomically(path, page)
    except InputError:
        # The circuit may lie where nothing can be written. Unless a place was named, any will do.
        if out is not None:
            raise
        path = Path(tempfile.mkdtemp(prefix="wiremap-")) / path.name
        write_atomically(path, page)
    click.echo(path)
    if not no_open and not webbrowser.open(path.resolve().as_uri()):
        show_note("no browser was found; open the file in one")
