"""A circuit as rows of nodes and edges, which GraphML, GEXF and Cytoscape files hold; and back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...circuits.result.circuit import Circuit, CircuitEdge
from ...circuits.result.document import from_document
from ...edges.errors import InputError
from ...edges.names.graph import SLOTS
from ..pictures.layout import places, shown_rows
from ..pictures.palette import COLOR
from ..pictures.shown import Shown, ShownEdge, View, show
from .markup import Value

_FAINT = "#999999"


SPACING = 100.0


# Gephi deletes edges of weight 0, and reads weights in single precision.
_SMALLEST_WEIGHT, _LARGEST_WEIGHT = 1e-30, 1e30


_SIZE = {"input": 20.0, "logits": 20.0, "mlp": 16.0, "head": 12.0, "kv": 12.0}


_SIZE_OF_SLOT = 6.0


_COLOR = {
    "input": "#888888",
    "logits": "#888888",
    "mlp": "#d9a441",
    "head": "#5b84b1",
    "kv": "#7fa66b",
}


_COLOR_OF_SLOT = "#b8c4d0"


Row = dict[str, Value]


def node_rows(shown: Shown) -> list[Row]:
    """A row for each node: its name as ``label``, what is known of it, and how to draw it."""
    where = places(shown_rows(shown))
    return [
        _known(
            label=node.name,
            kind=node.kind,
            layer=node.layer,
            head=node.head,
            score=_float(node.score),
            x=where[node.name][0] * SPACING,
            y=where[node.name][1] * SPACING,
            size=_SIZE.get(node.kind, _SIZE_OF_SLOT),
            color=_COLOR.get(node.kind, _COLOR_OF_SLOT),
            in_circuit=True,
        )
        for node in shown.nodes
    ]


def edge_rows(shown: Shown) -> list[Row]:
    """A row for each edge, largest magnitude first; then those that only say what belongs together.

    ``weight`` is the magnitude, above 0, for programs that draw by it (1 where no edge is scored, that
    of the least edge where this one is not); score and effect are sums
    over slots, and where these are merged, ``score_q`` and so on those of a slot. What is not known
    has no entry.
    """
    merged = shown.qkv == "merge"
    rows = [_edge_row(edge, merged) for edge in shown.edges if edge.kind == "edge"]
    scored = [row for row in rows if "abs_score" in row]
    scored.sort(key=lambda row: -float(row["abs_score"]))
    # Ties carry nothing, and are drawn no wider than the least edge; so are edges without a score.
    thinnest = float(scored[-1]["weight"]) if scored else 1.0
    ranked = [{**row, "rank": rank} for rank, row in enumerate(scored, start=1)]
    ranked += [{**row, "weight": thinnest} for row in rows if "abs_score" not in row]
    return ranked + [
        _known(
            source=edge.source,
            target=edge.target,
            kind=edge.kind,
            weight=thinnest,
            sign="zero",
            color=_FAINT,
            in_circuit=True,
            verified=False,
        )
        for edge in shown.edges
        if edge.kind != "edge"
    ]


def table(circuit: Circuit, view: View, qkv: str) -> tuple[list[Row], list[Row]]:
    """Rows of nodes and of edges."""
    shown = show(circuit, view, qkv)
    return node_rows(shown), edge_rows(shown)


def from_rows(
    about: Mapping[str, Any], nodes: Iterable[Mapping[str, Any]], edges: Iterable[Mapping[str, Any]]
) -> Circuit:
    """The circuit of such rows, and of what ``circuits.document.description`` says of it.

    Raises:
        InputError: what it lacks, or contradicts.
    """
    return from_document(
        {
            **about,
            "nodes": [
                {
                    "id": row.get("label"),
                    **{name: row.get(name) for name in ("kind", "layer", "head", "score")},
                }
                for row in nodes
                # Inputs drawn as nodes of their own are part of their head.
                if row.get("kind") not in SLOTS
            ],
            "edges": [
                edge
                for row in edges
                # These are no edges of the model: they tie what belongs together.
                if row.get("kind") not in ("group", "internal")
                for edge in _edges(row)
            ],
        }
    )


def edge_document(
    values: Mapping[str, Any], source: str, target: str, slot: str | None, suffix: str = ""
) -> dict[str, Any]:
    """The edge of a circuit's document that ``score``, ``effect``, ... of a row tell of.

    Raises:
        InputError: an error, an interval or a number of pairs, but no effect.
    """
    effect = values.get(f"effect{suffix}")
    error = values.get("standard_error", values.get(f"effect_se{suffix}"))  # the name in XML
    n_pairs = values.get(f"n_pairs{suffix}")
    interval = [values.get(f"effect_{end}{suffix}") for end in ("low", "high")]
    name = f"{source}->{target}" + (f"<{slot}>" if slot else "")
    if effect is None and any(value is not None for value in (error, n_pairs, *interval)):
        raise InputError(
            f"edge {name:.80}: expected an effect with an error, an interval or a number of pairs"
        )
    return {
        "id": name,
        "source": source,
        "target": target,
        "slot": slot,
        "score": values.get(f"score{suffix}"),
        "verified": None
        if effect is None
        else {
            "effect": effect,
            "standard_error": error,
            "interval": None if interval == [None, None] else interval,
            "n_pairs": n_pairs,
        },
        "inclusion": values.get(f"inclusion{suffix}"),
        "loss": values.get(f"loss{suffix}"),
    }


def _edge_row(edge: ShownEdge, merged: bool) -> Row:
    """The q, k and v edges between two nodes as one: sums, and each slot's own figures."""
    several = len(edge.members) > 1
    first = _figures(edge.members[0])
    # Effects of slots add up; errors, intervals, inclusion and losses do not (what a circuit loses
    # without two slots is no sum), so an edge of several slots has them by slot alone.
    own = {} if several else first
    by_slot = {
        f"{name}_{member.slot}": value
        for member in (edge.members if merged else ())
        if member.slot
        for name, value in _figures(member).items()
        # Of a single slot the column without a slot says it.
        if several or name != "n_pairs"
    }
    return _known(
        source=edge.source,
        target=edge.target,
        kind="edge",
        weight=min(max(edge.size, _SMALLEST_WEIGHT), _LARGEST_WEIGHT),
        score=_sum(member.score for member in edge.members),
        abs_score=None if edge.worth is None else edge.size,
        sign="zero" if edge.worth == 0 else edge.sign,
        effect=_sum(member.effect for member in edge.members),
        effect_se=own.get("effect_se"),
        effect_low=own.get("effect_low"),
        effect_high=own.get("effect_high"),
        n_pairs=first["n_pairs"],
        inclusion=own.get("inclusion"),
        loss=own.get("loss"),
        slots=",".join(edge.slots) or None,
        verified=edge.verified,
        in_circuit=True,
        color=COLOR[edge.sign],
        **by_slot,
    )


