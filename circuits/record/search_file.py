"""``search.jsonl``: the circuits that a search tried, as they come; an interrupted one goes on from them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import torch
from jaxtyping import Bool
from torch import Tensor

from ...edges.errors import InputError
from ...edges.names.graph import ModelGraph
from ...edges.runs.masks import full_mask
from ..result.document import loads
from .effects_file import append_lines, cut_to

SEARCH_FILE = "search.jsonl"


@dataclass(frozen=True, eq=False)
class Round:
    """A circuit that the search tried.

    Attributes:
        how: ``pruned``, ``spared`` (a circuit less a group of edges) or ``needed`` (the same, where
            the group cannot be spared).
        judged: its faithfulness on all pairs of the search.
        halves: its faithfulness on every other pair, and on the rest; none where pairs are few.
    """

    mask: Bool[Tensor, "writer reader"]
    how: str
    judged: float
    halves: tuple[float, ...] = ()

    @property
    def n_edges(self) -> int:
        """How many edges it has, all on a path from ``input`` to ``logits``."""
        return int(self.mask.sum())


class Journal:
    """The rounds of a search, in order; those that an interrupted one had come to are taken up.

    Args:
        known: of an interrupted search with the same arguments.
        save: called with every round that is new.
    """

    def __init__(
        self, known: Iterable[Round] = (), save: Callable[[Round], None] = lambda _: None
    ) -> None:
        self.rounds: list[Round] = []
        self._known = list(known)
        self._save = save

    def next_known(self) -> Round | None:
        """What the interrupted search came to at this place."""
        place = len(self.rounds)
        return self._known[place] if place < len(self._known) else None

    def add(self, mask: Bool[Tensor, "writer reader"], measure: Callable[[], Round]) -> Round:
        """The next round: the known one, which is of this mask, or a new one, which is saved."""
        known = self.next_known()
        each = measure() if known is None else replace(known, mask=mask)
        self.rounds.append(each)
        if known is None:
            self._save(each)
        return each


def open_journal(path: Path, graph: ModelGraph) -> Journal:
    """The rounds that a file holds, and a place for those to come. A last line cut short is taken off.

    Raises:
        InputError: a line that is damaged otherwise, or a file that cannot be written.
    """
    content = path.read_bytes() if path.exists() else b""
    lines = _whole_lines(content)
    known = [_round(record, graph) for record in _records(path, lines)]
    end = sum(map(len, lines))
    if end < len(content):
        cut_to(path, end)
    return Journal(known, lambda each: append_lines(path, _line(each)))


def count_rounds(path: Path) -> int:
    """How many circuits a file holds. Raises InputError for a line that is damaged."""
    return sum(1 for _ in _records(path, _whole_lines(path.read_bytes())))


def _whole_lines(content: bytes) -> list[bytes]:
    """All lines but a last one that was cut short."""
    return [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")]


def _records(path: Path, lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """What each line says."""
    for number, raw in enumerate(lines, start=1):
        try:
            record = loads(raw.decode())
            _ = (str(record["how"]), float(record["faithfulness"]), _halves(record))
            base64.b64decode(record.get("edges", ""), validate=True)
        except (InputError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}, line {number}: expected a circuit of a search, the line is damaged "
                f"({error}); take it and what follows out, and go on (--resume)"
            ) from None
        yield record


def _line(each: Round) -> str:
    record = {
        "how": each.how,
        "n_edges": each.n_edges,
        "faithfulness": each.judged,
        "of_halves": each.halves,
    }
    # What was tried in elimination follows from the circuit it began with.
    if each.how == "pruned":
        bits = numpy.packbits(each.mask.numpy())
        record["edges"] = base64.b64encode(bits.tobytes()).decode()
    return json.dumps(record, allow_nan=False) + "\n"


def _round(record: dict[str, Any], graph: ModelGraph) -> Round:
    shape = full_mask(graph).shape
    mask = torch.zeros(shape, dtype=torch.bool)
    if "edges" in record:
        packed = numpy.frombuffer(base64.b64decode(record["edges"]), dtype=numpy.uint8)
        bits = numpy.unpackbits(packed, count=shape.numel())
        mask = torch.from_numpy(bits.copy()).bool().view(shape)
    return Round(mask, str(record["how"]), float(record["faithfulness"]), _halves(record))


def _halves(record: dict[str, Any]) -> tuple[float, ...]:
    return tuple(float(half) for half in record["of_halves"])
