"""Reader rules: how an edge's reader is taken to react to another value of its writer.

    linear    by the derivative at its input: score = (u_clean - u_corrupted) . J^T gradient
    exact     by computing it anew: norm, projection, attention of that head (or the MLP, or the
              final norm, unembedding and metric), and from its output on by the gradient

A head writes ``written @ output_weight`` and a reader reads through ``norm`` and ``projection``;
neither is ever kept per head: writes are projected for a chunk of tokens (linear) or of writers
(exact), and used for all readers of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from .gradients import Gradients
from .graph import SLOTS, Slot
from .metrics import Metric, Targets
from .model import Model
from .parts import NormDerivative
from .qk_fix import KeyFix, contract_rows, pattern_difference
from .trace import BothRuns, Run, Tape, answer_logits

WRITES = ("written", "mlp_out")
"""What a run keeps so that writes can be made of it."""

INPUTS = (*SLOTS, "mlp_in")
"""The gradients that the linear reader needs, and"""

OUTPUTS = ("z", "mlp_out")
"""those that the exact reader needs."""

REACTIONS = ("resid_pre", "mlp_in", *SLOTS)
"""What the run edited keeps so that readers can be computed anew."""


@dataclass(frozen=True)
class Writes:
    """What makes the writes of a batch: of one run, or differences of two."""

    input: Float[Tensor, "pair pos d_model"]
    written: Sequence[Float[Tensor, "pair pos head d_head"]]
    mlp_out: Sequence[Float[Tensor, "pair pos d_model"]]

    @classmethod
    def difference(cls, one: Run | Tape, other: Run | Tape) -> Writes:
        """The writes of one run less those of the other."""

        def less(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
            return [x - y for x, y in zip(a, b, strict=True)]

        return cls(
            one.input - other.input,
            less(one.kept.written, other.kept.written),
            less(one.kept.mlp_out, other.kept.mlp_out),
        )

    def of(self, model: Model, writers: Sequence[int]) -> Float[Tensor, "writer pair pos d_model"]:
        """The writes of some writers, as large as they stand in the residual stream."""
        found = self.input.new_empty(len(writers), *self.input.shape)
        by_layer: dict[int, list[int]] = {}
        for place, writer in enumerate(writers):
            node = model.graph.writers[writer]
            if node.kind == "head":
                by_layer.setdefault(node.layer, []).append(place)
            else:
                found[place] = self.input if node.layer < 0 else self.mlp_out[node.layer]
        for layer, places in by_layer.items():
            heads = [model.graph.writers[writers[place]].head for place in places]
            written = self.written[layer][:, :, heads]
            found[places] = torch.einsum(
                "bphe,hem->hbpm", written, model.output_weight(layer)[heads]
            )
        return found


# ---- the linear reader


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
            made[heads] = torch.einsum(
                "the,hem->htm", cut(writes.written[layer]), model.output_weight(layer).float()
            )
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
        norm = model.attention_norm_derivative(layer, resid[run])
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
    weight = model.projection(layer, slot)[0].float()
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
    head_norm = model.head_norm(layer, slot)
    if head_norm is None:
        return gradient, None
    raw = model.project_raw(layer, slot, model.attention_norm(layer, resid.to(model.dtype)))
    if not model.norm_spans_heads(layer, slot):
        if slot != "q":
            raw = model.for_readers(raw)
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


# ---- the exact reader


@dataclass(frozen=True)
class OutputGradients:
    """Gradients at what readers give, by layer; several where a rule averages absolute values.

    Attributes:
        layers: of each layer, gradients with how often each counts.
    """

    layers: dict[int, list[tuple[Gradients, int]]] = field(
        default_factory=dict[int, list[tuple[Gradients, int]]]
    )

    def add(self, found: dict[int, tuple[Gradients, int]], n_runs: int, unsigned: bool) -> None:
        """Takes in those of a pass: signed ones are summed, absolute values need each by itself."""
        for layer, (gradients, times) in found.items():
            if not set(OUTPUTS) <= set(gradients):
                continue
            new = {
                name: gradients[name].unflatten(0, (n_runs, -1)).sum(0, dtype=torch.float32)
                for name in OUTPUTS
            }
            if unsigned:
                self.layers.setdefault(layer, []).append((new, times))
            elif layer in self.layers:
                for name, gradient in self.layers[layer][0][0].items():
                    gradient += new[name]
            else:
                self.layers[layer] = [(new, times)]

    def at(self, layer: int, name: str) -> Float[Tensor, "variant pair pos *entry"]:
        """All gradients by an activation."""
        return torch.stack([gradients[name] for gradients, _ in self.layers[layer]])

    def times(self, layer: int) -> list[int]:
        """How often each counts."""
        return [times for _, times in self.layers[layer]]


Reactions = Iterator[tuple[list[int], int, Float[Tensor, "variant writer pair *places"]]]
"""Of some writers and a reader, the estimated effects by position, one for each gradient."""


class ExactReader:
    """Readers of the run edited, computed anew with another write in their input.

    Args:
        base: the run edited, with what ``REACTIONS`` names.
        change: writes of the other run less those of the run edited.
        sign: makes effects clean minus corrupted: -1 where the clean run is edited.
        each: every position is patched alone, rather than all at once.
        crossing: keep what keys and values are worth by query, too: estimates are
            ``[variant writer pair query key]`` then.
        wanted: which edges.
        item_bytes: what a batch of readers computed anew may take.
    """

    def __init__(
        self,
        model: Model,
        base: Run | Tape,
        change: Writes,
        gradients: OutputGradients,
        sign: int,
        each: bool,
        wanted: Bool[Tensor, "writer reader"],
        item_bytes: int,
        crossing: bool = False,
    ) -> None:
        self.crossing = crossing
        self.model, self.base, self.change = model, base, change
        self.gradients, self.sign, self.each = gradients, sign, each
        self.wanted = wanted.cpu()
        self.item_bytes = item_bytes
        n_pairs, n_pos = change.input.shape[:2]
        group = model.graph.n_heads // model.graph.n_kv_heads
        width = 6 * model.d_model + 3 * (model.d_mlp or 4 * model.d_model)
        numbers = n_pairs * (n_pos * width + 4 * group * n_pos**2)
        self.at_once = max(1, item_bytes // (4 * numbers))

    def reactions(self, attention_only: bool = False) -> Reactions:
        """Everything wanted but the edges to the logits, layer by layer.

        Args:
            attention_only: queries and keys alone.
        """
        graph = self.model.graph
        for layer in range(graph.n_layers):
            attention = graph.attention_readers(layer)
            readers = [
                reader
                for reader in range(attention.start, attention.stop)
                if not attention_only or graph.readers[reader].kind != "v"
            ]
            for writers in self._chunks(self.wanted[:, readers].any(1)):
                resid = self.base.kept.resid_pre[layer] + self.change.of(self.model, writers)
                normed = self.model.attention_norm(layer, resid)
                for reader in readers:
                    yield from self._of_head(layer, reader, writers, normed)
            if not attention_only:
                yield from self._of_mlp(layer)

    def _chunks(self, writers: Bool[Tensor, "writer"]) -> Iterator[list[int]]:
        chosen = writers.nonzero().flatten()
        yield from (part.tolist() for part in chosen.split(self.at_once) if len(part))

    def _of_mlp(self, layer: int) -> Reactions:
        reader = self.model.graph.mlp_reader(layer)
        gradient = None
        for writers in self._chunks(self.wanted[:, reader]):
            if gradient is None:
                gradient = self.gradients.at(layer, "mlp_out").float()
            mlp_in = self.base.kept.mlp_in[layer] + self.change.of(self.model, writers)
            mlp_out = self.model.mlp(layer, self.model.mlp_norm(layer, mlp_in).flatten(0, 1))
            moved = mlp_out.view_as(mlp_in) - self.base.kept.mlp_out[layer]
            yield (
                writers,
                reader,
                self.sign * torch.einsum("wbpm,vbpm->vwbp", moved.float(), gradient),
            )

    def _of_head(
        self,
        layer: int,
        reader: int,
        writers: list[int],
        normed: Float[Tensor, "writer pair pos d_model"],
    ) -> Reactions:
        """One query, key or value read anew."""
        places = self.wanted[writers, reader].nonzero().flatten()
        if not len(places):
            return
        model, kept = self.model, self.base.kept
        slot = cast("Slot", model.graph.readers[reader].kind)
        head = model.graph.readers[reader].head
        some = normed if len(places) == len(writers) else normed[places.to(normed.device)]
        new = model.project_heads(layer, slot, [head] * len(places), some)
        kv_head, queries = _heads(model, slot, head)
        gradient = self.gradients.at(layer, "z")[..., queries, :].float()
        q, k = kept.q[layer][:, :, queries], kept.k[layer][:, :, kv_head : kv_head + 1]
        before = model.attention_scores(layer, q, k).float()
        if slot == "v":
            change = new - kept.v[layer][:, :, head]
            found = _value_reaction(before.softmax(-1), change, gradient, self.crossing)
        else:
            rows = new.flatten(0, 1)[:, :, None]

            def repeated(heads: Tensor) -> Tensor:
                return heads.repeat(len(places), 1, 1, 1)

            of_rows = (rows, repeated(k)) if slot == "q" else (repeated(q), rows)
            after = model.attention_scores(layer, *of_rows).float()
            value = kept.v[layer][:, :, kv_head].float()
            found = _pattern_reaction(
                before,
                after.unflatten(0, (len(places), -1)),
                torch.einsum("vbqhd,bkd->vbhqk", gradient, value),
                alone=slot == "k" and self.each,
                crossing=self.crossing,
            )
        yield [writers[place] for place in places.tolist()], reader, self.sign * found

    def effects_on_logits(
        self, metric: Metric, targets: Targets
    ) -> Iterator[tuple[list[int], Float[Tensor, "writer pair"]]]:
        """The edges to the logits: metric with the clean less with the corrupted write."""
        base = metric(self.base.logits, targets)
        last = len(self.model.graph.readers) - 1
        for writers in self._chunks(self.wanted[:, last]):
            final = self.base.final[:, -1:] + self.change.of(self.model, writers)[:, :, -1:]
            logits = answer_logits(self.model, final.flatten(0, 1))
            values = metric(logits, targets.repeat(len(writers)))
            yield writers, self.sign * (values.view(len(writers), -1) - base).float()


def exact_reader(
    runs: BothRuns,
    direction: str,
    gradients: OutputGradients,
    each: bool,
    wanted: Bool[Tensor, "writer reader"],
    item_bytes: int,
    crossing: bool = False,
) -> ExactReader:
    """The exact reader of the run that ``direction`` edits; see ``ExactReader``."""
    noising = direction == "noising"
    names = ("clean", "corrupted") if noising else ("corrupted", "clean")
    base, other = (runs.at(name) for name in names)
    return ExactReader(
        runs.model,
        base,
        Writes.difference(other, base),
        gradients,
        -1 if noising else 1,
        each,
        wanted,
        item_bytes,
        crossing,
    )


def _heads(model: Model, slot: str, head: int) -> tuple[int, list[int]]:
    """The key-value reader and the query heads that a query, key or value has to do with."""
    group = model.graph.n_heads // model.graph.n_kv_heads
    if slot == "q":
        return head // group, [head]
    return head, list(model.graph.query_heads(head))


def _value_reaction(
    pattern: Float[Tensor, "pair head query key"],
    change: Float[Tensor, "writer pair key d_head"],
    gradient: Float[Tensor, "variant pair query head d_head"],
    crossing: bool,
) -> Float[Tensor, "variant writer pair *places"]:
    """What another value is worth, by its position (and by query): values enter linearly."""
    if crossing:
        worth = torch.einsum("wbkd,vbqhd->vwbhqk", change.float(), gradient)
        return (worth * pattern).sum(3)
    at_values = torch.einsum("bhqk,vbqhd->vbkd", pattern, gradient)
    return torch.einsum("wbkd,vbkd->vwbk", change.float(), at_values)


def _pattern_reaction(
    before: Float[Tensor, "pair head query key"],
    after: Float[Tensor, "writer pair head query key"],
    gradient: Float[Tensor, "variant pair head query key"],
    alone: bool,
    crossing: bool,
) -> Float[Tensor, "variant writer pair *places"]:
    """What other scores are worth through the softmax: by query, or for each key alone by key."""
    before = before.expand_as(after)
    if alone:
        fix = KeyFix(before, after)
        found = [fix.by_query(one.expand_as(after)).sum(-3) for one in gradient]
        return torch.stack([one if crossing else one.sum(-2) for one in found])
    difference = pattern_difference(before, after)
    return torch.stack(
        [contract_rows(difference, before, one.expand_as(after)).sum(-2) for one in gradient]
    )
