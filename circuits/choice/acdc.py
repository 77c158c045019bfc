"""Automatic circuit discovery (ACDC; Conmy et al., 2023, arXiv 2304.14997), to compare with.

Starting from all edges and going from the logits backwards, an edge is removed for good if the
metric falls by less than ``tau`` without it, all edges removed before staying removed. With the
metric ``kl`` (minus the divergence from the whole model) that is the paper's rule.

What is not as in the paper or its code:

- Edges are those of ``ModelGraph``: a head's query, key and value read, and the head writes; the
  edges the code has inside a head, which it never removes by themselves, do not exist here.
- Writers into a reader are tried latest first; queries, keys and values of a layer last reader
  first. (The paper leaves the order open and reports that it matters.)
- Readers that no longer lead to the logits lose all their edges without being tried, and at the
  end edges go that nothing from the input reaches; see ``pruning``.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...edges.effects.reduced_runs import ReducedRuns
from ...edges.names.graph import Edge
from ...edges.runs.masks import full_mask
from ...edges.runs.sweep import Report, silent
from ..result.circuit import CircuitEdge
from .pruning import BELOW_TAU, ON_NO_PATH, Pruned, removing
from .rules import Rules


def prune_by_acdc(
    runs: ReducedRuns,
    edges: Sequence[CircuitEdge],
    tau: float,
    progress: Report = silent,
) -> Pruned:
    """Removes each edge without which the mean metric falls by less than ``tau``.

    An edge goes if m(circuit) - m(circuit without it) < tau, so it also goes if the metric grows.
    Each trial is a run of its own; only the corrupted run is shared. Edges into a head that no kept
    edge reads go untried, also where a norm behind attention lets it scale what other heads write.

    Args:
        runs: of the model and pairs, with the metric (higher is better), inside their ``with``.
        edges: all edges of the model, with what is known of each.
        tau: in units of the metric.
        progress: called with (stage, edges decided since the last call, edges in all).

    Raises:
        InputError: a tau that is not above 0.
    """
    Rules(acdc=tau).check()
    graph = runs.model.graph
    kept = full_mask(graph)
    value = runs.full.mean().item()
    removed: dict[str, str] = {}
    # From the logits backwards: whether a reader leads on is known before its edges are tried.
    for index, reader in reversed([*enumerate(graph.readers)]):
        # A reader counts if a kept edge reads any node that is computed from it: [writer reader].
        leads_on = reader.kind == "logits" or bool(kept[list(graph.fed_by(index))].any())
        for writer in reversed(range(reader.n_writers)):
            rule = BELOW_TAU if leads_on else ON_NO_PATH
            kept[writer, index] = False
            if leads_on:
                # Compared with what is left by now, not with the whole model: removals add up.
                without = runs.values(kept).mean().item()
                if value - without < tau:
                    value = without
                else:
                    # Removed on trial only: back in, for good.
                    kept[writer, index], rule = True, ""
            if rule:
                removed[graph.edge_name(Edge(writer, index))] = rule
            progress("ACDC", 1, graph.n_edges)
    return removing(graph, edges, removed)
