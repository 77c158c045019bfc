"""The two parts of a task: one to search on, and one held out to judge what was found.

A quarter of the words of each kind and of the templates is held out, by a rule that hangs on
nothing but the list of those a tokenizer can spell. What is too few to be split both parts share.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from ...edges.names.vocabulary import HELD_OUT, PART

_SHARE = 4
"""One in so many is held out."""


def split(items: Sequence[str], least: int) -> tuple[list[str], list[str]] | None:
    """The items to search on, and those held out; None where they are too few to be split.

    Held out are one in four or ``least``, whichever is more, if more than that are left to search
    on. They stand at equal distances, so that a list of several sorts gives some of each.
    """
    n_items, n_held_out = len(items), max(len(items) // _SHARE, least, 1)
    if n_items <= 2 * n_held_out:
        return None
    places = {(2 * k + 1) * n_items // (2 * n_held_out) for k in range(n_held_out)}
    searched = [item for place, item in enumerate(items) if place not in places]
    return searched, [items[place] for place in sorted(places)]


def part_of(items: Sequence[str], part: str, least: int) -> list[str]:
    """The items of a part: all of them where the part is all, or where they cannot be split."""
    halves = split(items, least)
    if part == PART or halves is None:
        return list(items)
    return halves[part == HELD_OUT]


def in_part(prompt: str, part: str) -> bool:
    """Whether a clean prompt is of a part, by a checksum of its text: one in four is held out."""
    # Not `hash`, which Python salts anew in every process.
    return part == PART or (zlib.crc32(prompt.encode()) % _SHARE == 0) == (part == HELD_OUT)
