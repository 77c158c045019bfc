"""Files of every format: whole, stable, read back equal; and refused with reasons."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import circuits_for_tests as by_hand
import pytest

from wiremap.circuits import Circuit
from wiremap.edges import InputError, WiremapError
from wiremap.exporters import FORMATS, read_circuit, write_circuit
from wiremap.exporters.pictures import graphviz as picture
from wiremap.exporters.pictures import palette
from wiremap.exporters.pictures.dot import to_dot
from wiremap.exporters.pictures.graphviz import render
from wiremap.exporters.pictures.layout import positions, rows

needs_dot = pytest.mark.skipif(
    shutil.which("dot") is None, reason="needs the dot program of Graphviz"
)
TEXT_FORMATS = ("json", "dot", "graphml", "html")


@pytest.mark.parametrize("name", TEXT_FORMATS)
@pytest.mark.parametrize("circuit", [by_hand.circuit(), by_hand.grouped()], ids=["full", "grouped"])
def test_the_same_circuit_gives_the_same_bytes(tmp_path: Path, name: str, circuit: Circuit) -> None:
    one, other = tmp_path / f"one.{name}", tmp_path / f"other.{name}"
    write_circuit(circuit, one)
    write_circuit(circuit, other)
    assert one.read_bytes() == other.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([one.name, other.name])


def test_json_comes_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "circuit.json"
    write_circuit(by_hand.circuit(), path)
    assert read_circuit(path) == by_hand.circuit()


def test_a_format_may_be_named(tmp_path: Path) -> None:
    path = tmp_path / "circuit.txt"
    write_circuit(by_hand.circuit(), path, format="json")
    assert read_circuit(path) == by_hand.circuit()


def test_unknown_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no format has the extension '\.xlsx'; name one of json"):
        write_circuit(by_hand.circuit(), tmp_path / "circuit.xlsx")
    with pytest.raises(InputError, match="unknown format 'gml'; there are json, dot"):
        write_circuit(by_hand.circuit(), tmp_path / "circuit", format="gml")
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written_are_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write .*No such file or directory"):
        write_circuit(by_hand.circuit(), tmp_path / "none" / "circuit.json")
    (tmp_path / "circuit.json").mkdir()
    with pytest.raises(InputError, match="cannot write .*Is a directory"):
        write_circuit(by_hand.circuit(), tmp_path / "circuit.json")
    assert [path.name for path in tmp_path.iterdir()] == ["circuit.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected JSON"),
        (b"\xff\xfe", "expected UTF-8 text, got byte 0xff at offset 0"),
        (b"digraph {}", "expected a circuit as one of json, .*got Graphviz DOT, which is not read"),
        (b'{"format": "something"}', "expected a document with format 'wiremap-circuit'"),
    ],
)
def test_other_files_are_not_read(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "circuit.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_circuit(path)
    assert str(path) in str(error.value)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_circuit(tmp_path / "none.json")


# ---- layout


def test_rows_follow_the_computation() -> None:
    assert [[node.name for node in level] for level in rows(by_hand.circuit())] == [
        ["input"], ["a0.h0"], ["m0"], ["a1.h1"], ["logits"],
    ]  # fmt: skip
    levels = [{node.name for node in level} for level in rows(by_hand.grouped())]
    assert levels == [{"input"}, {"a0.kv1"}, {"a0.h2", "a0.h3"}, {"logits"}]


def test_positions_are_distinct_and_rise_with_the_rows() -> None:
    places = positions(by_hand.grouped())
    assert len(set(places.values())) == len(places)
    assert places["input"][1] < places["a0.kv1"][1] < places["a0.h2"][1] < places["logits"][1]


# ---- DOT


def test_dot_tells_sign_by_colour_and_dash_and_verified_by_the_arrow() -> None:
    lines = to_dot(by_hand.circuit()).splitlines()

    def line(edge: str) -> str:
        return next(text for text in lines if f'id="{edge}"' in text)

    positive, negative = line("input->a0.h0<v>"), line("a0.h0->a1.h1<q>")
    assert f'color="{palette.POSITIVE}"' in positive
    assert "style=solid" in positive
    assert f'color="{palette.NEGATIVE}"' in negative
    assert "style=dashed" in negative
    assert "arrowhead=normal" in positive
    assert "arrowhead=onormal" in line("a0.h0->a1.h1<k>")
    widths = [
        float(line(edge).partition("penwidth=")[2].split()[0])
        for edge in ("m0->logits", "input->a0.h0<v>", "input->m0")
    ]
    assert widths == sorted(widths, reverse=True)
    assert "effect +1.25 ± 0.12 logits, 95 % [+1, +1.5] (8 pairs), score +0.5" in positive
    assert not any(" weight=" in text and "invis" not in text for text in lines)


def test_dot_names_model_task_and_faithfulness() -> None:
    source = to_dot(by_hand.circuit())
    assert "tiny on ioi" in source
    assert "6 of 46 edges, faithfulness 0.80, logit_diff over 8 pairs" in source


HOSTILE = 'a"b<c>&amp;]]>\n\\N \u202e\x00\x1b</script>javascript:INF null \U0001f600\\'


@needs_dot
@pytest.mark.parametrize("kind", ["svg", "png", "pdf"])
def test_pictures_are_drawn(kind: str) -> None:
    begins = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}
    assert render(to_dot(by_hand.circuit()), kind).startswith(begins[kind])


@needs_dot
@pytest.mark.parametrize(
    "circuit",
    [
        by_hand.circuit(),
        by_hand.grouped(),
        by_hand.circuit(
            model={"name": HOSTILE}, task={"pairs": HOSTILE}, method={"metric": HOSTILE}
        ),
        Circuit.build(by_hand.SHAPE, []),
    ],
    ids=["full", "grouped", "hostile", "empty"],
)
def test_svg_is_well_formed_and_has_every_edge(circuit: Circuit) -> None:
    root = ElementTree.fromstring(render(to_dot(circuit), "svg"))
    namespace = "{http://www.w3.org/2000/svg}"
    drawn = {group.get("id") for group in root.iter(f"{namespace}g")}
    assert {edge.name for edge in circuit.edges} <= drawn
    assert not list(root.iter(f"{namespace}script"))


def test_without_dot_only_the_picture_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    write_circuit(by_hand.circuit(), tmp_path / "circuit.dot")
    with pytest.raises(WiremapError, match="dot program of Graphviz is not installed; install it"):
        write_circuit(by_hand.circuit(), tmp_path / "circuit.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["circuit.dot"]


def test_a_dot_that_takes_too_long_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "dot"
    slow.write_text("#!/bin/sh\nexec /bin/sleep 30\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(picture, "RENDER_SECONDS", 0.2)
    with pytest.raises(WiremapError, match=r"dot took longer than 0\.2 s; draw fewer edges"):
        render("digraph {}", "svg")


@needs_dot
def test_a_dot_that_fails_is_quoted() -> None:
    with pytest.raises(WiremapError, match="dot failed with: .*syntax error"):
        render("digraph {", "svg")


@needs_dot
def test_dot_source_is_dot() -> None:
    for circuit in (by_hand.circuit(), by_hand.grouped()):
        checked = subprocess.run(
            ["dot", "-Tcanon"], input=to_dot(circuit).encode(), capture_output=True, check=True
        )
        assert not checked.stderr


def test_every_format_has_its_own_extension() -> None:
    assert len({known.extension for known in FORMATS.values()}) == len(FORMATS)
