"""The formats there are, and the one way in and out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..circuits.result.circuit import Circuit
from ..circuits.result.document import dumps, from_document, loads, to_document
from ..circuits.result.hypothesis import Hypothesis, to_hypothesis_document
from ..edges.errors import InputError
from ..edges.files import read_text, write_atomically
from .formats.cytoscape import from_cytoscape, to_cytoscape
from .formats.eap_ig import from_eap_ig, to_eap_ig
from .formats.edges_csv import from_edges_csv, to_edges_csv
from .formats.gexf import from_gexf, to_gexf
from .formats.graphml import from_graphml, to_graphml
from .formats.node_link import from_node_link, to_node_link
from .pages.report import to_report
from .pages.viewer import to_html
from .pictures.dot import to_dot
from .pictures.graphviz import draw
from .pictures.mermaid import to_mermaid
from .pictures.shown import View

LARGEST_FILE = 1_000_000_000
"""Bytes; larger files are not read. All edges of Llama-3.1-8B take less in every format."""


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        description: what opens it.
        encode: the content of a file of this format.
        loses: what of a circuit does not come back when the file is read; "" for nothing at all,
            None if it is not read back.
        shows: which choices of a ``View`` it heeds.
    """

    extension: str
    description: str
    encode: Callable[[Circuit, View], bytes]
    loses: str | None = None
    shows: tuple[str, ...] = ()


def _text(write: Callable[[Circuit, View], str]) -> Callable[[Circuit, View], bytes]:
    return lambda circuit, view: write(circuit, view).encode()


def _whole(write: Callable[[Circuit], str]) -> Callable[[Circuit, View], bytes]:
    return lambda circuit, view: write(circuit).encode()


def _picture(kind: str) -> Format:
    return Format(
        f".{kind}",
        "diagram; needs the dot program of Graphviz",
        lambda circuit, view: draw(circuit, kind, view),
        shows=_DIAGRAM,
    )


_DIAGRAM = ("qkv", "top", "collapse", "groups")


