"""Rankings of nodes by patching alone: what Kramar et al., 2024, arXiv 2403.00745, compare with.

    iterative       nodes one by one, in random order
    subsampling     alg. 1: random subsets patched jointly; |mean with a node - mean without it|
    blocks          alg. 2: the nodes cut into runs of neighbours, each patched jointly; the nodes
                    of the block with the largest |effect| first
    hierarchical    alg. 3: a tree over the nodes; of the groups measured, the one with the largest
                    |effect| is split next, until single nodes come up

No gradients are taken. A joint effect is the mean over pairs, as ``patch_nodes`` has it; groups
are ranked by its absolute value.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from ..effects.bounds import draw_subsets
from ..effects.node_effects import NodeEdits, effects_of_nodes, patch_edits
from ..errors import InputError
from ..model.transformer import Model
from ..names.nodes import NodeSet
from ..names.vocabulary import (
    BASELINE,
    BASELINES,
    DIRECTION,
    METRIC,
    N_SUBSETS,
    NODES,
    PROBABILITY,
    SEED,
    SUMMED,
)
from ..question.metrics import Metric
from ..question.prompts import PromptPairs
from ..question.question import Question
from ..runs.sweep import Report, Resources, silent
from .node_scores import NodeScores, node_set_of

Visits = tuple[Float32[Tensor, "node"], Sequence[int], Sequence[int]]
"""Scores of all nodes, the order they are visited in, and the costs of each visit."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """Nodes in the order in which a baseline would have them verified.

    Attributes:
        scores: for ``iterative`` the exact effects, signed; for the others unsigned, and sorting
            them by magnitude (stably, largest first) gives ``order``. ``contributions`` are the
            mean absolute effects for ``iterative``, and |scores| for the others.
        order: places of the nodes in ``scores.nodes``, as they are visited.
        costs: forward passes per pair (one for each group patched) that the method has spent when
            it visits each node of ``order``, verifications not counted: patching a node alone is
            its verification. So verifying the first k costs ``costs[k - 1] + k`` in all.
    """

    scores: NodeScores
    order: tuple[int, ...]
    costs: tuple[int, ...]


def rank_nodes(
    model: Model,
    pairs: PromptPairs,
    nodes: str | Sequence[str] = NODES,
    *,
    method: str = BASELINE,
    metric: str | Metric = METRIC,
    direction: str = DIRECTION,
    positions: str = SUMMED,
    n_samples: int = N_SUBSETS,
    probability: float = PROBABILITY,
    block_size: int | None = None,
    branching: int = 3,
    seed: int = SEED,
    batch_size: int | None = None,
    progress: Report = silent,
) -> Ranking:
    """Ranks all nodes of some families by patching groups of them.

    Args:
        nodes: families, as for ``score_nodes``.
        method: a name in ``BASELINES``.
        metric: a name in ``METRICS`` or a function ``(logits, targets) -> [row]``.
        direction: ``noising`` or ``denoising``.
        positions: ``sum`` makes a node of all its positions together, ``each`` one of every one.
        n_samples, probability: of ``subsampling``: how many subsets, and how likely each has each
            node. A node that none has, or all have, scores 0 and comes last.
        block_size: of ``blocks``; None takes the root of the number of nodes, rounded up.
        branching: of ``hierarchical``: into how many parts a group is split.
        seed: of the random order, or subsets.
        batch_size: rows (groups x pairs) at once; None takes what fits into memory.
        progress: called with (stage, rows finished since the last call, rows in all).

    Raises:
        InputError: unknown options, or numbers that make no sense.
        WiremapError: an effect that is not finite.
    """
    families = (nodes,) if isinstance(nodes, str) else tuple(nodes)
    question = Question(pairs=pairs, metric=metric, direction=direction)
    options = BaselineOptions(
        method=method,
        n_samples=n_samples,
        probability=probability,
        block_size=block_size,
        branching=branching,
        seed=seed,
    )
    node_set = node_set_of(model, families, pairs, positions)
    resources = Resources(batch_size=batch_size, report=progress)
    return rank_node_set(model, question, node_set, options, resources)


@dataclass(frozen=True, kw_only=True)
class BaselineOptions:
    """Which baseline, and how; see ``rank_nodes``."""

    method: str = BASELINE
    n_samples: int = N_SUBSETS
    probability: float = PROBABILITY
    block_size: int | None = None
    branching: int = 3
    seed: int = SEED


def rank_node_set(
    model: Model,
    question: Question,
    nodes: NodeSet,
    options: BaselineOptions,
    resources: Resources,
) -> Ranking:
    """Ranks a set of nodes; see ``rank_nodes``."""
    method, n_nodes, seed = options.method, len(nodes), options.seed
    if method not in BASELINES:
        raise InputError(f"unknown method {method!r}; there are {', '.join(BASELINES)}")

    def measure(members: Bool[Tensor, "group node"]) -> Float32[Tensor, "group"]:
        edits = NodeEdits.of_members(nodes, members)
        labels = [
            f"group {row + 1} of {int(group.sum())} nodes" for row, group in enumerate(members)
        ]
        return patch_edits(model, question, labels, edits, resources).mean().cpu()

    def measure_ranges(ranges: Sequence[range]) -> Float32[Tensor, "group"]:
        place = torch.arange(n_nodes)
        return measure(
            torch.stack([(place >= part.start) & (place < part.stop) for part in ranges])
        )

    contributions = None
    if method == "iterative":
        effects = effects_of_nodes(model, question, nodes.names, resources)
        scores, contributions = effects.mean().cpu(), effects.effects.abs().mean(1).cpu()
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(n_nodes, generator=generator).tolist()
        costs: Sequence[int] = [0] * n_nodes
    elif method == "subsampling":
        members = draw_subsets(options.n_samples, n_nodes, options.probability, seed)
        scores, order, costs = _by_subsets(measure(members), members)
    elif method == "blocks":
        size = options.block_size
        if size is None:
            size = math.ceil(math.sqrt(n_nodes))
        scores, order, costs = _by_blocks(n_nodes, size, measure_ranges)
    else:
        scores, order, costs = _by_tree(n_nodes, options.branching, measure_ranges)
    ranked = NodeScores(
        nodes,
        scores,
        scores.abs() if contributions is None else contributions,
        method,
        gradient="none",
        unsigned=method != "iterative",
    )
    return Ranking(ranked, tuple(order), tuple(costs))


def _by_subsets(values: Float[Tensor, "sample"], members: Bool[Tensor, "sample node"]) -> Visits:
    """|Mean value with a node - mean value without it|, 0 where one of them has no samples."""
    chosen = members.double()
    means = [values.double() @ side / side.sum(0) for side in (chosen, 1 - chosen)]
    # nan is 0 / 0: no subset has the node, or all have it.
    scores = (means[0] - means[1]).abs().nan_to_num(0.0).float()
    return scores, _largest_first(scores), [len(members)] * len(scores)


def _by_blocks(
    n_nodes: int, size: int, measure: Callable[[Sequence[range]], Float32[Tensor, "group"]]
) -> Visits:
    """The |effect| of each node's block."""
    if not 1 <= size <= n_nodes:
        raise InputError(f"expected a block size of 1 to {n_nodes} (all nodes), got {size}")
    blocks = [range(start, min(start + size, n_nodes)) for start in range(0, n_nodes, size)]
    sizes = torch.tensor([len(block) for block in blocks])
    scores = measure(blocks).abs().repeat_interleave(sizes)  # [block] -> [node]
    order = _largest_first(scores)
    # To patch a block of one node was to verify it, which is not to be counted once more.
    alone = (sizes == 1).repeat_interleave(sizes)[order]
    return scores, order, [len(blocks) - seen for seen in accumulate(alone.int().tolist())]


