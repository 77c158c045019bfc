"""Scores of edges: first-order estimates of every edge's effect, all at once.

Edge attribution patching (Syed et al., 2023, arXiv 2310.10348):

    score(u->v) = (u_clean - u_corrupted) . d metric / d (input of v)

summed over positions, averaged over pairs, in units of the metric. The sign follows the effect it
estimates: positive carries the behaviour (EAP as published has the opposite sign). The scores of a
writer's outgoing edges sum to its node score, which is (u_clean - u_corrupted) . d metric / d u.

The gradient at a reader's input is never asked of autograd for each head: it is linear in the
gradient at the reader's projection, J_norm^T (W_Q[head] g_q), and is made for a chunk of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from .errors import InputError
from .graph import SLOTS, ModelGraph
from .memory import BatchSize
from .metrics import Metric, resolve_metric
from .model import Model
from .prompts import PairBatch, PromptPairs
from .trace import GRADIENTS, Gradient, Trace, trace

DIRECTIONS = ("noising", "denoising")

_WRITES_BYTES = 64 << 20
"""What the projected writes of one chunk of tokens may take."""


@dataclass(frozen=True, eq=False)
class EdgeScores:
    """Estimated effects of all edges, mean over pairs, in units of the metric.

    Attributes:
        scores: nan where no edge exists; rows and columns in the order of ``graph.writers`` and
            ``graph.readers``.
        per_pair: the same for each pair, if asked for.
    """

    graph: ModelGraph
    scores: Float32[Tensor, "writer reader"]
    per_pair: Float32[Tensor, "pair writer reader"] | None = None

    def top(self, n: int | None = None) -> list[tuple[str, float]]:
        """The ``n`` largest by magnitude (all by default), as (edge name, score)."""
        edges = list(self.graph.edges())
        rows, columns = torch.tensor(edges).T
        scores = self.scores.cpu()[rows, columns]
        order = scores.abs().argsort(descending=True, stable=True)[:n].tolist()
        return [(self.graph.edge_name(edges[index]), scores[index].item()) for index in order]


def score_edges(
    model: Model,
    pairs: PromptPairs,
    metric: str | Metric = "logit_diff",
    gradient: str | None = None,
    direction: str = "noising",
    per_pair: bool = False,
    batch_size: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> EdgeScores:
    """Edge attribution patching (Syed et al., 2023, arXiv 2310.10348): every edge at once.

    score(u->v) = (u_clean - u_corrupted) . d metric / d (input of v), norms included in the
    derivative. Deviations from the paper: the sign (see above), and the gradient may be taken at
    either run. Costs two forward passes, one backward pass, and a matrix product per layer.

    Args:
        metric: a name in ``METRICS`` or a function ``(logits, targets) -> [row]``.
        gradient: the run the gradient is taken at, ``clean`` or ``corrupted``; None takes the run
            that ``direction`` edits, and the corrupted one for ``kl``.
        direction: ``noising`` edits the clean run, ``denoising`` the corrupted one.
        per_pair: keep the scores of each pair too (pairs x writers x readers numbers).
        batch_size: pairs at once; None takes what fits into memory.
        progress: called with the number of pairs finished since the last call.

    Raises:
        InputError: unknown option values, pairs the model cannot run, a metric that is constant.
        WiremapError: activations or gradients that are not finite.
    """
    graph = model.graph
    shape = (len(graph.writers), len(graph.readers))
    chosen_metric = resolve_metric(metric, pairs.wrong.shape[1] > 0)
    at = check_gradient(gradient, direction, metric)
    model.check_pairs(pairs)
    total = torch.zeros(shape, device=model.device)
    table = torch.zeros((len(pairs), *shape), device=model.device) if per_pair else None
    depends = False

    def scores_of(batch: PairBatch) -> Float32[Tensor, "group writer reader"]:
        nonlocal depends
        found = trace(model, batch, chosen_metric, at, (*SLOTS, "mlp_in"))
        depends |= bool(found.final_gradient.any())
        n_pairs = len(batch)
        groups = [slice(row, row + 1) for row in range(n_pairs)] if per_pair else [slice(n_pairs)]
        return torch.stack([_edges(model, found, group) for group in groups])

    with model.borrowed():
        for bucket in pairs.batches():
            size = BatchSize(batch_size) if batch_size else trace_size(model, bucket)
            for batch, scores in size.map(bucket, scores_of):
                total += scores.sum(0)
                if table is not None:
                    table[batch.rows] = scores
                if progress is not None:
                    progress(len(batch))
    if not depends:
        raise InputError(
            f"the metric's gradient at the {at} run is zero for all pairs: the metric does not "
            "change with the model's output there; use another metric or gradient"
        )
    exists = existing_edges(graph).to(model.device)
    mean = (total / len(pairs)).masked_fill(~exists, torch.nan)
    return EdgeScores(graph, mean, None if table is None else table.masked_fill(~exists, torch.nan))


def existing_edges(graph: ModelGraph) -> Bool[Tensor, "writer reader"]:
    """Which entries of a table of all writers and readers are edges of the model."""
    exists = torch.zeros(len(graph.writers), len(graph.readers), dtype=torch.bool)
    for index, reader in enumerate(graph.readers):
        exists[: reader.n_writers, index] = True
    return exists


def check_direction(direction: str) -> None:
    """Raises InputError for a direction that is not known."""
    if direction not in DIRECTIONS:
        raise InputError(f"unknown direction {direction!r}; there are {', '.join(DIRECTIONS)}")


def check_gradient(gradient: str | None, direction: str, metric: str | Metric) -> Gradient:
    """The run to take gradients at: None takes the edited run, or what the metric needs.

    Raises:
        InputError: names that are not known, or a gradient that is zero by definition.
    """
    check_direction(direction)
    if gradient is None:
        return "corrupted" if direction == "denoising" or metric == "kl" else "clean"
    if gradient == "clean" and metric == "kl":
        raise InputError(
            "metric kl is 0 at the clean run, and so is its gradient; use the gradient at the "
            "corrupted run (--gradient corrupted)"
        )
    for known in GRADIENTS:
        if gradient == known:
            return known
    raise InputError(f"unknown gradient {gradient!r}; there are {', '.join(GRADIENTS)}")


def trace_size(model: Model, bucket: PairBatch, n_patterns: int = 4) -> BatchSize:
    """How many pairs to trace at once: an estimate of what autograd keeps of one pair.

    Args:
        n_patterns: how many tables of the size of attention patterns are kept for each layer.
    """
    n_pos = bucket.clean.shape[1]
    residual_like = 60 * n_pos * model.d_model
    patterns = n_patterns * model.graph.n_heads * n_pos**2
    numbers = model.graph.n_layers * (residual_like + patterns) + 3 * model.d_vocab
    return BatchSize.fitting(4 * numbers, model.device)


def _edges(model: Model, found: Trace, pairs: slice) -> Float32[Tensor, "writer reader"]:
    """Scores of all edges, summed over these pairs and their positions, a chunk of tokens at a time.

    The writers of a chunk are projected once, layer by layer; what stands in the table before a
    reader is exactly what it reads.
    """
    graph = model.graph
    n_writers = len(graph.writers)
    scores = torch.zeros(n_writers, len(graph.readers), device=model.device)
    n_tokens = found.input[pairs].shape[:2].numel()
    chunk = max(1, _WRITES_BYTES // (4 * n_writers * model.d_model))
    for start in range(0, n_tokens, chunk):
        tokens = slice(start, min(start + chunk, n_tokens))

        def cut(tensor: Tensor, tokens: slice = tokens) -> Tensor:
            return tensor[pairs].flatten(0, 1)[tokens]

        writes = scores.new_empty(n_writers, tokens.stop - tokens.start, model.d_model)
        writes[0] = cut(found.input)
        for layer in range(graph.n_layers):
            heads, mlp, mlp_reader = (
                graph.head_writers(layer),
                graph.mlp_writer(layer),
                graph.mlp_reader(layer),
            )
            scores[: heads.start, graph.attention_readers(layer)] += _attention_scores(
                model,
                layer,
                writes[: heads.start],
                cut(found.resid_pre[layer]),
                [cut(getattr(found.gradients, slot)[layer]) for slot in SLOTS],
            )
            writes[heads] = torch.einsum(
                "the,hem->htm", cut(found.z[layer]), model.output_weight(layer)
            )
            n_read = graph.readers[mlp_reader].n_writers
            gradient = cut(found.gradients.mlp_in[layer]).to(writes.dtype)
            scores[:n_read, mlp_reader] += writes[:n_read].flatten(1) @ gradient.flatten()
            writes[mlp] = cut(found.mlp_out[layer])
        gradient = cut(found.final_gradient).to(writes.dtype)
        scores[:, -1] += writes.flatten(1) @ gradient.flatten()
    return scores


def _attention_scores(
    model: Model,
    layer: int,
    writes: Float32[Tensor, "writer token d_model"],
    resid: Float[Tensor, "token d_model"],
    gradients: Sequence[Float[Tensor, "token _ d_head"]],
) -> Float32[Tensor, "writer reader"]:
    """Scores of the edges from ``writes`` into the queries, keys and values of ``layer``.

    With n = W g the gradient at the normalized stream, the gradient at the reader's input is
    J_norm^T n = P(weight * scale * n) - normalized (normalized . weight * scale * n) / d_model.
    It is never formed: scale goes to g, weight and P to W, and the last term is of rank one.
    """
    norm = model.attention_norm_derivative(layer, resid)
    towards: list[Tensor] = []
    for slot, gradient in zip(SLOTS, gradients, strict=True):
        weight, _ = model.projection(layer, slot)
        weight = weight.float() * norm.weight[:, None]
        if norm.centers:
            weight = weight - weight.mean(1, keepdim=True)
        towards.append(torch.einsum("the,hme->htm", gradient * norm.scale[:, :, None], weight))
    reads = torch.cat(towards).to(writes.dtype)
    normalized = norm.normalized.to(writes.dtype)
    along_writes = torch.einsum("wtm,tm->wt", writes, normalized)
    along_reads = torch.einsum("rtm,tm->rt", reads, normalized) / model.d_model
    return writes.flatten(1) @ reads.flatten(1).T - along_writes @ along_reads.T
