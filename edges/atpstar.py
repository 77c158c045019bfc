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

GradDrop costs (L + 1) / 2 backward passes: dropping layer l changes no gradient above it, so each
pass restarts from the residual stream's gradient after layer l.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from .attribution import check_direction, trace_size
from .errors import InputError, WiremapError
from .memory import BatchSize
from .metrics import Metric, Targets, resolve_metric
from .model import Model
from .nodes import NodeSet, Site
from .prompts import PairBatch, PromptPairs, name_rows
from .qk_fix import KeyFix, contract_rows, pattern_difference
from .trace import Run, Tape, first_nonfinite, run

Method = Literal["atp", "atp-qk", "atp-star"]
METHODS: dict[str, tuple[str | None, bool]] = {
    "atp": (None, False),
    "atp-qk": (None, True),
    "atp-star": ("graddrop", True),
}
"""Of each method, the gradient rule it fixes (None: any) and whether it has the QK fix."""

GRADIENTS = ("clean", "corrupted", "both", "integrated", "graddrop")
AGGREGATES = ("abs-of-mean", "mean-of-abs")
"""|mean estimate| over pairs, the estimand's form, and mean |estimate|, the paper's eq. 5."""


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

    def top(self, n: int | None = None, aggregate: str = "abs-of-mean") -> list[tuple[str, float]]:
        """The ``n`` best (all by default), as (name, score).

        Args:
            aggregate: what ranks them, a name in ``AGGREGATES``; ``abs-of-mean`` gives the signed
                mean as the score, ``mean-of-abs`` the mean of absolutes.
        """
        if aggregate not in AGGREGATES:
            raise InputError(f"unknown aggregate {aggregate!r}; there are {', '.join(AGGREGATES)}")
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
    nodes: str | Sequence[str] = ("heads", "mlps"),
    metric: str | Metric = "logit_diff",
    method: str | None = None,
    gradient: str | None = None,
    steps: int = 10,
    direction: str = "noising",
    positions: str = "sum",
    per_pair: bool = False,
    batch_size: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> NodeScores:
    """Estimates of the effects of all nodes of some families at once.

    Args:
        nodes: families: ``heads`` (query, key, value and output of every head), ``mlps``,
            ``neurons``, ``residual`` (linear estimates of whole residual streams are poor: patch
            them, they are few), ``writers`` (input, head outputs, MLPs).
        method: ``atp``, ``atp-qk`` or ``atp-star``; None takes ``recommended_method``.
        gradient: the runs it is taken at: ``clean``, ``corrupted``, ``both`` (their mean),
            ``integrated`` (the mean over ``steps`` midpoints between the two input embeddings), or
            ``graddrop`` at the run edited. None takes the run edited (the corrupted one for
            ``kl``), and ``graddrop`` for AtP*.
        direction: ``noising`` edits the clean run, ``denoising`` the corrupted one.
        positions: ``sum`` makes a node of all its positions together, ``each`` one of every
            position, for which all prompts must be of one length.
        per_pair: keep the estimates of each pair too.
        batch_size: pairs at once; None takes what fits into memory.
        progress: called with the number of pairs finished since the last call.

    Costs two forward passes and one backward pass; with the QK fix less than two forward passes
    more; GradDrop (L + 1) / 2 backward passes; ``integrated`` ``steps`` forwards and backwards.

    Raises:
        InputError: unknown options, methods and gradients that do not go together, prompts of
            several lengths with ``each``, a constant metric.
        WiremapError: activations or gradients that are not finite; the module and pairs are named.
    """
    families = (nodes,) if isinstance(nodes, str) else tuple(nodes)
    method = method or recommended_method(families, len(pairs), gradient)
    rule, fix = check_method(method, gradient, direction, metric, steps)
    n_layers = model.graph.n_layers
    if rule == "graddrop" and n_layers < 2:
        raise InputError("GradDrop needs at least two layers, one to drop and one to keep")
    node_set = NodeSet(model.graph, model.d_mlp, families, one_length(pairs, positions))
    chosen_metric = resolve_metric(metric, pairs.wrong.shape[1] > 0)
    model.check_pairs(pairs)
    total = torch.zeros(2, len(node_set), device=model.device)
    table = torch.zeros(len(pairs), len(node_set), device=model.device) if per_pair else None
    depends = False

    def scores_of(batch: PairBatch) -> Float32[Tensor, "pair node"]:
        nonlocal depends
        scorer = _Scorer(model, batch, node_set, chosen_metric, rule, fix, direction, steps)
        found = scorer.scores()
        depends |= scorer.depends
        scorer.refuse_nonfinite(found)
        return found

    with model.borrowed():
        for bucket in pairs.batches():
            n_patterns = 11 if fix else 4
            size = BatchSize(batch_size) if batch_size else trace_size(model, bucket, n_patterns)
            for batch, found in size.map(bucket, scores_of):
                total += torch.stack([found.sum(0), found.abs().sum(0)])
                if table is not None:
                    table[batch.rows] = found
                if progress is not None:
                    progress(len(batch))
    if not depends:
        raise InputError(
            "the metric's gradient is zero for all pairs: the metric does not change with the "
            "model's output there; use another metric or gradient"
        )
    scores, contributions = total / len(pairs)
    return NodeScores(node_set, scores, contributions, method, rule, rule == "graddrop", table)


