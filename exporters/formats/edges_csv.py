"""Edges as CSV (RFC 4180), a row each, for spreadsheets, data frames and scripts of your own.

Columns: source, target, slot; score, effect, standard_error, n_pairs, effect_low and effect_high
(its interval), inclusion, loss, empty where not known; hook_source and hook_target, the names by
which TransformerLens calls what the edge comes from and goes to (``blocks.9.attn.hook_result[6]``: entry 6 along the heads; ``blocks.10.hook_q_input[0]``;
for the logits the last ``hook_resid_post``); and n_layers, n_heads, n_kv_heads, parallel of the
model, the same in every row, by which the file is read back.

Keeps: edges, slots, scores, effects, losses. Loses: scores of nodes, model (but for its sizes), task,
method, faithfulness, evidence; and a circuit without edges, which leaves no row to say of what model it is.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from typing import Any

from ...circuits.result.circuit import Circuit, CircuitEdge
from ...circuits.result.document import edge_from, shape_from
from ...edges.errors import InputError
from ...edges.names.graph import ModelGraph
from ..format import Format
from .table import edge_document

_EDGE = ("source", "target", "slot")


_KNOWN = ("score", "effect", "standard_error", "n_pairs")


_LATER = ("effect_low", "effect_high", "inclusion", "loss")  # which older files do not have


_HOOKS = ("hook_source", "hook_target")


_SHAPE = ("n_layers", "n_heads", "n_kv_heads", "parallel")


COLUMNS = (*_EDGE, *_KNOWN, *_LATER, *_HOOKS, *_SHAPE)


def to_edges_csv(circuit: Circuit) -> str:
    """The edges of the circuit as CSV text, in the order of computation."""
    text = io.StringIO()
    # Figures have ``verified``, too, which here an effect says by being there.
    writer: csv.DictWriter[str] = csv.DictWriter(
        text, COLUMNS, extrasaction="ignore", lineterminator="\n"
    )
    writer.writeheader()
    shape = {**circuit.shape.as_dict(), "parallel": str(circuit.shape.parallel).lower()}
    n_layers = circuit.shape.n_layers
    for edge in circuit.edges:
        row = {
            **{name: getattr(edge, name) for name in _EDGE},
            **edge.figures,
            "hook_source": hook_source(edge.source),
            "hook_target": hook_target(edge, n_layers),
        }
        writer.writerow({**row, **shape})
    return text.getvalue()


def from_edges_csv(text: str) -> Circuit:
    """The circuit of a CSV text that wiremap wrote. Columns it does not know are ignored.

    Raises:
        InputError: not that; the row is named.
    """
    # ``newline=""`` leaves line ends inside of quotes alone. Not ``strict``, csv would take a
    # quotation mark that is never closed for one around the rest of the file.
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        header = list(reader.fieldnames or ())
        # Of two columns of one name csv would keep the last, silently.
        if len(set(header)) < len(header):
            raise InputError("expected distinct columns, got one twice")
        if missing := [name for name in (*_EDGE, *_KNOWN, *_SHAPE) if name not in header]:
            raise InputError(f"expected a column {missing[0]}, got {', '.join(header)!r:.80}")
        rows = list(reader)
    except csv.Error as error:
        raise InputError(f"row {reader.line_num}: expected CSV: {error}") from None
    if not rows:
        raise InputError("expected at least one edge: without one, the file names no model")
    # Row 1 is the header, as spreadsheets count. Values too many come under the key None, values
    # too few as None.
    for number, row in enumerate(rows, start=2):
        if len(row) > len(header) or None in row.values():
            raise InputError(f"row {number}: expected {len(header)} values, as there are columns")
    edges = [_edge(row, f"row {number}") for number, row in enumerate(rows, start=2)]
    # Every row has the sizes, so that files of two models, one below the other, are told from one.
    shapes = {tuple(row[name] for name in _SHAPE) for row in rows}
    if len(shapes) > 1:
        raise InputError(
            f"expected edges of one model, got {' and '.join(map(str, sorted(shapes))):.120}"
        )
    return Circuit.build(_shape(rows[0]), edges)


def hook_source(writer: str) -> str:
    """What TransformerLens calls the output of a writer, ``[head]`` being an index along heads."""
    if writer == "input":
        return "blocks.0.hook_resid_pre"
    layer, _, head = writer[1:].partition(".h")
    return f"blocks.{layer}.attn.hook_result[{head}]" if head else f"blocks.{layer}.hook_mlp_out"


def hook_target(edge: CircuitEdge, n_layers: int) -> str:
    """What TransformerLens calls the input that an edge goes to."""
    if edge.target == "logits":
        return f"blocks.{n_layers - 1}.hook_resid_post"
    layer, _, head = edge.target[1:].partition(".")
    if edge.slot is None:
        return f"blocks.{layer}.hook_mlp_in"
    # The number of h3, or of kv1 where query heads share keys and values.
    return f"blocks.{layer}.hook_{edge.slot}_input[{head.lstrip('hkv')}]"


def _shape(row: Mapping[str, str]) -> ModelGraph:
    if row["parallel"] not in ("true", "false"):
        raise InputError(f"parallel: expected true or false, got {row['parallel']!r:.60}")
    sizes = {name: _number(row[name], name) for name in _SHAPE[:3]}
    return shape_from({**sizes, "parallel": row["parallel"] == "true"})


def _edge(row: Mapping[str, Any], where: str) -> CircuitEdge:
    known = [name for name in (*_KNOWN, *_LATER) if name in row]
    values = {name: _number(row[name], f"{where}, {name}") for name in known}
    ends = row["source"], row["target"], row["slot"] or None
    return edge_from(edge_document(values, *ends), where)


def _number(text: str, where: str) -> int | float | None:
    """A number; None for an empty cell."""
    # By patterns: int and float alone would also take 1_000, nan, and digits of other scripts.
    if re.fullmatch(r"-?[0-9]{1,20}", text):
        return int(text)
    if re.fullmatch(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", text):
        return float(text)
    if text:
        raise InputError(f"{where}: expected a number, got {text!r:.60}")
    return None


FORMATS = (
    Format(
        "edges-csv",
        ".csv",
        "spreadsheets, data frames, scripts",
        encode=lambda circuit, view: to_edges_csv(circuit).encode(),
        decode=lambda content: from_edges_csv(content.text),
        signs=lambda content: content.start.startswith(("source,", '"source",')),
        loses="scores of nodes, task, method, faithfulness, evidence and the model but for its "
        "sizes; a circuit without edges is not read back",
    ),
)
