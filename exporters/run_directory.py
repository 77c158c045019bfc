"""What people look at in a run directory: report, viewer and pictures, made of the circuit alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

from ..circuits.result.circuit import Circuit
from ..circuits.result.document import checked
from ..edges.errors import InputError, WiremapError, WiremapWarning
from ..edges.files import write_atomically
from .pages.curve_figure import curve_picture
from .pictures.labels import title
from .pictures.shown import View
from .registry import FORMATS

OVERVIEW_FILE = "circuit-layers.svg"


_CROWDED = 60
"""Of more edges there is an overview as well: the heads of a layer as one, with as many connections."""


CURVE_FILE = "faithfulness.svg"


_FILES = {
    "report.html": "report",
    "circuit.html": "html",
    "circuit.dot": "dot",
    "circuit.graphml": "graphml",
    "circuit.svg": "svg",
}


def write_run_directory(circuit: Circuit, path: str | Path) -> list[str]:
    """Writes report.html, circuit.html, .dot, .graphml and .svg, and faithfulness.svg.

    Of more than 60 edges also circuit-layers.svg: the attention of a layer as one node, its MLP as
    another, and the 60 largest connections between them.

    The names of the files written, in that order but for faithfulness.svg, which comes first and
    needs a curve in the circuit's evidence. Without Graphviz there is no circuit.svg: a
    ``WiremapWarning`` says so.

    Args:
        path: of the directory, which is there already.

    Raises:
        InputError: a circuit that is contradictory in itself, or a place that cannot be written.
    """
    path, whole, written = Path(path), checked(circuit), list[str]()
    curve = curve_picture(whole, title(whole))
    if curve is not None:
        write_atomically(path / CURVE_FILE, curve)
        written.append(CURVE_FILE)
    if len(whole.edges) <= _CROWDED:
        (path / OVERVIEW_FILE).unlink(missing_ok=True)  # of an earlier run
    for name, format, view in _files(whole):
        try:
            content = FORMATS[format].encode(whole, view)
        except InputError:
            # A WiremapError, too: but what is wrong with the circuit is no matter for a warning.
            raise
        except WiremapError as error:  # Graphviz cannot draw it, or is not there
            if name == OVERVIEW_FILE:
                continue  # which circuit.svg has said
            warnings.warn(str(error), WiremapWarning, stacklevel=2)
            continue
        write_atomically(path / name, content)
        written.append(name)
    return written


def _files(circuit: Circuit) -> Iterator[tuple[str, str, View]]:
    """The files to write: name, format, and what is shown."""
    for name, format in _FILES.items():
        yield name, format, View()
    if len(circuit.edges) > _CROWDED:
        yield OVERVIEW_FILE, "svg", View(collapse="layers", top=_CROWDED)


def files_written(path: Path) -> list[str]:
    """Those of these files that a run directory has."""
    return [name for name in (CURVE_FILE, *_FILES, OVERVIEW_FILE) if (path / name).exists()]
