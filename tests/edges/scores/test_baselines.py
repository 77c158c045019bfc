"""The baselines against the same algorithms written out over single patch_nodes calls."""

from __future__ import annotations

import math
from itertools import compress, pairwise

import pytest
import tiny
import torch
from torch import Tensor

from wiremap.edges import InputError, Model, PromptPairs, patch_nodes
from wiremap.edges.effects.bounds import draw_subsets
from wiremap.edges.names.nodes import NodeSet
from wiremap.edges.names.vocabulary import BASELINES
from wiremap.edges.question.metrics import Targets
from wiremap.edges.scores.baselines import Ranking, rank_nodes


def names_of(model: Model, families: tuple[str, ...] = ("heads", "mlps")) -> list[str]:
    return list(NodeSet(model.graph, model.d_mlp, families).names)


def joint(model: Model, pairs: PromptPairs, groups: list[list[str]]) -> list[float]:
    return patch_nodes(model, pairs, groups).mean().abs().tolist()


def assert_sorted(ranking: Ranking) -> None:
    """Every node once, and where scores rank, sorting them by magnitude gives the order."""
    assert sorted(ranking.order) == list(range(len(ranking.scores.nodes)))
    assert len(ranking.costs) == len(ranking.order)
    by_score = ranking.scores.scores.abs().argsort(descending=True, stable=True).tolist()
    assert list(ranking.order) == by_score
    assert ranking.scores.unsigned
    assert [name for name, _ in ranking.scores.top()] == [
        ranking.scores.names[index] for index in ranking.order
    ]


def test_iterative_patches_one_at_a_time_in_random_order(kind: str) -> None:
    model, pairs = tiny.model(kind), tiny.pairs(3)
    found = rank_nodes(model, pairs, method="iterative", seed=3)
    exact = patch_nodes(model, pairs, names_of(model))
    torch.testing.assert_close(found.scores.scores, exact.mean())
    torch.testing.assert_close(found.scores.contributions, exact.effects.abs().mean(1))
    assert not found.scores.unsigned
    assert sorted(found.order) == list(range(len(exact.names)))
    assert list(found.order) != sorted(found.order)
    assert set(found.costs) == {0}
    assert found.order == rank_nodes(model, pairs, method="iterative", seed=3).order
    assert found.order != rank_nodes(model, pairs, method="iterative", seed=4).order


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_subsampling_is_the_difference_of_means(kind: str, direction: str) -> None:
    model, pairs, names = tiny.model(kind), tiny.pairs(3), names_of(tiny.model(kind))
    found = rank_nodes(model, pairs, direction=direction, n_samples=40, probability=0.15, seed=2)
    members = draw_subsets(40, len(names), 0.15, seed=2)
    subsets = [list(compress(names, row.tolist())) for row in members]
    values = patch_nodes(model, pairs, subsets, direction=direction).mean()
    expected = [
        abs(float(values[chosen].mean() - values[~chosen].mean())) if chosen.any() else 0.0
        for chosen in members.T
    ]
    torch.testing.assert_close(found.scores.scores, torch.tensor(expected), rtol=1e-3, atol=1e-4)
    assert found.scores.method == "subsampling"
    assert set(found.costs) == {40}
    assert_sorted(found)


def test_subsampling_ranks_nodes_never_drawn_last() -> None:
    model, pairs = tiny.model("gpt2"), tiny.pairs(2)
    found = rank_nodes(model, pairs, n_samples=4, probability=0.05)
    never = ~draw_subsets(4, len(found.order), 0.05, seed=0).any(0)
    assert 5 < int(never.sum()) < len(never)
    assert bool((found.scores.scores[never] == 0).all())
    assert set(found.order[-int(never.sum()) :]) >= set(never.nonzero().flatten().tolist()[-3:])
    assert_sorted(found)


