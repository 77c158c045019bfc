"""Which tokens count together: all of a prompt, each position, or the named spans of a pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Int64
from torch import Tensor

from ..errors import InputError
from ..names.vocabulary import POSITIONS
from .cells import plain_value
from .prompts import PairBatch, PromptPairs

OUTSIDE = "outside"
"""The name of the tokens that lie in no span."""


@dataclass(frozen=True)
class Labels:
    """What the tokens of each pair count for.

    Attributes:
        names: of the labels.
        by_pair: the label of each token; those of padding mean nothing.
        summed: all tokens have the one label there is.
    """

    names: tuple[str, ...]
    by_pair: Int64[Tensor, "pair pos"]
    summed: bool

    def groups(self, batch: PairBatch, pairs_apart: bool) -> tuple[Int64[Tensor, "pair pos"], int]:
        """For each token of a batch the number of its group, and how many groups there are."""
        labels = self.by_pair[batch.rows, : batch.clean.shape[1]]
        if not pairs_apart:
            return labels, len(self.names)
        # Pair by pair, each with all labels: group = pair * n_labels + label.
        first = torch.arange(len(batch))[:, None] * len(self.names)
        return first + labels, len(batch) * len(self.names)


def position_labels(pairs: PromptPairs, positions: str) -> Labels:
    """The labels of all tokens.

    Args:
        positions: ``sum``, ``each`` or ``spans``. Spans are a column of the pairs: an object of
            names, each with a position, or with the first position and the one after the last,
            counted from 0 as the model sees the prompt (a BOS token is position 0). Within a chat
            template they are written as without it, and moved along (``PromptPairs.read``).

    Raises:
        InputError: prompts of several lengths with ``each``, spans that are missing, malformed,
            outside of their prompt or overlap; the rows are named.
    """
    if positions == "sum":
        return Labels(("all",), torch.zeros_like(pairs.clean), True)
    if positions == "each":
        n_pos = one_length(pairs)
        labels = torch.arange(n_pos).expand(len(pairs), n_pos)
        return Labels(tuple(map(str, range(n_pos))), labels, False)
    if positions != "spans":
        raise InputError(f"unknown positions {positions!r}; there are {', '.join(POSITIONS)}")
    # A label's number is the order in which it first comes up; 0 is there from the beginning.
    names: dict[str, int] = {OUTSIDE: 0}
    by_pair = torch.zeros_like(pairs.clean)
    for row, length in enumerate(pairs.lengths.tolist()):
        features: Any = pairs.features[row] if pairs.features else {}
        if "spans" not in features:
            raise InputError(
                f"expected spans for every pair, row {row + 1} has none; add a column "
                '"spans": {"subject": [3, 5], "end": 9} (positions counted from 0), or use '
                '--positions each (positions="each")'
            )
        for name, span in _spans(features["spans"], row, length):
            label = names.setdefault(name, len(names))
            taken = by_pair[row, span.start : span.stop]
            if bool(taken.any()):
                raise InputError(f"row {row + 1}: span {name!r} overlaps another one")
            taken[:] = label  # a view: the table is written to
    return Labels(tuple(names), by_pair, False)


def _spans(given: Any, row: int, length: int) -> list[tuple[str, range]]:
    given = _of_text(given)
    if not isinstance(given, Mapping):
        raise InputError(
            f"row {row + 1}: expected spans as an object of names and positions, got {given!r:.80}"
        )
    spans: list[tuple[str, range]] = []
    for name, place in cast("Mapping[Any, Any]", given).items():
        ends = [place, place + 1] if isinstance(place, int) else place
        if (
            not isinstance(ends, list | tuple)
            or len(cast("list[Any]", ends)) != 2
            # isinstance would let JSON's true and false through, which are no positions.
            or not all(type(end) is int for end in cast("list[Any]", ends))
        ):
            raise InputError(
                f"row {row + 1}: expected span {name!r} as a position or [first, after the last], "
                f"got {place!r:.80}"
            )
        first, after = cast("list[int]", ends)
        if not 0 <= first < after <= length:
            raise InputError(
                f"row {row + 1}: expected span {name!r} within the {length} tokens of its prompt "
                f"(0 to {length}), got {first} to {after}"
            )
        if str(name) == OUTSIDE:
            raise InputError(f"row {row + 1}: {OUTSIDE!r} is what lies in no span; rename it")
        spans.append((str(name), range(first, after)))
    return spans


def moved(given: Any, by: int) -> Any:
    """Spans so many tokens later. What is no span is left as it is, for ``position_labels`` to refuse."""
    given = _of_text(given)
    if not isinstance(given, Mapping):
        return given
    return {name: _moved(place, by) for name, place in cast("Mapping[Any, Any]", given).items()}


def _of_text(given: Any) -> Any:
    """Spans of a table, which has no objects: as JSON, or as Python prints them."""
    return plain_value(given) or given if isinstance(given, str) else given


def _moved(place: Any, by: int) -> Any:
    if isinstance(place, list | tuple):
        return [_moved(end, by) for end in cast("list[Any]", place)]
    return place + by if type(place) is int else place


def one_length(pairs: PromptPairs) -> int:
    """The length of all prompts. Raises InputError if they have several."""
    lengths = sorted(set(pairs.lengths.tolist()))
    if len(lengths) > 1:
        raise InputError(
            "positions each needs prompts of one length, got lengths "
            f"{', '.join(map(str, lengths))}; use --positions sum "
            '(positions="sum"), or pairs of one length'
        )
    return lengths[0]