def _by_tree(
    n_nodes: int, branching: int, measure: Callable[[Sequence[range]], Float32[Tensor, "group"]]
) -> Visits:
    """The smallest |effect| on the way to each node; best-first search visits in that order.

    Of nodes with the same one, such as those under a weak group, the first visited keeps it, and
    the others get the next smaller numbers.
    """
    if branching < 2:
        raise InputError(f"expected a branching of at least 2, got {branching}")
    waiting: list[tuple[float, int, range, float]] = []
    spent = 0

    def split(group: range, weakest: float) -> None:
        nonlocal spent
        n_parts = min(branching, len(group))
        cuts = [group.start + part * len(group) // n_parts for part in range(n_parts + 1)]
        parts = [range(*cut) for cut in pairwise(cuts)]
        spent += n_parts
        for part, effect in zip(parts, measure(parts).abs().tolist(), strict=True):
            bottleneck = min(weakest, effect)
            # Below a group that is worth nothing, all nodes tie, and stay in their order.
            priority = effect if bottleneck else 0.0
            heapq.heappush(waiting, (-priority, part.start, part, bottleneck))

    # Best first: a heap gives the smallest, so priorities are negative.
    split(range(n_nodes), math.inf)
    scores = torch.zeros(n_nodes)
    order: list[int] = []
    costs: list[int] = []
    below = torch.tensor(math.inf)
    while waiting:
        _, start, group, bottleneck = heapq.heappop(waiting)
        if len(group) > 1:
            split(group, bottleneck)
            continue
        scores[start] = torch.minimum(torch.tensor(bottleneck), below)
        # Strictly less for the next, so that sorting by score gives the order of the visits.
        below = torch.nextafter(scores[start], torch.tensor(0.0))
        order.append(start)
        costs.append(spent - len(order))  # of the groups measured, each node visited was one
    return scores, order, costs


def _largest_first(scores: Float32[Tensor, "node"]) -> list[int]:
    return scores.argsort(descending=True, stable=True).tolist()
