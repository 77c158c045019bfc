"""Any circuit comes back from any format; anything else is refused, quickly, and nothing is fetched."""

from __future__ import annotations

import gzip
import io
import math
import os
import re
import socket
import sys
import zipfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import circuits_for_tests as by_hand
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wiremap.circuits import Circuit, CircuitEdge, Faithfulness
from wiremap.circuits.result.document import dumps, to_document
from wiremap.edges import InputError, ModelGraph
from wiremap.edges.names.vocabulary import QKV
from wiremap.exporters import FORMATS, View, read_circuit, write_circuit
from wiremap.exporters.hypotheses import read_claim
from wiremap.exporters.pictures.dot import to_dot
from wiremap.exporters.pictures.mermaid import to_mermaid
from wiremap.exporters.pictures.shown import show
from wiremap.exporters.registry import decode

# beartype, which checks annotations in tests, looks at random items of containers.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

READ_BACK = [name for name, known in FORMATS.items() if known.loses is not None]
MODELLESS = {"eap-ig", "edges-csv"}
"""Formats that lose what a circuit says of model, task and method."""


def settled(max_examples: int) -> settings:
    """The same examples every time, however slow the machine."""
    return settings(
        max_examples=max_examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )


# ---- strategies

numbers = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(
    [0.0, -0.0, 5e-324, 1e308, -1e308, 1e-30]
)
intervals = st.tuples(numbers, numbers).map(lambda ends: (min(ends), max(ends)))
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
described = st.dictionaries(st.text(max_size=10), plain, max_size=3)


@st.composite
def circuits(draw: st.DrawFn, shared: bool = True) -> Circuit:
    kv_heads = draw(st.integers(1, 3))
    group = draw(st.integers(1, 2)) if shared else 1
    shape = ModelGraph(draw(st.integers(1, 3)), kv_heads * group, kv_heads, draw(st.booleans()))
    chosen = draw(st.lists(st.sampled_from(list(shape.edges())), max_size=12, unique=True))
    edges: list[CircuitEdge] = []
    for place in chosen:
        reader = shape.readers[place.reader]
        slot = reader.kind if reader.kind in ("q", "k", "v") else None
        edge = CircuitEdge(
            shape.writers[place.writer].name,
            reader.node,
            slot,
            score=draw(st.none() | numbers),
            inclusion=draw(st.none() | st.floats(0, 1)),
            loss=draw(st.none() | numbers),
        )
        if draw(st.booleans()):
            edge = replace(
                edge,
                effect=draw(numbers),
                standard_error=draw(st.none() | numbers.map(abs)),
                n_pairs=draw(st.integers(1, 2**31 - 1)),
                interval=draw(st.none() | intervals),
            )
        edges.append(edge)
    circuit = Circuit.build(shape, edges)
    scores = {node.name: draw(numbers) for node in circuit.nodes if draw(st.booleans())}
    measured = st.builds(
        Faithfulness, full=numbers, empty=numbers, circuit=numbers, n_pairs=st.integers(1, 100)
    ).filter(lambda found: found.full != found.empty and math.isfinite(found.faithfulness))
    return Circuit.build(
        shape,
        edges,
        scores,
        model={**draw(described), "d_model": draw(st.integers(1, 10_000))},
        task=draw(described),
        method={**draw(described), "metric": draw(st.text(max_size=20))},
        faithfulness=draw(st.none() | measured),
        evidence=draw(described),
    )


def left(circuit: Circuit, name: str) -> Circuit:
    """What the format says it does not lose (see ``Format.loses``)."""
    scores = {node.name: node.score for node in circuit.nodes if node.score is not None}
    if name == "eap-ig":
        edges = [
            CircuitEdge(edge.source, edge.target, edge.slot, score=edge.worth)
            for edge in circuit.edges
        ]
        return Circuit.build(
            circuit.shape, edges, scores, model={"d_model": circuit.model["d_model"]}
        )
    if name == "edges-csv":
        return Circuit.build(circuit.shape, circuit.edges)
    return circuit


def encoded(circuit: Circuit, name: str, view: View | None = None) -> str:
    return FORMATS[name].encode(circuit, view or View()).decode()


