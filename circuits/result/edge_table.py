"""A table of edges, wiremap's or not: a row each, with its ends, its slot and a number if there is one.

It says nothing of the model; a circuit is made of it when a model's shape is known.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

from ...edges.errors import InputError
from ...edges.files import read_text
from ...edges.names.graph import ModelGraph, readers_named_as
from ...edges.names.vocabulary import WEIGHTS
from .circuit import Circuit, CircuitEdge

_YES, _NO = ("1", "true", "yes"), ("0", "false", "no")


_SLOT_COLUMNS = ("slot", "qkv")  # the second is EAP-IG's word


_KEPT_COLUMNS = ("in_circuit", "in_graph")


# No figures of an edge, whatever they hold.
_NO_WEIGHTS = {"source", "target", "id", "key", "kind", "layer", "head", "color", "rank"}


NODE = re.compile(r"input|logits|m\d+|a\d+\.(h|kv)\d+")
"""Names of nodes; ModelGraph says which of them a model has."""


class Row(NamedTuple):
    """A row: its cells as text, by columns in lower case, and the place that errors name."""

    where: str
    cells: Mapping[str, str]


@dataclass(frozen=True)
class EdgeTable:
    """The kept edges of a table, or scores of edges of which none was chosen.

    Attributes:
        weight: the column their scores are from; None if they have none.
        unread: columns of numbers that were not read.
        alone: these are scores alone: all there are, and no circuit.
        shape, model, task, metric: what the file says of what they are of, if it does.
    """

    edges: tuple[CircuitEdge, ...]
    weight: str | None = None
    unread: tuple[str, ...] = ()
    alone: bool = False
    shape: ModelGraph | None = None
    model: Mapping[str, Any] = field(default_factory=dict[str, Any])
    task: Mapping[str, Any] = field(default_factory=dict[str, Any])
    metric: str | None = None

    @property
    def kv(self) -> str | None:
        """The ``kv`` by which a model has these readers; None if no key or value says it.

        Raises:
            InputError: keys and values are named in both ways.
        """
        if self.shape is not None:
            return self.shape.kv
        by_kv: dict[str, str] = {}
        for edge in self.edges:
            known = readers_named_as(edge.name.partition("->")[2])
            if known is not None:
                by_kv.setdefault(known, edge.name)
        if len(by_kv) > 1:
            raise InputError(
                "expected keys and values named by key-value head (a0.kv0, --kv grouped) or by query "
                f"head (a0.h0, --kv per-query), got both: {' and '.join(by_kv.values())}"
            )
        return next(iter(by_kv), None)

    def circuit(self, shape: ModelGraph) -> Circuit:
        """These edges in a model of this shape.

        Raises:
            InputError: an edge that it does not have; or scores alone.
        """
        if self.alone:
            raise InputError(
                "expected edges that are in the circuit, got scores only, and nothing was chosen by "
                "them: rank them (evaluate --curve), take the largest (export --top N), or search "
                "(discover --scores)"
            )
        return Circuit.build(shape, self.edges)

    def largest(self, n: int, shape: ModelGraph) -> Circuit:
        """The circuit of the ``n`` edges of largest |score|; of equal ones the first in computation.

        Raises:
            InputError: an edge that the model does not have, or one without a score.
        """
        whole = Circuit.build(shape, self.edges)
        if unscored := next((edge.name for edge in whole.edges if edge.score is None), None):
            raise InputError(f"expected a score of every edge to choose by, {unscored} has none")
        kept = sorted(whole.edges, key=lambda edge: -edge.size)[:n]
        method = {} if self.metric is None else {"metric": self.metric}
        return Circuit.build(shape, kept, model=self.model, task=self.task, method=method)


def read_edge_table(path: str | Path, weight: str | None = None) -> EdgeTable:
    """The kept edges of a table: CSV, or values parted by tabs or semicolons, with a header.

    Columns, in any order and case: ``source`` and ``target`` (names such as ``a0.h1``; a target may
    hold its slot, ``a2.h3<q>``), ``slot`` (q, k, v or nothing), and if there are such, ``effect``,
    ``in_circuit`` (rows that say 0, false or no are not kept) and a score (see ``edge_table``).
    Others are ignored.

    Raises:
        InputError: columns that are missing, cells that are not what they should be, with the line.
    """
    path = Path(path)
    try:
        return edge_table(csv_rows(read_text(path)), weight)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def csv_rows(text: str) -> list[Row]:
    """The rows of such a table. Raises InputError, naming the line."""
    header = text.partition("\n")[0]
    # The commonest of the three in the header, whose names hold none of them.
    delimiter = max(",\t;", key=header.count)
    # Line ends as they are: csv itself tells those within quotes from those between rows.
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    try:
        names = reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
        if missing := [name for name in ("source", "target") if name not in names]:
            raise InputError(
                f"expected the columns source, target and slot in the first line; missing "
                f"{', '.join(missing)}; found {', '.join(names) or 'none'}"
            )
        return [_csv_row(row, f"line {reader.line_num}") for row in reader]
    except csv.Error as error:
        raise InputError(f"not readable as a table: {error}") from None


def _csv_row(row: Mapping[str | None, Any], where: str) -> Row:
    # What DictReader makes of too many cells (under None) and of too few (None in each).
    if None in row or None in row.values():
        raise InputError(f"{where}: expected as many cells as the header has")
    cells = {str(name): str(cell).strip() for name, cell in row.items()}
    return Row(f"{where} ({cells['source']:.40}->{cells['target']:.40})", cells)


def edge_table(rows: Sequence[Row], weight: str | None = None) -> EdgeTable:
    """The kept edges of rows.

    Args:
        weight: the column that is the score. None is ``score``, or else the one column of
            ``vocabulary.WEIGHTS`` that there is.

    Raises:
        InputError: no such column, or several that may be meant; a cell that is not what it should
            be.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row.cells))
    weight = _weight(columns, weight)
    edges = tuple(edge for row in rows if (edge := _edge(row, weight)) is not None)
    read = {weight, "effect", *_SLOT_COLUMNS, *_KEPT_COLUMNS, *_NO_WEIGHTS}
    unread = tuple(name for name in columns if name not in read and _numbers(rows, name))
    return EdgeTable(edges, weight, unread)


