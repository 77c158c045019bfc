"""Measuring edges (or nodes) in rank order, every result on disk as soon as it is there."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from ..edges.errors import InputError
from ..edges.metrics import Metric
from ..edges.model import Model
from ..edges.node_patching import patch_nodes
from ..edges.patching import patch_edges
from ..edges.prompts import PromptPairs
from ..edges.sources import Source
from .document import loads

CHUNK = 64
"""Items measured and written together. Part of what makes a resumed run give the same bytes."""


@dataclass(frozen=True)
class Verified:
    """The exact effect of an edge or node on each pair (float32 numbers), in units of the metric.

    Attributes:
        question: tells the model, pairs, metric and direction it belongs to from all others.
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
) -> list[Verified]:
    """Exact effects of edges, in the order of ``names``, a chunk at a time.

    Args:
        nodes: the names are nodes, and activation patching takes the place of path patching.
        patch_with: where nodes' patched values come from; None takes the pairs' other runs.
        effects_file: a JSON Lines file that grows by whole chunks. Chunks it holds already are
            taken from it; what a killed run left of a chunk is dropped and measured again.
        progress: called with the number of names finished since the last call.

    Raises:
        InputError: the file holds effects of another question. Else as ``patch_edges``.
    """
    if patch_with is not None and not nodes:
        raise InputError("edges are patched with the pairs' other runs; leave patch_with out")
    source = patch_with or Source()
    question = ""
    verified: list[Verified] = []
    if effects_file is not None:
        name = metric if isinstance(metric, str) else repr(metric)
        told = (model.fingerprint(), pairs.fingerprint(), name, direction, source.fingerprint())
        question = hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]
        verified = _resume(effects_file, names, len(pairs), question)
    if progress is not None and verified:
        progress(len(verified))
    for start in range(len(verified), len(names), CHUNK):
        chunk = names[start : start + CHUNK]
        if nodes:
            measured = patch_nodes(
                model, pairs, chunk, metric, direction, batch_size, patch_with=source
            )
        else:
            measured = patch_edges(model, pairs, chunk, metric, direction, batch_size)
        new = [
            Verified(name, _shortest(row), question)
            for name, row in zip(chunk, measured.effects.cpu().numpy(), strict=True)
        ]
        if effects_file is not None:
            _append(effects_file, "".join(item.line() for item in new))
        verified += new
        if progress is not None:
            progress(len(new))
    return verified


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
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}; make room and go on with --resume"
        ) from error


def _resume(path: Path, names: Sequence[str], n_pairs: int, question: str) -> list[Verified]:
    """What the file already holds of ``names``, in whole chunks; a chunk cut short is taken off."""
    if not path.exists():
        return []
    lines = _complete_lines(path)
    whole = len(names) if len(lines) >= len(names) else len(lines) // CHUNK * CHUNK
    cut = len(lines) < len(names)
    kept = lines[:whole]
    for (item, _), name in zip(kept, names, strict=False):
        if (item.name, len(item.effects), item.question) != (name, n_pairs, question):
            raise InputError(
                f"{path}: expected the effect of {name} on {n_pairs} pairs, got {item.name} on "
                f"{len(item.effects)}, measured for question {item.question or 'unknown'}, not "
                f"{question} (another model, metric, direction or other pairs); choose another "
                "place (-o)"
            )
    if cut:
        with path.open("r+b") as file:
            file.truncate(kept[-1][1] if kept else 0)
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