# ---- round trips


@pytest.mark.parametrize("name", READ_BACK)
@settled(40)
@given(data=st.data())
def test_every_circuit_comes_back(name: str, data: st.DataObject) -> None:
    circuit = data.draw(circuits(shared=name != "eap-ig"))
    if name == "edges-csv" and not circuit.edges:
        return
    qkv = data.draw(st.sampled_from([None, *QKV])) if "qkv" in FORMATS[name].shows else None
    text = encoded(circuit, name, View(qkv=qkv))
    found, back = decode(text)
    assert found == name
    assert back == left(circuit, name)
    again = encoded(back, name, View(qkv=qkv))
    assert decode(again)[1] == left(back, name)
    if name not in MODELLESS:
        assert again == text


def test_only_formats_that_say_so_lose_something() -> None:
    assert {name for name in READ_BACK if FORMATS[name].loses} == MODELLESS
    circuit = by_hand.circuit(model={"name": "tiny", "d_model": 8})
    for name in READ_BACK:
        assert (left(circuit, name) == circuit) == (FORMATS[name].loses == "")


@settled(40)
@given(circuit=circuits(), qkv=st.sampled_from(QKV), placed=st.booleans())
def test_every_circuit_can_be_drawn(circuit: Circuit, qkv: str, placed: bool) -> None:
    n_edges = len(show(circuit, View(), qkv).edges)
    n_bridges = sum(edge.kind != "edge" for edge in show(circuit, View(), qkv).edges)
    source = to_dot(circuit, View(qkv=qkv), placed)
    widths = [float(width) for width in re.findall(r" penwidth=([^ ]+) ", source)]
    assert len(widths) == n_edges - n_bridges
    assert all(0.6 <= width <= 5.0 for width in widths)
    assert to_mermaid(circuit, View(qkv=qkv)).count("linkStyle ") == n_edges - n_bridges


# ---- files as such


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_never_written(
    tmp_path: Path, name: str, value: float
) -> None:
    circuit = Circuit.build(by_hand.SHAPE, [replace(by_hand.EDGES[0], score=value)])
    with pytest.raises(InputError, match=r"edges\[0\].score: expected a finite number"):
        write_circuit(circuit, tmp_path / "circuit", name)
    for place in ("model", "task", "method", "evidence"):
        with pytest.raises(InputError, match=f"{place}: expected plain JSON data"):
            write_circuit(by_hand.circuit(**{place: {"a": value}}), tmp_path / "circuit", name)
    assert not list(tmp_path.iterdir())


def test_what_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    odd = replace(by_hand.EDGES[2], n_pairs=3)
    with pytest.raises(InputError, match="a0.h0->a1.h1<k>: expected .* use Circuit.build"):
        write_circuit(Circuit.build(by_hand.SHAPE, [odd]), tmp_path / "circuit.json")
    for ends in ([1.0, 1.5], (1.5, 1.0)):  # no tuple; no interval
        odd = replace(by_hand.EDGES[0])
        object.__setattr__(odd, "interval", ends)
        with pytest.raises(InputError, match="an interval|with low <= high"):
            write_circuit(Circuit.build(by_hand.SHAPE, [odd]), tmp_path / "circuit.json")
    backwards = replace(by_hand.circuit(), edges=by_hand.circuit().edges[::-1])
    with pytest.raises(InputError, match="in the order of computation"):
        write_circuit(backwards, tmp_path / "circuit.json")
    with pytest.raises(
        InputError, match="model: expected plain JSON data: Object of type PosixPath"
    ):
        write_circuit(by_hand.circuit(model={"path": {1: Path()}}), tmp_path / "circuit.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", READ_BACK)
