"""Curves of the evidence in pages: drawn, or refused by name, and kept to their place."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import circuits_for_tests as by_hand
import pytest

from wiremap.edges import InputError
from wiremap.exporters.pages.curve_figure import curve_picture, curves, faithfulness_curve

POINTS = [(0.05, 0.25), (0.2, 0.75), (1.0, 1.0)]


def test_curves_are_read_as_discover_and_as_evaluate_write_them() -> None:
    assert curves(by_hand.circuit(evidence={"curve": by_hand.CURVE})) == {"by score": POINTS}
    both = {"signed": by_hand.CURVE, "absolute": by_hand.CURVE, "cpr": 0.5}
    found = curves(by_hand.circuit(evidence={"curve": both}))
    assert found == {"by score": POINTS, "by |score|": POINTS}


@pytest.mark.parametrize("curve", [None, {}, {"cpr": 0.5}, {"points": []}])
def test_no_curve_is_not_drawn(curve: Any) -> None:
    assert faithfulness_curve(by_hand.circuit(evidence={"curve": curve})) is None


FIRST = {"fraction": 0.5, "faithfulness": 1.0}


@pytest.mark.parametrize(
    ("curve", "message"),
    [
        (3, "evidence.curve: expected an object, got int"),
        ("points", "evidence.curve: expected an object, got str"),
        ([], "evidence.curve: expected an object, got list"),
        ({"points": None}, r"curve.signed.points: expected, but missing"),
        ({"points": {}}, r"curve.signed.points: expected a list, got {}"),
        ({"points": [3]}, r"curve.signed.points\[0\]: expected an object, got int"),
        ({"points": [{}]}, r"points\[0\].fraction: expected, but missing"),
        ({"points": [FIRST, {**FIRST, "faithfulness": None}]}, r"points\[1\].faithfulness: expected"),
        ({"points": [{**FIRST, "faithfulness": 10**400}]}, "faithfulness: expected a finite number"),
        ({"points": [{**FIRST, "faithfulness": "1"}]}, "faithfulness: expected a number, got '1'"),
        ({"points": [{**FIRST, "faithfulness": True}]}, "expected a number, got True"),
        ({"points": [{**FIRST, "fraction": 0.0}]}, r"signed.points\[0\].fraction: expected growing"),
        ({"points": [{**FIRST, "fraction": 1.5}]}, "above 0 and at most 1, got 1.5"),
        ({"points": [FIRST] * 2}, r"points\[1\].fraction: .* got 0.5 after 0.5"),
        ({"absolute": {"points": True}}, "evidence.curve.absolute.points: expected a list, got True"),
    ],
)  # fmt: skip
def test_what_is_no_curve_is_refused(curve: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        by_hand.circuit(evidence={"curve": curve})


def test_the_curve_s_style_sheet_is_kept_to_the_figure_and_dark_to_screens() -> None:
    told = {**by_hand.CURVE, "ranked_by": by_hand.HOSTILE}
    found = faithfulness_curve(by_hand.circuit(evidence={"curve": told}))
    assert found is not None
    ElementTree.fromstring(found.figure)
    assert f"<style>{found.style}</style>" in found.figure
    rules = re.findall(r"([^{}]+){[^{}]*}", found.style)
    assert len(rules) > 8
    assert all(one.startswith(".curve ") for rule in rules for one in rule.split(","))
    assert found.style.count("@media") == found.style.count("@media screen and (") == 1
    assert "CPR 0.812, CMD 0.138" in found.figure


def test_the_way_of_a_search_its_target_and_the_held_out_pairs_are_drawn() -> None:
    path = [(40, 1.2), (6, 0.5), (10, 0.9), (6, 0.7)]
    searched = {
        "search": {
            "least": 0.9,
            "greatest": 1.1,
            "reached": True,
            "path": [{"edges": size, "faithfulness": value} for size, value in path],
        },
        "held_out": {
            "n_pairs": 8, "metric": "logit_diff", "full": 1.0, "empty": 0.0, "circuit": 0.8,
            "faithfulness": 0.8, "interval": [0.7, 0.85], "confidence": 0.9,
        },
    }  # fmt: skip
    circuit = by_hand.circuit(evidence=searched)
    assert curves(circuit) == {"the search": [(6 / 46, 0.7), (10 / 46, 0.9), (40 / 46, 1.2)]}
    svg = curve_picture(circuit, "tiny on ioi")
    assert svg is not None
    for text in (
        "band: target of 0.9 to 1.1", "edges kept, of the model&#x27;s 46", ">10</text>",
        "on held-out pairs: 0.800 (0.700 to 0.850)", "<title>target: 0.9 to 1.1</title>",
    ):  # fmt: skip
        assert text in svg
    both = by_hand.circuit(evidence={**searched, "curve": by_hand.CURVE})
    assert list(curves(both)) == ["by score", "the search"]
    assert curve_picture(by_hand.circuit(), "") is None