def test_subsampling_of_heads_that_add_up_finds_their_effects() -> None:
    """One layer's heads of a linear model, as sets over which effects are additive."""
    model, pairs = tiny.linear_model(), tiny.pairs(4)
    found = rank_nodes(model, pairs, "mlps", n_samples=4000, probability=0.001, seed=1)
    exact = patch_nodes(model, pairs, names_of(model, ("mlps",))).mean().abs()
    drawn = draw_subsets(4000, 3, 0.001, seed=1)
    alone = (drawn.sum(1) <= 1).all()
    assert bool(alone)  # then every subset is a single node or none
    assert bool(drawn.any(0).all())
    torch.testing.assert_close(found.scores.scores, exact, rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("block_size", [None, 1, 4, 5])
def test_blocks(block_size: int | None) -> None:
    model, pairs, names = tiny.model("gpt2"), tiny.pairs(3), names_of(tiny.model("gpt2"))
    n_nodes = len(names)
    size = block_size or math.ceil(n_nodes**0.5)
    blocks = [names[start : start + size] for start in range(0, n_nodes, size)]
    effects = joint(model, pairs, blocks)
    by_effect = sorted(range(len(blocks)), key=lambda block: -effects[block])
    found = rank_nodes(model, pairs, method="blocks", block_size=block_size)
    visited = [found.scores.names[index] for index in found.order]
    assert visited == [name for block in by_effect for name in blocks[block]]
    assert_sorted(found)
    alone, expected = 0, list[int]()
    for block in by_effect:
        for _ in blocks[block]:
            alone += len(blocks[block]) == 1
            expected.append(len(blocks) - alone)
    assert list(found.costs) == expected


@pytest.mark.parametrize(
    ("kind", "branching"), [("gpt2", 2), ("llama-gqa", 3), ("neox-sequential", 8), ("neox", 1000)]
)
def test_hierarchical_is_best_first_search(kind: str, branching: int) -> None:
    """The same search written out, with all groups measured beforehand."""
    model, pairs, names = tiny.model(kind), tiny.pairs(2), names_of(tiny.model(kind))

    def parts(group: tuple[int, int]) -> list[tuple[int, int]]:
        start, stop = group
        n = min(branching, stop - start)
        cuts = [start + (stop - start) * part // n for part in range(n + 1)]
        return list(pairwise(cuts))

    groups: list[tuple[int, int]] = []
    todo = [(0, len(names))]
    while todo:
        children = parts(todo.pop())
        groups += children
        todo += [group for group in children if group[1] - group[0] > 1]
    effects = dict(
        zip(groups, joint(model, pairs, [names[slice(*group)] for group in groups]), strict=True)
    )
    open_groups = parts((0, len(names)))
    spent, order, costs = len(open_groups), list[int](), list[int]()
    while open_groups:
        best = max(open_groups, key=lambda group: effects[group])
        open_groups.remove(best)
        if best[1] - best[0] == 1:
            order.append(best[0])
            costs.append(spent - len(order))
        else:
            open_groups += parts(best)
            spent += len(parts(best))

    rows: list[int] = []
    found = rank_nodes(
        model,
        pairs,
        method="hierarchical",
        branching=branching,
        progress=lambda _, n, total: rows.append(n),
    )
    assert list(found.order) == order
    assert list(found.costs) == costs
    assert sum(rows) == spent * len(pairs)
    assert found.costs[-1] + len(names) == spent  # verifying all costs no more than was patched
    assert_sorted(found)
    for index in order[:: max(1, len(order) // 5)]:
        above = [effect for (start, stop), effect in effects.items() if start <= index < stop]
        assert float(found.scores.scores[index]) == pytest.approx(min(above), rel=1e-3, abs=1e-5)


def test_nodes_that_are_worth_nothing_keep_their_order() -> None:
    def nothing(logits: Tensor, targets: Targets) -> Tensor:
        return 0 * logits[:, 0]

    model, pairs = tiny.model("gpt2"), tiny.pairs(2)
    for method in BASELINES[1:]:
        found = rank_nodes(model, pairs, "writers", method=method, metric=nothing)
        assert list(found.order) == list(range(len(found.order)))
        assert_sorted(found)


@pytest.mark.parametrize("method", BASELINES)
def test_positions_each(method: str) -> None:
    model, pairs = tiny.model("gpt2"), tiny.pairs(2)
    found = rank_nodes(model, pairs, "mlps", method=method, positions="each", n_samples=30)
    assert len(found.order) == 3 * 7
    assert found.scores.names[:2] == ("m0@0", "m0@1")
    if method == "iterative":
        exact = patch_nodes(model, pairs, ["m1@4"]).mean()
        torch.testing.assert_close(found.scores.scores[7 + 4], exact[0])
    else:
        assert_sorted(found)


@pytest.mark.parametrize("method", BASELINES)
def test_the_same_seed_gives_the_same_ranking_in_any_batches(method: str) -> None:
    model, pairs = tiny.model("gpt2"), tiny.pairs(3)
    first, again, in_parts = (
        rank_nodes(model, pairs, "writers", method=method, n_samples=30, batch_size=batch_size)
        for batch_size in (None, None, 5)
    )
    assert torch.equal(first.scores.scores, again.scores.scores)
    assert first.order == again.order == in_parts.order
    assert first.costs == again.costs == in_parts.costs


def test_a_single_node_is_ranked() -> None:
    hf = tiny.hf_model("gpt2", n_layer=1)
    model, pairs = Model(tiny.bridge(hf), name="one layer"), tiny.pairs(2)
    for method in ("iterative", "blocks", "hierarchical"):
        found = rank_nodes(model, pairs, "mlps", method=method)
        assert found.order == (0,)
        assert found.costs == (0,)


def test_bad_options_are_refused() -> None:
    model, pairs = tiny.model("gpt2"), tiny.pairs(2)
    n_nodes = len(names_of(model))
    with pytest.raises(InputError, match="unknown method 'magic'; there are iterative, subsamp"):
        rank_nodes(model, pairs, method="magic")
    with pytest.raises(InputError, match="expected families of nodes among"):
        rank_nodes(model, pairs, "arms")
    for n_samples in (1, 0, -3):
        with pytest.raises(InputError, match="expected at least 2 samples"):
            rank_nodes(model, pairs, n_samples=n_samples)
    for probability in (0.0, 1.0, float("nan")):
        with pytest.raises(InputError, match="expected a probability"):
            rank_nodes(model, pairs, probability=probability)
    for block_size in (0, -1, n_nodes + 1):
        with pytest.raises(InputError, match=f"block size of 1 to {n_nodes}"):
            rank_nodes(model, pairs, method="blocks", block_size=block_size)
    for branching in (1, 0):
        with pytest.raises(InputError, match="expected a branching of at least 2"):
            rank_nodes(model, pairs, method="hierarchical", branching=branching)
    with pytest.raises(InputError, match="unknown direction"):
        rank_nodes(model, pairs, direction="sideways")
    with pytest.raises(InputError, match="unknown metric"):
        rank_nodes(model, pairs, metric="nonsense")
