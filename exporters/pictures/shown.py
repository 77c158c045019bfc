"""How much of a circuit a file shows, and how: for formats and pictures that cannot show it all."""

from __future__ import annotations

import difflib
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ...circuits.result.circuit import (
    Circuit,
    CircuitEdge,
    CircuitNode,
    EdgeEvidence,
    Sign,
    all_nodes,
    sign_of,
)
from ...edges.errors import InputError
from ...edges.names.graph import Slot
from ...edges.names.vocabulary import COLLAPSE, QKV

_ROW_OF_KIND = {"q": 0, "k": 0, "v": 0, "kv": 1, "head": 2, "attention": 2, "mlp": 3}


_LAST_ROW = 1_000_000


_LONGEST_NAME = 40  # that nearest names are sought for


@dataclass(frozen=True, kw_only=True)
class View:
    """What to show. Every format has defaults of its own, which None stands for.

    Attributes:
        qkv: ``merge`` draws one edge between two nodes, whatever slots it is read by; ``nodes``
            makes the queries, keys and values of a head nodes of their own; ``parallel`` draws an
            edge for each slot.
        top: show this many edges, those of the largest magnitude; of collapsed layers or groups
            this many connections between them, each the sum of its edges.
        collapse: ``qkv`` is the merging above; ``layers`` makes one node of all heads of a layer;
            ``groups`` one of each group. Edges that join the same two nodes then become one.
        groups: names of nodes by the role they play; pictures put a box around each.

    Raises:
        InputError: an unknown choice, choices that contradict each other, or a node in two groups.
    """

    qkv: str | None = None
    top: int | None = None
    collapse: str | None = None
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])

    def __post_init__(self) -> None:
        for what, value, known in (("qkv", self.qkv, QKV), ("collapse", self.collapse, COLLAPSE)):
            if value is not None and value not in known:
                raise InputError(f"unknown {what} {value!r:.60}; there are {', '.join(known)}")
        if self.top is not None and self.top < 1:
            raise InputError(f"top: expected at least 1 edge, got {self.top}")
        if self.collapse is not None and self.qkv not in (None, "merge"):
            raise InputError(
                f"collapse {self.collapse} merges queries, keys and values, qkv {self.qkv} does "
                "not: give one of the two"
            )
        if self.collapse == "groups" and not self.groups:
            raise InputError(
                "collapse groups: expected groups to collapse; name them (--group, "
                "View(groups=...))"
            )
        seen: dict[str, str] = {}
        for role, names in self.groups.items():
            for name in names:
                if name in seen:
                    raise InputError(
                        f"expected a node in one group, got {name!r:.60} in {seen[name]!r:.60} "
                        f"and {role!r:.60}"
                    )
                seen[name] = role

    @cached_property
    def role_of(self) -> Mapping[str, str]:
        """The role of each node that has one."""
        return {name: role for role, names in self.groups.items() for name in names}


@dataclass(frozen=True)
class ShownNode:
    """A node as it is shown.

    Attributes:
        kind: that of a circuit's node; or ``q k v`` for an input of a head, ``attention`` for all
            heads of a layer, ``group`` for nodes of one role.
        row: where it stands in the order of computation.
        role: that of ``View.groups``.
        members: names of the circuit's nodes in it.
    """

    name: str
    kind: str
    layer: int | None
    head: int | None
    score: float | None
    row: int
    role: str | None
    members: tuple[str, ...]


