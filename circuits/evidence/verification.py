"""Measuring edges, paths or nodes in rank order, every result on disk as soon as it is there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Float32
from torch import Tensor

from ...edges.effects.bounds import Bound, BoundOptions, TooWide, bound_below, subsets_for_bound
from ...edges.effects.edge_effects import effects_of_edges
from ...edges.effects.node_effects import effects_of_nodes
from ...edges.effects.reduced import effects_of_sets
from ...edges.errors import InputError
from ...edges.model.transformer import Model
from ...edges.names.vocabulary import (
    DIRECTION,
    METRIC,
    NOTHING,
)
from ...edges.question.metrics import Metric
from ...edges.question.prompts import PromptPairs
from ...edges.question.question import Question
from ...edges.question.source import CORRUPTED, Source
from ...edges.runs.sweep import Report, Resources, silent
from ..record.effects_file import CHUNK, Verified, append_lines, resume_effects, shortest

TOGETHER = " + "
"""Between the names of edges that are patched together."""


def verify(
    model: Model,
    pairs: PromptPairs,
    names: Sequence[str],
    *,
    metric: str | Metric = METRIC,
    direction: str = DIRECTION,
    batch_size: int | None = None,
    effects_file: Path | None = None,
    nodes: bool = False,
    patch_with: Source | None = None,
    progress: Report = silent,
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
        progress: called with (stage, names finished since the last call, names in all).
        frozen: what keeps its values downstream of an edge; see ``patch_edges``.

    Raises:
        InputError: the file holds effects of another question. Else as ``patch_edges``.
    """
    question = Question(
        pairs=pairs, metric=metric, direction=direction, patch_with=patch_with or CORRUPTED
    )
    options = VerifyOptions(nodes=nodes, frozen=frozen, effects_file=effects_file)
    resources = Resources(batch_size=batch_size, report=progress)
    return list(Verifier(model, question, options, resources).measure(names))


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """What is measured, and where it is kept; see ``verify``.

    Attributes:
        chunk: items measured and written together; None is ``CHUNK``.
    """

    nodes: bool = False
    frozen: str = NOTHING
    effects_file: Path | None = None
    chunk: int | None = None


@dataclass(frozen=True)
class Verifier:
    """Measures items in rank order, all by one question; see ``verify``."""

    model: Model
    question: Question
    options: VerifyOptions
    resources: Resources

    @property
    def inner(self) -> Resources:
        """For the parts of what is reported by itself, item by item."""
        return self.resources.quiet()

    def measure(self, names: Sequence[str]) -> Iterator[Verified]:
        """The effects, one by one: a chunk is measured when its first effect is asked for."""
        options, n_known, fingerprint = self.options, 0, ""
        at_once = options.chunk or CHUNK
        self._check(names)
        if options.effects_file is not None:
            fingerprint, n_pairs = self._fingerprint(), len(self.question.pairs)
            known = resume_effects(options.effects_file, names, n_pairs, fingerprint, at_once)
            n_known = len(known)
            if known:
                self._report(n_known, len(names))
            yield from known
        # What is known is whole chunks, so these begin where those of an unbroken run would:
        # batches, and with them the last digits, are the same.
        for start in range(n_known, len(names), at_once):
            chunk = names[start : start + at_once]
            rows = self.effects(chunk).cpu().numpy()
            new = [
                Verified(name, shortest(row), fingerprint)
                for name, row in zip(chunk, rows, strict=True)
            ]
            if options.effects_file is not None:
                # On disk before any of it is handed out.
                append_lines(options.effects_file, "".join(item.line() for item in new))
            self._report(len(new), len(names))
            yield from new

    def until(
        self, ranked: Sequence[str], largest: float, options: BoundOptions
    ) -> tuple[list[Verified], Bound | None]:
        """Measures until what is left is bounded below ``largest``; see ``verify_until``."""
        check_bound(largest)
        options = replace(options, items="nodes" if self.options.nodes else "edges")
        # 64, 128, 256 and so on, as long as something is left over to bound.
        budgets = [CHUNK << looks for looks in range(64) if CHUNK << looks < len(ranked)]
        for budget in budgets[:1]:  # before anything is measured
            subsets_for_bound(ranked[budget:], options)
        # Each look is at a bound of its own: together they are as sure as one was to be.
        each = replace(options, confidence=1 - (1 - options.confidence) / max(len(budgets), 1))
        measuring = self.measure(ranked)
        verified: list[Verified] = []
        for budget in budgets:
            # The same iterator goes on, so nothing is measured twice.
            verified += islice(measuring, budget - len(verified))
            bound = bound_below(
                self.model, self.question, ranked[budget:], each, self.inner, largest=largest
            )
            if not isinstance(bound, TooWide) and bound.largest < largest:
                looks = f"Bonferroni over at most {len(budgets)} such bounds and"
                return verified, replace(bound, confidence=options.confidence, correction=looks)
        return [*verified, *measuring], None

    def effects(self, names: Sequence[str]) -> Float32[Tensor, "name pair"]:
        """Effects of nodes, or of edges and paths, and of groups of edges patched together."""
        model, question = self.model, self.question
        if self.options.nodes:
            return effects_of_nodes(model, question, names, self.inner).effects
        groups = [place for place, name in enumerate(names) if TOGETHER in name]
        alone = [place for place, name in enumerate(names) if TOGETHER not in name]
        # Groups are run in another way than single edges, and put back in the order of names.
        effects = torch.empty(len(names), len(question.pairs), device=model.device)
        if alone:
            single = [names[place] for place in alone]
            effects[alone] = effects_of_edges(
                model, question, single, self.inner, self.options.frozen
            ).effects
        if groups:
            sets = [names[place].split(TOGETHER) for place in groups]
            effects[groups] = effects_of_sets(model, question, sets, self.inner)
        return effects

    def _check(self, names: Sequence[str]) -> None:
        nodes, frozen = self.options.nodes, self.options.frozen
        if self.question.patch_with.kind != CORRUPTED.kind and not nodes:
            raise InputError("edges are patched with the pairs' other runs; leave patch_with out")
        if frozen != "none" and (nodes or any(TOGETHER in name for name in names)):
            raise InputError(
                f"frozen {frozen} is for single edges and paths; measure nodes and groups of edges "
                "with nothing frozen"
            )

    def _fingerprint(self) -> str:
        """What effects belong to: eight digits of a hash for each of ``QUESTION``."""
        parts = (
            self.model.fingerprint(),
            self.question.pairs.fingerprint(),
            self.question.metric_name,
            self.question.direction,
            self.options.frozen,
            self.question.patch_with.fingerprint(),
            # Digits differ between devices: effects of two do not belong in one file.
            f"{self.model.device.type} {self.model.tf32}",
        )
        # Part by part, so that a file of another question can tell wherein it is another.
        return "-".join(hashlib.sha256(part.encode()).hexdigest()[:8] for part in parts)

    def _report(self, done: int, total: int) -> None:
        self.resources.report("verify nodes" if self.options.nodes else "verify edges", done, total)


