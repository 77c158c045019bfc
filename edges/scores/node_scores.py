"""Scores of nodes: AtP, its QK fix, GradDrop, and AtP* (Kramar et al., 2024, arXiv 2403.00745).

    AtP        estimate(n) = (n_clean - n_corrupted) . d metric / d n          (Nanda, 2022)
    QK fix     queries and keys through the exact softmax: see ``qk_fix``
    GradDrop   1/(L-1) sum over layers l of |estimate(n), l's write into the residual stream
               constant in the backward pass|: cancelling paths no longer hide each other
    AtP*       both

Signs: an estimate is of the effect as ``patch_nodes`` defines it, positive carries the behaviour
(the paper's contributions have the opposite sign, and are used in absolute value). GradDrop and
AtP* give unsigned rankings, biased as effect sizes.

Deviations from the paper: the gradient may be taken at other runs (``gradient``); with positions
summed, a query or key node is patched at all positions at once, so its fix recomputes the whole
pattern, where the paper's nodes are single positions and each key is patched alone.

Gradients come from the gradient rules that edges use too (see ``rules``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float32
from torch import Tensor

from ..errors import InputError, WiremapError, name_rows
from ..model.transformer import Model
from ..names.nodes import NodeSet, Site
from ..names.vocabulary import (
    DIRECTION,
    METRIC,
    NODE_AGGREGATE,
    NODE_AGGREGATES,
    NODE_POSITIONS,
    NODES,
    SCHEDULE,
    STEPS,
    SUMMED,
    Method,
)
from ..question.metrics import Metric
from ..question.prompts import PairBatch, PromptPairs
from ..question.question import Question
from ..question.spans import one_length
from ..runs.sweep import Report, Resources, Turn, Work, silent, sweep, table
from ..runs.trace import BothRuns, cost_of_trace, first_nonfinite
from .qk_fix import KeyFix, contract_rows, pattern_difference
from .rules.registry import resolve_gradient
from .rules.rule import GradientRule, Gradients, check_depends

METHODS: dict[Method, tuple[str | None, bool]] = {
    "atp": (None, False),
    "atp-qk": (None, True),
    "atp-star": ("graddrop", True),
}
"""Of each method, the gradient rule it fixes (None: any) and whether it has the QK fix."""


@dataclass(frozen=True, eq=False)
class NodeScores:
    """Estimated effects of nodes, in units of the metric.

    Attributes:
        scores: mean over pairs of the estimates, signed unless ``unsigned``.
        contributions: mean over pairs of their absolute values.
        unsigned: GradDrop's: a ranking, not estimates of effects.
        method, gradient: how they were made.
        per_pair: each pair's, if asked for.
    """

    nodes: NodeSet
    scores: Float32[Tensor, "node"]
    contributions: Float32[Tensor, "node"]
    method: str = "atp"
    gradient: str = "clean"
    unsigned: bool = False
    per_pair: Float32[Tensor, "pair node"] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the nodes, in order."""
        return self.nodes.names

    def top(self, n: int | None = None, aggregate: str = NODE_AGGREGATE) -> list[tuple[str, float]]:
        """The ``n`` best (all by default), as (name, score).

        Args:
            aggregate: what ranks them, a name in ``NODE_AGGREGATES``; ``abs-of-mean`` gives the signed
                mean as the score, ``mean-of-abs`` the mean of absolutes.
        """
        if aggregate not in NODE_AGGREGATES:
            raise InputError(
                f"unknown aggregate {aggregate!r}; there are {', '.join(NODE_AGGREGATES)}"
            )
        table = self.scores if aggregate == "abs-of-mean" else self.contributions
        values = table.cpu()
        order = values.abs().argsort(descending=True, stable=True)[:n].tolist()
        names = self.names
        return [(names[index], values[index].item()) for index in order]


