"""Prompt pairs: aligned clean and corrupted tokens, and the answers the metric looks at."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Int64
from torch import Tensor

from ..errors import InputError, name_rows

if TYPE_CHECKING:
    from .records import Tokenized

PADDING = -1
"""Fills short rows of token and answer tables. It never reaches a model or a metric."""


@dataclass(frozen=True)
class PairBatch:
    """Pairs of one length: what a model is run on. ``rows`` are their places in the PromptPairs."""

    rows: Int64[Tensor, "pair"]
    clean: Int64[Tensor, "pair pos"]
    corrupted: Int64[Tensor, "pair pos"]
    answers: Int64[Tensor, "pair answer"]
    wrong_answers: Int64[Tensor, "pair wrong"]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> PairBatch:
        return PairBatch(
            self.rows[part],
            self.clean[part],
            self.corrupted[part],
            self.answers[part],
            self.wrong_answers[part],
        )


@dataclass(frozen=True, eq=False)
class PromptPairs:
    """Clean and corrupted prompts, aligned token by token, and their answers.

    Args:
        clean, corrupted: int64 ``[pairs, pos]``; the metric is read at each prompt's last token.
            Prompts of different lengths are filled up on the right with ``PADDING`` (-1).
        answers, wrong_answers: int64 ``[pairs]``, or ``[pairs, n]`` filled up with -1 where a pair
            has several; ``wrong_answers`` may be left out for metrics that need none.
        features: the other columns of each pair's record, as they came.
        source: where the pairs came from, as plain data (written into results).

    Raises:
        InputError: shapes that do not fit, unequal lengths, an empty prompt, an answer that is
            also a wrong answer; the rows are named.
    """

    # Checked below, in words, rather than by their annotations.
    clean: Tensor
    corrupted: Tensor
    answers: Tensor
    wrong_answers: Tensor | None = None
    features: tuple[Mapping[str, Any], ...] = ()
    source: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        for name in ("clean", "corrupted", "answers", "wrong_answers"):
            table = getattr(self, name)
            if table is not None and table.dtype != torch.int64:
                raise InputError(f"expected {name} as int64 tokens, got {table.dtype}")
        n_pairs = len(self.clean)
        if n_pairs == 0:
            raise InputError("expected at least one prompt pair, got none")
        if self.clean.shape != self.corrupted.shape or self.clean.ndim != 2:
            raise InputError(
                "expected clean and corrupted tokens of one shape [pairs, pos], got "
                f"{list(self.clean.shape)} and {list(self.corrupted.shape)}"
            )
        wrong = self.answers.new_empty(n_pairs, 0)
        if self.wrong_answers is not None:
            wrong = self.wrong_answers
        for name, table in (("answers", self.answers), ("wrong_answers", wrong)):
            if len(table) != n_pairs or table.ndim not in (1, 2):
                raise InputError(
                    f"expected {name} of shape [{n_pairs}] or [{n_pairs}, n], "
                    f"got {list(table.shape)}"
                )
        # From here on both are tables, whatever came: of one column, or of none.
        object.__setattr__(self, "answers", self.answers.reshape(n_pairs, -1))
        object.__setattr__(self, "wrong_answers", wrong.reshape(n_pairs, -1))
        for name in ("clean", "corrupted", "answers", "wrong"):
            table = getattr(self, name)
            self._refuse_rows(
                (table < PADDING).any(1),
                f"expected {name} to hold tokens, and {PADDING} to fill up; other negative numbers",
                f"fill up with {PADDING}",
            )
            if name in ("clean", "corrupted"):
                # A prompt is filled up from some place to its end: no token follows a PADDING.
                padded = table == PADDING
                self._refuse_rows(
                    (padded[:, :-1] & ~padded[:, 1:]).any(1),
                    f"expected {name} prompts filled up on the right alone; tokens after a "
                    f"{PADDING}",
                    "move the tokens to the left",
                )
        self._refuse_rows(
            self._length(self.clean) != self._length(self.corrupted),
            "expected clean and corrupted prompts of equal length in tokens; they differ",
            "rephrase these pairs so that each word is matched by one of as many tokens",
        )
        self._refuse_rows(
            self._length(self.clean) == 0, "expected prompts of at least one token; empty", ""
        )
        self._refuse_rows(
            (self.answers != PADDING).sum(1) == 0, "expected an answer; none given", ""
        )
        if self.wrong.shape[1]:
            self._refuse_rows(
                (self.wrong == PADDING).all(1),
                "expected a wrong answer in every row or in none; missing",
                "add it, or leave wrong_answers out",
            )
        # [pair answer 1] == [pair 1 wrong], where both may be filled up.
        overlap = (self.answers[:, :, None] == self.wrong[:, None, :]) & (
            self.answers[:, :, None] != PADDING
        )
        self._refuse_rows(
            overlap.flatten(1).any(1),
            "expected the answer and the wrong answer to be different tokens; they are the same",
            "choose another wrong answer",
        )

    def _refuse_rows(self, refused: Tensor, what: str, next_step: str) -> None:
        if bool(refused.any()):
            raise InputError(f"{what} {name_rows(refused.nonzero().flatten().tolist(), next_step)}")

    @staticmethod
    def _length(tokens: Int64[Tensor, "pair pos"]) -> Int64[Tensor, "pair"]:
        return (tokens != PADDING).sum(1)

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def lengths(self) -> Int64[Tensor, "pair"]:
        """Tokens of each prompt."""
        return self._length(self.clean)

    @property
    def wrong(self) -> Int64[Tensor, "pair wrong"]:
        """The wrong answers as a table, of no columns when there are none."""
        return cast(Tensor, self.wrong_answers)

    def take(self, rows: Iterable[int]) -> PromptPairs:
        """The pairs of these rows, in this order. Raises InputError if there are none."""
        chosen = list(rows)
        return PromptPairs(
            self.clean[chosen],
            self.corrupted[chosen],
            self.answers[chosen],
            self.wrong[chosen],
            tuple(self.features[row] for row in chosen) if self.features else (),
            self.source,
        )

    def overlap(self, other: PromptPairs) -> list[int]:
        """The rows whose clean prompt, token by token, is a clean prompt of ``other`` too.

        What was found on the pairs of ``other`` has seen these, whatever their corrupted prompts.
        """
        seen = {tuple(prompt) for prompt in other._clean_prompts()}
        return [row for row, prompt in enumerate(self._clean_prompts()) if tuple(prompt) in seen]

    def _clean_prompts(self) -> Iterator[list[int]]:
        for prompt, length in zip(self.clean.tolist(), self.lengths.tolist(), strict=True):
            yield prompt[:length]

    def batches(self) -> Iterator[PairBatch]:
        """The pairs in one batch for each length, shortest first, nothing padded."""
        lengths = self.lengths
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero().flatten()
            yield PairBatch(
                rows,
                self.clean[rows, :length],
                self.corrupted[rows, :length],
                self.answers[rows],
                self.wrong[rows],
            )

    def fingerprint(self) -> str:
        """SHA-256 of the tokens and answers: equal for equal questions, whatever their source."""
        digest = hashlib.sha256()
        for table in (self.clean, self.corrupted, self.answers, self.wrong):
            # The shape, too: the same numbers may be cut into rows in several ways.
            digest.update(str(tuple(table.shape)).encode())
            digest.update(table.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @classmethod
    def read(
        cls, path: str | Path, model: Any, *, chat: bool = False, skip_bad: bool = False
    ) -> PromptPairs:
        """Reads pairs of a file with ``model``'s tokenizer.

        The file is JSON Lines, one JSON document (a list of records, records under a key such as
        auto-circuit's ``prompts``, or a list for each column), or a table parted by commas, tabs,
        semicolons or bars. Its columns are those of ``from_records``; a ``WiremapWarning`` says how
        a file was understood that has others.

        Args:
            model: a ``Model`` or a ``Tokenizer``.
            chat, skip_bad: see ``from_records``.

        Raises:
            InputError: unreadable, not UTF-8, empty or malformed, with the line; and what
                ``from_records`` raises.
        """
        from .records import tokenized_file

        path = Path(path)
        made = tokenized_file(path, model, chat, skip_bad)
        try:
            return cls._of(made, {"pairs": str(path)}, chat)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    @classmethod
    def from_records(
        cls,
        records: Sequence[Mapping[str, Any]],
        model: Any,
        source: Mapping[str, Any] | None = None,
        *,
        chat: bool = False,
        skip_bad: bool = False,
    ) -> PromptPairs:
        """Tokenizes records.

        Columns: ``clean``, ``corrupted``, ``answer``, and ``wrong_answer`` where the metric needs
        one; the answers are a text or a list of texts. Other names of the field that can mean
        nothing else (``vocabulary.PROMPT_COLUMNS``, ``WRONG_BESIDE``) are taken for them, and said.
        All other columns are kept as features.

        An answer's token is the one that tokenizing ``clean + answer`` adds to ``clean``. Whole
        numbers are token ids, as they are under ``answer_ids``, ``wrong_answer_ids``, ``clean_ids``
        and ``corrupted_ids``: nothing is added to them, and texts beside ids must begin with them. A prompt
        that begins with the BOS token as text is not given a second. A ``WiremapWarning`` tells of
        BOS, of ids, and of prompts that end with a space; a ``SpaceWarning`` of answers without the
        space that words of their prompt have.

        Args:
            model: a ``Model`` or a ``Tokenizer``.
            source: where the records came from (``PromptPairs.source``).
            chat: put each prompt, clean and corrupted, as the user's message into the tokenizer's
                chat template; the answer follows where the model's turn begins. Spans count the
                tokens of the prompt alone, and are moved along. The source says ``chat``.
            skip_bad: leave out rows that cannot be used. A ``WiremapWarning`` counts them, and the
                source has under ``left_out`` which they are, by cause.

        Raises:
            InputError: words outside the vocabulary, unequal lengths, answers that are not one
                token, answers equal to each other, token ids beyond the vocabulary; all rows
                (counted from 1) are named. ``chat`` of a tokenizer without a chat template.
        """
        from .pairs_file import PairsFile
        from .records import tokenized

        file = PairsFile.of_records(records)
        return cls._of(tokenized(file, model, chat, skip_bad), source or {}, chat)

    @classmethod
    def _of(cls, made: Tokenized, source: Mapping[str, Any], chat: bool) -> PromptPairs:
        said = dict(source)
        if chat:
            said["chat"] = True
        if made.faults.found:
            said["left_out"] = made.faults.described()
        return cls(**made.tables, features=made.features, source=said)
