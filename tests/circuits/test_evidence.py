"""Evidence is typed: every dialect reads to the same, what is unknown is kept, what is broken named."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from importlib.resources import files
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import circuits_for_tests as by_hand
import jsonschema
import pytest

from wiremap.circuits import Circuit
from wiremap.circuits.result.document import dumps, from_document, loads, to_document
from wiremap.circuits.result.evidence import Evidence, Part
from wiremap.edges import InputError
from wiremap.exporters import FORMATS, View
from wiremap.exporters.registry import decode

SCHEMA = json.loads(files("wiremap.circuits").joinpath("circuit.schema.json").read_text())
POINTS = [
    {"fraction": 0.1, "asked": 4, "kept": 3, "faithfulness": 0.5},
    {"fraction": 1.0, "asked": 46, "kept": 46, "faithfulness": 1.0},
]
CURVE: dict[str, Any] = {
    "full": 4.0, "empty": -1.0, "n_pairs": 8, "edges_in_model": 46,
    "area_under_the_faithfulness_curve": 0.675,
    "area_between_the_faithfulness_curve_and_1": 0.225,
    "average_faithfulness": 0.75, "points": POINTS,
}  # fmt: skip
TEST: dict[str, Any] = {
    "name": "equivalence", "statistic": 0.375, "p_value": 0.125, "n": 8, "null": "as the model",
    "small_p": "above or below it", "details": {"above": 1, "margin": 0.1},
}  # fmt: skip
WHOLE: dict[str, Any] = {
    "held_out": {
        "n_pairs": 8, "metric": "logit_diff", "full": 4.0, "empty": -1.0, "circuit": 3.5,
        "faithfulness": 0.9, "interval": [0.75, 1.0], "confidence": 0.9, "kl_share": 0.5,
        "kl_interval": [0.25, 0.625], "accuracy": 0.75, "model_accuracy": 1.0,
    },
    "search": {
        "metric": "logit_diff", "least": 0.9, "greatest": 1.1, "reached": True, "minimal": False,
        "rounds": 1, "trials": 1,
        "path": [
            {"how": "pruned", "edges": 6, "faithfulness": 1.25},
            {"how": "spared", "edges": 4, "faithfulness": 1.0},
        ],
    },
    "curve": {
        "ranked_by": "scores of all edges", "cpr": 0.675, "cmd": 0.225, "signed": CURVE,
        "absolute": CURVE,
    },
    "metrics": {"kl": {"full": 0.0, "empty": -18.5, "circuit": -0.25}},
    "completeness": {
        "full": 4.0, "empty": -1.0, "n_pairs": 8, "largest": 1.5, "largest_without": [],
        "mean": 0.5,
        "knockouts": [{"removed": [], "circuit": 3.0, "model": 4.0, "incompleteness": 1.0}],
    },
    "minimality": {
        "full": 4.0, "empty": -1.0, "n_pairs": 8, "least": 0.0, "least_needed": "input->m0",
        "edges": [{"edge": "input->m0", "alone": 0.0, "score": 0.0, "removed": ["m0->logits"]}],
    },
    "tests": [TEST],
    "not_done": {"random": "was not asked for"},
    "bound": {
        "largest": 0.25, "confidence": 0.99, "samples": 109, "probability": 0.1, "n_edges": 40,
        "n_pairs": 8, "statement": "No unverified edge is above 0.25.",
    },
    "sample": {
        "n_edges": 40, "drawn": 20, "n_pairs": 8, "confidence": 0.99, "seed": 0, "largest": -0.125,
        "largest_edge": "input->m0", "shares": [{"above": 0.25, "found": 0, "share": 0.25}],
        "strata": [{"n_edges": 40, "drawn": 20}], "statement": "At most a quarter is above 0.25.",
    },
    "stability": {"rule": "the 6 largest effects", "resamples": 1000, "jaccard": 0.875},
    "removed": {"not verified": 40},
    "random": {"random_faithfulness": [0.0, 0.5]},
}  # fmt: skip
"""All there is, in the order in which it is written."""


def test_all_of_it_is_typed_and_written_back_to_the_byte() -> None:
    evidence = Evidence.from_document(WHOLE)
    assert evidence.rest == {}
    assert evidence.curve is not None
    assert evidence.curve.signed == evidence.curve.absolute
    assert evidence.bound is not None
    assert (evidence.bound.largest, evidence.removed) == (0.25, {"not verified": 40})
    assert {each.name for each in fields(Evidence)} == WHOLE.keys() | {"rest"}
    assert json.dumps(evidence.as_document()) == json.dumps(WHOLE)
    jsonschema.validate(json.loads(dumps(to_document(by_hand.circuit(evidence=WHOLE)))), SCHEMA)


def test_both_dialects_are_the_same_evidence() -> None:
    """Stability and tests as ``wiremap evaluate`` writes them, and a curve of one ranking."""
    stability = {
        "rule": "the 6 largest effects", "mean_pairwise_jaccard": 0.875, "n_resamples": 1000,
    }  # fmt: skip
    others = {
        "curve": {"cpr": 0.675, **CURVE},
        "stability": stability,
        "tests": {"tests": [TEST]},
    }
    todays = {
        "curve": {"cpr": 0.675, "signed": CURVE},
        "stability": WHOLE["stability"],
        "tests": [TEST],
    }
    assert Evidence.from_document(others) == Evidence.from_document(todays)
    assert Evidence.from_document(others).as_document() == todays
    for evidence in (others, todays):
        document = {**to_document(by_hand.circuit()), "evidence": evidence}
        jsonschema.validate(json.loads(json.dumps(document)), SCHEMA)
    seeded = Evidence.from_document({"tests": {"seed": 3, "by": "hand", "tests": [TEST]}})
    assert seeded == Evidence.from_document({"tests": [{**TEST, "seed": 3, "by": "hand"}]})


def with_unknown(value: Any) -> Any:
    """The same data with an unknown key in every object whose keys are known."""
    if isinstance(value, list):
        return [with_unknown(each) for each in value]
    if not isinstance(value, dict):
        return value
    inner = {
        name: each if name in ("removed", "not_done", "details") else with_unknown(each)
        for name, each in value.items()
    }
    return inner if "kl" in value else {**inner, "of a newer file": [None, {"x": 1e-40}]}


@pytest.mark.parametrize(
    "name", [name for name, known in FORMATS.items() if known.decode and not known.loses]
)
def test_what_is_unknown_is_kept_and_written_back(name: str) -> None:
    evidence = with_unknown(WHOLE)
    circuit = by_hand.circuit(evidence=evidence)
    assert circuit.evidence.as_document() == evidence
    back = decode(FORMATS[name].encode(circuit, View()).decode())[1]
    assert back == circuit
    assert back.evidence.as_document() == evidence
    assert back.evidence.stability is not None
    assert back.evidence.stability.rest == {"of a newer file": [None, {"x": 1e-40}]}
    jsonschema.validate(json.loads(dumps(to_document(back))), SCHEMA)


BROKEN = {
    "evidence.bound: expected an object, got list": {"bound": []},
    "evidence.bound.largest: expected a number, got 'much'": {"bound": {"largest": "much"}},
    "evidence.bound.largest: expected a finite number": {"bound": {"largest": float("inf")}},
    "evidence.bound.samples: expected int, got 1.5": {"bound": {"samples": 1.5}},
    "evidence.bound.samples: expected int, got True": {"bound": {"samples": True}},
    r"evidence.bound.n_edges: expected a number below 2\*\*63": {"bound": {"n_edges": 10**30}},
    "evidence.bound.statement: expected str, got 3": {"bound": {"statement": 3}},
    r"evidence.sample.shares\[0\].share: expected, but missing": {
        "sample": {"shares": [{"above": 1}]}
    },
    "evidence.stability.jaccard: expected a number": {"stability": {"mean_pairwise_jaccard": "1"}},
    "evidence.removed.by hand: expected int, got 0.5": {"removed": {"by hand": 0.5}},
    "evidence.metrics.kl.circuit: expected, but missing": {
        "metrics": {"kl": {"full": 1, "empty": 0}}
    },
    r"evidence.tests\[0\].p_value: expected, but missing": {"tests": [{"name": "t"}]},
    "evidence.tests: expected a list": {"tests": {"seed": 0}},
    r"evidence.tests\[1\]: expected an object, got int": {"tests": {"tests": [TEST, 3]}},
    r"evidence.completeness.largest_without\[0\]: expected str": {
        "completeness": {"largest_without": [None]}
    },
    r"evidence.random.random_faithfulness\[1\]: expected a number, got None": {
        "random": {"random_faithfulness": [0.5, None]}
    },
}


@pytest.mark.parametrize(("message", "evidence"), BROKEN.items(), ids=BROKEN)
def test_a_broken_field_is_refused_by_name(message: str, evidence: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=message):
        Circuit.build(by_hand.SHAPE, [], evidence=evidence)
    with pytest.raises(InputError, match=message):
        from_document({**to_document(by_hand.circuit()), "evidence": evidence})
    document = json.loads(json.dumps({**to_document(by_hand.circuit()), "evidence": evidence}))
    if not any(word in message for word in ("finite", "2\\*", "jaccard")):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document, SCHEMA)


def test_null_is_what_is_missing() -> None:
    assert Evidence.from_document(dict.fromkeys(WHOLE)) == Evidence()
    assert Evidence.from_document({"bound": {"largest": None}}).as_document() == {"bound": {}}
    jsonschema.validate(
        {**to_document(by_hand.circuit()), "evidence": dict.fromkeys(WHOLE)}, SCHEMA
    )


def parts(kind: Any) -> list[type[Part]]:
    """The kinds of parts that a type mentions, and those in them."""
    inner = [part for argument in get_args(kind) for part in parts(argument)]
    if get_origin(kind) is None and isinstance(kind, type) and issubclass(kind, Part):
        hints = get_type_hints(kind).values()
        return [kind, *(part for hint in hints for part in parts(hint))]
    return inner


def test_the_schema_knows_every_field() -> None:
    """The schema is written by hand: here it is held against the classes."""
    assert len(set(parts(Evidence))) == 20

    def check(kind: Any, schema: dict[str, Any]) -> None:
        schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        (kind,) = (
            [each for each in get_args(kind) if each is not NoneType]
            if (NoneType in get_args(kind))
            else [kind]
        )
        if get_origin(kind) is tuple:
            lists = schema["anyOf"][1] if "anyOf" in schema else schema
            check(get_args(kind)[0], lists["items"])
        elif get_origin(kind) is not None and "additionalProperties" in schema:
            check(get_args(kind)[1], schema["additionalProperties"])
        elif isinstance(kind, type) and issubclass(kind, Part):
            hints = {name: hint for name, hint in get_type_hints(kind).items() if name != "rest"}
            assert list(schema["properties"]) == list(hints)
            required = [
                each.name
                for each in fields(kind)
                if each.default is MISSING and each.default_factory is MISSING
            ]
            assert sorted(schema.get("required", [])) == sorted(required)
            for name, hint in hints.items():
                check(hint, schema["properties"][name])

    check(Evidence, SCHEMA["$defs"]["evidence"])


def test_circuits_are_equal_whether_evidence_is_given_as_data_or_typed() -> None:
    typed = by_hand.circuit(evidence=Evidence.from_document(WHOLE))
    assert typed == by_hand.circuit(evidence=WHOLE)
    of_python = {**WHOLE, "tests": {"tests": (TEST,)}}
    of_python["completeness"] = {**WHOLE["completeness"], "largest_without": ()}
    assert typed == by_hand.circuit(evidence=of_python)
    assert from_document(loads(dumps(to_document(typed)))) == typed
