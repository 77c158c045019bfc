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

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from .errors import InputError, WiremapError
from .gradients import check_direction
from .graph import SLOTS, Reader, Slot
from .memory import BatchSize
from .metrics import Metric, Targets, resolve_metric
from .model import Activations, Model, Past
from .prompts import PairBatch, PromptPairs
from .trace import Run, answer_logits, run

Frozen = Literal["none", "heads", "all"]
FROZEN: tuple[Frozen, ...] = get_args(Frozen)
"""What keeps the edited run's values downstream of a reader."""

_KINDS: tuple[Literal["mlp"] | Slot, ...] = ("mlp", *SLOTS)
_BASE = ("resid_pre", "mlp_in", "q", "k", "v", "z", "written", "mlp_out")
_OTHER = ("input", "written", "mlp_out")


@dataclass(frozen=True, eq=False)
class Effects:
    """Exact effects of nodes or edges on each pair, in units of the metric."""

    names: tuple[str, ...]
    effects: Float32[Tensor, "item pair"]

    def mean(self) -> Float32[Tensor, "item"]:
        """Mean effect over pairs."""
        return self.effects.mean(1)

    def standard_error(self) -> Float32[Tensor, "item"]:
        """Standard error of the mean over pairs (n - 1 in the variance); nan for a single pair."""
        n_pairs = self.effects.shape[1]
        if n_pairs == 1:
            return torch.full_like(self.effects[:, 0], torch.nan)
        return self.effects.std(1) / n_pairs**0.5


@dataclass(frozen=True)
class Runs:
    """The run a batch's edits are made in, and where its new values come from.

    Attributes:
        values: the metric of each pair in the edited run.
        sign: makes effects clean minus other: 1 for noising, -1 for denoising.
        start: the first position at which both runs can differ.
    """

    base: Run
    other: Activations
    values: Float[Tensor, "pair"]
    targets: Targets
    sign: int
    start: int

    @classmethod
    def of(
        cls, batch: PairBatch, clean: Run, other: Run | Activations, metric: Metric, direction: str
    ) -> Runs:
        """Noising edits the clean run, denoising the other one."""
        targets = Targets.of(batch, clean.logits)
        noising = direction == "noising"
        base, source = (clean, other) if noising else (other, clean)
        if isinstance(base, Activations):
            raise TypeError("values that are no run cannot be edited")
        start = 0 if isinstance(source, Activations) else first_difference(batch)
        values = source if isinstance(source, Activations) else source.kept
        return cls(base, values, metric(base.logits, targets), targets, 1 if noising else -1, start)

    @property
    def past(self) -> Past | None:
        """The keys and values that no edit changes; None if there are none."""
        if not self.start:
            return None
        k, v = (
            [one[:, : self.start] for one in kept] for kept in (self.base.kept.k, self.base.kept.v)
        )
        return Past(k, v)

    def resid_before(self, layer: int) -> Float[Tensor, "pair pos d_model"]:
        """The residual stream before block ``layer`` in the edited run, where it may change."""
        resid_pre = self.base.kept.resid_pre
        resid = resid_pre[layer] if layer < len(resid_pre) else self.base.final
        return resid[:, self.start :]


def first_difference(batch: PairBatch) -> int:
    """The first position at which clean and corrupted prompt of a pair differ, at most the last."""
    differs = (batch.clean != batch.corrupted).any(0).tolist()
    return differs.index(True) if True in differs else len(differs) - 1


