"""A circuit: the edges that were kept, what is known of each, and where all of it came from.

Plain data, no torch: exporters read and write it, and two circuits with the same content are equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from ...edges.errors import InputError
from ...edges.names.graph import ModelGraph, Slot, head_name, kv_name, mlp_name
from .evidence import Evidence
from .upward import exporters

if TYPE_CHECKING:
    import networkx

    from ...edges.model.transformer import Model
    from ...edges.question.prompts import PromptPairs


NodeKind = Literal["input", "head", "kv", "mlp", "logits"]
EdgeEvidence = Literal["verified", "weighed", "scored", "unscored"]
Sign = Literal["positive", "negative", "unscored"]


def sign_of(worth: float | None) -> Sign:
    """Whether it carries the behaviour (so does 0) or opposes it, or whether nothing is known."""
    if worth is None:
        return "unscored"
    return "negative" if worth < 0 else "positive"


@dataclass(frozen=True)
class CircuitNode:
    """A node of the circuit.

    Attributes:
        kind: ``kv`` is a key-value head that several query heads share.
        layer, head: None where there is none.
        score: estimated effect of the node, in units of the metric; None if not known.
    """

    name: str
    kind: NodeKind
    layer: int | None = None
    head: int | None = None
    score: float | None = None


@dataclass(frozen=True)
class CircuitEdge:
    """An edge of the circuit and the evidence for it. Scores and effects in units of the metric.

    Attributes:
        source, target: names of nodes.
        slot: how the target reads it: as query, key or value; None for an MLP or the logits.
        score: its estimated effect.
        effect: its verified effect, mean over ``n_pairs`` pairs; None if it was not measured.
        standard_error: of the verified effect; None also for a single pair.
        interval: 95 % bootstrap interval of the verified effect over pairs; None if not computed.
        inclusion: share of bootstrap resamples of the pairs whose circuit has the edge, from 0 to
            1; None if not computed.
        loss: what the circuit alone loses without it, metric(circuit) - metric(circuit without it);
            None if it was not measured.
    """

    source: str
    target: str
    slot: Slot | None = None
    score: float | None = None
    effect: float | None = None
    standard_error: float | None = None
    n_pairs: int | None = None
    interval: tuple[float, float] | None = None
    inclusion: float | None = None
    loss: float | None = None

    @property
    def name(self) -> str:
        """Such as ``a0.h1->a2.h3<q>``."""
        return f"{self.source}->{self.target}" + (f"<{self.slot}>" if self.slot else "")

    @property
    def verified(self) -> bool:
        """Whether the effect was measured by patching."""
        return self.effect is not None

    @property
    def known_by(self) -> EdgeEvidence:
        """``verified`` in the model; else ``weighed`` in the circuit (its loss); else ``scored``.

        ``unscored`` if none of this is known: the edge is in the circuit, and that is all.
        """
        if self.verified:
            return "verified"
        if self.loss is not None:
            return "weighed"
        return "unscored" if self.score is None else "scored"

    @property
    def figures(self) -> dict[str, float | int | bool | None]:
        """What is known of it, as a row of a table; the interval is effect_low and effect_high."""
        low, high = self.interval or (None, None)
        return {
            "score": self.score,
            "effect": self.effect,
            "standard_error": self.standard_error,
            "effect_low": low,
            "effect_high": high,
            "n_pairs": self.n_pairs,
            "verified": self.verified,
            "inclusion": self.inclusion,
            "loss": self.loss,
        }

    @property
    def worth(self) -> float | None:
        """The verified effect, or the score where there is none."""
        return self.score if self.effect is None else self.effect

    @property
    def size(self) -> float:
        """The magnitude of what it is worth, to sort by; 0 if it is not known."""
        return abs(self.worth or 0.0)

    @property
    def sign(self) -> Sign:
        """See ``sign_of``."""
        return sign_of(self.worth)


@dataclass(frozen=True)
class Faithfulness:
    """How much of the behaviour the circuit alone carries; metric values are means over pairs.

    faithfulness = (m(circuit) - m(empty)) / (m(full) - m(empty))

    Attributes:
        full: the metric of the model itself (the clean run).
        empty: with every edge patched (the corrupted run).
        circuit: with every edge outside the circuit patched.
    """

    full: float
    empty: float
    circuit: float
    n_pairs: int

    @property
    def faithfulness(self) -> float:
        """1 when the circuit does all of it, 0 when it does nothing; it may lie outside."""
        return (self.circuit - self.empty) / (self.full - self.empty)


@dataclass(frozen=True)
class Circuit:
    """The kept edges of a model for a task.

    Attributes:
        shape: the model's layers, heads and block layout.
        nodes: in the order of computation; edges likewise.
        model, task, method: what it was found in, on, and how: plain data, written into files.
        faithfulness: None when it was not evaluated.
        evidence: what else was measured of it; each part may be missing.
    """

    shape: ModelGraph
    nodes: tuple[CircuitNode, ...]
    edges: tuple[CircuitEdge, ...]
    model: Mapping[str, Any] = field(default_factory=dict[str, Any])
    task: Mapping[str, Any] = field(default_factory=dict[str, Any])
    method: Mapping[str, Any] = field(default_factory=dict[str, Any])
    faithfulness: Faithfulness | None = None
    evidence: Evidence = field(default_factory=Evidence)

    @classmethod
    def build(
        cls,
        shape: ModelGraph,
        edges: Iterable[CircuitEdge],
        node_scores: Mapping[str, float] | None = None,
        *,
        evidence: Evidence | Mapping[str, Any] | None = None,
        **rest: Any,
    ) -> Circuit:
        """A circuit of these edges: they are sorted, and their nodes made.

        Args:
            evidence: plain data is read as ``Evidence.from_document`` does.

        Raises:
            InputError: an edge the model does not have, or one named twice; a field of the
                evidence that is not what it should be.
        """
        if not isinstance(evidence, Evidence):
            evidence = Evidence.from_document({} if evidence is None else dict(evidence))
        scores = node_scores or {}
        by_name: dict[str, CircuitEdge] = {}
        for edge in edges:
            name = edge.name
            if name in by_name:
                raise InputError(f"edge {name} is named twice")
            by_name[name] = edge
        places = {name: shape.edge(name) for name in by_name}
        # Reader by reader, as a forward pass gets to them: equal edges make equal circuits.
        ordered = sorted(by_name, key=lambda name: (places[name].reader, places[name].writer))
        used = {node for edge in by_name.values() for node in (edge.source, edge.target)}
        nodes = tuple(
            replace(node, score=scores.get(node.name))
            for node in all_nodes(shape)
            if node.name in used
        )
        kept = tuple(by_name[name] for name in ordered)
        return cls(shape, nodes, kept, evidence=evidence, **rest)

    def evaluate(self, model: Model, pairs: PromptPairs, metric: str | None = None) -> Faithfulness:
        """What these edges carry by themselves on ``pairs``; see ``wiremap.circuits.evaluate``.

        Args:
            metric: None takes the metric the circuit was found by.
        """
        from ..evidence.faithfulness import evaluate  # runs models, which this file does not

        metric = metric or str(self.method.get("metric", "logit_diff"))
        return evaluate(model, pairs, [edge.name for edge in self.edges], metric=metric)

    def show(self, height: int = 700) -> Any:
        """The viewer, as a cell of a notebook shows it; elsewhere, write a ``.html`` file.

        Args:
            height: in pixels.
        """
        return exporters("pages.viewer").Viewer(self, height)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """The drawing, as notebooks show a circuit that is the value of a cell."""
        return exporters("pages.viewer").display(self)

    @property
    def unscored(self) -> bool:
        """Whether it has edges, and is not said what any is worth."""
        return bool(self.edges) and all(edge.worth is None for edge in self.edges)

    @cached_property
    def graph(self) -> networkx.MultiDiGraph[Any]:
        """The circuit as a networkx graph; edges are keyed by their slot (``q k v`` or ``""``).

        Nodes carry kind, layer, head and score; edges what ``CircuitEdge.figures`` has. A key-value
        head is joined to the query heads it serves by edges of the key ``group``, which carry
        nothing else.
        """
        import networkx

        # A head may read one writer by its query, key and value: three edges between two nodes.
        graph: networkx.MultiDiGraph[Any] = networkx.MultiDiGraph()
        for node in self.nodes:
            graph.add_node(
                node.name, kind=node.kind, layer=node.layer, head=node.head, score=node.score
            )
        for edge in self.edges:
            graph.add_edge(edge.source, edge.target, key=edge.slot or "", **edge.figures)
        for kv_head, head in self.groups:
            graph.add_edge(kv_head, head, key="group")
        return graph

    @cached_property
    def groups(self) -> tuple[tuple[str, str], ...]:
        """Each shared key-value head of the circuit with each of its query heads in the circuit."""
        names = {node.name for node in self.nodes}
        return tuple(
            (node.name, head)
            for node in self.nodes
            if node.kind == "kv" and node.layer is not None and node.head is not None
            for head in (head_name(node.layer, head) for head in self.shape.query_heads(node.head))
            if head in names
        )


def all_nodes(shape: ModelGraph) -> list[CircuitNode]:
    """Every node a circuit of this model may have, in the order of computation."""
    nodes = [CircuitNode("input", "input")]
    for layer in range(shape.n_layers):
        if shape.grouped:
            nodes += [
                CircuitNode(kv_name(layer, head), "kv", layer, head)
                for head in range(shape.n_kv_heads)
            ]
        nodes += [
            CircuitNode(head_name(layer, head), "head", layer, head)
            for head in range(shape.n_heads)
        ]
        nodes.append(CircuitNode(mlp_name(layer), "mlp", layer))
    return [*nodes, CircuitNode("logits", "logits")]