def test_the_content_tells_the_format(tmp_path: Path, name: str) -> None:
    circuit = by_hand.circuit(model={"name": "tiny", "d_model": 8})
    path = tmp_path / "circuit.download"
    write_circuit(circuit, path, name)
    assert read_circuit(path) == left(circuit, name)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as some editors save UTF-8
    assert read_circuit(path) == left(circuit, name)
    path.write_bytes(path.read_text().replace("\n", "\r\n").encode())
    assert read_circuit(path) == left(circuit, name)
    path.write_bytes(path.read_text().encode("utf-16"))
    with pytest.raises(InputError, match="expected UTF-8 text, got byte 0xff at offset 0"):
        read_circuit(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"digraph {}", "got Graphviz DOT, which is not read back"),
        (b"flowchart BT\n", "got a Mermaid flowchart, which is not read back"),
        (b"<?xml version='1.0'?><svg/>", "got an SVG picture"),
        (b"<!doctype html><html></html>", "got a web page"),
        (b"<kml/>", "got other XML"),
        (b"%PDF-1.4", "got a PDF"),
        (b"PK\x03\x04archive", "got a zip archive, as PyTorch writes"),
        (b"\x89PNG\r\n\x1a\n", "expected UTF-8 text, got byte 0x89"),
        (b"hello", "expected JSON"),
        (b'{"nodes": [], "links": []}', "expected a document with format 'wiremap-circuit'"),
        (b'{"format": "wiremap-run"}', "got 'wiremap-run'"),
    ],
)
def test_other_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "circuit.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_circuit(path)
    assert str(path) in str(error.value)


def test_directories_devices_and_pipes_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(InputError, match="expected a file, got a directory or a device"):
            read_circuit(path)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_circuit(tmp_path / "none.json")


def test_files_beyond_all_reason_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "circuit.json"
    with path.open("wb") as file:
        file.truncate(2_000_000_000)
    with pytest.raises(InputError, match="expected at most 1,000,000,000 bytes, got 2,000,000,000"):
        read_circuit(path)


# ---- what others may send


TEXTS = {
    f"{name}-{qkv}": (name, qkv)
    for name in READ_BACK
    for qkv in ([*QKV] if FORMATS[name].shows else [None])
}


@cache
def text_of(case: str) -> str:
    """A circuit in one of the formats, whole."""
    name, qkv = TEXTS[case]
    return encoded(by_hand.circuit(model={"name": "tiny", "d_model": 8}), name, View(qkv=qkv))


