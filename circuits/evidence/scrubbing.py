"""Causal scrubbing: does the behaviour survive when all that a circuit calls irrelevant is random?

A circuit claims that only paths all of whose edges are kept matter. If so, whatever reaches a node
by a dropped edge may as well come from another prompt (Chan et al., 2022, "Causal scrubbing"; for
paths, Goldowsky-Dill et al., 2023, arXiv 2304.05969). How many other prompts there are is the
scheme:

- ``together``: one for each pair, shared by all dropped edges. One masked forward pass.
- ``per-edge``: one for each dropped edge.
- ``per-path``: the model written out as a tree, with a copy of each node for every path of kept
  edges from it to the logits; one for each copy, shared by all dropped edges into that copy.

When much is dropped, the later ones are stricter, so a result means little without its scheme.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from ...edges.effects.reduced import BASE, masked_logits
from ...edges.effects.resampling import Pool, Tree, edge_logits, refuse_trees, tree_logits
from ...edges.errors import InputError
from ...edges.model.transformer import Model
from ...edges.names.graph import ROOT, ModelGraph
from ...edges.names.vocabulary import MAX_TREE, METRIC, OTHER, REPEATS, SCHEME, SEED
from ...edges.question.metrics import Metric, Targets, resolve_metric
from ...edges.question.prompts import PairBatch, PromptPairs
from ...edges.runs.masks import edge_mask
from ...edges.runs.memory import BatchSize
from ...edges.runs.sweep import check_finite, pairs_at_once
from ...edges.runs.trace import run
from ..choice.pruning import connected
from ..result.circuit import CircuitEdge
from ..result.hypothesis import check_settings, random_baseline
from .other_prompts import OtherPrompts, groups_of, rows_alone, without_rows
from .random_circuits import random_circuit

_BOOTSTRAPS = 2000


@dataclass(frozen=True)
class Scrubbed:
    """What one set of edges recovers.

    Attributes:
        values: the metric on each pair, mean over repeats.
        recovered: (scrubbed - random) / (original - random), each a mean over pairs; not clipped.
        interval: 95 % percentile bootstrap of ``recovered`` over pairs; None for a single pair, or
            where a resample leaves nothing to recover.
        explained: 1 - AUE / ATE (Goldowsky-Dill et al., 2023), AUE the mean of |original - scrubbed|
            and ATE of |original - random| over pairs and repeats. Errors of opposite signs cancel
            in ``recovered``, but not here.
        tree_size: nodes of the tree that ``per-path`` makes of these edges.
    """

    values: Float64[Tensor, "pair"]
    recovered: float
    interval: tuple[float, float] | None
    explained: float
    tree_size: int


@dataclass(frozen=True, eq=False)
class Scrubbing:
    """The result of ``scrub``.

    Attributes:
        original: the metric of the model itself on each pair.
        random: the metric of the model run on another prompt altogether, mean over repeats.
        circuit: the edges asked for.
        dead: edges asked for that lie on no path of kept edges from ``input`` to ``logits``; they
            count as dropped.
        left_out: rows, counted from 0, that no other prompt goes with; values are of the others.
        random_circuits: of as many edges as are not dead.
        without: what is recovered without each edge that is not dead.
        settings: what was asked, as plain data.
    """

    original: Float64[Tensor, "pair"]
    random: Float64[Tensor, "pair"]
    circuit: Scrubbed
    n_edges: int
    dead: tuple[str, ...]
    left_out: tuple[int, ...]
    random_circuits: tuple[Scrubbed, ...]
    without: dict[str, Scrubbed]
    settings: dict[str, Any]

    def as_document(self) -> dict[str, Any]:
        """The result as plain JSON data; standard errors are over pairs, rows counted from 1."""
        return {
            **self.settings,
            "n_pairs": len(self.original),
            "rows_left_out": [row + 1 for row in self.left_out],
            "original": _mean_and_error(self.original),
            "scrubbed": _mean_and_error(self.circuit.values),
            "random": _mean_and_error(self.random),
            "recovered": self.circuit.recovered,
            "interval": self.circuit.interval and list(self.circuit.interval),
            "explained": self.circuit.explained,
            "edges": self.n_edges,
            "tree_size": self.circuit.tree_size,
            "dead": list(self.dead),
            "random_circuits": [one.recovered for one in self.random_circuits],
            "without": [
                {"edge": name, "recovered": one.recovered, "explained": one.explained}
                for name, one in self.without.items()
            ],
        }


def scrub(
    model: Model,
    pairs: PromptPairs,
    edges: Collection[str],
    scheme: str = SCHEME,
    other: str = OTHER,
    metric: str | Metric = METRIC,
    repeats: int = REPEATS,
    seed: int = SEED,
    random_circuits: int = 0,
    drop_one: bool = False,
    leave_out: bool = False,
    max_tree: int = MAX_TREE,
    batch_size: int | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> Scrubbing:
    """Tests the claim that of all edges only these matter, by resampling what the others carry.

    recovered = (m(scrubbed) - m(random)) / (m(original) - m(random)): 1 when the edges carry all of
    it, 0 when they do nothing; it may lie outside. ``original`` is the model on each pair's clean
    prompt. ``random`` is the model on another prompt of the same length, whatever ``other`` says;
    with ``paired`` it is the corrupted prompt, and ``together`` then gives the faithfulness of
    ``evaluate``. Answers are always those of the pair. With all edges kept, recovered is 1; with
    none, ``together`` and ``per-path`` give 0 when ``other`` is ``any`` or ``paired``.

    A node is a head (its queries, keys and values together), an MLP or the logits; norms are
    computed anew from what is read; biases and positions stay the pair's own.

    Deviations from Chan et al.: other prompts are drawn, with replacement, from the pairs' clean
    prompts of the same length in tokens, since values are exchanged position by position; and never
    the pair's own row, which would leave dropped edges as they are. Kept nodes see the prompt
    itself, rather than one that agrees with it in a feature. Edges that lie on no path from
    ``input`` to ``logits`` count as dropped. ``together`` and ``per-edge`` are coarser than their
    tree.

    Args:
        edges: names such as ``a0.h1->a2.h3<q>``.
        scheme: ``together``, ``per-edge`` or ``per-path``.
        other: ``any``; ``same-label``: with the same answers; ``feature:COLUMN``: with the same
            value in that column of the pairs' records; ``paired``: each pair's corrupted prompt.
        metric: a name in ``METRICS`` or a function ``(logits, targets) -> [row]``.
        repeats: draws of other prompts for every pair; with ``paired`` there is one.
        seed: of all draws. The same arguments give the same result, whatever the batch size.
        random_circuits: how many circuits of random paths, as many edges as are not dead in each,
            to compare with (after Shi et al., 2024, arXiv 2410.13032).
        drop_one: also scrub without each edge in turn.
        leave_out: leave out pairs that no other prompt goes with, instead of refusing them.
        max_tree: of ``per-path``; larger trees are refused.
        batch_size: pairs at once; None takes what fits into memory.
        progress: called with pairs scrubbed since the last call, and in all, over all repeats and
            sets of edges.

    Raises:
        InputError: edges the model does not have, unknown options or columns, pairs without another
            prompt, trees that are too large or not defined, a metric that random prompts do not
            change.
        WiremapError: a metric that is not finite; the pairs are named.
    """
    check_settings(scheme, other, repeats, None)
    chosen_metric = resolve_metric(metric, pairs.wrong.shape[1] > 0)
    if scheme == "per-path":
        refuse_trees(model)
    graph = model.graph
    asked = graph.in_order(edges)
    live = live_edges(graph, asked)
    repeats = 1 if other == "paired" else repeats
    rng = random.Random(f"random circuits {seed}")
    drawn = [random_circuit(graph, len(live), rng) for _ in range(random_circuits)]
    dropped = {name: live_edges(graph, [e for e in live if e != name]) for name in live if drop_one}
    sets = [live, *(live_edges(graph, names) for names in drawn), *dropped.values()]
    kept = [edge_mask(graph, names) for names in sets]
    trees = [Tree.of(graph, mask) for mask in kept]
    if scheme == "per-path":
        _refuse_large([tree.size for tree in trees], random_circuits, max_tree)
    left_out: list[int] = []
    if leave_out and other != "paired":
        left_out = rows_alone(groups_of(pairs, other))
        pairs = without_rows(pairs, left_out)
    others = OtherPrompts(pairs, other, seed)
    unrelated = OtherPrompts(pairs, other if other == "paired" else "any", seed)
    model.check_pairs(pairs)
    experiment = _Experiment(model, chosen_metric, scheme, others, unrelated, repeats, kept, trees)
    original, random_values, scrubbed = experiment.run(pairs, batch_size, progress)
    found = [
        _summary(original, random_values, values, tree.size, seed)
        for values, tree in zip(scrubbed, trees, strict=True)
    ]
    return Scrubbing(
        original=original,
        random=random_values.mean(0),
        circuit=found[0],
        n_edges=len(asked),
        dead=tuple(name for name in asked if name not in set(live)),
        left_out=tuple(left_out),
        random_circuits=tuple(found[1 : 1 + random_circuits]),
        without=dict(zip(dropped, found[1 + random_circuits :], strict=True)),
        settings={
            "scheme": scheme,
            "other": other,
            "metric": metric if isinstance(metric, str) else getattr(metric, "__name__", "custom"),
            "baselines": {"original": "identity", "random": random_baseline(other)},
            "repeats": repeats,
            "seed": seed,
        },
    )


def live_edges(graph: ModelGraph, names: Collection[str]) -> list[str]:
    """Of these edges, those on a path of them from ``input`` to ``logits``, in the same order."""
    edges: list[CircuitEdge] = []
    for name in names:
        reader = graph.readers[graph.edge(name).reader]
        slot: Any = reader.kind if reader.kind in ("q", "k", "v") else None
        edges.append(CircuitEdge(name.partition("->")[0], reader.node, slot))
    return [edge.name for edge in connected(graph, edges)]


def _refuse_large(sizes: Sequence[int], random_circuits: int, max_tree: int) -> None:
    """Raises InputError if the circuit's tree, or that of one it is compared with, is too large."""
    what, size = "the circuit", sizes[0]
    if size <= max_tree:
        what, size = (
            "a random circuit of as many edges",
            max(sizes[1 : 1 + random_circuits], default=0),
        )
    if size > max_tree:
        raise InputError(
            f"scheme per-path: the tree of {what} has {size:,} nodes, more than {max_tree:,}; "
            "use per-edge or together, keep fewer edges, compare with no random circuits "
            "(--random-circuits 0, random_circuits=0), or allow more (--max-tree, max_tree=)"
        )


