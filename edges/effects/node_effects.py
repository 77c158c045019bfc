"""Exact effects of nodes, and of sets of nodes, by activation patching.

A node's value is replaced, and everything that depends on it is recomputed: the edited run is
resumed at the node's layer from the residual stream it left there. Sets are replaced together.
Many are run at once, one row for each set and pair. Signs and directions as in ``patching``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ..errors import InputError
from ..model.activations import Activations
from ..model.parts import See
from ..model.transformer import Model
from ..names.nodes import ACTIVATION, NodeSet, parse_node
from ..names.vocabulary import DIRECTION, METRIC
from ..question.metrics import Metric
from ..question.prompts import PairBatch, PromptPairs
from ..runs.trace import Run, run
from .engine import Effects, Runs, patch_items
from .sources import Source


@dataclass(frozen=True)
class NodeEdits:
    """Which entries of which activations each item (a set of nodes) replaces.

    Attributes:
        by_site: for (activation, layer), rows of (item, entry, position); position -1 is all.
        first_layers: where each item's edited run begins; ``n_layers`` for an item of no nodes.
    """

    n_layers: int
    by_site: dict[tuple[str, int], Int64[Tensor, "edit 3"]]
    first_layers: list[int]

    @classmethod
    def of_names(cls, model: Model, items: Sequence[Sequence[str]]) -> NodeEdits:
        """Items given by the names of their nodes. Raises InputError for unknown names."""
        rows: dict[tuple[str, int], list[tuple[int, int, int]]] = {}
        for item, names in enumerate(items):
            for name in names:
                node = parse_node(model.graph, model.d_mlp, name)
                position = -1 if node.position is None else node.position
                site = (ACTIVATION[node.kind], node.layer)
                rows.setdefault(site, []).append((item, node.entry, position))
        return cls._of(
            model.graph.n_layers,
            {site: torch.tensor(found) for site, found in rows.items()},
            len(items),
        )

    @classmethod
    def of_members(cls, nodes: NodeSet, members: Bool[Tensor, "item node"]) -> NodeEdits:
        """Items given by which nodes of a set they have."""
        by_site: dict[tuple[str, int], Tensor] = {}
        for site, part in zip(nodes.sites, nodes.slices, strict=True):
            item, place = members[:, part].nonzero().T
            position = torch.full_like(place, -1) if nodes.n_pos is None else place % nodes.n_pos
            edits = torch.stack([item, place // (nodes.n_pos or 1), position], dim=1)
            if len(edits):
                by_site[site.activation, site.layer] = edits
        return cls._of(nodes.graph.n_layers, by_site, len(members))

    @classmethod
    def _of(cls, n_layers: int, by_site: dict[tuple[str, int], Tensor], n_items: int) -> NodeEdits:
        first = torch.full((n_items,), n_layers)
        for (_, layer), edits in by_site.items():
            first[edits[:, 0]] = first[edits[:, 0]].clamp(max=layer)
        return cls(n_layers, by_site, first.tolist())

    def check_positions(self, pairs: PromptPairs) -> None:
        """Raises InputError if a position lies outside a prompt."""
        last = max((int(edits[:, 2].max()) for edits in self.by_site.values()), default=-1)
        shortest = int(pairs.lengths.min())
        if last >= shortest:
            raise InputError(
                f"expected positions below {shortest}, the length of the shortest prompt, got "
                f"position {last}; give prompts of one length, or patch all positions (no @)"
            )

    def see(self, items: Sequence[int], other: Activations, n_pairs: int) -> See:
        """What makes a run of these items (times pairs) read the other values."""
        place = torch.full((len(self.first_layers),), -1)
        place[torch.tensor(items)] = torch.arange(len(items))

        def see(name: str, layer: int, value: Tensor) -> Tensor:
            edits = self.by_site.get((name, layer))
            if edits is None:
                return value
            item, entry, position = place[edits[:, 0]], edits[:, 1], edits[:, 2]
            here = item >= 0
            item, entry, position = item[here], entry[here], position[here]
            if not len(item):
                return value
            new = getattr(other, name)[layer]
            n_pos = value.shape[1]  # those that may change, or count: the last ones
            before = new.shape[1] - n_pos
            new = new[:, before:]
            counts = (position < 0) | (position >= before)
            item, entry, position = item[counts], entry[counts], position[counts] - before
            has_entries = name not in ("input", "resid_pre", "mlp_out")
            mask = torch.zeros(
                len(items), n_pos, value.shape[2] if has_entries else 1, dtype=torch.bool
            )
            everywhere = position < 0
            mask.transpose(1, 2)[item[everywhere], entry[everywhere]] = True
            mask[item[~everywhere], position[~everywhere], entry[~everywhere]] = True
            mask = mask[:, None].to(value.device)
            rows = value.unflatten(0, (len(items), n_pairs))
            if value.ndim == 4:
                mask = mask[..., None]
            return torch.where(mask, new, rows).flatten(0, 1)

        return see


def patch_nodes(
    model: Model,
    pairs: PromptPairs,
    nodes: Sequence[str | Sequence[str]],
    metric: str | Metric = METRIC,
    direction: str = DIRECTION,
    batch_size: int | None = None,
    progress: Callable[[int], Any] | None = None,
    patch_with: str | Source = "corrupted",
) -> Effects:
    """Exact effects of nodes by activation patching, on each pair.

    effect(n) = metric(n has its clean value) - metric(n has the value patched in)

    all else as in the edited run, everything downstream recomputed. For denoising the run edited
    is the corrupted (or noised) one, and the clean value is what is patched in.

    Args:
        nodes: names (see ``wiremap.edges.nodes``); a list of names is patched together.
        metric: a name in ``METRICS`` or a function ``(logits, targets) -> [row]``.
        direction: ``noising`` or ``denoising``; see ``patch_edges``.
        batch_size: rows (nodes x pairs) at once; None takes what fits into memory.
        progress: called with the number of rows finished since the last call.
        patch_with: where patched values come from; see ``wiremap.edges.sources``.

    Raises:
        InputError: a node the model does not have, a position outside a prompt, unknown options, a
            source that the pairs or the direction do not allow.
        WiremapError: an effect that is not finite; the node and the pair are named.
    """
    items = [[node] if isinstance(node, str) else list(node) for node in nodes]
    edits = NodeEdits.of_names(model, items)
    names = [" + ".join(item) for item in items]
    return patch_edits(
        model, pairs, names, edits, metric, direction, batch_size, progress, patch_with
    )


def patch_edits(
    model: Model,
    pairs: PromptPairs,
    names: Sequence[str],
    edits: NodeEdits,
    metric: str | Metric = METRIC,
    direction: str = DIRECTION,
    batch_size: int | None = None,
    progress: Callable[[int], Any] | None = None,
    patch_with: str | Source = "corrupted",
) -> Effects:
    """Exact effects of sets of nodes; else as ``patch_nodes``."""
    source = patch_with if isinstance(patch_with, Source) else Source(patch_with)
    source.check(pairs, direction)
    if source.mean_over is not None:
        model.check_pairs(source.mean_over)
    edits.check_positions(pairs)
    needed = {name for name, _ in edits.by_site}

    @cache
    def means() -> Activations:
        return source.means(model, pairs, needed)

    def both_runs(batch: PairBatch) -> Iterator[tuple[Run, Run | Activations]]:
        noising = direction == "noising"
        base = {"resid_pre", "k", "v"}
        clean = run(model, batch.clean, base if noising else needed)
        for other in source.others(model, batch, needed if noising else base, means):
            yield clean, other

    def final(runs: Runs, layer: int, part: Sequence[int]) -> Float[Tensor, "row pos d_model"]:
        base = runs.resid_before(layer)
        see = edits.see(part, runs.other, len(base))
        rows = base.repeat(len(part), 1, 1)
        return model.run(rows, see, start=layer, past=runs.past, last_only=True)

    return patch_items(
        model,
        pairs,
        names,
        edits.first_layers,
        metric,
        direction,
        batch_size,
        progress,
        both_runs,
        final,
        source.n_draws,
    )
