"""Measuring edges, paths or nodes in rank order, every result on disk as soon as it is there."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy
import torch
from jaxtyping import Float32
from torch import Tensor

from ..edges.bounds import Bound, bound_unverified, subsets_for_bound
from ..edges.errors import InputError, WiremapWarning
from ..edges.masking import patch_together
from ..edges.metrics import Metric
from ..edges.model import Model
from ..edges.node_patching import patch_nodes
from ..edges.patching import patch_edges
from ..edges.prompts import PromptPairs
from ..edges.sources import Source
from .document import loads
from .stability import RESAMPLES, percentile_intervals, resampled_means

TOGETHER = " + "
"""Between the names of edges that are patched together."""

CHUNK = 64
"""Items measured and written together. Part of what makes a resumed run give the same bytes."""

_INTERVALS_AT_ONCE = 1 << 12

QUESTION = ("model", "pairs", "metric", "direction", "frozen", "patch_with", "device")
"""What effects belong to, in the order in which ``Verified.question`` has it."""


@dataclass(frozen=True)
class Verified:
    """The exact effect of an edge or node on each pair (float32 numbers), in units of the metric.

    Attributes:
        question: tells what it belongs to from all else: eight digits of a hash for each of
            ``QUESTION``.
    """

    name: str
    effects: tuple[float, ...]
    question: str = ""

    @property
    def effect(self) -> float:
        """Mean over pairs."""
        return math.fsum(self.effects) / len(self.effects)

    @property
    def standard_error(self) -> float | None:
        """Standard error of the mean; None for a single pair."""
        n_pairs, mean = len(self.effects), self.effect
        if n_pairs == 1:
            return None
        squares = math.fsum((effect - mean) ** 2 for effect in self.effects)
        return math.sqrt(squares / (n_pairs - 1) / n_pairs)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % percentile bootstrap interval of the mean, over pairs; None for a single pair.

        Effects on the same pairs are resampled alike.
        """
        return intervals([self])[0]

    def line(self) -> str:
        """This as a line of ``effects.jsonl``."""
        record = {
            "name": self.name,
            "effect": self.effect,
            "standard_error": self.standard_error,
            "question": self.question,
            "effects": self.effects,
        }
        return json.dumps(record, allow_nan=False) + "\n"


def intervals(verified: Sequence[Verified]) -> list[tuple[float, float] | None]:
    """The ``interval`` of each, of all at once: for many, far faster than one by one.

    Raises:
        InputError: effects on different numbers of pairs.
    """
    n_pairs = {len(one.effects) for one in verified}
    if len(n_pairs) > 1:
        raise InputError(
            f"expected effects on the same pairs, got {sorted(n_pairs)} pairs; take each by itself"
        )
    if n_pairs <= {1}:
        return [None] * len(verified)
    found: list[tuple[float, float] | None] = []
    for start in range(0, len(verified), _INTERVALS_AT_ONCE):
        some = [one.effects for one in verified[start : start + _INTERVALS_AT_ONCE]]
        means = resampled_means(torch.tensor(some, dtype=torch.float64), RESAMPLES)
        low, high = percentile_intervals(means).tolist()
        found += zip(low, high, strict=True)
    return found


def verify(
    model: Model,
    pairs: PromptPairs,
    names: Sequence[str],
    metric: str | Metric = "logit_diff",
    direction: str = "noising",
    batch_size: int | None = None,
    effects_file: Path | None = None,
    nodes: bool = False,
    patch_with: Source | None = None,
    progress: Callable[[int], Any] | None = None,
    frozen: str = "none",
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
    frozen: str = "none",
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
        known = _resume(effects_file, names, len(pairs), question)
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
            Verified(name, _shortest(row), question)
            for name, row in zip(chunk, rows.cpu().numpy(), strict=True)
        ]
        if effects_file is not None:
            _append(effects_file, "".join(item.line() for item in new))
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

    samples: int = 1000
    probability: float = 0.03
    confidence: float = 0.99


def verify_until(
    model: Model,
    pairs: PromptPairs,
    ranked: Sequence[str],
    largest: float,
    metric: str | Metric = "logit_diff",
    direction: str = "noising",
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
    metric: str | Metric = "logit_diff",
    direction: str = "noising",
    batch_size: int | None = None,
    frozen: str = "none",
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


def read_effects(path: Path) -> list[Verified]:
    """All complete lines of an effects file; a last line that a kill cut short is left out.

    Raises:
        InputError: a line that is damaged otherwise.
    """
    return [item for item, _ in _complete_lines(path)]


def _shortest(row: Any) -> tuple[float, ...]:
    """float32 values as the shortest decimals that give them back, so that files stay small."""
    return tuple(float(str(numpy.float32(value))) for value in row)


def _append(path: Path, text: str) -> None:
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with suppress(OSError):
            os.truncate(path, size)  # what was written of the chunk
        raise InputError(
            f"cannot write {path}: {error.strerror}; make room and go on with --resume"
        ) from error


def _resume(path: Path, names: Sequence[str], n_pairs: int, question: str) -> list[Verified]:
    """What the file already holds of ``names``, in whole chunks; a chunk cut short is taken off."""
    if not path.exists():
        return []
    lines = _complete_lines(path)
    end = lines[-1][1] if lines else 0
    torn = path.stat().st_size > end
    whole = len(names) if len(lines) >= len(names) else len(lines) // CHUNK * CHUNK
    cut = len(lines) < len(names)
    kept = lines[:whole]
    for (item, _), name in zip(kept, names, strict=False):
        if item.question != question:
            there, wanted = item.question.split("-"), question.split("-")
            differing = "what it does not say"
            if len(there) == len(wanted):
                parts = zip(QUESTION, there, wanted, strict=True)
                differing = "another " + ", ".join(part for part, one, two in parts if one != two)
            raise InputError(
                f"{path}: expected effects of the same question, got those of another: measured "
                f"with {differing}; ask the same again, or choose another place (-o)"
            )
        if (item.name, len(item.effects)) != (name, n_pairs):
            raise InputError(
                f"{path}: expected the effect of {name} on {n_pairs} pairs, got {item.name} on "
                f"{len(item.effects)}: measured in another order, or of other names; choose "
                "another place (-o)"
            )
    if cut and torn:
        warnings.warn(
            f"{path} ends within a line, as what is killed or runs out of disk leaves it: what "
            f"follows its first {whole} effects is dropped and measured again",
            WiremapWarning,
            stacklevel=3,
        )
    if cut:
        try:
            os.truncate(path, kept[-1][1] if kept else 0)
        except OSError as error:
            raise InputError(
                f"cannot write {path}: {error.strerror}; make it writable, or choose another "
                "place (-o)"
            ) from error
    return [item for item, _ in kept]


def _complete_lines(path: Path) -> list[tuple[Verified, int]]:
    """The items of an effects file, each with the place in the file where its line ends."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    found: list[tuple[Verified, int]] = []
    end = 0
    for number, raw in enumerate(content.splitlines(keepends=True), start=1):
        end += len(raw)
        if not raw.endswith(b"\n"):
            break
        try:
            record = loads(raw.decode())
            effects = tuple(float(value) for value in record["effects"])
            if not effects:
                raise InputError("expected effects of at least one pair, got none")
            question = str(record.get("question", ""))
            found.append((Verified(str(record["name"]), effects, question), end))
        except (InputError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}, line {number}: expected a verified effect, the line is damaged ({error}); "
                "take it and what follows out, and measure again"
            ) from None
    return found
