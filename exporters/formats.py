"""The formats there are, and the one way in and out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..circuits.circuit import Circuit
from ..circuits.document import dumps, from_document, loads, to_document
from ..circuits.hypothesis import Hypothesis, to_hypothesis_document
from ..edges.errors import InputError
from ..edges.files import read_text, write_atomically
from .dot import render, to_dot
from .graphml import to_graphml


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        encode: the content of a file of this format.
        description: what opens it.
    """

    extension: str
    description: str
    encode: Callable[[Circuit], bytes]


def _image(kind: str) -> Callable[[Circuit], bytes]:
    return lambda circuit: render(to_dot(circuit), kind)


FORMATS: Mapping[str, Format] = {
    "json": Format(
        ".json",
        "wiremap's own, complete and read back",
        lambda circuit: dumps(to_document(circuit)).encode(),
    ),
    "dot": Format(".dot", "Graphviz source", lambda circuit: to_dot(circuit).encode()),
    "svg": Format(".svg", "diagram; needs the dot program of Graphviz", _image("svg")),
    "png": Format(".png", "diagram; needs the dot program of Graphviz", _image("png")),
    "pdf": Format(".pdf", "diagram; needs the dot program of Graphviz", _image("pdf")),
    "graphml": Format(
        ".graphml",
        "Gephi, yEd, igraph, networkx, graph-tool",
        lambda circuit: to_graphml(circuit).encode(),
    ),
    "scrub": Format(
        ".scrub.json",
        "causal-scrubbing hypothesis, for wiremap scrub",
        lambda circuit: dumps(to_hypothesis_document(Hypothesis(circuit))).encode(),
    ),
}


def find_format(path: Path, format: str | None) -> Format:
    """The format of that name, or of the path's extension.

    Raises:
        InputError: neither is known; those that are get named.
    """
    names = ", ".join(FORMATS)
    if format is not None:
        if format not in FORMATS:
            raise InputError(f"unknown format {format!r}; there are {names}")
        return FORMATS[format]
    for known in FORMATS.values():
        if path.suffix.lower() == known.extension:
            return known
    raise InputError(
        f"{path}: no format has the extension {path.suffix or '(none)'!r}; "
        f"name one of {names}, or use its extension"
    )


def write_circuit(circuit: Circuit, path: str | Path, format: str | None = None) -> None:
    """Writes a circuit, whole or not at all; the extension tells the format, or ``format`` does.

    Raises:
        InputError: an unknown format, or a place that cannot be written.
        WiremapError: a picture that ``dot`` could not draw (missing, too slow, failed).
    """
    path = Path(path)
    write_atomically(path, find_format(path, format).encode(circuit))


def read_circuit(path: str | Path) -> Circuit:
    """Reads a circuit back from wiremap's JSON; equal to the one that was written.

    Raises:
        InputError: not a circuit; what and where is named.
    """
    path = Path(path)
    try:
        return from_document(loads(read_text(path)))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