def recommended_method(
    families: Collection[str], n_pairs: int, gradient: str | None = None
) -> Method:
    """The paper's recommendation: AtP* for a single pair, unless another ``gradient`` is asked for;
    for a distribution AtP with the QK fix for attention nodes, plain AtP for all others. For
    ``writers``, whose scores are the sums of their edges' scores, always plain AtP."""
    if "writers" in families:
        return "atp"
    if n_pairs == 1 and gradient in (None, "graddrop"):
        return "atp-star"
    return "atp-qk" if "heads" in families else "atp"


def score_nodes(
    model: Model,
    pairs: PromptPairs,
    nodes: str | Sequence[str] = NODES,
    *,
    metric: str | Metric = METRIC,
    method: str | None = None,
    gradient: str | GradientRule | None = None,
    steps: int = STEPS,
    schedule: str = SCHEDULE,
    direction: str = DIRECTION,
    positions: str = SUMMED,
    per_pair: bool = False,
    batch_size: int | None = None,
    progress: Report = silent,
) -> NodeScores:
    """Estimates of the effects of all nodes of some families at once.

    Args:
        nodes: families: ``heads`` (query, key, value and output of every head), ``mlps``,
            ``neurons``, ``residual`` (linear estimates of whole residual streams are poor: patch
            them, they are few), ``writers`` (input, head outputs, MLPs).
        method: ``atp``, ``atp-qk`` or ``atp-star``; None takes ``recommended_method``.
        gradient: a rule of ``rules``, by name. None takes the run edited (the corrupted one
            for ``kl``), and ``graddrop`` for AtP*.
        steps, schedule: of ``integrated``.
        direction: ``noising`` edits the clean run, ``denoising`` the corrupted one.
        positions: ``sum`` makes a node of all its positions together, ``each`` one of every
            position, for which all prompts must be of one length.
        per_pair: keep the estimates of each pair too.
        batch_size: pairs at once; None takes what fits into memory.
        progress: called with (stage, pairs finished since the last call, pairs in all).

    Costs two forward passes and one backward pass; with the QK fix less than two forward passes
    more; GradDrop (L + 1) / 2 backward passes; ``integrated`` ``steps`` forwards and backwards.

    Raises:
        InputError: unknown options, methods and gradients that do not go together, prompts of
            several lengths with ``each``, a constant metric.
        WiremapError: activations or gradients that are not finite; the module and pairs are named.
    """
    families = (nodes,) if isinstance(nodes, str) else tuple(nodes)
    named = gradient if gradient is None or isinstance(gradient, str) else gradient.name
    method = method or recommended_method(families, len(pairs), named)
    gradient, fix = check_method(method, gradient)
    rule = resolve_gradient(gradient, direction, metric, steps, schedule)
    question = Question(pairs=pairs, metric=metric, direction=direction)
    node_set = node_set_of(model, families, pairs, positions)
    options = NodeOptions(rule=rule, fix=fix, name=method, per_pair=per_pair)
    resources = Resources(batch_size=batch_size, report=progress)
    return node_scores(model, question, node_set, options, resources)


@dataclass(frozen=True, kw_only=True)
class NodeOptions:
    """How nodes are scored.

    Attributes:
        rule: where gradients are taken.
        fix: queries and keys go through the exact softmax.
        name: what the two together are called, one of ``METHODS``.
        per_pair: keep the estimates of each pair too.
    """

    rule: GradientRule
    fix: bool = False
    name: str = "atp"
    per_pair: bool = False


def node_scores(
    model: Model, question: Question, nodes: NodeSet, options: NodeOptions, resources: Resources
) -> NodeScores:
    """Scores of a set of nodes; see ``score_nodes``."""
    rule, n_pairs = options.rule, len(question.pairs)
    rule.check(model)
    total = table(model, 2, len(nodes))
    by_pair = table(model, n_pairs, len(nodes)) if options.per_pair else None
    depends = False

    def scores_of(batch: PairBatch, turn: Turn) -> Float32[Tensor, "pair node"]:
        nonlocal depends
        scorer = _Scorer(model, batch, question, nodes, options)
        scores = scorer.scores(turn.rows.rows)
        depends |= scorer.runs.depends
        scorer.refuse_nonfinite(scores)
        return scores

    def collect(batch: PairBatch, scores: Float32[Tensor, "pair node"]) -> None:
        total.add_(torch.stack([scores.sum(0), scores.abs().sum(0)]))
        if by_pair is not None:
            by_pair[batch.rows] = scores

    work = Work(
        stage="score all nodes",
        function=scores_of,
        collect=collect,
        cost=partial(cost_of_trace, n_patterns=11 if options.fix else 4),
        gradients=True,
    )
    sweep(model, question.pairs, work, resources)
    check_depends(depends)
    scores, contributions = total / n_pairs
    return NodeScores(nodes, scores, contributions, options.name, rule.name, rule.unsigned, by_pair)


