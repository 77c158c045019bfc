"""Tasks: prompt pairs for any tokenizer.

A task fills templates with words. A word is used only where the model's tokenizer spells it as
one token, so that clean and corrupted prompts align token by token; what a tokenizer rejects is
counted in ``PromptPairs.source["words"]``.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...edges.errors import InputError
from ...edges.model.tokens import Tokenizer
from ...edges.names.vocabulary import PART, SEARCH
from .parts import in_part, part_of, split

Words = Mapping[str, Sequence[str]]
"""Words by kind."""


Record = dict[str, Any]
"""The columns of a pairs file; ``rest`` is how a training sentence goes on after the answer."""


@dataclass(frozen=True)
class Task:
    """A behaviour with a contrast.

    Attributes:
        metric: the metric the task is usually measured with.
        corruptions: how the corrupted prompt differs from the clean one; the first is the default.
        templates: the texts to fill; those a tokenizer cannot spell are left out.
        words: the words to fill them with, by kind. ``key/keys`` is one choice of two forms,
            ``17|32`` a word whose last token is ``32``, after the tokens of ``17``.
        needs: the least number of words of each kind that must remain.
        sample: draws one record (the columns of a pairs file) from a template, the words that
            remain, a random generator and the corruption.
        answers: words it answers with that stand in neither templates nor words.
        shared: kinds of words that search and held-out pairs have in common, all of them.
        fit: makes the task one that a tokenizer can spell, where that takes more than leaving
            words and templates out; what it gives has none itself.
        notes: what else ``PromptPairs.source`` says of its pairs, by name.
    """

    name: str
    description: str
    metric: str
    corruptions: Mapping[str, str]
    templates: Sequence[str]
    words: Words
    needs: Mapping[str, int]
    sample: Callable[[str, Words, random.Random, str], Record]
    answers: Sequence[str] = ()
    shared: Collection[str] = ()
    fit: Callable[[Task, Tokenizer], Task] | None = None
    notes: Mapping[str, str] = field(default_factory=dict[str, str])


def fitted(task: Task, tokenizer: Tokenizer) -> Task:
    """The task as its ``fit`` makes it for this tokenizer; words it cannot spell are still there."""
    return task.fit(task, tokenizer) if task.fit else task


def spelled(task: Task, tokenizer: Tokenizer) -> Task:
    """The fitted task with the words and templates that this tokenizer can spell.

    Raises:
        InputError: fewer remain than the task needs.
    """
    task = fitted(task, tokenizer)
    words = usable_words(task, tokenizer)
    return replace(task, words=words, templates=usable_templates(task, words, tokenizer))


def count_words(task: Task, tokenizer: Tokenizer) -> dict[str, dict[str, int]]:
    """Of each kind of words, how many the tokenizer spells as the task wants, and how many not."""
    counts: dict[str, dict[str, int]] = {}
    for kind, words in fitted(task, tokenizer).words.items():
        used = len(single_tokens(words, tokenizer))
        counts[kind] = {"used": used, "rejected": len(words) - used}
    return counts


def sample_records(
    task: Task, corruption: str, n_records: int, *, seed: int, part: str = PART
) -> list[Record]:
    """Distinct records of the task's templates and words, all of which are used.

    Fewer than asked for when a thousand draws in a row gave nothing new. Of the part ``search``
    every other record has templates and words of its own, as ``halves`` has it; where nothing new
    comes of these, of the whole part.

    Args:
        part: ``load_task`` says what parts are.
    """
    draws = f"{task.name} {corruption} {seed}"
    # A seed gives each task, corruption and part draws of its own.
    rng = random.Random(draws if part == PART else f"{draws} {part}")
    by_prompt = "templates" not in held_apart(task)
    task = _of_part(task, part)
    turns = halves(task) if part == SEARCH else (task, task)
    records: dict[tuple[str, str], Record] = {}
    fruitless = 0
    while len(records) < n_records and fruitless < 1000:
        drawn = turns[len(records) % 2] if fruitless < 500 else task
        record = task.sample(rng.choice(drawn.templates), drawn.words, rng, corruption)
        n_before = len(records)
        if not by_prompt or in_part(record["clean"], part):
            # A pair that was drawn before changes nothing; the first record of it stays.
            records.setdefault((record["clean"], record["corrupted"]), record)
        fruitless = 0 if len(records) > n_before else fruitless + 1
    return list(records.values())


def held_apart(task: Task) -> list[str]:
    """What search and held-out pairs of a spelled task do not share: kinds of words, templates."""
    kinds = [
        kind
        for kind, words in task.words.items()
        if kind not in task.shared and split(words, task.needs.get(kind, 1))
    ]
    return [*kinds, "templates"] if split(task.templates, 1) else kinds


def _of_part(task: Task, part: str) -> Task:
    """A spelled task with the words and templates of a part."""
    words = {
        kind: words if kind in task.shared else part_of(words, part, task.needs.get(kind, 1))
        for kind, words in task.words.items()
    }
    return replace(task, words=words, templates=part_of(task.templates, part, 1))


def halves(task: Task) -> tuple[Task, Task]:
    """A spelled task with every other template and word of each kind, and with the rest.

    What is too few for that, or in ``Task.shared``, both have.
    """

    def half(offset: int) -> Task:
        words = {
            kind: words
            if kind in task.shared or len(words) // 2 < task.needs.get(kind, 1)
            else words[offset::2]
            for kind, words in task.words.items()
        }
        templates = task.templates[offset::2] if len(task.templates) > 1 else task.templates
        return replace(task, words=words, templates=templates)

    return half(0), half(1)


def usable_words(task: Task, tokenizer: Tokenizer) -> dict[str, list[str]]:
    """The words of each kind that ``tokenizer`` spells as Task.words wants.

    Raises:
        InputError: fewer remain than the task needs.
    """
    usable = {kind: single_tokens(words, tokenizer) for kind, words in task.words.items()}
    for kind, least in task.needs.items():
        if len(usable[kind]) < least:
            raise InputError(
                f"task {task.name} needs {least} words of the kind {kind!r} that are single tokens, "
                f"and this tokenizer has {len(usable[kind])} of {len(task.words[kind])}; choose "
                "another model or task, or bring your own pairs (--pairs, "
                "PromptPairs.read)"
            )
    return usable


def single_tokens(words: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """Those of ``words`` whose every form is one token after a word; of ``a|b``, ``b`` after ``a``."""
    checks: list[tuple[str, str, str]] = []
    for word in words:
        for form in word.split("/"):
            # In the midst of a text, where prompts have it; at its start many tokenizers spell it
            # in another way.
            before, *last = f" {form}".split("|")
            checks.append((word, "the", before))
            checks += [(word, f"the{before}", part) for part in last]
    # All at once: the tokenizer is called for two long lists, not for every word.
    added = tokenizer.continuations(
        [before for _, before, _ in checks], [part for *_, part in checks]
    )
    rejected = {
        word
        for (word, before, _), tokens in zip(checks, added, strict=True)
        if tokens is None
        or tokenizer.unknown in tokens
        # What stands before the last token may be of several.
        or (len(tokens) != 1 and not (before == "the" and "|" in word))
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
        # A slot that is no kind of words is the task's own to fill; an empty kind cannot fill any.
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
