"""Hypothesis files and tables of edges: whole, described by the schema, refused with reasons."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import circuits_for_tests as by_hand
import jsonschema
import pytest

from wiremap.circuits import Circuit, Hypothesis
from wiremap.circuits.result.document import dumps, loads, to_document
from wiremap.circuits.result.hypothesis import (
    from_hypothesis_document,
    to_hypothesis_document,
)
from wiremap.edges import InputError
from wiremap.exporters import write_circuit

SCHEMA = json.loads(files("wiremap.circuits").joinpath("scrub.schema.json").read_text())


def document(circuit: Circuit | None = None, **settings: Any) -> dict[str, Any]:
    return to_hypothesis_document(Hypothesis(circuit or by_hand.circuit(), **settings))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scheme": "per-path", "other": "feature:order", "repeats": 3, "seed": 7},
        {"other": "paired", "min_recovered": 0.8},
    ],
)
@pytest.mark.parametrize("circuit", [by_hand.circuit(), by_hand.grouped()], ids=["full", "grouped"])
def test_hypotheses_come_back_and_fit_the_schema(
    circuit: Circuit, settings: dict[str, Any]
) -> None:
    text = dumps(document(circuit, **settings))
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(json.loads(text), SCHEMA)
    back = from_hypothesis_document(loads(text))
    assert back.circuit.shape == circuit.shape
    assert back.circuit.edges == circuit.edges
    assert (back.circuit.model, back.circuit.task) == (circuit.model, circuit.task)
    assert back.circuit.method == {"metric": "logit_diff"}
    told = {name: getattr(back, name) for name in ("scheme", "other", "repeats", "seed")}
    defaults = {"scheme": "together", "other": "any", "repeats": 10, "seed": 0}
    assert told == {**defaults, **{k: v for k, v in settings.items() if k != "min_recovered"}}
    assert back.min_recovered == settings.get("min_recovered")


def test_a_hypothesis_names_the_circuit_it_was_made_of() -> None:
    written = dumps(to_document(by_hand.circuit())).encode()
    assert document()["source_circuit"] == {"sha256": hashlib.sha256(written).hexdigest()}


def test_an_exported_hypothesis_is_the_default_one(tmp_path: Path) -> None:
    write_circuit(by_hand.circuit(), tmp_path / "scrub.json", "scrub")
    assert loads((tmp_path / "scrub.json").read_text()) == document()


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("format", "wiremap-circuit", "expected a document with format 'wiremap-scrub'"),
        ("schema_version", "2.0", "this wiremap reads version 1.1, the document has 2.0"),
        ("granularity.positions", ["END"], "granularity.positions: wiremap scrubs with None only"),
        ("model.layernorm", "frozen", "model.layernorm: wiremap scrubs with 'recompute' only"),
        ("baselines.random", "permuted_labels", "scrubs with 'unconditional' only, got 'permuted"),
        ("baselines.original", "same_label", "wiremap scrubs with 'identity' only"),
        ("metric.direction", "lower", "wiremap scrubs with 'higher' only"),
        ("nodes.0.sampler.kind", "same_label", r"nodes\[0\].sampler.kind: wiremap leaves kept"),
        ("other_inputs.scheme", "per-node", "unknown scheme 'per-node'"),
        ("other_inputs.sampler", "all", "unknown other prompts 'all'"),
        ("settings.repeats", 0, "expected at least 1 repeat, got 0"),
        ("settings.seed", "0", "settings.seed: expected int, got '0'"),
        ("claim.min_recovered", "most", "claim.min_recovered: expected a number, got 'most'"),
        ("edges.0", 3, r"edges\[0\]: expected dict, got 3"),
        ("edges.0.source", "a9.h9", r"edges\[0\].id: expected"),
    ],
)  # fmt: skip
def test_what_a_hypothesis_cannot_say_is_refused(place: str, value: Any, message: str) -> None:
    changed = loads(dumps(document()))
    *way, last = place.split(".")
    at = changed
    for step in way:
        at = at[int(step) if isinstance(at, list) else step]
    at[int(last) if isinstance(at, list) else last] = value
    with pytest.raises(InputError, match=message):
        from_hypothesis_document(changed)
    if place not in ("edges.0.source",):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(changed, SCHEMA)


@pytest.mark.parametrize(
    "part", sorted(set(document()) - {"generator", "source_circuit", "root", "inputs"})
)
def test_missing_parts_are_named(part: str) -> None:
    with pytest.raises(InputError, match=f"{part}|format"):
        from_hypothesis_document({k: v for k, v in document().items() if k != part})


# ---- tables
