"""The viewer as a file: whole, closed to the network and to what labels say, the same every time."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import circuits_for_tests as by_hand
import pytest
import synthetic
from synthetic import hostile

from wiremap.circuits import Circuit, CircuitEdge
from wiremap.circuits.result.document import from_document, loads, to_document
from wiremap.circuits.result.headline import headline, remarks
from wiremap.edges import InputError, ModelGraph
from wiremap.exporters import View, write_circuit
from wiremap.exporters.pages.report import to_report
from wiremap.exporters.pages.viewer import MARK, Viewer, to_html
from wiremap.exporters.pictures import dot, palette
from wiremap.exporters.pictures.drawing import DRAWN, drawing, to_svg

SVG = "{http://www.w3.org/2000/svg}"
EMPTY = Circuit.build(by_hand.SHAPE, [])
ROLES = View(groups={"early": ["a0.h0", "m0"], "not there": ["m1"], synthetic.HOSTILE: ["a1.h1"]})


class Page(HTMLParser):
    """What a page is made of: its elements with their attributes, and texts by element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._open, []).append(data)


def contents(page: str, tag: str) -> list[str]:
    return re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", page, re.DOTALL)


@pytest.mark.parametrize("evidence", [{}, {"curve": by_hand.CURVE}], ids=["plain", "curve"])
@pytest.mark.parametrize("view", [View(), ROLES], ids=["plain", "roles"])
def test_only_the_page_s_own_script_and_styles_may_run(
    view: View, evidence: dict[str, Any]
) -> None:
    page = to_html(by_hand.circuit(evidence=evidence), view)
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    directives = {part.split()[0]: part.split()[1:] for part in policy.split("; ")}

    def hashes(texts: list[str]) -> list[str]:
        digests = [hashlib.sha256(text.encode()).digest() for text in texts]
        return [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]

    _, script = contents(page, "script")
    assert directives == {
        "default-src": ["'none'"],
        "script-src": hashes([script]),
        "style-src": hashes(contents(page, "style")),
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
    }
    assert len(directives["style-src"]) == 2 + len(evidence)


