"""What diagrams show: which edges, merged how, in which boxes; and that they are always drawn."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import circuits_for_tests as by_hand
import pytest
from circuits_for_tests import CIRCUITS, HOSTILE

from wiremap.circuits import Circuit, CircuitEdge
from wiremap.edges import InputError, ModelGraph, WiremapError
from wiremap.exporters import View, read_groups, write_circuit
from wiremap.exporters.pictures import graphviz as picture
from wiremap.exporters.pictures.dot import to_dot
from wiremap.exporters.pictures.drawing import to_svg
from wiremap.exporters.pictures.graphviz import draw
from wiremap.exporters.pictures.layout import positions
from wiremap.exporters.pictures.mermaid import to_mermaid
from wiremap.exporters.pictures.shown import Shown, ShownEdge, show

needs_dot = pytest.mark.skipif(
    shutil.which("dot") is None, reason="needs the dot program of Graphviz"
)
GROUPS: Mapping[str, Sequence[str]] = {"early": ["a0.h0", "m0"], HOSTILE: ["a1.h1", "a1.h0"]}
VIEWS = {
    "default": View(),
    "merge": View(qkv="merge"),
    "nodes": View(qkv="nodes"),
    "layers": View(collapse="layers"),
    "boxes": View(groups=GROUPS),
    "groups": View(groups=GROUPS, collapse="groups"),
    "top": View(top=2),
}


def wide(n_edges: int) -> Circuit:
    """A circuit of that many edges of a model of GPT-2's shape; magnitudes all differ."""
    shape = ModelGraph(12, 12, 12)
    every = list(shape.edges())
    chosen = [every[number * len(every) // n_edges] for number in range(n_edges)]
    edges: list[CircuitEdge] = []
    for number, edge in enumerate(chosen):
        reader = shape.readers[edge.reader]
        slot = reader.kind if reader.kind in ("q", "k", "v") else None
        worth = (number + 1.0) * (-1) ** number
        edges.append(CircuitEdge(shape.writers[edge.writer].name, reader.node, slot, score=worth))
    return Circuit.build(shape, edges)


def shown_edges(shown: Shown) -> dict[str, ShownEdge]:
    return {edge.name: edge for edge in shown.edges}


# ---- views


def test_merged_edges_add_up() -> None:
    shown = show(by_hand.circuit(), View(), "merge")
    edges = shown_edges(shown)
    assert set(edges) == {
        "input->a0.h0<v>", "input->m0", "a0.h0->a1.h1<q,k>", "m0->logits", "a1.h1->logits",
    }  # fmt: skip
    merged = edges["a0.h0->a1.h1<q,k>"]
    assert merged.worth == -0.75 + 0.25
    assert not merged.verified
    assert edges["m0->logits"].verified


def test_inputs_of_heads_as_nodes() -> None:
    shown = show(by_hand.circuit(), View(), "nodes")
    names = [node.name for node in shown.nodes]
    assert names == [
        "input", "a0.h0.v", "a0.h0", "m0", "a1.h1.q", "a1.h1.k", "a1.h1", "logits",
    ]  # fmt: skip
    internal = [(edge.source, edge.target) for edge in shown.edges if edge.kind == "internal"]
    assert internal == [("a0.h0.v", "a0.h0"), ("a1.h1.q", "a1.h1"), ("a1.h1.k", "a1.h1")]


def test_the_top_edges_are_those_of_largest_magnitude() -> None:
    shown = show(by_hand.circuit(), View(top=2), "parallel")
    assert set(shown_edges(shown)) == {"input->a0.h0<v>", "m0->logits"}
    assert {node.name for node in shown.nodes} == {"input", "a0.h0", "m0", "logits"}
    assert [node.score for node in shown.nodes] == [-2.0, None, 0.5, None]


def test_heads_of_a_layer_become_one_node() -> None:
    shown = show(wide(2000), View(collapse="layers"), "parallel")
    names = {node.name for node in shown.nodes}
    assert names == {"input", "logits", *(f"{part}{layer}" for part in "am" for layer in range(12))}
    assert sum(len(edge.members) for edge in shown.edges) == 2000
    ends = [(edge.source, edge.target) for edge in shown.edges]
    assert len(set(ends)) == len(ends)


def test_shared_heads_join_their_layer_without_an_edge_inside() -> None:
    shown = show(by_hand.grouped(), View(collapse="layers"), "parallel")
    assert set(shown_edges(shown)) == {"input->a0<v>", "a0->logits"}
    (layer,) = [node for node in shown.nodes if node.kind == "attention"]
    assert layer.members == ("a0.kv1", "a0.h2", "a0.h3")


def test_a_group_becomes_one_node_and_edges_inside_are_counted() -> None:
    groups = {"early": ["a0.h0", "input"], "late": ["a1.h1", "logits"]}
    shown = show(by_hand.circuit(), View(groups=groups, collapse="groups"), "parallel")
    assert set(shown_edges(shown)) == {"early->late<q,k>", "early->m0", "m0->late"}
    assert (shown.n_edges, shown.n_inside) == (4, 2)
    caption = to_dot(by_hand.circuit(), View(groups=groups, collapse="groups"))
    assert "6 of 46 edges, 2 inside a group not drawn" in caption


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"qkv": "all"}, "unknown qkv 'all'; there are merge, nodes, parallel"),
        ({"collapse": "heads"}, "unknown collapse 'heads'; there are qkv, layers, groups"),
        ({"top": 0}, "top: expected at least 1 edge, got 0"),
        ({"collapse": "layers", "qkv": "nodes"}, "give one of the two"),
        ({"collapse": "groups"}, r"expected groups to collapse; name them \(--group"),
        ({"groups": {"a": ["m0"], "b": ["m0"]}}, "expected a node in one group, got 'm0' in 'a'"),
    ],
)
def test_contradictory_views_are_refused(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        View(**choices)


def test_groups_of_strangers_are_refused() -> None:
    with pytest.raises(InputError, match=r"groups: 'a7\.h0' is no node of this model"):
        to_dot(by_hand.circuit(), View(groups={"movers": ["a7.h0"]}))
    with pytest.raises(InputError, match="groups: 'm1' is a node of this model; name the group"):
        to_dot(by_hand.circuit(), View(groups={"m1": ["a0.h0"]}))
    assert "movers" not in to_dot(by_hand.circuit(), View(groups={"movers": ["a0.h1"]}))


def test_formats_without_a_choice_say_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="json has no choice of qkv: formats that have are dot"):
        write_circuit(by_hand.circuit(), tmp_path / "c.json", "json", View(qkv="merge"))
    with pytest.raises(InputError, match=r"\.graphml has no choice of top: formats that have"):
        write_circuit(by_hand.circuit(), tmp_path / "c.graphml", view=View(top=3))
    assert not list(tmp_path.iterdir())


