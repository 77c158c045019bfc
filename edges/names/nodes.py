"""Names and index order of the nodes that can be scored and patched by themselves. No torch.

A node is the value of one activation of one module, at all positions or at one:

    input          what the embedding writes            r2             the residual stream before block 2
    a0.h1<q>       the query of a head                  a0.h1          the head's output (z, before W_O;
                                                                       among ``writers`` what it writes)
    a0.h1<k>, <v>  its key, value; a0.kv0<k> where a key-value head serves a group of query heads
    m2             what an MLP writes                   m2.n17         one of its neurons, after the activation

``@5`` behind a name means position 5 alone, counted from 0 (a BOS token is position 0).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from ..errors import InputError
from .graph import SLOTS, ModelGraph, head_name, mlp_name

Kind = Literal["input", "resid", "q", "k", "v", "head", "write", "neuron", "mlp"]


FAMILIES: dict[str, tuple[Kind, ...]] = {
    "writers": ("input", "write", "mlp"),
    "heads": ("q", "k", "v", "head"),
    "mlps": ("mlp",),
    "neurons": ("neuron",),
    "residual": ("resid",),
}
"""What ``--nodes`` names: the kinds of activation in each family."""


ACTIVATION: dict[Kind, str] = {
    "input": "input",
    "resid": "resid_pre",
    "q": "q",
    "k": "k",
    "v": "v",
    "head": "z",
    "write": "written",
    "neuron": "neurons",
    "mlp": "mlp_out",
}
"""The activation of a run (see ``model.Activations``) that holds the nodes of a kind."""


_NAME = re.compile(
    r"(?P<node>input|r(?P<resid>\d+)|a(?P<attention>\d+)\.(?P<of>h|kv)(?P<head>\d+)"
    r"(?:<(?P<slot>[qkv])>)?|m(?P<mlp>\d+)(?:\.n(?P<neuron>\d+))?)(?:@(?P<position>\d+))?",
    re.ASCII,
)


class Node(NamedTuple):
    """A node: which entry of which activation. ``position`` None means all of them at once."""

    kind: Kind
    layer: int
    entry: int
    position: int | None = None


@dataclass(frozen=True)
class Site:
    """The nodes of one kind in one layer: the entries of one activation."""

    kind: Kind
    layer: int
    n: int

    @property
    def activation(self) -> str:
        """Its name among ``model.Activations``."""
        return ACTIVATION[self.kind]


@dataclass(frozen=True)
class NodeSet:
    """All nodes of some families of a model, in order: by layer, kind, entry and position.

    Args:
        d_mlp: neurons of each MLP.
        families: names in ``FAMILIES``.
        n_pos: make each position a node of its own, of so many; None takes all at once.
    """

    graph: ModelGraph
    d_mlp: int
    families: tuple[str, ...]
    n_pos: int | None = None

    def __post_init__(self) -> None:
        unknown = [family for family in self.families if family not in FAMILIES]
        if unknown or not self.families:
            raise InputError(
                f"expected families of nodes among {', '.join(FAMILIES)}, got "
                f"{', '.join(map(repr, unknown)) or 'none'}"
            )

    @cached_property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of its nodes, in the order they are computed within a block."""
        kinds = {kind for family in self.families for kind in FAMILIES[family]}
        if "head" in kinds:
            kinds.discard("write")  # two views of the same node
        return tuple(kind for kind in ACTIVATION if kind in kinds)

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """The activations its nodes are entries of, in order."""
        return tuple(
            Site(kind, layer, n_entries(self.graph, self.d_mlp, kind))
            for layer in range(self.graph.n_layers)
            for kind in self.kinds
            if kind != "input" or layer == 0  # there is one input, not one for each layer
        )

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """Where the nodes of each site stand in the order."""
        slices: list[slice] = []
        start = 0
        for site in self.sites:
            stop = start + site.n * (self.n_pos or 1)
            slices.append(slice(start, stop))
            start = stop
        return tuple(slices)

    def __len__(self) -> int:
        return self.slices[-1].stop

    def nodes(self) -> Iterator[Node]:
        """All nodes, in order."""
        positions = [None] if self.n_pos is None else range(self.n_pos)
        for site in self.sites:
            for entry in range(site.n):
                for position in positions:
                    yield Node(site.kind, site.layer, entry, position)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of all nodes, in order."""
        return tuple(node_name(self.graph, node) for node in self.nodes())


def n_entries(graph: ModelGraph, d_mlp: int, kind: Kind) -> int:
    """How many nodes of a kind a layer has."""
    if kind in ("q", "head", "write"):
        return graph.n_heads
    if kind in ("k", "v"):
        return graph.n_kv_heads
    return d_mlp if kind == "neuron" else 1


def node_name(graph: ModelGraph, node: Node) -> str:
    """Such as ``a0.h1<q>@5``."""
    kind, layer, entry, position = node
    if kind in SLOTS:
        name = f"{graph.attention_node(layer, kind, entry)}<{kind}>"
    else:
        name = {
            "input": "input",
            "resid": f"r{layer}",
            "head": head_name(layer, entry),
            "write": head_name(layer, entry),
            "neuron": f"{mlp_name(layer)}.n{entry}",
            "mlp": mlp_name(layer),
        }[kind]
    return name if position is None else f"{name}@{position}"


def parse_node(graph: ModelGraph, d_mlp: int, name: str) -> Node:
    """The node called ``name``. Raises InputError, with the nearest names, if there is none."""
    match = _NAME.fullmatch(name)
    if match is not None:
        node = _node(match)
        # The pattern lets through what no node is called: leading zeros, ``kv`` in a model without
        # groups, a key named by a query head of its group. Writing the name out again tells.
        known = node.layer < graph.n_layers and node.entry < n_entries(graph, d_mlp, node.kind)
        if known and node_name(graph, node) == name:
            return node
    raise InputError(_unknown(graph, d_mlp, name))


def _node(match: re.Match[str]) -> Node:
    position = None if match["position"] is None else int(match["position"])
    if match["attention"] is not None:
        kinds: dict[str | None, Kind] = {"q": "q", "k": "k", "v": "v", None: "head"}
        return Node(kinds[match["slot"]], int(match["attention"]), int(match["head"]), position)
    if match["mlp"] is not None:
        kind, entry = ("mlp", 0) if match["neuron"] is None else ("neuron", int(match["neuron"]))
        return Node(kind, int(match["mlp"]), entry, position)
    if match["resid"] is not None:
        return Node("resid", int(match["resid"]), 0, position)
    return Node("input", 0, 0, position)


def _unknown(graph: ModelGraph, d_mlp: int, name: str) -> str:
    # All but neurons, of which there are too many to compare with.
    families = ("writers", "heads", "residual")
    known: Sequence[str] = NodeSet(graph, d_mlp, families).names
    near = difflib.get_close_matches(name.partition("@")[0], known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    grouped = "" if graph.n_kv_heads == graph.n_heads else f" and {graph.n_kv_heads} kv heads"
    return (
        f"unknown node {name!r} in a model of {graph.n_layers} layers with {graph.n_heads} "
        f"heads{grouped} each and {d_mlp} neurons to an MLP{hint}"
    )
