"""Circuits written by hand."""

from __future__ import annotations

from typing import Any

from wiremap.circuits import Circuit, CircuitEdge, Faithfulness
from wiremap.edges import ModelGraph

SHAPE = ModelGraph(2, 2, 2)
EDGES = (
    CircuitEdge(
        "input",
        "a0.h0",
        "v",
        0.5,
        effect=1.25,
        standard_error=0.125,
        n_pairs=8,
        interval=(1.0, 1.5),
        inclusion=1.0,
        loss=0.875,
    ),
    CircuitEdge(
        "a0.h0",
        "a1.h1",
        "q",
        -0.5,
        effect=-0.75,
        standard_error=0.25,
        n_pairs=8,
        interval=(-1.25, 0.125),
        inclusion=0.625,
        loss=-0.125,
    ),
    CircuitEdge("a0.h0", "a1.h1", "k", score=0.25, inclusion=0.0),
    CircuitEdge("input", "m0", None, score=1e-40, effect=0.0, standard_error=0.0, n_pairs=8),
    CircuitEdge("m0", "logits", None, score=2.0, effect=3.5, standard_error=0.5, n_pairs=8),
    CircuitEdge("a1.h1", "logits", None, score=1.0, effect=-1e-9, n_pairs=8),
)


def circuit(**changes: Any) -> Circuit:
    """A circuit with parallel edges; negative, zero and tiny values; and verified or not."""
    parts: dict[str, Any] = {
        "model": {"name": "tiny", "sha256": "0" * 64},
        "task": {"task": "ioi", "n_pairs": 8},
        "method": {"metric": "logit_diff", "threshold": 0.1},
        "faithfulness": Faithfulness(full=4.0, empty=-1.0, circuit=3.0, n_pairs=8),
        **changes,
    }
    return Circuit.build(SHAPE, EDGES, {"m0": 0.5, "input": -2.0}, **parts)


CURVE = {
    "points": [
        {"fraction": fraction, "edges": int(46 * fraction), "faithfulness": faithfulness}
        for fraction, faithfulness in ((0.05, 0.25), (0.2, 0.75), (1.0, 1.0))
    ],
    "cpr": 0.8125,
    "cmd": 0.1375,
}
"""A faithfulness curve, as evidence."""

HOSTILE = 'a"b<c>&amp;]]>\n\\N \u202e\u05d0\x00\x1b\ufffe</script>javascript:INF null \U0001f600\\'
"""Text that means something to XML, JSON, HTML, DOT and terminals, or that none of them can hold."""


def hostile() -> Circuit:
    """A circuit described by such text."""
    return circuit(
        model={"name": HOSTILE, HOSTILE: [HOSTILE, None, 1e-40, True, {}]},
        task={"pairs": HOSTILE},
        method={"metric": HOSTILE},
        evidence={HOSTILE: [HOSTILE, None, 1e-40, True, {}]},
    )


def extreme() -> Circuit:
    """The largest and the smallest numbers there are, between the same two nodes, and none at all."""
    edges = [
        CircuitEdge(
            "input",
            "a0.h0",
            "q",
            score=1.7e308,
            effect=1.7e308,
            n_pairs=1,
            interval=(-1.7e308, 1.7e308),
        ),
        CircuitEdge(
            "input", "a0.h0", "k", score=1.7e308, effect=-5e-324, n_pairs=2**31 - 1, loss=1e-320
        ),
        CircuitEdge("input", "a0.h0", "v"),
        CircuitEdge(
            "a0.h0", "logits", score=-0.0, effect=0.1 + 0.2, standard_error=1e-300, n_pairs=3
        ),
    ]
    return Circuit.build(ModelGraph(1, 1, 1, parallel=True), edges, {"input": 1e-320})


def grouped() -> Circuit:
    """A circuit through a key-value head that two query heads share."""
    edges = [
        CircuitEdge("input", "a0.kv1", "v", score=1.0),
        CircuitEdge("a0.h2", "logits", None, score=0.5),
        CircuitEdge("a0.h3", "logits", None, score=-0.5),
    ]
    return Circuit.build(ModelGraph(1, 4, 2), edges, {})


CIRCUITS = {
    "full": circuit(),
    "grouped": grouped(),
    "hostile": hostile(),
    "extreme": extreme(),
    "empty": Circuit.build(SHAPE, []),
}
"""A circuit of each kind."""
