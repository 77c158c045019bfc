"""Names and order of nodes."""

from __future__ import annotations

import pytest

from wiremap.edges import InputError, ModelGraph
from wiremap.edges.names.nodes import FAMILIES, Node, NodeSet, node_name, parse_node

D_MLP = 12  # so that neurons have names of two digits
PLAIN = ModelGraph(n_layers=3, n_heads=4, n_kv_heads=4)
GROUPED = ModelGraph(n_layers=2, n_heads=4, n_kv_heads=2)
GRAPHS = {
    "plain": PLAIN,
    "grouped": GROUPED,
    "one key for all": ModelGraph(n_layers=1, n_heads=3, n_kv_heads=1),
    "parallel": ModelGraph(n_layers=11, n_heads=2, n_kv_heads=2, parallel=True),
}


@pytest.mark.parametrize("n_pos", [None, 11])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_every_name_is_read_back(graph: ModelGraph, family: str, n_pos: int | None) -> None:
    nodes = NodeSet(graph, D_MLP, (family,), n_pos)
    assert len(nodes) > 0
    read_back = [parse_node(graph, D_MLP, name) for name in nodes.names]
    # What a head writes goes by the name of the head.
    assert read_back == [
        node._replace(kind="head" if node.kind == "write" else node.kind) for node in nodes.nodes()
    ]
    assert len(set(nodes.names)) == len(nodes)


def test_names_and_order_of_a_small_model() -> None:
    graph = ModelGraph(n_layers=2, n_heads=2, n_kv_heads=1)
    nodes = NodeSet(graph, 2, tuple(FAMILIES))
    assert " ".join(nodes.names) == (
        "input r0 a0.h0<q> a0.h1<q> a0.kv0<k> a0.kv0<v> a0.h0 a0.h1 m0.n0 m0.n1 m0 "
        "r1 a1.h0<q> a1.h1<q> a1.kv0<k> a1.kv0<v> a1.h0 a1.h1 m1.n0 m1.n1 m1"
    )
    each = NodeSet(graph, 1, ("mlps", "neurons"), 2)
    assert " ".join(each.names) == "m0.n0@0 m0.n0@1 m0@0 m0@1 m1.n0@0 m1.n0@1 m1@0 m1@1"
    ungrouped = NodeSet(ModelGraph(n_layers=1, n_heads=1, n_kv_heads=1), 1, ("heads",))
    assert ungrouped.names == ("a0.h0<q>", "a0.h0<k>", "a0.h0<v>", "a0.h0")


@pytest.mark.parametrize(
    ("family", "kinds"),
    [
        ("writers", {"input", "write", "mlp"}),
        ("heads", {"q", "k", "v", "head"}),
        ("mlps", {"mlp"}),
        ("neurons", {"neuron"}),
        ("residual", {"resid"}),
    ],
)
def test_families_hold_their_kinds(family: str, kinds: set[str]) -> None:
    nodes = list(NodeSet(PLAIN, D_MLP, (family,)).nodes())
    assert {node.kind for node in nodes} == kinds
    for kind in kinds - {"input"}:
        assert {node.layer for node in nodes if node.kind == kind} == {0, 1, 2}


def test_families_that_overlap_name_no_node_twice() -> None:
    names = NodeSet(PLAIN, D_MLP, ("writers", "heads", "mlps")).names
    assert len(set(names)) == len(names)
    assert set(names) == {
        name
        for family in ("writers", "heads", "mlps")
        for name in NodeSet(PLAIN, D_MLP, (family,)).names
    }


@pytest.mark.parametrize("n_pos", [None, 3])
@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_slices_and_length_agree_with_the_names(graph: ModelGraph, n_pos: int | None) -> None:
    nodes = NodeSet(graph, D_MLP, tuple(FAMILIES), n_pos)
    n_of_a_layer = 2 * graph.n_heads + 2 * graph.n_kv_heads + D_MLP + 2
    assert len(nodes) == (1 + graph.n_layers * n_of_a_layer) * (n_pos or 1)
    assert len(nodes) == len(nodes.names) == len(list(nodes.nodes()))
    stop = 0
    for site, part in zip(nodes.sites, nodes.slices, strict=True):
        assert part.start == stop
        stop = part.stop
        positions = [None] if n_pos is None else range(n_pos)
        expected = [
            Node(site.kind, site.layer, entry, position)
            for entry in range(site.n)
            for position in positions
        ]
        assert [parse_node(graph, D_MLP, name) for name in nodes.names[part]] == expected
    assert stop == len(nodes)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("a0.h7", "did you mean a0.h3"),
        ("a0.h1<o>", "did you mean a0.h1<"),
        ("a3.h0", "did you mean a2.h0"),
        ("m3", "did you mean m2"),
        ("r3", "did you mean r2"),
        ("inputs", "did you mean input"),
        ("a0.h01", "did you mean a0.h1"),
        ("A0.h1", "did you mean a0.h1"),
        ("a0.h7@2", "did you mean a0.h3"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_node(PLAIN, D_MLP, name)
    message = str(caught.value)
    assert f"unknown node {name!r} in a model of 3 layers with 4 heads each" in message
    assert hint in message


@pytest.mark.parametrize(
    "name",
    [
        "", "logits", "a0", "a0.h", "m0.n12", "m0.n", "m00", "m0.n01", "m0@", "m0@01", "m0@-1",
        "m0@1@2", "input@x", "input0", "r", " m0", "m0\n", "a0.h1<q", "a0.h1<q>k", "m0<q>", "m\u0660",
        "a0.h1->m1",
    ],
)  # fmt: skip
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="unknown node"):
        parse_node(PLAIN, D_MLP, name)


def test_keys_and_values_are_named_after_the_heads_that_have_them() -> None:
    assert parse_node(PLAIN, D_MLP, "a0.h3<k>") == Node("k", 0, 3)
    assert parse_node(GROUPED, D_MLP, "a0.kv1<v>@5") == Node("v", 0, 1, 5)
    for graph, names, near in (
        (GROUPED, ("a0.h1<k>", "a0.h1<v>"), "a0.kv1<"),
        (PLAIN, ("a0.kv0<k>", "a0.kv0<v>"), "a0.h0<"),
    ):
        for name in names:
            with pytest.raises(InputError, match=f"unknown node '{name}'.*did you mean.* {near}"):
                parse_node(graph, D_MLP, name)
    for name in ("a0.kv0<q>", "a0.kv0", "a0.kv2<k>"):
        with pytest.raises(InputError, match="4 heads and 2 kv heads each"):
            parse_node(GROUPED, D_MLP, name)


def test_a_position_is_part_of_the_name() -> None:
    assert node_name(PLAIN, Node("neuron", 1, 7, 0)) == "m1.n7@0"
    assert parse_node(PLAIN, D_MLP, "m1.n7@0") == Node("neuron", 1, 7, 0)
    assert parse_node(PLAIN, D_MLP, "m1.n7") == Node("neuron", 1, 7, None)


@pytest.mark.parametrize("families", [(), ("head",), ("heads", "edges")])
def test_unknown_families_are_refused(families: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="expected families of nodes among writers, heads, mlps"):
        NodeSet(PLAIN, D_MLP, families)
