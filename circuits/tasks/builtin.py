"""The built-in tasks, and the pairs of one of them or of a task of one's own.

A new task is a file with a ``Task``, and the file's name in ``_MODULES``.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from ...edges.errors import InputError
from ...edges.model.tokens import Tokenizer
from ...edges.names.vocabulary import N_PAIRS, PART, PARTS
from ...edges.question.prompts import PromptPairs
from .task import Task, count_words, fitted, held_apart, sample_records, spelled

_MODULES = (
    "ioi",
    "greater_than",
    "agreement",
    "induction",
    "gendered_pronoun",
)
"""Of this package; each has its task in capitals: ``ioi.IOI``."""

_ALL: tuple[Task, ...] = tuple(
    getattr(import_module(f".{name}", __package__), name.upper()) for name in _MODULES
)

TASKS: Mapping[str, Task] = {task.name: task for task in _ALL}
"""The built-in tasks, by name."""


def find_task(name: str) -> Task:
    """The built-in task called ``name``. Raises InputError, with the names there are."""
    if name not in TASKS:
        raise InputError(
            f"unknown task {name!r}; built-in tasks: {', '.join(TASKS)}. A task of your own is not "
            "built in: give its prompt pairs as a file (--pairs), or load_task the Task itself"
        )
    return TASKS[name]


def load_task(
    task: str | Task,
    model: Any,
    n_pairs: int = N_PAIRS,
    *,
    seed: int = 0,
    corruption: str | None = None,
    chat: bool = False,
    part: str = PART,
) -> PromptPairs:
    """Distinct prompt pairs of a task, in words that ``model`` spells as one token each.

    The same arguments and tokenizer give the same pairs. A circuit that was searched for on pairs of
    the part ``search`` is judged by those of the part ``held-out``: no clean prompt is of both,
    whatever the seeds. A quarter of the templates and of the words of each kind is held out, or as
    many words as a prompt needs, if more of them are left for the search; what is too few for that
    (or is in ``Task.shared``) both parts have. Where they have the templates in common, a checksum
    of the clean prompt puts one in four among the held-out. Nothing else decides but the task and
    the tokenizer. ``source`` says the part, and under ``apart`` what the two do not share.

    Args:
        task: the name of a built-in task, or a ``Task`` of your own. A result tells its task by
            name alone, so that the command line cannot load the pairs of your own again.
        model: a ``Model`` or a ``Tokenizer``.
        corruption: one of ``Task.corruptions``; None is the first.
        part: ``all`` draws from all words and templates, and shares pairs with both parts.
        chat: put each prompt into the tokenizer's chat template; see ``PromptPairs.from_records``.

    Raises:
        InputError: unknown task, corruption or part, a task of your own with a built-in one's name,
            too few words that are single tokens, fewer distinct pairs than asked for, or ``chat``
            of a tokenizer without a chat template.
    """
    task = find_task(task) if isinstance(task, str) else task
    corruption = corruption or next(iter(task.corruptions))
    _check(task, n_pairs, corruption, part)
    tokenizer = model if isinstance(model, Tokenizer) else model.require_tokenizer()
    task = fitted(task, tokenizer)
    usable = spelled(task, tokenizer)
    records = sample_records(usable, corruption, n_pairs, seed=seed, part=part)
    if len(records) < n_pairs:
        of_part = "" if part == PART else f" (part {part})"
        raise InputError(
            f"expected {n_pairs} distinct pairs of task {task.name}{of_part}, but the words this "
            f"tokenizer spells as one token make only about {len(records)}; ask for fewer "
            "(--n-pairs)"
        )
    source: dict[str, Any] = {
        "task": task.name,
        "corruption": corruption,
        "seed": seed,
        "words": count_words(task, tokenizer),
        **task.notes,
    }
    if part != PART:
        source |= {"part": part, "apart": held_apart(usable)}
    # A built-in task's usual metric is looked up by name; of any other, only its pairs can tell.
    if task.name not in TASKS:
        source["metric"] = task.metric
    return PromptPairs.from_records(records, tokenizer, source, chat=chat)


def _check(task: Task, n_pairs: int, corruption: str, part: str) -> None:
    """Raises InputError for what ``load_task`` cannot do."""
    if TASKS.get(task.name, task) is not task:
        raise InputError(
            f"expected a task of your own under a name of its own, got {task.name!r}, which is "
            "built in; rename it (Task.name)"
        )
    if n_pairs < 1:
        raise InputError(f"expected n_pairs >= 1, got {n_pairs}")
    if part not in PARTS:
        raise InputError(f"unknown part {part!r} of a task's pairs; there are {', '.join(PARTS)}")
    if corruption not in task.corruptions:
        raise InputError(
            f"unknown corruption {corruption!r} of task {task.name}; there are "
            f"{', '.join(task.corruptions)}"
        )


def usual_metric(pairs: PromptPairs) -> str:
    """The metric usual for the pairs' task; ``logit_diff`` for pairs that are of no task."""
    task = TASKS.get(str(pairs.source.get("task")))
    return task.metric if task else str(pairs.source.get("metric", "logit_diff"))
