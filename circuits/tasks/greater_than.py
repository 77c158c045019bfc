"""A year that comes after another."""

from __future__ import annotations

import random
from dataclasses import replace

from ...edges.errors import InputError
from ...edges.model.tokens import Tokenizer
from .task import Record, Task, Words, single_tokens

_EVENTS = """
    war famine siege drought strike voyage trial project treaty plague revolt reign festival journey
    battle
""".split()


_COMPARED = {2: ("01", "last two digits"), 1: ("0", "last digit"), 3: ("101", "last three digits")}
"""By how many digits of a year are compared: the least of them, and what ``source`` calls them."""


def _years(n_digits: int) -> list[str]:
    """The years, each parted before its last digits, of which there are so many."""
    # Neither the first of a century, which is round, nor the last, which no year comes after; of
    # ten years all are wanted.
    ends = range(100) if n_digits == 1 else range(1, 99)
    years = [f"{century}{end:02d}" for century in range(11, 19) for end in ends]
    return [f"{year[:-n_digits]}|{year[-n_digits:]}" for year in years]


def _fit_years(task: Task, tokenizer: Tokenizer) -> Task:
    """The task with years parted as the tokenizer parts most of them: the compared part is a token.

    GPT-2 has years of two tokens of two digits. Where every digit is a token, and where three are
    from the left, years are compared by the last digit; where three are from the right, by these.
    """
    shares: dict[int, float] = {}
    for n_digits in _COMPARED:
        years = _years(n_digits)
        shares[n_digits] = len(single_tokens(years, tokenizer)) / len(years)
    # Of equal shares the first, which is the field's; where all are 0, no year can be used anyway.
    n_digits = max(shares, key=lambda n: shares[n])
    return replace(
        task,
        words={**task.words, "year": _years(n_digits)},
        notes={"compared": _COMPARED[n_digits][1]} if shares[n_digits] else {},
        fit=None,
    )


def _sample_greater_than(
    template: str, words: Words, rng: random.Random, corruption: str
) -> Record:
    centuries: dict[str, list[str]] = {}
    # Sorted, so that the first year of a century is its least, and slices are by size.
    for century, year in sorted(word.split("|") for word in words["year"]):
        centuries.setdefault(century, []).append(year)
    least, compared = _COMPARED[len(words["year"][0].partition("|")[2])]
    usable = [century for century, years in centuries.items() if years[0] == least and years[2:]]
    if not usable:
        raise InputError(
            f"task greater-than compares years by their {compared} and needs {least} and two more "
            "after the same digits, each a single token, and this tokenizer has no such years; "
            "choose another model or task"
        )
    century = rng.choice(usable)
    _, *years = centuries[century]
    # Neither the least, which is the corrupted prompt's, nor the last, which no year comes after.
    start = rng.choice(years[:-1])
    scene = {"event": rng.choice(words["event"]), "century": century}
    return {
        "clean": template.format(year=start, **scene),
        "corrupted": template.format(year=least, **scene),
        "answer": [year for year in years if year > start],
        "wrong_answer": [year for year in years if year <= start],
        "corrupted_answer": years,
    }


GREATER_THAN = Task(
    name="greater-than",
    description="an end year comes after the start year of its century",
    metric="prob_diff",
    corruptions={
        "01": "the start year becomes 01 (0 or 101, where a token is one digit or three), which every "
        "other year comes after"
    },
    templates=(
        "The {event} lasted from the year {century}{year} to the year {century}",
        "People remember the {event} that began in {century}{year} and ended in {century}",
        "In this land the {event} started in {century}{year} and stopped in {century}",
        "He lived through the {event}, from {century}{year} until {century}",
        "The {event} was a long one: it went on from {century}{year} to {century}",
        "The {event} started in the year {century}{year} and was over by the year {century}",
        "This is a history of the {event} from the year {century}{year} to the year {century}",
        "She wrote about the {event}, which went on from {century}{year} to {century}",
    ),
    words={"event": _EVENTS, "year": _years(2)},
    needs={"event": 1, "year": 10},
    shared=("year",),
    fit=_fit_years,
    sample=_sample_greater_than,
)
