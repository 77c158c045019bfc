"""The faithfulness curve: points where they belong, read back from the picture."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from circuits_for_tests import HOSTILE

from wiremap.edges import InputError
from wiremap.exporters.pictures.curve import Points, to_curve

SVG = "{http://www.w3.org/2000/svg}"
ONE = [(0.001, 0.0), (0.01, 0.5), (0.1, 1.0), (1.0, 1.5)]
TWO = [(0.001, -0.5), (1.0, 1.0)]


def marks(svg: str, number: int = 0) -> list[tuple[float, float]]:
    """Where the points of a curve are drawn."""
    found: list[tuple[float, float]] = []
    for element in ElementTree.fromstring(svg).iter():
        if element.get("class") == f"m{number}":
            if element.tag == f"{SVG}circle":
                found.append((float(element.get("cx", "")), float(element.get("cy", ""))))
            else:
                found.append((float(element.get("x", "")) + 3, float(element.get("y", "")) + 3))
    return found


def level(svg: str, text: str) -> float:
    """How high a label stands, less what centres it on its line."""
    (found,) = (e for e in ElementTree.fromstring(svg).iter(f"{SVG}text") if e.text == text)
    return float(found.get("y", "")) - 4


def test_points_stand_where_the_axes_say() -> None:
    svg = to_curve({"scores": ONE}, "gpt2 on ioi", "logit_diff")
    places = marks(svg)
    steps = {round(right - left, 1) for (left, _), (right, _) in pairwise(places)}
    assert len(steps) == 1  # decades
    heights = [y for _, y in places]
    assert heights[0] == pytest.approx(level(svg, "corrupted run"), abs=0.1)
    assert heights[2] == pytest.approx(level(svg, "the model"), abs=0.1)
    assert heights[1] == pytest.approx((heights[0] + heights[2]) / 2, abs=0.1)
    assert heights[3] == pytest.approx(level(svg, "1.5"), abs=0.1)
    texts = [e.text for e in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    for label in ("0.1", "1", "10", "100", "faithfulness", "gpt2 on ioi", "logit_diff"):
        assert label in texts
    assert "scores" not in texts  # one curve needs no legend


def test_a_linear_axis_begins_at_0() -> None:
    svg = to_curve({"scores": [(0.25, 0.0), (0.5, 1.0), (1.0, 1.0)]}, "", logarithmic=False)
    (first, _), (second, _), (last, _) = marks(svg)
    assert last - second == pytest.approx(2 * (second - first), abs=0.1)


def test_curves_differ_by_more_than_colour() -> None:
    svg = to_curve({"by score": ONE, "by |score|": TWO}, "gpt2 on ioi")
    assert len(marks(svg, 0)) == len(ONE) + 1  # and one in the legend
    assert len(marks(svg, 1)) == len(TWO) + 1
    assert re.search(r'class="c1"[^>]*stroke-dasharray', svg)
    assert not re.search(r'class="c0"[^>]*stroke-dasharray', svg)
    assert "by |score|" in [e.text for e in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_everything_stays_inside() -> None:
    for points in ([(1e-7, -40.0), (1.0, 1.0)], [(1.0, 1.0)], [(0.5, 0.2), (1.0, 123456.0)]):
        for logarithmic in (True, False):
            svg = to_curve({"scores": points}, "", logarithmic=logarithmic)
            for x, y in marks(svg):
                assert 62 <= x <= 548
                assert 68 <= y <= 344
            assert len(re.findall("<text", svg)) < 45


def test_it_follows_a_dark_scheme_and_is_the_same_every_time() -> None:
    svg = to_curve({"scores": ONE}, "gpt2 on ioi")
    assert "@media (prefers-color-scheme: dark)" in svg
    assert svg == to_curve({"scores": ONE}, "gpt2 on ioi")


def test_hostile_names_stay_text() -> None:
    svg = to_curve({HOSTILE: ONE, "other": TWO}, HOSTILE, HOSTILE)
    tags = {element.tag for element in ElementTree.fromstring(svg).iter()}
    names = ("svg", "style", "rect", "text", "path", "circle", "title")
    assert tags == {f"{SVG}{name}" for name in names}


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({}, "1 to 3 curves to draw, got 0"),
        ({str(n): ONE for n in range(4)}, "got 4"),
        ({"x": []}, "curve 'x': expected points at growing fractions"),
        ({"x": [(0.5, 1.0), (0.1, 1.0)]}, "growing fractions"),
        ({"x": [(0.0, 1.0)]}, "above 0"),
        ({"x": [(1.0, float("nan"))]}, "expected finite faithfulness"),
    ],
)
def test_what_cannot_be_drawn_is_refused(curves: dict[str, Points], message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_curve(curves, "")


def test_no_torch_is_loaded() -> None:
    code = "import sys, wiremap.exporters.pictures.curve; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {"torch", "numpy"} & set(loaded.stdout.split())


@pytest.mark.skipif(shutil.which("rsvg-convert") is None, reason="needs rsvg-convert")
def test_another_program_draws_it() -> None:
    svg = to_curve({"by score": ONE, "by |score|": TWO}, "gpt2 on ioi")
    drawn = subprocess.run(["rsvg-convert"], input=svg.encode(), capture_output=True, check=True)
    assert drawn.stdout.startswith(b"\x89PNG")
