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
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from ...edges.effects.reduced import BASE, cost_of_reduced_run, masked_logits
from ...edges.effects.resampling import Draws, Pool, Tree, edge_logits, refuse_trees, tree_logits
from ...edges.errors import InputError
from ...edges.model.transformer import Model
from ...edges.names.graph import ROOT
from ...edges.names.vocabulary import MAX_TREE, METRIC, OTHER, REPEATS, SCHEME, SEED
from ...edges.question.metrics import Metric, Targets
from ...edges.question.prompts import PairBatch, PromptPairs
from ...edges.question.question import Question
from ...edges.runs.masks import edge_places, live_mask, places_mask
from ...edges.runs.memory import BatchSize
from ...edges.runs.sweep import (
    Report,
    Resources,
    Turn,
    Work,
    check_finite,
    silent,
    sweep,
    table,
)
from ...edges.runs.trace import Run, run
from ..result.hypothesis import check_settings, random_baseline
from .other_prompts import OtherPrompts, groups_of, rows_alone, without_rows
from .random_circuits import random_circuit

# Resamples of the pairs for an interval.
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
    *,
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
    progress: Report = silent,
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
        progress: called with (stage, pairs scrubbed since the last call, pairs in all), over all
            repeats and sets of edges.

    Raises:
        InputError: edges the model does not have, unknown options or columns, pairs without another
            prompt, trees that are too large or not defined, a metric that random prompts do not
            change.
        WiremapError: a metric that is not finite; the pairs are named.
    """
    options = ScrubOptions(
        scheme=scheme,
        other=other,
        repeats=repeats,
        seed=seed,
        random_circuits=random_circuits,
        drop_one=drop_one,
        leave_out=leave_out,
        max_tree=max_tree,
    )
    question = Question(pairs=pairs, metric=metric)
    resources = Resources(batch_size=batch_size, report=progress)
    return scrubbing_of(model, question, edges, options, resources)


@dataclass(frozen=True, kw_only=True)
class ScrubOptions:
    """What takes the place of what is dropped, and what else is scrubbed; see ``scrub``."""

    scheme: str = SCHEME
    other: str = OTHER
    repeats: int = REPEATS
    seed: int = SEED
    random_circuits: int = 0
    drop_one: bool = False
    leave_out: bool = False
    max_tree: int = MAX_TREE

    def __post_init__(self) -> None:
        check_settings(self.scheme, self.other, self.repeats, None)

    @property
    def n_repeats(self) -> int:
        """How many draws there are: of paired prompts a single one."""
        return 1 if self.other == "paired" else self.repeats


def scrubbing_of(
    model: Model,
    question: Question,
    edges: Collection[str],
    options: ScrubOptions,
    resources: Resources,
) -> Scrubbing:
    """Tests the claim that of all edges only these matter; see ``scrub``."""
    graph, seed, n_drawn = model.graph, options.seed, options.random_circuits
    if options.scheme == "per-path":
        refuse_trees(model)
    named = graph.in_order(edges)
    places = edge_places(graph, named)
    live = live_mask(graph, places_mask(graph, places))
    rng = random.Random(f"random circuits {seed}")
    n_live = int(live.sum())
    drawn = [places_mask(graph, random_circuit(graph, n_live, rng)) for _ in range(n_drawn)]
    # [writer reader] at [edge end] -> [edge]
    is_live = live[places[:, 0], places[:, 1]].tolist()
    dropped = {
        name: live & ~places_mask(graph, place[None])
        for name, place, alive in zip(named, places, is_live, strict=True)
        if alive and options.drop_one
    }
    # The circuit, random circuits, the circuit without each edge: summaries come in this order.
    # Taking an edge out, or cutting a random path, leaves others on no path: they are dropped.
    kept = [live, *(live_mask(graph, mask) for mask in (*drawn, *dropped.values()))]
    # Only counted, whatever the scheme: a tree of any size costs little until it is run.
    trees = [Tree.of(graph, mask) for mask in kept]
    if options.scheme == "per-path":
        _refuse_large([tree.size for tree in trees], n_drawn, options.max_tree)
    left_out: list[int] = []
    if options.leave_out and options.other != "paired":
        left_out = rows_alone(groups_of(question.pairs, options.other))
        question = question.about(pairs=without_rows(question.pairs, left_out))
    experiment = _Experiment(model, question, options, kept, trees)
    original, random_values, scrubbed = experiment.run(resources)
    summaries = [
        _summary(original, random_values, values, tree.size, seed)
        for values, tree in zip(scrubbed, trees, strict=True)
    ]
    metric = question.metric
    return Scrubbing(
        original=original,
        random=random_values.mean(0),
        circuit=summaries[0],
        n_edges=len(named),
        dead=tuple(name for name, alive in zip(named, is_live, strict=True) if not alive),
        left_out=tuple(left_out),
        random_circuits=tuple(summaries[1 : 1 + n_drawn]),
        without=dict(zip(dropped, summaries[1 + n_drawn :], strict=True)),
        settings={
            "scheme": options.scheme,
            "other": options.other,
            "metric": metric if isinstance(metric, str) else getattr(metric, "__name__", "custom"),
            "baselines": {"original": "identity", "random": random_baseline(options.other)},
            "repeats": options.n_repeats,
            "seed": seed,
        },
    )


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


@dataclass
class _Experiment:
    """Sets of edges to scrub, all with the same draws.

    Attributes:
        prompts, pool, place: of the pairs of one length: the prompts that draws name by their
            places, runs of them, and each pair's own place among them.
    """

    model: Model
    question: Question
    options: ScrubOptions
    kept: Sequence[Bool[Tensor, "writer reader"]]
    trees: Sequence[Tree]
    prompts: Int64[Tensor, "prompt pos"] = field(init=False)
    pool: Pool | None = field(init=False)
    place: Int64[Tensor, "pair"] = field(init=False)

    def __post_init__(self) -> None:
        pairs, other, seed = self.question.pairs, self.options.other, self.options.seed
        self.others = OtherPrompts(pairs, other, seed)
        # What recovered 0 stands for does not depend on which prompts may replace dropped values.
        self.unrelated = OtherPrompts(pairs, other if other == "paired" else "any", seed)

    def run(
        self, resources: Resources
    ) -> tuple[
        Float64[Tensor, "pair"], Float64[Tensor, "repeat pair"], Float64[Tensor, "set repeat pair"]
    ]:
        """The metric on each pair: original, random, and scrubbed by each set of edges."""
        pairs, n_repeats, n_sets = self.question.pairs, self.options.n_repeats, len(self.kept)
        # [run pair]: the original; then for each repeat the random prompt, and each set of edges.
        values = table(self.model, 1 + n_repeats * (1 + n_sets), len(pairs))

        def collect(batch: PairBatch, of_batch: Float[Tensor, "run pair"]) -> None:
            values[:, batch.rows] = of_batch.float()

        per_path = self.options.scheme == "per-path"
        work = Work(
            stage="scrub",
            begin=self._begin,
            function=self._values,
            collect=collect,
            cost=self._cost_of_largest_tree if per_path else cost_of_reduced_run,
            steps_of_pair=n_repeats * n_sets,
        )
        sweep(self.model, pairs, work, resources)
        check_finite(values)
        original, *rest = values.cpu().double()
        # [repeat * (1 + set), pair] -> [repeat, 1 + set, pair]
        by_repeat = torch.stack(rest).unflatten(0, (n_repeats, 1 + n_sets))
        return original, by_repeat[:, 0], by_repeat[:, 1:].transpose(0, 1)

    def _begin(self, bucket: PairBatch) -> None:
        """Runs the other prompts of a length, which all its pairs draw from."""
        model, scheme = self.model, self.options.scheme
        self.prompts = self.others.prompts(bucket).to(model.device)
        self.pool = None
        # Together, all dropped edges of a pair carry one prompt: it is run when it is drawn.
        if scheme != "together":
            size = BatchSize.fitting(
                cost_of_reduced_run(model, bucket.clean.shape[1]), model.device
            )
            self.pool = Pool.of(model, self.prompts, size, scheme == "per-path")
        # By the rows of all pairs, of which this length's are filled in.
        self.place = torch.zeros(len(self.question.pairs), dtype=torch.int64)
        self.place[bucket.rows] = torch.arange(len(bucket))

    def _cost_of_largest_tree(self, model: Model, n_pos: int) -> int:
        """Bytes that the tree of one pair needs: every copy of a node counts."""
        # Each copy keeps what it wrote. Those of one node are run at once, with some residual
        # streams, neurons, and scores and pattern of attention, [copy pos pos] each.
        tree = max(self.trees, key=lambda tree: tree.size)
        most = max(tree.copies.values())
        numbers = tree.size * model.d_model + most * (8 * model.d_model + 3 * model.d_mlp)
        return model.dtype.itemsize * n_pos * (numbers + 2 * most * n_pos)

    def _values(self, batch: PairBatch, turn: Turn) -> Float[Tensor, "run pair"]:
        """The metric on a batch: original; for each repeat random, and scrubbed by each set."""
        model, device, measure = self.model, self.model.device, self.question.measure
        scheme = self.options.scheme
        # Only per-edge builds on what is inside the clean run; the others want its ends alone.
        clean = run(model, batch.clean, BASE if scheme == "per-edge" else ())
        targets = Targets.of(batch, clean.logits)
        values = [measure(clean.logits, targets)]
        for repeat in range(self.options.n_repeats):
            unrelated = self.unrelated.draw("logits", repeat)[0, batch.rows]
            related = self.others.draw("logits", repeat)[0, batch.rows]
            needed = BASE if scheme == "together" else ()
            # The base of a masked run for `together`; for the other schemes just another prompt.
            base = run(model, self.prompts[related.to(device)], needed)
            random_logits = base.logits
            # With `any` and `paired` the two draws are the same, and so is the run.
            if not torch.equal(unrelated, related):
                random_logits = run(model, self.prompts[unrelated.to(device)], ()).logits
            values.append(measure(random_logits, targets))
            for kept, tree in zip(self.kept, self.trees, strict=True):
                if self.pool is None:
                    logits = masked_logits(model, kept, clean.input, base)
                else:
                    drawn = _Drawn(self, self.pool, batch, repeat)
                    per_edge = scheme == "per-edge"
                    logits = drawn.of_edges(kept, clean) if per_edge else drawn.of_tree(tree)
                values.append(measure(logits, targets))
                turn.done(len(batch))
        return torch.stack(values)


@dataclass(frozen=True)
class _Drawn:
    """A batch whose dropped edges carry values of the prompts drawn for one repeat."""

    experiment: _Experiment
    pool: Pool
    batch: PairBatch
    repeat: int

    @property
    def _own(self) -> Int64[Tensor, "pair"]:
        """Each pair's own place in the pool."""
        return self.experiment.place[self.batch.rows].to(self.experiment.model.device)

    def _draw(self, site: str, n_draws: int) -> Int64[Tensor, "draw pair"]:
        return self.experiment.others.draw(site, self.repeat, n_draws)[:, self.batch.rows]

    def of_edges(
        self, kept: Bool[Tensor, "writer reader"], clean: Run
    ) -> Float[Tensor, "pair d_vocab"]:
        """Logits where each dropped edge has a prompt of its own."""
        model = self.experiment.model

        # A site for each reader, with a draw for each edge into it.
        def others(reader: int) -> Int64[Tensor, "writer pair"]:
            target = model.graph.readers[reader]
            return self._draw(target.name, target.n_writers)

        return edge_logits(model, kept, clean, self.pool, Draws(self._own, others))

    def of_tree(self, tree: Tree) -> Float[Tensor, "pair d_vocab"]:
        """Logits where each copy of a node has a prompt of its own."""
        model = self.experiment.model

        # A site for each node, with a draw for each of its copies.
        def others(node: int) -> Int64[Tensor, "copy pair"]:
            site = "logits" if node == ROOT else model.graph.writers[node].name
            return self._draw(site, tree.copies[node])

        return tree_logits(model, tree, self.pool, Draws(self._own, others))


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
    # [pair] less [repeat pair], absolute before any mean: errors do not cancel.
    unexplained = (original - scrubbed).abs().mean() / (original - random_values).abs().mean()
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(original), (_BOOTSTRAPS, len(original)), generator=generator)
    # [resample pair] -> [resample]; of sums, as the number of pairs cancels.
    ratios = (values - floor)[chosen].sum(1) / (original - floor)[chosen].sum(1)
    interval = None
    # Pairs with no gap between them give a ratio of x / 0: then there is no interval.
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
