"""Reduced models whose dropped edges carry values of many prompts, against slow recursion."""

from __future__ import annotations

import pytest
import tiny
import torch
from slow import SlowModel, Writes, total
from torch import Tensor

from wiremap.edges import InputError, Model, ModelGraph
from wiremap.edges.effects.reduced import BASE, masked_logits
from wiremap.edges.effects.resampling import (
    Draws,
    Pool,
    Tree,
    edge_logits,
    refuse_trees,
    tree_logits,
)
from wiremap.edges.names.graph import ROOT
from wiremap.edges.runs.masks import edge_mask, full_mask
from wiremap.edges.runs.memory import BatchSize
from wiremap.edges.runs.trace import run

N_PROMPTS = 6
Kept = set[tuple[str, str]]


def some_edges(slow: SlowModel, share: float, seed: int = 0) -> Kept:
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(len(slow.edges), generator=generator) < share
    return {edge for edge, keep in zip(slow.edges, chosen.tolist(), strict=True) if keep}


def names(kept: Kept) -> list[str]:
    return [f"{writer}->{reader}" for writer, reader in kept]


def pool_of(model: Model, batch_size: int = 4) -> Pool:
    with torch.no_grad():
        return Pool.of(model, tiny.pairs(N_PROMPTS).clean, BatchSize(batch_size), streams=True)


def readers_of(slow: SlowModel, node: str) -> list[str]:
    """What a node's copy reads by; the keys and values of a group are those of its query heads."""
    if node == "logits" or node.startswith("m"):
        return [node]
    layer, head = (int(part) for part in node[1:].split(".h"))
    return list(slow.slot_names(layer, head))


class SlowTree:
    """The tree by recursion: for every copy of a node, a whole run of its own, of which it is taken.

    Draws are made as copies are come across: ``others[path]`` is the prompt of each pair there.
    """

    def __init__(self, slow: SlowModel, kept: Kept, prompts: Tensor, own: Tensor) -> None:
        self.slow, self.kept, self.prompts, self.own = slow, kept, prompts, own
        self.others: dict[tuple[tuple[str, str], ...], Tensor] = {}

    def draw(self, path: tuple[tuple[str, str], ...]) -> Tensor:
        generator = torch.Generator().manual_seed(len(self.others))
        if path not in self.others:
            self.others[path] = torch.randint(
                len(self.prompts), self.own.shape, generator=generator
            )
        return self.others[path]

    def copy(self, node: str, path: tuple[tuple[str, str], ...] = ()) -> Tensor:
        """What the copy of ``node`` at the end of ``path`` writes; for the logits, they."""
        if node == "input":
            return self.slow.embed(self.prompts[self.own])
        other = self.prompts[self.draw(path)]
        other_writes = self.slow.run(other)[1]

        def read(reader: str, writes: Writes) -> Tensor:
            if reader not in readers_of(self.slow, node):
                return total(reader, writes)
            known = {
                name: self.copy(name, (*path, (name, reader)))
                if (name, reader) in self.kept
                else other_writes[name]
                for name in writes
            }
            return total(reader, known)

        logits, writes = self.slow.run(other, read)
        return logits if node == "logits" else writes[node]


def numbered(
    model: Model, tree: Tree, others: dict[tuple[tuple[str, str], ...], Tensor]
) -> dict[int, Tensor]:
    """The draws of every path, by node and by the number that the tree gives each of its copies."""
    graph = model.graph
    found: dict[int, dict[int, Tensor]] = {}
    for path, draw in others.items():
        node, copy = ROOT, 0
        for source, reader in path:
            edge = graph.edge(f"{source}->{reader}")
            start = dict(tree.children[node, edge.reader])[edge.writer]
            node, copy = edge.writer, start + copy
        assert copy not in found.setdefault(node, {})
        found[node][copy] = draw
    for node, copies in found.items():
        assert sorted(copies) == list(range(tree.copies[node]))
    return {
        node: torch.stack([copies[copy] for copy in sorted(copies)])
        for node, copies in found.items()
    }