def patch_edges(
    model: Model,
    pairs: PromptPairs,
    edges: Sequence[str],
    metric: str | Metric = "logit_diff",
    direction: str = "noising",
    batch_size: int | None = None,
    progress: Callable[[int], Any] | None = None,
    frozen: str = "none",
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
        changes = torch.stack([_change(model, runs, *source) for source in sources])
        place = {source: place for place, source in enumerate(sources)}
        of = [place[paths[item][0], paths[item][1][:-1]] for item in items]
        hop = _Hop(model, runs, layer, [readers[paths[item][1][-1]] for item in items], changes, of)
        if layer == model.graph.n_layers:
            return (runs.base.final[:, -1:] + hop.read_changes()[:, :, -1:]).flatten(0, 1)
        if frozen == "none":
            resid = hop.resid_after().flatten(0, 1)
            return model.run(resid, start=layer + 1, past=runs.past, last_only=True)
        change = hop.written_changes()[:, :, -1:]
        if frozen == "heads":
            change = _through_mlps(model, runs, hop, change)
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


def patch_items(
    model: Model,
    pairs: PromptPairs,
    names: Sequence[str],
    layers: Sequence[int],
    metric: str | Metric,
    direction: str,
    batch_size: int | None,
    progress: Callable[[int], Any] | None,
    both_runs: Callable[[PairBatch], Iterable[tuple[Run, Run | Activations]]],
    final: Callable[[Runs, int, Sequence[int]], Float[Tensor, "row pos d_model"]],
    n_draws: int = 1,
) -> Effects:
    """Effects of all items, those of a layer sharing batches.

    Args:
        layers: of each item, where its edited run is resumed.
        both_runs: of a batch, for each draw, the clean run, and the run or values of the other.
        final: the last residual stream of the edited runs of some items of a layer, item by item.
        n_draws: how many draws ``both_runs`` gives; effects are their mean.
    """
    chosen_metric = resolve_metric(metric, pairs.wrong.shape[1] > 0)
    check_direction(direction)
    model.check_pairs(pairs)
    table = torch.zeros(len(names), len(pairs), device=model.device)
    by_layer: dict[int, list[int]] = {}
    for item, layer in enumerate(layers):
        by_layer.setdefault(layer, []).append(item)

    def patch(batch: PairBatch) -> None:
        items_at_once = BatchSize(n_rows // len(batch))
        table[:, batch.rows] = 0  # a batch that ran out of memory may have left something
        for clean, other in both_runs(batch):
            runs = Runs.of(batch, clean, other, chosen_metric, direction)
            for layer, items in sorted(by_layer.items()):

                def effects_of(
                    part: Sequence[int], layer: int = layer, runs: Runs = runs
                ) -> Tensor:
                    logits = answer_logits(model, final(runs, layer, part))
                    values = chosen_metric(logits, runs.targets.repeat(len(part)))
                    return runs.sign * (runs.values - values.view(len(part), -1))

                for part, effects in items_at_once.map(items, effects_of):
                    table[torch.tensor(part)[:, None], batch.rows] += effects.float() / n_draws
                    if progress is not None:
                        progress(effects.numel())

    with torch.no_grad(), model.borrowed():
        for bucket in pairs.batches():
            n_rows, pairs_at_once = _sizes(model, bucket)
            if batch_size is not None:
                n_rows = batch_size
                pairs_at_once = BatchSize(min(batch_size, pairs_at_once.rows))
            for _ in pairs_at_once.map(bucket, patch):
                pass
    strange = (~torch.isfinite(table)).nonzero().tolist()
    if strange:
        item, pair = strange[0]
        raise WiremapError(
            f"the effect of {names[item]} on pair {pair + 1} is not finite ({len(strange)} such); "
            "try float32 (--dtype float32)"
        )
    return Effects(tuple(names), table)


def _sizes(model: Model, bucket: PairBatch) -> tuple[int, BatchSize]:
    """How many edited rows to run at once, and of how many pairs to keep both runs.

    Estimates: of what a block needs for one row, and of what both runs leave behind of one pair.
    """
    n_pos = bucket.clean.shape[1]
    stream = n_pos * model.d_model
    of_row = 24 * stream + 4 * model.graph.n_heads * n_pos**2 + 2 * model.d_vocab
    of_pair = of_row + 10 * model.graph.n_layers * stream
    rows = BatchSize.fitting(4 * of_row, model.device).rows
    return rows, BatchSize.fitting(4 * of_pair, model.device)


def _change(
    model: Model, runs: Runs, writer: int, readers: Sequence[int]
) -> Float[Tensor, "pair pos d_model"]:
    """How what the last reader of a path reads changes: that is, what is written before it.

    Args:
        readers: those before the last; none for an edge.
    """
    change = _difference(model, runs, writer)
    for reader in readers:
        one = model.graph.readers[reader]
        hop = _Hop(model, runs, one.layer, [one], change[None], [0])
        change = hop.written_changes()[0]
        if change.shape[1] == 1:  # written at the last position alone, by the last layer
            change = torch.nn.functional.pad(change, (0, 0, runs.resid_before(0).shape[1] - 1, 0))
    return change


def _difference(model: Model, runs: Runs, writer: int) -> Float[Tensor, "pair pos d_model"]:
    """What a writer adds to the residual stream in the other run, less what it adds in the base."""
    node = model.graph.writers[writer]
    base, other, at = runs.base.kept, runs.other, slice(runs.start, None)
    if node.kind == "input":
        return (other.input[0] - runs.base.input)[:, at]
    if node.kind == "mlp":
        return (other.mlp_out[node.layer] - base.mlp_out[node.layer])[:, at]
    change = (other.written[node.layer] - base.written[node.layer])[:, at, node.head]
    return change @ model.output_weight(node.layer)[node.head]


@dataclass(frozen=True)
class _Hop:
    """Readers of one layer, each of which alone sees its input changed: one item each.

    Attributes:
        changes: of what is read, few, each for several items.
        of: which of them each item has.
    """

    model: Model
    runs: Runs
    layer: int
    readers: Sequence[Reader]
    changes: Float[Tensor, "change pair pos d_model"]
    of: Sequence[int]

    @property
    def _written_at(self) -> slice:
        """The positions at which it matters what the layer writes; of the base run's."""
        last = self.layer == self.model.graph.n_layers - 1
        return slice(-1, None) if last else slice(self.runs.start, None)

    def _cut(
        self, stream: Float[Tensor, "*item pos d_model"]
    ) -> Float[Tensor, "*item query d_model"]:
        """Of positions that may change, those at which it matters what the layer writes."""
        return stream[..., -1:, :] if self._written_at.start == -1 else stream

    def read_changes(
        self, items: Sequence[int] | None = None
    ) -> Float[Tensor, "item pair pos d_model"]:
        """How what the readers (or these of them) read changes."""
        of = self.of if items is None else [self.of[item] for item in items]
        return self.changes[torch.tensor(of, device=self.changes.device)]

    def _by_kind(self) -> Iterator[tuple[Literal["mlp"] | Slot, list[int]]]:
        for kind in _KINDS:
            items = [item for item, reader in enumerate(self.readers) if reader.kind == kind]
            if items:
                yield kind, items

    def _joined(self, parts: Sequence[tuple[list[int], Tensor]]) -> Tensor:
        """Results of some items each, in the order of the items."""
        if len(parts) == 1:
            return parts[0][1]
        order = torch.tensor([item for items, _ in parts for item in items])
        return torch.cat([part for _, part in parts])[order.argsort().to(self.changes.device)]

    def resid_after(self) -> Float[Tensor, "item pair query d_model"]:
        """The residual stream after the layer."""
        parts: list[tuple[list[int], Tensor]] = []
        after = self._cut(self.runs.resid_before(self.layer + 1))
        for kind, items in self._by_kind():
            if kind == "mlp":
                parts.append((items, after + self._mlp_change(items)))
            else:
                raw = self._raw_change(*self._z_change(kind, items))
                parts.append((items, self._after_attention(self._attention_change(raw))))
        return self._joined(parts)

    def written_changes(self) -> Float[Tensor, "item pair query d_model"]:
        """How what the readers' own heads or MLPs write changes."""
        parts: list[tuple[list[int], Tensor]] = []
        for kind, items in self._by_kind():
            if kind == "mlp":
                parts.append((items, self._mlp_change(items)))
            else:
                parts.append((items, self._own_change(*self._z_change(kind, items))))
        return self._joined(parts)

    def _mlp_change(self, items: Sequence[int]) -> Float[Tensor, "item pair query d_model"]:
        kept, at = self.runs.base.kept, self._written_at
        mlp_in = kept.mlp_in[self.layer][:, at] + self._cut(self.read_changes(items))
        return self._mlp(mlp_in) - kept.mlp_out[self.layer][:, at]

    def _mlp(
        self, mlp_in: Float[Tensor, "item pair query d_model"]
    ) -> Float[Tensor, "item pair query d_model"]:
        rows = self.model.mlp_norm(self.layer, mlp_in.flatten(0, 1))
        return self.model.mlp(self.layer, rows).view_as(mlp_in)

    def _z_change(
        self, slot: Slot, items: Sequence[int]
    ) -> tuple[Float[Tensor, "item pair query n d_head"], Int64[Tensor, "item n"]]:
        """How outputs of heads change when one query, key or value (of a head each) is computed anew.

        A key or value serves all query heads of its group; they are recomputed, no others. Gives the
        change of each such z, and which query heads they are.
        """
        model, kept, layer, start = self.model, self.runs.base.kept, self.layer, self.runs.start
        device, n_pairs = self.changes.device, self.changes.shape[1]
        group = model.graph.n_heads // model.graph.n_kv_heads
        heads = torch.tensor([self.readers[item].head for item in items], device=device)
        used = sorted({self.of[item] for item in items})
        of = torch.tensor([used.index(self.of[item]) for item in items], device=device)
        if slot == "q":
            kv_heads, query_heads = heads // group, heads[:, None]
        else:
            kv_heads = heads
            query_heads = heads[:, None] * group + torch.arange(group, device=device)

        def rows(activation: Tensor, of: Tensor) -> Tensor:
            """``[pair pos head d_head]`` at heads ``[item n]`` as ``[(item pair) pos n d_head]``."""
            return activation[:, :, of].permute(2, 0, 1, 3, 4).flatten(0, 1)

        changes = (
            self.changes
            if len(used) == len(self.changes)
            else self.changes[torch.tensor(used, device=device)]
        )
        normed = model.attention_norm(layer, self.runs.resid_before(layer) + changes)
        new = model.project(layer, slot, self._cut(normed) if slot == "q" else normed)
        new = new[of, :, :, heads].flatten(0, 1)[:, :, None]
        if slot == "q":
            q, k, v = (
                new,
                rows(kept.k[layer], kv_heads[:, None]),
                rows(kept.v[layer], kv_heads[:, None]),
            )
        else:
            q = rows(kept.q[layer][:, self._written_at], query_heads)
            both = {
                name: rows(getattr(kept, name)[layer], kv_heads[:, None]) for name in ("k", "v")
            }
            both[slot] = torch.cat([both[slot][:, :start], new], 1)
            k, v = both["k"], both["v"]
        z = model.attend(layer, q, k, v) - rows(kept.z[layer][:, self._written_at], query_heads)
        return z.unflatten(0, (len(items), n_pairs)), query_heads

    def _raw_change(
        self, z: Float[Tensor, "item pair query n d_head"], of: Int64[Tensor, "item n"]
    ) -> Float[Tensor, "item pair query d_model"]:
        """How the sum of a layer's heads changes, before any norm behind them."""
        return torch.einsum("ebpnd,endm->ebpm", z, self.model.raw_output_weight(self.layer)[of])

    def _attention_change(
        self, raw: Float[Tensor, "item pair query d_model"]
    ) -> Float[Tensor, "item pair query d_model"]:
        """How what attention writes changes when the sum of its heads changes by ``raw``."""
        model, layer = self.model, self.layer
        z = self.runs.base.kept.z[layer][:, self._written_at]
        base = model.raw_attention_output(layer, z)
        return model.finish_attention(layer, base + raw) - model.finish_attention(layer, base)

    def _after_attention(
        self, change: Float[Tensor, "item pair query d_model"]
    ) -> Float[Tensor, "item pair query d_model"]:
        """The residual stream after the layer when what attention writes there is changed."""
        if self.model.graph.parallel:
            return self._cut(self.runs.resid_before(self.layer + 1)) + change
        mlp_in = self.runs.base.kept.mlp_in[self.layer][:, self._written_at] + change
        return mlp_in + self._mlp(mlp_in)

    def _own_change(
        self, z: Float[Tensor, "item pair query n d_head"], of: Int64[Tensor, "item n"]
    ) -> Float[Tensor, "item pair query d_model"]:
        """How what these heads write changes, each scaled as the norm behind attention now scales."""
        model, layer = self.model, self.layer
        if not model.heads_share_scale:
            return self._attention_change(self._raw_change(z, of))
        kept = self.runs.base.kept
        every = kept.z[layer][:, self._written_at].repeat(len(z), 1, 1, 1, 1)
        item = torch.arange(len(z), device=z.device)[:, None]
        every[item, :, :, of] += z.permute(0, 3, 1, 2, 4)
        change = model.written(layer, every) - kept.written[layer][:, self._written_at]
        own = change[item, :, :, of]
        return torch.einsum("enbpd,endm->ebpm", own, model.output_weight(layer)[of])


def _through_mlps(
    model: Model, runs: Runs, hop: _Hop, change: Float[Tensor, "item pair 1 d_model"]
) -> Float[Tensor, "item pair 1 d_model"]:
    """How the last residual stream changes when MLPs alone react to what a head or MLP writes.

    MLPs mix no positions, so the last one is all there is to follow.
    """
    kept = runs.base.kept
    for layer in range(hop.layer, model.graph.n_layers):
        reacts = torch.tensor(
            [
                layer > hop.layer or (reader.kind != "mlp" and not model.graph.parallel)
                for reader in hop.readers
            ],
            device=change.device,
        )
        mlp_in = kept.mlp_in[layer][:, -1:] + change
        mlp_out = model.mlp(layer, model.mlp_norm(layer, mlp_in.flatten(0, 1))).view_as(mlp_in)
        reaction = mlp_out - kept.mlp_out[layer][:, -1:]
        change = change + reaction * reacts[:, None, None, None]
    return change
