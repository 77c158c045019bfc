"""What every picture says of a circuit, its nodes and its edges, in a line each."""

from __future__ import annotations

import html

from ...circuits.result.circuit import Circuit, CircuitEdge, CircuitNode
from .shown import ShownNode

THINNEST, WIDEST = 0.6, 5.0


_PLAIN = 1.4
"""How wide an edge is drawn of which it is not known what it is worth."""


NOT_SCORED = "not scored"


SCORED = "hollow arrow: scored, not verified"
WEIGHED = "diamond: verified in the circuit, not in the model"
"""What the heads of arrows mean that are not verified."""


_PART = {"kv": "keys, values", "head": "attention", "attention": "attention", "mlp": "MLP"}


def title(circuit: Circuit) -> str:
    """What the circuit is of: ``gpt2 on ioi``."""
    # Of a path, or of a name on the hub, people know the last part.
    model = str(circuit.model.get("name", "model")).rstrip("/").rpartition("/")[2]
    task = str(circuit.task.get("task") or circuit.task.get("pairs", "")).rpartition("/")[2]
    return " on ".join(part for part in (model, task) if part)


def unit(circuit: Circuit) -> str:
    """The unit of the circuit's scores and effects."""
    metric = str(circuit.method.get("metric", ""))
    return {
        "logit_diff": "logits",
        "prob_diff": "probability",
        "log_prob": "nats",
        "kl": "nats",
    }.get(metric, metric or "metric")


def printable(text: str) -> str:
    """Without the control characters that make an SVG ill-formed."""
    return "".join(char for char in text if char.isprintable())


def escaped(text: str) -> str:
    """Text as a part of HTML, SVG and the HTML-like labels of Graphviz."""
    return html.escape(printable(text))


def worth_text(circuit: Circuit) -> list[str]:
    """How faithful a circuit is, on held-out pairs if there are any, and over how many pairs."""
    metric = circuit.method.get("metric", "metric")
    held_out, measured = circuit.evidence.held_out, circuit.faithfulness
    if held_out is not None:
        faithful = f"held-out faithfulness {held_out.faithfulness:.2f}"
        return [faithful, f"{held_out.metric} over {held_out.n_pairs} pairs"]
    if measured is not None:
        return [
            f"faithfulness {measured.faithfulness:.2f}",
            f"{metric} over {measured.n_pairs} pairs",
        ]
    return []


def row_label(node: CircuitNode | ShownNode) -> str:
    """What the nodes of the row are that this one stands in."""
    if node.layer is None:
        return ""
    return f"{node.layer} {_PART.get(node.kind, 'q, k, v')}"


def node_text(node: CircuitNode | ShownNode, circuit: Circuit) -> str:
    """What is known of a node, in one line."""
    if node.score is None:
        return node.name
    return f"{node.name}: score {node.score:+.3g} {unit(circuit)}"


def edge_text(edge: CircuitEdge, circuit: Circuit) -> str:
    """What is known of an edge, in one line."""
    parts: list[str] = []
    if edge.effect is not None:
        error = "" if edge.standard_error is None else f" ± {edge.standard_error:.2g}"
        between = f", 95 % {interval_text(edge)}" if edge.interval else ""
        pairs = f"({edge.n_pairs} pairs)"
        parts.append(f"effect {edge.effect:+.3g}{error} {unit(circuit)}{between} {pairs}")
    if edge.score is not None:
        parts.append(f"score {edge.score:+.3g}")
    if edge.loss is not None:
        parts.append(f"the circuit loses {edge.loss:+.3g} without it")
    if edge.known_by == "unscored":
        parts.append(NOT_SCORED)
    if edge.inclusion is not None:
        parts.append(f"in {edge.inclusion:.0%} of resampled circuits")
    return f"{edge.name}: {', '.join(parts)}"


def interval_text(edge: CircuitEdge) -> str:
    """The interval of an edge's effect, ``[+4.5, +5.4]``; nothing if there is none."""
    return "[{:+.3g}, {:+.3g}]".format(*edge.interval) if edge.interval else ""


def line_width(worth: float | None, largest: float) -> float:
    """How wide an edge is drawn, growing with its magnitude."""
    if worth is None:
        return _PLAIN
    share = abs(worth) / largest if largest else 0.0
    return THINNEST + (WIDEST - THINNEST) * share
