"""Sets of edges as tables of booleans over writers and readers, and lists of them as their places.

Names come in at the door, through ``edge_places`` and ``edge_mask``; what is within goes by places.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from ..errors import InputError
from ..names.graph import Edge, ModelGraph

EdgeSet = Collection[str] | Bool[Tensor, "writer reader"]
"""Edges by name, or as a mask over the model's writers and readers, such as of ``edge_mask``."""


EdgeList = Sequence[str] | Int64[Tensor, "edge end"]
"""Edges by name, or by the places of their writers and readers, such as of ``edge_places``."""


def edge_places(graph: ModelGraph, edges: EdgeList) -> Int64[Tensor, "edge end"]:
    """Where the writer and the reader of each edge stand. Raises InputError for an unknown name."""
    if isinstance(edges, Tensor):
        return edges
    # Of no edges, too, the table has its two columns: [0 end].
    return torch.tensor([graph.edge(name) for name in edges], dtype=torch.int64).view(-1, 2)


def edge_names(graph: ModelGraph, places: Int64[Tensor, "edge end"]) -> list[str]:
    """The names of the edges at these places."""
    return [graph.edge_name(Edge(*ends)) for ends in places.tolist()]


def places_mask(
    graph: ModelGraph, places: Int64[Tensor, "edge end"] | Sequence[tuple[int, int]]
) -> Bool[Tensor, "writer reader"]:
    """The edges at these places, as a mask."""
    mask = torch.zeros(len(graph.writers), len(graph.readers), dtype=torch.bool)
    writers, readers = torch.as_tensor(places, dtype=torch.int64).view(-1, 2).T
    mask[writers, readers] = True
    return mask


def edge_mask(graph: ModelGraph, edges: Iterable[str]) -> Bool[Tensor, "writer reader"]:
    """Which edges of the model are named. Raises InputError for a name it does not have."""
    return places_mask(graph, [graph.edge(name) for name in edges])


def as_mask(graph: ModelGraph, edges: EdgeSet) -> Bool[Tensor, "writer reader"]:
    """These edges as a mask, which is checked. Raises InputError for edges that do not exist."""
    if not isinstance(edges, Tensor):
        return edge_mask(graph, edges)
    edges, every = edges.cpu(), full_mask(graph)
    if edges.dtype != torch.bool or edges.shape != every.shape:
        raise InputError(
            f"expected a mask of edges as booleans [writer reader], {list(every.shape)}, got "
            f"{edges.dtype} of shape {list(edges.shape)}; see edge_mask"
        )
    if bool((edges & ~every).any()):
        writer, reader = (edges & ~every).nonzero()[0].tolist()
        raise InputError(
            f"the mask has an edge that does not exist in this model, from "
            f"{graph.writers[writer].name} to {graph.readers[reader].name}; see full_mask"
        )
    return edges


def full_mask(graph: ModelGraph) -> Bool[Tensor, "writer reader"]:
    """All edges of the model: which entries of a table of writers and readers are any."""
    n_writers = torch.tensor([reader.n_writers for reader in graph.readers])
    # A reader reads the first of the writers, whatever comes after: [writer 1] < [reader].
    return torch.arange(len(graph.writers))[:, None] < n_writers


def every_edge(graph: ModelGraph) -> Int64[Tensor, "edge end"]:
    """Where the writer and the reader of each edge stand, in the order of ``graph.edges``."""
    # nonzero goes by its first axis first: reader by reader, as (reader, writer).
    return full_mask(graph).T.nonzero().flip(1)


def live_mask(
    graph: ModelGraph, kept: Bool[Tensor, "writer reader"]
) -> Bool[Tensor, "writer reader"]:
    """Of these edges, those on a path of them from ``input`` to ``logits``; see ``live_rows``."""
    # Each reader's writers as one whole number, writer 0 the lowest bit: [reader byte].
    packed = kept.view(torch.uint8).numpy()
    packed = numpy.ascontiguousarray(numpy.packbits(packed, axis=0, bitorder="little").T)
    rows = [int.from_bytes(row.tobytes(), "little") for row in packed]
    n_bytes = packed.shape[1]
    data = b"".join(row.to_bytes(n_bytes, "little") for row in graph.live_rows(rows))
    # The way back: [byte reader] -> [writer reader], without the bits that fill up a last byte.
    live = numpy.frombuffer(data, dtype=numpy.uint8).reshape(-1, n_bytes).T
    bits = numpy.unpackbits(live, axis=0, count=len(graph.writers), bitorder="little")
    return torch.from_numpy(bits).bool().contiguous()
