"""Which columns of a file of prompt pairs are which: wiremap's names, or others of the field."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError
from ..names.vocabulary import PROMPT_COLUMNS, WRONG_BESIDE, WRONG_IDS_BESIDE

PROMPTS = ("clean", "corrupted")
ANSWERS = ("answer", "wrong_answer")
OWN = (*PROMPTS, *ANSWERS)
IDS = tuple(f"{name}_ids" for name in OWN)
"""The same as token ids."""

_ANY_WRONG = (
    "wrong_answer",
    "wrong_answers",
    "incorrect_answer",
    "incorrect_answers",
    "incorrect",
    "wrong",
)
"""Says that it is wrong, whatever the answers are called."""

_NUMBERS_SAY = {
    "correct_idx": "alone, without incorrect_idx, holds in EAP-IG's greater-than the last two digits "
    "of a year, which are no token ids",
    "label": "holds numbers, which may be classes, digits (EAP-IG's greater-than) or token ids",
    "plural": "says which form is right, but not in which tokens",
}


@dataclass
class Columns:
    """Which column of a file each of wiremap's is read from.

    Attributes:
        names: of ``OWN`` and ``IDS``, those that are there, with the file's own name.
        unused: what was passed over although it might have been meant.
        hints: what columns mean that could not be taken for answers, for a message.
        beside: names of texts that stand beside token ids and say the same.
    """

    names: dict[str, str] = field(default_factory=dict[str, str])
    unused: list[str] = field(default_factory=list[str])
    hints: list[str] = field(default_factory=list[str])
    beside: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def missing(self) -> list[str]:
        """What no pair can do without and no column has."""
        return [
            name for name in (*PROMPTS, "answer") if not {name, f"{name}_ids"} & self.names.keys()
        ]

    @property
    def renamed(self) -> dict[str, str]:
        """Those that the file calls by another name."""
        return {name: given for name, given in self.names.items() if name != given}

    def of(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The record by wiremap's names; all else as it came."""
        taken = {given: name for name, given in self.names.items()}
        return {taken.get(key, key): value for key, value in record.items()}

    def say_missing(self, names: Iterable[str]) -> str:
        """What is missing and what there is instead."""
        text = (
            "expected the columns clean, corrupted, answer (and wrong_answer); missing "
            f"{', '.join(self.missing)}; found {', '.join(map(str, names)) or 'none'}"
        )
        return "; ".join([text, *self.hints])


def find_columns(records: Sequence[Mapping[str, Any]]) -> Columns:
    """Which columns the records have. Their values are looked at where a name does not tell all.

    Raises:
        InputError: two columns that may both be the one wanted.
    """
    present = _present(records)
    found = Columns()
    for name, known in PROMPT_COLUMNS.items():
        given = _only(name, [present[each] for each in known if each in present], records)
        # Where there are texts, ids under another name than wiremap's are something else.
        if given is not None and (given == name or name.removesuffix("_ids") not in found.names):
            found.names[name] = given
    if "corrupted_hard" in present and found.names.get("corrupted") != present["corrupted_hard"]:
        found.unused.append("corrupted_hard is another corruption and not used")
    if "answer_ids" in present or "answer" not in present:
        _find_ids(found, present, records)
    if "answer_ids" not in found.names:
        _find_texts(found, present, records)
    return found


def _present(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The names of all columns, written as wiremap writes names, with those of the records."""
    names = dict.fromkeys(key for record in records for key in record)
    present: dict[str, str] = {}
    for name in names:
        plain = str(name).strip().lower().replace(" ", "_").replace("-", "_")
        present.setdefault(plain, name)
    # A name that is written so stands before one that is only like it.
    return {**present, **{name: name for name in names if name in present}}


def _only(name: str, given: Sequence[str], records: Sequence[Mapping[str, Any]]) -> str | None:
    """The column that is meant; the last resort, ``corrupted_hard``, gives way to any other."""
    others = [each for each in given if each.lower() != "corrupted_hard"] or list(given)
    if others and others[0] != name:
        _refuse_several(name, others, records)
    return others[0] if others else None


def _refuse_several(name: str, given: Sequence[str], records: Sequence[Mapping[str, Any]]) -> None:
    """Raises InputError if several columns may be the one that is meant, and differ."""
    differ = [
        each
        for each in given[1:]
        if any(record.get(each) != record.get(given[0]) for record in records)
    ]
    if differ:
        raise InputError(
            f"expected one column for {name}, got {', '.join([given[0], *differ])}; call the one to "
            f"use {name!r}"
        )


def _find_ids(
    found: Columns, present: Mapping[str, str], records: Sequence[Mapping[str, Any]]
) -> None:
    """Answers as token ids: a known name, or one whose corrupted twin is there too."""
    beside = dict(WRONG_IDS_BESIDE)
    for name in present:  # country_idx and corrupted_country_idx
        if name.endswith("_idx") and f"corrupted_{name}" in present:
            beside.setdefault(name, (f"corrupted_{name}",))
    wrong = {
        name: [each for each in wrong_names if each in present]
        for name, wrong_names in beside.items()
        if name in present
    }
    for name in [name for name in wrong if name in _NUMBERS_SAY and not wrong[name]]:
        found.hints.append(
            f"the column {name} {_NUMBERS_SAY[name]}; call it answer_ids if it is one"
        )
        del wrong[name]
    if not wrong:
        return
    name = next(iter(wrong))
    if name != "answer_ids":
        _refuse_several("answer_ids", [present[each] for each in wrong], records)
    found.names["answer_ids"] = present[name]
    _take_beside(found, present, "answer", name)
    if wrong[name]:
        found.names["wrong_answer_ids"] = present[wrong[name][0]]
        _take_beside(found, present, "wrong_answer", wrong[name][0])
    elif "wrong_answer" in present:
        found.names["wrong_answer"] = present["wrong_answer"]


def _take_beside(found: Columns, present: Mapping[str, str], name: str, ids: str) -> None:
    """Notes the column of texts that says in words what the column of ids says."""
    text = ids.removesuffix("_idx").removesuffix("_ids").removesuffix("_id")
    if text in present:
        found.beside[f"{name}_ids"] = present[text]


def _find_texts(
    found: Columns, present: Mapping[str, str], records: Sequence[Mapping[str, Any]]
) -> None:
    for name, wrong_names in WRONG_BESIDE.items():
        if name not in present:
            continue
        given = present[name]
        if "answer" not in name and _numbers(given, records):
            found.hints.append(
                f"the column {name} {_NUMBERS_SAY['label']}; call it answer_ids if they are ids, or "
                "answer if they are the texts to be predicted"
            )
            continue
        found.names["answer"] = given
        if name != "answer":
            rivals = [
                present[each] for each in WRONG_BESIDE if "answer" in each and each in present
            ]
            _refuse_several("answer", list(dict.fromkeys([given, *rivals])), records)
        wrong = [each for each in (*wrong_names, *_ANY_WRONG) if each in present]
        ids = "wrong_answer_ids" in present and name == "answer"
        if wrong:
            found.names["wrong_answer"] = present[wrong[0]]
        elif ids:
            found.names["wrong_answer_ids"] = present["wrong_answer_ids"]
        return
    if "plural" in present:
        found.hints.append(f"the column plural {_NUMBERS_SAY['plural']}; add the answers")


def _numbers(name: str, records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a column holds numbers, in digits or as such."""
    values = [record[name] for record in records if name in record]
    return all(isinstance(value, int | float) or str(value).strip().isdigit() for value in values)
