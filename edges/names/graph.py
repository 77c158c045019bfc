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
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from ..errors import InputError

Slot = Literal["q", "k", "v"]


SLOTS: tuple[Slot, ...] = ("q", "k", "v")


# Beyond these, near names are not looked for: it would take long.
_LONGEST_NAME = 40


_MOST_NAMES = 20_000


ROOT = -1
"""The logits, where other nodes are positions of writers."""


def head_name(layer: int, head: int) -> str:
    """Such as ``a2.h3``: what a head writes, and whose query (or key and value) it reads."""
    return f"a{layer}.h{head}"


def kv_name(layer: int, kv_head: int) -> str:
    """Such as ``a2.kv1``: a key-value head that several query heads share."""
    return f"a{layer}.kv{kv_head}"


def readers_named_as(reader: str) -> str | None:
    """The ``kv`` that gives a key or value this name, such as ``a0.kv1<k>``; None for the rest."""
    known = re.fullmatch(r"a\d+\.(kv|h)\d+<([qkv])>", reader)
    if known is None or known[2] == "q":
        return None
    return "grouped" if known[1] == "kv" else "per-query"


def mlp_name(layer: int) -> str:
    """Such as ``m2``."""
    return f"m{layer}"


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

    @property
    def slot(self) -> Slot | None:
        """Query, key or value; None for an MLP and the logits."""
        return None if self.kind in ("mlp", "logits") else self.kind


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
                Writer(head_name(layer, head), "head", layer, head) for head in range(self.n_heads)
            ]
            writers.append(Writer(mlp_name(layer), "mlp", layer))
        return tuple(writers)

    @cached_property
    def readers(self) -> tuple[Reader, ...]:
        """Per layer its queries, keys, values and its MLP; ``logits`` last."""
        readers: list[Reader] = []
        for layer in range(self.n_layers):
            before_attention = self.head_writers(layer).start
            for slot in SLOTS:
                for head in range(self.n_heads if slot == "q" else self.n_kv_heads):
                    node = self.attention_node(layer, slot, head)
                    readers.append(
                        Reader(f"{node}<{slot}>", slot, layer, head, node, before_attention)
                    )
            # What the heads of a parallel block write, its MLP does not read.
            before_mlp = before_attention if self.parallel else self.mlp_writer(layer)
            node = mlp_name(layer)
            readers.append(Reader(node, "mlp", layer, 0, node, before_mlp))
        n_writers = 1 + self.n_layers * (self.n_heads + 1)
        readers.append(Reader("logits", "logits", self.n_layers, 0, "logits", n_writers))
        return tuple(readers)

    def attention_node(self, layer: int, slot: Slot, head: int) -> str:
        """The node whose query, key or value this is: a key-value head where a group shares it."""
        return (kv_name if slot != "q" and self.grouped else head_name)(layer, head)

    @property
    def grouped(self) -> bool:
        """Whether several query heads share a key-value head."""
        return self.n_kv_heads != self.n_heads

    @property
    def kv(self) -> str:
        """The ``kv`` by which a model is loaded to have these readers.

        Where no query heads share keys and values, ``per-query`` is all the same to a model without
        shared ones, and gives a model with shared ones a reader for each query head.
        """
        return "grouped" if self.grouped else "per-query"

    def differs_in_kv_alone(self, other: ModelGraph) -> bool:
        """Whether the two have other readers of keys and values, and are else the same."""
        own, others = self.as_dict(), other.as_dict()
        return {name for name in own if own[name] != others[name]} == {"n_kv_heads"}

    def head_writers(self, layer: int) -> slice:
        """Where the heads of ``layer`` stand among the writers."""
        start = 1 + layer * (self.n_heads + 1)  # the input, then n_heads and an MLP for each layer
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

    def fed_by(self, reader: int) -> range:
        """The nodes that are computed from what ``reader`` reads: writers; ``ROOT`` for the logits.

        A key or value that a group shares feeds every query head of the group.
        """
        what = self.readers[reader]
        if what.kind == "logits":
            return range(ROOT, ROOT + 1)
        if what.kind == "mlp":
            start = self.mlp_writer(what.layer)
            return range(start, start + 1)
        first = self.head_writers(what.layer).start
        heads = range(what.head, what.head + 1)
        if what.kind != "q":
            heads = self.query_heads(what.head)
        return range(first + heads.start, first + heads.stop)

    @cached_property
    def _reads(self) -> dict[int, tuple[int, ...]]:
        reads: dict[int, tuple[int, ...]] = {}
        for reader in range(len(self.readers)):
            for node in self.fed_by(reader):
                reads[node] = (*reads.get(node, ()), reader)
        return reads

    def read_by(self, node: int) -> tuple[int, ...]:
        """The readers a node is computed from: a writer, or ``ROOT``; of the input there are none.

        Of a head its query, its key and its value, in this order.
        """
        return self._reads.get(node, ())

    def live_rows(self, kept: Sequence[int]) -> list[int]:
        """Of kept edges, those on a path of them from ``input`` to ``logits``.

        A head passes on what its query, key or value reads.

        Args:
            kept: of each reader the writers it reads by kept edges, as a number: bit w for writer w.

        Returns:
            The same of the live edges.
        """
        reached, needed = 1, 0  # writers that the input reaches; those that lead to the logits
        # Readers stand in the order of computation, so going through them once in each direction
        # is enough: forwards for what the input reaches, backwards for what leads to the logits.
        for row, fed in zip(kept, self._fed_bits, strict=True):
            if row & reached:
                reached |= fed
        live = [0] * len(kept)
        for reader in reversed(range(len(kept))):
            # The logits, the last reader, feed no writer and are needed all the same.
            if self._fed_bits[reader] & needed or reader == len(kept) - 1:
                needed |= kept[reader]
                live[reader] = kept[reader] & reached
        return live

    @cached_property
    def _fed_bits(self) -> list[int]:
        fed = [self.fed_by(reader) for reader in range(len(self.readers) - 1)]
        # 2^stop - 2^start has the bits from start up to stop, stop not among them.
        return [*((1 << nodes.stop) - (1 << nodes.start) for nodes in fed), 0]

    def live(self, edges: Sequence[Edge]) -> list[Edge]:
        """Of these edges, those on a path of them from ``input`` to ``logits``, in their order."""
        kept = [0] * len(self.readers)
        for edge in edges:
            kept[edge.reader] |= 1 << edge.writer
        live = self.live_rows(kept)
        return [edge for edge in edges if live[edge.reader] >> edge.writer & 1]

    @cached_property
    def n_edges(self) -> int:
        """How many edges the model has."""
        return sum(reader.n_writers for reader in self.readers)

    def edges(self) -> Iterator[Edge]:
        """Every edge, reader by reader in the order of computation."""
        for index, reader in enumerate(self.readers):
            for writer in range(reader.n_writers):
                yield Edge(writer, index)

    def ends(self, edge: Edge) -> tuple[Writer, Reader]:
        """What writes and what reads."""
        return self.writers[edge.writer], self.readers[edge.reader]

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
        # By reader first, as ``edges`` has them.
        return sorted(set(names), key=lambda name: self.edge(name)[::-1])

    def path(self, name: str) -> tuple[int, tuple[int, ...]]:
        """The writer a path begins with, and its readers in turn; an edge is a path of one reader.

        Such as ``a5.h1->a8.h6<v>->logits``: what the head or MLP of a reader writes is what the
        next one reads. A key-value head that a group shares writes by all query heads of the group.

        Raises:
            InputError: as ``edge``, for each of its edges.
        """
        first, *names = name.split("->")
        if not names:
            self.edge(name)  # says what is expected
        writer, edges = first, list[Edge]()
        for reader in names:
            edges.append(self.edge(f"{writer}->{reader}"))
            # One head of a group stands for all: any edge on exists for each of them or for none.
            node = self.fed_by(edges[-1].reader)[0]
            writer = "logits" if node == ROOT else self.writers[node].name
        return edges[0].writer, tuple(edge.reader for edge in edges)

    def _named_otherwise(self, name: str) -> str:
        """What to say of a key or value that is named as with the other of the two ``kv``."""
        named_as = readers_named_as(name)
        if self.grouped and named_as == "per-query":
            return (
                f"; here the {self.n_heads} query heads of a layer share {self.n_kv_heads} keys and "
                "values, named like a0.kv0<k>. A reader for each query head is --kv per-query "
                "(kv='per-query')"
            )
        if not self.grouped and named_as == "grouped":
            return (
                "; here keys and values are named by query head, like a0.h0<k>. Where query heads "
                "share them, --kv grouped (kv='grouped') names them by key-value head"
            )
        return ""

    def _unknown(self, what: str, name: str, known: Iterable[str]) -> str:
        names = list(known)
        look = len(name) <= _LONGEST_NAME and len(names) <= _MOST_NAMES
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) if look else []
        hint = self._named_otherwise(name) or (
            f"; did you mean {' or '.join(near)}?" if near else ""
        )
        grouped = f" and {self.n_kv_heads} kv heads" if self.grouped else ""
        return (
            f"unknown {what} {name!r:.80} in a model of {self.n_layers} layers with "
            f"{self.n_heads} heads{grouped} each{hint}"
        )