def check_method(
    method: str, gradient: str | None, direction: str, metric: str | Metric, steps: int
) -> tuple[str, bool]:
    """The gradient rule and whether to fix queries and keys.

    Raises:
        InputError: unknown names, steps below 1, or options that contradict each other.
    """
    check_direction(direction)
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}; there are {', '.join(METHODS)}")
    if gradient is not None and gradient not in GRADIENTS:
        raise InputError(f"unknown gradient {gradient!r}; there are {', '.join(GRADIENTS)}")
    if steps < 1:
        raise InputError(f"expected at least one step, got {steps}")
    fixed, fix = METHODS[method]
    if fixed is not None and gradient not in (None, fixed):
        raise InputError(
            f"method {method} means gradient {fixed}, got {gradient}; leave the gradient out, or "
            "use method atp-qk"
        )
    edited = "clean" if direction == "noising" else "corrupted"
    rule = gradient or fixed or ("corrupted" if metric == "kl" else edited)
    if metric == "kl" and "clean" in (rule, edited if rule == "graddrop" else rule):
        raise InputError(
            "metric kl is 0 at the clean run, and so is its gradient; use the gradient at the "
            "corrupted run (--gradient corrupted), or denoising"
        )
    return rule, fix


def one_length(pairs: PromptPairs, positions: str) -> int | None:
    """How many positions to tell apart; None for their sum. Raises InputError for mixed lengths."""
    if positions == "sum":
        return None
    if positions != "each":
        raise InputError(f"unknown positions {positions!r}; there are sum, each")
    lengths = sorted(set(pairs.lengths.tolist()))
    if len(lengths) > 1:
        raise InputError(
            "a node of each position needs prompts of one length, got lengths "
            f"{', '.join(map(str, lengths))}; use --positions sum, or pairs of one length"
        )
    return lengths[0]


Gradients = dict[str, Tensor]
"""Gradients by the activations of a block, by name."""


