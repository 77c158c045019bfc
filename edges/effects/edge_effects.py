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

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..model.transformer import Model
from ..names.vocabulary import DIRECTION, FROZEN, METRIC, NOTHING
from ..question.metrics import Metric
from ..question.prompts import PromptPairs
from ..question.question import Question
from ..runs.sweep import Report, Resources, silent
from .engine import Effects, Items, Runs, patch_items
from .hop import Hop, path_change, through_mlps

_BASE = ("resid_pre", "mlp_in", "q", "k", "v", "z", "written", "mlp_out")


_OTHER = ("input", "written", "mlp_out")


def patch_edges(
    model: Model,
    pairs: PromptPairs,
    edges: Sequence[str],
    *,
    metric: str | Metric = METRIC,
    direction: str = DIRECTION,
    batch_size: int | None = None,
    progress: Report = silent,
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
        progress: called with (stage, rows finished since the last call, rows in all).
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
    question = Question(pairs=pairs, metric=metric, direction=direction)
    resources = Resources(batch_size=batch_size, report=progress)
    return effects_of_edges(model, question, edges, resources, frozen)


def effects_of_edges(
    model: Model,
    question: Question,
    edges: Sequence[str],
    resources: Resources,
    frozen: str = NOTHING,
) -> Effects:
    """Exact effects of edges or paths; see ``patch_edges``."""
    if frozen not in FROZEN:
        raise InputError(f"unknown frozen {frozen!r:.60}; there are {', '.join(FROZEN)}")
    readers = model.graph.readers
    named = [model.graph.path(name) for name in edges]
    # Edges of one slot and writer stand together, so that a batch has few writers to normalize.
    order = sorted(
        range(len(named)), key=lambda item: (readers[named[item][1][-1]].kind, named[item])
    )
    paths = [named[item] for item in order]
    items = Items(
        names=[edges[item] for item in order],
        layers=[readers[path[-1]].layer for _, path in paths],
        base=_BASE,
        other=_OTHER,
        final=_Resumed(model, paths, frozen).final,
    )
    ordered = patch_items(model, question, items, resources).effects
    effects = torch.empty_like(ordered)
    effects[torch.tensor(order, device=effects.device)] = ordered
    return Effects(tuple(edges), effects)


@dataclass(frozen=True)
class _Resumed:
    """Runs resumed where the last reader of a path sees another input.

    Attributes:
        paths: of each item, a writer and the readers it goes through.
    """

    model: Model
    paths: Sequence[tuple[int, tuple[int, ...]]]
    frozen: str

    def final(
        self, runs: Runs, layer: int, items: Sequence[int]
    ) -> Float[Tensor, "row pos d_model"]:
        """The last residual stream of these items, whose last readers are in ``layer``."""
        model, paths = self.model, [self.paths[item] for item in items]
        # Paths that differ in their last reader alone change what it reads in the same way.
        before = [(writer, readers[:-1]) for writer, readers in paths]
        distinct = sorted(set(before))
        changes = torch.stack([path_change(model, runs, *path) for path in distinct])
        place = {path: index for index, path in enumerate(distinct)}
        last = [model.graph.readers[readers[-1]] for _, readers in paths]
        hop = Hop(model, runs, layer, last, changes, [place[path] for path in before])
        if layer == model.graph.n_layers:  # the logits read: nothing is left to run
            return (runs.base.final[:, -1:] + hop.read_changes()[:, :, -1:]).flatten(0, 1)
        if self.frozen == "none":
            resid = hop.resid_after().flatten(0, 1)  # [item pair pos d_model] -> [row ...]
            return model.run(resid, start=layer + 1, past=runs.past, last_only=True)
        change = hop.written_changes()[:, :, -1:]
        if self.frozen == "heads":
            change = through_mlps(model, runs, hop, change)
        return (runs.base.final[:, -1:] + change).flatten(0, 1)