@dataclass(frozen=True)
class ShownEdge:
    """An edge as it is shown.

    Attributes:
        kind: ``edge``; or ``group`` from a shared key-value head to a query head, and ``internal``
            from an input of a head to the head, which carry nothing.
        members: edges of the circuit it stands for.
    """

    source: str
    target: str
    kind: str = "edge"
    members: tuple[CircuitEdge, ...] = ()

    @property
    def name(self) -> str:
        """Such as ``a0.h1->a2.h3<q,k>``."""
        slots = f"<{','.join(self.slots)}>" if self.slots else ""
        return f"{self.source}->{self.target}{slots}"

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """How the target reads it, in the order q, k, v."""
        return tuple(sorted({edge.slot for edge in self.members if edge.slot}, key="qkv".index))

    @cached_property
    def worth(self) -> float | None:
        """The sum of what its members are worth, as far as it is known and floating point reaches.

        None if it is known of none of them.
        """
        known = [edge.worth for edge in self.members if edge.worth is not None]
        largest = sys.float_info.max
        return max(-largest, min(largest, sum(known, 0.0))) if known else None

    @property
    def size(self) -> float:
        """The magnitude of its worth, 0 if that is not known."""
        return abs(self.worth or 0.0)

    @property
    def sign(self) -> Sign:
        """See ``sign_of``."""
        return sign_of(self.worth)

    @property
    def verified(self) -> bool:
        """Whether all its members are."""
        return all(edge.verified for edge in self.members)

    @property
    def known_by(self) -> EdgeEvidence:
        """What is known of all its members at least."""
        known = {edge.known_by for edge in self.members}
        if "unscored" in known:
            return "unscored"
        if "scored" in known:
            return "scored"
        return "weighed" if "weighed" in known else "verified"


@dataclass(frozen=True)
class Shown:
    """What is shown of a circuit.

    Attributes:
        n_edges: edges of the circuit that are shown, alone or as a part of another.
        n_inside: edges of the circuit between two nodes that became one; they are not shown.
        qkv: ``merge``, ``nodes`` or ``parallel``, as in ``View``.
        collapsed: whether nodes of the circuit became one.
    """

    nodes: tuple[ShownNode, ...]
    edges: tuple[ShownEdge, ...]
    n_edges: int
    n_inside: int
    qkv: str
    collapsed: bool = False

    @cached_property
    def ports(self) -> Mapping[str, tuple[Slot, ...]]:
        """The slots by which a node is reached, where edges of each are parallel."""
        arriving: dict[str, set[Slot]] = {}
        for edge in self.edges if self.qkv == "parallel" else ():
            arriving.setdefault(edge.target, set()).update(edge.slots)
        return {name: tuple(sorted(slots, key="qkv".index)) for name, slots in arriving.items()}


CHOICES = ("qkv", "top", "collapse", "groups")
"""The fields of a ``View``: a diagram heeds all of them, other formats none or some."""


def show(circuit: Circuit, view: View, qkv: str) -> Shown:
    """What ``view`` shows of a circuit; ``qkv`` is what None in the view stands for.

    Raises:
        InputError: a group names a node that the model does not have.
    """
    check_groups(circuit, view)
    inner = {node.name: _inner(node, view) for node in circuit.nodes}
    circuit = _top(circuit, view, inner)
    qkv = "merge" if view.collapse else view.qkv or qkv
    edges = [
        (inner[edge.source], _target(edge, inner[edge.target], qkv), edge) for edge in circuit.edges
    ]
    # Between nodes that became one there is nothing to draw; such edges are counted.
    shown = [edge for edge in edges if edge[0] != edge[1]]
    bridges = [
        # Which query heads a key-value head serves.
        (inner[kv_head], inner[head], "group")
        for kv_head, head in circuit.groups
        if inner[kv_head] != inner[head]
    ]
    if qkv == "nodes":
        bridges += [
            (_target(edge, edge.target, qkv), edge.target, "internal")
            for edge in circuit.edges
            if edge.slot
        ]
    return Shown(
        _nodes(circuit, view, inner, qkv),
        (
            *_edges(shown, merged=qkv != "parallel"),
            *(ShownEdge(*bridge) for bridge in dict.fromkeys(bridges)),
        ),
        len(shown),
        len(edges) - len(shown),
        qkv,
        _collapses(view),
    )


def row(kind: str, layer: int | None) -> int:
    """A node's row, counted from 0 for the input; a layer has four, used or not."""
    if layer is None:
        # Above the layers of any model.
        return 0 if kind == "input" else _LAST_ROW
    return 1 + 4 * layer + _ROW_OF_KIND[kind]


