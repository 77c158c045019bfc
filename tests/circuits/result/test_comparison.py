"""Comparing circuits: figures computed by hand, pictures, refusals."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path

import circuits_for_tests as by_hand
import pytest
import scipy.stats

from wiremap.circuits import Circuit, CircuitEdge, compare
from wiremap.circuits.result.comparison import spearman
from wiremap.edges import InputError, ModelGraph
from wiremap.exporters.pictures.two_circuits import COLOURS, to_comparison_dot, write_comparison

A = Circuit.build(
    by_hand.SHAPE,
    [
        CircuitEdge("input", "m0", score=4.0),
        CircuitEdge("m0", "logits", score=9.0, effect=-2.0, n_pairs=3),
        CircuitEdge("input", "a0.h0", "v", score=1.0),
        CircuitEdge("a0.h0", "logits", score=1.0),
    ],
    {"m0": 1.5},
    method={"metric": "logit_diff"},
)
B = Circuit.build(
    by_hand.SHAPE,
    [
        CircuitEdge("input", "m0", score=3.0),
        CircuitEdge("m0", "logits", score=1.0),
        CircuitEdge("input", "a1.h1", "q", score=2.0),
        CircuitEdge("input", "a1.h1", "k", score=-5.0),
        CircuitEdge("a1.h1", "logits", score=0.5),
    ],
    method={"metric": "kl"},
)


def test_what_is_shared_lost_and_gained() -> None:
    found = compare(A, B)
    assert found.shared_edges == ("input->m0", "m0->logits")
    assert found.lost_edges == ("input->a0.h0<v>", "a0.h0->logits")
    assert found.gained_edges == ("input->a1.h1<q>", "input->a1.h1<k>", "a1.h1->logits")
    assert found.shared_nodes == ("input", "m0", "logits")
    assert (found.lost_nodes, found.gained_nodes) == (("a0.h0",), ("a1.h1",))
    assert found.sign_flips == ("m0->logits",)
    back = compare(B, A)
    assert (back.lost_edges, back.gained_edges) == (found.gained_edges, found.lost_edges)


def test_figures_by_hand() -> None:
    found = compare(A, B)
    assert found.jaccard == 2 / 7
    # |worth| in A: 4 2 1 1 0 0 0, in B: 3 1 0 0 2 5 0.5
    assert found.weighted_jaccard == (3 + 1) / (4 + 2 + 1 + 1 + 2 + 5 + 0.5)
    # ranks in A: 7 6 4.5 4.5 2 2 2, in B: 6 4 1.5 1.5 5 7 3; less their mean, 4:
    a, b = [3, 2, 0.5, 0.5, -2, -2, -2], [2, 0, -2.5, -2.5, 1, 3, -1]
    products = sum(x * y for x, y in zip(a, b, strict=True))
    expected = products / (sum(x * x for x in a) * sum(x * x for x in b)) ** 0.5
    assert found.rank_correlation == pytest.approx(expected)
    units, measured = found.notes
    assert units == "worth is in units of logit_diff in A and of kl in B"
    assert measured.startswith("worth is a measured effect for 1 of 4 edges in A and 0 of 5 in B")


def test_a_circuit_is_like_itself_and_unlike_nothing() -> None:
    same = compare(A, A)
    assert (same.jaccard, same.weighted_jaccard, same.rank_correlation) == (
        1.0, 1.0, pytest.approx(1.0),
    )  # fmt: skip
    empty = Circuit.build(by_hand.SHAPE, [])
    found = compare(A, empty)
    assert (found.jaccard, found.weighted_jaccard, found.rank_correlation) == (0.0, 0.0, None)
    nothing = compare(empty, empty)
    assert (nothing.jaccard, nothing.weighted_jaccard, nothing.rank_correlation) == (None,) * 3


def test_edges_of_no_known_worth_are_counted_but_not_weighed() -> None:
    found = compare(A, Circuit.build(by_hand.SHAPE, [CircuitEdge("input", "m0")]))
    assert found.jaccard == 1 / 4
    assert (found.weighted_jaccard, found.rank_correlation) == (None, None)
    assert "1 edges of B say no worth: nothing is weighed or ranked" in found.notes


def test_spearman_is_scipys() -> None:
    rng = random.Random(0)
    for _ in range(20):
        one, other = ([rng.choice([0.0, 1.0, rng.random()]) for _ in range(9)] for _ in range(2))
        assert spearman(one, other) == pytest.approx(scipy.stats.spearmanr(one, other)[0])
    assert spearman([1.0, 1.0], [0.0, 2.0]) is None
    assert spearman([], []) is None


def test_other_shapes_are_refused_by_name() -> None:
    other = Circuit.build(ModelGraph(2, 4, 2), [])
    with pytest.raises(InputError, match="of one shape, got n_heads 2 and 4; edges of different"):
        compare(A, other)


# ---- pictures


def test_the_diagram_is_coloured_by_membership() -> None:
    comparison = compare(A, B)
    source = to_comparison_dot(comparison, names=("mine", 'yours"\\n'))
    for name, where in comparison.membership().items():
        (line,) = re.findall(rf'.*(?:id="{re.escape(name)}"|\[label="?{re.escape(name)}"?[ \]]).*', source)  # fmt: skip
        assert f'color="{COLOURS[where]}"' in line
        assert f"class={where}" in line
    assert "2 edges shared (solid), 2 in mine alone" in source
    assert "are drawn" not in source
    few = to_comparison_dot(comparison, top=2)
    assert re.findall(r'id="(.*?)"', few) == ["input->m0", "input->a1.h1<k>"]
    assert "3 in B alone (green, dotted); the 2 largest are drawn" in few
    assert to_comparison_dot(compare(by_hand.grouped(), by_hand.grouped())).count("dir=none") == 2


@pytest.mark.skipif(shutil.which("dot") is None, reason="needs the dot program of Graphviz")
def test_pictures_are_drawn(tmp_path: Path) -> None:
    write_comparison(compare(A, B), tmp_path / "both.svg", names=("<a&b>", "b\x00"))
    drawn = (tmp_path / "both.svg").read_text()
    for name in ("a1.h1", "m0", "&lt;a&amp;b&gt;"):
        assert name in drawn
    assert all(colour in drawn for colour in COLOURS.values())


def test_other_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a .dot, .svg, .png or .pdf file"):
        write_comparison(compare(A, B), tmp_path / "both.json")