def _weight(columns: Sequence[str], asked: str | None) -> str | None:
    if asked is not None:
        if asked.lower() not in columns:
            raise InputError(
                f"expected a column or attribute {asked!r:.60} of edges (--weight), got "
                f"{', '.join(columns) or 'none'}"
            )
        return asked.lower()
    known = [name for name in WEIGHTS if name in columns]
    if len(known) > 1 and known[0] != WEIGHTS[0]:
        raise InputError(
            f"expected one column of scores, got {' and '.join(known)}; name the one that is meant "
            f"(--weight {known[0]})"
        )
    return known[0] if known else None


def _numbers(rows: Sequence[Row], name: str) -> bool:
    """Whether a column holds numbers, and not the same one throughout."""
    texts = {row.cells.get(name, "") for row in rows} - {""}
    return len(texts) > 1 and all(re.fullmatch(r"[-+]?[0-9.]+([eE][-+]?\d+)?", t) for t in texts)


def _edge(row: Row, weight: str | None) -> CircuitEdge | None:
    where, cells = row
    for name in _KEPT_COLUMNS:
        kept = cells.get(name, "").lower() or "1"
        if kept not in (*_YES, *_NO):
            raise InputError(f"{where}: expected {name} to be 1 or 0, got {kept!r:.60}")
        if kept in _NO:
            return None
    source, target, slot = _ends(row)
    return CircuitEdge(
        source,
        target,
        cast("Any", slot or None),
        score=_number(cells, weight, where) if weight else None,
        effect=_number(cells, "effect", where) if weight != "effect" else None,
    )


def _ends(row: Row) -> tuple[str, str, str]:
    """Source, target and slot, or "" for none. Raises InputError if they are not such."""
    where, cells = row
    target, bracket, rest = cells["target"].partition("<")
    said = {text for name in _SLOT_COLUMNS if (text := cells.get(name, "").lower())}
    if bracket:
        said.add(rest.removesuffix(">"))
    slot = next(iter(said), "")
    # Said in several places, it must be the same in all.
    if len(said) > 1 or slot not in ("", "q", "k", "v"):
        raise InputError(
            f"{where}: expected slot to be q, k, v or nothing, got {' and '.join(sorted(said))!r:.60}"
        )
    source = cells["source"]
    if not source or not target:
        raise InputError(f"{where}: expected a source and a target, got a blank")
    for name in (source, target):
        if not NODE.fullmatch(name):
            raise InputError(
                f"{where}: expected nodes named like input, a0.h1, m0, logits (a0.kv1 for keys and "
                f"values that query heads share), got {name!r:.60}"
            )
    if target.startswith("a") and not slot:
        raise InputError(
            f"{where}: expected a slot, q, k or v: a head reads by its query, key and value, so an "
            f"edge to it is one of three; add a column slot, or write the target as {target}<q>"
        )
    return source, target, slot


def _number(cells: Mapping[str, str], name: str, where: str) -> float | None:
    text = cells.get(name, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        # Refused below, with other numbers that are not finite.
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where}: expected {name} to be a finite number, got {text!r:.60}")
    return value
