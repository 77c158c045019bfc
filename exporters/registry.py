"""The formats there are, and the one way in and out."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from ..circuits.result.circuit import Circuit
from ..circuits.result.document import checked, from_document
from ..edges.errors import InputError
from ..edges.files import read_text, write_atomically
from .binary import refuse_binary
from .format import Content, Format
from .pictures.shown import CHOICES, View

LARGEST_FILE = 1_000_000_000
"""Bytes; larger files are not read. All edges of Llama-3.1-8B take less in every format."""


_MODULES = (
    "formats.circuit_json",
    "pictures.dot",
    "pictures.graphviz",
    "pictures.mermaid",
    "formats.graphml",
    "formats.gexf",
    "formats.node_link",
    "formats.cytoscape",
    "formats.eap_ig",
    "formats.edges_csv",
    "pages.viewer",
    "pages.report",
    "formats.scrub",
)
"""Of this package; each has its ``FORMATS``, in the order in which a file's format is looked for."""

_ALL: tuple[Format, ...] = tuple(
    known for name in _MODULES for known in import_module(f".{name}", __package__).FORMATS
)


FORMATS: Mapping[str, Format] = {known.name: known for known in _ALL}


def find_format(path: Path, format: str | None) -> Format:
    """The format of that name, or of the path's extension.

    Raises:
        InputError: neither is known; those that are get named.
    """
    names = ", ".join(FORMATS)
    if format is not None:
        if format not in FORMATS:
            raise InputError(f"unknown format {format!r:.60}; there are {names}")
        return FORMATS[format]
    fitting = [known for known in FORMATS.values() if path.name.lower().endswith(known.extension)]
    if fitting:
        # circuit.eap-ig.json ends with .json as well: the longer extension is meant.
        return max(fitting, key=lambda known: len(known.extension))
    raise InputError(
        f"{path}: no format has the extension {path.suffix or '(none)'!r}; "
        f"name one of {names}, or use its extension"
    )


def write_circuit(
    circuit: Circuit, path: str | Path, format: str | None = None, view: View | None = None
) -> None:
    """Writes a circuit, whole or not at all; the extension tells the format, or ``format`` does.

    Args:
        view: what to show, for formats that cannot or need not show all (see ``Format.shows``).

    Raises:
        InputError: an unknown format; a choice that the format does not have; a circuit that is
            contradictory in itself, or holds a number that is not finite; or a place that cannot
            be written.
        WiremapError: a picture that ``dot`` could not draw (missing, too slow, failed).
    """
    path, view = Path(path), view or View()
    known = find_format(path, format)
    # Refused rather than ignored: the file would not show what was asked for.
    for name in CHOICES:
        if getattr(view, name) and name not in known.shows:
            able = ", ".join(key for key, candidate in FORMATS.items() if name in candidate.shows)
            raise InputError(
                f"{format or known.extension} has no choice of {name}: formats that have are {able}"
            )
    write_atomically(path, known.encode(checked(circuit), view))


def read_circuit(path: str | Path) -> Circuit:
    """Reads a circuit from any format that can be read back; the content tells which it is.

    Raises:
        InputError: not a circuit; what and where is named.
    """
    return read_format(path)[1]


def read_format(path: str | Path) -> tuple[str, Circuit]:
    """The name of a file's format, and the circuit in it. Raises InputError as ``read_circuit``."""
    path = Path(path)
    try:
        return decoded(content_of(path))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def content_of(path: Path) -> Content:
    """The content of a file of text.

    Raises:
        InputError: it cannot be read, is too large, or is no text; what it is instead is said.
    """
    try:
        # Before anything is read: a device never ends, and a huge file fills the memory.
        if path.exists() and not path.is_file():
            raise InputError("expected a file, got a directory or a device")
        if path.exists() and path.stat().st_size > LARGEST_FILE:
            raise InputError(
                f"expected at most {LARGEST_FILE:,} bytes, got {path.stat().st_size:,}"
            )
        refuse_binary(path)
        return Content(read_text(path))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}") from None


def decode(text: str) -> tuple[str, Circuit]:
    """``decoded`` of a text."""
    return decoded(Content(text))


def decoded(content: Content) -> tuple[str, Circuit]:
    """The name of a content's format, and the circuit in it.

    Raises:
        InputError: no format that can be read back, or broken.
    """
    for known in FORMATS.values():
        if known.decode is not None and known.signs(content):
            return known.name, known.decode(content)
    if what := _looks_like(content):
        readable = ", ".join(known.name for known in FORMATS.values() if known.decode)
        raise InputError(
            f"expected a circuit as one of {readable}, got {what}, which is not read back; read "
            "the circuit.json it was made from"
        )
    # Anything else is taken for wiremap's own JSON, whose reader says what is wrong with it.
    return "json", from_document(content.data)


def _looks_like(content: Content) -> str | None:
    """What a text that is no circuit probably is."""
    for known in FORMATS.values():
        if known.signs(content):
            return known.called
    return "other XML" if content.start.startswith("<") else None
