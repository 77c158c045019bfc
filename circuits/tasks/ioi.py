"""Indirect object identification."""

from __future__ import annotations

import random
from collections.abc import Mapping

from .task import Record, Task, Words
from .words import FEMALE, MALE, PLACES

_OBJECTS = """
    book ring letter ticket map coin bottle basket camera hammer ladder mirror pencil radio shirt
    sword watch key flower guitar
""".split()

_OPENINGS = (
    "",
    "It was a cold day. ",
    "Nobody knows how it came about, but it is true. ",
    "We all remember {c}. ",
    "Last year {c} moved to the city. ",
    "Here is what {c} told us about it. ",
)

_SCENES = (
    "After the lesson {a} and {b} walked to the {place}, and {s} gave a {object} to",
    "One morning {a} met {b} near the {place}. Then {s} handed the {object} to",
    "While {a} and {b} waited at the {place}, {s} showed a {object} to",
    "When {a} and {b} reached the {place}, far from {c}, {s} passed the {object} to",
    "At the {place} {a} sat with {b}. Later, with a smile, {s} brought a {object} to",
    "Once {a} had helped {b} behind the {place}, {s} sold the old {object} to",
    "People say that {a} and {b} own the {place}. Without a word to {c}, {s} sent a {object} to",
    "Because {a} had missed {b} at the {place}, {s} offered the {object} to",
)


def _sample_ioi(template: str, words: Words, rng: random.Random, corruption: str) -> Record:
    first, second, bystander, *others = rng.sample(words["name"], 6)
    subject, receiver = rng.choice([(first, second), (second, first)])
    scene = {
        "c": bystander,
        "place": rng.choice(words["place"]),
        "object": rng.choice(words["object"]),
    }
    corrupted = {
        # Three other names: those of the two people, and of a giver who is neither.
        "abc": dict(zip("abs", others, strict=True)),
        "swap": {"a": second, "b": first, "s": receiver},
        "s2-flip": {"a": first, "b": second, "s": receiver},
    }[corruption]
    return {
        "clean": template.format(a=first, b=second, s=subject, **scene),
        "corrupted": template.format(**corrupted, **scene),
        "answer": f" {receiver}",
        "wrong_answer": f" {subject}",
        "corrupted_answer": [f" {name}" for name in _receivers(corrupted)],
        "order": "BABA" if subject == first else "ABBA",
    }


def _receivers(people: Mapping[str, str]) -> list[str]:
    """Of the two people, those who do not give."""
    return [people[role] for role in "ab" if people[role] != people["s"]]


IOI = Task(
    name="ioi",
    description="indirect object identification: of two people, the one who does not give receives",
    metric="logit_diff",
    corruptions={
        # First what the field's benchmark (MIB) contrasts with: nobody else comes into it.
        "s2-flip": "the giver becomes the other of the two",
        "swap": "the two people change places everywhere",
        "abc": "the two people and the giver become three other people",
    },
    # Openings of different lengths, some with a bystander, so that neither the position of a name
    # nor how often it was said tells who receives.
    templates=tuple(opening + scene for opening in _OPENINGS for scene in _SCENES),
    words={"name": FEMALE + MALE, "place": PLACES, "object": _OBJECTS},
    needs={"name": 6, "place": 1, "object": 1},
    sample=_sample_ioi,
)