def check_method(
    method: str, gradient: str | GradientRule | None
) -> tuple[str | GradientRule | None, bool]:
    """The gradient that a method takes, as ``resolve_gradient`` does, and whether it has the QK fix.

    Args:
        gradient: the one asked for; None leaves it to the method.

    Raises:
        InputError: an unknown method, or a gradient that contradicts it.
    """
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}; there are {', '.join(METHODS)}")
    fixed, fix = METHODS[method]
    if fixed is not None and gradient not in (None, fixed):
        raise InputError(
            f"method {method} means gradient {fixed}, got {gradient}; leave the gradient out, or "
            "use method atp-qk"
        )
    return gradient or fixed, fix


def node_set_of(
    model: Model, families: Sequence[str], pairs: PromptPairs, positions: str
) -> NodeSet:
    """The nodes of some families, those of all positions together or of each.

    Raises:
        InputError: unknown names, prompts of several lengths with ``each``, neurons of a model
            that has none by themselves.
    """
    if positions not in NODE_POSITIONS:
        raise InputError(f"unknown positions {positions!r}; there are {', '.join(NODE_POSITIONS)}")
    n_pos = None if positions == "sum" else one_length(pairs)
    if "neurons" in families and not model.has_neurons:
        raise InputError(
            f"model {model.name} has mixtures of experts, whose neurons are no nodes; use "
            '--nodes mlps (nodes="mlps")'
        )
    return NodeSet(model.graph, model.d_mlp, tuple(families), n_pos)


