"""Names and index order of a transformer's writers, readers and edges. No torch, no scores.

A *writer* adds to the residual stream: ``input`` (embedding), ``a{layer}.h{head}``, ``m{layer}``.
A *reader* reads it: ``a{layer}.h{head}<q>``, ``<k>``, ``<v>``, ``m{layer}``, ``logits``.
An *edge* ``writer->reader`` is the direct connection through the residual stream.

Names and orders are those of EAP-IG (Hanna et al., 2024, arXiv 2403.17806), the field's
interchange, with one addition: under grouped-query attention one key and one value serve a group
of query heads, so their readers are named after the key-value head, ``a{layer}.kv{head}<k>``.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from ..errors import InputError

Slot = Literal["q", "k", "v"]


SLOTS: tuple[Slot, ...] = ("q", "k", "v")


# Beyond these, near names are not looked for: it would take long.
_LONGEST_NAME = 40


_MOST_NAMES = 20_000


@dataclass(frozen=True, slots=True)
class Writer:
    """What adds to the residual stream. ``layer`` is -1 for the input, ``head`` None but for heads."""

    name: str
    kind: Literal["input", "head", "mlp"]
    layer: int
    head: int | None = None


@dataclass(frozen=True, slots=True)
class Reader:
    """What reads the residual stream.

    Attributes:
        node: the node of the circuit it belongs to: ``a2.h3``, ``a2.kv1``, ``m2``, ``logits``.
        head: query head for ``q``, key-value head for ``k`` and ``v``; 0 for the others.
        n_writers: it reads the first ``n_writers`` writers of the graph, and no other.
    """

    name: str
    kind: Literal["q", "k", "v", "mlp", "logits"]
    layer: int
    head: int
    node: str
    n_writers: int


class Edge(NamedTuple):
    """Positions of an edge's ends in ``ModelGraph.writers`` and ``ModelGraph.readers``."""

    writer: int
    reader: int


