"""A list that goes on as it did before."""

from __future__ import annotations

import random

from .task import Record, Task, Words

_WORDS = """
    apple river stone cloud tiger paper glass chair bread green seven music light ocean winter
    silver dragon pocket garden window butter candle forest hammer island jacket kitchen lemon magic
    night orange pepper queen rabbit summer table uncle valley water yellow zero angel button copper
""".split()


def _sample_induction(template: str, words: Words, rng: random.Random, corruption: str) -> Record:
    n_words = rng.randrange(6, 11)
    drawn = rng.sample(words["word"], 2 * n_words)
    first, others = drawn[:n_words], drawn[n_words:]
    # The repeated part is of two words or more, and a word of the list is left to follow it.
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
    templates=(
        "The words are {list}. And again: {repeated}",
        "Read this list: {list}. Now read it again: {repeated}",
        "Say after me: {list}. Say it once more: {repeated}",
        "This is what I wrote: {list}. This is what you wrote: {repeated}",
        "A list to remember: {list}. Here it comes once more: {repeated}",
    ),
    words={"word": _WORDS},
    needs={"word": 20},
    sample=_sample_induction,
)