def check_groups(circuit: Circuit, view: View) -> None:
    """Raises InputError for a group of a node that the model lacks, or named like a node."""
    if not view.groups:
        return
    known = {node.name for node in all_nodes(circuit.shape)}
    strange = [name for name in view.role_of if name not in known]
    if strange:
        near = difflib.get_close_matches(strange[0][:_LONGEST_NAME], known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "did you mean another model?"
        raise InputError(
            f"groups: {strange[0]!r:.60} is no node of this model, whose nodes are named like "
            f"input, a0.h1, m0, logits; {hint}"
        )
    if taken := sorted(known & set(view.groups)):
        raise InputError(f"groups: {taken[0]!r} is a node of this model; name the group otherwise")


def _collapses(view: View) -> bool:
    return view.collapse in ("layers", "groups")


def _top(circuit: Circuit, view: View, inner: Mapping[str, str]) -> Circuit:
    """The circuit of the ``top`` largest edges, or of those that make the largest connections."""
    if view.top is None or view.top >= len(circuit.edges):
        return circuit
    edges = [(inner[edge.source], inner[edge.target], edge) for edge in circuit.edges]
    between = [edge for edge in edges if edge[0] != edge[1]]
    # What lies inside of one node takes no room.
    inside = [edge for source, target, edge in edges if source == target]
    # Equal ones stay in the order of computation, as sorting is stable.
    lines = sorted(_edges(between, merged=_collapses(view)), key=lambda line: -line.size)
    largest = [*inside, *(edge for line in lines[: view.top] for edge in line.members)]
    scores = {node.name: node.score for node in circuit.nodes if node.score is not None}
    return Circuit.build(circuit.shape, largest, scores)


def _inner(node: CircuitNode, view: View) -> str:
    """The name of the shown node that a node of the circuit is part of."""
    if view.collapse == "groups":
        return view.role_of.get(node.name, node.name)
    if view.collapse == "layers" and node.kind in ("head", "kv"):
        return f"a{node.layer}"
    return node.name


def _target(edge: CircuitEdge, target: str, qkv: str) -> str:
    return f"{target}.{edge.slot}" if qkv == "nodes" and edge.slot else target


def _edges(shown: Iterable[tuple[str, str, CircuitEdge]], merged: bool) -> list[ShownEdge]:
    if not merged:
        return [ShownEdge(source, target, members=(edge,)) for source, target, edge in shown]
    by_ends: dict[tuple[str, str], list[CircuitEdge]] = {}
    for source, target, edge in shown:
        by_ends.setdefault((source, target), []).append(edge)
    return [ShownEdge(*ends, members=tuple(edges)) for ends, edges in by_ends.items()]


def _nodes(
    circuit: Circuit, view: View, inner: Mapping[str, str], qkv: str
) -> tuple[ShownNode, ...]:
    by_name: dict[str, list[CircuitNode]] = {}
    for node in circuit.nodes:
        by_name.setdefault(inner[node.name], []).append(node)
    slots: dict[str, set[Slot]] = {}
    if qkv == "nodes":
        for edge in circuit.edges:
            if edge.slot:
                slots.setdefault(edge.target, set()).add(edge.slot)
    nodes: list[ShownNode] = []
    for name, members in by_name.items():
        (first, *others) = members
        role = None if view.collapse == "groups" else view.role_of.get(first.name)
        names = tuple(node.name for node in members)
        nodes += [
            ShownNode(
                f"{name}.{slot}", slot, first.layer, first.head, None, row(slot, first.layer), role,
                names,
            )
            for slot in sorted(slots.get(name, ()), key="qkv".index)
        ]  # fmt: skip
        # Several nodes as one; or one alone under the name of its layer or group.
        if others or name != first.name:
            kind = "group" if view.collapse == "groups" else "attention"
            rows = [row(node.kind, node.layer) for node in members]
            # Nodes of a group may stand in several layers.
            layer = first.layer if kind == "attention" else None
            # A row that one of them stands in, which the mean need not be.
            place = statistics.median_low(rows)
            nodes.append(ShownNode(name, kind, layer, None, None, place, role, names))
        else:
            place = row(first.kind, first.layer)
            nodes.append(
                ShownNode(
                    name, first.kind, first.layer, first.head, first.score, place, role, names
                )
            )
    return tuple(nodes)