class _Scorer:
    """The scores of one batch: its runs, what differs between them, and the backward passes."""

    def __init__(
        self,
        model: Model,
        batch: PairBatch,
        nodes: NodeSet,
        metric: Metric,
        rule: str,
        fix: bool,
        direction: str,
        steps: int,
    ) -> None:
        self.model, self.batch, self.nodes, self.metric = model, batch, nodes, metric
        self.rule, self.steps = rule, steps
        self.fixed = {"q", "k"} & set(nodes.kinds) if fix else set[str]()
        self.depends = False
        values = {site.activation for site in nodes.sites}
        self.by = values - self.fixed - {"input", "resid_pre"}
        if self.fixed:
            values |= {"q", "k"}
            self.by |= {"pattern"}
        self.clean = self._run("clean", batch.clean, direction, values)
        self.corrupted = self._run("corrupted", batch.corrupted, direction, values)
        noising = direction == "noising"
        self.edited, self.other = (
            (self.clean, self.corrupted) if noising else (self.corrupted, self.clean)
        )
        self.sign = -1 if noising else 1
        self.reactions = {
            (site.kind, site.layer): self._reaction(site)
            for site in nodes.sites
            if site.kind in self.fixed
        }

    # ---- runs

    def _run(
        self, name: str, tokens: Tensor, direction: str, values: Collection[str]
    ) -> Run | Tape:
        edited = "clean" if direction == "noising" else "corrupted"
        taped = {"both": ("clean", "corrupted"), "graddrop": (edited,), "integrated": ()}
        if name not in taped.get(self.rule, (self.rule,)):
            return run(self.model, tokens, values)
        resid = self.model.embed(tokens.to(self.model.device))
        return self._tape(resid, None if name == "clean" else self.clean.logits, values)

    def _tape(
        self, resid: Tensor, clean_logits: Tensor | None, values: Collection[str] = ()
    ) -> Tape:
        """A tape from these input writes; without ``clean_logits`` it is the clean run itself."""

        def metric(logits: Float[Tensor, "pair d_vocab"]) -> Float[Tensor, "pair"]:
            clean = logits.detach() if clean_logits is None else clean_logits
            return self.metric(logits, Targets.of(self.batch, clean))

        tape = Tape(self.model, resid, metric, self.by, values)
        self.depends |= bool(tape.final_gradient.any())
        return tape

    def _tapes(self) -> Iterator[Tape]:
        """The runs that the gradients of a rule are averaged over."""
        if self.rule != "integrated":
            yield from (run for run in (self.clean, self.corrupted) if isinstance(run, Tape))
            return
        difference = self.clean.input - self.corrupted.input
        for step in range(self.steps):
            part = (step + 0.5) / self.steps
            yield self._tape(self.corrupted.input + part * difference, self.clean.logits)

    # ---- scores

    def scores(self) -> Float32[Tensor, "pair node"]:
        """The estimates of all nodes, on each pair."""
        table = torch.zeros(len(self.batch), len(self.nodes), device=self.model.device)
        n_tapes = 0
        for tape in self._tapes():
            if self.rule == "graddrop":
                self._drop_each_layer(tape, table)
            else:
                for layer, gradients in _backward(tape):
                    self._add(table, layer, gradients)
            n_tapes += 1
        return table / n_tapes

    def _drop_each_layer(self, tape: Tape, table: Float32[Tensor, "pair node"]) -> None:
        """GradDrop: adds every node's mean of absolutes over the passes with one layer dropped.

        The passes that drop a layer below a node leave its gradient as it is; those above restart
        after the dropped layer, with the gradient that its residual stream alone passes on. Nodes
        of the dropped layer have no gradient there, but the residual stream before it has.
        """
        n_layers = self.model.graph.n_layers
        after = [tape.final_gradient] * n_layers
        for layer, gradients in _backward(tape, again=True):
            if layer > 0:
                after[layer - 1] = gradients["resid_pre"]
            self._add(table, layer, gradients, weight=layer, absolute=True)
        for dropped in reversed(range(n_layers)):
            skipped = {"resid_pre": after[dropped]}
            self._add(table, dropped, skipped, absolute=True)
            for layer, gradients in _backward(tape, after[dropped], dropped, again=True):
                self._add(table, layer, gradients, absolute=True)
        for site, part in zip(self.nodes.sites, self.nodes.slices, strict=True):
            table[:, part] /= n_layers if site.kind in ("input", "resid") else n_layers - 1

    def _add(
        self,
        table: Float32[Tensor, "pair node"],
        layer: int,
        gradients: Gradients,
        weight: int = 1,
        absolute: bool = False,
    ) -> None:
        """Adds the estimates of a layer's nodes that these gradients allow."""
        for site, part in zip(self.nodes.sites, self.nodes.slices, strict=True):
            needed = "pattern" if site.kind in self.fixed else site.activation
            if (
                site.layer != layer
                or ("resid_pre" if needed == "input" else needed) not in gradients
            ):
                continue
            estimates = self._estimates(site, gradients)
            table[:, part] += weight * (estimates.abs() if absolute else estimates)

    def _estimates(self, site: Site, gradients: Gradients) -> Float32[Tensor, "pair node"]:
        """The estimates of a site's nodes, in their order."""
        if site.kind in self.fixed:
            by_position = self._fixed(site, gradients["pattern"].float())
        else:
            name = site.activation
            clean, corrupted = (
                getattr(run.kept, name)[site.layer] for run in (self.clean, self.corrupted)
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
        return by_position.transpose(1, 2).flatten(1)

    # ---- the QK fix

    def _reaction(self, site: Site) -> Callable[[Tensor], Float32[Tensor, "pair head pos"]]:
        """How the pattern reacts to the other run's queries or keys, as a function of its gradient."""
        layer = site.layer
        q, k = (getattr(self.edited.kept, slot)[layer] for slot in ("q", "k"))
        other = getattr(self.other.kept, site.kind)[layer]
        of = self.model.attention_scores
        scores = of(layer, q, k).float()
        patched = (of(layer, other, k) if site.kind == "q" else of(layer, q, other)).float()
        if site.kind == "k" and self.nodes.n_pos is not None:
            return KeyFix(scores, patched).contract
        difference = pattern_difference(scores, patched)
        return partial(contract_rows, difference, scores)

    def _fixed(
        self, site: Site, gradient: Float32[Tensor, "pair head query key"]
    ) -> Float32[Tensor, "pair pos entry"]:
        """Estimates by query or key position; a key counts for all query heads of its group."""
        by_head = self.sign * self.reactions[site.kind, site.layer](gradient)
        return by_head.unflatten(1, (site.n, -1)).sum(2).transpose(1, 2)

    def refuse_nonfinite(self, table: Float32[Tensor, "pair node"]) -> None:
        """Raises WiremapError, with the module and the pairs, if an estimate is not finite."""
        finite = torch.isfinite(table).all(1).cpu()
        if bool(finite.all()):
            return
        where = first_nonfinite(self.model, self.batch)
        if where is None:  # the last in backward order is the first that went wrong
            for site, part in zip(self.nodes.sites, self.nodes.slices, strict=True):
                if not bool(torch.isfinite(table[:, part]).all()):
                    where = f"gradient by the {site.activation} of layer {site.layer}"
        rows = self.batch.rows[~finite].tolist()
        raise WiremapError(
            f"NaN or infinite values in the {where}, "
            + name_rows(rows, "try float32 (--dtype float32)")
        )


def _backward(
    tape: Tape, gradient: Tensor | None = None, start: int | None = None, again: bool = False
) -> Iterator[tuple[int, Gradients]]:
    """The gradients of each block, last first, that by the residual stream before it included."""
    gradient = tape.final_gradient if gradient is None else gradient
    for layer, found, below in tape.backward(gradient, start, again):
        yield layer, {**found, "resid_pre": below}
