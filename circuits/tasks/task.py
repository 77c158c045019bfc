"""Built-in tasks: prompt pairs for any tokenizer.

Each task fills templates with words. A word is used only where the model's tokenizer spells it as
one token, so that clean and corrupted prompts align token by token; what a tokenizer rejects is
counted in ``PromptPairs.source["words"]``.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...edges.errors import InputError
from ...edges.model.tokens import Tokenizer
from ...edges.names.vocabulary import N_PAIRS, SEED
from ...edges.question.prompts import PromptPairs

Words = Mapping[str, Sequence[str]]


Record = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A behaviour with a contrast.

    Attributes:
        metric: the metric the task is usually measured with.
        corruptions: how the corrupted prompt differs from the clean one; the first is the default.
        templates: the texts to fill; those a tokenizer cannot spell are left out.
        words: the words to fill them with, by kind. ``key/keys`` is one choice of two forms,
            ``17|32`` a word of the two tokens ``17`` and ``32``.
        needs: the least number of words of each kind that must remain.
        sample: draws one record (the columns of a pairs file) from a template, the words that
            remain, a random generator and the corruption.
    """

    name: str
    description: str
    metric: str
    corruptions: Mapping[str, str]
    templates: Sequence[str]
    words: Words
    needs: Mapping[str, int]
    sample: Callable[[str, Words, random.Random, str], Record]


_FEMALE = [
    "Mary",
    "Anna",
    "Emma",
    "Alice",
    "Sarah",
    "Laura",
    "Julia",
    "Kate",
    "Jane",
    "Lucy",
    "Rachel",
    "Susan",
    "Lisa",
    "Amy",
    "Helen",
    "Ruth",
    "Claire",
    "Emily",
    "Grace",
    "Rose",
    "Linda",
    "Karen",
    "Nancy",
    "Carol",
    "Diane",
    "Maria",
    "Sophie",
    "Chloe",
    "Megan",
    "Molly",
    "Lily",
    "Ella",
]


_MALE = [
    "John",
    "James",
    "David",
    "Paul",
    "Mark",
    "Peter",
    "Simon",
    "Tom",
    "Jack",
    "Henry",
    "Adam",
    "Robert",
    "Michael",
    "Thomas",
    "George",
    "Daniel",
    "Kevin",
    "Brian",
    "Steven",
    "Andrew",
    "Martin",
    "Frank",
    "Oscar",
    "Max",
    "Ryan",
    "Scott",
    "Eric",
    "Jason",
    "Charlie",
    "Tim",
    "Sam",
    "Ben",
]


_PLACES = [
    "station",
    "market",
    "garden",
    "school",
    "river",
    "harbour",
    "office",
    "library",
    "museum",
    "theatre",
    "hotel",
    "farm",
    "bakery",
    "bridge",
    "beach",
    "church",
    "hospital",
    "factory",
]


_OBJECTS = [
    "book",
    "ring",
    "letter",
    "ticket",
    "map",
    "coin",
    "bottle",
    "basket",
    "camera",
    "hammer",
    "ladder",
    "mirror",
    "pencil",
    "radio",
    "shirt",
    "sword",
    "watch",
    "key",
    "flower",
    "guitar",
]


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
        "abc": "the two people and the giver become three other people",
        "swap": "the two people change places everywhere",
        "s2-flip": "the giver becomes the other of the two",
    },
    # Openings of different lengths, some with a bystander, so that neither the position of a name
    # nor how often it was said tells who receives.
    templates=tuple(opening + scene for opening in _OPENINGS for scene in _SCENES),
    words={"name": _FEMALE + _MALE, "place": _PLACES, "object": _OBJECTS},
    needs={"name": 6, "place": 1, "object": 1},
    sample=_sample_ioi,
)


def _sample_greater_than(
    template: str, words: Words, rng: random.Random, corruption: str
) -> Record:
    centuries: dict[str, list[str]] = {}
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
        "event": [
            "war",
            "famine",
            "siege",
            "drought",
            "strike",
            "voyage",
            "trial",
            "project",
            "treaty",
            "plague",
            "revolt",
            "reign",
            "festival",
            "journey",
            "battle",
        ],
        "year": [f"{century}|{year:02d}" for century in range(11, 19) for year in range(1, 99)],
    },
    needs={"event": 1, "year": 10},
    sample=_sample_greater_than,
)


