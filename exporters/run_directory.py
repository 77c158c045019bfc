"""What people look at in a run directory: report, viewer and pictures, made of the circuit alone."""

from __future__ import annotations

import warnings
from pathlib import Path

from ..circuits.result.circuit import Circuit
from ..circuits.result.document import checked
from ..edges.errors import InputError, WiremapError, WiremapWarning
from ..edges.files import write_atomically
from .pages.curve_figure import curve_picture
from .pictures.labels import title
from .pictures.shown import View
from .registry import FORMATS

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
    for name, format in _FILES.items():
        try:
            content = FORMATS[format].encode(whole, View())
        except InputError:
            # A WiremapError, too: but what is wrong with the circuit is no matter for a warning.
            raise
        except WiremapError as error:  # Graphviz cannot draw it, or is not there
            warnings.warn(str(error), WiremapWarning, stacklevel=2)
            continue
        write_atomically(path / name, content)
        written.append(name)
    return written


def files_written(path: Path) -> list[str]:
    """Those of these files that a run directory has."""
    return [name for name in (CURVE_FILE, *_FILES) if (path / name).exists()]
