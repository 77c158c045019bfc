"""The heat map: its pixels read back by a reader of PNG written from the specification."""

from __future__ import annotations

import base64
import io
import re
import shutil
import struct
import subprocess
import zlib
from typing import Any
from xml.etree import ElementTree

import numpy
import pytest
from numpy.typing import NDArray

from wiremap.edges import ModelGraph
from wiremap.exporters.pictures.heatmap import to_heatmap

Colors = NDArray[numpy.uint8]

SMALL = ModelGraph(2, 3, 3)
GREY, WHITE = (0xE4, 0xE4, 0xE4), (255, 255, 255)
SVG = "{http://www.w3.org/2000/svg}"


def table(graph: ModelGraph, seed: int | None = 0) -> NDArray[Any]:
    """Random scores (all 0 without a seed) where edges are, nan elsewhere."""
    found = numpy.full((len(graph.writers), len(graph.readers)), numpy.nan, numpy.float32)
    generator = numpy.random.default_rng(seed)
    for writer, reader in graph.edges():
        found[writer, reader] = 0 if seed is None else generator.standard_normal()
    return found


def png_of(svg: str) -> bytes:
    found = ElementTree.fromstring(svg).find(f"{SVG}image")
    assert found is not None
    kind, _, data = found.attrib["href"].partition(",")
    assert kind == "data:image/png;base64"
    return base64.b64decode(data, validate=True)