@dataclass(frozen=True)
class _Experiment:
    """Sets of edges to scrub, all with the same draws."""

    model: Model
    metric: Metric
    scheme: str
    others: OtherPrompts
    unrelated: OtherPrompts
    repeats: int
    kept: Sequence[Bool[Tensor, "reader writer"]]
    trees: Sequence[Tree]

    @torch.no_grad()
    def run(
        self,
        pairs: PromptPairs,
        batch_size: int | None,
        progress: Callable[[int, int], Any] | None,
    ) -> tuple[
        Float64[Tensor, "pair"], Float64[Tensor, "repeat pair"], Float64[Tensor, "set repeat pair"]
    ]:
        """The metric on each pair: original, random, and scrubbed by each set of edges."""
        n_runs = 1 + self.repeats * (1 + len(self.kept))
        table = torch.zeros(n_runs, len(pairs), device=self.model.device)
        steps = self.repeats * len(self.kept)
        with self.model.borrowed():
            for bucket in pairs.batches():
                size = BatchSize(batch_size) if batch_size else self._pairs_at_once(bucket)
                prompts = self.others.prompts(bucket).to(self.model.device)
                pool = None
                if self.scheme != "together":
                    at_once = pairs_at_once(self.model, bucket)
                    pool = Pool.of(self.model, prompts, at_once, self.scheme == "per-path")
                place = torch.zeros(len(pairs), dtype=torch.int64)
                place[bucket.rows] = torch.arange(len(bucket))

                def values(
                    batch: PairBatch,
                    prompts: Tensor = prompts,
                    pool: Pool | None = pool,
                    place: Tensor = place,
                ) -> Tensor:
                    return self._values(batch, prompts, pool, place[batch.rows])

                for batch, found in size.map(bucket, values):
                    table[:, batch.rows] = found.float()
                    if progress is not None:
                        progress(len(batch) * steps, len(pairs) * steps)
        check_finite(table)
        original, *rest = table.cpu().double()
        by_repeat = torch.stack(rest).unflatten(0, (self.repeats, 1 + len(self.kept)))
        return original, by_repeat[:, 0], by_repeat[:, 1:].transpose(0, 1)

    def _pairs_at_once(self, bucket: PairBatch) -> BatchSize:
        """How many pairs to run at once; of a tree, every copy counts."""
        if self.scheme != "per-path":
            return pairs_at_once(self.model, bucket)
        model, tree = self.model, max(self.trees, key=lambda tree: tree.size)
        most = max(tree.copies.values())
        numbers = tree.size * model.d_model + most * (8 * model.d_model + 3 * model.d_mlp)
        n_pos = bucket.clean.shape[1]
        return BatchSize.fitting(4 * n_pos * (numbers + 2 * most * n_pos), model.device)

    def _values(
        self,
        batch: PairBatch,
        prompts: Int64[Tensor, "prompt pos"],
        pool: Pool | None,
        own: Int64[Tensor, "pair"],
    ) -> Float32[Tensor, "run pair"]:
        """The metric on a batch: original; for each repeat random, and scrubbed by each set."""
        model, device = self.model, self.model.device
        clean = run(model, batch.clean, BASE if self.scheme == "per-edge" else ())
        targets = Targets.of(batch, clean.logits)
        found = [self.metric(clean.logits, targets)]
        own = own.to(device)
        for repeat in range(self.repeats):
            unrelated = self.unrelated.draw("logits", repeat)[0, batch.rows]
            other = self.others.draw("logits", repeat)[0, batch.rows]
            needed = BASE if self.scheme == "together" else ()
            base = run(model, prompts[other.to(device)], needed)
            random_logits = base.logits
            if not torch.equal(unrelated, other):
                random_logits = run(model, prompts[unrelated.to(device)], ()).logits
            found.append(self.metric(random_logits, targets))
            for kept, tree in zip(self.kept, self.trees, strict=True):

                def draw(
                    site: str, n_draws: int, repeat: int = repeat
                ) -> Int64[Tensor, "draw pair"]:
                    return self.others.draw(site, repeat, n_draws)[:, batch.rows]

                if pool is None:
                    logits = masked_logits(model, kept, clean.input, base)
                elif self.scheme == "per-edge":
                    readers = model.graph.readers
                    logits = edge_logits(
                        model,
                        kept,
                        clean,
                        pool,
                        own,
                        lambda reader, draw=draw, readers=readers: draw(
                            readers[reader].name, readers[reader].n_writers
                        ),
                    )
                else:
                    logits = tree_logits(
                        model,
                        tree,
                        pool,
                        own,
                        lambda node, draw=draw, tree=tree: draw(
                            "logits" if node == ROOT else model.graph.writers[node].name,
                            tree.copies[node],
                        ),
                    )
                found.append(self.metric(logits, targets))
        return torch.stack(found)


