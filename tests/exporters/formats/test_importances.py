"""importances.json: read back by a reader written from its published schema alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pytest

from wiremap.edges import InputError, ModelGraph
from wiremap.exporters.formats.eap_ig import write_importances

SMALL = ModelGraph(2, 3, 3)


class Importances(NamedTuple):
    """What EAP-IG's ``Graph.from_json`` takes from a file."""

    cfg: dict[str, Any]
    nodes: dict[str, bool]
    edges: dict[str, tuple[float, bool]]


def read(path: Path) -> Importances:
    """Every key that its reader needs must be there, of the right type, and strict JSON."""

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    def once(items: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in items}) == len(items), "a key twice"
        return dict(items)

    found = json.loads(
        path.read_bytes().decode("utf-8"), parse_constant=refuse, object_pairs_hook=once
    )
    assert list(found) == ["cfg", "nodes", "edges"]
    assert {name: type(value) for name, value in found["cfg"].items()} == {
        "n_layers": int, "n_heads": int, "parallel_attn_mlp": bool, "d_model": int,
    }  # fmt: skip
    for node in found["nodes"].values():
        assert list(node) == ["in_graph"]
        assert type(node["in_graph"]) is bool
    for edge in found["edges"].values():
        assert set(edge) == {"score", "in_graph"}
        assert type(edge["score"]) is float
        assert type(edge["in_graph"]) is bool
    return Importances(
        found["cfg"],
        {name: node["in_graph"] for name, node in found["nodes"].items()},
        {name: (edge["score"], edge["in_graph"]) for name, edge in found["edges"].items()},
    )


def names_of(n_layers: int, n_heads: int, parallel: bool) -> tuple[list[str], list[str]]:
    """Nodes and edges that EAP-IG makes of such a model; edges without order."""
    nodes, edges = ["input"], list[str]()
    for layer in range(n_layers):
        heads = [f"a{layer}.h{head}" for head in range(n_heads)]
        edges += [f"{node}->{head}<{slot}>" for node in nodes for head in heads for slot in "qkv"]
        edges += [f"{node}->m{layer}" for node in (nodes if parallel else [*nodes, *heads])]
        nodes += [*heads, f"m{layer}"]
    return [*nodes, "logits"], edges + [f"{node}->logits" for node in nodes]


def by_place(graph: ModelGraph, writer: int, reader: int) -> float:
    """A score unlike all others, of either sign."""
    return (-1) ** (writer + reader) * math.exp(writer - 2 * reader) / 3


def files(path: Path) -> list[str]:
    return [found.name for found in path.iterdir()]


@pytest.mark.parametrize("parallel", [False, True])
def test_every_edge_is_there_by_its_name_with_its_score(tmp_path: Path, parallel: bool) -> None:
    graph, file = ModelGraph(2, 3, 3, parallel), tmp_path / "importances.json"
    write_importances(file, graph, 24, lambda writer, reader: by_place(graph, writer, reader))
    found = read(file)
    assert found.cfg == {
        "n_layers": 2, "n_heads": 3, "parallel_attn_mlp": parallel, "d_model": 24,
    }  # fmt: skip
    nodes, edges = names_of(2, 3, parallel)
    assert list(found.nodes) == nodes
    assert set(found.edges) == set(edges)
    assert not any(found.nodes.values())
    for name, (score, in_graph) in found.edges.items():
        assert score == by_place(graph, *graph.edge(name))
        assert not in_graph
    assert files(tmp_path) == ["importances.json"]


def test_edges_are_in_the_order_of_the_graph(tmp_path: Path) -> None:
    file = tmp_path / "importances.json"
    write_importances(file, SMALL, 24, lambda writer, reader: 0.0)
    assert list(read(file).edges) == [SMALL.edge_name(edge) for edge in SMALL.edges()]


def test_gpt2_small_has_as_many_edges_as_in_the_published_files(tmp_path: Path) -> None:
    graph, file = ModelGraph(12, 12, 12), tmp_path / "importances.json"
    write_importances(file, graph, 768, lambda writer, reader: by_place(graph, writer, reader))
    found = read(file)
    assert len(found.edges) == 32_491
    assert len(found.nodes) == 158
    assert set(found.edges) == set(names_of(12, 12, False)[1])


@pytest.mark.parametrize(
    "value", [0.1, -0.0, 5e-324, -1.7976931348623157e308, 1 / 3, 1e22, 123456789.0]
)
@pytest.mark.parametrize("kind", [float, numpy.float64])
def test_scores_are_kept_to_the_last_bit(
    tmp_path: Path, value: float, kind: Callable[[float], float]
) -> None:
    file = tmp_path / "importances.json"
    write_importances(file, SMALL, 24, lambda writer, reader: kind(value))
    scores = {score.hex() for score, _ in read(file).edges.values()}
    assert scores == {value.hex()}


# ---- refusals


def test_heads_that_share_keys_have_no_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="4 query heads share 2 .* --kv per-query"):
        write_importances(tmp_path / "i.json", ModelGraph(2, 4, 2), 24, lambda w, r: 0.0)
    assert files(tmp_path) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused_and_the_old_file_stays(
    tmp_path: Path, value: float
) -> None:
    file = tmp_path / "importances.json"
    file.write_text("old")
    bad = SMALL.edge("a0.h1->a1.h2<k>")
    with pytest.raises(InputError, match=f"finite scores, got {value} for a0.h1->a1.h2<k>"):
        write_importances(file, SMALL, 24, lambda w, r: value if (w, r) == bad else 1.0)
    assert file.read_text() == "old"
    assert files(tmp_path) == ["importances.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_half_written_is_left(tmp_path: Path, error: type[BaseException]) -> None:
    calls: list[int] = []

    def score(writer: int, reader: int) -> float:
        calls.append(writer)
        if len(calls) == 20:
            raise error
        return 1.0

    with pytest.raises(error):
        write_importances(tmp_path / "importances.json", SMALL, 24, score)
    assert len(calls) == 20
    assert files(tmp_path) == []


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write .*none/i.json: No such file"):
        write_importances(tmp_path / "none" / "i.json", SMALL, 24, lambda writer, reader: 0.0)
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match="cannot write .*taken"):
        write_importances(tmp_path / "taken", SMALL, 24, lambda writer, reader: 0.0)
    assert files(tmp_path) == ["taken"]