def pixels_of(png: bytes) -> Colors:
    """Colours ``[row column 3]`` of a PNG of 8-bit colours without filters or interlacing."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    place, chunks = 8, dict[bytes, bytes]()
    while place < len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        kind, data = png[place + 4 : place + 8], png[place + 8 : place + 8 + length]
        (checksum,) = struct.unpack(">I", png[place + 8 + length : place + 12 + length])
        assert checksum == zlib.crc32(kind + data)
        chunks[kind] = chunks.get(kind, b"") + data
        place += 12 + length
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, *kinds = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert kinds == [8, 2, 0, 0, 0]
    lines = numpy.frombuffer(zlib.decompress(chunks[b"IDAT"]), numpy.uint8)
    lines = lines.reshape(height, 1 + 3 * width)
    assert not lines[:, 0].any()  # no filter
    return lines[:, 1:].reshape(height, width, 3)


def cells_of(svg: str, graph: ModelGraph) -> Colors:
    """The colour of every writer's and reader's cell, which must be all of one colour."""
    pixels = pixels_of(png_of(svg))
    n_rows, n_columns = len(graph.writers), len(graph.readers)
    cell = pixels.shape[0] // n_rows
    assert pixels.shape == (cell * n_rows, cell * n_columns, 3)
    blocks = pixels.reshape(n_rows, cell, n_columns, cell, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    return blocks[:, 0, :, 0]


def test_cells_have_the_colours_of_their_scores() -> None:
    scores = table(SMALL, None)
    places: dict[str, float] = {
        "input->m0": 4.0, "input->logits": 1.0, "a0.h1->a1.h2<k>": -4.0, "m0->m1": -1.0,
    }  # fmt: skip
    for name, value in places.items():
        scores[SMALL.edge(name)] = value
    cells = cells_of(to_heatmap(SMALL, scores, "scores"), SMALL)
    full_blue, half_blue, full_red, half_red = (
        cells[SMALL.edge(name)].astype(int) for name in places
    )
    assert full_blue[2] > 150 > full_blue[1] > full_blue[0]
    assert full_red[0] > 150 > max(full_red[1:])
    # A quarter of the magnitude is half as deep.
    assert abs(half_blue - (full_blue + 255) / 2).max() <= 1
    assert abs(half_red - (full_red + 255) / 2).max() <= 1
    for writer in range(len(SMALL.writers)):
        for reader in range(len(SMALL.readers)):
            color = tuple(cells[writer, reader].tolist())
            if writer >= SMALL.readers[reader].n_writers:
                assert color == GREY
            elif SMALL.edge_name(SMALL.edge(_name(writer, reader))) not in places:
                assert color == WHITE


def _name(writer: int, reader: int) -> str:
    return f"{SMALL.writers[writer].name}->{SMALL.readers[reader].name}"


def test_other_readers_of_pictures_agree() -> None:
    image = pytest.importorskip("matplotlib.image")
    png = png_of(to_heatmap(SMALL, table(SMALL), "scores"))
    found = image.imread(io.BytesIO(png), format="png")[..., :3]
    assert ((found * 255).round() == pixels_of(png)).all()


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize(
    "graph",
    [SMALL, ModelGraph(1, 1, 1), ModelGraph(2, 4, 2), ModelGraph(3, 2, 2, parallel=True)],
    ids=["small", "smallest", "grouped", "parallel"],
)
def test_every_graph_has_a_picture(graph: ModelGraph, seed: int | None) -> None:
    svg = to_heatmap(graph, table(graph, seed), "a picture")
    assert svg == to_heatmap(graph, table(graph, seed), "a picture")
    assert "nan" not in svg
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    cells = cells_of(svg, graph)
    if seed is None:
        assert set(map(tuple, cells.reshape(-1, 3).tolist())) <= {GREY, WHITE}
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for element in root.iter():
        if element.tag == f"{SVG}image":
            assert float(element.attrib["x"]) + float(element.attrib["width"]) < width
            assert float(element.attrib["y"]) + float(element.attrib["height"]) < height
        if element.tag == f"{SVG}text" and element.attrib["text-anchor"] == "middle":
            assert 0 < float(element.attrib["x"]) < width
            assert 0 < float(element.attrib["y"]) < height
    texts = ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]
    assert texts[0] == "a picture"
    layers = [f"layer {layer}" for layer in range(graph.n_layers)]
    assert set(layers) <= set(texts)


def test_the_legend_names_the_largest_scores() -> None:
    scores = table(SMALL, None)
    scores[SMALL.edge("input->m0")] = -2.5
    svg = to_heatmap(SMALL, scores, "scores")
    texts = [text for text in re.findall(r">([^<>]+)</text>", svg) if text[0] in "+-"]
    assert texts == ["-2.5", "-0.625", "-0.1", "+0", "+0.1", "+0.625", "+2.5"]


def test_hostile_titles_do_no_harm() -> None:
    title = "</text><script>alert('1')</script> & \" \x00\x1b\x0b\ufffe\udcff ]]>"
    svg = to_heatmap(SMALL, table(SMALL), title)
    svg.encode("utf-8")
    root = ElementTree.fromstring(svg)
    assert {element.tag.removeprefix(SVG) for element in root.iter()} == {
        "svg", "rect", "text", "image", "path",
    }  # fmt: skip
    first = next(root.iter(f"{SVG}text"))
    assert first.text == "</text><script>alert('1')</script> & \"  ]]>"


def test_gpt2_small_is_one_picture() -> None:
    graph = ModelGraph(12, 12, 12)
    scores = table(graph)
    assert scores.shape == (157, 445)
    svg = to_heatmap(graph, scores, "GPT-2 small")
    assert len(list(ElementTree.fromstring(svg).iter())) < 500, "not an element for each cell"
    assert len(svg) < 2_000_000
    cells = cells_of(svg, graph)
    edges = numpy.array(list(graph.edges()))
    blue = cells[edges[:, 0], edges[:, 1]].astype(int)
    assert ((blue[:, 2] >= blue[:, 0]) == (scores[edges[:, 0], edges[:, 1]] >= 0)).mean() > 0.99


@pytest.mark.skipif(shutil.which("rsvg-convert") is None, reason="needs rsvg-convert")
def test_a_program_draws_what_was_meant() -> None:
    svg = to_heatmap(SMALL, table(SMALL), "scores <&>")
    command = ["rsvg-convert", "--background-color=white"]
    drawn = subprocess.run(command, input=svg.encode(), capture_output=True, check=False)
    assert (drawn.returncode, drawn.stderr) == (0, b"")
    assert drawn.stdout[:8] == b"\x89PNG\r\n\x1a\n"
    image = pytest.importorskip("matplotlib.image")
    picture = (image.imread(io.BytesIO(drawn.stdout), format="png")[..., :3] * 255).round()
    found = ElementTree.fromstring(svg).find(f"{SVG}image")
    assert found is not None
    left, top = int(found.attrib["x"]), int(found.attrib["y"])
    cells = cells_of(svg, SMALL)
    cell = int(found.attrib["height"]) // len(SMALL.writers)
    middles = [
        picture[top + cell * row + cell // 2, left + cell * column + cell // 2]
        for row in range(len(SMALL.writers))
        for column in range(len(SMALL.readers))
    ]
    assert numpy.abs(numpy.array(middles) - cells.reshape(-1, 3)).max() <= 2