class _Scorer:
    """The scores of one batch: its runs, what differs between them, and the backward passes."""

    def __init__(
        self,
        model: Model,
        batch: PairBatch,
        question: Question,
        nodes: NodeSet,
        options: NodeOptions,
    ) -> None:
        self.model, self.batch, self.question = model, batch, question
        self.nodes, self.rule = nodes, options.rule
        self.fixed = {"q", "k"} & set(nodes.kinds) if options.fix else set[str]()
        values = {site.activation for site in nodes.sites}
        # Gradients by residual streams, the input's among them, come with every pass. The fix goes by
        # the pattern's, and for one of queries and keys it needs the other, too.
        self.by = values - self.fixed - {"input", "resid_pre"}
        if self.fixed:
            values |= {"q", "k"}
            self.by |= {"pattern"}
        self.runs = BothRuns(model, batch, question.measure, values)
        self.reactions: dict[Site, Callable[[Tensor], Tensor]] = {}

    # ---- scores

    def scores(self, n_rows: int) -> Float32[Tensor, "pair node"]:
        """The estimates of all nodes, on each pair; ``n_rows`` may be run at once."""
        scores = table(self.model, len(self.batch), len(self.nodes))
        n_layers = self.model.graph.n_layers
        for way in self.rule.passes(self.runs, self.by, n_rows):
            for layer, gradients, times in way.layers:
                # [(run pair) ...] -> [pair ...]: gradients of several runs of a pair are summed.
                summed = {
                    name: gradient.unflatten(0, (way.n_runs, -1)).sum(0)
                    if way.n_runs > 1
                    else gradient
                    for name, gradient in gradients.items()
                }
                self._add(scores, layer, summed, times)
        for site, part in zip(self.nodes.sites, self.nodes.slices, strict=True):
            scores[:, part] /= self.rule.divisor(n_layers, site.kind not in ("input", "resid"))
        return scores

    def _add(
        self,
        scores: Float32[Tensor, "pair node"],
        layer: int,
        gradients: Gradients,
        times: int,
    ) -> None:
        """Adds the estimates of a layer's nodes that these gradients allow."""
        for site, part in zip(self.nodes.sites, self.nodes.slices, strict=True):
            needed = "pattern" if site.kind in self.fixed else site.activation
            # What the input writes is the stream before the first block.
            if (
                site.layer != layer
                or ("resid_pre" if needed == "input" else needed) not in gradients
            ):
                continue
            estimates = self._estimates(site, gradients)
            scores[:, part] += times * (estimates.abs() if self.rule.unsigned else estimates)

    def _estimates(self, site: Site, gradients: Gradients) -> Float32[Tensor, "pair node"]:
        """The estimates of a site's nodes, in their order."""
        if site.kind in self.fixed:
            by_position = self._fixed(site, gradients["pattern"].float())
        else:
            name = site.activation
            clean, corrupted = (
                self.runs.at(run).kept[name][site.layer] for run in ("clean", "corrupted")
            )
            gradient = gradients["resid_pre" if name == "input" else name]
            product = (clean - corrupted).float() * gradient.float()
            # [pair pos entry d_head], [pair pos neuron] or [pair pos d_model]
            by_position = (
                product
                if site.kind == "neuron"
                else product.sum(-1).reshape(*product.shape[:2], site.n)
            )
        if self.nodes.n_pos is None:
            return by_position.sum(1)
        return by_position.transpose(1, 2).flatten(1)  # [pair (entry pos)], the order of nodes

    # ---- the QK fix

    def _reaction(self, site: Site) -> Callable[[Tensor], Float32[Tensor, "pair head pos"]]:
        """How the pattern reacts to the other run's queries or keys, as a function of its gradient."""
        layer = site.layer
        q, k = (self.runs.at(self.question.edited).kept[slot][layer] for slot in ("q", "k"))
        other = self.runs.at(self.question.other).kept[site.kind][layer]
        attention = self.model.blocks[layer].attention
        scores = attention.scores(q, k).float()
        changed = (other, k) if site.kind == "q" else (q, other)
        patched = attention.scores(*changed).float()
        if site.kind == "k" and self.nodes.n_pos is not None:
            return KeyFix(scores, patched).contract
        # All positions at once, or queries, whose rows do not mix: one other pattern has it all.
        difference = pattern_difference(scores, patched)
        return partial(contract_rows, difference, scores)

    def _fixed(
        self, site: Site, gradient: Float32[Tensor, "pair head query key"]
    ) -> Float32[Tensor, "pair pos entry"]:
        """Estimates by query or key position; a key counts for all query heads of its group."""
        if site not in self.reactions:  # the same whatever the gradient, and for every pass
            self.reactions[site] = self._reaction(site)
        # The pattern of the other run less that of the run edited: the sign makes it clean less
        # corrupted. Then [pair head pos] -> [pair entry group pos] -> [pair pos entry].
        by_head = -self.question.sign * self.reactions[site](gradient)
        return by_head.unflatten(1, (site.n, -1)).sum(2).transpose(1, 2)

    def refuse_nonfinite(self, scores: Float32[Tensor, "pair node"]) -> None:
        """Raises WiremapError, with the module and the pairs, if an estimate is not finite."""
        finite = torch.isfinite(scores).all(1).cpu()
        if bool(finite.all()):
            return
        where = first_nonfinite(self.model, self.batch)
        if where is None:  # the last in backward order is the first that went wrong
            for site, part in zip(self.nodes.sites, self.nodes.slices, strict=True):
                if not bool(torch.isfinite(scores[:, part]).all()):
                    where = f"gradient by the {site.activation} of layer {site.layer}"
        rows = self.batch.rows[~finite].tolist()
        raise WiremapError(
            f"NaN or infinite values in the {where}, "
            + name_rows(rows, "try float32 (--dtype float32, dtype=torch.float32)")
        )
