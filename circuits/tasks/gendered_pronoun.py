"""A pronoun that takes up a name."""

from __future__ import annotations

import random

from .task import Record, Task, Words
from .words import FEMALE, MALE, PLACES


def _sample_gendered_pronoun(
    template: str, words: Words, rng: random.Random, corruption: str
) -> Record:
    genders = [("female", " she"), ("male", " he")]
    rng.shuffle(genders)
    (gender, answer), (other_gender, wrong) = genders
    # Where a tokenizer spells no place as one token, only templates without one are left.
    place = rng.choice(words["place"]) if "{place}" in template else ""
    return {
        "clean": template.format(name=rng.choice(words[gender]), place=place),
        "corrupted": template.format(name=rng.choice(words[other_gender]), place=place),
        "answer": answer,
        "wrong_answer": wrong,
        "gender": gender,
    }


GENDERED_PRONOUN = Task(
    name="gendered-pronoun",
    description="a name is taken up by the pronoun of its usual gender",
    metric="logit_diff",
    corruptions={"gender": "the name becomes one of the other gender"},
    templates=(
        "One day {name} was very happy because",
        "Once upon a time, there was a little friend named {name}. One day,",
        "When the sun was up, {name} wanted to play, and",
        "At the {place} {name} had to wait, so",
        "We all know {name} from the {place}. Last week",
        "It was late when {name} came home, but",
        "My friend {name} left the {place} early because",
        "I think that {name} is tired, because",
        "Yesterday {name} went to the {place} because",
        "The teacher asked {name} why",
        "The {place} was closed, and {name} said that",
        "People like {name} because",
        "As soon as {name} saw the {place},",
        "Nobody believed {name} when",
        "I asked {name} about the {place}, but",
        "After {name} lost the keys,",
    ),
    words={"female": FEMALE, "male": [*MALE, "Timmy"], "place": PLACES},
    needs={"female": 1, "male": 1},
    answers=("she", "he"),
    sample=_sample_gendered_pronoun,
)
