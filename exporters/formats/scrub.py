"""The circuit as a causal-scrubbing hypothesis (``circuits/result/hypothesis.py``), with defaults.

Keeps: nodes, edges, scores, effects, model, task, metric. Loses: scores of nodes, method,
faithfulness, evidence. ``wiremap scrub`` reads it; it is not read back as a circuit.
"""

from __future__ import annotations

from ...circuits.result.document import dumps
from ...circuits.result.hypothesis import Hypothesis, to_hypothesis_document
from ..format import Format

FORMATS = (
    Format(
        "scrub",
        ".scrub.json",
        "causal-scrubbing hypothesis, for wiremap scrub",
        encode=lambda circuit, view: dumps(to_hypothesis_document(Hypothesis(circuit))).encode(),
    ),
)
