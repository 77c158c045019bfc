"""``effects.jsonl``: measured effects, appended as they come, and taken up again."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from ...edges.errors import InputError, WiremapWarning
from ...edges.names.vocabulary import RESAMPLES
from ..result.document import loads
from .intervals import percentile_intervals, resampled_means

EFFECTS_FILE = "effects.jsonl"


CHUNK = 64
"""Items measured and written together. Part of what makes a resumed run give the same bytes."""


# Bounds the memory that their resampled means take, [resample edge].
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
    n_pairs = {len(item.effects) for item in verified}
    if len(n_pairs) > 1:
        raise InputError(
            f"expected effects on the same pairs, got {sorted(n_pairs)} pairs; take each by itself"
        )
    if n_pairs <= {1}:
        return [None] * len(verified)
    ends: list[tuple[float, float] | None] = []
    for start in range(0, len(verified), _INTERVALS_AT_ONCE):
        effects = [item.effects for item in verified[start : start + _INTERVALS_AT_ONCE]]
        means = resampled_means(torch.tensor(effects, dtype=torch.float64), RESAMPLES)
        low, high = percentile_intervals(means).tolist()
        ends += zip(low, high, strict=True)
    return ends


def read_effects(path: Path) -> list[Verified]:
    """All complete lines of an effects file; a last line that a kill cut short is left out.

    Raises:
        InputError: a line that is damaged otherwise.
    """
    return [item for item, _ in _complete_lines(path)]


def shortest(row: Any) -> tuple[float, ...]:
    """float32 values as the shortest decimals that give them back, so that files stay small."""
    return tuple(float(str(numpy.float32(value))) for value in row)


def append_lines(path: Path, text: str) -> None:
    """Appends a chunk, whole or not at all. Raises InputError when it cannot be written."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            # On the disk, not only with the system: a chunk that was reported outlives a crash.
            os.fsync(file.fileno())
    except OSError as error:
        with suppress(OSError):
            os.truncate(path, size)  # what was written of the chunk
        raise InputError(
            f"cannot write {path}: {error.strerror}; make room and go on with --resume "
            "(resume=True)"
        ) from error


def resume_effects(
    path: Path, names: Sequence[str], n_pairs: int, question: str, chunk: int = CHUNK
) -> list[Verified]:
    """What the file already holds of ``names``, in whole chunks; a chunk cut short is taken off."""
    if not path.exists():
        return []
    lines = _complete_lines(path)
    end = lines[-1][1] if lines else 0
    torn = path.stat().st_size > end
    # The last chunk of all may be a short one; any other that is not whole is dropped.
    whole = len(names) if len(lines) >= len(names) else len(lines) // chunk * chunk
    cut = len(lines) < len(names)
    kept = lines[:whole]
    for (item, _), name in zip(kept, names, strict=False):
        if item.question != question:
            there, wanted = item.question.split("-"), question.split("-")
            differing = "what it does not say"
            # A question of other parts than today's is told as another, without saying wherein.
            if len(there) == len(wanted):
                parts = zip(QUESTION, there, wanted, strict=True)
                differing = "another " + ", ".join(part for part, then, now in parts if then != now)
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
        cut_to(path, kept[-1][1] if kept else 0)
    return [item for item, _ in kept]


def cut_to(path: Path, size: int) -> None:
    """Takes off what a file has beyond so many bytes. Raises InputError if it cannot be written."""
    try:
        os.truncate(path, size)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}; make it writable, or choose another place (-o)"
        ) from error


def _complete_lines(path: Path) -> list[tuple[Verified, int]]:
    """The items of an effects file, each with the place in the file where its line ends."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    items: list[tuple[Verified, int]] = []
    end = 0
    for number, raw in enumerate(content.splitlines(keepends=True), start=1):
        # In bytes, as truncate counts.
        end += len(raw)
        # Chunks are appended, so none but the last line can have been cut short.
        if not raw.endswith(b"\n"):
            break
        try:
            record = loads(raw.decode())
            effects = tuple(float(value) for value in record["effects"])
            if not effects:
                raise InputError("expected effects of at least one pair, got none")
            question = str(record.get("question", ""))
            items.append((Verified(str(record["name"]), effects, question), end))
        except (InputError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}, line {number}: expected a verified effect, the line is damaged ({error}); "
                "take it and what follows out, and measure again"
            ) from None
    return items
