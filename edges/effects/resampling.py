"""Runs of a reduced model whose dropped edges carry values of several other prompts.

``edge_logits``: every dropped edge its own prompt, in one pass. ``tree_logits``: the model written
out as a tree, a copy of each node for every path of kept edges from it to the logits, and a prompt
for each copy. With one prompt for everything both are ``reduced.masked_logits``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ..errors import InputError
from ..model.activations import Activations
from ..model.transformer import Model
from ..names.graph import ROOT, SLOTS, ModelGraph
from ..runs.memory import BatchSize
from ..runs.trace import Run, answer_logits, run
from ..runs.writes import WRITES, before_output, through_output
from .reduced import Additions, masked_logits

_STREAMS = ("resid_pre", "mlp_in")


@dataclass(frozen=True)
class Pool:
    """What ordinary runs of all prompts of one length leave behind.

    Attributes:
        tokens: the prompts.
        input, final: the first and the last residual stream.
        kept: what heads and MLPs wrote, by layer; what they read, if it was asked for.
    """

    tokens: Int64[Tensor, "prompt pos"]
    input: Float[Tensor, "prompt pos d_model"]
    final: Float[Tensor, "prompt pos d_model"]
    kept: Activations

    @classmethod
    def of(
        cls, model: Model, tokens: Int64[Tensor, "prompt pos"], size: BatchSize, streams: bool
    ) -> Pool:
        """Runs the prompts, as many at once as ``size`` says; ``streams``: keeps what is read."""
        names = (*WRITES, *(_STREAMS if streams else ()))
        runs = [part for _, part in size.map(tokens, lambda rows: run(model, rows, names))]
        kept = Activations()
        for name in names:
            # The runs' lists of layers, side by side: of each layer one part from every run.
            for parts in zip(*(part.kept[name] for part in runs), strict=True):
                kept.add(name, torch.cat(parts))
        return cls(
            tokens,
            torch.cat([part.input for part in runs]),
            torch.cat([part.final for part in runs]),
            kept,
        )

    def write(
        self, model: Model, writer: int, rows: Int64[Tensor, "*row"]
    ) -> Float[Tensor, "*row pos d_model"]:
        """What a writer wrote on these prompts."""
        node = model.graph.writers[writer]
        return through_output(model, node, before_output(self.input, self.kept, node)[rows])


@dataclass(frozen=True)
class Draws:
    """Which prompts of a pool the pairs of a batch have, by their places.

    Attributes:
        own: each pair's clean prompt.
        others: the prompts drawn for a site: for ``edge_logits`` of a reader, one for each edge into
            it; for ``tree_logits`` of a node, one for each of its copies.
    """

    own: Int64[Tensor, "pair"]
    others: Callable[[int], Int64[Tensor, "draw pair"]]


def edge_logits(
    model: Model,
    kept: Bool[Tensor, "writer reader"],
    clean: Run,
    pool: Pool,
    draws: Draws,
) -> Float[Tensor, "pair d_vocab"]:
    """Logits when each dropped edge carries what its writer wrote on a prompt of its own.

    A reader's input is the clean run's residual stream, plus for each kept edge what its writer
    writes now, and for each dropped edge what its writer wrote on that edge's prompt, each less
    what it wrote in the clean run. One pass; its work grows with the number of dropped edges.

    Args:
        clean: the pairs' run, which keeps ``reduced.BASE``.
        pool: runs of the prompts that are drawn.
        draws: of a reader, the prompt of each edge into it.
    """
    graph, own = model.graph, draws.own

    def lost_change(reader: int) -> Float[Tensor, "pair pos d_model"]:
        n_writers = graph.readers[reader].n_writers
        lost = ~kept[:, reader]
        rows = draws.others(reader).to(own.device)  # [writer pair]
        change = torch.zeros_like(clean.input)
        if lost[0]:
            change += pool.input[rows[0]] - pool.input[own]
        for layer in range(graph.n_layers):
            heads, mlp = graph.head_writers(layer), graph.mlp_writer(layer)
            if heads.start < n_writers and bool(lost[heads].any()):
                (chosen,) = lost[heads].nonzero(as_tuple=True)
                written = pool.kept.written[layer]
                of_heads = chosen.to(own.device)[None]
                # Indices [pair head] with a dimension between them come first: [pair head pos d_head].
                there = written[rows[heads][chosen].T, :, of_heads]
                here = written[own[:, None], :, of_heads]
                weight = model.blocks[layer].attention.output_weight()[of_heads[0]]
                change += torch.einsum("phte,hem->ptm", there - here, weight)
            if mlp < n_writers and lost[mlp]:
                change += pool.kept.mlp_out[layer][rows[mlp]] - pool.kept.mlp_out[layer][own]
        return change

    sources = set(kept.any(1).nonzero().flatten().tolist())
    if model.heads_share_scale:  # what a head writes is scaled by what its layer's others do
        for writer in [graph.writers[source] for source in sources]:
            heads = graph.head_writers(writer.layer)
            sources.update(range(heads.start, heads.stop) if writer.kind == "head" else ())
    # A reader is worth the work if a kept edge carries on what it feeds, and if it lost an edge.
    reads = [not sources.isdisjoint(graph.fed_by(reader)) for reader in range(len(graph.readers))]
    reads[-1] = True
    every = torch.tensor([reader.n_writers for reader in graph.readers])
    readers = torch.tensor(reads) & (kept.sum(0) < every)
    return masked_logits(model, kept, clean.input, clean, Additions(readers, lost_change))


@dataclass(frozen=True)
class Tree:
    """The kept edges as a tree: a copy of a node for every path of kept edges to the logits.

    Attributes:
        copies: of each node, the logits (``ROOT``) among them; only those that are in the tree.
        children: for a node and one of its readers, the nodes it reads by kept edges, and the
            place of the first of their copies that belong to its own, copy by copy.
    """

    graph: ModelGraph
    copies: Mapping[int, int]
    children: Mapping[tuple[int, int], Sequence[tuple[int, int]]] = field(repr=False)

    @classmethod
    def of(cls, graph: ModelGraph, kept: Bool[Tensor, "writer reader"]) -> Tree:
        """Counts are exact, whatever their size; nothing is written out."""
        copies, children = {ROOT: 1}, dict[tuple[int, int], list[tuple[int, int]]]()
        for index in reversed(range(len(graph.readers))):  # nodes after all that reads them
            for node in graph.fed_by(index):
                for writer in kept[:, index].nonzero().flatten().tolist():
                    if node in copies:
                        # The writer's copies for this reader follow on those it has already, in
                        # one piece, a copy for each of the node's.
                        start = copies.get(writer, 0)
                        children.setdefault((node, index), []).append((writer, start))
                        copies[writer] = start + copies[node]
        return cls(graph, copies, children)

    @property
    def size(self) -> int:
        """How many copies there are in all, the logits included."""
        return sum(self.copies.values())

    def readers(self, node: int) -> dict[str, int]:
        """The readers a node is computed from, by kind."""
        readers = self.graph.readers
        return {readers[index].kind: index for index in self.graph.read_by(node)}


def refuse_trees(model: Model) -> None:
    """Raises InputError for a model whose heads cannot stand in a tree one by one."""
    if model.heads_share_scale:
        raise InputError(
            f"scheme per-path: model {model.name} has a norm behind attention, which scales what a "
            "head writes by what all heads of its layer write, so that a path through one head is "
            "not defined; use together or per-edge"
        )


def tree_logits(
    model: Model,
    tree: Tree,
    pool: Pool,
    draws: Draws,
) -> Float[Tensor, "pair d_vocab"]:
    """Logits of the tree: each copy of a node reads its children, and else a prompt of its own.

    A reader's input is the residual stream of the copy's own prompt, plus for each kept edge what
    the child writes less what it wrote on that prompt. Copies of the input write the clean prompt's
    embedding; norms are computed from what is read. All copies of a node are one batch.

    Args:
        pool: runs of the prompts that are drawn; with streams.
        draws: of a node, the prompt of each of its copies.
    """
    graph, own = model.graph, draws.own
    values: dict[int, Tensor] = {}

    def change(node: int, reader: int, rows: Tensor) -> Float[Tensor, "copy pair pos d_model"]:
        total = pool.input.new_zeros(*rows.shape, *pool.input.shape[1:])
        for child, start in tree.children.get((node, reader), ()):
            now = values[child]
            # The input has one value for all its copies.
            now = now if child == 0 else now[start : start + len(rows)]
            total += now - pool.write(model, child, rows)
        return total

    # Writers in the order of computation: children, which write before, are there already.
    for node in sorted(tree.copies.keys() - {ROOT}):
        writer = graph.writers[node]
        if writer.kind == "input":
            values[node] = pool.input[own][None]  # every copy's
            continue
        rows, readers = draws.others(node).to(own.device), tree.readers(node)
        if writer.kind == "mlp":
            read = pool.kept.mlp_in[writer.layer][rows] + change(node, readers["mlp"], rows)
            values[node] = model.blocks[writer.layer].mlp(read)
            continue
        attention = model.blocks[writer.layer].attention
        before = pool.kept.resid_pre[writer.layer][rows]
        slots: list[Tensor] = []
        for slot in SLOTS:
            # [copy pair pos d_model] -> [(copy pair) pos d_model]
            read = (before + change(node, readers[slot], rows)).flatten(0, 1)
            normed = attention.norm(read)
            head = graph.readers[readers[slot]].head
            (projected,) = attention.project_heads(slot, [head], normed[None])
            slots.append(projected[:, :, None])  # [(copy pair) pos 1 d_head]
        q, k, v = slots
        z = attention.attend(q, k, v)[:, :, 0].unflatten(0, rows.shape)
        values[node] = z @ attention.output_weight()[writer.head]
    rows = draws.others(ROOT).to(own.device)
    read = pool.final[rows] + change(ROOT, len(graph.readers) - 1, rows)
    return answer_logits(model, read[0])
