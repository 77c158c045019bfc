"""The other prompts that causal scrubbing takes values from."""

from __future__ import annotations

import json
import random
from collections.abc import Hashable, Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from ...edges.errors import InputError, name_rows
from ...edges.names.vocabulary import FEATURE
from ...edges.question.prompts import PADDING, PairBatch, PromptPairs


class OtherPrompts:
    """Which prompts may take the place of each pair's, and seeded draws of them.

    Args:
        other: see ``scrub``.

    Raises:
        InputError: an unknown column, or pairs that no other prompt goes with; the rows are named.
    """

    def __init__(self, pairs: PromptPairs, other: str, seed: int) -> None:
        self.paired, self._seed = other == "paired", seed
        self._place = torch.zeros(len(pairs), dtype=torch.int64)
        # Places count among the prompts of one length: clean ones first, then if `paired` the
        # corrupted ones, each as far behind as there are pairs of that length.
        for batch in pairs.batches():
            self._place[batch.rows] = torch.arange(len(batch))
            if self.paired:
                self._place[batch.rows] += len(batch)
        groups = groups_of(pairs, other)
        alone = rows_alone(groups)
        if alone and not self.paired:
            agreeing = "" if other == "any" else f" and {other.replace(':', ' ')}"
            raise InputError(
                f"expected for every pair another one of the same length in tokens{agreeing}; none "
                + name_rows(
                    alone,
                    "give more pairs, leave these out (--leave-out, leave_out=True), or draw "
                    "others (--other, other=)",
                )
            )
        # Groups end to end: the rows that go with a pair, itself among them, are
        # _members[_start : _start + _size], the pair itself at _start + _rank.
        self._members = torch.tensor([row for rows in groups for row in rows])
        self._size = torch.zeros(len(pairs), dtype=torch.int64)
        self._rank = torch.zeros(len(pairs), dtype=torch.int64)
        self._start = torch.zeros(len(pairs), dtype=torch.int64)
        start = 0
        for rows in groups:
            self._size[rows] = len(rows)
            self._rank[rows] = torch.arange(len(rows))
            self._start[rows] = start
            start += len(rows)

    def prompts(self, bucket: PairBatch) -> Int64[Tensor, "prompt pos"]:
        """The prompts of one length that draws name by their places; its clean ones come first."""
        return torch.cat([bucket.clean, bucket.corrupted]) if self.paired else bucket.clean

    def draw(self, site: str, repeat: int, n_draws: int = 1) -> Int64[Tensor, "draw pair"]:
        """For every pair, uniform draws from the other prompts that go with it.

        Each is the place of a prompt among ``prompts`` of its length. The same site, repeat and
        seed give the same draws.
        """
        if self.paired:
            return self._place.expand(n_draws, -1)
        # Of what is drawn for, not of the calls before: the size of batches does not change it.
        seed = random.Random(f"{self._seed} {repeat} {site}").getrandbits(63)
        generator = torch.Generator().manual_seed(seed)
        shares = torch.rand(n_draws, len(self._size), generator=generator, dtype=torch.float64)
        # [draw pair] * [pair]: one place fewer than the group has, and then the pair's is skipped.
        rank = (shares * (self._size - 1)).long()
        rank += rank >= self._rank  # all but the pair itself
        return self._place[self._members[self._start + rank]]


def groups_of(pairs: PromptPairs, other: str) -> list[list[int]]:
    """The rows of pairs whose clean prompts may take each other's place."""
    groups: dict[tuple[int, Hashable], list[int]] = {}
    for row, key in enumerate(zip(pairs.lengths.tolist(), _labels(pairs, other), strict=True)):
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def rows_alone(groups: Sequence[Sequence[int]]) -> list[int]:
    """The pairs that are a group by themselves, so that no other prompt goes with them."""
    return sorted(rows[0] for rows in groups if len(rows) == 1)


def without_rows(pairs: PromptPairs, left_out: Sequence[int]) -> PromptPairs:
    """The other pairs."""
    rows = [row for row in range(len(pairs)) if row not in set(left_out)]
    if not rows:
        raise InputError(
            "no pair goes with another prompt; give more pairs, or draw others (--other, other=)"
        )
    return pairs.take(rows)


def _labels(pairs: PromptPairs, other: str) -> list[Hashable]:
    """What the clean prompts of two pairs must agree in for one to take the place of the other."""
    if other == "same-label":
        # As sets: answers have no order, and rows are filled up to the longest.
        return [frozenset(row) - {PADDING} for row in pairs.answers.tolist()]
    if not other.startswith(FEATURE):
        return [None] * len(pairs)
    column = other.removeprefix(FEATURE)
    features = pairs.features or ({},) * len(pairs)
    lacking = [row for row, record in enumerate(features) if column not in record]
    if lacking:
        known = sorted({name for record in features for name in record})
        raise InputError(
            f"expected a column {column!r} in every pair; missing "
            + name_rows(
                lacking, f"there are {', '.join(known) or 'no columns but prompts and answers'}"
            )
        )
    # As text, since values may be lists or objects, which cannot be keys.
    return [json.dumps(record[column], sort_keys=True, default=str) for record in features]