def _sample_agreement(template: str, words: Words, rng: random.Random, corruption: str) -> Record:
    noun, other = (pair.split("/") for pair in rng.sample(words["noun"], 2))
    verbs = [pair.split("/") for pair in words["verb"]]
    number, attractor = rng.randrange(2), rng.randrange(2)
    scene = {"preposition": rng.choice(words["preposition"]), "other": other[attractor]}
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
    ),
    words={
        "noun": [
            "key/keys",
            "book/books",
            "car/cars",
            "dog/dogs",
            "boy/boys",
            "girl/girls",
            "teacher/teachers",
            "doctor/doctors",
            "house/houses",
            "letter/letters",
            "picture/pictures",
            "student/students",
            "farmer/farmers",
            "horse/horses",
            "friend/friends",
            "brother/brothers",
            "ship/ships",
            "tree/trees",
            "table/tables",
            "player/players",
        ],
        "preposition": ["near", "behind", "beside", "under", "above"],
        "verb": ["is/are", "was/were", "has/have", "does/do"],
    },
    needs={"noun": 2, "preposition": 1, "verb": 1},
    sample=_sample_agreement,
)


def _sample_induction(template: str, words: Words, rng: random.Random, corruption: str) -> Record:
    n_words = rng.randrange(6, 11)
    drawn = rng.sample(words["word"], 2 * n_words)
    first, others = drawn[:n_words], drawn[n_words:]
    start = rng.randrange(n_words - 2)
    end = rng.randrange(start + 2, n_words)
    answer, wrong = first[end], others[end]
    if corruption == "target":
        others = [*first[:end], wrong, *first[end + 1 :]]
    repeated = " ".join(first[start:end])
    return {
        "clean": template.format(list=" ".join(first), repeated=repeated),
        "corrupted": template.format(list=" ".join(others), repeated=repeated),
        "answer": f" {answer}",
        "wrong_answer": f" {wrong}",
        "rest": "".join(f" {word}" for word in first[end + 1 :]),
    }


INDUCTION = Task(
    name="induction",
    description="part of a list of unrelated words, repeated, goes on as it did the first time",
    metric="logit_diff",
    corruptions={
        "target": "the word that comes next was another one the first time",
        "list": "the first list is one of other words",
    },
    templates=("The words are {list}. And again: {repeated}",),
    words={
        "word": [
            "apple",
            "river",
            "stone",
            "cloud",
            "tiger",
            "paper",
            "glass",
            "chair",
            "bread",
            "green",
            "seven",
            "music",
            "light",
            "ocean",
            "winter",
            "silver",
            "dragon",
            "pocket",
            "garden",
            "window",
            "butter",
            "candle",
            "forest",
            "hammer",
            "island",
            "jacket",
            "kitchen",
            "lemon",
            "magic",
            "night",
            "orange",
            "pepper",
            "queen",
            "rabbit",
            "summer",
            "table",
            "uncle",
            "valley",
            "water",
            "yellow",
            "zero",
            "angel",
            "button",
            "copper",
        ]
    },
    needs={"word": 20},
    sample=_sample_induction,
)


def _sample_gendered_pronoun(
    template: str, words: Words, rng: random.Random, corruption: str
) -> Record:
    genders = [("female", " she"), ("male", " he")]
    rng.shuffle(genders)
    (gender, answer), (other_gender, wrong) = genders
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
    ),
    words={"female": _FEMALE, "male": [*_MALE, "Timmy"], "place": _PLACES},
    needs={"female": 1, "male": 1},
    sample=_sample_gendered_pronoun,
)


TASKS: Mapping[str, Task] = {
    task.name: task for task in (IOI, GREATER_THAN, AGREEMENT, INDUCTION, GENDERED_PRONOUN)
}


def find_task(name: str) -> Task:
    """The built-in task called ``name``. Raises InputError, with the names there are."""
    if name not in TASKS:
        raise InputError(f"unknown task {name!r}; built-in tasks: {', '.join(TASKS)}")
    return TASKS[name]


