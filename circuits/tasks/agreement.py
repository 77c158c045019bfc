"""A verb that agrees with its subject."""

from __future__ import annotations

import random

from .task import Record, Task, Words

_NOUNS = """
    key/keys book/books car/cars dog/dogs boy/boys girl/girls teacher/teachers doctor/doctors
    house/houses letter/letters picture/pictures student/students farmer/farmers horse/horses
    friend/friends brother/brothers ship/ships tree/trees table/tables player/players
    cat/cats bird/birds cow/cows door/doors window/windows cup/cups lamp/lamps clock/clocks bag/bags
    hat/hats boat/boats truck/trucks train/trains plane/planes nurse/nurses lawyer/lawyers
    driver/drivers writer/writers singer/singers soldier/soldiers king/kings guest/guests
    sister/sisters manager/managers worker/workers engineer/engineers guard/guards pilot/pilots
    judge/judges flower/flowers plant/plants stone/stones rock/rocks bottle/bottles plate/plates
    painting/paintings bridge/bridges tower/towers author/authors artist/artists actor/actors
    chair/chairs building/buildings
""".split()


def _sample_agreement(template: str, words: Words, rng: random.Random, corruption: str) -> Record:
    noun, distractor = (pair.split("/") for pair in rng.sample(words["noun"], 2))
    verbs = [pair.split("/") for pair in words["verb"]]
    # Drawn apart, so that the noun between is of the wrong number in half of the prompts.
    number, attractor = rng.randrange(2), rng.randrange(2)
    scene = {"preposition": rng.choice(words["preposition"]), "other": distractor[attractor]}
    return {
        "clean": template.format(noun=noun[number], **scene),
        "corrupted": template.format(noun=noun[1 - number], **scene),
        "answer": [f" {verb[number]}" for verb in verbs],
        "wrong_answer": [f" {verb[1 - number]}" for verb in verbs],
        "number": ("singular", "plural")[number],
        "attractor": ("singular", "plural")[attractor],
    }


AGREEMENT = Task(
    name="agreement",
    description="a verb agrees with its subject across a noun that may have the other number",
    metric="logit_diff",
    corruptions={"number": "the subject changes its number"},
    templates=(
        "The {noun} {preposition} the {other}",
        "We can see that the {noun} {preposition} the {other}",
        "Every day the {noun} {preposition} the old {other}",
        "It is true that the {noun} {preposition} the {other} still",
        "I do not know why the {noun} {preposition} the {other}",
        "I think that the {noun} {preposition} the {other} really",
        "I told them how the {noun} {preposition} the {other}",
        "Without a doubt the {noun} {preposition} the {other} also",
    ),
    words={
        "noun": _NOUNS,
        "preposition": ["near", "behind", "beside", "under", "above", "by", "opposite"],
        "verb": ["is/are", "was/were", "has/have", "does/do"],
    },
    needs={"noun": 2, "preposition": 1, "verb": 1},
    # All verbs answer, so that both parts measure the same; of prepositions there are few.
    shared=("verb", "preposition"),
    sample=_sample_agreement,
)