SNIPPETS = [
    "", "0", "-1", "1e999", "NaN", "null", "[]", "{}", '"', "<", ">", "&", "\x00", "\n", ",", ";",
    "9" * 400, "true", "a9.h9", "a0.kv0", "<!DOCTYPE x>", "<!--", "]]>", "q,k,v", "\U0001f600",
    "\ud7ff", "logits", "m0", "99999999999999999999", "[" * 2000, "<a>" * 500, '{"a":' * 2000,
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn, text: str) -> str:
    """The text with up to four pieces replaced, left out, repeated or moved."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        stop = start + draw(st.integers(0, 40))
        snippet = draw(
            st.sampled_from(SNIPPETS)
            | st.text(max_size=5)
            | st.just(text[start : start + 200])
            | st.integers(0, len(text)).map(lambda at, text=text: text[at : at + 60])
        )
        text = text[:start] + snippet + text[stop:]
    return text


def refused(text: str) -> bool:
    """Whether a text is refused, in a few words; if not, it gives a circuit. Soon, in any case."""
    message = ""
    with few_steps(200_000 + 5 * len(text)):  # a model of 20,000 heads names each of them twice
        try:
            dumps(to_document(decode(text)[1]))
        except InputError as error:
            message = str(error)
    assert len(message) < 1500
    return bool(message)


@contextmanager
def few_steps(most: int) -> Generator[None]:
    """Fails when more functions than that are called or left, counted so that it cannot hang."""
    steps = 0

    def count(*_: Any) -> None:
        nonlocal steps
        steps += 1
        assert steps <= most, "a reader takes too long"

    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("case", TEXTS)
@settled(120)
@given(data=st.data())
def test_broken_files_are_read_or_refused(case: str, data: st.DataObject) -> None:
    refused(data.draw(mutated(text_of(case))))


@settled(100)
@given(text=st.text() | st.sampled_from(SNIPPETS))
def test_any_text_is_read_or_refused(text: str) -> None:
    for start in (
        "",
        "<graphml ",
        "<gexf>",
        "source,target\n",
        '{"cfg": ',
        '{"multigraph": 1, "graph":',
    ):
        refused(start + text)


@pytest.mark.parametrize("case", [case for case in TEXTS if "merge" in case])
def test_cut_off_files_are_refused(case: str) -> None:
    text = text_of(case).rstrip()
    for length in range(0, len(text), 97):
        assert refused(text[:length])


GRAPHML = '<graphml xmlns="http://graphml.graphdrawing.org/xmlns">'
BOMBS: dict[str, Callable[[], str]] = {
    "entities": lambda: (
        "<?xml version='1.0'?><!DOCTYPE a [<!ENTITY a 'aaaaaaaaaa'>"
        + "".join(
            f"<!ENTITY {b} '{f'&{a};' * 10}'>" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
        )
        + f"]>{GRAPHML}&i;</graphml>"
    ),
    "a file": lambda: (
        f"<!DOCTYPE a [<!ENTITY a SYSTEM 'file:///etc/passwd'>]>{GRAPHML}&a;</graphml>"
    ),
    "a server": lambda: f"<!DOCTYPE a SYSTEM 'http://127.0.0.1:1/a.dtd'>{GRAPHML}</graphml>",
    "an XML of elements": lambda: GRAPHML + "<a>" * 300_000 + "</a>" * 300_000 + "</graphml>",
    "an XML of attributes": lambda: (
        GRAPHML[:-1] + "".join(f' a{i}="1"' for i in range(100_000)) + "/>"
    ),
    "a JSON of lists": lambda: "[" * 300_000 + "]" * 300_000,
    "a JSON of objects": lambda: '{"cfg":' * 300_000,
    "a JSON of digits": lambda: '{"cfg": {"n_layers": ' + "9" * 1_000_000 + "}}",
    "a wide model": lambda: (
        '{"cfg": {"n_layers": 1, "n_heads": 20000, "parallel_attn_mlp": false}, '
        '"nodes": {}, "edges": {"b->logits": {"in_graph": true}}}'
    ),
    "a deep model": lambda: (
        '{"cfg": {"n_layers": 100000, "n_heads": 100000, "parallel_attn_mlp": false}, '
        '"nodes": {}, "edges": {}}'
    ),
    "a long name": lambda: (
        '{"cfg": {"n_layers": 9, "n_heads": 99, "parallel_attn_mlp": false}, '
        '"nodes": {}, "edges": {"' + "a" * 1_000_000 + '->logits": {"in_graph": true}}}'
    ),
    "a long cell": lambda: 'source,target\n"' + "a" * 1_000_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a reader opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert refused(BOMBS[name]())


# ---- files that are no text


def pytorch(entry: str) -> bytes:
    """What torch.save writes is a zip archive of a pickle and tensors."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(entry, b"\x80\x02}q\x00.")
    return made.getvalue()


BINARY: dict[str, tuple[bytes, str]] = {
    "circuit.pt": (pytorch("circuit/data.pkl"), "got a PyTorch file"),
    "circuit.pth": (pytorch("x/version"), "got a PyTorch file"),
    "graph": (pytorch("graph/data.pkl"), "got a PyTorch file"),
    "older.pt": (
        b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
        "got a PyTorch file of the older kind",
    ),
    "circuit.pkl": (b"\x80\x04\x95\x10", "got a Python pickle"),
    "circuit.json": (pytorch("circuit/data.pkl"), "got a PyTorch file"),
}


@pytest.mark.parametrize("read", [read_circuit, read_claim])
@pytest.mark.parametrize("name", BINARY)
def test_pickles_are_never_read_and_help_is_given(
    name: str, read: Callable[[Path], object], tmp_path: Path
) -> None:
    path = tmp_path / name
    content, kind = BINARY[name]
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read(path)
    assert kind in str(error.value)
    assert "wiremap never reads one" in str(error.value)
    assert f"Graph.from_pt('{name}').to_json('{path.stem}.json')" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x93NUMPY\x01\x00v\x00{'descr'", "got an array of numpy"),
        (gzip.compress(b"{}"), "gunzip"),
        ((40).to_bytes(8, "little") + b'{"edge_scores":', "discover --scores"),
    ],
)
def test_other_binary_files_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "circuit.bin"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_circuit(path)
