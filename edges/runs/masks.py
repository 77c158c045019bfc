"""Sets of edges as tables of booleans over readers and writers."""

from __future__ import annotations

from jaxtyping import Bool
from torch import Tensor
from ..names.graph import ModelGraph

from collections.abc import Collection, Iterable, Sequence
import torch
from jaxtyping import Bool
from torch import Tensor
from ..errors import InputError
from ..names.graph import ModelGraph


def existing_edges(graph: ModelGraph) -> Bool[Tensor, "writer reader"]:
    """Which entries of a table of all writers and readers are edges of the model."""
    return full_mask(graph).T


EdgeSet = Collection[str] | Bool[Tensor, "reader writer"]
"""Edges by name, or as a mask over the model's readers and writers, such as of ``edge_mask``."""


def as_mask(graph: ModelGraph, edges: EdgeSet) -> Bool[Tensor, "reader writer"]:
    if not isinstance(edges, Tensor):
        return edge_mask(graph, edges)
    edges, every = edges.cpu(), full_mask(graph)
    if edges.dtype != torch.bool or edges.shape != every.shape:
        raise InputError(
            f"expected a mask of edges as booleans [reader writer], {list(every.shape)}, got "
            f"{edges.dtype} of shape {list(edges.shape)}; see edge_mask"
        )
    if bool((edges & ~every).any()):
        reader, writer = (edges & ~every).nonzero()[0].tolist()
        raise InputError(
            f"the mask has an edge that does not exist in this model, from "
            f"{graph.writers[writer].name} to {graph.readers[reader].name}; see full_mask"
        )
    return edges


def full_mask(graph: ModelGraph) -> Bool[Tensor, "reader writer"]:
    """All edges of the model."""
    n_writers = torch.tensor([reader.n_writers for reader in graph.readers])
    return torch.arange(len(graph.writers)) < n_writers[:, None]


def live_mask(
    graph: ModelGraph, kept: Bool[Tensor, "reader writer"]
) -> Bool[Tensor, "reader writer"]:
    """Of these edges, those on a path of them from ``input`` to ``logits``.

    A head passes on what its query, key or value reads, and a key or value that a group shares is
    passed on by every query head of the group.
    """
    group = graph.n_heads // graph.n_kv_heads
    reached = torch.zeros(len(graph.writers), dtype=torch.bool)
    needed = kept[-1].clone()
    used = torch.zeros(len(graph.readers), dtype=torch.bool)
    used[-1] = reached[0] = True
    for layer in range(graph.n_layers):
        q, k, v = _by_slot(graph, (kept[graph.attention_readers(layer)] & reached).any(1))
        reached[graph.head_writers(layer)] = q | (k | v).repeat_interleave(group)
        reached[graph.mlp_writer(layer)] = (kept[graph.mlp_reader(layer)] & reached).any()
    for layer in reversed(range(graph.n_layers)):
        if needed[graph.mlp_writer(layer)]:
            used[graph.mlp_reader(layer)] = True
            needed |= kept[graph.mlp_reader(layer)]
        heads = needed[graph.head_writers(layer)]
        groups = heads.view(-1, group).any(1)
        attention = graph.attention_readers(layer)
        used[attention] = torch.cat([heads, groups, groups])
        needed |= kept[attention][used[attention]].any(0)
    return kept & reached & used[:, None]


def _by_slot(graph: ModelGraph, of_readers: Bool[Tensor, "reader"]) -> Sequence[Tensor]:
    """What belongs to a layer's attention readers, as its queries', keys' and values'."""
    return of_readers.split([graph.n_heads, graph.n_kv_heads, graph.n_kv_heads])


def edge_mask(graph: ModelGraph, edges: Iterable[str]) -> Bool[Tensor, "reader writer"]:
    """Which edges of the model are named. Raises InputError for a name it does not have."""
    mask = torch.zeros(len(graph.readers), len(graph.writers), dtype=torch.bool)
    for name in edges:
        edge = graph.edge(name)
        mask[edge.reader, edge.writer] = True
    return mask