def _edges(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The edges that a row stands for, as a circuit's document has them."""
    ends: dict[str, str] = {}
    for end in ("source", "target"):
        if not isinstance(row.get(end), str):
            raise InputError(f"edges: expected a {end}, got {row.get(end)!r:.60}")
        ends[end] = row[end]
    slots = row.get("slots")
    if slots is None:
        return [edge_document(row, **ends, slot=None)]
    names = slots.split(",") if isinstance(slots, str) else []
    if not names or any(name not in SLOTS for name in names):
        raise InputError(f"edges: expected slots such as 'q' or 'k,v', got {slots!r:.60}")
    if len(names) > 1:
        return [edge_document(row, **ends, slot=slot, suffix=f"_{slot}") for slot in names]
    # Where inputs were drawn as nodes, the edge ends at a2.h3.q.
    ends["target"] = ends["target"].removesuffix(f".{slots}")
    return [edge_document(row, **ends, slot=slots)]


def _figures(edge: CircuitEdge) -> dict[str, float | None]:
    """What is known of an edge, by column; all values of a column are of one type."""
    return {
        name.replace("standard_error", "effect_se"): value if name == "n_pairs" else _float(value)
        for name, value in edge.figures.items()
        if name != "verified"
    }


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)


def _sum(values: Iterable[float | None]) -> float | None:
    """The sum; None if any is missing, or where floating point does not reach."""
    known = list(values)
    present = [float(value) for value in known if value is not None]
    total = sum(present, -0.0)  # which keeps the sign of a zero
    return total if len(present) == len(known) and math.isfinite(total) else None


def _known(**values: Value | None) -> Row:
    """The values that are there."""
    return {name: value for name, value in values.items() if value is not None}


def columns(rows: Sequence[Mapping[str, Value]]) -> dict[str, type]:
    """Every column of the rows with its type; source and target are no columns."""
    return {
        name: type(value)
        for row in rows
        for name, value in row.items()
        if name not in ("source", "target")
    }
