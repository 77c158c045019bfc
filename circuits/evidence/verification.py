"""Measuring edges, paths or nodes in rank order, every result on disk as soon as it is there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from ...edges.effects.bounds import Bound, bound_unverified, subsets_for_bound
from ...edges.effects.edge_effects import patch_edges
from ...edges.effects.node_effects import patch_nodes
from ...edges.effects.reduced import patch_together
from ...edges.effects.sources import Source
from ...edges.errors import InputError
from ...edges.model.transformer import Model
from ...edges.names.vocabulary import (
    BOUND_SUBSETS,
    CONFIDENCE,
    DIRECTION,
    METRIC,
    NOTHING,
    PROBABILITY,
)
from ...edges.question.metrics import Metric
from ...edges.question.prompts import PromptPairs
from ..record.effects_file import CHUNK, Verified, append_lines, resume_effects, shortest

TOGETHER = " + "
"""Between the names of edges that are patched together."""


def verify(
    model: Model,
    pairs: PromptPairs,
    names: Sequence[str],
    metric: str | Metric = METRIC,
    direction: str = DIRECTION,
    batch_size: int | None = None,
    effects_file: Path | None = None,
    nodes: bool = False,
    patch_with: Source | None = None,
    progress: Callable[[int], Any] | None = None,
    frozen: str = NOTHING,
) -> list[Verified]:
    """Exact effects of edges, in the order of ``names``, a chunk at a time.

    Args:
        names: edges, paths (see ``patch_edges``), or groups of edges patched together, such as
            ``m0->logits + m1->logits`` (see ``patch_together``).
        nodes: the names are nodes, and activation patching takes the place of path patching.
        patch_with: where nodes' patched values come from; None takes the pairs' other runs.
        effects_file: a JSON Lines file that grows by whole chunks. Chunks it holds already are
            taken from it; what a killed run left of a chunk is dropped and measured again.
        progress: called with the number of names finished since the last call.
        frozen: what keeps its values downstream of an edge; see ``patch_edges``.

    Raises:
        InputError: the file holds effects of another question. Else as ``patch_edges``.
    """
    return list(
        _measuring(
            model,
            pairs,
            names,
            metric,
            direction,
            batch_size,
            effects_file,
            nodes,
            patch_with,
            progress,
            frozen,
        )
    )


def _measuring(
    model: Model,
    pairs: PromptPairs,
    names: Sequence[str],
    metric: str | Metric,
    direction: str,
    batch_size: int | None,
    effects_file: Path | None,
    nodes: bool,
    patch_with: Source | None,
    progress: Callable[[int], Any] | None,
    frozen: str = NOTHING,
) -> Iterator[Verified]:
    """What ``verify`` gives, one by one: a chunk is measured when its first effect is asked for."""
    if patch_with is not None and not nodes:
        raise InputError("edges are patched with the pairs' other runs; leave patch_with out")
    if frozen != "none" and (nodes or any(TOGETHER in name for name in names)):
        raise InputError(
            f"frozen {frozen} is for single edges and paths; measure nodes and groups of edges "
            "with nothing frozen"
        )
    source = patch_with or Source()
    question = ""
    n_known = 0
    if effects_file is not None:
        name = metric if isinstance(metric, str) else repr(metric)
        told = (
            model.fingerprint(),
            pairs.fingerprint(),
            name,
            direction,
            frozen,
            source.fingerprint(),
            f"{model.device.type} {model.tf32}",
        )
        question = "-".join(hashlib.sha256(part.encode()).hexdigest()[:8] for part in told)
        known = resume_effects(effects_file, names, len(pairs), question)
        n_known = len(known)
        if progress is not None and known:
            progress(n_known)
        yield from known
    for start in range(n_known, len(names), CHUNK):
        chunk = names[start : start + CHUNK]
        if nodes:
            rows = patch_nodes(
                model, pairs, chunk, metric, direction, batch_size, patch_with=source
            ).effects
        else:
            rows = _edge_effects(model, pairs, chunk, metric, direction, batch_size, frozen)
        new = [
            Verified(name, shortest(row), question)
            for name, row in zip(chunk, rows.cpu().numpy(), strict=True)
        ]
        if effects_file is not None:
            append_lines(effects_file, "".join(item.line() for item in new))
        if progress is not None:
            progress(len(new))
        yield from new


def _edge_effects(
    model: Model,
    pairs: PromptPairs,
    names: Sequence[str],
    metric: str | Metric,
    direction: str,
    batch_size: int | None,
    frozen: str,
) -> Float32[Tensor, "name pair"]:
    """Effects of edges and paths, and of groups of edges patched together."""
    groups = [place for place, name in enumerate(names) if TOGETHER in name]
    alone = [place for place, name in enumerate(names) if TOGETHER not in name]
    effects = torch.empty(len(names), len(pairs), device=model.device)
    if alone:
        effects[alone] = patch_edges(
            model, pairs, [names[one] for one in alone], metric, direction, batch_size, None, frozen
        ).effects
    if groups:
        sets = [names[group].split(TOGETHER) for group in groups]
        effects[groups] = patch_together(model, pairs, sets, metric, direction, batch_size)
    return effects


@dataclass(frozen=True, kw_only=True)
class BoundOptions:
    """How what was not verified is bounded; see ``bound_unverified``."""

    samples: int = BOUND_SUBSETS
    probability: float = PROBABILITY
    confidence: float = CONFIDENCE


def verify_until(
    model: Model,
    pairs: PromptPairs,
    ranked: Sequence[str],
    largest: float,
    metric: str | Metric = METRIC,
    direction: str = DIRECTION,
    batch_size: int | None = None,
    effects_file: Path | None = None,
    nodes: bool = False,
    options: BoundOptions | None = None,
    progress: Callable[[int], Any] | None = None,
) -> tuple[list[Verified], Bound | None]:
    """Measures in rank order until what is left is bounded below ``largest``.

    The first 64, then twice as many and so on, are measured, and each time the rest is bounded;
    when all are measured there is nothing to bound. The confidence is that of all bounds that may be
    looked at on the way, together.

    Args:
        ranked: all edges (or nodes), best first.
        largest: units of the metric; see ``Bound`` for what it is about.

    Else as ``verify`` and ``bound_unverified``.

    Raises:
        InputError: ``largest`` is not above 0. Else as ``verify`` and ``bound_unverified``.
    """
    check_bound(largest)
    options, items = options or BoundOptions(), "nodes" if nodes else "edges"
    budgets = [CHUNK << looks for looks in range(64) if CHUNK << looks < len(ranked)]
    for budget in budgets[:1]:  # before anything is measured
        subsets_for_bound(
            ranked[budget:], options.samples, options.probability, options.confidence, items=items
        )
    measuring = _measuring(
        model, pairs, ranked, metric, direction, batch_size, effects_file, nodes, None, progress
    )
    verified: list[Verified] = []
    for budget in budgets:
        verified += islice(measuring, budget - len(verified))
        bound = bound_unverified(
            model,
            pairs,
            ranked[budget:],
            metric,
            direction,
            items,
            options.samples,
            options.probability,
            1 - (1 - options.confidence) / len(budgets),
            batch_size=batch_size,
        )
        if bound.largest < largest:
            looks = f"Bonferroni over at most {len(budgets)} such bounds and"
            return verified, replace(bound, confidence=options.confidence, correction=looks)
    return [*verified, *measuring], None


def check_bound(largest: float) -> None:
    """Raises InputError for a bound that cannot be verified until."""
    if not largest > 0:
        raise InputError(
            f"expected a bound above 0 to stop at, got {largest}; it is in metric units"
        )


PRECISION_SAMPLE = 32
"""How many of the first effects are measured again in float32, where they were not."""


def precision_error(
    model: Model,
    pairs: PromptPairs,
    verified: Sequence[Verified],
    metric: str | Metric = METRIC,
    direction: str = DIRECTION,
    batch_size: int | None = None,
    frozen: str = NOTHING,
) -> float:
    """How far effects are off: the largest |difference| from those of ``model``, in metric units.

    Args:
        model: the same model in float32, without TF32.
        verified: edges and paths; the first ``PRECISION_SAMPLE`` are measured again.
    """
    sample = verified[:PRECISION_SAMPLE]
    exact = _edge_effects(
        model, pairs, [one.name for one in sample], metric, direction, batch_size, frozen
    )
    found = torch.tensor([one.effects for one in sample], device=exact.device)
    return float((found - exact).abs().max())