FORMATS: Mapping[str, Format] = {
    "json": Format(
        ".json",
        "wiremap's own, complete and read back",
        _whole(lambda circuit: dumps(to_document(circuit))),
        loses="",
    ),
    "dot": Format(".dot", "Graphviz source", _text(to_dot), shows=_DIAGRAM),
    "svg": _picture("svg"),
    "png": _picture("png"),
    "pdf": _picture("pdf"),
    "mermaid": Format(".mmd", "Mermaid flowchart, for Markdown", _text(to_mermaid), shows=_DIAGRAM),
    "graphml": Format(
        ".graphml",
        "Gephi, yEd, igraph, networkx, graph-tool",
        _text(to_graphml),
        loses="",
        shows=("qkv",),
    ),
    "gexf": Format(".gexf", "Gephi", _text(to_gexf), loses="", shows=("qkv",)),
    "node-link": Format(".node-link.json", "networkx, d3", _whole(to_node_link), loses=""),
    "cytoscape": Format(
        ".cyjs", "Cytoscape and Cytoscape.js", _text(to_cytoscape), loses="", shows=("qkv",)
    ),
    "eap-ig": Format(
        ".eap-ig.json",
        "EAP-IG, the MIB circuit track",
        _whole(to_eap_ig),
        loses="errors, intervals, inclusion, numbers of pairs, task, method, faithfulness, "
        "evidence and the model but for its sizes; a verified effect comes back as the score, an unknown score as 0",
    ),
    "edges-csv": Format(
        ".csv",
        "spreadsheets, data frames, scripts",
        _whole(to_edges_csv),
        loses="scores of nodes, task, method, faithfulness, evidence and the model but for its "
        "sizes; a circuit without edges is not read back",
    ),
    "html": Format(".html", "viewer for any browser", _text(to_html), shows=("groups",)),
    "report": Format(
        ".report.html",
        "report to read and to print",
        _text(lambda circuit, view: to_report(circuit, view)),
        shows=("groups",),
    ),
    "scrub": Format(
        ".scrub.json",
        "causal-scrubbing hypothesis, for wiremap scrub",
        _whole(lambda circuit: dumps(to_hypothesis_document(Hypothesis(circuit)))),
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
            raise InputError(f"unknown format {format!r:.60}; there are {names}")
        return FORMATS[format]
    fitting = [known for known in FORMATS.values() if path.name.lower().endswith(known.extension)]
    if fitting:
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
    found = find_format(path, format)
    for name in _DIAGRAM:
        if getattr(view, name) and name not in found.shows:
            able = ", ".join(key for key, known in FORMATS.items() if name in known.shows)
            raise InputError(
                f"{format or found.extension} has no choice of {name}: formats that have are {able}"
            )
    write_atomically(path, found.encode(_checked(circuit), view))


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
        if path.exists() and not path.is_file():
            raise InputError("expected a file, got a directory or a device")
        if path.exists() and path.stat().st_size > LARGEST_FILE:
            raise InputError(
                f"expected at most {LARGEST_FILE:,} bytes, got {path.stat().st_size:,}"
            )
        return decode(read_text(path))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def decode(text: str) -> tuple[str, Circuit]:
    """The name of a text's format, and the circuit in it.

    Raises:
        InputError: no format that can be read back, or broken.
    """
    start = text[:2000].lstrip()
    if start.startswith("<"):
        if "<gexf" in start:
            return "gexf", from_gexf(text)
        if "<graphml" in start:
            return "graphml", from_graphml(text)
    elif start.partition("\n")[0].startswith(("source,", '"source",')):
        return "edges-csv", from_edges_csv(text)
    elif not _looks_like(start):
        return _decode_json(loads(text))
    readable = ", ".join(name for name, known in FORMATS.items() if known.loses is not None)
    raise InputError(
        f"expected a circuit as one of {readable}, got {_looks_like(start) or 'other XML'}, "
        "which is not read back; read the circuit.json it was made from"
    )


def _looks_like(start: str) -> str | None:
    """What a text that is no circuit probably is."""
    signs = {
        "digraph": "Graphviz DOT",
        "graph": "Graphviz DOT",
        "//": "Graphviz DOT",
        "flowchart": "a Mermaid flowchart",
        "%PDF": "a PDF",
        "PK\x03\x04": "a zip archive, as PyTorch writes",
    }
    if "<svg" in start:
        return "an SVG picture"
    if start.startswith("<") and "<html" in start.lower():
        return "a web page"
    return next((what for sign, what in signs.items() if start.startswith(sign)), None)


def _decode_json(data: Any) -> tuple[str, Circuit]:
    readers: dict[str, Callable[[Any], Circuit]] = {
        "elements": from_cytoscape,
        "cfg": from_eap_ig,
        "multigraph": from_node_link,
    }
    names = {"elements": "cytoscape", "cfg": "eap-ig", "multigraph": "node-link"}
    if isinstance(data, dict) and "format" not in data:
        for key, read in readers.items():
            if key in data:
                return names[key], read(data)
    return "json", from_document(data)


def _checked(circuit: Circuit) -> Circuit:
    """The circuit with plain numbers, if it is one that can be read back."""
    back = from_document(to_document(circuit))
    if (back.nodes, back.edges) != (circuit.nodes, circuit.edges):
        one = next(
            (
                edge.name
                for edge, read in zip(circuit.edges, back.edges, strict=True)
                if edge != read
            ),
            "nodes",
        )
        raise InputError(
            f"{one}: expected nodes and edges in the order of computation, and an effect wherever "
            "there is an error, an interval (of two numbers) or a number of pairs; use Circuit.build"
        )
    for name in ("model", "task", "method", "evidence"):
        try:
            json.dumps(getattr(back, name), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{name}: expected plain JSON data: {error}") from None
    return back
