"""A year that comes after another."""

from __future__ import annotations

import random

from ...edges.errors import InputError
from .task import Record, Task, Words

_EVENTS = """
    war famine siege drought strike voyage trial project treaty plague revolt reign festival journey
    battle
""".split()


def _sample_greater_than(
    template: str, words: Words, rng: random.Random, corruption: str
) -> Record:
    centuries: dict[str, list[str]] = {}
    # Sorted, so that the first year of a century is its least, and slices are by size.
    for century, year in sorted(word.split("|") for word in words["year"]):
        centuries.setdefault(century, []).append(year)
    usable = [century for century, years in centuries.items() if years[0] == "01" and years[2:]]
    if not usable:
        raise InputError(
            "task greater-than needs the year 01 and two more of one century as single tokens, and "
            "this tokenizer has no such century; choose another model or task"
        )
    century = rng.choice(usable)
    _, *years = centuries[century]
    # Neither 01, which is the corrupted prompt's, nor the last, which no year comes after.
    start = rng.choice(years[:-1])
    scene = {"event": rng.choice(words["event"]), "century": century}
    return {
        "clean": template.format(year=start, **scene),
        "corrupted": template.format(year="01", **scene),
        "answer": [year for year in years if year > start],
        "wrong_answer": [year for year in years if year <= start],
        "corrupted_answer": years,
    }


GREATER_THAN = Task(
    name="greater-than",
    description="an end year comes after the start year of its century",
    metric="prob_diff",
    corruptions={"01": "the start year becomes 01, which every other year comes after"},
    templates=(
        "The {event} lasted from the year {century}{year} to the year {century}",
        "People remember the {event} that began in {century}{year} and ended in {century}",
        "In this land the {event} started in {century}{year} and stopped in {century}",
    ),
    words={
        "event": _EVENTS,
        "year": [f"{century}|{year:02d}" for century in range(11, 19) for year in range(1, 99)],
    },
    needs={"event": 1, "year": 10},
    sample=_sample_greater_than,
)