def test_a_tree_equals_slow_recursion(twins: tuple[Model, SlowModel]) -> None:
    model, slow = twins
    kept, own = some_edges(slow, 0.2), torch.tensor([2, 0, 5])
    mask, pool = edge_mask(model.graph, names(kept)), pool_of(model)
    slow_tree = SlowTree(slow, kept, tiny.pairs(N_PROMPTS).clean, own)
    expected = slow_tree.copy("logits")
    tree = Tree.of(model.graph, mask)
    n_inputs = tree.copies.get(0, 0)
    assert tree.size == len(slow_tree.others) + n_inputs > 10
    draws = numbered(model, tree, slow_tree.others)
    with torch.no_grad():
        found = tree_logits(model, tree, pool, Draws(own, draws.__getitem__))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    assert float((found - model_logits(model, pool.tokens[own])).abs().max()) > 0.1


def model_logits(model: Model, prompts: Tensor) -> Tensor:
    return run(model, prompts, ()).logits


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_prompt_for_each_edge_equals_the_slow_model(
    twins: tuple[Model, SlowModel], share: float
) -> None:
    model, slow = twins
    kept, own = some_edges(slow, share, seed=1), torch.tensor([1, 4])
    prompts = tiny.pairs(N_PROMPTS).clean
    generator = torch.Generator().manual_seed(0)
    others = torch.randint(
        N_PROMPTS, (len(slow.readers), len(slow.writers), 2), generator=generator
    )
    writes_of = [slow.run(prompts[row : row + 1])[1] for row in range(N_PROMPTS)]

    def read(reader: str, writes: Writes) -> Tensor:
        known = dict(writes)
        for name in slow.reads(reader):
            if (name, reader) not in kept:
                rows = others[slow.readers.index(reader), slow.writers.index(name)]
                known[name] = torch.cat([writes_of[row][name] for row in rows.tolist()])
        return total(reader, known)

    expected = slow.run(prompts[own], read)[0]
    mask, pool = edge_mask(model.graph, names(kept)), pool_of(model)
    with torch.no_grad():
        clean = run(model, prompts[own], BASE)
        found = edge_logits(
            model,
            mask,
            clean,
            pool,
            Draws(own, lambda r: others[r, : model.graph.readers[r].n_writers]),
        )
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_with_one_prompt_for_everything_all_are_one(
    every_twins: tuple[Model, SlowModel],
) -> None:
    """The masked pass, every edge its own prompt, and the tree, where heads can stand in one."""
    model, slow = every_twins
    own, other = torch.tensor([2, 0]), torch.tensor([3, 5])
    kept = some_edges(slow, 0.15)
    mask, pool = edge_mask(model.graph, names(kept)), pool_of(model)
    with torch.no_grad():
        clean, base = (run(model, pool.tokens[rows], BASE) for rows in (own, other))
        masked = masked_logits(model, mask, clean.input, base)
        draws = Draws(own, lambda r: other.expand(model.graph.readers[r].n_writers, -1))
        by_edge = edge_logits(model, mask, clean, pool, draws)
        torch.testing.assert_close(by_edge, masked, rtol=1e-4, atol=1e-4)
        assert float((masked - base.logits).abs().max()) > 0.05
        if model.heads_share_scale:
            with pytest.raises(InputError, match="has a norm behind attention"):
                refuse_trees(model)
            return
        tree = Tree.of(model.graph, mask)
        found = tree_logits(
            model, tree, pool, Draws(own, lambda n: other.expand(tree.copies[n], -1))
        )
        torch.testing.assert_close(found, masked, rtol=1e-4, atol=1e-4)


def test_trees_are_counted_without_being_written_out() -> None:
    """All edges of a model of 24 layers: more paths than atoms to write them with."""
    graph = ModelGraph(24, 16, 16)
    every = full_mask(graph)
    size = Tree.of(graph, every).size
    # Before each block, copies of what reads there: attention 3 times a head, then an MLP once.
    paths, expected = 1, 1
    for _ in range(24):
        mlp = paths
        heads = 16 * (paths + mlp)
        expected += mlp + heads
        paths += mlp + 3 * heads
    assert size == expected + paths > 10**40


def test_pools_in_parts_are_pools(kind: str) -> None:
    model = tiny.model(kind)
    whole, parts = pool_of(model, 6), pool_of(model, 4)
    rows = torch.tensor([[5, 1], [0, 3]])
    for writer in range(len(model.graph.writers)):
        one, other = (pool.write(model, writer, rows) for pool in (whole, parts))
        assert one.shape[:2] == (2, 2)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