def verify_until(
    model: Model,
    pairs: PromptPairs,
    ranked: Sequence[str],
    *,
    largest: float,
    metric: str | Metric = METRIC,
    direction: str = DIRECTION,
    batch_size: int | None = None,
    effects_file: Path | None = None,
    nodes: bool = False,
    options: BoundOptions | None = None,
    progress: Report = silent,
) -> tuple[list[Verified], Bound | None]:
    """Measures in rank order until what is left is bounded below ``largest``.

    The first 64, then twice as many and so on, are measured, and each time the rest is bounded;
    when all are measured there is nothing to bound. The confidence is that of all bounds that may be
    looked at on the way, together.

    What is left is bounded by random subsets (``Bound``), of which a look draws only the first few
    where they say that the bound would not be below ``largest``: verifying goes on then. A random
    sample of what is left (``missed.sample_missed``) is often the sharper statement, but of another
    thing: it bounds how many are above, never the largest, so it does not stop this.

    Args:
        ranked: all edges (or nodes), best first.
        largest: units of the metric; see ``Bound`` for what it is about.

    Else as ``verify`` and ``bound_unverified``.

    Raises:
        InputError: ``largest`` is not above 0. Else as ``verify`` and ``bound_unverified``.
    """
    question = Question(pairs=pairs, metric=metric, direction=direction)
    measured = VerifyOptions(nodes=nodes, effects_file=effects_file)
    resources = Resources(batch_size=batch_size, report=progress)
    verifier = Verifier(model, question, measured, resources)
    return verifier.until(ranked, largest, options or BoundOptions())


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
    question: Question,
    verified: Sequence[Verified],
    *,
    batch_size: int | None = None,
    frozen: str = NOTHING,
) -> float:
    """How far effects are off: the largest |difference| from those of ``model``, in metric units.

    Args:
        model: the same model in float32, without TF32.
        question: by which they were measured.
        verified: edges and paths; the first ``PRECISION_SAMPLE`` are measured again.
        frozen: as they were measured; see ``verify``.
    """
    options = VerifyOptions(frozen=frozen)
    verifier = Verifier(model, question, options, Resources(batch_size=batch_size))
    sample = verified[:PRECISION_SAMPLE]
    exact = verifier.effects([item.name for item in sample])
    measured = torch.tensor([item.effects for item in sample], device=exact.device)
    # [item pair], both
    return float((measured - exact).abs().max())
