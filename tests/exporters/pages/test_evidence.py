"""Evidence in pages: shown where it can be read, left out where it cannot, and kept to its place."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import circuits_for_tests as by_hand
import pytest

from wiremap.exporters.pages.measured import curves, faithfulness_curve, figure

POINTS = [(0.05, 0.25), (0.2, 0.75), (1.0, 1.0)]


def test_curves_are_read_as_discover_and_as_evaluate_write_them() -> None:
    assert curves(by_hand.circuit(evidence={"curve": by_hand.CURVE})) == {"by score": POINTS}
    both = {"signed": by_hand.CURVE, "absolute": by_hand.CURVE, "cpr": 0.5}
    found = curves(by_hand.circuit(evidence={"curve": both}))
    assert found == {"by score": POINTS, "by |score|": POINTS}


@pytest.mark.parametrize(
    "curve",
    [
        None, 3, "points", [], {}, {"points": None}, {"points": [3]}, {"points": [{}]},
        {"points": [{"fraction": 0.5, "faithfulness": None}]},
        {"points": [{"fraction": 0.5, "faithfulness": 10**400}]},
        {"points": [{"fraction": 0.0, "faithfulness": 1.0}]},
        {"points": [{"fraction": 1.5, "faithfulness": 1.0}]},
        {"points": [{"fraction": 0.5, "faithfulness": 1.0}] * 2},
        {"signed": {"points": True}},
    ],
)  # fmt: skip
def test_what_is_no_curve_is_not_drawn(curve: Any) -> None:
    assert faithfulness_curve(by_hand.circuit(evidence={"curve": curve})) is None


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


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1.0), (0.5, 0.5), (True, None), ("1", None), (10**400, None), (float("inf"), None)],
)
def test_figures_are_finite_numbers(value: Any, expected: float | None) -> None:
    assert figure({"a": value}, "b", "a") == expected