def load_task(
    name: str,
    model: Any,
    n_pairs: int = N_PAIRS,
    seed: int = SEED,
    corruption: str | None = None,
) -> PromptPairs:
    """Distinct prompt pairs of a built-in task, in words that ``model`` spells as one token each.

    The same arguments and tokenizer give the same pairs.

    Args:
        model: a ``Model`` or a ``Tokenizer``.
        corruption: one of ``find_task(name).corruptions``; None is the first.

    Raises:
        InputError: unknown task or corruption, too few words that are single tokens, or fewer
            distinct pairs than asked for.
    """
    task = find_task(name)
    if n_pairs < 1:
        raise InputError(f"expected n_pairs >= 1, got {n_pairs}")
    corruption = corruption or next(iter(task.corruptions))
    if corruption not in task.corruptions:
        raise InputError(
            f"unknown corruption {corruption!r} of task {name}; there are "
            f"{', '.join(task.corruptions)}"
        )
    tokenizer = model if isinstance(model, Tokenizer) else model.require_tokenizer()
    words = usable_words(task, tokenizer)
    templates = usable_templates(task, words, tokenizer)
    records = sample_records(task, templates, words, corruption, n_pairs, seed)
    if len(records) < n_pairs:
        raise InputError(
            f"expected {n_pairs} distinct pairs of task {name}, but the words this tokenizer spells "
            f"as one token make only about {len(records)}; ask for fewer (--n-pairs, n_pairs=)"
        )
    source = {
        "task": name,
        "corruption": corruption,
        "seed": seed,
        "words": count_words(task, tokenizer),
    }
    return PromptPairs.from_records(records, tokenizer, source=source)


def count_words(task: Task, tokenizer: Tokenizer) -> dict[str, dict[str, int]]:
    """Of each kind of words, how many the tokenizer spells as the task wants, and how many not."""
    counts: dict[str, dict[str, int]] = {}
    for kind, words in task.words.items():
        used = len(_single_tokens(words, tokenizer))
        counts[kind] = {"used": used, "rejected": len(words) - used}
    return counts


def sample_records(
    task: Task,
    templates: Sequence[str],
    words: Words,
    corruption: str,
    n_records: int,
    seed: int,
) -> list[Record]:
    """Distinct records; fewer than asked for when a thousand draws in a row gave nothing new."""
    rng = random.Random(f"{task.name} {corruption} {seed}")
    records: dict[tuple[str, str], Record] = {}
    fruitless = 0
    while len(records) < n_records and fruitless < 1000:
        record = task.sample(rng.choice(templates), words, rng, corruption)
        n_before = len(records)
        records.setdefault((record["clean"], record["corrupted"]), record)
        fruitless = 0 if len(records) > n_before else fruitless + 1
    return list(records.values())


def usable_words(task: Task, tokenizer: Tokenizer) -> dict[str, list[str]]:
    """The words of each kind that ``tokenizer`` spells as Task.words wants.

    Raises:
        InputError: fewer remain than the task needs.
    """
    usable = {kind: _single_tokens(words, tokenizer) for kind, words in task.words.items()}
    for kind, least in task.needs.items():
        if len(usable[kind]) < least:
            raise InputError(
                f"task {task.name} needs {least} words of the kind {kind!r} that are single tokens, "
                f"and this tokenizer has {len(usable[kind])} of {len(task.words[kind])}; choose "
                "another model or task, or bring your own pairs (--pairs, "
                "PromptPairs.read)"
            )
    return usable


def _single_tokens(words: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """Those of ``words`` whose every form is one token after a word (one each, if ``a|b``)."""
    checks: list[tuple[str, str, str]] = []
    for word in words:
        for form in word.split("/"):
            before = "the"
            for part in f" {form}".split("|"):
                checks.append((word, before, part))
                before += part
    added = tokenizer.continuations(
        [before for _, before, _ in checks], [part for *_, part in checks]
    )
    rejected = {
        word
        for (word, *_), tokens in zip(checks, added, strict=True)
        if tokens is None or len(tokens) != 1 or tokens[0] == tokenizer.unknown
    }
    return [word for word in words if word not in rejected]


def usable_templates(task: Task, words: Words, tokenizer: Tokenizer) -> list[str]:
    """The templates whose own words ``tokenizer`` knows and whose kinds of words remain.

    Raises:
        InputError: none is left.
    """
    usable: list[str] = []
    for template in task.templates:
        parts = list(string.Formatter().parse(template))
        literals = [literal for literal, *_ in parts if literal.strip()]
        spelled = all(tokenizer.unknown not in ids for ids in tokenizer.encode(literals))
        filled = all(words.get(str(slot), ["-"]) for _, slot, *_ in parts)
        if spelled and filled:
            usable.append(template)
    if not usable:
        raise InputError(
            f"task {task.name}: this tokenizer lacks words of every one of its "
            f"{len(task.templates)} templates; choose another model or task, or bring your own "
            "pairs (--pairs, PromptPairs.read)"
        )
    return usable


def usual_metric(pairs: PromptPairs) -> str:
    """The metric usual for the pairs' task; ``logit_diff`` for pairs of no built-in task."""
    task = str(pairs.source.get("task"))
    return TASKS[task].metric if task in TASKS else "logit_diff"
