"""Exact effects of edges: what the metric does when one reader sees another value of one writer.

Path patching of an edge u->v: v's input alone sees the other run's value of u; v's output changes,
and everything downstream of v is recomputed. What is downstream may be frozen instead, which leaves
the path u->v->logits, or that and its detours through MLPs (after Wang et al., 2022, arXiv
2211.00593). A path of several edges changes what each of its readers reads of the one before.
Patching whole nodes is in ``node_patching``.

Noising edits the clean run with values of the corrupted one, denoising the other way round. In
both, effect = metric with the clean value - metric with the corrupted value, all else as in the
edited run: positive carries the behaviour, negative opposes it.

The edited run is resumed at the reader's layer from the residual stream it left there. The edges
of a layer share batches, one row for each edge and pair, and edges of a writer the norm of what it
changes; of that layer the patched reader alone is recomputed, after it whole blocks. Positions
before the first at which two prompts differ are never recomputed, and of the last block only what
the last position needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..model.transformer import Model
from ..names.vocabulary import DIRECTION, FROZEN, METRIC, NOTHING
from ..question.metrics import Metric
from ..question.prompts import PairBatch, PromptPairs
from ..runs.trace import Run, run
from .engine import Effects, Runs, patch_items
from .hop import Hop, path_change, through_mlps

_BASE = ("resid_pre", "mlp_in", "q", "k", "v", "z", "written", "mlp_out")


_OTHER = ("input", "written", "mlp_out")


def patch_edges(
    model: Model,
    pairs: PromptPairs,
    edges: Sequence[str],
    metric: str | Metric = METRIC,
    direction: str = DIRECTION,
    batch_size: int | None = None,
    progress: Callable[[int], Any] | None = None,
    frozen: str = NOTHING,
) -> Effects:
    """Exact effects of edges, or of paths, by path patching, on each pair.

    effect(u->v) = metric(v reads u's clean value) - metric(v reads u's corrupted value)

    The effect of a path ``u->v->w``: w alone reads what v writes when it alone reads the other
    value of u.

    Args:
        edges: names such as ``a0.h1->a2.h3<q>``, or paths such as ``a0.h1->a2.h3<q>->logits``.
        metric: a name in ``METRICS`` or a function ``(logits, targets) -> [row]``.
        direction: ``noising`` edits the clean run, ``denoising`` the corrupted one.
        batch_size: rows (edges x pairs) at once; None takes what fits into memory.
        progress: called with the number of rows finished since the last call.
        frozen: what keeps the edited run's values downstream of the (last) reader's head or MLP:
            ``none``: all is recomputed; ``heads``: other heads write what they wrote, MLPs are
            recomputed; ``all``: other heads and MLPs write what they wrote, which makes it the
            effect of the path that goes on to the logits. Wang et al. (2022) freeze heads between
            sender and receiver, too, and count detours through MLPs there as part of the path;
            here the edge is the direct connection alone.

    Raises:
        InputError: an edge the model does not have, unknown options, pairs it cannot run.
        WiremapError: an effect that is not finite; the edge and the pair are named.
    """
    if frozen not in FROZEN:
        raise InputError(f"unknown frozen {frozen!r:.60}; there are {', '.join(FROZEN)}")
    readers = model.graph.readers
    asked = [model.graph.path(name) for name in edges]
    # Edges of one slot and writer stand together, so that a batch has few writers to normalize.
    order = sorted(
        range(len(asked)), key=lambda item: (readers[asked[item][1][-1]].kind, asked[item])
    )
    paths = [asked[item] for item in order]

    def both_runs(batch: PairBatch) -> Iterator[tuple[Run, Run]]:
        noising = direction == "noising"
        clean = run(model, batch.clean, _BASE if noising else _OTHER)
        yield clean, run(model, batch.corrupted, _OTHER if noising else _BASE)

    def final(runs: Runs, layer: int, items: Sequence[int]) -> Tensor:
        sources = sorted({(paths[item][0], paths[item][1][:-1]) for item in items})
        changes = torch.stack([path_change(model, runs, *source) for source in sources])
        place = {source: place for place, source in enumerate(sources)}
        of = [place[paths[item][0], paths[item][1][:-1]] for item in items]
        hop = Hop(model, runs, layer, [readers[paths[item][1][-1]] for item in items], changes, of)
        if layer == model.graph.n_layers:
            return (runs.base.final[:, -1:] + hop.read_changes()[:, :, -1:]).flatten(0, 1)
        if frozen == "none":
            resid = hop.resid_after().flatten(0, 1)
            return model.run(resid, start=layer + 1, past=runs.past, last_only=True)
        change = hop.written_changes()[:, :, -1:]
        if frozen == "heads":
            change = through_mlps(model, runs, hop, change)
        return (runs.base.final[:, -1:] + change).flatten(0, 1)

    found = patch_items(
        model,
        pairs,
        [edges[item] for item in order],
        [readers[path[-1]].layer for _, path in paths],
        metric,
        direction,
        batch_size,
        progress,
        both_runs,
        final,
    )
    effects = torch.empty_like(found.effects)
    effects[torch.tensor(order, device=effects.device)] = found.effects
    return Effects(tuple(edges), effects)
