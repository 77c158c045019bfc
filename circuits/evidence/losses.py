"""What a circuit loses without one of its edges: the second sense in which an edge is verified."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from ...edges.effects.reduced_runs import ReducedRuns
from ...edges.model.transformer import Model
from ...edges.names.vocabulary import LOSS_PAIRS
from ...edges.question.question import Question
from ...edges.runs.masks import edge_mask
from ...edges.runs.sweep import Resources
from ..record.effects_file import Verified, append_lines, resume_effects, shortest

LOSSES_FILE = "losses.jsonl"

CHUNK = 16
"""Edges weighed and written together."""


def losses_of(
    model: Model,
    question: Question,
    edges: Sequence[str],
    names: Sequence[str],
    resources: Resources,
    path: Path | None = None,
    *,
    enough: Callable[[int], bool] = lambda _: False,
) -> list[Verified]:
    """metric(circuit) - metric(circuit without the edge), on each of the first ``LOSS_PAIRS`` pairs.

    Both in the model reduced to the circuit, everything outside patched with the corrupted run; a
    positive loss is of an edge that carries the behaviour there. In units of the metric. The
    direction of the question does not matter.

    Args:
        edges: the circuit.
        names: those of its edges whose losses are wanted, in order.
        path: a JSON Lines file that grows by whole chunks; see ``verify``.
        enough: asked after each chunk, with the number of losses known, whether to stop.

    Raises:
        InputError: an edge the model does not have; a file of other losses.
    """
    pairs = question.pairs.take(range(min(LOSS_PAIRS, len(question.pairs))))
    circuit = edge_mask(model.graph, edges)
    parts = (model.fingerprint(), pairs.fingerprint(), question.metric_name, " ".join(edges))
    fingerprint = "-".join(hashlib.sha256(part.encode()).hexdigest()[:8] for part in parts)
    known = [] if path is None else resume_effects(path, names, len(pairs), fingerprint, CHUNK)
    losses = list(known)
    resources.report("weigh edges", len(known), len(names))
    if len(known) == len(names):
        return losses
    with ReducedRuns(model, question.about(pairs=pairs), resources.quiet()) as runs:
        whole = runs.values(circuit)
        for start in range(len(known), len(names), CHUNK):
            if enough(len(losses)):
                break
            of_chunk = names[start : start + CHUNK]
            without = runs.values_without(circuit, [[name] for name in of_chunk])
            chunk = [
                Verified(name, shortest((whole - values).float().numpy()), fingerprint)
                for name, values in zip(of_chunk, without, strict=True)
            ]
            resources.report("weigh edges", len(chunk), len(names))
            if path is not None:
                append_lines(path, "".join(each.line() for each in chunk))
            losses += chunk
    return losses
