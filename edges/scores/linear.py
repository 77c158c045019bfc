"""Reader rules: how an edge's reader is taken to react to another value of its writer.

    linear    by the derivative at its input: score = (u_clean - u_corrupted) . J^T gradient
    exact     by computing it anew: norm, projection, attention of that head (or the MLP, or the
              final norm, unembedding and metric), and from its output on by the gradient

A head writes ``written @ output_weight`` and a reader reads through ``norm`` and ``projection``;
neither is ever kept per head: writes are projected for a chunk of tokens (linear) or of writers
(exact), and used for all readers of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from ..model.parts import NormDerivative
from ..model.transformer import Model
from ..names.graph import SLOTS, Slot
from ..runs.writes import Writes, head_writes
from .rules.rule import Gradients, Pass

INPUTS = (*SLOTS, "mlp_in")
"""The gradients that the linear reader needs, and"""


@dataclass(frozen=True)
class ReaderGradients:
    """The gradients of one pass at the readers of all layers.

    Attributes:
        way: the pass; its streams are those before each block, where the gradients belong.
        layers: gradients by layer; the number of layers stands for the last residual stream.
    """

    model: Model
    way: Pass
    layers: Mapping[int, Gradients]

    def at(self, layer: int, tokens: Int64[Tensor, "token"]) -> _At:
        """Those of a layer, at some tokens."""
        return _At(self.model, layer, self.layers.get(layer, {}), self.way, tokens)


def linear_scores(
    gradients: ReaderGradients,
    writes: Writes,
    tokens: Int64[Tensor, "token"],
    chunk_bytes: int,
    scores: Float32[Tensor, "writer reader"],
) -> None:
    """(clean - corrupted write) . gradient by the reader's input, summed over tokens and runs.

    The writers of a chunk of tokens are projected once, layer by layer; what stands in the table
    before a reader is exactly what it reads.

    Args:
        writes: differences clean - corrupted.
        tokens: places among the batch's pairs x positions.
        chunk_bytes: what the writes of a chunk may take.
        scores: what they are added to; a table for all edges of a large model is large itself.
    """
    model = gradients.model
    graph = model.graph
    n_writers = len(graph.writers)
    per_token = 4 * model.d_model * (n_writers + 2 * (graph.n_heads + 2 * graph.n_kv_heads))
    for chunk in tokens.split(max(1, chunk_bytes // per_token)):

        def cut(tensor: Tensor, chunk: Tensor = chunk) -> Tensor:
            return tensor.flatten(0, 1)[chunk].float()  # [pair pos *entry] -> [token *entry]

        # Filled up as the layers come: rows of writers not yet run are never read.
        made = scores.new_empty(n_writers, len(chunk), model.d_model)
        made[0] = cut(writes.input)
        for layer in range(max(gradients.layers, default=-1) + 1):
            at = gradients.at(layer, chunk)
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
    gradients: ReaderGradients,
    made: Float32[Tensor, "writer token d_model"],
    after: int,
    tokens: Int64[Tensor, "token"],
) -> Float32[Tensor, "writer reader"]:
    """Scores of what is written at the end of block ``after``, into all readers behind it."""
    graph = gradients.model.graph
    scores = made.new_zeros(len(made), len(graph.readers))
    for layer in range(after + 1, graph.n_layers + 1):
        at = gradients.at(layer, tokens)
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
    way: Pass
    tokens: Int64[Tensor, "token"]

    def _of(self, name: str) -> Tensor:
        return of_runs(self.gradients[name], self.way.n_runs, self.tokens)

    def attention(
        self, made: Float32[Tensor, "writer token d_model"]
    ) -> Float32[Tensor, "writer reader"]:
        """Into the queries, keys and values."""
        if "q" not in self.gradients:
            into = self.model.graph.attention_readers(self.layer)
            return made.new_zeros(len(made), into.stop - into.start)
        resid = of_runs(self.way.tape.kept.resid_pre[self.layer], self.way.n_runs, self.tokens)
        gradients = [self._of(slot) for slot in SLOTS]
        return self._into_attention(made, resid, gradients)

    def mlp(self, made: Float32[Tensor, "writer token d_model"]) -> Float32[Tensor, "writer"]:
        """Into the MLP."""
        return self._directly(made, "mlp_in")

    def last(self, made: Float32[Tensor, "writer token d_model"]) -> Float32[Tensor, "writer"]:
        """Into the logits, for the layer behind the last."""
        return self._directly(made, "resid_pre")

    def _directly(self, made: Tensor, name: str) -> Tensor:
        if name not in self.gradients:
            return made.new_zeros(len(made))
        # All runs read the same differences of writes, so their gradients can be summed first.
        return made.flatten(1) @ self._of(name).sum(0).flatten()

    def _into_attention(
        self,
        writes: Float32[Tensor, "writer token d_model"],
        resid: Float32[Tensor, "run token d_model"],
        gradients: Sequence[Float32[Tensor, "run token _ d_head"]],
    ) -> Float32[Tensor, "writer reader"]:
        """Scores of the edges from ``writes`` into the queries, keys and values of the layer.

        With n = W g the gradient at the normalized stream, the gradient at the reader's input is
        J_norm^T n = P(weight * scale * n) - normalized (normalized . weight * scale * n) / d_model.
        The last term is of rank one, and is never formed.
        """
        model, layer, frozen = self.model, self.layer, self.way.frozen
        scores = 0.0
        towards = 0.0
        for run in range(len(resid)):
            norm = model.blocks[layer].attention.norm_derivative(resid[run])
            reads = torch.cat(
                [
                    _SlotReaders(model, layer, slot, resid[run], frozen).reads(norm, gradient[run])
                    for slot, gradient in zip(SLOTS, gradients, strict=True)
                ]
            )  # [reader token d_model]
            towards = towards + reads  # one product for all runs, below
            if norm is not None and not frozen:
                # The term of rank one: along the normalized stream, token by token.
                along_writes = torch.einsum("wtm,tm->wt", writes, norm.normalized)
                along_reads = torch.einsum("rtm,tm->rt", reads, norm.normalized) / model.d_model
                scores = scores - along_writes @ along_reads.T
        return scores + writes.flatten(1) @ torch.as_tensor(towards).flatten(1).T


@dataclass(frozen=True)
class _SlotReaders:
    """The readers of a slot in one run, at some tokens."""

    model: Model
    layer: int
    slot: Slot
    resid: Float32[Tensor, "token d_model"]
    frozen: bool

    def reads(
        self, norm: NormDerivative | None, gradient: Float32[Tensor, "token reader d_head"]
    ) -> Float32[Tensor, "reader token d_model"]:
        """P(weight * scale * n) of each reader; see ``_At._into_attention``."""
        weight = self.model.blocks[self.layer].attention.projection(self.slot)[0].float()
        gradient, others = self._through_head_norm(gradient)
        if norm is not None:
            gradient = gradient * norm.scale[..., None]
        # [token reader d_head] -> [token kv_head group d_head]: a weight serves a group of readers
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
        self, gradient: Float32[Tensor, "token reader d_head"]
    ) -> tuple[
        Float32[Tensor, "token reader d_head"],
        tuple[Float32[Tensor, "token kv_head d_head"], Float32[Tensor, "token reader"]] | None,
    ]:
        """The gradient before the norm of queries or keys, if there is one.

        A norm over all heads together also sends a part of each reader's gradient to the other
        heads, always in one direction: that direction, and the part of it for each reader, come
        second.
        """
        slot, attention = self.slot, self.model.blocks[self.layer].attention
        head_norm = attention.head_norm(slot)
        if head_norm is None:
            return gradient, None
        raw = attention.project_raw(slot, attention.norm(self.resid.to(self.model.dtype)))
        if not attention.norm_spans_heads(slot):
            if slot != "q":
                raw = attention.for_readers(raw)
            return head_norm.derivative(raw.float(), self.frozen).pull_back(gradient).float(), None
        whole = head_norm.derivative(raw.flatten(1).float())
        n_heads = raw.shape[1]
        grouped = gradient.unflatten(1, (n_heads, -1))  # [token kv_head group d_head]
        scaled = grouped * whole.weight.view(n_heads, 1, -1) * whole.scale[..., None, None]
        scaled = scaled.float()
        if self.frozen:
            return scaled.flatten(1, 2), None
        normalized = whole.normalized.unflatten(1, (n_heads, -1)).float()
        shares = torch.einsum("tke,tkge->tkg", normalized, scaled) / whole.normalized.shape[1]
        return scaled.flatten(1, 2), (normalized, shares.flatten(1))
