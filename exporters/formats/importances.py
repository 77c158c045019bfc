"""EAP-IG's importances.json (Hanna et al., 2024; the MIB benchmark's submissions): all edge scores.

    {"cfg": {"n_layers", "n_heads", "parallel_attn_mlp", "d_model"},
     "nodes": {"a0.h0": {"in_graph": bool}},
     "edges": {"a0.h0->a1.h2<q>": {"score": float, "in_graph": bool}}}

Every edge of the model is listed, none is in the graph yet: scores only. Signs agree with EAP-IG's
when its loss is minus the metric, as MIB uses it. Written edge by edge, so that a million of them
take no memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

from ...edges.errors import InputError
from ...edges.files import write_parts_atomically
from ...edges.names.graph import ModelGraph


def write_importances(
    path: str | Path, graph: ModelGraph, d_model: int, score: Callable[[int, int], float]
) -> None:
    """Writes the scores of all edges, for EAP-IG's ``Graph.from_json``.

    Args:
        score: of the edge with these places among ``graph.writers`` and ``graph.readers``.

    Raises:
        InputError: key-value heads that query heads share, which have no name there; a score that
            is not finite; a place that cannot be written.
    """
    check_names(graph)
    write_parts_atomically(Path(path), _parts(graph, d_model, score))


def check_names(graph: ModelGraph) -> None:
    """Raises InputError for key-value heads that query heads share: they have no name there."""
    if graph.n_kv_heads != graph.n_heads:
        raise InputError(
            f"EAP-IG names keys and values by query head; this model's {graph.n_heads} query heads "
            f"share {graph.n_kv_heads} of them. Score with one reader for each: --kv per-query "
            '(kv="per-query")'
        )


def _parts(graph: ModelGraph, d_model: int, score: Callable[[int, int], float]) -> Iterator[str]:
    cfg = {
        "n_layers": graph.n_layers,
        "n_heads": graph.n_heads,
        "parallel_attn_mlp": graph.parallel,
        "d_model": d_model,
    }
    nodes = [writer.name for writer in graph.writers] + ["logits"]
    yield f'{{"cfg": {json.dumps(cfg)},\n"nodes": {{\n'
    yield ",\n".join(f'{json.dumps(name)}: {{"in_graph": false}}' for name in nodes)
    yield '},\n"edges": {\n'
    separator = ""
    for edge in graph.edges():
        value = float(score(*edge))  # numpy's floats have another repr
        if not math.isfinite(value):
            raise InputError(f"expected finite scores, got {value} for {graph.edge_name(edge)}")
        name = json.dumps(graph.edge_name(edge))
        yield f'{separator}{name}: {{"score": {value!r}, "in_graph": false}}'
        separator = ",\n"
    yield "}}\n"
