"""A circuit as a causal-scrubbing hypothesis, and how it is to be tested: a JSON document.

The document is described by ``scrub.schema.json`` (JSON Schema 2020-12) beside this file. It holds
data alone, never code: other prompts are drawn by label or by a column of the pairs file. What a
document may say but wiremap does not do (samplers of single nodes, positions, other baselines) is
refused by name. A newer minor version may add fields, which are ignored.

``read_edge_table`` reads the other thing people have: a table of edges, wiremap's or not.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from ...edges.errors import InputError
from ...edges.files import read_text
from ...edges.names.vocabulary import FEATURE, METRIC, OTHER, OTHERS, REPEATS, SCHEME, SCHEMES, SEED
from .circuit import Circuit, CircuitEdge
from .document import check_version, dumps, edge_from, shape_from, to_document
from .values import field, number

FORMAT = "wiremap-scrub"


SCHEMA_VERSION = "1.1"


_YES, _NO = ("1", "true", "yes"), ("0", "false", "no")


@dataclass(frozen=True)
class Hypothesis:
    """A circuit, and how the claim that only its edges matter is to be tested.

    Attributes:
        scheme, other, repeats, seed: see ``wiremap.circuits.scrub``.
        min_recovered: the claim holds if at least this fraction is recovered (see
            ``pruning.reaches``); None claims nothing.

    Raises:
        InputError: an unknown scheme or sampler, less than one repeat, a claim that is no number.
    """

    circuit: Circuit
    scheme: str = SCHEME
    other: str = OTHER
    repeats: int = REPEATS
    seed: int = SEED
    min_recovered: float | None = None

    def __post_init__(self) -> None:
        check_settings(self.scheme, self.other, self.repeats, self.min_recovered)


def check_settings(scheme: str, other: str, repeats: int, min_recovered: float | None) -> None:
    """Raises InputError for what there is not."""
    if scheme not in SCHEMES:
        raise InputError(f"unknown scheme {scheme!r}; there are {', '.join(SCHEMES)}")
    if other not in OTHERS and other.removeprefix(FEATURE) in ("", other):
        raise InputError(
            f"unknown other prompts {other!r}; there are {', '.join(OTHERS)} and {FEATURE}COLUMN"
        )
    if repeats < 1:
        raise InputError(f"expected at least 1 repeat, got {repeats}")
    if min_recovered is not None and not math.isfinite(min_recovered):
        raise InputError(f"expected a finite fraction to be recovered, got {min_recovered}")


def to_hypothesis_document(hypothesis: Hypothesis) -> dict[str, Any]:
    """The hypothesis as plain JSON data."""
    circuit = hypothesis.circuit
    document = to_document(circuit)
    return {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "generator": {"name": "wiremap", "version": version("wiremap")},
        "source_circuit": {"sha256": hashlib.sha256(dumps(document).encode()).hexdigest()},
        "shape": document["shape"],
        "model": {**circuit.model, "layernorm": "recompute"},
        "granularity": {"nodes": "head+mlp", "slots": ["q", "k", "v"], "positions": None},
        "root": "logits",
        "inputs": ["input"],
        "nodes": [{"id": node.name, "sampler": {"kind": "exact"}} for node in circuit.nodes],
        "edges": document["edges"],
        "other_inputs": {"sampler": hypothesis.other, "scheme": hypothesis.scheme},
        "dataset": {
            **circuit.task,
            "fields": {"prompt": "clean", "label": "answer", "paired": "corrupted"},
        },
        "metric": {
            "name": str(circuit.method.get("metric", METRIC)),
            "direction": "higher",
            "positions": "last",
        },
        "baselines": {"original": "identity", "random": random_baseline(hypothesis.other)},
        "settings": {"repeats": hypothesis.repeats, "seed": hypothesis.seed},
        "claim": {"min_recovered": hypothesis.min_recovered},
    }


def random_baseline(other: str) -> str:
    """What recovered 0 stands for: an unrelated prompt, or with ``paired`` the corrupted one."""
    return "corrupted" if other == "paired" else "unconditional"


def from_hypothesis_document(document: Any) -> Hypothesis:
    """The hypothesis of a JSON document.

    Raises:
        InputError: anything the document lacks, contradicts or asks for that wiremap does not do;
            the place is named.
    """
    top = field({"document": document}, "document", dict)
    if top.get("format") != FORMAT:
        raise InputError(
            f"expected a document with format {FORMAT!r}, got {top.get('format')!r:.60}"
        )
    check_version(field(top, "schema_version", str), SCHEMA_VERSION)
    other, settings = field(top, "other_inputs", dict), field(top, "settings", dict)
    sampler = field(other, "sampler", str, "other_inputs")
    _refuse_other_hypotheses(top, sampler)
    # Keyed by their places, which is what errors name.
    edges = {f"edges[{index}]": item for index, item in enumerate(field(top, "edges", list))}
    model, dataset = field(top, "model", dict), field(top, "dataset", dict)
    circuit = Circuit.build(
        shape_from(field(top, "shape", dict)),
        [edge_from(field(edges, where, dict), where) for where in edges],
        model={key: value for key, value in model.items() if key != "layernorm"},
        task={key: value for key, value in dataset.items() if key != "fields"},
        method={"metric": field(field(top, "metric", dict), "name", str, "metric")},
    )
    return Hypothesis(
        circuit,
        scheme=field(other, "scheme", str, "other_inputs"),
        other=sampler,
        repeats=field(settings, "repeats", int, "settings"),
        seed=field(settings, "seed", int, "settings"),
        min_recovered=number(field(top, "claim", dict), "min_recovered", "claim"),
    )


def _refuse_other_hypotheses(top: Mapping[str, Any], other: str) -> None:
    """Raises InputError where the document asks for what wiremap does not do."""
    expected = {
        ("granularity", "positions"): None,
        ("model", "layernorm"): "recompute",
        ("baselines", "original"): "identity",
        ("baselines", "random"): random_baseline(other),
        ("metric", "direction"): "higher",
    }
    for (part, name), value in expected.items():
        found = field(top, part, dict)
        if name in found and found[name] != value:
            raise InputError(
                f"{part}.{name}: wiremap scrubs with {value!r} only, got {found[name]!r:.60}"
            )
    nodes = {f"nodes[{index}]": item for index, item in enumerate(field(top, "nodes", list))}
    for where in nodes:
        kind = field(field(field(nodes, where, dict), "sampler", dict, where), "kind", str, where)
        if kind != "exact":
            raise InputError(
                f"{where}.sampler.kind: wiremap leaves kept nodes on the prompt itself ('exact'), "
                f"got {kind!r:.60}"
            )


def read_edge_table(path: str | Path) -> list[CircuitEdge]:
    """The kept edges of a table: CSV, or values parted by tabs or semicolons, with a header.

    Columns, in any order and case: ``source`` and ``target`` (names such as ``a0.h1``; a target may
    hold its slot, ``a2.h3<q>``), ``slot`` (q, k, v or nothing), and if there are such, ``score``,
    ``effect``, ``in_circuit`` (rows that say 0, false or no are not kept). Others are ignored.

    Raises:
        InputError: columns that are missing, cells that are not what they should be, with the line.
    """
    path = Path(path)
    try:
        text = read_text(path)
        header = text.partition("\n")[0]
        # The commonest of the three in the header, whose names hold none of them.
        delimiter = max(",\t;", key=header.count)
        # Line ends as they are: csv itself tells those within quotes from those between rows.
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
        reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
        missing = [name for name in ("source", "target") if name not in reader.fieldnames]
        if missing:
            raise InputError(
                f"expected the columns source, target and slot in the first line; missing "
                f"{', '.join(missing)}; found {', '.join(reader.fieldnames) or 'none'}"
            )
        return [
            edge
            for row in reader
            if (edge := _edge_of_row(row, f"line {reader.line_num}")) is not None
        ]
    except csv.Error as error:
        raise InputError(f"{path}: not readable as a table: {error}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _edge_of_row(row: Mapping[str | None, Any], where: str) -> CircuitEdge | None:
    # What DictReader makes of too many cells (under None) and of too few (None in each).
    if None in row or None in row.values():
        raise InputError(f"{where}: expected as many cells as the header has")
    cells = {str(name): str(cell).strip() for name, cell in row.items()}
    kept = cells.get("in_circuit", "1").lower()
    if kept not in (*_YES, *_NO):
        raise InputError(f"{where}: expected in_circuit to be 1 or 0, got {kept!r:.60}")
    if kept in _NO:
        return None
    target, bracket, rest = cells["target"].partition("<")
    slot = rest.removesuffix(">") if bracket else cells.get("slot", "").lower()
    # Said in both places, it must be the same in both.
    if slot not in ("", "q", "k", "v") or cells.get("slot", "").lower() not in ("", slot):
        raise InputError(f"{where}: expected slot to be q, k, v or nothing, got {slot!r:.60}")
    if not cells["source"] or not target:
        raise InputError(f"{where}: expected a source and a target, got a blank")
    return CircuitEdge(
        cells["source"],
        target,
        cast("Any", slot or None),
        score=_number_of_cell(cells, "score", where),
        effect=_number_of_cell(cells, "effect", where),
    )


def _number_of_cell(cells: Mapping[str, str], name: str, where: str) -> float | None:
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
