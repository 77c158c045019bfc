"""Reader rules: how an edge's reader is taken to react to another value of its writer.

    linear    by the derivative at its input: score = (u_clean - u_corrupted) . J^T gradient
    exact     by computing it anew: norm, projection, attention of that head (or the MLP, or the
              final norm, unembedding and metric), and from its output on by the gradient

A head writes ``written @ output_weight`` and a reader reads through ``norm`` and ``projection``;
neither is ever kept per head: writes are projected for a chunk of tokens (linear) or of writers
(exact), and used for all readers of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from ..model.parts import NormDerivative
from ..model.transformer import Model
from ..names.graph import SLOTS, Slot
from ..runs.writes import Writes, head_writes
from .rules import Gradients

INPUTS = (*SLOTS, "mlp_in")
"""The gradients that the linear reader needs, and"""


def linear_scores(
    model: Model,
    writes: Writes,
    streams: Sequence[Float[Tensor, "row pos d_model"]],
    layers: dict[int, Gradients],
    n_runs: int,
    frozen: bool,
    tokens: Int64[Tensor, "token"],
    chunk_bytes: int,
    scores: Float32[Tensor, "writer reader"],
) -> None:
    """(clean - corrupted write) . gradient by the reader's input, summed over tokens and runs.

    The writers of a chunk of tokens are projected once, layer by layer; what stands in the table
    before a reader is exactly what it reads.

    Args:
        writes: differences clean - corrupted.
        streams: residual streams before each block, where the gradients belong; ``n_runs`` runs of
            the batch one after the other.
        layers: gradients by layer; the number of layers stands for the last residual stream.
        frozen: the norms' scales count as constants.
        tokens: places among the batch's pairs x positions.
        chunk_bytes: what the writes of a chunk may take.
        scores: what they are added to; a table for all edges of a large model is large itself.
    """
    graph = model.graph
    n_writers = len(graph.writers)
    per_token = 4 * model.d_model * (n_writers + 2 * (graph.n_heads + 2 * graph.n_kv_heads))
    for some in tokens.split(max(1, chunk_bytes // per_token)):

        def cut(tensor: Tensor, some: Tensor = some) -> Tensor:
            return tensor.flatten(0, 1)[some].float()

        made = scores.new_empty(n_writers, len(some), model.d_model)
        made[0] = cut(writes.input)
        for layer in range(max(layers, default=-1) + 1):
            at = _At(model, layer, layers.get(layer, {}), streams, n_runs, frozen, some)
            if layer == graph.n_layers:
                scores[:, -1] += at.last(made)
                break
            heads, mlp_reader = graph.head_writers(layer), graph.mlp_reader(layer)
            into = graph.attention_readers(layer)
            scores[: heads.start, into] += at.attention(made[: heads.start])
            weight = model.blocks[layer].attention.output_weight().float()
            made[heads] = head_writes(cut(writes.written[layer]), weight)
            n_read = graph.readers[mlp_reader].n_writers
            scores[:n_read, mlp_reader] += at.mlp(made[:n_read])
            made[graph.mlp_writer(layer)] = cut(writes.mlp_out[layer])


def onward_scores(
    model: Model,
    made: Float32[Tensor, "writer token d_model"],
    after: int,
    streams: Sequence[Float[Tensor, "row pos d_model"]],
    layers: dict[int, Gradients],
    n_runs: int,
    frozen: bool,
    tokens: Int64[Tensor, "token"],
) -> Float32[Tensor, "writer reader"]:
    """Scores of what is written at the end of block ``after``, into all readers behind it."""
    graph = model.graph
    scores = made.new_zeros(len(made), len(graph.readers))
    for layer in range(after + 1, graph.n_layers + 1):
        at = _At(model, layer, layers.get(layer, {}), streams, n_runs, frozen, tokens)
        if layer == graph.n_layers:
            scores[:, -1] = at.last(made)
        else:
            scores[:, graph.attention_readers(layer)] = at.attention(made)
            scores[:, graph.mlp_reader(layer)] = at.mlp(made)
    return scores


def of_runs(
    tensor: Float[Tensor, "row pos *entry"], n_runs: int, tokens: Int64[Tensor, "token"]
) -> Float32[Tensor, "run token *entry"]:
    """Some tokens of each of the runs that stand one after the other in the rows."""
    return tensor.unflatten(0, (n_runs, -1)).flatten(1, 2)[:, tokens].float()


@dataclass(frozen=True)
class _At:
    """The gradients at the readers of a layer, and what a write into them scores; 0 without any."""

    model: Model
    layer: int
    gradients: Gradients
    streams: Sequence[Float[Tensor, "row pos d_model"]]
    n_runs: int
    frozen: bool
    tokens: Int64[Tensor, "token"]

    def _of(self, name: str) -> Tensor:
        return of_runs(self.gradients[name], self.n_runs, self.tokens)

    def attention(
        self, made: Float32[Tensor, "writer token d_model"]
    ) -> Float32[Tensor, "writer reader"]:
        """Into the queries, keys and values."""
        if "q" not in self.gradients:
            into = self.model.graph.attention_readers(self.layer)
            return made.new_zeros(len(made), into.stop - into.start)
        resid = of_runs(self.streams[self.layer], self.n_runs, self.tokens)
        gradients = [self._of(slot) for slot in SLOTS]
        return _into_attention(self.model, self.layer, made, resid, gradients, self.frozen)

    def mlp(self, made: Float32[Tensor, "writer token d_model"]) -> Float32[Tensor, "writer"]:
        """Into the MLP."""
        return self._directly(made, "mlp_in")

    def last(self, made: Float32[Tensor, "writer token d_model"]) -> Float32[Tensor, "writer"]:
        """Into the logits, for the layer behind the last."""
        return self._directly(made, "resid_pre")

    def _directly(self, made: Tensor, name: str) -> Tensor:
        if name not in self.gradients:
            return made.new_zeros(len(made))
        return made.flatten(1) @ self._of(name).sum(0).flatten()


def _into_attention(
    model: Model,
    layer: int,
    writes: Float32[Tensor, "writer token d_model"],
    resid: Float32[Tensor, "run token d_model"],
    gradients: Sequence[Float32[Tensor, "run token _ d_head"]],
    frozen: bool,
) -> Float32[Tensor, "writer reader"]:
    """Scores of the edges from ``writes`` into the queries, keys and values of ``layer``.

    With n = W g the gradient at the normalized stream, the gradient at the reader's input is
    J_norm^T n = P(weight * scale * n) - normalized (normalized . weight * scale * n) / d_model.
    The last term is of rank one, and is never formed.
    """
    scores = 0.0
    towards = 0.0
    for run in range(len(resid)):
        norm = model.blocks[layer].attention.norm_derivative(resid[run])
        reads = torch.cat(
            [
                _reads(model, layer, slot, norm, resid[run], gradient[run], frozen)
                for slot, gradient in zip(SLOTS, gradients, strict=True)
            ]
        )
        towards = towards + reads
        if norm is not None and not frozen:
            along_writes = torch.einsum("wtm,tm->wt", writes, norm.normalized)
            along_reads = torch.einsum("rtm,tm->rt", reads, norm.normalized) / model.d_model
            scores = scores - along_writes @ along_reads.T
    return scores + writes.flatten(1) @ torch.as_tensor(towards).flatten(1).T


def _reads(
    model: Model,
    layer: int,
    slot: Slot,
    norm: NormDerivative | None,
    resid: Float32[Tensor, "token d_model"],
    gradient: Float32[Tensor, "token reader d_head"],
    frozen: bool,
) -> Float32[Tensor, "reader token d_model"]:
    """P(weight * scale * n) of each reader of a slot; see ``_into_attention``."""
    weight = model.blocks[layer].attention.projection(slot)[0].float()
    gradient, others = _through_head_norm(model, layer, slot, resid, gradient, frozen)
    if norm is not None:
        gradient = gradient * norm.scale[..., None]
    grouped = gradient.unflatten(1, (len(weight), -1))
    reads = torch.einsum("tkge,kme->kgtm", grouped, weight).flatten(0, 1)
    if others is not None:
        along, shares = others
        common = torch.einsum("tke,kme->tm", along, weight)
        if norm is not None:
            common = common * norm.scale
        reads = reads - shares.T[..., None] * common
    if norm is None:
        return reads
    reads = reads * norm.weight
    return reads - reads.mean(-1, keepdim=True) if norm.centers else reads


def _through_head_norm(
    model: Model,
    layer: int,
    slot: Slot,
    resid: Float32[Tensor, "token d_model"],
    gradient: Float32[Tensor, "token reader d_head"],
    frozen: bool,
) -> tuple[
    Float32[Tensor, "token reader d_head"],
    tuple[Float32[Tensor, "token kv_head d_head"], Float32[Tensor, "token reader"]] | None,
]:
    """The gradient before the norm of queries or keys, if there is one.

    A norm over all heads together also sends a part of each reader's gradient to the other heads,
    always in one direction: that direction, and the part of it for each reader, come second.
    """
    attention = model.blocks[layer].attention
    head_norm = attention.head_norm(slot)
    if head_norm is None:
        return gradient, None
    raw = attention.project_raw(slot, attention.norm(resid.to(model.dtype)))
    if not attention.norm_spans_heads(slot):
        if slot != "q":
            raw = attention.for_readers(raw)
        return head_norm.derivative(raw.float(), frozen).pull_back(gradient).float(), None
    found = head_norm.derivative(raw.flatten(1).float())
    n_heads = raw.shape[1]
    grouped = gradient.unflatten(1, (n_heads, -1))
    scaled = grouped * found.weight.view(n_heads, 1, -1) * found.scale[..., None, None]
    scaled = scaled.float()
    if frozen:
        return scaled.flatten(1, 2), None
    normalized = found.normalized.unflatten(1, (n_heads, -1)).float()
    shares = torch.einsum("tke,tkge->tkg", normalized, scaled) / found.normalized.shape[1]
    return scaled.flatten(1, 2), (normalized, shares.flatten(1))