@pytest.mark.parametrize("circuit", [by_hand.circuit(), hostile()], ids=["plain", "hostile"])
def test_nothing_refers_to_another_place(circuit: Circuit) -> None:
    page = to_html(circuit, ROLES)
    assert set(re.findall(r"[a-z]+://[^\"'\s]*", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.findall(r"url\((?!#)|@import|\bfetch\(|XMLHttp|WebSocket|eval\(|innerHTML", page)
    for tag, attributes in Page(page).elements:
        assert tag not in ("link", "img", "iframe", "object", "base"), tag
        assert not {"src", "srcset", "action", "style"} & set(attributes), tag
        assert not [name for name in attributes if name.startswith("on")], tag
        assert attributes.get("href", "#table") == "#table"


def test_labels_stay_text() -> None:
    page = to_html(hostile(), ROLES)
    expected, found = Page(to_html(by_hand.circuit(), View(groups={"x": ["m0"]}))), Page(page)
    kinds = {tag for tag, _ in expected.elements}
    assert {tag for tag, _ in found.elements} == kinds
    for tag in ("script", "style", "svg", "h1"):
        assert page.count(f"</{tag}>") == to_html(by_hand.circuit()).count(f"</{tag}>"), tag
    assert "<script>window.ran" not in page
    text = "".join(found.texts["bdi"])
    assert "<script>window.ran=1</script><img src=x onerror=window.ran=2>" in text
    assert "javascript:window.ran=3 $title ${script}" in text
    assert "\u05d0\u05d1\u05d2 \U0001f600" in text
    assert not [char for char in page if char != "\n" and not char.isprintable()]


@pytest.mark.parametrize(
    "circuit",
    [by_hand.circuit(), by_hand.grouped(), EMPTY, hostile()],
    ids=["full", "grouped", "empty", "hostile"],
)
def test_the_page_holds_the_whole_circuit(circuit: Circuit) -> None:
    data, _ = contents(to_html(circuit), "script")
    assert loads(data) == json.loads(json.dumps(to_document(circuit)))
    assert from_document(loads(data)) == circuit
    assert "<" not in data


def test_the_same_circuit_gives_the_same_bytes_in_another_process() -> None:
    tests = Path(__file__).parents[2]
    code = f"""
import sys
sys.path.insert(0, {str(tests)!r})
import circuits_for_tests, synthetic
from wiremap.exporters.pages.viewer import to_html
from wiremap.exporters import View
roles = View(groups={{"b": ["m0", "a0.h0"], "a": ["a1.h1"]}})
sys.stdout.buffer.write((to_html(circuits_for_tests.circuit(), roles) + to_html(synthetic.circuit(60))).encode())
"""
    roles = View(groups={"b": ["m0", "a0.h0"], "a": ["a1.h1"]})
    expected = to_html(by_hand.circuit(), roles) + to_html(synthetic.circuit(60))
    for seed in ("1", "2"):
        made = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        assert made.stdout.decode() == expected


def test_the_page_tells_the_question_and_what_came_out() -> None:
    assert contents(to_html(by_hand.circuit()), "h1") == ["<bdi>tiny on ioi</bdi>"]
    facts = contents(to_html(by_hand.circuit()), "dl")[0]
    text = re.sub(r"<[^>]*>", " ", facts)
    assert "faithfulness 0.800 = (3 + 1) / (4 + 1) logits, over 8 pairs" in " ".join(text.split())
    for word in ("6", "46 edges", "tiny", "ioi", "logit_diff", "0.1"):
        assert word in text
    assert "faithfulness" not in contents(to_html(EMPTY), "dl")[0]


def test_large_circuits_are_drawn_in_part_and_say_so(large_page: Path) -> None:
    page = large_page.read_text(encoding="utf-8")
    circuit = from_document(loads(contents(page, "script")[0]))
    assert len(circuit.edges) == DRAWN + 100
    assert len(page.encode()) < 1_500_000
    assert page.count('data-edge="') == DRAWN
    assert "Drawn are the 2,000 largest of 2,100 edges" in page
    assert "drawn: the 2,000 largest of 2,100 edges" in page
    drawn = {int(place) for place in re.findall(r'data-edge="(\d+)"', page)}
    sizes = [abs(edge.worth or 0.0) for edge in circuit.edges]
    left_out = [size for place, size in enumerate(sizes) if place not in drawn]
    assert max(left_out) <= min(sizes[place] for place in drawn)


# ---- roles


def test_nodes_are_marked_by_their_role_and_the_legend_names_it() -> None:
    root = ElementTree.fromstring(drawing(by_hand.circuit(), ROLES.groups))
    groups = [group for group in root.iter(f"{SVG}g") if "data-node" in group.attrib]
    marks = {group.attrib["data-node"]: group.get("data-role") for group in groups}
    assert marks == {"input": None, "a0.h0": "0", "m0": "0", "a1.h1": "2", "logits": None}
    (head,) = [group for group in groups if group.attrib["data-node"] == "a0.h0"]
    assert head.attrib["class"] == "node head marked role0"
    assert (head.findtext(f"{SVG}title"), head.findtext(f"{SVG}text[@class='number']")) == (
        "a0.h0 (early)", "1",
    )  # fmt: skip
    keys = [group for group in root.iter(f"{SVG}g") if "data-key" in group.attrib]
    told = [key.findtext(f"{SVG}title") or "" for key in keys]
    assert told[:2] == ["early: a0.h0, m0", "not there: no node; not in this circuit: m1"]
    assert "<script>window.ran=1</script>" in told[2]
    shown = ["".join(key.findall(f"{SVG}text")[1].itertext()) for key in keys]
    assert shown[:2] == ["early \u00d72", "not there \u00d70"]
    assert len(shown[2]) == 32 + 3


def test_many_roles_repeat_colours_not_numbers_and_break_the_legend() -> None:
    circuit = synthetic.circuit(150)
    roles = {f"the role of {node.name}": [node.name] for node in circuit.nodes[1:31]}
    root = ElementTree.fromstring(drawing(circuit, roles))
    keys = [group for group in root.iter(f"{SVG}g") if "data-key" in group.attrib]
    assert [key.findtext(f"{SVG}text[@class='number']") for key in keys] == [
        str(number) for number in range(1, 31)
    ]
    assert len({key.attrib["class"] for key in keys}) == 8
    rows = {
        group.attrib["transform"].split()[1] for group in root.findall(f".//{SVG}g[@transform]")
    }
    assert {"22)", "44)"} <= rows
    without = ElementTree.fromstring(drawing(circuit, {}))
    assert float(root.attrib["height"]) > float(without.attrib["height"])
    assert root.attrib["width"] == without.attrib["width"]


def test_roles_can_be_grouped_by_only_where_there_are_roles() -> None:
    assert "<option disabled>role</option>" in to_html(by_hand.circuit())
    assert "<option>role</option>" in to_html(by_hand.circuit(), ROLES)


def test_roles_of_strangers_are_refused(tmp_path: Path) -> None:
    for role, message in (("a1.h7", "did you mean a1.h1 or a1.h0"), ("x" * 99, "another model")):
        with pytest.raises(InputError, match=rf"groups: '{role[:9]}.*no node of this.*{message}"):
            to_html(by_hand.circuit(), View(groups={"movers": [role]}))
    with pytest.raises(InputError, match=r"\.html has no choice of collapse: formats that have"):
        write_circuit(by_hand.circuit(), tmp_path / "c.html", view=View(collapse="layers"))


# ---- the drawing


@pytest.mark.parametrize(
    "circuit",
    [by_hand.circuit(), by_hand.grouped(), EMPTY, hostile(), synthetic.circuit(60)],
    ids=["full", "grouped", "empty", "hostile", "synthetic"],
)
def test_the_drawing_is_well_formed_and_has_everything_once(circuit: Circuit) -> None:
    root = ElementTree.fromstring(to_svg(circuit))
    drawn = [path.get("data-edge") for path in root.iter(f"{SVG}path") if path.get("data-edge")]
    assert sorted(drawn, key=lambda place: int(place or 0)) == [
        str(place) for place in range(len(circuit.edges))
    ]
    nodes = [group.get("data-node") for group in root.iter(f"{SVG}g") if group.get("data-node")]
    assert sorted(filter(None, nodes)) == sorted(node.name for node in circuit.nodes)
    assert len(root.findall(f".//{SVG}path[@class='serves']")) == len(circuit.groups)
    assert not list(root.iter(f"{SVG}script"))


def paths(circuit: Circuit) -> dict[str, ElementTree.Element]:
    root = ElementTree.fromstring(to_svg(circuit))
    return {
        circuit.edges[int(path.attrib["data-edge"])].name: path
        for path in root.iter(f"{SVG}path")
        if "data-edge" in path.attrib
    }


def test_colour_dash_width_and_arrow_mean_what_they_mean_in_dot() -> None:
    found = paths(by_hand.circuit())
    style = (Path(dot.__file__).parents[1] / "templates" / "drawing.css").read_text()
    assert f".positive {{ fill: none; stroke: {palette.POSITIVE}; }}" in style
    assert f".negative {{ fill: none; stroke: {palette.NEGATIVE}; stroke-dasharray" in style
    assert found["input->a0.h0<v>"].attrib["class"] == "positive"
    assert found["a0.h0->a1.h1<q>"].attrib["class"] == "negative"
    assert found["input->a0.h0<v>"].attrib["marker-end"] == "url(#positive-verified-thin)"
    assert found["a0.h0->a1.h1<k>"].attrib["marker-end"] == "url(#positive-scored-thin)"
    assert found["m0->logits"].attrib["marker-end"] == "url(#positive-verified-wide)"
    widths = [
        float(found[name].attrib["stroke-width"])
        for name in ("m0->logits", "input->a0.h0<v>", "input->m0")
    ]
    assert widths == [5.0, pytest.approx(0.6 + 4.4 * 1.25 / 3.5, abs=0.01), 0.6]
    (title,) = found["input->a0.h0<v>"]
    assert title.text == (
        "input->a0.h0<v>: effect +1.25 ± 0.12 logits, 95 % [+1, +1.5] (8 pairs), "
        "score +0.5, the circuit loses +0.875 without it, in 100% of resampled circuits"
    )


@pytest.mark.parametrize("n_edges", [12, 150, 500])
def test_every_curve_stays_in_the_drawing(n_edges: int) -> None:
    circuit = synthetic.circuit(n_edges, seed=n_edges)
    root = ElementTree.fromstring(to_svg(circuit))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for name, path in paths(circuit).items():
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", path.attrib["d"])]
        x, y = numbers[::2], numbers[1::2]
        assert y == sorted(y, reverse=True), f"{name} turns back"
        assert y[-1] > 0
        assert y[0] < height
        for step in range(21):
            t = step / 20
            weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
            assert 0 < sum(w * v for w, v in zip(weights, x, strict=True)) < width, name


def test_an_edge_goes_round_a_node_in_its_way() -> None:
    shape = ModelGraph(3, 1, 1)
    ends = [("input", "m0"), ("m0", "m1"), ("m1", "logits"), ("input", "logits")]
    found = paths(Circuit.build(shape, [CircuitEdge(a, b, score=1.0) for a, b in ends]))

    def reach(name: str) -> float:
        x = [float(number) for number in re.findall(r"-?[\d.]+", found[name].attrib["d"])[::2]]
        return max(x) - min(x)

    assert reach("m0->m1") == 0.0
    assert reach("input->logits") > 30.0


# ---- notebooks


def test_a_notebook_shows_a_circuit_without_further_imports() -> None:
    code = """
import sys
from wiremap.circuits import Circuit
from wiremap.edges import ModelGraph
circuit = Circuit.build(ModelGraph(1, 1, 1), [])
assert "wiremap.exporters.pages.viewer" not in sys.modules
print(circuit._repr_mimebundle_(include=None, exclude=None)["image/svg+xml"][:4])
print(circuit.show()._repr_html_()[:7])
print(*{"torch", "transformers", "numpy"} & set(sys.modules))
"""
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.split() == ["<svg", "<iframe"]


def test_a_notebook_gets_a_picture_and_a_line() -> None:
    shown: dict[str, Any] = by_hand.circuit()._repr_mimebundle_()  # pyright: ignore[reportPrivateUsage]
    ElementTree.fromstring(shown["image/svg+xml"])
    assert shown["text/plain"] == (
        "Circuit of tiny on ioi: 6 edges: faithfulness 0.80 on the pairs it was found on (none held out)"
    )


def test_the_viewer_of_a_notebook_is_the_page_in_a_closed_frame() -> None:
    frame = Viewer(hostile(), height=300)._repr_html_()  # pyright: ignore[reportPrivateUsage]
    ((tag, attributes),) = Page(frame).elements
    assert tag == "iframe"
    assert attributes["srcdoc"] == to_html(hostile())
    assert attributes["sandbox"] == "allow-scripts allow-downloads"
    assert attributes["height"] == "300"
    assert MARK in (attributes["srcdoc"] or "")


def test_pages_begin_with_the_headline_and_what_its_figures_do_not_agree_in() -> None:
    held_out = {
        "n_pairs": 8, "metric": "logit_diff", "full": 1.0, "empty": 0.0, "circuit": 0.8,
        "faithfulness": 0.8, "interval": [0.7, 0.85], "confidence": 0.9,
        "kl_share": 0.25, "accuracy": 0.5, "model_accuracy": 1.0,
    }  # fmt: skip
    circuit = by_hand.circuit(evidence={"held_out": held_out})
    sentences = [headline(circuit), *remarks(circuit)]
    assert len(sentences) == 3
    for page in (to_html(circuit), to_report(circuit)):
        places = [page.index(f">{html.escape(sentence)}</p>") for sentence in sentences]
        assert page.index("</h1>") < places[0]
        assert places == sorted(places)
        assert places[-1] < page.index("</header>")
    shown: dict[str, Any] = circuit._repr_mimebundle_()  # pyright: ignore[reportPrivateUsage]
    first, *others = sentences
    assert shown["text/plain"].splitlines() == [f"Circuit of tiny on ioi: {first}", *others]
    assert "held-out faithfulness 0.80" in shown["image/svg+xml"]