def _mean_and_error(values: Float64[Tensor, "pair"]) -> dict[str, float | None]:
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else None
    return {"mean": float(values.mean()), "standard_error": error}


def _summary(
    original: Float64[Tensor, "pair"],
    random_values: Float64[Tensor, "repeat pair"],
    scrubbed: Float64[Tensor, "repeat pair"],
    tree_size: int,
    seed: int,
) -> Scrubbed:
    floor, values = random_values.mean(0), scrubbed.mean(0)
    gap = float(original.mean() - floor.mean())
    if gap == 0:
        raise InputError(
            f"the metric is {float(original.mean()):.4g} on the prompts and on random others alike, "
            "so there is nothing to recover; use another metric, or prompts that differ in the "
            "behaviour"
        )
    unexplained = (original - scrubbed).abs().mean() / (original - random_values).abs().mean()
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(original), (_BOOTSTRAPS, len(original)), generator=generator)
    ratios = (values - floor)[chosen].sum(1) / (original - floor)[chosen].sum(1)
    interval = None
    if len(original) > 1 and bool(ratios.isfinite().all()):
        low, high = ratios.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        interval = (low, high)
    return Scrubbed(
        values=values,
        recovered=float(values.mean() - floor.mean()) / gap,
        interval=interval,
        explained=1 - float(unexplained),
        tree_size=tree_size,
    )