# ---- groups of nodes


def test_groups_are_read_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "roles.yaml"
    path.write_text("name movers: [a9.h6, a9.h9]\n'yes':\n  - m0\n")
    assert read_groups(path) == {"name movers": ("a9.h6", "a9.h9"), "yes": ("m0",)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected roles with lists of nodes, .* got NoneType"),
        ("- a", "expected roles with lists of nodes, .* got list"),
        ("a: [m0", "expected YAML: while parsing"),
        ("yes: [m0]", "expected names of roles, got True; put it between quotes"),
        ("movers: m0", "movers: expected a list of nodes, .* got 'm0'"),
        ("movers: []", "movers: expected a list of nodes"),
        ("movers: [1]", r"movers: expected a list of nodes, .* got \[1\]"),
        ("movers: !!python/object/apply:os.getcwd []", "expected YAML: could not determine"),
        ("a: " + "[" * 100_000, "expected YAML"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "b: expected a list of nodes"),
        ("movers: [2026-13-45]", "expected YAML: month must be"),
    ],
    ids=range(11),
)
def test_other_yaml_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "roles.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_groups(path)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 500


# ---- DOT and pictures


@needs_dot
@pytest.mark.parametrize("placed", [False, True], ids=["ranked", "placed"])
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("circuit", [CIRCUITS["hostile"], CIRCUITS["grouped"], CIRCUITS["empty"]])
def test_dot_takes_what_we_write(circuit: Circuit, view: View, placed: bool) -> None:
    if circuit == CIRCUITS["grouped"] and view.groups:
        view = View(collapse=view.collapse, groups={HOSTILE: ["a0.h2", "a0.h3"]})
    source = to_dot(circuit, view, placed)
    assert source == to_dot(circuit, view, placed)
    shown = show(circuit, view, "parallel")
    plain = subprocess.run(
        ["dot", "-Tplain"], input=source.encode(), capture_output=True, check=True
    )
    assert not plain.stderr
    lines = [line.split() for line in plain.stdout.decode().splitlines()]
    nodes = {line[1] for line in lines if line[0] == "node"}
    rows = {name for name in nodes if name.startswith("row")}
    assert len(nodes - rows - {"legend"}) == len(shown.nodes)
    drawn = [line for line in lines if line[0] == "edge" and line[1] not in rows]
    assert len(drawn) == len(shown.edges)


