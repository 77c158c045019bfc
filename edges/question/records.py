"""Records of prompt pairs turned into tokens; rows that cannot be used, each with its cause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Int64
from torch import Tensor

from ..errors import InputError
from ..model.tokens import Tokenizer
from .cells import plain_value
from .columns import ANSWERS, IDS, OWN, PROMPTS
from .entries import WRONG, Entries, Ids
from .faults import Faults, listed
from .notes import note, note_bos, note_ids, note_left_out, note_shape
from .pairs_file import PairsFile, read_pairs_file
from .prompts import PADDING
from .spaces import note_spaces, shown_tokens, uneven_ends, with_space
from .spans import moved

_MANY = 10
"""Rows that a message names, and beyond which it says how to have them as a file."""

_ONE_TOKEN = "choose a word of one token (most tokenizers want a space in front of it), or give the token itself"


@dataclass
class Tokenized:
    """What ``PromptPairs`` is made of.

    Attributes:
        tables: tokens of the rows that can be used.
        features: the other columns of their records.
        faults: the rows that cannot.
    """

    tables: dict[str, Tensor]
    features: tuple[dict[str, Any], ...]
    faults: Faults


def tokenized_file(path: Path, model: Any, chat: bool, skip_bad: bool) -> Tokenized:
    """The tables of a file of prompt pairs; see ``PromptPairs.read``."""
    file = read_pairs_file(path)
    try:
        return tokenized(file, model, chat, skip_bad)
    except InputError as error:
        message = f"{path}: {error}"
        if len(file.faults.found) > _MANY:
            message += f"\nEach with its cause, as a file: wiremap validate {path} --model MODEL -o bad.jsonl"
        raise InputError(message) from None


def bad_rows(path: Path, model: Any, *, chat: bool = False) -> tuple[int, list[Mapping[str, Any]]]:
    """How many rows a file of prompt pairs has, and all those that cannot be used.

    Each is plain data: ``row`` (from 1), ``line``, ``cause``, ``next_step`` and the ``record``.

    Args:
        model, chat: see ``PromptPairs.read``.

    Raises:
        InputError: a file that is none of prompt pairs.
    """
    file = read_pairs_file(path)
    try:
        maker = _Maker(file, model, chat)
        maker.note(maker.rows())
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return len(file.records), listed(file.faults, file.records)


def tokenized(file: PairsFile, model: Any, chat: bool, skip_bad: bool) -> Tokenized:
    """The tables and features of records; see ``PromptPairs.from_records``."""
    maker = _Maker(file, model, chat)
    rows = maker.rows()
    if not skip_bad or not rows:
        file.faults.refuse()
    if file.faults.found:
        note_left_out(file.faults)
    maker.note(rows)
    features = tuple(
        {key: value for key, value in maker.records[row].items() if key not in (*OWN, *IDS)}
        for row in rows
    )
    return Tokenized(
        {name: _table(values) for name, values in maker.tokens(rows).items()}, features, file.faults
    )


def _table(rows: Sequence[Sequence[int]]) -> Int64[Tensor, "row column"]:
    """Rows of different lengths as one table, filled up with PADDING."""
    table = torch.full((len(rows), max(map(len, rows), default=0)), PADDING, dtype=torch.int64)
    for row, values in enumerate(rows):
        table[row, : len(values)] = torch.tensor(values, dtype=torch.int64)
    return table


class _Maker:
    """Makes tokens of the rows of a file, and takes those out that cannot be used.

    Each check looks at the rows that are left, so that a row is told of once.
    """

    def __init__(self, file: PairsFile, model: Any, chat: bool) -> None:
        self.file, self.faults, self.chat = file, file.faults, chat
        self.tokenizer = model if isinstance(model, Tokenizer) else model.require_tokenizer()
        # A model may have more tokens than its tokenizer spells.
        n_tokens = int(getattr(model, "d_vocab", None) or self.tokenizer.n_tokens)
        self.entries = Entries(file, n_tokens)
        self.plain = self.entries.records
        self.records = list(self.plain)  # whose prompts a chat template may be filled with
        self.made: dict[str, dict[int, Ids]] = {}

    def rows(self) -> list[int]:
        """The rows that can be used, in order; their tokens are made."""
        if self.chat:
            self._fill_chat()
        self.made = {name: self._prompts(name) for name in PROMPTS}
        self._refuse_unknown()
        self._refuse_lengths()
        any_wrong = any(WRONG & self.records[row].keys() for row in self.faults.good)
        for name in ANSWERS[: 1 + any_wrong]:
            self.made[name] = self._answers(name)
        self._refuse_overlap()
        return self.faults.good

    def tokens(self, rows: Sequence[int]) -> dict[str, list[Ids]]:
        """The tokens of rows that can be used, by the names of ``PromptPairs``."""
        names = {"answer": "answers", "wrong_answer": "wrong_answers"}
        return {
            names.get(name, name): [made[row] for row in rows] for name, made in self.made.items()
        }

    # ---- prompts

    def _fill_chat(self) -> None:
        """Puts the prompts into the chat template, and moves their spans along."""
        for row in self.faults.good:
            if {"clean_ids", "corrupted_ids"} & self.records[row].keys():
                self.faults.add(
                    row, "expected prompts as texts, which the chat template takes; token ids", "",
                    "leave --chat (chat=True) out, or give texts",
                )  # fmt: skip
        rows = self.faults.good
        # The template begins with BOS where the model wants it; in the user's message it has no place.
        filled = {
            name: self.tokenizer.chat(
                [self.records[row][name].removeprefix(self.tokenizer.bos_text) for row in rows]
            )
            for name in PROMPTS
        }
        for place, row in enumerate(rows):
            self.records[row] = {
                **self.records[row],
                **{name: texts[place] for name, texts in filled.items()},
            }
        spanned = [row for row in rows if "spans" in self.records[row]]
        alone = self.tokenizer.encode([self.plain[row]["clean"] for row in spanned])
        within = self.tokenizer.encode([self.records[row]["clean"] for row in spanned])
        bos = int(self.tokenizer.bos)
        for row, prompt, whole in zip(spanned, alone, within, strict=True):
            moved_by = _place(prompt[bos:], whole)
            if moved_by is None:
                raise InputError(
                    f"row {row + 1}: the chat template changes how its prompt is parted into tokens, "
                    "so that its spans cannot be moved along; leave the spans out, or --chat (chat=True)"
                )
            self.records[row]["spans"] = moved(self.records[row]["spans"], moved_by - bos)

    def _prompts(self, name: str) -> dict[int, Ids]:
        texts = [row for row in self.faults.good if f"{name}_ids" not in self.records[row]]
        encoded = self.tokenizer.encode([self.records[row][name] for row in texts])
        made = dict(zip(texts, encoded, strict=True))
        for row in self.faults.good:
            made.setdefault(row, self.records[row].get(f"{name}_ids", []))
        for row, ids in made.items():
            if not ids:
                self.faults.add(row, "expected prompts of at least one token; empty")
        return made

    def _refuse_unknown(self) -> None:
        unknown = self.tokenizer.unknown
        if unknown is None:
            return
        for row in self.faults.good:
            record = self.records[row]
            # Who gives ids means them.
            words = [
                word
                for name in PROMPTS
                if f"{name}_ids" not in record and unknown in self.made[name][row]
                for word in record[name].split()
            ]
            if words:
                spelled = self.tokenizer.encode(words)
                strange = {word for word, ids in zip(words, spelled, strict=True) if unknown in ids}
                self.faults.add(
                    row,
                    "expected prompts of words the model's vocabulary has; it lacks some",
                    f"row {row + 1} has {', '.join(map(repr, sorted(strange)[:5]))}",
                    "use others",
                )

    def _refuse_lengths(self) -> None:
        for row in self.faults.good:
            n_clean, n_corrupted = (len(self.made[name][row]) for name in PROMPTS)
            if n_clean != n_corrupted:
                self.faults.add(
                    row,
                    "expected clean and corrupted prompts of equal length in tokens; they differ",
                    f"row {row + 1} has {n_clean} clean and {n_corrupted} corrupted tokens"
                    + uneven_ends(self.tokenizer, self.records[row]),
                    "exchange words for others of as many tokens",
                )

    # ---- answers

    def _answers(self, name: str) -> dict[int, Ids]:
        """The token ids of each row's answers. All texts are tokenized in one call."""
        made: dict[int, Ids] = {}
        texts: list[tuple[int, str]] = []
        for row in self.faults.good:
            ids = self.records[row].get(f"{name}_ids")
            if ids is not None:
                made[row] = list(dict.fromkeys(ids))
                self._compare(row, name, ids)
            elif "clean_ids" in self.records[row]:
                self.faults.add(
                    row,
                    f"expected every {name} as a token id where its prompt is given as token ids; a text",
                    "",
                    f"give {name}_ids",
                )
            else:
                made[row] = []
                texts += [(row, text) for text in _texts(self.records[row][name])]
        cleans = [self.records[row]["clean"] for row, _ in texts]
        added = self.tokenizer.continuations(cleans, [text for _, text in texts])
        unknown = self.tokenizer.unknown
        for (row, text), new in zip(texts, added, strict=True):
            if new is None or len(new) != 1 or new[0] == unknown:
                came = f"{text!r} in row {row + 1}: {self._came(row, text, new)}"
                self.faults.add(
                    row, f"expected every {name} to add exactly one token to its clean prompt; not so",
                    came, f"{_ONE_TOKEN} ({name}_ids)",
                )  # fmt: skip
            elif new[0] not in made[row]:  # two spellings of one token count once
                made[row].append(new[0])
        return made

    def _came(self, row: int, text: str, new: Ids | None) -> str:
        """What becomes of an answer, with its tokens."""
        clean = self.records[row]["clean"]
        if new is None:
            whole = self.tokenizer.encode([clean + text])[0]
            came = "it changes the tokens of the prompt it follows"
            shown = shown_tokens(self.tokenizer, self.made["clean"][row], 3)
            spaced = with_space(self.tokenizer, clean, text)
            token = self.tokenizer.named(text)
            named = "" if spaced or token is None else f"; {text!r} alone is the token {token}"
            becomes = shown_tokens(self.tokenizer, whole, 3)
            return f"{came}, {shown} becomes {becomes}{spaced}{named}"
        if len(new) != 1:
            came = f"it adds {len(new)} tokens"
            return f"{came}, {shown_tokens(self.tokenizer, new, 5)}" if new else came
        return "it is outside the vocabulary"

    def _compare(self, row: int, name: str, ids: Ids) -> None:
        """Ids beside a text must begin it: those of another tokenizer mean other words."""
        said = self.records[row].get(name)
        if said is None:
            beside = self.entries.columns.beside.get(f"{name}_ids")
            said = None if beside is None else self.records[row].get(beside)
        if isinstance(said, str):
            value = plain_value(said) if said.strip().startswith("[") else said
            said = value if isinstance(value, list) else said
        texts = [text.strip().lower() for text in _texts(said) if isinstance(text, str)]
        if not texts:
            return
        for token in ids:
            spelled = self.tokenizer.decode(token).strip().lower()
            # Half of a letter spells nothing that could be compared.
            if "\ufffd" not in spelled and not any(text.startswith(spelled) for text in texts):
                self.faults.add(
                    row,
                    f"expected token ids that begin the text beside them; {name} has others",
                    f"row {row + 1}: {token} is {self.tokenizer.decode(token)!r}, beside {said!r:.60}",
                    "take the ids of this model's tokenizer, or take the texts out",
                )
                return

    def _refuse_overlap(self) -> None:
        if "wrong_answer" not in self.made:
            return
        for row in self.faults.good:
            both = set(self.made["answer"][row]) & set(self.made["wrong_answer"][row])
            if both:
                self.faults.add(
                    row,
                    "expected the answer and the wrong answer to be different tokens; they are the same",
                    "",
                    "choose another wrong answer",
                )

    # ---- what is worth knowing

    def note(self, rows: Sequence[int]) -> None:
        """Says how the file was understood, where that is not plain."""
        note_shape(self.file.shape, self.entries)
        records = {row: self.records[row] for row in rows}
        note_ids(self.tokenizer, records)
        plain = [self.plain[row] for row in rows]
        texts = [record[name] for record in plain for name in PROMPTS if name in record]
        note_bos(self.tokenizer, texts)
        if not self.chat:
            of_texts = {row: record for row, record in records.items() if "clean" in record}
            note_spaces(self.tokenizer, of_texts, note)


def _texts(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else [value]


def _place(part: Sequence[int], whole: Sequence[int]) -> int | None:
    """Where ``part`` stands in ``whole`` for the last time; None if it does not."""
    starts = range(len(whole) - len(part), -1, -1)
    return next((at for at in starts if whole[at : at + len(part)] == part), None)