@dataclass(frozen=True)
class ModelGraph:
    """Every writer, reader and edge of a decoder of equal blocks.

    Args:
        n_kv_heads: key-value heads of a layer; equal to ``n_heads`` without grouping.
        parallel: attention and MLP of a block read the same residual stream.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    parallel: bool = False

    def __post_init__(self) -> None:
        if self.n_heads % self.n_kv_heads:
            raise InputError(
                f"expected n_kv_heads to divide n_heads, got {self.n_kv_heads} and {self.n_heads}"
            )

    def as_dict(self) -> dict[str, int | bool]:
        """The arguments that make this graph, as plain data."""
        return dataclasses.asdict(self)

    @cached_property
    def writers(self) -> tuple[Writer, ...]:
        """``input``, then per layer its heads and its MLP."""
        writers = [Writer("input", "input", -1)]
        for layer in range(self.n_layers):
            writers += [
                Writer(f"a{layer}.h{head}", "head", layer, head) for head in range(self.n_heads)
            ]
            writers.append(Writer(f"m{layer}", "mlp", layer))
        return tuple(writers)

    @cached_property
    def readers(self) -> tuple[Reader, ...]:
        """Per layer its queries, keys, values and its MLP; ``logits`` last."""
        readers: list[Reader] = []
        for layer in range(self.n_layers):
            before_attention = self.head_writers(layer).start
            for slot in SLOTS:
                for head in range(self.n_heads if slot == "q" else self.n_kv_heads):
                    node = self._reader_node(layer, slot, head)
                    readers.append(
                        Reader(f"{node}<{slot}>", slot, layer, head, node, before_attention)
                    )
            before_mlp = before_attention if self.parallel else self.mlp_writer(layer)
            readers.append(Reader(f"m{layer}", "mlp", layer, 0, f"m{layer}", before_mlp))
        n_writers = 1 + self.n_layers * (self.n_heads + 1)
        readers.append(Reader("logits", "logits", self.n_layers, 0, "logits", n_writers))
        return tuple(readers)

    def _reader_node(self, layer: int, slot: Slot, head: int) -> str:
        grouped = slot != "q" and self.n_kv_heads != self.n_heads
        return f"a{layer}.kv{head}" if grouped else f"a{layer}.h{head}"

    def head_writers(self, layer: int) -> slice:
        """Where the heads of ``layer`` stand among the writers."""
        start = 1 + layer * (self.n_heads + 1)
        return slice(start, start + self.n_heads)

    def mlp_writer(self, layer: int) -> int:
        """Where the MLP of ``layer`` stands among the writers."""
        return (layer + 1) * (self.n_heads + 1)

    def attention_readers(self, layer: int) -> slice:
        """Where the queries, keys and values of ``layer`` stand among the readers."""
        n_attention = self.n_heads + 2 * self.n_kv_heads
        start = layer * (n_attention + 1)
        return slice(start, start + n_attention)

    def mlp_reader(self, layer: int) -> int:
        """Where the MLP of ``layer`` stands among the readers."""
        return self.attention_readers(layer).stop

    def query_heads(self, kv_head: int) -> range:
        """The query heads that use key-value head ``kv_head``."""
        group = self.n_heads // self.n_kv_heads
        return range(kv_head * group, (kv_head + 1) * group)

    @cached_property
    def n_edges(self) -> int:
        """How many edges the model has."""
        return sum(reader.n_writers for reader in self.readers)

    def edges(self) -> Iterator[Edge]:
        """Every edge, reader by reader in the order of computation."""
        for index, reader in enumerate(self.readers):
            for writer in range(reader.n_writers):
                yield Edge(writer, index)

    def edge_name(self, edge: Edge) -> str:
        """Such as ``a0.h1->a2.h3<q>``."""
        return f"{self.writers[edge.writer].name}->{self.readers[edge.reader].name}"

    @cached_property
    def _writer_index(self) -> dict[str, int]:
        return {writer.name: index for index, writer in enumerate(self.writers)}

    @cached_property
    def _reader_index(self) -> dict[str, int]:
        return {reader.name: index for index, reader in enumerate(self.readers)}

    def writer(self, name: str) -> int:
        """The position of writer ``name``. Raises InputError, with the nearest names."""
        if name not in self._writer_index:
            raise InputError(self._unknown("writer", name, self._writer_index))
        return self._writer_index[name]

    def edge(self, name: str) -> Edge:
        """The edge called ``name``, such as ``a0.h1->a2.h3<q>``.

        Raises:
            InputError: malformed, an unknown end (nearest names given), or no such connection.
        """
        writer_name, arrow, reader_name = name.partition("->")
        if not arrow:
            raise InputError(f"expected an edge 'writer->reader', got {name!r:.80}")
        writer = self.writer(writer_name)
        if reader_name not in self._reader_index:
            raise InputError(self._unknown("reader", reader_name, self._reader_index))
        edge = Edge(writer, self._reader_index[reader_name])
        reader = self.readers[edge.reader]
        if writer >= reader.n_writers:
            same_block = self.parallel and self.writers[writer].layer == reader.layer
            why = (
                "attention and MLP of a parallel block read the same residual stream"
                if same_block and reader.kind == "mlp" and self.writers[writer].kind == "head"
                else f"{writer_name} is computed after {reader_name} has read"
            )
            raise InputError(f"edge {name!r} does not exist in this model: {why}")
        return edge

    def in_order(self, names: Iterable[str]) -> list[str]:
        """These edges in the order of computation, each once. Raises InputError as ``edge``."""
        return sorted(set(names), key=lambda name: self.edge(name)[::-1])

    def path(self, name: str) -> tuple[int, tuple[int, ...]]:
        """The writer a path begins with, and its readers in turn; an edge is a path of one reader.

        Such as ``a5.h1->a8.h6<v>->logits``: what the head or MLP of a reader writes is what the
        next one reads. A key-value head that a group shares writes by all query heads of the group.

        Raises:
            InputError: as ``edge``, for each of its edges.
        """
        writer, *readers = name.split("->")
        found: list[int] = []
        for reader in readers or [""]:
            found.append(self.edge(f"{writer}->{reader}" if readers else name).reader)
            writer = self._writes_as(self.readers[found[-1]])
        return self.writer(name.partition("->")[0]), tuple(found)

    def _writes_as(self, reader: Reader) -> str:
        """The first writer that a reader's node writes as."""
        grouped = self.n_kv_heads != self.n_heads and reader.kind in ("k", "v")
        return f"a{reader.layer}.h{self.query_heads(reader.head)[0]}" if grouped else reader.node

    def _unknown(self, what: str, name: str, known: Iterable[str]) -> str:
        names = list(known)
        look = len(name) <= _LONGEST_NAME and len(names) <= _MOST_NAMES
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) if look else []
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        grouped = "" if self.n_kv_heads == self.n_heads else f" and {self.n_kv_heads} kv heads"
        return (
            f"unknown {what} {name!r:.80} in a model of {self.n_layers} layers with "
            f"{self.n_heads} heads{grouped} each{hint}"
        )


ROOT = -1
"""The tree's root, the logits, where other nodes are positions of writers."""


def using(graph: ModelGraph, reader: Reader) -> list[int]:
    """The writers that are computed from what ``reader`` reads; ``ROOT`` for the logits."""
    if reader.kind == "logits":
        return [ROOT]
    if reader.kind == "mlp":
        return [graph.mlp_writer(reader.layer)]
    heads = [reader.head] if reader.kind == "q" else graph.query_heads(reader.head)
    return [graph.head_writers(reader.layer).start + head for head in heads]