@needs_dot
def test_inputs_stand_below_outputs() -> None:
    for placed in (False, True):
        source = to_dot(wide(300), View(top=300), placed)
        plain = subprocess.run(
            ["dot", "-Tplain"], input=source.encode(), capture_output=True, check=True
        )
        height: dict[str, float] = {}
        for line in plain.stdout.decode().splitlines():
            words = line.split()
            if words[0] == "node":
                height[words[1]] = float(words[3])
        for edge in wide(300).edges:
            assert height[edge.source.replace(".", "_")] < height[edge.target.replace(".", "_")]


@needs_dot
def test_groups_are_boxes_with_their_nodes() -> None:
    root = ElementTree.fromstring(draw(by_hand.circuit(), "svg", View(groups=GROUPS)))
    groups = [g for g in root.iter("{http://www.w3.org/2000/svg}g") if g.get("class") == "cluster"]
    assert len(groups) == 2
    texts = " ".join("".join(group.itertext()) for group in groups)
    assert "early" in texts
    assert "</script>javascript:INF null" in texts


def test_the_largest_edges_are_drawn_and_the_caption_says_so() -> None:
    source = to_dot(wide(250))
    drawn = set(re.findall(r'id="([^"]*)"', source))
    largest = sorted(wide(250).edges, key=lambda edge: -abs(edge.score or 0.0))[:100]
    assert drawn == {edge.name for edge in largest}
    assert "the 100 largest of 250 edges kept of 32,491 edges" in source
    assert "250 of 32,491 edges" in to_dot(wide(250), View(top=250))


def test_many_edges_are_placed_by_us() -> None:
    assert "layout=nop2" not in to_dot(wide(500), View(top=500))
    assert "layout=nop2" in to_dot(wide(501), View(top=501))


@needs_dot
def test_five_thousand_edges_are_drawn_where_we_place_them() -> None:
    """Where dot itself would take ten minutes."""
    assert "layout=nop2" in to_dot(wide(5000), View(top=5000))
    svg = draw(wide(5000), "svg", View(top=5000))
    assert svg.count(b'class="edge') == 5000


