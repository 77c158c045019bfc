"""Exact effects of nodes, and of sets of nodes, by activation patching.

A node's value is replaced, and everything that depends on it is recomputed: the edited run is
resumed at the node's layer from the residual stream it left there. Sets are replaced together.
Many are run at once, one row for each set and pair. Signs and directions as in ``patching``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ..errors import InputError
from ..model.activations import Activations
from ..model.transformer import Model
from ..names.nodes import ACTIVATION, NodeSet, parse_node
from ..names.vocabulary import DIRECTION, METRIC
from ..question.metrics import Metric
from ..question.prompts import PromptPairs
from ..question.question import Question
from ..question.source import Source
from ..runs.sweep import Report, Resources, silent
from .edits import ALL, Edit, applying
from .engine import Effects, Items, Runs, patch_items

_BASE = ("resid_pre", "k", "v")


@dataclass(frozen=True)
class NodeEdits:
    """Where each item (a set of nodes) replaces values.

    Attributes:
        by_site: for (activation, layer), rows of (item, position, entry), as in ``Edit.where``.
        first_layers: where each item's edited run begins; ``n_layers`` for an item of no nodes.
    """

    n_layers: int
    by_site: dict[tuple[str, int], Int64[Tensor, "place 3"]]
    first_layers: list[int]

    @classmethod
    def of_names(cls, model: Model, items: Sequence[Sequence[str]]) -> NodeEdits:
        """Items given by the names of their nodes. Raises InputError for unknown names."""
        rows: dict[tuple[str, int], list[tuple[int, int, int]]] = {}
        for item, names in enumerate(items):
            for name in names:
                node = parse_node(model.graph, model.d_mlp, name)
                position = ALL if node.position is None else node.position
                site = (ACTIVATION[node.kind], node.layer)
                rows.setdefault(site, []).append((item, position, node.entry))
        return cls._of(
            model.graph.n_layers,
            {site: torch.tensor(where) for site, where in rows.items()},
            len(items),
        )

    @classmethod
    def of_members(cls, nodes: NodeSet, members: Bool[Tensor, "item node"]) -> NodeEdits:
        """Items given by which nodes of a set they have."""
        by_site: dict[tuple[str, int], Tensor] = {}
        for site, part in zip(nodes.sites, nodes.slices, strict=True):
            item, place = members[:, part].nonzero().T
            # The nodes of a site stand in the order [entry pos].
            position = torch.full_like(place, ALL) if nodes.n_pos is None else place % nodes.n_pos
            where = torch.stack([item, position, place // (nodes.n_pos or 1)], dim=1)
            if len(where):
                by_site[site.activation, site.layer] = where
        return cls._of(nodes.graph.n_layers, by_site, len(members))

    @classmethod
    def _of(cls, n_layers: int, by_site: dict[tuple[str, int], Tensor], n_items: int) -> NodeEdits:
        first = torch.full((n_items,), n_layers)
        for (_, layer), where in by_site.items():
            first[where[:, 0]] = first[where[:, 0]].clamp(max=layer)
        return cls(n_layers, by_site, first.tolist())

    def check_positions(self, pairs: PromptPairs) -> None:
        """Raises InputError if a position lies outside a prompt."""
        last = max((int(where[:, 1].max()) for where in self.by_site.values()), default=ALL)
        shortest = int(pairs.lengths.min())
        if last >= shortest:
            raise InputError(
                f"expected positions below {shortest}, the length of the shortest prompt, got "
                f"position {last}; give prompts of one length, or patch all positions (no @)"
            )

    def edits(self, items: Sequence[int], other: Activations) -> list[Edit]:
        """What makes a run of these items, in this order, read the other values."""
        place = torch.full((len(self.first_layers),), -1)
        place[torch.tensor(items)] = torch.arange(len(items))
        start = min(self.first_layers[item] for item in items)
        edits: list[Edit] = []
        for (name, layer), where in self.by_site.items():
            if layer < start:
                continue  # none of these items has a node there
            item = place[where[:, 0]]  # of all items, where among these; -1: not among them
            here = item >= 0
            if bool(here.any()):
                where = torch.column_stack([item, where[:, 1:]])[here]
                edits.append(Edit(name, layer, where, other[name][layer]))
        return edits


def patch_nodes(
    model: Model,
    pairs: PromptPairs,
    nodes: Sequence[str | Sequence[str]],
    *,
    metric: str | Metric = METRIC,
    direction: str = DIRECTION,
    batch_size: int | None = None,
    progress: Report = silent,
    patch_with: str | Source = "corrupted",
) -> Effects:
    """Exact effects of nodes by activation patching, on each pair.

    effect(n) = metric(n has its clean value) - metric(n has the value patched in)

    all else as in the edited run, everything downstream recomputed. For denoising the run edited
    is the corrupted (or noised) one, and the clean value is what is patched in.

    Args:
        nodes: names (see ``wiremap.edges.names.nodes``); a list of names is patched together.
        metric: a name in ``METRICS`` or a function ``(logits, targets) -> [row]``.
        direction: ``noising`` or ``denoising``; see ``patch_edges``.
        batch_size: rows (nodes x pairs) at once; None takes what fits into memory.
        progress: called with (stage, rows finished since the last call, rows in all).
        patch_with: where patched values come from; see ``wiremap.edges.question.source``.

    Raises:
        InputError: a node the model does not have, a position outside a prompt, unknown options, a
            source that the pairs or the direction do not allow.
        WiremapError: an effect that is not finite; the node and the pair are named.
    """
    question = Question(
        pairs=pairs,
        metric=metric,
        direction=direction,
        patch_with=patch_with if isinstance(patch_with, Source) else Source(patch_with),
    )
    return effects_of_nodes(
        model, question, nodes, Resources(batch_size=batch_size, report=progress)
    )


def effects_of_nodes(
    model: Model, question: Question, nodes: Sequence[str | Sequence[str]], resources: Resources
) -> Effects:
    """Exact effects of nodes, or of lists of them together; see ``patch_nodes``."""
    items = [[node] if isinstance(node, str) else list(node) for node in nodes]
    edits = NodeEdits.of_names(model, items)
    return patch_edits(model, question, [" + ".join(item) for item in items], edits, resources)


def patch_edits(
    model: Model, question: Question, names: Sequence[str], edits: NodeEdits, resources: Resources
) -> Effects:
    """Exact effects of sets of nodes, one for each of ``names``; else as ``patch_nodes``."""
    edits.check_positions(question.pairs)

    def final(runs: Runs, layer: int, part: Sequence[int]) -> Float[Tensor, "row pos d_model"]:
        base = runs.resid_before(layer)
        see = applying(edits.edits(part, runs.other), len(part))
        rows = base.repeat(len(part), 1, 1)  # [pair pos d_model] -> [(item pair) pos d_model]
        return model.run(rows, see, start=layer, past=runs.past, last_only=True)

    items = Items(
        names=names,
        layers=edits.first_layers,
        base=_BASE,
        other={name for name, _ in edits.by_site},
        final=final,
    )
    return patch_items(model, question, items, resources)