def test_a_dot_that_takes_too_long_is_given_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dot that sleeps unless nodes are placed already."""
    slow = tmp_path / "dot"
    slow.write_text(
        "#!/bin/sh\n/bin/grep -q layout=nop2 || exec /bin/sleep 30\nprintf '<svg></svg>'\n"
    )
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(picture, "RENDER_SECONDS", 0.5)
    assert draw(by_hand.circuit(), "svg").endswith(b"</svg>")
    slow.write_text("#!/bin/sh\nexec /bin/sleep 30\n")
    with pytest.raises(
        WiremapError, match=r"longer than 0\.5 s; draw fewer edges \(a smaller --top"
    ):
        draw(by_hand.circuit(), "svg")


@needs_dot
def test_svg_follows_the_readers_scheme() -> None:
    """Every colour in the picture has a dark counterpart, but for greys that do on both."""
    text = draw(by_hand.circuit(), "svg", View(groups=GROUPS)).decode()
    style = text[text.index("<style>") : text.index("</style>")]
    assert style.startswith("<style>@media (prefers-color-scheme: dark)")
    body = text.replace(style, "")
    colors = set(re.findall(r'(?:fill|stroke)="([^"]+)"', re.sub(r"<text[^>]*>", "", body)))
    greys = {"none", "transparent", "black", "#999999", "#aabbcc"}
    assert colors - greys <= set(re.findall(r'="([^"]+)"', style))


def test_signs_are_told_without_colour() -> None:
    """In grey print, dashes tell negative edges, and only those."""
    for line in to_dot(wide(100)).splitlines():
        if 'id="' in line:
            assert ("style=dashed" in line) == ("score -" in line)


@needs_dot
@pytest.mark.parametrize("kind", ["svg", "png", "pdf"])
def test_pictures_are_the_same_at_any_time(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = draw(by_hand.circuit(), kind)
    time.sleep(1.1 if kind == "pdf" else 0)  # PDF has a time in whole seconds
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert draw(by_hand.circuit(), kind) == first


# ---- Mermaid


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_mermaid_has_every_node_and_edge(view: View) -> None:
    circuit = CIRCUITS["hostile"]
    lines = to_mermaid(circuit, view).splitlines()
    shown = show(circuit, view, "merge")
    assert lines[0] == "flowchart BT"
    nodes = [re.fullmatch(r'(n\d+)\["([^"]*)"\]', line) for line in lines]
    ids = [found[1] for found in nodes if found]
    assert ids == [f"n{number}" for number in range(len(shown.nodes))] or view.groups
    assert len(set(ids)) == len(shown.nodes)
    edges = [
        found
        for line in lines
        if (found := re.fullmatch(r"(n\d+) (-->|--o|-\.->|-\.-o|-\.-)(\|[qkv,]+\|)? (n\d+)", line))
    ]
    assert len(edges) == len(shown.edges)
    styled = [line for line in lines if line.startswith("linkStyle")]
    assert [int(line.split()[1]) for line in styled] == [
        number for number, edge in enumerate(shown.edges) if edge.kind == "edge"
    ]
    known = len(nodes) - nodes.count(None) + len(edges) + len(styled)
    boxes = sum(line == "end" or line.startswith("subgraph s") for line in lines)
    assert known + boxes + 3 == len(lines), "and the first line, the title and the legend"


def test_mermaid_tells_sign_and_verification_by_the_arrow() -> None:
    text = to_mermaid(by_hand.circuit())
    assert re.search(r"^n0 -->\|v\| n1$", text, re.MULTILINE)
    assert re.search(r"^n1 -\.-o\|q,k\| n3$", text, re.MULTILINE)
    assert re.search(r"^n3 -\.-> n4$", text, re.MULTILINE)


def test_positions_of_what_is_shown_are_those_of_the_circuit() -> None:
    """The Gephi file and the diagram put nodes in the same places."""
    places = positions(by_hand.circuit())
    source = to_dot(by_hand.circuit(), placed=True)
    for name, (x, y) in places.items():
        line = next(
            line
            for line in source.splitlines()
            if line.strip().startswith(name.replace(".", "_") + " ")
        )
        assert f'pos="{x * 90:.1f},{y * 110:.1f}"' in line


def known_apart() -> Circuit:
    """Of its edges one was verified in the model, one in the circuit alone, and one is only scored."""
    edges = [
        CircuitEdge("input", "m0", score=1.0, effect=2.0, n_pairs=8, loss=1.0),
        CircuitEdge("m0", "m1", score=-1.0, loss=-0.5),
        CircuitEdge("m1", "logits", score=0.5),
    ]
    return Circuit.build(by_hand.SHAPE, edges)


def test_what_is_known_of_an_edge_is_told_by_its_arrow() -> None:
    circuit = known_apart()
    assert [edge.known_by for edge in circuit.edges] == ["verified", "weighed", "scored"]
    source = to_dot(circuit)
    for ends, arrow in (("input -> m0", "normal"), ("m0 -> m1", "diamond"), ("m1 -> l", "onormal")):
        (line,) = [line for line in source.splitlines() if line.strip().startswith(ends)]
        assert f"arrowhead={arrow} " in line
    for text in (source, to_svg(circuit)):
        assert "diamond: verified in the circuit, not in the model" in text
        assert "hollow arrow: scored, not verified" in text
    assert 'marker-end="url(#negative-weighed-wide)"' in to_svg(circuit)
    assert "the circuit loses -0.5 without it" in source
    flowchart = to_mermaid(circuit)
    for link in ("n0 --> n1", "n1 -.-x n2", "n2 --o n3"):
        assert link in flowchart
    assert "diamond" not in to_dot(by_hand.circuit())


def test_edges_drawn_as_one_are_known_as_the_least_of_them_is() -> None:
    edges = [
        CircuitEdge("input", "a0.h0", "q", score=1.0, effect=1.0, n_pairs=1),
        CircuitEdge("input", "a0.h0", "k", score=1.0, loss=0.5),
    ]
    (edge,) = show(Circuit.build(by_hand.SHAPE, edges), View(qkv="merge"), "merge").edges
    assert edge.known_by == "weighed"


def test_the_largest_connections_of_collapsed_layers_are_sums() -> None:
    """Two edges of 2 make a connection larger than one of 3, and opposites cancel out."""
    edges = [
        CircuitEdge("a0.h0", "a1.h0", "q", score=2.0),
        CircuitEdge("a0.h1", "a1.h1", "v", score=2.0),
        CircuitEdge("input", "m0", score=3.0),
        CircuitEdge("a0.h0", "logits", score=9.0),
        CircuitEdge("a0.h1", "logits", score=-9.0),
    ]
    circuit = Circuit.build(by_hand.SHAPE, edges)
    shown = show(circuit, View(collapse="layers", top=1), "merge")
    assert set(shown_edges(shown)) == {"a0->a1<q,v>"}
    assert shown.n_edges == 2
    source = to_dot(circuit, View(collapse="layers", top=1))
    assert "the 1 largest connections, 2 of 5 edges kept of 46 edges" in source
    assert "h0 h1</FONT>" in source, "the heads that the attention of a layer has"
